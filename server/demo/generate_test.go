package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"
)

type parsedEntry struct {
	FullURL  string
	Resource json.RawMessage
	Request  struct{ Method, URL string }
}

func entriesOf(t interface{ Fatalf(string, ...any) }, bundle []byte) []parsedEntry {
	if !jsontext.Value(bundle).IsValid() { // strict: duplicate names, invalid UTF-8
		t.Fatalf("not strict JSON: %.200s", bundle)
	}
	var b struct {
		ResourceType, Type string
		Entry              []parsedEntry
	}
	if err := json.Unmarshal(bundle, &b); err != nil || b.ResourceType != "Bundle" || b.Type != "transaction" {
		t.Fatalf("not a transaction: %v %s %s", err, b.ResourceType, b.Type)
	}
	return b.Entry
}

func generate(t interface{ Fatalf(string, ...any) }, n int, seed uint64) (bundles [][]byte, first string) {
	first, err := Generate(n, seed, func(b []byte) error {
		bundles = append(bundles, bytes.Clone(b))
		return nil
	})
	if err != nil || len(bundles) != n+1 {
		t.Fatalf("generated %d bundles, want %d: %v", len(bundles), n+1, err)
	}
	return bundles, first
}

func TestGenerateDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, n := rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 6).Draw(t, "n")
		a, first := generate(t, n, seed)
		b, again := generate(t, n+2, seed)
		if first != again {
			t.Fatalf("first patient %s, then %s", first, again)
		}
		for i := range a {
			if !bytes.Equal(a[i], b[i]) {
				t.Fatalf("bundle %d differs between two runs", i)
			}
		}
		if other, _ := generate(t, n, seed+1); bytes.Equal(a[1], other[1]) {
			t.Fatalf("another seed gives the same patient")
		}
	})
}

func TestGenerateRelationships(t *testing.T) {
	const n = 40
	bundles, first := generate(t, n, 7)
	rivera, okafor := 0, 0
	for i, b := range bundles[1:] {
		treats := func(id string) bool { return bytes.Contains(b, []byte("Practitioner/"+id)) }
		if treats(ChenID) {
			t.Errorf("dr-chen is in the chart of patient %d", i)
		}
		if got := treats(RiveraID); got != (i%2 == 0) {
			t.Errorf("patient %d names dr-rivera: %v", i, got)
		} else if got {
			rivera++
		}
		if got := treats(OkaforID); got != (i%4 == 0) {
			t.Errorf("patient %d names nurse-okafor: %v", i, got)
		} else if got {
			okafor++
		}
		// What a relationship follows from: the participants of Encounters and CareTeams.
		related := false
		for _, e := range entriesOf(t, b) {
			kind, _, _ := strings.Cut(e.Request.URL, "/")
			if (kind == "Encounter" || kind == "CareTeam") && bytes.Contains(e.Resource, []byte("Practitioner/"+RiveraID)) {
				related = true
			}
		}
		if related != (i%2 == 0) {
			t.Errorf("patient %d: relationship with dr-rivera is %v", i, related)
		}
	}
	if rivera != n/2 || okafor != n/4 {
		t.Errorf("dr-rivera treats %d, nurse-okafor %d of %d", rivera, okafor, n)
	}
	if entriesOf(t, bundles[1])[0].Request.URL != "Patient/"+first {
		t.Error("the first patient is not the one that was returned")
	}
}

var uuidShape = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// Every record is valid FHIR, every reference leads to a record that came before or is in the same bundle, and the charts
// have the size and the oddities that they are for.
func TestGenerateCharts(t *testing.T) {
	const n = 60
	bundles, _ := generate(t, n, 3)
	known := map[string]bool{}
	kinds := map[string]int{}
	total := 0
	for i, b := range bundles {
		entries := entriesOf(t, b)
		for _, e := range entries {
			if known[e.Request.URL] {
				t.Errorf("%s comes twice", e.Request.URL)
			}
			known[e.Request.URL] = true
		}
		if i > 0 {
			total += len(entries)
			if len(entries) < 18 || len(entries) > 60 {
				t.Errorf("patient %d has %d records", i, len(entries))
			}
		}
		for _, e := range entries {
			kind, id, _ := strings.Cut(e.Request.URL, "/")
			kinds[kind]++
			if e.Request.Method != "PUT" || !uuidShape.MatchString(id) {
				t.Errorf("%s %s", e.Request.Method, e.Request.URL)
			}
			r, issues := fhir.Parse(e.Resource)
			if issues == nil {
				issues = r.Validate()
			}
			if len(issues) > 0 {
				t.Fatalf("%s: %+v\n%s", e.Request.URL, issues, e.Resource)
			}
			if r.Type != kind || r.ID != id {
				t.Errorf("%s is %s/%s", e.Request.URL, r.Type, r.ID)
			}
			for _, ref := range r.References() {
				if !known[ref.Value] {
					t.Errorf("%s: %s leads nowhere: %s", e.Request.URL, ref.Expression, ref.Value)
				}
			}
		}
	}
	if mean := total / n; mean < 25 || mean > 45 {
		t.Errorf("%d records a patient on average", mean)
	}
	for _, kind := range []string{"Patient", "Encounter", "Condition", "Observation", "AllergyIntolerance", "MedicationRequest",
		"Immunization", "Procedure", "DiagnosticReport", "CareTeam", "Coverage", "DocumentReference", "RelatedPerson",
		"Practitioner", "Organization", "Location"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s", kind)
		}
	}
	all := string(bytes.Join(bundles, nil))
	for _, oddity := range []string{`_birthDate`, `deceasedDateTime`, `"valueCode":"IDE"`, `'`, `Álvarez`, `"use":"nickname"`, `us-core-race`, `é`} {
		if !strings.Contains(all, oddity) {
			t.Errorf("no %s among %d patients", oddity, n)
		}
	}
	for _, trailingZero := range []*regexp.Regexp{regexp.MustCompile(`"value":\d\.\d0,`), regexp.MustCompile(`"value":9\d\.\d0,`)} {
		if !trailingZero.MatchString(all) {
			t.Errorf("no decimal like %v", trailingZero)
		}
	}
	if real := regexp.MustCompile(`us-ssn","value":"[^9]`); real.MatchString(all) {
		t.Error("a social security number that may be somebody's")
	}
}

func TestGenerateStops(t *testing.T) {
	calls, full := 0, errors.New("full")
	_, err := Generate(10, 1, func([]byte) error {
		if calls++; calls == 3 {
			return full
		}
		return nil
	})
	if !errors.Is(err, full) || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func BenchmarkGenerate(b *testing.B) {
	size := 0
	for b.Loop() {
		size = 0
		if _, err := Generate(100, 1, func(p []byte) error { size += len(p); return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(size)/100/1024, "KiB/patient")
}
