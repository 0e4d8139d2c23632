package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	strict "github.com/go-json-experiment/json"
	"github.com/gofiber/contrib/websocket"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// LiveLimits bound the live trail. Zero fields take the default.
type LiveLimits struct {
	Total      int // connections; 512
	PerSubject int // connections of one subject; 8
	Rate       int // events a second that one connection is shown; 500
	Lag        int // events that a connection may fall behind once it has caught up; 4096
}

// live are the connections that watch the trail.
type live struct {
	limits LiveLimits
	tree   Tree
	listen func(ctx context.Context, wake func()) error
	logger *slog.Logger

	mu       sync.Mutex
	feed     *feed // while anybody watches
	total    int
	subjects map[string]int
	closing  bool
	running  sync.WaitGroup
	ctx      context.Context // ends when the server stops
	stop     context.CancelFunc
}

func newLive(cfg Config) *live {
	l := &live{limits: cfg.Live, tree: cfg.Tree, listen: cfg.Listen, logger: cfg.Logger, subjects: make(map[string]int)}
	for limit, otherwise := range map[*int]int{&l.limits.Total: 512, &l.limits.PerSubject: 8, &l.limits.Rate: 500, &l.limits.Lag: 4096} {
		if *limit <= 0 {
			*limit = otherwise
		}
	}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// close tells all connections to come back later and waits for them, as long as ctx lets it.
func (l *live) close(ctx context.Context) {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.stop()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		l.running.Wait()
	}()
	select {
	case <-gone:
	case <-ctx.Done():
	}
}

// admit takes a place for a connection; release gives it back, once.
func (l *live) admit(subject string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closing || l.total >= l.limits.Total:
		return nil, &refusal{status: http.StatusServiceUnavailable, code: "transient", text: "no connection is free, try again later"}
	case l.subjects[subject] >= l.limits.PerSubject:
		return nil, &refusal{status: http.StatusTooManyRequests, code: "throttled", text: "too many connections"}
	}
	l.total++
	l.subjects[subject]++
	l.running.Add(1)
	if l.feed == nil {
		l.feed = startFeed(l.tree, l.listen, l.logger)
	}
	return sync.OnceFunc(func() { l.leave(subject) }), nil
}

func (l *live) leave(subject string) {
	defer l.running.Done()
	l.mu.Lock()
	l.total--
	if l.subjects[subject]--; l.subjects[subject] == 0 {
		delete(l.subjects, subject)
	}
	var last *feed
	if l.total == 0 {
		last, l.feed = l.feed, nil
	}
	l.mu.Unlock()
	if last != nil {
		last.close()
	}
}

// bearerProtocol is the subprotocol by which a browser, which cannot set Authorization on a WebSocket, hands its token over: it
// asks for "bearer" and the token, and is answered "bearer".
const bearerProtocol = "bearer"

// authorization are the values of the request's Authorization headers; on the route of the live trail also a token among the
// subprotocols.
func (c *call) authorization() [][]byte {
	h := &c.http.Request().Header
	if c.route.interaction != watching {
		return h.PeekAll("Authorization")
	}
	names := bytes.Split(bytes.Join(h.PeekAll("Sec-WebSocket-Protocol"), []byte(",")), []byte(",")) // a copy: the next call takes the list for itself
	values := h.PeekAll("Authorization")
	if len(names) == 2 && string(bytes.TrimSpace(names[0])) == bearerProtocol {
		values = append(values[:len(values):len(values)], append([]byte("Bearer "), bytes.TrimSpace(names[1])...))
	}
	return values
}

// watching is the interaction of the live trail.
const watching = "audit-live"

