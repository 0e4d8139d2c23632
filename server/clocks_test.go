package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// wildClock is the time of day as a broken host has it: ahead, behind, or standing still.
type wildClock struct {
	offset atomic.Int64
	frozen atomic.Int64 // Unix nanoseconds; 0 when it runs
}

func (c *wildClock) now() time.Time {
	if at := c.frozen.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Now().Add(time.Duration(c.offset.Load()))
}

// Experiment 9: the clock of one server steps back and forth by hours and years, freezes and drifts, under load, while another's is
// right. Nothing is refused, no event lands in a month that does not exist, order holds, and each step is an event.
func TestClockChaos(t *testing.T) {
	lab := openLaboratory(t, audit.Power, "")
	admin, err := pgx.Connect(t.Context(), lab.cluster.DSN(demoDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	before := months(t, admin)

	var clock wildClock
	dir := t.TempDir()
	l, err := audit.Open(audit.Config{
		Dir: dir, Storage: lab.rooms.db.Audit(), Now: clock.now, Logger: lab.sink.Logger, MaxSkew: 100 * 365 * 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() {
		if err := errors.Join(l.Close(), ctx.Err()); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	lab.Journals = append(lab.Journals, dir)
	const hour, year = time.Hour, 365 * 24 * time.Hour
	steps := 0
	for round := range form(1, 10) {
		for i, step := range []struct {
			name   string
			offset time.Duration
			frozen bool
		}{
			{"right", 0, false}, {"+1 h", hour, false}, {"-1 h", -hour, false}, {"+10 years", 10 * year, false}, {"-10 years", -10 * year, false},
			{"+30 s", 30 * time.Second, false}, {"frozen", 0, true}, {"right again", 0, false},
		} {
			clock.offset.Store(int64(step.offset))
			clock.frozen.Store(0)
			if step.frozen {
				clock.frozen.Store(time.Now().UnixNano())
			}
			if i > 0 {
				steps++
			}
			for n := range 30 {
				began := time.Now()
				key := fmt.Sprintf("clock-%d-%d-%d", round, i, n)
				e := &audit.Event{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, RequestID: key, Patient: "p1"}
				if _, err := l.Record(t.Context(), audit.Power, e); err != nil {
					t.Fatalf("%s: %v after %s", step.name, err, time.Since(began))
				}
				lab.Acknowledge(audittest.Ack{Key: key, Level: audit.Power, Events: 1})
				time.Sleep(30 * time.Millisecond) // a frozen clock is noticed after half a second
			}
			if _, others := lab.paced(t, 100, 300*time.Millisecond); len(others) > 0 {
				t.Errorf("%s: the other server answered %v", step.name, others)
			}
			holds(t, lab.Invariants, step.name, audit.Process)
		}
	}
	drain, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if err := l.Drain(drain); err != nil {
		t.Fatal(err)
	}
	lab.drained(t)
	holds(t, lab.Invariants, "afterwards", audit.Process)
	if after := months(t, admin); !slices.Equal(before, after) {
		t.Errorf("partitions were %v and are %v", before, after)
	}
	for _, c := range []struct {
		what, sql string
		want      int
	}{
		{"rows in no month", `SELECT count(*) FROM audit_event_default`, 0},
		{"rows whose partition time goes back", `SELECT count(*) FROM (SELECT part_ts < lag(part_ts) OVER (PARTITION BY stream ORDER BY seq) AS back FROM audit_event) x WHERE back`, 0},
	} {
		var n int
		if err := admin.QueryRow(t.Context(), c.sql).Scan(&n); err != nil || n != c.want {
			t.Errorf("%s: %d, %v", c.what, n, err)
		}
	}
	var told int
	if err := admin.QueryRow(t.Context(), `SELECT count(*) FROM audit_event WHERE interaction = 'clock-step' AND stream = $1`, [16]byte(l.Stream())).Scan(&told); err != nil || told < steps {
		t.Errorf("%d clock steps are in the trail, want %d (%v)", told, steps, err)
	}
	rows, err := admin.Query(t.Context(), `SELECT stream, seq, part_ts, recorded, ingested_at FROM audit_event WHERE request_id LIKE 'clock-0-3-%'`)
	if err != nil {
		t.Fatal(err)
	}
	suspects := 0
	var s audit.Stored
	var seq int64
	if _, err := pgx.ForEachRow(rows, []any{(*[16]byte)(&s.Stream), &seq, &s.PartTime, &s.Event.Recorded, &s.Ingested}, func() error {
		if s.ClockSuspect() {
			suspects++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if suspects < 29 {
		t.Errorf("%d of 30 events that were recorded ten years ahead are marked", suspects)
	}
}

// months lists the trail's partitions.
func months(t *testing.T, admin *pgx.Conn) (names []string) {
	t.Helper()
	rows, err := admin.Query(t.Context(), `SELECT relid::text FROM pg_partition_tree('audit_event') WHERE isleaf ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !strings.Contains(strings.Join(names, " "), "audit_event_2") {
		t.Fatalf("partitions %v, %v", names, err)
	}
	return names
}
