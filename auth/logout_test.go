package auth

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const logoutHeader = `{"alg":"ES256","kid":"es","typ":"logout+jwt"}`

// logoutToken is a good one with some claims replaced.
func (is *issuer) logoutToken(over map[string]any) string {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": is.server.URL, "aud": testAudience, "iat": now, "exp": now + 120, "jti": "l-1", "sid": "s-1",
		"events": map[string]any{logoutEvent: map[string]any{}},
	}
	for k, v := range over {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return is.sign("es", logoutHeader, string(marshal(c)))
}

// TestLogoutTokens is OpenID Connect Back-Channel Logout 1.0 section 2.6, claim by claim, and what else must not pass for one.
func TestLogoutTokens(t *testing.T) {
	is := newIssuer(t)
	now := time.Now().Unix()
	event := func(v any) map[string]any { return map[string]any{"events": v} }
	good := map[string]string{
		"a session":             is.logoutToken(nil),
		"a subject":             is.logoutToken(map[string]any{"sid": nil, "sub": "dr-rivera"}),
		"both":                  is.logoutToken(map[string]any{"sub": "dr-rivera"}),
		"several audiences":     is.logoutToken(map[string]any{"aud": []string{"other", testAudience}}),
		"longer media type":     is.sign("es", strings.Replace(logoutHeader, "logout+jwt", "application/logout+jwt", 1), payloadOf(is.logoutToken(nil))),
		"a member in the event": is.logoutToken(event(map[string]any{logoutEvent: map[string]any{"why": "x"}, "urn:other": 1})),
		"29 s too late":         is.logoutToken(map[string]any{"iat": now - 149, "exp": now - 29}),
	}
	for name, token := range good {
		v := newTestVerifier(t, is.config())
		did := 0
		if err := v.Logout(t.Context(), []byte(token), func(l *Logout) error {
			did++
			if l.Issuer != is.server.URL || l.Session == "" && l.Subject != "dr-rivera" || l.TokenID != "l-1" {
				t.Errorf("%s: %+v", name, l)
			}
			return nil
		}); err != nil || did != 1 {
			t.Errorf("%s: %v, carried out %d times", name, err, did)
		}
	}
	other := newIssuer(t)
	bad := map[string]string{
		"an access token":          is.token(nil),
		"an access token's claims": is.sign("es", logoutHeader, payloadOf(is.token(nil))),
		"typ JWT":                  is.sign("es", strings.Replace(logoutHeader, "logout+jwt", "JWT", 1), payloadOf(is.logoutToken(nil))),
		"no typ":                   is.sign("es", `{"alg":"ES256","kid":"es"}`, payloadOf(is.logoutToken(nil))),
		"alg none":                 b64([]byte(`{"alg":"none","kid":"es","typ":"logout+jwt"}`)) + "." + b64([]byte(payloadOf(is.logoutToken(nil)))) + ".",
		"another's signature":      other.logoutToken(map[string]any{"iss": is.server.URL}),
		"an unknown issuer":        other.logoutToken(nil),
		"another audience":         is.logoutToken(map[string]any{"aud": "app"}),
		"no audience":              is.logoutToken(map[string]any{"aud": nil}),
		"a nonce":                  is.logoutToken(map[string]any{"nonce": "n"}),
		"no jti":                   is.logoutToken(map[string]any{"jti": nil}),
		"no iat":                   is.logoutToken(map[string]any{"iat": nil}),
		"no exp":                   is.logoutToken(map[string]any{"exp": nil}),
		"expired":                  is.logoutToken(map[string]any{"iat": now - 200, "exp": now - 31}),
		"in the future":            is.logoutToken(map[string]any{"iat": now + 31, "exp": now + 100}),
		"lives for too long":       is.logoutToken(map[string]any{"exp": now + 3601}),
		"nobody":                   is.logoutToken(map[string]any{"sid": nil}),
		"empty sid":                is.logoutToken(map[string]any{"sid": ""}),
		"unreadable sid":           is.logoutToken(map[string]any{"sid": "a\nb"}),
		"no events":                is.logoutToken(event(nil)),
		"another event":            is.logoutToken(event(map[string]any{"urn:other": map[string]any{}})),
		"event is no object":       is.logoutToken(event(map[string]any{logoutEvent: true})),
		"events are a list":        is.logoutToken(event([]string{logoutEvent})),
		"duplicate sid":            is.sign("es", logoutHeader, strings.Replace(payloadOf(is.logoutToken(nil)), `"sid":"s-1"`, `"sid":"s-0","sid":"s-1"`, 1)),
		"short":                    "a.b.c",
		"long":                     strings.Repeat("a", maxToken+1),
		"empty":                    "",
	}
	for name, token := range bad {
		v := newTestVerifier(t, is.config())
		if err := v.Logout(t.Context(), []byte(token), func(*Logout) error { t.Errorf("%s was carried out", name); return nil }); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// And the other way round: a logout token lets nobody in.
	if _, err := ask(newTestVerifier(t, is.config()), is.logoutToken(nil)); !errors.Is(err, ErrToken) {
		t.Errorf("a logout token as an access token: %v", err)
	}
}

// payloadOf is the payload of a token as text.
func payloadOf(token string) string {
	c, err := split([]byte(token))
	if err != nil {
		panic(err)
	}
	return string(c.payload)
}

// TestLogoutOnce: a logout token is carried out once, and again when it could not be.
func TestLogoutOnce(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	token := []byte(is.logoutToken(nil))
	away := errors.New("away")
	did := 0
	for i, c := range []struct{ answer, want error }{{away, away}, {away, away}, {nil, nil}, {nil, ErrToken}} {
		if err := v.Logout(t.Context(), token, func(*Logout) error { did++; return c.answer }); !errors.Is(err, c.want) {
			t.Errorf("try %d: %v, want %v", i, err, c.want)
		}
	}
	if did != 3 {
		t.Errorf("carried out %d times", did)
	}
	now := time.Now()
	for i := range logoutsKept + 10 {
		v.logouts.use("issuer", fmt.Sprint(i), now.Add(time.Hour), now)
	}
	if held := len(v.logouts.seen); held > logoutsKept {
		t.Errorf("%d are remembered", held)
	}
}

// TestLogoutEndsTokens: of the session, or of the subject up to then, and of nobody else; for an issuer with a name of that issuer's only.
func TestLogoutEndsTokens(t *testing.T) {
	is := newIssuer(t)
	cfg := is.config()
	cfg.Issuers[0].Name, cfg.Issuers[0].LogoutAudience = "clinic", "chartkeep-rs"
	v := newTestVerifier(t, cfg)
	now := time.Now().Unix()
	carry := func(claims map[string]any) {
		t.Helper()
		claims["aud"] = "chartkeep-rs"
		if err := v.Logout(t.Context(), []byte(is.logoutToken(claims)), func(l *Logout) error {
			return v.revoked.Revoke(t.Context(), l.Revocation())
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Logout(t.Context(), []byte(is.logoutToken(nil)), nil); !errors.Is(err, ErrToken) {
		t.Errorf("the audience of access tokens: %v", err)
	}
	one, two := is.token(map[string]any{"jti": "1", "iat": now - 10}), is.token(map[string]any{"jti": "2", "sid": "s-2", "iat": now - 10})
	later, stranger := is.token(map[string]any{"jti": "3", "sid": "s-3", "iat": now + 2}), is.token(map[string]any{"jti": "4", "sid": "s-4", "sub": "dr-chen", "iat": now - 10})
	answers := func(when string, want ...bool) {
		t.Helper()
		for i, token := range []string{one, two, later, stranger} {
			if _, err := ask(v, token); (err == nil) != want[i] {
				t.Errorf("%s, token %d: %v", when, i+1, err)
			}
		}
	}
	answers("at first", true, true, true, true)
	carry(map[string]any{"sub": "dr-rivera"})
	answers("after the session's end", false, true, true, true)
	carry(map[string]any{"jti": "l-2", "sid": nil, "sub": "dr-rivera"})
	answers("after the subject's", false, false, true, true)
	if err := v.revoked.Revoke(t.Context(), Revocation{Kind: RevokeKey, ID: "clinic|es", Reason: "leaked", By: "o"}); err != nil {
		t.Fatal(err)
	}
	answers("after the key's", false, false, false, false)
	if err := v.Logout(t.Context(), []byte(is.logoutToken(map[string]any{"jti": "l-3", "aud": "chartkeep-rs"})), nil); !errors.Is(err, ErrToken) {
		t.Errorf("signed by a revoked key: %v", err)
	}
}
