package auth

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"
)

// Errors of Verify. ErrToken and ErrNoToken become 401; ErrOverload and ErrKeys become 503.
var (
	ErrNoToken  = errors.New("auth: no bearer token")
	ErrRequest  = errors.New("auth: malformed authorization request") // 400 invalid_request
	ErrToken    = errors.New("auth: token refused")
	ErrKeys     = errors.New("auth: issuer keys are unavailable")
	ErrOverload = errors.New("auth: too many verifications at once")
)

// VerifierConfig configures a Verifier.
type VerifierConfig struct {
	Issuer      string        // exact value of iss
	Audience    string        // value that aud must contain
	JWKSURL     string        // where the keys are
	Algorithms  []string      // nil = PS256, ES256, EdDSA, RS256
	Leeway      time.Duration // 30 s when 0
	MaxLifetime time.Duration // exp-iat at most; 24 h when 0
	CacheFor    time.Duration // verified-token cache; 60 s when 0
	Insecure    bool          // allow http for JWKSURL on loopback (demo)
	Client      *http.Client
	Logger      *slog.Logger
	Now         func() time.Time
}

// Verifier turns bearer tokens into Principals. Safe for concurrent use.
type Verifier struct{ unwritten int }

// NewVerifier makes a Verifier; it fetches no key before Run.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) { panic("unwritten") }

// Run keeps the issuer's keys fresh until ctx is done; readers never wait for it.
func (v *Verifier) Run(ctx context.Context) error { panic("unwritten") }

// Authenticate takes the values of all Authorization headers of a request, as received. It checks that there is exactly
// one, of scheme Bearer, and verifies the token. The bytes are not kept.
func (v *Verifier) Authenticate(ctx context.Context, headers [][]byte) (*Principal, error) {
	panic("unwritten")
}

// Revoke makes tokens dead at once on this instance: by session, by subject (issued before the time), by token id.
func (v *Verifier) Revoke(r Revocation) { panic("unwritten") }

// Revocation names what is revoked; Kind is "token", "session" or "subject".
type Revocation struct {
	Kind, ID  string
	NotBefore time.Time
}

// Healthy returns nil when keys are held and fresh enough.
func (v *Verifier) Healthy() error { panic("unwritten") }

// VerifierStats is a snapshot.
type VerifierStats struct {
	Hits, Misses, Refused uint64
	Keys                  int
	KeysFetched           time.Time
}

// Stats returns the snapshot.
func (v *Verifier) Stats() VerifierStats { panic("unwritten") }
