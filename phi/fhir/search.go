package fhir

import (
	"fmt"
	"slices"
	"strings"
)

// SearchParam describes one search parameter of a type.
type SearchParam struct {
	Name string
	Type string // token, string, date, reference, quantity, number, uri
}

// SearchParams lists the parameters of a type that Match understands, sorted by name. Those that R4 defines for all types
// (_id, _lastUpdated, …) belong to the server. Composite and special parameters, phonetic, and the few whose expression
// reaches into other resources are not among them.
func SearchParams(resourceType string) []SearchParam {
	params := definitions().search[resourceType]
	out := make([]SearchParam, len(params))
	for i, p := range params {
		out[i] = SearchParam{p.name, p.kind}
	}
	return out
}

// param is a search parameter with the places where its values stand.
type param struct {
	name, kind string
	places     []place
}

// place is a way from a resource to values of one type.
type place struct {
	steps []step
	kind  string    // FHIR type of the value
	set   *valueSet // the required binding of a code, which tells its system
}

// step goes to a property; a filter narrows to objects whose key has a value, or to references to a type.
type step struct {
	name, key, value string // key "@" is the reference's type
}

func findParam(params []*param, name string) *param {
	i, ok := slices.BinarySearchFunc(params, name, func(p *param, name string) int { return strings.Compare(p.name, name) })
	if !ok {
		return nil
	}
	return params[i]
}

func (t *tables) param(owner string, f []string) (*param, error) {
	if len(f) < 3 {
		return nil, fmt.Errorf("search parameter %q", f)
	}
	p := &param{name: f[0], kind: f[1]}
	for _, text := range f[2:] {
		colon := strings.LastIndexByte(text, ':') // a filter may hold a URL
		path := text[:max(colon, 0)]
		pl := place{kind: text[colon+1:]}
		at := t.types[owner]
		for path != "" {
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			part, filter := path[:end], ""
			if path = path[end:]; strings.HasPrefix(path, "[") {
				filter, path, _ = strings.Cut(path[1:], "]")
			}
			path = strings.TrimPrefix(path, ".")
			s := step{name: part}
			if target, ok := strings.CutPrefix(filter, "@"); ok {
				s.key, s.value = "@", target
			} else {
				s.key, s.value, _ = strings.Cut(filter, "=")
			}
			if at == nil || at.elements[part] == nil {
				return nil, fmt.Errorf("search parameter %s of %s: no element %s", p.name, owner, part)
			}
			pl.set = at.elements[part].set
			at = at.elements[part].typ
			pl.steps = append(pl.steps, s)
		}
		p.places = append(p.places, pl)
	}
	return p, nil
}

// follow calls found for each value of a parameter until it returns true, and reports whether it did.
func (r *Resource) follow(p *param, found func(n int32, at *place) bool) bool {
	if len(r.nodes) == 0 {
		return false
	}
	for i := range p.places {
		if r.step(0, p.places[i].steps, &p.places[i], found) {
			return true
		}
	}
	return false
}

func (r *Resource) step(n int32, steps []step, at *place, found func(n int32, at *place) bool) bool {
	if len(steps) == 0 {
		return found(n, at)
	}
	c := r.child(n, steps[0].name)
	if c == 0 {
		return false
	}
	if r.nodes[c].kind != '[' {
		return r.passes(c, &steps[0]) && r.step(c, steps[1:], at, found)
	}
	for i := c + 1; i < r.nodes[c].after; i = r.nodes[i].after {
		if r.passes(i, &steps[0]) && r.step(i, steps[1:], at, found) {
			return true
		}
	}
	return false
}

func (r *Resource) passes(n int32, s *step) bool {
	switch s.key {
	case "":
		return true
	case "@":
		// resolve() would need the target; its type stands in the reference or beside it.
		kind, _ := splitReference(r.childString(n, "reference"))
		return kind == s.value || kind == "" && r.childString(n, "type") == s.value
	}
	return r.childString(n, s.key) == s.value
}

// Criterion is one parsed search parameter: name, modifier, alternatives. It is never changed after ParseCriterion.
type Criterion struct {
	param        *param
	negated      bool // :not, or :missing=true
	missing      bool
	alternatives []matcher
}

// matcher compares one alternative with a value found in a resource.
type matcher interface {
	match(r *Resource, n int32, at *place) bool
}

