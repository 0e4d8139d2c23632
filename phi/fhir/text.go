package fhir

import (
	"strings"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// Fold is how strings are compared in searches: compatibility forms, case, marks, punctuation and white space make no
// difference, so that only letters and numbers stay. "  O’Brien-Núñez" is "obriennunez".
func Fold(s string) string {
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 0x80:
			return foldUnicode(s)
		case 'A' <= c && c <= 'Z':
			out = append(out, c|0x20)
		case 'a' <= c && c <= 'z', isDigit(c):
			out = append(out, c)
		}
	}
	return string(out)
}

func foldUnicode(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsLetter(c) || unicode.IsNumber(c) {
			return c
		}
		return -1
	}, norm.NFKD.String(cases.Fold().String(norm.NFKC.String(s))))
}

// text is a string search value.
type text struct {
	value   string
	compare func(value, want string) bool
}

func parseText(modifier, s string) (matcher, string) {
	t := text{value: SearchLiteral(s)}
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
		return nil, "the value has no letter or number"
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
