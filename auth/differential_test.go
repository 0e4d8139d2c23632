package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	golang "github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jwt"
)

// The differential tests ask three other libraries, each with the options that a careful user gives it, what they make of a token. We
// may refuse what they accept, and do, a lot. What we accept they must accept as well, and read in the same way.

// diffNow is when everything happens; keys differ between runs, headers and claims of a corpus do not.
const (
	diffNow    = 1_900_000_000
	diffIssuer = "https://issuer.test"
)

// jury is one set of keys, known to us and to the others.
type jury struct {
	is   *issuer
	v    *Verifier
	jwx  jwk.Set
	jose jose.JSONWebKeySet
	keys map[string]crypto.PublicKey
}

func newJury(t testing.TB) *jury {
	t.Helper()
	is := newIssuer(t)
	is.addRSA(t, "rs", "RS256", 2048)
	is.addRSA(t, "ps", "PS256", 2048)
	seed := ed25519.NewKeyFromSeed([]byte("the same in every run of the test")[:32])
	is.add("ed", seed, map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(seed.Public().(ed25519.PublicKey)), "alg": "EdDSA"})
	trust := is.trust()
	trust.Issuer = diffIssuer
	at := time.Unix(diffNow, 0)
	j := &jury{is: is, keys: map[string]crypto.PublicKey{}}
	j.v = newTestVerifier(t, VerifierConfig{Issuers: []IssuerConfig{trust}, Insecure: true, Now: func() time.Time { return at }})
	document := is.document()
	keys, err := j.v.issuers[0].keys.parse(document)
	if err != nil || len(keys) != 4 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	j.v.issuers[0].keys.current.Store(&keySet{keys: keys, fetched: at})
	j.v.issuers[0].keys.demanded = at // no fetch for an unknown kid
	if j.jwx, err = jwk.Parse(document); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(document, &j.jose); err != nil {
		t.Fatal(err)
	}
	for kid, k := range is.private {
		j.keys[kid] = k.Public()
	}
	return j
}

// reading is what a library makes of a token.
type reading struct {
	subject string
	expires int64
}

func (j *jury) ours(token string) (reading, error) {
	p, err := j.v.Authenticate(context.Background(), Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}})
	if err != nil {
		return reading{}, err
	}
	return reading{p.Subject, p.Expires.Unix()}, nil
}

// others are the libraries by name.
func (j *jury) others() map[string]func(token string) (reading, error) {
	const leeway = 30 * time.Second
	at := time.Unix(diffNow, 0)
	algorithms := []string{"RS256", "PS256", "ES256", "EdDSA"}
	return map[string]func(string) (reading, error){
		"jwx": func(token string) (reading, error) {
			t, err := jwt.ParseString(token, jwt.WithKeySet(j.jwx), jwt.WithIssuer(diffIssuer), jwt.WithAudience(testAudience),
				jwt.WithClock(jwt.ClockFunc(func() time.Time { return at })), jwt.WithAcceptableSkew(leeway), jwt.WithRequiredClaim("exp"))
			if err != nil {
				return reading{}, err
			}
			return reading{t.Subject(), t.Expiration().Unix()}, nil
		},
		"go-jose": func(token string) (reading, error) {
			allowed := []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA}
			t, err := josejwt.ParseSigned(token, allowed)
			if err != nil {
				return reading{}, err
			}
			if len(t.Headers) != 1 {
				return reading{}, errors.New("headers")
			}
			found := j.jose.Key(t.Headers[0].KeyID)
			if len(found) != 1 || found[0].Algorithm != t.Headers[0].Algorithm {
				return reading{}, errors.New("key")
			}
			var c josejwt.Claims
			if err := t.Claims(found[0].Key, &c); err != nil {
				return reading{}, err
			}
			if err := c.ValidateWithLeeway(josejwt.Expected{Issuer: diffIssuer, AnyAudience: josejwt.Audience{testAudience}, Time: at}, leeway); err != nil {
				return reading{}, err
			}
			if c.Expiry == nil {
				return reading{}, errors.New("exp")
			}
			return reading{c.Subject, c.Expiry.Time().Unix()}, nil
		},
		"golang-jwt": func(token string) (reading, error) {
			c := golang.MapClaims{}
			_, err := golang.NewParser(golang.WithValidMethods(algorithms), golang.WithIssuer(diffIssuer), golang.WithAudience(testAudience), golang.WithLeeway(leeway),
				golang.WithExpirationRequired(), golang.WithIssuedAt(), golang.WithTimeFunc(func() time.Time { return at }), golang.WithStrictDecoding(),
				golang.WithJSONNumber()).ParseWithClaims(token, c, func(t *golang.Token) (any, error) {
				kid, _ := t.Header["kid"].(string)
				if k := j.keys[kid]; k != nil && j.is.public[kid]["alg"] == t.Method.Alg() {
					return k, nil
				}
				return nil, errors.New("key")
			})
			if err != nil {
				return reading{}, err
			}
			subject, err := c.GetSubject()
			if err != nil {
				return reading{}, err
			}
			expires, err := c.GetExpirationTime()
			if err != nil {
				return reading{}, err
			}
			return reading{subject, expires.Unix()}, nil
		},
	}
}

