package phi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// MergeState is how far a merge got. It is stored, so that a merge that was killed goes on where it was.
type MergeState string

// The states of a merge, in order.
const (
	Merging   MergeState = "merging"
	Merged    MergeState = "merged"
	Unmerging MergeState = "unmerging"
	Unmerged  MergeState = "unmerged"
)

// Merge makes one chart of two that were kept of one person. Every record in the source's compartment gets a version that refers to the
// target; it and the versions before are sealed under the target's keys, so that erasing the target erases all of it; and the
// source's own keys are destroyed when nothing is under them any more.
type Merge struct {
	ID             UUID
	Source, Target string // logical ids
	SourceSubject  UUID   // what the source's records are under while they wait
	TargetSubject  UUID
	TargetVersion  int64 // of the target, before
	State          MergeState
	By             string
	Begun          time.Time
}

// MovedRow is a version that a merge found in the source's chart, and whose it was.
type MovedRow struct {
	Ref
	Version  int64
	Patients []string
}

// Rehomed is a row that moves: as it is to be, and the subject and key that it is under until now.
type Rehomed struct {
	*Sealed
	FromSubject UUID
	FromKey     uint32
	FromPatient []string // its patients until now
	Superseded  bool
}

// MergeStorage is what merges need of the storage. Every method is a transaction of its own. Errors are those of Storage, and ErrMerge.
type MergeStorage interface {
	// MergeOf returns the merge of a source that was not undone; ErrNotFound.
	MergeOf(ctx context.Context, source string) (*Merge, error)
	// UnfinishedMerges returns those that are merging or unmerging.
	UnfinishedMerges(ctx context.Context) ([]*Merge, error)
	// Claim reserves a merge for the caller until release; ok is false while somebody else works on it.
	Claim(ctx context.Context, id UUID) (release func(), ok bool, err error)
	// BeginMerge stores a merge, and gives whoever was granted a relationship with the source one with the target. When it
	// returns, no write that names the source among several patients, and began before, is still to come. ErrMerge: the source or the target
	// is in a merge that does not allow it. ErrKey: one of them was erased.
	BeginMerge(ctx context.Context, m *Merge) error
	// BeginUnmerge sets a merge to unmerging, with the subject that the source gets. ErrMerge: the target is merged itself, or the merge is
	// not done. ErrKey: the person was erased.
	BeginUnmerge(ctx context.Context, id UUID, sourceSubject UUID) error
	// Compartment returns current, not deleted records in a patient's compartment, but the patient, in order.
	Compartment(ctx context.Context, patient string, after Ref, limit int) ([]Ref, error)
	// NoteMoved adds to what an unmerge gives back; a version that is noted stays as it was noted first.
	NoteMoved(ctx context.Context, id UUID, rows []MovedRow) error
	// MovedRecords returns, of each record that a merge moved, the newest version noted, in order.
	MovedRecords(ctx context.Context, id UUID, after Ref, limit int) ([]MovedRow, error)
	// MovedPatients returns whose a version was that a merge noted; ErrNotFound.
	MovedPatients(ctx context.Context, id UUID, ref Ref, version int64) ([]string, error)
	// WaitingRows returns superseded rows and tombstones of a subject, whole, with their keys: of the records refs only, unless nil.
	WaitingRows(ctx context.Context, subject UUID, refs []Ref, limit int) ([]Rehomed, error)
	// StoreRehomed replaces rows that still are under the subject and key that they were under, and notes those that a merge
	// moves (note) in the same transaction. ErrKey: the key they go under is not there any more.
	StoreRehomed(ctx context.Context, id UUID, rows []Rehomed, note bool) (int, error)
	// FinishMerge destroys the keys of the source's subject and ends the merge, unless a row is under them or names the source
	// still: then it does nothing, and returns false.
	FinishMerge(ctx context.Context, id UUID) (bool, error)
	// FinishUnmerge ends it, and takes back the relationships that the merge gave.
	FinishUnmerge(ctx context.Context, id UUID) error
	// MadeSince returns records in the target's compartment that came after a merge began, and that it did not move.
	MadeSince(ctx context.Context, id UUID, limit int) ([]Ref, error)
	Close()
}

// ErrMerge says that patients are in a merge that does not allow what is asked.
var ErrMerge = errors.New("phi: the patients are in another merge")

