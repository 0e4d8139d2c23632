package phi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// bundle makes a bundle of entries: fullUrl, method, url, resource, and further request members.
func bundle(kind string, entries ...[5]string) []byte {
	var list []string
	for _, e := range entries {
		resource := ""
		if e[3] != "" {
			resource = `"resource":` + e[3] + `,`
		}
		list = append(list, fmt.Sprintf(`{"fullUrl":%q,%s"request":{"method":%q,"url":%q%s}}`, e[0], resource, e[1], e[2], e[4]))
	}
	return []byte(`{"resourceType":"Bundle","type":"` + kind + `","entry":[` + strings.Join(list, ",") + `]}`)
}

const (
	urnPatient = "urn:uuid:0b6c5c0e-0c7d-4a4a-9f54-1d1b5c1d0001"
	urnOther   = "urn:uuid:0b6c5c0e-0c7d-4a4a-9f54-1d1b5c1d0002"
)

func weightOf(reference string) string {
	return strings.Replace(weight, "Patient/%s", reference, 1)
}

func TestTransaction(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	var result *phi.BundleResult
	var err error
	gone := w.create("Observation", fmt.Sprintf(weight, w.other.ID))
	events := w.during(func() {
		result, err = w.Records.Bundle(ctx, backend(), bundle("transaction",
			[5]string{"", "GET", "Patient/" + w.mine.ID},
			[5]string{urnOther, "POST", "Observation", weightOf(urnPatient)},
			[5]string{urnPatient, "POST", "Patient", strings.Replace(adam, "MRN-1", "MRN-3", 1)},
			[5]string{"", "PUT", "Organization/o1", `{"resourceType":"Organization","id":"o1","name":"Clinic"}`},
			[5]string{"", "DELETE", "Observation/" + gone.ID},
			[5]string{"", "POST", "Observation", weightOf("Patient?identifier=http://hospital.test/mrn|MRN-2")},
			[5]string{"", "POST", "Observation", weightOf("Patient?identifier=http://hospital.test/mrn|MRN-3")},
			[5]string{"", "POST", "Patient", adam, `,"ifNoneExist":"identifier=http://hospital.test/mrn|MRN-1"`},
			[5]string{"", "GET", "Observation?patient=" + w.mine.ID},
		))
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Type != "transaction-response" || len(result.Entries) != 9 {
		t.Fatalf("result %+v", result)
	}
	for i, e := range result.Entries {
		if e.Err != nil {
			t.Errorf("entry %d: %v", i, e.Err)
		}
	}
	patient := result.Entries[2].Written
	for i, id := range map[int]string{1: patient.ID, 5: w.other.ID, 6: patient.ID} {
		if !strings.Contains(string(result.Entries[i].Written.JSON.Reveal()), `"subject":{"reference":"Patient/`+id+`"}`) {
			t.Errorf("entry %d: %s", i, result.Entries[i].Written.JSON.Reveal())
		}
	}
	if !result.Entries[7].Written.Unchanged || result.Entries[7].Written.ID != w.mine.ID {
		t.Errorf("conditional create: %+v", result.Entries[7].Written)
	}
	if result.Entries[0].Resource.ID != w.mine.ID || len(result.Entries[8].Page.Resources) != 1 {
		t.Errorf("reads: %+v", result.Entries)
	}
	_, err = w.Records.Read(ctx, backend(), gone.Ref)
	wantKind(t, err, phi.Gone)
	intents, outcomes := 0, 0
	var correlation audit.ID
	for _, e := range events {
		switch {
		case e.Outcome == audit.Intent:
			intents++
			correlation = e.Correlation
		case e.Interaction == "transaction":
			outcomes++
			if e.Correlation != correlation || e.Outcome != audit.Success {
				t.Errorf("outcome %+v", e)
			}
		}
	}
	if intents != 6 || outcomes != 1 {
		t.Errorf("%d intents and %d outcomes of 6 writes", intents, outcomes)
	}
}

func TestTransactionAllOrNothing(t *testing.T) {
	w := newWard(t)
	good := [5]string{"", "POST", "Patient", adam}
	for name, c := range map[string]struct {
		who  string
		kind phi.Kind
		at   string
		with [][5]string
	}{
		"invalid":         {"backend", phi.Unprocessable, "Bundle.entry[1].resource.gender", [][5]string{{"", "POST", "Patient", `{"resourceType":"Patient","gender":"x"}`}}},
		"unresolved urn":  {"backend", phi.Unprocessable, "Bundle.entry[1].resource.subject", [][5]string{{"", "POST", "Observation", weightOf(urnPatient)}}},
		"no match":        {"backend", phi.Unprocessable, "Bundle.entry[1].resource.subject", [][5]string{{"", "POST", "Observation", weightOf("Patient?identifier=nobody")}}},
		"many matches":    {"backend", phi.PreconditionFailed, "Bundle.entry[1].resource.subject", [][5]string{{"", "POST", "Observation", weightOf("Patient?name=lind")}}},
		"no such patient": {"backend", phi.Unprocessable, "Bundle.entry[1].resource.subject", [][5]string{{"", "POST", "Observation", weightOf("Patient/nobody")}}},
		"bad url":         {"backend", phi.Invalid, "Bundle.entry[1].request.url", [][5]string{{"", "PUT", "Patient?name=x", adam}}},
		"no resource":     {"backend", phi.Invalid, "Bundle.entry[1].resource", [][5]string{{"", "POST", "Patient"}}},
		"twice": {"backend", phi.Invalid, "Bundle.entry[2]", [][5]string{
			{"", "PUT", "Organization/o", `{"resourceType":"Organization","id":"o","name":"a"}`},
			{"", "DELETE", "Organization/o"},
		}},
		"one condition for two": {"backend", phi.PreconditionFailed, "Bundle.entry[2]", [][5]string{
			{"", "POST", "Organization", `{"resourceType":"Organization","name":"a"}`, `,"ifNoneExist":"identifier=urn:x|1"`},
			{"", "POST", "Organization", `{"resourceType":"Organization","name":"b"}`, `,"ifNoneExist":"identifier=urn:x|1"`},
		}},
		"relative to another base": {"backend", phi.Unprocessable, "Bundle.entry[2].resource.subject", [][5]string{
			{"http://a.example/fhir/Patient/p", "POST", "Patient", `{"resourceType":"Patient","id":"p"}`},
			{"http://b.example/fhir/Observation/o", "POST", "Observation", strings.Replace(weightOf("Patient/p"), "{", `{"id":"o",`, 1)},
		}},
		"version":        {"backend", phi.PreconditionFailed, "Bundle.entry[1]", [][5]string{{"", "DELETE", "Observation/" + w.mineObs.ID, "", `,"ifMatch":"W/\"7\""`}}},
		"denied entry":   {"registrar", phi.Denied, "Bundle.entry[1]", [][5]string{{"", "POST", "Observation", weightOf("Patient/" + w.mine.ID)}}},
		"denied read":    {"registrar", phi.Denied, "Bundle.entry[1]", [][5]string{{"", "GET", "Observation?patient=" + w.mine.ID}}},
		"not mine":       {"dr-rivera", phi.Denied, "Bundle.entry[0]", [][5]string{{"", "POST", "Observation", weightOf("Patient/" + w.other.ID)}}},
		"delete unknown": {"backend", phi.NotFound, "Bundle.entry[1]", [][5]string{{"", "DELETE", "Observation/nobody"}}},
	} {
		t.Run(name, func(t *testing.T) {
			before := w.Storage.Len()
			var err error
			events := w.during(func() {
				_, err = w.Records.Bundle(context.Background(), w.as(c.who), bundle("transaction", append([][5]string{good}, c.with...)...))
			})
			e := wantKind(t, err, c.kind)
			if e.Issues[0].Expression != c.at {
				t.Errorf("expression %q, want %q", e.Issues[0].Expression, c.at)
			}
			if w.Storage.Len() != before {
				t.Error("a part of the transaction was stored")
			}
			if last := events[len(events)-1]; last.Interaction != "transaction" || last.Outcome != audit.MinorFailure {
				t.Errorf("recorded %+v", last)
			}
		})
	}
}

func TestBatch(t *testing.T) {
	w := newWard(t)
	result, err := w.Records.Bundle(context.Background(), w.as("dr-rivera"), bundle("batch",
		[5]string{"", "GET", "Patient/" + w.mine.ID},
		[5]string{"", "GET", "Patient/" + w.other.ID},
		[5]string{"", "POST", "Observation", weightOf("Patient/" + w.mine.ID)},
		[5]string{"", "POST", "Observation", weightOf("Patient/" + w.other.ID)},
		[5]string{"", "PATCH", "Observation/" + w.mineObs.ID},
		[5]string{"", "POST", "Observation", `{"resourceType":"Observation","status":"x"}`},
		[5]string{"", "GET", "Observation?patient=" + w.mine.ID},
	))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []phi.Kind{0, phi.NotFound, 0, phi.Denied, phi.Invalid, phi.Unprocessable, 0} {
		got := result.Entries[i].Err
		if (got == nil) != (want == 0) || got != nil && got.Kind != want {
			t.Errorf("entry %d: %v, want %v", i, got, want)
		}
	}
	if len(result.Entries[6].Page.Resources) != 2 {
		t.Error("reads come after writes")
	}
}

func TestBundleRefused(t *testing.T) {
	w := newWard(t)
	many := strings.TrimSuffix(strings.Repeat(`{"request":{"method":"GET","url":"Patient/1"}},`, 5001), ",")
	for name, c := range map[string]struct {
		body string
		kind phi.Kind
	}{
		"malformed":    {`{"resourceType":"Bundle"`, phi.Invalid},
		"no bundle":    {adam, phi.Invalid},
		"document":     {`{"resourceType":"Bundle","type":"document","entry":[]}`, phi.Invalid},
		"too many":     {`{"resourceType":"Bundle","type":"batch","entry":[` + many + `]}`, phi.TooLarge},
		"entry string": {`{"resourceType":"Bundle","type":"batch","entry":"x"}`, phi.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Records.Bundle(context.Background(), backend(), []byte(c.body))
			wantKind(t, err, c.kind)
		})
	}
}

func TestImportReportsBadEntries(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	file := bundle("transaction",
		[5]string{urnPatient, "POST", "Patient", adam},
		[5]string{urnOther, "POST", "Patient", `{"resourceType":"Patient","gender":"x"}`},
		[5]string{"", "POST", "Observation", weightOf(urnPatient)},
		[5]string{"", "POST", "Observation", weightOf(urnOther)},
	)
	var res *phi.ImportResult
	var err error
	events := b.during(func() { res, err = b.Records.Import(ctx, backend(), file, false) })
	if err != nil || res.Written != 2 || len(res.Failed) != 2 || res.Failed[0].Entry != 1 || res.Failed[1].Entry != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
	if e := res.Failed[0].Err.Issues[0]; e.Expression != "Bundle.entry[1].resource.gender" {
		t.Errorf("%+v", e)
	}
	if last := events[len(events)-1]; last.Type != audit.TypeImport || last.Outcome != audit.MinorFailure {
		t.Errorf("recorded %+v", last)
	}
	for name, text := range map[string]string{"truncated": string(file[:100]), "empty": "", "array": "[]"} {
		_, err := b.Records.Import(ctx, backend(), []byte(text), true)
		if err == nil {
			t.Errorf("%s went in", name)
			continue
		}
		wantKind(t, err, phi.Invalid)
	}
}

func TestImportWaitsForOtherFiles(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	files := []string{
		strings.Replace(fmt.Sprintf(weight, "p1"), `{"resourceType":"Observation"`, `{"resourceType":"Observation","id":"o1"`, 1),
		string(bundle("transaction", [5]string{"", "POST", "Observation", weightOf("Patient?identifier=MRN-1")})),
		string(bundle("transaction", [5]string{"", "POST", "Observation", weightOf("Patient?identifier=MRN-9")})),
	}
	for _, f := range files {
		if res, err := b.Records.Import(ctx, backend(), []byte(f), false); err != nil || !res.Deferred || b.Storage.Len() != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	patient := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"p1"`, 1)
	for _, f := range append([]string{patient}, files[:2]...) {
		if res, err := b.Records.Import(ctx, backend(), []byte(f), false); err != nil || res.Written != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	res, err := b.Records.Import(ctx, backend(), []byte(files[2]), true)
	if err != nil || len(res.Failed) != 1 || res.Failed[0].Err.Kind != phi.Unprocessable {
		t.Fatalf("%+v, %v", res, err)
	}
}

// What was edited or deleted after an import stays so.
func TestImportAgainLeavesEdits(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	patient := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"p1"`, 1)
	ref := phi.Ref{Type: "Patient", ID: "p1"}
	if _, err := b.Records.Import(ctx, backend(), []byte(patient), true); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Records.Update(ctx, backend(), ref, []byte(strings.Replace(patient, "male", "other", 1)), 0); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{" ", "\n"} {
		res, err := b.Records.Import(ctx, backend(), []byte(patient+step), true)
		if err != nil || res.Unchanged != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		if _, err := b.Records.Delete(ctx, backend(), ref, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.Records.Read(ctx, backend(), ref)
	wantKind(t, err, phi.Gone)
}

func TestImportTwoFilesOneOrganisation(t *testing.T) {
	b := newBench(t)
	org := `{"resourceType":"Organization","identifier":[{"system":"http://npi.test","value":"7"}],"name":"Clinic"}`
	for i, urn := range []string{urnPatient, urnOther} {
		res, err := b.Records.Import(context.Background(), backend(),
			bundle("transaction", [5]string{urn, "POST", "Organization", org, `,"ifNoneExist":"identifier=http://npi.test|7"`}), true)
		if err != nil || res.Written != 1-i || res.Unchanged != i {
			t.Fatalf("file %d: %+v, %v", i, res, err)
		}
	}
}

func TestImportHistoryTakesTheNewest(t *testing.T) {
	b := newBench(t)
	version := func(name string) string { return `{"resourceType":"Organization","id":"o1","name":"` + name + `"}` }
	res, err := b.Records.Import(context.Background(), backend(), bundle("history",
		[5]string{"", "DELETE", "Organization/o2"},
		[5]string{"", "PUT", "Organization/o1", version("new")},
		[5]string{"", "POST", "Organization", version("old")},
		[5]string{"", "POST", "Organization", strings.Replace(version("dead"), "o1", "o2", 1)},
	), true)
	if err != nil || res.Written != 1 || len(res.Failed) != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	got, err := b.Records.Read(context.Background(), backend(), phi.Ref{Type: "Organization", ID: "o1"})
	if err != nil || !strings.Contains(string(got.JSON.Reveal()), "new") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestImportKnowsWhatWasPut(t *testing.T) {
	b := newBench(t)
	patient := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"p1"`, 1)
	if _, err := b.Records.Update(context.Background(), backend(), phi.Ref{Type: "Patient", ID: "p1"}, []byte(patient), 0); err != nil {
		t.Fatal(err)
	}
	if res, err := b.Records.Import(context.Background(), backend(), []byte(patient), true); err != nil || res.Unchanged != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}

// What a client copied from another server refers to its entries relative to their full URLs.
func TestReferencesRelativeToFullURL(t *testing.T) {
	b := newBench(t)
	const base = "http://a.example/fhir/"
	result, err := b.Records.Bundle(context.Background(), backend(), bundle("transaction",
		[5]string{base + "Observation/o", "POST", "Observation", weightOf("Patient/p")},
		[5]string{base + "Patient/p", "POST", "Patient", `{"resourceType":"Patient","id":"p"}`}))
	if err != nil {
		t.Fatal(err)
	}
	if want := `"reference":"Patient/` + result.Entries[1].Written.ID + `"`; !strings.Contains(string(result.Entries[0].Written.JSON.Reveal()), want) {
		t.Errorf("%s is not in %s", want, result.Entries[0].Written.JSON.Reveal())
	}
}
