package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// fetchNow waits for one refresh.
func fetchNow(v *Verifier) { <-v.issuers[0].keys.refresh() }

func TestKeysFollowTheIssuer(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	if err := v.Healthy(); !errors.Is(err, ErrKeys) {
		t.Errorf("healthy before any fetch: %v", err)
	}
	old := is.token(nil)
	if _, err := ask(v, old); err != nil {
		t.Fatalf("first token, keys fetched on demand: %v", err)
	}
	if err := v.Healthy(); err != nil {
		t.Error(err)
	}

	is.addEC("next")
	next := is.sign("next", strings.Replace(esHeader, `"es"`, `"next"`, 1), is.claims(nil))
	if _, err := ask(v, next); err != nil {
		t.Fatalf("token of a key that was just published: %v", err)
	}
	if got := v.Stats().Issuers[0]; got.Keys != 2 || is.fetches.Load() != 2 {
		t.Errorf("%d keys after %d fetches, want 2 and 2", got.Keys, is.fetches.Load())
	}
	if _, err := ask(v, old); err != nil || v.Stats().Hits != 1 {
		t.Errorf("a key that stayed lost its cached token: %v", err)
	}

	is.remove("es") // case 42
	fetchNow(v)
	if _, err := ask(v, old); !errors.Is(err, ErrToken) {
		t.Errorf("cached token of a withdrawn key: %v, want ErrToken", err)
	}
	if _, err := ask(v, next); err != nil {
		t.Errorf("token of the other key: %v", err)
	}

	is.add("next", is.private["es"], ecJWK(&is.private["es"].(*ecdsa.PrivateKey).PublicKey))
	fetchNow(v)
	if _, err := ask(v, next); !errors.Is(err, ErrToken) {
		t.Errorf("cached token of a key whose id was given to another: %v, want ErrToken", err)
	}
}

// TestUnknownKeyIDs is case 19: ids that anybody can make up do not become requests to the issuer.
func TestUnknownKeyIDs(t *testing.T) {
	is := newIssuer(t)
	clk := &clock{}
	cfg := is.config()
	cfg.Now = clk.now
	v := newTestVerifier(t, cfg)
	fetchNow(v)
	for i := range 500 {
		token := is.sign("es", fmt.Sprintf(`{"alg":"ES256","kid":"k%d","typ":"at+jwt"}`, i), is.claims(nil))
		if _, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Fatalf("got %v, want ErrToken", err)
		}
	}
	if n := is.fetches.Load(); n != 2 {
		t.Errorf("%d fetches for 500 unknown ids, want 2", n)
	}
	clk.advance(demandEvery + time.Second)
	_, _ = ask(v, is.sign("es", `{"alg":"ES256","kid":"later","typ":"at+jwt"}`, is.claims(nil)))
	if n := is.fetches.Load(); n != 3 {
		t.Errorf("%d fetches half a minute later, want 3", n)
	}
}

// TestIssuerHangs holds that a hanging issuer delays nobody whose key is there, and others by half a second at most.
func TestIssuerHangs(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	fetchNow(v)
	release := make(chan struct{})
	defer close(release)
	is.answers(func(http.ResponseWriter, *http.Request) { <-release })
	refreshing := v.issuers[0].keys.refresh()

	worst := time.Duration(0)
	for i := range 50 {
		token := is.token(map[string]any{"jti": fmt.Sprint("t-", i)})
		began := time.Now()
		if _, err := ask(v, token); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(began))
	}
	if worst > 100*time.Millisecond {
		t.Errorf("worst verification took %v while the issuer hung", worst)
	}
	began := time.Now()
	if _, err := ask(v, is.sign("es", `{"alg":"ES256","kid":"new","typ":"at+jwt"}`, is.claims(nil))); !errors.Is(err, ErrToken) {
		t.Errorf("unknown key id: %v", err)
	}
	if took := time.Since(began); took < demandWait/2 || took > 2*demandWait {
		t.Errorf("unknown key id waited %v, want about %v", took, demandWait)
	}
	select {
	case <-refreshing:
		t.Error("the issuer did not hang")
	default:
	}
}

