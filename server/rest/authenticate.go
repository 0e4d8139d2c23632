package rest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
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
		if errors.Is(err, auth.ErrNoToken) && c.tokenInForm() {
			return tokenInRequest()
		}
		return c.challenge(err)
	}
	c.principal = p
	if c.dpop {
		c.nonce(p)
	}
	return c.weighed()
}

// credentials are what the request shows of its caller, in bytes of the request's. What only a bound token needs is gathered only
// when it may be there.
func (c *call) credentials() auth.Credentials {
	// Fiber has one list for the values of all names: a second question takes the first one's answer away.
	shown := auth.Credentials{Profile: c.profile(), Certificate: c.certificate()}
	if shown.Authorization = c.authorization(); c.proves(shown.Authorization) {
		h := &c.http.Request().Header
		shown.Authorization = slices.Clone(shown.Authorization)
		shown.Proofs = h.PeekAll("DPoP")
		shown.Method, shown.URL = c.method(), c.s.origin+string(c.http.Request().URI().PathOriginal())
	}
	return shown
}

// profile is the group of routes, each of which tokens are verified for by itself.
func (c *call) profile() auth.Profile {
	if c.fhir() {
		return auth.ProfileFHIR
	}
	return auth.ProfileOfficers
}

// proves remembers and reports whether the token comes with scheme DPoP.
func (c *call) proves(authorization [][]byte) bool {
	const scheme = "DPoP"
	c.dpop = len(authorization) == 1 && len(authorization[0]) > len(scheme) && bytes.EqualFold(authorization[0][:len(scheme)], []byte(scheme))
	return c.dpop
}

// nonce hands the client the nonce for its next proof, when it needs one.
func (c *call) nonce(p *auth.Principal) {
	if n := c.s.cfg.Verifier.Nonce(p); n != "" {
		c.http.Response().Header.Set("DPoP-Nonce", n)
	}
}

const realm = `realm="chartkeep"`

// challenge is the answer to a failed authentication, after RFC 6750 section 3.1 and RFC 9449 section 7.1. One text a status, whatever
// was wrong: the reason is for the trail.
func (c *call) challenge(err error) *refusal {
	r := &refusal{
		status:    http.StatusUnauthorized,
		code:      "login",
		text:      "authentication failed",
		challenge: "Bearer " + realm + `, error="invalid_token"`,
		kind:      audit.TypeAuthentication,
		cause:     err,
	}
	switch {
	case errors.Is(err, auth.ErrNoToken):
		r.text, r.challenge = "a token is needed", "Bearer "+realm
		r.alternative = possession("")
	case errors.Is(err, auth.ErrRequest):
		r.status, r.code, r.text = http.StatusBadRequest, "invalid", "malformed authorization"
		r.challenge = "Bearer " + realm + `, error="invalid_request"`
	case errors.Is(err, auth.ErrNonce):
		c.nonce(nil)
		r.challenge = possession("use_dpop_nonce")
	case errors.Is(err, auth.ErrProof):
		r.challenge = possession("invalid_dpop_proof")
	case errors.Is(err, auth.ErrBound):
		r.challenge = possession("invalid_token")
	case errors.Is(err, auth.ErrToken):
	default: // ErrKeys, ErrOverload, a context that ended: not the caller's fault, and nothing was decided
		r.status, r.code, r.text, r.challenge = http.StatusServiceUnavailable, "transient", "try again later", ""
	}
	return r
}

// possession is a challenge of scheme DPoP.
func possession(code string) string {
	algs := `, algs="` + strings.Join(auth.ProofAlgorithms(), " ") + `"`
	if code == "" {
		return "DPoP " + realm + algs
	}
	return "DPoP " + realm + `, error="` + code + `"` + algs
}

// spoken puts a challenge that was made for a bearer into the scheme that the request came with.
func (c *call) spoken(challenge string) string {
	rest, bearer := strings.CutPrefix(challenge, "Bearer ")
	if !bearer || !c.dpop {
		return challenge
	}
	return "DPoP " + rest + `, algs="` + strings.Join(auth.ProofAlgorithms(), " ") + `"`
}

// tokenInForm reports whether a form holds a token (RFC 6750 section 2.2). It does not parse the form: nobody has shown who he is, and a
// form of many small fields takes fifty times its size.
func (c *call) tokenInForm() bool {
	const field = "access_token="
	if !bytes.HasPrefix(c.http.Request().Header.ContentType(), []byte(mediaForm)) {
		return false
	}
	body := c.http.Request().Body()
	return bytes.HasPrefix(body, []byte(field)) || bytes.Contains(body, []byte("&"+field))
}

// tokenInRequest refuses a token in a URL or a form: both end up in logs and histories (RFC 6750 section 5.3).
func tokenInRequest() *refusal {
	return &refusal{
		status:    http.StatusBadRequest,
		code:      "invalid",
		text:      "malformed authorization",
		challenge: "Bearer " + realm + `, error="invalid_request"`,
		kind:      audit.TypeAuthentication,
		cause:     fmt.Errorf("%w: token in the URL or a form", auth.ErrRequest),
	}
}
