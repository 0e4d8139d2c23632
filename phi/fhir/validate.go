package fhir

import "fmt"

// maxIssues bounds a report.
const maxIssues = 50

// Validate checks the resource against the tables. Nil means clean.
//
// It reports at most 50 findings, in the text's order: elements that the type does not have, cardinalities, arrays where
// one value belongs and the reverse, empty objects, arrays and strings, the formats of
// http://hl7.org/fhir/R4/datatypes.html, a choice taken twice, codes outside required bindings, extensions without url or
// with both a value and extensions, and the same within contained resources and the resources of a Bundle. All are errors.
// Codes: structure, required, value, code-invalid, not-supported.
func (r *Resource) Validate() []Issue {
	if len(r.nodes) == 0 {
		return nil
	}
	v := validator{Resource: r}
	v.resource(0)
	return v.issues
}

type validator struct {
	*Resource
	issues []Issue
}

// report notes a finding at a node.
func (v *validator) report(n int32, code, diagnostics string) {
	v.reportAt(code, diagnostics, n, "")
}

// reportAt notes a finding at a part of a node.
func (v *validator) reportAt(code, diagnostics string, n int32, part string) {
	if len(v.issues) < maxIssues {
		v.issues = append(v.issues, Issue{"error", code, diagnostics, v.path(n) + part})
	}
}

func (v *validator) resource(n int32) {
	if v.nodes[n].kind != '{' {
		v.report(n, "structure", "a resource must be an object")
		return
	}
	t := v.inner(n)
	if t == nil {
		v.report(n, "not-supported", "the resource type is not one of FHIR R4")
		return
	}
	v.object(n, t)
}

// object checks the properties of an object of a type.
func (v *validator) object(n int32, t *typ) {
	if v.nodes[n].after == n+1 {
		v.report(n, "structure", "an object must have content")
		return
	}
	var seen uint64 // slots that have a value
	for c := n + 1; c < v.nodes[n].after; c = v.nodes[c].after {
		if len(v.issues) >= maxIssues {
			return
		}
		name := v.name(c)
		e := t.elements[string(name)]
		if e == nil && len(name) > 1 && name[0] == '_' {
			if e = t.elements[string(name[1:])]; e != nil && e.typ.kind == "primitive" {
				if value := v.child(n, string(name[1:])); value == 0 {
					v.extended(c, 0, e)
					seen = v.mark(seen, c, t, e)
				}
				continue // else checked with its value
			}
			e = nil
		}
		if e == nil {
			if string(name) != "resourceType" || t.kind != "resource" {
				v.report(c, "structure", "the element is not known here")
			}
			continue
		}
		seen = v.mark(seen, c, t, e)
		if e.typ.kind == "primitive" {
			v.primitives(n, c, e)
		} else {
			v.complex(c, e)
		}
	}
	for i, s := range t.slots {
		if s.min > 0 && seen&(1<<i) == 0 {
			v.reportAt("required", "the element is required", n, "."+s.name)
		}
	}
	if t.name == "Extension" {
		v.extension(n)
	}
}

// mark notes that a slot has a value and reports the second value of a choice.
func (v *validator) mark(seen uint64, c int32, t *typ, e *elem) uint64 {
	bit := uint64(1) << e.slot
	if seen&bit != 0 {
		v.report(c, "structure", fmt.Sprintf("only one of %s may be present", t.slots[e.slot].name))
	}
	return seen | bit
}

// extension checks http://hl7.org/fhir/R4/extensibility.html: a value or extensions, not both.
func (v *validator) extension(n int32) {
	value, nested := false, false
	for c := n + 1; c < v.nodes[n].after; c = v.nodes[c].after {
		name := v.name(c)
		if len(name) > 0 && name[0] == '_' {
			name = name[1:]
		}
		value = value || len(name) > 5 && string(name[:5]) == "value"
		nested = nested || string(name) == "extension"
	}
	if value == nested {
		v.report(n, "structure", "an extension must have either a value or extensions")
	}
}

