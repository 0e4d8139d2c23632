package rest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// PolicyHistory is the policy as it was. Safe for concurrent use.
type PolicyHistory interface {
	// PolicyAt returns the policy under which decisions with an epoch as their Decision.Policy were made, without assignments.
	PolicyAt(ctx context.Context, epoch int64) (auth.Policy, error)
	// AssignmentsAt returns the roles that were assigned to a subject at a moment.
	AssignmentsAt(ctx context.Context, subject string, at time.Time) ([]auth.Assignment, error)
}

// decisionPageJSON is a decision, gate by gate: as it was made, and as it would be made now.
type decisionPageJSON struct {
	ID      string         `json:"id"`
	Event   eventJSON      `json:"event"`
	Token   *tokenJSON     `json:"token"`   // null for one that none came with, or whose sign-in is not in the trail
	Was     judgementJSON  `json:"was"`     //
	Now     *judgementJSON `json:"now"`     // null for what is no decision about records or a capability
	Same    bool           `json:"same"`    // the answer would be the same
	Changed []string       `json:"changed"` // gates that would be found otherwise
	Note    string         `json:"note"`    // what has to be known to read this
	Found   foundJSON      `json:"found"`   // what it was made from
}

// tokenJSON is how the caller had proved who he is.
type tokenJSON struct {
	TokenID  string     `json:"token_id"` // the first of the session that was seen
	Issuer   string     `json:"issuer"`   // name of the issuer, "" for the only one
	ACR      string     `json:"acr,omitempty"`
	AMR      []string   `json:"amr,omitempty"`
	AuthTime *time.Time `json:"auth_time,omitempty"`
	SignedIn string     `json:"signed_in"` // event of the sign-in
}

// foundJSON are the facts that a decision was made from, as far as they were recorded.
type foundJSON struct {
	Related   string `json:"related,omitempty"`
	Segment   string `json:"segment,omitempty"`
	Emergency string `json:"emergency_access,omitempty"`
}

type judgementJSON struct {
	Allowed bool       `json:"allowed"`
	Reason  string     `json:"reason"`
	Policy  int64      `json:"policy"` // version of the policy that it was made under
	Exact   bool       `json:"exact"`  // every gate was judged by itself; otherwise as far as the event tells
	Gates   []gateJSON `json:"gates"`
}

// judged is what gates come to.
func judged(gates []auth.Gate, policy int64) judgementJSON {
	allowed, reason := auth.Verdict(gates)
	j := judgementJSON{Allowed: allowed, Reason: string(reason), Policy: policy, Exact: true}
	for _, g := range gates {
		j.Gates = append(j.Gates, newGateJSON(g))
	}
	return j
}

// foundOf reads what an event keeps of the facts behind its decision.
func foundOf(e *audit.Event) audit.AccessFacts {
	if letterOf(e.Interaction) == 0 {
		return audit.AccessFacts{}
	}
	found, err := audit.DecodeAccessFacts(e.Detail)
	if err != nil { // of another kind of event: there is none
		return audit.AccessFacts{}
	}
	return found
}

// letterOf is the interaction of a SMART scope that a FHIR interaction is; 0 for none.
func letterOf(interaction string) auth.Interaction {
	switch interaction {
	case "read", "vread", "history-instance":
		return auth.Read
	case "search-type":
		return auth.Search
	case "create":
		return auth.Create
	case "update":
		return auth.Update
	case "delete":
		return auth.Delete
	}
	return 0
}

// decision explains a decision by the id of its event, which the caller got as X-Decision-Id when it was a refusal, and makes it again
// under today's policy.
func (c *call) decision() error {
	stored, err := c.inspected()
	if err != nil {
		return err
	}
	e := &stored.Event
	found := foundOf(e)
	lens := c.lens()
	j := decisionPageJSON{ID: e.ID.String(), Event: lens.newEventJSON(stored), Changed: []string{}}
	j.Found = foundJSON{found.Related, found.Segment, emergencyOf(&j.Event)}
	j.Was = judgementJSON{Allowed: e.Decision.Allowed, Reason: e.Decision.Reason, Policy: e.Decision.Policy, Gates: []gateJSON{}}
	if e.Decision.Reason == "" {
		j.Note = "No access decision was made."
		return c.sendJSON(http.StatusOK, j)
	}
	j.Was.Gates = gates(&j.Event, found)
	signIn, at, err := c.signInOf(e)
	if err != nil {
		return err
	}
	if signIn != nil {
		j.Token = newTokenJSON(e, signIn, at)
	}
	d := recordedDecision(e, found, signIn, j.Found.Emergency)
	var now []auth.Gate
	switch capability := c.capabilityOf(e); {
	case capability != "":
		now = c.s.cfg.Access.ExplainMay(d.Principal, capability, e.Recorded)
		j.Note = "A decision about a capability: records, scopes and purposes do not matter."
	case d.Request.Interaction != 0 && d.Request.Type != "":
		if was, ok := c.replayed(e, d); ok {
			j.Was = was
		}
		now = c.s.cfg.Access.ReplayNow(c.ctx, d)
		j.Note = "What the token said (scopes, launch, sign-in) and emergency access are taken as they were; policy, roles, relationships and consents as they are now."
	default:
		j.Note = "Not a decision about a record of one type: it cannot be made again."
		return c.sendJSON(http.StatusOK, j)
	}
	again := judged(now, c.s.cfg.Access.Stats().Policy)
	j.Now, j.Same = &again, again.Allowed == j.Was.Allowed && again.Reason == j.Was.Reason
	for i, g := range again.Gates {
		if i < len(j.Was.Gates) && g.State != j.Was.Gates[i].State && (j.Was.Exact || g.State == string(auth.GateFailed) || j.Was.Gates[i].State == string(auth.GateFailed)) {
			j.Changed = append(j.Changed, g.Gate)
		}
	}
	return c.sendJSON(http.StatusOK, j)
}