// Merges is the door to merging patients. Safe for concurrent use. Every call records its own events; every error is an *Error.
type Merges struct {
	records *Records
	open    func(context.Context) (MergeStorage, error)
	level   audit.Level
}

// MergeConfig configures Merges.
type MergeConfig struct {
	Records *Records
	Open    func(context.Context) (MergeStorage, error) // for the time of one call
	Level   audit.Level                                 // of the events before a merge begins; audit.Database when 0
}

// NewMerges prepares Merges.
func NewMerges(cfg MergeConfig) *Merges {
	m := &Merges{records: cfg.Records, open: cfg.Open, level: cfg.Level}
	if m.level == 0 {
		m.level = audit.Database
	}
	return m
}

// MergeRequest asks for a merge or an unmerge.
type MergeRequest struct {
	Source, Target string // logical ids
	Result         []byte // the target as it shall be, a Patient with a "replaces" link to the source; nil: made of both
	Preview        bool   // say what would be done
}

// MergeOutcome is what a merge did.
type MergeOutcome struct {
	Result *Resource // the target, as the caller may see it; nil when the caller may not
	Moved  int       // records
	Done   bool      // false: it goes on in the background
	Stayed []Ref     // of an unmerge: records that stay with the target
}

var (
	verbMerge   = verb{"patient-merge", audit.ActionUpdate, auth.Update}
	verbUnmerge = verb{"patient-unmerge", audit.ActionUpdate, auth.Update}
)

// capabilityMerge is what a role needs to merge patients, beside reach of both.
const capabilityMerge = "patient:merge"

// Bounds of a merge: records a transaction, and how often a batch is tried that others write at the same time.
const (
	mergeBatch = 50
	mergeTries = 10
)

// Merge merges the source into the target, after FHIR's Patient-merge
// (https://build.fhir.org/patient-operation-merge.html). Asked for again, it goes on with what was begun.
func (x *Merges) Merge(ctx context.Context, c *Caller, req MergeRequest) (*MergeOutcome, error) {
	return x.run(ctx, c, verbMerge, req, (*mover).merge)
}

// Unmerge gives back to the source what the merge into the target moved. Records that came later, and those that cannot be told apart, stay
// with the target and are named.
func (x *Merges) Unmerge(ctx context.Context, c *Caller, req MergeRequest) (*MergeOutcome, error) {
	return x.run(ctx, c, verbUnmerge, req, (*mover).unmerge)
}

// Resume goes on with merges that were interrupted, on behalf of the deployment, and returns how many it finished. Those that somebody works on are left
// to them.
func (x *Merges) Resume(ctx context.Context, c *Caller) (finished int, err error) {
	st, err := x.open(ctx)
	if err != nil {
		return 0, unavailable(err)
	}
	unfinished, err := st.UnfinishedMerges(ctx)
	st.Close()
	if err != nil {
		return 0, unavailable(err)
	}
	var failed error
	for _, m := range unfinished {
		req := MergeRequest{Source: m.Source, Target: m.Target}
		out, err := &MergeOutcome{}, error(nil)
		if m.State == Merging {
			out, err = x.Merge(ctx, c, req)
		} else {
			out, err = x.Unmerge(ctx, c, req)
		}
		if failed = errors.Join(failed, err); err == nil && out.Done {
			finished++
		}
	}
	return finished, failed
}

func (x *Merges) run(ctx context.Context, c *Caller, v verb, req MergeRequest, work func(*mover, context.Context) (*MergeOutcome, *Error)) (*MergeOutcome, error) {
	a := x.records.begin(c, v, Ref{"Patient", req.Source})
	a.kind = audit.TypePolicy
	st, err := x.open(ctx)
	if err != nil {
		return nil, a.refuse(ctx, unavailable(err))
	}
	defer st.Close()
	m := &mover{attempt: a, st: st, req: req, level: x.level}
	out, e := m.authorised(ctx, work)
	if e != nil {
		return nil, a.refuse(ctx, e)
	}
	a.finish()
	return out, nil
}

// mover is one merge or unmerge at work.
type mover struct {
	*attempt
	st             MergeStorage
	req            MergeRequest
	level          audit.Level
	seen           view // what the caller may see of a patient
	source, target *Sealed
	of             *Merge
	receipt        audit.Receipt
	moved          int
}

