package rest

import (
	"errors"
	"net/http"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// inspectionJSON is one event with everything that an officer asks next.
type inspectionJSON struct {
	eventJSON
	Why        whyJSON        `json:"why"`
	Took       *timingJSON    `json:"took"`    // what the whole request took; null while or where that is not known
	Search     *searchJSON    `json:"search"`  // the search text; null when there is none, or for those who see aliases
	Partner    *partnerJSON   `json:"partner"` // an intent's outcome, an outcome's intent; null when there is none
	Neighbours neighboursJSON `json:"neighbours"`
	Inclusion  inclusionJSON  `json:"inclusion"`
	FHIR       string         `json:"fhir"` // path of the event as a FHIR AuditEvent
}

// searchJSON is opened search text. Damaged says that it does not open: the event was changed, or its key is gone.
type searchJSON struct {
	Text    string `json:"text"`
	Damaged bool   `json:"damaged"`
}

type partnerJSON struct {
	ID      string `json:"id"`
	Outcome int8   `json:"outcome"`
}

// neighboursJSON are the events before and after this one that are about the same patient, user and session.
type neighboursJSON struct {
	Patient neighbourJSON `json:"patient"`
	User    neighbourJSON `json:"user"`
	Session neighbourJSON `json:"session"`
}

type neighbourJSON struct {
	Previous string `json:"previous"` // ids; "" when there is none
	Next     string `json:"next"`
}

// event shows one event: why it was allowed, its place in the log, and what stands around it.
func (c *call) event() error {
	stored, err := c.inspected()
	if err != nil {
		return err
	}
	e := &stored.Event
	j := inspectionJSON{eventJSON: c.lens().newEventJSON(stored), FHIR: fhirBase + "/AuditEvent/" + e.ID.String()}
	j.Why = explain(&j.eventJSON, foundOf(e))
	if j.Took, err = c.took(stored); err != nil {
		return err
	}
	if j.Partner, err = c.partner(stored); err != nil {
		return err
	}
	if j.Neighbours, err = c.neighbours(stored); err != nil {
		return err
	}
	if j.Search, err = c.searchText(e); err != nil {
		return err
	}
	if j.Inclusion, err = c.inclusion(stored); err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, j)
}

// inspected finds the event that the path names, after the event of looking at it is durable.
func (c *call) inspected() (*audit.Stored, error) {
	id, err := audit.ParseID(c.http.Params("id"))
	if err != nil || id == (audit.ID{}) || len(c.http.Params("id")) != 36 {
		return nil, notFound()
	}
	if _, err := c.recordLook(nil, audit.Entity{Type: "AuditEvent", ID: id.String()}); err != nil {
		return nil, err
	}
	stored, err := c.find(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldID, id.String())}, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(stored) == 0 {
		return nil, notFound()
	}
	return &stored[0], nil
}

// find asks for one page.
func (c *call) find(q audit.Query) ([]audit.Stored, error) {
	found, err := c.s.cfg.Trail.Find(c.ctx, q)
	if err != nil {
		return nil, unavailable(err)
	}
	return found.Events, nil
}

// searchText opens what was searched for. That is a look of its own: it has its own event.
func (c *call) searchText(e *audit.Event) (*searchJSON, error) {
	if len(e.Query) == 0 || c.aliased {
		return nil, nil
	}
	opening := c.adminEvent(audit.TypeAuditLogUsed)
	opening.Interaction = "audit-search-text"
	opening.Entities = []audit.Entity{{Type: "AuditEvent", ID: e.ID.String()}}
	opened, err := c.record(c.s.cfg.Level.Disclosure, opening)
	if err != nil {
		return nil, err
	}
	text, err := c.s.cfg.Records.OpenQuery(e, opened)
	var failed *phi.Error
	switch {
	case err == nil:
		return &searchJSON{Text: text}, nil
	case errors.As(err, &failed) && failed.Kind == phi.Integrity:
		return &searchJSON{Damaged: true}, nil
	}
	return nil, err
}

// took finds the request's durations in what was recorded after it by the same process.
func (c *call) took(s *audit.Stored) (*timingJSON, error) {
	if s.Event.RequestID == "" {
		return nil, nil
	}
	const late = 2 * time.Second // timings are recorded every second
	groups, err := c.find(audit.Query{
		Terms: []audit.Term{audit.Is(audit.FieldInteraction, audit.InteractionTimings), audit.Is(audit.FieldStream, s.Stream.String())},
		From:  s.Event.Recorded, To: s.Event.Recorded.Add(c.s.cfg.Timeout + late), Forward: true, Limit: audit.MaxPage,
	})
	if err != nil {
		return nil, err
	}
	for i := range groups {
		list, err := audit.DecodeTimings(groups[i].Event.Detail)
		if err != nil {
			continue // damaged: verification says so, and this page shows what there is
		}
		for _, t := range list {
			if t.RequestID == s.Event.RequestID {
				j := timingJSON(t.Timing)
				return &j, nil
			}
		}
	}
	return nil, nil
}

// partner finds the outcome of an intent among the events of the same request, or the intent of an outcome.
func (c *call) partner(s *audit.Stored) (*partnerJSON, error) {
	e := &s.Event
	var q audit.Query
	switch {
	case e.Outcome == audit.Intent:
		first := e.ID // of the intents of a transaction, which share one outcome
		if e.Correlation != (audit.ID{}) {
			first = e.Correlation
		}
		q.Terms = []audit.Term{audit.Is(audit.FieldCorrelation, first.String()), {Field: audit.FieldOutcome, Op: audit.OpAtLeast, Values: []string{"0"}}}
		if e.RequestID != "" {
			q.Terms = append(q.Terms, audit.Is(audit.FieldRequest, e.RequestID))
		}
		q.From, q.To = e.Recorded.Add(-time.Minute), e.Recorded.Add(time.Hour)
	case e.Correlation != (audit.ID{}):
		q.Terms = []audit.Term{audit.Is(audit.FieldID, e.Correlation.String())}
	default:
		return nil, nil
	}
	q.Limit = 1
	found, err := c.find(q)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &partnerJSON{found[0].Event.ID.String(), int8(found[0].Event.Outcome)}, nil
}

func (c *call) neighbours(s *audit.Stored) (j neighboursJSON, err error) {
	e := &s.Event
	for _, n := range []struct {
		to    *neighbourJSON
		field audit.Field
		value string
	}{{&j.Patient, audit.FieldPatient, e.Patient}, {&j.User, audit.FieldAgent, e.Agent.User}, {&j.Session, audit.FieldSession, e.Agent.Session}} {
		if n.value == "" || n.value == "system" {
			continue
		}
		for id, forward := range map[*string]bool{&n.to.Previous: false, &n.to.Next: true} {
			q := audit.Query{Terms: []audit.Term{audit.Is(n.field, n.value)}, After: s.Position(), Forward: forward, Limit: 1}
			if n.field == audit.FieldSession && e.Agent.User != "" {
				q.Terms = append(q.Terms, audit.Is(audit.FieldAgent, e.Agent.User)) // has an index, and is the session's only user
			}
			found, err := c.find(q)
			if err != nil {
				return j, err
			}
			if len(found) > 0 {
				*id = found[0].Event.ID.String()
			}
		}
	}
	return j, nil
}
