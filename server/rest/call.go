package rest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/utils"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// call is one request on its way. It lives as long as the handler. Whatever it keeps from the request is a copy: Fiber's
// strings are views of a buffer that the next request on the connection overwrites.
type call struct {
	s     *Server
	http  *fiber.Ctx
	route *route
	ctx   context.Context

	start     time.Time
	requestID string
	network   string
	source    string          // of whose limit: see limiter; "" for none
	principal *auth.Principal // nil until authenticated
	granted   auth.Decision   // about the route's capability
	aliased   bool            // the caller sees aliases in the place of people
	own       bool            // the caller sees and changes his own only
	wider     auth.Decision   // then: why not others' too
	authTook  time.Duration
	trace     phi.Trace
	limited   string // the limit that the request was refused by
	pretty    bool
	dpop      bool // the token came with scheme DPoP
	unread    bool // the request could not be read, and its path may be unknown
}

// header is a response header whose bytes are made once.
type header struct{ key, value []byte }

func fixedHeaders(https bool) []header {
	h := []header{
		{[]byte("Cache-Control"), []byte("no-store")},
		{[]byte("Pragma"), []byte("no-cache")},
		{[]byte("Vary"), []byte("Accept, Authorization")},
		{[]byte("X-Content-Type-Options"), []byte("nosniff")},
		{[]byte("Referrer-Policy"), []byte("no-referrer")},
		{[]byte("Content-Security-Policy"), []byte("default-src 'none'; frame-ancestors 'none'")},
	}
	if https {
		h = append(h, header{[]byte("Strict-Transport-Security"), []byte("max-age=31536000; includeSubDomains")})
	}
	return h
}

// handle is the one way in for every registered route: identify, authenticate, guard, serve, answer, log.
func (s *Server) handle(fc *fiber.Ctx, r *route) error {
	c := &call{s: s, http: fc, route: r, start: time.Now()}
	timeout := s.cfg.Timeout
	if fc.Method() == fiber.MethodGet {
		timeout /= 3 // a read does one thing; a bundle may do five thousand
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c.ctx = ctx
	defer func() { clear(fc.Request().Body()) }() // fasthttp keeps the buffer for the next request; what came in is sealed or refused
	defer c.survive()
	c.identify()
	err := c.admitted()
	if err == nil {
		err = c.guarded()
	}
	if err != nil {
		c.refuse(err)
	}
	c.finish()
	return nil
}

// guarded runs the handler behind its guard, and turns a panic into an error that says nothing to the caller.
func (c *call) guarded() (err error) {
	defer func() {
		if v := recover(); v != nil {
			panicked(c.s.logger, v, c.route.pattern, c.requestID)
			err = fmt.Errorf("handler panicked with a %T", v)
		}
	}()
	switch g := c.route.guard; g.kind {
	case guardOpen, guardMounted, guardLogout:
	case guardRecords:
		if err := c.authenticated(); err != nil {
			return err
		}
	case guardCapability:
		if err := c.authenticated(); err != nil {
			return err
		}
		if err := c.allow(g); err != nil {
			return err
		}
	default:
		return errors.New("route has no guard")
	}
	return c.route.serve(c)
}

// allow asks for the capability of a route, and then for the one that comes with aliases.
func (c *call) allow(g guard) error {
	if c.granted = c.s.cfg.Access.May(c.principal, g.capability); c.granted.Allowed {
		return nil
	}
	if g.aliased != "" {
		if d := c.s.cfg.Access.May(c.principal, g.aliased); d.Allowed {
			c.granted, c.aliased = d, true
			return nil
		}
	}
	if g.own != "" {
		if d := c.s.cfg.Access.May(c.principal, g.own); d.Allowed {
			c.wider, c.granted, c.own = c.granted, d, true
			return nil
		}
	}
	return forbidden(&c.granted)
}

// others refuses what is not the caller's own: like what is not there, or, when a fresh sign-in is all that is missing, by asking for it.
// Neither tells whether there is such a thing.
func (c *call) others() error {
	if c.wider.Reason == auth.ReasonStepUp {
		return forbidden(&c.wider)
	}
	return notFound()
}

// identify gives the request its id and the response the headers that every one has.
func (c *call) identify() {
	if id := c.http.Request().Header.Peek("X-Request-Id"); validRequestID(id) {
		c.requestID = string(id)
	} else {
		c.requestID = utils.UUIDv4()
	}
	c.network, c.source = c.s.client(c.http)
	h := &c.http.Response().Header
	h.Set("X-Request-Id", c.requestID)
	if c.route.guard.kind == guardMounted {
		return // a sign-in page has its own rules
	}
	for i := range c.s.fixed {
		h.SetCanonical(c.s.fixed[i].key, c.s.fixed[i].value)
	}
	if c.fhir() && len(c.http.Request().Header.Peek("Origin")) > 0 {
		// Bearer tokens are not sent by a browser on its own, so any origin may ask (SMART App Launch wants CORS).
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", "ETag, Last-Modified, Location, Content-Location, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate, DPoP-Nonce, X-Request-Id, X-Decision-Id, X-Emergency-Access")
	}
}

// validRequestID reports whether a client's id is [A-Za-z0-9._-]{1,64}: safe in a header, a log line and an event.
func validRequestID(id []byte) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, b := range id {
		if (b < '0' || b > '9') && (b < 'A' || b > 'Z') && (b < 'a' || b > 'z') && b != '.' && b != '_' && b != '-' {
			return false
		}
	}
	return true
}

