package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Order is by stream and sequence number, never by time. Times are checked all the same: the wall clock against the monotonic
// one at every group, and against the database's clock, where Storage has one, with every heartbeat. What is found is
// recorded before the events that it concerns, and part times follow the clock that can be trusted.
const (
	stepTolerance  = 500 * time.Millisecond // between wall and monotonic clock, within stepWindow
	stepWindow     = 10 * time.Second       // slewing (500 ppm at most) stays far below the tolerance in it
	skewTolerance  = 2 * time.Second        // between wall clock and database
	defaultMaxSkew = 5 * time.Minute
	askClockFor    = time.Second // an answer that took longer says too little
)

// InteractionClockStep is the Interaction of the security alert that tells of a step of the wall clock; DecodeClockStep reads its
// Detail. InteractionClockSkew is the one of alerts about the distance from the database's clock.
const (
	InteractionClockStep = "clock-step"
	InteractionClockSkew = "clock-skew"
)

// Clock is what a Storage may implement besides: the time as the database has it.
type Clock interface {
	Now(ctx context.Context) (time.Time, error)
}

var errSkew = errors.New("audit: clock is too far off the database's")

// clock belongs to the committer, but for reference. An offset is a wall clock minus the monotonic clock, in nanoseconds.
type clock struct {
	last    int64 // offset when the clock was last read
	anchor  int64 // offset at the beginning of the window
	since   int64 // monotonic time of that
	drifted int64 // monotonic time of the last drift that was recorded
	trusted int64 // offset that part times follow
	skewed  bool  // more than skewTolerance off the database, and recorded

	reference atomic.Pointer[int64] // offset of the database's clock; nil until it is known
}

// reading is one look at both clocks.
type reading struct {
	wall time.Time
	mono int64 // ns since the log was opened
}

func (r reading) offset() int64 { return r.wall.UnixNano() - r.mono }

// read reads both clocks at once where it can.
func (l *Log) read() reading {
	at := time.Now()
	mono := int64(at.Sub(l.opened))
	if l.cfg.Now != nil {
		at = l.cfg.Now()
	}
	return reading{at, mono}
}

// checkClock compares the clocks and returns what is to be recorded, mostly nothing. A step is a jump since the last reading; a
// clock that stands still or runs wild leaves the window slowly and is told of once a window.
func (l *Log) checkClock(r reading) (found []*Event) {
	c, offset := &l.committer.clock, r.offset()
	step, drift := time.Duration(offset-c.last), time.Duration(offset-c.anchor)
	c.last = offset
	switch {
	case step.Abs() > stepTolerance:
		found = append(found, l.clockStep(step))
		c.anchor, c.since = offset, r.mono
	case drift.Abs() > stepTolerance:
		if c.drifted == 0 || r.mono-c.drifted > int64(stepWindow) {
			found = append(found, l.clockStep(drift))
			c.anchor, c.since, c.drifted = offset, r.mono, max(r.mono, 1)
		}
	case r.mono-c.since > int64(stepWindow):
		if time.Duration(offset-c.trusted).Abs() <= stepTolerance {
			c.trusted = offset // slewed
		}
		c.anchor, c.since = offset, r.mono
	}
	ref := c.reference.Load()
	if ref == nil {
		return found
	}
	skew := time.Duration(offset - *ref)
	if c.trusted = *ref; skew.Abs() <= skewTolerance {
		c.trusted = offset
	}
	l.skew.Store(int64(skew))
	if off := skew.Abs() > skewTolerance; off != c.skewed && (off || skew.Abs() < skewTolerance/2) {
		c.skewed = off
		e := l.alert(fmt.Sprintf("the clock is %d ms off the database's", skew.Milliseconds()))
		e.Interaction = InteractionClockSkew
		if !off {
			e.Outcome = Success
		}
		found = append(found, e)
	}
	refused := l.skewed.Load() != nil
	if far := skew.Abs() > l.cfg.MaxSkew; far != refused {
		var err error
		if far {
			err = fmt.Errorf("%v: %w", skew.Round(time.Millisecond), errSkew)
			l.skewed.Store(&err)
		} else {
			l.skewed.Store(nil)
		}
	}
	return found
}

const clockStepVersion = 1

func (l *Log) clockStep(step time.Duration) *Event {
	e := l.alert(fmt.Sprintf("the clock stepped by %d ms", step.Milliseconds()))
	e.Interaction = InteractionClockStep
	e.Detail = binary.AppendVarint([]byte{clockStepVersion}, step.Microseconds())
	return e
}

// DecodeClockStep returns by how much the clock stepped, from the Detail of an event of InteractionClockStep.
func DecodeClockStep(detail []byte) (time.Duration, error) {
	r := reader{rest: detail}
	version, us := r.byte(), r.varint()
	step := time.Duration(us) * time.Microsecond
	if r.bad || version != clockStepVersion || len(r.rest) != 0 || step.Microseconds() != us {
		return 0, fmt.Errorf("decoding clock step: %w", errEncoding)
	}
	return step, nil
}

// partTime is the wall clock's while it can be trusted, and never goes back: no clock may make events land in a partition
// that is gone or does not exist yet.
func (l *Log) partTime(r reading) int64 {
	c := &l.committer.clock
	wall := r.wall
	if trusted := time.Unix(0, c.trusted+r.mono); wall.Sub(trusted).Abs() > skewTolerance {
		wall = trusted
	}
	return max(l.committer.part, wall.UnixMicro())
}

// askClock asks the database for the time.
func (l *Log) askClock(ctx context.Context) {
	remote, ok := l.cfg.Storage.(Clock)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askClockFor)
	defer cancel()
	before := time.Since(l.opened)
	now, err := remote.Now(ctx)
	after := time.Since(l.opened)
	if err != nil || after-before > askClockFor {
		return // the last answer is carried on by the monotonic clock
	}
	offset := now.UnixNano() - int64(before+(after-before)/2)
	l.committer.clock.reference.Store(&offset)
}

// ClockSuspect reports whether the wall clock that stamped the event is not to be believed: it is far from the event's part
// time, which follows the monotonic clock and the database's, or lies after the time of storage.
func (s *Stored) ClockSuspect() bool {
	recorded := s.Event.Recorded
	return recorded.Sub(s.PartTime).Abs() > ClockTolerance || !s.Ingested.IsZero() && recorded.Sub(s.Ingested) > ClockTolerance
}
