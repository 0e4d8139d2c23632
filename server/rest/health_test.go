package rest_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/rest"
)

func TestHealth(t *testing.T) {
	var down atomic.Bool
	d := deploy(t, func(c *rest.Config) {
		c.Checks = map[string]func(context.Context) error{
			"journal": func(context.Context) error { return nil },
			"database": func(context.Context) error {
				if down.Load() {
					return errors.New("connecting to db-host.internal: refused")
				}
				return nil
			},
		}
	})
	d.want(d.do("GET", "/healthz", "", ""), http.StatusOK)
	var ready struct {
		Status string
		Checks map[string]string
	}
	check(t, json.Unmarshal(d.want(d.do("GET", "/readyz", "", ""), http.StatusOK).body, &ready))
	if ready.Status != "ready" || ready.Checks["database"] != "ok" || ready.Checks["journal"] != "ok" {
		t.Errorf("ready: %+v", ready)
	}
	down.Store(true)
	a := d.do("GET", "/readyz", "", "")
	check(t, json.Unmarshal(a.body, &ready))
	if a.StatusCode != http.StatusServiceUnavailable || ready.Checks["database"] != "failing" || ready.Checks["journal"] != "ok" || strings.Contains(string(a.body), "db-host") {
		t.Errorf("not ready: %d %s", a.StatusCode, a.body)
	}
	d.want(d.do("GET", "/healthz", "", ""), http.StatusOK)
}

func TestMounts(t *testing.T) {
	d := deploy(t, func(c *rest.Config) {
		c.Mount = map[string]http.Handler{
			"/oauth2": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Path", r.URL.Path)
				w.WriteHeader(http.StatusTeapot)
				_, _ = w.Write([]byte("mounted"))
			}),
			"/panics": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(plantedFamily) }),
		}
	})
	for _, path := range []string{"/oauth2", "/oauth2/", "/oauth2/a/b"} {
		a := d.do("POST", path, "", "x")
		if a.StatusCode != http.StatusTeapot || string(a.body) != "mounted" || a.Header.Get("X-Path") != path || a.Header.Get("X-Request-Id") == "" ||
			a.Header.Get("Content-Security-Policy") != "" {
			t.Errorf("%s: %d %s %v", path, a.StatusCode, a.body, a.Header)
		}
	}
	d.want(d.do("GET", "/oauth2x", "", ""), http.StatusNotFound)
	a := d.want(d.do("GET", "/panics", "", ""), http.StatusInternalServerError)
	if e := d.eventsOf(a.Header.Get("X-Request-Id")); len(e) != 1 || e[0].Event.Outcome != audit.SeriousFailure {
		t.Errorf("events of a panic: %+v", e)
	}
	// The log names the place, and nothing of what was at hand there: deploy looks for the planted name.
	logs := d.logs.String()
	if !strings.Contains(logs, `"type":"string"`) || !strings.Contains(logs, "rest_test.TestMounts.func1.2:") || strings.Contains(logs, "({0x") {
		t.Errorf("a panic is logged as %s", logs)
	}
}

// TestStorageAway takes the records' storage away and brings it back: 503 with Retry-After, then service without a restart.
func TestStorageAway(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	token := d.as("backend")
	d.storage.Fail(errors.New("connection refused"))
	a := d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusServiceUnavailable)
	if a.Header.Get("Retry-After") == "" || !strings.Contains(string(a.body), "transient") {
		t.Errorf("%v %s", a.Header, a.body)
	}
	d.storage.Fail(nil)
	d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusOK)
}

