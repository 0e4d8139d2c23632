package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/rest"
)

// plantedReason is what somebody writes about an emergency; it must be nowhere in the clear.
const plantedReason = "Found unconscious, Quackenbush says the family"

// instanceBeside starts a second server on a demo's database and issuer, in this process.
func instanceBeside(t *testing.T, d *instance) (*rooms, *instance) {
	t.Helper()
	ctx := t.Context()
	s, err := demoSettings(d.dir, d.DatabaseURL, audit.Power)
	if err != nil {
		t.Fatal(err)
	}
	s.journal, s.keys = t.TempDir(), nil // the demo sequences
	sink := newLog(&safeBuffer{})
	t.Cleanup(sink.close)
	r, err := openRooms(ctx, s, sink.Logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.close(ctx) })
	verifier, err := auth.NewVerifier(auth.VerifierConfig{
		Issuers:  []auth.IssuerConfig{{Issuer: d.Issuer, Audience: d.FHIR, JWKSURL: d.Issuer + "/jwks", AssertsSignIn: true, RolesInToken: true}},
		Insecure: true, Logger: sink.Logger, Revocations: r.revoked, Sessions: r.sessions,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	origin := "http://" + l.Addr().String()
	a, err := startAPI(ctx, r, surface{base: origin + "/fhir/R4", records: r.records, levels: s.levels(), verifier: verifier, issuer: rest.Issuer{Issuer: d.Issuer}}, l, sink.Logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.close(ctx) })
	if err := awaitReady(ctx, origin+"/readyz"); err != nil {
		t.Fatal(err)
	}
	beside := &instance{demoFile: d.demoFile, dir: d.dir, output: d.output}
	beside.API, beside.FHIR = origin+"/v1", origin+"/fhir/R4"
	return r, beside
}

