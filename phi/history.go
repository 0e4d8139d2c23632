package phi

import (
	"context"
	"errors"
	"slices"

	"github.com/chartkeep/chartkeep/audit"
)

// History returns versions of one record, newest first. page is "" or a Page.Next. The history of a deleted record can
// be read; its tombstones are entries without JSON.
func (r *Records) History(ctx context.Context, c *Caller, ref Ref, count int, page string) (*Page, error) {
	a := r.begin(c, verbHistory, ref)
	p, e := a.history(ctx, count, page)
	if e != nil {
		return nil, a.refuse(ctx, e)
	}
	a.finish()
	return p, nil
}

// version is a row of a history with what the caller may see of it.
type version struct {
	row      *Sealed
	view     view
	confines []confine
}

func (a *attempt) history(ctx context.Context, count int, page string) (*Page, *Error) {
	if e := a.checkRef(); e != nil {
		return nil, e
	}
	if e := a.permit(a.verb.letter, a.ref.Type); e != nil {
		return nil, e
	}
	scope := a.scope("history " + a.ref.String())
	var from cursor
	if page != "" {
		var err error
		if from, err = openCursor(a.pages, scope, page); err != nil {
			return nil, invalid("value", "the page is not one that was given to this caller").because(err)
		}
	}
	if e := a.continueExport(from); e != nil {
		return nil, e
	}
	count = pageSize(count)
	since := a.clock()
	rows, err := a.storage.FetchHistory(ctx, a.ref, a.view.classes, from.Before, count+1)
	a.trace.Database += a.clock() - since
	if err != nil {
		return nil, stored(err)
	}
	if len(rows) == 0 {
		a.decoy(ctx, notFound())
		return nil, notFound()
	}
	// The newest version decides whether there is anything to see at all; each version then decides about itself, because a
	// record may have moved between patients.
	if len(rows[0].Patients) > 0 {
		a.patient = rows[0].Patients[0]
	}
	if e := a.admit(ctx, a.verb.letter, a.ref.Type, rows[0].Patients, rows[0].Segment, notFound); e != nil {
		return nil, e
	}
	if rows[0].Erased && !a.confined() {
		return nil, erased()
	}
	result := &Page{Total: -1}
	if len(rows) > count {
		rows = rows[:count]
		if result.Next, err = sealCursor(a.pages, scope, a.exportIn(cursor{Before: rows[count-1].Version})); err != nil {
			return nil, unavailable(err)
		}
	} else if page == "" {
		result.Total = len(rows)
	}
	told := audit.Success
	if a.confined() {
		told = audit.Intent
	}
	events := a.events(told, a.ref, 0, rows[0].Patients)
	named := slices.Clone(rows[0].Patients)
	versions := make([]version, 0, len(rows))
	for _, row := range rows {
		if row.Erased { // of a patient whose record it once was
			if result.Total > 0 {
				result.Total--
			}
			continue
		}
		if e := a.admit(ctx, a.verb.letter, row.Type, row.Patients, row.Segment, notFound); e != nil {
			if e.Kind == Unavailable {
				return nil, e
			}
			if result.Total > 0 {
				result.Total--
			}
			continue
		}
		a.view.classes &= row.Fetched
		versions = append(versions, version{row, a.view, a.confines})
		for _, patient := range row.Patients { // whose record it was before it moved is told that it was read
			if !slices.Contains(named, patient) {
				named = append(named, patient)
				events = append(events, a.event(told, a.ref, row.Version, []string{patient}))
			}
		}
	}
	if told == audit.Intent {
		a.announce(events)
	}
	receipt, e := a.record(ctx, a.level.Disclosure, events...)
	if e != nil {
		return nil, e
	}
	shown := make([]*Sealed, 0, len(versions))
	for _, v := range versions {
		row := v.row
		a.view, a.confines = v.view, v.confines
		if row.Deleted() && a.confined() {
			continue
		}
		if row.Deleted() {
			if e := a.verify(ctx, row); e != nil {
				return nil, e
			}
			result.Resources = append(result.Resources, a.tombstone(row))
			continue
		}
		aead, e := a.aead(ctx, row)
		if e != nil {
			return nil, e
		}
		res, e := a.open(ctx, row, aead, receipt)
		if e != nil && errors.Is(e.Err, errOutside) {
			continue
		}
		if e != nil {
			return nil, e
		}
		result.Resources, shown = append(result.Resources, res), append(shown, row)
	}
	if told == audit.Intent {
		if result.Total > 0 {
			result.Total = len(shown)
		}
		if page == "" && (len(shown) == 0 || shown[0] != rows[0]) {
			return nil, a.outside()
		}
		return result, a.disclosedVersions(ctx, shown)
	}
	return result, nil
}

// disclosedVersions records what came of the intent to look into versions: which were shown, once for each patient whose they were.
func (a *attempt) disclosedVersions(ctx context.Context, shown []*Sealed) *Error {
	var named []string
	var events []*audit.Event
	for _, row := range shown {
		for _, patient := range row.Patients {
			if !slices.Contains(named, patient) {
				named = append(named, patient)
				events = append(events, a.event(audit.Success, a.ref, row.Version, []string{patient}))
			}
		}
	}
	if events == nil {
		events = a.events(audit.Success, a.ref, 0, nil)
	}
	return a.disclosed(ctx, events)
}

func (a *attempt) tombstone(row *Sealed) *Resource {
	res := &Resource{Ref: row.Ref, Version: row.Version, Updated: row.Updated, Method: row.Method, Deleted: true, Subsetted: !a.view.full()}
	if a.view.reduction == Deidentified {
		a.anonymous(res)
	}
	return res
}

// Page sizes: what applies when none is asked for, and the most that is given.
const (
	defaultCount = 50
	maximalCount = 200
)

func pageSize(asked int) int {
	if asked <= 0 {
		return defaultCount
	}
	return min(asked, maximalCount)
}
