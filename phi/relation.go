package phi

import (
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Treatment is a treatment relationship that a record states: from From until before Until, where zero is open. Both are whole days
// (UTC), and of one that has begun it is not kept when: dates of treatment are among what identifies (45 CFR 164.514(b)(2)(i)(C)), and
// these are stored in the clear.
type Treatment struct {
	Practitioner, Patient string
	From, Until           time.Time
}

// relationKept is for how long relationships that are over are kept, at least: the longest tail that can be set.
const relationKept = 366 * 24 * time.Hour

// lifecycle is what a record's status says about the relationships that it states.
type lifecycle uint8

const (
	lifeUnderWay lifecycle = iota // they hold while the period says so
	lifePlanned                   // they begin with the period, and without one not at all
	lifeOver                      // they ended: with the period, on the day it began, or when that was written
	lifeNone                      // there never were any
)

func lifecycleOf(status string) lifecycle {
	switch status {
	case "planned", "waitlist":
		return lifePlanned
	case "finished", "inactive", "unknown":
		return lifeOver
	case "cancelled", "entered-in-error", "suspended", "proposed":
		return lifeNone
	}
	return lifeUnderWay
}

// treated is the patient whose treatment a record is about, if it states any.
func treated(r *fhir.Resource) (patient string, ok bool) {
	at := "subject.reference"
	switch r.Type {
	case "Encounter", "CareTeam":
	case "EpisodeOfCare":
		at = "patient.reference"
	default:
		return "", false
	}
	return patientReference(gjson.GetBytes(r.Text(), at).String())
}

// treatments derives what a record says about who treats whom, and when. The patient treated is the subject: others whom the record
// names (a relative in the care team) are not treated by it.
func treatments(r *fhir.Resource, now time.Time) []Treatment {
	subject, ok := treated(r)
	if !ok {
		return nil
	}
	var who, members string
	switch r.Type {
	case "Encounter":
		members, who = "participant", "individual.reference"
	case "CareTeam":
		members, who = "participant", "member.reference"
	case "EpisodeOfCare":
		members, who = "careManager", "reference"
	}
	doc := gjson.ParseBytes(r.Text())
	life := lifecycleOf(doc.Get("status").String())
	if life == lifeNone {
		return nil
	}
	var treats []Treatment
	add := func(member gjson.Result) {
		id, ok := strings.CutPrefix(member.Get(who).String(), "Practitioner/")
		id, _, _ = strings.Cut(id, "/_history/")
		if !ok || !fhir.ValidID(id) {
			return
		}
		t := Treatment{Practitioner: id, Patient: subject}
		for _, period := range []gjson.Result{doc.Get("period"), member.Get("period")} {
			if !t.within(period) {
				return
			}
		}
		if t.settle(life, now) {
			treats = append(treats, t)
		}
	}
	if list := doc.Get(members); list.IsArray() {
		for _, member := range list.Array() {
			add(member)
		}
	} else {
		add(list)
	}
	return treats
}

// within cuts a relationship down to a Period, in days. One that cannot be read leaves nothing.
func (t *Treatment) within(period gjson.Result) bool {
	const day = 24 * time.Hour
	if start := period.Get("start"); start.Exists() {
		from, _, ok := span(start.String())
		if !ok {
			return false
		}
		if from = from.Truncate(day); from.After(t.From) {
			t.From = from
		}
	}
	if end := period.Get("end"); end.Exists() {
		_, to, ok := span(end.String())
		if !ok {
			return false
		}
		if to = to.Add(day - 1).Truncate(day); t.Until.IsZero() || to.Before(t.Until) {
			t.Until = to
		}
	}
	return true
}

// settle applies what the status says, and reports whether there is something to keep.
func (t *Treatment) settle(life lifecycle, now time.Time) bool {
	const day = 24 * time.Hour
	switch {
	case life == lifePlanned && t.From.IsZero():
		return false
	case life == lifeOver && t.Until.IsZero():
		if t.Until = t.From.Add(day); t.From.IsZero() {
			t.Until = now.UTC().Truncate(day).Add(day)
		}
	}
	if !t.Until.IsZero() && (!t.From.Before(t.Until) || now.Sub(t.Until) > relationKept) {
		return false
	}
	if !t.From.After(now) {
		t.From = time.Time{}
	}
	return true
}
