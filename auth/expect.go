package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Expectation is what somebody expects of a policy: a case for `chartkeep policy test`. Either Do and Type or Capability say what is tried.
type Expectation struct {
	Name       string   `json:"name"`
	Roles      []string `json:"roles"`
	Do         string   `json:"do,omitempty"` // letters of cruds: each is tried
	Type       string   `json:"type,omitempty"`
	Purpose    string   `json:"purpose,omitempty"`  // asked for; the default of the rule when empty
	Relation   Relation `json:"relation,omitempty"` // to the patient: none (when empty), treatment or self
	Segment    string   `json:"segment,omitempty"`  // that the record is in; general when empty
	ACR        string   `json:"acr,omitempty"`      // of the sign-in
	Age        int64    `json:"age,omitempty"`      // of the sign-in, seconds
	Capability string   `json:"capability,omitempty"`
	Expect     string   `json:"expect"`         // "allowed", or the reason of the refusal
	View       string   `json:"view,omitempty"` // of what is allowed; any when empty
}

// Expectations are the cases of one file. ReadCommented reads it.
type Expectations struct {
	Cases []Expectation `json:"cases"`
}

// Outcome is what became of an Expectation.
type Outcome struct {
	Met  bool
	Rule string // that decided
	Got  string // what the policy says instead, when the expectation is not met
}

// expected is a Storage that holds a document and one relationship.
type expected struct {
	policy  Policy
	related bool
}

func (e *expected) Epochs(context.Context) (Epochs, error)       { return Epochs{Policy: 1}, nil }
func (e *expected) Emergencies(context.Context) ([]Grant, error) { return nil, nil }
func (e *expected) Policy(context.Context) (Policy, error)       { return e.policy, nil }

func (e *expected) Facts(_ context.Context, _ Actor, patients []string) ([]Fact, error) {
	list := make([]Fact, len(patients))
	for i := range list {
		if e.related {
			list[i].Related = "grant"
		}
	}
	return list, nil
}

// reasons are what Expectation.Expect may say.
func reasons() []string {
	list := []string{}
	for _, r := range []Reason{
		ReasonAllowed, ReasonRole, ReasonRelationship, ReasonCompartment, ReasonPurpose, ReasonStepUp, ReasonSegment, ReasonForbidden,
	} {
		list = append(list, string(r))
	}
	return list
}

// check says what is wrong with a case.
func (e *Expectation) check(at string) error {
	_, letters := letterMask(e.Do)
	wrong := func(member, text string) error { return &DocumentError{at + "/" + member, text} }
	switch {
	case len(e.Roles) == 0:
		return wrong("roles", "a case names roles")
	case (e.Capability == "") == (e.Do == "" && e.Type == ""):
		return wrong("do", "a case tries either letters on a type, or a capability")
	case e.Capability == "" && !letters:
		return wrong("do", "they are letters of cruds, in this order")
	case e.Capability == "" && !isTypeName(e.Type):
		return wrong("type", "it is a resource type")
	case e.Relation != "" && e.Relation != RelationNone && e.Relation != RelationTreatment && e.Relation != RelationSelf:
		return wrong("relation", "it is none, treatment or self")
	case e.Segment != "" && !slices.Contains(segmentNames[:], e.Segment):
		return wrong("segment", "it is one of "+strings.Join(segmentNames[:], ", "))
	case !slices.Contains(reasons(), e.Expect):
		return wrong("expect", "it is one of "+strings.Join(reasons(), ", "))
	}
	return nil
}

// Try holds a policy against cases, with the very code that decides about requests. The error is a *DocumentError about the cases, or the
// policy does not compile.
func (x *Expectations) Try(ctx context.Context, d Document) ([]Outcome, error) {
	if len(x.Cases) == 0 {
		return nil, &DocumentError{"/cases", "there are none"}
	}
	outcomes := make([]Outcome, len(x.Cases))
	for i := range x.Cases {
		e := &x.Cases[i]
		if err := e.check(fmt.Sprintf("/cases/%d", i)); err != nil {
			return nil, err
		}
		storage := &expected{d.Policy(), e.Relation == RelationTreatment}
		access, err := NewAccess(ctx, AccessConfig{Storage: storage})
		if err != nil {
			return nil, err
		}
		outcomes[i] = e.try(ctx, access)
		access.Close()
	}
	return outcomes, nil
}

func (e *Expectation) try(ctx context.Context, access *Access) Outcome {
	now := time.Now()
	p := &Principal{
		Subject: "somebody", Session: "session", Roles: e.Roles, Scopes: ParseScopes("user/*.cruds"), FHIRUser: "Practitioner/somebody", Patient: "another",
		ACR: e.ACR, AuthTime: now.Add(-time.Duration(e.Age) * time.Second), Issued: now, Expires: now.Add(time.Hour),
	}
	if e.Relation == RelationSelf {
		p.Patient = "patient"
	}
	if e.Capability != "" {
		return e.met(access.May(p, e.Capability), "")
	}
	var o Outcome
	for _, letter := range e.Do {
		o = e.met(access.Check(ctx, p, Request{
			Interaction: Interaction(letter), Type: e.Type, Patients: []string{"patient"}, Purpose: e.Purpose,
			Segment: Segment(max(0, slices.Index(segmentNames[:], e.Segment))),
		}), string(letter)+" ")
		if !o.Met {
			break
		}
	}
	return o
}

func (e *Expectation) met(d Decision, letter string) Outcome {
	o := Outcome{Rule: d.Rule, Met: string(d.Reason) == e.Expect && (!d.Allowed || e.View == "" || e.View == d.View)}
	if o.Met {
		return o
	}
	o.Got = letter + string(d.Reason)
	if d.View != "" {
		o.Got += " in view " + d.View
	}
	if d.Rule != "" {
		o.Got += " by rule " + d.Rule
	}
	return o
}
