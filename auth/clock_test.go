package auth

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestClockIsSet is case 50: the wall clock jumps by five minutes, either way. Tokens are judged by the clock as it is, an officer hears
// of it, the cache is empty, and the leeway is what it was.
func TestClockIsSet(t *testing.T) {
	for _, by := range []time.Duration{5 * time.Minute, -5 * time.Minute} {
		is, clk := newIssuer(t), &clock{}
		var told atomic.Pointer[string]
		cfg := is.config()
		cfg.Now, cfg.Alert = clk.now, func(_, desc string) { told.Store(&desc) }
		v := newTestVerifier(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			v.watchClock(ctx)
		}()
		now := time.Now().Unix()
		long := is.token(map[string]any{"iat": now - 1000, "auth_time": now - 1000, "exp": now + 1000, "jti": "long"})
		short := is.token(map[string]any{"iat": now - 10, "auth_time": now - 10, "exp": now + 10, "jti": "short"})
		for _, token := range []string{long, short} {
			if _, err := ask(v, token); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(clockEvery + 100*time.Millisecond)
		if told.Load() != nil {
			t.Fatalf("alert without a reason: %s", *told.Load())
		}
		clk.advance(by)
		// Before anybody has looked: what is cached does not count where the clock says that it cannot.
		if _, err := ask(v, short); err == nil {
			t.Errorf("clock set by %v: a token that is not valid by it was accepted", by)
		}
		if _, err := ask(v, long); err != nil {
			t.Errorf("clock set by %v: a token that is valid either way: %v", by, err)
		}
		before := v.cache.get(v.hasher.digest("", []byte(long)))
		for deadline := time.Now().Add(5 * time.Second); told.Load() == nil; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nobody noticed that the clock was set by %v", by)
			}
		}
		if !strings.Contains(*told.Load(), by.String()) || before == nil || v.cache.get(before.digest) != nil {
			t.Errorf("told %q, and the cache holds %v", *told.Load(), v.cache.get(before.digest))
		}
		misses := v.Stats().Misses
		if _, err := ask(v, long); err != nil || v.Stats().Misses != misses+1 {
			t.Errorf("afterwards: %v", err)
		}
		if v.issuers[0].Leeway != 30*time.Second {
			t.Error("the leeway has changed")
		}
		cancel()
		<-ended
	}
}

// TestClockWatch holds that any step above two seconds is told once, and slow drift of less is not.
func TestClockWatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		w := newClockWatch(now)
		for _, by := range rapid.SliceOf(rapid.Int64Range(-10_000, 10_000)).Draw(t, "steps in ms") {
			step := time.Duration(by) * time.Millisecond
			if near := step.Abs() - clockStep; near.Abs() < 100*time.Millisecond {
				continue // as long as the test itself may take
			}
			w = newClockWatch(time.Now())
			got := w.step(time.Now().Add(step))
			if (got != 0) != (step.Abs() > clockStep) || got != 0 && (got-step).Abs() > 100*time.Millisecond {
				t.Fatalf("a step of %v is %v", step, got)
			}
			if again := w.step(time.Now().Add(step)); got != 0 && again != 0 {
				t.Fatalf("told again: %v", again)
			}
		}
	})
}
