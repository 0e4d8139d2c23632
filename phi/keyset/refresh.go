package keyset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	// flushEvery is how late stored counts are.
	flushEvery = time.Minute
	// flushFor bounds the last flush, when the process wants to end.
	flushFor = 5 * time.Second
	// patience is how long a request waits for a key-encryption key that is not at hand: a slow KMS must not collect requests.
	patience = 500 * time.Millisecond
	// pause is how long a failed load is the answer to whoever asks for the same key.
	pause = time.Second
	// loadFor bounds a load, beside the bounds that roots and storages have themselves.
	loadFor = 30 * time.Second
)

// trouble is why the last refresh failed, and since when refreshes do.
type trouble struct {
	since time.Time
	err   error
}

// RefusedError says that a key-encryption key is not used any more, because its root did not open it for too long.
type RefusedError struct {
	KEK   string
	Since time.Time // when it began to be refused
	Err   error     // the last answer of root or storage; nil when they were not asked
}

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("key-encryption key %s is refused since %s: its root has not opened it again", e.KEK, e.Since.UTC().Format(time.RFC3339))
	if e.Err != nil {
		text += " (" + e.Err.Error() + ")"
	}
	return text
}

// Began is Since, for whoever asks an error only that.
func (e *RefusedError) Began() time.Time { return e.Since }

// refused makes the error of a key-encryption key that was held for too long. It does not wrap what the root said last: to
// a caller, a root that says ErrWrapped after it has opened the same key is away all the same.
func (k *Keys) refused(e *kek) error {
	r := &RefusedError{KEK: e.ID, Since: e.opened.Add(k.holdFor)}
	if t := k.trouble.Load(); t != nil {
		r.Err = t.err
	}
	return r
}

// Healthy returns nil while every key-encryption key at hand may be used, a *RefusedError otherwise.
func (k *Keys) Healthy() error {
	h := k.hierarchy.Load()
	if h == nil {
		return ErrClosed
	}
	if h.keks[h.active] == nil {
		return fmt.Errorf("key-encryption key %s is not at hand", h.active)
	}
	for _, e := range h.keks {
		if time.Since(e.opened) >= k.holdFor {
			return k.refused(e)
		}
	}
	return nil
}

// Run keeps key-encryption keys open and counts stored until ctx is done: it asks the roots every Config.Refresh, sooner
// after a failure or Wake. What fails is logged and tried again; a slow root delays nothing but this.
func (k *Keys) Run(ctx context.Context) error {
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushFor)
		defer cancel()
		k.flush(last)
	}()
	k.flush(ctx) // to learn what is worn
	refresh := time.NewTimer(jittered(k.refreshAfter))
	defer refresh.Stop()
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-flush.C:
			k.flush(ctx)
		case <-k.wake:
			k.cache.clear()
			if err := k.refresh(ctx, false); err != nil {
				refresh.Reset(jittered(k.retryAfter()))
			}
		case <-refresh.C:
			next := k.refreshAfter
			if err := k.refresh(ctx, true); err != nil {
				next = k.retryAfter()
			}
			refresh.Reset(jittered(next))
		}
	}
}

// retryAfter is a twentieth of the time between refreshes: 15 seconds by default.
func (k *Keys) retryAfter() time.Duration { return k.refreshAfter / 20 }

// jittered shortens d by up to a tenth, so that instances that started together do not ask together.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/10+1) } //nolint:gosec // jitter

// Wake makes Run look at the storage now, and forget the ciphers of data keys: keys were changed elsewhere. Safe to call at
// any time, also before Run.
func (k *Keys) Wake() {
	select {
	case k.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Refresh reads the storage and asks the roots for every key-encryption key at hand and for the active one. What fails
// stays as it was, until it is refused.
func (k *Keys) Refresh(ctx context.Context) error { return k.refresh(ctx, true) }

// refresh asks for those that changed only, unless all is set.
func (k *Keys) refresh(ctx context.Context, all bool) error {
	k.refreshing.Lock()
	defer k.refreshing.Unlock()
	before := k.hierarchy.Load()
	if before == nil {
		return ErrClosed
	}
	next := &hierarchy{active: before.active, keks: map[string]*kek{}}
	stored, err := k.storage.KEKs(ctx)
	errs := []error{err}
	if err != nil { // the roots can be asked all the same
		errs[0] = fmt.Errorf("reading key-encryption keys: %w", err)
		for _, e := range before.keks {
			stored = append(stored, e.WrappedKEK)
		}
	}
	for _, w := range stored {
		at := before.keks[w.ID]
		switch {
		case at == nil && !w.Active:
			continue // until somebody asks for it
		case at != nil && !all && string(at.Wrapped) == string(w.Wrapped) && at.Root == w.Root:
			next.keks[w.ID] = &kek{w, at.aead, at.opened}
		default:
			fresh, err := k.unwrap(ctx, w)
			if err != nil {
				errs = append(errs, err)
				if fresh = at; fresh == nil {
					continue
				}
			}
			next.keks[w.ID] = fresh
		}
		if w.Active {
			next.active = w.ID
		}
	}
	err = errors.Join(errs...)
	k.publish(before, next)
	k.settle(ctx, err, all)
	return err
}

// publish replaces the hierarchy, with what was loaded since.
func (k *Keys) publish(before, next *hierarchy) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.hierarchy.Load()
	if now == nil {
		return // closed
	}
	for id, e := range now.keks {
		if before.keks[id] == nil && next.keks[id] == nil {
			next.keks[id] = e
		}
	}
	k.hierarchy.Store(next)
}

// settle notes how a refresh went. One that did not ask the roots does not end their trouble.
func (k *Keys) settle(ctx context.Context, err error, asked bool) {
	t := k.trouble.Load()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		k.failures.Add(1)
		next := &trouble{time.Now(), err}
		if t != nil {
			next.since = t.since
		}
		k.trouble.Store(next)
		level := slog.LevelWarn
		if k.Healthy() != nil {
			level = slog.LevelError
		}
		k.logger.Log(ctx, level, "key-encryption keys were not refreshed", "failing_since", next.since.UTC(), "refused_after", k.holdFor.String(), "error", err.Error())
	case t != nil && asked:
		k.trouble.Store(nil)
		k.logger.InfoContext(ctx, "key-encryption keys are refreshed again", "failing_since", t.since.UTC())
	}
}