// within asks until the answer has a status, and returns how long that took.
func (d *instance) within(t *testing.T, most time.Duration, path, token string, status int) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		a := d.do(t, "GET", path, token, "")
		took := time.Since(began)
		if a.StatusCode == status {
			return took
		}
		if took > most {
			t.Fatalf("GET %s: still %d after %v, want %d: %s", path, a.StatusCode, took, status, a.body)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func emergencyBody(patient string) string {
	return fmt.Sprintf(`{"patient":%q,"reason_code":"life-threatening","text":%q}`, patient, plantedReason)
}

const jsonBody = "Content-Type: application/json"

// TestEmergencyInstances: what is granted, ended or revoked on one of two instances holds there at the next request, and on the other within
// a second; officers are told at once; and the session's end is the grant's.
func TestEmergencyInstances(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	r, other := instanceBeside(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	chen, officer := d.token(t, "dr-chen"), d.token(t, "officer-diaz")
	var found struct {
		Entry []struct{ Resource struct{ ID string } }
	}
	if err := json.Unmarshal(d.do(t, "GET", "/fhir/R4/Patient", d.token(t, "app-backend"), "").body, &found); err != nil || len(found.Entry) == 0 {
		t.Fatalf("no patients: %v", err)
	}
	chart := "/fhir/R4/Patient/" + found.Entry[0].Resource.ID
	d.within(t, 0, chart, chen, http.StatusNotFound)
	other.within(t, 0, chart, chen, http.StatusNotFound)

	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(d.API, "http")+"/audit/live", &websocket.DialOptions{ //nolint:bodyclose // of an upgrade, there is none
		HTTPHeader: http.Header{"Authorization": {"Bearer " + officer}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, []byte(`{"q":"interaction:emergency-request"}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(ctx); err != nil { // where it stands
		t.Fatal(err)
	}

	request := func(at *instance) (id string) {
		t.Helper()
		a := at.do(t, "POST", "/v1/emergency-access", chen, emergencyBody(found.Entry[0].Resource.ID), jsonBody)
		var g struct{ ID string }
		if err := json.Unmarshal(a.body, &g); err != nil || a.StatusCode != http.StatusCreated {
			t.Fatalf("request: %s %s", a.Status, a.body)
		}
		return g.ID
	}
	id := request(d)
	d.within(t, 0, chart, chen, http.StatusOK)
	t.Logf("granted on the other after %v", other.within(t, time.Second, chart, chen, http.StatusOK))

	began := time.Now()
	for shown := false; !shown; {
		_, b, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		shown = strings.Contains(string(b), id)
	}
	t.Logf("shown to the officer %v later", time.Since(began))
	var alerts struct {
		Alerts []struct{ ID, Kind, About, State string }
	}
	other.ask(t, "officer-diaz", "/v1/alerts?state=new", &alerts)
	if len(alerts.Alerts) != 1 || alerts.Alerts[0].About != "EmergencyAccess/"+id || alerts.Alerts[0].Kind != "emergency-access" {
		t.Errorf("alerts %+v", alerts)
	} else if a := other.do(t, "POST", "/v1/alerts/"+alerts.Alerts[0].ID+"/state", officer, `{"state":"seen"}`, jsonBody); a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), `"seen_by":"officer-diaz"`) {
		t.Errorf("seen: %s %s", a.Status, a.body)
	}

	if a := other.do(t, "DELETE", "/v1/emergency-access/"+id, officer, ""); a.StatusCode != http.StatusNoContent {
		t.Fatalf("revoked: %s %s", a.Status, a.body)
	}
	other.within(t, 0, chart, chen, http.StatusNotFound)
	refusal := other.do(t, "GET", chart, chen, "").Header.Get("X-Decision-Id")
	var decision struct {
		Was, Now struct {
			Allowed, Exact bool
			Reason         string
			Policy         int64
		}
		Same    bool
		Changed []string
	}
	path := "/v1/decisions/" + refusal
	other.within(t, 10*time.Second, path, officer, http.StatusOK) // when it has reached the database
	other.ask(t, "officer-diaz", path, &decision)
	if !decision.Was.Exact || decision.Was.Allowed || decision.Was.Reason != "relationship-missing" || !decision.Same || len(decision.Changed) > 0 {
		t.Errorf("the refusal is explained as %+v", decision)
	}
	t.Logf("revoked on the other after %v", d.within(t, time.Second, chart, chen, http.StatusNotFound))

	// The session ends: the token is dead, and the next session has no such grant (case 56).
	request(other)
	other.within(t, 0, chart, chen, http.StatusOK)
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(chen, ".")[1])
	var claims struct{ SID string }
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.SID == "" {
		t.Fatalf("the token has no session: %v", err)
	}
	if err := r.revoked.Revoke(ctx, auth.Revocation{Kind: auth.RevokeSession, ID: claims.SID, Reason: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
	other.within(t, 0, chart, chen, http.StatusUnauthorized)
	d.within(t, time.Second, chart, chen, http.StatusUnauthorized)
	d.within(t, 0, chart, d.token(t, "dr-chen"), http.StatusNotFound)

	admin, err := pgx.Connect(ctx, d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(ctx)
	// Nobody looks into it in time, of which officers are alerted, once.
	if _, err := admin.Exec(ctx, `UPDATE emergency_access SET review_by = now() - interval '1 hour' WHERE id = $1`, id); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.emergencies.overdue(ctx); err != nil {
			t.Fatal(err)
		}
		other.eventually(t, "officer-diaz", "/v1/alerts?state=new", &alerts, func() bool { return len(alerts.Alerts) == 2 })
	}
	if got := alerts.Alerts[0]; got.Kind != "emergency-review-overdue" || got.About != "EmergencyAccess/"+id {
		t.Errorf("overdue: %+v", alerts)
	}

	// What was written is nowhere in the clear, and figures say what waits.
	var sealed []byte
	if err := admin.QueryRow(ctx, `SELECT string_agg(justification, '') FROM emergency_access`).Scan(&sealed); err != nil || len(sealed) == 0 {
		t.Fatalf("the register: %d bytes, %v", len(sealed), err)
	}
	if strings.Contains(d.output.String(), "Quackenbush") || bytes.Contains(sealed, []byte("Quackenbush")) {
		t.Error("what was written is in the clear")
	}
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(string(d.do(t, "GET", d.Metrics, d.token(t, "security-amari"), "").body), "chartkeep_emergency_reviews_due 2") {
		if time.Now().After(deadline) {
			t.Fatal("no figure of the reviews that are due")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// TestEmergencyKilled: a server dies (kill -9) while it grants, before the commit and after it. Either nothing is granted, or the grant, the
// alert and the task are all there, and the trail has the outcome in the end.
func TestEmergencyKilled(t *testing.T) {
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := launch(dir, "--patients", "1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	admin, err := pgx.Connect(ctx, d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(ctx)
	tx, err := admin.Begin(ctx) // whoever raises the alert waits, in the transaction of the grant
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE alert IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	chen := d.token(t, "dr-chen")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		req, _ := http.NewRequestWithContext(ctx, "POST", d.API+"/emergency-access", strings.NewReader(emergencyBody("p-1")))
		req.Header.Set("Authorization", "Bearer "+chen)
		req.Header.Set("Content-Type", "application/json")
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			t.Errorf("answered %s", res.Status)
		}
	}()
	for waiting := 0; waiting == 0; time.Sleep(20 * time.Millisecond) {
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'alert'::regclass`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-gone
	_ = tx.Rollback(ctx) // or the database has ended it, with its owner
	_ = admin.Close(ctx)
	_ = d.wait()
	again, err := launch(dir, "--patients", "1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.interrupt() })
	r, other := instanceBeside(t, again)
	var page struct {
		Emergencies []struct{ ID string } `json:"emergency_access"`
	}
	other.ask(t, "officer-diaz", "/v1/emergency-access", &page)
	var alerts struct{ Alerts []struct{ ID, About string } }
	other.ask(t, "officer-diaz", "/v1/alerts", &alerts)
	if len(page.Emergencies) != len(alerts.Alerts) || len(page.Emergencies) > 1 {
		t.Errorf("%d grants, %d alerts", len(page.Emergencies), len(alerts.Alerts))
	}
	// The intent survived: that somebody asked is known, whatever became of it.
	var events struct {
		Events []struct {
			ID      string
			Outcome int
		}
	}
	other.eventually(t, "officer-diaz", "/v1/audit/events?interaction=emergency-request", &events, func() bool { return len(events.Events) > 0 })

	// After the commit: the register has it and nobody has told the trail.
	e := &auth.EmergencyAccess{
		ID: "3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11", Subject: "dr-chen", Session: "s", Client: "app", Patient: "p-2", Reason: "cover", Justification: make([]byte, 60), Event: events.Events[0].ID,
	}
	if err := r.db.Auth().RequestEmergency(ctx, e, auth.EmergencyLimits{}.WithDefaults()); err != nil {
		t.Fatal(err)
	}
	r.emergencies.tell(ctx, time.Now().Add(time.Minute))
	var told struct {
		Events []struct {
			Outcome     int
			Correlation string
			Patient     string
		}
	}
	other.eventually(t, "officer-diaz", "/v1/audit/events?"+url.Values{"emergency": {e.ID}}.Encode(), &told, func() bool { return len(told.Events) == 1 })
	if got := told.Events[0]; got.Outcome != 0 || got.Correlation != e.Event || got.Patient != "p-2" {
		t.Errorf("told: %+v", got)
	}
	if list, err := r.db.Auth().UntoldEmergencies(ctx, time.Now().Add(time.Minute)); err != nil || len(list) != 0 {
		t.Errorf("still to be told: %+v, %v", list, err)
	}
}
