package main

import (
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

const someEvent = "01a2013a-828d-7beb-bc69-42535fb08062"

func TestPageForbidsWhatIsNotOurs(t *testing.T) {
	b := newDashboard(t).open(t)
	var last string
	for _, path := range []string{"/", callbackPath + "?code=x", "/"} {
		a := b.want(http.StatusOK, "GET", path, "")
		nonce := regexp.MustCompile(`'nonce-([A-Z2-7]{20,})'`).FindStringSubmatch(a.head.Get("Content-Security-Policy"))
		if nonce == nil {
			t.Fatalf("%s: no nonce in %q", path, a.head.Get("Content-Security-Policy"))
		}
		if want := fmt.Sprintf(`<meta property="csp-nonce" nonce="%[1]s"><script src="/assets/a.js" nonce="%[1]s"></script>`, nonce[1]); a.body != want {
			t.Errorf("%s: page %s, want %s", path, a.body, want)
		}
		if nonce[1] == last {
			t.Error("a nonce came twice")
		}
		last = nonce[1]
		for _, must := range []string{"default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "connect-src 'self'"} {
			if !strings.Contains(a.head.Get("Content-Security-Policy"), must) {
				t.Errorf("%s: policy lacks %s", path, must)
			}
		}
		if p := a.head.Get("Content-Security-Policy"); strings.Contains(p, "unsafe") || strings.Contains(p, "*") {
			t.Errorf("%s: policy %s", path, p)
		}
	}
}

func TestEveryAnswerHasTheHeaders(t *testing.T) {
	b := newDashboard(t).open(t)
	b.signIn()
	for _, path := range []string{"/", "/assets/a.js", "/session", "/api/v1/audit/events", "/api/readyz", "/nowhere", "/assets/none.js"} {
		a := b.do("GET", path, "")
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := a.head.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		if !strings.Contains(a.head.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: no policy", path)
		}
	}
}

func TestHostIsChecked(t *testing.T) {
	b := newDashboard(t).open(t)
	_, port, _ := strings.Cut(b.d.host, ":")
	for _, host := range []string{"evil.example", "evil.example:" + port, "localhost:" + port, "127.0.0.1", "127.0.0.1:1", "[::1]:" + port} {
		for _, path := range []string{"/", "/session", "/assets/a.js"} {
			b.want(http.StatusMisdirectedRequest, "GET", path, "", func(r *http.Request) { r.Host = host })
		}
	}
}

func TestSessionNeedsCookieAndHeader(t *testing.T) {
	d := newDashboard(t)
	b, other := d.open(t), d.open(t)
	b.signIn()
	noCookie, _ := cookiejar.New(nil)
	for _, c := range []struct{ method, path string }{
		{"GET", "/session"}, {"DELETE", "/session"}, {"POST", "/session/sign-in"}, {"POST", "/session/complete"}, {"POST", "/session/cancel"},
		{"GET", "/api/readyz"}, {"GET", "/api/v1/audit/events"}, {"GET", "/api/v1/audit/events/" + someEvent},
	} {
		before := len(d.requests())
		b.want(http.StatusForbidden, c.method, c.path, "{}", func(r *http.Request) { r.Header.Del(pageHeader) })
		b.want(http.StatusForbidden, c.method, c.path, "{}", func(r *http.Request) { r.Header.Set(pageHeader, "guess") })
		b.want(http.StatusForbidden, c.method, c.path, "{}", func(r *http.Request) { r.Header.Set(pageHeader, other.page) })
		(&browser{t: t, d: d, jar: noCookie, page: b.page}).want(http.StatusForbidden, c.method, c.path, "{}")
		if n := len(d.requests()) - before; n != 0 {
			t.Errorf("%s %s: %d requests reached the API without a session", c.method, c.path, n)
		}
	}
	if s := b.session(); s.User != "officer-diaz" {
		t.Errorf("after the refusals: %+v", s)
	}
}

func TestSessionCookie(t *testing.T) {
	b := newDashboard(t).open(t)
	cookie := b.want(http.StatusOK, "POST", "/session", "").head.Get("Set-Cookie")
	for _, must := range []string{"HttpOnly", "SameSite=Strict", "Path=/"} {
		if !strings.Contains(cookie, must) {
			t.Errorf("cookie %q lacks %s", cookie, must)
		}
	}
	if strings.Contains(cookie, b.page) {
		t.Error("the cookie holds the page's half")
	}
}

func TestOtherOriginsBeginNoSession(t *testing.T) {
	b := newDashboard(t).open(t)
	for name, change := range map[string]func(*http.Request){
		"another site":      func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"another port":      func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
		"an older browser":  func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
		"a null origin":     func(r *http.Request) { r.Header.Set("Origin", "null") },
		"another loopback ": func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:1") },
	} {
		if a := b.do("POST", "/session", "", change); a.status != http.StatusForbidden || a.head.Get("Set-Cookie") != "" {
			t.Errorf("%s: status %d, cookie %q", name, a.status, a.head.Get("Set-Cookie"))
		}
	}
}

func TestStrangersDoNotPushOutWhoIsSignedIn(t *testing.T) {
	d := newDashboard(t)
	b := d.open(t)
	b.signIn()
	for range maxSessions + 5 {
		d.clock.pass(1e6)
		d.open(t)
	}
	if s := b.session(); s.User == "" {
		t.Error("page loads ended a session that somebody is signed in to")
	}
}

func TestOnlyListedPathsReachTheAPI(t *testing.T) {
	d := newDashboard(t)
	b := d.open(t)
	b.signIn()
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/api/", 404}, {"GET", "/api/v1/roles", 404}, {"GET", "/api/fhir/R4/Patient", 404}, {"GET", "/api/metrics", 404},
		{"GET", "/fhir/R4/Patient", 404}, {"GET", "/v1/audit/events", 404}, {"GET", "/api/v1/audit/events/", 404},
		{"GET", "/api/v1/audit/events/..%2f..%2froles", 404}, {"GET", "/api/v1/audit/events/%2e%2e", 404}, {"GET", "/api/v1/audit/events/x", 404},
		{"GET", "/api/v1/audit/events/" + strings.ToUpper(someEvent), 404}, {"GET", "/api/v1/audit/events/" + someEvent + "%0a", 404},
		{"POST", "/api/v1/audit/events", 405}, {"DELETE", "/api/v1/audit/events/" + someEvent, 405}, {"PUT", "/api/readyz", 405},
		{"GET", "/api/v1/audit/events?q=a;b", 400}, {"GET", "/api/v1/audit/events?q=%zz", 400},
		{"GET", "/.gitkeep", 404}, {"GET", "/index.html", 404}, {"GET", "/assets/a.map", 404}, {"GET", "/assets/..%2findex.html", 404},
	} {
		b.want(c.status, c.method, c.path, "")
	}
	if asked := d.requests(); len(asked) != 0 {
		t.Errorf("these reached the API: %q", asked)
	}
	b.want(http.StatusOK, "GET", "/api/v1/audit/events?patient=a%26b%3Dc&q=two+words", "")
	b.want(http.StatusOK, "GET", "/api/v1/audit/events/"+someEvent, "")
	b.want(http.StatusOK, "GET", "/api/readyz", "")
	want := []string{
		"GET /v1/audit/events?patient=a%26b%3Dc&q=two+words Bearer " + d.access,
		"GET /v1/audit/events/" + someEvent + " Bearer " + d.access,
		"GET /readyz", // needs no token and gets none
	}
	if asked := d.requests(); fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("the API got %q, want %q", asked, want)
	}
}

