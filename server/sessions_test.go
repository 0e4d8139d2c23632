package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/demo"
	"github.com/chartkeep/chartkeep/server/rest"
)

// ward is a deployment of two instances on one PostgreSQL, each with a network of its own to it, and an issuer that is neither's.
type ward struct {
	cluster   *demo.Cluster
	issuer    *demo.AuthServer
	dir       string
	instances [2]*instanceOfWard
	admin     *pgx.Conn
	patient   string // whom dr-rivera treats
}

// instanceOfWard is one of them.
type instanceOfWard struct {
	network  *network
	rooms    *rooms
	api      *api
	verifier *auth.Verifier
	origin   string
}

// openWard starts one. Sessions that nobody used for idle are over; 0 for never.
func openWard(t *testing.T, idle time.Duration) *ward {
	t.Helper()
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &ward{dir: dir}
	if w.cluster, err = demo.StartCluster(t.Context(), demo.ClusterConfig{Dir: dir, Install: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	s, admin, err := prepare(t.Context(), dir, w.cluster, audit.Process)
	if err != nil {
		t.Fatal(err)
	}
	if w.admin, err = pgx.Connect(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.admin.Close(context.Background()) })
	s.sessions = map[string]auth.SessionLimit{auth.AnyRole: {Idle: idle}, "backend": {}}
	var handler http.Handler
	served := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { handler.ServeHTTP(rw, r) }))
	t.Cleanup(served.Close)
	listeners := [2]net.Listener{}
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	origin := func(i int) string { return "http://" + listeners[i].Addr().String() }
	const audience = "https://chart.example/fhir/R4"
	if w.issuer, err = demo.NewAuthServer(demo.AuthServerConfig{
		Dir: filepath.Join(dir, demoOAuth), Issuer: served.URL + "/oauth2", Audience: audience, Personas: demo.Personas(""),
		LogoutURL: origin(0) + "/v1/backchannel-logout",
	}); err != nil {
		t.Fatal(err)
	}
	handler = w.issuer.Handler()
	for i := range w.instances {
		own := *s
		n := &instanceOfWard{network: between(t, s.databaseDSN, ""), origin: origin(i)}
		own.databaseDSN, own.journal = n.network.url, filepath.Join(t.TempDir(), "journal")
		if i > 0 {
			own.keys = nil // one of them sequences
		}
		log := slog.New(slog.DiscardHandler)
		if n.rooms, err = openRooms(t.Context(), &own, log); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.rooms.close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if i == 0 {
			patients, err := (&benchVerb{Patients: 4}).fill(t.Context(), n.rooms.records, terminal{io.Discard, io.Discard})
			if err != nil {
				t.Fatal(err)
			}
			w.patient = patients[0]
		}
		if n.verifier, err = auth.NewVerifier(auth.VerifierConfig{
			Issuers:  []auth.IssuerConfig{{Issuer: served.URL + "/oauth2", Audience: audience, JWKSURL: served.URL + "/oauth2/jwks", AssertsSignIn: true, RolesInToken: true}},
			Insecure: true, Logger: log, Revocations: n.rooms.revoked, Sessions: n.rooms.sessions,
		}); err != nil {
			t.Fatal(err)
		}
		if n.api, err = startAPI(t.Context(), n.rooms, surface{
			base: n.origin + "/fhir/R4", records: n.rooms.records, levels: own.levels(), limits: loadLimits(), verifier: n.verifier,
			issuer: rest.Issuer{Issuer: served.URL + "/oauth2", JWKS: served.URL + "/oauth2/jwks"},
		}, listeners[i], log); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.api.close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if err := awaitReady(t.Context(), n.origin+"/readyz"); err != nil {
			t.Fatal(err)
		}
		w.instances[i] = n
	}
	return w
}

