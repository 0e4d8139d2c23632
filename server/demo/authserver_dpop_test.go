package demo

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

func (b *bench) holder(name string) *Holder {
	b.Helper()
	h, err := OpenHolder(filepath.Join(b.dir, name))
	if err != nil {
		b.Fatal(err)
	}
	return h
}

// prove makes a proof for the token endpoint.
func (b *bench) prove(h *Holder) string {
	b.Helper()
	proof, err := h.Proof("POST", b.issuer+"/token", "", "", b.now)
	if err != nil {
		b.Fatal(err)
	}
	return proof
}

// show posts a form to the token endpoint with proofs.
func (b *bench) show(form url.Values, proofs ...string) (int, map[string]any) {
	b.Helper()
	r, _ := http.NewRequestWithContext(b.Context(), "POST", b.issuer+"/token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, p := range proofs {
		r.Header.Add("DPoP", p)
	}
	res, body := b.do(r)
	var answer map[string]any
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		b.Fatalf("answers %s", body)
	}
	return res.StatusCode, answer
}

// ask is an authorization request with something more.
func ask(scope string, more ...string) url.Values {
	q := request(scope)
	for name, values := range form(more...) {
		q[name] = values
	}
	return q
}

func redemption(code string) url.Values {
	return form("grant_type", "authorization_code", "code", code, "client_id", "my-app", "redirect_uri", testRedirect, "code_verifier", testVerifier)
}

func renewal(refresh string) url.Values {
	return form("grant_type", "refresh_token", "refresh_token", refresh, "client_id", "my-app")
}

// TestBoundTokens holds RFC 9449 section 5: what is issued to somebody who shows a key is bound to it, the refresh token too, and the
// resource server's verifier takes it with a proof only.
func TestBoundTokens(t *testing.T) {
	b := newBench(t)
	mine, thief := b.holder("mine.json"), b.holder("thief.json")
	status, got := b.show(redemption(b.code("dr-rivera", "user/*.rs offline_access")), b.prove(mine))
	if status != 200 || got["token_type"] != "DPoP" {
		t.Fatalf("%d %v", status, got)
	}
	_, claims := claimsOf(t, got["access_token"].(string))
	if cnf, _ := claims["cnf"].(map[string]any); cnf["jkt"] != mine.Thumbprint() {
		t.Errorf("cnf is %v", claims["cnf"])
	}
	refresh := got["refresh_token"].(string)
	for name, proofs := range map[string][]string{"without proof": nil, "a thief's proof": {b.prove(thief)}} {
		if status, got := b.show(renewal(refresh), proofs...); status != 400 || got["error"] != "invalid_grant" {
			t.Errorf("refresh %s: %d %v", name, status, got)
		}
	}
	b.open() // the binding survives a restart
	if status, got = b.show(renewal(refresh), b.prove(mine)); status != 200 || got["token_type"] != "DPoP" {
		t.Fatalf("refresh: %d %v", status, got)
	}
	b.verified(mine, got["access_token"].(string))
}

