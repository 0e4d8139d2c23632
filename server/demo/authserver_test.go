package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/lestrrat-go/jwx/v2/jwa"
)

const (
	testAudience = "http://127.0.0.1:9/fhir/R4"
	testVerifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636 appendix B
	testRedirect = "http://127.0.0.1:40404/callback"
)

// bench is an authorization server on a socket, with a clock that can be moved.
type bench struct {
	*testing.T
	*AuthServer
	dir, issuer string
	now         time.Time
	log         bytes.Buffer
	revocations []string
	logouts     int // requests of the back channel
	logout      *httptest.Server
	http        *http.Client
}

// loggedOut is the API's end of the back channel. It refuses the first try of every second session, as a network may.
func (b *bench) loggedOut(w http.ResponseWriter, r *http.Request) {
	typ, payload, err := opened(r.PostFormValue("logout_token"), b.keys.alive(b.now))
	var c logoutClaims
	if err != nil || typ != "logout+jwt" || json.Unmarshal(payload, &c) != nil || c.Issuer != b.issuer || c.Audience != testAudience ||
		c.ID == "" || c.Expires-c.Issued != 120 || len(c.Events) != 1 {
		b.Errorf("logout token %s %s, %v", typ, payload, err)
	}
	if b.logouts++; b.logouts%2 == 1 {
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	}
	b.revocations = append(b.revocations, "jti= sid="+c.Session)
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, dir: t.TempDir(), now: time.Now()}
	b.http = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.Handler().ServeHTTP(w, r) }))
	b.issuer = "http://" + server.Listener.Addr().String() + "/oauth2"
	b.logout = httptest.NewServer(http.HandlerFunc(b.loggedOut))
	t.Cleanup(b.logout.Close)
	b.open()
	server.Start()
	t.Cleanup(server.Close)
	return b
}

