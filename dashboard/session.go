package main

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// pageHeader carries the page's half of a session. Browsers send cookies to every port of a host and along with other
	// sites' requests; this header only our own page can send, so each is useless without the other.
	pageHeader = "X-Chartkeep-Page"

	idleLimit   = 15 * time.Minute // of the person, after which tokens are forgotten (45 CFR 164.312(a)(2)(iii))
	maxSessions = 32               // what strangers on this machine can make us remember
)

// session is one browser's conversation with this program, or the window's.
type session struct {
	page string // what pageHeader must say

	mu     sync.Mutex
	login  *login  // a sign-in under way
	tokens *tokens // nil while nobody is signed in
	notice string  // why nobody is, in words for the person
	used   time.Time
}

// sessions holds them by the digest of their cookie.
type sessions struct {
	cookie string // its name; with the port, for browsers keep one jar for all ports
	window *session

	mu  sync.Mutex
	all map[[sha256.Size]byte]*session
}

func newSessions(cfg config) *sessions {
	s := &sessions{all: map[[sha256.Size]byte]*session{}}
	if cfg.OpenBrowser != nil {
		s.window = &session{page: rand.Text(), used: cfg.Now()}
	}
	_, port, _ := net.SplitHostPort(cfg.Host)
	s.cookie = "chartkeep-dashboard-" + port
	return s
}

// begin makes a session and returns the value of its cookie. Beyond the limit the one that was used least recently goes.
func (s *sessions) begin(now time.Time) (*session, string) {
	secret := rand.Text()
	made := &session{page: rand.Text(), used: now}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxSessions {
		var oldest [sha256.Size]byte
		var since time.Time
		for key, x := range s.all {
			at, in := x.lastUse()
			if in { // is not pushed out by page loads, unless by hundreds of them in one idle limit
				at = at.Add(idleLimit)
			}
			if since.IsZero() || at.Before(since) {
				oldest, since = key, at
			}
		}
		s.all[oldest].leave("")
		delete(s.all, oldest)
	}
	s.all[sha256.Sum256([]byte(secret))] = made
	return made, secret
}

func (s *sessions) find(r *http.Request) *session {
	found := s.window
	if found == nil {
		c, err := r.Cookie(s.cookie)
		if err != nil {
			return nil
		}
		s.mu.Lock()
		found = s.all[sha256.Sum256([]byte(c.Value))]
		s.mu.Unlock()
	}
	if found == nil || subtle.ConstantTimeCompare([]byte(r.Header.Get(pageHeader)), []byte(found.page)) != 1 {
		return nil
	}
	return found
}

func (s *sessions) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		x.leave("")
	}
	clear(s.all)
	if s.window != nil {
		s.window.leave("")
	}
}

func (x *session) lastUse() (at time.Time, signedIn bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.used, x.tokens != nil
}

// leave forgets the tokens and any sign-in under way, and returns the tokens, if there were some.
func (x *session) leave(notice string) *tokens {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.leaveLocked(notice)
}

func (x *session) leaveLocked(notice string) *tokens {
	had := x.tokens
	if x.login != nil {
		x.login.cancel()
	}
	x.login, x.tokens, x.notice = nil, nil, notice
	return had
}

// within lets requests of our own page through, with their session.
func (h *handler) within(next func(http.ResponseWriter, *http.Request, *session)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x := h.sessions.find(r)
		if x == nil {
			refuseAs(w, strange, http.StatusForbidden, "This page's session is over. Load the page again.")
			return
		}
		next(w, r, x)
	}
}

// beginSession starts a page's session. What it answers cannot be read by a page of another origin, and such a page's
// attempt is refused before it can replace a cookie.
func (h *handler) beginSession(w http.ResponseWriter, r *http.Request) {
	if err := new(http.CrossOriginProtection).Check(r); err != nil && h.sessions.window == nil {
		refuse(w, http.StatusForbidden, "Only the dashboard's own page may do this.")
		return
	}
	x := h.sessions.window
	if x == nil {
		var secret string
		x, secret = h.sessions.begin(h.cfg.Now())
		http.SetCookie(w, &http.Cookie{ // #nosec G124 -- plain HTTP on loopback has no Secure
			Name: h.sessions.cookie, Value: secret, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode,
		})
	}
	answer(w, map[string]string{"page": x.page})
}

// sessionJSON is what a page may know about its session: no token is in it.
type sessionJSON struct {
	User    string `json:"user"`    // subject; "" while nobody is signed in
	Name    string `json:"name"`    // of the person, as the issuer says; the subject when it does not
	Waiting bool   `json:"waiting"` // for a sign-in in the system browser
	Notice  string `json:"notice"`  // why nobody is signed in any more
	Server  string `json:"server"`
	Window  bool   `json:"window"` // sign-in happens in the system browser
}

func (h *handler) showSession(w http.ResponseWriter, _ *http.Request, x *session) {
	x.mu.Lock()
	h.expireLocked(x)
	waiting := x.login != nil && h.cfg.Now().Before(x.login.expires)
	out := sessionJSON{Waiting: waiting, Notice: x.notice, Server: h.cfg.API, Window: h.sessions.window != nil}
	if x.tokens != nil {
		out.User, out.Name = x.tokens.user, x.tokens.name
	}
	x.mu.Unlock()
	answer(w, out)
}

// expireLocked ends what was left alone for too long.
func (h *handler) expireLocked(x *session) {
	if x.tokens != nil && h.cfg.Now().Sub(x.used) > idleLimit {
		x.leaveLocked("You were signed out after fifteen minutes without activity.")
	}
}
