package demo

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// accessClaims are the claims of an access token (RFC 9068 section 2.2, SMART App Launch).
type accessClaims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience string   `json:"aud"`
	Client   string   `json:"client_id"`
	Issued   int64    `json:"iat"`
	Expires  int64    `json:"exp"`
	ID       string   `json:"jti"`
	Session  string   `json:"sid,omitzero"`
	Scope    string   `json:"scope"`
	Roles    []string `json:"roles"`
	Patient  string   `json:"patient,omitzero"`
	FHIRUser string   `json:"fhirUser,omitzero"`
	Name     string   `json:"name,omitzero"` // of workforce members only: a patient's would be PHI
	ACR      string   `json:"acr,omitzero"`
	AMR      []string `json:"amr,omitzero"`
	AuthTime int64    `json:"auth_time,omitzero"`

	Confirmation *confirmation `json:"cnf,omitzero"`
}

// confirmation names the key that a token is bound to (RFC 9449 section 6.1).
type confirmation struct {
	Key string `json:"jkt"`
}

// idClaims are the claims of an ID token (OpenID Connect Core 1.0 section 2).
type idClaims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience string   `json:"aud"`
	Issued   int64    `json:"iat"`
	Expires  int64    `json:"exp"`
	AuthTime int64    `json:"auth_time"`
	Nonce    string   `json:"nonce,omitzero"`
	Hash     string   `json:"at_hash"`
	Session  string   `json:"sid"`
	ACR      string   `json:"acr,omitzero"`
	AMR      []string `json:"amr,omitzero"`
	FHIRUser string   `json:"fhirUser,omitzero"` // absolute, as SMART wants it
	Name     string   `json:"name,omitzero"`
}

// Minted says what a token that is minted without a sign-in shall say. What is left out is the persona's own.
type Minted struct {
	Scope   string
	ACR     string        // authentication context class of the sign-in that did not take place
	AuthAge time.Duration // how long ago it did not
	Key     string        // thumbprint of the key that the token is bound to: Holder.Thumbprint
}

// Token mints an access token for a persona, without a sign-in; scope "" takes the persona's default.
func (s *AuthServer) Token(persona, scope string) (string, error) {
	return s.Mint(persona, Minted{Scope: scope})
}

// Mint mints an access token for a persona, without a sign-in. Unlike the endpoints it does not narrow the scope to what the persona
// may have, nor the sign-in to what it can be: tests of what a server refuses need such tokens, and only this process can ask for them.
func (s *AuthServer) Mint(persona string, m Minted) (string, error) {
	p, ok := s.persona(persona)
	if !ok {
		return "", fmt.Errorf("minting a token: no persona %q", persona)
	}
	x := session{
		Client: p.Client, Scope: cmp.Or(m.Scope, p.Scope), Patient: p.Patient, AuthTime: s.cfg.Now().Add(-m.AuthAge),
		ACR: m.ACR, Key: m.Key,
	}
	token, err := s.access(p, x, rand.Text())
	if err != nil {
		return "", fmt.Errorf("minting a token: %w", err)
	}
	return token, nil
}

