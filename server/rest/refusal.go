package rest

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// refusal is an answer other than success. Its words are ours: nothing that came with the request is in it.
type refusal struct {
	status    int
	code      string // http://hl7.org/fhir/R4/valueset-issue-type.html
	text      string
	challenge string // WWW-Authenticate, in the words of a bearer: see spoken

	alternative string         // a second challenge, of another scheme
	issues      []fhir.Issue   // instead of code and text
	kind        audit.Type     // of the event; TypeREST when ""
	fault       *fault         // which element of the request is wrong
	decision    *auth.Decision // what refused, when it was a decision of this package's
	recorded    bool           // it is an event already
	event       audit.ID       // of it; zero when phi has recorded it, or nobody has
	limited     *limited       // the limit that the request is over
	cause       error          // for the log
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.cause }

// invalid is 400 for a request that cannot be understood.
func invalid(text string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: "invalid", text: text}
}

// ofKind is the error table of FHIR requests (http://hl7.org/fhir/R4/http.html): what phi says, as HTTP. Where issues is
// true phi's own findings are shown; elsewhere one text stands for all causes, so that neither existence nor reason
// leaks.
func ofKind(k phi.Kind) (status int, code, text string, issues bool) {
	switch k {
	case phi.Invalid:
		return http.StatusBadRequest, "invalid", "the request cannot be understood", true
	case phi.Unprocessable:
		return http.StatusUnprocessableEntity, "processing", "the content is against the rules", true
	case phi.Denied:
		return http.StatusForbidden, "forbidden", "not permitted", false
	case phi.StepUp:
		return http.StatusUnauthorized, "login", "another sign-in is needed for this", false
	case phi.NotFound:
		return http.StatusNotFound, "not-found", "no such resource", false
	case phi.Gone:
		return http.StatusGone, "deleted", "the resource was deleted", true
	case phi.Conflict:
		return http.StatusConflict, "conflict", "the resource changed meanwhile", true
	case phi.PreconditionFailed:
		return http.StatusPreconditionFailed, "conflict", "the condition does not hold", true
	case phi.TooLarge:
		return http.StatusRequestEntityTooLarge, "too-long", "too large", true
	case phi.Unavailable:
		return http.StatusServiceUnavailable, "transient", "try again later", false
	case phi.NotAllowed:
		return http.StatusMethodNotAllowed, "not-supported", "not supported here", true
	default: // phi.Integrity, and a kind that this table does not know
		return http.StatusInternalServerError, "exception", "internal error", false
	}
}

// refused says an error in the table's words.
func refused(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	var e *phi.Error
	if errors.As(err, &e) {
		r = &refusal{recorded: true, cause: err}
		var show bool
		if r.status, r.code, r.text, show = ofKind(e.Kind); show {
			r.issues = e.Issues
		}
		if e.Kind == phi.StepUp {
			r.challenge = stepUp(e.Demand).challenge
		}
		if e.Kind == phi.Denied {
			r.challenge = `Bearer realm="chartkeep", error="insufficient_scope"`
		}
		return r
	}
	if errors.Is(err, audit.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &refusal{status: http.StatusServiceUnavailable, code: "transient", text: "try again later", cause: err}
	}
	return &refusal{status: http.StatusInternalServerError, code: "exception", text: "internal error", cause: err}
}

// refuse answers with an error, after its event is durable.
func (c *call) refuse(err error) {
	r := refused(err)
	if r.status >= http.StatusInternalServerError && r.status != http.StatusNotImplemented {
		c.s.logger.LogAttrs(c.ctx, slog.LevelError, "request failed",
			slog.String("request_id", c.requestID), slog.String("route", c.route.pattern), slog.String("error", err.Error()))
	}
	if r.decision != nil && r.challenge == "" {
		r.challenge = `Bearer realm="chartkeep", error="insufficient_scope"`
	}
	if r.limited != nil {
		c.limited = r.limited.name
		r.recorded = c.s.repeats.again(repeat{r.limited.name, r.limited.key}, func() audit.Event { return c.throttledEvent(r) })
	}
	if !r.recorded {
		receipt, e := c.record(c.s.cfg.Level.Other, c.refusalEvent(r))
		if e != nil {
			// A refusal that leaves no trace is no refusal: the caller is told to come back instead.
			r = &refusal{status: http.StatusServiceUnavailable, code: "transient", text: "try again later", cause: e}
		} else {
			r.event = receipt.Events()[0].ID
		}
	} else if r.event == (audit.ID{}) {
		r.event = c.trace.Refusal
	}
	if r.status == http.StatusForbidden && strings.HasSuffix(r.challenge, `error="insufficient_scope"`) {
		r.challenge += c.wanted()
	}
	c.answer(r)
}

