package rest

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// authenticate turns the request's Authorization headers into its principal. All values are handed over, as received: a
// framework that takes the first of two would let an attacker choose which one the proxy in front has seen. No other
// header says who is asking.
func (c *call) authenticate() error {
	began := time.Now()
	defer func() { c.authTook = time.Since(began) }()
	if c.http.Context().QueryArgs().Has("access_token") {
		return tokenInRequest()
	}
	shown := c.credentials()
	if err := c.bearable(shown); err != nil {
		return err
	}
	p, err := c.s.cfg.Verifier.Authenticate(c.ctx, shown)
	if err != nil {
		if over := c.failed(err); over != nil {
			return over
		}
		return challenge(err)
	}
	c.principal = p
	return c.weighed()
}

// credentials are what the request shows of its caller, in bytes of the request's.
func (c *call) credentials() auth.Credentials {
	return auth.Credentials{Authorization: c.authorization()}
}

// challenge is the answer to a failed authentication, after RFC 6750 section 3.1. One text a status, whatever was wrong:
// the reason is for the trail.
func challenge(err error) *refusal {
	r := &refusal{
		status:    http.StatusUnauthorized,
		code:      "login",
		text:      "authentication failed",
		challenge: `Bearer realm="chartkeep", error="invalid_token"`,
		kind:      audit.TypeAuthentication,
		cause:     err,
	}
	switch {
	case errors.Is(err, auth.ErrNoToken):
		r.text, r.challenge = "a bearer token is needed", `Bearer realm="chartkeep"`
	case errors.Is(err, auth.ErrRequest):
		r.status, r.code, r.text = http.StatusBadRequest, "invalid", "malformed authorization"
		r.challenge = `Bearer realm="chartkeep", error="invalid_request"`
	case errors.Is(err, auth.ErrToken):
	default: // ErrKeys, ErrOverload, a context that ended: not the caller's fault, and nothing was decided
		r.status, r.code, r.text, r.challenge = http.StatusServiceUnavailable, "transient", "try again later", ""
	}
	return r
}

// tokenInRequest refuses a token in a URL or a form: both end up in logs and histories (RFC 6750 section 5.3).
func tokenInRequest() *refusal {
	return &refusal{
		status:    http.StatusBadRequest,
		code:      "invalid",
		text:      "malformed authorization",
		challenge: `Bearer realm="chartkeep", error="invalid_request"`,
		kind:      audit.TypeAuthentication,
		cause:     fmt.Errorf("%w: token in the URL or a form", auth.ErrRequest),
	}
}
