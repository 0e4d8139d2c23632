package rest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/rest"
)

type liveMessage struct {
	Position int64
	Events   []shownEvent
	Skipped  int64
	Lagging  int64
	Error    *struct {
		Parameter string
		Position  *int
		Detail    string
	}
}

// watching is one client of the live trail.
type watching struct {
	t    testing.TB
	doc  *description
	conn *websocket.Conn
}

// dial opens the live trail and says the request.
func (d *deployment) dial(token, request string, change ...func(*websocket.DialOptions)) *watching {
	d.t.Helper()
	options := &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}}
	for _, f := range change {
		f(options)
	}
	conn, _, err := websocket.Dial(d.t.Context(), "ws://"+d.addr+"/v1/audit/live", options) //nolint:bodyclose // of an upgrade, there is none
	check(d.t, err)
	d.t.Cleanup(func() { _ = conn.CloseNow() })
	conn.SetReadLimit(1 << 20)
	_ = conn.Write(d.t.Context(), websocket.MessageText, []byte(request)) // the server may hang up before its end; reading tells
	return &watching{d.t, readDescription(d.t), conn}
}

// next reads one message.
func (w *watching) next() (m liveMessage, err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	_, b, err := w.conn.Read(ctx)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		w.t.Errorf("message %s: %v", b, err)
	}
	var v any
	check(w.t, json.Unmarshal(b, &v))
	if wrong := w.doc.wrong(&schema{Ref: "#/components/schemas/WatchMessage"}, v, "$"); wrong != "" {
		w.t.Errorf("%s in %.300s", wrong, b)
	}
	return m, nil
}

// until collects the request ids of events up to a position.
func (w *watching) until(position int64) (ids []string, at int64) {
	w.t.Helper()
	for at = -1; at < position; {
		m, err := w.next()
		check(w.t, err)
		at = m.Position
		for _, e := range m.Events {
			ids = append(ids, e.RequestID)
		}
	}
	return ids, at
}

// happen records events with consecutive request ids and puts them into the tree.
func (d *deployment) happen(first, n int) (size int64) {
	d.t.Helper()
	for i := first; i < first+n; {
		var events []*audit.Event
		for ; i < first+n && len(events) < 100; i++ {
			events = append(events, &audit.Event{
				Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Agent: audit.Agent{User: "u" + strconv.Itoa(i%2)}, RequestID: "live-" + strconv.Itoa(i),
				Decision: audit.Decision{Allowed: true, Reason: "allowed"}, Entities: []audit.Entity{{Type: "Observation", ID: strings.Repeat("x", 60)}},
			})
		}
		_, err := d.log.Record(d.t.Context(), audit.Process, events...)
		check(d.t, err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	check(d.t, d.log.Drain(ctx))
	return d.tree.grow(d.t)
}

func consecutive(first, n int) (ids []string) {
	for i := range n {
		ids = append(ids, "live-"+strconv.Itoa(first+i))
	}
	return ids
}

const onlyLive = `"q":"interaction:read"`

// TestLiveResumes has a client come and go while events happen: it sees each once, in order.
func TestLiveResumes(t *testing.T) {
	d := deploy(t, nil)
	d.happen(0, 10)
	var seen []string
	request, happened := "{"+onlyLive+"}", 10
	for range 4 {
		w := d.dial(d.as("officer"), request)
		m, err := w.next() // where it stands, or what it missed
		check(t, err)
		for _, e := range m.Events {
			seen = append(seen, e.RequestID)
		}
		size := d.happen(happened, 30)
		ids, at := w.until(size)
		seen = append(seen, ids...)
		check(t, w.conn.Close(websocket.StatusNormalClosure, ""))
		d.happen(happened+30, 15) // while nobody watches
		happened += 45
		request = fmt.Sprintf(`{"from":%d,%s}`, at, onlyLive)
	}
	w := d.dial(d.as("officer"), request)
	ids, _ := w.until(d.tree.grow(t))
	seen = append(seen, ids...)
	if want := consecutive(10, happened-10); !slices.Equal(seen, want) {
		t.Errorf("%d events, want %d: %.300v", len(seen), len(want), seen)
	}
	// From the beginning, far behind, and only what one user did.
	w = d.dial(d.as("officer"), `{"from":0,"q":"interaction:read agent:u1"}`)
	ids, _ = w.until(d.tree.grow(t))
	if len(ids) != happened/2 || slices.Contains(ids, "live-0") {
		t.Errorf("%d events of one user of %d", len(ids), happened)
	}
}

func TestLiveIsRecorded(t *testing.T) {
	d := deploy(t, nil)
	d.happen(0, 5)
	w := d.dial(d.as("officer"), `{"from":0,"q":"patient:p-77 interaction:read"}`)
	w.until(5)
	check(t, w.conn.Close(websocket.StatusNormalClosure, ""))
	w = d.dial(d.as("officer"), `{"from":0,`+onlyLive+`}`)
	w.until(5)
	check(t, w.conn.Close(websocket.StatusNormalClosure, ""))
	var shown, opened, about int
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline) && shown == 0; time.Sleep(20 * time.Millisecond) {
		shown, opened, about = 0, 0, 0
		for _, s := range d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldType, string(audit.TypeAuditLogUsed))}}) {
			switch e := &s.Event; {
			case e.Interaction == "audit-live-shown" && string(e.Detail) == `{"shown":5,"from":1,"to":6}` && e.Agent.User == "officer-1":
				shown++
			case e.Interaction == "audit-live" && e.Patient == "p-77" && len(e.Query) > 0:
				about++
			case e.Interaction == "audit-live":
				opened++
			}
		}
	}
	if shown != 1 || about != 1 || opened != 3 {
		t.Errorf("%d reports of what was shown, %d events name the patient, %d others", shown, about, opened)
	}
}