// authorised decides whether the caller may, fetches both patients, and does the work.
func (m *mover) authorised(ctx context.Context, work func(*mover, context.Context) (*MergeOutcome, *Error)) (*MergeOutcome, *Error) {
	if !fhir.ValidID(m.req.Source) || !fhir.ValidID(m.req.Target) || m.req.Source == m.req.Target {
		m.ref.ID = ""
		return nil, invalid("value", "source and target are two different patients, as Patient/id")
	}
	may := m.access.May(m.caller.Principal, capabilityMerge)
	if m.decision = may; !may.Allowed {
		return nil, denied()
	}
	for _, id := range []string{m.req.Source, m.req.Target} {
		// The token's scopes let the caller write patients; and both patients are the caller's to see.
		if e := m.permit(auth.Create, "Patient"); e != nil {
			return nil, e
		}
		whole := !m.confined() // a merge moves all that is in a chart, and a part of it cannot be moved
		if e := m.admit(ctx, auth.Read, "Patient", []string{id}, segmentGeneral, notFound); e != nil {
			return nil, e
		}
		if !whole || m.confined() {
			m.decision.Allowed, m.decision.Reason = false, auth.ReasonScope
			return nil, denied()
		}
	}
	m.seen = m.view
	may.Purpose = m.decision.Purpose
	m.decision, m.view, m.patient = may, view{classes: AllClasses}, m.req.Source
	if e := m.fetchBoth(ctx); e != nil {
		return nil, e
	}
	return work(m, ctx)
}

func (m *mover) fetchBoth(ctx context.Context) *Error {
	rows, err := m.storage.FetchMany(ctx, []Ref{{"Patient", m.req.Source}, {"Patient", m.req.Target}}, AllClasses)
	if err != nil {
		return stored(err)
	}
	m.source, m.target = nil, nil
	for _, row := range rows {
		switch {
		case row.Erased:
			return erased()
		case row.Deleted():
			return gone()
		}
		if e := m.verify(ctx, row); e != nil {
			return e
		}
		if row.ID == m.req.Source {
			m.source = row
		} else {
			m.target = row
		}
	}
	if m.source == nil || m.target == nil {
		return notFound()
	}
	return nil
}

// tell records, as durable as key changes are, that a merge begins (Intent) or what became of it. One event names the source, one the
// target; the receipt covers the records of both.
func (m *mover) tell(ctx context.Context, outcome audit.Outcome) *Error {
	var events []*audit.Event
	correlation := audit.ID{}
	if outcome != audit.Intent {
		correlation = m.receipt.Events()[0].Correlation
	}
	for _, pair := range [][2]string{{m.req.Source, m.req.Target}, {m.req.Target, m.req.Source}} {
		e := m.event(outcome, Ref{"Patient", pair[0]}, 0, []string{pair[0], pair[1]})
		e.ID = newEventID(m.now())
		if correlation == (audit.ID{}) {
			correlation = e.ID
		}
		e.Correlation = correlation
		events = append(events, e)
	}
	receipt, e := m.record(ctx, m.level, events...)
	if outcome == audit.Intent {
		m.receipt = receipt
	}
	return e
}

// merge begins a merge, or takes it up, and moves what there is to move.
func (m *mover) merge(ctx context.Context) (*MergeOutcome, *Error) {
	known, err := m.st.MergeOf(ctx, m.req.Source)
	if err == nil {
		if e := m.genuine(ctx, known); e != nil {
			return nil, e
		}
	}
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return nil, unavailable(err)
	case err == nil && (known.Target != m.req.Target || known.State == Unmerging), known == nil && (m.source.merged() || m.target.merged()):
		return nil, conflicting()
	case known != nil && known.State == Merged:
		return m.outcome(ctx, true)
	}
	if m.req.Preview {
		return m.preview(ctx)
	}
	if known == nil {
		if e := m.tell(ctx, audit.Intent); e != nil {
			return nil, e
		}
		// The result is made before anything is begun: what is wrong with it is said now.
		if _, e := m.result(ctx); e != nil {
			return nil, e
		}
		by := ""
		if p := m.caller.Principal; p != nil {
			by = p.Subject
		}
		known = &Merge{
			Source: m.req.Source, Target: m.req.Target, SourceSubject: m.source.Subject, TargetSubject: m.target.Subject,
			TargetVersion: m.target.Version, State: Merging, By: by, Begun: m.now().UTC().Truncate(time.Microsecond),
		}
		known.ID = m.mergeID(known)
		switch err := m.st.BeginMerge(ctx, known); {
		case errors.Is(err, ErrMerge):
			return nil, conflicting()
		case err != nil:
			return nil, stored(err)
		}
	}
	m.of = known
	return m.finishing(ctx, m.moveAll)
}

