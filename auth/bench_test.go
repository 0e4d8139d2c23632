package auth

import (
	"context"
	"fmt"
	"testing"

	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jwt"
)

// BenchmarkToken measures in one run what a request pays for its token: warm, cold behind the gate, and what jwx asks
// for the same token and checks. The last line is the ratio of interest.
//
//	go test ./auth -run '^$' -bench 'Token|Check'
func BenchmarkToken(b *testing.B) {
	is := newIssuer(b)
	is.addRSA(b, "rs", "RS256", 2048)
	set, err := jwk.Parse(is.document())
	if err != nil {
		b.Fatal(err)
	}
	for _, kid := range []string{"rs", "es"} {
		alg := map[string]string{"rs": "RS256", "es": "ES256"}[kid]
		token := []byte(is.sign(kid, fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"at+jwt"}`, alg, kid), is.claims(nil)))
		headers := [][]byte{append([]byte("Bearer "), token...)}
		v := newTestVerifier(b, is.config())
		ctx := context.Background()
		if _, err := v.Authenticate(ctx, Credentials{Authorization: headers}); err != nil {
			b.Fatal(err)
		}
		perOp := func(b *testing.B) float64 { return float64(b.Elapsed().Nanoseconds()) / float64(b.N) }
		var warm, jwx float64
		b.Run(alg+"/warm", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Authenticate(ctx, Credentials{Authorization: headers}); err != nil {
					b.Fatal(err)
				}
			}
			warm = perOp(b)
		})
		b.Run(alg+"/cold", func(b *testing.B) {
			b.ReportAllocs()
			d := v.hasher.digest("", token)
			for b.Loop() {
				if _, err := v.verify(ctx, "", d, token); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(alg+"/jwx", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := jwt.Parse(token, jwt.WithKeySet(set), jwt.WithIssuer(is.server.URL), jwt.WithAudience(testAudience)); err != nil {
					b.Fatal(err)
				}
			}
			jwx = perOp(b)
			if warm > 0 {
				b.ReportMetric(jwx/warm, "jwx/warm")
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	f := newFacts()
	a := newTestAccess(b, f)
	who := personas()
	ctx := context.Background()
	for _, c := range []struct{ name, who, patient string }{
		{"treatment", "rivera", "pat-1"},
		{"none", "lee", "pat-1"},
		{"self", "patient", "pat-1"},
		{"denied by role", "kim", "pat-1"},
	} {
		r := Request{Interaction: Read, Type: "Patient", Patients: []string{c.patient}}
		if c.name == "denied by role" {
			r.Type = "Coverage"
		}
		a.Check(ctx, who[c.who], r)
		a.known.cache.Wait()
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.Check(ctx, who[c.who], r)
			}
		})
	}
}
