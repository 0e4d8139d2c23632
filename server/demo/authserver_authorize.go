package demo

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// authorization is a request of an app, first waiting for somebody to sign in, then for its code to be exchanged.
type authorization struct {
	client, redirect, state, challenge string
	session                            session
	acr                                []string // classes of sign-in of which one must be reached; none: any
	expires                            time.Time
	begun                              string // the session that the code was exchanged for
}

// logins holds what is short-lived, in memory: a restart ends it, and the app asks again.
type logins struct {
	mu      sync.Mutex
	pending map[string]authorization // by the id in our page
	codes   map[string]authorization // by the code's digest
}

// maxLogins bounds what strangers can make the server remember.
const maxLogins = 1000

func put(m map[string]authorization, id string, a authorization, now time.Time) bool {
	for old, x := range m {
		if now.After(x.expires) {
			delete(m, old)
		}
	}
	if len(m) >= maxLogins {
		return false
	}
	m[id] = a
	return true
}

var (
	challengeText = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)       // base64url of a SHA-256
	verifierText  = regexp.MustCompile(`^[A-Za-z0-9._~-]{43,128}$`) // RFC 7636 section 4.1
	ageText       = regexp.MustCompile(`^[0-9]{1,9}$`)
	idText        = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`) // FHIR id
)

// authorize is the authorization endpoint (RFC 6749 section 4.1.1, SMART App Launch "obtain authorization code"): GET and,
// for SMART's authorize-post, POST. It answers with the sign-in page. Client and redirect URI are checked first: as long as
// they are in doubt, nobody is redirected anywhere.
func (s *AuthServer) authorize(w http.ResponseWriter, r *http.Request) {
	if r.ParseForm() != nil {
		s.page.problem(w, "The request is not readable.")
		return
	}
	q := r.Form
	client, redirect := q.Get("client_id"), q.Get("redirect_uri")
	name, known := publicClients()[client]
	switch {
	case len(q["client_id"]) != 1 || !known:
		s.page.problem(w, "The app is not registered here. Registered are: "+strings.Join(sorted(publicClients()), ", ")+".")
		return
	case len(q["redirect_uri"]) != 1 || !loopbackURL(redirect):
		s.page.problem(w, "The app's redirect_uri must be http://127.0.0.1:PORT/… or http://localhost:PORT/….")
		return
	}
	a := authorization{
		client: client, redirect: redirect, state: q.Get("state"), challenge: q.Get("code_challenge"),
		session: session{Client: client, Scope: q.Get("scope"), Nonce: q.Get("nonce"), Key: q.Get("dpop_jkt")},
		acr:     strings.Fields(q.Get("acr_values")),
		expires: s.cfg.Now().Add(loginLifetime),
	}
	for parameter, values := range q {
		if len(values) > 1 && parameter != "resource" {
			s.back(w, r, a, url.Values{"error": {"invalid_request"}, "error_description": {"a parameter comes twice"}})
			return
		}
	}
	refused := func(code, description string) {
		s.back(w, r, a, url.Values{"error": {code}, "error_description": {description}})
	}
	switch {
	case q.Has("request") || q.Has("request_uri"):
		refused("request_not_supported", "request objects are not supported")
	case q.Get("response_type") != "code":
		refused("unsupported_response_type", "response_type must be code")
	case q.Get("code_challenge_method") != "S256" || !challengeText.MatchString(a.challenge):
		refused("invalid_request", "PKCE with code_challenge_method=S256 is required")
	case q.Has("aud") && q.Get("aud") != s.cfg.Audience:
		refused("invalid_request", "aud must be "+s.cfg.Audience)
	case q.Get("scope") == "":
		refused("invalid_scope", "scope is missing")
	case has(q.Get("prompt"), "none"):
		refused("login_required", "nobody stays signed in here")
	// Everybody signs in anew, every time: that is what prompt=login asks for, and no sign-in is older than any max_age (OpenID Connect
	// Core 1.0 section 3.1.2.1, RFC 9470 section 5).
	case q.Has("max_age") && !ageText.MatchString(q.Get("max_age")):
		refused("invalid_request", "max_age is a number of seconds")
	case a.session.Key != "" && !challengeText.MatchString(a.session.Key):
		refused("invalid_request", "dpop_jkt is not a thumbprint")
	default:
		id := rand.Text()
		s.logins.mu.Lock()
		stored := put(s.logins.pending, id, a, s.cfg.Now())
		s.logins.mu.Unlock()
		if !stored {
			refused("temporarily_unavailable", "too many sign-ins are open")
			return
		}
		s.page.signIn(w, s.prefix+"/sign-in", id, name, a, s.cfg.Personas)
	}
}

func sorted(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// loopbackURL accepts the redirect URIs of native and browser apps on this machine (RFC 8252 section 7.3): any port.
func loopbackURL(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" || u.User != nil || u.Fragment != "" || strings.Contains(text, "#") || len(text) > 512 {
		return false
	}
	switch u.Hostname() {
	case "127.0.0.1", "localhost", "::1":
		return true
	}
	return false
}

// back sends the browser back to the app, with state and iss (RFC 9207).
func (s *AuthServer) back(w http.ResponseWriter, r *http.Request, a authorization, values url.Values) {
	u, err := url.Parse(a.redirect)
	if err != nil {
		s.page.problem(w, "The app's redirect_uri is not readable.")
		return
	}
	q := u.Query()
	for name, v := range values {
		q[name] = v
	}
	if a.state != "" {
		q.Set("state", a.state)
	}
	q.Set("iss", s.cfg.Issuer)
	u.RawQuery = q.Encode()
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, u.String(), http.StatusSeeOther)
}

// signIn takes the form of our page: which persona it is, or that the app is refused.
func (s *AuthServer) signIn(w http.ResponseWriter, r *http.Request) {
	if r.ParseForm() != nil {
		s.page.problem(w, "The form is not readable.")
		return
	}
	id := r.PostForm.Get("login")
	s.logins.mu.Lock()
	a, ok := s.logins.pending[id]
	delete(s.logins.pending, id)
	s.logins.mu.Unlock()
	if !ok || s.cfg.Now().After(a.expires) {
		s.page.problem(w, "This sign-in is over. Go back to the app and start again.")
		return
	}
	p, known := s.persona(r.PostForm.Get("persona"))
	if !known || p.ACR == "" { // a backend service does not sign in
		s.back(w, r, a, url.Values{"error": {"access_denied"}})
		return
	}
	a.session.Persona, a.session.AuthTime = p.Name, s.cfg.Now()
	if a.session.ACR, known = p.reach(a.acr); !known {
		s.back(w, r, a, url.Values{"error": {"unmet_authentication_requirements"}, "error_description": {"this person cannot sign in like that"}})
		return
	}
	a.session.Scope = grant(p, a.session.Scope)
	if a.session.Scope == "" {
		s.back(w, r, a, url.Values{"error": {"invalid_scope"}, "error_description": {"this person may have none of the scopes"}})
		return
	}
	a.session.Patient = p.Patient
	if p.Patient == "" && patientBound(a.session.Scope) {
		if a.session.Patient = r.PostForm.Get("patient"); !idText.MatchString(a.session.Patient) {
			s.back(w, r, a, url.Values{"error": {"access_denied"}, "error_description": {"no patient was chosen"}})
			return
		}
	}
	code := rand.Text()
	a.expires = s.cfg.Now().Add(codeLifetime)
	s.logins.mu.Lock()
	stored := put(s.logins.codes, digest(code), a, s.cfg.Now())
	s.logins.mu.Unlock()
	if !stored {
		s.back(w, r, a, url.Values{"error": {"temporarily_unavailable"}})
		return
	}
	s.cfg.Logger.Info("signed in", "persona", p.Name, "client", a.client, "scope", a.session.Scope)
	s.back(w, r, a, url.Values{"code": {code}})
}

// exchange takes a code, which works once, for the client, redirect URI, PKCE verifier and (where one was named) key it was made for. A code that comes
// again ends the session that it was exchanged for (RFC 6749 section 4.1.2): ended names it.
func (s *AuthServer) exchange(code, client, redirect, verifier, key string) (sid, refresh string, x session, ended string, err error) {
	s.logins.mu.Lock()
	defer s.logins.mu.Unlock()
	id := digest(code)
	a, ok := s.logins.codes[id]
	sum := sha256.Sum256([]byte(verifier))
	switch {
	case !ok || a.client != client:
		return "", "", session{}, "", errGrant
	case a.begun != "":
		return "", "", session{}, a.begun, errors.Join(errGrant, s.state.end(a.begun))
	}
	// From here on the code is spent, whether the rest fits or not: nobody guesses twice.
	delete(s.logins.codes, id)
	if s.cfg.Now().After(a.expires) || a.redirect != redirect || !verifierText.MatchString(verifier) ||
		!same(base64.RawURLEncoding.EncodeToString(sum[:]), a.challenge) ||
		a.session.Key != "" && a.session.Key != key { // RFC 9449 section 10
		return "", "", session{}, "", errGrant
	}
	a.session.Key = key
	if sid, refresh, err = s.state.begin(a.session); err != nil {
		return "", "", session{}, "", err
	}
	a.begun, a.expires = sid, s.cfg.Now().Add(accessLifetime)
	put(s.logins.codes, id, a, s.cfg.Now())
	return sid, refresh, a.session, "", nil
}
