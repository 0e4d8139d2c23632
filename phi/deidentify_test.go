package phi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

func parse(t testing.TB, text string) *fhir.Resource {
	t.Helper()
	r, issues := fhir.Parse([]byte(text))
	if issues != nil {
		t.Fatalf("parsing %s: %v", text, issues)
	}
	return r
}

// harbor is a safeHarbor of 2026 in whose exports patients and encounters have pseudonyms.
func harbor() safeHarbor {
	x := &export{}
	return safeHarbor{year: 2026, alias: func(ref Ref) (string, bool) {
		return x.pseudonym(ref), ref.Type == "Patient" || ref.Type == "Encounter"
	}}
}

func TestDeidentify(t *testing.T) {
	pseudonym := (&export{}).pseudonym(Ref{"Patient", "leaky"})
	for _, tt := range []struct{ name, in, want string }{
		{
			"patient keeps codes only",
			`{"resourceType":"Patient","active":true,"gender":"female","extension":[{"url":"http://hl7.org/fhir/StructureDefinition/patient-mothersMaidenName","valueString":"Leaky"}],
			 "maritalStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v3-MaritalStatus","code":"M","display":"Leaky"}],"text":"Leaky"},"language":"leaky",
			 "generalPractitioner":[{"reference":"Practitioner/leaky","display":"Leaky"}],"multipleBirthInteger":2,"link":[{"other":{"reference":"Patient/leaky","display":"Leaky"},"type":"seealso"}]}`,
			`{"resourceType":"Patient","active":true,"gender":"female","maritalStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v3-MaritalStatus","code":"M"}]},"multipleBirthInteger":2,"link":[{"other":{"reference":"Patient/` + pseudonym + `"},"type":"seealso"}]}`,
		},
		{
			"of names, numbers, contacts and contact persons nothing stays",
			`{"resourceType":"Patient","identifier":[{"system":"urn:leaky","value":"leaky"}],"name":[{"family":"Leaky"}],"telecom":[{"system":"phone","value":"leaky"}],"photo":[{"url":"http://leaky.test"}],
			 "contact":[{"relationship":[{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v2-0131","code":"C"}]}],"name":{"family":"Leaky"},"gender":"male","address":{"state":"MA"}}],"gender":"male"}`,
			`{"resourceType":"Patient","gender":"male"}`,
		},
		{
			"birth and death keep the year",
			`{"resourceType":"Patient","birthDate":"1970-02-03","_birthDate":{"extension":[{"url":"http://hl7.org/fhir/StructureDefinition/patient-birthTime","valueDateTime":"1970-02-03T04:05:06Z"}]},"deceasedDateTime":"2020-05-06T07:08:09Z"}`,
			`{"resourceType":"Patient","birthDate":"1970","deceasedDateTime":"2020"}`,
		},
		{"89 this year", `{"resourceType":"Patient","birthDate":"1937-12-31"}`, `{"resourceType":"Patient","birthDate":"1937"}`},
		{"90 this year", `{"resourceType":"Patient","birthDate":"1936-12-31","gender":"male"}`, `{"resourceType":"Patient","gender":"male"}`},
		{
			"State and three digits",
			`{"resourceType":"Patient","address":[{"use":"home","line":["1 Leaky Street"],"city":"Leakyville","district":"Leaky","state":"Massachusetts","postalCode":"02139-4307","country":"US","period":{"start":"2001-02-03"},
			 "extension":[{"url":"http://hl7.org/fhir/StructureDefinition/geolocation","extension":[{"url":"latitude","valueDecimal":42.1}]}]},
			 {"state":"VT","postalCode":"05901"},{"state":"leaky","postalCode":"leaky"},{"country":"FR","state":"MA","postalCode":"75001"},{"text":"leaky"}]}`,
			`{"resourceType":"Patient","address":[{"state":"MA","postalCode":"021"},{"state":"VT","postalCode":"000"}]}`,
		},
		{
			"race, ethnicity and birth sex as codes",
			`{"resourceType":"Patient","extension":[{"url":"http://hl7.org/fhir/us/core/StructureDefinition/us-core-race","extension":[
			 {"url":"ombCategory","valueCoding":{"system":"urn:oid:2.16.840.1.113883.6.238","code":"2106-3","display":"Leaky"}},{"url":"text","valueString":"Leaky"},{"url":"detailed","valueCoding":{"system":"urn:leaky","code":"leaky"}}]},
			 {"url":"http://hl7.org/fhir/us/core/StructureDefinition/us-core-ethnicity","extension":[{"url":"text","valueString":"Leaky"}]},
			 {"url":"http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex","valueCode":"F"},{"url":"http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex","valueCode":"leaky"}]}`,
			`{"resourceType":"Patient","extension":[{"url":"http://hl7.org/fhir/us/core/StructureDefinition/us-core-race","extension":[{"url":"ombCategory","valueCoding":{"system":"urn:oid:2.16.840.1.113883.6.238","code":"2106-3"}}]},{"url":"http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex","valueCode":"F"}]}`,
		},
		{
			"dates become years, times and instants go",
			`{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"29463-7","extension":[{"url":"x","valueString":"Leaky"}]}]},
			 "effectivePeriod":{"start":"2019-03-04T10:11:12Z","end":"2020"},"issued":"2019-03-04T10:11:12Z","_status":{"id":"leaky"},
			 "valueQuantity":{"value":1.10,"unit":"Leaky","system":"http://unitsofmeasure.org","code":"mg{leaky}"},
			 "component":[{"code":{"text":"Leaky"},"valueString":"Leaky"},{"code":{"coding":[{"system":"http://snomed.info/sct","code":"271649006"}]},"valueTime":"10:11:12"}]}`,
			`{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"29463-7"}]},"effectivePeriod":{"start":"2019","end":"2020"},"valueQuantity":{"value":1.10,"system":"http://unitsofmeasure.org","code":"mg"},"component":[{"code":{"coding":[{"system":"http://snomed.info/sct","code":"271649006"}]}}]}`,
		},
		{
			"references join what is in the export",
			`{"resourceType":"Observation","status":"final","subject":{"reference":"Patient/leaky/_history/2","type":"Patient","identifier":{"value":"leaky"},"display":"Leaky"},"performer":[{"reference":"Practitioner/leaky"},{"reference":"http://leaky.test/Patient/leaky"},{"reference":"#leaky"},{"display":"Leaky"}]}`,
			`{"resourceType":"Observation","status":"final","subject":{"reference":"Patient/` + pseudonym + `"}}`,
		},
		{
			"ages of 90 and more are one category",
			`{"resourceType":"Condition","subject":{"reference":"Group/leaky"},"onsetAge":{"value":90,"unit":"leaky","system":"http://unitsofmeasure.org","code":"a"},"abatementAge":{"value":89,"system":"http://unitsofmeasure.org","code":"a"},"recordedDate":"2026-01-02"}`,
			`{"resourceType":"Condition","onsetAge":{"value":90,"comparator":">=","system":"http://unitsofmeasure.org","code":"a"},"abatementAge":{"value":89,"system":"http://unitsofmeasure.org","code":"a"},"recordedDate":"2026"}`,
		},
		{
			"an age without a year, which another record may have",
			`{"resourceType":"Condition","encounter":{"reference":"Encounter/leaky"},"onsetAge":{"value":30,"system":"http://unitsofmeasure.org","code":"a"},"abatementRange":{"low":{"value":11,"system":"http://unitsofmeasure.org","code":"mo"}}}`,
			`{"resourceType":"Condition","encounter":{"reference":"Encounter/` + (&export{}).pseudonym(Ref{"Encounter", "leaky"}) + `"},"abatementRange":{"low":{"value":11,"system":"http://unitsofmeasure.org","code":"mo"}}}`,
		},
		{
			"in whatever unit",
			`{"resourceType":"FamilyMemberHistory","status":"completed","ageRange":{"low":{"value":1100,"code":"mo"},"high":{"value":33333,"unit":"days"}},"deceasedAge":{"value":91},"bornDate":"1930"}`,
			`{"resourceType":"FamilyMemberHistory","status":"completed","ageRange":{"low":{"value":90,"comparator":">=","system":"http://unitsofmeasure.org","code":"a"},"high":{"value":90,"comparator":">=","system":"http://unitsofmeasure.org","code":"a"}}}`,
		},
		{
			"an age beside a year that makes its bearer older than 89 today",
			`{"resourceType":"Condition","onsetAge":{"value":60,"system":"http://unitsofmeasure.org","code":"a"},"recordedDate":"1995-06"}`,
			`{"resourceType":"Condition","recordedDate":"1995"}`,
		},
		{
			"an age beside a year",
			`{"resourceType":"Condition","onsetAge":{"value":50,"system":"http://unitsofmeasure.org","code":"a"},"recordedDate":"1995-06"}`,
			`{"resourceType":"Condition","onsetAge":{"value":50,"system":"http://unitsofmeasure.org","code":"a"},"recordedDate":"1995"}`,
		},
		{
			"an age that is a mere number",
			`{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"30525-0"}]},"effectiveDateTime":"2020-01-02","valueInteger":93,"component":[{"valueQuantity":{"value":84}},{"valueQuantity":{"value":83}}]}`,
			`{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"30525-0"}]},"effectiveDateTime":"2020","component":[{"valueQuantity":{"value":83}}]}`,
		},
		{
			"what happened 90 years ago happened to somebody older than 89",
			`{"resourceType":"Condition","onsetDateTime":"1936-01-01","abatementDateTime":"1937-01-01"}`,
			`{"resourceType":"Condition","abatementDateTime":"1937"}`,
		},
		{
			"long numbers, local codes and words for codes go",
			`{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"urn:leaky","code":"1"},{"system":"http://loinc.org","code":"leaky"},{"code":"leaky"},{"system":"http://terminology.hl7.org/CodeSystem/leaky/","code":"M"}]},
			 "valueInteger":123456789,"component":[{"valueQuantity":{"value":5551234567.0,"system":"http://unitsofmeasure.org","code":"1"}},{"valueInteger":12345678}]}`,
			`{"resourceType":"Observation","status":"final","component":[{"valueInteger":12345678}]}`,
		},
		{
			"contained resources go",
			`{"resourceType":"MedicationRequest","status":"active","contained":[{"resourceType":"Patient","id":"leaky","gender":"male"}],"medicationCodeableConcept":{"coding":[{"display":"Leaky"},{"system":"http://www.nlm.nih.gov/research/umls/rxnorm","code":"9"}]},
			 "dosageInstruction":[{"text":"Leaky","timing":{"repeat":{"frequency":2,"timeOfDay":["10:11:12"],"dayOfWeek":["mon"]}}}]}`,
			`{"resourceType":"MedicationRequest","status":"active","medicationCodeableConcept":{"coding":[{"system":"http://www.nlm.nih.gov/research/umls/rxnorm","code":"9"}]},"dosageInstruction":[{"timing":{"repeat":{"frequency":2}}}]}`,
		},
		{
			"serial and account numbers go",
			`{"resourceType":"Device","udiCarrier":[{"deviceIdentifier":"leaky","carrierHRF":"(01)leaky","carrierAIDC":"bGVha3k=","issuer":"http://leaky.test","jurisdiction":"http://leaky.test"}],"status":"active","lotNumber":"leaky","serialNumber":"leaky","distinctIdentifier":"leaky","url":"http://leaky.test"}`,
			`{"resourceType":"Device","status":"active"}`,
		},
		{
			"what a modifier extension stands in goes with it",
			`{"resourceType":"Encounter","status":"finished","participant":[{"modifierExtension":[{"url":"not"}],"type":[{"coding":[{"code":"leaky"}]}]}],"hospitalization":{"admitSource":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/admit-source","code":"emd"}]}}}`,
			`{"resourceType":"Encounter","status":"finished","hospitalization":{"admitSource":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/admit-source","code":"emd"}]}}}`,
		},
		{
			"a modified resource keeps nothing",
			`{"resourceType":"Condition","modifierExtension":[{"url":"not"}],"recordedDate":"2021-06"}`,
			`{"resourceType":"Condition"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := harbor().reduce(parse(t, tt.in)).Text()
			if string(got) != tt.want {
				t.Errorf("reduced to\n%s, want\n%s", got, tt.want)
			}
			if bytes.Contains(bytes.ToLower(got), []byte("leaky")) {
				t.Error("something leaked")
			}
		})
	}
}

func TestZIP3(t *testing.T) {
	for code, want := range map[string]string{
		"02139": "021", "02139-4307": "021", "021394307": "021", "10001": "100", "03601": "000", "05901": "000", "20301": "000", "36910": "000",
		"89301": "000", "09123": "000", "96601": "000", "2139": "", "021": "", "021-39": "021", "": "", "K1A 0B1": "", "02139x": "", "SW1A1": "",
	} {
		if got := zip3(code); got != want {
			t.Errorf("zip3(%q) = %q, want %q", code, got, want)
		}
	}
	for _, prefix := range strings.Fields(fewPeople + nobody) {
		if len(prefix) != 3 || zip3(prefix+"01") != "000" {
			t.Errorf("prefix %q is told", prefix)
		}
	}
}

// plants are identifiers of every kind that Safe Harbor lists and that fits into text, and what betrays each.
var plants = map[string]string{
	"Zqjanedoe":                             "zqjane",      // A
	"4711 Zqelm Street":                     "zqelm",       // B
	"1987-11-23":                            "11-23",       // C
	"1987-11-23T13:37:42.123Z":              "13:37",       // C
	"+1 (555) 867-5309":                     "867",         // D, E
	"zqjane@mail.test":                      "zqjane",      // F
	"987-65-4321":                           "987-65",      // G
	"MRN-88123-ZQ":                          "mrn-88123",   // H
	"HICN 1EG4-TE5-MK73":                    "1eg4",        // I
	"ACCT#0099-ZQ":                          "0099-zq",     // J
	"license D-552.81":                      "d-552",       // K
	"VIN 1HGCM82633A004352":                 "1hgcm",       // L
	"(01)00844588003288(21)ZQ53":            "zq53",        // M
	"https://zq.test/p?id=7":                "zq.test",     // N
	"203.0.113.77":                          "203.0.113",   // O
	"fingerprint:ZQAA99":                    "zqaa99",      // P
	"urn:uuid:6b1f3d6a-5a7e-4e53-9f4e-0d8f": "6b1f3d6a-5a", // R
}

// definition is an element of a FHIR type.
type definition struct {
	name  string
	many  bool
	types []string
	bound bool // to a required value set: what is stored there is one of its codes
}

// definitions reads the tables of package fhir, so that the test plants in elements that nobody thought of.
func definitions(t testing.TB) map[string][]definition {
	t.Helper()
	packed, err := os.ReadFile("fhir/tables.txt.gz")
	if err != nil {
		t.Fatal(err)
	}
	unpack, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(unpack); err != nil {
		t.Fatal(err)
	}
	types, name := map[string][]definition{}, ""
	for line := range strings.Lines(text.String()) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case line[0] != ' ' && f[0] == "type":
			name = f[1]
			types[name] = nil
		case line[0] != ' ':
			name = ""
		case name != "" && len(f) >= 4:
			types[name] = append(types[name], definition{f[0], f[2] == "*", strings.Split(f[3], "|"), len(f) > 4})
		}
	}
	if len(types["Patient"]) < 20 {
		t.Fatalf("read %d types", len(types))
	}
	return types
}

// planted draws a value of a FHIR type in which every text is a plant.
func planted(t *rapid.T, types map[string][]definition, fhirType string, bound bool, depth int) any {
	word := func() string {
		return rapid.SampledFrom(slices.Sorted(func(yield func(string) bool) {
			for p := range plants {
				if !yield(p) {
					return
				}
			}
		})).Draw(t, "plant")
	}
	switch fhirType {
	case "boolean":
		return rapid.Bool().Draw(t, "boolean")
	case "integer", "positiveInt", "unsignedInt":
		return rapid.SampledFrom([]int{7, 95, 555123987, 5551239870}).Draw(t, "integer")
	case "decimal":
		return json.Number(rapid.SampledFrom([]string{"7.50", "95", "555123987", "5551239870.1", "555123987e1"}).Draw(t, "decimal"))
	case "date", "dateTime", "instant":
		return rapid.SampledFrom([]string{"1987-11-23", "1911-11-23", "1987-11-23T13:37:42Z", "1987-11"}).Draw(t, "date")
	case "time":
		return "13:37:42"
	case "code":
		if bound {
			return "bound"
		}
		return word()
	case "string", "markdown", "id", "uri", "url", "canonical", "oid", "uuid", "base64Binary", "xhtml":
		return word()
	case "Resource":
		fhirType = rapid.SampledFrom([]string{"Patient", "Observation", "Practitioner"}).Draw(t, "contained")
	}
	if depth == 0 {
		return nil
	}
	object := map[string]any{}
	for _, e := range types[fhirType] {
		if rapid.IntRange(0, 3).Draw(t, "leave out "+e.name) == 0 {
			continue
		}
		one := rapid.SampledFrom(e.types).Draw(t, "type of "+e.name)
		stem, choice := strings.CutSuffix(e.name, "[x]")
		if choice {
			stem += strings.ToUpper(one[:1]) + one[1:]
		}
		if fhirType == "Coding" && e.name == "system" && rapid.Bool().Draw(t, "public") {
			object["system"] = rapid.SampledFrom([]string{"http://loinc.org", "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10-cm"}).Draw(t, "system")
			continue
		}
		if fhirType == "Reference" && e.name == "reference" {
			object["reference"] = rapid.SampledFrom([]string{"Patient/zqjane", "Practitioner/zqjane", "Encounter/mrn-88123", "http://zq.test/Patient/1", "#zqjane"}).Draw(t, "reference")
			continue
		}
		if fhirType == "Extension" && e.name == "url" {
			object["url"] = rapid.SampledFrom([]string{
				"http://hl7.org/fhir/us/core/StructureDefinition/us-core-race", "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex", "ombCategory", "http://zq.test/x",
			}).Draw(t, "url")
			continue
		}
		if stem == "modifierExtension" && rapid.IntRange(0, 9).Draw(t, "modified") > 0 {
			continue // what stands beside one goes
		}
		value := planted(t, types, one, e.bound, depth-1)
		if value == nil {
			continue
		}
		if e.many {
			value = []any{value}
		}
		object[stem] = value
	}
	if len(object) == 0 {
		return nil
	}
	if types[fhirType][0].types[0] == "id" { // a resource
		object["resourceType"] = fhirType
		delete(object, "id")
		object["zqunknown"] = word()
	}
	return object
}

// TestAnyCode holds the names of the codes without a required value set to FHIR's definitions.
func TestAnyCode(t *testing.T) {
	free := 0
	for name, elements := range definitions(t) {
		for _, e := range elements {
			if e.bound || !slices.Contains(e.types, "code") {
				continue
			}
			free++
			if !anyCode(strings.Replace(e.name, "[x]", "Code", 1)) {
				t.Errorf("%s.%s holds whatever a client writes there", name, e.name)
			}
		}
	}
	if free < 100 {
		t.Errorf("only %d such elements", free)
	}
}

// TestDeidentifyPlanted plants identifiers of every kind in every element of any type, of those FHIR defines and those it does not:
// nothing of them comes out.
func TestDeidentifyPlanted(t *testing.T) {
	types := definitions(t)
	pseudonymous := regexp.MustCompile(`"reference":"(Patient|Encounter)/[0-9a-f]{32}"`)
	kept := 0
	rapid.Check(t, func(t *rapid.T) {
		resourceType := rapid.OneOf(rapid.Just("Patient"), rapid.SampledFrom(fhir.Types())).Draw(t, "type")
		object, _ := planted(t, types, resourceType, false, 5).(map[string]any)
		if object == nil {
			return
		}
		in, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		r, issues := fhir.Parse(in)
		if issues != nil {
			t.Fatalf("%s: %v", in, issues)
		}
		got := harbor().reduce(r).Text()
		kept += len(got) - len(`{"resourceType":"`+resourceType+`"}`)
		shown := bytes.ToLower(pseudonymous.ReplaceAll(got, nil))
		for plant, trace := range plants {
			if bytes.Contains(shown, []byte(trace)) {
				t.Errorf("%q survives in %s", plant, got)
			}
		}
		for _, word := range []string{`"display":`, `"text":`, `"div":`, `"reference":"`, `"contained":`, `"1911"`, `-11`, "555123987", "zq", `"id":`, `"meta":`} {
			if bytes.Contains(shown, []byte(word)) {
				t.Errorf("%s survives in %s", word, got)
			}
		}
	})
	if kept == 0 {
		t.Error("nothing was kept of anything")
	}
}

