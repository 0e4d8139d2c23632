package phi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// unmerge gives back what a merge moved, or takes an unmerge up that was begun.
func (m *mover) unmerge(ctx context.Context) (*MergeOutcome, *Error) {
	known, err := m.st.MergeOf(ctx, m.req.Source)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && known.Target != m.req.Target:
		return nil, fail(Unprocessable, "business-rule", "the source is not merged into the target")
	case err != nil:
		return nil, unavailable(err)
	case known.State == Merging, m.target.merged():
		return nil, conflicting() // the other merge ends, or is undone, first
	}
	if e := m.genuine(ctx, known); e != nil {
		return nil, e
	}
	m.of = known
	if m.req.Preview {
		return m.previewUnmerge(ctx)
	}
	if known.State == Merged {
		if e := m.tell(ctx, audit.Intent); e != nil {
			return nil, e
		}
		known.SourceSubject, known.State = newUUID(), Unmerging
		switch err := m.st.BeginUnmerge(ctx, known.ID, known.SourceSubject); {
		case errors.Is(err, ErrMerge):
			return nil, conflicting()
		case err != nil:
			return nil, stored(err)
		}
	}
	var stayed []Ref
	out, e := m.finishing(ctx, func(ctx context.Context) (done bool, e *Error) {
		stayed, e = m.partAll(ctx)
		return e == nil, e
	})
	if e == nil {
		out.Stayed = stayed
	}
	return out, e
}

func (m *mover) previewUnmerge(ctx context.Context) (*MergeOutcome, *Error) {
	e := m.eachMoved(ctx, func(batch []MovedRow) *Error {
		m.moved += len(batch)
		return nil
	})
	if e != nil {
		return nil, e
	}
	out, e := m.outcome(ctx, true)
	if e != nil {
		return nil, e
	}
	var err error
	if out.Stayed, err = m.st.MadeSince(ctx, m.of.ID, maximalStayed); err != nil {
		return nil, unavailable(err)
	}
	return out, nil
}

// maximalStayed bounds how many records an outcome names.
const maximalStayed = 1000

// eachMoved goes over the records that the merge moved, but the source itself.
func (m *mover) eachMoved(ctx context.Context, each func([]MovedRow) *Error) *Error {
	for after := (Ref{}); ; {
		batch, err := m.st.MovedRecords(ctx, m.of.ID, after, mergeBatch)
		if err != nil {
			return unavailable(err)
		}
		if len(batch) == 0 {
			return nil
		}
		after = batch[len(batch)-1].Ref
		batch = slices.DeleteFunc(batch, func(r MovedRow) bool { return r.Ref == m.source.Ref })
		if e := each(batch); e != nil {
			return e
		}
	}
}

// partAll gives the source its own keys and its content back, then its records, then their versions; it returns what stays with the target. It
// may be begun anew at any step.
func (m *mover) partAll(ctx context.Context) (stayed []Ref, e *Error) {
	if m.source.merged() {
		if e := m.again(ctx, func() *Error { return m.part(ctx) }); e != nil {
			return nil, e
		}
	}
	mine := []Ref{m.source.Ref} // whose versions go with the source
	e = m.eachMoved(ctx, func(batch []MovedRow) *Error {
		var left []Ref
		if e := m.again(ctx, func() (e *Error) {
			left, e = m.returnBatch(ctx, batch)
			return e
		}); e != nil {
			return e
		}
		stayed = append(stayed, left...)
		for _, row := range batch {
			if row.Patients[0] == m.req.Source || row.Type == "Patient" {
				mine = append(mine, row.Ref)
			}
		}
		return nil
	})
	if e != nil {
		return nil, e
	}
	mine = slices.DeleteFunc(mine, func(ref Ref) bool { return slices.Contains(stayed, ref) })
	for refs := range slices.Chunk(mine, mergeBatch) {
		if _, e := m.rehomeAll(ctx, m.target.Subject, refs, keyName{subject: m.of.SourceSubject}, func(row *Rehomed) ([]string, *Error) {
			patients, err := m.st.MovedPatients(ctx, m.of.ID, row.Ref, row.Version)
			switch {
			case errors.Is(err, ErrNotFound): // made by the merge, or later
				return substituted(row.Patients, m.req.Target, m.req.Source), nil
			case err != nil:
				return nil, unavailable(err)
			}
			return patients, nil
		}); e != nil {
			return nil, e
		}
	}
	later, err := m.st.MadeSince(ctx, m.of.ID, maximalStayed)
	if err != nil {
		return nil, unavailable(err)
	}
	if err := m.st.FinishUnmerge(ctx, m.of.ID); err != nil {
		return nil, unavailable(err)
	}
	return append(stayed, later...), nil
}

