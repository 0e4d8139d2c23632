package auth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// ErrIntrospection says that an issuer did not tell whether a token is good. It becomes 503: the token was not judged.
var ErrIntrospection = errors.New("auth: issuer does not answer about a token")

// Limits of introspection.
const (
	askTimeout   = 3 * time.Second // for a place and for the answer
	askAtOnce    = 32              // of one issuer
	maxAnswer    = 64 << 10        // bytes
	maxAskCached = time.Minute
	assertionFor = time.Minute
)

// IntrospectionConfig is how an issuer is asked about its tokens (RFC 7662).
type IntrospectionConfig struct {
	URL      string
	ClientID string
	Secret   []byte        // for client_secret_basic
	Key      crypto.Signer // for private_key_jwt (RFC 7523 section 2.2) in its place: P-256, Ed25519 or RSA of 2048 bits
	KeyID    string        // kid of Key, "" for none
	Prefix   string        // that its opaque tokens begin with; "": it is asked about those that begin with no other issuer's
	CacheFor time.Duration // how long an answer counts, a minute at most; a minute when 0
}

func (cfg IntrospectionConfig) withDefaults(insecure bool) (IntrospectionConfig, error) {
	if _, err := secureURL(cfg.URL, insecure); err != nil {
		return cfg, fmt.Errorf("introspection URL: %w", err)
	}
	if cfg.ClientID == "" || (len(cfg.Secret) == 0) == (cfg.Key == nil) {
		return cfg, errors.New("introspection: a client id and either a secret or a key are needed")
	}
	if cfg.CacheFor < 0 || cfg.CacheFor > maxAskCached {
		return cfg, fmt.Errorf("introspection: answers may count for %v at most", maxAskCached)
	}
	if cfg.CacheFor == 0 {
		cfg.CacheFor = maxAskCached
	}
	return cfg, nil
}

// introspector asks one issuer. Safe for concurrent use.
type introspector struct {
	IntrospectionConfig
	issuer string
	alg    string // of Key
	client *http.Client
	now    func() time.Time
	places chan struct{}
}

func newIntrospector(cfg VerifierConfig, is IssuerConfig) (*introspector, error) {
	if is.Introspection == nil {
		return nil, nil
	}
	i := &introspector{issuer: is.Issuer, now: cfg.Now, places: make(chan struct{}, askAtOnce)}
	var err error
	if i.IntrospectionConfig, err = is.Introspection.withDefaults(cfg.Insecure); err != nil {
		return nil, err
	}
	if i.Key != nil {
		if i.alg, err = signingAlgorithm(i.Key.Public()); err != nil {
			return nil, fmt.Errorf("introspection: %w", err)
		}
	}
	client := *cfg.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a token goes nowhere else
	i.client = &client
	return i, nil
}

// signed reports whether a token is to be read as a JWT: it has as many parts as one that is signed or encrypted, and begins as base64url
// of a JSON object does. Such a token is never handed to an issuer that its iss does not name.
func signed(token []byte) bool {
	parts := bytes.Count(token, []byte(".")) + 1
	return (parts == 3 || parts == 5) && (bytes.HasPrefix(token, []byte("ey")) || bytes.HasPrefix(token, []byte("ew")))
}

// issuerOfOpaque finds the issuer to ask about a token that does not say whose it is: the one with the longest prefix of it. nil when
// there is none.
func (v *Verifier) issuerOfOpaque(token []byte) *trusted {
	var found *trusted
	for _, is := range v.issuers {
		if is.ask != nil && bytes.HasPrefix(token, []byte(is.ask.Prefix)) && (found == nil || len(is.ask.Prefix) > len(found.ask.Prefix)) {
			found = is
		}
	}
	return found
}

