package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// audit measures what the trail promises and prints one table. A missed figure is said and is no failure.
func (v *benchVerb) audit(ctx context.Context, t terminal, b *bench) error {
	f := &figures{w: t.out}
	if err := f.journal(ctx, b.dir); err != nil {
		return err
	}
	if err := f.ingest(ctx, b); err != nil {
		return err
	}
	if err := f.outage(ctx, v, t, b); err != nil {
		return err
	}
	if err := f.verification(ctx, b); err != nil {
		return err
	}
	return f.queries(ctx, v, t, b)
}

// verification exports what the bench recorded so far and verifies the export as an outsider does.
func (f *figures) verification(ctx context.Context, b *bench) error {
	if err := b.rooms.log.Drain(ctx); err != nil {
		return err
	}
	tree := b.rooms.db.Tree()
	for rest, err := tree.Unsequenced(ctx, 1); err != nil || len(rest) > 0; rest, err = tree.Unsequenced(ctx, 1) {
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	key, err := os.ReadFile(filepath.Join(b.dir, demoCheckpoint+".pub"))
	if err != nil {
		return err
	}
	path := filepath.Join(b.dir, "bench-export")
	w, err := audit.CreateBundle(path)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := audit.Export(ctx, tree, w, audit.ExportOptions{}); err != nil {
		return err
	}
	exported := time.Since(began)
	bundle, closer, err := audit.OpenBundlePath(path)
	if err != nil {
		return err
	}
	defer closer.Close()
	// As in a process of its own: a server lets garbage pile up, see tune.
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	runtime.GC()
	before, stop, peak := heapInUse(), make(chan struct{}), make(chan uint64)
	go func() {
		most := uint64(0)
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(20 * time.Millisecond):
				most = max(most, heapInUse())
			}
		}
	}()
	cpu, _ := cpuTimes()
	report, err := bundle.Verify(ctx, audit.VerifyOptions{Keys: []string{strings.TrimSpace(string(key))}})
	after, _ := cpuTimes()
	close(stop)
	grown := max(<-peak, before) - before
	switch {
	case err != nil:
		return err
	case !report.OK():
		return fmt.Errorf("the export has %d findings, the first: %v", len(report.Findings), report.Findings[0])
	}
	f.add(fmt.Sprintf("export of %d events", report.Rows), fmt.Sprintf("%.0f/s", float64(report.Rows)/exported.Seconds()), "", true)
	perCore := float64(report.Rows) / max((after-cpu).Seconds(), 0.01)
	f.add("verification of the export, events a second and core", fmt.Sprintf("%.0f", perCore), "at least 150,000", perCore >= 150_000)
	f.add("memory that it takes", fmt.Sprintf("%d MiB", grown>>20), "under 64 MiB", grown < 64<<20)
	return nil
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// queries asks officers' queries on a trail of each size.
func (f *figures) queries(ctx context.Context, v *benchVerb, t terminal, b *bench) error {
	const instances = 100
	volumes, err := postgres.MeasureQueries(ctx, b.cluster.DSN(demoDatabase), postgres.Measurement{
		Sizes: v.AuditRows, Instances: instances, Progress: func(format string, args ...any) { fmt.Fprintf(t.err, format+"\n", args...) },
	})
	if err != nil {
		return err
	}
	for i, volume := range volumes {
		f.add(fmt.Sprintf("%d rows: generated", volume.Rows), fmt.Sprintf("%.0f/s, %.1f GB", float64(volume.Rows)/volume.Loaded.Seconds(), float64(volume.Bytes)/1e9), "", true)
		for k, s := range volume.Shapes {
			measured, target := fmt.Sprintf("%.1f ms", millis(s.P95)), ""
			met := s.P95 < 50*time.Millisecond
			if s.Promised {
				target = "under 50 ms"
			}
			if i > 0 {
				// Both times in memory. A difference that no timer and no reader notices is none.
				before := volumes[i-1].Shapes[k].Again
				ratio := float64(s.Again) / float64(before)
				measured += fmt.Sprintf(", again %.1f ms = %.2f ×", millis(s.Again), ratio)
				met = met && (ratio <= 1.3 || s.Again-before < time.Millisecond)
				if s.Promised {
					target += ", at most 1.30 ×"
				}
			}
			f.add(fmt.Sprintf("%d rows: %s, p95", volume.Rows, s.Name), measured, target, met)
		}
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// ingest compares the shipper's transactions with a bare COPY.
func (f *figures) ingest(ctx context.Context, b *bench) error {
	r, err := postgres.MeasureIngest(ctx, b.cluster.DSN(demoDatabase), 15)
	if err != nil {
		return err
	}
	f.add("ingest over raw binary COPY into the same table", fmt.Sprintf("%.0f/s = %.0f %%", r.Ingest, 100*r.Ratio), "at least 80 %", r.Ratio >= 0.8)
	return nil
}

// The outage of the figures, scaled down: an hour at 1,000 events a second leaves outageHour of them.
const (
	outageRate    = 1000
	outageHour    = 3600 * outageRate
	outageBacklog = 120_000
	outageRounds  = 3
)

// outage serves a steady load, normally and while the trail catches up on what piled up in an outage.
func (f *figures) outage(ctx context.Context, v *benchVerb, t terminal, b *bench) error {
	ids, err := v.fill(ctx, b.rooms.records, terminal{t.err, t.err})
	if err != nil {
		return err
	}
	a, err := benchAPI(ctx, b.rooms, b.dir, phi.Levels{Disclosure: audit.Power, Other: audit.Process}, loadLimits(), b.sink.Logger)
	if err != nil {
		return err
	}
	x := variant{url: a.base, token: a.token}
	var normal, behind, rates []float64
	measure := func() error {
		for range outageRounds {
			before, err := v.spawn(ctx, b.dir, x, ids, outageRate)
			if err != nil {
				return err
			}
			caught := make(chan float64, 1)
			if err := backlog(ctx, b, caught); err != nil {
				return err
			}
			after, err := v.spawn(ctx, b.dir, x, ids, outageRate)
			if err != nil {
				return err
			}
			if before.Failed+after.Failed > 0 {
				return fmt.Errorf("%d connections failed", before.Failed+after.Failed)
			}
			select {
			case rate := <-caught:
				rates = append(rates, rate)
			case <-time.After(time.Minute):
				return errors.New("the trail did not catch up within a minute")
			}
			normal, behind = append(normal, before.P99.Seconds()), append(behind, after.P99.Seconds())
		}
		return nil
	}
	if err := errors.Join(measure(), a.close(ctx)); err != nil {
		return err
	}
	whole := time.Duration(outageHour / median(rates) * float64(time.Second))
	f.add("an hour's outage at 1,000 events/s caught up in", fmt.Sprintf("%s (%.0f/s)", whole.Round(time.Second), median(rates)), "under 10 min", whole < 10*time.Minute)
	ratios := make([]float64, len(normal))
	for i := range ratios {
		ratios[i] = behind[i] / normal[i]
	}
	f.add(fmt.Sprintf("p99 of requests meanwhile, %.1f ms otherwise", 1000*median(normal)), fmt.Sprintf("%.1f ms = %.2f ×", 1000*median(behind), median(ratios)), "at most 1.10 ×", median(ratios) <= 1.10)
	return nil
}

// backlog lets events pile up while the database takes none, resumes, and sends the rate at which the trail then caught up, beside
// what was recorded meanwhile.
func backlog(ctx context.Context, b *bench, caught chan<- float64) error {
	resume, err := postgres.PauseIngest(ctx, b.cluster.DSN(demoDatabase))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range groupWriters {
		wg.Go(func() {
			for range outageBacklog / groupWriters {
				if _, err := b.rooms.log.Record(ctx, audit.Process, benchEvent()); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	from := b.rooms.log.Stats().Pending
	if err := errors.Join(failed, resume()); err != nil {
		return err
	}
	began := time.Now()
	go func() {
		for ctx.Err() == nil {
			if left := b.rooms.log.Stats().Pending; left < 3000 {
				caught <- float64(from-left) / time.Since(began).Seconds()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return nil
}
