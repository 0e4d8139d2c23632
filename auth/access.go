package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// AccessConfig configures Access.
type AccessConfig struct {
	Storage Storage
	Logger  *slog.Logger
}

const (
	pollEvery   = time.Second
	pollTimeout = 2 * time.Second
	lease       = 5 * time.Second // for how long cached relationships count without word from the storage
	backendRole = "backend"       // the only role for which system/ scopes count
)

// Access decides. Safe for concurrent use.
type Access struct {
	storage   Storage
	logger    *slog.Logger
	policy    atomic.Pointer[snapshot]
	refused   atomic.Pointer[error] // why the newest policy was not taken over; nil when it was
	epoch     atomic.Int64          // of treatment relationships
	confirmed atomic.Int64          // when the storage last confirmed both, on the clock below
	start     time.Time             // the clock is the time since then: steps of the wall clock do not matter
	relations relationCache
	wake      chan struct{}

	hits, misses atomic.Uint64
}

// NewAccess loads and compiles the policy. Close releases what it holds.
func NewAccess(ctx context.Context, cfg AccessConfig) (*Access, error) {
	if cfg.Storage == nil {
		return nil, errors.New("making access: no storage")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Access{storage: cfg.Storage, logger: cfg.Logger, start: time.Now(), wake: make(chan struct{}, 1)}
	if err := a.load(ctx); err != nil {
		return nil, fmt.Errorf("making access: %w", err)
	}
	epoch, err := a.storage.RelationshipEpoch(ctx)
	if err != nil {
		return nil, fmt.Errorf("making access: reading relationship epoch: %w", err)
	}
	a.epoch.Store(epoch)
	a.confirmed.Store(int64(a.clock()))
	if a.relations, err = newRelationCache(); err != nil {
		return nil, fmt.Errorf("making access: %w", err)
	}
	return a, nil
}

// Close ends the goroutines of the relationship cache. Call it after Run has returned and the last decision was made.
func (a *Access) Close() { a.relations.cache.Close() }

func (a *Access) clock() time.Duration { return time.Since(a.start) }

// leased reports whether the storage confirmed the epochs lately.
func (a *Access) leased(now time.Duration) bool { return now-time.Duration(a.confirmed.Load()) < lease }

// Run follows policy and relationship epochs (a poll every second, and at once after Wake) until ctx is done.
func (a *Access) Run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	failing := false
	for {
		err := a.poll(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if failed := err != nil; failed != failing {
			failing = failed
			a.logger.Warn("following access policy", "failing", failing, "error", err)
		}
		select {
		case <-tick.C:
		case <-a.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// Wake makes Run look for changes now (after a NOTIFY, or a local change).
func (a *Access) Wake() {
	select {
	case a.wake <- struct{}{}:
	default: // one is pending, and it has not read anything yet
	}
}

// poll reads both epochs and takes over what changed. The lease is renewed to the moment before the reads: they say
// nothing about later.
func (a *Access) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	asked := a.clock()
	epoch, err := a.storage.RelationshipEpoch(ctx)
	if err != nil {
		return fmt.Errorf("reading relationship epoch: %w", err)
	}
	a.epoch.Store(epoch)
	version, err := a.storage.PolicyVersion(ctx)
	if err != nil {
		return fmt.Errorf("reading policy version: %w", err)
	}
	if version != a.policy.Load().version {
		if err := a.load(ctx); err != nil {
			return err
		}
	} else {
		a.refused.Store(nil)
	}
	a.confirmed.Store(int64(asked))
	return nil
}

// load compiles the stored policy and swaps it in. One that does not compile leaves the old one in force.
func (a *Access) load(ctx context.Context) error {
	p, err := a.storage.Policy(ctx)
	if err != nil {
		return fmt.Errorf("reading policy: %w", err)
	}
	s, err := compile(p)
	if err != nil {
		a.refused.Store(&err)
		return err
	}
	a.policy.Store(s)
	a.refused.Store(nil)
	return nil
}

// reach says what the scopes of a token leave open to its roles: everything, or the launch patient's compartment only.
func reach(p *Principal, resourceType string, i Interaction) (bound, ok bool) {
	if p == nil {
		return false, false
	}
	if p.Scopes.Covers(LevelUser, resourceType, i) ||
		p.Scopes.Covers(LevelSystem, resourceType, i) && slices.Contains(p.Roles, backendRole) {
		return false, true
	}
	return true, p.Scopes.Covers(LevelPatient, resourceType, i)
}

// weigh tries the rules of the principal, widest first, and returns the first that applies, or the denial of the rule
// that came nearest. applies judges what a rule demands beyond role, letter and purpose.
func (a *Access) weigh(p *Principal, i Interaction, resourceType, purpose string, applies func(r *rule, bound bool) Reason) Decision {
	s := a.policy.Load()
	d := Decision{Purpose: purpose, Policy: s.version}
	bound, ok := reach(p, resourceType, i)
	if !ok {
		d.Reason = ReasonScope
		return d
	}
	d.Reason = ReasonRole
	list := s.all(p.Roles, resourceType, i)
	for _, r := range list.rules[:list.n] {
		applied, ok := r.purpose(purpose)
		reason := ReasonPurpose
		if ok {
			reason = applies(r, bound)
		}
		if reason == ReasonAllowed {
			return Decision{Allowed: true, View: r.view, Purpose: applied, Rule: r.name, Reason: reason, Policy: s.version}
		}
		if reason.nearness() > d.Reason.nearness() {
			d.Reason, d.Rule, d.Purpose = reason, r.name, applied
		}
	}
	return d
}

// nearness orders denials by how many demands were met before the one that failed. A fact that could not be looked up
// comes last: with it the answer might have been yes, and the caller may try again.
func (r Reason) nearness() int {
	return slices.Index([]Reason{ReasonScope, ReasonRole, ReasonPurpose, ReasonCompartment, ReasonRelationship, ReasonUnavailable}, r)
}

// Check decides about one record. A record in nobody's compartment (an Organization, say) needs no relationship, and
// those who are bound to one patient may read it, not write it. A stray is not one of these: it is somebody's, and only a
// rule without relation opens it.
func (a *Access) Check(ctx context.Context, p *Principal, r Request) Decision {
	return a.weigh(p, r.Interaction, r.Type, r.Purpose, func(rule *rule, bound bool) Reason {
		if (bound || rule.relation == RelationSelf) && (r.Stray || !own(p, r)) {
			return ReasonCompartment
		}
		if rule.relation == RelationTreatment {
			if r.Stray {
				return ReasonRelationship
			}
			return a.treats(ctx, p, r.Patients)
		}
		return ReasonAllowed
	})
}

// own reports whether the record is open to somebody bound to the launch patient.
func own(p *Principal, r Request) bool {
	if p.Patient == "" {
		return false
	}
	if len(r.Patients) == 0 {
		return r.Interaction == Read || r.Interaction == Search
	}
	return slices.Contains(r.Patients, p.Patient)
}

// practitioner returns the id in a FHIRUser "Practitioner/ID". An absolute URL names a practitioner of another server,
// who may bear the id of one of ours.
func practitioner(p *Principal) string {
	id, ok := strings.CutPrefix(p.FHIRUser, "Practitioner/")
	if !ok || !isID(id) {
		return ""
	}
	return id
}

// treats reports whether the principal has a treatment relationship with one of the patients; with nobody's records
// everybody has.
func (a *Access) treats(ctx context.Context, p *Principal, patients []string) Reason {
	if len(patients) == 0 {
		return ReasonAllowed
	}
	id := practitioner(p)
	if id == "" {
		return ReasonRelationship
	}
	// The epoch is read before the storage is asked: an answer that a change overtakes is kept under the old epoch, where
	// nobody finds it.
	epoch, now := a.epoch.Load(), a.clock()
	leased := a.leased(now)
	if leased {
		for _, patient := range patients {
			if a.relations.holds(relation{practitioner: id, patient: patient, epoch: epoch}, now) {
				a.hits.Add(1)
				return ReasonAllowed
			}
		}
	}
	a.misses.Add(1)
	_, ok, err := a.storage.Related(ctx, id, patients)
	switch {
	case err != nil:
		// The text of a storage error may quote its arguments, which name a patient. What lasts is told by Run, once.
		a.logger.DebugContext(ctx, "relationship could not be looked up", "error_type", fmt.Sprintf("%T", err))
		return ReasonUnavailable
	case !ok:
		return ReasonRelationship
	}
	if leased && len(patients) == 1 { // of several it is not known which one is related
		a.relations.remember(relation{practitioner: id, patient: patients[0], epoch: epoch}, now)
	}
	return ReasonAllowed
}

// Type decides what can be decided without looking at a record: scope and role on the type. A denial here is 403; a
// denial by Check after an allowance here is answered as 404, so that existence does not leak. The view is that of the
// widest rule; Check may find that only a narrower one applies.
func (a *Access) Type(p *Principal, i Interaction, resourceType, purpose string) Decision {
	return a.weigh(p, i, resourceType, purpose, func(r *rule, bound bool) Reason {
		if (bound || r.relation == RelationSelf) && p.Patient == "" {
			return ReasonCompartment
		}
		return ReasonAllowed
	})
}

// Filter decides about a search over a type. It does not look at Request.Patients: whatever the search asks for, only
// what the filter lets through may be found. For a type that is in no patient's compartment (Organization) Patient and
// Practitioner restrict nothing, as with Check.
func (a *Access) Filter(ctx context.Context, p *Principal, r Request) Filter {
	var f Filter
	f.Decision = a.weigh(p, r.Interaction, r.Type, r.Purpose, func(rule *rule, bound bool) Reason {
		switch {
		case bound || rule.relation == RelationSelf:
			if p.Patient == "" {
				return ReasonCompartment
			}
			if rule.relation == RelationTreatment {
				if reason := a.treats(ctx, p, []string{p.Patient}); reason != ReasonAllowed {
					return reason
				}
			}
			f.Patient = p.Patient
		case rule.relation == RelationTreatment:
			id := practitioner(p)
			if id == "" {
				return ReasonRelationship
			}
			f.Practitioner = id
		default:
			f.All = true
		}
		return ReasonAllowed
	})
	return f
}

// May reports whether a role of the principal has the capability (e.g. "audit:read").
func (a *Access) May(p *Principal, capability string) Decision {
	s := a.policy.Load()
	if p != nil {
		for _, role := range p.Roles {
			if name, ok := s.capabilities[Capability{Role: role, Name: capability}]; ok {
				return Decision{Allowed: true, Rule: name, Reason: ReasonAllowed, Policy: s.version}
			}
		}
	}
	return Decision{Reason: ReasonRole, Policy: s.version}
}

// Healthy returns nil when the policy is loaded and its epochs were confirmed within the lease (5 s).
func (a *Access) Healthy() error {
	if err := a.refused.Load(); err != nil {
		return fmt.Errorf("newest policy was refused: %w", *err)
	}
	if !a.leased(a.clock()) {
		return errors.New("policy and relationships were not confirmed lately")
	}
	return nil
}

// AccessStats is a snapshot. Hits and misses are those of relationship lookups; everything else is compiled.
type AccessStats struct {
	Hits, Misses uint64
	Policy       int64
}

// Stats returns the snapshot.
func (a *Access) Stats() AccessStats {
	return AccessStats{Hits: a.hits.Load(), Misses: a.misses.Load(), Policy: a.policy.Load().version}
}
