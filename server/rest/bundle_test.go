package rest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

const testBase = "http://h.test/fhir/R4"

func record(version int64, method string) *phi.Resource {
	r := &phi.Resource{
		Ref: phi.Ref{Type: "Patient", ID: "p1"}, Version: version, Method: method,
		Updated: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC),
	}
	if r.Deleted = method == "DELETE"; !r.Deleted {
		r.JSON = phi.Conceal([]byte(`{"resourceType":"Patient","id":"p1","multipleBirthInteger":2,"extension":[{"url":"http://x.test","valueDecimal":1.10}]}`))
	}
	return r
}

// validBundle parses a bundle with our own validator and returns it decoded.
func validBundle(t *testing.T, b []byte) map[string]any {
	t.Helper()
	r, issues := fhir.Parse(b)
	if issues == nil {
		issues = r.Validate()
	}
	for _, i := range issues {
		t.Errorf("not a valid bundle: %+v: %s", i, b)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return m
}

// at walks into decoded JSON: strings are members, ints items.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				t.Fatalf("no item %d of %v", p, path)
			}
			v = l[p]
		}
	}
	return v
}

func TestSearchset(t *testing.T) {
	p := &phi.Page{
		Resources: []*phi.Resource{record(3, "PUT")},
		Next:      "tok+/=en",
		Total:     1,
		Self:      []phi.Param{{Name: "name", Value: `O"Neil & "`}, {Name: "_count", Value: "1"}},
		Warnings:  []fhir.Issue{{Severity: "warning", Code: "not-supported", Diagnostics: "ignored"}},
	}
	b := appendSearchset(nil, testBase, "Patient", p)
	m := validBundle(t, b)
	for _, c := range []struct {
		want any
		path []any
	}{
		{"searchset", []any{"type"}},
		{1.0, []any{"total"}},
		{testBase + "/Patient?name=O%22Neil+%26+%22&_count=1", []any{"link", 0, "url"}},
		{"next", []any{"link", 1, "relation"}},
		{testBase + "/Patient?_page=tok%2B%2F%3Den", []any{"link", 1, "url"}},
		{testBase + "/Patient/p1", []any{"entry", 0, "fullUrl"}},
		{"match", []any{"entry", 0, "search", "mode"}},
		{"OperationOutcome", []any{"entry", 1, "resource", "resourceType"}},
		{"outcome", []any{"entry", 1, "search", "mode"}},
	} {
		if got := at(t, m, c.path...); got != c.want {
			t.Errorf("%v = %v, want %v", c.path, got, c.want)
		}
	}
	if !strings.Contains(string(b), `"valueDecimal":1.10`) {
		t.Error("a value lost its text")
	}
	empty := validBundle(t, appendSearchset(nil, testBase, "Patient", &phi.Page{Total: -1}))
	for _, absent := range []string{"total", "entry"} {
		if _, ok := empty[absent]; ok {
			t.Errorf("an empty page of unknown total has %s", absent)
		}
	}
}

func TestHistoryBundle(t *testing.T) {
	p := &phi.Page{
		Resources: []*phi.Resource{record(3, "DELETE"), record(2, "PUT"), record(1, "POST")}, Total: 3,
		Warnings: []fhir.Issue{{Severity: "warning", Code: "not-supported", Diagnostics: "ignored"}},
	}
	m := validBundle(t, appendHistory(nil, testBase, "Patient/p1/_history", p))
	for i, want := range []struct{ method, url, status, etag string }{
		{"DELETE", "Patient/p1", "204 No Content", `W/"3"`},
		{"PUT", "Patient/p1", "200 OK", `W/"2"`},
		{"POST", "Patient", "201 Created", `W/"1"`},
	} {
		e := at(t, m, "entry", i)
		if at(t, e, "request", "method") != want.method || at(t, e, "request", "url") != want.url ||
			at(t, e, "response", "status") != want.status || at(t, e, "response", "etag") != want.etag {
			t.Errorf("entry %d: %v", i, e)
		}
		if has := at(t, e, "resource") != nil; has != (want.method != "DELETE") {
			t.Errorf("entry %d: resource %v", i, has)
		}
	}
	if got := at(t, m, "entry", 0, "response", "lastModified"); got != "2026-01-02T03:04:05.678Z" {
		t.Errorf("lastModified %v", got)
	}
}

