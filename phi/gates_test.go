package phi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// consent is an active Consent of a patient's with a provision.
func consent(patient, provision string) string {
	return `{"resourceType":"Consent","status":"active","scope":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/consentscope","code":"patient-privacy"}]},` +
		`"category":[{"text":"privacy"}],"patient":{"reference":"Patient/` + patient + `"},"policyRule":{"text":"ours"},"provision":` + provision + `}`
}

const (
	toRivera = `"actor":[{"role":{"coding":[{"code":"IRCP"}]},"reference":{"reference":"Practitioner/dr-rivera"}}]`
	toChen   = `"actor":[{"role":{"coding":[{"code":"IRCP"}]},"reference":{"reference":"Practitioner/dr-chen"}}]`
	ofSUD    = `"securityLabel":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"SUD"}]`
	ofNotes  = `"securityLabel":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"PSYTHPN"}]`
)

// refresh has the room take over what was written, as auth.Access.Run does in time.
func (b *bench) refresh() {
	b.t.Helper()
	if err := b.Access.Refresh(context.Background()); err != nil {
		b.t.Fatal(err)
	}
}

// asSystem is work for the deployment itself.
func asSystem() *phi.Caller {
	return phitest.Caller(&auth.Principal{Subject: "system", Roles: []string{"backend"}, Scopes: auth.ParseScopes("system/*.cruds")})
}

// sees reports whether a caller gets to see a record: by a read, by its history, and by a search, which must agree.
func (w *ward) sees(who *phi.Caller, r *phi.Written) bool {
	w.t.Helper()
	ctx := context.Background()
	_, err := w.Records.Read(ctx, who, r.Ref)
	if err != nil {
		wantKind(w.t, err, phi.NotFound)
	}
	_, history := w.Records.History(ctx, who, r.Ref, 0, "")
	_, version := w.Records.ReadVersion(ctx, who, r.Ref, r.Version)
	page, search := w.Records.Search(ctx, who, r.Type, params("_id", r.ID), false)
	if search != nil {
		w.t.Fatal(search)
	}
	if found := len(page.Resources) == 1; found != (err == nil) || (history == nil) != found || (version == nil) != found || page.Total != len(page.Resources) {
		w.t.Errorf("%s: read %v, history %v, version %v, search finds %d of %d", r.Ref, err, history, version, len(page.Resources), page.Total)
	}
	return err == nil
}

// TestConsentDenies: a restriction (45 CFR 164.522(a)) hides the patient's records from whom it is about, takes effect with the commit, and
// ends with the Consent.
func TestConsentDenies(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	rivera := w.as("dr-rivera")
	if !w.sees(rivera, w.mine) || !w.sees(rivera, w.mineObs) {
		t.Fatal("the own patient is not to be seen")
	}
	c := w.create("Consent", consent(w.mine.ID, `{"type":"deny",`+toRivera+`}`))
	if w.sees(rivera, w.mine) || w.sees(rivera, w.mineObs) || w.sees(rivera, c) {
		t.Error("who is denied sees")
	}
	page, err := w.Records.Search(ctx, rivera, "Patient", nil, false)
	if err != nil || len(page.Resources) != 0 || page.Total != 0 {
		t.Errorf("who is denied finds %+v, %v", page, err)
	}
	_, err = w.Records.Create(ctx, rivera, "Observation", []byte(fmt.Sprintf(weight, w.mine.ID)), nil)
	wantKind(t, err, phi.Denied)
	_, err = w.Records.Update(ctx, rivera, w.mineObs.Ref, []byte(strings.Replace(fmt.Sprintf(weight, w.mine.ID), `{`, `{"id":"`+w.mineObs.ID+`",`, 1)), 0)
	if err == nil {
		t.Error("who is denied updates")
	}
	_, err = w.Records.Delete(ctx, rivera, c.Ref, 0)
	wantKind(t, err, phi.NotFound)
	if !w.sees(w.as("patient"), w.mine) || !w.sees(w.as("patient"), c) {
		t.Error("the patient does not see")
	}
	nurse := phitest.Caller(phitest.Principal("nurse", "Practitioner/nurse-2"))
	w.Storage.Grant("nurse-2", w.mine.ID)
	if !w.sees(nurse, w.mine) {
		t.Error("another does not see")
	}
	events := w.during(func() { _, err = w.Records.Read(ctx, rivera, w.mine.Ref) })
	if len(events) != 1 || events[0].Decision.Reason != string(auth.ReasonConsent) || events[0].Patient != w.mine.ID {
		t.Errorf("recorded %+v", events)
	}
	if _, err := w.Records.Delete(ctx, backend(), c.Ref, 0); err != nil {
		t.Fatal(err)
	}
	if !w.sees(rivera, w.mine) {
		t.Error("the Consent is gone and denies")
	}
}

