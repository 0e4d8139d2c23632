package fhir

import (
	"os"
	"path/filepath"
	"testing"
)

// observation is US Core's blood-pressure example, 3.1 KB.
func observation(b *testing.B) []byte {
	text, err := os.ReadFile(filepath.Join(shared, "us-core-6.1.0/examples/Observation-blood-pressure.json"))
	if err != nil {
		b.Skipf("the shared data is absent: %v", err)
	}
	return text
}

func BenchmarkParse(b *testing.B) {
	text := observation(b)
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, issues := Parse(text); issues != nil {
			b.Fatal(issues)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	r := mustParse(b, string(observation(b)))
	b.ReportAllocs()
	for b.Loop() {
		if issues := r.Validate(); issues != nil {
			b.Fatal(issues)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	r := mustParse(b, string(observation(b)))
	c, issues := ParseCriterion("Observation", "category", "http://terminology.hl7.org/CodeSystem/observation-category|vital-signs")
	if issues != nil {
		b.Fatal(issues)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !c.Match(r) {
			b.Fatal("no match")
		}
	}
}

func BenchmarkTables(b *testing.B) {
	for b.Loop() {
		if _, err := readTables(packedTables); err != nil {
			b.Fatal(err)
		}
	}
}
