package auth

import (
	"context"
	"time"
)

const (
	clockEvery = time.Second
	clockStep  = 2 * time.Second // what the wall clock may differ from the monotonic one
)

// clockWatch compares the wall clock, by which tokens are judged, with the monotonic clock, which nobody can set.
type clockWatch struct {
	started time.Time // monotonic
	wall    time.Time // then
}

func newClockWatch(now time.Time) clockWatch {
	return clockWatch{started: time.Now(), wall: now.Round(0)}
}

// step returns by how much the wall clock was set since the watch began, 0 below clockStep; it then begins anew.
func (c *clockWatch) step(now time.Time) time.Duration {
	by := now.Round(0).Sub(c.wall) - time.Since(c.started)
	if by.Abs() <= clockStep {
		return 0
	}
	*c = newClockWatch(now)
	return by
}

// watchClock flushes the cache when the wall clock was set, and says so: every token is judged again by the clock as it is now. The
// leeway stays what it is.
func (v *Verifier) watchClock(ctx context.Context) {
	watch := newClockWatch(v.now())
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if by := watch.step(v.now()); by != 0 {
				v.cache.flush()
				v.alerts.raise("", "the clock was set by "+by.Round(time.Second).String()+"; cached tokens were dropped")
			}
		case <-ctx.Done():
			return
		}
	}
}
