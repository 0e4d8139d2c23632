package auth

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// IssuerConfig is an issuer of access tokens and what it is trusted with. Nothing that is not said here is believed of it.
type IssuerConfig struct {
	Name     string // "" for one of all issuers, else 1 to 32 of a-z, 0-9 and "-"; see Principal
	Issuer   string // exact value of iss
	Audience string // value that aud must contain
	// LogoutAudience is the client id under which this service is registered for back-channel logout: the aud of logout tokens.
	// Audience when "".
	LogoutAudience string
	Audiences      map[Profile]string // of route groups that have an audience of their own
	JWKSURL        string             // where its keys are; "" when it is asked about its JWTs too
	Algorithms     []string           // nil: PS256, ES256, EdDSA, RS256
	Types          []string           // values of typ; nil: at+jwt and application/at+jwt (RFC 9068 section 4)
	Leeway         time.Duration      // for its clock; 30 s when 0
	MaxLifetime    time.Duration      // exp-iat at most; 24 h when 0
	StaleFor       time.Duration      // how long its last keys serve while it does not answer; 24 h when 0, 1 h at least
	Grace          time.Duration      // how long a key that it has withdrawn goes on being accepted; none when 0

	Binding       Binding              // how its tokens must be bound to their senders
	ProofNonce    Nonces               // whether DPoP proofs with its tokens must carry a nonce of ours
	Introspection *IntrospectionConfig // how it is asked about opaque tokens; nil: it has none

	AssertsSignIn bool     // its acr, amr and auth_time are believed; otherwise they are dropped
	RolesInToken  bool     // its roles claim gives roles; otherwise only assignments do
	Roles         []string // which of those roles count; nil: whatever it says
}

// Profile names a group of routes: a token that was verified for one was not for another.
type Profile string

const (
	ProfileFHIR     Profile = "fhir" // /fhir/R4
	ProfileOfficers Profile = "api"  // /v1
)

// Binding is how a token must be bound to its sender.
type Binding string

const (
	BindingNone   Binding = ""       // a bearer will do
	BindingDPoP   Binding = "dpop"   // RFC 9449
	BindingMTLS   Binding = "mtls"   // RFC 8705 section 3
	BindingEither Binding = "either" // one of the two
)

// Nonces says when DPoP proofs must carry a nonce of ours (RFC 9449 section 9). One that a proof carries must be ours in any case.
type Nonces string

const (
	NonceAuto   Nonces = "" // when Binding demands DPoP
	NonceAlways Nonces = "always"
	NonceNever  Nonces = "never"
)

// trusted is a configured issuer at work.
type trusted struct {
	IssuerConfig
	keys *keyring      // nil when it is asked about all its tokens
	ask  *introspector // nil when it is asked about none
	base string        // VerifierConfig.Base

	refused [stages]atomic.Uint64
}

// newTrusted puts an issuer to work.
func newTrusted(cfg VerifierConfig, is IssuerConfig, alert func(desc string)) (t *trusted, err error) {
	t = &trusted{IssuerConfig: is, base: strings.TrimSuffix(cfg.Base, "/")}
	if is.JWKSURL != "" || is.Introspection == nil {
		if t.keys, err = newKeyring(cfg, is, alert); err != nil {
			return nil, err
		}
	}
	if t.ask, err = newIntrospector(cfg, is); err != nil {
		return nil, err
	}
	return t, nil
}

// usable returns nil when the issuer's tokens can be judged.
func (is *trusted) usable() error {
	if is.keys == nil {
		return nil
	}
	return is.keys.healthy()
}

// Bounds of what may be configured.
const (
	maxLeeway   = time.Minute
	maxLifetime = 24 * time.Hour // revocations are kept for longer than that
	maxStale    = 7 * 24 * time.Hour
)

