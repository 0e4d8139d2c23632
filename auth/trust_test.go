package auth

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// two is a verifier that trusts an issuer without a name and one that is called "partner".
func two(t *testing.T, change func(first, partner *IssuerConfig)) (v *Verifier, first, partner *issuer) {
	t.Helper()
	first, partner = newIssuer(t), newIssuer(t)
	cfg := VerifierConfig{Issuers: []IssuerConfig{first.trust(), partner.trust()}, Insecure: true}
	cfg.Issuers[1].Name = "partner"
	if change != nil {
		change(&cfg.Issuers[0], &cfg.Issuers[1])
	}
	return newTestVerifier(t, cfg), first, partner
}

// TestIssuersAreKeptApart holds that who somebody is depends on who says so: the same sub of two issuers is two people, and no issuer can
// speak for another.
func TestIssuersAreKeptApart(t *testing.T) {
	v, first, partner := two(t, nil)
	p, err := ask(v, partner.token(nil))
	if err != nil || p.Subject != "partner|dr-rivera" || p.Client != "partner|app" || p.Session != "partner|s-1" || p.TokenID != "t-1" || p.KeyID != "partner|es" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := ask(v, first.token(nil)); err != nil || p.Subject != "dr-rivera" || p.Issuer != first.server.URL {
		t.Errorf("%+v, %v", p, err)
	}
	for name, over := range map[string]map[string]any{
		"sub":       {"sub": "partner|dr-rivera"},
		"client_id": {"client_id": "partner|app"},
		"sid":       {"sid": "partner|s-1"},
	} {
		if p, err := ask(v, first.token(over)); !errors.Is(err, ErrToken) {
			t.Errorf("%s that begins like another issuer's: %+v, %v", name, p, err)
		}
	}
	if _, err := ask(v, first.token(map[string]any{"sub": "auth0|dr-rivera"})); err != nil {
		t.Errorf("a bar in sub that is nobody's: %v", err)
	}
	// Signed by one, said by another: both ways, with kids that both have.
	for name, token := range map[string]string{
		"the first in the partner's name": first.token(map[string]any{"iss": partner.server.URL}),
		"the partner in the first's name": partner.token(map[string]any{"iss": first.server.URL}),
		"a stranger":                      newIssuer(t).token(nil),
		"a lookalike":                     first.token(map[string]any{"iss": first.server.URL + "/"}),
		"in capitals":                     first.token(map[string]any{"iss": strings.ToUpper(first.server.URL)}),
		"both":                            first.token(map[string]any{"iss": []string{first.server.URL, partner.server.URL}}),
		"twice":                           first.sign("es", esHeader, strings.Replace(first.claims(nil), `{`, `{"iss":"`+partner.server.URL+`",`, 1)),
		"nobody":                          first.token(map[string]any{"iss": nil}),
	} {
		if p, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if got := v.Stats(); got.Issuers[0].Refused[StageSignature] != 1 || got.Issuers[1].Refused[StageSignature] != 1 || got.Strangers[StageIssuer] != 6 ||
		got.Issuers[0].Refused[StageClaims] != 3 || got.Refused != 11 {
		t.Errorf("counted %+v", got)
	}
}

// TestTrust holds that an issuer is believed only what its configuration says.
func TestTrust(t *testing.T) {
	v, _, partner := two(t, func(_, partner *IssuerConfig) {
		partner.AssertsSignIn, partner.RolesInToken = false, false
	})
	p, err := ask(v, partner.token(map[string]any{"roles": []string{"admin"}}))
	if err != nil || p.ACR != "" || p.AMR != nil || !p.AuthTime.IsZero() || p.Roles != nil {
		t.Errorf("%+v, %v: claims of an issuer that does not assert them", p, err)
	}
	v, _, partner = two(t, func(_, partner *IssuerConfig) { partner.Roles = []string{"patient", "clinician"} })
	if p, err := ask(v, partner.token(map[string]any{"roles": []string{"admin", "patient", "officer"}})); err != nil || !slices.Equal(p.Roles, []string{"patient"}) {
		t.Errorf("%+v, %v: roles that the issuer may not give", p, err)
	}
	now := time.Now().Unix()
	v, first, partner := two(t, func(_, partner *IssuerConfig) {
		partner.MaxLifetime, partner.Leeway, partner.Algorithms = 5*time.Minute, 5*time.Second, []string{"EdDSA"}
	})
	partner.addEd("ed")
	ed := func(over map[string]any) string {
		return partner.sign("ed", `{"alg":"EdDSA","kid":"ed","typ":"at+jwt"}`, partner.claims(over))
	}
	for name, c := range map[string]struct {
		token string
		good  bool
	}{
		"as it should be":        {ed(map[string]any{"exp": now + 300}), true},
		"too long a life":        {ed(map[string]any{"exp": now + 301}), false},
		"too late":               {ed(map[string]any{"iat": now - 100, "exp": now - 6}), false},
		"another algorithm":      {partner.token(map[string]any{"exp": now + 300}), false},
		"the first's own policy": {first.token(map[string]any{"iat": now - 100, "exp": now - 6}), true},
	} {
		if _, err := ask(v, c.token); errors.Is(err, ErrToken) == c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOldTypes holds that an issuer which types everything JWT can be let in, and its ID and logout tokens not (case 35).
func TestOldTypes(t *testing.T) {
	v, first, partner := two(t, func(_, partner *IssuerConfig) { partner.Types = []string{"JWT"} })
	const header = `{"alg":"ES256","kid":"es","typ":"JWT"}`
	if _, err := ask(v, partner.sign("es", header, partner.claims(nil))); err != nil {
		t.Errorf("access token: %v", err)
	}
	for name, token := range map[string]string{
		"of an issuer that writes at+jwt": first.sign("es", header, first.claims(nil)),
		"at+jwt of the old one":           partner.token(nil),
		"nonce":                           partner.sign("es", header, partner.claims(map[string]any{"nonce": "n"})),
		"at_hash":                         partner.sign("es", header, partner.claims(map[string]any{"at_hash": "h"})),
		"c_hash":                          partner.sign("es", header, partner.claims(map[string]any{"c_hash": "h"})),
		"s_hash":                          partner.sign("es", header, partner.claims(map[string]any{"s_hash": nil, "events": map[string]any{}})),
		"no scope":                        partner.sign("es", header, partner.claims(map[string]any{"scope": nil})),
		"no client":                       partner.sign("es", header, partner.claims(map[string]any{"client_id": nil})),
		"logout+jwt":                      partner.sign("es", `{"alg":"ES256","kid":"es","typ":"logout+jwt"}`, partner.claims(nil)),
	} {
		if _, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOneIssuerDown holds that the outage of one issuer keeps nobody of the others out, and is no 401 for its own.
func TestOneIssuerDown(t *testing.T) {
	v, first, partner := two(t, nil)
	partner.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	if _, err := ask(v, partner.token(nil)); !errors.Is(err, ErrKeys) {
		t.Errorf("the issuer that is down: %v, want ErrKeys", err)
	}
	if _, err := ask(v, first.token(nil)); err != nil || v.Healthy() != nil {
		t.Errorf("the other: %v, healthy %v", err, v.Healthy())
	}
	if s := v.Stats().Issuers; s[1].KeyFailures == 0 || s[0].KeyFailures != 0 {
		t.Errorf("failures %+v", s)
	}
}
