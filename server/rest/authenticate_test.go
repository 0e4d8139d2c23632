package rest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/rest"
)

// TestAuthenticationAttacks plays the cases of notes/auth.md section 4 that are about the request around the token, over
// connections of their own.
func TestAuthenticationAttacks(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	token := d.as("backend")
	const (
		nothing = `Bearer realm="chartkeep"`
		bad     = `Bearer realm="chartkeep", error="invalid_token"`
		request = `Bearer realm="chartkeep", error="invalid_request"`
	)
	for _, c := range []struct {
		name, headers string
		status        int
		challenge     string
	}{
		{"valid", "Authorization: Bearer " + token, 200, ""},
		{"lower case scheme (4)", "Authorization: bearer " + token, 200, ""},
		{"none (1)", "X-Nothing: 1", 401, nothing},
		{"basic (1)", "Authorization: Basic dTpw", 401, nothing},
		{"scheme only (1)", "Authorization: Bearer", 401, nothing},
		{"two headers (2)", "Authorization: Bearer " + token + "\r\nAuthorization: Bearer " + token, 400, request},
		{"two headers, one broken (2)", "Authorization: Bearer x\r\nAuthorization: Bearer " + token, 400, request},
		{"two in one (2)", "Authorization: Bearer " + token + ", Bearer " + token, 400, request},
		{"tab (3)", "Authorization: Bearer\t" + token, 401, bad},
		{"two spaces (3)", "Authorization: Bearer  " + token, 401, bad},
		{"NBSP (3)", "Authorization: Bearer \u00a0" + token, 401, bad},
		{"8193 bytes (6)", "Authorization: Bearer " + strings.Repeat("a", 8193), 401, bad},
		{"17 KiB of headers (6)", "Authorization: Bearer " + strings.Repeat("a", 17<<10), 431, ""},
		{"1 MiB (6)", "Authorization: Bearer " + strings.Repeat("a", 1<<20), 431, ""},
		{"dots (7)", "Authorization: Bearer " + strings.Repeat(".", 8000), 401, bad},
		{"two parts (7)", "Authorization: Bearer " + token[:strings.LastIndex(token, ".")], 401, bad},
		{"four parts (7)", "Authorization: Bearer " + token + ".AAAA", 401, bad},
		{"trailing dot (7)", "Authorization: Bearer " + token + ".", 401, bad},
		{"no signature (8)", "Authorization: Bearer " + token[:strings.LastIndex(token, ".")+1], 401, bad},
		{"space before colon (58)", "Authorization : Bearer " + token, 400, ""},
		{"spoofed user (59)", "X-User: backend-1\r\nX-Roles: backend\r\nX-Forwarded-User: backend-1\r\nRemote-User: backend-1", 401, nothing},
	} {
		id := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, c.name)
		a := d.raw(fmt.Sprintf("GET /fhir/R4/Patient/p1 HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\n%s\r\n\r\n", id, c.headers))
		if a.StatusCode != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.name, a.StatusCode, c.status, a.body)
		}
		if got := a.Header.Get("WWW-Authenticate"); got != c.challenge {
			t.Errorf("%s: challenge %q, want %q", c.name, got, c.challenge)
		}
		checkEveryAnswer(t, c.name, a)
		if !strings.Contains(a.Header.Get("Content-Type"), "application/fhir+json") {
			t.Errorf("%s: answered as %s", c.name, a.Header.Get("Content-Type"))
		}
		if strings.Contains(string(a.body), token[:20]) || strings.Contains(d.logs.String(), token[:20]) {
			t.Errorf("%s: the token is echoed", c.name)
		}
		if c.status == 200 {
			continue
		}
		found := d.eventsOf(a.Header.Get("X-Request-Id"))
		if len(found) != 1 || found[0].Event.Outcome != audit.MinorFailure || found[0].Event.Agent.User != "" {
			t.Errorf("%s: events %+v", c.name, found)
		} else if c.challenge != "" && found[0].Event.Type != audit.TypeAuthentication {
			t.Errorf("%s: event of type %s", c.name, found[0].Event.Type)
		}
	}
}

