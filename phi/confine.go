package phi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// confine is what one granular scope leaves of a type (auth.Constraint), ready to be held against content.
type confine struct {
	patient  string // in whose compartment; "" is anybody's
	criteria []*fhir.Criterion
}

// errOutside is the cause of a refusal of a record that the caller's scopes are not about. To the caller it looks like none.
var errOutside = errors.New("phi: the record is outside the constraints of the caller's scopes")

// entityScope is the type of the entity by which an event tells what the caller's scopes left of the type.
const entityScope = "scope"

// prepareConfines compiles what a decision leaves of a type, and reports whether anything is left. A constraint that is not evaluated here as a
// search for the same would be leaves nothing; nor does one that looks at elements that the caller may not see, since what it lets
// through would tell their values.
func (a *attempt) prepareConfines(resourceType string) bool {
	a.confines = nil
	for _, only := range a.decision.Only {
		if c, ok := a.compileConfine(resourceType, only); ok {
			a.confines = append(a.confines, c)
		}
	}
	return len(a.confines) > 0 || len(a.decision.Only) == 0
}

func (a *attempt) compileConfine(resourceType string, only auth.Constraint) (c confine, ok bool) {
	if only.Patient {
		if c.patient = a.caller.Principal.Patient; c.patient == "" {
			return confine{}, false
		}
	}
	for _, p := range only.Predicates {
		criterion, issues := fhir.ParseCriterion(resourceType, p.Name, p.Value)
		if issues != nil {
			return confine{}, false
		}
		for _, element := range criterion.Elements() {
			if !a.view.classes.Has(classOf(resourceType, element)) {
				return confine{}, false
			}
		}
		c.criteria = append(c.criteria, criterion)
	}
	return c, true
}

// confined reports whether the caller's scopes leave a part of the type only.
func (a *attempt) confined() bool { return len(a.confines) > 0 }

// inside reports whether one of the confines holds for a record. Who is bound to a patient may read what is nobody's, not write it.
func (a *attempt) inside(letter auth.Interaction, patients []string, r *fhir.Resource) bool {
	reads := letter == auth.Read || letter == auth.Search
	return slices.ContainsFunc(a.confines, func(c confine) bool {
		if c.patient != "" && !slices.Contains(patients, c.patient) && (len(patients) > 0 || !reads || belongs(r.Type)) {
			return false
		}
		return !slices.ContainsFunc(c.criteria, func(criterion *fhir.Criterion) bool { return !criterion.Match(r) })
	})
}

// holds holds the confines against opened elements, as they are stored: before the view reduces them.
func (a *attempt) holds(row *Sealed, elements []fhir.Element) bool {
	text := fhir.Assemble(nil, row.Type, row.ID, nil, elements)
	defer clear(text)
	whole, issues := fhir.Parse(text)
	if issues != nil {
		return false
	}
	defer clear(whole.Text())
	return a.inside(a.verb.letter, row.Patients, whole)
}

// outside refuses a record that the caller's scopes are not about.
func (a *attempt) outside() *Error {
	a.decision.Allowed, a.decision.Reason = false, auth.ReasonScope
	return notFound().because(errOutside)
}

// announce makes events the Intent of looking into records: whether the caller's scopes are about them is in the content. An event
// with the outcome comes after it, with the first one's id as Correlation.
func (a *attempt) announce(events []*audit.Event) {
	now := a.now()
	for i, e := range events {
		e.ID = newEventID(now)
		if i == 0 {
			a.intent = e.ID
		}
		e.Correlation = a.intent
	}
}

// discloseConfined is disclose where the content decides: the intent is durable before the row is opened, and what came of it before
// the answer goes out.
func (a *attempt) discloseConfined(ctx context.Context, row *Sealed) (*Resource, *Error) {
	if row.Erased || row.Deleted() {
		return nil, a.outside() // nothing is left by which it could be inside
	}
	events := a.events(audit.Intent, row.Ref, row.Version, row.Patients)
	a.announce(events)
	receipt, e := a.record(ctx, a.level.Disclosure, events...)
	if e != nil {
		return nil, e
	}
	aead, e := a.aead(ctx, row)
	if e != nil {
		return nil, e
	}
	res, e := a.open(ctx, row, aead, receipt)
	if e != nil {
		if errors.Is(e.Err, errOutside) {
			return nil, a.outside()
		}
		return nil, e
	}
	return res, a.disclosed(ctx, a.events(audit.Success, row.Ref, row.Version, row.Patients))
}

// disclosed records the outcome of what announce announced.
func (a *attempt) disclosed(ctx context.Context, events []*audit.Event) *Error {
	for _, e := range events {
		e.Correlation = a.intent
	}
	if _, e := a.record(ctx, a.level.Disclosure, events...); e != nil {
		return e
	}
	a.intent = audit.ID{}
	return nil
}

// judge holds the confines against the version that a write is about to replace. It is opened under an intent of its own, and shown to
// nobody.
func (a *attempt) judge(ctx context.Context, current *Sealed) *Error {
	if current.Erased || current.Deleted() {
		return a.outside()
	}
	row, err := a.storage.FetchVersion(ctx, current.Ref, current.Version, a.view.classes)
	if err != nil {
		return stored(err)
	}
	events := a.events(audit.Intent, row.Ref, row.Version, row.Patients)
	a.announce(events)
	receipt, e := a.record(ctx, a.level.Disclosure, events...)
	if e != nil {
		return e
	}
	aead, e := a.aead(ctx, row)
	if e != nil {
		return e
	}
	res, e := a.open(ctx, row, aead, receipt)
	outcome := audit.Success
	switch {
	case e == nil:
		res.JSON.Clear()
	case errors.Is(e.Err, errOutside):
		e, outcome = a.outside(), audit.MinorFailure
	default:
		return e
	}
	told := a.event(outcome, row.Ref, row.Version, row.Patients[:min(1, len(row.Patients))])
	told.OutcomeDesc = "held against the constraints of the token's scopes; shown to nobody"
	told.Classes = nil
	if fault := a.disclosed(ctx, []*audit.Event{told}); fault != nil {
		return fault
	}
	return e
}

// tellConfines says in an event what the caller's scopes left of the type. The values of a constraint are its issuer's, but held
// against a record they say what is in it: only that of a category, which groups records and describes none, is told.
func (a *attempt) tellConfines(e *audit.Event) {
	if len(a.decision.Only) == 0 {
		return
	}
	var text strings.Builder
	for i, only := range a.decision.Only {
		if i > 0 {
			text.WriteString(" or ")
		}
		if only.Patient {
			text.WriteString("patient/")
		}
		for j, p := range only.Predicates {
			if j > 0 {
				text.WriteByte('&')
			}
			text.WriteString(p.Name)
			if p.Name == "category" {
				text.WriteString("=" + p.Value)
			}
		}
	}
	told := text.String()
	if len(told) > maximalTold {
		told = strings.ToValidUTF8(told[:maximalTold], "") + "…"
	}
	e.Entities = append(e.Entities, audit.Entity{Type: entityScope, ID: told})
}

// maximalTold bounds what an event tells of constraints, in bytes.
const maximalTold = 240
