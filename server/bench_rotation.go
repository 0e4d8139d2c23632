package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// What a rotation is measured with: patients, requests a second of the readers, and how long a writer rests between writes.
const (
	rotationCharts = 1000
	rotationReads  = 200
	rotationRests  = 10 * time.Millisecond
	rotationJobs   = 2 // as keys rotate does by itself
)

// rotation measures how many rows a second a rotation of every key seals anew beside readers and a writer, and what it does to the
// readers: in turns, so that what else the machine does strikes both alike.
func (f *figures) rotation(ctx context.Context, v *benchVerb, t terminal, b *bench) error {
	charts := *v
	charts.Patients = max(v.Patients, rotationCharts)
	patients, err := charts.fill(ctx, b.rooms.records, terminal{t.err, t.err})
	if err != nil {
		return err
	}
	a, err := benchAPI(ctx, b.rooms, b.dir, phi.Levels{Disclosure: audit.Power, Other: audit.Process}, loadLimits(), b.sink.Logger)
	if err != nil {
		return err
	}
	defer a.close(ctx) //nolint:errcheck // the measurement is over
	storage, err := b.rooms.db.Rotation(ctx, rotationJobs)
	if err != nil {
		return err
	}
	defer storage.Close()
	var rises, speeds []float64
	reads := variant{name: "reads", url: a.base, token: a.token}
	for round := range v.Rounds + 1 { // round 0 warms up
		calm, err := v.spawn(ctx, b.dir, reads, patients, rotationReads)
		if err != nil {
			return err
		}
		turning := turn(ctx, b.rooms, storage, patients)
		busy, err := v.spawn(ctx, b.dir, reads, patients, rotationReads)
		speed, turned := turning()
		switch {
		case err != nil:
			return err
		case turned != nil:
			return turned
		case calm.Failed+busy.Failed > 0:
			return fmt.Errorf("%d reads failed, %d of them beside a rotation", calm.Failed+busy.Failed, busy.Failed)
		case round > 0:
			rises, speeds = append(rises, float64(busy.P99)/float64(calm.P99)), append(speeds, speed)
		}
	}
	f.add("rotation of every key beside readers and a writer, rows a second", fmt.Sprintf("%.0f", median(speeds)), "at least 10,000", median(speeds) >= 10_000)
	f.add(fmt.Sprintf("p99 of %d reads a second meanwhile", rotationReads), fmt.Sprintf("%.2f ×", median(rises)), "under 1.2 ×", median(rises) < 1.2)
	return nil
}

// turn rotates every key again and again beside a writer, until it is told to stop; then it says how many rows a second that were.
func turn(ctx context.Context, r *rooms, storage phi.RotationStorage, patients []string) (stop func() (rowsPerSecond float64, err error)) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var rows int64
	var failed, refused error
	began := time.Now()
	wg.Go(func() {
		for ctx.Err() == nil && failed == nil {
			rotation := r.records.Rotation(phi.RotationConfig{By: "bench", Jobs: rotationJobs})
			if err := rotation.DataKeys(ctx, storage, phi.Scope{All: true}); err != nil && ctx.Err() == nil {
				failed = err
			}
			rows += rotation.Progress().RowsDone
		}
	})
	wg.Go(func() {
		caller := &phi.Caller{Principal: system("chartkeep-bench"), RequestID: "bench-writer", Start: time.Now()}
		for n := 0; ctx.Err() == nil && refused == nil; n++ {
			body := `{"resourceType":"Observation","status":"final","code":{"text":"bench"},"subject":{"reference":"Patient/` + patients[n%len(patients)] + `"}}`
			if _, err := r.records.Create(ctx, caller, "Observation", []byte(body), nil); err != nil && ctx.Err() == nil {
				refused = err
			}
			pause(ctx, rotationRests)
		}
	})
	return func() (float64, error) {
		took := time.Since(began)
		cancel()
		wg.Wait()
		if failed == nil {
			failed = refused
		}
		return float64(rows) / took.Seconds(), failed
	}
}
