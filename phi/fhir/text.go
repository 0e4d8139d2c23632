package fhir

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// Fold is how strings are compared in searches: compatibility decomposition (NFKD) without marks, in lower case, runs of
// white space as one space, none at the ends. "  García-Núñez" is "garcia-nunez".
func Fold(s string) string {
	ascii := true
	for i := range len(s) {
		ascii = ascii && s[i] < 0x80
	}
	if !ascii {
		s = strings.Map(func(c rune) rune {
			if unicode.Is(unicode.M, c) {
				return -1
			}
			return c
		}, norm.NFKD.String(s))
	}
	return strings.Join(strings.Fields(strings.ToLower(s)), " ")
}

// text is a string search value.
type text struct {
	value   string
	compare func(value, want string) bool
}

func parseText(modifier, s string) (matcher, string) {
	t := text{value: literal(s)}
	if modifier == "exact" {
		t.compare = func(value, want string) bool { return value == want }
	} else {
		test := strings.HasPrefix
		if modifier == "contains" {
			test = strings.Contains
		}
		t.value = Fold(t.value)
		t.compare = func(value, want string) bool { return test(Fold(value), want) }
	}
	if t.value == "" {
		return nil, "the value is empty"
	}
	return t, ""
}

// match looks at every part of a name or an address, http://hl7.org/fhir/R4/search.html#string.
func (t text) match(r *Resource, n int32, at *place) bool {
	switch at.kind {
	case "HumanName":
		return t.parts(r, n, "family", "given", "text", "prefix", "suffix")
	case "Address":
		return t.parts(r, n, "line", "city", "district", "state", "postalCode", "country", "text")
	}
	return t.value != "" && r.nodes[n].kind == '"' && t.compare(r.str(n), t.value)
}

func (t text) parts(r *Resource, n int32, names ...string) bool {
	for _, name := range names {
		c := r.child(n, name)
		if c == 0 {
			continue
		}
		if r.nodes[c].kind == '"' && t.compare(r.str(c), t.value) {
			return true
		}
		if r.nodes[c].kind != '[' {
			continue
		}
		for i := c + 1; i < r.nodes[c].after; i = r.nodes[i].after {
			if r.nodes[i].kind == '"' && t.compare(r.str(i), t.value) {
				return true
			}
		}
	}
	return false
}
