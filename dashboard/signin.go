package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// callbackPath is where the issuer sends the browser back to.
	callbackPath = "/signin/callback"

	signInLimit = 3 * time.Minute  // of the person at the issuer's page
	renewBefore = 30 * time.Second // before a token expires
)

// login is one sign-in under way. What comes back must fit it.
type login struct {
	provider *provider
	state    string
	nonce    string
	verifier string // of PKCE (RFC 7636)
	redirect string
	expires  time.Time
	cancel   func()
}

// signIn begins a sign-in and answers with the page of the issuer to go to. Behind a window the system browser is sent
// there, and the page waits.
func (h *handler) signIn(w http.ResponseWriter, r *http.Request, x *session) {
	p, err := h.discover(r.Context())
	if err != nil {
		h.cfg.Logger.Warn("signing in is not possible", "error", err)
		refuseAs(w, offline, http.StatusBadGateway, "The sign-in service does not answer.")
		return
	}
	l := &login{
		provider: p, state: rand.Text(), nonce: rand.Text(), verifier: rand.Text() + rand.Text(),
		redirect: "http://" + h.cfg.Host + callbackPath, expires: h.cfg.Now().Add(signInLimit), cancel: func() {},
	}
	if h.cfg.OpenBrowser != nil {
		if err := h.receive(x, l); err != nil {
			h.cfg.Logger.Error("signing in is not possible", "error", err)
			refuse(w, http.StatusInternalServerError, "This machine gives no port to come back to.")
			return
		}
	}
	x.mu.Lock()
	x.leaveLocked("")
	x.login = l
	x.mu.Unlock()
	address := l.address()
	if h.cfg.OpenBrowser != nil {
		h.cfg.OpenBrowser(address)
	}
	answer(w, map[string]string{"url": address})
}

// address is the authorization request (RFC 6749 section 4.1.1, RFC 7636 section 4.3).
func (l *login) address() string {
	digest := sha256.Sum256([]byte(l.verifier))
	query := url.Values{
		"response_type":         {"code"},
		"client_id":             {clientID},
		"redirect_uri":          {l.redirect},
		"scope":                 {l.provider.scope()},
		"state":                 {l.state},
		"nonce":                 {l.nonce},
		"code_challenge":        {base64.RawURLEncoding.EncodeToString(digest[:])},
		"code_challenge_method": {"S256"},
	}
	address, _ := url.Parse(l.provider.Authorize) // discover has parsed it before
	for name, values := range address.Query() {
		query[name] = values
	}
	address.RawQuery = query.Encode()
	return address.String()
}