func TestBundleResult(t *testing.T) {
	result := &phi.BundleResult{Type: "batch-response", Entries: []phi.EntryResult{
		{Method: "POST", Written: &phi.Written{Resource: record(1, "POST"), Created: true}},
		{Method: "PUT", Written: &phi.Written{Resource: record(2, "PUT")}},
		{Method: "DELETE", Written: &phi.Written{Resource: record(3, "DELETE")}},
		{Method: "GET"},
		{Method: "GET"},
		{Method: "PUT", Err: &phi.Error{Kind: phi.Unprocessable, Issues: []fhir.Issue{{Severity: "error", Code: "required", Expression: "Bundle.entry[5].resource.status"}}}},
		{Method: "GET", Err: &phi.Error{Kind: phi.NotFound, Issues: []fhir.Issue{{Severity: "error", Code: "not-found", Diagnostics: "outside compartment of p1"}}}},
	}}
	reads := func() { // what is written into a body is cleared where it stood
		result.Entries[3].Resource = record(2, "PUT")
		result.Entries[4].Page = &phi.Page{Resources: []*phi.Resource{record(2, "PUT")}, Total: 1}
	}
	patients := func(int) string { return "Patient" }
	reads()
	b := appendBundleResult(nil, testBase, result, "representation", patients)
	m := validBundle(t, b)
	for i, status := range []string{"201 Created", "200 OK", "204 No Content", "200 OK", "200 OK", "422 Unprocessable Entity", "404 Not Found"} {
		if got := at(t, m, "entry", i, "response", "status"); got != status {
			t.Errorf("entry %d: status %v, want %s", i, got, status)
		}
	}
	if got := at(t, m, "entry", 0, "response", "location"); got != testBase+"/Patient/p1/_history/1" {
		t.Errorf("location %v", got)
	}
	if got := at(t, m, "entry", 5, "response", "outcome", "issue", 0, "expression", 0); got != "Bundle.entry[5].resource.status" {
		t.Errorf("expression %v", got)
	}
	if strings.Contains(string(b), "compartment") {
		t.Error("why a record is not found is told")
	}
	if text := result.Entries[0].Written.JSON.Reveal(); strings.Trim(string(text), "\x00") != "" {
		t.Errorf("%q is left of a record whose text is in the body", text)
	}
	reads()
	small := string(appendBundleResult(nil, testBase, result, "", patients))
	if n := strings.Count(small, `"resourceType":"Patient"`); n != 2 {
		t.Errorf("%d resources without Prefer, want those of the two reads", n)
	}
}

func TestOutcomeQuoting(t *testing.T) {
	b := appendOutcome(nil, []fhir.Issue{{Severity: "error", Code: "value", Diagnostics: "a \"quote\"\n\x00 \xff", Expression: "Patient.name[0]"}})
	if !json.Valid(b) {
		t.Errorf("not JSON: %s", b)
	}
}

func TestErrorTable(t *testing.T) {
	for kind, want := range map[phi.Kind]int{
		phi.Invalid: 400, phi.Unprocessable: 422, phi.Denied: 403, phi.NotFound: 404, phi.Gone: 410, phi.Conflict: 409,
		phi.PreconditionFailed: 412, phi.TooLarge: 413, phi.Unavailable: 503, phi.Integrity: 500, phi.NotAllowed: 405, phi.Kind(0): 500, phi.Kind(99): 500,
	} {
		r := refused(&phi.Error{Kind: kind, Issues: []fhir.Issue{{Severity: "error", Code: "x", Diagnostics: "y"}}})
		if r.status != want || r.text == "" || r.code == "" || !r.recorded {
			t.Errorf("kind %d: %+v", kind, r)
		}
	}
}

func TestETagParsing(t *testing.T) {
	for in, want := range map[string]int64{
		`W/"3"`: 3, `"3"`: 3, ` W/"12" `: 12, `W/"9223372036854775807"`: 9223372036854775807,
		`3`: 0, `W/3`: 0, `W/""`: 0, `W/"0"`: 0, `W/"-1"`: 0, `W/"01"`: 0, `W/"1`: 0, `*`: 0, ``: 0, `"`: 0, `W/"9223372036854775808"`: 0, `W/"1", W/"2"`: 0,
	} {
		if got, ok := parseETag(in); got != want && ok || ok != (want != 0) {
			t.Errorf("parseETag(%s) = %d, %v; want %d", in, got, ok, want)
		}
	}
}

func TestAcceptRanges(t *testing.T) {
	for in, want := range map[string]bool{
		"application/fhir+json": true, "application/json": true, "*/*": true, "application/*": true, "Application/FHIR+JSON; charset=utf-8": true,
		"application/fhir+json; fhirVersion=4.0": true, "application/fhir+json;q=0.5": true,
		"application/fhir+json;q=0": false, "application/fhir+json; fhirVersion=3.0": false, "application/fhir+xml": false, "text/html": false, "": false,
	} {
		if got := jsonRange(in); got != want {
			t.Errorf("jsonRange(%q) = %v", in, got)
		}
	}
}

func TestZeroGuardRefuses(t *testing.T) {
	c := &call{route: &route{serve: func(*call) error { t.Error("a route without a guard was served"); return nil }}}
	if err := c.guarded(); err == nil {
		t.Error("no error")
	}
}
