package phi

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// consentType is the type whose records say what their patient consents to.
const consentType = "Consent"

// maximalRules bounds what one Consent compiles to.
const maximalRules = 500

// consenting compiles a Consent (https://hl7.org/fhir/R4/consent.html) into rules that are applied wherever its patient's records are
// read, written or searched. Only an active one whose scope is patient-privacy counts.
//
// What is applied of a provision: type, period, actor (a Practitioner), purpose, and the security labels that segments are made of. Whatever
// else narrows a provision down cannot be told from here, and is taken for the patient's safety: a denial is taken as if it were not
// there (too much is denied), a permission is not taken (too little is permitted). doubts says where.
type consenting struct {
	patient string // "" of what has no rules
	rules   []auth.ConsentRule
	doubts  []string // expressions of what cannot be applied
}

// provision is a provision of a Consent with what it takes over from those that it stands in.
type provision struct {
	permit      bool
	actors      []string // nil: everybody
	purposes    []string // nil: all
	segments    auth.SegmentSet
	from, until time.Time
}

// consentOf compiles a Consent; any other record says nothing.
func consentOf(r *fhir.Resource) (c consenting) {
	if r.Type != consentType {
		return c
	}
	doc := gjson.ParseBytes(r.Text())
	patient, ok := patientReference(doc.Get("patient.reference").String())
	if !ok || doc.Get("status").String() != "active" || !hasCode(doc.Get("scope.coding"), "http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy") {
		return c
	}
	c.patient = patient
	root := doc.Get("provision")
	effect := root.Get("type").String()
	const actCode = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
	switch policy := doc.Get("policyRule.coding"); {
	case effect != "":
	case hasCode(policy, actCode, "OPTOUT"):
		effect = "deny"
	case hasCode(policy, actCode, "OPTIN"):
		effect = "permit"
	}
	if doc.Get("modifierExtension").Exists() || doc.Get("implicitRules").Exists() {
		c.doubt("Consent")
	}
	c.add(root, effect, provision{permit: true}, 0, "Consent.provision", len(c.doubts) > 0)
	return c
}

func (c *consenting) doubt(at string) {
	if !slices.Contains(c.doubts, at) {
		c.doubts = append(c.doubts, at)
	}
}

// add compiles a provision and those in it. A root without a type is no rule itself, only what the others stand in.
func (c *consenting) add(p gjson.Result, effect string, in provision, depth int, at string, doubtful bool) {
	own := in
	own.permit = effect == "permit"
	denies := effect == "deny" || effect != "permit" && depth > 0 // whatever it is, it is not a permission
	for _, part := range []string{"modifierExtension", "class", "code", "dataPeriod", "data"} {
		if p.Get(part).Exists() {
			c.doubt(at + "." + part)
			doubtful = true
		}
	}
	if actions := p.Get("action"); actions.Exists() && !slices.ContainsFunc(actions.Array(), seeing) {
		c.doubt(at + ".action")
		doubtful = true
	}
	taken := !doubtful
	if !c.period(p.Get("period"), &own, denies, at) {
		taken = false
	}
	if actors := p.Get("actor"); actors.Exists() {
		ids, whole := c.actors(actors, !denies, at+".actor")
		own.actors, taken = narrowed(in.actors, ids, whole, denies, taken)
	}
	if purposes := p.Get("purpose"); purposes.Exists() {
		codes, whole := c.purposes(purposes, at+".purpose")
		own.purposes, taken = narrowed(in.purposes, codes, whole, denies, taken)
	}
	if labels := p.Get("securityLabel"); labels.Exists() {
		set, whole := c.labels(labels, at+".securityLabel")
		switch {
		case denies && !whole:
			own.segments = 0
		case denies || in.segments == 0:
			own.segments = set
		default:
			own.segments = in.segments & set
		}
		taken = taken && (denies || own.segments != 0)
	}
	switch {
	case denies, own.permit && taken && (depth > 0 || own.segments != 0):
		c.rule(own, depth)
	}
	for _, nested := range p.Get("provision").Array() {
		c.add(nested, nested.Get("type").String(), own, depth+1, at+".provision", doubtful)
	}
}