func TestAnswersOfTheAPI(t *testing.T) {
	d := newDashboard(t)
	b := d.open(t)
	b.signIn()
	a := b.want(http.StatusOK, "GET", "/api/v1/audit/events", "")
	if a.body != `{"events":[],"next":""}` || a.head.Get("X-Request-Id") != "req-1" || a.head.Get("Set-Cookie") != "" {
		t.Errorf("handed on: %q %v", a.body, a.head)
	}
	for name, c := range map[string]struct {
		status, want int
		kind, body   string
		location     string
	}{
		"a refusal":         {403, 403, "application/problem+json", `{"title":"not permitted"}`, ""},
		"not ready":         {503, 503, "application/json; charset=utf-8", `{"status":"not ready"}`, ""},
		"a page":            {200, 502, "text/html", "<script>", ""},
		"no type":           {200, 502, "", "{}", ""},
		"a redirect":        {302, 502, "application/json", "{}", "http://evil.example/"},
		"an endless answer": {200, 502, "application/json", strings.Repeat(" ", answerLimit+1), ""},
	} {
		d.answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", c.kind)
			if c.location != "" {
				w.Header().Set("Location", c.location)
			}
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		}
		a := b.do("GET", "/api/v1/audit/events", "")
		if a.status != c.want || c.want == c.status && a.body != c.body || a.head.Get("Location") != "" {
			t.Errorf("%s: status %d, %.80q", name, a.status, a.body)
		}
	}
	d.Close()
	a = b.want(http.StatusBadGateway, "GET", "/api/v1/audit/events?patient=who", "")
	if !strings.Contains(a.body, offline) {
		t.Errorf("API gone: %s", a.body)
	}
	if strings.Contains(d.log.String(), "patient=who") {
		t.Error("the log has the officer's query")
	}
}

func TestUnbuiltFrontEndSaysHowToBuildIt(t *testing.T) {
	h, err := newHandler(config{API: "http://127.0.0.1:1", Host: "127.0.0.1:2", Pages: fstest.MapFS{}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1:2/", nil))
	if !strings.Contains(w.Body.String(), "npm run build") {
		t.Errorf("page: %s", w.Body)
	}
}

func TestLocate(t *testing.T) {
	for _, c := range []struct{ server, want string }{
		{"http://127.0.0.1:8080", "http://127.0.0.1:8080"}, {"http://[::1]:8080/", "http://[::1]:8080"}, {"http://localhost:8080", "http://localhost:8080"},
		{"https://chartkeep.example.org", "https://chartkeep.example.org"},
		{"http://chartkeep.example.org", ""}, {"http://127.0.0.1.example.org", ""}, {"ftp://127.0.0.1", ""}, {"chartkeep.example.org", ""},
		{"https://user:pw@chartkeep.example.org", ""}, {"https://chartkeep.example.org/v1", ""}, {"https://chartkeep.example.org?x", ""}, {"://", ""},
	} {
		got, err := locate(c.server, "")
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v", c.server, got, err)
		}
	}
}