// wanted is the scope that the request needs at least, as a parameter of the challenge (RFC 6750 section 3.1). It follows from the
// request alone, whatever it was that the caller lacks.
func (c *call) wanted() string {
	t, ok := c.s.types[c.http.Params("type")]
	letter := map[string]string{
		"create": "c", "read": "r", "vread": "r", "history-instance": "r", "update": "u", "delete": "d", "search-type": "s",
	}[c.route.interaction]
	if !ok || letter == "" || c.principal == nil {
		return ""
	}
	level := "user"
	switch p := c.principal; {
	case p.Patient != "":
		level = "patient"
	case p.FHIRUser == "" && p.AuthTime.IsZero():
		level = "system"
	}
	return `, scope="` + level + "/" + t + "." + letter + `"`
}

// survive is the last line: a panic while a refusal is written or observed would end the process, for fasthttp does not
// recover.
func (c *call) survive() {
	if v := recover(); v != nil {
		panicked(c.s.logger, v, c.route.pattern, c.requestID)
		c.answer(&refusal{status: http.StatusInternalServerError, code: "exception", text: "internal error"})
	}
}

// answer writes the refusal as OperationOutcome or, under /v1, as problem details (RFC 9457).
func (c *call) answer(r *refusal) {
	res := c.http.Response()
	res.ResetBody()
	res.SetStatusCode(r.status)
	res.Header.Del("Content-Location")
	res.Header.Del("Location")
	if r.challenge != "" {
		res.Header.Set("WWW-Authenticate", c.spoken(r.challenge))
	}
	if r.alternative != "" {
		res.Header.Add("WWW-Authenticate", r.alternative)
	}
	if r.status == http.StatusServiceUnavailable || r.status == http.StatusTooManyRequests {
		wait := 2
		if l := r.limited; l != nil {
			c.announce(l.table, l.name, l.level)
			wait = max(1, seconds(l.level.wait))
		}
		res.Header.Set("Retry-After", strconv.Itoa(wait))
	}
	if r.event != (audit.ID{}) {
		res.Header.Set("X-Decision-Id", r.event.String()) // what officers ask for: the caller learns nothing by it
	}
	if c.fhir() {
		res.Header.SetContentType(mediaFHIR)
		res.SetBodyRaw(outcome(r))
		return
	}
	res.Header.SetContentType("application/problem+json")
	res.SetBodyRaw(problem(r, c.requestID))
}

// outcome is the refusal as an OperationOutcome (http://hl7.org/fhir/R4/operationoutcome.html).
func outcome(r *refusal) []byte {
	issues := r.issues
	if len(issues) == 0 {
		issues = []fhir.Issue{{Severity: "error", Code: r.code, Diagnostics: r.text}}
	}
	return appendOutcome(nil, issues)
}

// problemJSON is problem details with what is at fault.
type problemJSON struct {
	Type      string   `json:"type"`
	Title     string   `json:"title"`
	Status    int      `json:"status"`
	Detail    string   `json:"detail"`
	RequestID string   `json:"request_id"`
	Decision  string   `json:"decision_id,omitempty"` // id of the event of the refusal
	Parameter string   `json:"parameter,omitempty"`
	Position  *int     `json:"position,omitempty"` // within the parameter, in characters from 0
	Allowed   []string `json:"allowed,omitempty"`
}

func problem(r *refusal, requestID string) []byte {
	b, _ := json.Marshal(newProblem(r, requestID)) // of strings and numbers: cannot fail
	return b
}

func newProblem(r *refusal, requestID string) problemJSON {
	p := problemJSON{Type: "about:blank", Title: http.StatusText(r.status), Status: r.status, Detail: r.text, RequestID: requestID}
	if r.event != (audit.ID{}) {
		p.Decision = r.event.String()
	}
	if f := r.fault; f != nil {
		p.Parameter, p.Allowed = f.parameter, f.allowed
		if f.position >= 0 {
			p.Position = &f.position
		}
	}
	return p
}

// refusalEvent is the event of a request that did not reach phi.
func (c *call) refusalEvent(r *refusal) *audit.Event {
	e := &audit.Event{
		Type:        audit.TypeREST,
		Interaction: c.route.interaction,
		Action:      c.action(),
		Outcome:     audit.MinorFailure,
		OutcomeDesc: r.text,
		Agent:       c.agent(),
		RequestID:   c.requestID,
		Timing:      audit.Timing{Total: micros(time.Since(c.start)), Auth: micros(c.authTook)},
	}
	if r.kind != "" {
		e.Type = r.kind
	}
	if r.status >= http.StatusInternalServerError {
		e.Outcome = audit.SeriousFailure
	}
	if c.route.pattern != "" { // without a route Fiber has no parameters to look in, and panics
		switch t, ok := c.s.types[c.http.Params("type")]; {
		case ok:
			e.Entities = []audit.Entity{{Type: t}}
		case strings.HasPrefix(c.route.pattern, fhirBase+"/"+trailType), c.http.Params("type") == trailType:
			e.Entities = []audit.Entity{{Type: trailType}}
		}
	}
	if r.kind == audit.TypeAuthentication && r.cause != nil { // one text a status for the caller, the precise reason for officers
		e.OutcomeDesc = strings.TrimPrefix(r.cause.Error(), "auth: ")
	}
	if d := r.decision; d != nil {
		e.Decision = newDecision(*d)
	}
	if r.limited != nil {
		e.Detail = r.limited.detail(c.network)
	}
	return e
}

