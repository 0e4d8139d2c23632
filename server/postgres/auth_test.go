package postgres

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

func TestSeededPolicy(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	got, err := db.Auth().Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := phitest.Policy()
	want.Version = got.Version                      // counts changes, those of migrations among them; held against Epochs below
	for _, p := range []*auth.Policy{&got, &want} { // of permissions only the order within a role counts here, of the others none
		slices.SortStableFunc(p.Permissions, func(a, b auth.Permission) int { return strings.Compare(a.Role, b.Role) })
		slices.SortFunc(p.Capabilities, func(a, b auth.Capability) int { return strings.Compare(a.Role+" "+a.Name, b.Role+" "+b.Name) })
		slices.SortFunc(p.Conflicts, func(a, b auth.Conflict) int { return strings.Compare(a.Role+" "+a.Other, b.Role+" "+b.Other) })
	}
	if !reflect.DeepEqual(emptied(got), emptied(want)) {
		t.Error("the migrations and phitest.Policy do not seed the same:")
		for _, c := range auth.Compare(auth.NewDocument(want), auth.NewDocument(got)) {
			t.Error(c.Sign(), c.Text)
		}
	}
	if v, err := policyVersion(t, db); err != nil || v != got.Version {
		t.Errorf("Epochs: %d, %v; Policy says %d", v, err, got.Version)
	}
}

// policyVersion is the epoch of the policy.
func policyVersion(t *testing.T, db *DB) (int64, error) {
	t.Helper()
	e, err := db.Auth().Epochs(t.Context())
	return e.Policy, err
}

// emptied makes no difference between a list that is empty and one that is not there.
func emptied(p auth.Policy) auth.Policy {
	none := func(list *[]string) {
		if len(*list) == 0 {
			*list = nil
		}
	}
	if len(p.Assignments) == 0 {
		p.Assignments = nil
	}
	for i := range p.Permissions {
		none(&p.Permissions[i].Segments)
		none(&p.Permissions[i].Purposes)
		none(&p.Permissions[i].StepUp.ACR)
	}
	for i := range p.Capabilities {
		none(&p.Capabilities[i].StepUp.ACR)
	}
	return p
}

// notices counts notifications of a DB.
func notices(t *testing.T, db *DB) <-chan struct{} {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	woken := make(chan struct{}, 64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := db.Listen(ctx, func() { woken <- struct{}{} }); err != nil {
			t.Errorf("Listen: %v", err)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	expect(t, woken, 1) // the connect
	return woken
}

// expect demands n notifications, and no more of them.
func expect(t *testing.T, woken <-chan struct{}, n int) {
	t.Helper()
	for i := range n {
		select {
		case <-woken:
		case <-time.After(5 * time.Second):
			t.Fatalf("%d notifications came, want %d", i, n)
		}
	}
	select {
	case <-woken:
		t.Fatalf("more than %d notifications came", n)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestPolicyChangeIsNoticed(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	woken := notices(t, db)
	before, err := policyVersion(t, db)
	if err != nil {
		t.Fatal(err)
	}
	must(t, connect(t, name, ""), `DELETE FROM permission WHERE role = 'nurse'`)
	expect(t, woken, 1)
	after, err := policyVersion(t, db)
	if err != nil || after <= before {
		t.Errorf("version %d after %d (%v)", after, before, err)
	}
}

func TestRelationships(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	woken := notices(t, db)
	ctx, a, s := t.Context(), db.Auth(), db.Records()
	visit := phi.Ref{Type: "Encounter", ID: "e-1"}
	commit := func(version int64, method string, treats ...phi.Treatment) func() error {
		return func() error {
			w := write(visit, version, "p-1")
			w.Method, w.Treats = method, treats
			return s.Commit(ctx, []phi.Write{w}, nil)
		}
	}
	grant := func() error {
		return a.Grant(ctx, auth.Relationship{Practitioner: "rivera", Patient: "p-1", Reason: "ticket-1", By: "admin-root"})
	}
	ungrant := func() error { return a.Ungrant(ctx, "rivera", "p-1", "admin-root") }
	for _, step := range []struct {
		name    string
		do      func() error
		changed bool
		source  string // of rivera and p-1 afterwards
	}{
		{"a record without relationships", func() error {
			return s.Commit(ctx, []phi.Write{write(phi.Ref{Type: "Observation", ID: "o"}, 1, "p-1")}, nil)
		}, false, ""},
		{"an encounter", commit(1, "PUT", phi.Treatment{Practitioner: "rivera", Patient: "p-1"}), true, "Encounter"},
		{"a new version that states the same", commit(2, "PUT", phi.Treatment{Practitioner: "rivera", Patient: "p-1"}), false, "Encounter"},
		{"another practitioner joins", commit(3, "PUT", phi.Treatment{Practitioner: "rivera", Patient: "p-1"},
			phi.Treatment{Practitioner: "okafor", Patient: "p-1"}), true, "Encounter"},
		{"a grant", grant, true, "Encounter"},
		{"the same grant", grant, false, "Encounter"},
		{"the encounter is deleted", commit(4, "DELETE"), true, "grant"},
		{"it is deleted again", commit(5, "DELETE"), false, "grant"},
		{"the grant ends", ungrant, true, ""},
		{"nothing ends", ungrant, false, ""},
		{"a commit that fails", func() error {
			if err := commit(1, "PUT", phi.Treatment{Practitioner: "rivera", Patient: "p-1"})(); err == nil {
				t.Error("it did not fail")
			}
			return nil
		}, false, ""},
	} {
		before, err := a.Epochs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if step.changed {
			expect(t, woken, 1)
		} else {
			expect(t, woken, 0)
		}
		after, err := a.Epochs(ctx)
		if err != nil || (after != before) != step.changed || after.Consent != before.Consent {
			t.Errorf("%s: epochs went from %v to %v (%v)", step.name, before, after, err)
		}
		facts, err := a.Facts(ctx, auth.Actor{Practitioner: "rivera"}, []string{"p-0", "p-1"})
		if err != nil || len(facts) != 2 || facts[0].Related != "" || facts[1].Related != step.source {
			t.Errorf("%s: %+v, %v; want %q", step.name, facts, err, step.source)
		}
	}
	if facts, err := a.Facts(ctx, auth.Actor{Practitioner: "chen"}, []string{"p-1"}); err != nil || facts[0].Related != "" {
		t.Errorf("a stranger is related: %+v, %v", facts, err)
	}
	if err := a.Grant(ctx, auth.Relationship{Practitioner: "chen", Patient: "p-1"}); err == nil {
		t.Error("a grant by nobody was taken")
	}
}

// TestEpochsUnderConcurrency would deadlock if shards were locked in the order of the practitioners.
func TestEpochsUnderConcurrency(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	ctx := t.Context()
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	done := make(chan error)
	for n := range 8 {
		go func() {
			for i := range 10 {
				w := write(phi.Ref{Type: "CareTeam", ID: names[n] + "-" + names[i%8] + string(rune('0'+i))}, 1, "p")
				for j := range names {
					w.Treats = append(w.Treats, phi.Treatment{Practitioner: names[(n+j)%8], Patient: "p"})
				}
				if err := db.Records().Commit(ctx, []phi.Write{w}, nil); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
