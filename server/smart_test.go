package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// launchRedirect is where an app on this machine waits for its code.
const launchRedirect = "http://127.0.0.1:40404/callback"

// launch goes through the demo's authorization code flow with PKCE, as a public client, and returns the answer of the token endpoint.
func (d *instance) launch(t testing.TB, persona, patient, scope string) map[string]any {
	t.Helper()
	verifier := rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(verifier))
	browser := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	page := d.do(t, "GET", "/oauth2/authorize?"+url.Values{
		"response_type": {"code"}, "client_id": {"my-app"}, "redirect_uri": {launchRedirect}, "scope": {scope}, "state": {"state-1"}, "aud": {d.FHIR},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}.Encode(), "", "")
	login := regexp.MustCompile(`name="login" value="([^"]+)"`).FindSubmatch(page.body)
	if login == nil {
		t.Fatalf("no sign-in page: %s\n%s", page.Status, page.body)
	}
	origin := strings.TrimSuffix(d.API, "/v1")
	req, err := http.NewRequestWithContext(t.Context(), "POST", origin+"/oauth2/sign-in", strings.NewReader(url.Values{"login": {string(login[1])}, "persona": {persona}, "patient": {patient}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", origin)
	res, err := browser.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	to, err := res.Location()
	if err != nil || to.Query().Get("code") == "" {
		t.Fatalf("sign-in sends the browser to %v, %v", to, err)
	}
	return d.do(t, "POST", "/oauth2/token", "", url.Values{
		"grant_type": {"authorization_code"}, "client_id": {"my-app"}, "code": {to.Query().Get("code")}, "redirect_uri": {launchRedirect}, "code_verifier": {verifier},
	}.Encode(), "Content-Type: application/x-www-form-urlencoded").json(t)
}

// asService gets a token as the demo's backend service does (SMART Backend Services, private_key_jwt with ES384).
func (d *instance) asService(t testing.TB, scope string) answered {
	t.Helper()
	var jwk struct{ Kid, D string }
	text, err := os.ReadFile(filepath.Join(d.dir, "oauth", "app-backend.jwk.json"))
	if err != nil || json.Unmarshal(text, &jwk) != nil {
		t.Fatalf("reading the service's key: %v", err)
	}
	scalar, err := base64.RawURLEncoding.DecodeString(jwk.D)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), scalar)
	if err != nil {
		t.Fatal(err)
	}
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	now := time.Now().Unix()
	signed := part(map[string]any{"alg": "ES384", "typ": "JWT", "kid": jwk.Kid}) + "." + part(map[string]any{
		"iss": "app-backend", "sub": "app-backend", "aud": d.Issuer + "/token", "jti": rand.Text(), "iat": now, "exp": now + 60,
	})
	sum := sha512.Sum384([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
	return d.do(t, "POST", "/oauth2/token", "", url.Values{
		"grant_type": {"client_credentials"}, "scope": {scope}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion": {signed + "." + base64.RawURLEncoding.EncodeToString(signature)},
	}.Encode(), "Content-Type: application/x-www-form-urlencoded")
}

// TestSMARTCapabilities takes the discovery document at its word: each capability that it claims is tried out, and each that it does not
// claim has no endpoint, grant or scope that would mean it.
func TestSMARTCapabilities(t *testing.T) {
	d := demoShared(t)
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	var smart struct {
		Issuer       string   `json:"issuer"`
		JWKS         string   `json:"jwks_uri"`
		Authorize    string   `json:"authorization_endpoint"`
		Token        string   `json:"token_endpoint"`
		Introspect   string   `json:"introspection_endpoint"`
		Revoke       string   `json:"revocation_endpoint"`
		Grants       []string `json:"grant_types_supported"`
		Responses    []string `json:"response_types_supported"`
		Challenges   []string `json:"code_challenge_methods_supported"`
		Auth         []string `json:"token_endpoint_auth_methods_supported"`
		Scopes       []string `json:"scopes_supported"`
		Capabilities []string `json:"capabilities"`
	}
	document := d.do(t, "GET", "/fhir/R4/.well-known/smart-configuration", "", "")
	if err := json.Unmarshal(document.body, &smart); err != nil || document.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%v\n%s", err, document.body)
	}
	if smart.Issuer != d.Issuer || !slices.Equal(smart.Challenges, []string{"S256"}) || !slices.Equal(smart.Responses, []string{"code"}) {
		t.Errorf("smart-configuration: %s", document.body)
	}
	for name, address := range map[string]string{"jwks": smart.JWKS, "authorize": smart.Authorize, "token": smart.Token, "introspect": smart.Introspect, "revoke": smart.Revoke} {
		if res := d.do(t, "GET", address, "", ""); res.StatusCode == http.StatusNotFound {
			t.Errorf("%s: there is nothing at %s", name, address)
		}
	}
	patient, observations := "/fhir/R4/Patient/"+one.PatientOne, "/fhir/R4/Observation?patient="+one.PatientOne
	get := func(path, token string) int { return d.do(t, "GET", path, token, "").StatusCode }
	text := func(v any) string { s, _ := v.(string); return s }
	foreign := "Patient/smart-foreign"
	if res := d.do(t, "PUT", "/fhir/R4/"+foreign, d.token(t, "app-backend"), `{"resourceType":"Patient","id":"smart-foreign","name":[{"family":"Other"}]}`); res.StatusCode >= 300 {
		t.Fatalf("%s\n%s", res.Status, res.body)
	}
	refreshed := func(t *testing.T, scope string) {
		first := d.launch(t, "dr-rivera", "", "openid fhirUser user/*.rs "+scope)
		second := d.do(t, "POST", "/oauth2/token", "", url.Values{"grant_type": {"refresh_token"}, "client_id": {"my-app"}, "refresh_token": {text(first["refresh_token"])}}.Encode(),
			"Content-Type: application/x-www-form-urlencoded")
		if got := get(patient, text(second.json(t)["access_token"])); got != 200 {
			t.Errorf("with a refreshed token: %d", got)
		}
	}
	probes := map[string]func(t *testing.T){
		"launch-standalone": func(t *testing.T) {
			if got := get(patient, text(d.launch(t, "dr-rivera", "", "openid fhirUser user/*.rs")["access_token"])); got != 200 {
				t.Errorf("after a launch: %d", got)
			}
		},
		"client-public": func(t *testing.T) { // no secret, no assertion
			if answer := d.launch(t, "dr-rivera", "", "user/Patient.r"); answer["access_token"] == nil || answer["scope"] != "user/Patient.r" {
				t.Errorf("%v", answer)
			}
		},
		"client-confidential-asymmetric": func(t *testing.T) {
			granted := d.asService(t, "system/Patient.rs")
			if got := get(patient, text(granted.json(t)["access_token"])); got != 200 {
				t.Errorf("as a service: %d", got)
			}
		},
		"sso-openid-connect": func(t *testing.T) {
			answer := d.launch(t, "dr-rivera", "", "openid fhirUser user/Practitioner.r")
			parts := strings.Split(text(answer["id_token"]), ".")
			if len(parts) != 3 {
				t.Fatalf("no id_token: %v", answer)
			}
			var claims struct{ Iss, Sub, FHIRUser string }
			body, err := base64.RawURLEncoding.DecodeString(parts[1])
			if err != nil || json.Unmarshal(body, &claims) != nil || claims.Iss != smart.Issuer || claims.Sub != "dr-rivera" || !strings.Contains(claims.FHIRUser, "Practitioner/") {
				t.Errorf("id_token: %s", body)
			}
			if got := get("/fhir/R4/Patient/"+one.PatientOne, text(answer["id_token"])); got != http.StatusUnauthorized {
				t.Errorf("an id_token is taken for an access token: %d", got)
			}
		},
		"context-standalone-patient": func(t *testing.T) {
			answer := d.launch(t, "dr-rivera", one.PatientOne, "launch/patient patient/*.rs")
			if answer["patient"] != one.PatientOne {
				t.Errorf("the app is told %v", answer)
			}
			if got := get(patient, text(answer["access_token"])); got != 200 {
				t.Errorf("the launch patient: %d", got)
			}
		},
		"permission-offline": func(t *testing.T) { refreshed(t, "offline_access") },
		"permission-online":  func(t *testing.T) { refreshed(t, "online_access") },
		"permission-patient": func(t *testing.T) {
			token := d.token(t, "patient-1")
			if get(patient, token) != 200 || get("/fhir/R4/"+foreign, token) != 404 {
				t.Error("patient/ scopes are not about the patient")
			}
			others := text(d.launch(t, "dr-rivera", "smart-foreign", "launch/patient patient/*.rs")["access_token"])
			if get(patient, others) != 404 {
				t.Error("a launch for another patient opens what the role would")
			}
		},
		"permission-user": func(t *testing.T) {
			token := d.token(t, "dr-rivera", "user/Patient.rs")
			if get(patient, token) != 200 || get("/fhir/R4/"+foreign, token) != 404 || get(observations, token) != 403 {
				t.Error("user/ scopes are not what the role and the scope have in common")
			}
		},
		"permission-v1": func(t *testing.T) {
			token := d.token(t, "dr-rivera", "user/Patient.read user/Observation.write")
			if get(patient, token) != 200 || get("/fhir/R4/Patient?_id="+one.PatientOne, token) != 200 || get(observations, token) != 403 {
				t.Error("read is r and s, write is neither")
			}
			if res := d.do(t, "DELETE", "/fhir/R4/Observation/none", token, ""); res.StatusCode != 404 {
				t.Errorf("write covers deletes: %s", res.Status)
			}
			if res := d.do(t, "DELETE", patient, token, ""); res.StatusCode != 403 {
				t.Errorf("read covers deletes: %s", res.Status)
			}
		},
		"permission-v2": func(t *testing.T) {
			token := d.token(t, "dr-rivera", "user/Patient.r user/Observation.s")
			if get(patient, token) != 200 || get("/fhir/R4/Patient?_id="+one.PatientOne, token) != 403 || get(observations, token) != 200 || get("/fhir/R4/Observation/none", token) != 403 {
				t.Error("letters are not enforced one by one")
			}
			const laboratory = "user/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"
			answer := d.launch(t, "dr-rivera", "", laboratory)
			if answer["scope"] != laboratory {
				t.Fatalf("granted is %v", answer["scope"])
			}
			narrow, all := entries(t, d.do(t, "GET", observations+"&_count=200", text(answer["access_token"]), "")), entries(t, d.do(t, "GET", observations+"&_count=200", d.token(t, "dr-rivera"), ""))
			if len(narrow) == 0 || len(narrow) >= len(all) {
				t.Errorf("%d of %d Observations are of the laboratory", len(narrow), len(all))
			}
			for _, r := range narrow {
				if !strings.Contains(string(r), `"code":"laboratory"`) {
					t.Errorf("found %s", r)
				}
			}
		},
	}
	for _, capability := range smart.Capabilities {
		probe, ok := probes[capability]
		if !ok {
			t.Errorf("%s is claimed, and nothing here tries it out", capability)
			continue
		}
		t.Run(capability, probe)
	}
	for _, capability := range slices.Sorted(maps.Keys(probes)) {
		if !slices.Contains(smart.Capabilities, capability) {
			t.Errorf("%s works and is not claimed", capability)
		}
	}
	// What is not claimed is not there.
	for _, scope := range []string{"launch", "launch/encounter"} {
		if slices.Contains(smart.Scopes, scope) {
			t.Errorf("%s is said to be supported", scope)
		}
		if granted := text(d.launch(t, "dr-rivera", "", scope+" user/Patient.r")["scope"]); granted != "user/Patient.r" {
			t.Errorf("%s is granted: %s", scope, granted)
		}
	}
	if slices.Contains(smart.Auth, "client_secret_basic") || slices.Contains(smart.Grants, "password") {
		t.Errorf("%v %v", smart.Auth, smart.Grants)
	}
}