// TestLiveEvictsTheSlow has a client that does not read while more happens than the sockets hold.
func TestLiveEvictsTheSlow(t *testing.T) {
	d := deploy(t, func(c *rest.Config) { c.Live = rest.LiveLimits{Rate: 1 << 30, Lag: 1000} })
	d.happen(0, 1)
	w := d.dial(d.as("officer"), "{"+onlyLive+"}", func(o *websocket.DialOptions) {
		o.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err == nil {
				err = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			}
			return conn, err
		}}}
	})
	m, err := w.next()
	check(t, err)
	last := m.Position
	const events = 14_000
	d.happen(1, events)
	time.Sleep(1500 * time.Millisecond)
	for seen := 0; ; {
		m, err = w.next()
		if err != nil {
			t.Fatalf("the connection ended before a word, after %d events: %v", seen, err)
		}
		if m.Lagging > 0 {
			if m.Position != last {
				t.Errorf("told to go on from %d after position %d", m.Position, last)
			}
			break
		}
		last = m.Position
		if seen += len(m.Events); seen == events {
			t.Fatal("a client that did not read was kept")
		}
	}
	if _, err := w.next(); websocket.CloseStatus(err) != websocket.StatusTryAgainLater {
		t.Errorf("then %v", err)
	}
	// It goes on where it was, and has all.
	size := d.tree.grow(t)
	w = d.dial(d.as("officer"), fmt.Sprintf(`{"from":%d,%s}`, last, onlyLive))
	ids, _ := w.until(size)
	if len(ids) == 0 || ids[len(ids)-1] != "live-"+strconv.Itoa(events) {
		t.Errorf("%d events after the return", len(ids))
	}
}

func TestLiveIsCapped(t *testing.T) {
	d := deploy(t, func(c *rest.Config) { c.Live = rest.LiveLimits{Rate: 20} })
	d.happen(0, 50)
	// Who has caught up is told what is left out.
	w := d.dial(d.as("officer"), "{"+onlyLive+"}")
	if _, err := w.next(); err != nil {
		t.Fatal(err)
	}
	size := d.happen(50, 200)
	var shown, skipped int64
	for at := int64(0); at < size || shown+skipped < 200; {
		m, err := w.next()
		check(t, err)
		at = m.Position
		shown, skipped = shown+int64(len(m.Events)), skipped+m.Skipped
	}
	if shown+skipped != 200 || shown < 20 || shown > 60 {
		t.Errorf("%d shown, %d skipped", shown, skipped)
	}
	// Who catches up misses nothing, and waits.
	began := time.Now()
	w = d.dial(d.as("officer"), `{"from":0,"q":"interaction:read recorded:1h"}`)
	ids, _ := w.until(51)
	if !slices.Equal(ids, consecutive(0, 50)) || time.Since(began) < 1500*time.Millisecond {
		t.Errorf("%d events in %v", len(ids), time.Since(began))
	}
}

func TestLiveForMany(t *testing.T) {
	d := deploy(t, func(c *rest.Config) { c.Live = rest.LiveLimits{Rate: 10_000} })
	d.happen(0, 20)
	const clients = 200
	want := consecutive(0, 320)
	var all sync.WaitGroup
	for i := range clients {
		token := d.issuer.token(t, d.base, "officer", "user/*.cruds", func(c map[string]any) { c["sub"] = "officer-" + strconv.Itoa(i) })
		w := d.dial(token, `{"from":0,`+onlyLive+`}`)
		all.Go(func() {
			var ids []string
			for len(ids) < len(want) {
				m, err := w.next()
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				for _, e := range m.Events {
					ids = append(ids, e.RequestID)
				}
			}
			if !slices.Equal(ids, want) {
				t.Errorf("client %d: %d events, want %d", i, len(ids), len(want))
			}
		})
	}
	d.happen(20, 300)
	all.Wait()
}

