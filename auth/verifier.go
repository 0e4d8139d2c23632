package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
)

// Errors of Authenticate, to be tested with errors.Is. ErrToken and ErrNoToken become 401; ErrOverload, ErrKeys,
// ErrRevocations and ErrSessions become 503. Their texts name the check that failed and never quote the token.
var (
	ErrNoToken  = errors.New("auth: no bearer token")
	ErrRequest  = errors.New("auth: malformed authorization request") // 400 invalid_request
	ErrToken    = errors.New("auth: token refused")
	ErrKeys     = errors.New("auth: issuer keys are unavailable")
	ErrOverload = errors.New("auth: too many verifications at once")
)

// VerifierConfig configures a Verifier.
type VerifierConfig struct {
	Issuers  []IssuerConfig // at least one
	CacheFor time.Duration  // verified-token cache; 60 s when 0
	Insecure bool           // allow http for the issuers' URLs on loopback (demo)
	Base     string         // of this server's FHIR API: an absolute fhirUser below it names a record of ours; "" knows none
	Client   *http.Client

	ProofWindow time.Duration // that the iat of a DPoP proof may lie before or after now; 30 s when 0, 60 s at most

	Logger *slog.Logger
	Now    func() time.Time
	// Alert is told what an officer must know of an issuer (by its name, or iss), or of the clock of this process (issuer is ""), without a
	// secret in it, at most once in ten minutes each. nil: it is only logged.
	Alert func(issuer, desc string)

	Publications *Publications // for a start while an issuer does not answer; nil: nothing is kept
	Revocations  *Revocations  // nil: nothing is revoked
	Sessions     *Sessions     // nil: no session is ever over, and nobody remembers them
}

// withDefaults fills in what was left out and refuses what cannot be meant.
func (cfg VerifierConfig) withDefaults() (VerifierConfig, error) {
	if len(cfg.Issuers) == 0 || cfg.CacheFor < 0 {
		return cfg, errors.New("no issuer, or a negative duration")
	}
	if cfg.ProofWindow < 0 || cfg.ProofWindow > maxProofWindow {
		return cfg, fmt.Errorf("window of proofs is not between 0 and %v", maxProofWindow)
	}
	if cfg.ProofWindow == 0 {
		cfg.ProofWindow = proofWindow
	}
	cfg.Issuers = slices.Clone(cfg.Issuers)
	for i := range cfg.Issuers {
		var err error
		if cfg.Issuers[i], err = cfg.Issuers[i].withDefaults(); err != nil {
			return cfg, err
		}
	}
	if err := distinct(cfg.Issuers); err != nil {
		return cfg, err
	}
	if cfg.CacheFor == 0 {
		cfg.CacheFor = time.Minute
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		}}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Revocations == nil {
		var err error
		if cfg.Revocations, err = NewRevocations(context.Background(), RevocationConfig{Now: cfg.Now}); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// maxQueue is how many verifications may wait for a core. A flood of forged tokens fills it and is told to come back;
// cached tokens do not pass through it.
const maxQueue = 256

// Verifier turns bearer tokens into Principals. Safe for concurrent use.
type Verifier struct {
	issuers  []*trusted
	cacheFor time.Duration
	logger   *slog.Logger
	now      func() time.Time
	hasher   *hasher
	cache    *tokenCache
	revoked  *Revocations
	sessions *Sessions // may be nil
	logouts  logouts
	proofs   *proofs
	flights  singleflight.Group
	ahead    chan renewal
	alerts   alerts
	cores    chan struct{}
	queued   atomic.Int64

	hits, misses, refused atomic.Uint64
	strangers             [stages]atomic.Uint64
}

// NewVerifier makes a Verifier; it fetches no key before Run, or before the first token needs one.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configuring verifier: %w", err)
	}
	v := &Verifier{
		cacheFor: cfg.CacheFor, logger: cfg.Logger, now: cfg.Now, revoked: cfg.Revocations, sessions: cfg.Sessions,
		hasher: newHasher(), cache: newTokenCache(cacheCapacity), proofs: newProofs(cfg.ProofWindow, cfg.Now),
		cores: make(chan struct{}, runtime.GOMAXPROCS(0)), ahead: make(chan renewal, maxAhead), alerts: alerts{tell: cfg.Alert, logger: cfg.Logger},
	}
	for _, is := range cfg.Issuers {
		t, err := newTrusted(cfg, is, func(desc string) { v.alerts.raise(is.label(), desc) })
		if err != nil {
			return nil, fmt.Errorf("configuring verifier: %w", err)
		}
		v.issuers = append(v.issuers, t)
	}
	return v, nil
}

