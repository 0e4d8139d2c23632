package rest

import (
	"bytes"
	"errors"
	"net/http"

	"github.com/valyala/fasthttp"

	"github.com/chartkeep/chartkeep/auth"
)

// strangersBody is how large the body may be of a request that shows no token which stands: of sign-in pages and logout tokens. A body
// is read whole before anything else is done for a request, so if all could have 16 MiB of it, a hundred connections that show nothing
// would take gigabytes.
const strangersBody = 64 << 10

// strangers is the key, in the table of failed authentication, of tokens that were refused before it was known where they came from.
const strangers = ""

// bodyOf says how large the body may be of a request whose head was read. Possession of a bound token is asked for later, as ever.
func (s *Server) bodyOf(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	const chunked = -1
	if n := h.ContentLength(); n != chunked && n <= strangersBody || s.vouched(h) {
		return fasthttp.RequestConfig{}
	}
	return fasthttp.RequestConfig{MaxRequestBodySize: min(strangersBody, s.cfg.BodyLimit)}
}

// vouched reports whether a request shows a token that stands. Forged ones are looked at for a while only: from then on a token must
// have been verified lately, until they are fewer.
func (s *Server) vouched(h *fasthttp.RequestHeader) bool {
	shown := auth.Credentials{Profile: auth.ProfileFHIR, Authorization: h.PeekAll("Authorization"), Proven: true}
	if bytes.HasPrefix(h.RequestURI(), []byte(apiBase+"/")) {
		shown.Profile = auth.ProfileOfficers
	}
	if s.cfg.Verifier.Known(shown) {
		return true
	}
	failed := s.limits.failed
	if failed != nil {
		if _, ok := failed.look(strangers, s.limits.clock()); !ok {
			return false
		}
	}
	_, err := s.cfg.Verifier.Authenticate(s.ctx, shown)
	if failed != nil && errors.Is(err, auth.ErrToken) {
		failed.charge(strangers, forgedCost, s.limits.clock())
	}
	return err == nil
}

// tooLarge says why a body was not read: it is too large for anybody, or its sender is not who may have one of that size. Of a chunked
// one the head is gone by now.
func (c *call) tooLarge(r *refusal) *refusal {
	h := &c.http.Request().Header
	if len(h.Host()) == 0 {
		return r
	}
	if err := c.authenticate(); err != nil {
		return refused(err)
	}
	if h.ContentLength() <= c.s.cfg.BodyLimit { // nobody was looked at then: see vouched
		return &refusal{status: http.StatusServiceUnavailable, code: "transient", text: "try again later"}
	}
	return r
}
