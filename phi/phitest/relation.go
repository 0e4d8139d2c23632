package phitest

import (
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// around is how many days before and after it a relationship holds, as the migrations seed it.
func around(source string) (lead, tail int, known bool) {
	switch source {
	case "Encounter":
		return 3, 30, true
	case "CareTeam", "EpisodeOfCare":
		return 0, 30, true
	}
	return 0, 0, source == "grant"
}

// SetNow gives the storage a clock.
func (s *Storage) SetNow(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// Grant states an explicit treatment relationship.
func (s *Storage) Grant(practitioner, patient string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants[phi.Treatment{Practitioner: practitioner, Patient: patient}] = true
	s.epoch++
}

// related returns where a relationship with one of the patients comes from, "" when there is none, and when it ends.
func (s *Storage) related(practitioner string, patients []string) (source string, until time.Time) {
	better := func(from string, t phi.Treatment) {
		if t.Practitioner != practitioner || !slices.Contains(patients, t.Patient) {
			return
		}
		lead, tail, known := around(from)
		now, end := s.now(), t.Until
		if !end.IsZero() {
			end = end.AddDate(0, 0, tail)
		}
		if !known || now.Before(t.From.AddDate(0, 0, -lead)) || !end.IsZero() && !now.Before(end) {
			return
		}
		longer := source == "" || !until.IsZero() && (end.IsZero() || end.After(until))
		if longer || end.Equal(until) && from < source {
			source, until = from, end
		}
	}
	for t := range s.grants {
		better("grant", t)
	}
	for ref := range s.records {
		if w := s.current(ref); !w.Deleted() {
			for _, t := range w.Treats {
				better(ref.Type, t)
			}
		}
	}
	return source, until
}

// rules returns the rules of a patient's Consents that are about everybody or the actor.
func (s *Storage) rules(a auth.Actor, patient string) (list []auth.ConsentRule) {
	for ref := range s.records {
		w := s.current(ref)
		if w.Deleted() || w.Consent != patient {
			continue
		}
		for _, r := range w.Rules {
			if r.Actor == "" || a.Practitioner != "" && r.Actor == "Practitioner/"+a.Practitioner {
				r.Consent = w.ID
				list = append(list, r)
			}
		}
	}
	return list
}

// passes reports whether consents and segments leave a record to a search.
func (s *Storage) passes(w *phi.Write, gates *auth.Filter) bool {
	segment, opened := auth.Segment(w.Segment), len(w.Patients) > 0
	for _, patient := range w.Patients {
		denied, opens := auth.JudgeConsents(s.rules(gates.Actor, patient), w.Type, segment, gates.Purpose, s.now())
		if denied && !gates.Exempt {
			return false
		}
		opened = opened && opens
	}
	switch {
	case segment == auth.SegmentGeneral:
		return true
	case gates.Closed.Has(segment):
		return false
	}
	return gates.Segments.Has(segment) || !gates.Exempt && opened
}

// Touch makes everything that is cached of relationships and consents be asked for again.
func (s *Storage) Touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
}

// SetPolicy replaces the policy; it must have another version.
func (s *Storage) SetPolicy(p auth.Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy = p
}