// throttledEvent is what requests that are refused like this one are recorded as, when they are recorded by their number.
func (c *call) throttledEvent(r *refusal) audit.Event {
	e := *c.refusalEvent(r)
	e.Interaction, e.Action, e.RequestID, e.Entities, e.Timing = interactionThrottled, audit.ActionExecute, "", nil, audit.Timing{}
	return e
}

// action is the letter of the request in events.
func (c *call) action() audit.Action {
	switch c.route.interaction {
	case "create", "revoke", "relationship-grant", "erasure-request", "policy-propose", "assignment-create", "emergency-request":
		return audit.ActionCreate
	case "update", "policy-withdraw", "policy-approve", "policy-refuse", "assignment-approve", "assignment-refuse", "erasure-withdraw", "patient-merge", "patient-unmerge", "emergency-decide", "emergency-review", "alert-update":
		return audit.ActionUpdate
	case "delete", "session-end", "backchannel-logout", "workforce-terminate", "relationship-end", "assignment-end", "patient-shred", "emergency-end":
		return audit.ActionDelete
	case "read", "session-list", "revocation-list", "vread", "history-instance", "audit-read", "audit-proof", "policy-read", "assignment-read", "relationship-list", "erasure-list", "erasure-read", "emergency-list", "emergency-read", "alert-list", "decision-read":
		return audit.ActionRead
	default:
		return audit.ActionExecute
	}
}

// record waits until the events are durable, as long as the log lets it: a request that ran out of time is an event all
// the same. Its error wraps audit.ErrUnavailable.
func (c *call) record(level audit.Level, events ...*audit.Event) (audit.Receipt, error) {
	began := time.Now()
	receipt, err := c.s.cfg.Log.Record(c.s.ctx, level, events...)
	c.trace.Audit += time.Since(began)
	return receipt, err
}

func micros(d time.Duration) uint32 { return uint32(min(d.Microseconds(), 1<<32-1)) }

// unrouted is Fiber's error handler: unknown paths and methods, and what fasthttp could not read as a request. The
// error's text is dropped: Fiber's quotes the path, fasthttp's the raw headers.
func (s *Server) unrouted(fc *fiber.Ctx, err error) error {
	status := http.StatusInternalServerError
	var e *fiber.Error
	if errors.As(err, &e) {
		status = e.Code
	}
	if status == http.StatusRequestEntityTooLarge {
		drain(fc.Context().Conn())
	}
	s.refuseUnrouted(fc, unroutedAs(status))
	return nil
}

// drain reads what a client is still sending, for a while. A connection that is closed with unread bytes is reset, and
// the reset can overtake the answer: the client would see a broken pipe in place of the refusal.
func drain(conn net.Conn) {
	const most, longest, pause = 64 << 20, 5 * time.Second, 250 * time.Millisecond
	end := time.Now().Add(longest)
	buffer := make([]byte, 64<<10)
	for read := 0; read < most && time.Now().Before(end); {
		if conn.SetReadDeadline(time.Now().Add(pause)) != nil {
			return
		}
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		read += n
	}
}

func (s *Server) refuseUnrouted(fc *fiber.Ctx, err error) {
	c := &call{s: s, http: fc, route: &route{interaction: "unrouted"}, start: time.Now()}
	var r *refusal
	switch {
	case errors.As(err, &r):
	case errors.Is(err, auth.ErrToken):
		r = c.challenge(err)
	default:
		r = unroutedAs(http.StatusBadRequest)
		r.cause = err
	}
	switch r.status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusUnauthorized:
	default:
		c.unread = true
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Timeout)
	defer cancel()
	c.ctx = ctx
	defer c.survive()
	c.identify()
	if over := c.admitted(); over != nil {
		r = refused(over)
	} else if r.status == http.StatusRequestEntityTooLarge {
		r = c.tooLarge(r)
	}
	c.refuse(r)
	c.finish()
}

func unroutedAs(status int) *refusal {
	switch status {
	case http.StatusNotFound:
		return &refusal{status: status, code: "not-found", text: "no such path"}
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return &refusal{status: status, code: "not-supported", text: "method not supported here"}
	case http.StatusRequestEntityTooLarge:
		return &refusal{status: status, code: "too-long", text: "body too large"}
	case http.StatusRequestHeaderFieldsTooLarge:
		return &refusal{status: status, code: "too-long", text: "headers too large"}
	case http.StatusRequestTimeout, http.StatusBadGateway: // Fiber's word for a connection that broke while it was read
		return &refusal{status: http.StatusRequestTimeout, code: "timeout", text: "the request did not arrive in time"}
	default:
		return &refusal{status: http.StatusBadRequest, code: "invalid", text: "malformed request"}
	}
}
