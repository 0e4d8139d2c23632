package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Confirmation says by which keys the sender of a token shows that it is his: digests, in base64url, of the cnf claim
// (RFC 7800). The zero Confirmation is that of a bearer token.
type Confirmation struct {
	Key         string // jkt: thumbprint of the key that signs the proofs (RFC 9449 section 6.1)
	Certificate string // x5t#S256: digest of the TLS client certificate (RFC 8705 section 3.1)
}

// Errors of possession. Each is an ErrToken as well.
var (
	ErrBound = fmt.Errorf("%w: it is bound to a key that was not shown", ErrToken) // invalid_token, and DPoP is how to show it
	ErrProof = fmt.Errorf("%w: DPoP proof", ErrToken)                              // invalid_dpop_proof
	ErrNonce = fmt.Errorf("%w: DPoP proof without a nonce of ours", ErrToken)      // use_dpop_nonce: the client is to try again with Verifier.Nonce
)

// confirmation parses cnf. A means of confirmation that is not known here cannot be checked, and one that is not checked must not
// be there.
func confirmation(cnf jsontext.Value) (Confirmation, error) {
	if len(cnf) == 0 {
		return Confirmation{}, nil
	}
	var c struct {
		Key         *string `json:"jkt"`
		Certificate *string `json:"x5t#S256"`
	}
	if err := json.Unmarshal(cnf, &c, json.RejectUnknownMembers(true)); err != nil || c.Key == nil && c.Certificate == nil {
		return Confirmation{}, refuse("cnf names no means of confirmation that is known here")
	}
	var out Confirmation
	for from, to := range map[*string]*string{c.Key: &out.Key, c.Certificate: &out.Certificate} {
		if from == nil {
			continue
		}
		if sum, err := base64.RawURLEncoding.Strict().DecodeString(*from); err != nil || len(sum) != sha256.Size || len(*from) != 43 {
			return Confirmation{}, refuse("cnf is not a SHA-256 digest")
		}
		*to = *from
	}
	return out, nil
}

// accepts reports whether a token with this confirmation is bound as it must be.
func (b Binding) accepts(c Confirmation) bool {
	switch b {
	case BindingDPoP:
		return c.Key != ""
	case BindingMTLS:
		return c.Certificate != ""
	case BindingEither:
		return c != Confirmation{}
	default:
		return true
	}
}

// sent returns the principal of a token that its sender showed to be his. It must stay free of allocations for a bearer token.
func (v *Verifier) sent(c *Credentials, as scheme, token []byte, p *Principal) (*Principal, error) {
	if c.Proven || as == schemeBearer && p.Confirmation == (Confirmation{}) {
		return p, nil
	}
	if err := v.possesses(c, as, token, p); err != nil {
		v.refused.Add(1)
		return nil, err
	}
	return p, nil
}

// possesses checks that the sender holds what the token is bound to. It is asked of every request: a proof is good once.
func (v *Verifier) possesses(c *Credentials, as scheme, token []byte, p *Principal) error {
	bound := p.Confirmation
	if bound.Certificate != "" && !certified(c.Certificate, bound.Certificate) {
		return refuse("certificate is not the one that the token is bound to")
	}
	if as != schemeDPoP {
		if bound.Key != "" {
			return ErrBound
		}
		return nil
	}
	if bound.Key == "" {
		return refuse("DPoP scheme, and the token is bound to no key")
	}
	return v.proofs.check(c, token, bound.Key, v.demandsNonce(p), v.proofSignature)
}

// certified reports whether a certificate is the one with this digest.
func certified(certificate []byte, digest string) bool {
	if len(certificate) == 0 {
		return false
	}
	sum := sha256.Sum256(certificate)
	return subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(digest)) == 1
}

// demandsNonce reports whether proofs with this principal's tokens must carry a nonce of ours.
func (v *Verifier) demandsNonce(p *Principal) bool {
	for _, is := range v.issuers {
		if is.Issuer == p.Issuer {
			return is.ProofNonce == NonceAlways || is.ProofNonce == NonceAuto && is.Binding == BindingDPoP
		}
	}
	return true
}

// proofSignature checks the signature of a proof, in the same queue as those of tokens.
func (v *Verifier) proofSignature(k *key, c compact) error {
	err := v.signature(k, c)
	if errors.Is(err, ErrToken) {
		return badProof("signature")
	}
	return err
}

// Nonce returns the nonce that the next proof is to carry (RFC 9449 section 9), "" when proofs with this principal's tokens need
// none. With nil, of a caller who is not known yet, it always returns one.
func (v *Verifier) Nonce(p *Principal) string {
	if p != nil && (p.Confirmation.Key == "" || !v.demandsNonce(p)) {
		return ""
	}
	return v.proofs.nonces.current()
}

// ShareNonces makes the nonces those of a secret that all instances of a deployment know: each then accepts the others'. Call it
// before the first request; without it the secret is this process's own.
func (v *Verifier) ShareNonces(secret []byte) error { return v.proofs.nonces.derive(secret) }
