package auth

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// smallDocument is a policy to change.
func smallDocument() Document {
	return Document{
		Roles: []DocumentRole{
			{Name: "nurse", Description: "nurses", Workforce: true, Permissions: []DocumentPermission{
				{Type: "*", Interactions: "crus", View: "full", Relation: RelationTreatment, Purposes: []string{"TREAT"}},
				{Type: "Organization", Interactions: "rs", View: "full", Relation: RelationNone, Purposes: []string{"TREAT"}},
				{Type: "Observation", Interactions: "d", Effect: Forbid},
			}},
			{Name: "billing", Workforce: true, Permissions: []DocumentPermission{
				{Type: "Patient", Interactions: "rs", View: "demographics", Relation: RelationNone, Purposes: []string{"HPAYMT"}},
				{Type: "Patient", Interactions: "r", View: "billing", Relation: RelationNone, Purposes: []string{"HPAYMT"}, ACR: []string{"mfa"}},
			}},
			{Name: "admin", Workforce: true, Approval: true, Capabilities: []DocumentCapability{
				{Name: "policy:write", ACR: []string{"mfa"}, MaxAge: 900}, {Name: "assignment:write"},
			}},
		},
		Conflicts: []DocumentConflict{{"admin", "nurse", "apart"}},
	}
}

