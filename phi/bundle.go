package phi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// maximalEntries bounds a bundle.
const maximalEntries = 5000

// BundleResult is the outcome of a bundle.
type BundleResult struct {
	Type    string // transaction-response or batch-response
	Entries []EntryResult
}

// EntryResult is the outcome of one entry: exactly one of Written, Resource, Page and Err is set.
type EntryResult struct {
	Method   string
	Written  *Written
	Resource *Resource
	Page     *Page
	Err      *Error
}

// bundleEntry is one entry of a bundle as it came.
type bundleEntry struct {
	index    int
	alone    bool // not from a bundle
	fullURL  string
	method   string
	target   Ref // of a POST: the type alone
	version  int64
	query    []Param // of a search
	match    []Param // of a conditional create
	ifMatch  int64
	resource []byte
	err      *Error
}

func (e *bundleEntry) place() string {
	if e.alone {
		return ""
	}
	return "Bundle.entry[" + strconv.Itoa(e.index) + "]"
}

// Bundle executes a transaction (all or nothing, urn:uuid: and conditional references resolved) or a batch (each entry
// for itself) and returns the entries of the response in the request's order.
func (r *Records) Bundle(ctx context.Context, c *Caller, body []byte) (*BundleResult, error) {
	shared := *c
	shared.export = newExport(r.now()) // so that what its entries read joins
	a := r.begin(&shared, verbBatch, Ref{})
	kind, entries, e := parseBundle(body)
	if e != nil {
		return nil, a.refuse(ctx, e)
	}
	switch kind {
	case "batch":
		return a.batch(ctx, entries), nil
	case "transaction":
		a.verb = verbTransac
		result, e := a.transaction(ctx, entries)
		if e != nil {
			return nil, a.refuse(ctx, e)
		}
		a.finish()
		return result, nil
	}
	return nil, a.refuse(ctx, invalid("value", "a bundle that is to be executed is a transaction or a batch").at("Bundle.type"))
}

// parseBundle reads a bundle's entries; what is wrong with one entry alone is in its err.
func parseBundle(body []byte) (kind string, entries []*bundleEntry, e *Error) {
	bundle, issues := fhir.Parse(body)
	if issues != nil {
		return "", nil, &Error{Kind: Invalid, Issues: issues}
	}
	if bundle.Type != "Bundle" {
		return "", nil, invalid("value", "the body is not a Bundle").at("resourceType")
	}
	for _, element := range bundle.Elements {
		switch element.Name {
		case "type":
			kind = gjson.ParseBytes(element.Raw).String()
		case "entry":
			list := gjson.ParseBytes(element.Raw)
			if !list.IsArray() {
				return "", nil, invalid("structure", "entry is not an array").at("Bundle.entry")
			}
			list.ForEach(func(_, item gjson.Result) bool {
				entries = append(entries, readEntry(len(entries), item))
				return len(entries) <= maximalEntries
			})
		}
	}
	if len(entries) > maximalEntries {
		return "", nil, fail(TooLarge, "too-long", "the bundle has more than "+strconv.Itoa(maximalEntries)+" entries").at("Bundle.entry")
	}
	return kind, entries, nil
}

func readEntry(index int, item gjson.Result) *bundleEntry {
	e := &bundleEntry{index: index}
	var address, ifMatch, ifNoneExist string
	item.ForEach(func(name, value gjson.Result) bool {
		switch name.String() {
		case "fullUrl":
			e.fullURL = value.String()
		case "resource":
			e.resource = []byte(value.Raw)
		case "request":
			e.method = value.Get("method").String()
			address = value.Get("url").String()
			ifMatch = value.Get("ifMatch").String()
			ifNoneExist = value.Get("ifNoneExist").String()
		}
		return true
	})
	if e.method == "" {
		return e
	}
	if !e.readRequest(address, ifNoneExist) {
		e.err = invalid("value", "the request of the entry is not one that a bundle can hold").at(e.place() + ".request.url")
	}
	if ifMatch != "" && e.err == nil {
		v, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(ifMatch, `W/"`), `"`), 10, 64)
		if err != nil || v < 1 {
			e.err = invalid("value", "ifMatch is not a version").at(e.place() + ".request.ifMatch")
		}
		e.ifMatch = v
	}
	return e
}

