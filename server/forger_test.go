package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// forger is an authorization server on a real socket that publishes whatever keys it is told to, and signs whatever it is told to.
type forger struct {
	server  *httptest.Server
	issuer  string
	fetches atomic.Int64
	now     func() time.Time

	mu     sync.Mutex
	keys   map[string]crypto.Signer  // by kid
	public map[string]map[string]any // as they are published
	answer http.HandlerFunc          // instead of the keys, when set
}

func newForger(t testing.TB, now func() time.Time) *forger {
	t.Helper()
	f := &forger{issuer: "https://issuer.test", now: now, keys: map[string]crypto.Signer{}, public: map[string]map[string]any{}}
	f.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.fetches.Add(1)
		f.mu.Lock()
		answer := f.answer
		f.mu.Unlock()
		if answer != nil {
			answer(w, r)
			return
		}
		_, _ = w.Write(f.document())
	}))
	t.Cleanup(f.server.Close)
	f.addEC("es")
	f.addRSA(t, "rs", "RS256")
	f.addRSA(t, "ps", "PS256")
	pub, private, _ := ed25519.GenerateKey(rand.Reader)
	f.add("ed", private, map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(pub), "alg": "EdDSA"})
	return f
}

func (f *forger) add(kid string, key crypto.Signer, public map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	public["kid"] = kid
	f.keys[kid], f.public[kid] = key, public
}

func (f *forger) addEC(kid string) {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	point, _ := k.PublicKey.Bytes()
	f.add(kid, k, map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:]), "use": "sig", "alg": "ES256"})
}

func (f *forger) addRSA(t testing.TB, kid, alg string) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	f.add(kid, k, map[string]any{"kty": "RSA", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes()), "alg": alg})
}

// withdraw stops publishing a key; it goes on being good for signing.
func (f *forger) withdraw(kid string) (again func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.public[kid]
	delete(f.public, kid)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.public[kid] = was
	}
}

// answers replaces the key document; nil puts it back.
func (f *forger) answers(h http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = h
}

func (f *forger) document(more ...map[string]any) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []any{}
	for _, k := range f.public {
		list = append(list, k)
	}
	for _, k := range more {
		list = append(list, k)
	}
	return jsonOf(map[string]any{"keys": list})
}

// claims are good ones of a role with some replaced; a nil takes a claim away.
func (f *forger) claims(audience, role string, over map[string]any) string {
	now := f.now().Unix()
	c := map[string]any{
		"iss": f.issuer, "aud": audience, "sub": role + "-1", "client_id": "test-app", "jti": rand.Text(), "iat": now, "exp": now + 600,
		"scope": "user/*.cruds", "roles": []string{role}, "acr": "urn:chartkeep:acr:mfa", "amr": []string{"pwd", "otp"}, "auth_time": now,
	}
	if role == "backend" { // nobody signs in to a service
		c["scope"] = "system/*.cruds"
		delete(c, "acr")
		delete(c, "amr")
		delete(c, "auth_time")
	}
	for k, v := range over {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return string(jsonOf(c))
}

// sign makes a token of a header and claims as they are, with the key and by the algorithm.
func (f *forger) sign(header, claims, kid, alg string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(claims))
	return signed + "." + b64(f.signature(signed, kid, alg))
}

func (f *forger) signature(signed, kid, alg string) []byte {
	f.mu.Lock()
	key := f.keys[kid]
	f.mu.Unlock()
	sum := sha256.Sum256([]byte(signed))
	var sig []byte
	switch alg {
	case "ES256":
		r, s, _ := ecdsa.Sign(rand.Reader, key.(*ecdsa.PrivateKey), sum[:])
		sig = make([]byte, 64)
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
	case "RS256":
		sig, _ = rsa.SignPKCS1v15(rand.Reader, key.(*rsa.PrivateKey), crypto.SHA256, sum[:])
	case "PS256":
		sig, _ = rsa.SignPSS(rand.Reader, key.(*rsa.PrivateKey), crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case "EdDSA":
		sig = ed25519.Sign(key.(ed25519.PrivateKey), []byte(signed))
	}
	return sig
}

// token is an ES256 access token of claims.
func (f *forger) token(claims string) string {
	return f.sign(`{"alg":"ES256","kid":"es","typ":"at+jwt"}`, claims, "es", "ES256")
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func jsonOf(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// keyedWith is a way to take a public key for a secret.
type keyedWith struct {
	name string
	mac  func(signed string) []byte
}

// symmetric are MACs keyed with what everybody knows of the RSA key.
func (f *forger) symmetric() []keyedWith {
	public := f.keys["rs"].Public().(*rsa.PublicKey)
	spki, _ := x509.MarshalPKIXPublicKey(public)
	var list []keyedWith
	for name, key := range map[string][]byte{
		"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), "DER": spki, "n": public.N.Bytes(), "n in base64": []byte(f.public["rs"]["n"].(string)), "nothing": nil,
	} {
		list = append(list, keyedWith{name, func(signed string) []byte {
			h := hmac.New(sha256.New, key)
			h.Write([]byte(signed))
			return h.Sum(nil)
		}})
	}
	return list
}

// unencoded is a JWS of RFC 7797: its payload is not base64url.
func (f *forger) unencoded(claims string) string {
	signed := b64([]byte(`{"alg":"ES256","kid":"es","typ":"at+jwt","b64":false,"crit":["b64"]}`)) + "." + claims
	return signed + "." + b64(f.signature(signed, "es", "ES256"))
}

// der is a good ECDSA signature in ASN.1.
func (f *forger) der(signed string) []byte {
	sum := sha256.Sum256([]byte(signed))
	sig, _ := ecdsa.SignASN1(rand.Reader, f.keys["es"].(*ecdsa.PrivateKey), sum[:])
	return sig
}

// respelt sets the bits of the last character that mean nothing: 256 bytes are 342 characters, and the last one has four to spare.
func respelt(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}
