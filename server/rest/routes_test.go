package rest_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/server/rest"
)

// fill makes a path of a pattern.
func fill(pattern string) string {
	return strings.NewReplacer(":type", "Patient", ":id", "p1", ":vid", "1", ":practitioner", "dr", ":patient", "p1").Replace(pattern)
}

// TestGuards probes every registered route without a token, with a broken one, and with one that may nothing.
func TestGuards(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	nobody := d.issuer.token(t, d.base, "nobody", "openid", nil)
	broken := d.as("backend")
	broken = broken[:len(broken)-6] + "AAAAAA"
	for _, r := range d.server.Routes() {
		path := fill(r.Pattern)
		body, media := "", "application/fhir+json"
		switch {
		case r.Method == "PUT" || r.Method == "POST" && strings.HasSuffix(path, "/Patient"):
			body = `{"resourceType":"Patient","id":"p1"}`
		case strings.HasSuffix(path, "/relationships"):
			body, media = `{"practitioner":"dr","patient":"p1","reason":"test"}`, "application/json"
		case r.Method == "POST" && !strings.Contains(path, "_search"):
			body = `{"resourceType":"Bundle","type":"transaction","entry":[{"fullUrl":"urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a","resource":{"resourceType":"Patient"},"request":{"method":"POST","url":"Patient"}}]}`
		}
		if r.Guard == "" {
			t.Errorf("%s %s declares no guard", r.Method, r.Pattern)
		}
		if r.Guard == "logout-token" {
			d.want(d.do(r.Method, path, "", "", "Content-Type", "application/x-www-form-urlencoded"), http.StatusBadRequest)
			d.want(d.do(r.Method, path, d.as("admin"), "logout_token="+broken, "Content-Type", "application/x-www-form-urlencoded"), http.StatusBadRequest)
			continue
		}
		open := r.Guard == "open"
		public := []string{"/fhir/R4/metadata", "/fhir/R4/.well-known/smart-configuration", "/v1/openapi.json", "/healthz", "/readyz"}
		if open != slices.Contains(public, r.Pattern) {
			t.Errorf("%s %s: guard %s", r.Method, r.Pattern, r.Guard)
		}
		if open {
			d.want(d.do(r.Method, path, "", body), http.StatusOK)
			continue
		}
		if got := d.want(d.do(r.Method, path, "", body, "Content-Type", media), http.StatusUnauthorized).Header.Get("WWW-Authenticate"); got != `Bearer realm="chartkeep"` {
			t.Errorf("%s %s without token: challenge %s", r.Method, r.Pattern, got)
		}
		if got := d.want(d.do(r.Method, path, broken, body, "Content-Type", media), http.StatusUnauthorized).Header.Get("WWW-Authenticate"); !strings.Contains(got, `error="invalid_token"`) {
			t.Errorf("%s %s with a broken token: challenge %s", r.Method, r.Pattern, got)
		}
		if r.Method == "GET" {
			d.want(d.do("HEAD", path, "", ""), http.StatusUnauthorized)
			d.want(d.do("HEAD", path, nobody, ""), http.StatusForbidden)
		}
		a := d.want(d.do(r.Method, path, nobody, body, "Content-Type", media), http.StatusForbidden)
		if got := a.Header.Get("WWW-Authenticate"); !strings.Contains(got, `error="insufficient_scope"`) {
			t.Errorf("%s %s without scope: challenge %s", r.Method, r.Pattern, got)
		}
		if got := d.eventsOf(a.Header.Get("X-Request-Id")); len(got) == 0 {
			t.Errorf("%s %s without scope left no event", r.Method, r.Pattern)
		}
	}
}

