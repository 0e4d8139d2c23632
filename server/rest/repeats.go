package rest

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// Refusals for rate come by the thousand, and each would be an event like any other. The first of a kind (one limit, one source) is,
// at once and with its request's id. Those that follow are counted, and every second their number is an event. None is
// left out: a number that could not be recorded is kept for the next second, and the last ones are recorded when the server
// shuts down. A process that is killed takes the numbers of its last second with it.

const (
	repeatEvery = time.Second
	maxRepeats  = 4096 // kinds that are counted apart; what comes beyond is counted together
)

// interactionThrottled is the interaction of the events that count.
const interactionThrottled = "throttled"

// repeats counts refusals that are like one that was recorded.
type repeats struct {
	record  func(*audit.Event) error
	telling sync.WaitGroup
	mu      sync.Mutex
	open    map[repeat]*count
	closed  bool
}

// repeat is what makes refusals alike.
type repeat struct{ limit, key string }

// count is how often a refusal came again.
type count struct {
	like  audit.Event // the first one
	n     uint64
	since time.Time
	timer *time.Timer
}

// throttle is the Detail of an event of a refusal for rate.
type throttle struct {
	Limit   string    `json:"limit"`
	Network string    `json:"network,omitempty"` // whose failures were counted together
	Refused uint64    `json:"refused"`           // requests that the event stands for
	Since   time.Time `json:"since,omitzero"`    // of the first of them
}

// detail is the Detail of one refusal.
func (l *limited) detail(address string) []byte {
	t := throttle{Limit: l.name, Refused: 1}
	if l.name == limitFailed && l.table != nil {
		t.Network = network(address)
	}
	b, _ := json.Marshal(t) // of strings and a number: cannot fail
	return b
}

func newRepeats(record func(*audit.Event) error) *repeats {
	return &repeats{record: record, open: make(map[repeat]*count)}
}

// again counts a refusal that is like one before. It reports false for the first, which is the caller's to record; like makes
// what later ones are recorded as.
func (r *repeats) again(kind repeat, like func() audit.Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.open[kind]; c != nil {
		c.more()
		return true
	}
	first := true
	if len(r.open) >= maxRepeats {
		kind.key = ""
		if c := r.open[kind]; c != nil {
			c.more()
			return true
		}
		first = false // whoever it stands for comes after others
	}
	c := &count{like: like()}
	if !first {
		c.like.Agent = audit.Agent{}
		c.more()
	}
	c.timer = time.AfterFunc(repeatEvery, func() { r.tell(kind) })
	r.open[kind] = c
	return !first
}

func (c *count) more() {
	if c.n == 0 {
		c.since = time.Now()
	}
	c.n++
}

// tell records what was counted of a kind, and forgets the kind when it has stopped.
func (r *repeats) tell(kind repeat) {
	r.mu.Lock()
	c := r.open[kind]
	if c == nil || r.closed { // then close has told, or will
		r.mu.Unlock()
		return
	}
	if c.n == 0 {
		delete(r.open, kind)
		r.mu.Unlock()
		return
	}
	e, n, since := c.take()
	r.telling.Add(1)
	defer r.telling.Done()
	r.mu.Unlock()
	err := r.record(e)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		c.n, c.since = c.n+n, since
	}
	if !r.closed {
		c.timer.Reset(repeatEvery)
	}
}

// take turns the count into an event and starts anew.
func (c *count) take() (e *audit.Event, n uint64, since time.Time) {
	like := c.like
	n, since = c.n, c.since
	c.n = 0
	var detail throttle
	if json.Unmarshal(like.Detail, &detail) == nil { // ours: it does
		detail.Refused, detail.Since = n, since.UTC()
	}
	like.Detail, _ = json.Marshal(detail) // of strings, a number and a time: cannot fail
	like.OutcomeDesc = fmt.Sprintf("%s: %d refused, limit %s", like.OutcomeDesc, n, detail.Limit)
	return &like, n, since
}

// close records everything that was counted and not told yet. No request may be under way.
func (r *repeats) close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.telling.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed error
	for kind, c := range r.open {
		c.timer.Stop()
		if c.n > 0 {
			e, n, since := c.take()
			if err := r.record(e); err != nil {
				failed = err
				c.n, c.since = n, since
				continue
			}
		}
		delete(r.open, kind)
	}
	return failed
}
