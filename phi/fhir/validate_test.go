package fhir

import (
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	patient := func(members string) string { return `{"resourceType":"Patient",` + members + `}` }
	basic := func(members string) string {
		return `{"resourceType":"Basic","code":{"text":"x"},` + members + `}`
	}
	extension := func(value string) string { return basic(`"extension":[{"url":"http://x",` + value + `}]`) }
	for _, c := range []struct{ name, text, want string }{ // want is "code expression" per finding
		{"clean", patient(`"id":"a","active":true`), ""},
		{"an unknown element", patient(`"nome":"x"`), "structure Patient.nome"},
		{"an unknown nested element", patient(`"name":[{"family":"x"},{"famly":"x"}]`), "structure Patient.name[1].famly"},
		{"an unknown backbone element", patient(`"contact":[{"nam":{}}]`), "structure Patient.contact[0].nam"},
		{"a name to inject with", patient(`"<script>":"x"`), "structure Patient.?"},
		{"resourceType in a datatype", patient(`"name":[{"resourceType":"Patient","family":"x"}]`), "structure Patient.name[0].resourceType"},
		{"a choice without its type", basic(`"created":"2020","subject":{"value":1}`), "structure Basic.subject.value"},
		{"a missing element", `{"resourceType":"Basic","author":{"reference":"Patient/1"}}`, "required Basic.code"},
		{"a missing backbone element", patient(`"link":[{"type":"refer"}]`), "required Patient.link[0].other"},
		{"a missing choice", `{"resourceType":"MedicationRequest","status":"active","intent":"order","subject":{"display":"x"}}`, "required MedicationRequest.medication[x]"},
		{"a required primitive with an extension only", `{"resourceType":"Observation","_status":{"extension":[{"url":"http://x","valueCode":"unknown"}]},"code":{"text":"x"}}`, ""},
		{"two of a choice", patient(`"deceasedBoolean":false,"deceasedDateTime":"2020"`), "structure Patient.deceasedDateTime"},
		{"two of a choice, one an extension", patient(`"deceasedBoolean":false,"_deceasedDateTime":{"id":"x"}`), "structure Patient.deceasedDateTime"},
		{"a value for an array", patient(`"name":{"family":"x"}`), "structure Patient.name"},
		{"an array for a value", patient(`"gender":["male"]`), "structure Patient.gender"},
		{"an empty array", patient(`"name":[]`), "structure Patient.name"},
		{"an empty object", patient(`"name":[{}]`), "structure Patient.name[0]"},
		{"an empty string", patient(`"name":[{"family":""}]`), "value Patient.name[0].family"},
		{"a string of spaces", patient(`"name":[{"family":" \u00a0"}]`), "value Patient.name[0].family"},
		{"null", patient(`"birthDate":null`), "value Patient.birthDate"},
		{"null for an object", patient(`"maritalStatus":null`), "structure Patient.maritalStatus"},
		{"a string for an object", patient(`"maritalStatus":"M"`), "structure Patient.maritalStatus"},
		{"a code outside its binding", patient(`"gender":"m"`), "code-invalid Patient.gender"},
		{"a code in the wrong case", patient(`"gender":"Male"`), "code-invalid Patient.gender"},
		{"an escaped code", patient(`"gender":"m\u0061le"`), ""},
		{"a nested code", patient(`"telecom":[{"system":"telepathy","value":"x"}]`), "code-invalid Patient.telecom[0].system"},
		{"a concept in its binding", `{"resourceType":"AllergyIntolerance","patient":{"reference":"Patient/1"},"clinicalStatus":{"coding":[{"system":"http://x","code":"y"},{"system":"http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical","code":"active"}]}}`, ""},
		{"a concept of another system", `{"resourceType":"AllergyIntolerance","patient":{"reference":"Patient/1"},"clinicalStatus":{"coding":[{"system":"http://x","code":"active"}]}}`, "code-invalid AllergyIntolerance.clinicalStatus"},
		{"a concept of words", `{"resourceType":"AllergyIntolerance","patient":{"reference":"Patient/1"},"clinicalStatus":{"text":"active"}}`, "code-invalid AllergyIntolerance.clinicalStatus"},
		{"a contentReference", `{"resourceType":"Observation","status":"final","code":{"text":"x"},"component":[{"code":{"text":"y"},"referenceRange":[{"lo":1}]}]}`, "structure Observation.component[0].referenceRange[0].lo"},

		{"an extension", extension(`"valueString":"x"`), ""},
		{"an extension with a value's extension", extension(`"_valueString":{"id":"x"}`), ""},
		{"a nested extension", extension(`"extension":[{"url":"y","valueDecimal":1.0}]`), ""},
		{"an extension without url", basic(`"extension":[{"valueString":"x"}]`), "required Basic.extension[0].url"},
		{"an empty extension", basic(`"extension":[{"url":"http://x"}]`), "structure Basic.extension[0]"},
		{"an extension of both kinds", extension(`"valueString":"x","extension":[{"url":"y","valueString":"x"}]`), "structure Basic.extension[0]"},
		{"an extension of two values", extension(`"valueString":"x","valueCode":"x"`), "structure Basic.extension[0].valueCode"},
		{"an extension of an unknown type", extension(`"valueThing":"x"`), "structure Basic.extension[0].valueThing"},

		{"extensions of a primitive", patient(`"birthDate":"2020","_birthDate":{"extension":[{"url":"http://x","valueDateTime":"2020"}]}`), ""},
		{"faulty extensions of a primitive", patient(`"birthDate":"2020","_birthDate":{"extension":[{"url":"http://x","valueDateTime":"20"}]}`), "value Patient.birthDate.extension[0].valueDateTime"},
		{"extensions of no primitive", patient(`"_name":[{"id":"x"}]`), "structure Patient.name"},
		{"extensions that are a string", patient(`"_birthDate":"x"`), "structure Patient.birthDate"},
		{"extensions with an unknown element", patient(`"_birthDate":{"value":"x"}`), "structure Patient.birthDate.value"},
		{"aligned arrays", patient(`"name":[{"given":["a",null],"_given":[null,{"id":"x"}]}]`), ""},
		{"only extensions in an array", patient(`"name":[{"_given":[{"id":"x"}]}]`), ""},
		{"null without extensions", patient(`"name":[{"given":["a",null]}]`), "structure Patient.name[0].given[1]"},
		{"null beside null", patient(`"name":[{"given":["a",null],"_given":[{"id":"x"},null]}]`), "structure Patient.name[0].given[1] structure Patient.name[0].given[1]"},
		{"extensions that are no array", patient(`"name":[{"given":["a"],"_given":{"id":"x"}}]`), "structure Patient.name[0].given"},

		{"a contained resource", basic(`"contained":[{"resourceType":"Patient","id":"p","gender":"x"}]`), "code-invalid Basic.contained[0].gender"},
		{"a contained unknown", basic(`"contained":[{"resourceType":"Patiently"}]`), "not-supported Basic.contained[0]"},
		{"a contained string", basic(`"contained":["x"]`), "structure Basic.contained[0]"},
		{"a resource in a Bundle", `{"resourceType":"Bundle","type":"batch","entry":[{"resource":{"resourceType":"Patient","active":1}}]}`, "value Bundle.entry[0].resource.active"},
		{"a resource in Parameters", `{"resourceType":"Parameters","parameter":[{"name":"x","part":[{"name":"y","resource":{"resourceType":"Patient","active":1}}]}]}`, "value Parameters.parameter[0].part[0].resource.active"},
		{"a narrative", patient(`"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">x</div>"}`), ""},
		{"a narrative that is no div", patient(`"text":{"status":"generated","div":"<p>x</p>"}`), "value Patient.text.div"},
		{"a narrative without div", patient(`"text":{"status":"generated"}`), "required Patient.text.div"},
	} {
		var got []string
		for _, issue := range mustParse(t, c.text).Validate() {
			got = append(got, issue.Code+" "+issue.Expression)
			if issue.Severity != "error" || issue.Diagnostics == "" {
				t.Errorf("%s: %+v", c.name, issue)
			}
		}
		if got := strings.Join(got, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestPrimitives is the list of http://hl7.org/fhir/R4/datatypes.html#primitive, values as JSON.
func TestPrimitives(t *testing.T) {
	for _, c := range []struct {
		kind      string
		good, bad []string
	}{
		{"Boolean", []string{`true`, `false`}, []string{`"true"`, `1`, `null`, `{}`}},
		{"Integer", []string{`0`, `-5`, `2147483647`, `-2147483648`}, []string{`1.0`, `1e2`, `2147483648`, `-2147483649`, `99999999999`, `"1"`}},
		{"UnsignedInt", []string{`0`, `2147483647`}, []string{`-1`, `1.5`, `2147483648`}},
		{"PositiveInt", []string{`1`}, []string{`0`, `-1`}},
		{"Decimal", []string{`1.10`, `-0`, `1e2`, `5`}, []string{`"1.0"`, `true`}},
		{"String", []string{`"x"`, `" x"`, `"a\r\n\tb"`, `"\u00e9"`}, []string{`""`, `" \n"`, `"a\u0000b"`, `"a\u001fb"`, `5`}},
		{"Markdown", []string{`"# x"`}, []string{`""`}},
		{"Code", []string{`"a"`, `"a b"`, `"<="`}, []string{`""`, `" a"`, `"a "`, `"a  b"`, `"a\tb"`}},
		{"Id", []string{`"a"`, `"A-1.b"`, `"` + strings.Repeat("a", 64) + `"`}, []string{`""`, `"a_b"`, `"a/b"`, `"` + strings.Repeat("a", 65) + `"`}},
		{"Uri", []string{`"http://x/y?z"`, `"urn:oid:1.2"`, `"#a"`}, []string{`""`, `"a b"`, `"a\n"`}},
		{"Url", []string{`"mailto:x@y"`}, []string{`"a b"`}},
		{"Canonical", []string{`"http://x|1"`}, []string{`""`}},
		{"Oid", []string{`"urn:oid:1.2.3"`, `"urn:oid:2.16.840.0.1"`}, []string{`"1.2.3"`, `"urn:oid:3.1"`, `"urn:oid:1.02"`, `"urn:oid:1."`, `"urn:oid:1"`, `"urn:oid:1.x"`}},
		{"Uuid", []string{`"urn:uuid:c757873d-ec9a-4326-a141-556f43239520"`}, []string{`"c757873d-ec9a-4326-a141-556f43239520"`, `"urn:uuid:c757873d"`, `"urn:uuid:c757873d-ec9a-4326-a141-556f4323952g"`, `"urn:uuid:c757873d0ec9a-4326-a141-556f43239520"`}},
		{"Date", []string{`"2020"`, `"2020-02"`, `"2020-02-29"`, `"2000-02-29"`}, []string{`"20"`, `"2020-2"`, `"2020-13"`, `"2020-00"`, `"2021-02-29"`, `"1900-02-29"`, `"2020-04-31"`, `"2020-01-00"`, `"2020-01-01T00:00:00Z"`, `"0000"`, `"2020-01-01 "`, `"2020/01/01"`}},
		{"DateTime", []string{`"2020"`, `"2020-02-29"`, `"2020-01-01T00:00:00Z"`, `"2020-01-01T23:59:60.123456789+14:00"`, `"2020-01-01T00:00:00-05:30"`},
			[]string{`"2020-01-01T00:00:00"`, `"2020-01-01T00:00Z"`, `"2020-01-01T24:00:00Z"`, `"2020-01-01T00:60:00Z"`, `"2020-01-01T00:00:61Z"`, `"2020-01-01T00:00:00.Z"`, `"2020-01-01T00:00:00+14:01"`, `"2020-01-01T00:00:00+0500"`, `"2020-01-01t00:00:00z"`, `"2020-01-01T"`, `"2020-01-01T00:00:00+1"`}},
		{"Instant", []string{`"2020-01-01T00:00:00Z"`, `"2020-01-01T00:00:00.001+01:00"`}, []string{`"2020-01-01"`, `"2020"`, `"2020-01-01T00:00:00"`}},
		{"Time", []string{`"00:00:00"`, `"23:59:59.9"`}, []string{`"24:00:00"`, `"00:00"`, `"00:00:00Z"`, `"0:00:00"`}},
		{"Base64Binary", []string{`"AAAA"`, `"AA=="`, `"AAA="`, `"AA AA\nAAAA"`}, []string{`""`, `"AAA"`, `"A==="`, `"AA=A"`, `"A-_A"`, `"===="`}},
	} {
		for want, values := range map[string][]string{"": c.good, "value Basic.extension[0].value" + c.kind: c.bad} {
			for _, value := range values {
				r := mustParse(t, `{"resourceType":"Basic","code":{"text":"x"},"extension":[{"url":"x","value`+c.kind+`":`+value+`}]}`)
				got := ""
				for _, issue := range r.Validate() {
					got += issue.Code + " " + issue.Expression
					if len(value) > 8 && strings.Contains(issue.Diagnostics, strings.Trim(value, `"`)) {
						t.Errorf("%s %s: the finding repeats the value", c.kind, value)
					}
				}
				if got != want {
					t.Errorf("%s %s: %q, want %q", c.kind, value, got, want)
				}
			}
		}
	}
}

func TestValidateStops(t *testing.T) {
	text := `{"resourceType":"Patient","name":[` + strings.Repeat(`{},`, 500) + `{}]}`
	if got := len(mustParse(t, text).Validate()); got != maxIssues {
		t.Errorf("%d findings", got)
	}
}
