package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// clientID is what the issuer knows this program as: a public client, whose redirect URIs are loopback ones of any port.
const clientID = "chartkeep-dashboard"

// provider is what an issuer says about itself (OpenID Connect Discovery 1.0 section 3, RFC 8414 section 2).
type provider struct {
	Issuer     string   `json:"issuer"`
	Authorize  string   `json:"authorization_endpoint"`
	Token      string   `json:"token_endpoint"`
	Revoke     string   `json:"revocation_endpoint"`
	Scopes     []string `json:"scopes_supported"`
	Challenges []string `json:"code_challenge_methods_supported"`
	NamesSelf  bool     `json:"authorization_response_iss_parameter_supported"` // RFC 9207
}

// discover asks the API whom it trusts to sign people in, and that issuer for its endpoints.
func (h *handler) discover(ctx context.Context) (*provider, error) {
	var smart struct {
		Issuer string `json:"issuer"`
	}
	if err := h.getJSON(ctx, h.cfg.API+"/fhir/R4/.well-known/smart-configuration", &smart); err != nil {
		return nil, fmt.Errorf("asking the API for its issuer: %w", err)
	}
	var p provider
	if err := h.getJSON(ctx, strings.TrimSuffix(smart.Issuer, "/")+"/.well-known/openid-configuration", &p); err != nil {
		return nil, fmt.Errorf("asking the issuer for its endpoints: %w", err)
	}
	if smart.Issuer == "" || p.Issuer != smart.Issuer {
		return nil, errors.New("asking the issuer for its endpoints: it gives another name than the API")
	}
	for _, endpoint := range []string{p.Authorize, p.Token} {
		if u, err := url.Parse(endpoint); err != nil || !protected(u) {
			return nil, errors.New("asking the issuer for its endpoints: one is not https")
		}
	}
	if u, err := url.Parse(p.Revoke); err != nil || !protected(u) {
		p.Revoke = "" // optional: sign-out then only forgets
	}
	if len(p.Challenges) > 0 && !slices.Contains(p.Challenges, "S256") {
		return nil, errors.New("asking the issuer for its endpoints: it has no PKCE with S256")
	}
	return &p, nil
}

// scope is what a sign-in asks for: who it is, and what the issuer has of a display name and a way to stay signed in.
func (p *provider) scope() string {
	scope := []string{"openid", "fhirUser"}
	for _, optional := range []string{"profile", "online_access"} {
		if slices.Contains(p.Scopes, optional) {
			scope = append(scope, optional)
		}
	}
	return strings.Join(scope, " ")
}

// tokens is what a sign-in yields. It stays in memory: it is in no answer, no log and no file.
type tokens struct {
	provider *provider
	access   string
	refresh  string // "" when the issuer gives none
	expires  time.Time
	user     string
	name     string
}

// errRefused is the issuer's answer that a code or refresh token is not, or no longer, good.
var errRefused = errors.New("the issuer refuses")

// redeem asks the token endpoint. It returns the tokens, of which user and name are not set, and the ID token.
func (h *handler) redeem(ctx context.Context, p *provider, form url.Values) (*tokens, string, error) {
	form.Set("client_id", clientID)
	res, err := h.postForm(ctx, p.Token, form)
	if err != nil {
		return nil, "", fmt.Errorf("asking for tokens: %w", err)
	}
	defer res.Body.Close()
	var body struct {
		Access  string  `json:"access_token"`
		Type    string  `json:"token_type"`
		Expires float64 `json:"expires_in"`
		Refresh string  `json:"refresh_token"`
		ID      string  `json:"id_token"`
	}
	switch {
	case res.StatusCode == http.StatusBadRequest || res.StatusCode == http.StatusUnauthorized:
		return nil, "", fmt.Errorf("asking for tokens: %w", errRefused)
	case res.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("asking for tokens: status %d", res.StatusCode)
	case json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&body) != nil:
		return nil, "", errors.New("asking for tokens: the answer is not JSON")
	case body.Access == "" || !strings.EqualFold(body.Type, "Bearer"):
		return nil, "", errors.New("asking for tokens: the answer has no bearer token")
	}
	if body.Expires <= 0 || body.Expires > 86400 {
		body.Expires = 60 // RFC 6749 only recommends the field; asking again soon is always right
	}
	return &tokens{
		provider: p, access: body.Access, refresh: body.Refresh,
		expires: h.cfg.Now().Add(time.Duration(body.Expires * float64(time.Second))),
	}, body.ID, nil
}

// identify reads who signed in from an ID token (OpenID Connect Core 1.0 section 3.1.3.7). It came from the token endpoint
// itself, so the connection stands for the signature (point 6); it is used to show a name, never to allow anything: the
// API judges the access token.
func identify(idToken string, p *provider, nonce string, now time.Time) (user, name string, err error) {
	parts := strings.Split(idToken, ".")
	if len(parts) != 3 {
		return "", "", errors.New("reading the ID token: it is not a JWT")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", "", fmt.Errorf("reading the ID token: %w", err)
	}
	var c struct {
		Issuer   string   `json:"iss"`
		Subject  string   `json:"sub"`
		Audience audience `json:"aud"`
		Party    string   `json:"azp"`
		Nonce    string   `json:"nonce"`
		Expires  float64  `json:"exp"`
		Name     string   `json:"name"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return "", "", fmt.Errorf("reading the ID token: %w", err)
	}
	const leeway = 2 * time.Minute // of the two clocks
	switch {
	case c.Issuer != p.Issuer || !slices.Contains(c.Audience, clientID) || c.Party != "" && c.Party != clientID:
		return "", "", errors.New("reading the ID token: it is not from this issuer for this program")
	case c.Nonce != nonce:
		return "", "", errors.New("reading the ID token: it is of another sign-in")
	case now.After(time.Unix(int64(c.Expires), 0).Add(leeway)):
		return "", "", errors.New("reading the ID token: it has expired; is this machine's clock right?")
	case c.Subject == "":
		return "", "", errors.New("reading the ID token: it names nobody")
	}
	if c.Name == "" {
		c.Name = c.Subject
	}
	return c.Subject, c.Name, nil
}

// audience is aud: one string or several (RFC 7519 section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(a))
}

func (h *handler) getJSON(ctx context.Context, address string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	if !protected(req.URL) {
		return errors.New("it is not https")
	}
	req.Header.Set("Accept", "application/json")
	res, err := h.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(v)
}

func (h *handler) postForm(ctx context.Context, address string, form url.Values) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	return h.client.Do(req)
}