// TestDeidentifySynthea compares what becomes of real charts with what a reader has reviewed: the patient and one record of each
// type that researchers are shown.
func TestDeidentifySynthea(t *testing.T) {
	charts := published(t)
	number := 0
	for _, name := range slices.Sorted(maps.Keys(charts)) {
		resources := charts[name]
		if !strings.Contains(name, "_") || !strings.HasSuffix(name, ".json") || resources[0].Type != "Patient" || len(resources) < 2 {
			continue // not one of Synthea's
		}
		var text bytes.Buffer
		seen := map[string]bool{}
		for _, r := range resources {
			if seen[r.Type] || !slices.Contains([]string{"Patient", "Observation", "Condition", "Procedure", "MedicationRequest", "Immunization",
				"Encounter", "DiagnosticReport", "AllergyIntolerance"}, r.Type) {
				continue
			}
			seen[r.Type] = true
			r = r.Rewrite(func(reference string) (string, bool) { // as the import resolves them
				id, ok := strings.CutPrefix(reference, "urn:uuid:")
				for _, other := range resources {
					if ok && other.ID == id {
						return other.Type + "/" + id, true
					}
				}
				return "", false
			})
			shown := fhir.Assemble(nil, r.Type, (&export{}).pseudonym(Ref{r.Type, r.ID}), nil, harbor().reduce(r).Elements)
			if err := json.Indent(&text, shown, "", "\t"); err != nil {
				t.Fatal(err)
			}
			text.WriteByte('\n')
		}
		number++
		golden := filepath.Join("testdata", "deidentified", fmt.Sprintf("%d.json", number))
		if *update {
			if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(golden, text.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text.Bytes(), want) {
			t.Errorf("%s: is now\n%s", golden, text.Bytes())
		}
	}
}

// What joins within an export does not join two.
func TestPseudonyms(t *testing.T) {
	a, b := newExport(time.Now()), newExport(time.Now())
	one, two := Ref{"Patient", "1"}, Ref{"Patient", "2"}
	first, again := a.pseudonym(one), a.pseudonym(one)
	if first != again || first == a.pseudonym(two) || first == b.pseudonym(one) || a.id() == b.id() {
		t.Errorf("%s %s %s %s", first, again, a.pseudonym(two), b.pseudonym(one))
	}
	if !fhir.ValidID(first) {
		t.Errorf("%s is no id", first)
	}
	if strings.Contains(fmt.Sprintf("%x", a.key), a.id()) {
		t.Error("the name of an export tells its key")
	}
}