// readRequest understands Type, Type/id, Type/id/_history/version and Type?parameters, as far as the method allows.
func (e *bundleEntry) readRequest(address, ifNoneExist string) bool {
	path, query, hasQuery := strings.Cut(address, "?")
	parts := strings.Split(strings.Trim(path, "/"), "/")
	e.target.Type = parts[0]
	if len(parts) > 1 {
		e.target.ID = parts[1]
	}
	if !fhir.Known(e.target.Type) || e.target.ID != "" && !fhir.ValidID(e.target.ID) {
		return false
	}
	var ok bool
	switch e.method {
	case "POST":
		if ifNoneExist != "" {
			if e.match, ok = parseParams(strings.TrimPrefix(ifNoneExist, "?")); !ok {
				return false
			}
		}
		return len(parts) == 1 && !hasQuery
	case "PUT", "DELETE":
		return len(parts) == 2 && !hasQuery
	case "GET":
		switch {
		case len(parts) == 1:
			e.query, ok = parseParams(query)
			return ok
		case len(parts) == 4 && parts[2] == "_history":
			v, err := strconv.ParseInt(parts[3], 10, 64)
			e.version = v
			return err == nil && v > 0
		}
		return len(parts) == 2
	}
	return false
}

// parseParams reads the query part of an address, keeping the order.
func parseParams(query string) ([]Param, bool) {
	var params []Param
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return nil, false
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return nil, false
		}
		params = append(params, Param{name, value})
	}
	return params, true
}

// batch executes each entry for itself, in the order of a transaction, with its own events.
func (a *attempt) batch(ctx context.Context, entries []*bundleEntry) *BundleResult {
	result := &BundleResult{Type: "batch-response", Entries: make([]EntryResult, len(entries))}
	for _, method := range [...]string{"DELETE", "POST", "PUT", "GET", ""} {
		for i, e := range entries {
			known := e.method == "DELETE" || e.method == "POST" || e.method == "PUT" || e.method == "GET"
			if e.method != method && (method != "" || known) {
				continue
			}
			result.Entries[i] = a.single(ctx, e)
		}
	}
	return result
}

func (a *attempt) single(ctx context.Context, e *bundleEntry) EntryResult {
	result := EntryResult{Method: e.method}
	fault := e.err
	if fault == nil && e.method == "" {
		fault = invalid("required", "the entry has no request").at(e.place() + ".request")
	}
	if fault == nil && (e.method == "POST" || e.method == "PUT") && e.resource == nil {
		fault = invalid("required", "the entry has no resource").at(e.place() + ".resource")
	}
	if fault != nil {
		result.Err = asError(a.begin(a.caller, verbBatch, Ref{}).refuse(ctx, fault))
		return result
	}
	var err error
	switch e.method {
	case "POST":
		result.Written, err = a.Create(ctx, a.caller, e.target.Type, e.resource, e.match)
	case "PUT":
		result.Written, err = a.Update(ctx, a.caller, e.target, e.resource, e.ifMatch)
	case "DELETE":
		result.Written, err = a.Delete(ctx, a.caller, e.target, e.ifMatch)
	default:
		result.Resource, result.Page, err = a.get(ctx, e)
	}
	if err != nil {
		result.Err = asError(err).within(e.place())
	}
	return result
}

func (a *attempt) get(ctx context.Context, e *bundleEntry) (res *Resource, page *Page, err error) {
	switch {
	case e.target.ID == "":
		page, err = a.Search(ctx, a.caller, e.target.Type, e.query, false)
	case e.version != 0:
		res, err = a.ReadVersion(ctx, a.caller, e.target, e.version)
	default:
		res, err = a.Read(ctx, a.caller, e.target)
	}
	return res, page, err
}

// asError returns the *Error that every error of this room is.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return unavailable(err)
}

// transaction executes entries all or nothing.
func (a *attempt) transaction(ctx context.Context, entries []*bundleEntry) (*BundleResult, *Error) {
	var e *Error
	for range conditionalTries {
		var result *BundleResult
		if result, e = a.tryTransaction(ctx, entries); e == nil || !errors.Is(e.Err, ErrGuard) {
			return result, e
		}
	}
	return nil, e
}

