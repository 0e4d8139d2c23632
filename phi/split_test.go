package phi

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

func equalElements(a, b []fhir.Element) bool {
	return slices.EqualFunc(a, b, func(x, y fhir.Element) bool { return x.Name == y.Name && bytes.Equal(x.Raw, y.Raw) })
}

// TestSplitJoin splits any elements, known or not, and joins any subset of classes to source order.
func TestSplitJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfDistinct(rapid.OneOf(
			rapid.SampledFrom([]string{"identifier", "name", "birthDate", "_birthDate", "telecom", "gender", "text", "extension", "contained", "é"}),
			rapid.StringMatching(`[a-zA-Z_]{1,20}`),
		), func(s string) string { return s }).Draw(t, "names")
		r := &fhir.Resource{Type: "Patient"}
		for _, name := range names {
			if name != "meta" {
				r.Elements = append(r.Elements, fhir.Element{Name: name, Raw: []byte(rapid.StringN(1, 50, 300).Draw(t, "raw"))})
			}
		}
		view := ClassSet(rapid.Uint8Range(0, uint8(AllClasses)).Draw(t, "view"))
		cells := split(r)
		var want []fhir.Element
		for _, e := range r.Elements {
			if view.Has(classOf(r.Type, e.Name)) {
				want = append(want, e)
			}
		}
		for c := range Class(NumClasses) {
			if !view.Has(c) {
				cells[c] = nil
			}
		}
		got, err := join(&cells, nil)
		if err != nil || !equalElements(got, want) {
			t.Fatalf("joined %v, %v, want %v", got, err, want)
		}
	})
}

func TestSplitMeta(t *testing.T) {
	for in, want := range map[string]string{
		`{"versionId":"3","lastUpdated":"2020-01-01T00:00:00Z"}`:                                                      ``,
		`{"versionId":"3","profile":["http://x"],"source":"\u0023a"}`:                                                 `{"profile":["http://x"],"source":"\u0023a"}`,
		`{"tag":[{"code":"SUBSETTED"}]}`:                                                                              ``,
		`{"tag":[{"code":"a","display":"x, y"},{"system":"s","code":"SUBSETTED"},{"code":"b"}],"_source":{"id":"1"}}`: `{"tag":[{"code":"a","display":"x, y"},{"code":"b"}],"_source":{"id":"1"}}`,
		`{"security":[{"code":"SUBSETTED"}]}`:                                                                         `{"security":[{"code":"SUBSETTED"}]}`,
	} {
		r := &fhir.Resource{Type: "Observation", Elements: []fhir.Element{{Name: "meta", Raw: []byte(in)}, {Name: "status", Raw: []byte(`"final"`)}}}
		cells := split(r)
		got, err := join(&cells, nil)
		if err != nil {
			t.Fatal(err)
		}
		meta := ""
		if got[0].Name == "meta" {
			meta = string(got[0].Raw)
		}
		if meta != want || got[len(got)-1].Name != "status" {
			t.Errorf("meta %s is stored as %s, want %s", in, meta, want)
		}
	}
}

func TestJoinRefusesWhatSplitDoesNotWrite(t *testing.T) {
	good := func(position byte, name, raw string) []byte {
		return append([]byte{position}, fmt.Sprintf("%c%s%c%s", len(name), name, len(raw), raw)...)
	}
	for name, cells := range map[string][NumClasses][]byte{
		"position twice in two cells": {good(1, "a", "1"), good(1, "b", "1")},
		"position twice in a cell":    {append(good(1, "a", "1"), good(1, "b", "1")...)},
		"positions going back":        {append(good(2, "a", "1"), good(1, "b", "1")...)},
		"no name":                     {good(1, "", "1")},
		"no text":                     {good(1, "a", "")},
		"cut":                         {good(1, "a", "12")[:4]},
		"position only":               {{1}},
		"huge length":                 {{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}},
		"endless varint":              {bytes.Repeat([]byte{0xff}, 20)},
	} {
		if _, err := join(&cells, nil); !errors.Is(err, errIntegrity) {
			t.Errorf("%s: %v, want errIntegrity", name, err)
		}
	}
}

func FuzzJoin(f *testing.F) {
	cells := split(&fhir.Resource{Type: "Patient", Elements: []fhir.Element{
		{Name: "name", Raw: []byte(`[{"family":"x"}]`)}, {Name: "gender", Raw: []byte(`"male"`)}, {Name: "x", Raw: []byte(`1`)},
	}})
	f.Add(cells[ClassName], cells[ClassClinical])
	f.Fuzz(func(t *testing.T, a, b []byte) {
		cells := [NumClasses][]byte{a, b}
		got, err := join(&cells, nil)
		if err != nil {
			return
		}
		total := 0
		for _, e := range got {
			total += len(e.Name) + len(e.Raw)
		}
		if total > len(a)+len(b) {
			t.Errorf("%d bytes came out of %d", total, len(a)+len(b))
		}
	})
}
