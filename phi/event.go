package phi

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Events of this room:
//
//   - Whose purpose is none of treatment, payment, operations and the patient's own request is of type audit.TypeExport: a
//     disclosure that the patient can ask an accounting of.
//   - A read, vread or history is one event, durable before anything is opened; of a record of several patients, one event
//     for each of them.
//   - A search is one event with its text sealed and an entity that has a type and no id (its hits are not known yet),
//     durable before candidates are opened. Patients that it did not name and that are disclosed get an event each, with
//     the records disclosed and the same text, before the page is returned (IHE BALP: a query over N patients is N events).
//   - A write is an Intent, durable before the commit, and an event with the outcome after it, both with the Intent's id as
//     Correlation. The writes of a transaction or an import chunk are one Intent each, handed over as one group; all share
//     the first one's id as Correlation, and one event tells the outcome of all.
//   - Where the token's scopes leave a part of the type only (confine), what is opened for somebody is announced by an Intent and has
//     an event with the outcome; that event tells what the scopes left. A record that turns out to be outside is refused.
//   - A refusal or failure is one event, recorded before the answer goes out; when it cannot be recorded the answer is
//     Unavailable.
//   - What is shown in the de-identified view is said to be an export, by one more entity; all events of an export name the same.
//   - A row that does not open, or that a search found under an index token that is not its own, is a security alert
//     ("phi.integrity_failure") naming type, id, version and key, beside it.

// verb is what a call does, in the words of audit and of auth.
type verb struct {
	interaction string
	action      audit.Action
	letter      auth.Interaction
}

var (
	verbRead    = verb{"read", audit.ActionRead, auth.Read}
	verbVRead   = verb{"vread", audit.ActionRead, auth.Read}
	verbHistory = verb{"history-instance", audit.ActionRead, auth.Read}
	verbSearch  = verb{"search-type", audit.ActionExecute, auth.Search}
	verbCreate  = verb{"create", audit.ActionCreate, auth.Create}
	verbUpdate  = verb{"update", audit.ActionUpdate, auth.Update}
	verbDelete  = verb{"delete", audit.ActionDelete, auth.Delete}
	verbBatch   = verb{"batch", audit.ActionExecute, 0}
	verbTransac = verb{"transaction", audit.ActionExecute, 0}
	verbImport  = verb{"import", audit.ActionExecute, 0}
)

// attempt is one call in progress: on whose behalf, what was decided so far, and how long its parts took. It is what an
// event is made of.
type attempt struct {
	*Records
	caller   *Caller
	verb     verb
	kind     audit.Type
	start    time.Time
	ref      Ref
	version  int64
	patient  string // whom the record concerns, as soon as that is known
	segment  auth.Segment
	decision auth.Decision
	view     view
	confines []confine // what the token's scopes leave of the type; none is all of it
	export   *export   // of the de-identified view, as soon as there is one
	trace    Trace
	intent   audit.ID // correlation of the intents that were recorded
}

// begin is small enough to be inlined, so that the attempt of a call that keeps none stays on its stack.
func (r *Records) begin(c *Caller, v verb, ref Ref) *attempt {
	a := r.newAttempt(c, v, ref)
	return &a
}

func (r *Records) newAttempt(c *Caller, v verb, ref Ref) attempt {
	a := attempt{Records: r, caller: c, verb: v, kind: audit.TypeREST, start: c.Start, ref: ref}
	if a.start.IsZero() {
		a.start = time.Now()
	}
	return a
}

// clock is the time since the attempt's start. It reads one clock of the system, where time.Now reads two.
func (a *attempt) clock() time.Duration { return time.Since(a.start) }

// checkRef refuses types and ids that cannot exist, before either gets into an event.
func (a *attempt) checkRef() *Error {
	if !fhir.Known(a.ref.Type) {
		a.ref = Ref{}
		return fail(NotFound, "not-supported", "there is no such resource type")
	}
	if !fhir.ValidID(a.ref.ID) {
		a.ref.ID = ""
		return invalid("value", "the id is not a FHIR id")
	}
	return nil
}

