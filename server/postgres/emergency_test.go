package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/compliance"
)

// emergencyFor is a request that a caller makes.
func emergencyFor(subject, patient string) *auth.EmergencyAccess {
	return &auth.EmergencyAccess{
		ID: audit.ID(random16()).String(), Subject: subject, Session: "s-" + subject, Client: "app", Patient: patient, Reason: "cover",
		Justification: randomBytes(80), Event: audit.ID(random16()).String(),
	}
}

// TestEmergencyRegister: a grant, the alert and the task are there together; every instance is told; it ends by its end, its time or its
// review, each once, and nobody does what another person has to.
func TestEmergencyRegister(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	woken := notices(t, db)
	ctx, s, alerts := t.Context(), db.Auth(), db.Alerts()
	limits := auth.EmergencyLimits{PerShift: 2}.WithDefaults()
	epoch := func() int64 {
		t.Helper()
		e, err := s.Epochs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return e.Emergency
	}
	before := epoch()
	e := emergencyFor("chen", "p-1")
	if err := s.RequestEmergency(ctx, e, limits); err != nil {
		t.Fatal(err)
	}
	expect(t, woken, 1)
	if e.State != auth.EmergencyGranted || e.Until.Sub(e.RequestedAt) != 30*time.Minute || e.ReviewBy.Sub(e.RequestedAt) != 72*time.Hour || epoch() != before+1 {
		t.Errorf("granted: %+v, epoch %d after %d", e, epoch(), before)
	}
	grants, err := s.Emergencies(ctx)
	if err != nil || len(grants) != 1 || grants[0].ID != e.ID || grants[0].Subject != "chen" || grants[0].Session != "s-chen" || grants[0].Patient != "p-1" ||
		grants[0].Left < 29*time.Minute || grants[0].Left > 30*time.Minute || !grants[0].Until.Equal(e.Until) {
		t.Errorf("in force: %+v, %v", grants, err)
	}
	open, err := alerts.Alerts(ctx, compliance.AlertQuery{State: compliance.AlertNew, Limit: 10})
	if err != nil || len(open) != 1 || open[0].Kind != compliance.AlertEmergency || open[0].About != "EmergencyAccess/"+e.ID || open[0].Event != e.Event {
		t.Errorf("alerts: %+v, %v", open, err)
	}
	reviewed := func(id, by, outcome string) error {
		return s.ReviewEmergency(ctx, id, auth.EmergencyReview{By: by, Outcome: outcome}, "", limits)
	}
	wants := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	wants(reviewed(e.ID, "diaz", auth.ReviewAppropriate), auth.ErrEmergencyDecided) // in force
	wants(s.DecideEmergency(ctx, e.ID, "diaz", true, "", limits), auth.ErrEmergencyDecided)
	wants(s.EndEmergency(ctx, audit.ID(random16()).String(), "diaz", auth.EmergencyRevoked), auth.ErrNoEmergency)
	wants(s.EndEmergency(ctx, e.ID, "diaz", auth.EmergencyRevoked), nil)
	wants(s.EndEmergency(ctx, e.ID, "diaz", auth.EmergencyRevoked), auth.ErrEmergencyDecided)
	if grants, err := s.Emergencies(ctx); err != nil || len(grants) != 0 || epoch() != before+2 {
		t.Errorf("revoked: %+v, %v, epoch %d", grants, err, epoch())
	}
	wants(reviewed(e.ID, "Chen ", auth.ReviewAppropriate), auth.ErrEmergencyPerson)
	wants(reviewed(e.ID, "diaz", auth.ReviewFollowUp), nil)
	wants(reviewed(e.ID, "diaz", auth.ReviewInappropriate), nil)
	wants(reviewed(e.ID, "diaz", auth.ReviewAppropriate), auth.ErrEmergencyDecided)
	if got, err := s.Emergency(ctx, e.ID); err != nil || len(got.Reviews) != 2 || !got.ReviewBy.IsZero() || got.EndedBy != "diaz" {
		t.Errorf("reviewed: %+v, %v", got, err)
	}
	if open, err := alerts.Alerts(ctx, compliance.AlertQuery{State: compliance.AlertNew, Limit: 10}); err != nil || len(open) != 1 || open[0].Kind != compliance.AlertInappropriateUse {
		t.Errorf("alerts after the review: %+v, %v", open, err)
	}

	// Time ends a grant without anybody's doing, and makes a review overdue.
	late := emergencyFor("chen", "p-2")
	if err := s.RequestEmergency(ctx, late, limits); err != nil {
		t.Fatal(err)
	}
	must(t, admin, `UPDATE emergency_access SET requested_at = requested_at - interval '4 days', granted_at = granted_at - interval '4 days', until_at = until_at - interval '4 days',
		review_by = review_by - interval '4 days' WHERE id = $1`, late.ID)
	if got, err := s.Emergency(ctx, late.ID); err != nil || got.State != auth.EmergencyExpired {
		t.Errorf("over: %+v, %v", got, err)
	}
	wants(s.EndEmergency(ctx, late.ID, "diaz", auth.EmergencyRevoked), auth.ErrEmergencyDecided)
	overdue, err := s.OverdueEmergencies(ctx)
	if err != nil || len(overdue) != 1 || overdue[0].ID != late.ID {
		t.Errorf("overdue: %+v, %v", overdue, err)
	}
	if err := alerts.Raise(ctx, &compliance.Alert{Kind: compliance.AlertReviewOverdue, Severity: compliance.High, About: "EmergencyAccess/" + late.ID}); err != nil {
		t.Fatal(err)
	}
	if overdue, err = s.OverdueEmergencies(ctx); err != nil || len(overdue) != 0 {
		t.Errorf("told of already: %+v, %v", overdue, err)
	}
	if c, err := s.EmergencyCounts(ctx); err != nil || c != (EmergencyCounts{Due: 1, Overdue: 1}) {
		t.Errorf("counts: %+v, %v", c, err)
	}

	// Nobody gets round the rules at the database, with the program's own role.
	program := connect(t, name, "chartkeep_records")
	for _, sql := range []string{
		`UPDATE emergency_access SET patient = 'p-9'`, `UPDATE emergency_access SET justification = '\x00'`, `DELETE FROM emergency_access`, `DELETE FROM emergency_review`,
		`UPDATE emergency_review SET outcome = 'appropriate'`, `DELETE FROM alert`, `UPDATE emergency_access SET requested_at = now()`,
	} {
		if _, err := program.Exec(ctx, sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if _, err := program.Exec(ctx, `UPDATE emergency_access SET until_at = now() + interval '5 hours' WHERE id = $1`, late.ID); sqlState(err) != stateCheck {
		t.Errorf("prolonged: %v", err)
	}
	if _, err := program.Exec(ctx, `UPDATE emergency_access SET state = 'granted' WHERE id = $1`, e.ID); sqlState(err) != statePast {
		t.Errorf("revived: %v", err)
	}
}

// TestEmergencyLimitRace: of many requests at once as many are granted as the limit says, the others wait.
func TestEmergencyLimitRace(t *testing.T) {
	db, _ := open(t)
	s, limits := db.Auth(), auth.EmergencyLimits{}.WithDefaults()
	var mu sync.Mutex
	states := map[auth.EmergencyState]int{}
	var waiting *auth.EmergencyAccess
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			e := emergencyFor("chen", fmt.Sprintf("p-%d", i))
			if err := s.RequestEmergency(context.WithoutCancel(t.Context()), e, limits); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if states[e.State]++; e.State == auth.EmergencyRequested {
				waiting = e
			}
		})
	}
	wg.Wait()
	if states[auth.EmergencyGranted] != 3 || states[auth.EmergencyRequested] != 5 {
		t.Fatalf("%v", states)
	}
	ctx := t.Context()
	if err := s.DecideEmergency(ctx, waiting.ID, "CHEN", true, "", limits); !errors.Is(err, auth.ErrEmergencyPerson) {
		t.Errorf("by the same person: %v", err)
	}
	if err := s.DecideEmergency(ctx, waiting.ID, "diaz", true, "", limits); err != nil {
		t.Error(err)
	}
	about := map[string]compliance.AlertState{}
	list, err := db.Alerts().Alerts(ctx, compliance.AlertQuery{Limit: 50})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		about[string(a.Kind)+" "+a.About] = a.State
	}
	if of := "EmergencyAccess/" + waiting.ID; about["emergency-access-limit "+of] != compliance.AlertClosed || about["emergency-access "+of] != compliance.AlertNew || len(about) != 9 {
		t.Errorf("alerts: %v", about)
	}
	if err := s.DecideEmergency(ctx, waiting.ID, "diaz", false, "", limits); !errors.Is(err, auth.ErrEmergencyDecided) {
		t.Errorf("twice: %v", err)
	}
	if err := s.EndEmergency(ctx, waiting.ID, "chen", auth.EmergencyEnded); err != nil {
		t.Error(err)
	}
	if err := s.ReviewEmergency(ctx, waiting.ID, auth.EmergencyReview{By: "diaz", Outcome: auth.ReviewAppropriate}, "", limits); !errors.Is(err, auth.ErrEmergencyPerson) {
		t.Errorf("reviewed by who granted it: %v", err)
	}
	// Pages of the register.
	seen, q := 0, auth.EmergencyQuery{Subject: "chen", Limit: 3}
	for {
		list, err := s.EmergencyRegister(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		if seen += len(list); len(list) < q.Limit {
			break
		}
		q.Before = list[len(list)-1].ID
	}
	if seen != 8 {
		t.Errorf("%d lines in pages", seen)
	}
}