// watch opens a WebSocket on which the trail is shown as it grows, in the order of the tree. See watcher for what is said on it.
func (c *call) watch() error {
	if c.s.cfg.Tree == nil {
		return notConfigured()
	}
	if _, err := c.parameters(); err != nil {
		return err
	}
	if !c.sameOrigin() {
		return &refusal{status: http.StatusForbidden, code: "forbidden", text: "another site's page may not watch the trail"}
	}
	if !websocket.IsWebSocketUpgrade(c.http) {
		return &refusal{status: http.StatusUpgradeRequired, code: "invalid", text: "a WebSocket is needed"}
	}
	release, err := c.s.live.admit(c.principal.Subject)
	if err != nil {
		return err
	}
	w := &watcher{s: c.s, lens: c.lens(), principal: c.principal, guard: c.route.guard, start: time.Now(), template: *c.adminEvent(audit.TypeAuditLogUsed)}
	// The upgrade has shown whatever the token is bound to; what is asked again and again is whether the token still stands.
	w.credentials.Profile, w.credentials.Proven = c.profile(), true
	for _, v := range c.authorization() {
		w.credentials.Authorization = append(w.credentials.Authorization, bytes.Clone(v))
	}
	if _, err := c.recordLook(nil); err != nil {
		release()
		return err
	}
	// A connection that breaks before the handler has it would keep its place for ever.
	var taken atomic.Bool
	expiry := time.AfterFunc(handshakeTime, func() {
		if taken.CompareAndSwap(false, true) {
			release()
		}
	})
	upgrade := websocket.New(func(conn *websocket.Conn) {
		if !taken.CompareAndSwap(false, true) {
			return
		}
		expiry.Stop()
		defer release()
		w.serve(c.s.live, conn)
	}, websocket.Config{
		HandshakeTimeout: handshakeTime, Subprotocols: []string{bearerProtocol}, WriteBufferSize: 16 << 10,
		RecoverHandler: func(*websocket.Conn) {
			if v := recover(); v != nil {
				panicked(w.s.logger, v, "/v1/audit/live", w.template.RequestID)
			}
		},
	})
	if err := upgrade(c.http); err != nil {
		release()
		return &refusal{status: http.StatusBadRequest, code: "invalid", text: "malformed WebSocket handshake"}
	}
	return nil
}

const handshakeTime = 10 * time.Second

// sameOrigin reports whether the request comes from no web page or from one of our own. A browser sends cookies and client
// certificates on any page's WebSocket, and no preflight asks first.
func (c *call) sameOrigin() bool {
	origins := c.http.Request().Header.PeekAll("Origin")
	if len(origins) == 0 {
		return true
	}
	base, err := url.Parse(c.s.cfg.Base)
	if err != nil || len(origins) > 1 {
		return false
	}
	return strings.EqualFold(string(origins[0]), base.Scheme+"://"+base.Host)
}

// watcher is one connection. The client speaks first and once, a request; then the server sends messages, and pings. Every
// message has the position from which the client goes on after it: whoever comes back with the last one that it got misses
// nothing and sees nothing twice.
type watcher struct {
	s           *Server
	lens        *lens
	principal   *auth.Principal
	guard       guard
	credentials auth.Credentials
	template    audit.Event // of the events about this look
	start       time.Time

	conn     *websocket.Conn
	closing  atomic.Bool
	query    audit.Query
	position int64
	shown    int64 // events since the last report of them
	first    int64 // position of the first of them
	second   time.Time
	quota    int // events that may be shown in this second
	skipped  int64
	caughtUp bool
}

// watchRequest is what the client says.
type watchRequest struct {
	From   *int64 `json:"from"` // position to go on from; null: from now on
	Q      string `json:"q"`    // query language
	System bool   `json:"system"`
}

// watchMessage is what the server says.
type watchMessage struct {
	Position int64             `json:"position"`          // go on from here
	Events   []json.RawMessage `json:"events,omitempty"`  // in the order of the tree
	Skipped  int64             `json:"skipped,omitempty"` // events that came faster than this connection is shown any
	Lagging  int64             `json:"lagging,omitempty"` // the client reads too slowly: so many are waiting, and the connection ends
	Error    *problemJSON      `json:"error,omitempty"`   // the connection ends
}

const (
	writeTime   = 10 * time.Second
	recheckTime = 500 * time.Millisecond // of the token
	pingTime    = 20 * time.Second
	reportTime  = time.Minute
	tickTime    = 200 * time.Millisecond
	messageSize = 100 // events
)

// ended is why a connection is closed, with the code of RFC 6455 section 7.4.
type ended struct {
	code int
	text string
}

func (e *ended) Error() string { return e.text }

// serve runs a connection to its end.
func (w *watcher) serve(l *live, conn *websocket.Conn) {
	w.conn = conn
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	var others sync.WaitGroup
	requests := make(chan watchRequest, 1)
	others.Go(func() { cancel(w.read(requests)) })
	others.Go(func() { w.keep(ctx, cancel) })
	err := w.show(ctx, l, requests)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, context.Canceled) {
		err = &ended{websocket.CloseGoingAway, "the server is restarting"}
	}
	cancel(err) // and keep closes the connection, which ends read
	others.Wait()
	_ = w.report() // which has told the log what it could not record
}

