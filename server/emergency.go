package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/compliance"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// emergencyFlags are a deployment's limits of emergency access.
type emergencyFlags struct {
	EmergencyDuration time.Duration `help:"How long emergency access lasts, up to 4h." default:"30m" placeholder:"DURATION"`
	EmergencyLimit    int           `help:"How often somebody has emergency access in a shift before another person has to approve it." default:"3" placeholder:"N"`
	EmergencyShift    time.Duration `help:"Length of a shift." default:"8h" placeholder:"DURATION"`
	EmergencyReview   time.Duration `help:"Within which an officer has to look into emergency access." default:"72h" placeholder:"DURATION"`
}

// emergency checks the flags.
func (f *emergencyFlags) emergency() (auth.EmergencyLimits, error) {
	switch {
	case f.EmergencyDuration < time.Minute || f.EmergencyDuration > auth.MaxEmergency:
		return auth.EmergencyLimits{}, usage("--emergency-duration %s is not from 1m to 4h", f.EmergencyDuration)
	case f.EmergencyLimit < 1:
		return auth.EmergencyLimits{}, usage("--emergency-limit %d is below 1", f.EmergencyLimit)
	case f.EmergencyShift < time.Hour || f.EmergencyShift > 24*time.Hour:
		return auth.EmergencyLimits{}, usage("--emergency-shift %s is not from 1h to 24h", f.EmergencyShift)
	case f.EmergencyReview < time.Hour:
		return auth.EmergencyLimits{}, usage("--emergency-review %s is below 1h", f.EmergencyReview)
	}
	return auth.EmergencyLimits{Duration: f.EmergencyDuration, PerShift: f.EmergencyLimit, Shift: f.EmergencyShift, Review: f.EmergencyReview}, nil
}

// emergencyWatch follows the register of emergency access.
type emergencyWatch struct {
	rooms  *rooms
	counts atomic.Pointer[postgres.EmergencyCounts] // as last counted
}

const (
	emergencyTell    = time.Minute // how long whoever changed the register has to record the outcome
	emergencyLook    = 10 * time.Second
	emergencyOverdue = time.Hour
)

// run tells the outcome of requests whose process died before it could, and officers of reviews that nobody has made in time.
func (w *emergencyWatch) run(ctx context.Context) error {
	tick := time.NewTicker(emergencyLook)
	defer tick.Stop()
	var looked time.Time
	for {
		if c, err := w.rooms.db.Auth().EmergencyCounts(ctx); err == nil {
			w.counts.Store(&c)
		}
		w.tell(ctx, time.Now().Add(-emergencyTell))
		if time.Since(looked) >= emergencyOverdue && w.overdue(ctx) == nil {
			looked = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tell records the outcome of what was put into the register before a time and whose outcome the trail may not have.
func (w *emergencyWatch) tell(ctx context.Context, before time.Time) {
	list, err := w.rooms.db.Auth().UntoldEmergencies(ctx, before)
	for _, e := range list {
		done := &audit.Event{
			Type: audit.TypePolicy, Interaction: "emergency-request", Action: audit.ActionCreate, Patient: e.Patient, Decision: audit.Decision{Allowed: true},
			Agent: audit.Agent{User: e.Subject, Client: e.Client, Session: e.Session}, Entities: []audit.Entity{{Type: audit.EntityEmergency, ID: e.ID}}, Detail: []byte(e.Reason),
		}
		done.Correlation, _ = audit.ParseID(e.Event)
		if _, err = w.rooms.log.Record(ctx, audit.Database, done); err == nil {
			err = w.rooms.db.Auth().ToldEmergency(ctx, e.ID)
		}
		if err != nil {
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		w.rooms.logger.Warn("the outcome of emergency access cannot be recorded now", "error", err.Error())
	}
}

// overdue alerts officers to reviews that are overdue, each once while the alert stands.
func (w *emergencyWatch) overdue(ctx context.Context) error {
	list, err := w.rooms.db.Auth().OverdueEmergencies(ctx)
	for _, e := range list {
		w.rooms.alerts.raise(compliance.AlertReviewOverdue, compliance.High, audit.EntityEmergency+"/"+e.ID, "nobody has looked into emergency access in time")
	}
	if err != nil && ctx.Err() == nil {
		w.rooms.logger.Warn("overdue reviews cannot be looked up now", "error", err.Error())
	}
	return err
}

// emergencies emits figures of the register.
func (c *roomsCollector) emergencies(gauge func(name string, v float64, labels ...string)) {
	n := c.rooms.emergencies.counts.Load()
	if n == nil {
		return
	}
	gauge("emergency_access_in_force", float64(n.InForce))
	gauge("emergency_access_waiting", float64(n.Waiting))
	gauge("emergency_reviews_due", float64(n.Due))
	gauge("emergency_reviews_overdue", float64(n.Overdue))
}
