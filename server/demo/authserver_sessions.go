package demo

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// session is what a sign-in leads to: who signed in, for which client, and the family of its refresh tokens.
type session struct {
	Client   string    `json:"client"`
	Persona  string    `json:"persona"`
	Scope    string    `json:"scope"`
	Patient  string    `json:"patient,omitzero"`
	Nonce    string    `json:"nonce,omitzero"`
	AuthTime time.Time `json:"auth_time"`
	ACR      string    `json:"acr,omitzero"` // of the sign-in; the persona's own when empty
	Key      string    `json:"jkt,omitzero"` // that its tokens are bound to; "" for bearer tokens
	Expires  time.Time `json:"expires"`
	Revoked  bool      `json:"revoked,omitzero"`
	Current  string    `json:"current,omitzero"` // digest of the refresh token that may be used
	Used     []string  `json:"used,omitzero"`    // digests of those that were
}

// maxUsed bounds what a session remembers: a month of refreshing every ten minutes.
const maxUsed = 4400

var errGrant = errors.New("the grant is invalid, expired or revoked")

// errReuse means that a refresh token came a second time: either the thief or the owner has been here before, so the whole
// family dies (RFC 9700 section 4.14.2).
var errReuse = errors.New("the refresh token was used before")

// sessions is what survives a restart. Tokens are kept as digests only.
type sessions struct {
	path string
	now  func() time.Time
	mu   sync.Mutex
	file struct {
		Sessions   map[string]*session  `json:"sessions"`
		Tokens     map[string]time.Time `json:"revoked_tokens"` // jti to expiry
		Assertions map[string]time.Time `json:"assertions"`     // client and jti, to expiry
	}
}

func loadSessions(dir string, now func() time.Time) (*sessions, error) {
	s := &sessions{path: filepath.Join(dir, "issuer-sessions.json"), now: now}
	text, err := os.ReadFile(s.path)
	if err == nil {
		err = json.Unmarshal(text, &s.file)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	if s.file.Sessions == nil {
		s.file.Sessions = map[string]*session{}
	}
	if s.file.Tokens == nil {
		s.file.Tokens = map[string]time.Time{}
	}
	if s.file.Assertions == nil {
		s.file.Assertions = map[string]time.Time{}
	}
	return s, nil
}

// save forgets what expired and writes the rest; the caller holds the lock.
func (s *sessions) save() error {
	now := s.now()
	for id, x := range s.file.Sessions {
		if now.After(x.Expires.Add(accessLifetime + clockLeeway)) { // its access tokens live a little longer
			delete(s.file.Sessions, id)
		}
	}
	for _, m := range []map[string]time.Time{s.file.Tokens, s.file.Assertions} {
		for id, expires := range m {
			if now.After(expires) {
				delete(m, id)
			}
		}
	}
	text, err := json.Marshal(&s.file)
	if err != nil {
		return err
	}
	return writeFile(s.path, text, 0o600)
}

// begin stores a session, with a refresh token when its scope asks for one ("" otherwise), and returns its id.
func (s *sessions) begin(x session) (sid, refresh string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sid = rand.Text()
	lifetime := accessLifetime
	scopes := strings.Fields(x.Scope)
	switch {
	case slices.Contains(scopes, "offline_access"):
		lifetime = offlineLifetime
	case slices.Contains(scopes, "online_access"):
		lifetime = onlineLifetime
	}
	x.Expires = s.now().Add(lifetime)
	if lifetime > accessLifetime {
		refresh = s.renew(sid, &x)
	}
	s.file.Sessions[sid] = &x
	return sid, refresh, s.save()
}

// renew makes the next refresh token of a session: its id, which is no secret, and a secret.
func (s *sessions) renew(sid string, x *session) string {
	secret := rand.Text()
	if x.Current != "" {
		x.Used = append(x.Used, x.Current)
		x.Used = x.Used[max(0, len(x.Used)-maxUsed):]
	}
	x.Current = digest(secret)
	return sid + "." + secret
}

func digest(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// find returns the session of a refresh token. The error is errReuse when the token was used before.
func (s *sessions) find(refresh string) (sid string, x *session, err error) {
	sid, secret, _ := strings.Cut(refresh, ".")
	x = s.file.Sessions[sid]
	if x == nil || x.Current == "" {
		return "", nil, errGrant
	}
	d := []byte(digest(secret))
	if subtle.ConstantTimeCompare(d, []byte(x.Current)) == 1 {
		if x.Revoked || s.now().After(x.Expires) {
			return sid, x, errGrant
		}
		return sid, x, nil
	}
	for _, used := range x.Used {
		if subtle.ConstantTimeCompare(d, []byte(used)) == 1 {
			return sid, x, errReuse
		}
	}
	return "", nil, errGrant
}

var errScope = errors.New("scope is wider than what was granted")

// refresh exchanges a refresh token for the next one. A scope, when not empty, narrows what is issued now and not what was
// granted. When the token was used before, the session is revoked: sid says which one. A session that is bound to a key is
// refreshed with that key only; one that is not is bound to the first that is shown.
func (s *sessions) refresh(token, client, scope, key string) (sid, next string, x session, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sid, found, err := s.find(token)
	switch {
	case errors.Is(err, errReuse) && found.Client == client:
		found.Revoked = true
		return sid, "", session{}, errors.Join(errReuse, s.save())
	case err != nil || found.Client != client || found.Key != "" && found.Key != key:
		return "", "", session{}, errGrant
	}
	for asked := range strings.FieldsSeq(scope) {
		if !has(found.Scope, asked) {
			return "", "", session{}, errScope
		}
	}
	found.Key = key
	next = s.renew(sid, found)
	x = *found
	if scope != "" {
		x.Scope = scope
	}
	return sid, next, x, s.save()
}

// peek returns a living session of a refresh token without using it.
func (s *sessions) peek(refresh string) (sid string, x session, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sid, found, err := s.find(refresh)
	if err != nil {
		return "", session{}, false
	}
	return sid, *found, true
}

// end revokes a session.
func (s *sessions) end(sid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.file.Sessions[sid]; x != nil {
		x.Revoked = true
	}
	return s.save()
}

// endToken revokes one access token.
func (s *sessions) endToken(jti string, expires time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file.Tokens[jti] = expires
	return s.save()
}

// dead reports whether an access token was revoked, by itself or with its session.
func (s *sessions) dead(jti, sid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, revoked := s.file.Tokens[jti]
	x := s.file.Sessions[sid]
	return revoked || x != nil && x.Revoked
}

// first reports whether a client assertion comes for the first time, and remembers it until it expires.
func (s *sessions) first(client, jti string, expires time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := client + " " + digest(jti)
	if _, seen := s.file.Assertions[id]; seen {
		return false, nil
	}
	s.file.Assertions[id] = expires
	return true, s.save()
}