// open makes the server, a second time: a restart.
func (b *bench) open() {
	s, err := NewAuthServer(AuthServerConfig{
		Dir: b.dir, Issuer: b.issuer, Audience: testAudience, Personas: Personas("p-1"),
		Logger:   slog.New(slog.NewTextHandler(&b.log, nil)),
		Now:      func() time.Time { return b.now },
		OnRevoke: func(jti string) { b.revocations = append(b.revocations, "jti="+jti+" sid=") },

		LogoutURL: b.logout.URL,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.AuthServer = s
}

func (b *bench) do(r *http.Request) (*http.Response, string) {
	b.Helper()
	res, err := b.http.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.Fatal(err)
	}
	return res, string(body)
}

func (b *bench) get(path string) (*http.Response, string) {
	r, _ := http.NewRequestWithContext(b.Context(), "GET", b.issuer+path, nil)
	return b.do(r)
}

func (b *bench) post(path string, form url.Values) (int, map[string]any) {
	b.Helper()
	r, _ := http.NewRequestWithContext(b.Context(), "POST", b.issuer+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, body := b.do(r)
	var answer map[string]any
	if body != "" && json.Unmarshal([]byte(body), &answer) != nil {
		b.Fatalf("%s answers %s", path, body)
	}
	if res.StatusCode == 200 && path == "/token" && res.Header.Get("Cache-Control") != "no-store" {
		b.Error("tokens may be cached")
	}
	return res.StatusCode, answer
}

// form makes a form of pairs; an empty value leaves the name out.
func form(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

func request(scope string) url.Values {
	sum := sha256.Sum256([]byte(testVerifier))
	return form("response_type", "code", "client_id", "my-app", "redirect_uri", testRedirect, "scope", scope, "state", "s+ä&",
		"nonce", "n-1", "aud", testAudience, "code_challenge", base64.RawURLEncoding.EncodeToString(sum[:]), "code_challenge_method", "S256")
}

var hidden = regexp.MustCompile(`name="login" value="([^"]+)"`)

// login shows the page, signs somebody in, and returns what the app receives.
func (b *bench) login(persona, patient string, q url.Values) url.Values {
	b.Helper()
	res, page := b.get("/authorize?" + q.Encode())
	m := hidden.FindStringSubmatch(page)
	if res.StatusCode != 200 || m == nil {
		b.Fatalf("no sign-in page: %d %s", res.StatusCode, page)
	}
	return b.choose(m[1], persona, patient)
}

func (b *bench) choose(login, persona, patient string) url.Values {
	b.Helper()
	f := url.Values{"login": {login}, "persona": {persona}, "patient": {patient}}
	r, _ := http.NewRequestWithContext(b.Context(), "POST", b.issuer+"/sign-in", strings.NewReader(f.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", strings.TrimSuffix(b.issuer, "/oauth2"))
	res, body := b.do(r)
	if res.StatusCode != http.StatusSeeOther {
		b.Fatalf("sign-in answers %d %s", res.StatusCode, body)
	}
	u, err := res.Location()
	if err != nil || !strings.HasPrefix(u.String(), testRedirect+"?") {
		b.Fatalf("sent to %v %v", u, err)
	}
	return u.Query()
}

func (b *bench) code(persona, scope string) string {
	b.Helper()
	q := b.login(persona, "", request(scope))
	if q.Get("code") == "" || q.Get("state") != "s+ä&" || q.Get("iss") != b.issuer {
		b.Fatalf("the app receives %v", q)
	}
	return q.Get("code")
}

func (b *bench) redeem(code string) (int, map[string]any) {
	b.Helper()
	return b.post("/token", form("grant_type", "authorization_code", "client_id", "my-app", "code", code, "redirect_uri", testRedirect, "code_verifier", testVerifier))
}

func (b *bench) refresh(token string) (int, map[string]any) {
	b.Helper()
	return b.post("/token", form("grant_type", "refresh_token", "client_id", "my-app", "refresh_token", token))
}

func (b *bench) active(token string) bool {
	b.Helper()
	status, answer := b.post("/introspect", form("token", token))
	if status != 200 {
		b.Fatalf("introspection answers %d %v", status, answer)
	}
	return answer["active"] == true
}

func claimsOf(t *testing.T, token string) (header, claims map[string]any) {
	t.Helper()
	for i, into := range []*map[string]any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i])
		if err != nil || json.Unmarshal(text, into) != nil {
			t.Fatalf("not a token: %s", token)
		}
	}
	return header, claims
}

func TestCodeFlow(t *testing.T) {
	b := newBench(t)
	status, answer := b.redeem(b.code("dr-rivera", "openid fhirUser profile user/*.cruds offline_access"))
	if status != 200 || answer["token_type"] != "Bearer" || answer["expires_in"] != 600.0 || answer["refresh_token"] == nil || answer["patient"] != nil {
		t.Fatalf("%d %v", status, answer)
	}
	header, claims := claimsOf(t, answer["access_token"].(string))
	if header["typ"] != "at+jwt" || header["alg"] != "ES256" || len(header) != 3 {
		t.Errorf("header %v", header)
	}
	for claim, want := range map[string]any{
		"iss": b.issuer, "sub": "dr-rivera", "aud": testAudience, "client_id": "my-app", "fhirUser": "Practitioner/" + RiveraID,
		"name": "Dr. Ana Rivera", "acr": acrTwo, "scope": "openid fhirUser profile user/*.cruds offline_access",
	} {
		if claims[claim] != want {
			t.Errorf("%s is %v, want %v", claim, claims[claim], want)
		}
	}
	if claims["exp"].(float64)-claims["iat"].(float64) != 600 || claims["jti"] == "" || claims["sid"] == "" || claims["auth_time"] == nil {
		t.Errorf("claims %v", claims)
	}
	header, id := claimsOf(t, answer["id_token"].(string))
	if header["typ"] != "JWT" || id["aud"] != "my-app" || id["nonce"] != "n-1" || id["fhirUser"] != testAudience+"/Practitioner/"+RiveraID || id["sid"] != claims["sid"] {
		t.Errorf("ID token %v %v", header, id)
	}
	if b.active(answer["id_token"].(string)) {
		t.Error("an ID token passes for an access token")
	}

	// A patient: launch context, no name.
	_, answer = b.redeem(b.code("patient-1", "openid launch/patient patient/*.rs"))
	_, claims = claimsOf(t, answer["access_token"].(string))
	if answer["patient"] != "p-1" || claims["patient"] != "p-1" || claims["name"] != nil || claims["acr"] != acrPassword || answer["refresh_token"] != nil {
		t.Errorf("%v %v", answer, claims)
	}
	// A clinician chooses whose chart the app opens.
	q := b.login("dr-rivera", "p-7", request("launch/patient patient/Observation.rs"))
	if _, answer = b.redeem(q.Get("code")); answer["patient"] != "p-7" {
		t.Errorf("%v", answer)
	}
	if q = b.login("dr-rivera", "p/7", request("launch/patient")); q.Get("error") != "access_denied" {
		t.Errorf("%v", q)
	}
	// Wider scopes are narrowed, and who may have none of them gets none.
	_, answer = b.redeem(b.code("patient-1", "patient/*.cruds user/*.rs system/*.rs patient/Patient.read"))
	if answer["scope"] != "patient/*.rs patient/Patient.read" {
		t.Errorf("scope %v", answer["scope"])
	}
	if q = b.login("admin-root", "", request("user/*.rs")); q.Get("error") != "invalid_scope" {
		t.Errorf("%v", q)
	}
	if q = b.login("", "", request("openid")); q.Get("error") != "access_denied" || q.Get("state") != "s+ä&" {
		t.Errorf("%v", q)
	}
	if q = b.login("app-backend", "", request("openid")); q.Get("error") != "access_denied" {
		t.Errorf("a service signs in: %v", q)
	}
	if strings.Contains(b.log.String(), "eyJ") || strings.Contains(b.log.String(), testVerifier) {
		t.Error("the log has a token")
	}
}

func TestCodeRefused(t *testing.T) {
	b := newBench(t)
	for name, change := range map[string]url.Values{
		"wrong verifier": {"code_verifier": {strings.Repeat("a", 43)}},
		"no verifier":    {"code_verifier": {""}},
		"the challenge":  {"code_verifier": {request("").Get("code_challenge")}},
		"other redirect": {"redirect_uri": {testRedirect + "/"}},
		"other client":   {"client_id": {commandClient}},
		"unknown code":   {"code": {"AAAA"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := form("grant_type", "authorization_code", "client_id", "my-app", "code", b.code("dr-rivera", "user/*.rs"),
				"redirect_uri", testRedirect, "code_verifier", testVerifier)
			for k, v := range change {
				f[k] = v
			}
			if status, answer := b.post("/token", f); status != 400 || answer["error"] != "invalid_grant" {
				t.Errorf("%d %v", status, answer)
			}
			if name == "other client" || name == "unknown code" {
				return
			}
			if status, _ := b.redeem(f.Get("code")); status != 400 {
				t.Error("the code works after a failed attempt")
			}
		})
	}
	code := b.code("dr-rivera", "user/*.rs")
	b.now = b.now.Add(codeLifetime + time.Second)
	if status, _ := b.redeem(code); status != 400 {
		t.Error("an old code works")
	}
	// A code that comes twice ends the session that it led to.
	code = b.code("dr-rivera", "user/*.rs offline_access")
	_, answer := b.redeem(code)
	if status, _ := b.redeem(code); status != 400 {
		t.Error("a code works twice")
	}
	_, claims := claimsOf(t, answer["access_token"].(string))
	if b.active(answer["access_token"].(string)) || b.active(answer["refresh_token"].(string)) {
		t.Error("the tokens of a stolen code live on")
	}
	if !slices.Contains(b.revocations, fmt.Sprintf("jti= sid=%s", claims["sid"])) {
		t.Errorf("nobody was told: %v", b.revocations)
	}
}

func TestAuthorizeRefused(t *testing.T) {
	b := newBench(t)
	for name, c := range map[string]struct {
		change url.Values
		want   string // error at the app; "" = a page, nobody is redirected
	}{
		"unknown client":      {url.Values{"client_id": {"evil"}}, ""},
		"backend client":      {url.Values{"client_id": {backendClient}}, ""},
		"two clients":         {url.Values{"client_id": {"my-app", "evil"}}, ""},
		"foreign redirect":    {url.Values{"redirect_uri": {"http://evil.example.org/cb"}}, ""},
		"lookalike redirect":  {url.Values{"redirect_uri": {"http://127.0.0.1.evil.example.org/cb"}}, ""},
		"userinfo redirect":   {url.Values{"redirect_uri": {"http://127.0.0.1@evil.example.org/cb"}}, ""},
		"script redirect":     {url.Values{"redirect_uri": {"javascript:alert(1)//127.0.0.1"}}, ""},
		"redirect + fragment": {url.Values{"redirect_uri": {testRedirect + "#x"}}, ""},
		"two redirects":       {url.Values{"redirect_uri": {testRedirect, "http://evil.example.org"}}, ""},
		"no redirect":         {url.Values{"redirect_uri": {}}, ""},
		"plain PKCE":          {url.Values{"code_challenge_method": {"plain"}}, "invalid_request"},
		"no PKCE method":      {url.Values{"code_challenge_method": {}}, "invalid_request"},
		"no PKCE":             {url.Values{"code_challenge": {}, "code_challenge_method": {}}, "invalid_request"},
		"short challenge":     {url.Values{"code_challenge": {"abc"}}, "invalid_request"},
		"implicit":            {url.Values{"response_type": {"token"}}, "unsupported_response_type"},
		"other audience":      {url.Values{"aud": {"http://evil.example.org/fhir"}}, "invalid_request"},
		"audience + slash":    {url.Values{"aud": {testAudience + "/"}}, "invalid_request"},
		"no scope":            {url.Values{"scope": {}}, "invalid_scope"},
		"two scopes":          {url.Values{"scope": {"openid", "user/*.rs"}}, "invalid_request"},
		"prompt none":         {url.Values{"prompt": {"none"}}, "login_required"},
		"request object":      {url.Values{"request": {"eyJ"}}, "request_not_supported"},
	} {
		t.Run(name, func(t *testing.T) {
			q := request("openid user/*.rs")
			for k, v := range c.change {
				q[k] = v
			}
			res, body := b.get("/authorize?" + q.Encode())
			if c.want == "" {
				if res.StatusCode != 400 || res.Header.Get("Location") != "" || !strings.Contains(body, `role="alert"`) {
					t.Errorf("%d %s %s", res.StatusCode, res.Header.Get("Location"), body)
				}
				return
			}
			u, err := res.Location()
			if err != nil || u.Query().Get("error") != c.want || u.Query().Get("state") != "s+ä&" {
				t.Errorf("%d %v %v", res.StatusCode, u, err)
			}
		})
	}
}

// The page needs no script, shows who asks for what without letting the asker write into it, and cannot be used twice or
// from another site.
func TestSignInPage(t *testing.T) {
	b := newBench(t)
	q := request(`openid <script>alert(1)</script>`)
	res, page := b.get("/authorize?" + q.Encode())
	policy := res.Header.Get("Content-Security-Policy")
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page)
	if style == nil {
		t.Fatal("no style")
	}
	sum := sha256.Sum256([]byte(style[1]))
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self' http://127.0.0.1:40404;",
		"style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("policy %q misses %q", policy, want)
		}
	}
	if strings.Contains(page, "<script") || !strings.Contains(page, "&lt;script&gt;") || !strings.Contains(page, "An app on this machine") {
		t.Error(page)
	}
	for _, p := range Personas("p-1") {
		if shown := strings.Contains(page, `value="`+p.Name+`"`); shown != (p.Name != "app-backend") {
			t.Errorf("%s is shown: %v", p.Name, shown)
		}
	}
	login := hidden.FindStringSubmatch(page)[1]
	r, _ := http.NewRequest("POST", b.issuer+"/sign-in", strings.NewReader(form("login", login, "persona", "dr-rivera").Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "http://evil.example.org")
	if res, _ := b.do(r); res.StatusCode != http.StatusForbidden {
		t.Errorf("another site signs in: %d", res.StatusCode)
	}
	if b.choose(login, "dr-rivera", "").Get("code") == "" {
		t.Fatal("no code")
	}
	again, _ := http.NewRequest("POST", b.issuer+"/sign-in", strings.NewReader(form("login", login, "persona", "dr-rivera").Encode()))
	again.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if res, _ := b.do(again); res.StatusCode != 400 {
		t.Errorf("the form works twice: %d", res.StatusCode)
	}
}

