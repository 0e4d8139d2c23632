package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// sweepVerb sweeps now.
type sweepVerb struct {
	deployment `embed:""`
	Rate       int    `help:"Rows a second at most; as many as go when 0." default:"0" placeholder:"N"`
	JSON       bool   `name:"json" help:"Print JSON."`
	By         string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*sweepVerb) Help() string {
	return `Holds every stored row against its seal and against the audit trail, and says what does not fit: rows that were edited, rolled back or deleted, keys that came
back. A server does it once a day; each finding is a security alert. A sweep that was stopped goes on where it was. Exit code 1 when something was found.
Example: chartkeep sweep --data .chartkeep
Example: chartkeep sweep --rate 5000 --json`
}

// Run sweeps.
func (v *sweepVerb) Run(ctx context.Context, t terminal) error {
	if v.Rate < 0 {
		return usage("--rate must not be negative")
	}
	return v.onRooms(ctx, t, func(r *rooms, _ *settings) error {
		if err := r.awaitTree(ctx); err != nil {
			return err
		}
		report, err := r.sweep(ctx, phi.SweepConfig{By: operator(v.By), Rate: v.Rate}, func(rows int64) {
			fmt.Fprintf(t.err, "%d rows\n", rows)
		})
		if err != nil {
			return err
		}
		if err := v.print(t, report); err != nil {
			return err
		}
		if report.Total > 0 {
			return fmt.Errorf("%d findings", report.Total)
		}
		return nil
	})
}

func (v *sweepVerb) print(t terminal, report *phi.SweepReport) error {
	if v.JSON {
		e := json.NewEncoder(t.out)
		e.SetIndent("", "  ")
		return e.Encode(report)
	}
	for _, f := range report.Findings {
		fmt.Fprintln(t.out, f)
	}
	if more := report.Total - int64(len(report.Findings)); more > 0 {
		fmt.Fprintf(t.out, "and %d more\n", more)
	}
	_, err := fmt.Fprintf(t.out, "%d rows in %v, held against %d events of the trail: %d findings\n",
		report.Rows, report.Ended.Sub(report.Began).Round(time.Millisecond), report.Trail, report.Total)
	return err
}

// sweep sweeps once, telling every few seconds how far it is.
func (r *rooms) sweep(ctx context.Context, cfg phi.SweepConfig, tell func(rows int64)) (*phi.SweepReport, error) {
	storage, err := r.db.Sweep(ctx)
	if err != nil {
		return nil, err
	}
	defer storage.Close()
	cfg.Storage, cfg.Trail = storage, r.db.Tree()
	s := r.records.Sweep(cfg)
	ended, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for pause(ended, 5*time.Second) {
			tell(s.Rows())
		}
	}()
	return s.Run(ctx)
}

// pause waits, and returns false when ctx is done before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// treePatience is how long a sweep that was asked for waits until what is stored of the trail is in its tree.
const treePatience = 30 * time.Second

// awaitTree waits until the batches that are stored now are in the log's tree: the sweep goes by what is in it.
func (r *rooms) awaitTree(ctx context.Context) error {
	if err := r.log.Drain(ctx); err != nil {
		return fmt.Errorf("shipping the trail: %w", err)
	}
	tree := r.db.Tree()
	waiting, err := tree.Unsequenced(ctx, 1000)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(treePatience)
	for _, batch := range waiting {
		for {
			_, there, err := tree.Locate(ctx, batch.Stream, batch.First)
			if err != nil {
				return err
			}
			if there {
				break
			}
			if time.Now().After(deadline) {
				r.logger.Warn("the trail's tree is behind: what is not in it yet is looked at by the next sweep")
				return nil
			}
			if !pause(ctx, 100*time.Millisecond) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// How often a server sweeps, and how fast: a million rows take some ten minutes of one connection and a few per cent of a core.
const (
	sweepEvery = 24 * time.Hour
	sweepLook  = 30 * time.Minute
	sweepRate  = 2000
)

// sweeper sweeps once a day, on one instance of those that run.
type sweeper struct {
	rooms *rooms
	last  atomic.Pointer[phi.SweepReport]
}

// run looks whether a sweep is due until ctx is done. Instances look at different moments.
func (s *sweeper) run(ctx context.Context) error {
	for wait := sweepLook / 3; pause(ctx, wait/2+rand.N(wait)); wait = sweepLook { //nolint:gosec // not all at once
		if err := s.look(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, phi.ErrSweeping) {
			s.rooms.logger.Error("records could not be swept", "error", err.Error())
		}
	}
	return nil
}

func (s *sweeper) look(ctx context.Context) error {
	storage, err := s.rooms.db.Sweep(ctx)
	if err != nil {
		return err
	}
	last, err := s.rooms.records.Sweep(phi.SweepConfig{Storage: storage}).LastSweep(ctx)
	storage.Close()
	if err != nil {
		return err
	}
	if last != nil {
		s.last.Store(last)
		if time.Since(last.Ended) < sweepEvery {
			return nil
		}
	}
	report, err := s.rooms.sweep(ctx, phi.SweepConfig{Rate: sweepRate, Level: audit.Power}, func(int64) {})
	if err != nil {
		return err
	}
	s.last.Store(report)
	for _, f := range report.Findings {
		s.rooms.logger.Error("a stored record does not fit", "finding", f.String())
	}
	s.rooms.logger.Info("records swept", "rows", report.Rows, "findings", report.Total)
	return nil
}

// sweeper emits what the last sweep found.
func (c *roomsCollector) sweeper(gauge func(name string, v float64, labels ...string)) {
	if last := c.rooms.sweeper.last.Load(); last != nil {
		gauge("records_swept_timestamp_seconds", float64(last.Ended.Unix()))
		gauge("records_swept_rows", float64(last.Rows))
		gauge("records_swept_findings", float64(last.Total))
	}
}