// complete takes the query that the issuer sent the browser back with. The page hands it over in a request of its own: the
// issuer's redirect carries no SameSite=Strict cookie, and a sign-in must end in the browser where it began.
func (h *handler) complete(w http.ResponseWriter, r *http.Request, x *session) {
	var body struct {
		Query string `json:"query"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		refuse(w, http.StatusBadRequest, "The request is not readable.")
		return
	}
	query, err := url.ParseQuery(body.Query)
	if err != nil {
		refuse(w, http.StatusBadRequest, "The issuer's answer is not readable.")
		return
	}
	h.finish(r.Context(), x, query)
	h.showSession(w, r, x)
}

// finish ends the sign-in under way with the issuer's answer: signed in, or a notice that says why not. An answer to
// another sign-in changes nothing and is reported as false.
func (h *handler) finish(ctx context.Context, x *session, query url.Values) bool {
	x.mu.Lock()
	l := x.login
	if l == nil || subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(l.state)) != 1 {
		if x.tokens == nil && l == nil {
			x.notice = "That sign-in is over. Please sign in again."
		}
		x.mu.Unlock()
		return false
	}
	x.login = nil // one answer, one try
	x.mu.Unlock()

	t, err := h.exchange(ctx, l, query)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		h.cfg.Logger.Warn("a sign-in failed", "error", err)
		x.notice = "Signing in failed. Please try again, and see this program's log if it goes on."
		if errors.Is(err, errDeclined) {
			x.notice = "Access was declined at the sign-in page."
		}
		return true
	}
	x.tokens, x.notice, x.used = t, "", h.cfg.Now()
	return true
}

// errDeclined is the person's own no.
var errDeclined = errors.New("access was declined")

// exchange turns the issuer's answer into tokens.
func (h *handler) exchange(ctx context.Context, l *login, query url.Values) (*tokens, error) {
	issuer := query.Get("iss")
	switch {
	case h.cfg.Now().After(l.expires):
		return nil, errors.New("reading the issuer's answer: it came too late")
	case issuer != l.provider.Issuer && (issuer != "" || l.provider.NamesSelf): // mix-up (RFC 9207)
		return nil, errors.New("reading the issuer's answer: it is another issuer's")
	case query.Get("error") == "access_denied":
		return nil, errDeclined
	case query.Get("code") == "":
		return nil, errors.New("reading the issuer's answer: it has no code")
	}
	t, idToken, err := h.redeem(ctx, l.provider, url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {query.Get("code")},
		"redirect_uri":  {l.redirect},
		"code_verifier": {l.verifier},
	})
	if err != nil {
		return nil, err
	}
	t.user, t.name, err = identify(idToken, l.provider, l.nonce, h.cfg.Now())
	return t, err
}

// receive opens the port that the system browser comes back to, for one answer or until the sign-in is over (RFC 8252
// section 7.3).
func (h *handler) receive(x *session, l *login) error {
	ctx, cancel := context.WithTimeout(context.Background(), signInLimit)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return fmt.Errorf("listening for the browser: %w", err)
	}
	host := listener.Addr().String()
	l.redirect, l.cancel = "http://"+host+callbackPath, cancel
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+callbackPath, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Referrer-Policy", "no-referrer")
		if r.Host != host || !h.finish(r.Context(), x, r.URL.Query()) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `<!doctype html><html lang="en"><title>Chartkeep</title><p>This is not the sign-in that the dashboard is waiting for.`)
			return
		}
		fmt.Fprint(w, `<!doctype html><html lang="en"><title>Chartkeep</title><p>You can close this tab and go back to the dashboard.`)
		cancel()
	})
	go func() {
		if err := serve(ctx, listener, mux, h.cfg.Logger); err != nil {
			h.cfg.Logger.Warn("the port for the browser failed", "error", err)
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.login == l {
			x.login, x.notice = nil, "Nobody signed in within three minutes."
		}
	}()
	return nil
}

func (h *handler) cancelSignIn(w http.ResponseWriter, r *http.Request, x *session) {
	x.mu.Lock()
	if x.login != nil {
		x.login.cancel()
		x.login = nil
	}
	x.mu.Unlock()
	h.showSession(w, r, x)
}

// signOut forgets the tokens and has the issuer forget them too (RFC 7009). The person is signed out here whether or not
// the issuer answers.
func (h *handler) signOut(w http.ResponseWriter, r *http.Request, x *session) {
	t := x.leave("")
	if t != nil && t.provider.Revoke != "" {
		form := url.Values{"client_id": {clientID}, "token": {t.access}}
		if t.refresh != "" { // with it the whole session ends
			form.Set("token", t.refresh)
		}
		res, err := h.postForm(context.WithoutCancel(r.Context()), t.provider.Revoke, form)
		if err != nil {
			h.cfg.Logger.Warn("the issuer was not told of a sign-out", "error", err)
		} else {
			res.Body.Close()
		}
	}
	h.showSession(w, r, x)
}

var errSignedOut = errors.New("nobody is signed in")

// accessToken returns a token that is good for a while, renewing it when it is about to expire, and counts as activity of
// the person.
func (h *handler) accessToken(ctx context.Context, x *session) (string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h.expireLocked(x)
	if x.tokens == nil {
		return "", errSignedOut
	}
	now := h.cfg.Now()
	x.used = now
	t := x.tokens
	if now.Before(t.expires.Add(-renewBefore)) {
		return t.access, nil
	}
	err := errRefused
	if t.refresh != "" {
		var next *tokens
		// Not ended with the request: the issuer takes a refresh token once, so its answer must not be lost.
		next, _, err = h.redeem(context.WithoutCancel(ctx), t.provider, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {t.refresh}})
		if err == nil {
			next.user, next.name = t.user, t.name
			if next.refresh == "" {
				next.refresh = t.refresh
			}
			x.tokens = next
			return next.access, nil
		}
	}
	switch {
	case now.Before(t.expires):
		return t.access, nil
	case errors.Is(err, errRefused):
		x.leaveLocked("Your session is over. Please sign in again.")
		return "", errSignedOut
	default:
		return "", err
	}
}
