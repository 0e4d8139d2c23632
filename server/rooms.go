package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// rooms are the built rooms below the HTTP surface, in the order in which they were opened. close undoes it in reverse.
type rooms struct {
	db       *postgres.DB
	keys     *keyset.Keys
	log      *audit.Log
	access   *auth.Access
	revoked  *auth.Revocations
	sessions *auth.Sessions
	records  *phi.Records

	alerts      *alerts
	emergencies *emergencyWatch

	erasures *phi.Erasures
	merges   *phi.Merges

	sequencer *audit.Sequencer // nil without a key
	patrol    *audit.Patrol    // nil without a key
	sweeper   *sweeper

	stopRuns context.CancelFunc
	runs     sync.WaitGroup
	logger   *slog.Logger
}

// openRooms builds every room on a deployment and starts what runs beside the requests.
func openRooms(ctx context.Context, s *settings, log *slog.Logger) (_ *rooms, err error) {
	r := &rooms{logger: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close(ctx))
		}
	}()
	if r.db, err = postgres.Open(ctx, postgres.Config{DSN: s.databaseDSN, ReadDSN: s.readDSN, Logger: log}); err != nil {
		return nil, fmt.Errorf("opening database: %w", err)
	}
	if r.keys, err = (keyset.Config{Roots: s.roots, Storage: r.db.Keys(), Refresh: s.refresh, Hold: s.hold, Logger: log}).Open(ctx); err != nil {
		return nil, fmt.Errorf("opening keys: %w", err)
	}
	if r.log, err = audit.Open(audit.Config{Dir: s.journal, Storage: r.db.Audit(), Keep: s.keep, Logger: log}); err != nil {
		return nil, fmt.Errorf("opening audit journal: %w", err)
	}
	r.alerts = newAlerts(r)
	if r.access, err = auth.NewAccess(ctx, auth.AccessConfig{Storage: r.db.Auth(), Logger: log, Alarm: r.policyAlarm}); err != nil {
		return nil, fmt.Errorf("loading policy: %w", err)
	}
	if r.revoked, err = auth.NewRevocations(ctx, auth.RevocationConfig{Storage: r.db.Sessions(), Logger: log}); err != nil {
		return nil, fmt.Errorf("loading revocations: %w", err)
	}
	if r.sessions, err = auth.NewSessions(auth.SessionConfig{Storage: r.db.Sessions(), Limits: s.sessions, Roles: r.access.Roles, Instance: instanceName(), Logger: log}); err != nil {
		return nil, err
	}
	if r.records, err = phi.Open(ctx, phi.Config{
		Storage: r.db.Records(), Keys: r.keys, Access: r.access, Audit: r.log, Level: s.levels(), Source: "chartkeep", Logger: log,
		UniqueIdentifiers: s.unique, Names: s.names,
	}); errors.Is(err, phi.ErrNames) {
		return nil, fmt.Errorf("--name-search: %w; make one with: chartkeep keys rotate --index --name-search %s", err, s.names)
	} else if err != nil {
		return nil, fmt.Errorf("opening records: %w", err)
	}
	r.emergencies = &emergencyWatch{rooms: r}
	r.erasures = newErasures(r, s)
	r.merges = phi.NewMerges(phi.MergeConfig{Records: r.records, Open: r.db.Merges})
	if r.sequencer, err = newSequencer(s, r.db, r); err != nil {
		return nil, err
	}
	if r.sequencer != nil {
		r.patrol = newPatrol(s, r)
	}
	r.sweeper = &sweeper{rooms: r}
	var background context.Context
	background, r.stopRuns = context.WithCancel(context.WithoutCancel(ctx))
	r.start(background, "audit shipper", r.log.Run)
	r.start(background, "access", r.access.Run)
	r.start(background, "revocations", r.revoked.Run)
	r.start(background, "sessions", r.sessions.Run)
	r.start(background, "ends of revocations", r.dropOver)
	r.start(background, "keys", r.keys.Run)
	r.start(background, "key listener", func(ctx context.Context) error {
		return r.db.ListenKeys(ctx, func() { r.keys.Wake(); r.records.KeysChanged() })
	})
	r.start(background, "policy listener", func(ctx context.Context) error {
		return r.db.Listen(ctx, func() { r.revoked.Wake(); r.access.Wake() })
	})
	r.start(background, "alerts", r.alerts.run)
	r.start(background, "emergency access", r.emergencies.run)
	r.start(background, "record sweep", r.sweeper.run)
	r.start(background, "erasures and merges", r.resume)
	if r.sequencer != nil {
		r.start(background, "audit sequencer", r.sequencer.Run)
		r.start(background, "audit patrol", r.patrol.Run)
		r.start(background, "audit listener", func(ctx context.Context) error { return r.db.ListenIngested(ctx, r.sequencer.Wake) })
	}
	return r, nil
}

// onRooms runs a verb's work on the rooms of a deployment and closes them.
func (d *deployment) onRooms(ctx context.Context, t terminal, work func(*rooms, *settings) error) error {
	s, err := d.resolve(false)
	if err != nil {
		return err
	}
	log := newLog(t.err)
	defer log.close()
	r, err := openRooms(ctx, s, log.Logger)
	if err != nil {
		return err
	}
	return errors.Join(work(r, s), r.close(ctx))
}

// start runs f until the rooms close; its failure is logged, since the request paths fail closed by themselves.
func (r *rooms) start(ctx context.Context, name string, f func(context.Context) error) {
	r.runs.Go(func() {
		if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
			r.logger.Error("background work ended", "work", name, "error", err.Error())
		}
	})
}

// drainFor is how long close waits for the audit trail to reach the database; what does not is shipped by the next start.
const drainFor = 10 * time.Second

// close drains the journal into the database, also when ctx is done already (that is how a server is told to stop), stops
// the background work and closes every room. No request may be under way.
func (r *rooms) close(ctx context.Context) error {
	var errs []error
	if r.stopRuns != nil { // else nobody ships
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainFor)
		if err := r.log.Drain(drain); err != nil {
			r.logger.Warn("audit trail not fully shipped; the next start continues", "error", err.Error())
		}
		cancel()
	}
	if r.log != nil {
		errs = append(errs, r.log.Close())
	}
	if r.stopRuns != nil {
		r.stopRuns()
	}
	r.runs.Wait()
	if r.access != nil {
		r.access.Close()
	}
	if r.keys != nil {
		r.keys.Close()
	}
	if r.db != nil {
		r.db.Close()
	}
	return errors.Join(errs...)
}

// system is the principal that works for the deployment itself: imports and the demo's population.
func system(client string) *auth.Principal {
	return &auth.Principal{Subject: "system", Client: client, Roles: []string{"backend"}, Scopes: auth.ParseScopes("system/*.cruds")}
}
