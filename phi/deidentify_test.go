package phi

import (
	"bytes"
	"testing"

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

func TestDeidentify(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{
			"patient keeps codes only",
			`{"resourceType":"Patient","active":true,"gender":"female","extension":[{"url":"http://hl7.org/fhir/StructureDefinition/patient-mothersMaidenName","valueString":"Leaky"}],
			 "maritalStatus":{"coding":[{"system":"urn:x","code":"M","display":"Married"}],"text":"Leaky"},
			 "generalPractitioner":[{"reference":"Practitioner/leaky","display":"Leaky"}],"multipleBirthInteger":2}`,
			`{"resourceType":"Patient","active":true,"gender":"female","maritalStatus":{"coding":[{"system":"urn:x","code":"M","display":"Married"}]},"multipleBirthInteger":2}`,
		},
		{
			"dates become years, times and instants go",
			`{"resourceType":"Observation","status":"final","code":{"coding":[{"code":"1","extension":[{"url":"x","valueString":"Leaky"}]}]},
			 "effectivePeriod":{"start":"2019-03-04T10:11:12Z","end":"2020"},"issued":"2019-03-04T10:11:12Z","_status":{"id":"leaky"},
			 "valueQuantity":{"value":1.10,"unit":"Leaky","system":"http://unitsofmeasure.org","code":"mg"},
			 "component":[{"code":{"text":"Leaky"},"valueString":"Leaky"},{"code":{"coding":[{"code":"2"}]},"valueTime":"10:11:12"}]}`,
			`{"resourceType":"Observation","status":"final","code":{"coding":[{"code":"1"}]},"effectivePeriod":{"start":"2019","end":"2020"},"valueQuantity":{"value":1.10,"system":"http://unitsofmeasure.org","code":"mg"},"component":[{"code":{"coding":[{"code":"2"}]}}]}`,
		},
		{
			"ages of 90 and more go",
			`{"resourceType":"Condition","subject":{"reference":"Patient/leaky"},"onsetAge":{"value":90,"system":"http://unitsofmeasure.org","code":"a"},"abatementAge":{"value":89,"system":"http://unitsofmeasure.org","code":"a"},"recordedDate":"2021-06"}`,
			`{"resourceType":"Condition","abatementAge":{"value":89,"system":"http://unitsofmeasure.org","code":"a"},"recordedDate":"2021"}`,
		},
		{
			"contained resources and codings without a code go",
			`{"resourceType":"MedicationRequest","status":"active","contained":[{"resourceType":"Patient","id":"leaky","gender":"male"}],"medicationCodeableConcept":{"coding":[{"display":"Leaky"},{"code":"9"}]},
			 "dosageInstruction":[{"text":"Leaky","timing":{"repeat":{"frequency":2,"timeOfDay":["10:11:12"]}}}]}`,
			`{"resourceType":"MedicationRequest","status":"active","medicationCodeableConcept":{"coding":[{"code":"9"}]},"dosageInstruction":[{"timing":{"repeat":{"frequency":2}}}]}`,
		},
		{
			"what a modifier extension stands in goes with it",
			`{"resourceType":"Encounter","status":"finished","participant":[{"modifierExtension":[{"url":"not"}],"type":[{"coding":[{"code":"leaky"}]}]}],"hospitalization":{"admitSource":{"coding":[{"code":"emd"}]}}}`,
			`{"resourceType":"Encounter","status":"finished","hospitalization":{"admitSource":{"coding":[{"code":"emd"}]}}}`,
		},
		{
			"a modified resource keeps nothing",
			`{"resourceType":"Condition","modifierExtension":[{"url":"not"}],"recordedDate":"2021-06"}`,
			`{"resourceType":"Condition"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := deidentify(parse(t, tt.in)).Text()
			if string(got) != tt.want {
				t.Errorf("deidentify(%s) =\n%s, want\n%s", tt.in, got, tt.want)
			}
			if bytes.Contains(bytes.ToLower(got), []byte("leaky")) {
				t.Error("something leaked")
			}
		})
	}
}
