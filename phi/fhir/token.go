package fhir

import "strings"

// token is a search value [system|]code.
type token struct {
	system    string
	anySystem bool // no bar: any system, and none
	code      string
	anyCode   bool // system|
}

func parseToken(s string) (matcher, string) {
	parts := SplitSearchValue(s, '|')
	t := token{anySystem: len(parts) == 1, code: SearchLiteral(parts[len(parts)-1])}
	switch {
	case len(parts) > 2:
		return nil, "more than one bar"
	case len(parts) == 2:
		t.system = SearchLiteral(parts[0])
		t.anyCode = t.code == ""
	}
	if t.code == "" && t.system == "" {
		return nil, "the value is empty"
	}
	return t, ""
}

// match compares as http://hl7.org/fhir/R4/search.html#token says. Codes and contacts are compared without case, as FHIR
// advises; identifiers with it, because two patients' numbers may differ in nothing else.
func (t token) match(r *Resource, n int32, at *place) bool {
	switch at.kind {
	case "Coding":
		return t.coding(r, n)
	case "CodeableConcept":
		return t.concept(r, n)
	case "Identifier":
		return t.identifier(r, n)
	case "ContactPoint":
		return t.contact(r, n)
	case "boolean":
		return (t.anySystem || t.system == "" || t.system == "http://terminology.hl7.org/CodeSystem/special-values") &&
			(t.anyCode || string(r.raw(n)) == t.code)
	case "code":
		return t.plain(r.str(n), at.set)
	}
	return (t.anySystem || t.system == "") && r.str(n) == t.code
}

// plain matches a code, whose system only its required binding knows.
func (t token) plain(code string, set *valueSet) bool {
	if !t.anyCode && !strings.EqualFold(code, t.code) {
		return false
	}
	if set == nil {
		return t.anySystem || t.system == ""
	}
	return t.anySystem || set.has(t.system, code)
}

func (t token) coding(r *Resource, n int32) bool {
	return (t.anySystem || r.childString(n, "system") == t.system) &&
		(t.anyCode || strings.EqualFold(r.childString(n, "code"), t.code))
}

func (t token) concept(r *Resource, n int32) bool {
	list := r.child(n, "coding")
	if list == 0 {
		return false
	}
	for c := list + 1; c < r.nodes[list].after; c = r.nodes[c].after {
		if t.coding(r, c) {
			return true
		}
	}
	return false
}

func (t token) identifier(r *Resource, n int32) bool {
	return (t.anySystem || r.childString(n, "system") == t.system) &&
		(t.anyCode || r.childString(n, "value") == t.code)
}

// contact compares phone numbers by their digits, for people punctuate them as they like.
func (t token) contact(r *Resource, n int32) bool {
	system, value := r.childString(n, "system"), r.childString(n, "value")
	if !t.anySystem && system != t.system {
		return false
	}
	if t.anyCode || strings.EqualFold(value, t.code) {
		return true
	}
	switch system {
	case "phone", "fax", "sms", "pager":
		want := digitsOf(t.code)
		return want != "" && want == digitsOf(value)
	}
	return false
}

func digitsOf(s string) string {
	return strings.Map(func(c rune) rune {
		if c < '0' || c > '9' {
			return -1
		}
		return c
	}, s)
}