// TestIntegrity edits a stored row: the record is withheld, and the answer does not say what is wrong with it.
func TestIntegrity(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	d.storage.Edit(phi.Ref{Type: "Patient", ID: "p1"}, func(row *phi.Sealed) { row.Cells[phi.ClassName][20] ^= 1 })
	a := d.want(d.do("GET", "/fhir/R4/Patient/p1", d.as("backend"), ""), http.StatusInternalServerError)
	if want := `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"exception","diagnostics":"internal error"}]}`; string(a.body) != want {
		t.Errorf("answer %s", a.body)
	}
	if len(d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldRequest, a.Header.Get("X-Request-Id")), audit.Is(audit.FieldType, string(audit.TypeSecurityAlert))}})) == 0 {
		t.Error("no alert in the trail")
	}
}

// TestTimeout gives a handler less time than it takes: its context ends, and the client is told to come back.
func TestTimeout(t *testing.T) {
	d := deploy(t, func(c *rest.Config) {
		c.Timeout = 50 * time.Millisecond
		c.Relationships = stuck{}
	})
	a := d.want(d.do("DELETE", "/v1/relationships/dr/p1", d.as("admin"), ""), http.StatusServiceUnavailable)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if e := d.eventsOf(a.Header.Get("X-Request-Id")); len(e) != 2 || e[0].Event.Outcome != audit.SeriousFailure {
		t.Errorf("events %+v", e)
	}
}

// stuck is a Relationships whose database does not answer.
type stuck struct{}

func (stuck) Grant(ctx context.Context, _ auth.Relationship) error {
	return stuck{}.Ungrant(ctx, "", "", "")
}
func (stuck) Relationships(ctx context.Context, _, _ string, _ int) ([]auth.Relationship, error) {
	return nil, stuck{}.Ungrant(ctx, "", "", "")
}
func (stuck) Ungrant(ctx context.Context, _, _, _ string) error { <-ctx.Done(); return ctx.Err() }

// TestJournalAway closes the log: nothing is disclosed, nothing is refused without a trace, and what holds no PHI goes on.
func TestJournalAway(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	token, officer := d.as("backend"), d.as("officer")
	d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusOK)
	read := d.events(audit.Query{})[0].Event.ID.String()
	d.want(d.do("GET", "/fhir/R4/AuditEvent/"+read, officer, ""), http.StatusOK)
	check(t, d.log.Close())
	for _, c := range []struct{ method, path, token string }{
		{"GET", "/fhir/R4/Patient/p1", token}, {"GET", "/fhir/R4/Patient?_id=p1", token}, {"GET", "/fhir/R4/Nothing/p1", token},
		{"GET", "/fhir/R4/AuditEvent", officer}, {"GET", "/fhir/R4/AuditEvent/" + read, officer}, {"POST", "/fhir/R4/AuditEvent", officer},
		{"GET", "/fhir/R4/Patient/p1", d.as("backend")}, // whose sign-in cannot be recorded
	} {
		a := d.want(d.do(c.method, c.path, c.token, ""), http.StatusServiceUnavailable)
		if a.Header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", c.path)
		}
	}
	d.want(d.do("GET", "/fhir/R4/Patient/p1", "", ""), http.StatusServiceUnavailable)
	d.want(d.do("GET", "/fhir/R4/metadata", "", ""), http.StatusOK)
	d.want(d.do("GET", "/healthz", "", ""), http.StatusOK)
}

// TestShutdownDrains stops the server while a handler works: the handler's answer arrives.
func TestShutdownDrains(t *testing.T) {
	working, release := make(chan struct{}), make(chan struct{})
	d := deploy(t, func(c *rest.Config) {
		c.Checks = map[string]func(context.Context) error{"slow": func(context.Context) error { close(working); <-release; return nil }}
	})
	answered := make(chan answer, 1)
	go func() { answered <- d.raw("GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") }()
	<-working
	stopped := make(chan error, 1)
	go func() { stopped <- d.server.Shutdown(context.Background()) }()
	select {
	case err := <-stopped:
		t.Fatalf("stopped under a working handler: %v", err)
	case <-time.After(150 * time.Millisecond):
	}
	close(release)
	if a := <-answered; a.StatusCode != http.StatusOK {
		t.Errorf("status %d", a.StatusCode)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
