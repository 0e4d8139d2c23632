package fhir

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// shared is where real input lies, beside the repository.
const shared = "../../../shared/data"

// sample is one resource of the shared data.
type sample struct {
	name string
	text []byte
}

// examples are US Core's; bundles are Synthea's transactions. Both skip the test when the data is absent.
func examples(t testing.TB) []sample { return files(t, "us-core-6.1.0/examples") }
func bundles(t testing.TB) []sample  { return files(t, "synthea") }

func files(t testing.TB, dir string) []sample {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(shared, dir))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("the shared data is absent: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []sample
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(shared, dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, sample{e.Name(), text})
	}
	return all
}

func mustParse(t testing.TB, text string) *Resource {
	t.Helper()
	r, issues := Parse([]byte(text))
	if issues != nil {
		t.Fatalf("Parse: %v", issues)
	}
	return r
}

// TestRealData holds the promise that what US Core and Synthea publish passes and keeps its text.
func TestRealData(t *testing.T) {
	for _, s := range append(examples(t), bundles(t)...) {
		r, issues := Parse(s.text)
		if issues != nil {
			t.Errorf("%s: %v", s.name, issues)
			continue
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, s.text); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(compact.Bytes(), r.Text()) {
			t.Errorf("%s: the text changed", s.name)
		}
		for _, issue := range r.Validate() {
			t.Errorf("%s: %v", s.name, issue)
		}
	}
}
