package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestVerifierModel holds the verifier, with its cache, its keys and its revocations, to a model without any of these: a token is good
// when its key was in the last good document, nothing of it was revoked, and the clock is within its life. Keys come, go and come back
// under the same id, documents fail, the clock moves both ways, tokens are asked about again and again, and the cache has room for many
// or for few.
func TestVerifierModel(t *testing.T) {
	is := newIssuer(t)
	is.remove("es")
	kids := []string{"a", "b", "c"}
	published := map[string]map[string]any{}
	for _, kid := range kids {
		is.addEC(kid)
		published[kid] = is.public[kid]
	}
	type issued struct {
		token, kid, session string
		issued, expires     int64
	}
	rapid.Check(t, func(t *rapid.T) {
		clk := &clock{}
		cfg := is.config()
		cfg.Now = clk.now
		v, err := NewVerifier(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, kid := range kids {
			is.add(kid, is.private[kid], published[kid])
		}
		v.cache = newTokenCache(rapid.SampledFrom([]int{1, cacheShards, cacheCapacity}).Draw(t, "room in the cache"))
		fetchNow(v)
		v.issuers[0].keys.demanded = time.Now().Add(1000 * time.Hour) // only the steps below fetch
		trusted, document := map[string]bool{"a": true, "b": true, "c": true}, map[string]bool{"a": true, "b": true, "c": true}
		revoked := map[string]bool{}
		start := clk.now().Unix()
		var tokens []issued
		for i := range 6 {
			x := issued{
				kid: kids[i%3], session: fmt.Sprint("s-", i/2), issued: start - rapid.Int64Range(0, 50).Draw(t, "age"), expires: start + rapid.Int64Range(1, 200).Draw(t, "life"),
			}
			x.token = is.sign(x.kid, fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"at+jwt"}`, x.kid), is.claims(map[string]any{
				"iat": x.issued, "exp": x.expires, "auth_time": x.issued, "sid": x.session, "jti": fmt.Sprint("t-", i),
			}))
			tokens = append(tokens, x)
		}
		t.Repeat(map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				x := rapid.SampledFrom(tokens).Draw(t, "token")
				now := clk.now().Unix()
				if edge := (x.expires + 30 - now) * (now + 30 - x.issued); edge == 0 {
					t.Skip("the second in which it ends")
				}
				good := trusted[x.kid] && !revoked[x.session] && now < x.expires+30 && x.issued <= now+30
				p, err := v.Authenticate(context.Background(), Credentials{Authorization: [][]byte{[]byte("Bearer " + x.token)}})
				if (err == nil) != good || err != nil && !errors.Is(err, ErrToken) || err == nil && p.Session != x.session {
					t.Fatalf("token of %s: %v, want good %v", x.kid, err, good)
				}
			},
			"publish or withdraw": func(t *rapid.T) {
				kid := rapid.SampledFrom(kids).Draw(t, "kid")
				if document[kid] = !document[kid]; document[kid] {
					is.add(kid, is.private[kid], published[kid])
				} else {
					is.remove(kid)
				}
			},
			"fetch": func(*rapid.T) {
				fetchNow(v)
				if document["a"] || document["b"] || document["c"] { // an empty one is a failure
					for _, kid := range kids {
						trusted[kid] = document[kid]
					}
				}
			},
			"fetch in vain": func(*rapid.T) {
				is.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
				fetchNow(v)
				is.answers(nil)
				v.issuers[0].keys.failures = 0 // else an unknown kid may ask again
			},
			"time": func(t *rapid.T) {
				clk.advance(time.Duration(rapid.Int64Range(-20, 70).Draw(t, "seconds")) * time.Second)
			},
			"revoke": func(t *rapid.T) {
				x := rapid.SampledFrom(tokens).Draw(t, "token")
				revoked[x.session] = true
				if err := v.revoked.Revoke(context.Background(), Revocation{Kind: RevokeSession, ID: x.session, Reason: "test", By: "test"}); err != nil {
					t.Fatal(err)
				}
			},
			"sweep or flush": func(t *rapid.T) {
				if rapid.Bool().Draw(t, "flush") {
					v.cache.flush()
				} else {
					v.cache.sweep(clk.now())
				}
			},
		})
	})
}
