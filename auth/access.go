package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// AccessConfig configures Access.
type AccessConfig struct {
	Storage Storage
	Logger  *slog.Logger
	Now     func() time.Time // wall clock; time.Now when nil
}

const (
	pollEvery   = time.Second
	pollTimeout = 2 * time.Second
	lease       = 5 * time.Second // for how long cached relationships count without word from the storage
)

// Access decides. Safe for concurrent use.
type Access struct {
	storage   Storage
	logger    *slog.Logger
	policy    atomic.Pointer[snapshot]
	refused   atomic.Pointer[error] // why the newest policy was not taken over; nil when it was
	grants    atomic.Pointer[emergencies]
	epoch     atomic.Int64 // of treatment relationships and consents
	confirmed atomic.Int64 // when the storage last confirmed all of them, on the clock below
	start     time.Time    // the clock is the time since then: steps of the wall clock do not matter
	known     factCache
	now       func() time.Time
	wake      chan struct{}

	hits, misses atomic.Uint64
}

// NewAccess loads and compiles the policy. Close releases what it holds.
func NewAccess(ctx context.Context, cfg AccessConfig) (*Access, error) {
	if cfg.Storage == nil {
		return nil, errors.New("making access: no storage")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &Access{storage: cfg.Storage, logger: cfg.Logger, now: cfg.Now, start: time.Now(), wake: make(chan struct{}, 1)}
	err := a.poll(ctx)
	if err != nil {
		return nil, fmt.Errorf("making access: %w", err)
	}
	if a.known, err = newFactCache(); err != nil {
		return nil, fmt.Errorf("making access: %w", err)
	}
	return a, nil
}

// Close ends the goroutines of the cache of facts. Call it after Run has returned and the last decision was made.
func (a *Access) Close() { a.known.cache.Close() }

func (a *Access) clock() time.Duration { return time.Since(a.start) }

// leased reports whether the storage confirmed the epochs lately.
func (a *Access) leased(now time.Duration) bool { return now-time.Duration(a.confirmed.Load()) < lease }

// Run follows the epochs (a poll every second, and at once after Wake) until ctx is done.
func (a *Access) Run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	failing := false
	for {
		err := a.poll(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if failed := err != nil; failed != failing {
			failing = failed
			a.logger.Warn("following access policy", "failing", failing, "error", err)
		}
		select {
		case <-tick.C:
		case <-a.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// Wake makes Run look for changes now (after a NOTIFY, or a local change).
func (a *Access) Wake() {
	select {
	case a.wake <- struct{}{}:
	default: // one is pending, and it has not read anything yet
	}
}

// poll reads the epochs and takes over what changed. The lease is renewed to the moment before the reads: they say nothing
// about later.
func (a *Access) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	asked := a.clock()
	now, err := a.storage.Epochs(ctx)
	if err != nil {
		return fmt.Errorf("reading epochs: %w", err)
	}
	a.epoch.Store(now.Relationship)
	if held := a.grants.Load(); held == nil || held.epoch != now.Emergency {
		list, err := a.storage.Emergencies(ctx)
		if err != nil {
			return fmt.Errorf("reading emergency access: %w", err)
		}
		a.grants.Store(newEmergencies(now.Emergency, list))
	}
	if held := a.policy.Load(); held == nil || held.version != now.Policy {
		if err := a.load(ctx); err != nil {
			return err
		}
	} else {
		a.refused.Store(nil)
	}
	a.confirmed.Store(int64(asked))
	return nil
}

// load compiles the stored policy and swaps it in. One that does not compile leaves the old one in force.
func (a *Access) load(ctx context.Context) error {
	p, err := a.storage.Policy(ctx)
	if err != nil {
		return fmt.Errorf("reading policy: %w", err)
	}
	s, err := compile(p)
	if err != nil {
		a.refused.Store(&err)
		return err
	}
	a.policy.Store(s)
	a.refused.Store(nil)
	return nil
}

// Healthy returns nil when the policy is loaded and its epochs were confirmed within the lease (5 s).
func (a *Access) Healthy() error {
	if err := a.refused.Load(); err != nil {
		return fmt.Errorf("newest policy was refused: %w", *err)
	}
	if !a.leased(a.clock()) {
		return errors.New("policy and relationships were not confirmed lately")
	}
	return nil
}

// AccessStats is a snapshot. Hits and misses are those of relationship lookups; everything else is compiled.
type AccessStats struct {
	Hits, Misses uint64
	Policy       int64
}

// Stats returns the snapshot.
func (a *Access) Stats() AccessStats {
	return AccessStats{Hits: a.hits.Load(), Misses: a.misses.Load(), Policy: a.policy.Load().version}
}