// TestTokenInRequest is case 5: a token in a URL or a form is refused even when it is good, and is not logged.
func TestTokenInRequest(t *testing.T) {
	d := deploy(t, nil)
	token := d.as("backend")
	for _, a := range []answer{
		d.do("GET", "/fhir/R4/Patient/p1?access_token="+token, "", ""),
		d.do("GET", "/fhir/R4/Patient?access_token="+token, token, ""),
		d.do("POST", "/fhir/R4/Patient/_search", token, "access_token="+token, "Content-Type", "application/x-www-form-urlencoded"),
		d.do("GET", "/v1/audit/events?access_token="+token, "", ""),
	} {
		d.want(a, http.StatusBadRequest)
		if !strings.Contains(a.Header.Get("WWW-Authenticate"), "invalid_request") {
			t.Errorf("challenge %q", a.Header.Get("WWW-Authenticate"))
		}
	}
	if strings.Contains(d.logs.String(), token[:20]) {
		t.Error("the token is in the log")
	}
}

// TestForeignTokens are tokens that are well formed and not for us. The answer is the same for all.
func TestForeignTokens(t *testing.T) {
	d := deploy(t, nil)
	set := func(name string, value any) func(map[string]any) {
		return func(c map[string]any) { c[name] = value }
	}
	bodies := map[string]bool{}
	for name, token := range map[string]string{
		"expired":        d.issuer.token(t, d.base, "backend", "system/*.cruds", func(c map[string]any) { c["exp"], c["iat"] = time.Now().Unix()-60, time.Now().Unix()-600 }),
		"other audience": d.issuer.token(t, "https://other.test", "backend", "system/*.cruds", nil),
		"other issuer":   d.issuer.token(t, d.base, "backend", "system/*.cruds", set("iss", "https://evil.test")),
		"no subject":     d.issuer.token(t, d.base, "backend", "system/*.cruds", set("sub", "")),
		"other key":      newIssuer(t).token(t, d.base, "backend", "system/*.cruds", nil),
	} {
		a := d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusUnauthorized)
		bodies[string(a.body)] = true
		if len(bodies) != 1 {
			t.Errorf("%s: the answer differs: %s", name, a.body)
		}
	}
}

// TestScopeLetters is case 51: a scope to read is neither one to search nor one to write.
func TestScopeLetters(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	read := d.issuer.token(t, d.base, "backend", "system/Patient.r", nil)
	d.want(d.do("GET", "/fhir/R4/Patient/p1", read, ""), http.StatusOK)
	for _, a := range []answer{
		d.do("GET", "/fhir/R4/Patient?_id=p1", read, ""),
		d.do("POST", "/fhir/R4/Patient/_search", read, "_id=p1", "Content-Type", "application/x-www-form-urlencoded"),
		d.do("POST", "/fhir/R4/Patient", read, `{"resourceType":"Patient"}`),
		d.do("PUT", "/fhir/R4/Patient/p1", read, `{"resourceType":"Patient","id":"p1"}`),
		d.do("DELETE", "/fhir/R4/Patient/p1", read, ""),
		d.do("GET", "/fhir/R4/Observation/o1", read, ""),
	} {
		d.want(a, http.StatusForbidden)
		if !strings.Contains(a.Header.Get("WWW-Authenticate"), "insufficient_scope") {
			t.Errorf("challenge %q", a.Header.Get("WWW-Authenticate"))
		}
	}
}

// TestExistenceIsHidden is case 52: to somebody who may not see a patient, it looks as one that is not there.
func TestExistenceIsHidden(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	foreign := d.issuer.token(t, d.base, "patient", "patient/*.rs", func(c map[string]any) { c["patient"] = "p2" })
	stranger := d.issuer.token(t, d.base, "clinician", "user/*.cruds", func(c map[string]any) { c["fhirUser"] = "Practitioner/chen" })
	for _, token := range []string{foreign, stranger} {
		there, away := d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), 404), d.want(d.do("GET", "/fhir/R4/Patient/p9", token, ""), 404)
		if string(there.body) != string(away.body) {
			t.Errorf("existence leaks: %s, %s", there.body, away.body)
		}
		e := d.eventsOf(there.Header.Get("X-Request-Id"))
		if len(e) != 1 || e[0].Event.Patient != "p1" || e[0].Event.Decision.Allowed {
			t.Errorf("events of the refusal: %+v", e)
		}
		found := d.want(d.do("GET", "/fhir/R4/Patient?_id=p1,p2", token, ""), 200)
		if strings.Contains(string(found.body), `"p1"`) {
			t.Errorf("a foreign patient in a search: %s", found.body)
		}
	}
	d.want(d.do("GET", "/fhir/R4/Patient/p1", d.as("clinician"), ""), 200)
}

