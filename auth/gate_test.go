package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAuthenticateReadsEveryClaim(t *testing.T) {
	is := newIssuer(t)
	is.addEd("ed")
	is.addRSA(t, "rs", "RS256", 2048)
	is.addRSA(t, "ps", "PS256", 2048)
	v := newTestVerifier(t, is.config())
	now := time.Now().Unix()
	for kid, alg := range map[string]string{"es": "ES256", "ed": "EdDSA", "rs": "RS256", "ps": "PS256"} {
		token := is.sign(kid, `{"alg":"`+alg+`","kid":"`+kid+`","typ":"application/at+JWT"}`, is.claims(map[string]any{
			"iat": now, "exp": now + 60, "auth_time": now - 5, "patient": "pat-1", "scope": "launch/patient patient/*.rs",
			"aud": []string{"other", testAudience}, "unknown": map[string]any{"a": 1},
		}))
		p, err := ask(v, token)
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		want := &Principal{
			Subject: "dr-rivera", Issuer: is.server.URL, Client: "app", Session: "s-1", TokenID: "t-1", KeyID: kid, Name: "Dr. Ana Rivera",
			Roles: []string{"clinician"}, Scopes: ParseScopes("launch/patient patient/*.rs"), Patient: "pat-1",
			FHIRUser: "Practitioner/p1", ACR: "urn:chartkeep:acr:mfa", AMR: []string{"pwd", "otp"},
			AuthTime: time.Unix(now-5, 0).UTC(), Issued: time.Unix(now, 0).UTC(), Expires: time.Unix(now+60, 0).UTC(),
		}
		if !reflect.DeepEqual(p, want) {
			t.Errorf("%s: got %+v, want %+v", alg, p, want)
		}
	}
	p, err := ask(v, is.token(map[string]any{"sid": nil, "jti": "t-9"}))
	if err != nil || p.Session != "t-9" {
		t.Errorf("without sid: session %v, error %v; want the jti", p, err)
	}
}

// TestHeaders plays the attacks on the Authorization header (cases 1 to 7 of the attack table).
func TestHeaders(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	good := is.token(nil)
	for name, c := range map[string]struct {
		headers []string
		want    error
	}{
		"none":                {nil, ErrNoToken},
		"empty":               {[]string{""}, ErrNoToken},
		"basic":               {[]string{"Basic " + good}, ErrNoToken},
		"scheme only":         {[]string{"Bearer"}, ErrNoToken},
		"scheme and space":    {[]string{"Bearer "}, ErrNoToken},
		"two headers":         {[]string{"Bearer " + good, "Bearer " + good}, ErrRequest},
		"two credentials":     {[]string{"Bearer " + good + ", Bearer " + good}, ErrRequest},
		"short credentials":   {[]string{"Bearer a,Bearer b"}, ErrRequest},
		"tab":                 {[]string{"Bearer\t" + good}, ErrToken},
		"two spaces":          {[]string{"Bearer  " + good}, ErrToken},
		"trailing space":      {[]string{"Bearer " + good + " "}, ErrToken},
		"fold":                {[]string{"Bearer \r\n " + good}, ErrToken},
		"nbsp":                {[]string{"Bearer \u00a0" + good}, ErrToken},
		"nul":                 {[]string{"Bearer " + good + "\x00"}, ErrToken},
		"too short":           {[]string{"Bearer a.b.c"}, ErrToken},
		"too long":            {[]string{"Bearer " + strings.Repeat("a", maxToken+1)}, ErrToken},
		"dots":                {[]string{"Bearer " + strings.Repeat(".", 8000)}, ErrToken},
		"two parts":           {[]string{"Bearer " + good[:strings.LastIndex(good, ".")]}, ErrToken},
		"four parts":          {[]string{"Bearer " + good + ".abcd"}, ErrToken},
		"trailing dot":        {[]string{"Bearer " + good + "."}, ErrToken},
		"lower-case scheme":   {[]string{"bearer " + good}, nil},
		"as it should be":     {[]string{"Bearer " + good}, nil},
		"upper-case scheme":   {[]string{"BEARER " + good}, nil},
		"line break in token": {[]string{"Bearer " + good[:50] + "\r\n" + good[50:]}, ErrToken},
		"padding":             {[]string{"Bearer " + good + "=="}, ErrToken},
	} {
		headers := [][]byte{}
		for _, h := range c.headers {
			headers = append(headers, []byte(h))
		}
		p, err := v.Authenticate(context.Background(), Credentials{Authorization: headers})
		if !errors.Is(err, c.want) || (err == nil) != (p != nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), good[:40]) {
			t.Errorf("%s: error quotes the token", name)
		}
	}
}