// Run keeps the issuers' keys fresh until ctx is done; readers never wait for it. Afterwards the keys that are held go
// on being used until they are too old.
func (v *Verifier) Run(ctx context.Context) error {
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(v.cacheFor)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				v.cache.sweep(v.now())
			case <-ctx.Done():
				return
			}
		}
	})
	all.Go(func() { v.renewAll(ctx) })
	all.Go(func() { v.watchClock(ctx) })
	for _, is := range v.issuers {
		if is.keys != nil {
			all.Go(func() { is.keys.run(ctx) })
		}
	}
	all.Wait()
	return nil
}

// Authenticate checks that a request carries exactly one token, and verifies it. A token that was verified lately is
// answered from memory; one that was not is verified once, however many requests carry it. Whether the sender holds the key
// that a token is bound to is asked every time.
func (v *Verifier) Authenticate(ctx context.Context, c Credentials) (*Principal, error) {
	as, token, err := c.token()
	if err != nil {
		v.refused.Add(1)
		return nil, err
	}
	d := v.hasher.digest(c.Profile, token)
	now := v.now()
	if !v.revoked.known(now) {
		return nil, ErrRevocations
	}
	e := v.cache.get(d)
	if e != nil && e.valid(now.UnixNano(), v.revoked) {
		v.hits.Add(1)
		if now.UnixNano() >= e.renewFrom {
			v.renew(e, c.Profile, token)
		}
	} else if e, err = v.authenticateCold(ctx, c.Profile, d, token); err != nil {
		return nil, err
	}
	p, err := v.sent(&c, as, token, e.principal)
	if err == nil && !c.Proven { // a connection that is asked about again is nobody's doing, and keeps no session alive
		e.session.touch(now.UnixNano())
	}
	return p, err
}

// authenticateCold is apart so that what its closure captures does not weigh on the warm path.
func (v *Verifier) authenticateCold(ctx context.Context, on Profile, d digest, token []byte) (*verified, error) {
	v.misses.Add(1)
	// The flight outlives any one of its callers, hence their contexts: it is bounded by the queue and by demandWait.
	e, err := v.fly(context.WithoutCancel(ctx), on, d, token)
	if err == nil && !e.stands(v.revoked) {
		err = refuse("revoked or withdrawn") // since the flight looked, and this request may have come after it did
	}
	if err != nil {
		v.refused.Add(1)
		return nil, err
	}
	return e, nil
}

// fly verifies a token, or waits for whoever is at it already.
func (v *Verifier) fly(ctx context.Context, on Profile, d digest, token []byte) (*verified, error) {
	e, err, _ := v.flights.Do(string(d[:]), func() (any, error) { return v.verify(ctx, on, d, token) })
	if err != nil {
		return nil, err
	}
	return e.(*verified), nil
}

// What RFC 9068 section 4 and RFC 8725 section 3 ask of whoever accepts a token, and where it is done:
//
//	9068   typ is at+jwt, application/at+jwt                accepts; another type only by configuration, and then claims.accessToken
//	9068   encrypted when that was agreed on                never agreed on: parseHeader, split
//	9068   iss is exactly the issuer                        issuerOf, before the signature, to choose keys; judge, after it
//	9068   aud contains the resource's identifier           meant, per group of routes
//	9068   signature, alg none refused, keys of the issuer  keyring.lookup, key.verify
//	9068   now is before exp; auth_time, acr, amr           current; StepUp, when the issuer asserts them
//	8725   3.1 the caller says which algorithm              key.alg: a key has one, a token has no say
//	8725   3.2 appropriate algorithms                       knownAlgorithms: asymmetric only, narrowed by issuer
//	8725   3.3 all cryptographic operations are validated   one signature, no nesting
//	8725   3.4 inputs are validated                         fit: curve, point, modulus, exponent
//	8725   3.5 keys have entropy                            no secret is ever a key here: oct keys are an alert
//	8725   3.6 no compression                               parseHeader: zip is a member that it does not know
//	8725   3.7 UTF-8                                        json decodes nothing else; tooDeep and crowded bound it
//	8725   3.8 iss and sub                                  judge, wellFormed; Verifier.local keeps the subjects of issuers apart
//	8725   3.9 aud                                          meant
//	8725   3.10 claims are not to be trusted                kid looks up in a map; jku, x5u, jwk, x5c are refused by their presence
//	8725   3.11 explicit typing                             accepts
//	8725   3.12 rules that exclude each other               typ, aud; logout tokens and proofs have gates of their own