// withDefaults fills in what was left out and refuses what cannot be meant.
func (cfg IssuerConfig) withDefaults() (IssuerConfig, error) {
	if cfg.Issuer == "" || cfg.Audience == "" {
		return cfg, errors.New("issuer and audience are required")
	}
	if cfg.Name != "" && !isIssuerName(cfg.Name) {
		return cfg, errors.New("name of an issuer is not 1 to 32 of a-z, 0-9 and -")
	}
	for name, d := range map[string]struct{ is, most time.Duration }{
		"leeway": {cfg.Leeway, maxLeeway}, "lifetime": {cfg.MaxLifetime, maxLifetime}, "grace": {cfg.Grace, maxLifetime}, "staleness": {cfg.StaleFor, maxStale},
	} {
		if d.is < 0 || d.is > d.most {
			return cfg, fmt.Errorf("%s is not between 0 and %v", name, d.most)
		}
	}
	if cfg.StaleFor != 0 && cfg.StaleFor < minStale {
		return cfg, fmt.Errorf("keys must serve for %v at least while their issuer does not answer", minStale)
	}
	for _, alg := range cfg.Algorithms {
		if !slices.Contains(knownAlgorithms(), alg) {
			return cfg, fmt.Errorf("algorithm %q is not supported", alg)
		}
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = knownAlgorithms()
	}
	for _, typ := range cfg.Types {
		if !knownType(typ) {
			return cfg, fmt.Errorf("typ %q is none of an access token", typ)
		}
	}
	if len(cfg.Types) == 0 {
		cfg.Types = []string{"at+jwt", "application/at+jwt"}
	}
	if cfg.Roles != nil && !cfg.RolesInToken {
		return cfg, errors.New("roles are named, and those in tokens do not count")
	}
	switch cfg.Binding {
	case BindingNone, BindingDPoP, BindingMTLS, BindingEither:
	default:
		return cfg, fmt.Errorf("binding %q is not supported", cfg.Binding)
	}
	switch cfg.ProofNonce {
	case NonceAuto, NonceAlways, NonceNever:
	default:
		return cfg, fmt.Errorf("nonces %q are not supported", cfg.ProofNonce)
	}
	for profile, audience := range cfg.Audiences {
		if profile == "" || audience == "" {
			return cfg, errors.New("audience of a route group is empty")
		}
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = 30 * time.Second
	}
	if cfg.MaxLifetime == 0 {
		cfg.MaxLifetime = 24 * time.Hour
	}
	if cfg.MaxLifetime+2*cfg.Leeway > revocationLife {
		return cfg, fmt.Errorf("tokens may live for %v at most: so long are revocations kept", revocationLife)
	}
	if cfg.StaleFor == 0 {
		cfg.StaleFor = 24 * time.Hour
	}
	return cfg, nil
}

// label names the issuer in logs and alerts.
func (cfg *IssuerConfig) label() string {
	if cfg.Name == "" {
		return cfg.Issuer
	}
	return cfg.Name
}

func isIssuerName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

// knownType reports whether an access token may have the type. JWT is what issuers older than RFC 9068 write, on ID tokens too.
func knownType(typ string) bool {
	return slices.ContainsFunc([]string{"at+jwt", "application/at+jwt", "JWT"}, func(t string) bool { return strings.EqualFold(t, typ) })
}

// distinct refuses issuers that could be taken for one another.
func distinct(issuers []IssuerConfig) error {
	for i, a := range issuers {
		for _, b := range issuers[:i] {
			if a.Issuer == b.Issuer || a.Name == b.Name {
				return errors.New("two issuers have one name or one iss")
			}
			if a.Introspection != nil && b.Introspection != nil && a.Introspection.Prefix == b.Introspection.Prefix {
				return errors.New("opaque tokens of two issuers begin alike")
			}
		}
	}
	return nil
}

// audience is the value that aud must contain on a group of routes.
func (cfg *IssuerConfig) audience(p Profile) string {
	if a, ok := cfg.Audiences[p]; ok {
		return a
	}
	return cfg.Audience
}

// local makes the principal's identifiers unique among issuers. An identifier of the issuer without a name must not look as if
// another had given it.
func (v *Verifier) local(is *trusted, p *Principal) error {
	for _, id := range []*string{&p.Subject, &p.Client, &p.Session} {
		if is.Name != "" {
			*id = is.Name + "|" + *id
			continue
		}
		prefix, _, cut := strings.Cut(*id, "|")
		if cut && slices.ContainsFunc(v.issuers, func(o *trusted) bool { return o.Name == prefix && o.Name != "" }) {
			return refuse("sub, client_id or sid begins like another issuer's")
		}
	}
	return nil
}

// secureURL accepts https, and with insecure http on this host.
func secureURL(raw string, insecure bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, errors.New("not an absolute URL")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !insecure || !loopback(u.Hostname())) {
		return nil, errors.New("not https")
	}
	return u, nil
}