// token mints one for a persona; each is a session of its own.
func (w *ward) token(t *testing.T, persona string) string {
	t.Helper()
	token, err := w.issuer.Token(persona, "")
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// claimsOf reads a token of ours.
func claimsOf(t *testing.T, token string) (c struct {
	ID      string `json:"jti"`
	Session string `json:"sid"`
	Subject string `json:"sub"`
	Client  string `json:"client_id"`
}) {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err == nil {
		err = json.Unmarshal(payload, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a request to an instance and returns status, challenge or Retry-After, and body.
func (n *instanceOfWard) ask(t *testing.T, method, path, token, body string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, n.origin+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, b
}

// chart reads the patient's chart.
func (w *ward) chart(t *testing.T, i int, token string) int {
	t.Helper()
	res, _ := w.instances[i].ask(t, "GET", "/fhir/R4/Patient/"+w.patient, token, "")
	if res.StatusCode == http.StatusUnauthorized && !strings.Contains(res.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
		t.Errorf("challenge %q", res.Header.Get("WWW-Authenticate"))
	}
	return res.StatusCode
}

// dies demands that a token is refused on an instance within a time, and for good.
func (w *ward) dies(t *testing.T, what string, i int, token string, within time.Duration) {
	t.Helper()
	start := time.Now()
	for w.chart(t, i, token) != http.StatusUnauthorized {
		if time.Since(start) > within {
			t.Errorf("%s: still lets in on instance %d after %s", what, i, time.Since(start).Round(time.Millisecond))
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	if status := w.chart(t, i, token); status != http.StatusUnauthorized {
		t.Errorf("%s: %d again", what, status)
	}
}

// TestRevocationBites is case 43 over real sockets, by everything that can be revoked: refused with the next request where it was revoked,
// within a second on the other instance, also when that one's listener is cut.
func TestRevocationBites(t *testing.T) {
	w := openWard(t, 0)
	security := w.token(t, "security-amari")
	for _, c := range []struct {
		what string
		do   func(token string) (method, path, body string)
	}{
		{"session", func(token string) (string, string, string) {
			return "DELETE", "/v1/sessions/" + claimsOf(t, token).Session, ""
		}},
		{"token", func(token string) (string, string, string) {
			return "POST", "/v1/revocations", fmt.Sprintf(`{"kind":"token","id":%q,"reason":"test"}`, claimsOf(t, token).ID)
		}},
		{"subject", func(token string) (string, string, string) {
			return "POST", "/v1/revocations", fmt.Sprintf(`{"kind":"subject","id":%q,"reason":"test"}`, claimsOf(t, token).Subject)
		}},
		{"client", func(token string) (string, string, string) {
			return "POST", "/v1/revocations", fmt.Sprintf(`{"kind":"client","id":%q,"reason":"test"}`, claimsOf(t, token).Client)
		}},
	} {
		for _, listener := range []string{"listening", "cut"} {
			what := c.what + ", " + listener
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1050 * time.Millisecond))) // a token of another second than what was revoked before
			token, other := w.token(t, "dr-rivera"), w.token(t, "dr-rivera")
			for i := range w.instances {
				for _, fine := range []string{token, other} {
					if status := w.chart(t, i, fine); status != http.StatusOK {
						t.Fatalf("%s: %d before", what, status)
					}
				}
			}
			if c.what == "client" { // the officer's is the same one
				security = w.token(t, "security-amari")
			}
			stop := make(chan struct{})
			var cutting sync.WaitGroup
			if listener == "cut" {
				cutting.Go(func() { w.cutListeners(t, stop) })
			}
			time.Sleep(20 * time.Millisecond)
			method, path, body := c.do(token)
			res, answer := w.instances[0].ask(t, method, path, security, body)
			if res.StatusCode != http.StatusNoContent {
				t.Fatalf("%s: %d %s", what, res.StatusCode, answer)
			}
			w.dies(t, what, 0, token, 0)
			w.dies(t, what, 1, token, time.Second+500*time.Millisecond) // the half second is the test's own requests on a busy machine
			close(stop)
			cutting.Wait()
			if status := w.chart(t, 0, other); (status == http.StatusOK) != (c.what == "session" || c.what == "token") {
				t.Errorf("%s: another session %d", what, status)
			}
			if c.what == "client" {
				security = ""
				for end := time.Now().Add(3 * time.Second); security == ""; time.Sleep(100 * time.Millisecond) {
					fresh := w.token(t, "security-amari")
					if res, _ := w.instances[0].ask(t, "GET", "/v1/revocations", fresh, ""); res.StatusCode == http.StatusOK {
						security = fresh
					} else if time.Now().After(end) {
						t.Fatalf("%s: nobody can sign in any more: %d", what, res.StatusCode)
					}
				}
			}
		}
	}
	// All, and the officer with them.
	token := w.token(t, "dr-rivera")
	if res, b := w.instances[1].ask(t, "POST", "/v1/revocations", security, `{"kind":"all","reason":"incident"}`); res.StatusCode != http.StatusNoContent {
		t.Fatalf("all: %d %s", res.StatusCode, b)
	}
	w.dies(t, "all", 1, token, 0)
	w.dies(t, "all", 1, security, 0)
	w.dies(t, "all", 0, token, 1500*time.Millisecond)
}

// cutListeners ends the connections that listen, again and again, until stopped.
func (w *ward) cutListeners(t *testing.T, stop chan struct{}) {
	admin, err := pgx.Connect(t.Context(), w.cluster.DSN(demoDatabase))
	if err != nil {
		t.Error(err)
		return
	}
	defer admin.Close(context.Background())
	for {
		if _, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%listener%'`); err != nil {
			t.Error(err)
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestCutOff: an instance that is cut off from the database, by a network that refuses or that swallows, judges no token from five
// seconds on (503, never 401, never 200), says so in its readiness, and is at work again as soon as the network is. What was revoked
// meanwhile is dead then.
func TestCutOff(t *testing.T) {
	w := openWard(t, 0)
	security := w.token(t, "security-amari")
	// A request that a token is needed for, and the database is not: it is refused by its content.
	probe := func(token string) (int, string) {
		res, _ := w.instances[1].ask(t, "POST", "/v1/relationships", token, `{}`, "Content-Type", "text/plain")
		return res.StatusCode, res.Header.Get("Retry-After")
	}
	for _, weather := range []weather{refused, swallow} {
		admin, revoked := w.token(t, "admin-root"), w.token(t, "admin-root")
		for _, token := range []string{admin, revoked} {
			if status, _ := probe(token); status != http.StatusUnsupportedMediaType {
				t.Fatalf("before: %d", status)
			}
		}
		w.instances[1].network.turn(weather)
		began := time.Now()
		if res, b := w.instances[0].ask(t, "DELETE", "/v1/sessions/"+claimsOf(t, revoked).Session, security, ""); res.StatusCode != http.StatusNoContent {
			t.Fatalf("revoking: %d %s", res.StatusCode, b)
		}
		early, late := 0, 0
		for time.Since(began) < 8*time.Second {
			at := time.Since(began)
			status, retry := probe(admin)
			switch {
			case status == http.StatusUnsupportedMediaType && at < 3900*time.Millisecond:
				early++
			case status == http.StatusServiceUnavailable && retry != "" && at > 3900*time.Millisecond:
				late++
			case status == http.StatusUnsupportedMediaType && at < 5200*time.Millisecond:
			default:
				t.Errorf("%v, after %s: %d", weather, at.Round(time.Millisecond), status)
			}
			if status, _ := probe(revoked); at > 5200*time.Millisecond && status != http.StatusServiceUnavailable {
				t.Errorf("%v, after %s: the revoked one %d", weather, at.Round(time.Millisecond), status)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if early == 0 || late == 0 {
			t.Errorf("%v: %d answers within the lease, %d refusals after it", weather, early, late)
		}
		if res, _ := w.instances[1].ask(t, "GET", "/healthz", "", ""); res.StatusCode != http.StatusOK {
			t.Errorf("healthz: %d", res.StatusCode)
		}
		if res, b := w.instances[1].ask(t, "GET", "/readyz", "", ""); res.StatusCode != http.StatusServiceUnavailable || !bytes.Contains(b, []byte(`"revocations":"failing"`)) {
			t.Errorf("readyz: %d %s", res.StatusCode, b)
		}
		w.instances[1].network.turn(fair)
		began = time.Now()
		for {
			status, _ := probe(admin)
			if status == http.StatusUnsupportedMediaType {
				break
			}
			if status != http.StatusServiceUnavailable || time.Since(began) > 6*time.Second {
				t.Fatalf("%v: %d %s after the network came back", weather, status, time.Since(began))
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("%v: at work again after %s", weather, time.Since(began).Round(time.Millisecond))
		if status, _ := probe(revoked); status != http.StatusUnauthorized {
			t.Errorf("%v: what was revoked meanwhile: %d", weather, status)
		}
	}
}

// TestDatabaseAway is case 49: PostgreSQL is stopped for three seconds, and tokens are judged; for ten, and none is.
func TestDatabaseAway(t *testing.T) {
	w := openWard(t, 15*time.Minute)
	token := w.token(t, "dr-rivera")
	judged := func(i int) error {
		_, err := w.instances[i].verifier.Authenticate(t.Context(), auth.Credentials{Profile: auth.ProfileFHIR, Authorization: [][]byte{[]byte("Bearer " + token)}})
		return err
	}
	for _, c := range []struct {
		away time.Duration
		want error
	}{{3 * time.Second, nil}, {10 * time.Second, auth.ErrRevocations}} {
		for i := range w.instances {
			if status := w.chart(t, i, token); status != http.StatusOK {
				t.Fatalf("before: %d", status)
			}
		}
		_ = w.admin.Close(t.Context())
		if err := syscall.Kill(postmasterPID(t, w.dir), syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		if err := w.cluster.Stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(c.away)
		for i := range w.instances {
			if err := judged(i); !errors.Is(err, c.want) {
				t.Errorf("away for %s, instance %d: %v, want %v", c.away, i, err, c.want)
			}
			if status := w.chart(t, i, token); status != http.StatusServiceUnavailable {
				t.Errorf("away for %s, instance %d: a chart is answered with %d", c.away, i, status)
			}
			if res, _ := w.instances[i].ask(t, "GET", "/healthz", "", ""); res.StatusCode != http.StatusOK {
				t.Errorf("healthz: %d", res.StatusCode)
			}
		}
		lab := laboratory{dir: w.dir, cluster: w.cluster}
		lab.restart(t)
		w.cluster = lab.cluster
		began := time.Now()
		for i := range w.instances {
			for w.chart(t, i, token) != http.StatusOK {
				if time.Since(began) > 10*time.Second {
					t.Fatalf("away for %s: instance %d is not at work again", c.away, i)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		t.Logf("away for %s: at work again after %s", c.away, time.Since(began).Round(time.Millisecond))
	}
}

// TestTerminationEndsEverything (45 CFR 164.308(a)(3)(ii)(C)): tokens of now and of later, assigned roles, granted relationships; with the
// next request here, within a second on the other instance; and one event says what ended. A role that is assigned later is the way back.
func TestTerminationEndsEverything(t *testing.T) {
	w := openWard(t, 0)
	security, admin, officer := w.token(t, "security-amari"), w.token(t, "admin-root"), w.token(t, "officer-diaz")
	const who = "dr-chen"
	assign := func() {
		t.Helper()
		if res, b := w.instances[0].ask(t, "POST", "/v1/assignments", admin, `{"subject":"dr-chen","role":"nurse","reason":"test"}`); res.StatusCode != http.StatusCreated {
			t.Fatalf("assigning: %d %s", res.StatusCode, b)
		}
	}
	assign()
	practitioner := ""
	for _, p := range demo.Personas("") {
		if p.Name == who {
			practitioner = strings.TrimPrefix(p.FHIRUser, "Practitioner/")
		}
	}
	if res, b := w.instances[0].ask(t, "POST", "/v1/relationships", admin, fmt.Sprintf(`{"practitioner":%q,"patient":%q,"reason":"test"}`, practitioner, w.patient)); res.StatusCode != http.StatusCreated {
		t.Fatalf("relating: %d %s", res.StatusCode, b)
	}
	one, two := w.token(t, who), w.token(t, who)
	for i := range w.instances {
		for _, token := range []string{one, two} {
			if status := w.chart(t, i, token); status != http.StatusOK {
				t.Fatalf("before, on %d: %d", i, status)
			}
		}
	}
	end := fmt.Sprintf(`{"reason":"HR-1","practitioner":%q}`, practitioner)
	for path, status := range map[string]int{"/v1/workforce/security-amari/termination": 409, "/v1/workforce/%00/termination": 404} {
		if res, b := w.instances[0].ask(t, "POST", path, security, end); res.StatusCode != status {
			t.Errorf("%s: %d %s", path, res.StatusCode, b)
		}
	}
	if res, _ := w.instances[0].ask(t, "POST", "/v1/workforce/"+who+"/termination", officer, end); res.StatusCode != http.StatusForbidden {
		t.Errorf("by an officer: %d", res.StatusCode)
	}
	res, b := w.instances[0].ask(t, "POST", "/v1/workforce/"+who+"/termination", security, end, "X-Request-Id", "the-end")
	var ended struct{ Sessions, Assignments, Relationships int }
	if err := json.Unmarshal(b, &ended); err != nil || res.StatusCode != http.StatusOK || ended.Assignments != 1 || ended.Relationships != 1 {
		t.Fatalf("%d %s, %v", res.StatusCode, b, err)
	}
	fresh := w.token(t, who) // the issuer has not heard of it
	for _, token := range []string{one, two, fresh} {
		w.dies(t, "here", 0, token, 0)
		w.dies(t, "there", 1, token, 1500*time.Millisecond)
	}
	if status := w.chart(t, 0, w.token(t, "dr-rivera")); status != http.StatusOK {
		t.Errorf("somebody else: %d", status)
	}
	events := w.events(t, officer, "request_id=the-end", 2)
	if fmt.Sprint(events[0]["outcome"]) == fmt.Sprint(events[1]["outcome"]) {
		t.Errorf("no intent and outcome: %v", events)
	}
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1050 * time.Millisecond)))
	assign()
	time.Sleep(1100 * time.Millisecond)
	back := w.token(t, who)
	for i := range w.instances {
		if status := w.chart(t, i, back); status == http.StatusUnauthorized {
			t.Errorf("with a new role, on %d: %d", i, status)
		}
		w.dies(t, "a token from before", i, fresh, 0)
	}

	// The same by SCIM, which knows one thing to do.
	for body, status := range map[string]int{
		`{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"replace","path":"active","value":true}]}`:    422,
		`{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"replace","path":"userName","value":"x"}]}`:   422,
		`{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"remove","path":"active"}]}`:                  422,
		`{"schemas":[],"Operations":[{"op":"replace","path":"active","value":false}]}`:                                                  400,
		`{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"Replace","value":{"active":false}}]}`:        204,
		`{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"replace","path":"active","value":"False"}]}`: 204,
	} {
		if res, b := w.instances[1].ask(t, "PATCH", "/v1/scim/v2/Users/nurse-okafor", security, body, "Content-Type", "application/scim+json"); res.StatusCode != status {
			t.Errorf("%s: %d %s, want %d", body, res.StatusCode, b, status)
		}
	}
	w.dies(t, "deactivated", 1, w.token(t, "nurse-okafor"), 0)
}

// events searches the trail through the first instance until want are there.
func (w *ward) events(t *testing.T, officer, query string, want int) []map[string]any {
	t.Helper()
	var page struct{ Events []map[string]any }
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		res, b := w.instances[0].ask(t, "GET", "/v1/audit/events?"+query, officer, "")
		if err := json.Unmarshal(b, &page); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", query, res.StatusCode, b)
		}
		if len(page.Events) >= want {
			return page.Events
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %d events, want %d", query, len(page.Events), want)
		}
	}
}

// TestSessionsAreSeen: officers see who is signed in, on which instances; everybody sees and ends his own, and nobody else's; and the end of a
// session is an event on whichever instance used it.
func TestSessionsAreSeen(t *testing.T) {
	w := openWard(t, 15*time.Minute)
	officer, security := w.token(t, "officer-diaz"), w.token(t, "security-amari")
	mine, phone, other := w.token(t, "dr-rivera"), w.token(t, "dr-rivera"), w.token(t, "nurse-okafor")
	for i := range w.instances {
		for _, token := range []string{mine, phone, other} {
			w.chart(t, i, token)
		}
	}
	told := func() (n int) {
		if err := w.admin.QueryRow(t.Context(), `SELECT coalesce(sum(cardinality(instances)), 0) FROM session_seen WHERE subject IN ('dr-rivera', 'nurse-okafor')`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for end := time.Now().Add(30 * time.Second); told() < 3; time.Sleep(100 * time.Millisecond) { // both are one process
		if time.Now().After(end) {
			t.Fatal("nobody told of the sessions")
		}
	}
	list := func(token, query string) (ids []string, current int) {
		t.Helper()
		res, b := w.instances[0].ask(t, "GET", "/v1/sessions"+query, token, "")
		var page struct {
			Sessions []struct {
				ID, Subject, Network, Client string
				Instances                    []string
				Current                      bool
			}
		}
		if err := json.Unmarshal(b, &page); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, b)
		}
		for _, s := range page.Sessions {
			ids = append(ids, s.ID)
			if s.Current {
				current++
			}
			if s.Network != "127.0.0.1" || s.Client == "" || len(s.Instances) == 0 {
				t.Errorf("%+v", s)
			}
		}
		slices.Sort(ids)
		return ids, current
	}
	of := func(tokens ...string) (ids []string) {
		for _, token := range tokens {
			ids = append(ids, claimsOf(t, token).Session)
		}
		slices.Sort(ids)
		return ids
	}
	if ids, _ := list(officer, ""); !slices.Equal(ids, of(mine, phone, other, officer)) && !slices.Equal(ids, of(mine, phone, other)) {
		t.Errorf("an officer sees %v", ids)
	}
	if ids, _ := list(officer, "?subject=nurse-okafor"); !slices.Equal(ids, of(other)) {
		t.Errorf("an officer sees of one %v", ids)
	}
	if ids, current := list(mine, "?subject=nurse-okafor"); !slices.Equal(ids, of(mine, phone)) || current != 1 {
		t.Errorf("somebody sees %v, of which %d is the one that asks", ids, current)
	}
	end := func(token, id string, want int) {
		t.Helper()
		if res, b := w.instances[0].ask(t, "DELETE", "/v1/sessions/"+url.PathEscape(id), token, ""); res.StatusCode != want {
			t.Errorf("ending %s: %d %s", id, res.StatusCode, b)
		}
	}
	end(mine, claimsOf(t, other).Session, 404)
	end(mine, "nobody's", 404)
	end(officer, claimsOf(t, other).Session, 404) // an officer looks, and ends nobody's but his own
	end(mine, claimsOf(t, phone).Session, 204)
	w.dies(t, "one's own other session", 0, phone, 0)
	if status := w.chart(t, 0, mine); status != http.StatusOK {
		t.Errorf("the session that asked: %d", status)
	}
	end(mine, claimsOf(t, mine).Session, 204)
	w.dies(t, "one's own session", 0, mine, 0)
	// Who may end others' but for the age of the sign-in is told so, whether or not there is such a session.
	stale, err := w.issuer.Mint("security-amari", demo.Minted{AuthAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{claimsOf(t, other).Session, "nobody's"} {
		res, b := w.instances[0].ask(t, "DELETE", "/v1/sessions/"+url.PathEscape(id), stale, "")
		if want := `Bearer realm="chartkeep", error="insufficient_user_authentication", max_age="900"`; res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") != want {
			t.Errorf("with an old sign-in: %d %s %s", res.StatusCode, res.Header.Get("WWW-Authenticate"), b)
		}
	}
	end(security, claimsOf(t, other).Session, 204)
	w.dies(t, "ended by another", 1, other, 1500*time.Millisecond)
	// Three sessions ended that both instances have seen.
	w.events(t, officer, "interaction=logout", 6)

	res, b := w.instances[0].ask(t, "GET", "/v1/revocations", officer, "")
	var page struct {
		Revocations []struct{ Kind, ID, By, Reason string }
		More        bool
	}
	if err := json.Unmarshal(b, &page); err != nil || res.StatusCode != http.StatusOK || len(page.Revocations) != 3 || page.Revocations[0].By != "security-amari" || page.Revocations[2].By != "dr-rivera" {
		t.Errorf("%d %s", res.StatusCode, b)
	}
	for body, status := range map[string]int{
		`{"kind":"everything","reason":"x"}`: 422, `{"kind":"session","reason":"x"}`: 422, `{"kind":"all","id":"x","reason":"x"}`: 422, `{"kind":"all"}`: 422,
		`{"kind":"reinstatement","id":"x","reason":"x"}`: 422, `{"kind":"subject","id":"x","not_before":"9999-12-31T00:00:00Z","reason":"x"}`: 422,
		`{"kind":"all","reason":"x","more":1}`: 400, `{`: 400,
	} {
		if res, b := w.instances[0].ask(t, "POST", "/v1/revocations", security, body); res.StatusCode != status {
			t.Errorf("%s: %d %s, want %d", body, res.StatusCode, b, status)
		}
	}
}

// TestIdleSessionsEnd is 45 CFR 164.312(a)(2)(iii) over real sockets: use on one instance keeps a session alive on the other; without use it is
// over on both, and a new sign-in is not.
func TestIdleSessionsEnd(t *testing.T) {
	const idle = 4 * time.Second
	w := openWard(t, idle)
	token, service := w.token(t, "dr-rivera"), w.token(t, "app-backend")
	if status := w.chart(t, 1, token); status != http.StatusOK {
		t.Fatal(status)
	}
	for start := time.Now(); time.Since(start) < idle+2*time.Second; time.Sleep(500 * time.Millisecond) {
		for _, x := range []string{token, service} {
			if status := w.chart(t, 0, x); status != http.StatusOK {
				t.Fatalf("in use, after %s: %d", time.Since(start), status)
			}
		}
	}
	if status := w.chart(t, 1, token); status != http.StatusOK {
		t.Errorf("in use on the other instance: %d", status)
	}
	time.Sleep(idle + 500*time.Millisecond)
	for i := range w.instances {
		w.dies(t, "idle", i, token, 0)
		if status := w.chart(t, i, service); status != http.StatusOK {
			t.Errorf("a service: %d", status)
		}
		if status := w.chart(t, i, w.token(t, "dr-rivera")); status != http.StatusOK {
			t.Errorf("a new sign-in: %d", status)
		}
	}
}

// TestBackChannelLogout: what the issuer ends is dead on both instances; whatever else is sent there is refused, and is no reason to end
// anything.
func TestBackChannelLogout(t *testing.T) {
	w := openWard(t, 0)
	officer, token, other := w.token(t, "officer-diaz"), w.token(t, "dr-rivera"), w.token(t, "dr-rivera")
	for i := range w.instances {
		if status := w.chart(t, i, token); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	post := func(body, media string) *http.Response {
		t.Helper()
		res, b := w.instances[0].ask(t, "POST", "/v1/backchannel-logout", "", body, "Content-Type", media)
		if res.Header.Get("Cache-Control") != "no-store" || bytes.Contains(b, []byte("jti")) {
			t.Errorf("%s: %v %s", body, res.Header, b)
		}
		return res
	}
	const form = "application/x-www-form-urlencoded"
	for body, status := range map[string]int{
		"logout_token=" + token: 400, "logout_token=": 400, "token=x": 400, "logout_token=x&logout_token=y": 400, "logout_token=x&more=1": 400,
		"logout_token=eyJhbGciOiJub25lIn0.e30.": 400,
	} {
		if res := post(body, form); res.StatusCode != status {
			t.Errorf("%s: %d, want %d", body, res.StatusCode, status)
		}
	}
	if res := post(`{"logout_token":"x"}`, "application/json"); res.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("JSON: %d", res.StatusCode)
	}
	if status := w.chart(t, 0, token); status != http.StatusOK {
		t.Fatalf("ended by a refused logout: %d", status)
	}
	if err := w.issuer.EndSession(claimsOf(t, token).Session); err != nil {
		t.Fatal(err)
	}
	w.dies(t, "here", 0, token, 0)
	w.dies(t, "there", 1, token, 1500*time.Millisecond)
	if status := w.chart(t, 0, other); status != http.StatusOK {
		t.Errorf("another session: %d", status)
	}
	w.events(t, officer, "interaction=backchannel-logout&outcome=0", 1)
}

// TestRevokeVerb: the verb of a deployment does what the API does, and the trail has it.
func TestRevokeVerb(t *testing.T) {
	d := demoShared(t)
	token, officer := d.token(t, "registrar-lee"), d.token(t, "officer-diaz")
	if res := d.do(t, "GET", d.API+"/sessions", token, ""); res.StatusCode != http.StatusOK {
		t.Fatalf("before: %d", res.StatusCode)
	}
	verb := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("chartkeep", append([]string{"revoke", "--data", d.dir}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	session := claimsOf(t, token).Session
	verb("session", session, "--reason", "lost phone", "--by", "Sam Amari")
	for end := time.Now().Add(1500 * time.Millisecond); d.do(t, "GET", d.API+"/sessions", token, "").StatusCode != http.StatusUnauthorized; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still lets in")
		}
	}
	if out := verb("subject", "somebody-who-left", "--for-good", "--reason", "HR-1", "--by", "Sam Amari"); !strings.Contains(out, "0 sessions, 0 roles") {
		t.Error(out)
	}
	if out := verb("list"); !strings.Contains(out, session) || !strings.Contains(out, "for good") {
		t.Error(out)
	}
	d.events(t, officer, "interaction=revoke", 2)
	d.events(t, officer, "interaction=workforce-terminate", 2)
}