// read takes the client's request, and then only answers to pings, until the connection is closed.
func (w *watcher) read(requests chan<- watchRequest) error {
	w.conn.SetReadLimit(2 * audit.MaxQueryText)
	alive := func(string) error {
		if err := w.conn.SetReadDeadline(time.Now().Add(3 * pingTime)); err != nil || !w.closing.Load() {
			return err
		}
		return w.conn.SetReadDeadline(time.Now()) // keep has ended the connection meanwhile
	}
	w.conn.SetPongHandler(alive)
	if err := w.conn.SetReadDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	for first := true; ; first = false {
		_, message, err := w.conn.ReadMessage()
		if err != nil {
			return err
		}
		var r watchRequest
		if err := strict.Unmarshal(message, &r, strict.RejectUnknownMembers(true)); err != nil || !first {
			return &ended{websocket.ClosePolicyViolation, "one request is expected"}
		}
		requests <- r
		if err := alive(""); err != nil {
			return err
		}
	}
}

// keep ends the connection within a second of the token's end, its revocation, a change of roles or the server's stop. It is apart
// from show, which may be waiting for a slow client.
func (w *watcher) keep(ctx context.Context, cancel context.CancelCauseFunc) {
	check := time.NewTicker(recheckTime)
	defer check.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-check.C:
			if !w.permitted(ctx) {
				cancel(&ended{websocket.ClosePolicyViolation, "no longer permitted"})
			}
		}
	}
	end := &ended{websocket.CloseGoingAway, "the server is restarting"}
	errors.As(context.Cause(ctx), &end)
	_ = w.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(end.code, end.text), time.Now().Add(time.Second)) // or it is gone already
	// Closing is fasthttp's, once serve has returned; what waits on the connection stops waiting now.
	w.closing.Store(true)
	_ = w.conn.NetConn().SetDeadline(time.Now())
}

// permitted asks again whether the caller may watch. Keys that cannot be had for a moment change nothing about a token that was
// good; its end does.
func (w *watcher) permitted(ctx context.Context) bool {
	if !time.Now().Before(w.principal.Expires) {
		return false
	}
	p, err := w.s.cfg.Verifier.Authenticate(ctx, w.credentials)
	if err != nil {
		return !errors.Is(err, auth.ErrToken) && !errors.Is(err, auth.ErrRequest)
	}
	capability := w.guard.capability
	if w.lens.aliases != nil {
		capability = w.guard.aliased
	}
	return w.s.cfg.Access.May(p, capability).Allowed
}

// show sends the trail from where the client asked on.
func (w *watcher) show(ctx context.Context, l *live, requests <-chan watchRequest) error {
	l.mu.Lock()
	f := l.feed // ours as long as we have our place
	l.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case r := <-requests:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.ready:
		}
		if err := w.begin(r, f.head()); err != nil {
			return err
		}
	}
	beat, tick := time.NewTicker(pingTime), time.NewTicker(tickTime)
	defer beat.Stop()
	defer tick.Stop()
	reported := time.Now()
	for {
		entries, head, moved, err := f.after(ctx, w.position)
		if err != nil {
			if ctx.Err() == nil {
				w.s.logger.Warn("a watcher could not be served", "request_id", w.template.RequestID, "error", err.Error())
			}
			return &ended{websocket.CloseTryAgainLater, "try again later"}
		}
		if behind := head - w.position; w.caughtUp && behind > int64(l.limits.Lag) {
			if err := w.send(watchMessage{Position: w.position, Lagging: behind}); err != nil {
				return err
			}
			return &ended{websocket.CloseTryAgainLater, "too slow"}
		}
		if len(entries) == 0 && !w.caughtUp {
			w.caughtUp = true // and the client knows where it stands, before anything happens
			if err := w.send(watchMessage{Position: w.position}); err != nil {
				return err
			}
		}
		wait, err := w.pass(entries, l.limits.Rate)
		if err != nil {
			return err
		}
		if time.Since(reported) >= reportTime {
			if err := w.report(); err != nil {
				return &ended{websocket.CloseInternalServerErr, "try again later"}
			}
			reported = time.Now()
		}
		if len(entries) > 0 && !wait {
			continue
		}
		if wait {
			moved = nil // the second has to pass first
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		case <-tick.C:
			if time.Since(w.second) < time.Second {
				continue
			}
			if err := w.tellSkipped(); err != nil {
				return err
			}
		case <-beat.C:
			err := w.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTime))
			if err := errors.Join(err, w.send(watchMessage{Position: w.position})); err != nil {
				return err
			}
		}
	}
}

