package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A request's event is durable before its response leaves, so the time that waiting and opening took is not known when the event
// is handed over, and an event is never changed afterwards. The durations of finished requests are therefore gathered and
// recorded later, many in one event: type TypeApplication, interaction InteractionTimings, Detail as AppendTimings writes it.

// InteractionTimings is the Interaction of events whose Detail holds timings.
const InteractionTimings = "timings"

// Timed is how long one finished request took.
type Timed struct {
	RequestID string
	Route     string // pattern, never the path
	Role      string // first role of the caller's token, "" for none
	Status    uint16 // HTTP status
	Timing    Timing
}

const timingsVersion = 1

// AppendTimings appends the encoding of list to b: a version, each route and role once, in the order of first use, then the
// entries. A request id that is a UUID takes 16 bytes, so an entry takes about 35.
func AppendTimings(b []byte, list []Timed) []byte {
	b = append(b, timingsVersion)
	var words []string
	known := make(map[string]uint64, 16)
	number := func(word string) {
		if _, ok := known[word]; !ok {
			known[word] = uint64(len(words))
			words = append(words, word)
		}
	}
	for i := range list {
		number(list[i].Route)
		number(list[i].Role)
	}
	b = appendTexts(b, words)
	b = binary.AppendUvarint(b, uint64(len(list)))
	for i := range list {
		t := &list[i]
		if id, ok := parseUUID(t.RequestID); ok {
			b = append(append(b, 1), id[:]...)
		} else {
			b = appendText(append(b, 0), t.RequestID)
		}
		b = binary.AppendUvarint(b, known[t.Route])
		b = binary.AppendUvarint(b, known[t.Role])
		for _, n := range [...]uint32{uint32(t.Status), t.Timing.Total, t.Timing.Auth, t.Timing.Decision, t.Timing.Database, t.Timing.Crypto, t.Timing.Audit} {
			b = binary.AppendUvarint(b, uint64(n))
		}
	}
	return b
}

// DecodeTimings is the inverse of AppendTimings. Like DecodeEvent it takes only the one spelling that AppendTimings writes. The
// list shares no memory with detail.
func DecodeTimings(detail []byte) ([]Timed, error) {
	r := reader{rest: detail}
	if r.byte() != timingsVersion {
		return nil, fmt.Errorf("decoding timings: version: %w", errEncoding)
	}
	words := r.texts()
	word := func() string {
		n := r.uvarint()
		if n >= uint64(len(words)) {
			r.bad = true
			return ""
		}
		return words[n]
	}
	list := make([]Timed, r.count(11)) // of the shortest entry
	for i := range list {
		t := &list[i]
		if r.byte() == 0 {
			t.RequestID = r.text()
		} else if id := r.take(16); id != nil {
			t.RequestID = formatUUID([16]byte(id))
		}
		t.Route, t.Role = word(), word()
		status := r.uvarint()
		r.bad = r.bad || status > 1<<16-1
		t.Status = uint16(status)
		for _, d := range [...]*uint32{&t.Timing.Total, &t.Timing.Auth, &t.Timing.Decision, &t.Timing.Database, &t.Timing.Crypto, &t.Timing.Audit} {
			n := r.uvarint()
			r.bad = r.bad || n > 1<<32-1
			*d = uint32(n)
		}
		if r.bad {
			break
		}
	}
	if r.bad || !bytes.Equal(AppendTimings(make([]byte, 0, len(detail)), list), detail) {
		return nil, fmt.Errorf("decoding timings: %w", errEncoding)
	}
	return list, nil
}

// Timings gathers the durations of finished requests and records them, many in one event. Safe for concurrent use.
type Timings struct {
	log     *Log
	mu      sync.Mutex
	waiting []Timed
	full    chan struct{} // timingsGroup or more are waiting
	dropped atomic.Uint64
}

const (
	timingsGroup = 200
	timingsEvery = time.Second
	timingsBound = 8192 // waiting; more is dropped and counted
	timingsText  = 256  // longest text that is kept, so that a group always fits an event
)

// NewTimings returns a collector that records into log. Nothing is recorded until Run runs.
func NewTimings(log *Log) *Timings {
	return &Timings{log: log, waiting: make([]Timed, 0, timingsBound), full: make(chan struct{}, 1)}
}

// Add takes one finished request. It never waits and allocates nothing: when too many are waiting, the entry is dropped and
// counted. Its strings must be owned by the caller for good.
func (t *Timings) Add(entry Timed) {
	if len(entry.RequestID) > timingsText || len(entry.Route) > timingsText || len(entry.Role) > timingsText {
		t.dropped.Add(1)
		return
	}
	t.mu.Lock()
	n := len(t.waiting)
	if n == timingsBound {
		t.mu.Unlock()
		t.dropped.Add(1)
		return
	}
	t.waiting = append(t.waiting, entry)
	t.mu.Unlock()
	if n+1 == timingsGroup {
		select {
		case t.full <- struct{}{}:
		default:
		}
	}
}

// Dropped is how many entries found no place, or could not be recorded, since NewTimings.
func (t *Timings) Dropped() uint64 { return t.dropped.Load() }

// Run records what was added, every second or when a group is full, until ctx is done; what is left then is recorded too. It
// returns nil. A group that the log does not take is dropped and counted: durations are for looking at, and the events of the
// requests themselves are safe already.
func (t *Timings) Run(ctx context.Context) error {
	tick := time.NewTicker(timingsEvery)
	defer tick.Stop()
	spare := make([]Timed, 0, timingsBound)
	for {
		done := false
		select {
		case <-ctx.Done():
			done = true
		case <-tick.C:
		case <-t.full:
		}
		t.mu.Lock()
		taken := t.waiting
		t.waiting = spare[:0]
		t.mu.Unlock()
		t.record(taken)
		clear(taken) // lets go of the strings
		spare = taken
		if done {
			return nil
		}
	}
}

// record hands the entries over, a group an event. It does not end with the context of Run: the last groups count, too.
func (t *Timings) record(entries []Timed) {
	for len(entries) > 0 {
		group := entries[:min(len(entries), timingsGroup)]
		entries = entries[len(group):]
		e := t.log.application(InteractionTimings)
		e.Detail = AppendTimings(nil, group)
		if _, err := t.log.Record(context.Background(), Process, e); err != nil {
			t.dropped.Add(uint64(len(group)))
			t.log.logger.Warn("timings were not recorded", slog.Int("requests", len(group)), slog.Any("error", err))
		}
	}
}