// TestAlerts: one that is raised again is the same one and new again, until it is closed.
func TestAlerts(t *testing.T) {
	db, _ := open(t)
	ctx, s := t.Context(), db.Alerts()
	raise := func(severity compliance.Severity) {
		t.Helper()
		if err := s.Raise(ctx, &compliance.Alert{Kind: compliance.AlertIssuerKeys, Severity: severity, About: "https://id.example.org"}); err != nil {
			t.Fatal(err)
		}
	}
	raise(compliance.Warning)
	list, err := s.Alerts(ctx, compliance.AlertQuery{Limit: 10})
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	id := list[0].ID
	if a, err := s.MoveAlert(ctx, id, "diaz", compliance.AlertSeen); err != nil || a.State != compliance.AlertSeen || a.SeenBy != "diaz" {
		t.Errorf("seen: %+v, %v", a, err)
	}
	raise(compliance.High)
	if list, err = s.Alerts(ctx, compliance.AlertQuery{State: compliance.AlertNew, Limit: 10}); err != nil || len(list) != 1 || list[0].Times != 2 || list[0].Severity != compliance.High || list[0].SeenBy != "" {
		t.Errorf("again: %+v, %v", list, err)
	}
	if n, err := s.OpenAlerts(ctx); err != nil || n[compliance.High] != 1 || len(n) != 1 {
		t.Errorf("open: %v, %v", n, err)
	}
	if a, err := s.MoveAlert(ctx, id, "diaz", compliance.AlertClosed); err != nil || a.ClosedBy != "diaz" {
		t.Errorf("closed: %+v, %v", a, err)
	}
	if _, err := s.MoveAlert(ctx, id, "diaz", compliance.AlertSeen); !errors.Is(err, compliance.ErrNoAlert) {
		t.Errorf("reopened: %v", err)
	}
	raise(compliance.Warning)
	if list, err = s.Alerts(ctx, compliance.AlertQuery{Limit: 10}); err != nil || len(list) != 2 || list[0].ID == id {
		t.Errorf("a new one: %+v, %v", list, err)
	}
	if list, err = s.Alerts(ctx, compliance.AlertQuery{Limit: 10, Before: list[0].ID}); err != nil || len(list) != 1 || list[0].ID != id {
		t.Errorf("the page after: %+v, %v", list, err)
	}
}