// TestUnrouted covers what is not in the table: every such request is refused, in the right words, and is an event.
func TestUnrouted(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	token := d.as("backend")
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/v1", 404, ""},
		{"GET", "/v1/nothing", 404, ""},
		{"GET", "/fhir/R4/a/b/c/d/e", 404, ""},
		{"GET", "/fhir/R4/Patient/p1/", 404, ""},
		{"GET", "/fhir/R4//Patient/p1", 404, ""},
		{"GET", "//fhir/R4/Patient/p1", 404, ""},
		{"GET", "/fhir/R4/Patient%2fp1", 404, ""},
		{"GET", "/fhir/R4/Patient/%70%2f", 404, ""},
		{"GET", "/fhir/R4/patient/p1", 404, ""},
		{"GET", "/FHIR/R4/Patient/p1", 404, ""},
		{"GET", "/fhir/R4/Nonsense/p1", 404, ""},
		{"POST", "/fhir/R4/AuditEvent", 405, "GET, HEAD, OPTIONS"},
		{"PUT", "/fhir/R4/AuditEvent/1", 405, "GET, HEAD, OPTIONS"},
		{"GET", "/fhir/R4/Patient/" + strings.Repeat("x", 65), 404, ""},
		{"GET", "/fhir/R4/Patient/p1/_history/x", 404, ""},
		{"GET", "/fhir/R4/Patient/p1/_history/01", 404, ""},
		{"GET", "/fhir/R4/Patient/p1/_history/0", 404, ""},
		{"GET", "/fhir/R4/Patient/p1/_history/99999999999999999999", 404, ""},
		{"TRACE", "/fhir/R4/Patient/p1", 405, "GET, HEAD, PUT, DELETE, OPTIONS"},
		{"PATCH", "/fhir/R4/Patient/p1", 405, "GET, HEAD, PUT, DELETE, OPTIONS"},
		{"POST", "/fhir/R4/Patient/p1", 405, "GET, HEAD, PUT, DELETE, OPTIONS"},
		{"DELETE", "/v1/audit/events", 405, "GET, HEAD, OPTIONS"},
		{"BREW", "/fhir/R4/Patient/p1", 501, ""},
	} {
		a := d.want(d.do(c.method, c.path, token, ""), c.status)
		if c.allow != "" && !sameSet(a.Header.Get("Allow"), c.allow) {
			t.Errorf("%s %s: Allow %q, want %q", c.method, c.path, a.Header.Get("Allow"), c.allow)
		}
		fhirPath := strings.HasPrefix(c.path, "/fhir/R4")
		if got := strings.HasPrefix(a.Header.Get("Content-Type"), "application/fhir+json"); got != fhirPath {
			t.Errorf("%s %s: Content-Type %s", c.method, c.path, a.Header.Get("Content-Type"))
		}
		if len(d.eventsOf(a.Header.Get("X-Request-Id"))) == 0 {
			t.Errorf("%s %s left no event", c.method, c.path)
		}
	}
	// A method override is not one: the request stays what it is.
	d.want(d.do("POST", "/fhir/R4/Patient/p1", token, "", "X-HTTP-Method-Override", "DELETE"), 405)
	d.want(d.do("GET", "/fhir/R4/Patient/p1", token, "", "X-HTTP-Method-Override", "DELETE"), 200)
}

func sameSet(a, b string) bool {
	x, y := strings.Split(a, ", "), strings.Split(b, ", ")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

func TestOptions(t *testing.T) {
	d := deploy(t, nil)
	a := d.want(d.do("OPTIONS", "/fhir/R4/Patient/p1", "", "", "Origin", "https://app.test", "Access-Control-Request-Method", "PUT"), http.StatusNoContent)
	if !sameSet(a.Header.Get("Access-Control-Allow-Methods"), "GET, HEAD, PUT, DELETE, OPTIONS") || a.Header.Get("Access-Control-Allow-Origin") != "*" ||
		!strings.Contains(a.Header.Get("Access-Control-Allow-Headers"), "If-None-Match") {
		t.Errorf("preflight: %v", a.Header)
	}
	a = d.want(d.do("GET", "/fhir/R4/metadata", "", "", "Origin", "https://app.test"), http.StatusOK)
	if !strings.Contains(a.Header.Get("Access-Control-Expose-Headers"), "ETag") {
		t.Errorf("exposed headers: %v", a.Header)
	}
	if a = d.want(d.do("OPTIONS", "/v1/roles", "", "", "Origin", "https://app.test"), http.StatusNoContent); a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("the officers' API is open to other origins")
	}
}

// TestCapabilityStatement checks that the statement is valid, cacheable, and says what the routes do.
func TestCapabilityStatement(t *testing.T) {
	d := deploy(t, nil)
	a := d.want(d.do("GET", "/fhir/R4/metadata", "", ""), http.StatusOK)
	validFHIR(t, a.body)
	var s struct {
		FHIRVersion string
		Kind        string
		Rest        []struct {
			Mode     string
			Security struct {
				CORS      bool
				Extension []struct {
					Extension []struct{ URL, ValueURI string }
				}
			}
			Interaction []struct{ Code string }
			Resource    []struct {
				Type        string
				Interaction []struct{ Code string }
				SearchParam []struct{ Name, Type string }
			}
		}
	}
	check(t, json.Unmarshal(a.body, &s))
	if s.FHIRVersion != "4.0.1" || s.Kind != "instance" || len(s.Rest) != 1 || s.Rest[0].Mode != "server" || !s.Rest[0].Security.CORS {
		t.Errorf("statement: %.300s", a.body)
	}
	if e := s.Rest[0].Security.Extension[0].Extension; len(e) != 2 || e[0].URL != "authorize" || e[1].ValueURI != "https://issuer.test/token" {
		t.Errorf("oauth-uris: %v", e)
	}
	seen := map[string]bool{}
	for _, r := range s.Rest[0].Resource {
		seen[r.Type] = true
		var codes []string
		for _, i := range r.Interaction {
			codes = append(codes, i.Code)
		}
		slices.Sort(codes)
		if r.Type == "AuditEvent" {
			if strings.Join(codes, " ") != "read search-type" || len(r.SearchParam) < 10 {
				t.Errorf("AuditEvent: %v, %v", codes, r.SearchParam)
			}
			continue
		}
		if want := "create delete history-instance read search-type update vread"; strings.Join(codes, " ") != want {
			t.Errorf("%s: interactions %v, want %s", r.Type, codes, want)
		}
		if len(r.SearchParam) < 2+len(fhir.SearchParams(r.Type))-3 {
			t.Errorf("%s: search parameters %v", r.Type, r.SearchParam)
		}
	}
	if !seen["Patient"] || !seen["Observation"] || !seen["AuditEvent"] {
		t.Errorf("types: %v", seen)
	}
	if again := d.do("GET", "/fhir/R4/metadata", "", "", "If-None-Match", a.Header.Get("ETag")); again.StatusCode != http.StatusNotModified || len(again.body) != 0 {
		t.Errorf("conditional metadata: %d", again.StatusCode)
	}
	d.want(d.do("GET", "/fhir/R4/metadata", "", "", "Accept", "application/fhir+xml"), http.StatusNotAcceptable)
}

