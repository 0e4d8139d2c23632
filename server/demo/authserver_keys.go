package demo

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// This file, and the yardstick of bench, know jwx.

// signer is a private key with its name and its only algorithm.
type signer struct {
	id      string
	alg     jwa.SignatureAlgorithm
	private crypto.Signer
	retired time.Time // zero: in use or to come
}

// newSigner makes a key for the algorithm; its id is the thumbprint of RFC 7638.
func newSigner(alg jwa.SignatureAlgorithm) (*signer, error) {
	var key crypto.Signer
	var err error
	switch alg {
	case jwa.ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jwa.ES384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jwa.RS256, jwa.RS384:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		return nil, fmt.Errorf("no keys for algorithm %s", alg)
	}
	if err != nil {
		return nil, err
	}
	return asSigner(alg, key)
}

func asSigner(alg jwa.SignatureAlgorithm, key crypto.Signer) (*signer, error) {
	public, err := jwk.FromRaw(key.Public())
	if err != nil {
		return nil, err
	}
	if err := jwk.AssignKeyID(public); err != nil {
		return nil, err
	}
	return &signer{id: public.KeyID(), alg: alg, private: key}, nil
}

// jwk is the JSON Web Key of the private or the public half.
func (k *signer) jwk(private bool) (jsontext.Value, error) {
	var raw any = k.private.Public()
	if private {
		raw = k.private
	}
	key, err := jwk.FromRaw(raw)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(key.Set(jwk.KeyIDKey, k.id), key.Set(jwk.AlgorithmKey, k.alg), key.Set(jwk.KeyUsageKey, "sig")); err != nil {
		return nil, err
	}
	return json.Marshal(key)
}

// sign makes a compact JWS with the header alg, kid and typ.
func (k *signer) sign(typ string, payload []byte) (string, error) {
	header := jws.NewHeaders()
	if err := errors.Join(header.Set(jws.KeyIDKey, k.id), header.Set(jws.TypeKey, typ)); err != nil {
		return "", err
	}
	token, err := jws.Sign(payload, jws.WithKey(k.alg, k.private, jws.WithProtectedHeaders(header)))
	return string(token), err
}

// opened verifies a compact JWS with the one of the keys that its kid names and returns header type and payload.
func opened(token string, keys []*signer) (typ string, payload []byte, err error) {
	if strings.Count(token, ".") != 2 || strings.HasPrefix(token, "{") {
		return "", nil, errors.New("not a compact JWS")
	}
	message, err := jws.ParseString(token)
	if err != nil || len(message.Signatures()) != 1 {
		return "", nil, errors.New("not a JWS")
	}
	header := message.Signatures()[0].ProtectedHeaders()
	if len(header.Critical()) > 0 {
		return "", nil, errors.New("crit is not supported")
	}
	for _, k := range keys {
		if k.id == header.KeyID() && k.alg == header.Algorithm() {
			payload, err := jws.Verify([]byte(token), jws.WithKey(k.alg, k.private.Public()))
			return header.Type(), payload, err
		}
	}
	return "", nil, errors.New("no such key")
}

// prove makes a DPoP proof: its header carries the public key instead of naming it.
func (k *signer) prove(payload []byte) (string, error) {
	public, err := jwk.FromRaw(k.private.Public())
	if err != nil {
		return "", err
	}
	header := jws.NewHeaders()
	if err := errors.Join(header.Set(jws.TypeKey, "dpop+jwt"), header.Set(jws.JWKKey, public)); err != nil {
		return "", err
	}
	proof, err := jws.Sign(payload, jws.WithKey(k.alg, k.private, jws.WithProtectedHeaders(header)))
	return string(proof), err
}

// openedProof verifies a DPoP proof with the key that it carries and returns the key's thumbprint (RFC 7638) and the payload.
func openedProof(proof string) (thumbprint string, payload []byte, err error) {
	if strings.Count(proof, ".") != 2 || strings.HasPrefix(proof, "{") || len(proof) > 4096 {
		return "", nil, errors.New("not a compact JWS")
	}
	message, err := jws.ParseString(proof)
	if err != nil || len(message.Signatures()) != 1 {
		return "", nil, errors.New("not a JWS")
	}
	header := message.Signatures()[0].ProtectedHeaders()
	key := header.JWK()
	switch {
	case header.Type() != "dpop+jwt" || len(header.Critical()) > 0:
		return "", nil, errors.New("typ is not dpop+jwt, or crit is there")
	case !slices.Contains(proofAlgorithms(), header.Algorithm().String()):
		return "", nil, errors.New("alg is not supported")
	case key == nil:
		return "", nil, errors.New("jwk is missing")
	}
	if private, err := jwk.IsPrivateKey(key); err != nil || private {
		return "", nil, errors.New("jwk is not a public key")
	}
	if payload, err = jws.Verify([]byte(proof), jws.WithKey(header.Algorithm(), key)); err != nil {
		return "", nil, errors.New("the signature is not the key's")
	}
	sum, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", nil, errors.New("jwk has no thumbprint")
	}
	return base64.RawURLEncoding.EncodeToString(sum), payload, nil
}