// TestCompare says of each change whether it widens, and in which words.
func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Document)
		says   []string // the changes, each with its sign
	}{
		"nothing": {func(*Document) {}, nil},
		"a letter more": {func(d *Document) { d.Roles[0].Permissions[0].Interactions = "cruds" }, []string{
			"+ role nurse: may now delete every type without a rule of its own for TREAT, in view full, of patients in treatment",
			"+ role nurse: may now delete Observation for TREAT, in view full, of patients in treatment", // until the forbid goes, it may not
		}},
		"a letter less": {func(d *Document) { d.Roles[0].Permissions[1].Interactions = "r" }, []string{
			"− role nurse: may no longer search Organization for TREAT, in view full, of everybody",
		}},
		"everybody instead of patients in treatment": {func(d *Document) { d.Roles[0].Permissions[0].Relation = RelationNone }, []string{
			"+ role nurse: may now create, read, update and search every type without a rule of its own for TREAT, in view full, of everybody",
			"+ role nurse: may now create, read, update and search Observation for TREAT, in view full, of everybody",
		}},
		"and back": {func(d *Document) { d.Roles[0].Permissions[1].Relation = RelationTreatment }, []string{
			"− role nurse: may no longer read and search Organization for TREAT, in view full, of everybody",
		}},
		"a purpose more": {func(d *Document) { d.Roles[1].Permissions[0].Purposes = []string{"HPAYMT", "HOPERAT"} }, []string{
			"+ role billing: may now read and search Patient for HOPERAT, in view demographics, of everybody",
		}},
		"a wider view": {func(d *Document) { d.Roles[1].Permissions[0].View = "full" }, []string{
			"+ role billing: may now read and search Patient for HPAYMT, in view full, of everybody",
		}},
		"a segment": {func(d *Document) { d.Roles[0].Permissions[1].Segments = []string{"part2"} }, []string{
			"+ role nurse: may now read and search Organization for TREAT, in view full, of everybody, with segments part2",
		}},
		"a weaker sign-in": {func(d *Document) { d.Roles[2].Capabilities[0].MaxAge = 1800 }, []string{
			"+ role admin: policy:write takes another sign-in than before, signed in with mfa, signed in within 30m0s",
		}},
		"a stronger sign-in": {func(d *Document) { d.Roles[2].Capabilities[1].ACR = []string{"mfa"} }, []string{
			"− role admin: assignment:write takes another sign-in than before, signed in with mfa",
		}},
		// Reading was demographics without mfa; now it takes mfa and shows more, which the narrow rule went before.
		"what went before is gone": {func(d *Document) { d.Roles[1].Permissions = d.Roles[1].Permissions[1:] }, []string{
			"+ role billing: may now read Patient for HPAYMT, in view billing, of everybody, signed in with mfa",
			"− role billing: may no longer read and search Patient for HPAYMT, in view demographics, of everybody",
		}},
		"another order": {func(d *Document) { slices.Reverse(d.Roles[1].Permissions) }, []string{
			"+ role billing: may now read Patient for HPAYMT, in view billing, of everybody, signed in with mfa",
		}},
		"no forbid": {func(d *Document) { d.Roles[0].Permissions = d.Roles[0].Permissions[:2] }, []string{
			"+ role nurse: is no longer kept from delete Observation",
		}},
		"a narrower forbid": {func(d *Document) { d.Roles[0].Permissions[2].Purposes = []string{"TREAT"} }, []string{
			"+ role nurse: is no longer kept from delete Observation", // for other purposes
		}},
		// Without rules of its own a type falls back on those for every type.
		"a type's own rule goes": {func(d *Document) { d.Roles[0].Permissions = slices.Delete(d.Roles[0].Permissions, 1, 2) }, []string{
			"+ role nurse: may now create and update Organization for TREAT, in view full, of patients in treatment",
			"− role nurse: may no longer read and search Organization for TREAT, in view full, of everybody",
		}},
		"a capability": {func(d *Document) {
			d.Roles[0].Capabilities = []DocumentCapability{{Name: "audit:read"}}
			d.Roles[2].Capabilities = d.Roles[2].Capabilities[:1]
		}, []string{"+ role nurse: has audit:read", "− role admin: no longer has assignment:write"}},
		"a role goes": {func(d *Document) { d.Roles = slices.Delete(d.Roles, 1, 2) }, []string{
			"− role billing is gone",
			"− role billing: may no longer read and search Patient for HPAYMT, in view demographics, of everybody",
			"− role billing: may no longer read Patient for HPAYMT, in view billing, of everybody, signed in with mfa",
		}},
		"a role comes":         {func(d *Document) { d.Roles = append(d.Roles, DocumentRole{Name: "new"}) }, []string{"= role new is new"}},
		"one person is enough": {func(d *Document) { d.Roles[2].Approval = false }, []string{"+ role admin: to assign it no longer takes a second person"}},
		"two are needed":       {func(d *Document) { d.Roles[0].Approval = true }, []string{"− role nurse: to assign it takes a second person"}},
		"not assignable":       {func(d *Document) { d.Roles[1].Workforce = false }, []string{"− role billing: can no longer be assigned"}},
		"no conflict":          {func(d *Document) { d.Conflicts = nil }, []string{"+ roles admin and nurse no longer conflict"}},
		"a conflict":           {func(d *Document) { d.Conflicts = append(d.Conflicts, DocumentConflict{"billing", "nurse", "x"}) }, []string{"− roles billing and nurse conflict: x"}},
		"the same conflict":    {func(d *Document) { d.Conflicts[0].Role, d.Conflicts[0].Other = "nurse", "admin" }, []string{"= it is written or ordered differently"}},
		"words":                {func(d *Document) { d.Roles[0].Description = "cares" }, []string{"= role nurse: is described differently"}},
		"the setting":          {func(d *Document) { d.Settings.EmergencyOverConsent = true }, []string{"+ emergency access where a consent denies: always"}},
	} {
		is := smallDocument()
		c.change(&is)
		var says []string
		for _, x := range Compare(smallDocument(), is) {
			says = append(says, x.Sign()+" "+x.Text)
		}
		if !slices.Equal(says, c.says) {
			t.Errorf("%s:\n\t%s\nwant\n\t%s", name, strings.Join(says, "\n\t"), strings.Join(c.says, "\n\t"))
		}
	}
}