// trailType is the one type that is never kept as a record: the trail is written by package audit, and read from there.
const trailType = "AuditEvent"

// permit decides what can be decided about the type alone. Everything that touches a record comes through here.
func (a *attempt) permit(letter auth.Interaction, resourceType string) *Error {
	if a.caller.Principal == nil {
		return denied()
	}
	if resourceType == trailType {
		if letter == auth.Read || letter == auth.Search {
			return fail(NotFound, "not-supported", "audit events are not among the records")
		}
		return fail(NotAllowed, "not-supported", "audit events are recorded by the server and cannot be written")
	}
	since := a.clock()
	a.decision = a.access.Type(a.caller.Principal, letter, resourceType, a.caller.Purpose)
	a.trace.Decision += a.clock() - since
	if a.decision.Reason == auth.ReasonStepUp {
		return a.decided(resourceType, a.tooWeak)
	}
	return a.decided(resourceType, denied)
}

// admit decides about a record by the patients it belongs to and the segment it is in.
func (a *attempt) admit(ctx context.Context, letter auth.Interaction, resourceType string, patients []string, segment uint16, refusal func() *Error) *Error {
	a.segment = auth.Segment(segment)
	since := a.clock()
	a.decision = a.access.Check(ctx, a.caller.Principal, auth.Request{
		Interaction: letter, Type: resourceType, Patients: patients, Purpose: a.caller.Purpose,
		Stray: len(patients) == 0 && belongs(resourceType), Segment: a.segment,
	})
	a.trace.Decision += a.clock() - since
	return a.decided(resourceType, refusal)
}

func (a *attempt) decided(resourceType string, refusal func() *Error) *Error {
	if !a.decision.Allowed {
		if a.decision.Reason == auth.ReasonUnavailable {
			return unavailable(nil)
		}
		return refusal()
	}
	classes, reduction, ok := ViewOf(a.decision.View, resourceType)
	if !ok { // a view that this build does not know shows nothing
		return a.overrule(denied())
	}
	a.view = view{classes, reduction}
	if !a.prepareConfines(resourceType) {
		a.decision.Allowed, a.decision.Reason = false, auth.ReasonScope
		return refusal()
	}
	return nil
}

// overrule turns an allowance into a refusal: what the role may see is not enough for what is asked.
func (a *attempt) overrule(refusal *Error) *Error {
	a.decision.Allowed, a.decision.Reason = false, auth.ReasonRole
	return refusal
}

// found is what the decision was made from, as far as it does not say so itself; nil when that is nothing. What is found every day is
// encoded once.
func (a *attempt) found() []byte {
	f := audit.AccessFacts{Related: a.decision.Related}
	if a.segment != auth.SegmentGeneral {
		f.Segment = a.segment.String()
	}
	if f == (audit.AccessFacts{}) {
		return nil
	}
	if b, ok := a.usual[f]; ok {
		return b
	}
	return f.Encode()
}

// usualFacts are encoded beforehand.
func usualFacts() map[audit.AccessFacts][]byte {
	m := map[audit.AccessFacts][]byte{}
	for _, related := range []string{"Encounter", "CareTeam", "EpisodeOfCare", "grant"} {
		f := audit.AccessFacts{Related: related}
		m[f] = f.Encode()
	}
	return m
}

// told is an event and what it names first: one allocation, since they live and die together.
type told struct {
	audit.Event
	first [1]audit.Entity
}

