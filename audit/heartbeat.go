package audit

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

// A stream that ends says so, and one that goes on says so every ten seconds: a tail that was cut off, in the journal or in
// the database, shows within that time.

// InteractionHeartbeat is the Interaction of heartbeats (TypeApplication); DecodeHeartbeat reads their Detail.
const InteractionHeartbeat = "heartbeat"

const (
	defaultHeartbeat = 10 * time.Second
	heartbeatVersion = 1
)

// Heartbeat is what a process says of itself. Counts are since its start.
type Heartbeat struct {
	Next      uint64 // records written to the stream when it was made
	Recorded  uint64
	Rejected  uint64
	Shipped   uint64
	Wall      time.Time     // to the microsecond, UTC
	Monotonic time.Duration // since the process's start
	Skew      time.Duration // wall clock minus the database's, to the microsecond; see SkewKnown
	SkewKnown bool
}

// AppendHeartbeat appends the encoding: a version, four counts, two times, and the skew where it is known.
func AppendHeartbeat(b []byte, h *Heartbeat) []byte {
	b = append(b, heartbeatVersion)
	for _, n := range [...]uint64{h.Next, h.Recorded, h.Rejected, h.Shipped} {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.AppendVarint(b, h.Wall.UnixMicro())
	b = binary.AppendVarint(b, int64(h.Monotonic))
	if h.SkewKnown {
		b = binary.AppendVarint(b, h.Skew.Microseconds())
	}
	return b
}

// DecodeHeartbeat is the inverse of AppendHeartbeat, and as strict as DecodeEvent.
func DecodeHeartbeat(detail []byte) (Heartbeat, error) {
	var h Heartbeat
	r := reader{rest: detail}
	version := r.byte()
	for _, n := range [...]*uint64{&h.Next, &h.Recorded, &h.Rejected, &h.Shipped} {
		*n = r.uvarint()
	}
	h.Wall, h.Monotonic = time.UnixMicro(r.varint()).UTC(), time.Duration(r.varint())
	if h.SkewKnown = len(r.rest) > 0; h.SkewKnown {
		us := r.varint()
		h.Skew = time.Duration(us) * time.Microsecond
		r.bad = r.bad || h.Skew.Microseconds() != us
	}
	if r.bad || version != heartbeatVersion || len(r.rest) != 0 {
		return Heartbeat{}, fmt.Errorf("decoding heartbeat: %w", errEncoding)
	}
	return h, nil
}

// beat records heartbeats, asks for the database's time and saves the journal's position until the log is closed.
func (l *Log) beat() {
	defer close(l.rested)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-l.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	var tick <-chan time.Time
	if l.cfg.Heartbeat > 0 {
		ticker := time.NewTicker(l.cfg.Heartbeat)
		defer ticker.Stop()
		tick = ticker.C
	}
	l.askClock(ctx)
	for {
		select {
		case <-tick:
			l.askClock(ctx)
			l.heartbeat()
			l.savePosition()
		case <-l.rotated:
			l.savePosition()
		case <-l.ending:
			return
		}
	}
}

// heartbeat hands one over. While the journal is down it is left out: the reserve is for rarer news.
func (l *Log) heartbeat() {
	if l.down.Load() != nil {
		return
	}
	r := l.read()
	h := Heartbeat{
		Next: l.counters.written.Load(), Recorded: l.counters.recorded.Load(), Rejected: l.counters.rejected.Load(), Shipped: l.shipping.rows.Load(),
		Wall: r.wall, Monotonic: time.Duration(r.mono),
	}
	if l.committer.clock.reference.Load() != nil {
		h.Skew, h.SkewKnown = time.Duration(l.skew.Load()), true
	}
	e := l.application(InteractionHeartbeat)
	e.Detail = AppendHeartbeat(nil, &h)
	if _, err := l.tell(Process, e); err != nil {
		l.logger.Warn("audit heartbeat was not recorded", "error", err)
	}
}
