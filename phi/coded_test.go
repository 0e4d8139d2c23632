package phi

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

func TestKeepCodes(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{
			"a claim keeps codes, amounts, dates and numbers",
			`{"resourceType":"Claim","meta":{"profile":["http://p.test"],"tag":[{"system":"urn:x","code":"t","display":"Wordy"}]},"identifier":[{"use":"official","type":{"coding":[{"code":"MR","display":"Wordy"}],"text":"Wordy"},"system":"urn:x","value":"C-1","assigner":{"display":"Wordy"}}],
			 "status":"active","type":{"coding":[{"system":"urn:t","version":"1","code":"professional","display":"Wordy"}],"text":"Wordy"},"patient":{"reference":"Patient/1","display":"Wordy"},"created":"2024-05-06T07:08:09Z",
			 "supportingInfo":[{"sequence":1,"valueString":"Wordy","valueQuantity":{"value":2.50,"unit":"wordy","code":"h"}}],"insurance":[{"sequence":1,"focal":true,"preAuthRef":["A-1"],"businessArrangement":"B-1"}],
			 "accident":{"date":"2024-05-01","locationAddress":{"text":"Wordy","line":["1 Main Street"],"city":"Boston","state":"MA"}},
			 "item":[{"sequence":1,"productOrService":{"coding":[{"system":"http://www.ama-assn.org/go/cpt","code":"99213","display":"Wordy"}]},"unitPrice":{"value":12.50,"currency":"USD"},"detail":[{"sequence":1,"extension":[{"url":"x","valueString":"Wordy"}]}]}],
			 "total":{"value":12.50,"currency":"USD"}}`,
			`{"resourceType":"Claim","meta":{"profile":["http://p.test"],"tag":[{"system":"urn:x","code":"t"}]},"identifier":[{"use":"official","type":{"coding":[{"code":"MR"}]},"system":"urn:x","value":"C-1"}],"status":"active","type":{"coding":[{"system":"urn:t","version":"1","code":"professional"}]},"patient":{"reference":"Patient/1"},"created":"2024-05-06T07:08:09Z","supportingInfo":[{"sequence":1,"valueQuantity":{"value":2.50,"code":"h"}}],"insurance":[{"sequence":1,"focal":true,"preAuthRef":["A-1"],"businessArrangement":"B-1"}],"accident":{"date":"2024-05-01","locationAddress":{"line":["1 Main Street"],"city":"Boston","state":"MA"}},"item":[{"sequence":1,"productOrService":{"coding":[{"system":"http://www.ama-assn.org/go/cpt","code":"99213"}]},"unitPrice":{"value":12.50,"currency":"USD"},"detail":[{"sequence":1}]}],"total":{"value":12.50,"currency":"USD"}}`,
		},
		{
			"notes, contained resources and what refers to them go",
			`{"resourceType":"ExplanationOfBenefit","contained":[{"resourceType":"Observation","id":"o","status":"final","code":{"coding":[{"code":"wordy"}]}}],"provider":{"reference":"#o"},"insurer":{"reference":"Organization/1"},"disposition":"Wordy","processNote":[{"number":1,"text":"Wordy","language":{"coding":[{"code":"en"}]}}],"wordy":{"wordy":"Wordy"}}`,
			`{"resourceType":"ExplanationOfBenefit","insurer":{"reference":"Organization/1"},"processNote":[{"number":1,"language":{"coding":[{"code":"en"}]}}]}`,
		},
		{
			"coverage keeps the numbers of plan and member",
			`{"resourceType":"Coverage","status":"active","subscriberId":"S-1","dependent":"2","class":[{"type":{"text":"Wordy"},"value":"G-1","name":"Wordy"}],"network":"N-1"}`,
			`{"resourceType":"Coverage","status":"active","subscriberId":"S-1","dependent":"2","class":[{"value":"G-1"}],"network":"N-1"}`,
		},
		{
			"an encounter keeps why in codes only",
			`{"resourceType":"Encounter","status":"finished","class":{"code":"AMB","display":"Wordy"},"reasonCode":[{"coding":[{"code":"F32.1","display":"Wordy"}],"text":"Wordy"}],"extension":[{"url":"x","valueCodeableConcept":{"text":"Wordy"}}],"length":{"value":2,"unit":"wordy","code":"h"},"_status":{"extension":[{"url":"x","valueString":"Wordy"}]}}`,
			`{"resourceType":"Encounter","status":"finished","class":{"code":"AMB"},"reasonCode":[{"coding":[{"code":"F32.1"}]}],"length":{"value":2,"code":"h"}}`,
		},
		{"a modified resource keeps nothing", `{"resourceType":"Claim","modifierExtension":[{"url":"not"}],"status":"active"}`, `{"resourceType":"Claim"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := keepCodes(parse(t, tt.in)).Text()
			if string(got) != tt.want {
				t.Errorf("reduced to\n%s, want\n%s", got, tt.want)
			}
			if bytes.Contains(bytes.ToLower(got), []byte("wordy")) {
				t.Error("words are left")
			}
		})
	}
}

// TestKeepCodesPlanted plants words in every element of every type that the billing view may be granted on: none comes out where
// a sentence could stand.
func TestKeepCodesPlanted(t *testing.T) {
	types := definitions(t)
	rapid.Check(t, func(t *rapid.T) {
		resourceType := rapid.OneOf(rapid.SampledFrom([]string{"Claim", "ExplanationOfBenefit", "Coverage", "Encounter"}), rapid.SampledFrom(fhir.Types())).Draw(t, "type")
		object, _ := planted(t, types, resourceType, false, 4).(map[string]any)
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
		got := keepCodes(r)
		got.Walk(func(path, fhirType string, raw []byte) ([]byte, bool) {
			last := path[strings.LastIndexByte(path, '.')+1:]
			switch {
			case slices.Contains([]string{"markdown", "xhtml", "base64Binary", "Annotation", "Attachment", "Narrative", "Extension", "Element", ""}, fhirType),
				slices.Contains([]string{"display", "text", "note", "comment", "description", "contained", "unit", "title"}, last) && raw[0] == '"':
				t.Errorf("%s, a %s, is left: %s", path, fhirType, raw)
			}
			return nil, true
		})
	})
}

// TestKeepCodesSynthea looks through the claims and encounters of real charts.
func TestKeepCodesSynthea(t *testing.T) {
	seen := 0
	for name, resources := range published(t) {
		for _, r := range resources {
			if !slices.Contains([]string{"Claim", "ExplanationOfBenefit", "Encounter", "Coverage"}, r.Type) {
				continue
			}
			seen++
			got := string(keepCodes(r).Text())
			for _, word := range []string{`"display":`, `"text":`, `"div":`, `"contained":`, `"unit":`} {
				if strings.Contains(got, word) {
					t.Errorf("%s: %s keeps %s", name, r.Type, word)
				}
			}
			if r.Type == "Claim" && !(strings.Contains(got, `"total":{"value":`) && strings.Contains(got, `"patient":{"reference":`)) {
				t.Errorf("%s: a claim has lost its total or patient: %s", name, got)
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d resources", seen)
	}
}