// rule adds a rule for each actor.
func (c *consenting) rule(p provision, depth int) {
	actors := p.actors
	if actors == nil {
		actors = []string{""}
	}
	for _, actor := range actors {
		if len(c.rules) > maximalRules {
			return
		}
		c.rules = append(c.rules, auth.ConsentRule{
			Depth: depth, Permit: p.permit, Actor: actor, Segments: p.segments, Purposes: p.purposes, From: p.from, Until: p.until,
		})
	}
}

// narrowed is what a provision is about of one kind: what it says itself, within what it stands in when it permits. A denial of which a
// part cannot be told is about all.
func narrowed(in, own []string, whole, denies, taken bool) ([]string, bool) {
	switch {
	case denies && !whole:
		return nil, taken
	case denies || in == nil:
		return own, taken && (denies || len(own) > 0)
	}
	both := slices.DeleteFunc(slices.Clone(own), func(x string) bool { return !slices.Contains(in, x) })
	return both, taken && len(both) > 0
}

// period cuts a provision down to its Period.
func (c *consenting) period(p gjson.Result, own *provision, denies bool, at string) bool {
	if !p.Exists() {
		return true
	}
	from, until, ok := own.from, own.until, true
	if denies {
		from, until = time.Time{}, time.Time{}
	}
	if start := p.Get("start"); start.Exists() {
		t, _, readable := span(start.String())
		if ok = ok && readable; t.After(from) {
			from = t
		}
	}
	if end := p.Get("end"); end.Exists() {
		_, t, readable := span(end.String())
		if ok = ok && readable; until.IsZero() || t.Before(until) {
			until = t
		}
	}
	if !ok {
		c.doubt(at + ".period")
		from, until = time.Time{}, time.Time{}
	}
	own.from, own.until = from, until
	return ok
}

