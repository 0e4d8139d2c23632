package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/compliance"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// alerts tells officers what happened, off the path of whoever noticed it. It takes a few at a time: what a flood raises counts as one
// alert in the end, and the trail has each event of it anyway. Safe for concurrent use.
type alerts struct {
	storage *postgres.AlertStorage
	log     *audit.Log
	logger  *slog.Logger
	queue   chan raised

	dropped atomic.Uint64
	open    atomic.Pointer[map[compliance.Severity]int64] // as last counted
}

// raised is an alert on its way. recorded says that the trail tells of it already.
type raised struct {
	alert    compliance.Alert
	text     string
	recorded bool
}

const (
	alertQueue   = 64
	alertTimeout = 10 * time.Second
	countEvery   = 10 * time.Second
)

func newAlerts(r *rooms) *alerts {
	return &alerts{storage: r.db.Alerts(), log: r.log, logger: r.logger, queue: make(chan raised, alertQueue)}
}

// raise tells officers. about is a reference, text a fixed sentence: neither holds PHI. It returns at once.
func (a *alerts) raise(kind compliance.AlertKind, severity compliance.Severity, about, text string) {
	a.enqueue(raised{alert: compliance.Alert{Kind: kind, Severity: severity, About: about}, text: text})
}

// follow does so for what is an event of the trail already; event is its id, "" when that is not known.
func (a *alerts) follow(kind compliance.AlertKind, severity compliance.Severity, about, event string) {
	a.enqueue(raised{alert: compliance.Alert{Kind: kind, Severity: severity, About: about, Event: event}, recorded: true})
}

func (a *alerts) enqueue(r raised) {
	select {
	case a.queue <- r:
	default:
		a.dropped.Add(1)
	}
}

// run stores what is raised, and follows what other instances raise, until ctx is done.
func (a *alerts) run(ctx context.Context) error {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	a.count(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-a.queue:
			a.tell(ctx, r)
		case <-tick.C:
		}
		a.count(ctx)
	}
}

// tell makes the event of an alert and stores the alert.
func (a *alerts) tell(ctx context.Context, r raised) {
	ctx, cancel := context.WithTimeout(ctx, alertTimeout)
	defer cancel()
	a.logger.LogAttrs(ctx, slog.LevelWarn, "alert", slog.String("kind", string(r.alert.Kind)), slog.String("severity", string(r.alert.Severity)))
	if !r.recorded {
		receipt, err := a.log.Record(ctx, audit.Power, &audit.Event{
			Type: audit.TypeSecurityAlert, Interaction: string(r.alert.Kind), Action: audit.ActionExecute, Outcome: audit.SeriousFailure, OutcomeDesc: r.text,
			Agent: audit.Agent{User: "system"}, Entities: []audit.Entity{{Type: "Alert", ID: r.alert.About}},
		})
		if err != nil {
			a.logger.Error("an alert could not be recorded", "kind", string(r.alert.Kind), "error", err.Error())
		} else {
			r.alert.Event = receipt.Events()[0].ID.String()
		}
	}
	if err := a.storage.Raise(ctx, &r.alert); err != nil {
		a.logger.Error("an alert could not be stored", "kind", string(r.alert.Kind), "error", err.Error())
	}
}

// count refreshes what metrics show.
func (a *alerts) count(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, alertTimeout)
	defer cancel()
	if open, err := a.storage.OpenAlerts(ctx); err == nil {
		a.open.Store(&open)
	}
}

// alerts emits what waits for officers.
func (c *roomsCollector) alerts(gauge func(name string, v float64, labels ...string), counter func(name string, v uint64, labels ...string)) {
	counter("alerts_dropped_total", c.rooms.alerts.dropped.Load())
	open := c.rooms.alerts.open.Load()
	if open == nil {
		return
	}
	for _, s := range []compliance.Severity{compliance.Info, compliance.Warning, compliance.High, compliance.Critical} {
		gauge("alerts_open", float64((*open)[s]), string(s))
	}
}