// TestForwardedFor believes configured proxies only, and of them only what they have added.
func TestForwardedFor(t *testing.T) {
	for _, c := range []struct {
		proxies []string
		header  string
		want    string
	}{
		{nil, "203.0.113.9", "127.0.0.1"},
		{[]string{"10.0.0.0/8"}, "203.0.113.9", "127.0.0.1"},
		{[]string{"127.0.0.0/8"}, "203.0.113.9", "203.0.113.9"},
		{[]string{"127.0.0.0/8"}, "198.51.100.1, 203.0.113.9", "203.0.113.9"},
		{[]string{"127.0.0.0/8", "10.0.0.0/8"}, "198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"},
		{[]string{"127.0.0.0/8"}, "198.51.100.1, 203.0.113.9:4711", "203.0.113.9"},
		{[]string{"127.0.0.0/8"}, "[2001:db8::9]:4711", "2001:db8::9"},
		{[]string{"127.0.0.0/8"}, "[2001:db8::9]", "2001:db8::9"},
		{[]string{"127.0.0.0/8"}, "<script>", "127.0.0.1"},
		{[]string{"127.0.0.0/8"}, "", "127.0.0.1"},
	} {
		d := deploy(t, func(cfg *rest.Config) { cfg.TLSClientNetworks = c.proxies })
		a := d.do("GET", "/fhir/R4/Patient/p1", "", "", "X-Forwarded-For", c.header)
		e := d.eventsOf(a.Header.Get("X-Request-Id"))
		if len(e) != 1 || e[0].Event.Agent.Network != c.want {
			t.Errorf("proxies %v, header %q: %+v, want %s", c.proxies, c.header, e, c.want)
		}
	}
}

// TestSignIn: the first accepted token of a session is an event, durable before anything is answered; later ones are not, and
// neither are tokens that were refused.
func TestSignIn(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	signIns := func(user string) []audit.Stored {
		return d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldType, "110114"), audit.Is(audit.FieldOutcome, "0"), audit.Is(audit.FieldAgent, user)}})
	}
	token := func(jti string) string {
		return d.issuer.token(t, d.base, "backend", "system/*.cruds", func(c map[string]any) {
			c["sub"], c["jti"], c["sid"], c["acr"], c["amr"] = "service-7", jti, "session-7", "urn:example:mfa", []string{"pwd", "hwk"}
		})
	}
	for _, jti := range []string{"token-1", "token-1", "token-2"} { // the same session, a token refreshed
		d.want(d.do("GET", "/fhir/R4/Patient/p1", token(jti), ""), 200)
	}
	in := signIns("service-7")
	if len(in) != 1 {
		t.Fatalf("%d sign-ins: %+v", len(in), in)
	}
	e := in[0].Event
	detail, err := audit.DecodeSignIn(e.Detail)
	if err != nil || detail.TokenID != "token-1" || detail.ACR != "urn:example:mfa" || len(detail.AMR) != 2 || detail.Expires.IsZero() {
		t.Errorf("detail %+v, %v", detail, err)
	}
	if e.Interaction != audit.InteractionLogin || e.Agent.Session != "session-7" || e.Agent.Client != "test-app" || e.Agent.Network != "127.0.0.1" || e.Action != audit.ActionExecute {
		t.Errorf("recorded %+v", e)
	}
	// A refused request signs in, too: it is the token that was accepted.
	d.want(d.do("GET", "/v1/roles", d.as("clinician"), ""), 403)
	if in := signIns("clinician-1"); len(in) != 1 {
		t.Errorf("%d sign-ins of somebody who may not", len(in))
	}
	// A bad token does not.
	before := len(d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, audit.InteractionLogin)}}))
	d.want(d.do("GET", "/fhir/R4/Patient/p1", token("token-3")+"x", ""), 401)
	if after := len(d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, audit.InteractionLogin)}})); after != before {
		t.Errorf("%d sign-ins after a bad token, %d before", after, before)
	}
	// What was seen here can be seen to end; what was not, cannot.
	for _, id := range []string{"session-7", "session-7", "never-seen"} {
		check(t, d.revocations.Revoke(t.Context(), auth.Revocation{Kind: auth.RevokeSession, ID: id, Reason: "test", By: "security-1"}))
	}
	var out []audit.Stored
	for end := time.Now().Add(5 * time.Second); len(out) == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		out = d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, audit.InteractionLogout)}})
	}
	if len(out) != 1 || out[0].Event.Agent.User != "service-7" || out[0].Event.Agent.Session != "session-7" {
		t.Errorf("sign-outs %+v", out)
	}
}
