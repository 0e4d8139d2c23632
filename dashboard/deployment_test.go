package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

// fake is an API with its issuer, both on one loopback port, as in a demo. Its tokens all contain tokenMark.
type fake struct {
	*httptest.Server
	mu        sync.Mutex
	codes     map[string]url.Values // authorization requests by code
	access    string                // the only token that the API takes
	refresh   string
	lifetime  int
	spoil     func(claims map[string]any) // of the next ID token
	tokenDown bool
	revoked   []string
	asked     []string // "METHOD path?query authorization" that reached the API
	answer    http.HandlerFunc
}

// tokenMark is in everything that must not reach a page.
const tokenMark = "s3cret-token"

func newFake(t *testing.T) *fake {
	f := &fake{codes: map[string]url.Values{}, lifetime: 600}
	f.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Request-Id", "req-1")
		w.Header().Set("Set-Cookie", "api=1")
		fmt.Fprint(w, `{"events":[],"next":""}`)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /fhir/R4/.well-known/smart-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]string{"issuer": f.URL + "/oauth2"})
	})
	mux.HandleFunc("GET /oauth2/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{
			"issuer": f.URL + "/oauth2", "authorization_endpoint": f.URL + "/oauth2/authorize", "token_endpoint": f.URL + "/oauth2/token",
			"revocation_endpoint": f.URL + "/oauth2/revoke", "code_challenge_methods_supported": []string{"S256"},
			"scopes_supported": []string{"openid", "online_access"}, "authorization_response_iss_parameter_supported": true,
		})
	})
	mux.HandleFunc("POST /oauth2/token", f.token)
	mux.HandleFunc("POST /oauth2/revoke", func(_ http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.revoked = append(f.revoked, r.PostFormValue("token"))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.asked = append(f.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Authorization")))
		ok := r.URL.Path == "/readyz" || r.Header.Get("Authorization") == "Bearer "+f.access
		f.mu.Unlock()
		if !ok {
			refuse(w, http.StatusUnauthorized, "no")
			return
		}
		f.answer(w, r)
	})
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

// authorize is a person who says yes on the issuer's page at address; it returns the query of the redirect.
func (f *fake) authorize(t *testing.T, address string) url.Values {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil || !strings.HasPrefix(address, f.URL+"/oauth2/authorize?") {
		t.Fatalf("the issuer's page is %q", address)
	}
	q := u.Query()
	code := rand.Text()
	f.mu.Lock()
	f.codes[code] = q
	f.mu.Unlock()
	return url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {f.URL + "/oauth2"}}
}

func (f *fake) token(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	form := func(name string) string { return r.PostFormValue(name) }
	var asked url.Values
	good := form("client_id") == "chartkeep-dashboard"
	switch form("grant_type") {
	case "authorization_code":
		asked = f.codes[form("code")]
		delete(f.codes, form("code"))
		sum := sha256.Sum256([]byte(form("code_verifier")))
		good = good && asked.Get("code_challenge") == base64.RawURLEncoding.EncodeToString(sum[:]) && asked.Get("code_challenge_method") == "S256" &&
			asked.Get("redirect_uri") == form("redirect_uri") && asked.Get("response_type") == "code"
	case "refresh_token":
		good = good && form("refresh_token") == f.refresh
	default:
		good = false
	}
	switch {
	case f.tokenDown:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case !good:
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	f.access, f.refresh = tokenMark+rand.Text(), tokenMark+rand.Text()
	claims := map[string]any{
		"iss": f.URL + "/oauth2", "sub": "officer-diaz", "name": "Carmen Díaz", "aud": clientID, "nonce": asked.Get("nonce"), "exp": time.Now().Add(time.Hour).Unix(),
	}
	if f.spoil != nil {
		f.spoil(claims)
	}
	text, _ := json.Marshal(claims)
	answer(w, map[string]any{
		"access_token": f.access, "token_type": "Bearer", "expires_in": f.lifetime, "refresh_token": f.refresh,
		"id_token": "e30." + base64.RawURLEncoding.EncodeToString(text) + "." + tokenMark,
	})
}

func (f *fake) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.asked...)
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// dashboard is a handler on a loopback port.
type dashboard struct {
	*fake
	url   string
	host  string
	clock *clock
	log   *strings.Builder
}