// A denial of everybody is not of the patient, nor of the deployment's own work; and the Consent can be found by who is to lift it.
func TestConsentDeniesEverybody(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	text := consent(w.mine.ID, `{"type":"deny"}`)
	c := w.create("Consent", text)
	for _, who := range []*phi.Caller{w.as("dr-rivera"), w.as("nurse"), w.as("registrar"), w.as("billing"), w.as("backend")} {
		if w.sees(who, w.mine) {
			t.Errorf("%s sees", who.Principal.Roles)
		}
		if !w.sees(w.as("patient"), w.mine) || w.sees(w.as("registrar"), w.other) != true {
			t.Error("the patient does not see, or another patient's record is hidden")
		}
	}
	page, err := w.Records.Search(ctx, w.as("researcher"), "Observation", nil, false)
	if err != nil || len(page.Resources) != 1 {
		t.Errorf("a researcher finds %+v, %v", page, err)
	}
	if !w.sees(w.as("dr-rivera"), c) || w.sees(w.as("dr-chen"), c) {
		t.Error("the Consent is hidden from who treats the patient, or shown to who does not")
	}
	if _, err := w.Records.Create(ctx, asSystem(), "Observation", []byte(fmt.Sprintf(weight, w.mine.ID)), nil); err != nil {
		t.Errorf("the deployment cannot store: %v", err)
	}
	rejected := strings.Replace(strings.Replace(text, `"active"`, `"inactive"`, 1), `{`, `{"id":"`+c.ID+`",`, 1)
	if _, err := w.Records.Update(ctx, w.as("dr-rivera"), c.Ref, []byte(rejected), 0); err != nil {
		t.Fatalf("lifting the restriction: %v", err)
	}
	if !w.sees(w.as("dr-rivera"), w.mine) || !w.sees(w.as("registrar"), w.mine) {
		t.Error("a Consent that is not active denies")
	}
}