func TestSMARTConfiguration(t *testing.T) {
	d := deploy(t, nil)
	a := d.want(d.do("GET", "/fhir/R4/.well-known/smart-configuration", "", "", "Accept", "text/html"), http.StatusOK)
	if a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type %s", a.Header.Get("Content-Type"))
	}
	var s struct {
		Authorize  string   `json:"authorization_endpoint"`
		Token      string   `json:"token_endpoint"`
		Introspect *string  `json:"introspection_endpoint"`
		Issuer     string   `json:"issuer"`
		JWKS       string   `json:"jwks_uri"`
		Grants     []string `json:"grant_types_supported"`
		Challenges []string `json:"code_challenge_methods_supported"`
		Caps       []string `json:"capabilities"`
	}
	check(t, json.Unmarshal(a.body, &s))
	if s.Authorize == "" || s.Token == "" || s.Issuer == "" || s.JWKS == "" || s.Introspect != nil ||
		!slices.Contains(s.Grants, "authorization_code") || !slices.Equal(s.Challenges, []string{"S256"}) || !slices.Contains(s.Caps, "permission-v2") {
		t.Errorf("smart-configuration: %s", a.body)
	}
	// What this issuer does not say that it does is not claimed.
	if want := []string{"launch-standalone", "client-confidential-asymmetric", "permission-patient", "permission-v1", "permission-v2"}; !slices.Equal(s.Caps, want) {
		t.Errorf("capabilities are %v, want %v", s.Caps, want)
	}
}

// Of an issuer of which nothing is known nothing is claimed, and a document without capabilities is one all the same.
func TestSMARTConfigurationOfNobody(t *testing.T) {
	d := deploy(t, func(cfg *rest.Config) { cfg.Issuer = rest.Issuer{} })
	a := d.want(d.do("GET", "/fhir/R4/.well-known/smart-configuration", "", ""), http.StatusOK)
	if want := `{"grant_types_supported":[],"code_challenge_methods_supported":[],"capabilities":[]}`; string(a.body) != want {
		t.Errorf("smart-configuration is %s, want %s", a.body, want)
	}
}

// TestOpenAPI compares the description with the table, both ways.
func TestOpenAPI(t *testing.T) {
	d := deploy(t, nil)
	a := d.want(d.do("GET", "/v1/openapi.json", "", ""), http.StatusOK)
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	check(t, json.Unmarshal(a.body, &doc))
	described := map[string]bool{}
	for path, operations := range doc.Paths {
		for method := range operations {
			described[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, r := range d.server.Routes() {
		if !strings.HasPrefix(r.Pattern, "/v1/") {
			continue
		}
		parts := strings.Split(r.Pattern, "/")
		for i, p := range parts {
			if name, ok := strings.CutPrefix(p, ":"); ok {
				parts[i] = "{" + name + "}"
			}
		}
		key := r.Method + " " + strings.Join(parts, "/")
		if !described[key] {
			t.Errorf("openapi.json does not describe %s", key)
		}
		delete(described, key)
	}
	for key := range described {
		t.Errorf("openapi.json describes %s, which is not routed", key)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, base := range []string{"", "/fhir/R4", "http://h/fhir", "ftp://h/fhir/R4", "http:///fhir/R4", "http://h/fhir/R4/"} {
		if _, err := rest.New(rest.Config{Base: base}); err == nil || !strings.Contains(err.Error(), "base URL") {
			t.Errorf("base %q: %v", base, err)
		}
	}
	if _, err := rest.New(rest.Config{Base: "http://h/fhir/R4"}); err == nil {
		t.Error("a server without rooms behind it was built")
	}
}

// validFHIR runs our own validator over an answer.
func validFHIR(t testing.TB, body []byte) {
	t.Helper()
	r, issues := fhir.Parse(body)
	if issues == nil {
		issues = r.Validate()
	}
	for _, i := range issues {
		t.Errorf("not valid FHIR: %+v in %.400s", i, body)
	}
}