// TestWhatDoesNotWidenLetsNobodyDoMore is what second persons rely on, over random policies and callers: a change that Compare lets pass
// without one allows nothing that was not allowed, in no view that shows more.
func TestWhatDoesNotWidenLetsNobodyDoMore(t *testing.T) {
	passed := 0
	rapid.Check(t, func(t *rapid.T) {
		was := drawDocument(t, "before")
		is := drawChange(t, was)
		if Widens(Compare(was, is)) {
			return
		}
		passed++
		before, after := one(t, was), one(t, is)
		defer before.Close()
		defer after.Close()
		now := time.Now()
		for range 25 {
			who := &Principal{
				Subject: "s", Scopes: ParseScopes("user/*.cruds"), FHIRUser: "Practitioner/x", Patient: rapid.SampledFrom([]string{"pat-1", "pat-2"}).Draw(t, "patient"),
				Roles: rapid.SliceOfNDistinct(rapid.SampledFrom(someRoles), 1, 3, rapid.ID[string]).Draw(t, "held"),
				ACR:   rapid.SampledFrom([]string{"mfa", "pwd"}).Draw(t, "acr"), AuthTime: now.Add(-time.Duration(rapid.SampledFrom([]int{10, 1000}).Draw(t, "age")) * time.Second),
			}
			r := Request{
				Interaction: Interaction(rapid.SampledFrom([]byte(letters)).Draw(t, "letter")),
				Type:        rapid.SampledFrom([]string{"Patient", "Observation", "Condition", "Encounter"}).Draw(t, "on"), Patients: []string{"pat-1"},
				Purpose: rapid.SampledFrom(somePurposes).Draw(t, "for"), Segment: Segment(rapid.IntRange(0, 2).Draw(t, "segment")),
			}
			could, can := before.Check(context.Background(), who, r), after.Check(context.Background(), who, r)
			more := can.Allowed && (!could.Allowed || len(who.Roles) == 1 && !viewShows(could.View, can.View))
			for _, name := range []string{"policy:write", "audit:read"} {
				more = more || after.May(who, name).Allowed && !before.May(who, name).Allowed
			}
			if more {
				t.Fatalf("%+v\nbefore %+v\nafter  %+v\nof %+v", r, could, can, who)
			}
		}
	})
	if passed < 10 {
		t.Errorf("only %d changes widened nothing: nothing was tested", passed)
	}
}

// drawChange takes things away from a policy, turns them round, and now and then adds some.
func drawChange(t *rapid.T, was Document) Document {
	is := Document{Settings: was.Settings, Conflicts: slices.Clone(was.Conflicts)}
	for _, r := range was.Roles {
		r.Permissions, r.Capabilities = slices.Clone(r.Permissions), slices.Clone(r.Capabilities)
		is.Roles = append(is.Roles, r)
	}
	for range rapid.IntRange(1, 3).Draw(t, "changes") {
		if len(is.Roles) == 0 {
			break
		}
		r := &is.Roles[rapid.IntRange(0, len(is.Roles)-1).Draw(t, "role")]
		at := -1
		if n := len(r.Permissions); n > 0 {
			at = rapid.IntRange(0, n-1).Draw(t, "at")
		}
		switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
		case what == 0:
			r.Capabilities = nil
		case what == 1:
			is.Roles = is.Roles[1:]
			is.Conflicts = slices.DeleteFunc(is.Conflicts, func(c DocumentConflict) bool {
				return !slices.ContainsFunc(is.Roles, func(r DocumentRole) bool { return r.Name == c.Role }) ||
					!slices.ContainsFunc(is.Roles, func(r DocumentRole) bool { return r.Name == c.Other })
			})
		case at < 0:
			r.Description += "."
		case what == 2:
			r.Permissions = slices.Delete(r.Permissions, at, at+1)
		case what == 3:
			slices.Reverse(r.Permissions)
		case what == 4:
			r.Permissions[at].Interactions = "r"
		case what == 5 && r.Permissions[at].Effect != Forbid:
			r.Permissions[at].Relation = RelationTreatment
		case what == 6:
			r.Permissions[at].Segments = nil
		case what == 7 && r.Permissions[at].Effect != Forbid:
			r.Permissions[at].ACR = []string{"mfa"}
		case what == 8 && r.Permissions[at].Effect != Forbid:
			r.Permissions[at].View = rapid.SampledFrom(someViews).Draw(t, "view")
		case what == 9:
			r.Permissions = append(r.Permissions, DocumentPermission{Type: "Condition", Interactions: "cruds", Effect: Forbid})
		}
	}
	return is
}
