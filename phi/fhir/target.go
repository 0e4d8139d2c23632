package fhir

import "strings"

// target is a reference search value: an id, Type/id, or a URL.
type target struct {
	kind, id string // of a relative reference; kind may be open
	url      string
}

func parseReference(modifier, s string) (matcher, string) {
	value := SearchLiteral(s)
	kind, id := splitReference(value)
	switch {
	case value == "":
		return nil, "the value is empty"
	case kind != "":
		if modifier != "" && modifier != kind {
			return nil, "the reference is not of the modifier's type"
		}
		return target{kind: kind, id: id}, ""
	case ValidID(value):
		return target{kind: modifier, id: value}, ""
	case modifier == "" && strings.Contains(value, ":"):
		return target{url: value}, ""
	}
	return nil, "the value is not a reference"
}

// match compares relative references by type and id, whatever their version, and others as they stand. A canonical also
// matches without its version.
func (t target) match(r *Resource, n int32, at *place) bool {
	value := r.str(n)
	if at.kind == "Reference" {
		value = r.childString(n, "reference")
	}
	if value == "" {
		return false
	}
	if t.url != "" {
		if value == t.url {
			return true
		}
		url, _, _ := strings.Cut(value, "|")
		return at.kind == "canonical" && url == t.url
	}
	kind, id := splitReference(value)
	return id == t.id && (t.kind == "" || t.kind == kind)
}

// subject matches Reference.identifier.
type subject struct{ token token }

func parseReferenceIdentifier(s string) (matcher, string) {
	m, problem := parseToken(s)
	if problem != "" {
		return nil, problem
	}
	t, _ := m.(token)
	return subject{t}, ""
}

func (s subject) match(r *Resource, n int32, _ *place) bool {
	identifier := r.child(n, "identifier")
	return identifier != 0 && s.token.identifier(r, identifier)
}

// address is a uri search value.
type address struct{ modifier, url string }

func parseURI(modifier, s string) (matcher, string) {
	if s = SearchLiteral(s); s == "" {
		return nil, "the value is empty"
	}
	return address{modifier, s}, ""
}

// match compares whole URIs; :below finds what begins with the value at a path boundary, :above the reverse.
func (a address) match(r *Resource, n int32, _ *place) bool {
	value := r.str(n)
	switch {
	case value == "":
		return false
	case a.modifier == "below":
		return under(value, a.url)
	case a.modifier == "above":
		return under(a.url, value)
	}
	return value == a.url
}

func under(url, base string) bool {
	rest, ok := strings.CutPrefix(url, strings.TrimSuffix(base, "/"))
	return ok && (rest == "" || rest[0] == '/')
}
