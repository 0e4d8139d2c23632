package auth

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// administered adds to a document what keeps somebody in.
func administered(d Document) Document {
	d.Roles = append(d.Roles, DocumentRole{Name: "administrator", Workforce: true, Capabilities: []DocumentCapability{
		{Name: CapabilityPolicyWrite}, {Name: CapabilityAssignmentWrite}, {Name: CapabilityPolicyApprove}, {Name: CapabilityAssignmentApprove},
	}})
	return d
}

func anyName(string) bool { return true }

// TestDocumentNamesTheFault: what is wrong with a document is named by its place.
func TestDocumentNamesTheFault(t *testing.T) {
	for _, c := range []struct{ document, pointer, text string }{
		{`{`, "", "line 1"},
		{"{\n\"roles\": [\n}", "/roles/0", "line 3"},
		{`{"rolls": []}`, "/rolls", "no such member"},
		{`{"roles": [], "roles": []}`, "/roles", "twice"},
		{`{"Roles": []}`, "/Roles", "no such member"},
		{`{"roles": [{"name": 1}]}`, "/roles/0/name", "another type"},
		{`{"roles": [{"name": "A"}]}`, "/roles/0/name", "lower-case"},
		{`{"roles": [{"name": "a"}, {"name": "a"}]}`, "/roles/1/name", "already"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "patient", "interactions": "r"}]}]}`, "/roles/0/permissions/0/type", "no such resource type"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "sr"}]}]}`, "/roles/0/permissions/0/interactions", "letters"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "view": "nothing"}]}]}`, "/roles/0/permissions/0/view", "no such view"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "view": "full"}]}]}`, "/roles/0/permissions/0/relation", "none, treatment or self"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "view": "full", "relation": "none"}]}]}`, "/roles/0/permissions/0/purposes", "names the purposes"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "view": "full", "relation": "none", "purposes": ["treat"]}]}]}`, "/roles/0/permissions/0/purposes", "capital"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "effect": "deny"}]}]}`, "/roles/0/permissions/0/effect", "permit or forbid"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "effect": "forbid", "view": "full"}]}]}`, "/roles/0/permissions/0/view", "has none"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "effect": "forbid", "acr": ["mfa"]}]}]}`, "/roles/0/permissions/0/acr", "lifts"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "effect": "forbid", "segments": ["general"]}]}]}`, "/roles/0/permissions/0/segments", "part2"},
		{`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "effect": "forbid"}, {"type": "*", "interactions": "c", "effect": "forbid"}]}]}`, "/roles/0/permissions/1/type", "already"},
		{`{"roles": [{"name": "a", "capabilities": [{"name": "all"}]}]}`, "/roles/0/capabilities/0/name", "colon"},
		{`{"roles": [{"name": "a", "capabilities": [{"name": "a:b"}, {"name": "a:b"}]}]}`, "/roles/0/capabilities/1/name", "already"},
		{`{"roles": [{"name": "a", "capabilities": [{"name": "a:b", "max_age": -1}]}]}`, "/roles/0/capabilities/0/max_age", "seconds"},
		{`{"roles": [{"name": "a"}], "conflicts": [{"role": "a", "other": "b", "reason": "x"}]}`, "/conflicts/0/other", "no such role"},
		{`{"roles": [{"name": "a"}], "conflicts": [{"role": "a", "other": "a", "reason": "x"}]}`, "/conflicts/0/other", "itself"},
		{`{"roles": [{"name": "a"}, {"name": "b"}], "conflicts": [{"role": "a", "other": "b", "reason": ""}]}`, "/conflicts/0/reason", "needed"},
		{`{"roles": [{"name": "a"}, {"name": "b"}], "conflicts": [{"role": "a", "other": "b", "reason": "x"}, {"role": "b", "other": "a", "reason": "x"}]}`, "/conflicts/1", "already"},
		{`{"roles": [{"name": "a"}]}`, "/roles", "locks everybody out"},
	} {
		d, err := ReadDocument([]byte(c.document))
		if err == nil {
			err = d.Check(func(v string) bool { return v == "full" }, func(t string) bool { return t == "Patient" })
		}
		var e *DocumentError
		if !errors.As(err, &e) || e.Pointer != c.pointer || !strings.Contains(e.Text, c.text) {
			t.Errorf("%s: %v; want %s: …%s…", c.document, err, c.pointer, c.text)
		}
	}
}

// TestLockOut: a policy that leaves nobody who could change it, or approve that, is refused, whichever of the four is missing or given to
// nobody who works here.
func TestLockOut(t *testing.T) {
	whole := administered(smallDocument())
	if err := whole.Check(anyName, anyName); err != nil {
		t.Fatal(err)
	}
	role := &whole.Roles[len(whole.Roles)-1]
	role.Workforce = false
	if err := whole.Check(anyName, anyName); err == nil {
		t.Error("a role that nobody can have administers")
	}
	role.Workforce = true
	all := role.Capabilities
	whole.Roles[2].Capabilities = nil // of admin
	for i := range all {
		role.Capabilities = append(append([]DocumentCapability{}, all[:i]...), all[i+1:]...)
		if err := whole.Check(anyName, anyName); err == nil || !strings.Contains(err.Error(), all[i].Name) {
			t.Errorf("without %s: %v", all[i].Name, err)
		}
	}
}