// replayed judges the decision under the policy of its time; false when that is not kept, or does not come to what was decided.
func (c *call) replayed(e *audit.Event, d auth.Recorded) (judgementJSON, bool) {
	if c.s.cfg.History == nil {
		return judgementJSON{}, false
	}
	policy, err := c.s.cfg.History.PolicyAt(c.ctx, e.Decision.Policy)
	if err == nil {
		policy.Assignments, err = c.s.cfg.History.AssignmentsAt(c.ctx, e.Agent.User, e.Recorded)
	}
	var gates []auth.Gate
	if err == nil {
		gates, err = auth.Replay(d, policy)
	}
	if err != nil {
		return judgementJSON{}, false
	}
	j := judged(gates, e.Decision.Policy)
	return j, j.Allowed == e.Decision.Allowed && j.Reason == e.Decision.Reason
}

// recordedDecision puts together from an event who asked for what.
func recordedDecision(e *audit.Event, found audit.AccessFacts, signIn *audit.SignIn, emergency string) auth.Recorded {
	a := e.Agent
	p := &auth.Principal{Subject: a.User, Client: a.Client, Session: a.Session, Roles: a.Roles, FHIRUser: a.FHIRUser, Issuer: "recorded"}
	if a.User == "system" { // the deployment's own work came without a token
		p.Issuer = ""
	}
	if signIn != nil {
		p.ACR, p.AuthTime = signIn.ACR, signIn.AuthTime
	}
	d := auth.Recorded{
		Principal: p, At: e.Recorded, Allowed: e.Decision.Allowed, Reason: auth.Reason(e.Decision.Reason), Related: found.Related, Emergency: emergency,
		Request: auth.Request{Interaction: letterOf(e.Interaction)},
	}
	if !strings.HasPrefix(e.Decision.Rule, "emergency:") {
		d.Emergency = ""
	}
	if d.Reason == auth.ReasonPurpose || d.Emergency != "" { // otherwise it is the one that the rule applied, also when none was asked for
		d.Request.Purpose = e.Purpose
	}
	for _, s := range []auth.Segment{auth.SegmentPart2, auth.SegmentPsychotherapy} {
		if s.String() == found.Segment {
			d.Request.Segment = s
		}
	}
	if len(e.Entities) == 0 {
		return d
	}
	d.Request.Type = e.Entities[0].Type
	if e.Patient != "" && (e.Entities[0].ID != "" || d.Emergency != "") { // a search is not decided about by the patients that it names
		d.Request.Patients = append(d.Request.Patients, e.Patient)
		for _, n := range e.Entities[1:] {
			if n.Type == "Patient" && !slices.Contains(d.Request.Patients, n.ID) {
				d.Request.Patients = append(d.Request.Patients, n.ID)
			}
		}
	}
	d.Request.Stray = d.Reason == auth.ReasonRelationship && e.Patient == ""
	if d.Allowed && d.Related == "" && relation(e.Decision.Rule) == string(auth.RelationTreatment) {
		d.Related = "not recorded"
	}
	return d
}

// capabilityOf is the capability that an event's decision was about, "" when it was about records.
func (c *call) capabilityOf(e *audit.Event) string {
	if _, capability, ok := strings.Cut(e.Decision.Rule, ":"); ok && strings.Count(capability, ":") == 1 { // a rule about records has four parts
		return capability
	}
	for _, r := range c.s.routes {
		if r.interaction == e.Interaction && r.guard.kind == guardCapability && letterOf(e.Interaction) == 0 {
			return r.guard.capability
		}
	}
	return ""
}

// signInOf finds the sign-in of an event's session; nil when the trail has none.
func (c *call) signInOf(e *audit.Event) (*audit.SignIn, *audit.Stored, error) {
	if e.Agent.User == "" || e.Agent.Session == "" {
		return nil, nil, nil
	}
	found, err := c.find(audit.Query{
		Terms: []audit.Term{
			audit.Is(audit.FieldAgent, e.Agent.User), audit.Is(audit.FieldSession, e.Agent.Session), audit.Is(audit.FieldInteraction, audit.InteractionLogin),
		},
		To: e.Recorded.Add(time.Second), Limit: 1,
	})
	if err != nil || len(found) == 0 {
		return nil, nil, err
	}
	signIn, err := audit.DecodeSignIn(found[0].Event.Detail)
	if err != nil { // damaged: verification says so
		return nil, nil, nil //nolint:nilerr // and this page shows what there is
	}
	return &signIn, &found[0], nil
}

func newTokenJSON(e *audit.Event, s *audit.SignIn, at *audit.Stored) *tokenJSON {
	j := &tokenJSON{TokenID: s.TokenID, ACR: s.ACR, AMR: s.AMR, SignedIn: at.Event.ID.String()}
	if name, _, ok := strings.Cut(e.Agent.User, "|"); ok {
		j.Issuer = name
	}
	if !s.AuthTime.IsZero() {
		t := s.AuthTime.UTC()
		j.AuthTime = &t
	}
	return j
}
