package phi_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// TestEmergencyFilterIsCheck: over random charts, consents and rules that forbid, a search within a patient to whose chart the caller has
// emergency access finds what a read would show under it, and nothing else; without naming the patient it finds what it ever did.
func TestEmergencyFilterIsCheck(t *testing.T) {
	labels := []string{"", actCode + "|SUD", actCode + "|PSYTHPN"}
	w := newWard(t)
	ctx := context.Background()
	version := phitest.Policy().Version
	rescued := 0
	rapid.Check(t, func(r *rapid.T) {
		w.mine, w.other = w.create("Patient", adam), w.create("Patient", adam)
		w.treat(drRivera, w.mine)
		policy := phitest.Policy()
		policy.EmergencyOverConsent = rapid.Bool().Draw(r, "over consent")
		if rapid.Bool().Draw(r, "forbids") {
			policy.Permissions = append(policy.Permissions, auth.Permission{Role: "clinician", Type: rapid.SampledFrom([]string{"Observation", "*"}).Draw(r, "of type"),
				Interactions: "rs", Relation: auth.RelationNone, Effect: auth.Forbid,
				Segments: rapid.SampledFrom([][]string{nil, {"part2"}, {"psychotherapy"}}).Draw(r, "forbidden"), Purposes: rapid.SampledFrom([][]string{nil, {"TREAT"}, {"HRESCH"}}).Draw(r, "for")})
		}
		version++
		policy.Version = version
		w.Storage.SetPolicy(policy)
		all := []*phi.Written{w.mine, w.other}
		for range 4 {
			patient := rapid.SampledFrom(all[:2]).Draw(r, "patient")
			if label := rapid.SampledFrom(labels).Draw(r, "label"); label != "" {
				all = append(all, w.create("Observation", labelled(patient.ID, label)))
			} else {
				all = append(all, w.create("Observation", labelled(patient.ID)))
			}
		}
		for range rapid.IntRange(0, 2).Draw(r, "consents") {
			w.create("Consent", consent(rapid.SampledFrom(all[:2]).Draw(r, "of").ID, provision(r, 0)))
		}
		opened := rapid.SampledFrom(all[:2]).Draw(r, "opened")
		who := w.as(rapid.SampledFrom([]string{"dr-rivera", "dr-chen"}).Draw(r, "who"))
		p := who.Principal
		now := time.Now()
		w.Storage.Put(&auth.EmergencyAccess{ID: "3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11", Subject: p.Subject, Session: p.Session, Patient: opened.ID,
			State: auth.EmergencyGranted, RequestedAt: now, Until: now.Add(time.Hour), ReviewBy: now.Add(time.Hour)})
		w.refresh()
		for _, rec := range all {
			row := w.row(rec.Ref)
			d := w.Access.Check(ctx, p, auth.Request{Interaction: auth.Search, Type: rec.Type, Patients: row.Patients, Segment: auth.Segment(row.Segment)})
			query := params("_id", rec.ID)
			if rec.Type != "Patient" {
				query = params("patient", row.Patients[0], "_id", rec.ID)
			}
			page, err := w.Records.Search(ctx, who, rec.Type, query, false)
			// Notes that a consent opens are read, but no search finds them while there is a grant.
			found := err == nil && len(page.Resources) == 1
			if found != d.Allowed && (found || auth.Segment(row.Segment) != auth.SegmentPsychotherapy || !slices.Contains(row.Patients, opened.ID)) {
				r.Fatalf("%s of %s, opened %s: %+v, and the search finds %v (%v)", rec.Ref, row.Patients, opened.ID, d, found, err)
			}
			if d.Emergency != "" {
				rescued++
			}
			if d.Emergency == "" || !slices.Contains(row.Patients, opened.ID) || rec.Type == "Patient" {
				continue
			}
			if page, err := w.Records.Search(ctx, who, rec.Type, params("_id", rec.ID), false); err == nil && len(page.Resources) > 0 {
				r.Fatalf("%s is found without naming its patient", rec.Ref)
			}
		}
	})
	if rescued < 20 {
		t.Errorf("only %d records were opened by emergency access: the worlds are too dull", rescued)
	}
}