// begin takes up the client's request: its event is durable before anything is shown.
func (w *watcher) begin(r watchRequest, head int64) error {
	q, err := audit.ParseQuery(r.Q, time.Now())
	var f *fault
	var syntax *audit.SyntaxError
	switch {
	case errors.As(err, &syntax):
		f = &fault{syntax.Problem, "q", syntax.Position, syntax.Allowed}
	case r.From != nil && (*r.From < 0 || *r.From > head):
		f = &fault{text: "there is no such position", parameter: "from", position: -1}
	default:
		if f = w.lens.reveal(&q); f != nil {
			f.parameter, f.position = "q", -1
		}
	}
	e := w.template
	e.Entities = []audit.Entity{{Type: "AuditEvent"}}
	if f != nil {
		refused := faulty(f)
		e.Outcome, e.OutcomeDesc = audit.MinorFailure, refused.text
		if _, err := w.s.cfg.Log.Record(w.s.ctx, w.s.cfg.Level.Other, &e); err != nil {
			return &ended{websocket.CloseInternalServerErr, "try again later"}
		}
		p := newProblem(refused, e.RequestID)
		if err := w.send(watchMessage{Position: head, Error: &p}); err != nil {
			return err
		}
		return &ended{websocket.ClosePolicyViolation, "the request is malformed"}
	}
	nameAsked(&e, &q)
	if text := audit.FormatQuery(q); text != "" {
		e.Query = w.s.cfg.Records.SealQuery(text, e.Entities[0].Type)
	}
	if _, err := w.s.cfg.Log.Record(w.s.ctx, w.s.cfg.Level.Disclosure, &e); err != nil {
		return &ended{websocket.CloseInternalServerErr, "try again later"}
	}
	if !r.System {
		quiet(&q)
	}
	w.query, w.position = q, head
	if r.From != nil {
		w.position = *r.From
	}
	return nil
}

// pass shows those of the entries that the client asked for. A client that has caught up and is shown as much as it may be in this
// second is told how many were left out; one that is catching up waits, and then wait is true: it misses nothing.
func (w *watcher) pass(entries []*entry, rate int) (wait bool, err error) {
	var events []json.RawMessage
	flush := func() error {
		if len(events) == 0 {
			return nil
		}
		m := watchMessage{Position: w.position, Events: events}
		events = nil
		return w.send(m)
	}
	for _, e := range entries {
		if e.stored == nil || !w.query.Matches(e.stored) {
			w.position++
			continue
		}
		if now := time.Now(); now.Sub(w.second) >= time.Second {
			w.second, w.quota = now, rate
			if w.skipped > 0 {
				if err := errors.Join(flush(), w.tellSkipped()); err != nil {
					return false, err
				}
			}
		}
		if w.quota == 0 {
			if !w.caughtUp {
				return true, flush()
			}
			if err := flush(); err != nil { // before the gap, not behind it
				return false, err
			}
			w.position++
			w.skipped++
			continue
		}
		w.quota--
		if w.shown == 0 {
			w.first = w.position
		}
		w.shown++
		w.position++
		if events = append(events, e.json(w.lens)); len(events) == messageSize {
			if err := flush(); err != nil {
				return false, err
			}
		}
	}
	return false, flush()
}

// tellSkipped says how many events were left out since the last message.
func (w *watcher) tellSkipped() error {
	if w.skipped == 0 {
		return nil
	}
	m := watchMessage{Position: w.position, Skipped: w.skipped}
	w.skipped = 0
	return w.send(m)
}

func (w *watcher) send(m watchMessage) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding message: %w", err)
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	if err := w.conn.WriteMessage(websocket.TextMessage, b); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

// report records what was shown since the last report: how many events, and between which positions they lie.
func (w *watcher) report() error {
	if w.shown == 0 {
		return nil
	}
	e := w.template
	e.Interaction = "audit-live-shown"
	e.Entities = []audit.Entity{{Type: "AuditEvent"}}
	e.Timing = audit.Timing{}
	e.Detail = fmt.Appendf(nil, `{"shown":%d,"from":%d,"to":%d}`, w.shown, w.first, w.position)
	w.shown = 0
	if _, err := w.s.cfg.Log.Record(context.Background(), w.s.cfg.Level.Other, &e); err != nil {
		w.s.logger.Error("what a watcher was shown could not be recorded", "request_id", e.RequestID, "error", err.Error())
		return err
	}
	return nil
}
