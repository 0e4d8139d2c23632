package audit

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// submission is one group of events on its way from a caller to durability. It is owned by one goroutine at a time:
// caller, committer, syncer, shipper. The caller comes back to it only through granted.
type submission struct {
	receipt Receipt // what the caller gets once it is granted
	bodies  []byte  // encoded events, one after the other
	ends    []int   // where each ends
	level   Level
	system  bool        // the system's own: taken during an outage, too
	granted chan error  // buffered; gets exactly one value
	gone    atomic.Bool // nobody waits any more
	timer   *time.Timer // stopped unless somebody waits
	last    uint64      // seq after the last event, set by the committer
}

func newSubmission() *submission {
	s := &submission{granted: make(chan error, 1), timer: time.NewTimer(time.Hour)}
	s.timer.Stop()
	return s
}

// encode fills the submission.
func (s *submission) encode(level Level, events []*Event) error {
	s.level = level
	s.bodies, s.ends = s.bodies[:0], s.ends[:0]
	for _, e := range events {
		b, err := appendEvent(s.bodies, e)
		if err != nil {
			return err
		}
		s.bodies = b
		s.ends = append(s.ends, len(b))
	}
	s.receipt = receiptFor(events)
	return nil
}

// grant releases the ticket: nil when the events are durable at their level.
func (s *submission) grant(err error) { s.granted <- err }

// Ticket is an event on its way. Any number of goroutines may wait for it, any number of times.
type Ticket struct {
	s       *submission
	timeout time.Duration
}

// Wait waits as Record does: the ticket timeout starts with the call.
func (t Ticket) Wait(ctx context.Context) (Receipt, error) {
	if t.s == nil {
		return Receipt{}, fmt.Errorf("waiting for nothing: %w", ErrUnavailable)
	}
	timer := time.NewTimer(t.timeout)
	defer timer.Stop()
	err, answered := t.s.wait(ctx, timer.C)
	if answered {
		t.s.granted <- err // for whoever waits next
	}
	if err != nil {
		return Receipt{}, err
	}
	return t.s.receipt, nil
}

// wait returns the answer, or why there is none yet.
func (s *submission) wait(ctx context.Context, timeout <-chan time.Time) (err error, answered bool) {
	select {
	case err := <-s.granted:
		return err, true
	default:
	}
	select {
	case err := <-s.granted:
		return err, true
	case <-timeout:
		s.gone.Store(true)
		return fmt.Errorf("waiting for the journal: timeout: %w", ErrUnavailable), false
	case <-ctx.Done():
		s.gone.Store(true)
		return fmt.Errorf("waiting for the journal: %w: %w", context.Cause(ctx), ErrUnavailable), false
	}
}