func TestRefresh(t *testing.T) {
	b := newBench(t)
	_, answer := b.redeem(b.code("dr-rivera", "openid user/*.cruds user/Patient.rs offline_access"))
	first := answer["refresh_token"].(string)
	status, answer := b.refresh(first)
	second, _ := answer["refresh_token"].(string)
	if status != 200 || second == "" || second == first {
		t.Fatalf("%d %v", status, answer)
	}
	b.open() // tokens survive a restart
	wider := form("grant_type", "refresh_token", "client_id", "my-app", "refresh_token", second, "scope", "system/*.rs")
	if status, answer := b.post("/token", wider); status != 400 || answer["error"] != "invalid_scope" {
		t.Errorf("%d %v", status, answer)
	}
	wider.Set("scope", "user/Patient.rs")
	status, answer = b.post("/token", wider)
	if status != 200 || answer["scope"] != "user/Patient.rs" {
		t.Fatalf("%d %v", status, answer)
	}
	third, access := answer["refresh_token"].(string), answer["access_token"].(string)
	if status, answer := b.post("/token", form("grant_type", "refresh_token", "client_id", commandClient, "refresh_token", third)); status != 400 {
		t.Errorf("another client refreshes: %v", answer)
	}
	if !b.active(access) || !b.active(third) || b.active(second) {
		t.Error("activity")
	}
	// Garbage with a known session id ends nothing; a used token ends everything.
	sid, _, _ := strings.Cut(third, ".")
	if status, _ := b.refresh(sid + ".AAAAAAAAAAAAAAAAAAAAAAAAAA"); status != 400 || !b.active(third) {
		t.Error("whoever knows the session's id can end it")
	}
	b.revocations = nil
	if status, answer := b.refresh(first); status != 400 || answer["error"] != "invalid_grant" {
		t.Errorf("%d %v", status, answer)
	}
	if b.active(third) || b.active(access) || !slices.Equal(b.revocations, []string{"jti= sid=" + sid}) {
		t.Errorf("after reuse: %v", b.revocations)
	}
	if status, _ := b.refresh(third); status != 400 {
		t.Error("the family lives after reuse")
	}
	// Time.
	_, answer = b.redeem(b.code("dr-rivera", "user/*.rs online_access"))
	b.now = b.now.Add(onlineLifetime + time.Second)
	if status, _ := b.refresh(answer["refresh_token"].(string)); status != 400 {
		t.Error("an old refresh token works")
	}
	// Nothing that the file holds can be used.
	text, err := os.ReadFile(filepath.Join(b.dir, "issuer-sessions.json"))
	if err != nil || strings.Contains(string(text), strings.Split(third, ".")[1]) {
		t.Errorf("the file holds a refresh token, %v", err)
	}
	for _, file := range []string{"issuer-sessions.json", "issuer-keys.json", "app-backend.jwk.json", "app-backend-rs384.jwk.json"} {
		if info, err := os.Stat(filepath.Join(b.dir, file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", file, info, err)
		}
	}
}

// assertion signs one with changes; a nil value leaves a claim out.
func (b *bench) assertion(k *signer, typ string, change map[string]any) string {
	b.Helper()
	c := map[string]any{"iss": backendClient, "sub": backendClient, "aud": b.issuer + "/token", "jti": fmt.Sprint("j", b.now.UnixNano(), len(change), k.alg), "exp": b.now.Add(4 * time.Minute).Unix()}
	for name, v := range change {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	b.now = b.now.Add(time.Microsecond) // another jti next time
	text, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	token, err := k.sign(typ, text)
	if err != nil {
		b.Fatal(err)
	}
	return token
}

func (b *bench) backend(assertion, scope string) (int, map[string]any) {
	b.Helper()
	return b.post("/token", form("grant_type", "client_credentials", "scope", scope,
		"client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", assertion))
}

func TestBackendServices(t *testing.T) {
	b := newBench(t)
	for _, k := range b.client.keys {
		status, answer := b.backend(b.assertion(k, "JWT", nil), "system/*.rs user/*.rs")
		if status != 200 || answer["scope"] != "system/*.rs" || answer["refresh_token"] != nil {
			t.Fatalf("%s: %d %v", k.alg, status, answer)
		}
		_, claims := claimsOf(t, answer["access_token"].(string))
		if claims["sub"] != backendClient || claims["sid"] != nil || claims["acr"] != nil || claims["name"] != nil {
			t.Errorf("claims %v", claims)
		}
	}
	es := b.client.keys[0]
	stranger, err := newSigner(jwa.ES384)
	if err != nil {
		t.Fatal(err)
	}
	masked := *stranger
	masked.id = es.id
	wrongAlg := *b.client.keys[1]
	wrongAlg.alg = jwa.RS256
	for name, assertion := range map[string]string{
		"stranger":       b.assertion(stranger, "JWT", nil),
		"stolen kid":     b.assertion(&masked, "JWT", nil),
		"weak algorithm": b.assertion(&wrongAlg, "JWT", nil),
		"issuer's key":   b.assertion(b.keys.current(), "JWT", nil),
		"access token":   b.assertion(es, "at+jwt", nil),
		"other aud":      b.assertion(es, "JWT", map[string]any{"aud": b.issuer}),
		"no aud":         b.assertion(es, "JWT", map[string]any{"aud": nil}),
		"no jti":         b.assertion(es, "JWT", map[string]any{"jti": nil}),
		"no exp":         b.assertion(es, "JWT", map[string]any{"exp": nil}),
		"expired":        b.assertion(es, "JWT", map[string]any{"exp": b.now.Add(-time.Minute).Unix()}),
		"long":           b.assertion(es, "JWT", map[string]any{"exp": b.now.Add(6 * time.Minute).Unix()}),
		"future":         b.assertion(es, "JWT", map[string]any{"iat": b.now.Add(2 * time.Minute).Unix()}),
		"other subject":  b.assertion(es, "JWT", map[string]any{"sub": "dr-rivera"}),
		"unsigned":       "eyJhbGciOiJub25lIn0.e30.",
		"garbage":        "x",
	} {
		if status, answer := b.backend(assertion, "system/*.rs"); status != 401 || answer["error"] != "invalid_client" {
			t.Errorf("%s: %d %v", name, status, answer)
		}
	}
	once := b.assertion(es, "JWT", nil)
	if status, _ := b.backend(once, "system/*.rs"); status != 200 {
		t.Fatal("refused")
	}
	for range 2 {
		if status, _ := b.backend(once, "system/*.rs"); status != 401 {
			t.Error("an assertion works twice")
		}
		b.open() // not even over a restart
	}
	if status, answer := b.backend(b.assertion(b.client.keys[0], "JWT", nil), "user/*.rs"); status != 400 || answer["error"] != "invalid_scope" {
		t.Errorf("%d %v", status, answer)
	}
	if status, answer := b.post("/token", form("grant_type", "client_credentials", "client_id", "my-app", "scope", "system/*.rs")); status != 400 || answer["error"] != "unauthorized_client" {
		t.Errorf("%d %v", status, answer)
	}
	if status, _ := b.post("/token", form("grant_type", "client_credentials", "client_id", backendClient, "scope", "system/*.rs")); status != 401 {
		t.Errorf("app-backend needs no proof: %d", status)
	}
	if status, answer := b.post("/token", form("grant_type", "password", "client_id", "my-app")); status != 400 || answer["error"] != "unsupported_grant_type" {
		t.Errorf("%d %v", status, answer)
	}
}

func TestRevocation(t *testing.T) {
	b := newBench(t)
	_, answer := b.redeem(b.code("dr-rivera", "user/*.rs offline_access"))
	access, refresh := answer["access_token"].(string), answer["refresh_token"].(string)
	_, claims := claimsOf(t, access)
	if status, answer := b.post("/revoke", form("client_id", commandClient, "token", access)); status != 400 || !b.active(access) {
		t.Errorf("another client revokes: %d %v", status, answer)
	}
	if status, _ := b.post("/revoke", form("token", access)); status != 401 {
		t.Error("nobody revokes")
	}
	if status, _ := b.post("/revoke", form("client_id", "my-app", "token", "unknown")); status != 200 {
		t.Error("an unknown token is an error")
	}
	if status, _ := b.post("/revoke", form("client_id", "my-app", "token", access)); status != 200 || b.active(access) {
		t.Error("the access token lives on")
	}
	if !b.active(refresh) {
		t.Error("the session died with an access token")
	}
	b.open()
	if b.active(access) {
		t.Error("a restart forgets a revocation")
	}
	_, answer = b.refresh(refresh)
	access, refresh = answer["access_token"].(string), answer["refresh_token"].(string)
	if status, _ := b.post("/revoke", form("client_id", "my-app", "token", refresh, "token_type_hint", "access_token")); status != 200 || b.active(refresh) || b.active(access) {
		t.Error("the session lives on")
	}
	if want := []string{fmt.Sprintf("jti=%s sid=", claims["jti"]), fmt.Sprintf("jti= sid=%s", claims["sid"])}; !slices.Equal(b.revocations, want) {
		t.Errorf("told %v, want %v", b.revocations, want)
	}
}

// Introspection is for programs on this machine and for clients that prove who they are.
func TestIntrospection(t *testing.T) {
	b := newBench(t)
	token, err := b.Token("patient-1", "")
	if err != nil {
		t.Fatal(err)
	}
	_, answer := b.post("/introspect", form("token", token))
	if answer["active"] != true || answer["sub"] != "patient-1" || answer["patient"] != "p-1" || answer["client_id"] != commandClient || answer["token_type"] != "Bearer" {
		t.Errorf("%v", answer)
	}
	ask := func(f url.Values) int {
		r := httptest.NewRequest("POST", b.issuer+"/introspect", strings.NewReader(f.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.RemoteAddr = "203.0.113.9:1234"
		w := httptest.NewRecorder()
		b.Handler().ServeHTTP(w, r)
		return w.Code
	}
	if status := ask(form("token", token, "client_id", "my-app")); status != 401 {
		t.Errorf("a stranger introspects: %d", status)
	}
	if status := ask(form("token", token, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
		"client_assertion", b.assertion(b.client.keys[0], "JWT", nil))); status != 200 {
		t.Errorf("app-backend may not introspect: %d", status)
	}
	b.now = b.now.Add(accessLifetime + time.Second)
	if b.active(token) {
		t.Error("an expired token is active")
	}
	if b.active(token[:len(token)-4] + "AAAA") {
		t.Error("a forged token is active")
	}
}

// The real verifier believes the tokens, before and after rotations, and a key that is about to sign is known already.
func TestRotation(t *testing.T) {
	b := newBench(t)
	res, body := b.get("/jwks")
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal([]byte(body), &set); err != nil || len(set.Keys) != 2 || res.Header.Get("Cache-Control") == "" {
		t.Fatalf("%v %s", err, body)
	}
	kids := func() []string {
		_, body := b.get("/jwks")
		set.Keys = nil
		if err := json.Unmarshal([]byte(body), &set); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, k := range set.Keys {
			if k["d"] != nil || k["p"] != nil || k["use"] != "sig" {
				t.Errorf("published %v", k)
			}
			ids = append(ids, k["kid"].(string))
		}
		return ids
	}
	before := kids()
	old, err := b.Token("dr-chen", "")
	if err != nil {
		t.Fatal(err)
	}
	post := func(remote string) int {
		r := httptest.NewRequest("POST", b.issuer+"/rotate", nil)
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		b.Handler().ServeHTTP(w, r)
		return w.Code
	}
	if status := post("203.0.113.9:1"); status != 403 {
		t.Errorf("a stranger rotates: %d", status)
	}
	if status := post("127.0.0.1:1"); status != 204 {
		t.Fatalf("rotation answers %d", status)
	}
	token, err := b.Token("dr-chen", "")
	if err != nil {
		t.Fatal(err)
	}
	header, _ := claimsOf(t, token)
	if header["alg"] != "RS256" || header["kid"] != before[0] {
		t.Errorf("signed by %v, published before were %v", header, before)
	}
	if !b.active(old) || !b.active(token) || len(kids()) != 3 {
		t.Error("a rotation killed a token")
	}
	b.open()

	ctx, cancel := context.WithCancel(t.Context())
	v, err := auth.NewVerifier(auth.VerifierConfig{
		Issuers:  []auth.IssuerConfig{{Issuer: b.issuer, Audience: testAudience, JWKSURL: b.issuer + "/jwks", AssertsSignIn: true, RolesInToken: true}},
		Insecure: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for deadline := time.Now().Add(5 * time.Second); v.Healthy() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(v.Healthy())
		}
	}
	for _, token := range []string{old, token} {
		if _, err := v.Authenticate(ctx, auth.Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}}); err != nil {
			t.Errorf("%v", err)
		}
	}
	for _, p := range Personas("p-1") {
		token, err := b.Token(p.Name, "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Authenticate(ctx, auth.Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}})
		if err != nil {
			t.Errorf("%s: %v", p.Name, err)
			continue
		}
		if got.Subject != p.Name || !slices.Equal(got.Roles, p.Roles) || got.Patient != p.Patient || got.FHIRUser != p.FHIRUser || got.ACR != p.ACR {
			t.Errorf("%s became %+v", p.Name, got)
		}
	}
	if err := b.Rotate(); err != nil { // to the key that the verifier saw as next
		t.Fatal(err)
	}
	token, _ = b.Token("dr-chen", "")
	if _, err := v.Authenticate(ctx, auth.Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}}); err != nil {
		t.Errorf("after another rotation: %v", err)
	}
	b.now = b.now.Add(accessLifetime + 2*time.Minute)
	if n := len(kids()); n != 2 {
		t.Errorf("%d keys are published when the last tokens of the retired ones are gone", n)
	}
}

func TestDiscovery(t *testing.T) {
	b := newBench(t)
	_, one := b.get("/.well-known/openid-configuration")
	_, two := b.get("/.well-known/oauth-authorization-server")
	var d map[string]any
	if err := json.Unmarshal([]byte(one), &d); err != nil || one != two || d["issuer"] != b.issuer {
		t.Fatalf("%v %s", err, one)
	}
	if m := d["code_challenge_methods_supported"].([]any); len(m) != 1 || m[0] != "S256" {
		t.Errorf("PKCE %v", m)
	}
	for name, v := range d { // every address answers
		at, ok := v.(string)
		if !ok || name == "issuer" {
			continue
		}
		r, _ := http.NewRequest("GET", at, nil)
		if res, _ := b.do(r); res.StatusCode == 404 {
			t.Errorf("%s: %s is not there", name, at)
		}
	}
	for path, want := range map[string]string{"/token": "*", "/jwks": "*", "/revoke": "*", "/.well-known/openid-configuration": "*", "/authorize": "", "/introspect": "", "/rotate": ""} {
		r, _ := http.NewRequest("OPTIONS", b.issuer+path, nil)
		r.Header.Set("Origin", "http://localhost:3000")
		res, _ := b.do(r)
		if got := res.Header.Get("Access-Control-Allow-Origin"); got != want {
			t.Errorf("%s lets %q in, want %q", path, got, want)
		}
	}
	for _, twice := range []string{"grant_type=refresh_token&grant_type=refresh_token", "%zz"} {
		r, _ := http.NewRequest("POST", b.issuer+"/token", strings.NewReader(twice))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if res, body := b.do(r); res.StatusCode != 400 || !strings.Contains(body, "invalid_request") {
			t.Errorf("%q: %d %s", twice, res.StatusCode, body)
		}
	}
	if res, _ := b.get("/token"); res.StatusCode != 405 || res.Header.Get("Allow") != "POST" {
		t.Errorf("GET /token: %d", res.StatusCode)
	}
	if res, _ := b.get("/nothing"); res.StatusCode != 404 {
		t.Errorf("%d", res.StatusCode)
	}
}

func TestGrantScopes(t *testing.T) {
	personas := map[string]Persona{}
	for _, p := range Personas("p-1") {
		personas[p.Name] = p
	}
	for _, c := range []struct{ persona, asked, want string }{
		{"dr-rivera", "user/*.cruds user/Patient.* user/Observation.write patient/*.read", "user/*.cruds user/Patient.* user/Observation.write patient/*.read"},
		{"nurse-okafor", "user/*.cruds user/Patient.d", "user/*.crus"},
		{"researcher-kim", "user/Patient.* user/Patient.write", "user/Patient.rs"},
		{"patient-1", "user/*.rs patient/*.write patient/*.s launch/patient", "patient/*.s launch/patient"},
		{"officer-diaz", "openid fhirUser user/*.rs launch/patient offline_access", "openid user/AuditEvent.rs offline_access"},
		{"officer-diaz", "user/Patient.rs user/AuditEvent.read user/AuditEvent.cruds patient/*.rs", "user/AuditEvent.read user/AuditEvent.rs"},
		{"admin-root", "openid user/*.rs user/AuditEvent.rs", "openid"},
		{"app-backend", "system/*.cruds system/Patient.rs system/Patient.rs", "system/*.cruds system/Patient.rs"},
		{"dr-rivera", "user/Observation.rs?category=http://cs|laboratory&code=a,b user/Observation.r?category=x patient/Condition.rs?category=x",
			"user/Observation.rs?category=http://cs|laboratory&code=a,b user/Observation.r?category=x patient/Condition.rs?category=x"},
		{"nurse-okafor", "user/Observation.cruds?category=x system/Observation.rs?category=x", "user/Observation.crus?category=x"},
		{"officer-diaz", "user/Patient.rs?active=true", ""},
		{"dr-rivera", "user/Observation.rs? user/Observation.rs?category user/Observation.rs?category= user/Observation.rs?=x user/Observation.read?category=x user/*.rs?category=x user/Observation.rs?category=\"x", ""},
		{"dr-rivera", "user/*.sr user/*. user/.rs USER/*.rs user/Pat-ient.rs other", ""},
	} {
		if got := grant(personas[c.persona], c.asked); got != c.want {
			t.Errorf("%s asks for %q and gets %q, want %q", c.persona, c.asked, got, c.want)
		}
	}
}

// What is granted was asked for or is part of it, and asking for what was granted changes nothing.
func FuzzGrantScopes(f *testing.F) {
	for _, seed := range []string{"openid user/*.cruds", "patient/*.read system/*.*", "user/Patient.rs?x=y  \x00", "user/*.", "/.", ".", "launch/patient launch/patient"} {
		f.Add(seed)
	}
	people := Personas("p-1")
	f.Fuzz(func(t *testing.T, asked string) {
		for _, p := range people {
			got := grant(p, asked)
			if again := grant(p, got); again != got {
				t.Errorf("%s: %q becomes %q, then %q", p.Name, asked, got, again)
			}
			if len(strings.Fields(got)) > len(strings.Fields(asked)) || strings.Contains(got, "\x00") || strings.Count(got, "?") > strings.Count(asked, "?") {
				t.Errorf("%s: %q becomes %q", p.Name, asked, got)
			}
		}
	})
}
