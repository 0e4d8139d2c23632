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
	tell   func(desc string) // nil: they are only logged
	logger *slog.Logger

	mu   sync.Mutex
	last map[string]time.Time
}

func (a *alerts) raise(desc string) {
	a.mu.Lock()
	if a.last == nil || len(a.last) > 64 {
		a.last = map[string]time.Time{}
	}
	now := time.Now()
	at, raised := a.last[desc]
	fresh := !raised || now.Sub(at) >= alertEvery
	if fresh {
		a.last[desc] = now
	}
	a.mu.Unlock()
	if !fresh {
		return
	}
	a.logger.Error("verifier: " + desc)
	if a.tell != nil {
		a.tell(desc)
	}
}