// TestSensitiveSegments: part 2 records and psychotherapy notes are shown to whom the role, or a consent, opens them; to everybody else who
// sees the chart they look like none.
func TestSensitiveSegments(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	sud := w.create("Observation", labelled(w.mine.ID, actCode+"|SUD"))
	note := w.create("Observation", labelled(w.mine.ID, actCode+"|PSYTHPN"))
	rivera, patient := w.as("dr-rivera"), w.as("patient")
	seen := func(what string, wantSUD, wantNote bool) {
		t.Helper()
		if w.sees(rivera, sud) != wantSUD || w.sees(rivera, note) != wantNote || !w.sees(rivera, w.mineObs) {
			t.Errorf("%s: the physician sees part 2 %v, notes %v", what, !wantSUD, !wantNote)
		}
		page, err := w.Records.Search(ctx, rivera, "Observation", params("patient", w.mine.ID), false)
		want := 1
		for _, shown := range []bool{wantSUD, wantNote} {
			if shown {
				want++
			}
		}
		if err != nil || len(page.Resources) != want || page.Total != want {
			t.Errorf("%s: a search finds %d, total %d, want %d (%v)", what, len(page.Resources), page.Total, want, err)
		}
	}
	seen("without consent", false, false)
	if !w.sees(patient, sud) || w.sees(patient, note) { // 45 CFR 164.524(a)(1)(i)
		t.Error("the patient sees the note, or not the part 2 record")
	}
	for _, who := range []string{"researcher"} { // a de-identified export leaves them out
		page, err := w.Records.Search(ctx, w.as(who), "Observation", nil, false)
		if err != nil || len(page.Resources) != 2 {
			t.Errorf("%s finds %d, %v", who, len(page.Resources), err)
		}
		_, err = w.Records.Read(ctx, w.as(who), sud.Ref)
		wantKind(t, err, phi.NotFound)
	}
	everybody := w.create("Consent", consent(w.mine.ID, `{"type":"permit",`+ofSUD+`}`))
	seen("part 2 opened to who treats", true, false)
	if w.sees(w.as("dr-chen"), sud) {
		t.Error("a consent makes no relationship")
	}
	w.create("Consent", consent(w.mine.ID, `{"type":"permit",`+ofNotes+`}`))
	seen("notes are not opened to everybody", true, false)
	w.create("Consent", consent(w.mine.ID, `{"type":"permit",`+toRivera+`,`+ofNotes+`}`))
	seen("notes opened by name", true, true)
	if _, err := w.Records.Delete(ctx, backend(), everybody.Ref, 0); err != nil {
		t.Fatal(err)
	}
	seen("part 2 closed again", false, true)

	// Who may write may write into a segment, and not read it back, nor change it.
	made, err := w.Records.Create(ctx, rivera, "Observation", []byte(labelled(w.mine.ID, actCode+"|SUD")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.sees(rivera, made) {
		t.Error("what was written into a closed segment is read back")
	}
	_, err = w.Records.Delete(ctx, rivera, made.Ref, 0)
	wantKind(t, err, phi.NotFound)
	_, err = w.Records.Update(ctx, rivera, made.Ref, []byte(strings.Replace(labelled(w.mine.ID), `{`, `{"id":"`+made.ID+`",`, 1)), 0)
	wantKind(t, err, phi.NotFound)
	// Of the refusal the event says what stayed shut, and whose it is, whatever the new content names.
	w.treat(drRivera, w.other)
	events := w.during(func() {
		_, err = w.Records.Update(ctx, rivera, made.Ref, []byte(strings.Replace(labelled(w.other.ID), `{`, `{"id":"`+made.ID+`",`, 1)), 0)
	})
	wantKind(t, err, phi.NotFound)
	if len(events) != 1 || events[0].Patient != w.mine.ID || events[0].Decision.Reason != string(auth.ReasonSegment) || !strings.Contains(string(events[0].Detail), "part2") {
		t.Errorf("recorded %+v", events)
	}
	// A version of the time when it was in a segment stays shut when the record is not any more.
	if _, err := w.Records.Update(ctx, backend(), made.Ref, []byte(strings.Replace(labelled(w.mine.ID), `{`, `{"id":"`+made.ID+`",`, 1)), 0); err != nil {
		t.Fatal(err)
	}
	history, err := w.Records.History(ctx, rivera, made.Ref, 0, "")
	if err != nil || len(history.Resources) != 1 || history.Resources[0].Version != 2 {
		t.Errorf("history: %+v, %v", history, err)
	}
	_, err = w.Records.ReadVersion(ctx, rivera, made.Ref, 1)
	wantKind(t, err, phi.NotFound)
	// And what was put into a segment late is shut with what it was before.
	late := w.create("Observation", labelled(w.mine.ID))
	if _, err := w.Records.Update(ctx, backend(), late.Ref, []byte(strings.Replace(labelled(w.mine.ID, actCode+"|SUD"), `{`, `{"id":"`+late.ID+`",`, 1)), 0); err != nil {
		t.Fatal(err)
	}
	if w.sees(rivera, late) {
		t.Error("a version from before the label is read")
	}
}

// A change of a Consent says in an event of its own what it does, and to its writer what of it cannot be applied. Nobody opens sensitive
// records to himself.
func TestConsentIsToldOf(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	var made *phi.Written
	var err error
	events := w.during(func() {
		made, err = w.Records.Create(ctx, w.as("dr-rivera"), "Consent", []byte(consent(w.mine.ID,
			`{"type":"deny","class":[{"code":"Observation"}],`+toChen+`,"provision":[{"type":"permit",`+toChen+`}]}`)), nil)
	})
	if err != nil || len(made.Warnings) != 1 || made.Warnings[0].Expression != "Consent.provision.class" {
		t.Fatalf("%+v, %v", made, err)
	}
	at := slices.IndexFunc(events, func(e audit.Event) bool { return e.Interaction == "consent-change" })
	if len(events) != 3 || at < 0 {
		t.Fatalf("recorded %+v", events)
	}
	if e := events[at]; e.Type != audit.TypePolicy || e.Outcome != audit.Intent || e.Patient != w.mine.ID || e.Correlation != events[2].Correlation ||
		e.OutcomeDesc != "1 provisions deny, 0 permit; not applied: Consent.provision.class" {
		t.Errorf("recorded %+v", e)
	}
	for _, provision := range []string{
		`{"type":"permit",` + toRivera + `,` + ofNotes + `}`, `{"type":"deny","provision":[{"type":"permit",` + toRivera + `,` + ofSUD + `}]}`,
		`{"type":"permit",` + ofSUD + `}`, // everybody is himself, too
	} {
		events = w.during(func() {
			_, err = w.Records.Create(ctx, w.as("dr-rivera"), "Consent", []byte(consent(w.mine.ID, provision)), nil)
		})
		wantKind(t, err, phi.Unprocessable)
		if len(events) != 1 || events[0].Decision.Reason != string(auth.ReasonSegment) {
			t.Errorf("recorded %+v", events)
		}
	}
	if _, err = w.Records.Create(ctx, w.as("dr-rivera"), "Consent", []byte(consent(w.mine.ID, `{"type":"permit",`+toChen+`,`+ofSUD+`}`)), nil); err != nil {
		t.Errorf("a consent to another: %v", err)
	}
	// What everybody may see but he, he does not take away.
	w.create("Consent", consent(w.mine.ID, `{"type":"permit",`+ofSUD+`}`))
	but := w.create("Consent", consent(w.mine.ID, `{"type":"deny",`+toRivera+`,`+ofSUD+`}`))
	_, err = w.Records.Delete(ctx, w.as("dr-rivera"), but.Ref, 0)
	wantKind(t, err, phi.Unprocessable)
	_, err = w.Records.Update(ctx, w.as("dr-rivera"), but.Ref, []byte(strings.Replace(consent(w.mine.ID, `{"type":"deny",`+toChen+`,`+ofSUD+`}`), `{`, `{"id":"`+but.ID+`",`, 1)), 0)
	wantKind(t, err, phi.Unprocessable)
	var actors strings.Builder
	for i := range 501 {
		fmt.Fprintf(&actors, `,{"role":{"text":"x"},"reference":{"reference":"Practitioner/d%d"}}`, i)
	}
	_, err = w.Records.Create(ctx, backend(), "Consent", []byte(consent(w.mine.ID, `{"type":"deny","actor":[`+actors.String()[1:]+`]}`)), nil)
	if e := wantKind(t, err, phi.Unprocessable); e.Issues[0].Code != "too-costly" {
		t.Errorf("%+v", e)
	}
}

// A record that names two patients is seen by who treats one of them. Who treats its subject is not his to say, nor that the other is its
// subject.
func TestNobodyJoinsTheCareTeamOfARelative(t *testing.T) {
	w := newWard(t)
	team := func(id, subject, member, with string) string {
		return fmt.Sprintf(`{"resourceType":"CareTeam",%s"status":"active","subject":{"reference":"Patient/%s"},"participant":[{"member":{"reference":"Patient/%s"}}%s]}`,
			id, subject, member, with)
	}
	const rivera = `,{"member":{"reference":"Practitioner/` + drRivera + `"}}`
	for _, c := range []struct{ subject, member string }{{w.other.ID, w.mine.ID}, {w.mine.ID, w.other.ID}} {
		made := w.create("CareTeam", team("", c.subject, c.member, ""))
		_, err := w.Records.Update(context.Background(), w.as("dr-rivera"), made.Ref, []byte(team(`"id":"`+made.ID+`",`, w.other.ID, w.mine.ID, rivera)), 0)
		wantKind(t, err, phi.Denied)
		w.refresh()
		if w.sees(w.as("dr-rivera"), w.other) {
			t.Error("the physician of one treats the other")
		}
	}
}

// TestRelationshipEnds plays a visit: it is prepared, it takes place, it is over, and its tail runs out.
func TestRelationshipEnds(t *testing.T) {
	w := newWard(t)
	now := time.Now()
	w.Storage.SetNow(func() time.Time { return now })
	start := now.AddDate(0, 0, 10).UTC()
	w.create("Encounter", fmt.Sprintf(`{"resourceType":"Encounter","status":"planned","class":{"code":"AMB"},"subject":{"reference":"Patient/%s"},`+
		`"period":{"start":"%s","end":"%s"},"participant":[{"individual":{"reference":"Practitioner/%s"}}]}`,
		w.other.ID, start.Format(time.DateOnly), start.AddDate(0, 0, 2).Format(time.DateOnly), drRivera))
	for _, c := range []struct {
		day  int
		want bool
	}{{0, false}, {6, false}, {7, true}, {10, true}, {12, true}, {42, true}, {43, false}, {400, false}} {
		now = start.Truncate(24*time.Hour).AddDate(0, 0, c.day-10).Add(time.Hour)
		w.Storage.Touch()
		w.refresh()
		if got := w.sees(w.as("dr-rivera"), w.other); got != c.want {
			t.Errorf("on day %d the physician sees: %v", c.day, got)
		}
	}
}

// TestFilterIsCheck: over random charts, consents, relationships and roles a search finds what a read would show, and nothing else.
func TestFilterIsCheck(t *testing.T) {
	labels := []string{"", actCode + "|SUD", actCode + "|PSYTHPN"}
	w := newWard(t)
	ctx := context.Background()
	version := phitest.Policy().Version
	rapid.Check(t, func(r *rapid.T) {
		w.mine, w.other = w.create("Patient", adam), w.create("Patient", adam)
		w.treat(drRivera, w.mine)
		// A role for which everything differs: what it may see of others, and segments that it has open or that are closed to it.
		policy := phitest.Policy()
		segments := rapid.SampledFrom([][]string{nil, {"part2"}, {"psychotherapy"}, {"part2", "psychotherapy"}})
		for i := range policy.Permissions {
			if p := &policy.Permissions[i]; p.Role == "clinician" || p.Role == "researcher" {
				p.Segments = segments.Draw(r, "open")
			}
		}
		if rapid.Bool().Draw(r, "forbids") {
			policy.Permissions = append(policy.Permissions, auth.Permission{Role: "clinician", Type: "Observation", Interactions: "rs", Relation: auth.RelationNone,
				Effect: auth.Forbid, Segments: segments.Draw(r, "forbidden")})
		}
		version++
		policy.Version = version
		w.Storage.SetPolicy(policy)
		var all []*phi.Written
		for range 4 {
			patient := rapid.SampledFrom([]*phi.Written{w.mine, w.other}).Draw(r, "patient")
			if label := rapid.SampledFrom(labels).Draw(r, "label"); label != "" {
				all = append(all, w.create("Observation", labelled(patient.ID, label)))
			} else {
				all = append(all, w.create("Observation", labelled(patient.ID)))
			}
		}
		all = append(all, w.create("Contract", `{"resourceType":"Contract","subject":[{"reference":"Patient/`+w.mine.ID+`"},{"reference":"Patient/`+w.other.ID+`"}]}`))
		for range rapid.IntRange(0, 3).Draw(r, "consents") {
			patient := rapid.SampledFrom([]*phi.Written{w.mine, w.other}).Draw(r, "of")
			all = append(all, w.create("Consent", consent(patient.ID, provision(r, 0))))
		}
		w.refresh()
		for _, who := range []*phi.Caller{w.as("dr-rivera"), w.as("dr-chen"), w.as("patient"), w.as("backend"), asSystem(),
			phitest.Caller(phitest.Principal("nurse", ""))} {
			for _, rec := range all {
				d := w.Access.Check(ctx, who.Principal, auth.Request{
					Interaction: auth.Search, Type: rec.Type, Patients: w.row(rec.Ref).Patients, Segment: auth.Segment(w.row(rec.Ref).Segment),
				})
				page, err := w.Records.Search(ctx, who, rec.Type, params("_id", rec.ID), false)
				found := err == nil && len(page.Resources) == 1
				if found != d.Allowed {
					r.Fatalf("%s of %s for %s: %+v, and the search finds %v (%v)", rec.Ref, w.row(rec.Ref).Patients, who.Principal.Subject, d, found, err)
				}
			}
		}
	})
}

// provision draws a provision of a Consent.
func provision(r *rapid.T, depth int) string {
	parts := []string{`"type":"` + rapid.SampledFrom([]string{"deny", "permit"}).Draw(r, "type") + `"`}
	for _, part := range []string{
		rapid.SampledFrom([]string{"", "", toRivera, toChen, `"actor":[{"role":{"text":"x"},"reference":{"reference":"Organization/o"}}]`}).Draw(r, "actor"),
		rapid.SampledFrom([]string{"", "", ofSUD, ofNotes}).Draw(r, "label"),
		rapid.SampledFrom([]string{"", "", `"purpose":[{"code":"TREAT"}]`, `"purpose":[{"code":"HRESCH"}]`}).Draw(r, "purpose"),
		rapid.SampledFrom([]string{"", "", `"period":{"end":"2020"}`, `"period":{"start":"2020"}`}).Draw(r, "period"),
	} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if depth < 2 && rapid.Bool().Draw(r, "nested") {
		parts = append(parts, `"provision":[`+provision(r, depth+1)+`]`)
	}
	return `{` + strings.Join(parts, ",") + `}`
}
