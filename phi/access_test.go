package phi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

const (
	drRivera = "dr-rivera"
	drChen   = "dr-chen"
)

// ward is a bench with two patients, of whom dr-rivera treats the first by an Encounter.
type ward struct {
	*bench
	mine, other       *phi.Written
	mineObs, otherObs *phi.Written
}

func newWard(t *testing.T) *ward {
	w := &ward{bench: newBench(t)}
	w.mine = w.create("Patient", adam)
	w.other = w.create("Patient", strings.NewReplacer("Lindqvist", "Lindgren", "MRN-1", "MRN-2", "1970", "1980", `"male"`, `"female"`).Replace(adam))
	w.mineObs = w.create("Observation", fmt.Sprintf(weight, w.mine.ID))
	w.otherObs = w.create("Observation", fmt.Sprintf(weight, w.other.ID))
	w.treat(drRivera, w.mine)
	return w
}

// treat makes an Encounter that is under way.
func (w *ward) treat(practitioner string, patient *phi.Written) {
	w.t.Helper()
	w.create("Encounter", fmt.Sprintf(`{"resourceType":"Encounter","status":"in-progress",`+
		`"class":{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"AMB"},"subject":{"reference":"Patient/%s"},`+
		`"participant":[{"individual":{"reference":"Practitioner/%s"}}]}`, patient.ID, practitioner))
}

func (w *ward) as(role string) *phi.Caller {
	switch role {
	case "dr-rivera", "dr-chen":
		return clinician(role)
	case "nurse":
		return phitest.Caller(phitest.Principal("nurse", "Practitioner/"+drRivera))
	case "patient":
		return phitest.Caller(phitest.Principal("patient", "Patient/"+w.mine.ID))
	}
	return phitest.Caller(phitest.Principal(role, ""))
}

