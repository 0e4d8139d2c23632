package fhir

// SearchParam describes one search parameter of a type.
type SearchParam struct {
	Name string
	Type string // token, string, date, reference, quantity, number, uri
}

// SearchParams lists the parameters of a type that Match understands, sorted by name.
func SearchParams(resourceType string) []SearchParam { panic("unwritten") }

// Criterion is one parsed search parameter: name, modifier, alternatives.
type Criterion struct{ unwritten int }

// ParseCriterion parses name (with modifier, "name:exact") and value (comma separates alternatives, backslash escapes)
// for a type. Issues have code not-supported for an unknown parameter or modifier and value for a malformed value.
func ParseCriterion(resourceType, name, value string) (*Criterion, []Issue) { panic("unwritten") }

// Elements are the top-level elements that the criterion looks at: the caller's field view must include them.
func (c *Criterion) Elements() []string { panic("unwritten") }

// Match reports whether the resource satisfies the criterion (any alternative).
func (c *Criterion) Match(r *Resource) bool { panic("unwritten") }