// opaque checks that a token is one in the alphabet of RFC 6750 section 2.1, padding at its end only.
func opaque(token []byte) error {
	body := bytes.TrimRight(token, "=")
	for _, c := range body {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~+/", c) >= 0:
		case c == ',':
			return fmt.Errorf("%w: more than one credential", ErrRequest)
		default:
			return refuse("character outside the token alphabet")
		}
	}
	if len(body) == 0 || len(token)-len(body) > 2 {
		return refuse("nothing but padding")
	}
	return nil
}

// introspection is an answer: claims, and whether they count.
type introspection struct {
	claims
	Active    *bool  `json:"active"`
	TokenType string `json:"token_type"`
	Use       string `json:"token_use"` // Ory, Cognito
	Kind      string `json:"typ"`       // Keycloak
}

// accessToken refuses what is active and no access token: an issuer says that of refresh tokens too (RFC 7662 section 2.1).
func (a *introspection) accessToken() bool {
	among := func(s string, list ...string) bool {
		for _, l := range list {
			if strings.EqualFold(s, l) {
				return true
			}
		}
		return s == ""
	}
	return among(a.TokenType, "Bearer", "DPoP") && among(a.Use, "access_token", "access") && among(a.Kind, "Bearer", "DPoP", "at+jwt", "application/at+jwt")
}

// asked is what an issuer's answer about a token makes of its bearer: the same claims are demanded as of a JWT, but that an answer
// need not repeat who gives it, nor a token have an id.
func (is *trusted) asked(answer, token []byte, on Profile, now time.Time) (*Principal, error) {
	var a introspection
	if tooDeep(answer) || json.Unmarshal(answer, &a) != nil || a.Active == nil {
		return nil, fmt.Errorf("%w: answer does not parse", ErrIntrospection)
	}
	if !*a.Active {
		return nil, refuse("inactive")
	}
	if !a.accessToken() {
		return nil, refuse("active, and no access token")
	}
	if a.Issuer == "" {
		a.Issuer = is.Issuer
	}
	if a.ID == "" { // a digest tells nothing of a token that cannot be guessed
		sum := sha256.Sum256(token)
		a.ID = "sha256:" + base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return is.judge(a.claims, on, now)
}

// ask asks the issuer about a token and returns its answer.
func (i *introspector) ask(ctx context.Context, token []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	select {
	case i.places <- struct{}{}:
		defer func() { <-i.places }()
	case <-ctx.Done():
		return nil, ErrOverload
	}
	req, err := i.request(ctx, token)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIntrospection, err)
	}
	res, err := i.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIntrospection, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: status %d", ErrIntrospection, res.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil || len(body) > maxAnswer {
		return nil, fmt.Errorf("%w: answer is too long or broke off", ErrIntrospection)
	}
	return body, nil
}

// request is RFC 7662 section 2.1, with the client's authentication (RFC 6749 section 2.3.1, RFC 7523 section 2.2).
func (i *introspector) request(ctx context.Context, token []byte) (*http.Request, error) {
	form := url.Values{"token": {string(token)}, "token_type_hint": {"access_token"}}
	if i.Key != nil {
		assertion, err := i.assertion()
		if err != nil {
			return nil, err
		}
		form.Set("client_id", i.ClientID)
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", assertion)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, errors.New("making the request")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if i.Key == nil {
		req.SetBasicAuth(url.QueryEscape(i.ClientID), url.QueryEscape(string(i.Secret)))
	}
	return req, nil
}

// assertion is a JWT by which the client proves who it is, good once and for the issuer only.
func (i *introspector) assertion() (string, error) {
	now := i.now().Unix()
	header, err := json.Marshal(header{Algorithm: i.alg, KeyID: i.KeyID, Type: "JWT"}, json.OmitZeroStructFields(true))
	if err != nil {
		return "", errors.New("making a client assertion")
	}
	payload, err := json.Marshal(map[string]any{
		"iss": i.ClientID, "sub": i.ClientID, "aud": i.issuer, "jti": rand.Text(), "iat": now, "exp": now + int64(assertionFor/time.Second),
	})
	if err != nil {
		return "", errors.New("making a client assertion")
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	sig, err := sign(i.alg, i.Key, []byte(input))
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}
