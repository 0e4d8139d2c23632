package phi

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// pageParam is the parameter that continues a listing.
const pageParam = "_page"

// Search returns current records of a type. A parameter "_page" holds a Page.Next and stands alone. strict refuses
// unknown parameters (Prefer: handling=strict) instead of warning.
func (r *Records) Search(ctx context.Context, c *Caller, resourceType string, params []Param, strict bool) (*Page, error) {
	a := r.begin(c, verbSearch, Ref{Type: resourceType})
	page, e := a.search(ctx, params, strict)
	if e != nil {
		return nil, a.refuse(ctx, e)
	}
	a.finish()
	return page, nil
}

// query is a parsed search: what the storage selects by, and what is left to check on opened records.
type query struct {
	sel      Selection
	criteria []criterion
	elements []string         // elements that criteria look at
	named    []string         // patients that parameters name
	bounded  bool             // by patient, id or index: not a scan over the type
	searched []Param          // what the index may answer
	index    *generations     // under which sel.Tokens are
	exact    bool             // by identifiers only, so that a guard can stand for it
	missed   map[string]int64 // versions of candidates that do not match, when exact
	count    int
	self     []Param
	warnings []fhir.Issue
	sealed   []byte // its text, as its events carry it
}

// parseQuery sorts parameters into selection and criteria. Unknown ones become warnings, or errors when strict.
func (r *Records) parseQuery(ctx context.Context, resourceType string, params []Param, strict bool) (*query, *Error) {
	g, err := r.generations(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	q := &query{sel: Selection{Type: resourceType}, count: defaultCount, index: g, exact: true, missed: map[string]int64{}}
	for _, p := range params {
		if p.Value == "" {
			continue // FHIR ignores parameters without a value
		}
		known, e := r.parseParam(q, p)
		switch {
		case e != nil:
			return nil, e
		case known:
			q.self = append(q.self, p)
		case strict, modified(resourceType, p):
			return nil, invalid("not-supported", "a search parameter or modifier is not supported for this type")
		default:
			q.exact = false
			q.warnings = append(q.warnings, fhir.Issue{
				Severity: "warning", Code: "not-supported", Diagnostics: "a search parameter that is not supported was ignored",
			})
		}
	}
	q.sel.Tokens = g.lookup(resourceType, q.searched)
	q.bounded = q.bounded || q.sel.Tokens != nil
	if e := q.limits(g); e != nil {
		return nil, e
	}
	q.exact = q.exact && len(q.sel.Tokens) > 0 && len(q.sel.Tokens) == len(q.searched)
	return q, nil
}

// limits tells what this deployment's index does not find, where FHIR's search would.
func (q *query) limits(g *generations) *Error {
	sound := slices.ContainsFunc(q.searched, func(p Param) bool { return p.Name == "phonetic" })
	if sound && q.sel.Tokens == nil {
		return invalid("required", "phonetic needs birthdate: names are indexed by sound and year of birth")
	}
	whole := slices.ContainsFunc(g.all, func(x *index) bool { return !x.named(NamesPrefix) })
	if whole && slices.ContainsFunc(q.sel.Tokens, byName) {
		q.warnings = append(q.warnings, fhir.Issue{
			Severity: "warning", Code: "incomplete", Diagnostics: "names are found here by a whole word only, not by how they begin",
		})
	}
	return nil
}

// byName reports whether a set looks for names, alone or with something else.
func byName(alternatives []Token) bool {
	return slices.ContainsFunc(alternatives, func(t Token) bool {
		switch t.Kind {
		case TokenName, TokenFamily, TokenGiven, TokenFamilyBirth, TokenInitialYear:
			return true
		}
		return false
	})
}

// look asks the index again when its generations changed.
func (q *query) look(g *generations) {
	if !q.index.same(g) {
		q.sel.Tokens = g.lookup(q.sel.Type, q.searched)
	}
	q.index = g
}

// modified reports whether it is the modifier alone that is not supported. A parameter without its modifier would find
// something else, so it cannot be ignored (https://hl7.org/fhir/R4/search.html#modifiers).
func modified(resourceType string, p Param) bool {
	name, _, has := strings.Cut(p.Name, ":")
	if !has {
		return false
	}
	_, issues := fhir.ParseCriterion(resourceType, name, p.Value)
	return name == "_id" || name == "_lastUpdated" || !slices.ContainsFunc(issues, func(i fhir.Issue) bool { return i.Code == "not-supported" })
}

func (r *Records) parseParam(q *query, p Param) (known bool, e *Error) {
	switch p.Name {
	case "_format", "_pretty", "_total", "_summary":
		// They shape the answer, not what is found. A total is given where it is known, a summary is the whole resource.
		return p.Name != "_summary" || p.Value == "false", nil
	case "_count":
		n, err := strconv.Atoi(p.Value)
		if err != nil || n < 1 {
			return false, invalid("value", "_count is not a positive number")
		}
		q.count = pageSize(n)
		return true, nil
	case "_id":
		ids := strings.Split(p.Value, ",")
		for _, id := range ids {
			if !fhir.ValidID(id) {
				return false, invalid("value", "_id is not a FHIR id")
			}
		}
		q.sel.IDs, q.bounded, q.exact = both(q.sel.IDs, ids), true, false
		return true, nil
	case "_lastUpdated":
		q.exact = false
		return true, q.restrictUpdated(p.Value)
	}
	if p.Name == "phonetic" && q.sel.Type == "Patient" && q.index.phonetic() {
		sound, ok := parsePhonetic(p.Value)
		if !ok {
			return false, invalid("value", "search parameter phonetic: the value has no sound")
		}
		q.criteria, q.elements = append(q.criteria, sound), append(q.elements, sound.Elements()...)
		q.searched, q.exact = append(q.searched, p), false
		return true, nil
	}
	criterion, issues := newCriterion(q.sel.Type, p)
	if issues != nil {
		if slices.ContainsFunc(issues, func(i fhir.Issue) bool { return i.Code == "not-supported" }) {
			return false, nil
		}
		return false, &Error{Kind: Invalid, Issues: issues}
	}
	q.criteria = append(q.criteria, criterion)
	q.elements = append(q.elements, criterion.Elements()...)
	name, modifier, _ := strings.Cut(p.Name, ":")
	q.searched = append(q.searched, p)
	q.exact = q.exact && p.Name == "identifier"
	if (name == "patient" || name == "subject") && (modifier == "" || modifier == "Patient") {
		if patients, ok := namedPatients(p.Value, name == "patient" || modifier == "Patient"); ok {
			q.sel.Patients = both(q.sel.Patients, patients)
			q.named = q.sel.Patients
			q.bounded = true
		}
	}
	return true, nil
}

// both intersects a restriction with one that holds already; nil is none. An empty result matches nothing.
func both(already, also []string) []string {
	if already == nil {
		return also
	}
	return slices.DeleteFunc(slices.Clone(already), func(s string) bool { return !slices.Contains(also, s) })
}

// namedPatients returns the patients that a reference value names; bare says that an id without a type is a patient's.
// Not ok means that one alternative may be something else.
func namedPatients(value string, bare bool) (ids []string, ok bool) {
	for _, alternative := range strings.Split(value, ",") {
		id, isPatient := patientReference(alternative)
		if !isPatient && bare && fhir.ValidID(alternative) {
			id, isPatient = alternative, true
		}
		if !isPatient {
			return nil, false
		}
		ids = append(ids, id)
	}
	return ids, true
}

// restrictUpdated narrows by _lastUpdated: prefixes eq ge gt le lt sa eb, partial dates meaning their whole span.
func (q *query) restrictUpdated(value string) *Error {
	prefix := "eq"
	if len(value) > 2 && value[0] >= 'a' && value[0] <= 'z' {
		prefix, value = value[:2], value[2:]
	}
	from, to, ok := span(value)
	if !ok {
		return invalid("value", "_lastUpdated is not a date")
	}
	switch prefix {
	case "eq":
		q.from(from)
		q.to(to)
	case "ge":
		q.from(from)
	case "gt", "sa":
		q.from(to)
	case "le":
		q.to(to)
	case "lt", "eb":
		q.to(from)
	default:
		return invalid("value", "_lastUpdated has a prefix that is not supported")
	}
	return nil
}

func (q *query) from(t time.Time) {
	if t.After(q.sel.UpdatedFrom) {
		q.sel.UpdatedFrom = t
	}
}

func (q *query) to(t time.Time) {
	if q.sel.UpdatedTo.IsZero() || t.Before(q.sel.UpdatedTo) {
		q.sel.UpdatedTo = t
	}
}

// span returns the time from which and before which a partial date lies (https://hl7.org/fhir/R4/search.html#date).
func span(date string) (from, to time.Time, ok bool) {
	for _, precision := range [...]struct {
		layout string
		end    func(time.Time) time.Time
	}{
		{"2006", func(t time.Time) time.Time { return t.AddDate(1, 0, 0) }},
		{"2006-01", func(t time.Time) time.Time { return t.AddDate(0, 1, 0) }},
		{"2006-01-02", func(t time.Time) time.Time { return t.AddDate(0, 0, 1) }},
		{"2006-01-02T15:04Z07:00", func(t time.Time) time.Time { return t.Add(time.Minute) }},
	} {
		if t, err := time.Parse(precision.layout, date); err == nil {
			return t.UTC(), precision.end(t).UTC(), true
		}
	}
	t, err := time.Parse(time.RFC3339Nano, date)
	if err != nil {
		return from, to, false
	}
	t = t.UTC()
	if !strings.Contains(date, ".") {
		return t, t.Add(time.Second), true
	}
	t = t.Truncate(time.Millisecond)
	return t, t.Add(time.Millisecond), true
}

func (a *attempt) search(ctx context.Context, params []Param, strict bool) (*Page, *Error) {
	if !fhir.Known(a.ref.Type) {
		a.ref = Ref{}
		return nil, fail(NotFound, "not-supported", "there is no such resource type")
	}
	if e := a.permit(auth.Search, a.ref.Type); e != nil {
		return nil, e
	}
	from, e := a.resume(params, strict)
	if e != nil {
		return nil, e
	}
	q, e := a.parseQuery(ctx, a.ref.Type, from.Params, from.Strict)
	if e != nil {
		return nil, e
	}
	q.sel.After = from.After
	if e := a.continueExport(from); e != nil {
		return nil, e
	}
	if len(q.named) == 1 {
		a.patient = q.named[0]
	}
	if e := a.narrow(ctx, q); e != nil {
		return nil, e
	}
	receipt, e := a.recordQuery(ctx, q, from.Params)
	if e != nil {
		return nil, e
	}
	hits, more, e := a.scan(ctx, q, receipt)
	if e != nil {
		return nil, e
	}
	if e := a.recordHits(ctx, q, hits); e != nil {
		return nil, e
	}
	page := &Page{Resources: make([]*Resource, len(hits)), Total: -1, Self: q.self, Warnings: q.warnings}
	for i, h := range hits {
		page.Resources[i] = h.resource
	}
	if a.view.reduction == Deidentified { // by id, the order would join this export to another
		slices.SortFunc(page.Resources, func(x, y *Resource) int { return strings.Compare(x.ID, y.ID) })
	}
	if more != "" {
		var err error
		if page.Next, err = sealCursor(a.pages, a.scope("search "+a.ref.Type), a.exportIn(cursor{Params: from.Params, Strict: from.Strict, After: more})); err != nil {
			return nil, unavailable(err)
		}
	} else if from.After == "" {
		page.Total = len(hits)
	}
	return page, nil
}

// resume finds the search that a _page parameter continues.
func (a *attempt) resume(params []Param, strict bool) (cursor, *Error) {
	at := slices.IndexFunc(params, func(p Param) bool { return p.Name == pageParam })
	if at < 0 {
		return cursor{Params: params, Strict: strict}, nil
	}
	for _, p := range params {
		switch p.Name {
		case pageParam, "_format", "_pretty", "_count": // a count may be said again; the pages keep theirs
		default:
			return cursor{}, invalid("value", "_page stands alone")
		}
	}
	from, err := openCursor(a.pages, a.scope("search "+a.ref.Type), params[at].Value)
	if err != nil {
		return cursor{}, invalid("value", "the page is not one that was given to this caller").because(err)
	}
	return from, nil
}

// narrow decides about the search and compiles the decision into the selection, so that what is outside it is never
// counted, paged over or hinted at.
func (a *attempt) narrow(ctx context.Context, q *query) *Error {
	since := a.clock()
	named := q.named
	if a.ref.Type == "Patient" && len(q.sel.IDs) == 1 { // as good as named, when there is emergency access to him
		named = q.sel.IDs
	}
	filter := a.access.Filter(ctx, a.caller.Principal, auth.Request{
		Interaction: auth.Search, Type: a.ref.Type, Patients: named, Purpose: a.caller.Purpose,
	})
	if filter.Emergency != "" {
		q.named = named
	}
	a.trace.Decision += a.clock() - since
	a.decision = filter.Decision
	if e := a.decided(a.ref.Type, denied); e != nil {
		return e
	}
	q.sel.Patient, q.sel.Practitioner, q.sel.Named = filter.Patient, filter.Practitioner, belongs(a.ref.Type)
	q.sel.Gates = &filter
	if !filter.All && filter.Patient == "" && filter.Practitioner == "" {
		return a.overrule(denied())
	}
	// A predicate must not reveal what may not be read.
	for _, element := range q.elements {
		if !a.view.classes.Has(classOf(a.ref.Type, element)) {
			return a.overrule(fail(Denied, "forbidden", "the search looks at elements that the caller may not read"))
		}
	}
	if a.view.reduction == Deidentified && (q.sel.Patients != nil || q.sel.Tokens != nil || !q.sel.UpdatedFrom.IsZero() || !q.sel.UpdatedTo.IsZero()) {
		return a.overrule(fail(Denied, "forbidden", "the de-identified view cannot be searched by what identifies a patient, nor by more of a date than its year"))
	}
	if !q.bounded && !filter.All && filter.Patient == "" && a.ref.Type != "Patient" && fhir.InPatientCompartment(a.ref.Type) {
		return invalid("required", "a search over this type needs patient, _id or identifier")
	}
	return nil
}

// maximalQuery bounds the text of a search, in bytes, well below audit.MaxBody.
const maximalQuery = 32 << 10

// recordQuery makes the event of the search durable before any candidate is opened.
func (a *attempt) recordQuery(ctx context.Context, q *query, params []Param) (audit.Receipt, *Error) {
	var text []byte
	for i, p := range params {
		if i > 0 {
			text = append(text, '&')
		}
		text = append(append(append(text, url.QueryEscape(p.Name)...), '='), url.QueryEscape(p.Value)...)
	}
	var named []string
	if len(q.named) > 0 {
		named = q.named[:1]
	}
	if len(text) > maximalQuery {
		return audit.Receipt{}, fail(TooLarge, "too-long", "the search has more text than an audit event can hold")
	}
	e := a.event(audit.Success, Ref{Type: a.ref.Type}, 0, named)
	q.sealed = a.queries.Seal(nil, nil, text, []byte(a.ref.Type))
	e.Query = q.sealed
	return a.record(ctx, a.level.Disclosure, e)
}

// hit is a record that a search found.
type hit struct {
	row      *Sealed
	resource *Resource
}

// Bounds of one page's work: rows asked for at once, and candidates opened before the page ends with a link to go on. Candidates
// that are outside the caller's scopes have a bound of their own, far out: to end there tells that there are as many.
const (
	scanBatch   = 200
	scanLimit   = 2000
	hiddenLimit = 20_000
)

// scan opens candidates until the page is full. more is the id to continue after, "" when there is nothing left.
func (a *attempt) scan(ctx context.Context, q *query, receipt audit.Receipt) (hits []hit, more string, e *Error) {
	sel := q.sel
	if sel.IDs != nil && len(sel.IDs) == 0 || sel.Patients != nil && len(sel.Patients) == 0 {
		return nil, "", nil // restrictions that exclude each other
	}
	sel.Limit = q.count + 1
	if len(q.criteria) > 0 || a.confined() {
		sel.Limit = max(sel.Limit, scanBatch)
	}
	count := q.count
	if a.confined() {
		count++ // whether there is more to show is known when one more is found; that rows are left is not to be told
	}
	for seen, hidden := 0, 0; ; {
		since := a.clock()
		rows, err := a.candidates(ctx, q, sel, a.view.classes)
		a.trace.Database += a.clock() - since
		if err != nil {
			return nil, "", stored(err)
		}
		for i, row := range rows {
			if row.Erased {
				continue
			}
			resource, e := a.candidate(ctx, q, row, receipt)
			switch {
			case e != nil && errors.Is(e.Err, errOutside):
				hidden++
				continue
			case e != nil:
				return nil, "", e
			case resource != nil:
				hits = append(hits, hit{row, resource})
			}
			switch {
			case len(hits) > q.count:
				resource.JSON.Clear()
				return hits[:q.count], hits[q.count-1].row.ID, nil
			case len(hits) == count && (i < len(rows)-1 || len(rows) == sel.Limit):
				return hits, row.ID, nil
			}
		}
		if len(rows) < sel.Limit {
			return hits, "", nil
		}
		sel.After = rows[len(rows)-1].ID
		if seen += len(rows); seen-hidden >= scanLimit || hidden >= hiddenLimit {
			return hits[:min(len(hits), q.count)], sel.After, nil
		}
	}
}

// candidates asks the storage, under the index generations of this moment.
func (a *attempt) candidates(ctx context.Context, q *query, sel Selection, classes ClassSet) ([]*Sealed, error) {
	if len(q.sel.Tokens) > 0 {
		g, err := a.generations(ctx)
		if err != nil {
			return nil, err
		}
		q.look(g)
		sel.Tokens = q.sel.Tokens
		var cancel context.CancelFunc
		ctx, cancel = a.within(ctx, g)
		defer cancel()
	}
	return a.storage.Search(ctx, sel, classes)
}

// candidate opens a row and checks the criteria; nil when it is no match. In the de-identified view the criteria see what
// the caller sees, so that a search for a full date finds nothing that is shown as a year.
func (a *attempt) candidate(ctx context.Context, q *query, row *Sealed, receipt audit.Receipt) (*Resource, *Error) {
	aead, e := a.aead(ctx, row)
	if e != nil {
		return nil, e
	}
	resource, e := a.open(ctx, row, aead, receipt)
	if e != nil || len(q.criteria) == 0 {
		return resource, e
	}
	since := a.clock()
	defer func() { a.trace.Crypto += a.clock() - since }()
	parsed, issues := fhir.Parse(resource.JSON.Reveal())
	if issues != nil {
		return nil, a.broken(ctx, row, errIntegrity)
	}
	for _, c := range q.criteria {
		if c.Match(parsed) {
			continue
		}
		var e *Error
		if a.view.reduction == Whole && !q.index.carries(parsed, q.sel.Tokens) {
			e = a.alert(ctx, row, "a stored row was found under an index token that is not its own")
		}
		resource.JSON.Clear()
		if e != nil {
			return nil, e
		}
		if q.exact {
			q.missed[row.ID] = row.Version
		}
		return nil, nil
	}
	return resource, nil
}

// recordHits records, before the page goes out, each patient in it whom the event of the query did not name.
func (a *attempt) recordHits(ctx context.Context, q *query, hits []hit) *Error {
	byPatient := map[string]*audit.Event{}
	for _, h := range hits {
		for _, patient := range h.row.Patients {
			if len(q.named) > 0 && patient == q.named[0] {
				continue
			}
			e := byPatient[patient]
			if e == nil {
				e = a.event(audit.Success, Ref{}, 0, []string{patient})
				e.Query = q.sealed
				byPatient[patient] = e
			}
			e.Entities = append(e.Entities, audit.Entity{Type: h.row.Type, ID: h.row.ID, Version: h.row.Version})
		}
	}
	if len(byPatient) == 0 {
		return nil
	}
	events := make([]*audit.Event, 0, len(byPatient))
	for _, patient := range sortedKeys(byPatient) {
		events = append(events, byPatient[patient])
	}
	_, e := a.record(ctx, a.level.Disclosure, events...)
	return e
}

// maximalHidden is how many records under one condition a guard leaves alone.
const maximalHidden = 1000

// find returns at most limit records that match a condition of a conditional create or reference. It is a search like any
// other, with its event, and finds what the caller could find: a condition that held on other people's records would tell
// what is in them.
//
// Of what an exact condition may not find there may be records all the same. Those that are there before are in query.missed, so that a
// guard does not tell of them: the answer to a conditional create is the same whether or not they exist.
func (a *attempt) find(ctx context.Context, resourceType string, params []Param, limit int) (found []*Sealed, q *query, fault *Error) {
	s := a.begin(a.caller, verbSearch, Ref{Type: resourceType})
	defer func() {
		if fault != nil { // the refusal of the whole is about this decision
			a.decision = s.decision
		}
		s.finish()
	}()
	if e := s.permit(auth.Search, resourceType); e != nil {
		return nil, nil, e
	}
	q, e := s.parseQuery(ctx, resourceType, params, true)
	if e != nil {
		return nil, nil, e
	}
	if !q.bounded {
		return nil, nil, precondition("multiple-matches", "the condition is not selective enough")
	}
	q.count = limit
	if e := s.narrow(ctx, q); e != nil {
		return nil, nil, e
	}
	if s.view.reduction == Deidentified {
		return nil, nil, s.overrule(denied())
	}
	receipt, e := s.recordQuery(ctx, q, params)
	if e != nil {
		return nil, nil, e
	}
	if q.exact {
		// Before what the caller may find is looked for: who creates a record in between is found, or met by the guard.
		all, err := s.candidates(ctx, q, Selection{Type: resourceType, Tokens: q.sel.Tokens, Limit: maximalHidden}, 0)
		if err != nil {
			return nil, nil, stored(err)
		}
		for _, row := range all {
			q.missed[row.ID] = 0
		}
	}
	hits, more, e := s.scan(ctx, q, receipt)
	if e != nil {
		return nil, nil, e
	}
	if more != "" && len(hits) < limit {
		return nil, nil, precondition("multiple-matches", "the condition is not selective enough")
	}
	for _, h := range hits {
		h.resource.JSON.Clear()
		found = append(found, h.row)
	}
	return found, q, nil
}

// condition applies a conditional create: no match leaves the change as it is, one match takes its place, more are
// refused. The guards keep the answer true until the commit, where the condition is identifiers; a condition of other
// parameters can be overtaken by a create that runs at the same time.
func (a *attempt) condition(ctx context.Context, c *change, params []Param) ([]*guard, *Error) {
	rows, q, e := a.find(ctx, c.ref.Type, params, 2)
	if e != nil {
		return nil, e
	}
	switch len(rows) {
	case 1:
		c.existing = rows[0]
		c.ref = rows[0].Ref
		return nil, nil
	case 0:
		if !q.exact {
			return nil, nil
		}
		return []*guard{{
			resourceType: c.ref.Type, except: q.missed,
			tokens: func(g *generations) [][]Token { return g.lookup(c.ref.Type, q.searched) },
		}}, nil
	}
	return nil, precondition("multiple-matches", "the condition of the create matches more than one record")
}
