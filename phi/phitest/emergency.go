package phitest

import (
	"context"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// Put adds a line to the register of emergency access as it is.
func (s *Storage) Put(e *auth.EmergencyAccess) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.register = append(s.register, e)
	s.emergency++
}

func (s *Storage) Emergencies(context.Context) ([]auth.Grant, error) {
	unlock, err := s.read("Emergencies")
	defer unlock()
	var list []auth.Grant
	for _, e := range s.register {
		if s.emergencyState(e) == auth.EmergencyGranted {
			list = append(list, auth.Grant{ID: e.ID, Subject: e.Subject, Session: e.Session, Patient: e.Patient, Until: e.Until, Left: e.Until.Sub(s.now())})
		}
	}
	return list, err
}

// emergencyState is how far one is by now.
func (s *Storage) emergencyState(e *auth.EmergencyAccess) auth.EmergencyState {
	if e.State == auth.EmergencyGranted && !s.now().Before(e.Until) || e.State == auth.EmergencyRequested && !s.now().Before(e.RequestedAt.Add(e.Duration)) {
		return auth.EmergencyExpired
	}
	return e.State
}

func (s *Storage) RequestEmergency(_ context.Context, e *auth.EmergencyAccess, limits auth.EmergencyLimits) error {
	unlock, err := s.read("RequestEmergency")
	defer unlock()
	if err != nil {
		return err
	}
	used := 0
	for _, other := range s.register {
		if other.Subject == e.Subject && s.now().Sub(other.RequestedAt) < limits.Shift && other.DecidedBy == "" && !other.Until.IsZero() {
			used++
		}
	}
	e.RequestedAt, e.Duration, e.State = s.now().UTC(), limits.Duration, auth.EmergencyRequested
	if used < limits.PerShift {
		s.grantEmergency(e, limits)
	}
	kept := *e
	s.register = append(s.register, &kept)
	s.emergency++
	return nil
}

func (s *Storage) grantEmergency(e *auth.EmergencyAccess, limits auth.EmergencyLimits) {
	now := s.now().UTC()
	e.State, e.Until, e.ReviewBy = auth.EmergencyGranted, now.Add(e.Duration), now.Add(limits.Review)
}

func (s *Storage) ToldEmergency(context.Context, string) error {
	unlock, err := s.read("ToldEmergency")
	defer unlock()
	return err
}

// emergencyOf finds a line of the register.
func (s *Storage) emergencyOf(id string) (*auth.EmergencyAccess, error) {
	at := slices.IndexFunc(s.register, func(e *auth.EmergencyAccess) bool { return e.ID == id })
	if at < 0 {
		return nil, auth.ErrNoEmergency
	}
	return s.register[at], nil
}

func (s *Storage) Emergency(_ context.Context, id string) (*auth.EmergencyAccess, error) {
	unlock, err := s.read("Emergency")
	defer unlock()
	if err != nil {
		return nil, err
	}
	e, err := s.emergencyOf(id)
	if err != nil {
		return nil, err
	}
	shown := *e
	shown.State, shown.Reviews = s.emergencyState(e), slices.Clone(e.Reviews)
	return &shown, nil
}

func (s *Storage) EmergencyRegister(_ context.Context, q auth.EmergencyQuery) ([]*auth.EmergencyAccess, error) {
	unlock, err := s.read("EmergencyRegister")
	defer unlock()
	var list []*auth.EmergencyAccess
	skip := q.Before != ""
	for _, e := range slices.Backward(s.register) {
		due := !e.ReviewBy.IsZero()
		switch {
		case skip:
			skip = e.ID != q.Before
			continue
		case q.Subject != "" && q.Subject != e.Subject, q.Patient != "" && q.Patient != e.Patient, len(list) == q.Limit,
			q.Review == "due" && !due, q.Review == "overdue" && (!due || s.now().Before(e.ReviewBy)), q.Review == "done" && (due || e.Until.IsZero()):
			continue
		}
		shown := *e
		shown.State, shown.Reviews = s.emergencyState(e), nil
		list = append(list, &shown)
	}
	return list, err
}

func (s *Storage) DecideEmergency(_ context.Context, id, by string, grant bool, _ string, limits auth.EmergencyLimits) error {
	unlock, err := s.read("DecideEmergency")
	defer unlock()
	if err != nil {
		return err
	}
	e, err := s.emergencyOf(id)
	switch {
	case err != nil:
		return err
	case s.emergencyState(e) != auth.EmergencyRequested:
		return auth.ErrEmergencyDecided
	case auth.SamePerson(by, e.Subject):
		return auth.ErrEmergencyPerson
	}
	e.DecidedBy, e.DecidedAt, e.State = by, s.now().UTC(), auth.EmergencyRefused
	if grant {
		s.grantEmergency(e, limits)
	}
	s.emergency++
	return nil
}

func (s *Storage) EndEmergency(_ context.Context, id, by string, state auth.EmergencyState) error {
	unlock, err := s.read("EndEmergency")
	defer unlock()
	if err != nil {
		return err
	}
	e, err := s.emergencyOf(id)
	if err != nil {
		return err
	}
	if s.emergencyState(e) != auth.EmergencyGranted {
		return auth.ErrEmergencyDecided
	}
	e.State, e.EndedBy, e.EndedAt = state, by, s.now().UTC()
	s.emergency++
	return nil
}

func (s *Storage) ReviewEmergency(_ context.Context, id string, r auth.EmergencyReview, _ string, limits auth.EmergencyLimits) error {
	unlock, err := s.read("ReviewEmergency")
	defer unlock()
	if err != nil {
		return err
	}
	e, err := s.emergencyOf(id)
	switch {
	case err != nil:
		return err
	case auth.SamePerson(r.By, e.DecidedBy), auth.SamePerson(r.By, e.Subject):
		return auth.ErrEmergencyPerson
	case e.ReviewBy.IsZero(), s.emergencyState(e) == auth.EmergencyGranted:
		return auth.ErrEmergencyDecided
	}
	r.At, e.ReviewBy = s.now().UTC(), time.Time{}
	if r.Outcome == auth.ReviewFollowUp {
		e.ReviewBy = r.At.Add(limits.Review)
	}
	e.Reviews = append(e.Reviews, r)
	return nil
}
