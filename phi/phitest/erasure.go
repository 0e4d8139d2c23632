package phitest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/phi"
)

var _ phi.ErasureStorage = (*Storage)(nil)

// Hold is a legal hold: on a patient, or on the time from From until To.
type Hold struct {
	Patient  string
	From, To time.Time
}

// Place places a legal hold.
func (s *Storage) Place(h Hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds = append(s.holds, h)
}

// Lift releases every hold.
func (s *Storage) Lift() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds = nil
}

func (s *Storage) ErasureScope(_ context.Context, patient string, subject phi.UUID) (*phi.ErasureScope, error) {
	unlock, err := s.read("ErasureScope")
	defer unlock()
	if err != nil {
		return nil, err
	}
	return s.scope(patient, subject)
}

func (s *Storage) scope(patient string, subject phi.UUID) (*phi.ErasureScope, error) {
	asked := s.current(phi.Ref{Type: "Patient", ID: patient})
	switch {
	case asked == nil:
		return nil, phi.ErrNotFound
	case asked.Subject != subject:
		return nil, phi.ErrVersion
	}
	scope := &phi.ErasureScope{Patients: []string{patient}, Subjects: []phi.UUID{subject}}
	for name, keys := range s.keys {
		if name.subject == subject {
			for _, k := range keys {
				scope.Keys = append(scope.Keys, phi.ErasedKey{Subject: subject, Segment: name.segment, KeyID: k.KeyID, KEK: k.KEK, Root: "test"})
			}
		}
	}
	for ref, versions := range s.records {
		w := s.current(ref)
		if ref.Type == "Patient" && ref.ID != patient && w.Subject == subject {
			scope.Patients = append(scope.Patients, ref.ID)
		}
		for _, v := range versions {
			if v.Subject == subject {
				scope.Versions++
			}
		}
		if w.Subject == subject {
			scope.Records++
			scope.Versions--
			scope.Tokens += len(w.Tokens)
			scope.Relationships += len(w.Treats)
		}
	}
	slices.Sort(scope.Patients[1:])
	named := func(id string) bool { return slices.Contains(scope.Patients, id) }
	for ref := range s.records {
		if w := s.current(ref); w.Subject != subject && !w.Deleted() && slices.ContainsFunc(w.Patients, named) {
			scope.Mentions++
		}
	}
	for grant := range s.grants {
		if named(grant.Patient) {
			scope.Relationships++
		}
	}
	return scope, nil
}

func (s *Storage) RequestErasure(_ context.Context, e *phi.Erasure) error {
	unlock, err := s.read("RequestErasure")
	defer unlock()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(s.requests, func(r *phi.Erasure) bool { return r.Patient == e.Patient && r.State == phi.ErasureRequested }) {
		return phi.ErrErasurePending
	}
	c := *e
	s.requests = append(s.requests, &c)
	return nil
}

func (s *Storage) Erasures(context.Context) ([]*phi.Erasure, error) {
	unlock, err := s.read("Erasures")
	defer unlock()
	var list []*phi.Erasure
	for _, e := range slices.Backward(s.requests) {
		c := *e
		list = append(list, &c)
	}
	return list, err
}

func (s *Storage) Erasure(_ context.Context, id phi.UUID) (*phi.Erasure, error) {
	unlock, err := s.read("Erasure")
	defer unlock()
	if err != nil {
		return nil, err
	}
	e, err := s.request(id)
	if err != nil {
		return nil, err
	}
	c := *e
	return &c, nil
}

func (s *Storage) request(id phi.UUID) (*phi.Erasure, error) {
	i := slices.IndexFunc(s.requests, func(e *phi.Erasure) bool { return e.ID == id })
	if i < 0 {
		return nil, phi.ErrNotFound
	}
	return s.requests[i], nil
}

func (s *Storage) UntoldErasures(_ context.Context, before time.Time) (list []*phi.Erasure, err error) {
	unlock, err := s.read("UntoldErasures")
	defer unlock()
	for _, e := range s.requests {
		if e.State == phi.ErasureExecuted && !s.told[e.ID] && e.DecidedAt.Before(before) {
			c := *e
			list = append(list, &c)
		}
	}
	return list, err
}

func (s *Storage) ToldErasure(_ context.Context, id phi.UUID) error {
	unlock, err := s.read("ToldErasure")
	defer unlock()
	if err == nil {
		s.told[id] = true
	}
	return err
}

// waiting returns a request that is not decided yet.
func (s *Storage) waiting(id phi.UUID) (*phi.Erasure, error) {
	e, err := s.request(id)
	if err == nil && e.State != phi.ErasureRequested {
		err = phi.ErrErasureDecided
	}
	return e, err
}

func (s *Storage) WithdrawErasure(_ context.Context, id phi.UUID, by string) error {
	unlock, err := s.read("WithdrawErasure")
	defer unlock()
	if err != nil {
		return err
	}
	e, err := s.waiting(id)
	if err != nil {
		return err
	}
	e.State, e.DecidedBy, e.DecidedAt = phi.ErasureWithdrawn, by, time.Now()
	return nil
}

func (s *Storage) Erase(_ context.Context, id phi.UUID, by string, subject phi.UUID, certify func(*phi.ErasureScope) ([]byte, error)) error {
	unlock, err := s.read("Erase")
	defer unlock()
	if err != nil {
		return err
	}
	e, err := s.waiting(id)
	if err != nil {
		return err
	}
	if e.RequestedBy == by {
		return phi.ErrOnePerson
	}
	scope, err := s.scope(e.Patient, subject)
	if err != nil {
		return err
	}
	for _, h := range s.holds {
		if s.held(h, scope) {
			return fmt.Errorf("a hold: %w", phi.ErrHeld)
		}
	}
	certificate, err := certify(scope)
	if err != nil {
		return err
	}
	s.erased[subject] = phi.ErasedSubject{Subject: subject, Patient: e.Patient, Erasure: id, At: time.Now()}
	for name := range s.keys {
		if name.subject == subject {
			delete(s.keys, name)
		}
	}
	for ref, versions := range s.records {
		if w := *s.current(ref); w.Subject == subject {
			w.Tokens, w.Treats, w.Consent, w.Rules = nil, nil, "", nil
			versions[len(versions)-1] = &w
		}
	}
	for grant := range s.grants {
		if slices.Contains(scope.Patients, grant.Patient) {
			delete(s.grants, grant)
		}
	}
	s.epoch++
	e.State, e.DecidedBy, e.DecidedAt, e.Certificate = phi.ErasureExecuted, by, time.Now(), certificate
	return nil
}

func (s *Storage) held(h Hold, scope *phi.ErasureScope) bool {
	if h.Patient != "" {
		return slices.Contains(scope.Patients, h.Patient)
	}
	for _, versions := range s.records {
		for _, w := range versions {
			if w.Subject == scope.Subjects[0] && !w.Updated.Before(h.From) && w.Updated.Before(h.To) {
				return true
			}
		}
	}
	return false
}