func (a *attempt) tryTransaction(ctx context.Context, entries []*bundleEntry) (*BundleResult, *Error) {
	changes := make([]*change, len(entries)) // nil for reads
	links := newLinks(a)
	var guards []*guard
	taken, conditions := map[Ref]bool{}, map[string]bool{}
	for i, e := range entries {
		c, g, fault := a.entryChange(ctx, e)
		if fault != nil {
			return nil, fault
		}
		if c == nil {
			continue
		}
		if e.match != nil && c.existing == nil {
			condition := fmt.Sprint(e.target.Type, e.match)
			if conditions[condition] { // alone each finds nothing; together they would make two
				return nil, precondition("multiple-matches", "two entries create a record under the same condition").within(e.place())
			}
			conditions[condition] = true
		}
		guards = append(guards, g...)
		if c.existing == nil {
			if taken[c.ref] {
				return nil, invalid("duplicate", "two entries change the same record").at(e.place())
			}
			taken[c.ref] = true
		}
		changes[i] = c
		links.add(e.fullURL, c)
	}
	// DELETE, POST, PUT: the storage applies them in one transaction, in this order.
	var ordered []*change
	for _, letter := range [...]auth.Interaction{auth.Delete, auth.Create, auth.Update} {
		for _, c := range changes {
			if c != nil && c.verb.letter == letter {
				ordered = append(ordered, c)
			}
		}
	}
	for _, c := range ordered {
		if c.resource == nil || c.skipped() {
			continue
		}
		if e := links.resolve(ctx, c); e != nil {
			a.blame(c)
			return nil, e.within(c.place)
		}
		if e := validate(c.resource); e != nil {
			a.blame(c)
			return nil, e.within(c.place)
		}
	}
	if e := a.write(ctx, ordered, guards); e != nil {
		return nil, e
	}
	return a.respond(ctx, entries, changes)
}

// entryChange makes the change that an entry asks for; nil for a read.
func (a *attempt) entryChange(ctx context.Context, e *bundleEntry) (*change, []*guard, *Error) {
	if e.err != nil {
		return nil, nil, e.err
	}
	c := &change{ref: e.target, ifMatch: e.ifMatch, place: e.place()}
	switch e.method {
	case "":
		return nil, nil, invalid("required", "the entry has no request").at(e.place() + ".request")
	case "GET": // it is read after the commit; what can be refused is refused before
		letter := auth.Read
		if e.target.ID == "" {
			letter = auth.Search
		}
		if fault := a.permit(letter, e.target.Type); fault != nil {
			c.decision = a.decision
			a.blame(c)
			return nil, nil, fault.within(c.place)
		}
		return nil, nil, nil
	case "DELETE":
		c.verb = verbDelete
		return c, nil, nil
	case "POST":
		c.verb = verbCreate
		c.ref.ID = newUUID().String()
	case "PUT":
		c.verb = verbUpdate
	}
	if e.resource == nil {
		return nil, nil, invalid("required", "the entry has no resource").at(e.place() + ".resource")
	}
	// Who may not write the type does not get to know what is wrong with the content.
	if fault := a.permit(c.verb.letter, c.ref.Type); fault != nil {
		c.decision = a.decision
		a.blame(c)
		return nil, nil, fault.within(c.place)
	}
	resource, issues := fhir.Parse(e.resource)
	if issues != nil {
		return nil, nil, (&Error{Kind: Invalid, Issues: issues}).within(c.place)
	}
	c.resource = resource
	if resource.Type != c.ref.Type {
		return nil, nil, invalid("value", "the resource is of another type than the request says").at(c.place + ".resource")
	}
	if e.method == "PUT" && resource.ID != c.ref.ID {
		return nil, nil, invalid("value", "the id in the resource is not the id in the request").at(c.place + ".resource.id")
	}
	if e.match == nil {
		return c, nil, nil
	}
	guards, fault := a.condition(ctx, c, e.match)
	if fault != nil {
		return nil, nil, fault.within(c.place)
	}
	return c, guards, nil
}

// respond makes the response: what was written, and after that what was asked to be read.
func (a *attempt) respond(ctx context.Context, entries []*bundleEntry, changes []*change) (*BundleResult, *Error) {
	result := &BundleResult{Type: "transaction-response", Entries: make([]EntryResult, len(entries))}
	for i, c := range changes {
		result.Entries[i].Method = entries[i].method
		if c == nil {
			continue
		}
		w, e := a.written(ctx, c)
		if e != nil { // it is committed: the failure is about showing it
			result.Entries[i].Err = asError(a.refuse(ctx, e)).within(c.place)
			continue
		}
		result.Entries[i].Written = w
	}
	for i, c := range changes {
		if c != nil {
			continue
		}
		var err error
		r := &result.Entries[i]
		if r.Resource, r.Page, err = a.get(ctx, entries[i]); err != nil {
			r.Err = asError(err).within(entries[i].place())
		}
	}
	return result, nil
}

// target is what a conditional reference stands for.
type target struct {
	ref Ref
	err *Error
}