// The matrix of personas: what a read of each record gives, as the classes that come out.
func TestAccessMatrix(t *testing.T) {
	w := newWard(t)
	full, demographics, deidentified := "identifier name birthDate telecom gender", "identifier name birthDate telecom", "birthDate gender"
	obs := "code note"
	for _, c := range []struct {
		who     string
		patient [2]any // mine, other: what is shown, or the refusal
		obs     [2]any
	}{
		{"dr-rivera", [2]any{full, phi.NotFound}, [2]any{obs, phi.NotFound}},
		{"dr-chen", [2]any{phi.NotFound, phi.NotFound}, [2]any{phi.NotFound, phi.NotFound}},
		{"nurse", [2]any{full, phi.NotFound}, [2]any{obs, phi.NotFound}},
		{"patient", [2]any{full, phi.NotFound}, [2]any{obs, phi.NotFound}},
		{"backend", [2]any{full, full}, [2]any{obs, obs}},
		{"registrar", [2]any{demographics, demographics}, [2]any{phi.Denied, phi.Denied}},
		{"billing", [2]any{demographics, demographics}, [2]any{phi.Denied, phi.Denied}},
		{"researcher", [2]any{deidentified, deidentified}, [2]any{"code", "code"}},
		{"officer", [2]any{phi.Denied, phi.Denied}, [2]any{phi.Denied, phi.Denied}},
		{"security", [2]any{phi.Denied, phi.Denied}, [2]any{phi.Denied, phi.Denied}},
		{"admin", [2]any{phi.Denied, phi.Denied}, [2]any{phi.Denied, phi.Denied}},
	} {
		for i, read := range []struct {
			ref  phi.Ref
			want any
		}{{w.mine.Ref, c.patient[0]}, {w.other.Ref, c.patient[1]}, {w.mineObs.Ref, c.obs[0]}, {w.otherObs.Ref, c.obs[1]}} {
			t.Run(fmt.Sprintf("%s/%s %d", c.who, read.ref.Type, i%2), func(t *testing.T) {
				var res *phi.Resource
				var err error
				events := w.during(func() { res, err = w.Records.Read(context.Background(), w.as(c.who), read.ref) })
				if len(events) != 1 || events[0].RequestID != "request-1" {
					t.Fatalf("recorded %+v", events)
				}
				if kind, refused := read.want.(phi.Kind); refused {
					wantKind(t, err, kind)
					if events[0].Decision.Allowed || events[0].Outcome != audit.MinorFailure || events[0].Decision.Reason == "" {
						t.Errorf("recorded %+v", events[0])
					}
					if kind == phi.NotFound && events[0].Patient == "" {
						t.Error("the refusal does not say which patient it concerned")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, element := range strings.Fields(full + " " + obs) {
					want := strings.Contains(" "+read.want.(string)+" ", " "+element+" ")
					if got := strings.Contains(string(res.JSON.Reveal()), `"`+element+`":`); got != want && (element != "code" || read.ref.Type != "Patient") {
						t.Errorf("%s shown: %v, want %v in %s", element, got, want, res.JSON.Reveal())
					}
				}
				if subsetted := read.want != full && read.want != obs; res.Subsetted != subsetted || strings.Contains(string(res.JSON.Reveal()), "SUBSETTED") != subsetted {
					t.Errorf("SUBSETTED is wrong in %s", res.JSON.Reveal())
				}
				if !events[0].Decision.Allowed || events[0].Decision.Rule == "" || len(events[0].Classes) == 0 || events[0].Patient == "" {
					t.Errorf("recorded %+v", events[0])
				}
			})
		}
	}
}

func TestDeidentifiedShowsNoIdentity(t *testing.T) {
	w := newWard(t)
	res, err := w.Records.Read(context.Background(), w.as("researcher"), w.mineObs.Ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{w.mine.ID, w.mineObs.ID, "2024-05-06", "weighed", "versionId", "lastUpdated"} {
		if strings.Contains(string(res.JSON.Reveal()), word) || res.ID == word {
			t.Errorf("%s is in %s", word, res.JSON.Reveal())
		}
	}
	again, err := w.Records.Read(context.Background(), w.as("researcher"), w.mineObs.Ref)
	if err != nil || again.ID == res.ID {
		t.Errorf("two exports have the pseudonym %s: %v", res.ID, err)
	}
	for _, p := range [][]phi.Param{params("patient", w.mine.ID), params("subject", "Patient/"+w.mine.ID)} {
		_, err := w.Records.Search(context.Background(), w.as("researcher"), "Observation", p, false)
		wantKind(t, err, phi.Denied)
	}
	page, err := w.Records.Search(context.Background(), w.as("researcher"), "Observation", params("code", "29463-7"), false)
	if err != nil || len(page.Resources) != 2 {
		t.Fatalf("search by code: %+v, %v", page, err)
	}
	_, err = w.Records.Search(context.Background(), w.as("researcher"), "Observation", params("_lastUpdated", "gt2024-05-06"), false)
	wantKind(t, err, phi.Denied)
	page, err = w.Records.Search(context.Background(), w.as("researcher"), "Observation", params("date", "2024-05-06"), false)
	if err != nil || len(page.Resources) != 0 {
		t.Errorf("a day finds %+v in a view of years, %v", page, err)
	}
}

func TestWhoMayWrite(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	create := func(who, resourceType, body string) error {
		_, err := w.Records.Create(ctx, w.as(who), resourceType, []byte(body), nil)
		return err
	}
	if err := create("dr-rivera", "Observation", fmt.Sprintf(weight, w.mine.ID)); err != nil {
		t.Errorf("for a patient of mine: %v", err)
	}
	// Another doctor's patient, and nobody: the same answer.
	wantKind(t, create("dr-rivera", "Observation", fmt.Sprintf(weight, w.other.ID)), phi.Denied)
	wantKind(t, create("dr-rivera", "Observation", fmt.Sprintf(weight, "nobody")), phi.Denied)
	wantKind(t, create("patient", "Observation", fmt.Sprintf(weight, w.mine.ID)), phi.Denied)
	wantKind(t, create("researcher", "Observation", fmt.Sprintf(weight, w.mine.ID)), phi.Denied)

	// A registrar registers, and sees of it what registrars see.
	reg, err := w.Records.Create(ctx, w.as("registrar"), "Patient", []byte(adam), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reg.Subsetted || strings.Contains(string(reg.JSON.Reveal()), `"gender"`) || !strings.Contains(string(reg.JSON.Reveal()), "Lindqvist") {
		t.Errorf("registered %s", reg.JSON.Reveal())
	}
	// Who sees a part cannot replace or remove the whole.
	body := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"`+reg.ID+`"`, 1)
	_, err = w.Records.Update(ctx, w.as("registrar"), reg.Ref, []byte(body), 0)
	wantKind(t, err, phi.Denied)
	_, err = w.Records.Delete(ctx, w.as("nurse"), w.mineObs.Ref, 0)
	wantKind(t, err, phi.Denied)
	_, err = w.Records.Delete(ctx, w.as("dr-rivera"), w.otherObs.Ref, 0)
	wantKind(t, err, phi.NotFound)

	// A record cannot be moved away from, or to, a patient who is not the caller's.
	moved := strings.Replace(fmt.Sprintf(weight, w.mine.ID), `{"resourceType":"Observation"`, `{"resourceType":"Observation","id":"`+w.otherObs.ID+`"`, 1)
	_, err = w.Records.Update(ctx, w.as("dr-rivera"), w.otherObs.Ref, []byte(moved), 0)
	wantKind(t, err, phi.NotFound)
	moved = strings.Replace(fmt.Sprintf(weight, w.other.ID), `{"resourceType":"Observation"`, `{"resourceType":"Observation","id":"`+w.mineObs.ID+`"`, 1)
	_, err = w.Records.Update(ctx, w.as("dr-rivera"), w.mineObs.Ref, []byte(moved), 0)
	wantKind(t, err, phi.Denied)
	names := func(events []audit.Event) (patients []string) {
		for _, e := range events {
			patients = append(patients, e.Patient)
		}
		return patients
	}
	events := w.during(func() {
		if _, err = w.Records.Update(ctx, w.as("backend"), w.mineObs.Ref, []byte(moved), 0); err != nil {
			t.Fatalf("moving a record: %v", err)
		}
	})
	if got := names(events); !slices.Contains(got, w.mine.ID) || !slices.Contains(got, w.other.ID) {
		t.Errorf("moving a record is told of %v", got)
	}
	events = w.during(func() {
		if _, err := w.Records.History(ctx, w.as("backend"), w.mineObs.Ref, 0, ""); err != nil {
			t.Fatal(err)
		}
	})
	if got := names(events); !slices.Contains(got, w.mine.ID) || !slices.Contains(got, w.other.ID) {
		t.Errorf("the history of a moved record is told of %v", got)
	}
	_, err = w.Records.Read(ctx, w.as("dr-rivera"), w.mineObs.Ref)
	wantKind(t, err, phi.NotFound)
	if res, err := w.Records.Read(ctx, w.as("backend"), w.mineObs.Ref); err != nil || res.Version != 2 {
		t.Errorf("the moved record: %v", err)
	}
}

// A type that FHIR's compartment leaves out is not everybody's when it names a patient.
func TestDeviceBelongsToItsPatient(t *testing.T) {
	w := newWard(t)
	d := w.create("Device", `{"resourceType":"Device","patient":{"reference":"Patient/`+w.other.ID+`"}}`)
	_, err := w.Records.Read(context.Background(), w.as("dr-rivera"), d.Ref)
	wantKind(t, err, phi.NotFound)
	page, err := w.Records.Search(context.Background(), w.as("dr-rivera"), "Device", nil, false)
	if err != nil || len(page.Resources) != 0 {
		t.Errorf("search found %+v, %v", page, err)
	}
}

func TestTreatmentFollowsTheEncounter(t *testing.T) {
	w := newWard(t)
	team := w.create("CareTeam", fmt.Sprintf(`{"resourceType":"CareTeam","status":"active","subject":{"reference":"Patient/%s"},`+
		`"participant":[{"member":{"reference":"Practitioner/%s"}}]}`, w.other.ID, drChen))
	if _, err := w.Records.Read(context.Background(), w.as("dr-chen"), w.other.Ref); err != nil {
		t.Fatalf("as a member of the care team: %v", err)
	}
	if _, err := w.Records.Delete(context.Background(), w.as("backend"), team.Ref, 0); err != nil {
		t.Fatal(err)
	}
	// The storage's next answer is no; a decision that was cached is dropped when auth follows the epoch.
	facts, err := w.Storage.Facts(context.Background(), auth.Actor{Practitioner: drChen}, []string{w.other.ID})
	if err != nil || facts[0].Related != "" {
		t.Errorf("still related after the care team is gone: %+v, %v", facts, err)
	}
}

// A type outside FHIR's patient compartment may name several patients, in a list: it belongs to each.
func TestContractBelongsToItsPatients(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	const contract = `{"resourceType":"Contract","subject":[%s]}`
	subject := func(r *phi.Written) string { return `{"reference":"Patient/` + r.ID + `"}` }
	others := w.create("Contract", fmt.Sprintf(contract, subject(w.other)))
	_, err := w.Records.Read(ctx, w.as("dr-rivera"), others.Ref)
	wantKind(t, err, phi.NotFound)
	both := w.create("Contract", fmt.Sprintf(contract, subject(w.other)+","+subject(w.mine)))
	if _, err := w.Records.Read(ctx, w.as("dr-rivera"), both.Ref); err != nil {
		t.Errorf("a contract of the own patient and another: %v", err)
	}
	_, err = w.Records.Create(ctx, w.as("backend"), "Contract", []byte(fmt.Sprintf(contract, `{"reference":"http://127.0.0.1/fhir/R4/Patient/p"}`)), nil)
	wantKind(t, err, phi.Unprocessable)
}

// A record of a patient who cannot be told is not everybody's.
func TestStrayRecords(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	const stray = `{"resourceType":"Observation","status":"final","code":{"text":"stray"},"subject":{"reference":"%s"}}`
	for _, reference := range []string{
		"http://127.0.0.1/fhir/R4/Patient/" + w.other.ID, "urn:uuid:6b1f3d6a-5a7e-4e53-9f4e-0d8ff2a4a001", "Patient?identifier=MRN-2", "Group/g",
	} {
		body := []byte(fmt.Sprintf(stray, reference))
		_, err := w.Records.Create(ctx, w.as("dr-rivera"), "Observation", body, nil)
		wantKind(t, err, phi.Unprocessable)
		kept, err := w.Records.Create(ctx, w.as("backend"), "Observation", body, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, who := range []string{"dr-rivera", "dr-chen", "nurse", "patient"} {
			_, err := w.Records.Read(ctx, w.as(who), kept.Ref)
			wantKind(t, err, phi.NotFound)
			page, err := w.Records.Search(ctx, w.as(who), "Observation", params("_id", kept.ID), false)
			if err != nil || len(page.Resources) != 0 {
				t.Errorf("%s finds %+v, %v", who, page, err)
			}
		}
		if page, err := w.Records.Search(ctx, w.as("backend"), "Observation", params("_id", kept.ID), false); err != nil || len(page.Resources) != 1 {
			t.Errorf("backend finds %+v, %v", page, err)
		}
	}
	// Nor does a record get lost by taking its patient out.
	body := strings.Replace(fmt.Sprintf(stray, "Group/g"), `{`, `{"id":"`+w.mineObs.ID+`",`, 1)
	_, err := w.Records.Update(ctx, w.as("dr-rivera"), w.mineObs.Ref, []byte(body), 0)
	wantKind(t, err, phi.Unprocessable)
	// A type outside the compartment that names a patient of nowhere would be nobody's, and is refused.
	for _, device := range []string{
		`{"resourceType":"Device","patient":{"reference":"http://127.0.0.1/fhir/R4/Patient/p"}}`,
		`{"resourceType":"Device","contained":[{"resourceType":"Patient","id":"p"}],"patient":{"reference":"#p"}}`,
	} {
		_, err := w.Records.Create(ctx, w.as("backend"), "Device", []byte(device), nil)
		wantKind(t, err, phi.Unprocessable)
	}
}

// Who treats one patient cannot name another beside, to write into that chart or to be counted as treating.
func TestEachPatientNamedIsDecidedAbout(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	team := []byte(fmt.Sprintf(`{"resourceType":"CareTeam","status":"active","subject":{"reference":"Patient/%s"},`+
		`"participant":[{"member":{"reference":"Patient/%s"}},{"member":{"reference":"Practitioner/%s"}}]}`, w.mine.ID, w.other.ID, drRivera))
	_, err := w.Records.Create(ctx, w.as("dr-rivera"), "CareTeam", team, nil)
	wantKind(t, err, phi.Denied)
	kept, err := w.Records.Create(ctx, w.as("backend"), "CareTeam", team, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Records.Read(ctx, w.as("dr-rivera"), w.other.Ref)
	wantKind(t, err, phi.NotFound)
	if _, err := w.Records.Read(ctx, w.as("dr-rivera"), kept.Ref); err != nil {
		t.Errorf("the team of the own patient: %v", err)
	}
	// What it names already may stay when the record is edited.
	edited := strings.Replace(string(team), `{`, `{"id":"`+kept.ID+`",`, 1)
	if _, err := w.Records.Update(ctx, w.as("dr-rivera"), kept.Ref, []byte(edited), 0); err != nil {
		t.Errorf("editing the team of the own patient: %v", err)
	}
}

// A condition tells nothing about records that the caller could not find by searching.
func TestConditionsSeeWhatTheCallerSees(t *testing.T) {
	w := newWard(t)
	ctx := context.Background()
	mine := fmt.Sprintf(weight, w.mine.ID)
	for _, value := range []string{"29463-7", "other"} { // what the other patient has, and has not
		condition := []phi.Param{{Name: "patient", Value: w.other.ID}, {Name: "code", Value: value}}
		res, err := w.Records.Create(ctx, w.as("dr-rivera"), "Observation", []byte(mine), condition)
		if err != nil || !res.Created {
			t.Errorf("a conditional create on another's %s: %+v, %v", value, res, err)
		}
		bundle := fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"POST","url":"Observation"},"resource":%s}]}`,
			strings.TrimSuffix(mine, "}")+`,"focus":[{"reference":"Observation?patient=`+w.other.ID+`&code=`+value+`"}]}`)
		_, err = w.Records.Bundle(ctx, w.as("dr-rivera"), []byte(bundle))
		wantKind(t, err, phi.Unprocessable)
	}
	for _, family := range []string{"Lindgren", "Nobody"} {
		_, err := w.Records.Create(ctx, w.as("dr-chen"), "Patient", []byte(adam), []phi.Param{{Name: "family", Value: family}})
		wantKind(t, err, phi.Denied)
	}
}
