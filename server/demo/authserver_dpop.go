package demo

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/lestrrat-go/jwx/v2/jwa"
)

// DPoP (RFC 9449): a client that shows a key at the token endpoint gets tokens that are bound to it. A public client's refresh tokens
// are bound as well, for nothing else says that it is the same client (section 5).

// proofAlgorithms are those of proofs.
func proofAlgorithms() []string {
	return []string{jwa.ES256.String(), jwa.EdDSA.String(), jwa.PS256.String()}
}

const (
	proofLife = time.Minute // that iat may lie before or after now
	maxProofs = 10_000      // remembered at once; more are refused until the oldest are too old
)

// usedProofs are those of the last minutes.
type usedProofs struct {
	mu   sync.Mutex
	seen map[string]time.Time // jti and key, to when the proof is too old by itself
}

// first reports whether a proof comes for the first time, and there is room to remember it.
func (u *usedProofs) first(id string, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.seen[id]; ok {
		return false
	}
	if len(u.seen) >= maxProofs {
		for old, until := range u.seen {
			if now.After(until) {
				delete(u.seen, old)
			}
		}
		if len(u.seen) >= maxProofs {
			return false
		}
	}
	u.seen[id] = now.Add(2 * proofLife)
	return true
}

// proofClaims are those of RFC 9449 section 4.2.
type proofClaims struct {
	ID     string `json:"jti"`
	Method string `json:"htm"`
	Target string `json:"htu"`
	Issued int64  `json:"iat"`
	Token  string `json:"ath,omitzero"`
	Nonce  string `json:"nonce,omitzero"`
}

// holder returns the thumbprint of the key that a request to the token endpoint shows, "" when it shows none. When the proof is not
// good the request is answered, and ok is false.
func (s *AuthServer) holder(w http.ResponseWriter, r *http.Request) (thumbprint string, ok bool) {
	proofs := r.Header.Values("DPoP")
	if len(proofs) == 0 {
		return "", true
	}
	thumbprint, err := s.proven(proofs)
	if err != nil {
		refuse(w, http.StatusBadRequest, "invalid_dpop_proof", err.Error())
		return "", false
	}
	return thumbprint, true
}

func (s *AuthServer) proven(proofs []string) (string, error) {
	if len(proofs) != 1 {
		return "", errors.New("one DPoP header, please")
	}
	thumbprint, payload, err := openedProof(proofs[0])
	if err != nil {
		return "", err
	}
	var c proofClaims
	now := s.cfg.Now()
	switch err := json.Unmarshal(payload, &c); {
	case err != nil:
		return "", errors.New("the claims do not parse")
	case c.Method != http.MethodPost || c.Target != s.cfg.Issuer+"/token":
		return "", errors.New("htm and htu must be POST and the token endpoint")
	case now.Sub(time.Unix(c.Issued, 0)).Abs() > proofLife:
		return "", errors.New("iat is not now")
	case c.ID == "" || len(c.ID) > 256 || !s.proofs.first(digest(thumbprint+" "+c.ID), now):
		return "", errors.New("jti is missing or was used before")
	}
	return thumbprint, nil
}

// Holder is a client's key, to which its tokens can be bound.
type Holder struct{ key *signer }

// OpenHolder reads the key in a file, a private JWK, or makes it there (P-256).
func OpenHolder(path string) (*Holder, error) {
	key, err := loadClientKey(path, jwa.ES256)
	if err != nil {
		return nil, fmt.Errorf("opening a key for DPoP: %w", err)
	}
	return &Holder{key}, nil
}

// Thumbprint is what tokens that are bound to the key name it by (RFC 7638).
func (h *Holder) Thumbprint() string { return h.key.id }

// Proof makes a proof for one request. Token is "" at the token endpoint, nonce "" as long as the server has given none.
func (h *Holder) Proof(method, target, token, nonce string, now time.Time) (string, error) {
	c := proofClaims{ID: rand.Text(), Method: method, Target: target, Issued: now.Unix(), Nonce: nonce}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		c.Token = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("making a proof: %w", err)
	}
	proof, err := h.key.prove(payload)
	if err != nil {
		return "", fmt.Errorf("making a proof: %w", err)
	}
	return proof, nil
}