// keyRing holds the issuer's keys: the one that signs, the next one, already published so that verifiers know it before its
// first token, and the last one for as long as tokens of it may be alive. ES256 and RS256 take turns.
type keyRing struct {
	path string
	mu   sync.RWMutex
	keys []*signer // next, current, retired
}

// storedKey is a signer in the file.
type storedKey struct {
	Algorithm string    `json:"alg"`
	PKCS8     []byte    `json:"pkcs8"`
	Retired   time.Time `json:"retired,omitzero"`
}

func loadKeyRing(dir string) (*keyRing, error) {
	r := &keyRing{path: filepath.Join(dir, "issuer-keys.json")}
	text, err := os.ReadFile(r.path)
	if errors.Is(err, os.ErrNotExist) {
		current, err := newSigner(jwa.ES256)
		if err != nil {
			return nil, err
		}
		next, err := newSigner(jwa.RS256)
		if err != nil {
			return nil, err
		}
		r.keys = []*signer{next, current}
		return r, r.save()
	}
	if err != nil {
		return nil, err
	}
	var stored []storedKey
	if err := json.Unmarshal(text, &stored); err != nil || len(stored) < 2 {
		return nil, fmt.Errorf("reading %s: %w", r.path, errors.Join(err, errors.New("not two keys")))
	}
	for _, k := range stored {
		private, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", r.path, err)
		}
		signs, ok := private.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("reading %s: a key that does not sign", r.path)
		}
		s, err := asSigner(jwa.SignatureAlgorithm(k.Algorithm), signs)
		if err != nil {
			return nil, err
		}
		s.retired = k.Retired
		r.keys = append(r.keys, s)
	}
	return r, nil
}

// alive lists the keys that are published at now.
func (r *keyRing) alive(now time.Time) []*signer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*signer
	for _, k := range r.keys {
		if k.retired.IsZero() || now.Before(k.retired.Add(accessLifetime+2*clockLeeway)) {
			out = append(out, k)
		}
	}
	return out
}

func (r *keyRing) current() *signer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.keys[1]
}

// public is the keys of the JWKS.
func (r *keyRing) public(now time.Time) []jsontext.Value {
	var out []jsontext.Value
	for _, k := range r.alive(now) {
		if public, err := k.jwk(false); err == nil { // it was made from the same key before
			out = append(out, public)
		}
	}
	return out
}

func (r *keyRing) rotate(now time.Time) error {
	kept := r.alive(now)
	next, err := newSigner(r.current().alg) // the one that becomes current has the other algorithm
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.keys
	retired := *kept[1]
	retired.retired = now
	r.keys = append([]*signer{next, kept[0], &retired}, kept[2:]...)
	if err := r.save(); err != nil {
		r.keys = old
		return err
	}
	return nil
}

// save writes the ring; the caller holds it alone.
func (r *keyRing) save() error {
	var stored []storedKey
	for _, k := range r.keys {
		der, err := x509.MarshalPKCS8PrivateKey(k.private)
		if err != nil {
			return err
		}
		stored = append(stored, storedKey{k.alg.String(), der, k.retired})
	}
	text, err := json.Marshal(stored)
	if err != nil {
		return err
	}
	return writeFile(r.path, text, 0o600)
}

// clientKeys are app-backend's: ES384, then RS384, the two that SMART Backend Services asks servers to take.
type clientKeys struct{ keys []*signer }

func loadClientKeys(dir string) (*clientKeys, error) {
	c := &clientKeys{}
	for _, of := range []struct {
		alg  jwa.SignatureAlgorithm
		file string
	}{{jwa.ES384, "app-backend.jwk.json"}, {jwa.RS384, "app-backend-rs384.jwk.json"}} {
		k, err := loadClientKey(filepath.Join(dir, of.file), of.alg)
		if err != nil {
			return nil, err
		}
		c.keys = append(c.keys, k)
	}
	return c, nil
}

func loadClientKey(path string, alg jwa.SignatureAlgorithm) (*signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		k, err := newSigner(alg)
		if err != nil {
			return nil, err
		}
		if text, err = k.jwk(true); err != nil {
			return nil, err
		}
		return k, writeFile(path, append(text, '\n'), 0o600)
	}
	if err != nil {
		return nil, err
	}
	key, err := jwk.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	var raw any
	if err := key.Raw(&raw); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	private, ok := raw.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("reading %s: not a private key", path)
	}
	return asSigner(alg, private)
}