// event describes the attempt so far, for one record.
func (a *attempt) event(outcome audit.Outcome, ref Ref, version int64, patients []string) *audit.Event {
	made := &told{Event: audit.Event{
		Type:        a.kind,
		Interaction: a.verb.interaction,
		Action:      a.verb.action,
		Outcome:     outcome,
		Purpose:     a.decision.Purpose,
		Classes:     classNames(a.view.classes),
		Decision: audit.Decision{
			Allowed: a.decision.Allowed, Rule: a.decision.Rule, Reason: string(a.decision.Reason),
			View: a.decision.View, Policy: a.decision.Policy,
		},
		RequestID: a.caller.RequestID,
		Detail:    a.found(),
		Timing: audit.Timing{
			Total: micros(a.clock()), Auth: micros(a.caller.AuthTook), Decision: micros(a.trace.Decision),
			Database: micros(a.trace.Database), Crypto: micros(a.trace.Crypto), Audit: micros(a.trace.Audit),
		},
	}}
	e := &made.Event
	if e.Purpose == "" && isCode(a.caller.Purpose) {
		e.Purpose = a.caller.Purpose
	}
	if p := a.caller.Principal; p != nil {
		e.Agent = audit.Agent{
			User: p.Subject, Name: p.Name, Client: p.Client, Session: p.Session, Roles: p.Roles, FHIRUser: p.FHIRUser,
		}
	}
	e.Agent.Network = a.caller.Network
	if outcome == audit.Success && len(patients) > 0 && a.discloses(e.Purpose) {
		e.Type, e.Action = audit.TypeExport, audit.ActionRead
	}
	if ref.Type != "" {
		made.first[0] = audit.Entity{Type: ref.Type, ID: ref.ID, Version: version}
		e.Entities = made.first[:]
	}
	if a.decision.Emergency != "" {
		e.Entities = append(e.Entities, audit.Entity{Type: audit.EntityEmergency, ID: a.decision.Emergency})
	}
	if len(patients) > 0 {
		e.Patient = patients[0]
		for _, other := range patients[1:] {
			e.Entities = append(e.Entities, audit.Entity{Type: "Patient", ID: other})
		}
	}
	return e
}

// discloses reports whether what is shown has to be accounted for to the patient (45 CFR 164.528(a)(1)): it identifies, and
// it is not for treatment, payment or health care operations, nor at the patient's own request. Purposes that this list does
// not know are accounted for.
func (a *attempt) discloses(purpose string) bool {
	if a.verb.letter != auth.Read && a.verb.letter != auth.Search || a.view.reduction == Deidentified {
		return false
	}
	switch purpose {
	case "", "TREAT", "ETREAT", "BTG", "CAREMGT", "COC", "HPAYMT", "HOPERAT", "PATRQT":
		return false
	}
	return true
}

// events describes the attempt so far, for one record, once for each patient it belongs to: each can be told who looked
// (45 CFR 164.528).
func (a *attempt) events(outcome audit.Outcome, ref Ref, version int64, patients []string) []*audit.Event {
	list := append(make([]*audit.Event, 0, max(1, len(patients))), a.event(outcome, ref, version, patients))
	for i := 1; i < len(patients); i++ {
		list = append(list, a.event(outcome, ref, version, patients[i:i+1]))
	}
	return list
}

// refuse records why the attempt failed, and returns what the caller gets to see.
func (a *attempt) refuse(ctx context.Context, cause *Error) error {
	outcome := audit.MinorFailure
	if cause.Kind == Unavailable || cause.Kind == Integrity {
		outcome = audit.SeriousFailure
	}
	var patients []string
	if a.patient != "" {
		patients = []string{a.patient}
	}
	e := a.event(outcome, a.ref, a.version, patients)
	e.OutcomeDesc = cause.Kind.String()
	e.Correlation = a.intent
	e.Classes = nil // nothing was touched
	// The request may be over by now (a deadline is a frequent cause); its event is not optional.
	ctx = context.WithoutCancel(ctx)
	receipt, err := a.record(ctx, a.level.Other, e)
	if err != nil && cause.Kind != Unavailable {
		cause = err
	}
	if t := a.caller.Trace; t != nil && err == nil {
		t.Refusal = receipt.Events()[0].ID
	}
	if cause.Kind == Unavailable || cause.Kind == Integrity {
		a.logger.LogAttrs(ctx, slog.LevelError, "records: call failed", slog.String("interaction", a.verb.interaction),
			slog.String("request_id", a.caller.RequestID), slog.String("kind", cause.Kind.String()), slog.Any("err", cause.Err))
	}
	a.finish()
	return cause
}

