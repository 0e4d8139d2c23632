package audit

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// locked lets a test change a ledger while it is being verified.
type locked struct {
	Evidence
	mu *sync.Mutex
	l  *ledger
}

func (e locked) Rows(ctx context.Context, s Span) ([]Row, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.l.Rows(ctx, s)
}

// TestPatrol raises one alarm for each kind of bad news, and none before.
func TestPatrol(t *testing.T) {
	l := twelveBatches(t)
	var mu sync.Mutex
	var alerts []string
	leads := true
	p := NewPatrol(PatrolConfig{
		Evidence: locked{l, &mu, l}, Keys: []string{l.vkey}, Every: 5 * time.Millisecond,
		Leads: func() bool { mu.Lock(); defer mu.Unlock(); return leads },
		Alert: func(desc string) { mu.Lock(); defer mu.Unlock(); alerts = append(alerts, desc) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for range 2000 {
			if ok() {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("it never came that %s", what)
	}
	until("both looked", func() bool { news, whole := p.Last(); return !news.At.IsZero() && !whole.At.IsZero() })
	news, whole := p.Last()
	if !news.Report.OK() || !whole.Report.OK() || whole.Report.Rows != 1200 || news.Report.From != 1200 {
		t.Errorf("news %+v, whole %+v", news.Report, whole.Report)
	}
	mu.Lock()
	if len(alerts) > 0 {
		t.Errorf("false alarms: %q", alerts)
	}
	l.rows[StreamID{2}][150].Body[40] ^= 1
	mu.Unlock()
	until("an alarm was raised", func() bool { mu.Lock(); defer mu.Unlock(); return len(alerts) > 0 })
	_, before := p.Last()
	until("it looked again", func() bool { _, whole := p.Last(); return whole.At.After(before.At.Add(20 * time.Millisecond)) })
	mu.Lock()
	if len(alerts) != 1 || !strings.Contains(alerts[0], "body, leaf 450") {
		t.Errorf("alarms: %q", alerts)
	}
	leads = false
	mu.Unlock()
	time.Sleep(200 * time.Millisecond)
	_, before = p.Last()
	time.Sleep(50 * time.Millisecond)
	if _, after := p.Last(); after.At != before.At {
		t.Error("it looked where it does not lead")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// unreadable fails.
type unreadable struct{ Evidence }

func (unreadable) Spans(context.Context, int64, int) ([]Span, error) { return nil, errors.New("away") }

// TestPatrolUnreadable does not take a trail that cannot be read for a good one, nor for a bad one.
func TestPatrolUnreadable(t *testing.T) {
	l := twelveBatches(t)
	p := NewPatrol(PatrolConfig{Evidence: unreadable{l}, Keys: []string{l.vkey}, Alert: func(desc string) { t.Error(desc) }})
	if r := p.look(t.Context(), &p.whole, VerifyOptions{}); r != nil {
		t.Errorf("report %+v", r)
	}
	if _, whole := p.Last(); whole.Err == nil {
		t.Error("no error is told")
	}
}