// mergeID is the id of a merge: a keyed digest of what does not change of it. Interrupted merges are taken up from the database, and who
// writes there must not have us move charts.
func (m *mover) mergeID(of *Merge) UUID {
	return UUID(m.keyed("merge", fmt.Appendf(nil, "%q %q %x %d %q %d", of.Source, of.Target, of.TargetSubject, of.TargetVersion, of.By, of.Begun.UnixMicro())))
}

// genuine refuses, with an alert, a stored merge that was not begun by this deployment.
func (m *mover) genuine(ctx context.Context, known *Merge) *Error {
	if known.ID == m.mergeID(known) && (known.State != Merging || m.source.merged() || m.source.Subject == known.SourceSubject) {
		return nil
	}
	if e := m.alert(ctx, m.source, "a stored merge is not one that was begun here"); e != nil {
		return e
	}
	return fail(Integrity, "exception", "the stored merge failed its integrity check")
}

func conflicting() *Error {
	return fail(Conflict, "business-rule", "one of the patients is in another merge")
}

// finishing does the rest of the work under a claim, and tells how it ended.
func (m *mover) finishing(ctx context.Context, rest func(context.Context) (bool, *Error)) (*MergeOutcome, *Error) {
	release, ok, err := m.st.Claim(ctx, m.of.ID)
	if err != nil {
		return nil, unavailable(err)
	}
	if !ok { // somebody else is at it, and tells
		return &MergeOutcome{}, nil
	}
	defer release()
	switch now, err := m.st.MergeOf(ctx, m.req.Source); {
	case err != nil && !errors.Is(err, ErrNotFound):
		return nil, unavailable(err)
	case err != nil || now.ID != m.of.ID || now.State != m.of.State: // somebody else has ended it, and told
		return &MergeOutcome{}, nil
	}
	if len(m.receipt.Events()) == 0 { // taken up
		if e := m.tell(ctx, audit.Intent); e != nil {
			return nil, e
		}
	}
	done, e := rest(ctx)
	if e != nil && ctx.Err() == nil && !errors.Is(e, ErrVersion) {
		return nil, e
	}
	if done = done && e == nil; done { // otherwise the caller's time is over, or others write all the time: the next who takes it up goes on
		if e := m.tell(context.WithoutCancel(ctx), audit.Success); e != nil {
			return nil, e
		}
	}
	return m.outcome(context.WithoutCancel(ctx), done)
}

// outcome shows the target as the caller may see it.
func (m *mover) outcome(ctx context.Context, done bool) (*MergeOutcome, *Error) {
	out := &MergeOutcome{Moved: m.moved, Done: done}
	read := m.begin(m.caller, verbRead, Ref{"Patient", m.req.Target})
	defer read.finish()
	res, e := read.read(ctx)
	if e == nil {
		out.Result = res
	} else if e.Kind == Unavailable || e.Kind == Integrity {
		return nil, e
	}
	return out, nil
}

// preview counts what a merge would move.
func (m *mover) preview(ctx context.Context) (*MergeOutcome, *Error) {
	for after := (Ref{}); ; {
		refs, err := m.st.Compartment(ctx, m.req.Source, after, 1000)
		if err != nil {
			return nil, unavailable(err)
		}
		m.moved += len(refs)
		if len(refs) < 1000 {
			return m.outcome(ctx, true)
		}
		after = refs[len(refs)-1]
	}
}

// moveAll marks the source, moves its chart, and ends the merge when nothing is left. It may be begun anew at any step.
func (m *mover) moveAll(ctx context.Context) (bool, *Error) {
	if e := m.again(ctx, func() *Error { return m.mark(ctx) }); e != nil {
		return false, e
	}
	for {
		before := m.moved
		if e := m.eachBatch(ctx, m.moveBatch); e != nil {
			return false, e
		}
		rows, e := m.rehomeAll(ctx, m.of.SourceSubject, nil, keyName{subject: m.of.TargetSubject}, m.towardsTarget)
		if e != nil {
			return false, e
		}
		done, err := m.st.FinishMerge(ctx, m.of.ID)
		switch {
		case err != nil:
			return false, unavailable(err)
		case done:
			return true, nil
		case rows == 0 && m.moved == before:
			// Rows that are in no compartment, and still under the source's keys: not by our doing.
			return false, fail(Integrity, "exception", "records of the source are not in its compartment; a sweep names them")
		}
	}
}

