package phi

import (
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// deidentify removes the identifiers of Safe Harbor (45 CFR 164.514(b)(2)(i)) from a resource of which only the clinical
// class was opened. It keeps what is named here and drops all else, so that a data type or an element that nobody
// thought of goes too: dates become years, ages of 90 and more go (C); identifiers, names, addresses, contact points,
// attachments, URLs, references, extensions, contained resources and all free text go. Display texts stay in codings that
// have a code. Numbers, booleans and codes stay. The id and meta are the caller's matter.
//
// A modifier extension changes the meaning of what it stands in; since extensions go, so does that (in a resource,
// everything).
func deidentify(r *fhir.Resource) *fhir.Resource {
	modified := false
	for _, e := range r.Elements {
		modified = modified || e.Name == "modifierExtension"
	}
	return r.Walk(func(path, fhirType string, raw []byte) (replacement []byte, keep bool) {
		if modified {
			return nil, false
		}
		switch fhirType {
		case "boolean", "integer", "decimal", "positiveInt", "unsignedInt", "code":
			return nil, true
		case "date", "dateTime":
			return yearOf(raw)
		case "CodeableConcept", "Period", "Range", "Ratio", "Timing", "Dosage", "SampledData":
			return nil, true
		case "Coding":
			if !gjson.GetBytes(raw, "code").Exists() {
				return nil, false
			}
			return keepMembers(raw, "system", "version", "code", "display")
		case "Quantity", "SimpleQuantity", "Age", "Duration", "Distance", "Count", "Money", "MoneyQuantity":
			if olderThan89(fhirType, raw) {
				return nil, false
			}
			return keepMembers(raw, "value", "comparator", "system", "code", "currency")
		}
		// What is left are backbone elements, whose types are paths. Location.position is where somebody is (B).
		backbone := strings.Contains(fhirType, ".") && fhirType != "Location.position"
		return nil, backbone && !gjson.GetBytes(raw, "modifierExtension").Exists()
	})
}

// yearOf makes a date or dateTime its year.
func yearOf(raw []byte) ([]byte, bool) {
	if len(raw) < len(`"2006"`) || raw[0] != '"' {
		return nil, false
	}
	for _, c := range raw[1:5] {
		if c < '0' || c > '9' {
			return nil, false
		}
	}
	return append(append([]byte(nil), raw[:5]...), '"'), true
}

func keepMembers(raw []byte, names ...string) ([]byte, bool) {
	kept := filterObject(raw, func(name string, value gjson.Result) (string, bool) {
		for _, n := range names {
			if n == name {
				return value.Raw, true
			}
		}
		return "", false
	})
	return kept, kept != nil
}

// olderThan89 reports whether a quantity is, or may be, an age of 90 years or more.
func olderThan89(fhirType string, raw []byte) bool {
	q := gjson.ParseBytes(raw)
	value := q.Get("value").Float()
	switch q.Get("code").String() { // UCUM
	case "a", "a_j", "a_g", "a_t":
		return value >= 90
	case "mo":
		return value >= 90*12
	case "wk":
		return value >= 90*52
	case "d":
		return value >= 90*365
	}
	return fhirType == "Age" && value >= 90
}
