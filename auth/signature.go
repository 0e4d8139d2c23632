package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// This is the one file that knows jwx, which does three things here: it turns one JSON Web Key into a public key, it
// checks one signature with a key and an algorithm that we name, and it makes one, by which we prove who asks about a token. It never sees a token whole, so none of what it would
// accept in a header or a set (crit, b64, oct keys, JSON serialisation) can matter.

// key is one signature key of the issuer. It is bound to a single algorithm (RFC 8725 section 3.1); a token does not
// get a say.
type key struct {
	id, alg  string
	public   comparableKey
	verifier jws.Verifier
	alive    atomic.Bool // false as soon as the issuer no longer publishes the key: its cached tokens die with it
	dying    *time.Timer // ends the grace of a key that was withdrawn; nil when it was not. Only the one fetch at a time touches it
}

// expire lets a withdrawn key live for its grace, counted from the first time.
func (k *key) expire(grace time.Duration) {
	if k.dying == nil {
		k.dying = time.AfterFunc(grace, func() { k.alive.Store(false) })
	}
}

// revive reports whether the key is alive, and ends its grace: it is published.
func (k *key) revive() bool {
	if k.dying != nil && !k.dying.Stop() {
		return false // its end has come, or is coming
	}
	k.dying = nil
	return k.alive.Load()
}

type comparableKey interface{ Equal(crypto.PublicKey) bool }

func (k *key) same(other *key) bool { return k.alg == other.alg && k.public.Equal(other.public) }

// verify checks the signature over the received bytes.
func (k *key) verify(c compact) error {
	if k.alg == jwa.ES256.String() && len(c.sig) != 64 {
		return fmt.Errorf("%w of a wrong length", ErrForged)
	}
	if err := k.verifier.Verify(c.signed, c.sig, k.public); err != nil {
		return ErrForged
	}
	return nil
}

// signingAlgorithm is the algorithm that a key of ours signs with.
func signingAlgorithm(public any) (string, error) {
	alg, _, err := fit(public, "", []string{jwa.ES256.String(), jwa.EdDSA.String(), jwa.PS256.String()})
	return alg, err
}

// sign signs with a key of ours.
func sign(alg string, key crypto.Signer, input []byte) ([]byte, error) {
	signer, err := jws.NewSigner(jwa.SignatureAlgorithm(alg))
	if err != nil {
		return nil, fmt.Errorf("making a signer: %w", err)
	}
	sig, err := signer.Sign(input, key)
	if err != nil {
		return nil, errors.New("signing failed")
	}
	return sig, nil
}

// knownAlgorithms are the algorithms that may be allowed, all of them asymmetric.
func knownAlgorithms() []string {
	return []string{jwa.PS256.String(), jwa.ES256.String(), jwa.EdDSA.String(), jwa.RS256.String()}
}

// jwkFields are what we read of a key by ourselves (RFC 7517 section 4).
type jwkFields struct {
	ID         string   `json:"kid"`
	Use        string   `json:"use"`
	Operations []string `json:"key_ops"`
	Algorithm  string   `json:"alg"`

	material `json:",inline"`

	// Members of private keys (RFC 7518 sections 6.2.2, 6.3.2, RFC 8037) and of symmetric ones.
	Private   jsontext.Value `json:"d"`
	Prime     jsontext.Value `json:"p"`
	Prime2    jsontext.Value `json:"q"`
	Symmetric jsontext.Value `json:"k"`
}

// material are the public members of a key (RFC 7518 sections 6.2.1 and 6.3.1, RFC 8037 section 2).
type material struct {
	Type     string `json:"kty"`
	Curve    string `json:"crv,omitzero"`
	Modulus  string `json:"n,omitzero"`
	Exponent string `json:"e,omitzero"`
	X        string `json:"x,omitzero"`
	Y        string `json:"y,omitzero"`
}

// alone is a JSON Web Key of the material and nothing else: the library, which does not care about the case of names and is patient with
// base64, is not shown what it could take for something else than we have read.
func (m material) alone() ([]byte, error) {
	for _, s := range []string{m.Modulus, m.Exponent, m.X, m.Y} {
		if _, err := base64.RawURLEncoding.Strict().DecodeString(s); err != nil || strings.ContainsAny(s, "\r\n") {
			return nil, errors.New("key material is not base64url")
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, errors.New("key does not parse")
	}
	return b, nil
}

// errLeaked says that an issuer publishes secret key material: worth an alarm.
var errLeaked = errors.New("key document holds secret key material")

// parseKey accepts a key that is fit to verify access tokens. A key that is not is left out, and takes no other with it.
func parseKey(raw jsontext.Value, allowed []string) (*key, error) {
	var f jwkFields
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, errors.New("key does not parse")
	}
	switch {
	case f.Type == "oct" || len(f.Private)+len(f.Prime)+len(f.Prime2)+len(f.Symmetric) != 0:
		return nil, errLeaked
	case f.Use != "" && f.Use != "sig", f.Operations != nil && !slices.Contains(f.Operations, "verify"):
		return nil, errors.New("key is not for signatures")
	case !printable(f.ID, maxKeyID):
		return nil, errors.New("key has no usable kid")
	}
	alone, err := f.alone()
	if err != nil {
		return nil, err
	}
	parsed, err := jwk.ParseKey(alone)
	if err != nil {
		return nil, errors.New("key does not parse")
	}
	var public any
	if err := parsed.Raw(&public); err != nil {
		return nil, errors.New("key has no usable material")
	}
	alg, checked, err := fit(public, f.Algorithm, allowed)
	if err != nil {
		return nil, err
	}
	verifier, err := jws.NewVerifier(jwa.SignatureAlgorithm(alg))
	if err != nil {
		return nil, fmt.Errorf("making a verifier: %w", err)
	}
	k := &key{id: f.ID, alg: alg, public: checked, verifier: verifier}
	k.alive.Store(true)
	return k, nil
}