// load is one attempt to get a key-encryption key that is not at hand, for all who ask for it.
type load struct {
	done chan struct{}
	kek  *kek // after done
	err  error
}

// load gets a key-encryption key from storage and root. All who want the same one wait for the same attempt, not longer
// than patience; a failure is the answer for a while.
func (k *Keys) load(ctx context.Context, id string) (*kek, error) {
	if id == "" {
		return nil, ErrUnknownKEK
	}
	k.mu.Lock()
	h := k.hierarchy.Load()
	if h == nil {
		k.mu.Unlock()
		return nil, ErrClosed
	}
	if e := h.keks[id]; e != nil { // came meanwhile
		k.mu.Unlock()
		return e, nil
	}
	l := k.loads[id]
	if l == nil {
		l = &load{done: make(chan struct{})}
		k.loads[id] = l
		k.loading.Go(func() { k.attempt(l, id) })
	}
	k.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-l.done:
		return l.kek, l.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for key-encryption key %s: %w", id, ctx.Err())
	case <-late.C:
		return nil, fmt.Errorf("key-encryption key %s is still being asked for", id)
	}
}

func (k *Keys) attempt(l *load, id string) {
	ctx, cancel := context.WithTimeout(k.life, loadFor)
	defer cancel()
	l.kek, l.err = k.fetch(ctx, id)
	if l.err != nil {
		close(l.done)
		select {
		case <-time.After(pause):
		case <-k.life.Done():
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.loads, id)
	if l.err != nil {
		return
	}
	if h := k.hierarchy.Load(); h != nil {
		next := &hierarchy{h.active, map[string]*kek{id: l.kek}}
		for other, e := range h.keks {
			next.keks[other] = e
		}
		k.hierarchy.Store(next)
	}
	close(l.done)
}

func (k *Keys) fetch(ctx context.Context, id string) (*kek, error) {
	w, err := k.storage.KEK(ctx, id, nil)
	if err != nil {
		return nil, fmt.Errorf("reading key-encryption key: %w", err)
	}
	if w.ID != id {
		return nil, ErrUnknownKEK
	}
	return k.unwrap(ctx, w)
}

// flushAtOnce is how many counts are stored in one go: a busy minute has those of many patients.
const flushAtOnce = 1000

// flush stores the counts and learns which keys are worn.
func (k *Keys) flush(ctx context.Context) {
	for all := k.uses.take(); ; {
		batch := all[:min(len(all), flushAtOnce)]
		worn, err := k.storage.AddUses(ctx, batch)
		if err != nil {
			k.uses.giveBack(all)
			if ctx.Err() == nil {
				k.logger.WarnContext(ctx, "counts of encryptions were not stored", "error", err.Error())
			}
			return
		}
		if all = all[len(batch):]; len(all) > 0 {
			continue
		}
		k.warn(ctx, k.uses.learn(worn))
		return
	}
}

// warn says which keys have become worn.
func (k *Keys) warn(ctx context.Context, worn []Uses) {
	for _, s := range worn {
		remedy := "chartkeep keys rotate"
		if s.KEK != "" {
			remedy = "chartkeep keys rewrap"
		}
		k.logger.ErrorContext(ctx, "a key has encrypted often: replace it before it is refused", "run", remedy, "kek", s.KEK, "subject", fmt.Sprintf("%x", s.Binding.Subject),
			"segment", s.Binding.Segment, "key", s.Binding.KeyID, "uses", s.N, "refused_at", int64(WornOut))
	}
}
