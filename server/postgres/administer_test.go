package postgres

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// id is a random UUID.
func id() string { return audit.ID(random16()).String() }

// checked holds a document against views, and types of which one is not there.
func checked(d *auth.Document) error {
	return d.Check(func(v string) bool { _, _, ok := phi.ViewOf(v, "Patient"); return ok }, func(t string) bool { return t != "Practitoner" })
}

// proposed is a change of the policy that is in force.
func proposed(t *testing.T, s *Policies, by string, change func(*auth.Document)) *auth.Proposal {
	t.Helper()
	v, d, err := s.Version(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	change(&d)
	return &auth.Proposal{ID: id(), Base: v.Version, Document: d, Reason: "ticket 1", RequestedBy: by}
}

// role is a role of a document.
func role(d *auth.Document, name string) *auth.DocumentRole {
	return &d.Roles[slices.IndexFunc(d.Roles, func(r auth.DocumentRole) bool { return r.Name == name })]
}

// narrower takes deleting from clinicians; wider lets billing read observations.
func narrower(d *auth.Document) { role(d, "clinician").Permissions[0].Interactions = "crus" }
func wider(d *auth.Document) {
	r := role(d, "billing")
	r.Permissions = append(r.Permissions, auth.DocumentPermission{Type: "Observation", Interactions: "r", View: "billing", Relation: auth.RelationNone, Purposes: []string{"HPAYMT"}})
}

// refusedWith demands an error.
func refusedWith(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
}

// TestProposals: what narrows is applied at once, what widens by a second person; each becomes a version that says who and what; every
// instance hears of it.
func TestProposals(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s, ctx := db.Policies(checked), t.Context()
	access, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: db.Auth()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(access.Close)
	doctor := &auth.Principal{Subject: "d", Roles: []string{"clinician"}, Scopes: auth.ParseScopes("user/*.cruds")}
	clerk := &auth.Principal{Subject: "b", Roles: []string{"billing"}, Scopes: auth.ParseScopes("user/*.cruds")}
	may := func(p *auth.Principal, i auth.Interaction) bool {
		t.Helper()
		if err := access.Refresh(ctx); err != nil {
			t.Fatal(err)
		}
		return access.Type(p, i, "Observation", "").Allowed
	}
	first, original, err := s.Version(ctx, 0)
	if err != nil || first.Version == 0 || !strings.Contains(first.Summary, "database") {
		t.Fatalf("the seeded version: %+v, %v", first, err)
	}
	if !may(doctor, auth.Delete) || may(clerk, auth.Read) {
		t.Fatal("the seeded policy is another one")
	}

	woken := notices(t, db)
	less := proposed(t, s, "root", narrower)
	if err := s.Propose(ctx, less, true); err != nil || less.State != auth.StateApplied || !may(doctor, auth.Delete) {
		t.Fatalf("a dry run: %v, %s", err, less.State)
	}
	if err := s.Propose(ctx, less, false); err != nil || less.State != auth.StateApplied || less.Widens || may(doctor, auth.Delete) {
		t.Fatalf("%v, %s", err, less.State)
	}
	select {
	case <-woken:
	case <-time.After(5 * time.Second):
		t.Error("the other instances were not told")
	}
	v, d, err := s.Version(ctx, 0)
	if err != nil || v.Version != less.Version || v.By != "root" || v.ApprovedBy != "" || v.Summary != "ticket 1" || role(&d, "clinician").Permissions[0].Interactions != "crus" {
		t.Errorf("%+v, %v", v, err)
	}
	if e, err := db.Auth().Epochs(ctx); err != nil || e.Policy != v.Version {
		t.Errorf("the version is %d, the epoch %d, %v", v.Version, e.Policy, err)
	}
	again := proposed(t, s, "root", narrower)
	refusedWith(t, s.Propose(ctx, again, false), auth.ErrUnchanged)

	more := proposed(t, s, "root", wider)
	if err := s.Propose(ctx, more, false); err != nil || more.State != auth.StateRequested || !more.Widens || may(clerk, auth.Read) {
		t.Fatalf("%v, %s", err, more.State)
	}
	if version, _, _ := s.Version(ctx, 0); version.Version != v.Version {
		t.Error("what waits is a version already")
	}
	_, err = s.ApproveProposal(ctx, more.ID, " ROOT ")
	refusedWith(t, err, auth.ErrOnePerson)
	_, err = s.ApproveProposal(ctx, id(), "diaz")
	refusedWith(t, err, auth.ErrNoSuch)
	approved, err := s.ApproveProposal(ctx, more.ID, "diaz")
	if err != nil || approved.State != auth.StateApplied || approved.DecidedBy != "diaz" || !may(clerk, auth.Read) {
		t.Fatalf("%v, %s", err, approved.State)
	}
	if v, _, err = s.Version(ctx, 0); err != nil || v.Version != approved.Version || v.By != "root" || v.ApprovedBy != "diaz" {
		t.Errorf("%+v, %v", v, err)
	}
	_, err = s.ApproveProposal(ctx, more.ID, "diaz")
	refusedWith(t, err, auth.ErrDecided)
	refusedWith(t, s.WithdrawProposal(ctx, more.ID, "root"), auth.ErrDecided)

	// Whoever decided under a policy is explained under it.
	for epoch, want := range map[int64]auth.Document{first.Version: original, less.Version: d, approved.Version - 1: d} {
		p, err := db.Auth().PolicyAt(ctx, epoch)
		if err != nil || len(auth.Compare(want, auth.NewDocument(p))) != 0 {
			t.Errorf("at %d: %v, %v", epoch, err, auth.Compare(want, auth.NewDocument(p)))
		}
	}
	if _, err := db.Auth().PolicyAt(ctx, first.Version-1); !errors.Is(err, ErrNoVersion) && first.Version > 1 {
		if p, _ := db.Auth().PolicyAt(ctx, first.Version-1); p.Version >= first.Version {
			t.Errorf("before the first: %v", err)
		}
	}
	versions, err := s.Versions(ctx, 0, 2)
	if err != nil || len(versions) != 2 || versions[0].Version != approved.Version || versions[1].Version != less.Version {
		t.Errorf("%+v, %v", versions, err)
	}
	below, err := s.Versions(ctx, less.Version, 10)
	if err != nil || len(below) == 0 || below[0].Version != first.Version {
		t.Errorf("%+v, %v", below, err)
	}
	page, err := s.Proposals(ctx, "", 1)
	if err != nil || len(page) != 1 || page[0].ID != more.ID || len(page[0].Changes) == 0 {
		t.Fatalf("%+v, %v", page, err)
	}
	if rest, err := s.Proposals(ctx, more.ID, 10); err != nil || len(rest) != 1 || rest[0].ID != less.ID {
		t.Errorf("%+v, %v", rest, err)
	}

	// The history stands, also against a superuser who does not take the triggers away.
	admin := connect(t, name, "")
	for _, sql := range []string{
		`UPDATE policy_version SET changed_by = 'nobody'`, `DELETE FROM policy_version`, `TRUNCATE policy_version`,
		`UPDATE policy_proposal SET decided_by = 'somebody'`, `UPDATE policy_proposal SET state = 'requested', decided_by = NULL, decided_at = NULL, version = NULL`,
	} {
		if _, err := admin.Exec(ctx, sql); sqlState(err) != "CKP17" && sqlState(err) != "CKP18" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	// And a change by hand is a version too, that names the database's user.
	must(t, admin, `DELETE FROM permission WHERE role = 'billing' AND type = 'Observation'`)
	if v, _, err = s.Version(ctx, 0); err != nil || v.By != "database role "+admin.Config().User || v.Version <= approved.Version || may(clerk, auth.Read) {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestProposalsAreRefused covers what comes to nothing.
func TestProposalsAreRefused(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s, ctx := db.Policies(checked), t.Context()
	before, _, err := s.Version(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	fault := func(what string, change func(*auth.Document), pointer string) {
		t.Helper()
		var e *auth.DocumentError
		if err := s.Propose(ctx, proposed(t, s, "root", change), false); !errors.As(err, &e) || !strings.HasPrefix(e.Pointer, pointer) {
			t.Errorf("%s: %v", what, err)
		}
	}
	fault("an unknown type", func(d *auth.Document) { d.Roles[0].Permissions[1].Type = "Practitoner" }, "/roles/0/permissions/1/type")
	fault("an unknown view", func(d *auth.Document) { d.Roles[0].Permissions[1].View = "fool" }, "/roles/0/permissions/1/view")
	fault("nobody administers", func(d *auth.Document) { role(d, "admin").Capabilities = nil }, "/roles")
	fault("nobody approves", func(d *auth.Document) {
		role(d, "officer").Capabilities, role(d, "security").Capabilities = nil, nil
	}, "/roles")

	// Two see the same version; the second is told.
	one, two := proposed(t, s, "root", narrower), proposed(t, s, "toor", func(d *auth.Document) { role(d, "nurse").Permissions[0].Interactions = "rs" })
	waiting := proposed(t, s, "root", wider)
	if err := s.Propose(ctx, waiting, false); err != nil {
		t.Fatal(err)
	}
	results := make([]error, 2)
	var both sync.WaitGroup
	for i, p := range []*auth.Proposal{one, two} {
		both.Go(func() { results[i] = s.Propose(context.WithoutCancel(ctx), p, false) })
	}
	both.Wait()
	if (results[0] == nil) == (results[1] == nil) {
		t.Errorf("two at once: %v, %v", results[0], results[1])
	}
	for _, err := range results {
		if err != nil {
			refusedWith(t, err, auth.ErrPolicyChanged)
		}
	}
	_, err = s.ApproveProposal(ctx, waiting.ID, "diaz") // what he looked at is not what would come of it any more
	refusedWith(t, err, auth.ErrPolicyChanged)
	if err := s.WithdrawProposal(ctx, waiting.ID, "root"); err != nil {
		t.Fatal(err)
	}
	_, err = s.ApproveProposal(ctx, waiting.ID, "diaz")
	refusedWith(t, err, auth.ErrDecided)

	late := proposed(t, s, "root", wider)
	if err := s.Propose(ctx, late, false); err != nil {
		t.Fatal(err)
	}
	admin := connect(t, name, "")
	must(t, admin, `UPDATE policy_proposal SET expires_at = now() WHERE id = $1`, late.ID)
	if p, err := s.Proposal(ctx, late.ID); err != nil || p.State != auth.StateExpired {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = s.ApproveProposal(ctx, late.ID, "diaz")
	refusedWith(t, err, auth.ErrDecided)

	// The database itself refuses one person.
	for _, sql := range []string{
		`INSERT INTO policy_proposal (id, base, document, changes, widens, reason, state, requested_by, expires_at, decided_by, decided_at, version)
			VALUES (gen_random_uuid(), 1, '{}', '[]', true, 'x', 'applied', 'Root', now(), ' root', now(), 2)`,
		`INSERT INTO role_assignment (id, subject, role, from_at, reason, approval, state, requested_by, expires_at, decided_by, decided_at)
			VALUES (gen_random_uuid(), 's', 'admin', now(), 'x', true, 'approved', 'Root', now(), ' root', now())`,
		`INSERT INTO role_assignment (id, subject, role, from_at, reason, approval, state, requested_by, expires_at, decided_at)
			VALUES (gen_random_uuid(), 'Root', 'nurse', now(), 'x', false, 'approved', 'root', now(), now())`,
	} {
		if _, err := admin.Exec(ctx, sql); sqlState(err) != stateCheck {
			t.Errorf("%s: %v", sql, err)
		}
	}

	// A role that only keeps records cannot write the policy; the one that does cannot write its history.
	for _, c := range []struct{ role, sql string }{
		{"chartkeep_records", `UPDATE permission SET view = 'full'`}, {"chartkeep_records", `INSERT INTO role_assignment (subject) VALUES ('x')`},
		{"chartkeep_records", `DELETE FROM role_conflict`}, {"chartkeep_records", `SELECT FROM policy_proposal`},
		{"chartkeep_policy", `INSERT INTO policy_version (version) VALUES (1)`}, {"chartkeep_policy", `DELETE FROM role_assignment`},
		{"chartkeep_policy", `DELETE FROM policy_proposal`}, {"chartkeep_policy", `UPDATE role_assignment SET subject = 'x'`}, {"chartkeep_policy", `SELECT FROM record`},
	} {
		if _, err := connect(t, name, c.role).Exec(ctx, c.sql); sqlState(err) != "42501" {
			t.Errorf("%s as %s: %v", c.sql, c.role, err)
		}
	}
	if after, _, err := s.Version(ctx, 0); err != nil || after.Version <= before.Version {
		t.Errorf("%+v, %v", after, err)
	}
}

// given makes an assignment.
func given(subject, role, by string) *auth.AssignmentRecord {
	return &auth.AssignmentRecord{ID: id(), Assignment: auth.Assignment{Subject: subject, Role: role, From: time.Now().Add(-time.Second).UTC()}, Reason: "hired", RequestedBy: by}
}

// TestAssignments: roles are given within the rules, and end.
func TestAssignments(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s, ctx := db.Policies(checked), t.Context()
	access, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: db.Auth()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(access.Close)
	may := func(subject, capability string) bool {
		t.Helper()
		if err := access.Refresh(ctx); err != nil {
			t.Fatal(err)
		}
		return access.May(&auth.Principal{Subject: subject, AuthTime: time.Now()}, capability).Allowed
	}
	merges := given("lee", "registrar", "root")
	if err := s.Assign(ctx, merges); err != nil || merges.State != auth.StateApproved || merges.Approval || !may("lee", "patient:merge") || may("other", "patient:merge") {
		t.Fatalf("%v, %+v", err, merges)
	}
	refusedWith(t, s.Assign(ctx, given("lee", "registrar", "root")), auth.ErrHeld)
	refusedWith(t, s.Assign(ctx, given("Root", "nurse", " root")), auth.ErrOneself)
	refusedWith(t, s.Assign(ctx, given("lee", "backend", "root")), auth.ErrNotAssignable)
	refusedWith(t, s.Assign(ctx, given("lee", "nobody", "root")), auth.ErrNoSuch)
	var conflict *auth.ConflictError
	if err := s.Assign(ctx, given("lee", "admin", "root")); !errors.As(err, &conflict) || conflict.Held != "registrar" || conflict.Role != "admin" {
		t.Errorf("%v", err)
	}
	// Afterwards he may have it, and so may he before.
	after := given("lee", "registrar", "root")
	after.From = time.Now().Add(time.Hour)
	refusedWith(t, s.Assign(ctx, after), auth.ErrHeld)

	admin := given("new", "admin", "root")
	if err := s.Assign(ctx, admin); err != nil || admin.State != auth.StateRequested || may("new", "policy:write") {
		t.Fatalf("%v, %+v", err, admin)
	}
	if err := s.Assign(ctx, given("new", "nurse", "root")); !errors.As(err, &conflict) || conflict.Held != "admin" { // he waits for it
		t.Errorf("%v", err)
	}
	for by, want := range map[string]error{"ROOT": auth.ErrOnePerson, "New": auth.ErrOneself} {
		_, err := s.ApproveAssignment(ctx, admin.ID, by)
		refusedWith(t, err, want)
	}
	if a, err := s.ApproveAssignment(ctx, admin.ID, "diaz"); err != nil || a.State != auth.StateApproved || a.DecidedBy != "diaz" || !may("new", "policy:write") {
		t.Fatalf("%v, %+v", err, a)
	}
	_, err = s.ApproveAssignment(ctx, admin.ID, "diaz")
	refusedWith(t, err, auth.ErrDecided)

	// The last administrator stays, until there is another one.
	_, err = s.EndAssignment(ctx, admin.ID, "root", "left")
	refusedWith(t, err, auth.ErrLastAdmin)
	second := given("second", "admin", "root")
	if err := s.Assign(ctx, second); err != nil {
		t.Fatal(err)
	}
	_, err = s.EndAssignment(ctx, admin.ID, "root", "left") // it only waits
	refusedWith(t, err, auth.ErrLastAdmin)
	if _, err := s.ApproveAssignment(ctx, second.ID, "diaz"); err != nil {
		t.Fatal(err)
	}
	was := time.Now()
	if a, err := s.EndAssignment(ctx, admin.ID, "root", "left"); err != nil || a.State != auth.StateEnded || may("new", "policy:write") {
		t.Fatalf("%v, %+v", err, a)
	}
	_, err = s.EndAssignment(ctx, admin.ID, "root", "left")
	refusedWith(t, err, auth.ErrDecided)
	// Who held what, then and now.
	if list, err := db.Auth().AssignmentsAt(ctx, "new", was); err != nil || len(list) != 1 || list[0].Role != "admin" {
		t.Errorf("%+v, %v", list, err)
	}
	for _, at := range []time.Time{was.Add(-time.Hour), time.Now().Add(time.Minute)} {
		if list, err := db.Auth().AssignmentsAt(ctx, "new", at); err != nil || len(list) != 0 {
			t.Errorf("at %s: %+v, %v", at, list, err)
		}
	}

	// A role that somebody has cannot go; one that conflicts from now on is lost with the other.
	var document *auth.DocumentError
	if err := s.Propose(ctx, proposed(t, s, "root", func(d *auth.Document) {
		d.Roles = slices.DeleteFunc(d.Roles, func(r auth.DocumentRole) bool { return r.Name == "registrar" })
		d.Conflicts = slices.DeleteFunc(d.Conflicts, func(c auth.DocumentConflict) bool { return c.Role == "registrar" || c.Other == "registrar" })
	}), false); !errors.As(err, &document) || !strings.Contains(document.Text, "registrar") {
		t.Errorf("%v", err)
	}
	if err := s.Assign(ctx, given("lee", "billing", "root")); err != nil {
		t.Fatal(err)
	}
	apart := proposed(t, s, "root", func(d *auth.Document) {
		d.Conflicts = append(d.Conflicts, auth.DocumentConflict{Role: "billing", Other: "registrar", Reason: "four eyes"})
	})
	if err := s.Propose(ctx, apart, false); err != nil || apart.State != auth.StateApplied || !slices.ContainsFunc(apart.Changes, func(c auth.Change) bool { return strings.Contains(c.Text, "1 people") }) {
		t.Errorf("%v, %+v", err, apart.Changes)
	}
	if may("lee", "patient:merge") {
		t.Error("conflicting roles count")
	}

	// Termination ends everything, the last administrator's too, and what waits.
	ends := func(subject string) (int, error) {
		ended, err := db.Sessions().Terminate(ctx, auth.Termination{Subject: subject, By: "officer", Reason: "left"}, func([]string) ([]auth.Revocation, error) { return nil, nil })
		return ended.Assignments, err
	}
	waits := given("second", "security", "root")
	if err := s.Assign(ctx, waits); !errors.As(err, &conflict) {
		t.Errorf("%v", err)
	}
	if n, err := ends("second"); err != nil || n != 1 || may("second", "policy:write") {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := ends("second"); err != nil || n != 0 {
		t.Errorf("again: %d, %v", n, err)
	}
	waits = given("third", "security", "root")
	if err := s.Assign(ctx, waits); err != nil {
		t.Fatal(err)
	}
	if n, err := ends("third"); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	_, err = s.ApproveAssignment(ctx, waits.ID, "diaz")
	refusedWith(t, err, auth.ErrDecided)

	// Lists.
	for f, want := range map[auth.AssignmentFilter]int{
		{Limit: 100}: 5, {Subject: "lee", Limit: 100}: 2, {Role: "admin", Limit: 100}: 2, {State: auth.StateEnded, Limit: 100}: 2, {State: auth.StateWithdrawn, Limit: 100}: 1, {Limit: 2}: 2,
	} {
		list, err := s.Assignments(ctx, f)
		if err != nil || len(list) != want {
			t.Errorf("%+v: %d, %v", f, len(list), err)
		}
	}
	var all []string
	for after := ""; ; {
		page, err := s.Assignments(ctx, auth.AssignmentFilter{After: after, Limit: 2})
		if err != nil || len(page) == 0 {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		for _, a := range page {
			all = append(all, a.ID)
		}
		after = page[len(page)-1].ID
	}
	if len(all) != 5 || len(slices.Compact(slices.Sorted(slices.Values(all)))) != 5 {
		t.Errorf("pages: %v", all)
	}
	if a, err := s.Assignment(ctx, merges.ID); err != nil || a.Subject != "lee" || a.Reason != "hired" {
		t.Errorf("%+v, %v", a, err)
	}
	// A request that nobody approved in time stands in nobody's way.
	late := given("fourth", "officer", "root")
	if err := s.Assign(ctx, late); err != nil {
		t.Fatal(err)
	}
	must(t, connect(t, name, ""), `UPDATE role_assignment SET expires_at = now() WHERE id = $1`, late.ID)
	_, err = s.ApproveAssignment(ctx, late.ID, "diaz")
	refusedWith(t, err, auth.ErrDecided)
	if err := s.Assign(ctx, given("fourth", "nurse", "root")); err != nil {
		t.Error(err)
	}
}

// TestPolicyGoesRoundTheDatabase: a document that says everything a document can comes back as it went.
func TestPolicyGoesRoundTheDatabase(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Policies(checked), t.Context()
	p := proposed(t, s, "root", func(d *auth.Document) {
		slices.Reverse(d.Roles)
		d.Settings.EmergencyOverConsent = true
		r := role(d, "nurse")
		r.Permissions = append(r.Permissions,
			auth.DocumentPermission{Type: "Condition", Interactions: "rs", View: "deidentified", Relation: auth.RelationSelf, Purposes: []string{"PATRQT", "HRESCH"}, Segments: []string{"psychotherapy", "part2"}, ACR: []string{"b", "a"}, MaxAge: 900, Approval: true},
			auth.DocumentPermission{Type: "*", Interactions: "d", Effect: auth.Forbid, Purposes: []string{"TREAT"}, Segments: []string{"part2"}})
		r.Capabilities = append(r.Capabilities, auth.DocumentCapability{Name: "zoo:visit", ACR: []string{"x", "y"}, MaxAge: 60, Approval: true})
		r.Approval = true
	})
	if err := s.Propose(ctx, p, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ApproveProposal(ctx, p.ID, "diaz"); err != nil {
		t.Fatal(err)
	}
	stored, err := db.Auth().Policy(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, d, err := s.Version(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string]auth.Document{"the rows": auth.NewDocument(stored), "the version": d} {
		if changes := auth.Compare(p.Document, got); len(changes) != 0 {
			t.Errorf("%s: %+v", what, changes)
		}
		if a, b := role(&got, "nurse").Permissions, role(&p.Document, "nurse").Permissions; len(a) != len(b) || !reflect.DeepEqual(a[len(a)-2].Purposes, b[len(b)-2].Purposes) {
			t.Errorf("%s: %+v", what, a)
		}
	}
	if need, err := stored.Assignable("nurse", nil); err != nil || !need {
		t.Errorf("%v, %v", need, err)
	}
}

// TestPolicyIsHealed: what somebody broke by hand stays out of force, is in the history with his name, and a version from before it puts
// everything right again.
func TestPolicyIsHealed(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s, ctx := db.Policies(checked), t.Context()
	var alarms []auth.Alarm
	access, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: db.Auth(), Alarm: func(a auth.Alarm) { alarms = append(alarms, a) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(access.Close)
	good, document, err := s.Version(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	epoch := access.Stats().Policy
	must(t, connect(t, name, ""), `UPDATE permission SET type = 'observation' WHERE role = 'researcher' AND type = 'Observation'`)
	clerk := &auth.Principal{Subject: "k", Roles: []string{"researcher"}, Scopes: auth.ParseScopes("user/*.rs")}
	reads := func() bool { return access.Type(clerk, auth.Read, "Observation", "").Allowed }
	for range 2 {
		if err := access.Refresh(ctx); err == nil {
			t.Error("a policy that does not compile is in force")
		}
	}
	if !reads() || access.Stats().Policy != epoch || access.Healthy() == nil || len(alarms) != 1 || alarms[0].Refused == nil {
		t.Errorf("policy %d, %v, alarms %+v", access.Stats().Policy, access.Healthy(), alarms)
	}
	if _, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: db.Auth()}); err == nil {
		t.Error("a server begins with it")
	}
	broken, _, err := s.Version(ctx, 0)
	if err != nil || broken.Version <= good.Version || !strings.HasPrefix(broken.By, "database role ") {
		t.Errorf("%+v, %v", broken, err)
	}
	p := &auth.Proposal{ID: id(), Base: broken.Version, Document: document, Reason: "as it was", RequestedBy: "root"}
	if err := s.Propose(ctx, p, false); err != nil {
		t.Fatal(err)
	}
	if p.State == auth.StateRequested { // giving researchers back what they had widens
		if _, err := s.ApproveProposal(ctx, p.ID, "diaz"); err != nil {
			t.Fatal(err)
		}
	}
	if err := access.Refresh(ctx); err != nil || access.Healthy() != nil || !reads() || access.Stats().Policy <= epoch {
		t.Errorf("%v, %v, policy %d", err, access.Healthy(), access.Stats().Policy)
	}
}