// links resolves references between the entries of a bundle, and conditional references into the storage.
type links struct {
	*attempt
	byURL       map[string]*change
	changes     []*change
	byRef       map[string]*change // by relative reference
	conditional map[string]target  // by the reference's text: each is looked up once
}

func newLinks(a *attempt) *links {
	return &links{attempt: a, byURL: map[string]*change{}, byRef: map[string]*change{}, conditional: map[string]target{}}
}

func (l *links) add(fullURL string, c *change) {
	l.changes = append(l.changes, c)
	l.byRef[c.ref.String()] = c
	if fullURL == "" {
		return
	}
	l.byURL[fullURL] = c
	// RESTful: base/Type/id, whether or not the resource says its id too.
	if slash := strings.LastIndexByte(fullURL, '/'); slash >= 0 && fhir.ValidID(fullURL[slash+1:]) {
		if base, ok := strings.CutSuffix(fullURL[:slash], "/"+c.ref.Type); ok {
			c.base = base + "/"
		}
	}
}

// named finds the entry that a reference of a change means by its full URL
// (https://hl7.org/fhir/R4/bundle.html#references).
func (l *links) named(c *change, reference string) (*change, bool) {
	to, ok := l.byURL[reference]
	if !ok && c.base != "" {
		to, ok = l.byURL[c.base+reference]
	}
	return to, ok
}

// resolve replaces references to other entries by the ids that these have now, and conditional references by what they
// match (https://hl7.org/fhir/R4/http.html#trules).
func (l *links) resolve(ctx context.Context, c *change) *Error {
	var fault *Error
	replace := map[string]string{}
	for _, ref := range c.resource.References() {
		if _, done := replace[ref.Value]; done {
			continue
		}
		if to, ok := l.named(c, ref.Value); ok {
			replace[ref.Value] = to.ref.String()
			continue
		}
		kind, query, conditional := strings.Cut(ref.Value, "?")
		switch {
		case strings.HasPrefix(ref.Value, "urn:uuid:"), strings.HasPrefix(ref.Value, "urn:oid:"):
			if !bytes.Contains(c.resource.Text(), []byte(`"reference":"`+ref.Value+`"`)) {
				continue // a uri, which may be a urn of its own
			}
			fault = fail(Unprocessable, "not-found", "no entry of the bundle has the full URL that is referred to").at(ref.Expression)
		case conditional && fhir.Known(kind):
			to, seen := l.conditional[ref.Value]
			if !seen {
				to.ref, to.err = l.lookUp(ctx, kind, query)
				l.conditional[ref.Value] = to
			}
			if to.err == nil {
				replace[ref.Value] = to.ref.String()
				continue
			}
			if to.err.Kind == Unavailable || to.err.Kind == Integrity {
				return to.err
			}
			fault = fail(to.err.Kind, to.err.Issues[0].Code, to.err.Issues[0].Diagnostics).at(ref.Expression)
		default:
			continue
		}
		return fault
	}
	if len(replace) > 0 {
		c.resource = c.resource.Rewrite(func(reference string) (string, bool) {
			to, ok := replace[reference]
			return to, ok
		})
	}
	return nil
}

// lookUp finds the one record that a conditional reference matches, in the bundle or in the storage.
func (l *links) lookUp(ctx context.Context, kind, query string) (Ref, *Error) {
	params, ok := parseParams(query)
	if !ok || len(params) == 0 {
		return Ref{}, invalid("value", "the conditional reference is malformed")
	}
	var criteria []*fhir.Criterion
	for _, p := range params {
		criterion, issues := fhir.ParseCriterion(kind, p.Name, p.Value)
		if issues != nil {
			return Ref{}, invalid("not-supported", "the conditional reference is malformed or looks at what is not supported")
		}
		criteria = append(criteria, criterion)
	}
	var found []Ref
	for _, c := range l.changes {
		if c.ref.Type != kind || c.resource == nil || c.err != nil {
			continue
		}
		matches := true
		for _, criterion := range criteria {
			matches = matches && criterion.Match(c.resource)
		}
		if matches {
			found = append(found, c.ref)
		}
	}
	rows, _, e := l.find(ctx, kind, params, 2)
	if e != nil {
		return Ref{}, e
	}
	for _, row := range rows {
		if !slices.Contains(found, row.Ref) {
			found = append(found, row.Ref)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Ref{}, fail(Unprocessable, "not-found", "nothing matches the conditional reference")
	}
	return Ref{}, precondition("multiple-matches", "more than one record matches the conditional reference")
}