// ParseCriterion parses name (with modifier, "name:exact") and value (comma separates alternatives, backslash escapes)
// for a type. Issues have code not-supported for an unknown parameter or modifier and value for a malformed value.
//
// Values follow http://hl7.org/fhir/R4/search.html. Modifiers: :missing on all, :not on token, :exact and
// :contains on string, :Type and :identifier on reference, :below and :above on uri. The prefix ap is refused.
func ParseCriterion(resourceType, name, value string) (*Criterion, []Issue) {
	name, modifier, _ := strings.Cut(name, ":")
	p := findParam(definitions().search[resourceType], name)
	if p == nil {
		return nil, []Issue{{"error", "not-supported", "the type has no such search parameter", ""}}
	}
	c := &Criterion{param: p}
	if modifier == "missing" {
		if value != "true" && value != "false" {
			return nil, []Issue{{"error", "value", "search parameter " + p.name + ": :missing takes true or false", ""}}
		}
		c.missing, c.negated = true, value == "true"
		return c, nil
	}
	if modifier == "not" && p.kind == "token" {
		c.negated, modifier = true, ""
	}
	parse := parsers(p.kind, modifier)
	if parse == nil {
		return nil, []Issue{{"error", "not-supported", "search parameter " + p.name + ": the modifier is not supported", ""}}
	}
	for _, alternative := range SplitSearchValue(value, ',') {
		m, problem := parse(alternative)
		if problem != "" {
			return nil, []Issue{{"error", "value", "search parameter " + p.name + ": " + problem, ""}}
		}
		c.alternatives = append(c.alternatives, m)
	}
	return c, nil
}

// parsers picks the parser of a kind of parameter under a modifier, nil when they do not go together. Parsers get text
// that is still escaped and answer what is wrong with it, without repeating it.
func parsers(kind, modifier string) func(string) (matcher, string) {
	switch {
	case kind == "token" && modifier == "":
		return parseToken
	case kind == "reference" && modifier == "identifier":
		return parseReferenceIdentifier
	case kind == "reference" && (modifier == "" || Known(modifier)):
		return func(s string) (matcher, string) { return parseReference(modifier, s) }
	case kind == "string" && (modifier == "" || modifier == "exact" || modifier == "contains"):
		return func(s string) (matcher, string) { return parseText(modifier, s) }
	case kind == "date" && modifier == "":
		return parseDate
	case (kind == "quantity" || kind == "number") && modifier == "":
		return func(s string) (matcher, string) { return parseQuantity(kind, s) }
	case kind == "uri" && (modifier == "" || modifier == "below" || modifier == "above"):
		return func(s string) (matcher, string) { return parseURI(modifier, s) }
	}
	return nil
}

// SplitSearchValue cuts a search value at separators that no backslash escapes; the escapes stay
// (http://hl7.org/fhir/R4/search.html#escaping). Nothing is one empty part.
func SplitSearchValue(s string, separator byte) []string {
	var parts []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case separator:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// SearchLiteral removes the escapes of a search value: \, \| \$ \\. A backslash before anything else goes too.
func SearchLiteral(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		out = append(out, s[i])
	}
	return string(out)
}

// Elements are the top-level elements that the criterion looks at: the caller's field view must include them. They are
// JSON names ("effectiveDateTime", "effectivePeriod"), without duplicates.
func (c *Criterion) Elements() []string {
	var names []string
	for _, p := range c.param.places {
		if name := p.steps[0].name; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Match reports whether the resource satisfies the criterion (any alternative). The resource must be of the criterion's
// type. Under :not a resource without any value matches.
func (c *Criterion) Match(r *Resource) bool {
	var found bool
	switch {
	case c.missing:
		found = r.follow(c.param, func(int32, *place) bool { return true })
	case c.param.places[0].kind == "truth":
		found = c.matchTruth(r)
	default:
		found = r.follow(c.param, func(n int32, at *place) bool {
			for _, m := range c.alternatives {
				if m.match(r, n, at) {
					return true
				}
			}
			return false
		})
	}
	return found != c.negated
}

// matchTruth compares with whether any place has a value other than false; no value is false as well.
func (c *Criterion) matchTruth(r *Resource) bool {
	truth := "false"
	if r.follow(c.param, func(n int32, _ *place) bool { return r.nodes[n].kind != 'f' }) {
		truth = "true"
	}
	return slices.ContainsFunc(c.alternatives, func(m matcher) bool {
		t, ok := m.(token)
		return ok && t.code == truth
	})
}
