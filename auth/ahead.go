package auth

import (
	"bytes"
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"time"
)

// Cached tokens that are in use are verified again before their time in the cache is over, off the request path: when less than a
// tenth of it is left.
const (
	aheadShare = 10
	maxAhead   = 1024 // tokens that may wait for it; others are verified when they are asked for next
)

// renewal is a cached token that is to be verified again.
type renewal struct {
	entry *verified
	on    Profile
	token []byte
}

// renewFrom is the unix nanosecond from which on an entry is renewed: never, when it ends with its token.
func renewFrom(now, until time.Time, expires time.Time) int64 {
	if !until.Before(expires) {
		return math.MaxInt64
	}
	return until.Add(-until.Sub(now) / aheadShare).UnixNano()
}

// renew queues a cached token that is in use. It is not on the warm path but for one request of an entry's time.
func (v *Verifier) renew(e *verified, on Profile, token []byte) {
	if len(v.ahead) == cap(v.ahead) || e.renewing.Swap(true) {
		return
	}
	select {
	case v.ahead <- renewal{e, on, bytes.Clone(token)}:
	default:
		e.renewing.Store(false)
	}
}

// renewAll verifies what is queued until ctx is done. A token that is refused loses its entry at once.
func (v *Verifier) renewAll(ctx context.Context) {
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				select {
				case r := <-v.ahead:
					if _, err := v.fly(ctx, r.on, r.entry.digest, r.token); errors.Is(err, ErrToken) {
						v.cache.drop(r.entry)
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	workers.Wait()
}