func newDashboard(t *testing.T) *dashboard { return newDashboardWith(t, nil) }

func newDashboardWith(t *testing.T, open func(string)) *dashboard {
	f := newFake(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &dashboard{fake: f, host: l.Addr().String(), clock: &clock{now: time.Now()}, log: &strings.Builder{}}
	d.url = "http://" + d.host
	h, err := newHandler(config{
		API: f.URL, Host: d.host, OpenBrowser: open, Now: d.clock.Now,
		Logger: slog.New(slog.NewTextHandler(&locked{w: d.log}, nil)),
		Pages: fstest.MapFS{
			"index.html":        {Data: []byte(`<meta property="csp-nonce" nonce="__NONCE__"><script src="/assets/a.js" nonce="__NONCE__"></script>`)},
			"assets/a.js":       {Data: []byte("1")},
			"assets/a.map":      {Data: []byte("1")},
			"assets/a.css":      {Data: []byte("1")},
			".gitkeep":          {},
			"assets/.hidden.js": {},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(func() { s.Close(); h.close() })
	return d
}

type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// browser is one browser profile with the dashboard's page open. It fails the test when an answer has a token in it.
type browser struct {
	t    *testing.T
	d    *dashboard
	jar  http.CookieJar
	page string
}

type reply struct {
	status int
	head   http.Header
	body   string
}

func (d *dashboard) open(t *testing.T) *browser {
	t.Helper()
	jar, _ := cookiejar.New(nil)
	b := &browser{t: t, d: d, jar: jar}
	a := b.want(http.StatusOK, "POST", "/session", "")
	var body struct{ Page string }
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || body.Page == "" {
		t.Fatalf("beginning a session: %s", a.body)
	}
	b.page = body.Page
	return b
}

// do sends a request as the page does, with changes that the test makes to it.
func (b *browser) do(method, path, body string, change ...func(*http.Request)) reply {
	b.t.Helper()
	req, err := http.NewRequest(method, b.d.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if b.page != "" {
		req.Header.Set(pageHeader, b.page)
	}
	for _, c := range change {
		c(req)
	}
	res, err := (&http.Client{Jar: b.jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	all := string(text) + fmt.Sprint(maps.Collect(maps.All(res.Header)))
	if strings.Contains(all, tokenMark) {
		b.t.Errorf("%s %s: a token reached the page: %s", method, path, all)
	}
	return reply{res.StatusCode, res.Header, string(text)}
}

func (b *browser) want(status int, method, path, body string, change ...func(*http.Request)) reply {
	b.t.Helper()
	a := b.do(method, path, body, change...)
	if a.status != status {
		b.t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.status, status, a.body)
	}
	return a
}

func (b *browser) session() sessionJSON {
	b.t.Helper()
	var s sessionJSON
	if err := json.Unmarshal([]byte(b.want(http.StatusOK, "GET", "/session", "").body), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// begin starts a sign-in and returns the issuer's page.
func (b *browser) begin() string {
	b.t.Helper()
	var body struct{ URL string }
	if err := json.Unmarshal([]byte(b.want(http.StatusOK, "POST", "/session/sign-in", "").body), &body); err != nil {
		b.t.Fatal(err)
	}
	return body.URL
}

func (b *browser) complete(q url.Values) sessionJSON {
	b.t.Helper()
	text, _ := json.Marshal(map[string]string{"query": q.Encode()})
	var s sessionJSON
	if err := json.Unmarshal([]byte(b.want(http.StatusOK, "POST", "/session/complete", string(text)).body), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *browser) signIn() {
	b.t.Helper()
	if s := b.complete(b.d.authorize(b.t, b.begin())); s.User != "officer-diaz" {
		b.t.Fatalf("signing in: %+v", s)
	}
}