// record waits until the events are durable.
func (a *attempt) record(ctx context.Context, level audit.Level, events ...*audit.Event) (audit.Receipt, *Error) {
	for _, e := range events {
		a.tellExport(e)
		a.tellConfines(e)
	}
	since := a.clock()
	receipt, err := a.log.Record(ctx, level, events...)
	a.trace.Audit += a.clock() - since
	if err != nil {
		return audit.Receipt{}, unavailable(err)
	}
	return receipt, nil
}

// outcome tells what became of intents.
func (a *attempt) outcome(ctx context.Context, ref Ref, version int64, patients []string) {
	e := a.event(audit.Success, ref, version, patients)
	e.Correlation = a.intent
	// The change is committed and its intent, which describes the disclosure, is durable. An answer that denied the change
	// would be wrong, so a lost outcome shows as an intent without one, and here.
	if _, err := a.record(context.WithoutCancel(ctx), audit.Process, e); err != nil {
		a.logger.LogAttrs(ctx, slog.LevelError, "records: outcome of a committed change not recorded",
			slog.String("request_id", a.caller.RequestID), slog.Any("err", err.Err))
	}
}

// finish adds the parts up where the caller asked for them.
func (a *attempt) finish() {
	if t := a.caller.Trace; t != nil {
		t.Decision += a.trace.Decision
		t.Database += a.trace.Database
		t.Crypto += a.trace.Crypto
		t.Audit += a.trace.Audit
		if a.decision.Emergency != "" {
			t.Emergency = a.decision.Emergency
		}
	}
	a.trace = Trace{}
}

// broken withholds a row that does not open.
func (a *attempt) broken(ctx context.Context, row *Sealed, err error) *Error {
	if e := a.alert(ctx, row, "a stored row does not open"); e != nil {
		return e
	}
	return fail(Integrity, "exception", "the stored record failed its integrity check and is withheld").because(err)
}

// alert records that somebody edited the database, and counts towards the alarm. The event names the row and its key, never
// bytes.
func (a *attempt) alert(ctx context.Context, row *Sealed, what string) *Error {
	e := a.event(audit.SeriousFailure, row.Ref, row.Version, row.Patients)
	e.Type = audit.TypeSecurityAlert
	e.Interaction = "phi.integrity_failure"
	e.Action = audit.ActionExecute
	e.OutcomeDesc = what
	e.Entities = append(e.Entities, audit.Entity{Type: "key", ID: row.Key.KEK, Version: int64(row.KeyID)})
	a.ring(ctx)
	_, err := a.record(context.WithoutCancel(ctx), a.level.Disclosure, e)
	return err
}

// stored turns what a Storage returned into an Error.
func stored(err error) *Error {
	switch {
	case errors.Is(err, ErrNotFound):
		return notFound()
	case errors.Is(err, ErrVersion), errors.Is(err, ErrGuard), errors.Is(err, ErrKey):
		return changed().because(err)
	}
	return unavailable(err)
}

// newEventID makes a UUID version 7 (RFC 9562 section 5.7), for intents, whose outcome must name them.
func newEventID(now time.Time) (id audit.ID) {
	rand.Read(id[:])
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

func micros(d time.Duration) uint32 { return uint32(min(max(d.Microseconds(), 0), 1<<32-1)) }

// isCode reports whether s looks like a code of HL7's purposes of use. It comes from the caller, and other text has no
// place in an event.
func isCode(s string) bool {
	for i := range len(s) {
		if (s[i] < 'A' || s[i] > 'Z') && (s[i] < '0' || s[i] > '9') {
			return false
		}
	}
	return len(s) <= 16
}

// classNames lists the classes of a set, in column order.
func classNames(s ClassSet) []string {
	if s == AllClasses {
		return allClassNames
	}
	var names []string
	for c := range Class(NumClasses) {
		if s.Has(c) {
			names = append(names, c.String())
		}
	}
	return names
}

var allClassNames = []string{
	ClassIdentifier.String(), ClassName.String(), ClassBirthDate.String(), ClassContact.String(), ClassClinical.String(),
	ClassNarrative.String(),
}

// sortedKeys gives events and writes an order that does not depend on map iteration.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