// TestBadDocuments plays cases 38, 39 and 41: the old keys stay in force.
func TestBadDocuments(t *testing.T) {
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
	}
	one, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	two, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	jwk := func(k *ecdsa.PrivateKey, kid string) string {
		m := ecJWK(&k.PublicKey)
		m["kid"] = kid
		return string(marshal(m))
	}
	many := strings.Repeat(jwk(one, "same")+",", maxKeys) + jwk(one, "same")
	elsewhere := newIssuer(t)
	for name, answer := range map[string]http.HandlerFunc{
		"html":          text("<html>maintenance</html>"),
		"empty set":     text(`{"keys":[]}`),
		"no keys":       text(`{}`),
		"null":          text(`null`),
		"one id twice":  text(`{"keys":[` + jwk(one, "twin") + `,` + jwk(two, "twin") + `]}`),
		"too many keys": text(`{"keys":[` + many + `]}`),
		"5 MiB":         text(`{"keys":[` + jwk(one, "a") + `],"x":"` + strings.Repeat("x", 5<<20) + `"}`),
		"two documents": text(`{"keys":[` + jwk(one, "a") + `]}{}`),
		"keys twice":    text(`{"keys":[` + jwk(one, "a") + `],"keys":[]}`),
		"nested":        text(strings.Repeat(`{"keys":[`, 3000)),
		"500":           func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"304 unasked":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
		"other host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.server.URL, http.StatusFound)
		},
		"metadata host": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		},
		"slow drip": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			is := newIssuer(t)
			cfg := is.config()
			cfg.Client = &http.Client{Timeout: 300 * time.Millisecond}
			v := newTestVerifier(t, cfg)
			fetchNow(v)
			is.answers(answer)
			before := v.issuers[0].keys.current.Load()
			fetchNow(v)
			if v.issuers[0].keys.current.Load() != before {
				t.Fatal("the document replaced the keys")
			}
			if is.fetches.Load() != 2 || elsewhere.fetches.Load() != 0 {
				t.Errorf("%d fetches, %d elsewhere", is.fetches.Load(), elsewhere.fetches.Load())
			}
			if _, err := ask(v, is.token(nil)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUnfitKeys is case 40: keys are judged one by one, and a good one among them works.
func TestUnfitKeys(t *testing.T) {
	is := newIssuer(t)
	good := is.public["es"]
	modulus := func(bits int) string {
		b := make([]byte, bits/8)
		_, _ = rand.Read(b)
		b[0], b[len(b)-1] = b[0]|0x80, b[len(b)-1]|1
		return b64(b)
	}
	with := func(name string, value any) map[string]any {
		m := map[string]any{"kid": "x"}
		for k, v := range good {
			if k != "kid" {
				m[k] = v
			}
		}
		m[name] = value
		return m
	}
	for name, k := range map[string]map[string]any{
		"RSA 512":        {"kty": "RSA", "n": modulus(512), "e": "AQAB"},
		"RSA 1024":       {"kty": "RSA", "n": modulus(1024), "e": "AQAB"},
		"RSA 16384":      {"kty": "RSA", "n": modulus(16384), "e": "AQAB"},
		"e 1":            {"kty": "RSA", "n": modulus(2048), "e": "AQ"},
		"e 3":            {"kty": "RSA", "n": modulus(2048), "e": "Aw"},
		"e even":         {"kty": "RSA", "n": modulus(2048), "e": b64([]byte{1, 0, 2})},
		"RS384":          {"kty": "RSA", "n": modulus(2048), "e": "AQAB", "alg": "RS384"},
		"RSA1_5":         {"kty": "RSA", "n": modulus(2048), "e": "AQAB", "alg": "RSA1_5"},
		"oct":            {"kty": "oct", "k": b64(make([]byte, 32)), "alg": "HS256"},
		"post-quantum":   {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
		"X25519":         {"kty": "OKP", "crv": "X25519", "x": b64(make([]byte, 32))},
		"Ed25519 short":  {"kty": "OKP", "crv": "Ed25519", "x": b64(make([]byte, 31))},
		"no material":    {"kty": "EC"},
		"private":        with("d", b64(make([]byte, 32))),
		"off the curve":  with("x", b64(make([]byte, 32))),
		"another curve":  with("crv", "P-384"),
		"for encryption": with("use", "enc"),
		"for signing":    with("key_ops", []string{"sign"}),
		"HS256":          with("alg", "HS256"),
		"none":           with("alg", "none"),
		"no kid":         with("kid", nil),
		"long kid":       with("kid", strings.Repeat("k", maxKeyID+1)),
		"kid with NUL":   with("kid", "a\x00"),
	} {
		if _, present := k["kid"]; !present {
			k["kid"] = "x"
		}
		v := newTestVerifier(t, is.config())
		is.answers(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(marshal(map[string]any{"keys": []any{k, good}}))
		})
		fetchNow(v)
		if n := v.Stats().Issuers[0].Keys; n != 1 {
			t.Errorf("%s: %d keys, want the good one alone", name, n)
		}
		if _, err := ask(v, is.token(nil)); err != nil {
			t.Errorf("%s: good key beside it: %v", name, err)
		}
	}
	if k, err := parseKey(marshal(map[string]any{"kty": "RSA", "kid": "x", "n": modulus(2048), "e": "AQAB"}), knownAlgorithms()); err != nil || k.alg != "RS256" {
		t.Errorf("RSA key without alg: %v, %v; want RS256", k, err)
	}
	if k, err := parseKey(marshal(map[string]any{"kty": "RSA", "kid": "x", "n": modulus(2048), "e": "AQAB"}), []string{"PS256"}); err != nil || k.alg != "PS256" {
		t.Errorf("RSA key without alg where only PS256 is allowed: %v, %v", k, err)
	}
}

// TestIssuerDown is case 48: old keys serve a day, not longer.
func TestIssuerDown(t *testing.T) {
	is := newIssuer(t)
	clk := &clock{}
	cfg := is.config()
	cfg.Now = clk.now
	v := newTestVerifier(t, cfg)
	fetchNow(v)
	is.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	fresh := func() string {
		now := clk.now().Unix()
		return is.token(map[string]any{"iat": now, "exp": now + 600, "auth_time": now})
	}
	clk.advance(23 * time.Hour)
	if _, err := ask(v, fresh()); err != nil || v.Healthy() != nil {
		t.Errorf("after 23 h: %v, healthy %v", err, v.Healthy())
	}
	if _, err := ask(v, is.sign("es", strings.Replace(esHeader, `"es"`, `"new"`, 1), is.claims(nil))); !errors.Is(err, ErrToken) {
		t.Errorf("unknown key id while the issuer is down: %v, want ErrToken", err)
	}
	clk.advance(2 * time.Hour)
	if _, err := ask(v, fresh()); !errors.Is(err, ErrKeys) || !errors.Is(v.Healthy(), ErrKeys) {
		t.Errorf("after 25 h: %v, healthy %v; want ErrKeys", err, v.Healthy())
	}
	is.answers(nil)
	clk.advance(lastBackoff)
	if _, err := ask(v, fresh()); err != nil {
		t.Errorf("after the issuer came back: %v", err)
	}
}

func TestColdStartWhileIssuerIsDown(t *testing.T) {
	is := newIssuer(t)
	is.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	v := newTestVerifier(t, is.config())
	for range 5 {
		if _, err := ask(v, is.token(nil)); !errors.Is(err, ErrKeys) {
			t.Fatalf("got %v, want ErrKeys", err)
		}
	}
	if n := is.fetches.Load(); n != 1 {
		t.Errorf("%d fetches in a row, want 1 until the back-off is over", n)
	}
	is.answers(nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- v.Run(ctx) }()
	deadline := time.Now().Add(3 * time.Second)
	for v.Healthy() != nil && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := ask(v, is.token(nil)); err != nil {
		t.Errorf("after the issuer came up: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	is := newIssuer(t)
	defer is.server.Close()
	hang := make(chan struct{})
	is.answers(func(_ http.ResponseWriter, r *http.Request) {
		close(hang)
		<-r.Context().Done()
	})
	v := newTestVerifier(t, is.config())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- v.Run(ctx) }()
	<-hang // ending in the middle of a fetch is the hard case
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := ask(v, is.token(nil)); !errors.Is(err, ErrKeys) {
		t.Errorf("after Run: %v, want ErrKeys", err)
	}
}

func TestUnchangedKeysAreNotSentAgain(t *testing.T) {
	is := newIssuer(t)
	clk := &clock{}
	cfg := is.config()
	cfg.Now = clk.now
	v := newTestVerifier(t, cfg)
	full := 0
	is.answers(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		if r.Header.Get("If-None-Match") == `"one"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		full++
		_, _ = w.Write(is.document())
	})
	fetchNow(v)
	first := v.Stats().Issuers[0].KeysFetched
	clk.advance(time.Hour)
	fetchNow(v)
	if got := v.Stats().Issuers[0]; full != 1 || got.Keys != 1 || !got.KeysFetched.After(first.Add(59*time.Minute)) {
		t.Errorf("sent %d times, %d keys, fetched %v", full, got.Keys, got.KeysFetched)
	}
}

func TestFreshFor(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"":                              15 * time.Minute,
		"max-age=1":                     5 * time.Minute,
		"public, Max-Age=1200":          20 * time.Minute,
		"max-age=86400":                 time.Hour,
		"max-age=-1":                    15 * time.Minute,
		"max-age=99999999999999999999":  15 * time.Minute,
		"no-store, max-age=3600":        5 * time.Minute,
		"stale-while-revalidate=999999": 15 * time.Minute,
	} {
		if got := freshFor(header); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func TestVerifierConfig(t *testing.T) {
	good := func() VerifierConfig {
		return VerifierConfig{Issuers: []IssuerConfig{{Issuer: "https://issuer.test", Audience: "a", JWKSURL: "https://issuer.test/jwks"}}}
	}
	second := IssuerConfig{Name: "second", Issuer: "https://second.test", Audience: "a", JWKSURL: "https://second.test/jwks"}
	for name, change := range map[string]func(*VerifierConfig, *IssuerConfig){
		"none at all":      func(c *VerifierConfig, _ *IssuerConfig) { c.Issuers = nil },
		"no issuer":        func(_ *VerifierConfig, is *IssuerConfig) { is.Issuer = "" },
		"no audience":      func(_ *VerifierConfig, is *IssuerConfig) { is.Audience = "" },
		"no URL":           func(_ *VerifierConfig, is *IssuerConfig) { is.JWKSURL = "" },
		"http":             func(_ *VerifierConfig, is *IssuerConfig) { is.JWKSURL = "http://issuer.test/jwks" },
		"http, insecure":   func(c *VerifierConfig, is *IssuerConfig) { is.JWKSURL, c.Insecure = "http://issuer.test/jwks", true },
		"loopback, secure": func(_ *VerifierConfig, is *IssuerConfig) { is.JWKSURL = "http://127.0.0.1/jwks" },
		"file": func(c *VerifierConfig, is *IssuerConfig) {
			is.JWKSURL, c.Insecure = "file://localhost/etc/passwd", true
		},
		"password":        func(_ *VerifierConfig, is *IssuerConfig) { is.JWKSURL = "https://a:b@issuer.test/jwks" },
		"HS256":           func(_ *VerifierConfig, is *IssuerConfig) { is.Algorithms = []string{"HS256"} },
		"none":            func(_ *VerifierConfig, is *IssuerConfig) { is.Algorithms = []string{"none"} },
		"logout tokens":   func(_ *VerifierConfig, is *IssuerConfig) { is.Types = []string{"logout+jwt"} },
		"negative leeway": func(_ *VerifierConfig, is *IssuerConfig) { is.Leeway = -1 },
		"short staleness": func(_ *VerifierConfig, is *IssuerConfig) { is.StaleFor = minStale - 1 },
		"unknown binding": func(_ *VerifierConfig, is *IssuerConfig) { is.Binding = "tls" },
		"roles, and none": func(_ *VerifierConfig, is *IssuerConfig) { is.Roles = []string{"patient"} },
		"bad name":        func(_ *VerifierConfig, is *IssuerConfig) { is.Name = "a|b" },
		"long name":       func(_ *VerifierConfig, is *IssuerConfig) { is.Name = strings.Repeat("a", 33) },
		"empty audience":  func(_ *VerifierConfig, is *IssuerConfig) { is.Audiences = map[Profile]string{ProfileFHIR: ""} },
		"one name twice": func(c *VerifierConfig, _ *IssuerConfig) {
			second := second
			second.Name = ""
			c.Issuers = append(c.Issuers, second)
		},
		"one issuer twice": func(c *VerifierConfig, is *IssuerConfig) {
			second := second
			second.Issuer = is.Issuer
			c.Issuers = append(c.Issuers, second)
		},
		"loopback lookalike": func(c *VerifierConfig, is *IssuerConfig) {
			is.JWKSURL, c.Insecure = "http://127.0.0.1.evil.test/", true
		},
	} {
		cfg := good()
		change(&cfg, &cfg.Issuers[0])
		if _, err := NewVerifier(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	cfg := good()
	cfg.Issuers = append(cfg.Issuers, second)
	if _, err := NewVerifier(cfg); err != nil {
		t.Error(err)
	}
}
