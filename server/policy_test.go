package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// TestSeededPolicyIsExpected holds the example cases against the policy that a deployment starts with.
func TestSeededPolicyIsExpected(t *testing.T) {
	b, err := os.ReadFile("testdata/policy/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases auth.Expectations
	if err := auth.ReadCommented(b, &cases); err != nil {
		t.Fatal(err)
	}
	outcomes, err := cases.Try(t.Context(), auth.NewDocument(phitest.Policy()))
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range outcomes {
		if !o.Met {
			t.Errorf("%s: %s", cases.Cases[i].Name, o.Got)
		}
	}
}

// TestPolicyVerb goes through the verb on a running demo.
func TestPolicyVerb(t *testing.T) {
	d := demoFresh(t, "--patients", "1")
	policy := func(args ...string) (string, string, int) {
		t.Helper()
		return d.verb(t, append(append([]string{"policy"}, args...), "--data", d.dir)...)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	seeded, errs, code := policy("show", "--json")
	if code != 0 {
		t.Fatal(errs)
	}
	same := write("same.json", "// as it is\n"+seeded)
	document, err := auth.ReadDocument([]byte(seeded))
	if err != nil {
		t.Fatal(err)
	}
	for i := range document.Roles {
		if r := &document.Roles[i]; r.Name == "billing" {
			r.Capabilities = append(r.Capabilities, auth.DocumentCapability{Name: "latency:read"})
		}
	}
	more, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	wider := write("wider.json", string(more)+"// ticket 1")
	narrower := write("narrower.json", strings.Replace(seeded, `"interactions": "cruds"`, `"interactions": "crus"`, 1))
	broken := write("broken.json", strings.Replace(seeded, `"view": "demographics"`, `"view": "democracy"`, 1))
	for _, c := range []struct {
		args []string
		code int
		says string // on one of the two outputs
	}{
		{[]string{"show"}, 0, "ROLE "},
		{[]string{"show", "--versions"}, 0, "VERSION"},
		{[]string{"show", "--at", "1000000"}, 1, "no such"},
		{[]string{"diff", same}, 0, "nothing would change"},
		{[]string{"diff", wider}, 0, "+ role billing: has latency:read"},
		{[]string{"diff", narrower}, 0, "− role clinician: may no longer delete"},
		{[]string{"diff", broken}, 1, "/roles/2/permissions/0/view: there is no such view"},
		{[]string{"test", "testdata/policy/cases.json"}, 0, "0 failed"},
		{[]string{"test", "testdata/policy/cases.json", "--policy", narrower}, 1, "FAIL and nobody else's: expected relationship-missing, got d role-missing"},
		{[]string{"test", write("none.json", `{"cases": []}`)}, 1, "/cases: there are none"},
		{[]string{"apply"}, 2, "name a file"},
		{[]string{"apply", wider}, 2, "--by"},
		{[]string{"apply", wider, "--by", "Sam Root"}, 2, "--reason"},
		{[]string{"apply", wider, "--by", "Sam Root", "--reason", "x", "--approve", "y"}, 2, "themselves"},
		{[]string{"apply", "--approve", "y", "--by", "Sam Root"}, 2, "not the id"},
		{[]string{"apply", "--approve", newID().String(), "--by", "Sam Root"}, 1, "no such"},
		{[]string{"apply", wider, "--dry-run"}, 0, "+ role billing: has latency:read"},
		{[]string{"apply", same, "--by", "Sam Root", "--reason", "x"}, 1, "nothing would change"},
		{[]string{"assign", "s-1"}, 2, "name a subject and a role"},
		{[]string{"assign", "s-1", "nurse", "--reason", "x"}, 2, "--by"},
		{[]string{"assign", "s-1\u200b", "nurse", "--reason", "x", "--by", "Sam Root"}, 2, "subject of tokens"},
		{[]string{"assign", "s-1", "backend", "--reason", "x", "--by", "Sam Root"}, 1, "workforce"},
		{[]string{"assign", "Sam Root", "nurse", "--reason", "x", "--by", "sam root"}, 1, "himself"},
	} {
		out, errs, code := policy(c.args...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("%q: exit code %d, %s%s; want %d and %q", c.args, code, out, errs, c.code, c.says)
		}
	}

	// What narrows holds at once.
	if out, errs, code := policy("apply", narrower, "--by", "Sam Root", "--reason", "ticket 2"); code != 0 || !strings.Contains(out, "applied: version") || !strings.Contains(errs, "− role clinician") {
		t.Fatalf("%d, %s, %s", code, out, errs)
	}
	// The file was made from the version before: as a whole it lets clinicians delete again, and says so.
	id, errs, code := policy("apply", wider, "--by", "Sam Root", "--reason", "ticket 3")
	if id = strings.TrimSpace(id); code != 0 || !strings.Contains(errs, "--approve "+id) || !strings.Contains(errs, "+ role clinician: may now delete") {
		t.Fatalf("%d, %s, %s", code, id, errs)
	}
	if _, errs, code := policy("apply", "--approve", id, "--by", " sam ROOT"); code != 1 || !strings.Contains(errs, "another person") {
		t.Errorf("%d, %s", code, errs)
	}
	billing := d.token(t, "billing-novak")
	if a := d.do(t, "GET", "/v1/latency", billing, ""); a.StatusCode != http.StatusForbidden {
		t.Errorf("before: %s", a.Status)
	}
	if out, errs, code := policy("apply", "--approve", id, "--by", "Carmen Díaz"); code != 0 || !strings.Contains(out, "applied") {
		t.Fatalf("%d, %s, %s", code, out, errs)
	}
	within(t, time.Second, "the running server follows", func() bool {
		return d.do(t, "GET", "/v1/latency", billing, "").StatusCode == http.StatusOK
	})
	if out, _, code := policy("show", "--proposals"); code != 0 || !strings.Contains(out, "applied by Carmen Díaz") || !strings.Contains(out, "ticket 3") {
		t.Errorf("%d, %s", code, out)
	}
	if out, _, code := policy("show", "--versions"); code != 0 || !strings.Contains(out, "Carmen Díaz") {
		t.Errorf("%d, %s", code, out)
	}

	// Roles.
	out, errs, code := policy("assign", "s-2", "officer", "--reason", "hired", "--by", "Sam Root")
	id, state, _ := strings.Cut(strings.TrimSpace(out), " ")
	if code != 0 || state != "requested" || !strings.Contains(errs, "--approve "+id) {
		t.Fatalf("%d, %s, %s", code, out, errs)
	}
	if out, errs, code := policy("assign", "--approve", id, "--by", "Carmen Díaz"); code != 0 || !strings.Contains(out, "approved") {
		t.Errorf("%d, %s, %s", code, out, errs)
	}
	if _, errs, code := policy("assign", "s-2", "clinician", "--reason", "x", "--by", "Sam Root"); code != 1 || !strings.Contains(errs, "conflicts with officer") {
		t.Errorf("%d, %s", code, errs)
	}
	if out, _, code := policy("assign", "--list"); code != 0 || !strings.Contains(out, "s-2") || !strings.Contains(out, "Sam Root, Carmen Díaz") {
		t.Errorf("%d, %s", code, out)
	}
	if out, errs, code := policy("assign", "--end", id, "--reason", "left", "--by", "Sam Root"); code != 0 || !strings.Contains(out, "ended") {
		t.Errorf("%d, %s, %s", code, out, errs)
	}

	// Somebody breaks the policy by hand: the server goes on under the one before, no verb that needs the policy starts, and this one puts it
	// right again.
	healthy, errs, code := policy("show", "--json")
	if code != 0 {
		t.Fatal(errs)
	}
	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	if _, err := admin.Exec(t.Context(), `UPDATE permission SET type = 'patient' WHERE role = 'billing' AND type = 'Patient'`); err != nil {
		t.Fatal(err)
	}
	ready := func() bool { return d.do(t, "GET", "/readyz", "", "").StatusCode == http.StatusOK }
	within(t, 3*time.Second, "not ready", func() bool { return !ready() })
	if a := d.do(t, "GET", "/fhir/R4/Patient", billing, ""); a.StatusCode != http.StatusOK {
		t.Errorf("under the policy before: %s", a.Status)
	}
	if _, errs, code := d.verb(t, "keys", "list", "--data", d.dir); code == 0 {
		t.Errorf("a verb that needs the policy began: %s", errs)
	}
	id, errs, code = policy("apply", write("healthy.json", healthy), "--by", "Sam Root", "--reason", "as it was")
	if code != 0 {
		t.Fatalf("%d, %s", code, errs)
	}
	if _, errs, code := policy("apply", "--approve", strings.TrimSpace(id), "--by", "Carmen Díaz"); code != 0 {
		t.Fatalf("%d, %s", code, errs)
	}
	within(t, 3*time.Second, "ready", ready)

	// Every step is in the trail, by name, with its outcome.
	officer := d.token(t, "officer-diaz")
	for interaction, want := range map[string]int{"policy-propose": 8, "policy-approve": 8, "assignment-create": 8, "assignment-approve": 2, "assignment-end": 2} {
		var found struct{ Events []struct{ ID string } }
		a := d.do(t, "GET", "/v1/audit/events?interaction="+interaction, officer, "")
		if err := json.Unmarshal(a.body, &found); err != nil || len(found.Events) != want {
			t.Errorf("%s: %d events, want %d: %s", interaction, len(found.Events), want, a.body)
			continue
		}
		if a := d.do(t, "GET", "/fhir/R4/AuditEvent/"+found.Events[0].ID, officer, ""); a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), interaction) {
			t.Errorf("%s: %s %s", interaction, a.Status, a.body)
		}
	}
}

