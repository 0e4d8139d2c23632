package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/server/demo"
)

var updateViews = flag.Bool("update-views", false, "rewrite testdata/views.md")

// purposesOfUse are those that callers name; the ones that no permission has are refused like any other.
var purposesOfUse = []string{"TREAT", "ETREAT", "BTG", "HPAYMT", "HOPERAT", "HRESCH", "PATRQT", "PUBHLTH"}

// sight is what a role sees of a type for a purpose, as the policy in the database has it.
type sight struct {
	may       string // letters of cruds
	view      string // its name
	classes   phi.ClassSet
	reduction phi.Reduction
	relation  string
}

// sights asks the policy for every role, purpose and type.
func sights(t *testing.T, access *auth.Access, role, purpose, resourceType string) []sight {
	t.Helper()
	level := map[string]string{"backend": "system", "patient": "patient"}[role]
	if level == "" {
		level = "user"
	}
	p := &auth.Principal{Subject: "s", Roles: []string{role}, Scopes: auth.ParseScopes(level + "/*.cruds"), Patient: "p", Expires: time.Now().Add(time.Hour)}
	var found []sight
	for _, letter := range "cruds" {
		d := access.Type(p, auth.Interaction(letter), resourceType, purpose)
		if !d.Allowed {
			continue
		}
		s := sight{may: string(letter), view: d.View, relation: d.Rule[strings.LastIndexByte(d.Rule, ':')+1:]}
		var ok bool
		if s.classes, s.reduction, ok = phi.ViewOf(d.View, resourceType); !ok {
			t.Fatalf("%s sees %s in view %q, which is none", role, resourceType, d.View)
		}
		if n := len(found); n > 0 && found[n-1].view == s.view && found[n-1].relation == s.relation {
			found[n-1].may += s.may
			continue
		}
		found = append(found, s)
	}
	return found
}

func (s sight) cells() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s | %s |", s.may, map[string]string{"none": "everybody", "treatment": "who is treated", "self": "oneself"}[s.relation])
	for c := range phi.Class(phi.NumClasses) {
		shown := "-"
		if s.classes.Has(c) {
			shown = s.reduction.String()
		}
		fmt.Fprintf(&b, " %s |", shown)
	}
	return b.String()
}

