package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/compliance"
	"github.com/chartkeep/chartkeep/server/rest"
)

// issuersFile is what --issuers names: who may give access tokens, and what each of them is trusted with.
type issuersFile struct {
	Issuers []issuerSettings `json:"issuers"`
}

// issuerSettings is one issuer of the file; see auth.IssuerConfig. Durations are Go's ("30s", "12h"), secrets are files.
type issuerSettings struct {
	Name          string                  `json:"name"`
	Issuer        string                  `json:"issuer"`
	Audience      string                  `json:"audience"` // that of --audience when empty
	Audiences     map[auth.Profile]string `json:"audiences"`
	LogoutAud     string                  `json:"logout_audience"`
	JWKS          string                  `json:"jwks_uri"` // that of the issuer's metadata when empty
	Algorithms    []string                `json:"algorithms"`
	Types         []string                `json:"types"`
	Leeway        span                    `json:"leeway"`
	MaxLifetime   span                    `json:"max_lifetime"`
	StaleFor      span                    `json:"stale_for"`
	Grace         span                    `json:"grace"`
	Binding       auth.Binding            `json:"binding"`
	ProofNonce    auth.Nonces             `json:"proof_nonce"`
	AssertsSignIn bool                    `json:"asserts_sign_in"`
	RolesInToken  bool                    `json:"roles_in_token"`
	Roles         []string                `json:"roles"`
	Introspection *introspectionSettings  `json:"introspection"`
}

// introspectionSettings are auth.IntrospectionConfig.
type introspectionSettings struct {
	URL        string `json:"url"` // that of the issuer's metadata when empty
	ClientID   string `json:"client_id"`
	SecretFile string `json:"client_secret_file"`
	KeyFile    string `json:"private_key_file"` // PEM, PKCS #8
	KeyID      string `json:"key_id"`
	Prefix     string `json:"token_prefix"`
	JWTs       bool   `json:"jwts"` // ask about its JWTs too, and use no keys of its
	CacheFor   span   `json:"cache_for"`
}

// span is a duration in text.
type span time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *span) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration", b)
	}
	*s = span(d)
	return nil
}

// readIssuers reads the file of --issuers. What it does not know is an error: a policy that is spelled wrongly would be none.
func readIssuers(file string) ([]issuerSettings, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading issuers: %w", err)
	}
	var f issuersFile
	if err := json.Unmarshal(b, &f, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("reading issuers: %s: %w", file, err)
	}
	if len(f.Issuers) == 0 {
		return nil, fmt.Errorf("reading issuers: %s names none", file)
	}
	for _, is := range f.Issuers {
		if err := productionIssuer(is.Issuer); err != nil {
			return nil, fmt.Errorf("reading issuers: %s: %w", file, err)
		}
	}
	return f.Issuers, nil
}

// trusts returns who may give access tokens: the one of --issuer, which is believed all that it says, or those of --issuers.
func (v *serveVerb) trusts() ([]issuerSettings, error) {
	switch {
	case (v.Issuer == "") == (v.Issuers == ""):
		if v.Issuer != "" {
			return nil, usage("--issuer and --issuers exclude each other")
		}
		return nil, usage("--issuer is missing")
	case v.Issuers != "":
		return readIssuers(v.Issuers)
	}
	if err := productionIssuer(v.Issuer); err != nil {
		return nil, err
	}
	return []issuerSettings{{Issuer: v.Issuer, AssertsSignIn: true, RolesInToken: true}}, nil
}

// productionIssuer refuses issuers that cannot be a production identity provider: no TLS, or this very host.
func productionIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Host == "" {
		return usage("--issuer is not a URL")
	}
	if u.Scheme != "https" {
		return usage("--issuer %s is a development issuer: production tokens come over https", issuer)
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Hostname() == "localhost" || err == nil && ip.IsLoopback() {
		return usage("--issuer %s is a development issuer on this host", issuer)
	}
	return nil
}

// config reads what an issuer's settings name: its metadata, and the files of secrets. audience is for an issuer that has none of its own.
func (is *issuerSettings) config(ctx context.Context, audience string, kept *auth.Publications, log *slog.Logger) (auth.IssuerConfig, rest.Issuer, error) {
	cfg := auth.IssuerConfig{
		Name: is.Name, Issuer: is.Issuer, Audience: is.Audience, Audiences: is.Audiences, LogoutAudience: is.LogoutAud, JWKSURL: is.JWKS, Algorithms: is.Algorithms, Types: is.Types,
		Leeway: time.Duration(is.Leeway), MaxLifetime: time.Duration(is.MaxLifetime), StaleFor: time.Duration(is.StaleFor), Grace: time.Duration(is.Grace),
		Binding: is.Binding, ProofNonce: is.ProofNonce, AssertsSignIn: is.AssertsSignIn, RolesInToken: is.RolesInToken, Roles: is.Roles,
	}
	if cfg.Audience == "" {
		cfg.Audience = audience
	}
	said, err := discover(ctx, is.Issuer, kept, log)
	needed := cfg.JWKSURL == "" && (is.Introspection == nil || !is.Introspection.JWTs) || is.Introspection != nil && is.Introspection.URL == ""
	switch {
	case err != nil && needed:
		return cfg, said, err
	case err != nil:
		log.Warn("the issuer's metadata is not at hand; what its settings say is used", "issuer", is.Issuer, "error", err)
		said = rest.Issuer{Issuer: is.Issuer, JWKS: is.JWKS}
	case cfg.JWKSURL == "":
		cfg.JWKSURL = said.JWKS
	}
	if is.Introspection == nil {
		return cfg, said, nil
	}
	if is.Introspection.JWTs {
		if is.JWKS != "" {
			return cfg, said, fmt.Errorf("issuer %s: its JWTs are introspected, and it has a jwks_uri", is.Issuer)
		}
		cfg.JWKSURL = ""
	}
	if cfg.Introspection, err = is.Introspection.config(said.Introspect); err != nil {
		return cfg, said, fmt.Errorf("issuer %s: %w", is.Issuer, err)
	}
	return cfg, said, nil
}

