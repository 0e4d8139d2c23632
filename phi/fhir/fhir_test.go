package fhir

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func Example() {
	r, issues := Parse([]byte(`{
	  "resourceType": "Observation", "id": "bp", "status": "finale",
	  "code": {"text": "weight"}, "subject": {"reference": "Patient/amy"},
	  "valueQuantity": {"value": 70.10, "unit": "kg"}
	}`))
	if issues != nil {
		fmt.Println(issues)
		return
	}
	for _, issue := range r.Validate() {
		fmt.Println(issue.Code, issue.Expression)
	}
	fmt.Println(r.Patients())
	c, _ := ParseCriterion("Observation", "value-quantity", "gt70")
	fmt.Println(c.Match(r), c.Elements())
	fmt.Println(string(r.Elements[3].Raw))
	// Output:
	// code-invalid Observation.status
	// [amy]
	// true [valueQuantity]
	// {"value":70.10,"unit":"kg"}
}

func TestParseRefuses(t *testing.T) {
	deep := func(n int) string {
		return `{"resourceType":"Basic","extension":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}"
	}
	if _, issues := Parse([]byte(deep(MaxDepth - 1))); issues != nil {
		t.Errorf("depth %d: %v", MaxDepth, issues)
	}
	many := `{"resourceType":"Basic"`
	for i := range 100 {
		many += fmt.Sprintf(`,"a%d":1`, i)
	}
	for _, c := range []struct{ name, text, code, expression string }{
		{"nothing", ``, "structure", ""},
		{"an array", `[]`, "structure", ""},
		{"not an object", `"Patient"`, "structure", ""},
		{"not UTF-8", "{\"resourceType\":\"Patient\",\"id\":\"\xff\"}", "structure", ""},
		{"a byte order mark", "\uFEFF{\"resourceType\":\"Patient\"}", "structure", ""},
		{"two objects", `{"resourceType":"Patient"}{}`, "structure", ""},
		{"cut short", `{"resourceType":"Patient","name":[{"family":"Do`, "structure", "Patient.name[0].family"},
		{"cut after a colon", `{"resourceType":"Patient","active":`, "structure", "Patient.active"},
		{"no comma", `{"resourceType":"Patient" "active":true}`, "structure", "Patient"},
		{"a comma too many", `{"resourceType":"Patient","active":true,}`, "structure", "Patient"},
		{"an item missing", `{"resourceType":"Patient","name":[{},]}`, "structure", "Patient.name[1]"},
		{"a duplicate name", `{"resourceType":"Patient","name":[{},{"family":"a","family":"b"}]}`, "structure", "Patient.name[1].family"},
		{"a duplicate name among many", many + `,"a42":1}`, "structure", "Basic.a42"},
		{"an early duplicate name among many", many + `,"a1":1}`, "structure", "Basic.a1"},
		{"a spelled-out name", `{"resourceType":"Patient","\u0061ctive":true}`, "structure", "Patient"},
		{"too deep", deep(MaxDepth), "structure", "Basic.extension" + strings.Repeat("[0]", MaxDepth-1)},
		{"a bare word", `{"resourceType":"Patient","active":True}`, "structure", "Patient.active"},
		{"a number with a leading zero", `{"resourceType":"Basic","a":01}`, "structure", "Basic"},
		{"a number with a bare point", `{"resourceType":"Basic","a":1.}`, "structure", "Basic.a"},
		{"a number with a plus", `{"resourceType":"Basic","a":+1}`, "structure", "Basic.a"},
		{"not a number", `{"resourceType":"Basic","a":NaN}`, "structure", "Basic.a"},
		{"a number without exponent", `{"resourceType":"Basic","a":1e}`, "structure", "Basic.a"},
		{"a control character", "{\"resourceType\":\"Basic\",\"a\":\"\n\"}", "structure", "Basic.a"},
		{"an unknown escape", `{"resourceType":"Basic","a":"\x"}`, "structure", "Basic.a"},
		{"a short escape", `{"resourceType":"Basic","a":"\u12"}`, "structure", "Basic.a"},
		{"a comment", `{"resourceType":"Basic"/**/}`, "structure", "Basic"},
		{"a name to inject with", `{"resourceType":"Basic","<script>":01}`, "structure", "Basic"},
		{"no type", `{"id":"a"}`, "structure", "resourceType"},
		{"a type that is no string", `{"resourceType":["Patient"]}`, "structure", ""},
		{"an id that is no string", `{"resourceType":"Patient","id":7}`, "structure", "id"},
		{"an unknown type", `{"resourceType":"Patiently"}`, "not-supported", "resourceType"},
		{"an abstract type", `{"resourceType":"Resource"}`, "not-supported", "resourceType"},
		{"a datatype", `{"resourceType":"HumanName"}`, "not-supported", "resourceType"},
	} {
		r, issues := Parse([]byte(c.text))
		if r != nil || len(issues) != 1 || issues[0].Code != c.code || issues[0].Expression != c.expression || issues[0].Severity != "error" {
			t.Errorf("%s: %v, want %s at %q", c.name, issues, c.code, c.expression)
		}
	}
}

func TestParseKeepsText(t *testing.T) {
	source := `{"id":"x","decimals":[1.10,1e2,-0,0.000,1E+05],"resourceType":"Basic","é":"\u00e9é\/\ud800","a":{"z":null,"b":[ ] , "a":{ }}}`
	r := mustParse(t, source)
	want := strings.NewReplacer("[ ] , ", "[],", "{ }", "{}").Replace(source)
	if got := string(r.Text()); got != want {
		t.Errorf("text %s, want %s", got, want)
	}
	if r.Type != "Basic" || r.ID != "x" {
		t.Errorf("type %q, id %q", r.Type, r.ID)
	}
	var names []string
	for _, e := range r.Elements {
		names = append(names, e.Name)
	}
	if !slices.Equal(names, []string{"decimals", "é", "a"}) {
		t.Errorf("elements %v", names)
	}
	assembled := string(Assemble([]byte("> "), "Basic", "y", []byte(`{"versionId":"1"}`), r.Elements))
	want = `> {"resourceType":"Basic","id":"y","meta":{"versionId":"1"},"decimals":[1.10,1e2,-0,0.000,1E+05],"é":"\u00e9é\/\ud800","a":{"z":null,"b":[],"a":{}}}`
	if assembled != want {
		t.Errorf("assembled %s, want %s", assembled, want)
	}
}

func TestAssemble(t *testing.T) {
	elements := []Element{{"meta", []byte(`{"tag":[]}`)}, {"active", []byte(`true`)}}
	for _, c := range []struct{ id, meta, want string }{
		{"", "", `{"resourceType":"Patient","meta":{"tag":[]},"active":true}`},
		{"a", `{}`, `{"resourceType":"Patient","id":"a","meta":{},"active":true}`},
		{"\"\n", `{}`, `{"resourceType":"Patient","id":"\"\u000a","meta":{},"active":true}`},
	} {
		if got := string(Assemble(nil, "Patient", c.id, []byte(c.meta), elements)); got != c.want {
			t.Errorf("%q: %s, want %s", c.id, got, c.want)
		}
	}
}

// TestRoundTrip holds the promise that parsing and assembling keep each value's own text, white space aside.
func TestRoundTrip(t *testing.T) {
	scalar := rapid.SampledFrom([]string{`1.10`, `-0`, `1e2`, `0.0E-7`, `"é\u00e9\\\" \ud83d"`, `"\/"`, `true`, `null`, `123456789012345678901234567890`})
	var value func(depth int) *rapid.Generator[string]
	value = func(depth int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			kind := rapid.IntRange(0, 3).Draw(t, "kind")
			if depth == 0 || kind < 2 {
				return scalar.Draw(t, "scalar")
			}
			n := rapid.IntRange(0, 40).Draw(t, "n")
			var items []string
			for i := range n {
				item := value(0).Draw(t, "item")
				if i < 3 {
					item = value(depth-1).Draw(t, "nested")
				}
				if kind == 2 {
					item = fmt.Sprintf(`"k%d":%s`, i, item)
				}
				items = append(items, item)
			}
			brackets := [2]string{"{", "}"}
			if kind == 3 {
				brackets = [2]string{"[", "]"}
			}
			return brackets[0] + strings.Join(items, ",") + brackets[1]
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := value(3).Draw(t, "a"), value(3).Draw(t, "b")
		compact := `{"resourceType":"Basic","id":"i","a":` + a + `,"b":` + b + `}`
		r, issues := Parse([]byte(compact))
		if issues != nil {
			t.Fatal(issues)
		}
		if string(r.Text()) != compact || string(r.Elements[0].Raw) != a || string(r.Elements[1].Raw) != b {
			t.Fatalf("text changed: %s", r.Text())
		}
		if got := string(Assemble(nil, r.Type, r.ID, nil, r.Elements)); got != compact {
			t.Fatalf("assembled %s", got)
		}
		var spaced strings.Builder
		var any json.RawMessage = []byte(compact)
		encoder := json.NewEncoder(&spaced)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent(" \t", "\r\n ")
		if err := encoder.Encode(any); err != nil {
			t.Fatal(err)
		}
		if r, issues = Parse([]byte(spaced.String())); issues != nil || string(r.Text()) != compact {
			t.Fatalf("white space changed the text: %v", issues)
		}
	})
}

func TestTables(t *testing.T) {
	types := Types()
	if len(types) != 146 || !slices.IsSorted(types) {
		t.Errorf("%d types", len(types))
	}
	types[0] = "changed"
	if Types()[0] != "Account" {
		t.Error("Types gives its own table away")
	}
	for _, name := range []string{"Patient", "Observation", "Bundle"} {
		if !Known(name) {
			t.Errorf("%s is not known", name)
		}
	}
	for _, name := range []string{"", "Resource", "DomainResource", "HumanName", "Patient.contact", "SubscriptionStatus", "patient"} {
		if Known(name) {
			t.Errorf("%s is known", name)
		}
	}
	in := 0
	for _, name := range Types() {
		if InPatientCompartment(name) {
			in++
		}
	}
	// http://hl7.org/fhir/R4/compartmentdefinition-patient.html lists 66 with parameters, and Patient.
	if in != 67 || !InPatientCompartment("Observation") || !InPatientCompartment("Patient") || InPatientCompartment("Organization") {
		t.Errorf("%d types in the compartment", in)
	}
	for _, broken := range []string{"", "not gzip"} {
		if _, err := readTables([]byte(broken)); err == nil {
			t.Error("broken tables were read")
		}
	}
}

func TestZeroResource(t *testing.T) {
	r := &Resource{Type: "Patient"}
	c, _ := ParseCriterion("Patient", "name", "a")
	if r.Validate() != nil || r.Patients() != nil || r.References() != nil || c.Match(r) {
		t.Error("a resource without text has content")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"resourceType":"Patient","id":"a","name":[{"family":"é\u00e9","_given":[null]}],"x":[1.10,-0,1e2]}`))
	f.Add([]byte(`{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Basic","_id":{}}}]}`))
	f.Add([]byte(`{"resourceType":"Patient","a":[[[{"a":"\ud800\udc00`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, issues := Parse(data)
		if (r == nil) == (issues == nil) {
			t.Fatal("neither a resource nor an issue, or both")
		}
		if r == nil {
			return
		}
		if !json.Valid(data) {
			t.Fatal("accepted what encoding/json refuses")
		}
		again, issues := Parse(r.Text())
		if issues != nil || string(again.Text()) != string(r.Text()) {
			t.Fatal("the text does not stand")
		}
		if len(r.Validate()) > maxIssues {
			t.Fatal("too many issues")
		}
		r.Patients()
		r.References()
		same := r.Walk(func(string, string, []byte) ([]byte, bool) { return nil, true })
		if same.Type != r.Type || same.ID != r.ID {
			t.Fatal("walking changed the resource")
		}
	})
}

// TestHostileSizes would not come to its end if anything took quadratic time.
func TestHostileSizes(t *testing.T) {
	const n = 200_000
	list := func(item string) string { return "[" + strings.Repeat(item+",", n-1) + item + "]" }
	names := mustParse(t, `{"resourceType":"Patient","name":[{"given":`+list("null")+`,"_given":`+list(`{"id":"x"}`)+`}]}`)
	if issues := names.Validate(); issues != nil {
		t.Error(issues[0])
	}
	names.Walk(func(string, string, []byte) ([]byte, bool) { return nil, true })
	var members strings.Builder
	for i := range n {
		fmt.Fprintf(&members, `,{"entity":{"reference":"Patient/%d"}}`, i)
	}
	group := mustParse(t, `{"resourceType":"Group","type":"person","actual":true,"member":[`+members.String()[1:]+`]}`)
	if got := len(group.Patients()); got != n {
		t.Errorf("%d patients", got)
	}
	if got := group.References()[n-1].Expression; got != fmt.Sprintf("Group.member[%d].entity", n-1) {
		t.Errorf("the last is at %s", got)
	}
	var properties strings.Builder
	for i := range n {
		fmt.Fprintf(&properties, `,"p%d":1`, i)
	}
	unknown := mustParse(t, `{"resourceType":"Patient"`+properties.String()+`}`)
	if got := len(unknown.Validate()); got != maxIssues {
		t.Errorf("%d findings", got)
	}
}