// client is the address of the client: the connection's, or, when that is a configured proxy, the last address in
// X-Forwarded-For that is not one. What a client writes itself into that header stands further left and is never reached.
// A proxy that does not say for whom it asks is no source: nobody is limited for it.
func (s *Server) client(c *fiber.Ctx) (address, from string) {
	peer := c.Context().RemoteIP().String()
	if len(s.proxies) == 0 || !s.proxied(peer) {
		return peer, source(peer)
	}
	var hops []string
	for _, v := range c.Request().Header.PeekAll("X-Forwarded-For") {
		hops = append(hops, strings.Split(string(v), ",")...)
	}
	for i := len(hops) - 1; i >= 0; i-- {
		a, err := hop(strings.TrimSpace(hops[i]))
		if err != nil {
			return peer, ""
		}
		if a = a.Unmap(); !s.proxied(a.String()) {
			return a.String(), source(a.String())
		}
	}
	return peer, ""
}

// hop reads an address as proxies write it: some with the port of the connection, or in brackets.
func hop(text string) (netip.Addr, error) {
	if p, err := netip.ParseAddrPort(text); err == nil {
		return p.Addr(), nil
	}
	return netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
}

func (s *Server) proxied(address string) bool {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	for _, p := range s.proxies {
		if p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// fhir reports whether the answer is in FHIR's words. Routes without a pattern (unknown paths) go by their path; to a
// request that broke off before its path was known FHIR's clients are the likelier senders.
func (c *call) fhir() bool {
	p := c.route.pattern
	if p == "" {
		p = c.http.Path()
		if c.unread && !strings.HasPrefix(p, apiBase+"/") {
			return true
		}
	}
	return p == fhirBase || strings.HasPrefix(p, fhirBase+"/")
}

// caller is what phi needs to know about the request.
func (c *call) caller() (*phi.Caller, error) {
	purpose := c.http.Request().Header.Peek("X-Purpose-Of-Use")
	for _, b := range purpose {
		if b < 'A' || b > 'Z' || len(purpose) > 16 {
			return nil, invalid("X-Purpose-Of-Use is a code of capital letters")
		}
	}
	return &phi.Caller{
		Principal: c.principal,
		Purpose:   string(purpose),
		RequestID: c.requestID,
		Network:   c.network,
		Start:     c.start,
		AuthTook:  c.authTook,
		Trace:     &c.trace,
	}, nil
}

// agent is the caller in events that are recorded here.
func (c *call) agent() audit.Agent {
	a := audit.Agent{Network: c.network}
	if p := c.principal; p != nil {
		a.User, a.Name, a.Client, a.Session, a.Roles, a.FHIRUser = p.Subject, p.Name, p.Client, p.Session, p.Roles, p.FHIRUser
	}
	return a
}

// options answers a preflight, and anybody who asks what a path can do.
func (c *call) options(allow string) error {
	h := &c.http.Response().Header
	h.Set("Allow", allow)
	if c.fhir() && len(c.http.Request().Header.Peek("Origin")) > 0 {
		h.Set("Access-Control-Allow-Methods", allow)
		h.Set("Access-Control-Allow-Headers", "Authorization, DPoP, Accept, Content-Type, If-Match, If-None-Match, If-Modified-Since, If-None-Exist, Prefer, X-Request-Id, X-Purpose-Of-Use")
		h.Set("Access-Control-Max-Age", "600")
	}
	c.http.Status(http.StatusNoContent)
	return nil
}

// finish writes the access line and tells the observer. Neither sees path values, queries or bodies.
func (c *call) finish() {
	c.tellEmergency()
	took := time.Since(c.start)
	status := c.http.Response().StatusCode()
	if c.s.logger.Enabled(c.ctx, slog.LevelInfo) {
		subject := ""
		if c.principal != nil {
			subject = c.principal.Subject
		}
		c.s.logger.LogAttrs(c.ctx, slog.LevelInfo, "request",
			slog.String("request_id", c.requestID),
			slog.String("method", c.method()),
			slog.String("route", c.route.pattern),
			slog.Int("status", status),
			slog.Int64("us", took.Microseconds()),
			slog.Int("bytes", len(c.http.Response().Body())),
			slog.String("subject", subject))
	}
	if c.s.cfg.Observe != nil {
		o := Observation{
			Route:  c.route.pattern,
			Method: c.method(),
			Status: status,
			Took:   took,
			Auth:   c.authTook,
			Trace:  c.trace,

			Limited: c.limited,
		}
		if k := c.route.guard.kind; k == guardRecords || k == guardCapability {
			o.RequestID, o.Role = c.requestID, c.role()
		}
		c.s.cfg.Observe(o)
	}
}

// role is the first role of the caller's token, "" without one.
func (c *call) role() string {
	if c.principal == nil || len(c.principal.Roles) == 0 {
		return ""
	}
	return c.principal.Roles[0]
}

// method is the request's method out of a fixed list: an observer may keep it, and a made-up method is not echoed.
func (c *call) method() string {
	for _, m := range fiber.DefaultMethods {
		if m == c.http.Method() {
			return m
		}
	}
	return "OTHER"
}