// actors reads those of a provision who can be told: practitioners by id, and people who are no workforce (the patient, relatives), whom no
// rule keeps out. permitted says that they must be those who receive.
func (c *consenting) actors(list gjson.Result, permitted bool, at string) (ids []string, whole bool) {
	whole = true
	for _, a := range list.Array() {
		ref := a.Get("reference.reference").String()
		kind, id, _ := strings.Cut(ref, "/")
		id, _, _ = strings.Cut(id, "/_history/")
		role := a.Get("role.coding")
		receives := !role.Exists() || hasCode(role, "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "IRCP") ||
			hasCode(role, "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "PRCP")
		known := (kind == "Practitioner" || kind == "Patient" || kind == "RelatedPerson") && fhir.ValidID(id)
		if !known || permitted && !receives {
			c.doubt(at)
			whole = false
			continue
		}
		ids = append(ids, kind+"/"+id)
	}
	return ids, whole
}

// purposes reads purposes of use, each with those that are among it.
func (c *consenting) purposes(list gjson.Result, at string) (codes []string, whole bool) {
	whole = true
	for _, p := range list.Array() {
		system, code := p.Get("system").String(), p.Get("code").String()
		if code == "" || !isCode(code) || system != "" && system != "http://terminology.hl7.org/CodeSystem/v3-ActReason" {
			c.doubt(at)
			whole = false
			continue
		}
		codes = append(codes, code)
		switch code { // v3-ActReason, as far as its hierarchy goes on below purposes that are asked for here
		case "TREAT":
			codes = append(codes, "ETREAT", "BTG", "ERTREAT", "CAREMGT", "COC")
		case "ETREAT":
			codes = append(codes, "BTG", "ERTREAT")
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes), whole
}

// labels reads security labels as segments.
func (c *consenting) labels(list gjson.Result, at string) (set auth.SegmentSet, whole bool) {
	whole = true
	for _, label := range list.Array() {
		segment := segmentGeneral
		if isActCode(label.Get("system").String()) {
			segment = segmentOfLabel(label.Get("code").String())
		}
		if segment == segmentGeneral {
			c.doubt(at)
			whole = false
			continue
		}
		set |= 1 << segment
	}
	return set, whole
}

// seeing reports whether an action of a provision is one by which somebody gets to see records.
func seeing(action gjson.Result) bool {
	for _, code := range []string{"access", "use", "disclose"} {
		if hasCode(action.Get("coding"), "http://terminology.hl7.org/CodeSystem/consentaction", code) {
			return true
		}
	}
	return false
}

// hasCode reports whether one of codings is a code of a system; a coding without a system counts.
func hasCode(codings gjson.Result, system, code string) bool {
	for _, c := range codings.Array() {
		if s := c.Get("system").String(); (s == "" || s == system) && c.Get("code").String() == code {
			return true
		}
	}
	return false
}

// checkConsent refuses a Consent that cannot be applied whole for its size, and one by which its writer opens a sensitive segment to
// himself, by name or with everybody: that is for somebody else to record.
func (a *attempt) checkConsent(ctx context.Context, c *change) *Error {
	if c.ref.Type != consentType {
		return nil
	}
	k := consentOf(c.resource)
	if len(k.rules) > maximalRules {
		return fail(Unprocessable, "too-costly", "the consent has more provisions, or actors, than are applied").at("Consent.provision")
	}
	p := a.caller.Principal
	var opens auth.SegmentSet
	for _, r := range k.rules {
		if r.Permit && (r.Actor == "" || r.Actor == p.FHIRUser) {
			opens |= r.Segments
		}
	}
	if opens == 0 {
		return nil
	}
	role := a.access.Filter(ctx, p, auth.Request{Interaction: auth.Search, Type: c.ref.Type, Purpose: a.caller.Purpose})
	if !role.Exempt && opens&^role.Segments != 0 { // what the role opens needs no consent
		a.decision.Allowed, a.decision.Reason = false, auth.ReasonSegment
		return fail(Unprocessable, "business-rule", "a consent that opens sensitive records to its writer is recorded by somebody else").at("Consent.provision")
	}
	return nil
}

// checkRestriction refuses to have a Consent replaced or removed by whom it denies something by name. One that denies everybody has nobody
// else to lift it; that he did is in the trail.
func (a *attempt) checkRestriction(ctx context.Context, c *change) *Error {
	who := a.caller.Principal.FHIRUser
	if c.ref.Type != consentType || who == "" {
		return nil
	}
	for _, patient := range c.current.Patients {
		rules, err := a.access.Consents(ctx, a.caller.Principal, patient)
		if err != nil {
			return unavailable(err)
		}
		if slices.ContainsFunc(rules, func(r auth.ConsentRule) bool { return r.Consent == c.ref.ID && !r.Permit && r.Actor == who }) {
			a.decision.Allowed, a.decision.Reason = false, auth.ReasonConsent
			return fail(Unprocessable, "business-rule", "a consent that denies something to its writer is changed by somebody else")
		}
	}
	return nil
}

// tellConsent is the event that says what a change of a Consent does to access, beside those of the write.
func (a *attempt) tellConsent(c *change, now time.Time) *audit.Event {
	e := a.event(audit.Intent, c.ref, c.write.Version, c.concerned())
	e.Type, e.Interaction, e.Action = audit.TypePolicy, "consent-change", c.verb.action
	e.ID, e.Correlation = newEventID(now), a.intent
	permits := 0
	for _, r := range c.consent.rules {
		if r.Permit {
			permits++
		}
	}
	e.OutcomeDesc = fmt.Sprintf("%d provisions deny, %d permit", len(c.consent.rules)-permits, permits)
	if len(c.consent.doubts) > 0 {
		e.OutcomeDesc += "; not applied: " + strings.Join(c.consent.doubts, ", ")
	}
	return e
}

// warnings tell the writer what of a Consent is taken for more, or for less, than it says.
func (c *consenting) warnings() (list []fhir.Issue) {
	for _, at := range c.doubts {
		list = append(list, fhir.Issue{
			Severity: "warning", Code: "not-supported", Expression: at,
			Diagnostics: "this cannot be applied: a denial is taken without it, a permission that depends on it is not taken",
		})
	}
	return list
}

// felt makes a change of a Consent felt by the next request here, as it is on other instances within a second.
func (a *attempt) felt(ctx context.Context, changes []*change) {
	if !slices.ContainsFunc(changes, func(c *change) bool { return c.ref.Type == consentType }) {
		return
	}
	if err := a.access.Refresh(context.WithoutCancel(ctx)); err != nil { // the lease ends what is cached
		a.logger.LogAttrs(ctx, slog.LevelWarn, "records: a change of a consent was not taken over at once", slog.Any("err", err))
	}
}
