package fhir

import (
	"slices"
	"strings"
	"testing"
)

func TestWalkVisits(t *testing.T) {
	r := mustParse(t, `{"resourceType":"Patient","id":"p","birthDate":"2020","_birthDate":{"extension":[{"url":"u","valueCode":"c"}]},`+
		`"name":[{"given":["a",null],"_given":[null,{"id":"g"}]}],"contact":[{"gender":"male"}],"odd":[1,{"x":2}],`+
		`"contained":[{"resourceType":"Observation","id":"o","status":"final"}]}`)
	var got []string
	same := r.Walk(func(path, fhirType string, raw []byte) ([]byte, bool) {
		line := path + " " + fhirType
		if raw[0] != '{' {
			line += " " + string(raw)
		}
		got = append(got, line)
		return nil, true
	})
	want := []string{
		`Patient.birthDate date "2020"`,
		`Patient.birthDate Element`,
		`Patient.birthDate.extension Extension`,
		`Patient.birthDate.extension.url uri "u"`,
		`Patient.birthDate.extension.valueCode code "c"`,
		`Patient.name HumanName`,
		`Patient.name.given string "a"`,
		`Patient.name.given Element`,
		`Patient.name.given.id string "g"`,
		`Patient.contact Patient.contact`,
		`Patient.contact.gender code "male"`,
		`Patient.odd  [1,{"x":2}]`,
		`Patient.odd  1`,
		`Patient.odd `,
		`Patient.odd.x  2`,
		`Patient.contained Observation`,
		`Observation.id id "o"`,
		`Observation.status code "final"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("visited\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if string(same.Text()) != string(r.Text()) {
		t.Errorf("text %s", same.Text())
	}
}

func TestWalkChanges(t *testing.T) {
	drop := func(paths ...string) func(string, string, []byte) ([]byte, bool) {
		return func(path, fhirType string, raw []byte) ([]byte, bool) {
			return nil, !slices.Contains(paths, path) && !slices.Contains(paths, path+"="+string(raw)) && !slices.Contains(paths, fhirType)
		}
	}
	for _, c := range []struct {
		name, in, out string
		visit         func(string, string, []byte) ([]byte, bool)
	}{
		{"drop an element", `"active":true,"gender":"male"`, `"active":true`, drop("Patient.gender")},
		{"drop a datatype", `"name":[{"family":"a"}],"active":true`, `"active":true`, drop("HumanName")},
		{"drop an array item", `"name":[{"family":"a"},{"family":"b"}]`, `"name":[{"family":"b"}]`, drop(`Patient.name={"family":"a"}`)},
		{"what is empty vanishes", `"contact":[{"name":{"family":"a"}}],"active":true`, `"active":true`, drop("Patient.contact.name.family")},
		{"extensions go with their primitive", `"_birthDate":{"id":"x"},"birthDate":"2020","active":true`, `"active":true`, drop("Patient.birthDate=\"2020\"")},
		{"a primitive stays without extensions", `"_birthDate":{"id":"x"},"birthDate":"2020"`, `"birthDate":"2020"`, drop("Patient.birthDate.id")},
		{"only extensions", `"_birthDate":{"id":"x"}`, `"_birthDate":{"id":"x"}`, drop("date")},
		{"arrays stay aligned", `"name":[{"given":["a","b","c"],"_given":[{"id":"1"},null,{"id":"3"}]}]`, `"name":[{"given":["b","c"],"_given":[null,{"id":"3"}]}]`, drop(`Patient.name.given="a"`)},
		{"an array of extensions vanishes", `"name":[{"given":["a","b"],"_given":[{"id":"1"},null]}]`, `"name":[{"given":["b"]}]`, drop(`Patient.name.given="a"`)},
		{"a null keeps its place", `"name":[{"given":[null,"b"],"_given":[{"id":"1"},null]}]`, `"name":[{"given":[null,"b"],"_given":[{"id":"1"},null]}]`, drop()},
		{"unknown elements", `"odd":{"x":1},"active":true`, `"active":true`, drop("")},
		{"contained resources alike", `"contained":[{"resourceType":"Patient","id":"c","gender":"male"}],"gender":"male"`, `"contained":[{"resourceType":"Patient","id":"c"}]`, drop("Patient.gender")},
		{"replace", `"birthDate":"2020-02-03","_birthDate":{"id":"x"},"active":true`, `"birthDate":"2020","_birthDate":{"id":"x"},"active":true`,
			func(_, fhirType string, raw []byte) ([]byte, bool) {
				if fhirType == "date" {
					return append(raw[:5:5], '"'), true
				}
				return nil, true
			}},
		{"everything", `"active":true,"name":[{"family":"a"}]`, ``, func(string, string, []byte) ([]byte, bool) { return nil, false }},
	} {
		frame := func(members string) string {
			return strings.TrimSuffix(`{"resourceType":"Patient","id":"p",`+members, ",") + "}"
		}
		r := mustParse(t, frame(c.in))
		if got := string(r.Walk(c.visit).Text()); got != frame(c.out) {
			t.Errorf("%s: %s, want %s", c.name, got, frame(c.out))
		}
		if string(r.Text()) != frame(c.in) {
			t.Errorf("%s: the original changed", c.name)
		}
	}
}