func (s *AuthServer) access(p Persona, x session, sid string) (string, error) {
	now := s.cfg.Now()
	c := accessClaims{
		Issuer: s.cfg.Issuer, Subject: p.Name, Audience: s.cfg.Audience, Client: x.Client,
		Issued: now.Unix(), Expires: now.Add(accessLifetime).Unix(), ID: rand.Text(),
		Scope: x.Scope, Roles: p.Roles, Patient: x.Patient, FHIRUser: p.FHIRUser,
	}
	if p.ACR != "" { // somebody signed in
		c.Session, c.AuthTime = sid, x.AuthTime.Unix()
		c.ACR, c.AMR = p.signIn(x.ACR)
		c.Name = workforceName(p)
	}
	if x.Key != "" {
		c.Confirmation = &confirmation{x.Key}
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return s.keys.current().sign("at+jwt", text)
}

func workforceName(p Persona) string {
	if p.Patient != "" {
		return ""
	}
	return p.Display
}

func (s *AuthServer) identity(p Persona, x session, sid, access string) (string, error) {
	now := s.cfg.Now()
	sum := sha256.Sum256([]byte(access))
	c := idClaims{
		Issuer: s.cfg.Issuer, Subject: p.Name, Audience: x.Client, Issued: now.Unix(), Expires: now.Add(accessLifetime).Unix(),
		AuthTime: x.AuthTime.Unix(), Nonce: x.Nonce, Hash: base64.RawURLEncoding.EncodeToString(sum[:16]), Session: sid,
	}
	c.ACR, c.AMR = p.signIn(x.ACR)
	if has(x.Scope, "fhirUser") && p.FHIRUser != "" {
		c.FHIRUser = s.cfg.Audience + "/" + p.FHIRUser
	}
	if has(x.Scope, "profile") {
		c.Name = workforceName(p)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return s.keys.current().sign("JWT", text)
}

// tokens is the answer of the token endpoint (RFC 6749 section 5.1, SMART's launch context).
type tokens struct {
	Access  string `json:"access_token"`
	Type    string `json:"token_type"`
	Expires int    `json:"expires_in"` // seconds
	Scope   string `json:"scope"`
	Refresh string `json:"refresh_token,omitzero"`
	ID      string `json:"id_token,omitzero"`
	Patient string `json:"patient,omitzero"`
}

// token is the token endpoint.
func (s *AuthServer) token(w http.ResponseWriter, r *http.Request) {
	form, ok := s.form(w, r)
	if !ok {
		return
	}
	kind := form.Get("grant_type")
	switch kind {
	case "authorization_code", "refresh_token", "client_credentials":
	case "":
		refuse(w, http.StatusBadRequest, "invalid_request", "grant_type is missing")
		return
	default:
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "see grant_types_supported")
		return
	}
	client, err := s.identify(form)
	if err != nil {
		s.unknown(w, r, err)
		return
	}
	if (kind == "client_credentials") != (client == backendClient) {
		refuse(w, http.StatusBadRequest, "unauthorized_client", "this client does not use this grant")
		return
	}
	key, ok := s.holder(w, r)
	if !ok {
		return
	}
	switch kind {
	case "authorization_code":
		sid, refresh, x, ended, err := s.exchange(form.Get("code"), client, form.Get("redirect_uri"), form.Get("code_verifier"), key)
		if ended != "" {
			s.cfg.Logger.Warn("an authorization code came twice; its session is over", "client", client, "session", ended)
			s.revoked("", ended)
		}
		s.issue(w, r, sid, refresh, x, err)
	case "refresh_token":
		sid, next, x, err := s.state.refresh(form.Get("refresh_token"), client, form.Get("scope"), key)
		if errors.Is(err, errReuse) {
			s.cfg.Logger.Warn("a refresh token came twice; its session is over", "client", client, "session", sid)
			s.revoked("", sid)
			err = errGrant
		}
		s.issue(w, r, sid, next, x, err)
	case "client_credentials":
		s.backend(w, r, form, key)
	}
}

// backend issues what SMART Backend Services asks for: system scopes, no refresh token.
func (s *AuthServer) backend(w http.ResponseWriter, r *http.Request, form url.Values, key string) {
	p, ok := s.persona(backendClient)
	if !ok {
		refuse(w, http.StatusBadRequest, "unauthorized_client", "there is no such persona")
		return
	}
	scope := grant(p, form.Get("scope"))
	if scope == "" {
		refuse(w, http.StatusBadRequest, "invalid_scope", "ask for system/ scopes")
		return
	}
	access, err := s.access(p, session{Client: backendClient, Scope: scope, Key: key}, "")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.cfg.Logger.Info("token issued", "persona", p.Name, "client", backendClient, "scope", scope)
	w.Header().Set("Cache-Control", "no-store")
	answer(w, http.StatusOK, tokens{Access: access, Type: tokenType(key), Expires: int(accessLifetime / time.Second), Scope: scope})
}

// tokenType is the scheme by which a token is presented (RFC 9449 section 5).
func tokenType(key string) string {
	if key == "" {
		return "Bearer"
	}
	return "DPoP"
}

func (s *AuthServer) issue(w http.ResponseWriter, r *http.Request, sid, refresh string, x session, err error) {
	p, known := s.persona(x.Persona)
	switch {
	case errors.Is(err, errGrant):
		refuse(w, http.StatusBadRequest, "invalid_grant", errGrant.Error())
		return
	case errors.Is(err, errScope):
		refuse(w, http.StatusBadRequest, "invalid_scope", errScope.Error())
		return
	case err != nil:
		s.fail(w, r, err)
		return
	case !known:
		refuse(w, http.StatusBadRequest, "invalid_grant", "the person is not here any more")
		return
	}
	out := tokens{Type: tokenType(x.Key), Expires: int(accessLifetime / time.Second), Scope: x.Scope, Refresh: refresh, Patient: x.Patient}
	out.Access, err = s.access(p, x, sid)
	if err == nil && has(x.Scope, "openid") {
		out.ID, err = s.identity(p, x, sid, out.Access)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.cfg.Logger.Info("token issued", "persona", p.Name, "client", x.Client, "scope", x.Scope, "session", sid)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	answer(w, http.StatusOK, out)
}

// form reads an endpoint's form: of the body only, every parameter once (RFC 6749 section 3.2).
func (s *AuthServer) form(w http.ResponseWriter, r *http.Request) (url.Values, bool) {
	if err := r.ParseForm(); err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request", "the body is not a form")
		return nil, false
	}
	for _, values := range r.PostForm {
		if len(values) != 1 {
			refuse(w, http.StatusBadRequest, "invalid_request", "a parameter comes twice")
			return nil, false
		}
	}
	return r.PostForm, true
}

var errClient = errors.New("client authentication failed")

// identify says which client is asking. Public clients say their name; app-backend proves it with a signed assertion
// (RFC 7523, SMART App Launch "client authentication: asymmetric").
func (s *AuthServer) identify(form url.Values) (string, error) {
	if !form.Has("client_assertion") && !form.Has("client_assertion_type") {
		client := form.Get("client_id")
		if _, ok := publicClients()[client]; !ok || form.Has("client_secret") {
			return "", errClient
		}
		return client, nil
	}
	if form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return "", errClient
	}
	return backendClient, s.prove(form.Get("client_assertion"), form.Get("client_id"))
}

