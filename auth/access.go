package auth

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// AccessConfig configures Access.
type AccessConfig struct {
	Storage Storage
	Logger  *slog.Logger
	Now     func() time.Time // wall clock; time.Now when nil

	// Alarm is told what an officer must hear of. It is called while a decision is made, rarely, and must not call Access; nil: nobody.
	Alarm func(Alarm)
}

// Alarm is a fault of the policy, or one that it brings to light. It is told once an hour at most about the same.
type Alarm struct {
	Policy    int64      // version
	Refused   error      // the version does not compile; the one before it stays in force
	Principal *Principal // who bears the roles of Conflict both, and so has neither
	Conflict  Conflict
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
	refused   atomic.Pointer[refusal] // why the newest policy was not taken over; nil when it was
	grants    atomic.Pointer[emergencies]
	epochs    atomic.Pointer[Epochs]
	confirmed atomic.Int64 // when the storage last confirmed all of them, on the clock below
	start     time.Time    // the clock is the time since then: steps of the wall clock do not matter
	known     factCache
	now       func() time.Time
	steady    bool // now is time.Now
	wake      chan struct{}
	polling   sync.Mutex
	alarms    alarms

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
	steady := cfg.Now == nil
	if steady {
		cfg.Now = time.Now
	}
	a := &Access{storage: cfg.Storage, logger: cfg.Logger, now: cfg.Now, steady: steady, start: time.Now(), wake: make(chan struct{}, 1), alarms: alarms{tell: cfg.Alarm, seed: maphash.MakeSeed()}}
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

// clockAt is clock when the wall clock was read: time.Now has read both, and what a test has for it only the one.
func (a *Access) clockAt(wall time.Time) time.Duration {
	if a.steady {
		return wall.Sub(a.start)
	}
	return a.clock()
}

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

// Refresh takes over what has changed by now, as Run does: what an administrator has changed holds for the next request here.
func (a *Access) Refresh(ctx context.Context) error { return a.poll(ctx) }

// poll reads the epochs and takes over what changed. The lease is renewed to the moment before the reads: they say nothing
// about later.
func (a *Access) poll(ctx context.Context) error {
	a.polling.Lock() // what was read later is taken over later
	defer a.polling.Unlock()
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	asked := a.clock()
	now, err := a.storage.Epochs(ctx)
	if err != nil {
		return fmt.Errorf("reading epochs: %w", err)
	}
	a.epochs.Store(&now)
	if held := a.grants.Load(); held == nil || held.epoch != now.Emergency {
		list, err := a.storage.Emergencies(ctx)
		if err != nil {
			return fmt.Errorf("reading emergency access: %w", err)
		}
		a.grants.Store(newEmergencies(now.Emergency, asked, list))
	}
	var refused error
	switch held, spurned := a.policy.Load(), a.refused.Load(); {
	case held != nil && held.version == now.Policy:
		a.refused.Store(nil)
	case held != nil && spurned != nil && spurned.version == now.Policy: // it will not compile the next time either
		refused = spurned.error
	default:
		if refused, err = a.load(ctx); err != nil {
			return err
		}
	}
	// A policy that does not compile takes nothing else with it: emergency access goes on under the one before.
	a.confirmed.Store(int64(asked))
	return refused
}

// refusal is why a version of the policy was not taken over.
type refusal struct {
	version int64
	error
}

// load compiles the stored policy and swaps it in. One that does not compile is refused, and leaves the old one in force; without an old
// one that is an error.
func (a *Access) load(ctx context.Context) (refused, err error) {
	p, err := a.storage.Policy(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading policy: %w", err)
	}
	s, err := compile(p)
	if err != nil {
		a.refused.Store(&refusal{p.Version, err})
		a.alarms.raise(Alarm{Policy: p.Version, Refused: err})
		if a.policy.Load() == nil {
			return nil, err
		}
		return err, nil
	}
	s.alarm = a.alarms.raise
	a.policy.Store(s)
	a.refused.Store(nil)
	return nil, nil
}

// Healthy returns nil when the policy is loaded and its epochs were confirmed within the lease (5 s).
func (a *Access) Healthy() error {
	if err := a.refused.Load(); err != nil {
		return fmt.Errorf("newest policy was refused: %w", err.error)
	}
	if !a.leased(a.clock()) {
		return errors.New("policy and relationships were not confirmed lately")
	}
	return nil
}

// Roles are the roles that the principal has now: those that the token names and those that are assigned, without any that conflict.
// The slice is shared.
func (a *Access) Roles(p *Principal) []string { return a.policy.Load().held(p, a.now()).names }

// AccessStats is a snapshot. Hits and misses are those of relationship lookups; everything else is compiled.
type AccessStats struct {
	Hits, Misses uint64
	Policy       int64
}

// Stats returns the snapshot.
func (a *Access) Stats() AccessStats {
	return AccessStats{Hits: a.hits.Load(), Misses: a.misses.Load(), Policy: a.policy.Load().version}
}
