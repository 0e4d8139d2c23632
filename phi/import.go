package phi

import (
	"context"
	"errors"
	"slices"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// ImportResult is what an import did with one file.
//
// An import takes files in (FHIR bundles of any type, single resources) through the same sealed, audited path as every
// write, so that imported twice changes nothing: an entry whose content some version of its record had already leaves
// the record as it is now, edited or deleted since.
//
// Entries that a client would POST get an id derived from their fullUrl under the organisation's import key; others keep
// theirs. References by urn:uuid: and conditional references are resolved, against the storage too. A file that refers
// to what is not there yet is deferred, so that the caller tries again after the other files.
type ImportResult struct {
	Written   int // new versions
	Unchanged int
	Failed    []ImportFailure
	Deferred  bool // nothing was written: references wait for other files
}

// ImportFailure names an entry that did not go in; the others did.
type ImportFailure struct {
	Entry int // index in the bundle, 0 for a single resource
	Err   *Error
}

// importChunk is how many writes go into one commit, and one group of intents.
const importChunk = 500

// Import imports one file's content (one JSON document). final stops deferring: what cannot be resolved is a failure.
func (r *Records) Import(ctx context.Context, c *Caller, content []byte, final bool) (*ImportResult, error) {
	for try := 1; ; try++ {
		a := r.begin(c, verbImport, Ref{})
		a.kind = audit.TypeImport
		result, e := a.importContent(ctx, content, final)
		if e == nil {
			a.finish()
			return result, nil
		}
		// Who lost to another import of the same content finds it there already.
		if err := a.refuse(ctx, e); e.Kind != Conflict || try == importTries {
			return nil, err
		}
	}
}

// importTries bounds how often an import that met another writer begins again: each chunk may meet it once more.
const importTries = 10

func (a *attempt) importContent(ctx context.Context, content []byte, final bool) (*ImportResult, *Error) {
	source := a.keyed("source", content)
	entries, e := parseImport(content)
	if e != nil {
		return nil, e
	}
	// That a file went in whole is only worth knowing to somebody who could have sent it.
	if e := a.permit(auth.Create, "Patient"); e != nil {
		return nil, e
	}
	done, err := a.storage.Imported(ctx, source)
	if err != nil {
		return nil, unavailable(err)
	}
	if done {
		_, e := a.record(ctx, a.level.Other, a.event(audit.Success, Ref{}, 0, nil))
		return &ImportResult{Unchanged: len(entries)}, e
	}
	changes, links, e := a.importChanges(ctx, entries)
	if e != nil {
		return nil, e
	}
	waits, e := a.resolveImport(ctx, changes, links)
	if e != nil {
		return nil, e
	}
	if waits && !final {
		return &ImportResult{Deferred: true}, nil
	}
	if e := a.prepare(ctx, changes); e != nil {
		return nil, e
	}
	if !final && waitsForPatient(changes) {
		return &ImportResult{Deferred: true}, nil
	}
	spread(changes, links)
	if e := a.skipKnown(ctx, changes); e != nil {
		return nil, e
	}
	result := &ImportResult{}
	if e := a.commitChunks(ctx, changes, links); e != nil {
		return nil, e
	}
	for _, c := range changes {
		switch {
		case c.err != nil:
			result.Failed = append(result.Failed, ImportFailure{Entry: c.entry, Err: c.err})
		case c.same || c.existing != nil:
			result.Unchanged++
		default:
			result.Written++
		}
	}
	if len(result.Failed) > 0 {
		return result, a.recordFailures(ctx, changes)
	}
	if err := a.storage.MarkImported(ctx, source); err != nil {
		return nil, unavailable(err)
	}
	if result.Written == 0 {
		if _, e := a.record(ctx, a.level.Other, a.event(audit.Success, Ref{}, 0, nil)); e != nil {
			return nil, e
		}
	}
	return result, nil
}

// parseImport reads a document's entries: those of a bundle, or the one resource that it is.
func parseImport(content []byte) ([]*bundleEntry, *Error) {
	document, issues := fhir.Parse(content)
	if issues != nil {
		return nil, &Error{Kind: Invalid, Issues: issues}
	}
	if document.Type != "Bundle" {
		return []*bundleEntry{{alone: true, resource: document.Text()}}, nil
	}
	var entries []*bundleEntry
	history := false
	for _, element := range document.Elements {
		switch element.Name {
		case "type":
			history = gjson.ParseBytes(element.Raw).String() == "history"
		case "entry":
			gjson.ParseBytes(element.Raw).ForEach(func(_, item gjson.Result) bool {
				entries = append(entries, readEntry(len(entries), item))
				return true
			})
		}
	}
	if history {
		entries = newestOnly(entries)
	}
	return entries, nil
}

// newestOnly keeps, of a history, the first entry of each record: histories are sorted newest first.
func newestOnly(entries []*bundleEntry) []*bundleEntry {
	seen := map[Ref]bool{}
	return slices.DeleteFunc(entries, func(e *bundleEntry) bool {
		ref := e.target
		if e.resource != nil {
			ref = Ref{gjson.GetBytes(e.resource, "resourceType").String(), gjson.GetBytes(e.resource, "id").String()}
		}
		older := seen[ref]
		seen[ref] = true
		if e.method == "POST" { // of a history it says how the version came about; the record has its id already
			e.method = "PUT"
			e.target = ref
		}
		return older
	})
}

// importChanges parses, validates and addresses the entries. What is wrong with one is in its change.
func (a *attempt) importChanges(ctx context.Context, entries []*bundleEntry) ([]*change, *links, *Error) {
	links := newLinks(a)
	var changes []*change
	taken := map[Ref]bool{}
	for _, e := range entries {
		if e.method == "DELETE" || e.method == "GET" || e.resource == nil && e.method == "" {
			continue // entries of a history, or an outcome; nothing that could be taken in
		}
		c := &change{verb: verbUpdate, entry: e.index, place: e.place()}
		changes = append(changes, c)
		if e.err != nil {
			c.err = e.err
			continue
		}
		if e.resource == nil {
			c.failed(invalid("required", "the entry has no resource"))
			continue
		}
		resource, issues := fhir.Parse(e.resource)
		if issues != nil {
			c.failed(&Error{Kind: Invalid, Issues: issues})
			continue
		}
		c.resource = resource
		c.ref = Ref{resource.Type, resource.ID}
		if e.method == "POST" || resource.ID == "" {
			name := []byte(e.fullURL)
			if e.fullURL == "" {
				name = resource.Text()
			}
			c.ref.ID = UUID(a.keyed("id "+resource.Type, name)).versioned().String()
		}
		switch {
		case e.target.Type != "" && e.target.Type != resource.Type:
			c.failed(invalid("value", "the resource is of another type than the request says"))
		case e.method == "PUT" && e.target.ID != resource.ID:
			c.failed(invalid("value", "the id in the resource is not the id in the request"))
		case !fhir.ValidID(c.ref.ID):
			c.failed(invalid("value", "the id is not a FHIR id"))
		case taken[c.ref]:
			c.failed(invalid("duplicate", "another entry is the same record"))
		default:
			if e := validate(resource); e != nil {
				c.failed(e)
			}
		}
		taken[c.ref] = true
		if c.err == nil && e.match != nil {
			rows, _, fault := a.find(ctx, c.ref.Type, e.match, 2)
			switch {
			case fault != nil && (fault.Kind == Unavailable || fault.Kind == Integrity):
				return nil, nil, fault
			case fault != nil:
				c.failed(fault)
			case len(rows) == 1 && rows[0].ID != c.ref.ID:
				c.existing, c.ref = rows[0], rows[0].Ref
			case len(rows) > 1:
				c.failed(precondition("multiple-matches", "the condition of the create matches more than one record"))
			}
		}
		links.add(e.fullURL, c)
	}
	return changes, links, nil
}

// resolveImport resolves references; waits says that one of them may be resolved when other files are in.
func (a *attempt) resolveImport(ctx context.Context, changes []*change, links *links) (waits bool, e *Error) {
	spread(changes, links)
	for _, c := range changes {
		if c.skipped() {
			continue
		}
		if e := links.resolve(ctx, c); e != nil {
			if e.Kind == Unavailable || e.Kind == Integrity {
				return false, e
			}
			waits = waits || e.Kind == Unprocessable
			c.failed(e)
		}
	}
	return waits, nil
}

// spread fails the entries that refer to a failed one of the same file.
func spread(changes []*change, links *links) {
	for again := true; again; {
		again = false
		for _, c := range changes {
			if c.skipped() || c.resource == nil {
				continue
			}
			for _, ref := range c.resource.References() {
				to, _ := links.named(c, ref.Value)
				if to == nil {
					to = links.byRef[ref.Value]
				}
				if to != nil && to.err != nil {
					c.failed(fail(Unprocessable, "not-found", "the entry that is referred to did not go in").at(ref.Expression))
					again = true
					break
				}
			}
		}
	}
}

// waitsForPatient reports whether a record failed for want of a patient that another file may bring.
func waitsForPatient(changes []*change) bool {
	for _, c := range changes {
		if c.err != nil && errors.Is(c.err, errNoPatient) {
			return true
		}
	}
	return false
}

// skipKnown marks the entries whose content the record has, or had in an earlier version.
func (a *attempt) skipKnown(ctx context.Context, changes []*change) *Error {
	for _, c := range changes {
		if c.skipped() || c.current == nil {
			continue
		}
		digest := a.keyed("content", c.resource.Text())
		if c.current.Digest == digest {
			c.same = true
			continue
		}
		rows, err := a.storage.FetchHistory(ctx, c.ref, 0, c.current.Version, maximalCount)
		if err != nil {
			return stored(err)
		}
		for _, row := range rows {
			c.same = c.same || row.Digest == digest
		}
	}
	return nil
}

// commitChunks commits patients first, so that what refers to them finds them whatever happens in between.
func (a *attempt) commitChunks(ctx context.Context, changes []*change, links *links) *Error {
	var ordered []*change
	for _, patients := range []bool{true, false} {
		for _, c := range changes {
			if !c.skipped() && (c.ref.Type == "Patient") == patients {
				ordered = append(ordered, c)
			}
		}
	}
	for len(ordered) > 0 {
		n := min(len(ordered), importChunk)
		if e := a.commit(ctx, ordered[:n], nil); e != nil && errors.Is(e.Err, errNotUnique) {
			spread(changes, links) // the entry at fault and what refers to it stay out, the others go in
			continue
		} else if e != nil {
			return e
		}
		for _, c := range ordered[:n] {
			c.forget()
		}
		ordered = ordered[n:]
	}
	return nil
}

// recordFailures makes one event for the entries that did not go in.
func (a *attempt) recordFailures(ctx context.Context, changes []*change) *Error {
	e := a.event(audit.MinorFailure, Ref{}, 0, nil)
	e.OutcomeDesc = "entries did not go in"
	for _, c := range changes {
		if c.err != nil && fhir.Known(c.ref.Type) && fhir.ValidID(c.ref.ID) && len(e.Entities) < importChunk {
			e.Entities = append(e.Entities, audit.Entity{Type: c.ref.Type, ID: c.ref.ID})
		}
	}
	_, err := a.record(ctx, a.level.Other, e)
	return err
}
