package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
}

func TestSignInRoundTrip(t *testing.T) {
	d := newDashboard(t)
	b := d.open(t)
	b.want(http.StatusUnauthorized, "GET", "/api/v1/audit/events", "")
	if s := b.session(); s.User != "" || s.Server != d.URL || s.Window {
		t.Fatalf("before: %+v", s)
	}
	page := b.begin()
	u, _ := url.Parse(page)
	for name, want := range map[string]string{
		"client_id": "chartkeep-dashboard", "redirect_uri": d.url + "/signin/callback", "scope": "openid fhirUser online_access",
		"response_type": "code", "code_challenge_method": "S256",
	} {
		if got := u.Query().Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if s := b.complete(d.authorize(t, page)); s.User != "officer-diaz" || s.Name != "Carmen Díaz" {
		t.Fatalf("after: %+v", s)
	}
	b.want(http.StatusOK, "GET", "/api/v1/audit/events", "")

	// Another browser on this machine is nobody still.
	d.open(t).want(http.StatusUnauthorized, "GET", "/api/v1/audit/events", "")

	refresh := d.refresh
	b.want(http.StatusOK, "DELETE", "/session", "")
	if fmt.Sprint(d.revoked) != fmt.Sprint([]string{refresh}) {
		t.Errorf("revoked at sign-out: %d tokens", len(d.revoked))
	}
	b.want(http.StatusUnauthorized, "GET", "/api/v1/audit/events", "")
	if strings.Contains(d.log.String(), tokenMark) {
		t.Error("a token is in the log")
	}
}

func TestSignInThatDoesNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(q url.Values)
		claims func(c map[string]any)
		late   time.Duration
		notice string
	}{
		"declined":             {answer: func(q url.Values) { q.Del("code"); q.Set("error", "access_denied") }, notice: "declined"},
		"an error":             {answer: func(q url.Values) { q.Del("code"); q.Set("error", "server_error") }, notice: "failed"},
		"another code":         {answer: func(q url.Values) { q.Set("code", "guess") }, notice: "failed"},
		"another issuer":       {answer: func(q url.Values) { q.Set("iss", "https://evil.example") }, notice: "failed"},
		"no issuer":            {answer: func(q url.Values) { q.Del("iss") }, notice: "failed"},
		"too late":             {late: signInLimit + time.Second, notice: "failed"},
		"of another issuer":    {claims: func(c map[string]any) { c["iss"] = "https://evil.example" }, notice: "failed"},
		"for another client":   {claims: func(c map[string]any) { c["aud"] = []string{"other"} }, notice: "failed"},
		"authorized for other": {claims: func(c map[string]any) { c["aud"] = []string{"other", clientID}; c["azp"] = "other" }, notice: "failed"},
		"of another sign-in":   {claims: func(c map[string]any) { c["nonce"] = "x" }, notice: "failed"},
		"expired":              {claims: func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }, notice: "failed"},
		"without a subject":    {claims: func(c map[string]any) { c["sub"] = "" }, notice: "failed"},
		"that is nonsense":     {claims: func(c map[string]any) { c["aud"] = 1 }, notice: "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDashboard(t)
			d.spoil = c.claims
			b := d.open(t)
			q := d.authorize(t, b.begin())
			good := q.Encode()
			if c.answer != nil {
				c.answer(q)
			}
			d.clock.pass(c.late)
			if s := b.complete(q); s.User != "" || !strings.Contains(s.Notice, c.notice) {
				t.Fatalf("session %+v", s)
			}
			b.want(http.StatusUnauthorized, "GET", "/api/v1/audit/events", "")
			// One answer, one try: the right one comes too late now.
			again, _ := url.ParseQuery(good)
			if s := b.complete(again); s.User != "" {
				t.Error("a second answer was taken")
			}
		})
	}
}

// TestSignInEndsWhereItBegan: somebody who lures an officer to an issuer's page of the lurer's own sign-in gets nothing.
func TestSignInEndsWhereItBegan(t *testing.T) {
	d := newDashboard(t)
	lurer, officer := d.open(t), d.open(t)
	q := d.authorize(t, lurer.begin())
	if s := officer.complete(q); s.User != "" {
		t.Errorf("the officer is signed in: %+v", s)
	}
	if s := lurer.session(); s.User != "" {
		t.Errorf("the lurer is signed in as the officer: %+v", s)
	}
	q.Set("state", "guess")
	if s := lurer.complete(q); s.User != "" {
		t.Errorf("any state will do: %+v", s)
	}
}