// TestHostileTokens plays the attacks on tokens (cases 8 to 37). Each is asked twice, so that no refusal turns into
// something else once it was seen.
func TestHostileTokens(t *testing.T) {
	is := newIssuer(t)
	is.addRSA(t, "rs", "RS256", 2048)
	v := newTestVerifier(t, is.config())
	good := is.claims(nil)
	stranger, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	now := time.Now().Unix()

	header := func(h string) string { return is.sign("es", h, good) }
	claim := func(name string, value any) string { return is.token(map[string]any{name: value}) }
	payload := func(p string) string { return is.sign("es", esHeader, p) }
	signed := func(sig []byte) string { return b64([]byte(esHeader)) + "." + b64([]byte(good)) + "." + b64(sig) }
	extra := func(member string) string { return strings.TrimSuffix(good, "}") + "," + member + "}" }
	rs := is.sign("rs", `{"alg":"RS256","kid":"rs","typ":"at+jwt"}`, good)
	parts := strings.Split(is.token(nil), ".")
	hs := func(secret []byte) string {
		input := b64([]byte(`{"alg":"HS256","kid":"rs","typ":"at+jwt"}`)) + "." + b64([]byte(good))
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return input + "." + b64(mac.Sum(nil))
	}
	order := elliptic.P256().Params().N.Bytes()
	der, _ := asn1.Marshal(struct{ R, S *big.Int }{big.NewInt(5), big.NewInt(7)})
	raw := is.signature("es", esHeader, parts[0]+"."+parts[1])

	tokens := map[string]string{
		"8 alg none":                header(`{"alg":"none","kid":"es","typ":"at+jwt"}`),
		"8 alg nOnE":                header(`{"alg":"nOnE","kid":"es","typ":"at+jwt"}`),
		"8 alg absent":              header(`{"kid":"es","typ":"at+jwt"}`),
		"8 alg null":                header(`{"alg":null,"kid":"es","typ":"at+jwt"}`),
		"8 empty signature":         parts[0] + "." + parts[1] + ".",
		"9 HS256 with modulus":      hs([]byte(is.public["rs"]["n"].(string))),
		"10 PS256 with an RS256":    is.sign("rs", `{"alg":"PS256","kid":"rs","typ":"at+jwt"}`, good),
		"11 ALG":                    header(`{"ALG":"ES256","kid":"es","typ":"at+jwt"}`),
		"11 duplicate alg":          header(`{"alg":"none","alg":"ES256","kid":"es","typ":"at+jwt"}`),
		"12 jku":                    header(`{"alg":"ES256","kid":"es","typ":"at+jwt","jku":"https://evil.test"}`),
		"12 x5u":                    header(`{"alg":"ES256","kid":"es","typ":"at+jwt","x5u":"https://evil.test"}`),
		"12 x5c":                    header(`{"alg":"ES256","kid":"es","typ":"at+jwt","x5c":["MIIB"]}`),
		"12 jwk":                    header(`{"alg":"ES256","kid":"es","typ":"at+jwt","jwk":` + string(marshal(ecJWK(&stranger.PublicKey))) + `}`),
		"13 crit":                   header(`{"alg":"ES256","kid":"es","typ":"at+jwt","crit":["exp"]}`),
		"13 crit empty":             header(`{"alg":"ES256","kid":"es","typ":"at+jwt","crit":[]}`),
		"14 b64 false":              header(`{"alg":"ES256","kid":"es","typ":"at+jwt","b64":false}`),
		"15 JWE":                    parts[0] + "." + parts[1] + "." + parts[2] + "." + parts[1] + "." + parts[2],
		"16 JSON serialisation":     `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"17 nested":                 is.sign("es", `{"alg":"ES256","kid":"es","typ":"at+jwt","cty":"JWT"}`, is.token(nil)),
		"17 nested without cty":     payload(is.token(nil)),
		"18 kid path":               header(`{"alg":"ES256","kid":"../../dev/null","typ":"at+jwt"}`),
		"18 kid number":             header(`{"alg":"ES256","kid":1,"typ":"at+jwt"}`),
		"18 kid null":               header(`{"alg":"ES256","kid":null,"typ":"at+jwt"}`),
		"18 kid absent":             header(`{"alg":"ES256","typ":"at+jwt"}`),
		"18 kid long":               header(`{"alg":"ES256","kid":"` + strings.Repeat("k", 129) + `","typ":"at+jwt"}`),
		"20 r and s zero":           signed(make([]byte, 64)),
		"20 r is the order":         signed(append(append([]byte{}, order...), raw[32:]...)),
		"20 s is the order":         signed(append(append([]byte{}, raw[:32]...), order...)),
		"20 DER":                    signed(der),
		"20 63 bytes":               signed(raw[:63]),
		"20 65 bytes":               signed(append([]byte{0}, raw...)),
		"21 second spelling":        rs[:len(rs)-1] + string(sibling(rs[len(rs)-1])),
		"24 array":                  payload("[" + good + "]"),
		"24 trailing bytes":         payload(good + "{}"),
		"25 duplicate sub":          payload(extra(`"sub":"admin-root"`)),
		"26 EXP":                    payload(strings.TrimSuffix(is.claims(map[string]any{"exp": now - 100, "iat": now - 200}), "}") + `,"EXP":9999999999}`),
		"27 invalid UTF-8":          payload(strings.Replace(good, "dr-rivera", "dr-\xffrivera", 1)),
		"27 NUL":                    claim("sub", "dr\x00rivera"),
		"28 sub missing":            claim("sub", nil),
		"28 sub number":             claim("sub", 5),
		"28 sub empty":              claim("sub", ""),
		"28 sub long":               claim("sub", strings.Repeat("a", 256)),
		"29 exp missing":            claim("exp", nil),
		"29 exp null":               payload(strings.TrimSuffix(is.claims(map[string]any{"exp": nil}), "}") + `,"exp":null}`),
		"29 exp string":             claim("exp", "9999999999"),
		"29 exp 1e30":               payload(strings.TrimSuffix(is.claims(map[string]any{"exp": nil}), "}") + `,"exp":1e30}`),
		"29 exp 1e400":              payload(strings.TrimSuffix(is.claims(map[string]any{"exp": nil}), "}") + `,"exp":1e400}`),
		"29 exp negative":           claim("exp", -1),
		"29 exp the largest":        claim("exp", int64(1<<63-1)),
		"29 iat missing":            claim("iat", nil),
		"29 iat very negative":      claim("iat", int64(-1<<63)),
		"30 expired":                is.token(map[string]any{"iat": now - 100, "exp": now - 31}),
		"31 lives ten years":        claim("exp", now+10*365*86400),
		"32 nbf":                    claim("nbf", now+33),
		"32 iat":                    is.token(map[string]any{"iat": now + 33, "exp": now + 600}),
		"33 aud other":              claim("aud", "https://other.test"),
		"33 aud missing":            claim("aud", nil),
		"33 aud empty":              claim("aud", []string{}),
		"33 aud object":             claim("aud", map[string]any{testAudience: true}),
		"33 aud longer":             claim("aud", testAudience+".evil.test"),
		"33 aud mixed":              claim("aud", []any{testAudience, 1}),
		"34 iss other":              claim("iss", is.server.URL+"/realms/other"),
		"34 iss slash":              claim("iss", is.server.URL+"/"),
		"34 iss array":              claim("iss", []string{is.server.URL}),
		"34 iss upper":              claim("iss", strings.ToUpper(is.server.URL)),
		"35 ID token":               header(`{"alg":"ES256","kid":"es","typ":"JWT"}`),
		"35 logout token":           header(`{"alg":"ES256","kid":"es","typ":"logout+jwt"}`),
		"35 DPoP proof":             header(`{"alg":"ES256","kid":"es","typ":"dpop+jwt"}`),
		"35 typ absent":             header(`{"alg":"ES256","kid":"es"}`),
		"37 deep":                   payload(extra(`"x":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000))),
		"37 deep header":            header(strings.Repeat("[", 2000)),
		"37 many roles":             claim("roles", make([]int, 2000)),
		"37 33 roles":               claim("roles", strings.Split(strings.Repeat("r ", 33), " ")[:33]),
		"another key":               parts[0] + "." + parts[1] + "." + b64(sigOf(stranger, parts[0]+"."+parts[1])),
		"claims of another token":   parts[0] + "." + b64([]byte(is.claims(map[string]any{"sub": "admin-root"}))) + "." + parts[2],
		"roles a string":            claim("roles", "clinician"),
		"role empty":                claim("roles", []string{""}),
		"patient not an id":         claim("patient", "a/../b"),
		"name with a control":       claim("name", "a\nb"),
		"jti missing":               claim("jti", nil),
		"client_id missing":         claim("client_id", nil),
		"bound to a key (RFC 7800)": claim("cnf", map[string]any{"jkt": "x"}),
		"authenticated tomorrow":    claim("auth_time", now+86400),
		"scope an array":            claim("scope", []string{"user/*.cruds"}),
	}
	for name, token := range tokens {
		for range 2 {
			if p, err := ask(v, token); p != nil || !errors.Is(err, ErrToken) {
				t.Errorf("%s: got %v and %v, want ErrToken", name, p, err)
			}
		}
	}
	if got := v.Stats(); got.Refused != uint64(2*len(tokens)) || got.Hits != 0 {
		t.Errorf("stats %+v after %d refusals", got, 2*len(tokens))
	}
	for name, token := range map[string]string{
		"30 expired within leeway": is.token(map[string]any{"iat": now - 100, "exp": now - 25}),
		"32 nbf within leeway":     claim("nbf", now+25),
		"plain":                    is.token(nil),
		"roles absent":             claim("roles", nil),
	} {
		if _, err := ask(v, token); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func sigOf(k *ecdsa.PrivateKey, input string) []byte {
	hash := sha256.Sum256([]byte(input))
	r, s, _ := ecdsa.Sign(rand.Reader, k, hash[:])
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// sibling is a base64url character that lenient decoders read as c does at the end of 256 bytes: its low bits differ.
func sibling(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

// TestOtherAudience is case 36: a token that was accepted, and is cached, for one group of routes means nothing to another.
func TestOtherAudience(t *testing.T) {
	const officers = "https://officers.example.test"
	is := newIssuer(t)
	cfg := is.config()
	cfg.Issuers[0].Audiences = map[Profile]string{ProfileOfficers: officers}
	v := newTestVerifier(t, cfg)
	ask := func(on Profile, token string) error {
		_, err := v.Authenticate(t.Context(), Credentials{Profile: on, Authorization: [][]byte{[]byte("Bearer " + token)}})
		return err
	}
	records, both := is.token(nil), is.token(map[string]any{"aud": []string{officers, testAudience}})
	for range 2 {
		if err := ask(ProfileFHIR, records); err != nil {
			t.Fatal(err)
		}
		if err := ask(ProfileOfficers, records); !errors.Is(err, ErrToken) {
			t.Errorf("got %v, want ErrToken", err)
		}
		for _, on := range []Profile{ProfileFHIR, ProfileOfficers} {
			if err := ask(on, both); err != nil {
				t.Errorf("token for both on %s: %v", on, err)
			}
		}
	}
}

// FuzzGate holds that nothing an attacker sends crashes the gate, and that what it accepts has one spelling.
func FuzzGate(f *testing.F) {
	f.Add([]byte("Bearer " + b64([]byte(esHeader)) + "." + b64([]byte(`{"iss":"i","aud":["a"],"exp":2,"iat":1}`)) + "." + b64(make([]byte, 64))))
	f.Add([]byte("Bearer a.b.c"))
	f.Add([]byte(`Bearer ` + b64([]byte(`{"alg":"ES256","kid":"es","typ":"at+jwt","crit":[]}`)) + ".e30.AAAA"))
	e := trusted{IssuerConfig: IssuerConfig{Issuer: "i", Audience: "a", Leeway: 30 * time.Second, MaxLifetime: time.Hour}}
	f.Fuzz(func(t *testing.T, value []byte) {
		_, token, err := (&Credentials{Authorization: [][]byte{value}}).token()
		if err != nil {
			return
		}
		c, err := split(token)
		if err != nil {
			return
		}
		if again := b64(c.header) + "." + b64(c.payload) + "." + b64(c.sig); again != string(token) {
			t.Fatalf("%q is a second spelling of %q", token, again)
		}
		if h, err := parseHeader(c.header); err == nil && !printable(h.KeyID, maxKeyID) {
			t.Fatalf("accepted kid %q", h.KeyID)
		}
		p, err := e.principal(c.payload, ProfileFHIR, "at+jwt", time.Unix(1, 0))
		if err == nil && (p.Subject == "" || p.Issuer != "i" || p.TokenID == "" || p.Client == "" || !p.Expires.After(p.Issued)) {
			t.Fatalf("accepted %+v", p)
		}
	})
}