// verify checks a token from its first byte to its last claim and caches the outcome. Refusals are not cached: most of
// their reasons can heal.
func (v *Verifier) verify(ctx context.Context, on Profile, d digest, token []byte) (*verified, error) {
	at := progress{stage: StageFormat}
	e, err := v.judge(ctx, &at, on, d, token)
	if errors.Is(err, ErrToken) || errors.Is(err, ErrRequest) {
		at.refused(v)
	}
	return e, err
}

func (v *Verifier) judge(ctx context.Context, at *progress, on Profile, d digest, token []byte) (*verified, error) {
	if !signed(token) {
		if is := v.issuerOfOpaque(token); is != nil {
			if err := opaque(token); err != nil {
				return nil, err
			}
			return v.introspect(ctx, at.with(is), on, d, token)
		}
	}
	c, err := split(token)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(c.header)
	if err != nil {
		return nil, err
	}
	at.stage = StageIssuer
	is, err := v.issuerOf(c.payload)
	if err != nil {
		return nil, err
	}
	at.with(is).stage = StageFormat
	if !is.accepts(h.Type) {
		return nil, refuse("typ is none of the issuer's access tokens")
	}
	if is.keys == nil {
		return v.introspect(ctx, at, on, d, token)
	}
	at.stage = StageKey
	k, err := is.keys.lookup(ctx, h.KeyID)
	if err != nil {
		return nil, err
	}
	if h.Algorithm != k.alg {
		return nil, refuse("alg is not the key's")
	}
	// Read before the revocations are: one that comes later makes the entry be checked again at its first use.
	epoch := v.revoked.epoch.Load()
	at.stage = StageSignature
	if err := v.signature(k, c); err != nil {
		return nil, err
	}
	at.stage = StageClaims
	now := v.now()
	p, err := is.principal(c.payload, on, h.Type, now)
	if err != nil {
		return nil, is.genuine(c.payload, err)
	}
	e := newVerified(d, p, k, now, now.Add(v.cacheFor), p.Expires.Add(is.Leeway))
	e.epoch.Store(epoch)
	if err := v.admit(ctx, at, e, now); err != nil {
		return nil, is.genuine(c.payload, err)
	}
	return e, nil
}

// introspect asks the issuer instead.
func (v *Verifier) introspect(ctx context.Context, at *progress, on Profile, d digest, token []byte) (*verified, error) {
	at.stage = StageIntrospection
	epoch := v.revoked.epoch.Load() // before the issuer answers, see judge
	answer, err := at.issuer.ask.ask(ctx, token)
	if err != nil {
		return nil, err
	}
	now := v.now()
	p, err := at.issuer.asked(answer, token, on, now)
	if err != nil {
		return nil, at.issuer.genuine(answer, err)
	}
	e := newVerified(d, p, nil, now, now.Add(min(v.cacheFor, at.issuer.ask.CacheFor)), p.Expires)
	e.epoch.Store(epoch)
	if err := v.admit(ctx, at, e, now); err != nil {
		return nil, at.issuer.genuine(answer, err)
	}
	return e, nil
}

// admit makes the principal's identifiers ours, holds them against the revocations and the limits of sessions, and caches the entry.
func (v *Verifier) admit(ctx context.Context, at *progress, e *verified, now time.Time) error {
	p := e.principal
	if err := v.local(at.issuer, p); err != nil {
		return err
	}
	if e.key != nil {
		p.KeyID = at.issuer.keyID(e.key.id)
	}
	at.stage = StageRevoked
	if v.revoked.dead(p) {
		return refuse("revoked")
	}
	if v.sessions != nil {
		at.stage = StageSession
		var until time.Time
		var err error
		if e.session, e.idle, until, err = v.sessions.admit(ctx, p, now); err != nil {
			return err
		}
		if !until.IsZero() {
			e.until = min(e.until, until.UnixNano())
		}
	}
	v.cache.put(e)
	return nil
}

// signature checks the signature on one of GOMAXPROCS cores.
func (v *Verifier) signature(k *key, c compact) error {
	if v.queued.Add(1) > int64(maxQueue+cap(v.cores)) {
		v.queued.Add(-1)
		return ErrOverload
	}
	defer v.queued.Add(-1)
	v.cores <- struct{}{}
	defer func() { <-v.cores }()
	return k.verify(c)
}

// Healthy returns nil when tokens of at least one issuer can be judged: that another is away must not keep those of the first out.
func (v *Verifier) Healthy() error {
	var err error
	for _, is := range v.issuers {
		if err = is.usable(); err == nil {
			return nil
		}
	}
	return err
}