// proofKeyFields are what a client may say of its key in a proof. Private members have no place among them.
type proofKeyFields struct {
	Type        string   `json:"kty"`
	Curve       string   `json:"crv"`
	X           string   `json:"x"`
	Y           string   `json:"y"`
	Modulus     string   `json:"n"`
	Exponent    string   `json:"e"`
	ID          string   `json:"kid"`
	Use         string   `json:"use"`
	Operations  []string `json:"key_ops"`
	Algorithm   string   `json:"alg"`
	Extractable bool     `json:"ext"`
}

// maxProofModulus is an RSA modulus of 4096 bits in base64url: whoever has a token may ask for a verification with each request.
const maxProofModulus = 683

// parseProofKey takes the key of a DPoP proof, for the algorithm that its header names, and its thumbprint (RFC 7638). Errors say
// what is wrong and nothing of the key.
func parseProofKey(raw jsontext.Value, algorithm string) (*key, string, error) {
	var f proofKeyFields
	if err := json.Unmarshal(raw, &f, json.RejectUnknownMembers(true)); err != nil {
		return nil, "", errors.New("jwk is no public key")
	}
	if f.Use != "" && f.Use != "sig" || f.Operations != nil && !slices.Contains(f.Operations, "verify") || f.Algorithm != "" && f.Algorithm != algorithm {
		return nil, "", errors.New("jwk is not for the signature")
	}
	if !slices.Contains(ProofAlgorithms(), algorithm) {
		return nil, "", errors.New("alg is not allowed")
	}
	if len(f.Modulus) > maxProofModulus {
		return nil, "", errors.New("jwk is too large")
	}
	parsed, err := jwk.ParseKey(raw)
	if err != nil {
		return nil, "", errors.New("jwk does not parse")
	}
	var public any
	if err := parsed.Raw(&public); err != nil {
		return nil, "", errors.New("jwk has no usable material")
	}
	alg, checked, err := fit(public, algorithm, ProofAlgorithms())
	if err != nil {
		return nil, "", errors.New("jwk is not fit")
	}
	sum, err := parsed.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, "", errors.New("jwk has no thumbprint")
	}
	verifier, err := jws.NewVerifier(jwa.SignatureAlgorithm(alg))
	if err != nil {
		return nil, "", fmt.Errorf("making a verifier: %w", err)
	}
	return &key{alg: alg, public: checked, verifier: verifier}, base64.RawURLEncoding.EncodeToString(sum), nil
}

// fit checks the strength of a public key and binds it to its one algorithm: the one that it names, or the first that its
// type leaves; for RSA that is RS256, which OpenID Connect makes the default, unless only PS256 is allowed.
func fit(public any, named string, allowed []string) (string, comparableKey, error) {
	var candidates []jwa.SignatureAlgorithm
	var checked comparableKey
	switch k := public.(type) {
	case *rsa.PublicKey:
		// Above 8192 bits one signature costs so much that the key itself is an attack.
		if bits := k.N.BitLen(); bits < 2048 || bits > 8192 || k.E < 65537 || k.E%2 == 0 {
			return "", nil, errors.New("RSA key is too weak or too large")
		}
		candidates, checked = []jwa.SignatureAlgorithm{jwa.RS256, jwa.PS256}, k
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", nil, errors.New("curve is not P-256")
		}
		if _, err := k.ECDH(); err != nil {
			return "", nil, errors.New("point is not on the curve")
		}
		candidates, checked = []jwa.SignatureAlgorithm{jwa.ES256}, k
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return "", nil, errors.New("Ed25519 key has a wrong length")
		}
		candidates, checked = []jwa.SignatureAlgorithm{jwa.EdDSA}, k
	default:
		return "", nil, errors.New("key type is not supported")
	}
	for _, c := range candidates {
		if (named == "" || named == c.String()) && slices.Contains(allowed, c.String()) {
			return c.String(), checked, nil
		}
	}
	return "", nil, errors.New("algorithm is not allowed for the key")
}
