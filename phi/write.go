package phi

import (
	"context"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// change is one write on its way: what was asked for, what is there now, what will be stored. A single create, a
// transaction of thousands and an import all go this way.
type change struct {
	verb     verb
	ref      Ref
	resource *fhir.Resource // nil for a delete
	ifMatch  int64
	entry    int    // index in its bundle
	place    string // "Bundle.entry[3]", "" for a single write
	base     string // of its RESTful full URL, to which its relative references are relative; "" when it has none

	decision auth.Decision
	view     view
	segment  auth.Segment // that the decision was about
	about    string       // of whom it was, where that is not the first of patients
	patients []string
	current  *Sealed // current version, a tombstone too; nil when there is none
	existing *Sealed // what a conditional create matched: nothing is written
	same     bool    // nothing to do: deleted already, or imported already
	under    *UUID   // the subject that a merge moves a patient to; nil: the patient's own
	fresh    bool    // under is new, and comes with these changes

	consent consenting // of a Consent

	write Write
	plain [NumClasses][]byte
	aead  cipher.AEAD
	err   *Error
}

func (c *change) skipped() bool { return c.err != nil || c.existing != nil || c.same }

func (c *change) failed(e *Error) {
	if c.place != "" {
		e = e.within(c.place)
	}
	c.err = e
}

// Create stores a new record under a new id. ifNoneExist holds search parameters of a conditional create, or nil.
func (r *Records) Create(ctx context.Context, c *Caller, resourceType string, body []byte, ifNoneExist []Param) (*Written, error) {
	a := r.begin(c, verbCreate, Ref{Type: resourceType})
	w, e := a.create(ctx, body, ifNoneExist)
	return written(ctx, a, w, e)
}

func written(ctx context.Context, a *attempt, w *Written, e *Error) (*Written, error) {
	if e != nil {
		return nil, a.refuse(ctx, e)
	}
	a.finish()
	return w, nil
}

// conditionalTries bounds how often a conditional create looks again after it lost a race.
const conditionalTries = 3

func (a *attempt) create(ctx context.Context, body []byte, ifNoneExist []Param) (*Written, *Error) {
	if !fhir.Known(a.ref.Type) {
		a.ref = Ref{}
		return nil, fail(NotFound, "not-supported", "there is no such resource type")
	}
	if e := a.permit(auth.Create, a.ref.Type); e != nil {
		return nil, e
	}
	resource, e := parseBody(body, a.ref.Type)
	if e != nil {
		return nil, e
	}
	a.ref.ID = newUUID().String()
	var guards []*guard
	for range conditionalTries {
		c := &change{verb: verbCreate, ref: a.ref, resource: resource}
		if ifNoneExist != nil {
			if guards, e = a.condition(ctx, c, ifNoneExist); e != nil {
				return nil, e
			}
		}
		if e = a.write(ctx, []*change{c}, guards); e == nil {
			return a.written(ctx, c)
		}
		if !errors.Is(e.Err, ErrGuard) {
			return nil, e
		}
	}
	return nil, e
}

// Update stores a new version, creating the record when it does not exist (FHIR "update as create"). ifMatch is the version
// that must be current, 0 for any.
func (r *Records) Update(ctx context.Context, c *Caller, ref Ref, body []byte, ifMatch int64) (*Written, error) {
	a := r.begin(c, verbUpdate, ref)
	w, e := a.update(ctx, body, ifMatch)
	return written(ctx, a, w, e)
}

func (a *attempt) update(ctx context.Context, body []byte, ifMatch int64) (*Written, *Error) {
	if e := a.checkRef(); e != nil {
		return nil, e
	}
	if e := a.permit(auth.Update, a.ref.Type); e != nil {
		return nil, e
	}
	resource, e := parseBody(body, a.ref.Type)
	if e != nil {
		return nil, e
	}
	if resource.ID != a.ref.ID {
		return nil, invalid("value", "the id in the body is not the id in the address").at(a.ref.Type + ".id")
	}
	c := &change{verb: verbUpdate, ref: a.ref, resource: resource, ifMatch: ifMatch}
	if e := a.write(ctx, []*change{c}, nil); e != nil {
		return nil, e
	}
	return a.written(ctx, c)
}

// Delete stores a tombstone. Deleting what is deleted already succeeds. ifMatch as in Update.
func (r *Records) Delete(ctx context.Context, c *Caller, ref Ref, ifMatch int64) (*Written, error) {
	a := r.begin(c, verbDelete, ref)
	w, e := a.delete(ctx, ifMatch)
	return written(ctx, a, w, e)
}

func (a *attempt) delete(ctx context.Context, ifMatch int64) (*Written, *Error) {
	if e := a.checkRef(); e != nil {
		return nil, e
	}
	c := &change{verb: verbDelete, ref: a.ref, ifMatch: ifMatch}
	if e := a.write(ctx, []*change{c}, nil); e != nil {
		return nil, e
	}
	return a.written(ctx, c)
}

// parseBody parses and validates what is to be stored as a record of a type.
func parseBody(body []byte, resourceType string) (*fhir.Resource, *Error) {
	resource, issues := fhir.Parse(body)
	if issues != nil {
		return nil, &Error{Kind: Invalid, Issues: issues}
	}
	if resource.Type != resourceType {
		return nil, invalid("value", "the body is a resource of another type").at("resourceType")
	}
	return resource, validate(resource)
}

func validate(resource *fhir.Resource) *Error {
	if issues := resource.Validate(); issues != nil {
		return &Error{Kind: Unprocessable, Issues: issues}
	}
	if resource.Type == "Bundle" || resource.Type == "Parameters" {
		// They hold other people's records, in no compartment.
		return fail(Unprocessable, "not-supported", "records of this type are not kept").at(resource.Type)
	}
	for _, e := range resource.Elements {
		if e.Name == "meta" && gjson.GetBytes(e.Raw, `tag.#(code=="`+subsettedCode+`")`).Exists() {
			return fail(Unprocessable, "business-rule", "a resource tagged SUBSETTED is not whole and cannot be stored").at(resource.Type + ".meta.tag")
		}
	}
	return nil
}

// patientsOf returns the patients a record belongs to: those of FHIR's patient compartment, and where the compartment
// definition leaves a type out that names patients all the same (Device, Task, Contract, Binary), those. Otherwise such
// records would be nobody's, and open to everybody.
func patientsOf(r *fhir.Resource) []string {
	patients := r.Patients()
	if len(patients) > 0 {
		return patients
	}
	for _, ref := range r.References() {
		if id, ok := patientReference(ref.Value); ok && ofOwner(r, ref) && !slices.Contains(patients, id) {
			patients = append(patients, id)
		}
	}
	return patients
}

// ofOwner reports whether a reference stands where types outside the compartment say whom they are about.
func ofOwner(r *fhir.Resource, ref fhir.Reference) bool {
	element := strings.TrimPrefix(ref.Expression, r.Type+".")
	if end := strings.IndexAny(element, ".["); end >= 0 {
		element = element[:end]
	}
	return slices.Contains([]string{"patient", "subject", "for", "securityContext"}, element)
}

// belongs reports whether records of a type are somebody's. One that names no patient of ours is then not nobody's, but
// of a patient who cannot be told: those who need a relationship do not get to see it.
func belongs(resourceType string) bool {
	return resourceType != "Schedule" && (resourceType == "Binary" || fhir.InPatientCompartment(resourceType))
}

// unresolved returns where a record that is nobody's by its type names a patient all the same, in a form that leads to
// none of ours (another server's URL, an unresolved urn:uuid:); "" when it does not.
func unresolved(r *fhir.Resource) string {
	for _, ref := range r.References() {
		if !ofOwner(r, ref) {
			continue
		}
		contained, _ := strings.CutPrefix(ref.Value, "#")
		if strings.HasPrefix(ref.Value, "Patient?") || strings.Contains(ref.Value, "/Patient/") || strings.HasPrefix(ref.Value, "urn:") ||
			contained != ref.Value && gjson.GetBytes(r.Text(), `contained.#(id=="`+contained+`").resourceType`).String() == "Patient" {
			return ref.Expression
		}
	}
	return ""
}

// patientReference returns the id of a relative reference to a patient, versioned or not.
func patientReference(reference string) (string, bool) {
	id, ok := strings.CutPrefix(reference, "Patient/")
	if !ok {
		return "", false
	}
	id, _, _ = strings.Cut(id, "/_history/")
	return id, fhir.ValidID(id)
}

// write authorises, seals and commits changes: all or none. A failed change fails all, and its error is returned.
func (a *attempt) write(ctx context.Context, changes []*change, guards []*guard) *Error {
	if e := a.prepare(ctx, changes); e != nil {
		return e
	}
	for _, c := range changes {
		if c.err != nil {
			a.blame(c)
			return c.err
		}
	}
	return a.commit(ctx, changes, guards)
}

// blame makes the event of the refusal speak of the change at fault.
func (a *attempt) blame(c *change) {
	a.ref, a.version, a.decision, a.view, a.segment, a.patient = c.ref, 0, c.decision, c.view, c.segment, c.about
	if a.patient == "" && len(c.patients) > 0 {
		a.patient = c.patients[0]
	}
}

// prepare finds what is there, and decides about each change; those that may not go in have err set. It returns an error
// when it cannot tell.
func (a *attempt) prepare(ctx context.Context, changes []*change) *Error {
	there, e := a.present(ctx, changes)
	if e != nil {
		return e
	}
	for _, c := range changes {
		if c.skipped() {
			continue
		}
		c.current = there[c.ref]
		if e := a.authorise(ctx, c); e != nil {
			c.failed(e)
			if e.Kind == Unavailable {
				return e
			}
		}
	}
	a.checkPatients(changes, there)
	return a.assignKeys(ctx, changes, there)
}

// present fetches, in one round trip, the current versions of what is changed and of the patients that it names.
func (a *attempt) present(ctx context.Context, changes []*change) (map[Ref]*Sealed, *Error) {
	asked := map[Ref]bool{}
	var refs []Ref
	ask := func(ref Ref) {
		if !asked[ref] {
			asked[ref] = true
			refs = append(refs, ref)
		}
	}
	for _, c := range changes {
		if c.skipped() {
			continue
		}
		if c.verb.letter != auth.Create {
			ask(c.ref)
		}
		if c.resource != nil {
			if c.ref.Type == "Patient" {
				c.patients = []string{c.ref.ID}
				continue
			}
			c.patients = patientsOf(c.resource)
			for _, id := range c.patients {
				ask(Ref{"Patient", id})
			}
		}
	}
	there := make(map[Ref]*Sealed, len(refs))
	if len(refs) == 0 {
		return there, nil
	}
	since := a.clock()
	rows, err := a.storage.FetchMany(ctx, refs, 0)
	a.trace.Database += a.clock() - since
	if err != nil {
		return nil, unavailable(err)
	}
	for _, row := range rows {
		// Whose the record is, and under whose key new ones go, is about to be believed. That one was erased is said after the
		// caller was decided about.
		if !row.Erased {
			if e := a.verify(ctx, row); e != nil {
				return nil, e
			}
		}
		there[row.Ref] = row
	}
	return there, nil
}

// authorise decides about one change: on the type, on the patients it names, and on those of the version it replaces.
func (a *attempt) authorise(ctx context.Context, c *change) *Error {
	a.segment = auth.SegmentGeneral
	defer func() { c.decision, c.view, c.segment = a.decision, a.view, a.segment }()
	if e := a.permit(c.verb.letter, c.ref.Type); e != nil {
		return e
	}
	if c.verb.letter != auth.Create && !a.view.full() {
		// Who sees a part of a record cannot replace or remove the whole.
		return a.overrule(denied())
	}
	hidden := false
	if c.current != nil {
		switch e := a.reachable(ctx, c); {
		case e == nil:
			if e := a.checkRestriction(ctx, c); e != nil {
				return e
			}
		case e.Kind == NotFound:
			// What may not be known to exist is treated as what does not, up to the last: only that the id is taken has to be told.
			// The event says why.
			refusal, segment := a.decision, a.segment
			if len(c.current.Patients) > 0 {
				c.about = c.current.Patients[0]
			}
			hidden, c.current = true, nil
			defer func() { a.decision, a.segment = refusal, segment }()
		default:
			return e
		}
	}
	letter := c.verb.letter
	if letter == auth.Update && c.current == nil { // update as create
		letter = auth.Create
		if e := a.permit(letter, c.ref.Type); e != nil {
			return e
		}
	}
	if c.resource != nil {
		if e := a.authoriseContent(ctx, c, letter); e != nil {
			return e
		}
	}
	switch {
	case c.current != nil && c.current.Erased:
		return erased()
	case c.current != nil && c.current.merged():
		return fail(Conflict, "business-rule", "the patient was merged into another, and changes no more; unmerge first")
	case c.resource == nil && c.current == nil:
		return notFound()
	case c.ifMatch != 0 && (c.current == nil || c.current.Version != c.ifMatch):
		return precondition("conflict", "the record has another version")
	case hidden:
		return notFound()
	case c.resource == nil && c.current.Deleted():
		c.same = true
	}
	return nil
}

// reachable decides about the version that a change replaces or removes.
func (a *attempt) reachable(ctx context.Context, c *change) *Error {
	if e := a.admit(ctx, c.verb.letter, c.ref.Type, c.current.Patients, c.current.Segment, notFound); e != nil {
		return e
	}
	if !a.view.full() {
		return a.overrule(denied())
	}
	if a.confined() {
		return a.judge(ctx, c.current)
	}
	return nil
}

// authoriseContent decides by whom the new content says that it is about. What a record belongs to is named by the
// caller; whether that patient exists is not said to those who may not know.
func (a *attempt) authoriseContent(ctx context.Context, c *change, letter auth.Interaction) *Error {
	if len(c.patients) == 0 && !belongs(c.ref.Type) {
		if at := unresolved(c.resource); at != "" {
			return fail(Unprocessable, "not-found", "the patient that is referred to is not one of this server's").at(at)
		}
	}
	// One patient of several is enough to see a record, not to put it into the charts of the others: each that the version
	// before did not name is decided about.
	// Nor to say who treats them: a relative's physician sees a care team, and does not join it.
	if len(c.patients) > 1 {
		whose, _ := treated(c.resource)
		for _, patient := range c.patients {
			if patient != whose && c.current != nil && slices.Contains(c.current.Patients, patient) {
				continue
			}
			if e := a.admit(ctx, letter, c.ref.Type, []string{patient}, segmentGeneral, denied); e != nil {
				if c.about == "" {
					c.about = patient
				}
				return e
			}
		}
	}
	// What may be written need not be for the writer to read: of new content it is not asked whether its segment is open.
	e := a.admit(ctx, letter, c.ref.Type, c.patients, segmentGeneral, denied)
	if e != nil && e.Kind == Denied && len(c.patients) == 0 && belongs(c.ref.Type) {
		return fail(Unprocessable, "required", "a record of this type must refer to its patient, as Patient/id").at(c.ref.Type)
	}
	if e == nil && a.confined() && !a.inside(letter, c.patients, c.resource) {
		a.decision.Allowed, a.decision.Reason = false, auth.ReasonScope
		return denied()
	}
	if e != nil {
		return e
	}
	return a.checkConsent(ctx, c)
}

// errNoPatient is the cause that an import can wait for.
var errNoPatient = errors.New("phi: a patient that is referred to does not exist")

// checkPatients refuses records of patients who are not there.
func (a *attempt) checkPatients(changes []*change, there map[Ref]*Sealed) {
	arriving := map[string]*change{}
	for _, c := range changes {
		if c.ref.Type == "Patient" && c.err == nil {
			arriving[c.ref.ID] = c
		}
	}
	for _, c := range changes {
		if c.skipped() || c.resource == nil || c.ref.Type == "Patient" {
			continue
		}
		for _, id := range c.patients {
			known := there[Ref{"Patient", id}]
			exists := known != nil && !known.Deleted() && !known.Erased
			if exists && known.merged() {
				c.failed(fail(Unprocessable, "business-rule", "the patient that is referred to was merged into another: refer to that one").at(c.whereNamed(id)))
				break
			}
			if p := arriving[id]; p != nil {
				exists = p.resource != nil || p.existing != nil
			}
			if !exists {
				c.failed(fail(Unprocessable, "not-found", "the patient that is referred to does not exist").at(c.whereNamed(id)).because(errNoPatient))
				break
			}
		}
	}
}

// whereNamed is the expression of the reference to a patient.
func (c *change) whereNamed(patient string) string {
	for _, ref := range c.resource.References() {
		if id, ok := patientReference(ref.Value); ok && id == patient {
			return ref.Expression
		}
	}
	return c.ref.Type
}

// commit records the intents, seals, stores, and records the outcome.
func (a *attempt) commit(ctx context.Context, changes []*change, guards []*guard) *Error {
	unique, e := a.uniqueness(changes)
	if e != nil {
		return e
	}
	guards = slices.Concat(guards, unique)
	updated := a.now().UTC().Truncate(time.Millisecond)
	var events []*audit.Event
	var active []*change
	a.intent = audit.ID{} // a try that lost to another write announced versions that this one's outcome must not tell of
	for _, c := range changes {
		if c.skipped() {
			continue
		}
		c.fill(updated)
		if c.resource != nil {
			c.write.Digest = a.keyed("content", c.resource.Text())
		}
		active = append(active, c)
		events = append(events, a.intend(c, updated)...)
		if c.ref.Type == consentType {
			events = append(events, a.tellConsent(c, updated))
		}
	}
	if len(active) == 0 {
		if len(changes) == 1 && changes[0].same { // a delete of what is deleted already is an event all the same
			c := changes[0]
			_, e := a.record(ctx, a.level.Disclosure, a.event(audit.Success, c.ref, c.current.Version, c.current.Patients))
			return e
		}
		return nil
	}
	ticket, err := a.log.Submit(a.level.Disclosure, events...)
	if err != nil {
		return unavailable(err)
	}
	writes := make([]Write, len(active))
	for try := 1; ; try++ {
		var index *generations
		if index, err = a.generations(ctx); err != nil {
			return unavailable(err)
		}
		since := a.clock()
		for i, c := range active {
			c.mint(index.active)
			if err := sealRow(c.aead, &c.write.Sealed, &c.plain, tokensDigest(c.write.Tokens)); err != nil {
				return unavailable(err)
			}
			writes[i] = c.write
		}
		a.trace.Crypto += a.clock() - since
		since = a.clock()
		if _, err := ticket.Wait(ctx); err != nil {
			a.trace.Audit += a.clock() - since
			return unavailable(err)
		}
		a.trace.Audit += a.clock() - since
		since = a.clock()
		err = a.store(ctx, index, writes, guards)
		a.trace.Database += a.clock() - since
		if try == keyTries || !errors.Is(err, ErrKey) {
			break
		}
		a.KeysChanged() // it may have been the index generation
		if e := a.rekey(ctx, active); e != nil {
			return e
		}
	}
	if err != nil {
		e := stored(err)
		if conflict, ok := errors.AsType[*ConflictError](err); ok {
			if errors.Is(err, ErrGuard) && guards[conflict.Guard].brings != nil {
				return a.refused(guards[conflict.Guard])
			}
			for _, c := range active {
				if c.ref == conflict.Ref {
					a.blame(c)
					if c.ifMatch != 0 {
						e = precondition("conflict", "the record has another version").because(err)
					}
					if c.place != "" {
						e = e.within(c.place)
					}
				}
			}
		}
		return e
	}
	a.felt(ctx, active)
	if len(active) == 1 {
		c := active[0]
		a.decision, a.view = c.decision, c.view
		a.outcome(ctx, c.ref, c.write.Version, c.concerned())
	} else {
		a.outcome(ctx, a.ref, 0, nil)
	}
	a.intent = audit.ID{}
	return nil
}

// keyTries bounds how often a commit is sealed anew because its keys were rotated away meanwhile. A rotation retires a key once
// and then sweeps for a while, so the second try finds the next key in place.
const keyTries = 3

// rekey gives changes whose data key was rotated away between the seal and the commit the key that seals what is new now.
func (a *attempt) rekey(ctx context.Context, active []*change) *Error {
	keys := map[keyName]WrappedKey{}
	for _, c := range active {
		for _, k := range c.write.NewKeys {
			keys[keyName{k.Subject, k.Segment}] = k
		}
	}
	for _, c := range active {
		s := &c.write.Sealed
		name := keyName{s.Subject, s.Segment}
		k, ok := keys[name]
		if !ok {
			var err error
			since := a.clock()
			k, err = a.storage.Key(ctx, s.Subject, s.Segment)
			a.trace.Database += a.clock() - since
			switch {
			case errors.Is(err, ErrNotFound): // erased, or merged into another patient
				return changed().because(err)
			case err != nil:
				return unavailable(err)
			}
			keys[name] = k
		}
		aead, err := a.keys.Sealer(ctx, k.KEK, k.Wrapped, k.binding())
		if err != nil {
			return unavailable(err)
		}
		s.KeyID, s.Key, c.aead = k.KeyID, k, aead
	}
	return nil
}

// fill makes the row of a change, all but tokens, cells and seal.
func (c *change) fill(updated time.Time) {
	w := &c.write
	w.Ref, w.Version, w.Updated = c.ref, 1, updated
	w.Method = map[auth.Interaction]string{auth.Create: "POST", auth.Update: "PUT", auth.Delete: "DELETE"}[c.verb.letter]
	w.Row = newUUID()
	if c.current != nil {
		w.Row, w.Version, w.Expect = c.current.Row, c.current.Version+1, c.current.Version
	}
	if c.resource == nil {
		c.patients = c.current.Patients
	} else {
		w.Treats = treatments(c.resource, updated)
		c.consent = consentOf(c.resource)
		w.Consent, w.Rules = c.consent.patient, c.consent.rules
		c.plain = split(c.resource)
	}
	w.Patients = c.patients
}

// mint makes the tokens of a change, unless it has them.
func (c *change) mint(x *index) {
	w := &c.write
	if w.IndexID == x.ID {
		return
	}
	w.IndexID, w.Tokens = x.ID, nil
	if c.resource != nil {
		w.Tokens = x.tokens(c.resource.Type, c.resource.Elements)
	}
}

// concerned are the patients whose charts a change touches: those the record belongs to, and those it did before.
func (c *change) concerned() []string {
	patients := slices.Clone(c.patients)
	if c.current != nil {
		for _, patient := range c.current.Patients {
			if !slices.Contains(patients, patient) {
				patients = append(patients, patient)
			}
		}
	}
	return patients
}

// intend makes the Intent of a change, for each patient whose chart it touches. All intents of an attempt share the first
// one's id as Correlation.
func (a *attempt) intend(c *change, now time.Time) []*audit.Event {
	a.decision, a.view = c.decision, c.view
	events := a.events(audit.Intent, c.ref, c.write.Version, c.concerned())
	for _, e := range events {
		if a.kind == audit.TypeREST {
			e.Interaction = c.verb.interaction
		}
		e.Action = c.verb.action
		e.ID = newEventID(now)
		if a.intent == (audit.ID{}) {
			a.intent = e.ID
		}
		e.Correlation = a.intent
	}
	return events
}

// written shows the caller what became of a change, as far as the caller may see.
func (a *attempt) written(ctx context.Context, c *change) (*Written, *Error) {
	if c.existing != nil {
		res, e := a.showExisting(ctx, c)
		if e != nil {
			return nil, e
		}
		return &Written{Resource: res, Unchanged: true}, nil
	}
	if c.same {
		return &Written{Resource: &Resource{Ref: c.ref, Version: c.current.Version, Updated: c.current.Updated, Method: "DELETE", Deleted: true}, Unchanged: true}, nil
	}
	s := &c.write.Sealed
	if c.resource == nil {
		return &Written{Resource: &Resource{Ref: c.ref, Version: s.Version, Updated: s.Updated, Method: s.Method, Deleted: true}}, nil
	}
	a.view = c.view
	defer c.forget()
	var shown [NumClasses][]byte
	for class := range Class(NumClasses) {
		if a.view.classes.Has(class) {
			shown[class] = c.plain[class]
		}
	}
	elements, err := join(&shown, nil)
	if err != nil {
		return nil, a.broken(ctx, s, err)
	}
	return &Written{Resource: a.render(s, elements), Created: c.current == nil || c.current.Deleted(), Warnings: c.consent.warnings()}, nil
}

// forget clears what was sealed, when it is stored and whoever may see it has been shown it.
func (c *change) forget() {
	for class := range c.plain {
		clear(c.plain[class])
	}
	c.resource, c.plain, c.write.Cells = nil, [NumClasses][]byte{}, [NumClasses][]byte{}
}

// showExisting opens the record that a conditional create matched, under a read event of its own. To a caller who may
// create and not read, only that it exists is shown; for one to whom it does not exist the condition cannot hold.
func (a *attempt) showExisting(ctx context.Context, c *change) (*Resource, *Error) {
	read := a.begin(a.caller, verbRead, c.existing.Ref)
	defer read.finish()
	if e := read.permit(auth.Read, c.ref.Type); e != nil {
		if e.Kind != Denied {
			return nil, e
		}
		row := c.existing
		return &Resource{Ref: row.Ref, Version: row.Version, Updated: row.Updated, Method: row.Method}, nil
	}
	res, e := read.read(ctx)
	if e != nil && (e.Kind == NotFound || e.Kind == Gone) {
		return nil, precondition("duplicate", "the condition of the create does not hold")
	}
	return res, e
}

// newUUID makes a random (version 4) UUID.
func newUUID() (u UUID) {
	rand.Read(u[:])
	return u.versioned()
}

func (u UUID) versioned() UUID {
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// ParseUUID reads what String writes.
func ParseUUID(s string) (u UUID, err error) {
	id, err := audit.ParseID(s)
	return UUID(id), err
}

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(text []byte) (err error) {
	*u, err = ParseUUID(string(text))
	return err
}

// String is the usual form in lower-case hex.
func (u UUID) String() string {
	var s [36]byte
	hex.Encode(s[:], u[:4])
	hex.Encode(s[9:], u[4:6])
	hex.Encode(s[14:], u[6:8])
	hex.Encode(s[19:], u[8:10])
	hex.Encode(s[24:], u[10:])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}

// keyed is an HMAC-SHA256 under the import key, cut to 16 bytes; the label keeps its uses apart.
func (r *Records) keyed(label string, data []byte) (sum [16]byte) {
	mac := hmac.New(sha256.New, r.imports)
	mac.Write([]byte(label))
	mac.Write([]byte{0})
	mac.Write(data)
	copy(sum[:], mac.Sum(nil))
	return sum
}