// viewTable renders the policy as a reader reviews it.
func viewTable(t *testing.T, access *auth.Access, roles []string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("# Who sees what of a record, for which purpose\n\nMade from the policy that the migrations seed, and held by TestViews (`go test ./server -run TestViews -update-views`\n" +
		"rewrites it). May: c create, r read, u update, d delete, s search. A purpose or a type that a role has no line for is refused.\n\n" +
		"| role | purposes | types | may | whose | identifier | name | birth_date | contact | clinical | narrative |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, role := range roles {
		type line struct{ purposes, cells string }
		types := map[line][]string{}
		var order []line
		for _, resourceType := range fhir.Types() {
			purposes := map[string][]string{}
			for _, purpose := range purposesOfUse {
				for _, s := range sights(t, access, role, purpose, resourceType) {
					purposes[s.cells()] = append(purposes[s.cells()], purpose)
				}
			}
			for _, cells := range slices.Sorted(mapKeys(purposes)) {
				l := line{strings.Join(purposes[cells], " "), cells}
				if types[l] == nil {
					order = append(order, l)
				}
				types[l] = append(types[l], resourceType)
			}
		}
		if len(order) == 0 {
			fmt.Fprintf(&b, "| %s | - | - | - | - | - | - | - | - | - | - |\n", role)
		}
		for _, l := range order {
			names := strings.Join(types[l], " ")
			if len(types[l]) > len(fhir.Types())/2 {
				names = fmt.Sprintf("every other (%d)", len(types[l]))
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s\n", role, l.purposes, names, l.cells)
		}
	}
	return b.String()
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// chartOf is a record of each type that a permission differs on, and one that only "*" covers. Every class has its word, and so
// have the parts of the clinical class that are words. %[1]s is the patient, %[2]s and %[3]s who treats.
var chartOf = map[string]string{
	"Patient": `{"resourceType":"Patient","id":"%[1]s","identifier":[{"system":"http://example.org/mrn","value":"Zqidentifier-%[4]s","type":{"text":"Zqidentifier"}}],"name":[{"family":"Zqname","given":["Zqnamegiven"]}],` +
		`"birthDate":"1980-02-03","telecom":[{"system":"phone","value":"+15550100"},{"system":"email","value":"zqcontact@example.org"}],"address":[{"line":["1 Zqcontact Street"],"city":"Zqcontact","state":"MA","postalCode":"02139"}],` +
		`"contact":[{"name":{"family":"Zqcontact"}}],"gender":"female","maritalStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v3-MaritalStatus","code":"M","display":"Zqwords"}],"text":"Zqwords"},` +
		`"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">Zqnarrative</div>"}}`,
	"RelatedPerson": `{"resourceType":"RelatedPerson","id":"%[4]s","patient":{"reference":"Patient/%[1]s"},"identifier":[{"value":"Zqidentifier"}],"name":[{"family":"Zqname"}],"birthDate":"1950-02-03","telecom":[{"value":"zqcontact"}],` +
		`"relationship":[{"text":"Zqwords"}],"gender":"female","text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">Zqnarrative</div>"}}`,
	"Practitioner": `{"resourceType":"Practitioner","id":"%[4]s","identifier":[{"value":"Zqidentifier"}],"name":[{"family":"Zqname"}],"birthDate":"1950-02-03","telecom":[{"value":"zqcontact"}],` +
		`"communication":[{"text":"Zqwords"}],"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">Zqnarrative</div>"}}`,
	"Organization": `{"resourceType":"Organization","id":"%[4]s","identifier":[{"value":"Zqidentifier"}],"name":"Zqname","telecom":[{"value":"zqcontact"}],"type":[{"text":"Zqwords"}],` +
		`"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">Zqnarrative</div>"}}`,
	"Location":             clinicalRecord("Location", `"name":"Zqwords","address":{"city":"Zqcontact"}`, ""),
	"PractitionerRole":     clinicalRecord("PractitionerRole", `"availabilityExceptions":"Zqwords"`, ""),
	"HealthcareService":    clinicalRecord("HealthcareService", `"name":"Zqwords"`, ""),
	"Endpoint":             clinicalRecord("Endpoint", `"status":"active","connectionType":{"code":"dicom-wado-rs","display":"Zqwords"},"payloadType":[{"text":"Zqwords"}],"address":"http://zqcontact.test"`, ""),
	"Coverage":             clinicalRecord("Coverage", `"status":"active","beneficiary":{"reference":"Patient/%[1]s","display":"Zqwords"},"payor":[{"display":"Zqwords"}],"type":{"text":"Zqwords"},"class":[{"type":{"text":"Zqwords"},"value":"Zqplan","name":"Zqwords"}],"subscriberId":"Zqplan"`, ""),
	"Claim":                clinicalRecord("Claim", `"status":"active","type":{"text":"Zqwords"},"use":"claim","patient":{"reference":"Patient/%[1]s"},"created":"2024-05-06","provider":{"display":"Zqwords"},"priority":{"text":"Zqwords"},"insurance":[{"sequence":1,"focal":true,"coverage":{"display":"Zqwords"}}],"supportingInfo":[{"sequence":1,"category":{"text":"Zqwords"},"valueString":"Zqwords"}],"item":[{"sequence":1,"productOrService":{"coding":[{"system":"http://www.ama-assn.org/go/cpt","code":"99213","display":"Zqwords"}]},"unitPrice":{"value":12.50,"currency":"USD"}}],"contained":[{"resourceType":"Observation","id":"o","status":"final","code":{"text":"Zqwords"}}]`, ""),
	"ExplanationOfBenefit": clinicalRecord("ExplanationOfBenefit", `"status":"active","type":{"text":"Zqwords"},"use":"claim","patient":{"reference":"Patient/%[1]s"},"created":"2024-05-06","insurer":{"display":"Zqwords"},"provider":{"display":"Zqwords"},"outcome":"complete","disposition":"Zqwords","insurance":[{"focal":true,"coverage":{"display":"Zqwords"}}],"processNote":[{"number":1,"text":"Zqwords"}]`, ""),
	"Encounter":            clinicalRecord("Encounter", `"status":"in-progress","class":{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"AMB","display":"Zqwords"},"subject":{"reference":"Patient/%[1]s","display":"Zqwords"},"reasonCode":[{"text":"Zqwords"}],"period":{"start":"2024-05-06T07:08:09Z"},"participant":[{"individual":{"reference":"Practitioner/%[2]s"}},{"individual":{"reference":"Practitioner/%[3]s"}}]`, ""),
	"Observation":          clinicalRecord("Observation", `"status":"final","code":{"coding":[{"system":"http://loinc.org","code":"29463-7","display":"Zqwords"}],"text":"Zqwords"},"subject":{"reference":"Patient/%[1]s"},"effectiveDateTime":"2024-05-06","valueQuantity":{"value":71.5,"unit":"Zqwords","system":"http://unitsofmeasure.org","code":"kg"}`, `"note":[{"text":"Zqnarrative"}]`),
	"Condition":            clinicalRecord("Condition", `"subject":{"reference":"Patient/%[1]s"},"code":{"text":"Zqwords"},"onsetDateTime":"2024-05-06"`, `"note":[{"text":"Zqnarrative"}]`),
	"Procedure":            clinicalRecord("Procedure", `"status":"completed","subject":{"reference":"Patient/%[1]s"},"code":{"text":"Zqwords"},"performedDateTime":"2024-05-06"`, `"note":[{"text":"Zqnarrative"}]`),
	"MedicationRequest":    clinicalRecord("MedicationRequest", `"status":"active","intent":"order","medicationCodeableConcept":{"text":"Zqwords"},"subject":{"reference":"Patient/%[1]s"},"authoredOn":"2024-05-06"`, `"note":[{"text":"Zqnarrative"}]`),
	"Immunization":         clinicalRecord("Immunization", `"status":"completed","vaccineCode":{"text":"Zqwords"},"patient":{"reference":"Patient/%[1]s"},"occurrenceDateTime":"2024-05-06","lotNumber":"Zqwords"`, `"note":[{"text":"Zqnarrative"}]`),
	"DiagnosticReport":     clinicalRecord("DiagnosticReport", `"status":"final","code":{"text":"Zqwords"},"subject":{"reference":"Patient/%[1]s"},"effectiveDateTime":"2024-05-06"`, `"conclusion":"Zqnarrative"`),
	"AllergyIntolerance":   clinicalRecord("AllergyIntolerance", `"patient":{"reference":"Patient/%[1]s"},"code":{"text":"Zqwords"},"recordedDate":"2024-05-06"`, `"note":[{"text":"Zqnarrative"}]`),
	"ServiceRequest":       clinicalRecord("ServiceRequest", `"status":"active","intent":"order","subject":{"reference":"Patient/%[1]s"},"code":{"text":"Zqwords"},"occurrenceDateTime":"2024-05-06"`, `"note":[{"text":"Zqnarrative"}]`),
}

func clinicalRecord(resourceType, clinical, narrative string) string {
	if narrative != "" {
		narrative = "," + narrative
	}
	return `{"resourceType":"` + resourceType + `","id":"%[4]s","identifier":[{"system":"http://example.org/other","value":"Zqidentifier"}],` + clinical + narrative +
		`,"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">Zqnarrative</div>"}}`
}

// views is a running demo with that chart.
type views struct {
	*testing.T
	d       *instance
	access  *auth.Access
	classes map[string]map[string]phi.Class // by the reviewed table
	patient string
	tokens  map[string]string
}

const viewID = "zq-view" // the id of every record but the patient's

func newViews(t *testing.T) *views {
	v := &views{T: t, d: demoFresh(t, "--patients", "1"), classes: map[string]map[string]phi.Class{}, tokens: map[string]string{}}
	one, err := readPopulation(v.d.dir)
	if err != nil {
		t.Fatal(err)
	}
	v.patient = one.PatientOne
	db := v.d.open(t)
	t.Cleanup(db.Close)
	if v.access, err = auth.NewAccess(t.Context(), auth.AccessConfig{Storage: db.Auth()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.access.Close)
	table, err := os.ReadFile("../phi/classes.csv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Split(strings.TrimSpace(line), ",")
		for c := range phi.Class(phi.NumClasses) {
			if f[3] == c.String() {
				if v.classes[f[0]] == nil {
					v.classes[f[0]] = map[string]phi.Class{}
				}
				v.classes[f[0]][f[1]] = c
			}
		}
	}
	for _, p := range demo.Personas("") {
		v.tokens[p.Name] = v.d.token(t, p.Name)
	}
	for _, resourceType := range append([]string{"Patient"}, slices.Sorted(mapKeys(chartOf))...) {
		path := "/fhir/R4/" + v.ref(resourceType)
		res := v.d.do(t, "PUT", path, v.tokens["app-backend"], v.record(resourceType, viewID))
		if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
			t.Fatalf("PUT %s: %s\n%s", path, res.Status, res.body)
		}
	}
	return v
}

func (v *views) record(resourceType, id string) string {
	return strings.NewReplacer("%[1]s", v.patient, "%[2]s", demo.RiveraID, "%[3]s", demo.OkaforID, "%[4]s", id).Replace(chartOf[resourceType])
}

func (v *views) ref(resourceType string) string {
	if resourceType == "Patient" {
		return "Patient/" + v.patient
	}
	return resourceType + "/" + viewID
}

// resources finds the resources in an answer, in bundles and bundles in them too, that are of a record type.
func resources(value any, found []map[string]any) []map[string]any {
	switch value := value.(type) {
	case map[string]any:
		switch value["resourceType"] {
		case nil, "Bundle":
			for _, k := range slices.Sorted(mapKeys(value)) {
				found = resources(value[k], found)
			}
		case "OperationOutcome":
		default:
			found = append(found, value)
		}
	case []any:
		for _, item := range value {
			found = resources(item, found)
		}
	}
	return found
}

var wordOf = [phi.NumClasses]*regexp.Regexp{
	phi.ClassIdentifier: regexp.MustCompile(`(?i)zqidentifier`), phi.ClassName: regexp.MustCompile(`(?i)zqname`),
	phi.ClassBirthDate: regexp.MustCompile(`19[58]0-02-03`), phi.ClassContact: regexp.MustCompile(`(?i)zqcontact|15550100|02139`),
	phi.ClassClinical: regexp.MustCompile(`Zqwords|29463-7|Zqplan`), phi.ClassNarrative: regexp.MustCompile(`Zqnarrative`),
}

var pseudonymous = regexp.MustCompile(`\b[0-9a-f]{32}\b`)

var selfLink = regexp.MustCompile(`"relation":"self","url":"[^"]*"`)

// inView looks through an answer to a role for what is outside its view: elements of other classes, words of other classes
// anywhere, and what a reduction takes away. It returns how many resources it saw.
func (v *views) inView(what string, res answered, role string) int {
	v.Helper()
	var body any
	if len(res.body) > 0 {
		if err := json.Unmarshal(res.body, &body); err != nil {
			v.Errorf("%s: %v", what, err)
			return 0
		}
	}
	shown := resources(body, nil)
	var widest phi.ClassSet
	anonymous := false
	words := len(shown) == 0 // nothing but an outcome: nothing of a record
	for _, r := range shown {
		resourceType := r["resourceType"].(string)
		var s sight
		for _, one := range sights(v.T, v.access, role, "", resourceType) {
			if strings.ContainsAny(one.may, "rcs") {
				s = one
				break
			}
		}
		for name := range r {
			if name == "resourceType" || name == "id" || name == "meta" {
				continue
			}
			c, ok := v.classes[resourceType][strings.TrimPrefix(name, "_")]
			if !ok || !s.classes.Has(c) {
				v.Errorf("%s: %s.%s is shown, which is of class %s", what, resourceType, name, c)
			}
		}
		text, _ := json.Marshal(r)
		for c, word := range wordOf {
			outside := !s.classes.Has(phi.Class(c)) || s.reduction == phi.Deidentified && phi.Class(c) != phi.ClassClinical
			if found := word.Find(text); found != nil && outside {
				v.Errorf("%s: %q is in %s", what, found, text)
			}
		}
		if s.reduction != phi.Whole {
			for _, word := range []string{"Zqwords", `"display":`, `"text":`, "contained"} {
				if bytes.Contains(text, []byte(word)) {
					v.Errorf("%s: %s is in %s", what, word, text)
				}
			}
		}
		if s.reduction == phi.Deidentified {
			for _, id := range []string{v.patient, viewID, "Zq", "-05-06", "lastUpdated"} {
				if bytes.Contains(text, []byte(id)) {
					v.Errorf("%s: %s is in %s", what, id, text)
				}
			}
		}
		if partial := s.classes != phi.AllClasses || s.reduction != phi.Whole; partial != bytes.Contains(text, []byte("SUBSETTED")) {
			v.Errorf("%s: SUBSETTED is %v in %s", what, !partial, text)
		}
		widest |= s.classes
		anonymous = anonymous || s.reduction == phi.Deidentified
	}
	// The self link repeats what was asked for.
	rest := selfLink.ReplaceAll(res.body, nil)
	for c, word := range wordOf {
		if found := word.Find(rest); found != nil && (words || !widest.Has(phi.Class(c))) {
			v.Errorf("%s: %q is in the answer\n%s", what, found, res.body)
		}
	}
	if anonymous { // nor do links, full URLs or headers name the record
		for _, id := range []string{v.patient, viewID} {
			if bytes.Contains(rest, []byte(id)) || strings.Contains(fmt.Sprint(res.Header), id) {
				v.Errorf("%s: %s is in the answer\n%v\n%s", what, id, res.Header, res.body)
			}
		}
	}
	return len(shown)
}

// TestViews holds every role, purpose, class and type against the table that a reader reviews, and what each persona is answered
// against it, whatever it asks (45 CFR 164.502(b), 164.514(d)).
func TestViews(t *testing.T) {
	v := newViews(t)
	t.Run("table", func(t *testing.T) {
		var roles []string
		for _, p := range demo.Personas("") {
			if !slices.Contains(roles, p.Roles[0]) {
				roles = append(roles, p.Roles[0])
			}
		}
		got := viewTable(t, v.access, roles)
		golden := filepath.Join("testdata", "views.md")
		if *updateViews {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is not the policy of the migrations:\n%s", golden, got)
		}
	})
	for _, p := range demo.Personas(v.patient) {
		t.Run(p.Name, func(t *testing.T) {
			w := *v
			w.T = t
			for _, resourceType := range slices.Sorted(mapKeys(chartOf)) {
				w.everyAnswer(p.Name, p.Roles[0], resourceType)
			}
			w.everyCriterion(p.Name, p.Roles[0])
		})
	}
	t.Run("purpose", func(t *testing.T) { w := *v; w.T = t; w.purposes() })
	t.Run("what PostgreSQL is asked", func(t *testing.T) { w := *v; w.T = t; w.statements() })
	t.Run("what is outside does not matter", func(t *testing.T) { w := *v; w.T = t; w.corrupted() })
}

// everyAnswer asks for a record in every way there is.
func (v *views) everyAnswer(persona, role, resourceType string) {
	v.Helper()
	token, ref := v.tokens[persona], v.ref(resourceType)
	id := ref[strings.IndexByte(ref, '/')+1:]
	may := ""
	for _, s := range sights(v.T, v.access, role, "", resourceType) {
		may += s.may
	}
	treated := role != "clinician" || persona == "dr-rivera" || slices.Contains([]string{"Practitioner", "Organization", "Location", "PractitionerRole", "HealthcareService", "Endpoint"}, resourceType)
	if resourceType == "Patient" && slices.Contains([]string{"clinician", "nurse"}, role) {
		may = strings.ReplaceAll(may, "c", "") // who is new is treated by nobody
	}
	ask := func(letter, method, path, body string, want int, header ...string) {
		v.Helper()
		what := persona + ": " + method + " " + path
		res := v.d.do(v, method, "/fhir/R4"+path, token, body, header...)
		shown := v.inView(what, res, role)
		if strings.Contains(may, letter) && treated {
			if res.StatusCode >= 300 || shown < want {
				v.Errorf("%s: %s, shows %d\n%s", what, res.Status, shown, res.body)
			}
		} else if shown > 0 {
			v.Errorf("%s: %s, shows %d\n%s", what, res.Status, shown, res.body)
		}
	}
	entry := func(method, path, resource string) string {
		if resource != "" {
			resource = `"resource":` + resource + `,`
		}
		return `{` + resource + `"request":{"method":"` + method + `","url":"` + path + `"}}`
	}
	bundle := func(kind string, entries ...string) string {
		return `{"resourceType":"Bundle","type":"` + kind + `","entry":[` + strings.Join(entries, ",") + `]}`
	}
	ask("r", "GET", "/"+ref, "", 1)
	ask("r", "GET", "/"+ref+"/_history/1", "", 1)
	ask("r", "GET", "/"+ref+"/_history", "", 1)
	ask("s", "GET", "/"+resourceType+"?_id="+id, "", 1)
	ask("s", "POST", "/"+resourceType+"/_search", "_id="+id, 1, "Content-Type: application/x-www-form-urlencoded")
	ask("r", "POST", "/", bundle("batch", entry("GET", ref, ""), entry("GET", resourceType+"?_id="+id, "")), 2)
	ask("r", "POST", "/", bundle("transaction", entry("GET", ref, "")), 1)
	if strings.Contains(may, "c") {
		ask("c", "POST", "/"+resourceType, v.record(resourceType, "ignored"), 1, "Prefer: return=representation")
		ask("c", "POST", "/", bundle("transaction", entry("POST", resourceType, v.record(resourceType, "ignored"))), 1, "Prefer: return=representation")
		// The condition matches what is there, and shows it as a read would.
		ask("c", "POST", "/"+resourceType, v.record(resourceType, "ignored"), 0, "Prefer: return=representation", "If-None-Exist: _id="+id)
	}
	if strings.Contains(may, "u") {
		ask("u", "PUT", "/"+ref, v.record(resourceType, viewID), 1, "Prefer: return=representation")
	}
}

// everyCriterion searches by what is outside the view: the answer is that of a search for what nobody has, in its status, its
// entries, its total and its links (45 CFR 164.502(b)).
func (v *views) everyCriterion(persona, role string) {
	v.Helper()
	for _, c := range []struct {
		resourceType, name, value, nobody string
		class                             phi.Class
		exact                             bool // more than the de-identified view shows
	}{ // nobody's value differs where the view shows nothing: a date within its year
		{"Patient", "identifier", "Zqidentifier-" + viewID, "Nobody-0", phi.ClassIdentifier, true},
		{"Patient", "name", "Zqname", "Zznobody", phi.ClassName, true},
		{"Patient", "family:exact", "Zqname", "Zznobody", phi.ClassName, true},
		{"Patient", "birthdate", "1980-02-03", "1980-04-05", phi.ClassBirthDate, true},
		{"Patient", "birthdate", "lt1980-03", "lt1980-02", phi.ClassBirthDate, true},
		{"Patient", "phone", "+15550100", "+15550199", phi.ClassContact, true},
		{"Patient", "email", "zqcontact@example.org", "zznobody@example.org", phi.ClassContact, true},
		{"Patient", "address-city", "Zqcontact", "Zznobody", phi.ClassContact, true},
		{"Patient", "address-postalcode", "02139", "99999", phi.ClassContact, true},
		{"Patient", "gender", "female", "unknown", phi.ClassClinical, false},
		{"Encounter", "identifier", "Zqidentifier", "Nobody-0", phi.ClassIdentifier, true},
		{"Encounter", "reason-code:text", "Zqwords", "Zznobody", phi.ClassClinical, true},
		{"Encounter", "class:text", "Zqwords", "Zznobody", phi.ClassClinical, true},
		{"Observation", "code:text", "Zqwords", "Zznobody", phi.ClassClinical, true},
		{"Observation", "date", "2024-05-06", "2024-07-06", phi.ClassClinical, true},
		{"Coverage", "payor", "Organization/zq", "Organization/zz", phi.ClassClinical, false},
	} {
		var s sight
		for _, one := range sights(v.T, v.access, role, "", c.resourceType) {
			if strings.Contains(one.may, "s") {
				s = one
			}
		}
		shown := s.classes.Has(c.class) && !(c.exact && s.reduction == phi.Deidentified) &&
			!(s.reduction == phi.Coded && strings.HasSuffix(c.name, ":text"))
		search := func(value string) answered {
			id := v.ref(c.resourceType)
			id = id[strings.IndexByte(id, '/')+1:]
			return v.d.do(v, "GET", "/fhir/R4/"+c.resourceType+"?_id="+id+"&"+url.QueryEscape(c.name)+"="+url.QueryEscape(value), v.tokens[persona], "")
		}
		hit, miss := search(c.value), search(c.nobody)
		v.inView(persona+" searches by "+c.name, hit, role)
		if shown {
			continue
		}
		same := func(res answered) string { // but for the pseudonyms, which are of two exports
			return pseudonymous.ReplaceAllString(string(selfLink.ReplaceAll(res.body, nil)), "")
		}
		if hit.StatusCode != miss.StatusCode || same(hit) != same(miss) {
			v.Errorf("%s learns by %s?%s what is outside the view:\n%s\n%s", persona, c.resourceType, c.name, hit.body, miss.body)
		}
	}
}

// purposes gives a role another view for another purpose: the purpose that a request names selects the classes.
func (v *views) purposes() {
	v.Helper()
	const row = `INSERT INTO permission (role, type, interactions, view, relation, purposes) VALUES ('registrar', 'Patient', 'rs', 'deidentified', 'none', '{HRESCH}')`
	if _, err := v.admin().Exec(v.Context(), row); err != nil {
		v.Fatal(err)
	}
	ask := func(purpose string) (status int, elements []string) {
		v.Helper()
		res := v.d.do(v, "GET", "/fhir/R4/Patient/"+v.patient, v.tokens["registrar-lee"], "", "X-Purpose-Of-Use: "+purpose)
		for _, name := range []string{"identifier", "name", "birthDate", "telecom", "gender", "text"} {
			if _, ok := res.json(v)[name]; ok {
				elements = append(elements, name)
			}
		}
		return res.StatusCode, elements
	}
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) { // until the server has the policy
		if status, _ := ask("HRESCH"); status == http.StatusOK || time.Now().After(deadline) {
			break
		}
	}
	for purpose, want := range map[string][]string{"HOPERAT": {"identifier", "name", "birthDate", "telecom"}, "HRESCH": {"birthDate", "gender"}, "TREAT": nil} {
		status, got := ask(purpose)
		if !slices.Equal(got, want) || (status == http.StatusOK) != (want != nil) {
			v.Errorf("for %s the registrar sees %d %v, want %v", purpose, status, got, want)
		}
	}
}

// statements watches what PostgreSQL is asked while personas read: the columns of the view, and no other.
func (v *views) statements() {
	v.Helper()
	admin := v.admin()
	for _, sql := range []string{`ALTER SYSTEM SET log_statement = 'all'`, `SELECT pg_reload_conf()`} {
		if _, err := admin.Exec(v.Context(), sql); err != nil {
			v.Fatal(err)
		}
	}
	defer func() {
		for _, sql := range []string{`ALTER SYSTEM RESET log_statement`, `SELECT pg_reload_conf()`} {
			if _, err := admin.Exec(context.Background(), sql); err != nil {
				v.Error(err)
			}
		}
	}()
	time.Sleep(300 * time.Millisecond) // for the servers of the pool to read it
	log := filepath.Join(v.d.dir, "postgres.log")
	logged := regexp.MustCompile(`(?m)^\d{4}-[^\n]*(\n\t[^\n]*)*`) // what belongs to one line is indented
	var names []string
	for class := range phi.Class(phi.NumClasses) {
		names = append(names, class.String())
	}
	cells := regexp.MustCompile(`\br\.(` + strings.Join(names, "|") + `)\b`)
	for _, c := range []struct{ persona, role, resourceType string }{
		{"registrar-lee", "registrar", "Patient"}, {"billing-novak", "billing", "Patient"}, {"billing-novak", "billing", "Encounter"},
		{"researcher-kim", "researcher", "Patient"}, {"researcher-kim", "researcher", "Observation"}, {"dr-rivera", "clinician", "Observation"},
	} {
		s := sights(v.T, v.access, c.role, "", c.resourceType)[0]
		ref := v.ref(c.resourceType)
		for _, path := range []string{"/" + ref, "/" + ref + "/_history/1", "/" + ref + "/_history", "/" + c.resourceType + "?_id=" + ref[strings.IndexByte(ref, '/')+1:]} {
			before, err := os.ReadFile(log)
			if err != nil {
				v.Fatal(err)
			}
			var readers sync.WaitGroup
			for range 8 { // reads that meet are asked for together
				readers.Go(func() {
					if res := v.d.do(v, "GET", "/fhir/R4"+path, v.tokens[c.persona], ""); res.StatusCode != http.StatusOK {
						v.Errorf("%s %s: %s", c.persona, path, res.Status)
					}
				})
			}
			readers.Wait()
			after, err := os.ReadFile(log)
			if err != nil {
				v.Fatal(err)
			}
			asked := 0
			for _, statement := range logged.FindAll(after[len(before):], -1) {
				if !bytes.Contains(statement, []byte("r.seal")) {
					continue
				}
				if strings.Contains(path, "/_history/") && !cells.Match(statement) {
					continue // whose the newest version is, and no content of it
				}
				asked++
				for class := range phi.Class(phi.NumClasses) {
					column := regexp.MustCompile(`\br\.` + class.String() + `\b`)
					if column.Match(statement) != s.classes.Has(class) {
						v.Errorf("%s %s: class %s is in the view: %v, and PostgreSQL is asked\n%s", c.persona, path, class, s.classes.Has(class), statement)
					}
				}
			}
			if asked == 0 {
				v.Errorf("%s %s: PostgreSQL was asked for no record:\n%s", c.persona, path, after[len(before):])
			}
		}
	}
}

// corrupted breaks one sealed column after the other: who does not see it is answered as before, who sees it is not answered.
func (v *views) corrupted() {
	v.Helper()
	admin := v.admin()
	for class := range phi.Class(phi.NumClasses) {
		flip := func() {
			v.Helper()
			_, err := admin.Exec(v.Context(), `UPDATE record SET `+class.String()+` = set_byte(`+class.String()+`, length(`+class.String()+`) - 1,
				get_byte(`+class.String()+`, length(`+class.String()+`) - 1) # 1) WHERE type = 'Patient' AND id = $1`, v.patient)
			if err != nil {
				v.Fatal(err)
			}
		}
		flip()
		for _, c := range []struct{ persona, role string }{
			{"registrar-lee", "registrar"}, {"billing-novak", "billing"}, {"researcher-kim", "researcher"}, {"dr-rivera", "clinician"}, {"patient-1", "patient"},
		} {
			want := http.StatusOK
			if sights(v.T, v.access, c.role, "", "Patient")[0].classes.Has(class) {
				want = http.StatusInternalServerError
			}
			for _, path := range []string{"/Patient/" + v.patient, "/Patient?_id=" + v.patient} {
				res := v.d.do(v, "GET", "/fhir/R4"+path, v.tokens[c.persona], "")
				if res.StatusCode != want {
					v.Errorf("with a broken %s, %s %s: %s, want %d", class, c.persona, path, res.Status, want)
				}
				v.inView(c.persona+" "+path, res, c.role)
			}
		}
		flip()
	}
}

func (v *views) admin() *pgx.Conn {
	v.Helper()
	admin, err := pgx.Connect(v.Context(), v.d.DatabaseURL)
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { admin.Close(context.Background()) })
	return admin
}
