package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwt"
)

// oracle is an introspection endpoint on a real socket.
type oracle struct {
	server *httptest.Server
	calls  atomic.Int64

	mu      sync.Mutex
	answers map[string]map[string]any // by token
	instead http.HandlerFunc
	check   func(*http.Request) error
}

func newOracle(t *testing.T) *oracle {
	t.Helper()
	o := &oracle{answers: map[string]map[string]any{}}
	o.server = httptest.NewServer(o)
	t.Cleanup(o.server.Close)
	return o
}

func (o *oracle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.calls.Add(1)
	o.mu.Lock()
	instead, check := o.instead, o.check
	_ = r.ParseForm()
	answer := o.answers[r.PostForm.Get("token")]
	o.mu.Unlock()
	if instead != nil {
		instead(w, r)
		return
	}
	id, secret, ok := r.BasicAuth()
	err := error(nil)
	if check != nil {
		err = check(r)
	} else if !ok || id != "chart%3Akeep" || secret != "s%26cret" {
		err = errors.New("client")
	}
	if err != nil || r.Method != http.MethodPost || r.URL.RawQuery != "" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if answer == nil {
		answer = map[string]any{"active": false}
	}
	_, _ = w.Write(marshal(answer))
}

// says what is answered about a token: good claims with some replaced; nil takes one away.
func (o *oracle) says(token string, over map[string]any) {
	now := time.Now().Unix()
	a := map[string]any{
		"active": true, "sub": "dr-rivera", "client_id": "app", "aud": testAudience, "scope": "user/*.rs", "iat": now, "exp": now + 600,
		"token_type": "Bearer", "roles": []string{"clinician"}, "sid": "s-1", "jti": "t-1",
	}
	for k, v := range over {
		if a[k] = v; v == nil {
			delete(a, k)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers[token] = a
}

func (o *oracle) does(h http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.instead = h
}

func (o *oracle) trust(name, prefix string) IssuerConfig {
	return IssuerConfig{
		Name: name, Issuer: "https://" + name + ".example.test", Audience: testAudience, RolesInToken: true,
		Introspection: &IntrospectionConfig{URL: o.server.URL + "/introspect", ClientID: "chart:keep", Secret: []byte("s&cret"), Prefix: prefix},
	}
}

const opaqueToken = "ory_at_0123456789abcdefghijklmnopqrstuvwxyz.-_~+/ABC=="

func TestIntrospection(t *testing.T) {
	o, is := newOracle(t), newIssuer(t)
	cfg := VerifierConfig{Issuers: []IssuerConfig{is.trust(), o.trust("ory", "ory_")}, Insecure: true}
	cfg.Issuers[1].Audiences = map[Profile]string{ProfileOfficers: "https://officers.example.test"}
	v := newTestVerifier(t, cfg)
	if err := v.Healthy(); err != nil {
		t.Errorf("an issuer that is asked needs no keys: %v", err)
	}
	o.says(opaqueToken, nil)
	for range 3 {
		p, err := ask(v, opaqueToken)
		if err != nil || p.Subject != "ory|dr-rivera" || p.Client != "ory|app" || p.Issuer != "https://ory.example.test" || p.KeyID != "" ||
			!p.Scopes.Covers(LevelUser, "Patient", Read) {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	if n := o.calls.Load(); n != 1 {
		t.Errorf("asked %d times for one token, want once", n)
	}
	// Case 36: cached for one audience, it is asked about and refused on routes of another.
	if _, err := v.Authenticate(t.Context(), Credentials{Profile: ProfileOfficers, Authorization: [][]byte{[]byte("Bearer " + opaqueToken)}}); !errors.Is(err, ErrToken) {
		t.Errorf("another audience: %v", err)
	}
	// Another prefix is nobody's; a token that looks like a JWT is judged as one and not handed to anybody.
	before := o.calls.Load()
	for _, token := range []string{
		strings.Replace(opaqueToken, "ory_", "abc_", 1), is.token(nil) + "x", is.token(map[string]any{"iss": "https://evil.test"}),
		is.sign("es", `{ "alg":"RS256","kid":"es","typ":"at+jwt"}`, is.claims(nil)), is.sign("es", "{\n"+`"alg":"RS256","kid":"es","typ":"at+jwt"}`, is.claims(nil)),
	} {
		if _, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Errorf("%q: %v", token[:8], err)
		}
	}
	// A JWT of an issuer that is asked about everything goes there, and there only.
	signed := is.sign("es", `{"alg":"ES256","kid":"no such","typ":"at+jwt"}`, is.claims(map[string]any{"iss": "https://ory.example.test"}))
	o.says(signed, map[string]any{"iss": "https://ory.example.test"})
	if n := o.calls.Load(); n != before {
		t.Errorf("asked about tokens of others %d times", n-before)
	}
	if p, err := ask(v, signed); err != nil || p.Subject != "ory|dr-rivera" {
		t.Errorf("JWT of the issuer: %+v, %v", p, err)
	}
}

// TestHostileAnswers holds that an answer is judged like a token: what is not said, or said of something else, is a refusal, and what is
// no answer at all is nobody's fault but the issuer's.
func TestHostileAnswers(t *testing.T) {
	o := newOracle(t)
	v := newTestVerifier(t, VerifierConfig{Issuers: []IssuerConfig{o.trust("ory", "")}, Insecure: true})
	now := time.Now().Unix()
	refused := map[string]map[string]any{
		"unknown":            {"active": false},
		"expired":            {"iat": now - 600, "exp": now - 31},
		"no exp":             {"exp": nil},
		"no iat":             {"iat": nil},
		"future iat":         {"iat": now + 31},
		"nbf":                {"nbf": now + 31},
		"too long a life":    {"exp": now + 25*3600},
		"no aud":             {"aud": nil},
		"another aud":        {"aud": "https://other.test"},
		"another iss":        {"iss": "https://other.test"},
		"no sub":             {"sub": nil},
		"no client":          {"client_id": nil},
		"refresh token":      {"token_use": "refresh_token"},
		"refresh, Keycloak":  {"typ": "Refresh"},
		"ID token":           {"typ": "ID"},
		"N_A":                {"token_type": "N_A"},
		"unknown cnf":        {"cnf": map[string]any{"kid": "x"}},
		"bound, and not so":  {"cnf": map[string]any{"jkt": strings.Repeat("A", 43)}},
		"line break in sub":  {"sub": "a\nb"},
		"patient is no id":   {"patient": "../x"},
		"roles without end":  {"roles": make([]string, maxRoles+1)},
		"audience is object": {"aud": map[string]any{"x": testAudience}},
	}
	for name, over := range refused {
		token := b64([]byte(strings.Repeat("x", 32) + name))
		o.says(token, over)
		for range 2 {
			if p, err := ask(v, token); !errors.Is(err, ErrToken) {
				t.Errorf("%s: %+v, %v", name, p, err)
			}
		}
	}
	elsewhere := newOracle(t)
	for name, h := range map[string]http.HandlerFunc{
		"500":          func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"401":          func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"no content":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"HTML":         func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"no active":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"sub":"x"}`)) },
		"active text":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"active":"true"}`)) },
		"active twice": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"active":false,"active":true}`)) },
		"Active":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"Active":true}`)) },
		"two answers": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"active":false}{"active":true}`))
		},
		"deep": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(strings.Repeat(`{"active":[`, 500)))
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxAnswer+1)) },
		"sent on": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.server.URL, http.StatusTemporaryRedirect)
		},
		"broken off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"active":true`))
		},
		"number sub": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"active":true,"sub":1}`)) },
		"null":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`null`)) },
		"bytes of no use": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("{\"active\":true,\"sub\":\"\xff\"}"))
		},
	} {
		o.does(h)
		if p, err := ask(v, opaqueToken); !errors.Is(err, ErrIntrospection) || errors.Is(err, ErrToken) {
			t.Errorf("%s: %+v, %v; want ErrIntrospection", name, p, err)
		} else if strings.Contains(err.Error(), opaqueToken[:20]) {
			t.Errorf("%s: the error quotes the token", name)
		}
	}
	if elsewhere.calls.Load() != 0 {
		t.Error("the token was sent on")
	}
	o.does(nil)
	o.says(opaqueToken, nil)
	if _, err := ask(v, opaqueToken); err != nil {
		t.Errorf("after the issuer came back: %v", err)
	}
	for name, token := range map[string]string{"space": opaqueToken[:40] + " a", "NUL": opaqueToken[:40] + "\x00", "padding inside": "ab==" + opaqueToken, "padding": strings.Repeat("=", 40), "much padding": opaqueToken + "=="} {
		calls := o.calls.Load()
		if _, err := ask(v, token); !errors.Is(err, ErrToken) || o.calls.Load() != calls {
			t.Errorf("%s: %v, asked %d times", name, err, o.calls.Load()-calls)
		}
	}
}

// TestIntrospectionIsBounded holds that an issuer which hangs is asked by so many at once, that others are told to come back, within the
// time that a question may take, and that many who carry one token ask once.
func TestIntrospectionIsBounded(t *testing.T) {
	o, is := newOracle(t), newIssuer(t)
	v := newTestVerifier(t, VerifierConfig{Issuers: []IssuerConfig{is.trust(), o.trust("ory", "")}, Insecure: true})
	warm := is.token(nil)
	if _, err := ask(v, warm); err != nil {
		t.Fatal(err)
	}
	var most, now atomic.Int64
	release := make(chan struct{})
	o.does(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		defer now.Add(-1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	began := time.Now()
	var all sync.WaitGroup
	for i := range 4 * askAtOnce {
		all.Go(func() {
			if _, err := ask(v, fmt.Sprint(opaqueToken[:40], i/2)); !errors.Is(err, ErrIntrospection) && !errors.Is(err, ErrOverload) {
				t.Errorf("got %v", err)
			}
		})
	}
	worst := time.Duration(0)
	for range 100 {
		at := time.Now()
		if _, err := ask(v, warm); err != nil {
			t.Error(err)
		}
		worst = max(worst, time.Since(at))
		time.Sleep(time.Millisecond)
	}
	all.Wait()
	close(release)
	if took := time.Since(began); took > 2*askTimeout {
		t.Errorf("refused after %v", took)
	}
	if most.Load() > askAtOnce {
		t.Errorf("%d at once", most.Load())
	}
	if n := o.calls.Load(); n > 2*askAtOnce {
		t.Errorf("%d calls for %d tokens", n, 2*askAtOnce)
	}
	if worst > 100*time.Millisecond {
		t.Errorf("a cached token waited %v", worst)
	}
}

// TestIntrospectionCache holds that an answer counts for a minute at most, never beyond the token's end, and dies with a revocation.
func TestIntrospectionCache(t *testing.T) {
	o, clk := newOracle(t), &clock{}
	v := newTestVerifier(t, VerifierConfig{Issuers: []IssuerConfig{o.trust("ory", "")}, Insecure: true, Now: clk.now, CacheFor: time.Hour})
	now := clk.now().Unix()
	short, long := opaqueToken+"=", opaqueToken // padding aside, the same: two tokens all the same
	short = strings.Replace(short, "===", "s", 1)
	o.says(short, map[string]any{"exp": now + 5, "jti": "short"})
	o.says(long, nil)
	ok := func(token string, calls int64) {
		t.Helper()
		if _, err := ask(v, token); err != nil || o.calls.Load() != calls {
			t.Errorf("%v after %d calls, want %d", err, o.calls.Load(), calls)
		}
	}
	ok(short, 1)
	ok(long, 2)
	ok(short, 2)
	clk.advance(6 * time.Second)
	ok(short, 3) // within the leeway: asked again, every time
	ok(short, 4)
	ok(long, 4)
	clk.advance(55 * time.Second)
	ok(long, 5)
	o.says(long, map[string]any{"active": false})
	ok(long, 5) // nobody told us
	clk.advance(61 * time.Second)
	if _, err := ask(v, long); !errors.Is(err, ErrToken) {
		t.Errorf("after a minute: %v", err)
	}
	o.says(long, nil)
	ok(long, 7)
	if err := v.revoked.Revoke(context.Background(), Revocation{Kind: RevokeSession, ID: "ory|s-1", Reason: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := ask(v, long); !errors.Is(err, ErrToken) {
			t.Errorf("revoked: %v", err)
		}
	}
	// Without jti a token is known by a digest, which can be revoked as well.
	o.says(long, map[string]any{"jti": nil, "sid": "s-2"})
	p, err := ask(v, long)
	if err != nil || !strings.HasPrefix(p.TokenID, "sha256:") {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := v.revoked.Revoke(context.Background(), Revocation{Kind: RevokeToken, ID: p.TokenID, Reason: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(v, long); !errors.Is(err, ErrToken) {
		t.Errorf("revoked by its digest: %v", err)
	}
}

// TestClientAssertion holds that private_key_jwt is what another library takes for one, for each kind of key, and never the same twice.
func TestClientAssertion(t *testing.T) {
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	o := newOracle(t)
	for alg, change := range map[jwa.SignatureAlgorithm]func(*IntrospectionConfig){
		jwa.ES256: func(c *IntrospectionConfig) { c.Key = ec },
		jwa.EdDSA: func(c *IntrospectionConfig) { c.Key = ed },
		jwa.PS256: func(c *IntrospectionConfig) { c.Key, c.KeyID = rs, "k1" },
	} {
		is := o.trust("ory", "")
		is.Introspection.Secret, is.Introspection.ClientID = nil, "chartkeep"
		change(is.Introspection)
		seen := map[string]bool{}
		o.check = func(r *http.Request) error {
			if _, _, ok := r.BasicAuth(); ok || r.PostForm.Get("client_id") != "chartkeep" ||
				r.PostForm.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
				return errors.New("client")
			}
			parsed, err := jwt.ParseString(r.PostForm.Get("client_assertion"), jwt.WithKey(alg, is.Introspection.Key.Public()), jwt.WithIssuer("chartkeep"),
				jwt.WithSubject("chartkeep"), jwt.WithAudience(is.Issuer), jwt.WithRequiredClaim("exp"), jwt.WithRequiredClaim("iat"))
			if err != nil || seen[parsed.JwtID()] || time.Until(parsed.Expiration()) > assertionFor {
				return fmt.Errorf("assertion: %w", err)
			}
			seen[parsed.JwtID()] = true
			return nil
		}
		v := newTestVerifier(t, VerifierConfig{Issuers: []IssuerConfig{is}, Insecure: true})
		for i := range 2 {
			token := fmt.Sprint(opaqueToken[:40], i)
			o.says(token, nil)
			if _, err := ask(v, token); err != nil {
				t.Errorf("%s: %v", alg, err)
			}
		}
	}
}

func TestIntrospectionConfig(t *testing.T) {
	weak, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*IntrospectionConfig){
		"http":           func(c *IntrospectionConfig) { c.URL = "http://id.example.test/introspect" },
		"no client":      func(c *IntrospectionConfig) { c.ClientID = "" },
		"no secret":      func(c *IntrospectionConfig) { c.Secret = nil },
		"two secrets":    func(c *IntrospectionConfig) { c.Key = weak },
		"another curve":  func(c *IntrospectionConfig) { c.Secret, c.Key = nil, weak },
		"cached for ten": func(c *IntrospectionConfig) { c.CacheFor = 10 * time.Minute },
	} {
		is := IssuerConfig{
			Issuer: "https://id.example.test", Audience: "a",
			Introspection: &IntrospectionConfig{URL: "https://id.example.test/introspect", ClientID: "c", Secret: []byte("s")},
		}
		change(is.Introspection)
		if _, err := NewVerifier(VerifierConfig{Issuers: []IssuerConfig{is}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	is := func(name, prefix string) IssuerConfig {
		return IssuerConfig{
			Name: name, Issuer: "https://" + name, Audience: "a",
			Introspection: &IntrospectionConfig{URL: "https://id.example.test/introspect", ClientID: "c", Secret: []byte("s"), Prefix: prefix},
		}
	}
	if _, err := NewVerifier(VerifierConfig{Issuers: []IssuerConfig{is("a", "x_"), is("b", "x_")}}); err == nil {
		t.Error("one prefix for two issuers: accepted")
	}
	v, err := NewVerifier(VerifierConfig{Issuers: []IssuerConfig{is("a", "x_"), is("b", "x_y_"), is("c", "")}})
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{"x_1": "a", "x_y_1": "b", "z": "c", "eyJhbGciOiJub25lIn0": "c", "eyJ.a": "c"} {
		if signed([]byte(token)) {
			t.Errorf("%s is taken for a JWT", token)
		}
		if got := v.issuerOfOpaque([]byte(token)); got == nil || got.Name != want {
			t.Errorf("%s: goes to %v, want %s", token, got, want)
		}
	}
}

// FuzzIntrospection holds that no answer crashes the reader, and that one which is accepted says all that it must.
func FuzzIntrospection(f *testing.F) {
	for _, seed := range []string{
		`{"active":true,"sub":"s","client_id":"c","aud":"a","iat":1,"exp":2}`, `{"active":false}`, `{"active":true,"active":false}`, `[]`, `{"active":true,"aud":["a"],"cnf":{}}`,
	} {
		f.Add([]byte(seed))
	}
	is := trusted{IssuerConfig: IssuerConfig{Issuer: "i", Audience: "a", Leeway: 30 * time.Second, MaxLifetime: time.Hour}}
	f.Fuzz(func(t *testing.T, answer []byte) {
		p, err := is.asked(answer, []byte("token"), ProfileFHIR, time.Unix(1, 0))
		if err != nil {
			return
		}
		var said map[string]any
		if json.Unmarshal(answer, &said) != nil || said["active"] != true || said["sub"] != p.Subject || p.Subject == "" || p.Issuer != "i" || p.TokenID == "" || p.Session == "" {
			t.Fatalf("accepted %q as %+v", answer, p)
		}
	})
}