// mark makes the source one that was replaced, and the target the one that replaces it, in one commit. From then on no write that names the
// source passes.
func (m *mover) mark(ctx context.Context) *Error {
	if e := m.fetchBoth(ctx); e != nil || m.source.merged() {
		return e
	}
	target, e := m.result(ctx)
	if e != nil {
		return e
	}
	source, e := m.content(ctx, m.source)
	if e != nil {
		return e
	}
	source, e = edited(source, map[string]string{
		"active": "false",
		"link":   `[{"other":{"reference":"Patient/` + m.req.Target + `"},"type":"replaced-by"}` + others(source, m.req.Target) + `]`,
	})
	if e != nil {
		return e
	}
	if err := m.st.NoteMoved(ctx, m.of.ID, []MovedRow{{m.source.Ref, m.source.Version, m.source.Patients}}); err != nil {
		return unavailable(err)
	}
	changes := []*change{
		m.changing(m.source, source, []string{m.req.Source, m.req.Target}),
		m.changing(m.target, target, []string{m.req.Target}),
	}
	changes[0].under = &m.of.TargetSubject
	if e := m.assignKeys(ctx, changes, nil); e != nil {
		return e
	}
	if e := m.put(ctx, changes); e != nil {
		return e
	}
	return m.fetchBoth(ctx)
}

// changing is a change that a merge makes to a record.
func (m *mover) changing(row *Sealed, resource *fhir.Resource, patients []string) *change {
	return &change{
		verb: m.verb, ref: row.Ref, resource: resource, current: row, patients: patients, decision: m.decision, view: view{classes: AllClasses},
	}
}

// content opens a whole record, as it was written.
func (m *mover) content(ctx context.Context, row *Sealed) (*fhir.Resource, *Error) {
	aead, e := m.aead(ctx, row)
	if e != nil {
		return nil, e
	}
	mem := m.memory.Get().(*[]byte)
	defer m.giveBack(mem)
	var plain [NumClasses][]byte
	if err := openRow(aead, row, AllClasses, m.receipt, &plain, mem); err != nil {
		return nil, m.broken(ctx, row, err)
	}
	elements, err := join(&plain, nil)
	if err != nil {
		return nil, m.broken(ctx, row, err)
	}
	resource, issues := fhir.Parse(fhir.Assemble(nil, row.Type, row.ID, nil, elements))
	if issues != nil {
		return nil, m.broken(ctx, row, errIntegrity)
	}
	return resource, nil
}

// result is the target as it shall be: as the caller says, or with a link to the source and the source's identifiers as old ones.
func (m *mover) result(ctx context.Context) (*fhir.Resource, *Error) {
	link := `{"other":{"reference":"Patient/` + m.req.Source + `"},"type":"replaces"}`
	if m.req.Result != nil {
		if !m.seen.full() {
			return nil, fail(Unprocessable, "forbidden", "who sees a part of a patient cannot say what the result is")
		}
		resource, e := parseBody(m.req.Result, "Patient")
		if e != nil {
			return nil, e
		}
		replaces := false
		for _, l := range gjson.GetBytes(resource.Text(), "link").Array() {
			id, _ := patientReference(l.Get("other.reference").String())
			replaces = replaces || id == m.req.Source && l.Get("type").String() == "replaces"
		}
		if resource.ID != m.req.Target || !replaces {
			return nil, fail(Unprocessable, "business-rule", "the result is the target, with a link that says that it replaces the source")
		}
		return resource, nil
	}
	target, e := m.content(ctx, m.target)
	if e != nil {
		return nil, e
	}
	source, e := m.content(ctx, m.source)
	if e != nil {
		return nil, e
	}
	known := map[string]bool{}
	var identifiers []string
	for _, id := range gjson.GetBytes(target.Text(), "identifier").Array() {
		known[identified(id.Get("system").String(), id.Get("value").String())] = true
		identifiers = append(identifiers, id.Raw)
	}
	for _, id := range gjson.GetBytes(source.Text(), "identifier").Array() {
		if !known[identified(id.Get("system").String(), id.Get("value").String())] {
			old := `{"use":"old"}`
			if rest := filterObject([]byte(id.Raw), func(name string, value gjson.Result) (string, bool) {
				return value.Raw, name != "use" && name != "_use"
			}); rest != nil {
				old = `{"use":"old",` + string(rest[1:])
			}
			identifiers = append(identifiers, old)
		}
	}
	with := map[string]string{"link": `[` + link + others(target, m.req.Source) + `]`}
	if len(identifiers) > 0 {
		with["identifier"] = `[` + strings.Join(identifiers, ",") + `]`
	}
	return edited(target, with)
}