// hold fails when we accept what another library refuses or reads in another way. It reports whether we accept.
func (j *jury) hold(t *testing.T, token string) bool {
	t.Helper()
	mine, err := j.ours(token)
	if err != nil {
		if !errors.Is(err, ErrToken) && !errors.Is(err, ErrRequest) && !errors.Is(err, ErrNoToken) {
			t.Fatalf("%q: %v is neither yes nor no", token, err)
		}
		return false
	}
	for name, read := range j.others() {
		if theirs, err := read(token); err != nil || theirs != mine {
			t.Fatalf("we accept %q as %+v; %s says %+v, %v", token, mine, name, theirs, err)
		}
	}
	return true
}

// diffClaims are good claims at diffNow with members replaced; nil takes one away.
func diffClaims(over map[string]any) string {
	c := map[string]any{
		"iss": diffIssuer, "aud": testAudience, "sub": "dr-rivera", "client_id": "app", "jti": "t-1", "iat": diffNow, "exp": diffNow + 600, "scope": "user/*.rs",
	}
	for k, v := range over {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return string(marshal(c))
}

// Headers and payloads of the attack cases 8 to 37, good ones first.
func diffHeaders() []string {
	list := []string{}
	for _, kid := range []string{"es", "rs", "ps", "ed"} {
		alg := map[string]string{"es": "ES256", "rs": "RS256", "ps": "PS256", "ed": "EdDSA"}[kid]
		list = append(list, `{"alg":"`+alg+`","kid":"`+kid+`","typ":"at+jwt"}`, `{"typ": "application/AT+jwt",  "kid":"`+kid+`"`+"\n"+`,"alg":"`+alg+`" }`)
	}
	return append(list,
		`{"alg":"none","kid":"es","typ":"at+jwt"}`, `{"alg":"nOnE","kid":"es","typ":"at+jwt"}`, `{"kid":"es","typ":"at+jwt"}`, `{"alg":null,"kid":"es","typ":"at+jwt"}`,
		`{"alg":"HS256","kid":"rs","typ":"at+jwt"}`, `{"alg":"PS256","kid":"rs","typ":"at+jwt"}`, `{"ALG":"ES256","kid":"es","typ":"at+jwt"}`,
		`{"alg":"none","alg":"ES256","kid":"es","typ":"at+jwt"}`, `{"alg":"ES256","kid":"es","typ":"at+jwt","jku":"https://evil.test"}`,
		`{"alg":"ES256","kid":"es","typ":"at+jwt","x5u":"https://evil.test"}`, `{"alg":"ES256","kid":"es","typ":"at+jwt","x5c":["MIIB"]}`,
		`{"alg":"ES256","kid":"es","typ":"at+jwt","jwk":{"kty":"oct","k":"AA"}}`, `{"alg":"ES256","kid":"es","typ":"at+jwt","crit":["exp"]}`,
		`{"alg":"ES256","kid":"es","typ":"at+jwt","crit":[]}`, `{"alg":"ES256","kid":"es","typ":"at+jwt","crit":["b64"],"b64":false}`,
		`{"alg":"ES256","kid":"es","typ":"at+jwt","b64":false}`, `{"alg":"ES256","kid":"es","typ":"at+jwt","cty":"JWT"}`, `{"alg":"ES256","kid":"es","typ":"at+jwt","zip":"DEF"}`,
		`{"alg":"ES256","kid":"../../dev/null","typ":"at+jwt"}`, `{"alg":"ES256","kid":1,"typ":"at+jwt"}`, `{"alg":"ES256","kid":null,"typ":"at+jwt"}`, `{"alg":"ES256","typ":"at+jwt"}`,
		`{"alg":"ES256","kid":"es","typ":"JWT"}`, `{"alg":"ES256","kid":"es","typ":"logout+jwt"}`, `{"alg":"ES256","kid":"es","typ":"dpop+jwt"}`, `{"alg":"ES256","kid":"es"}`,
		`{"alg":"ES256","kid":"es","typ":"at+jwt"}{}`, ` {"alg":"ES256","kid":"es","typ":"at+jwt"} `, `{"alg":"ES256","kid":"es","typ":"at+jwt"} `, `{"alg":"\u0045S256","kid":"es","typ":"at+jwt"}`, strings.Repeat("[", 300))
}

func diffPayloads() []string {
	good := diffClaims(nil)
	with := func(member string) string { return strings.TrimSuffix(good, "}") + "," + member + "}" }
	without := func(name, member string) string {
		return strings.TrimSuffix(diffClaims(map[string]any{name: nil}), "}") + "," + member + "}"
	}
	return []string{
		good, diffClaims(map[string]any{"aud": []string{"other", testAudience}}), diffClaims(map[string]any{"nbf": diffNow, "x": []int{1}}),
		diffClaims(map[string]any{"sub": "Ünïcode \u2028"}), diffClaims(map[string]any{"sub": "a$$b"}),
		"[" + good + "]", good + "{}", " " + good + "\n", with(`"sub":"admin-root"`), with(`"SUB":"admin-root"`), with(`"EXP":9999999999`), with(`"s\u0075b":"admin-root"`),
		strings.Replace(good, "dr-rivera", "dr-\xffrivera", 1), strings.Replace(good, "dr-rivera", `dr-\u0000`, 1), strings.Replace(good, "dr-rivera", `dr-\ud800`, 1),
		diffClaims(map[string]any{"sub": nil}), diffClaims(map[string]any{"sub": 5}), diffClaims(map[string]any{"sub": ""}), diffClaims(map[string]any{"exp": nil}),
		without("exp", `"exp":null`), diffClaims(map[string]any{"exp": "9999999999"}), without("exp", `"exp":1e30`), without("exp", `"exp":1e400`), without("exp", `"exp":1.9e9`),
		without("exp", `"exp":1900000600.0`), without("exp", `"exp":1900000600.5`), without("exp", `"exp":-1`), without("exp", `"exp":9223372036854775807`), without("exp", `"exp":0001900000600`),
		diffClaims(map[string]any{"iat": diffNow - 100, "exp": diffNow - 31}), diffClaims(map[string]any{"iat": diffNow - 100, "exp": diffNow - 30}),
		diffClaims(map[string]any{"iat": diffNow - 100, "exp": diffNow - 29}), diffClaims(map[string]any{"exp": diffNow + 10*365*86400}),
		diffClaims(map[string]any{"nbf": diffNow + 30}), diffClaims(map[string]any{"nbf": diffNow + 31}), diffClaims(map[string]any{"iat": diffNow + 30}), diffClaims(map[string]any{"iat": diffNow + 31}),
		diffClaims(map[string]any{"iat": nil}), diffClaims(map[string]any{"iat": "1"}), diffClaims(map[string]any{"aud": "https://other.test"}), diffClaims(map[string]any{"aud": nil}),
		diffClaims(map[string]any{"aud": []string{}}), diffClaims(map[string]any{"aud": map[string]any{testAudience: 1}}), diffClaims(map[string]any{"aud": testAudience + ".evil.test"}),
		diffClaims(map[string]any{"aud": []any{testAudience, 1}}), diffClaims(map[string]any{"iss": diffIssuer + "/"}), diffClaims(map[string]any{"iss": []string{diffIssuer}}),
		diffClaims(map[string]any{"iss": strings.ToUpper(diffIssuer)}), with(`"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200)),
		diffClaims(map[string]any{"roles": "clinician"}), diffClaims(map[string]any{"cnf": map[string]any{"jkt": "x"}}), "{}", "", "null",
	}
}

// mangle changes a signed token in one of the ways that lenient decoders forgive.
func mangle(token string, how uint8) string {
	dot := strings.LastIndexByte(token, '.')
	switch how % 12 {
	case 1:
		return token + "=="
	case 2:
		return token[:len(token)-1] + string(sibling(token[len(token)-1]))
	case 3:
		return token[:dot/2] + "\r\n" + token[dot/2:]
	case 4:
		return token + "." + token[dot+1:]
	case 5:
		return token[:dot+1]
	case 6:
		return token[:len(token)-1]
	case 7:
		return strings.NewReplacer("-", "+", "_", "/").Replace(token)
	case 8:
		return token + " "
	case 9:
		return "\u00a0" + token
	case 10:
		return `{"payload":"` + strings.Split(token, ".")[1] + `","protected":"` + strings.Split(token, ".")[0] + `","signature":"` + token[dot+1:] + `"}`
	case 11:
		return token[:dot+1] + b64(make([]byte, 64))
	}
	return token
}

// TestDifferential plays every header with every payload's like, and every way to mangle them.
func TestDifferential(t *testing.T) {
	j := newJury(t)
	accepted, asked := 0, 0
	theirs := map[string]int{}
	try := func(token string) bool {
		asked++
		yes := j.hold(t, token)
		if yes {
			accepted++
		}
		for name, read := range j.others() {
			if _, err := read(token); err == nil {
				theirs[name]++
			}
		}
		return yes
	}
	good := diffClaims(nil)
	for i, header := range diffHeaders() {
		kid := []string{"es", "rs", "ps", "ed"}
		for _, k := range kid {
			yes := try(j.is.sign(k, header, good))
			if should := i < 8 && k == kid[i/2] || k == "es" && strings.Contains(header, `\u0045`); yes != should {
				t.Errorf("header %s signed with %s: accepted %v", header, k, yes)
			}
		}
	}
	for _, payload := range diffPayloads() {
		try(j.is.sign("ed", diffHeaders()[6], payload))
	}
	token := j.is.sign("ed", diffHeaders()[6], good)
	for how := range uint8(12) {
		if yes := try(mangle(token, how)); yes != (how == 0 || how == 7 && !strings.ContainsAny(token, "-_")) {
			t.Errorf("mangled by %d: accepted %v", how, yes)
		}
	}
	t.Logf("of %d tokens we accept %d; the others %v", asked, accepted, theirs)
	for name, n := range theirs {
		if n <= accepted {
			t.Errorf("%s accepts %d, we %d: the corpus is not hostile", name, n, accepted)
		}
	}
}

// FuzzDifferential looks for a signed token that we accept and another library refuses, or reads as somebody else's.
func FuzzDifferential(f *testing.F) {
	for _, header := range diffHeaders() {
		f.Add([]byte(header), []byte(diffClaims(nil)), uint8(0), uint8(0))
	}
	for i, payload := range diffPayloads() {
		f.Add([]byte(diffHeaders()[6]), []byte(payload), uint8(3), uint8(0))
		f.Add([]byte(diffHeaders()[0]), []byte(payload), uint8(0), uint8(i%12))
	}
	j := newJury(f)
	kids := slices.Sorted(func(yield func(string) bool) {
		for kid := range j.is.private {
			if !yield(kid) {
				return
			}
		}
	})
	f.Fuzz(func(t *testing.T, header, payload []byte, key, how uint8) {
		j.hold(t, mangle(j.is.sign(kids[int(key)%len(kids)], string(header), string(payload)), how))
	})
}

// FuzzRawToken does the same with the token's own bytes; the key of the seeds is the same in every run.
func FuzzRawToken(f *testing.F) {
	j := newJury(f)
	for i, payload := range diffPayloads() {
		f.Add([]byte(mangle(j.is.sign("ed", diffHeaders()[6], payload), uint8(i))))
		f.Add([]byte(j.is.sign("ed", diffHeaders()[7], payload)))
	}
	f.Fuzz(func(t *testing.T, token []byte) { j.hold(t, string(token)) })
}

// FuzzKeys holds that a key which is taken into the table is one to another library too, the same one, and public.
func FuzzKeys(f *testing.F) {
	is := newIssuer(f)
	is.addRSA(f, "rs", "RS256", 2048)
	is.addEd("ed")
	for _, k := range is.public {
		f.Add(marshal(k))
		k["d"] = "AAAA"
		f.Add(marshal(k))
	}
	f.Add([]byte(`{"kty":"oct","k":"AAAA","kid":"x","alg":"HS256"}`))
	f.Add([]byte(`{"kty":"RSA","kid":"x","n":"AQAB","e":"AQAB","use":"sig","use":"enc"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parseKey(raw, knownAlgorithms())
		if err != nil {
			return
		}
		var theirs jose.JSONWebKey
		if err := json.Unmarshal(raw, &theirs); err != nil || !theirs.Valid() || !theirs.IsPublic() || theirs.KeyID != k.id {
			t.Fatalf("we take %q as %s; go-jose: %v", raw, k.id, err)
		}
		if !k.public.Equal(theirs.Key) {
			t.Fatalf("%q is another key to go-jose", raw)
		}
		if e, ok := k.public.(*ecdsa.PublicKey); ok && e.Curve != elliptic.P256() {
			t.Fatal("curve")
		}
	})
}

// TestFuzzedKeysMatter is here so that the oracle above is known to look at something: a wrong key would be noticed.
func TestFuzzedKeysMatter(t *testing.T) {
	one, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m := ecJWK(&one.PublicKey)
	m["kid"] = "x"
	k, err := parseKey(marshal(m), knownAlgorithms())
	if err != nil {
		t.Fatal(err)
	}
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if !k.public.Equal(one.Public()) || k.public.Equal(other.Public()) {
		t.Error(fmt.Sprintf("%T", k.public), "does not tell keys apart")
	}
}
