package auth

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestConsequences: what a change does to those who hold roles is said before it is done, and none locks the administrators out.
func TestConsequences(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	was := administered(smallDocument())
	before := was.Policy()
	before.Assignments = []Assignment{
		{Subject: "root", Role: "admin"}, {Subject: "both", Role: "nurse"}, {Subject: "both", Role: "billing"},
		{Subject: "gone", Role: "administrator", Until: now},
	}
	for name, c := range map[string]struct {
		change func(*Document)
		fault  string // or
		says   string
	}{
		"a role that somebody has goes":   {func(d *Document) { d.Roles = slices.Delete(d.Roles, 1, 2) }, "role billing is assigned 1 times", ""},
		"one that nobody has any more":    {func(d *Document) { d.Roles[3].Name = "other" }, "", "role administrator is gone"},
		"the only administrator loses it": {func(d *Document) { d.Roles[2].Capabilities = nil }, "locks everybody out", ""},
		"or by a conflict": {func(d *Document) {
			d.Roles[2].Capabilities = nil
			d.Roles[0].Capabilities = []DocumentCapability{{Name: CapabilityAssignmentWrite}}
			d.Conflicts = append(d.Conflicts, DocumentConflict{"nurse", "billing", "x"})
		}, "locks everybody out", ""},
		"another one is left": {func(d *Document) {
			d.Roles[2].Capabilities = nil
			d.Roles[0].Capabilities = []DocumentCapability{{Name: CapabilityAssignmentWrite}}
		}, "", "role admin: no longer has policy:write"},
		"a conflict that somebody is in": {func(d *Document) {
			d.Conflicts = append(d.Conflicts, DocumentConflict{"nurse", "billing", "x"})
		}, "", "1 people are assigned both nurse and billing"},
	} {
		is := administered(smallDocument())
		c.change(&is)
		changes, err := Consequences(before, is, now)
		var e *DocumentError
		switch {
		case c.fault != "":
			if !errors.As(err, &e) || !strings.Contains(e.Text, c.fault) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || !slices.ContainsFunc(changes, func(x Change) bool { return strings.Contains(x.Text, c.says) }):
			t.Errorf("%s: %v, %+v", name, err, changes)
		}
	}
	// Where nobody is assigned to administer (tokens say it), a change is not held up for that.
	before.Assignments = nil
	is := administered(smallDocument())
	is.Roles[2].Capabilities = nil
	if _, err := Consequences(before, is, now); err != nil {
		t.Error(err)
	}
}

// TestPolicyIsSwappedWhole: while policies come and go, every decision is one of a whole policy, and of its version.
func TestPolicyIsSwappedWhole(t *testing.T) {
	f := newFacts()
	a := newTestAccess(t, f)
	people := []*Principal{
		person("registrar billing", "user/*.cruds", "", ""), person("billing", "user/*.cruds", "", ""), {Subject: "assigned", Scopes: ParseScopes("user/*.cruds")},
	}
	base := seed()
	at := slices.IndexFunc(base.Permissions, func(x Permission) bool { return x.Role == "billing" && x.Type == "Patient" })
	install := func(version int64) {
		t.Helper()
		p := seed()
		p.Version = version
		p.Assignments = []Assignment{{Subject: "assigned", Role: "billing"}}
		if version%2 == 1 {
			p.Permissions = slices.Delete(p.Permissions, at, at+1)
		}
		f.change(func() { f.policy = p })
		if err := a.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
	}
	install(2)
	var deciding sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for range 4 {
		deciding.Go(func() {
			for ctx.Err() == nil {
				for _, p := range people {
					// Even versions let those who are billing read patients, odd ones do not.
					if d := a.Type(p, Read, "Patient", "HPAYMT"); d.Allowed != (d.Policy%2 == 0) {
						t.Errorf("%q under policy %d: %+v", p.Roles, d.Policy, d)
						return
					}
				}
			}
		})
	}
	for version := int64(3); version < 40; version++ {
		install(version)
	}
	stop()
	deciding.Wait()
}