// TestDocumentIsThePolicy: a policy comes back from its document as it was, and a document from its JSON with comments.
func TestDocumentIsThePolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDocument(t, "policy")
		p := d.Policy()
		back := NewDocument(p)
		if again := back.Policy(); !reflect.DeepEqual(again, p) {
			t.Fatalf("%+v\n%+v", p, again)
		}
		text, err := json.MarshalIndent(d, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		commented := strings.ReplaceAll(string(text), "\n", ` // a "comment" // of {`+"\n")
		read, err := ReadDocument([]byte(commented))
		if err != nil || !read.Equal(&d) || len(Compare(d, read)) != 0 {
			t.Fatalf("%v\n%s", err, commented)
		}
	})
	d, err := ReadDocument([]byte(`{"roles": [{"name": "a", "description": "see https://wiki // \" // here"}]} // the end`))
	if err != nil || d.Roles[0].Description != `see https://wiki // " // here` {
		t.Errorf("%+v, %v", d, err)
	}
}

// FuzzDocument: what is read is written and read again as the same, and nothing is quoted back.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"roles": [{"name": "a", "permissions": [{"type": "*", "interactions": "r", "view": "full"}]}]} // x`))
	f.Add([]byte(`{"roles": [], "conflicts": [], "settings": {"emergency-over-consent": true}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ReadDocument(b)
		if err != nil {
			return
		}
		_ = d.Check(anyName, anyName)
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ReadDocument(text); err != nil || !again.Equal(&d) {
			t.Fatalf("%v: %s", err, text)
		}
	})
}

// TestExpectations: cases are met by the policy that they were written for, and fail when it changes.
func TestExpectations(t *testing.T) {
	d := administered(smallDocument())
	var x Expectations
	if err := ReadCommented([]byte(`{"cases": [
		{"name": "a chart", "roles": ["nurse"], "do": "rs", "type": "Condition", "relation": "treatment", "expect": "allowed", "view": "full"},
		{"name": "a stranger's", "roles": ["nurse"], "do": "rs", "type": "Condition", "expect": "relationship-missing"},
		{"name": "deleting", "roles": ["nurse"], "do": "d", "type": "Condition", "relation": "treatment", "expect": "role-missing"},
		{"name": "for money", "roles": ["nurse"], "do": "r", "type": "Condition", "relation": "treatment", "purpose": "HPAYMT", "expect": "purpose-not-allowed"},
		{"name": "part 2", "roles": ["nurse"], "do": "r", "type": "Condition", "relation": "treatment", "segment": "part2", "expect": "segment-closed"},
		{"name": "step-up", "roles": ["admin"], "capability": "policy:write", "acr": "mfa", "age": 1000, "expect": "step-up-needed"},
		{"name": "stepped up", "roles": ["admin"], "capability": "policy:write", "acr": "mfa", "age": 100, "expect": "allowed"},
		{"name": "apart", "roles": ["admin", "nurse"], "capability": "assignment:write", "expect": "role-missing"} // both are lost
	]}`), &x); err != nil {
		t.Fatal(err)
	}
	outcomes, err := x.Try(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range outcomes {
		if !o.Met {
			t.Errorf("%s: %s", x.Cases[i].Name, o.Got)
		}
	}
	d.Roles[0].Permissions[0].Interactions = "cu"
	d.Conflicts = nil
	outcomes, err = x.Try(t.Context(), d)
	if err != nil || outcomes[0].Met || outcomes[0].Got != "r role-missing" || outcomes[7].Met || outcomes[7].Got != "allowed by rule admin:assignment:write" {
		t.Errorf("%v, %+v", err, outcomes)
	}
	for pointer, c := range map[string]Expectation{
		"/cases/0/roles":    {Do: "r", Type: "Patient", Expect: "allowed"},
		"/cases/0/do":       {Roles: []string{"a"}, Expect: "allowed"},
		"/cases/0/type":     {Roles: []string{"a"}, Do: "r", Type: "patient", Expect: "allowed"},
		"/cases/0/relation": {Roles: []string{"a"}, Do: "r", Type: "Patient", Relation: "friend", Expect: "allowed"},
		"/cases/0/segment":  {Roles: []string{"a"}, Do: "r", Type: "Patient", Segment: "x", Expect: "allowed"},
		"/cases/0/expect":   {Roles: []string{"a"}, Do: "r", Type: "Patient", Expect: "yes"},
	} {
		bad := Expectations{Cases: []Expectation{c}}
		var e *DocumentError
		if _, err := bad.Try(t.Context(), d); !errors.As(err, &e) || e.Pointer != pointer {
			t.Errorf("%s: %v", pointer, err)
		}
	}
	none := Expectations{}
	if _, err := none.Try(t.Context(), d); err == nil {
		t.Error("no cases passed")
	}
}
