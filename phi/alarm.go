package phi

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// The alarm rings when so many rows failed their integrity check within so long: one may be a disk, three are somebody.
const (
	alarmFailures = 3
	alarmWithin   = time.Minute
)

// alarm counts rows that did not open. Safe for concurrent use.
type alarm struct {
	mu       sync.Mutex
	failures uint64
	recent   [alarmFailures]time.Time // when the last ones failed, the oldest at failures%alarmFailures
	rung     time.Time
}

// failed counts one more, and reports whether the alarm rings, which it does once in alarmWithin.
func (a *alarm) failed(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.recent[a.failures%alarmFailures] = now
	a.failures++
	if !a.raised(now) || now.Sub(a.rung) < alarmWithin {
		return false
	}
	a.rung = now
	return true
}

// raised reports whether so many failed within alarmWithin of now. The caller holds mu.
func (a *alarm) raised(now time.Time) bool {
	return a.failures >= alarmFailures && now.Sub(a.recent[a.failures%alarmFailures]) < alarmWithin
}

// Stats is a snapshot for metrics.
type Stats struct {
	IntegrityFailures uint64 // rows that did not open, were found under tokens that are not theirs, or whose key does not unwrap
	IntegrityAlarm    bool   // three or more of them within the last minute
}

// Stats returns the snapshot.
func (r *Records) Stats() Stats {
	r.alarm.mu.Lock()
	defer r.alarm.mu.Unlock()
	return Stats{IntegrityFailures: r.alarm.failures, IntegrityAlarm: r.alarm.raised(r.now())}
}

// ring counts a failure and, when it is one too many, says so in the log.
func (r *Records) ring(ctx context.Context) {
	if r.alarm.failed(r.now()) {
		r.logger.LogAttrs(ctx, slog.LevelError, "records: stored rows fail their integrity check, again and again: somebody may be editing them",
			slog.Int("failures", alarmFailures), slog.Duration("within", alarmWithin))
	}
}
