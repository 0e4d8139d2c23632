package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// figures is the table that bench --audit prints: what was measured beside what it should be.
type figures struct {
	w      io.Writer
	rows   int
	missed int
}

// add prints a figure. met says whether it reaches its target; a figure without one has target "".
func (f *figures) add(name, measured, target string, met bool) {
	if f.rows == 0 {
		fmt.Fprintf(f.w, "\n%-58s %22s  %-28s\n", "figure", "measured", "target")
	}
	f.rows++
	verdict := "ok"
	switch {
	case target == "":
		verdict = ""
	case !met:
		verdict = "missed"
		f.missed++
	}
	fmt.Fprintf(f.w, "%-58s %22s  %-28s %s\n", name, measured, target, verdict)
}

// Load of the journal's figures.
const (
	pacedRate    = 10_000 // events a second
	pacedCallers = 16
	pacedFor     = 3 * time.Second
	closedFor    = 2 * time.Second
	groupWriters = 64
)

// journal measures what the request path pays for its event, on a log of its own without a database.
func (f *figures) journal(ctx context.Context, dir string) (err error) {
	l, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "bench-journal")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	handOff, err := handOff(ctx, l)
	if err != nil {
		return err
	}
	f.add("hand-off to the channel, median", handOff.String(), "under 1 µs", handOff < time.Microsecond)
	process, err := paced(ctx, l, audit.Process)
	if err != nil {
		return err
	}
	f.add(fmt.Sprintf("process ticket at %d events/s, median", pacedRate), process.String(), "under 10 µs", process < 10*time.Microsecond)
	sync, err := fsyncs(ctx, dir, 1)
	if err != nil {
		return err
	}
	power, err := paced(ctx, l, audit.Power)
	if err != nil {
		return err
	}
	ratio := float64(power) / float64(sync.median)
	f.add(fmt.Sprintf("power ticket at %d events/s, median", pacedRate), fmt.Sprintf("%s = %.1f fsyncs", power.Round(time.Microsecond), ratio), "at most 2 fsyncs", ratio <= 2)

	alone, err := fsyncs(ctx, dir, groupWriters)
	if err != nil {
		return err
	}
	grouped, allocations, err := closed(ctx, l, groupWriters)
	if err != nil {
		return err
	}
	f.add(fmt.Sprintf("allocations of an event's way to its receipt, %d writers", groupWriters), fmt.Sprintf("%.2f", allocations), "0 beyond the event", allocations < 0.5)
	f.add(fmt.Sprintf("group commit at %d writers over one fsync an event", groupWriters), fmt.Sprintf("%.0f/s = %.0f ×", grouped, grouped/alone.perSecond), "at least 20 ×", grouped/alone.perSecond >= 20)
	return nil
}

// benchEvent is a clinician's read as the records' room hands it over.
func benchEvent() *audit.Event {
	return &audit.Event{
		Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: "9927a129-abed-4903-96d0-078c4a605356",
		Agent: audit.Agent{
			User: "dr-rivera", Name: "Dr. Ana Rivera", Client: "chartkeep-bench", Session: "4e9c2f7d1a", Roles: []string{"clinician"}, Network: "127.0.0.1",
			FHIRUser: "Practitioner/practitioner-rivera",
		},
		Entities: []audit.Entity{{Type: "Patient", ID: "9927a129-abed-4903-96d0-078c4a605356", Version: 1}},
		Classes:  []string{"identifier", "name", "birth_date", "contact", "clinical", "narrative"}, Purpose: "TREAT",
		Decision:  audit.Decision{Allowed: true, Rule: "clinician:*:r:treatment", Reason: "allowed", View: "full", Policy: 1},
		RequestID: "f4725670-c813-4b44-9309-f097669fc722",
	}
}

// handOff returns the median time until a caller may go on with its own work.
func handOff(ctx context.Context, l *audit.Log) (time.Duration, error) {
	took := make([]time.Duration, 20_000)
	for i := range took {
		e := benchEvent()
		began := time.Now()
		ticket, err := l.Submit(audit.Process, e)
		took[i] = time.Since(began)
		if err != nil {
			return 0, err
		}
		if _, err := ticket.Wait(ctx); err != nil {
			return 0, err
		}
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// paced records at a fixed rate, whatever the answers take, and returns the median time to a receipt.
func paced(ctx context.Context, l *audit.Log, level audit.Level) (time.Duration, error) {
	const gap = time.Second * pacedCallers / pacedRate
	all := make([][]time.Duration, pacedCallers)
	failed := make(chan error, pacedCallers)
	var wg sync.WaitGroup
	start := time.Now().Add(10 * time.Millisecond)
	for c := range pacedCallers {
		wg.Go(func() {
			due := start.Add(gap * time.Duration(c) / pacedCallers)
			for due.Sub(start) < pacedFor && ctx.Err() == nil {
				time.Sleep(time.Until(due))
				e := benchEvent()
				began := time.Now()
				if _, err := l.Record(ctx, level, e); err != nil {
					failed <- err
					return
				}
				all[c] = append(all[c], time.Since(began))
				due = due.Add(gap)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
	}
	took := slices.Sorted(slices.Values(slices.Concat(all...)))
	if len(took) == 0 {
		return 0, ctx.Err()
	}
	return took[len(took)/2], nil
}

// closed returns how many events a second callers record at level power, each the next when the last is durable, and what each
// allocates: writers use one event over and over, once it is durable.
func closed(ctx context.Context, l *audit.Log, writers int) (perSecond, allocations float64, err error) {
	failed := make(chan error, writers)
	counts := make([]int, writers)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	began := time.Now()
	for w := range writers {
		wg.Go(func() {
			for e := benchEvent(); time.Since(began) < closedFor; counts[w]++ {
				e.ID, e.Recorded = audit.ID{}, time.Time{}
				if _, err := l.Record(ctx, audit.Power, e); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	select {
	case err := <-failed:
		return 0, 0, err
	default:
	}
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return float64(sum) / took.Seconds(), float64(after.Mallocs-before.Mallocs) / float64(max(sum, 1)), nil
}

// fsynced is what the disk does when each event gets a write and an fdatasync of its own.
type fsynced struct {
	median    time.Duration
	perSecond float64
}

// fsyncs measures it, with so many writers that take turns, on a file that is filled ahead as the journal's segments are.
func fsyncs(ctx context.Context, dir string, writers int) (fsynced, error) {
	const size, record = 8 << 20, 512
	path := filepath.Join(dir, "bench-fsync")
	f, err := audit.OS{}.Create(path)
	if err != nil {
		return fsynced{}, err
	}
	defer os.Remove(path)
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
		return fsynced{}, err
	}
	if err := f.Datasync(); err != nil {
		return fsynced{}, err
	}
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	var wg sync.WaitGroup
	b := make([]byte, record)
	began := time.Now()
	for range writers {
		wg.Go(func() {
			for time.Since(began) < closedFor && ctx.Err() == nil {
				mu.Lock()
				start := time.Now()
				_, err := f.WriteAt(b, int64(len(took))*record%size)
				if err == nil {
					err = f.Datasync()
				}
				took = append(took, time.Since(start))
				failed = err
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	all := time.Since(began)
	if failed != nil || len(took) == 0 {
		return fsynced{}, failed
	}
	slices.Sort(took)
	return fsynced{took[len(took)/2], float64(len(took)) / all.Seconds()}, nil
}
