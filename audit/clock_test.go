package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// clocked is a Storage with a clock of its own.
type clocked struct {
	audittest.Storage
	offset atomic.Int64
}

func (c *clocked) Now(context.Context) (time.Time, error) {
	return time.Now().Add(time.Duration(c.offset.Load())), nil
}

// wound is a wall clock that can be set.
type wound struct{ offset atomic.Int64 }

func (w *wound) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

// steps returns the steps on record, oldest first.
func steps(t *testing.T, rows []audit.Stored) (list []time.Duration) {
	t.Helper()
	for _, r := range rows {
		if r.Event.Interaction != audit.InteractionClockStep {
			continue
		}
		step, err := audit.DecodeClockStep(r.Event.Detail)
		if err != nil {
			t.Error(err)
		}
		list = append(list, step.Round(time.Second))
	}
	return list
}

// Experiment 9 at this level: whatever the wall clock does, part times never go back and stay near the truth, each step is on
// record before the events that it concerns, those events are suspect and no others, and tickets do not mind.
func TestClockSteps(t *testing.T) {
	var wall wound
	storage := &audittest.Storage{}
	l := open(t, audit.Config{Dir: t.TempDir(), Storage: storage, Now: wall.now, Heartbeat: -1})
	ship(t, l)
	const year = 365 * 24 * time.Hour
	var want []time.Duration
	last := time.Duration(0)
	for i, offset := range []time.Duration{0, time.Hour, -time.Hour, -10 * year, 10 * year, 30 * time.Second, 0, 0} {
		wall.offset.Store(int64(offset))
		if offset != last {
			want = append(want, offset-last)
		}
		last = offset
		if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	drain(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rows := storage.Rows()
	contiguous(t, rows)
	var part time.Time
	var suspect []string
	for _, r := range rows {
		if r.PartTime.Before(part) || time.Since(r.PartTime).Abs() > 5*time.Second {
			t.Errorf("part time %v after %v", r.PartTime, part)
		}
		part = r.PartTime
		if r.ClockSuspect() && r.Event.Patient != "" {
			suspect = append(suspect, r.Event.Patient)
		}
	}
	if got := steps(t, rows); !slices.Equal(got, want) {
		t.Errorf("steps %v, want %v", got, want)
	}
	if got := strings.Join(suspect, " "); got != "1 2 3 4 5" {
		t.Errorf("suspect are %q", got)
	}
}

// A clock that stands still is noticed, and told of once in a while, not with every group.
func TestClockFreezes(t *testing.T) {
	stopped := time.Now()
	var frozen atomic.Bool
	storage := &audittest.Storage{}
	l := open(t, audit.Config{Dir: t.TempDir(), Storage: storage, Heartbeat: -1, Now: func() time.Time {
		if frozen.Load() {
			return stopped
		}
		return time.Now()
	}})
	ship(t, l)
	stopped = time.Now()
	frozen.Store(true)
	for began := time.Now(); time.Since(began) < 1500*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if _, err := l.Record(t.Context(), audit.Process, read("p")); err != nil {
			t.Fatal(err)
		}
	}
	drain(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := steps(t, storage.Rows()); len(got) != 1 {
		t.Errorf("steps %v", got)
	}
}

// The database's clock decides: a wall clock far off it refuses callers until it is back; part times follow the database.
func TestClockSkew(t *testing.T) {
	storage := &clocked{}
	storage.offset.Store(int64(-time.Hour))
	l := open(t, audit.Config{Dir: t.TempDir(), Storage: storage, Heartbeat: 20 * time.Millisecond})
	ship(t, l)
	eventually(t, "callers are refused", func() bool { return l.Healthy() != nil })
	if _, err := l.Record(t.Context(), audit.Power, read("p")); !errors.Is(err, audit.ErrUnavailable) || !strings.Contains(err.Error(), "1h0m0s") {
		t.Errorf("an hour off: %v", err)
	}
	if skew := l.Stats().Skew; (skew - time.Hour).Abs() > time.Second {
		t.Errorf("skew %v", skew)
	}
	storage.offset.Store(int64(-10 * time.Second))
	eventually(t, "callers are taken", func() bool { return l.Healthy() == nil })
	if _, err := l.Record(t.Context(), audit.Power, read("skewed")); err != nil {
		t.Error(err)
	}
	storage.offset.Store(0)
	eventually(t, "the clock is right", func() bool { return l.Stats().Skew.Abs() < time.Second })
	time.Sleep(600 * time.Millisecond)
	drain(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var outcomes []audit.Outcome
	for _, r := range storage.Rows() {
		switch r.Event.Interaction {
		case audit.InteractionClockSkew:
			outcomes = append(outcomes, r.Event.Outcome)
		case audit.InteractionHeartbeat:
			if h, err := audit.DecodeHeartbeat(r.Event.Detail); err != nil || h.Next > r.Seq || time.Since(h.Wall) > time.Minute {
				t.Errorf("heartbeat %+v, %v", h, err)
			}
		}
	}
	if len(outcomes) != 2 || outcomes[0] != audit.SeriousFailure || outcomes[1] != audit.Success {
		t.Errorf("alerts about the skew: %v", outcomes)
	}
}

func FuzzDecodeHeartbeat(f *testing.F) {
	f.Add(audit.AppendHeartbeat(nil, &audit.Heartbeat{Next: 7, Wall: time.UnixMicro(5), Skew: time.Second, SkewKnown: true}))
	f.Add(audit.AppendHeartbeat(nil, &audit.Heartbeat{}))
	f.Fuzz(func(t *testing.T, detail []byte) {
		h, err := audit.DecodeHeartbeat(detail)
		if err != nil {
			return
		}
		if h.Skew%time.Microsecond != 0 || h.Skew.Microseconds()*1000 != int64(h.Skew) {
			t.Errorf("skew %v", h.Skew)
		}
		if again := audit.AppendHeartbeat(nil, &h); string(again) != string(detail) {
			t.Errorf("%x encodes as %x", detail, again)
		}
	})
}