// complex checks an element that is no primitive.
func (v *validator) complex(c int32, e *elem) {
	if !v.shape(c, e) {
		return
	}
	if v.nodes[c].kind != '[' {
		v.item(c, e)
		return
	}
	for i := c + 1; i < v.nodes[c].after; i = v.nodes[i].after {
		v.item(i, e)
	}
}

// shape checks that there is an array where one belongs, and that it has content.
func (v *validator) shape(c int32, e *elem) bool {
	switch isArray := v.nodes[c].kind == '['; {
	case e.many && !isArray:
		v.report(c, "structure", "the element must be an array")
	case !e.many && isArray:
		v.report(c, "structure", "the element must not be an array")
	case isArray && v.nodes[c].after == c+1:
		v.report(c, "structure", "an array must have content")
	default:
		return true
	}
	return false
}

func (v *validator) item(n int32, e *elem) {
	switch {
	case e.typ.kind == "any":
		v.resource(n)
	case v.nodes[n].kind != '{':
		v.report(n, "structure", "the element must be an object")
	default:
		v.object(n, e.typ)
		if e.set != nil && e.typ.name == "CodeableConcept" {
			v.bound(n, e.set)
		}
	}
}

// bound checks that a concept has a coding from its required binding. A concept without any is let through
// when an extension may say why (http://hl7.org/fhir/R4/extension-data-absent-reason.html).
func (v *validator) bound(n int32, set *valueSet) {
	list := v.child(n, "coding")
	if list == 0 {
		if v.child(n, "extension") == 0 {
			v.report(n, "code-invalid", "a coding from value set "+set.name+" is required")
		}
		return
	}
	for c := list + 1; c < v.nodes[list].after; c = v.nodes[c].after {
		if set.has(v.childString(c, "system"), v.childString(c, "code")) {
			return
		}
	}
	v.report(n, "code-invalid", "no coding is from value set "+set.name)
}

// primitives checks a primitive element and the extensions beside it.
func (v *validator) primitives(n, c int32, e *elem) {
	if !v.shape(c, e) {
		return
	}
	extensions := v.child(n, "_"+string(v.name(c)))
	if extensions != 0 {
		v.extended(extensions, c, e)
	}
	if !e.many {
		v.primitive(c, e)
		return
	}
	beside := v.items(extensions)
	for i := c + 1; i < v.nodes[c].after; i = v.nodes[i].after {
		if v.nodes[i].kind != 'n' {
			v.primitive(i, e)
		} else if !beside.present() {
			v.report(i, "structure", "null stands only for a value with extensions")
		}
		beside.next()
	}
}

// items goes through an array beside another; there may be no array, and either may be the shorter.
type items struct {
	v       *validator
	at, end int32
}

func (v *validator) items(list int32) items {
	if list == 0 || v.nodes[list].kind != '[' {
		return items{v: v}
	}
	return items{v, list + 1, v.nodes[list].after}
}

func (i *items) present() bool { return i.at < i.end && i.v.nodes[i.at].kind != 'n' }

func (i *items) next() {
	if i.at < i.end {
		i.at = i.v.nodes[i.at].after
	}
}

// extended checks the ids and extensions of a primitive; value is the node of its values, 0 for none.
func (v *validator) extended(c, value int32, e *elem) {
	if !v.shape(c, e) {
		return
	}
	element := definitions().types["Element"]
	if !e.many {
		if v.nodes[c].kind != '{' {
			v.report(c, "structure", "extensions of a primitive must be an object")
			return
		}
		v.object(c, element)
		return
	}
	beside := v.items(value)
	for i := c + 1; i < v.nodes[c].after; i = v.nodes[i].after {
		switch v.nodes[i].kind {
		case '{':
			v.object(i, element)
		case 'n':
			if !beside.present() {
				v.report(i, "structure", "null stands only beside a value")
			}
		default:
			v.report(i, "structure", "extensions of a primitive must be an object")
		}
		beside.next()
	}
}