// part makes two patients of one again, in one commit: the source as it was before the merge, under a new subject, and the target without what
// the merge gave it.
func (m *mover) part(ctx context.Context) *Error {
	if e := m.fetchBoth(ctx); e != nil {
		return e
	}
	noted, e := m.noted(ctx, m.source.Ref)
	if e != nil {
		return e
	}
	source, e := m.contentOf(ctx, m.source.Ref, noted.Version)
	if e != nil {
		return e
	}
	var target *fhir.Resource
	if m.target.Version == m.of.TargetVersion+1 {
		target, e = m.contentOf(ctx, m.target.Ref, m.of.TargetVersion)
	} else if target, e = m.content(ctx, m.target); e == nil {
		target, e = without(target, source)
	}
	if e != nil {
		return e
	}
	changes := []*change{m.changing(m.source, source, noted.Patients), m.changing(m.target, target, m.target.Patients)}
	changes[0].under, changes[0].fresh = &m.of.SourceSubject, true
	if e := m.assignKeys(ctx, changes, nil); e != nil {
		return e
	}
	if e := m.put(ctx, changes); e != nil {
		return e
	}
	return m.fetchBoth(ctx)
}

// noted is the newest version of a record that the merge found.
func (m *mover) noted(ctx context.Context, ref Ref) (MovedRow, *Error) {
	for after := (Ref{}); ; {
		batch, err := m.st.MovedRecords(ctx, m.of.ID, after, 1000)
		if err != nil {
			return MovedRow{}, unavailable(err)
		}
		if i := slices.IndexFunc(batch, func(r MovedRow) bool { return r.Ref == ref }); i >= 0 {
			return batch[i], nil
		}
		if len(batch) == 0 {
			return MovedRow{}, fail(Integrity, "exception", "the merge has no note of its source")
		}
		after = batch[len(batch)-1].Ref
	}
}

// contentOf opens a version, current or not.
func (m *mover) contentOf(ctx context.Context, ref Ref, version int64) (*fhir.Resource, *Error) {
	row, err := m.storage.FetchVersion(ctx, ref, version, AllClasses)
	if err != nil {
		return nil, stored(err)
	}
	return m.content(ctx, row)
}

// without is a target without the link to the source, and without the identifiers that a merge took over from it.
func without(target, source *fhir.Resource) (*fhir.Resource, *Error) {
	taken := map[string]bool{}
	for _, id := range gjson.GetBytes(source.Text(), "identifier").Array() {
		taken[identified(id.Get("system").String(), id.Get("value").String())] = true
	}
	with := map[string]string{"link": ""}
	if rest := others(target, source.ID); rest != "" {
		with["link"] = "[" + rest[1:] + "]"
	}
	var kept []string
	all := gjson.GetBytes(target.Text(), "identifier").Array()
	for _, id := range all {
		if id.Get("use").String() != "old" || !taken[identified(id.Get("system").String(), id.Get("value").String())] {
			kept = append(kept, id.Raw)
		}
	}
	if len(kept) < len(all) {
		with["identifier"] = ""
		if len(kept) > 0 {
			with["identifier"] = "[" + strings.Join(kept, ",") + "]"
		}
	}
	return edited(target, with)
}

// returnBatch gives records a version that refers to the source again: the content that the merge found, or, where somebody has changed it since, what
// they made of it. It returns those that cannot be told apart: they named both patients, and were changed since.
func (m *mover) returnBatch(ctx context.Context, batch []MovedRow) (stayed []Ref, e *Error) {
	refs := make([]Ref, len(batch))
	for i, r := range batch {
		refs[i] = r.Ref
	}
	rows, err := m.storage.FetchMany(ctx, refs, AllClasses)
	if err != nil {
		return nil, stored(err)
	}
	var changes []*change
	for _, row := range rows {
		before := batch[slices.Index(refs, row.Ref)]
		if row.Erased || row.Deleted() || row.Version <= before.Version || slices.Equal(row.Patients, before.Patients) {
			continue
		}
		if e := m.verify(ctx, row); e != nil {
			return nil, e
		}
		var resource *fhir.Resource
		switch {
		case row.Version == before.Version+1:
			resource, e = m.contentOf(ctx, row.Ref, before.Version)
		case slices.Contains(before.Patients, m.req.Target):
			stayed = append(stayed, row.Ref)
			continue
		default:
			if resource, e = m.content(ctx, row); e == nil {
				resource = readdressed(resource, m.req.Target, m.req.Source)
			}
		}
		if e != nil {
			return nil, e
		}
		c := m.changing(row, resource, patientsOf(resource))
		if row.Type == "Patient" {
			c.patients, c.under = before.Patients, &m.of.SourceSubject
			if row.Subject != m.target.Subject {
				c.under = nil
			}
		}
		changes = append(changes, c)
	}
	if len(changes) == 0 {
		return stayed, nil
	}
	return stayed, m.store(ctx, changes)
}