// verified asks the resource server's own verifier.
func (b *bench) verified(h *Holder, token string) {
	b.Helper()
	v, err := auth.NewVerifier(auth.VerifierConfig{Issuers: []auth.IssuerConfig{{
		Issuer: b.issuer, Audience: testAudience, JWKSURL: b.issuer + "/jwks", AssertsSignIn: true, RolesInToken: true, Binding: auth.BindingDPoP,
	}}, Insecure: true})
	if err != nil {
		b.Fatal(err)
	}
	const target = testAudience + "/Patient/p-1"
	show := func(nonce string) (*auth.Principal, error) {
		proof, err := h.Proof("GET", target, token, nonce, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		return v.Authenticate(context.Background(), auth.Credentials{
			Authorization: [][]byte{[]byte("DPoP " + token)}, Proofs: [][]byte{[]byte(proof)}, Method: "GET", URL: target,
		})
	}
	if _, err := show(""); !errors.Is(err, auth.ErrNonce) {
		b.Errorf("without nonce: %v", err)
	}
	if p, err := show(v.Nonce(nil)); err != nil || p.Confirmation.Key != h.Thumbprint() {
		b.Errorf("with nonce: %v", err)
	}
}

func TestProofsRefused(t *testing.T) {
	b := newBench(t)
	h := b.holder("mine.json")
	used := b.prove(h)
	if status, _ := b.show(redemption(b.code("dr-rivera", "user/*.rs")), used); status != 200 {
		t.Fatal(status)
	}
	otherwise := func(method, target string, at time.Time) string {
		proof, err := h.Proof(method, target, "", "", at)
		if err != nil {
			t.Fatal(err)
		}
		return proof
	}
	good := b.prove(h)
	for name, proofs := range map[string][]string{
		"used before": {used},
		"two":         {b.prove(h), b.prove(h)},
		"empty":       {""},
		"GET":         {otherwise("GET", b.issuer+"/token", b.now)},
		"another URL": {otherwise("POST", b.issuer+"/revoke", b.now)},
		"old":         {otherwise("POST", b.issuer+"/token", b.now.Add(-2*time.Minute))},
		"future":      {otherwise("POST", b.issuer+"/token", b.now.Add(2*time.Minute))},
		"broken":      {good[:len(good)-4] + "AAAA"},
		"no JWS":      {"abc"},
		"a JWT of ours": {func() string {
			_, got := b.redeem(b.code("dr-rivera", "user/*.rs"))
			return got["access_token"].(string)
		}()},
	} {
		status, got := b.show(redemption(b.code("dr-rivera", "user/*.rs")), proofs...)
		if status != 400 || got["error"] != "invalid_dpop_proof" {
			t.Errorf("%s: %d %v", name, status, got)
		}
	}
	// A code that was asked for with a key is exchanged with that key only (RFC 9449 section 10).
	for proof, want := range map[string]int{"": 400, b.prove(b.holder("other.json")): 400, b.prove(h): 200} {
		answer := b.login("dr-rivera", "", ask("user/*.rs", "dpop_jkt", h.Thumbprint()))
		var shown []string
		if proof != "" {
			shown = []string{proof}
		}
		if status, got := b.show(redemption(answer.Get("code")), shown...); status != want {
			t.Errorf("code that is bound to a key: %d %v", status, got)
		}
	}
}

// TestSignInClasses holds RFC 9470 section 5: what was asked for is what the token says, or there is no token; and the time of the
// sign-in stays what it was when the token is refreshed.
func TestSignInClasses(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct{ persona, wanted, acr, refused string }{
		{"dr-rivera", "", acrTwo, ""},
		{"dr-rivera", acrTwo, acrTwo, ""},
		{"dr-rivera", acrPassword, acrPassword, ""},
		{"dr-rivera", "urn:other:high " + acrPassword, acrPassword, ""},
		{"dr-rivera", "urn:other:high", "", "unmet_authentication_requirements"},
		{"patient-1", acrTwo, "", "unmet_authentication_requirements"},
		{"patient-1", "", acrPassword, ""},
	} {
		answer := b.login(c.persona, "p-1", ask("patient/*.rs user/*.rs offline_access", "acr_values", c.wanted, "max_age", "0", "prompt", "login"))
		if answer.Get("error") != c.refused {
			t.Errorf("%s asked for %q: %v", c.persona, c.wanted, answer)
		}
		if c.refused != "" {
			continue
		}
		signedIn := b.now.Unix()
		_, got := b.redeem(answer.Get("code"))
		_, claims := claimsOf(t, got["access_token"].(string))
		if claims["acr"] != c.acr || claims["auth_time"] != float64(signedIn) {
			t.Errorf("%s asked for %q: acr %v, auth_time %v", c.persona, c.wanted, claims["acr"], claims["auth_time"])
		}
		b.now = b.now.Add(20 * time.Minute)
		_, got = b.refresh(got["refresh_token"].(string))
		if _, claims = claimsOf(t, got["access_token"].(string)); claims["acr"] != c.acr || claims["auth_time"] != float64(signedIn) {
			t.Errorf("refreshed: acr %v, auth_time %v, signed in at %d", claims["acr"], claims["auth_time"], signedIn)
		}
	}
	for name, q := range map[string]url.Values{
		"max_age is no number": ask("user/*.rs", "max_age", "-1"), "max_age is text": ask("user/*.rs", "max_age", "soon"),
		"thumbprint": ask("user/*.rs", "dpop_jkt", "short"),
	} {
		r, _ := http.NewRequestWithContext(b.Context(), "GET", b.issuer+"/authorize?"+q.Encode(), nil)
		res, _ := b.do(r)
		if at, err := res.Location(); err != nil || at.Query().Get("error") != "invalid_request" {
			t.Errorf("%s: %d %v", name, res.StatusCode, at)
		}
	}
}

// TestMinted holds that what is minted says what was asked for.
func TestMinted(t *testing.T) {
	b := newBench(t)
	h := b.holder("mine.json")
	token, err := b.Mint("dr-rivera", Minted{ACR: acrPassword, AuthAge: time.Hour, Key: h.Thumbprint()})
	if err != nil {
		t.Fatal(err)
	}
	_, claims := claimsOf(t, token)
	if claims["acr"] != acrPassword || claims["auth_time"] != float64(b.now.Add(-time.Hour).Unix()) {
		t.Errorf("acr %v, auth_time %v", claims["acr"], claims["auth_time"])
	}
	b.verified(h, token)
}
