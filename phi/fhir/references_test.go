package fhir

import (
	"slices"
	"strings"
	"testing"
)

const first, second = "urn:uuid:00000000-0000-0000-0000-000000000001", "urn:oid:1.2.3"

func TestPatients(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a Patient", `{"resourceType":"Patient","id":"a"}`, "a"},
		{"a linked Patient", `{"resourceType":"Patient","id":"a","link":[{"other":{"reference":"Patient/b"},"type":"seealso"},{"other":{"reference":"RelatedPerson/c"}}]}`, "a b"},
		{"a new Patient", `{"resourceType":"Patient"}`, ""},
		{"the subject before performers", `{"resourceType":"Observation","performer":[{"reference":"Patient/b"},{"reference":"Practitioner/c"}],"subject":{"reference":"Patient/a"}}`, "a b"},
		{"no duplicates", `{"resourceType":"Observation","performer":[{"reference":"Patient/a"}],"subject":{"reference":"Patient/a"}}`, "a"},
		{"a version", `{"resourceType":"Observation","subject":{"reference":"Patient/a/_history/3"}}`, "a"},
		{"focus is no member", `{"resourceType":"Observation","focus":[{"reference":"Patient/a"}]}`, ""},
		{"another type", `{"resourceType":"Observation","subject":{"reference":"Group/a"}}`, ""},
		{"an absolute URL", `{"resourceType":"Observation","subject":{"reference":"http://x/Patient/a"}}`, ""},
		{"a urn", `{"resourceType":"Observation","subject":{"reference":"` + first + `"}}`, ""},
		{"a conditional reference", `{"resourceType":"Observation","subject":{"reference":"Patient?identifier=x"}}`, ""},
		{"a malformed reference", `{"resourceType":"Observation","subject":{"reference":"Patient/a/b"}}`, ""},
		{"a malformed version", `{"resourceType":"Observation","subject":{"reference":"Patient/a/_history/"}}`, ""},
		{"an escaped reference", `{"resourceType":"Observation","subject":{"reference":"Patient\/\u0061"}}`, "a"},
		{"coverage", `{"resourceType":"Coverage","payor":[{"reference":"Patient/c"}],"beneficiary":{"reference":"Patient/b"},"policyHolder":{"reference":"Patient/a"}}`, "a b c"},
		{"a Group", `{"resourceType":"Group","member":[{"entity":{"reference":"Patient/a"}},{"entity":{"reference":"Patient/b"}}]}`, "a b"},
		{"outside the compartment", `{"resourceType":"Organization","id":"a"}`, ""},
	} {
		if got := strings.Join(mustParse(t, c.text).Patients(), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

const linked = `{"resourceType":"DocumentReference","masterIdentifier":{"system":"` + second + `","value":"` + first + `"},` +
	`"text":{"status":"generated","div":"<div><a href=\"` + first + `\">` + first + `</a><img src='` + second + `'/><a href=\"` + first + `#x\"/></div>"},` +
	`"contained":[{"resourceType":"Observation","id":"o","subject":{"reference":"` + first + `"}}],` +
	`"subject":{"reference":"urn:uuid:0000000\u0030-0000-0000-0000-000000000001","display":"` + first + `"},` +
	`"content":[{"attachment":{"url":"` + second + `","title":"1.10"}}],"x":1.10,` +
	`"author":[{"reference":"Patient/a"},{"reference":"#o"},{"identifier":{"value":"n"}}]}`

func TestReferences(t *testing.T) {
	want := []Reference{
		{"DocumentReference.contained[0].subject", first},
		{"DocumentReference.subject", first},
		{"DocumentReference.content[0].attachment.url", second},
		{"DocumentReference.author[0]", "Patient/a"},
		{"DocumentReference.author[1]", "#o"},
	}
	if got := mustParse(t, linked).References(); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	bundle := mustParse(t, `{"resourceType":"Bundle","entry":[{"fullUrl":"`+first+`","resource":{"resourceType":"Basic","subject":{"reference":"`+first+`"}}}]}`)
	want = []Reference{{"Bundle.entry[0].fullUrl", first}, {"Bundle.entry[0].resource.subject", first}}
	if got := bundle.References(); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}

func TestRewrite(t *testing.T) {
	r := mustParse(t, linked)
	got := string(r.Rewrite(func(reference string) (string, bool) {
		switch reference {
		case first:
			return "Patient/1", true
		case second:
			return "Binary/\"2&", true
		}
		return "", false
	}).Text())
	want := strings.NewReplacer(
		`{"reference":"`+first+`"`, `{"reference":"Patient/1"`,
		`{"reference":"urn:uuid:0000000\u0030-0000-0000-0000-000000000001"`, `{"reference":"Patient/1"`,
		`href=\"`+first+`\"`, `href=\"Patient/1\"`,
		`src='`+second+`'`, `src='Binary/&#34;2&amp;'`,
		`"url":"`+second+`"`, `"url":"Binary/\"2&"`,
	).Replace(linked)
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if string(r.Text()) != linked {
		t.Error("the original changed")
	}
	same := r.Rewrite(func(string) (string, bool) { return "x", false })
	if same == r || string(same.Text()) != linked {
		t.Error("nothing to replace: not an equal copy")
	}
}

func FuzzRewrite(f *testing.F) {
	f.Add(linked, "Patient/1")
	f.Add(`{"resourceType":"Patient","text":{"div":"<div href='urn:oid:1 src=\"urn:oid:2\\"}}`, "\"\xff\\")
	f.Add(`{"resourceType":"Patient","text":{"div":"src=\"urn:oid:\\"}}`, "a")
	f.Fuzz(func(t *testing.T, text, to string) {
		r, issues := Parse([]byte(text))
		if issues != nil {
			return
		}
		asked := 0
		changed := r.Rewrite(func(string) (string, bool) { asked++; return to, true })
		if asked == 0 && string(changed.Text()) != string(r.Text()) {
			t.Fatal("changed without asking")
		}
		if changed.Type != r.Type || changed.ID != r.ID || len(changed.Elements) != len(r.Elements) {
			t.Fatal("changed more than references")
		}
	})
}