func TestLiveEnds(t *testing.T) {
	d := deploy(t, nil)
	ended := func(name string, w *watching, code websocket.StatusCode, within time.Duration) {
		t.Helper()
		began := time.Now()
		for {
			_, err := w.next()
			if err == nil {
				continue
			}
			if websocket.CloseStatus(err) != code || time.Since(began) > within {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
			return
		}
	}
	of := func(claims map[string]any) *watching {
		token := d.issuer.token(t, d.base, "officer", "user/*.cruds", func(c map[string]any) {
			for k, v := range claims {
				c[k] = v
			}
		})
		w := d.dial(token, "{}")
		if _, err := w.next(); err != nil {
			t.Fatal(err)
		}
		return w
	}
	revoked := of(map[string]any{"jti": "token-1"})
	check(t, d.revocations.Revoke(t.Context(), auth.Revocation{Kind: auth.RevokeToken, ID: "token-1", Reason: "test", By: "security-1"}))
	ended("revoked", revoked, websocket.StatusPolicyViolation, time.Second)

	expires := time.Now().Add(2 * time.Second).Truncate(time.Second)
	expiring := of(map[string]any{"exp": expires.Unix()})
	ended("expired", expiring, websocket.StatusPolicyViolation, time.Until(expires)+time.Second)

	for request, parameter := range map[string]string{`{"q":"nobody:p-secret"}`: "q", `{"from":999999}`: "from", `{"from":-1}`: "from"} {
		w := d.dial(d.as("officer"), request)
		if m, err := w.next(); err != nil || m.Error == nil || m.Error.Parameter != parameter || strings.Contains(m.Error.Detail, "secret") {
			t.Errorf("%s: %+v, %v", request, m, err)
		}
		ended(request, w, websocket.StatusPolicyViolation, time.Second)
	}
	for _, request := range []string{`{`, `{"more":1}`, `[]`, `{"q":"","q":""}`, strings.Repeat("x", 10_000)} {
		w := d.dial(d.as("officer"), request)
		if _, err := w.next(); err == nil {
			t.Errorf("%.20s was taken for a request", request)
		}
	}
	twice := of(nil)
	check(t, twice.conn.Write(t.Context(), websocket.MessageText, []byte("{}")))
	ended("speaks twice", twice, websocket.StatusPolicyViolation, time.Second)

	staying := of(nil)
	stop, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- d.server.Shutdown(stop) }()
	ended("stopped", staying, websocket.StatusGoingAway, 2*time.Second)
	check(t, <-stopped)
}

func TestLiveRefuses(t *testing.T) {
	d := deploy(t, func(c *rest.Config) { c.Live = rest.LiveLimits{Total: 3, PerSubject: 2} })
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
	try := func(token string, status int, headers ...string) answer {
		t.Helper()
		return d.want(d.do("GET", "/v1/audit/live", token, "", append(slices.Clone(upgrade), headers...)...), status)
	}
	officer := d.as("officer")
	try("", 401)
	try(d.as("clinician"), 403)
	try(officer, 403, "Origin", "https://evil.test")
	try(officer, 403, "Origin", "null")
	try(officer, 400, "Sec-WebSocket-Protocol", "bearer, "+officer) // twice
	try("", 401, "Sec-WebSocket-Protocol", "bearer, nonsense")
	d.want(d.do("GET", "/v1/audit/live", officer, ""), 426)
	d.want(d.do("GET", "/v1/audit/live?access_token="+officer, "", ""), 400)
	d.want(d.do("GET", "/v1/audit/live?q=x", officer, "", upgrade...), 400)

	same := d.dial("", "{}", func(o *websocket.DialOptions) { // as a browser does
		o.HTTPHeader = http.Header{"Origin": {"http://" + d.addr}}
		o.Subprotocols = []string{"bearer", officer}
	})
	if _, err := same.next(); err != nil || same.conn.Subprotocol() != "bearer" {
		t.Errorf("subprotocol %q, %v", same.conn.Subprotocol(), err)
	}
	second := d.dial(officer, "{}")
	if a := try(officer, 429); a.Header.Get("Retry-After") == "" {
		t.Error("no word about when to come back")
	}
	third := d.dial(d.as("security"), "{}")
	try(d.as("assessor"), 503)
	// A place is free again soon after somebody left.
	check(t, third.conn.Close(websocket.StatusNormalClosure, ""))
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, _, err := websocket.Dial(t.Context(), "ws://"+d.addr+"/v1/audit/live", &websocket.DialOptions{ //nolint:bodyclose // of an upgrade, there is none
			HTTPHeader: http.Header{"Authorization": {"Bearer " + d.as("security")}},
		})
		if err == nil {
			_ = conn.CloseNow()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no place after 3 s: %v", err)
		}
	}
	_ = second
	// Every refusal is an event, and none of the tokens is in one.
	refusals := 0
	for _, s := range d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, "audit-live"), audit.Is(audit.FieldOutcome, "4")}}) {
		refusals++
		if strings.Contains(string(s.Body), "eyJ") {
			t.Error("an event holds a token")
		}
	}
	if refusals < 10 {
		t.Errorf("%d refusals are in the trail", refusals)
	}
}