func TestIssuerThatCannotBeTrusted(t *testing.T) {
	d := newDashboard(t)
	b := d.open(t)
	d.Close()
	if a := b.want(http.StatusBadGateway, "POST", "/session/sign-in", ""); !strings.Contains(a.body, offline) {
		t.Errorf("body %s", a.body)
	}
}

func TestTokensAreRenewed(t *testing.T) {
	d := newDashboard(t)
	b := d.open(t)
	b.signIn()
	first := d.access
	for range 5 {
		d.clock.pass(9 * time.Minute)
		b.want(http.StatusOK, "GET", "/api/v1/audit/events", "")
		d.clock.pass(time.Minute)
		b.want(http.StatusOK, "GET", "/api/v1/audit/events", "")
	}
	if d.access == first {
		t.Error("the token is the first one still")
	}

	// The issuer is away for a while: the person stays signed in.
	d.clock.pass(11 * time.Minute)
	d.tokenDown = true
	if a := b.want(http.StatusBadGateway, "GET", "/api/v1/audit/events", ""); !strings.Contains(a.body, offline) {
		t.Errorf("body %s", a.body)
	}
	d.tokenDown = false
	b.want(http.StatusOK, "GET", "/api/v1/audit/events", "")

	// The issuer ends the session.
	d.clock.pass(11 * time.Minute)
	d.refresh = "none"
	b.want(http.StatusUnauthorized, "GET", "/api/v1/audit/events", "")
	if s := b.session(); s.User != "" || s.Notice == "" {
		t.Errorf("session %+v", s)
	}
}

func TestTokenThatTheAPIRefusesEndsTheSession(t *testing.T) {
	d := newDashboard(t)
	b := d.open(t)
	b.signIn()
	d.access = "revoked"
	b.want(http.StatusUnauthorized, "GET", "/api/v1/audit/events", "")
	if s := b.session(); s.User != "" || s.Notice == "" {
		t.Errorf("session %+v", s)
	}
}

func TestIdlePersonIsSignedOut(t *testing.T) {
	d := newDashboard(t)
	d.lifetime = 3600
	b := d.open(t)
	b.signIn()
	for range 4 { // watching is not using
		d.clock.pass(idleLimit / 4)
		b.want(http.StatusOK, "GET", "/api/readyz", "")
		if s := b.session(); s.User == "" {
			t.Fatal("signed out too early")
		}
	}
	d.clock.pass(time.Second)
	b.want(http.StatusUnauthorized, "GET", "/api/v1/audit/events", "")
	if s := b.session(); s.User != "" || s.Notice == "" {
		t.Errorf("session %+v", s)
	}
}

func TestSignInInTheSystemBrowser(t *testing.T) {
	opened := make(chan string, 2)
	d := newDashboardWith(t, func(url string) { opened <- url })
	window := d.open(t)
	window.jar = nil // a window's scheme has no cookies
	visit := func(address string) (int, string) {
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(address)
		if err != nil {
			return 0, ""
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text)
	}

	window.begin()
	abandoned, _ := url.Parse(<-opened)
	if s := window.session(); !s.Waiting || !s.Window {
		t.Fatalf("session %+v", s)
	}
	window.want(http.StatusOK, "POST", "/session/cancel", "")
	if s := window.session(); s.Waiting {
		t.Errorf("after cancel: %+v", s)
	}

	window.begin()
	page := <-opened
	if strings.ContainsAny(page, "~!()*$;[]{}<>|\\` ") {
		t.Errorf("Wails does not open %s", page)
	}
	u, _ := url.Parse(page)
	redirect := u.Query().Get("redirect_uri")
	if back, err := url.Parse(redirect); err != nil || back.Hostname() != "127.0.0.1" || back.Host == d.host {
		t.Fatalf("redirect_uri %s", redirect)
	}
	if status, _ := visit(redirect + "?code=x&state=guess"); status != http.StatusBadRequest {
		t.Errorf("an answer to another sign-in: status %d", status)
	}
	status, text := visit(redirect + "?" + d.authorize(t, page).Encode())
	if status != http.StatusOK || !strings.Contains(text, "close this tab") || strings.Contains(text, tokenMark) {
		t.Errorf("in the browser: %d %s", status, text)
	}
	if s := window.session(); s.User != "officer-diaz" || s.Waiting {
		t.Errorf("in the window: %+v", s)
	}
	window.want(http.StatusOK, "GET", "/api/v1/audit/events", "")
	for _, old := range []string{redirect, abandoned.Query().Get("redirect_uri")} {
		for range 50 { // the ports close after their last answer
			if status, _ = visit(old); status == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if status != 0 {
			t.Errorf("port of %s is open still", old)
		}
	}
}