// within waits for something that must come true.
func within(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// TestPolicyTour is what an administrator and an officer do in the demo, by the API: propose, approve, and see it bite on the next request
// here and within a second on another instance, whose decisions were warm.
func TestPolicyTour(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	s, err := demoSettings(d.dir, d.DatabaseURL, audit.Power)
	if err != nil {
		t.Fatal(err)
	}
	s.journal, s.keys = t.TempDir(), nil // the demo sequences
	other, err := openRooms(t.Context(), s, newLog(os.Stderr).Logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.close(t.Context()) })
	elsewhere := &auth.Principal{Subject: "b", Roles: []string{"billing"}, Scopes: auth.ParseScopes("user/*.rs"), AuthTime: time.Now()}
	there := func() bool { return other.access.Type(elsewhere, auth.Search, "Appointment", "").Allowed }

	root, diaz, novak := d.token(t, "admin-root"), d.token(t, "officer-diaz"), d.token(t, "billing-novak")
	here := func() int { return d.do(t, "GET", "/fhir/R4/Appointment", novak, "").StatusCode }
	if here() != http.StatusForbidden || there() {
		t.Fatal("billing sees appointments already")
	}
	a := d.do(t, "GET", "/v1/roles/billing", root, "")
	var role map[string]any
	if err := json.Unmarshal(a.body, &role); err != nil || a.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", a.Status, a.body)
	}
	delete(role, "assigned")
	permissions, _ := role["permissions"].([]any)
	role["permissions"] = append(permissions, map[string]any{"type": "Appointment", "interactions": "rs", "view": "billing", "relation": "none", "purposes": []string{"HPAYMT"}})
	body, err := json.Marshal(map[string]any{"role": role, "reason": "ticket 7"})
	if err != nil {
		t.Fatal(err)
	}
	put := func() answered {
		t.Helper()
		return d.do(t, "PUT", "/v1/roles/billing", root, string(body), "Content-Type: application/json", "If-Match: "+a.Header.Get("ETag"))
	}
	waits := put()
	if waits.StatusCode != http.StatusAccepted || here() != http.StatusForbidden || there() {
		t.Fatalf("%s %s", waits.Status, waits.body)
	}
	approval := waits.Header.Get("Location") + "/approval"
	if a := d.do(t, "POST", approval, root, ""); a.StatusCode != http.StatusForbidden {
		t.Errorf("the one who asked: %s", a.Status)
	}
	if a := d.do(t, "POST", approval, diaz, ""); a.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", a.Status, a.body)
	}
	if got := here(); got != http.StatusOK {
		t.Errorf("the next request: %d", got)
	}
	within(t, time.Second, "on another instance", there)
	if again := put(); again.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("on a version that is past: %s %s", again.Status, again.body)
	}

	// A role is assigned and ended: the demo's issuer names roles, and what is assigned comes beside them.
	assign := func(subject, role string) (answered, string) {
		t.Helper()
		a := d.do(t, "POST", "/v1/assignments", root, fmt.Sprintf(`{"subject": %q, "role": %q, "reason": "ticket 8"}`, subject, role), "Content-Type: application/json")
		var made struct{ ID string }
		_ = json.Unmarshal(a.body, &made)
		return a, made.ID
	}
	reads := func() int { return d.do(t, "GET", "/v1/audit/events?limit=1", novak, "").StatusCode }
	a, id := assign("billing-novak", "security")
	if a.StatusCode != http.StatusAccepted || reads() != http.StatusForbidden {
		t.Fatalf("%s %s", a.Status, a.body)
	}
	if a := d.do(t, "POST", "/v1/assignments/"+id+"/approval", diaz, ""); a.StatusCode != http.StatusOK || reads() != http.StatusOK {
		t.Errorf("%s %s", a.Status, a.body)
	}
	if a := d.do(t, "POST", "/v1/assignments/"+id+"/end", root, `{"reason": "over"}`, "Content-Type: application/json"); a.StatusCode != http.StatusOK || reads() != http.StatusForbidden {
		t.Errorf("%s %s", a.Status, a.body)
	}
	// The token's role and an assigned one conflict: both are lost, and somebody hears of it.
	if a, _ := assign("dr-chen", "assessor"); a.StatusCode != http.StatusCreated {
		t.Errorf("%s %s", a.Status, a.body)
	}
	if a := d.do(t, "GET", "/fhir/R4/Practitioner", d.token(t, "dr-chen"), ""); a.StatusCode != http.StatusForbidden {
		t.Errorf("a clinician who is an assessor: %s", a.Status)
	}
	within(t, 5*time.Second, "an alert", func() bool {
		return strings.Contains(string(d.do(t, "GET", "/v1/alerts", diaz, "").body), "conflicting-roles")
	})
	if a := d.do(t, "POST", "/v1/assignments", root, `{"subject": "admin-root", "role": "nurse", "reason": "x"}`, "Content-Type: application/json"); a.StatusCode != http.StatusConflict {
		t.Errorf("for oneself: %s %s", a.Status, a.body)
	}
}
