package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testAudience = "https://chart.example.test"

// issuer is a small authorization server on a real socket: it publishes keys and signs whatever it is told to.
type issuer struct {
	server  *httptest.Server
	fetches atomic.Int64

	mu      sync.Mutex
	private map[string]crypto.Signer
	public  map[string]map[string]any
	answer  http.HandlerFunc // instead of the keys, when set
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	is := &issuer{private: map[string]crypto.Signer{}, public: map[string]map[string]any{}}
	is.server = httptest.NewServer(http.HandlerFunc(is.serve))
	t.Cleanup(is.server.Close)
	is.addEC("es")
	return is
}

func (is *issuer) serve(w http.ResponseWriter, r *http.Request) {
	is.fetches.Add(1)
	is.mu.Lock()
	answer := is.answer
	is.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	w.Header().Set("Cache-Control", "max-age=600")
	_, _ = w.Write(is.document())
}

// answers replaces the key document; nil puts it back.
func (is *issuer) answers(h http.HandlerFunc) {
	is.mu.Lock()
	defer is.mu.Unlock()
	is.answer = h
}

func (is *issuer) document() []byte {
	is.mu.Lock()
	defer is.mu.Unlock()
	keys := []any{}
	for _, k := range is.public {
		keys = append(keys, k)
	}
	return marshal(map[string]any{"keys": keys})
}

func (is *issuer) add(kid string, private crypto.Signer, public map[string]any) {
	is.mu.Lock()
	defer is.mu.Unlock()
	public["kid"] = kid
	is.private[kid], is.public[kid] = private, public
}

func (is *issuer) addEC(kid string) {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	is.add(kid, k, ecJWK(&k.PublicKey))
}

func (is *issuer) addEd(kid string) {
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	is.add(kid, private, map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(public), "alg": "EdDSA"})
}

func (is *issuer) addRSA(t testing.TB, kid, alg string, bits int) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	is.add(kid, k, rsaJWK(&k.PublicKey, alg))
}

func (is *issuer) remove(kid string) {
	is.mu.Lock()
	defer is.mu.Unlock()
	delete(is.public, kid)
}

func ecJWK(k *ecdsa.PublicKey) map[string]any {
	point, _ := k.Bytes()
	return map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:]), "use": "sig", "alg": "ES256"}
}

func rsaJWK(k *rsa.PublicKey, alg string) map[string]any {
	return map[string]any{"kty": "RSA", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes()), "alg": alg}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// claims are good ones with some replaced; a nil takes a claim away.
func (is *issuer) claims(over map[string]any) string {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": is.server.URL, "aud": testAudience, "sub": "dr-rivera", "client_id": "app", "jti": "t-1", "sid": "s-1",
		"iat": now, "exp": now + 600, "scope": "user/*.cruds openid", "roles": []string{"clinician"},
		"fhirUser": "Practitioner/p1", "name": "Dr. Ana Rivera", "acr": "urn:chartkeep:acr:mfa", "amr": []string{"pwd", "otp"},
		"auth_time": now,
	}
	for k, v := range over {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return string(marshal(c))
}

// sign signs any header and payload text with the key kid.
func (is *issuer) sign(kid, header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(is.signature(kid, header, input))
}

func (is *issuer) signature(kid, header, input string) []byte {
	is.mu.Lock()
	private := is.private[kid]
	is.mu.Unlock()
	hash := sha256.Sum256([]byte(input))
	switch k := private.(type) {
	case *ecdsa.PrivateKey:
		r, s, _ := ecdsa.Sign(rand.Reader, k, hash[:])
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		return ed25519.Sign(k, []byte(input))
	case *rsa.PrivateKey:
		var h struct{ Alg string }
		_ = json.Unmarshal([]byte(header), &h)
		if h.Alg == "PS256" {
			sig, _ := rsa.SignPSS(rand.Reader, k, crypto.SHA256, hash[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			return sig
		}
		sig, _ := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, hash[:])
		return sig
	}
	panic("no such key")
}

const esHeader = `{"alg":"ES256","kid":"es","typ":"at+jwt"}`

// token is a good one with some claims replaced.
func (is *issuer) token(over map[string]any) string { return is.sign("es", esHeader, is.claims(over)) }

// trust believes all that the issuer says.
func (is *issuer) trust() IssuerConfig {
	return IssuerConfig{Issuer: is.server.URL, Audience: testAudience, JWKSURL: is.server.URL + "/jwks", AssertsSignIn: true, RolesInToken: true}
}

func (is *issuer) config() VerifierConfig {
	return VerifierConfig{Issuers: []IssuerConfig{is.trust()}, Insecure: true}
}

func newTestVerifier(t testing.TB, cfg VerifierConfig) *Verifier {
	t.Helper()
	v, err := NewVerifier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func ask(v *Verifier, token string) (*Principal, error) {
	return v.Authenticate(context.Background(), Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}})
}

// clock is a hand-set time for what depends on it; it starts at the real one.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time           { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(by time.Duration) { c.offset.Add(int64(by)) }
