package auth

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"
)

// TestAhead holds that a token in use is verified again before its time in the cache is over, by nobody's request, and that what is then
// refused is gone at once.
func TestAhead(t *testing.T) {
	o, is, clk := newOracle(t), newIssuer(t), &clock{}
	v := newTestVerifier(t, VerifierConfig{Issuers: []IssuerConfig{is.trust(), o.trust("ory", "")}, Insecure: true, Now: clk.now})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { v.renewAll(ctx) })
	defer running.Wait()
	defer cancel()
	eventually := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	cached := func(token string) *verified { return v.cache.get(v.hasher.digest("", []byte(token))) }
	signed := is.token(nil)
	o.says(opaqueToken, nil)
	for _, token := range []string{signed, opaqueToken} {
		if _, err := ask(v, token); err != nil {
			t.Fatal(err)
		}
	}
	clk.advance(50 * time.Second)
	for _, token := range []string{signed, opaqueToken} { // too early
		if _, err := ask(v, token); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.ahead) != 0 || o.calls.Load() != 1 {
		t.Errorf("%d are to be verified again after 50 of 60 seconds, the issuer was asked %d times", len(v.ahead), o.calls.Load())
	}
	clk.advance(5 * time.Second)
	for _, token := range []string{signed, opaqueToken} {
		was := cached(token)
		for range 20 {
			if _, err := ask(v, token); err != nil {
				t.Fatal(err)
			}
		}
		eventually("not verified ahead of its time", func() bool { e := cached(token); return e != nil && e != was })
	}
	if got := v.Stats(); got.Misses != 2 || o.calls.Load() != 2 {
		t.Errorf("%d misses, want 2; the issuer was asked %d times, want twice", got.Misses, o.calls.Load())
	}
	clk.advance(50 * time.Second) // beyond the first entries, within the second
	if _, err := ask(v, signed); err != nil || v.Stats().Misses != 2 {
		t.Errorf("%v, %d misses", err, v.Stats().Misses)
	}

	clk.advance(5 * time.Second)
	o.says(opaqueToken, map[string]any{"active": false})
	if _, err := ask(v, opaqueToken); err != nil {
		t.Errorf("within its time: %v", err)
	}
	eventually("a token that was refused ahead is still cached", func() bool { return cached(opaqueToken) == nil })
	if _, err := ask(v, opaqueToken); !errors.Is(err, ErrToken) {
		t.Errorf("got %v, want ErrToken", err)
	}
	// An issuer that is down changes nothing before the time is over.
	o.says(opaqueToken, map[string]any{"sid": "s-9"})
	if _, err := ask(v, opaqueToken); err != nil {
		t.Fatal(err)
	}
	o.does(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	clk.advance(55 * time.Second)
	calls := o.calls.Load()
	for range 20 {
		if _, err := ask(v, opaqueToken); err != nil {
			t.Errorf("within its time, issuer down: %v", err)
		}
	}
	eventually("the issuer was not asked", func() bool { return o.calls.Load() > calls })
	clk.advance(6 * time.Second)
	if _, err := ask(v, opaqueToken); !errors.Is(err, ErrIntrospection) {
		t.Errorf("after its time, issuer down: %v", err)
	}
}

// TestAheadIsBounded holds that tokens which wait to be verified again take a fixed room, whoever runs.
func TestAheadIsBounded(t *testing.T) {
	is, clk := newIssuer(t), &clock{}
	cfg := is.config()
	cfg.Now = clk.now
	v := newTestVerifier(t, cfg)
	v.ahead = make(chan renewal, 2)
	tokens := []string{}
	for i := range 5 {
		tokens = append(tokens, is.token(map[string]any{"jti": string(rune('a' + i))}))
		if _, err := ask(v, tokens[i]); err != nil {
			t.Fatal(err)
		}
	}
	clk.advance(58 * time.Second)
	for _, token := range tokens {
		for range 3 {
			if _, err := ask(v, token); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(v.ahead) != 2 {
		t.Errorf("%d wait", len(v.ahead))
	}
}
