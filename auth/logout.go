package auth

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Logout is what an issuer says with a logout token (OpenID Connect Back-Channel Logout 1.0): one session is over, or all of a subject's
// that began before.
type Logout struct {
	Issuer  string // iss
	Session string // as in Principal; "" when it is about the subject
	Subject string
	Issued  time.Time // by the issuer's clock, which is the one that its tokens go by
	TokenID string    // jti
}

// Revocation is what follows from it. Times of tokens are whole seconds: one that was issued in the same second is dead, too.
func (l *Logout) Revocation() Revocation {
	r := Revocation{Kind: RevokeSession, ID: l.Session, Reason: "back-channel logout", By: l.Issuer}
	if l.Session == "" {
		r.Kind, r.ID, r.NotBefore = RevokeSubject, l.Subject, l.Issued.Add(time.Second)
	}
	return r
}

const (
	logoutLife  = time.Hour // exp-iat at most; two minutes are what section 2.4 asks for
	logoutsKept = 65_536    // ids of logout tokens
	logoutEvent = "http://schemas.openid.net/event/backchannel-logout"
)

// logouts remembers which logout tokens were carried out. A token that is forgotten, or that comes to another instance, is carried out
// again, which changes nothing: that is why memory may be bounded here.
type logouts struct {
	mu   sync.Mutex
	seen map[[2]string]time.Time // iss and jti, to when the token expires
}

// used reports whether a token was carried out before.
func (l *logouts) used(issuer, id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.seen[[2]string{issuer, id}]
	return ok
}

func (l *logouts) use(issuer, id string, expires, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.seen) >= logoutsKept {
		for k, e := range l.seen {
			if e.Before(now) {
				delete(l.seen, k)
			}
		}
		if len(l.seen) >= logoutsKept {
			clear(l.seen)
		}
	}
	if l.seen == nil {
		l.seen = map[[2]string]time.Time{}
	}
	l.seen[[2]string{issuer, id}] = expires
}

// Logout verifies a logout token (section 2.6) and carries it out: do is called once of each token, and again when it failed. The same
// gate stands before the signature as for access tokens. Errors are those of Authenticate, and do's.
func (v *Verifier) Logout(ctx context.Context, token []byte, do func(*Logout) error) error {
	l, expires, err := v.logout(ctx, token)
	if err != nil {
		v.refused.Add(1)
		return err
	}
	if v.logouts.used(l.Issuer, l.TokenID) {
		v.refused.Add(1)
		return refuse("logout token was used before")
	}
	if err := do(l); err != nil {
		return err
	}
	v.logouts.use(l.Issuer, l.TokenID, expires, v.now())
	return nil
}

func (v *Verifier) logout(ctx context.Context, token []byte) (l *Logout, expires time.Time, err error) {
	if len(token) < minToken || len(token) > maxToken {
		return nil, expires, refuse("token length")
	}
	c, err := split(token)
	if err != nil {
		return nil, expires, err
	}
	h, err := parseHeader(c.header)
	if err != nil {
		return nil, expires, err
	}
	if !strings.EqualFold(h.Type, "logout+jwt") && !strings.EqualFold(h.Type, "application/logout+jwt") {
		return nil, expires, refuse("typ is not that of a logout token")
	}
	is, err := v.issuerOf(c.payload)
	if err != nil {
		return nil, expires, err
	}
	if is.keys == nil {
		return nil, expires, refuse("issuer has no keys")
	}
	k, err := is.keys.lookup(ctx, h.KeyID)
	if err != nil {
		return nil, expires, err
	}
	if h.Algorithm != k.alg {
		return nil, expires, refuse("alg is not the key's")
	}
	if err := v.signature(k, c); err != nil {
		return nil, expires, err
	}
	p, err := is.leaving(c.payload, v.now())
	if err != nil {
		return nil, expires, err
	}
	about := &Principal{Subject: p.Subject, Client: "-", Session: p.Session, Issued: p.Issued}
	if err := v.local(is, about); err != nil {
		return nil, expires, err
	}
	if v.revoked.dead(&Principal{KeyID: is.keyID(k.id), Issued: Never()}) {
		return nil, expires, refuse("key is revoked")
	}
	l = &Logout{Issuer: is.Issuer, Issued: p.Issued, TokenID: p.TokenID}
	if p.Session != "" {
		l.Session = about.Session
	}
	if p.Subject != "" {
		l.Subject = about.Subject
	}
	return l, p.Expires, nil
}

// leaving checks the claims of a logout token. Of the principal that it returns session or subject may be missing.
func (is *trusted) leaving(payload []byte, now time.Time) (*Principal, error) {
	var c claims
	if tooDeep(payload) {
		return nil, refuse("claims are nested too deeply")
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, refuse("claims do not parse")
	}
	audience := is.LogoutAudience
	if audience == "" {
		audience = is.Audience
	}
	switch {
	case c.Issuer != is.Issuer:
		return nil, refuse("iss is another issuer")
	case !meant(c.Audience, audience):
		return nil, refuse("aud does not name this service")
	case len(c.Nonce) != 0: // an ID token, dressed up
		return nil, refuse("nonce in a logout token")
	case !printable(c.ID, maxName):
		return nil, refuse("jti is missing or not printable")
	case c.Session == "" && c.Subject == "":
		return nil, refuse("neither sid nor sub")
	case c.Session != "" && !printable(c.Session, maxName), c.Subject != "" && !printable(c.Subject, maxName):
		return nil, refuse("sid or sub is not printable")
	}
	if err := is.current(c, now); err != nil {
		return nil, err
	}
	if time.Duration(*c.Expires-*c.Issued)*time.Second > logoutLife {
		return nil, refuse("lifetime is too long")
	}
	var events map[string]jsontext.Value
	if err := json.Unmarshal(c.Events, &events); err != nil || events[logoutEvent].Kind() != '{' {
		return nil, refuse("events does not say that it is a logout")
	}
	return &Principal{
		Session: c.Session, Subject: c.Subject, TokenID: c.ID, Issued: time.Unix(*c.Issued, 0).UTC(), Expires: time.Unix(*c.Expires, 0).UTC(),
	}, nil
}

// keyID is a key of the issuer as Principal.KeyID and revocations name it.
func (is *trusted) keyID(id string) string {
	if is.Name == "" {
		return id
	}
	return fmt.Sprintf("%s|%s", is.Name, id)
}