// prove checks an assertion of app-backend.
func (s *AuthServer) prove(assertion, client string) error {
	typ, payload, err := opened(assertion, s.client.keys)
	if err != nil || typ != "" && typ != "JWT" {
		return errClient
	}
	var c struct {
		Issuer    string         `json:"iss"`
		Subject   string         `json:"sub"`
		Audience  jsontext.Value `json:"aud"`
		Expires   int64          `json:"exp"`
		Issued    int64          `json:"iat"`
		NotBefore int64          `json:"nbf"`
		ID        string         `json:"jti"`
	}
	// Case-sensitive, and no name may come twice.
	if err := json.Unmarshal(payload, &c); err != nil {
		return errClient
	}
	now := s.cfg.Now()
	expires := time.Unix(c.Expires, 0)
	switch {
	case c.Issuer != backendClient || c.Subject != backendClient || client != "" && client != backendClient,
		!names(c.Audience, s.cfg.Issuer+"/token"),
		!now.Before(expires.Add(clockLeeway)), expires.After(now.Add(assertionLimit + clockLeeway)),
		time.Unix(max(c.Issued, c.NotBefore), 0).After(now.Add(clockLeeway)),
		c.ID == "" || len(c.ID) > 256:
		return errClient
	}
	first, err := s.state.first(backendClient, c.ID, expires.Add(clockLeeway))
	if err == nil && !first {
		return errClient
	}
	return err
}

// names reports whether aud is or contains the one value.
func names(aud jsontext.Value, want string) bool {
	var one string
	var many []string
	if aud.Kind() == '"' {
		return json.Unmarshal(aud, &one) == nil && one == want
	}
	return json.Unmarshal(aud, &many) == nil && slices.Contains(many, want)
}

func (s *AuthServer) unknown(w http.ResponseWriter, r *http.Request, err error) {
	if !errors.Is(err, errClient) {
		s.fail(w, r, err)
		return
	}
	refuse(w, http.StatusUnauthorized, "invalid_client", errClient.Error())
}

// read verifies one of our access tokens. ok is false when it is not ours, expired or revoked.
func (s *AuthServer) read(token string) (c accessClaims, ok bool) {
	typ, payload, err := opened(token, s.keys.alive(s.cfg.Now()))
	if err != nil || typ != "at+jwt" || json.Unmarshal(payload, &c) != nil {
		return accessClaims{}, false
	}
	return c, s.cfg.Now().Before(time.Unix(c.Expires, 0)) && !s.state.dead(c.ID, c.Session)
}

// introspect is RFC 7662, for clients that prove who they are, and for programs on this machine.
func (s *AuthServer) introspect(w http.ResponseWriter, r *http.Request) {
	form, ok := s.form(w, r)
	if !ok {
		return
	}
	if form.Has("client_assertion") || !fromLoopback(r) {
		if client, err := s.identify(form); err != nil || client != backendClient {
			s.unknown(w, r, cmp.Or(err, errClient))
			return
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	token := form.Get("token")
	if c, ok := s.read(token); ok {
		key := ""
		if c.Confirmation != nil {
			key = c.Confirmation.Key
		}
		answer(w, http.StatusOK, struct {
			Active bool   `json:"active"`
			Type   string `json:"token_type"`
			accessClaims
		}{true, tokenType(key), c})
		return
	}
	if sid, x, ok := s.state.peek(token); ok {
		answer(w, http.StatusOK, map[string]any{
			"active": true, "client_id": x.Client, "sub": x.Persona, "scope": x.Scope, "sid": sid, "exp": x.Expires.Unix(), "iss": s.cfg.Issuer,
		})
		return
	}
	answer(w, http.StatusOK, map[string]bool{"active": false})
}

// revoke is RFC 7009: a refresh token ends its session, an access token itself. What is unknown or dead already is answered
// like a success; a token of another client is refused.
func (s *AuthServer) revoke(w http.ResponseWriter, r *http.Request) {
	form, ok := s.form(w, r)
	if !ok {
		return
	}
	client, err := s.identify(form)
	if err != nil {
		s.unknown(w, r, err)
		return
	}
	if form.Get("token") == "" {
		refuse(w, http.StatusBadRequest, "invalid_request", "token is missing")
		return
	}
	owner, jti, ended := "", "", ""
	var expires time.Time
	if c, ok := s.read(form.Get("token")); ok {
		owner, jti, expires = c.Client, c.ID, time.Unix(c.Expires, 0).Add(clockLeeway)
	} else if sid, x, ok := s.state.peek(form.Get("token")); ok {
		owner, ended = x.Client, sid
	}
	switch {
	case owner == "":
	case owner != client:
		refuse(w, http.StatusBadRequest, "invalid_grant", "the token is another client's")
		return
	case jti != "":
		err = s.state.endToken(jti, expires)
	default:
		err = s.state.end(ended)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.revoked(jti, ended)
	w.WriteHeader(http.StatusOK)
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