// others are a patient's links but those to one other, each with a comma before it.
func others(patient *fhir.Resource, but string) string {
	var b strings.Builder
	for _, l := range gjson.GetBytes(patient.Text(), "link").Array() {
		if id, _ := patientReference(l.Get("other.reference").String()); id != but {
			b.WriteByte(',')
			b.WriteString(l.Raw)
		}
	}
	return b.String()
}

// edited is a resource with elements replaced or added; "" removes one. Extensions of a primitive that is replaced go with it.
func edited(r *fhir.Resource, with map[string]string) (*fhir.Resource, *Error) {
	var elements []fhir.Element
	done := map[string]bool{}
	for _, e := range r.Elements {
		text, replaced := with[e.Name]
		_, shadow := with[strings.TrimPrefix(e.Name, "_")]
		switch {
		case replaced && text != "":
			elements = append(elements, fhir.Element{Name: e.Name, Raw: []byte(text)})
		case !replaced && !shadow:
			elements = append(elements, e)
		}
		done[e.Name] = true
	}
	for _, name := range sortedKeys(with) {
		if !done[name] && with[name] != "" {
			elements = append(elements, fhir.Element{Name: name, Raw: []byte(with[name])})
		}
	}
	resource, issues := fhir.Parse(fhir.Assemble(nil, r.Type, r.ID, nil, elements))
	if issues != nil {
		return nil, unavailable(fmt.Errorf("editing %s: it does not parse", r.Type))
	}
	return resource, nil
}

// eachBatch goes over the source's compartment.
func (m *mover) eachBatch(ctx context.Context, move func(context.Context, []Ref) *Error) *Error {
	for after := (Ref{}); ; {
		refs, err := m.st.Compartment(ctx, m.req.Source, after, mergeBatch)
		if err != nil {
			return unavailable(err)
		}
		if len(refs) == 0 {
			return nil
		}
		after = refs[len(refs)-1]
		if e := m.again(ctx, func() *Error { return move(ctx, refs) }); e != nil {
			return e
		}
	}
}

// again does a batch until nobody else has written to it meanwhile.
func (m *mover) again(ctx context.Context, batch func() *Error) (e *Error) {
	for range mergeTries {
		if e = batch(); e == nil || e.Kind != Conflict || ctx.Err() != nil {
			return e
		}
	}
	return unavailable(e)
}

// moveBatch gives records of the source a version that refers to the target. That they were the source's is noted first: killed in between, the
// merge finds them where they were.
func (m *mover) moveBatch(ctx context.Context, refs []Ref) *Error {
	rows, err := m.storage.FetchMany(ctx, refs, AllClasses)
	if err != nil {
		return stored(err)
	}
	var changes []*change
	var note []MovedRow
	for _, row := range rows {
		if row.Erased || row.Deleted() || !slices.Contains(row.Patients, m.req.Source) {
			continue
		}
		if e := m.verify(ctx, row); e != nil {
			return e
		}
		resource, e := m.content(ctx, row)
		if e != nil {
			return e
		}
		resource = readdressed(resource, m.req.Source, m.req.Target)
		patients := patientsOf(resource)
		if row.Type == "Patient" { // one that was merged into the source before
			patients = substituted(row.Patients, m.req.Source, m.req.Target)
		}
		c := m.changing(row, resource, patients)
		if row.Type == "Patient" && row.Subject == m.of.SourceSubject {
			c.under = &m.of.TargetSubject
		}
		changes = append(changes, c)
		note = append(note, MovedRow{row.Ref, row.Version, row.Patients})
	}
	if len(changes) == 0 {
		return nil
	}
	if err := m.st.NoteMoved(ctx, m.of.ID, note); err != nil {
		return unavailable(err)
	}
	return m.store(ctx, changes)
}