func (i *introspectionSettings) config(endpoint string) (*auth.IntrospectionConfig, error) {
	cfg := &auth.IntrospectionConfig{URL: i.URL, ClientID: i.ClientID, KeyID: i.KeyID, Prefix: i.Prefix, CacheFor: time.Duration(i.CacheFor)}
	if cfg.URL == "" {
		cfg.URL = endpoint
	}
	if i.SecretFile != "" {
		secret, err := readSecret(i.SecretFile)
		if err != nil {
			return nil, err
		}
		cfg.Secret = []byte(secret)
	}
	if i.KeyFile != "" {
		text, err := readSecret(i.KeyFile)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, fmt.Errorf("%s is not PEM", i.KeyFile)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s is not a PKCS #8 private key", i.KeyFile)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%s does not sign", i.KeyFile)
		}
		cfg.Key = signer
	}
	return cfg, nil
}

// newVerifier builds the verifier of a deployment's issuers; what the first of them says of itself is what clients are told.
func newVerifier(ctx context.Context, r *rooms, issuers []issuerSettings, base, audience string, log *slog.Logger) (*auth.Verifier, rest.Issuer, error) {
	var first rest.Issuer
	secret, err := r.records.OfficersKey(ctx)
	if err != nil {
		return nil, first, fmt.Errorf("loading the officers' key: %w", err)
	}
	kept, err := auth.NewPublications(r.db.Issuers(), secret)
	if err != nil {
		return nil, first, err
	}
	cfg := auth.VerifierConfig{
		Base: base, Publications: kept, Logger: log, Revocations: r.revoked, Sessions: r.sessions, Alert: r.verifierAlarm,
	}
	for i := range issuers {
		trusted, said, err := issuers[i].config(ctx, audience, kept, log)
		if err != nil {
			return nil, first, err
		}
		if cfg.Issuers = append(cfg.Issuers, trusted); i == 0 {
			first = said
		}
	}
	v, err := auth.NewVerifier(cfg)
	if err != nil {
		return nil, first, fmt.Errorf("configuring token verification: %w", err)
	}
	return v, first, nil
}

// verifierAlarm tells officers what an issuer did, or what became of the clock.
func (r *rooms) verifierAlarm(issuer, desc string) {
	if issuer == "" {
		r.alerts.raise(compliance.AlertClockStep, compliance.High, instanceName(), desc)
		return
	}
	r.alerts.raise(compliance.AlertIssuerKeys, compliance.Critical, issuer, desc)
}

const (
	discoverTimeout = 5 * time.Second
	maxMetadata     = 1 << 20            // bytes
	metadataFor     = 7 * 24 * time.Hour // that kept metadata serves
)

// discover reads what an issuer says of itself (OpenID Connect Discovery 1.0 section 4, RFC 8414), or what it said last while it does
// not answer.
func discover(ctx context.Context, issuer string, kept *auth.Publications, log *slog.Logger) (rest.Issuer, error) {
	body, err := fetchMetadata(ctx, issuer)
	if err == nil {
		said, err := parseMetadata(body, issuer)
		if err != nil {
			return said, err
		}
		if err := kept.Keep(ctx, issuer, auth.PublishedMetadata, body, time.Now()); err != nil {
			log.Warn("issuer metadata was not kept for the next start", "error", err)
		}
		return said, nil
	}
	body, at, last := kept.Last(ctx, issuer, auth.PublishedMetadata)
	if last == nil && time.Since(at) > metadataFor {
		last = errors.New("what was kept of it is too old")
	}
	if last != nil {
		return rest.Issuer{}, fmt.Errorf("%w (%w)", err, last)
	}
	log.Warn("issuer does not answer: its metadata is that of an earlier run", "issuer", issuer, "fetched", at, "error", err)
	return parseMetadata(body, issuer)
}

func fetchMetadata(ctx context.Context, issuer string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return nil, fmt.Errorf("reading issuer metadata: %w", err)
	}
	// What the issuer says of itself comes from the issuer's own host, as its keys do.
	client := http.Client{CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Scheme != req.URL.Scheme || next.URL.Host != req.URL.Host || len(via) > 3 {
			return errors.New("redirect leaves the issuer")
		}
		return nil
	}}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reading issuer metadata: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("reading issuer metadata: %s answered %s", req.URL, res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxMetadata))
	if err != nil {
		return nil, fmt.Errorf("reading issuer metadata: %w", err)
	}
	return body, nil
}

func parseMetadata(body []byte, issuer string) (rest.Issuer, error) {
	var said rest.Issuer
	if err := json.Unmarshal(body, &said); err != nil {
		return said, fmt.Errorf("reading issuer metadata: %w", err)
	}
	if said.Issuer != issuer {
		return said, fmt.Errorf("reading issuer metadata: %s says it is %q", issuer, said.Issuer)
	}
	return said, nil
}
