package auth

import (
	"log/slog"
	"sync"
	"time"
)

// alertEvery is how often one alert is repeated.
const alertEvery = 10 * time.Minute

// alerts passes on what an officer must know, each at most once in alertEvery.
type alerts struct {
	tell   func(issuer, desc string) // nil: they are only logged
	logger *slog.Logger

	mu   sync.Mutex
	last map[[2]string]time.Time // by issuer and desc
}

// raise passes on what an officer must know of an issuer, or with "" of the clock.
func (a *alerts) raise(issuer, desc string) {
	what := [2]string{issuer, desc}
	a.mu.Lock()
	if a.last == nil || len(a.last) > 64 {
		a.last = map[[2]string]time.Time{}
	}
	now := time.Now()
	at, raised := a.last[what]
	fresh := !raised || now.Sub(at) >= alertEvery
	if fresh {
		a.last[what] = now
	}
	a.mu.Unlock()
	if !fresh {
		return
	}
	a.logger.Error("verifier: "+desc, "issuer", issuer)
	if a.tell != nil {
		a.tell(issuer, desc)
	}
}