// store commits the changes of a batch under the keys of the patients that they name first.
func (m *mover) store(ctx context.Context, changes []*change) *Error {
	there := map[Ref]*Sealed{{"Patient", m.req.Source}: m.source, {"Patient", m.req.Target}: m.target}
	var ask []Ref
	for _, c := range changes {
		if len(c.patients) == 0 {
			return m.broken(ctx, c.current, errIntegrity) // its seal says that it names a patient
		}
		if first := (Ref{"Patient", c.patients[0]}); there[first] == nil && c.ref.Type != "Patient" {
			ask = append(ask, first)
		}
	}
	rows, err := m.storage.FetchMany(ctx, ask, 0)
	if err != nil {
		return stored(err)
	}
	for _, row := range rows {
		if e := m.verify(ctx, row); e != nil {
			return e
		}
		there[row.Ref] = row
	}
	for _, ref := range ask {
		if there[ref] == nil {
			return fail(Conflict, "not-found", "a patient that a record names is not there")
		}
	}
	if e := m.assignKeys(ctx, changes, there); e != nil {
		return e
	}
	if e := m.put(ctx, changes); e != nil {
		return e
	}
	m.moved += len(changes)
	return nil
}

// put commits changes, and clears what they held.
func (m *mover) put(ctx context.Context, changes []*change) *Error {
	if e := m.commit(ctx, changes, nil); e != nil {
		return e
	}
	for _, c := range changes {
		c.forget()
	}
	return nil
}

// readdressed is a resource in which references to one patient are to another.
func readdressed(r *fhir.Resource, from, to string) *fhir.Resource {
	return r.Rewrite(func(reference string) (string, bool) {
		id, ok := patientReference(reference)
		return "Patient/" + to, ok && id == from
	})
}

// substituted is a list of patients in which one stands for another, once.
func substituted(patients []string, from, to string) []string {
	var list []string
	for _, p := range patients {
		if p == from {
			p = to
		}
		if !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// towardsTarget says whose a version of the source's is from now on. The source itself stays whose it was, and becomes the target's, too.
func (m *mover) towardsTarget(row *Rehomed) ([]string, *Error) {
	if row.Type == "Patient" && row.ID == m.req.Source {
		return []string{m.req.Source, m.req.Target}, nil
	}
	return substituted(row.Patients, m.req.Source, m.req.Target), nil
}

// rehomeAll seals what waits under a subject under another one's keys, version by version, and returns how many rows those were.
func (m *mover) rehomeAll(ctx context.Context, from UUID, refs []Ref, to keyName, whose func(*Rehomed) ([]string, *Error)) (moved int, e *Error) {
	for fruitless := 0; fruitless < mergeTries; {
		rows, err := m.st.WaitingRows(ctx, from, refs, mergeBatch)
		if err != nil {
			return moved, unavailable(err)
		}
		if len(rows) == 0 {
			return moved, nil
		}
		ring := keyring{m.attempt, map[keyName]dataKey{}, map[UUID]bool{}}
		for i := range rows {
			if e := m.rehome(ctx, ring, &rows[i], to, whose); e != nil {
				return moved, e
			}
		}
		n, err := m.st.StoreRehomed(ctx, m.of.ID, rows, m.verb == verbMerge)
		if err != nil && !errors.Is(err, ErrKey) {
			return moved, unavailable(err)
		}
		moved += n
		if fruitless++; n > 0 {
			fruitless = 0
		}
	}
	return moved, changed()
}

func (m *mover) rehome(ctx context.Context, ring keyring, row *Rehomed, to keyName, whose func(*Rehomed) ([]string, *Error)) *Error {
	aead, e := m.aead(ctx, row.Sealed)
	if e != nil {
		return e
	}
	patients, e := whose(row)
	if e != nil {
		return e
	}
	key, e := ring.key(ctx, &change{}, keyName{to.subject, row.Segment})
	if e != nil {
		return e
	}
	anew, err := rehome(aead, key.aead, row.Sealed, key.WrappedKey, nil, patients)
	if err != nil {
		return m.broken(ctx, row.Sealed, err)
	}
	row.Sealed = anew
	return nil
}
