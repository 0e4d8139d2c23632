package demo

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	logoutLifetime = 2 * time.Minute // of a logout token, as section 2.4 asks
	logoutTimeout  = 5 * time.Second
	logoutTries    = 3
)

// logoutClaims are those of a logout token (OpenID Connect Back-Channel Logout 1.0 section 2.4).
type logoutClaims struct {
	Issuer   string         `json:"iss"`
	Audience string         `json:"aud"`
	Issued   int64          `json:"iat"`
	Expires  int64          `json:"exp"`
	ID       string         `json:"jti"`
	Session  string         `json:"sid"`
	Events   map[string]any `json:"events"`
}

// logoutToken says that a session is over.
func (s *AuthServer) logoutToken(sid string) (string, error) {
	now := s.cfg.Now()
	text, err := json.Marshal(logoutClaims{
		Issuer: s.cfg.Issuer, Audience: s.cfg.Audience, Issued: now.Unix(), Expires: now.Add(logoutLifetime).Unix(), ID: rand.Text(), Session: sid,
		Events: map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	})
	if err != nil {
		return "", err
	}
	return s.keys.current().sign("logout+jwt", text)
}

// loggedOut tells the API that a session is over, over its back channel, before the request that ended it is answered. What is not told
// is in the log: access tokens of the session live on until they expire.
func (s *AuthServer) loggedOut(sid string) {
	if s.cfg.LogoutURL == "" {
		return
	}
	var err error
	for try := range logoutTries {
		time.Sleep(time.Duration(try) * 200 * time.Millisecond)
		if err = s.sendLogout(sid); err == nil {
			return
		}
	}
	s.cfg.Logger.Error("back-channel logout failed", "session", sid, "error", err)
}

func (s *AuthServer) sendLogout(sid string) error {
	token, err := s.logoutToken(sid) // a new one each time: it may be used once
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), logoutTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.cfg.LogoutURL, strings.NewReader(url.Values{"logout_token": {token}}.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", res.Status)
	}
	return nil
}

// EndSession ends a session, as a sign-out does: its refresh tokens are dead, and the API is told.
func (s *AuthServer) EndSession(sid string) error {
	if err := s.state.end(sid); err != nil {
		return fmt.Errorf("ending session: %w", err)
	}
	s.loggedOut(sid)
	return nil
}
