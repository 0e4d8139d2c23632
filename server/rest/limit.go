package rest

import (
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// Limits are how fast requests may come. What is over a limit is answered 429 with Retry-After and RateLimit before any costly
// work was done for it, and is in the trail (see repeats). Each limit is an instance's own.
type Limits struct {
	IP      Rate // of one address (IPv6: one /64), whatever is asked; paths that need no token have as much again of their own
	Client  Rate // of one OAuth client
	Subject Rate // of one user or service
	Failed  Rate // failed authentication of one network (IPv4 /24, IPv6 /64), and of one client whose genuine tokens are refused
}

// What a failed authentication takes of Limits.Failed. A signature costs us most to refuse, and nobody has one that does not verify
// by mistake.
const (
	failedCost = 1
	forgedCost = 5
)

// weight is how many tokens a request takes of its client's and its subject's bucket.
func weight(interaction string) int {
	switch interaction {
	case "transaction":
		return 20
	case "search-type", "history-instance", "audit-search", "audit-facets", "audit-histogram", "patient-merge", "patient-unmerge":
		return 5
	case "create", "update", "delete":
		return 2
	default:
		return 1
	}
}

// Names of the limits: policies in RateLimit headers, labels of a metric, and what events say.
const (
	limitIP      = "ip"
	limitOpen    = "open"
	limitClient  = "client"
	limitSubject = "subject"
	limitFailed  = "failed-authentication"
)

// limiter holds every bucket. Its memory is fixed when it is made: 1 MiB a table. A nil table limits nothing.
type limiter struct {
	ip, open, client, subject, failed, refused *buckets // refused: failed authentication by client
	start                                      time.Time
}

func newLimiter(l Limits) limiter {
	return limiter{
		ip: newBuckets(l.IP), open: newBuckets(l.IP), client: newBuckets(l.Client), subject: newBuckets(l.Subject),
		failed: newBuckets(l.Failed), refused: newBuckets(l.Failed), start: time.Now(),
	}
}

// clock never goes back, whatever happens to the wall clock.
func (l *limiter) clock() time.Duration { return time.Since(l.start) }

// source is where a request comes from as far as limits go: an IPv4 address, given as text, or the /64 of an IPv6 address, in which a
// host moves freely.
func source(address string) string {
	if strings.IndexByte(address, ':') < 0 {
		return address
	}
	return network(address)
}

// network is the network of an address or a source whose failures are counted together, /24 or /64, in words.
func network(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address // a /64 already
	}
	bits := 64
	if a = a.Unmap(); a.Is4() {
		bits = 24
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return address
	}
	return p.String()
}

// admitted holds a request against the limit of its address, before anything is done for it.
func (c *call) admitted() error {
	table, name := c.s.limits.ip, limitIP
	switch c.route.guard.kind {
	case guardOpen, guardMounted:
		table, name = c.s.limits.open, limitOpen
	}
	if table == nil || c.source == "" {
		return nil
	}
	return c.take(table, name, c.source, 1)
}

// weighed holds a request whose caller is known against his limits. The subject comes first: what one user is refused does not
// count against the application that others use, too.
func (c *call) weighed() error {
	cost := weight(c.route.interaction)
	if t := c.s.limits.subject; t != nil {
		if err := c.take(t, limitSubject, c.principal.Subject, cost); err != nil {
			return err
		}
	}
	if t := c.s.limits.client; t != nil {
		return c.take(t, limitClient, c.principal.Client, cost)
	}
	return nil
}

func (c *call) take(t *buckets, name, key string, tokens int) error {
	l, ok := t.take(key, tokens, c.s.limits.clock())
	if !ok {
		return throttled(t, name, key, l)
	}
	if l.left < t.rate.Burst/4 {
		c.announce(t, name, l)
	}
	return nil
}

// bearable refuses those whose network has failed too often, unless their token was verified lately: a flood of forged tokens costs
// a lookup each, and those who are at work from the same network do not notice.
func (c *call) bearable(shown auth.Credentials) error {
	t := c.s.limits.failed
	if t == nil || c.source == "" {
		return nil
	}
	key := network(c.source)
	if l, ok := t.look(key, c.s.limits.clock()); !ok && !c.s.cfg.Verifier.Known(shown) {
		return throttled(t, limitFailed, key, l)
	}
	return nil
}

// failed counts a failed authentication. Against a client it counts only when the token's signature was its issuer's: otherwise
// anybody could shut out any client by naming it.
func (c *call) failed(err error) error {
	cost := failedCost
	if errors.Is(err, auth.ErrForged) {
		cost = forgedCost
	} else if errors.Is(err, auth.ErrNonce) {
		return nil // it is how a client gets one
	} else if !errors.Is(err, auth.ErrToken) && !errors.Is(err, auth.ErrNoToken) && !errors.Is(err, auth.ErrRequest) {
		return nil // not the caller's failure
	}
	now := c.s.limits.clock()
	if t := c.s.limits.failed; t != nil && c.source != "" {
		if l := t.charge(network(c.source), cost, now); l.left < t.rate.Burst/4 {
			c.announce(t, limitFailed, l)
		}
	}
	if t, client := c.s.limits.refused, auth.RefusedClient(err); t != nil && client != "" {
		if l, ok := t.take(client, cost, now); !ok {
			return throttled(t, limitFailed, client, l)
		}
	}
	return nil
}

// limited is what a refusal for rate says beside.
type limited struct {
	table *buckets
	name  string
	key   string // of whom, for the repeats
	level level
}

// throttled is the answer to a request over a limit (RFC 6585 section 4).
func throttled(t *buckets, name, key string, l level) *refusal {
	r := &refusal{status: http.StatusTooManyRequests, code: "throttled", text: "too many requests", limited: &limited{t, name, key, l}}
	if name == limitFailed {
		r.kind = audit.TypeAuthentication
	}
	return r
}

// announce says how a bucket stands (draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4): its policy, of q tokens
// that take w seconds to come back, and its state, r tokens left and t seconds until it is full again. It is said when less
// than a quarter is left; of several limits the last one that was looked at is told of.
func (c *call) announce(t *buckets, name string, l level) {
	h := &c.http.Response().Header
	h.Set("RateLimit-Policy", `"`+name+`";q=`+strconv.Itoa(t.rate.Burst)+";w="+strconv.Itoa(max(1, seconds(t.whole))))
	h.Set("RateLimit", `"`+name+`";r=`+strconv.Itoa(l.left)+";t="+strconv.Itoa(seconds(l.fill)))
}
