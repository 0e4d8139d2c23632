package phi

import (
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// keepCodes keeps what a claim is made of, in the billing view: codes, amounts, quantities, dates, identifiers, references and
// addresses. Who pays needs to know what was done and why in codes, not in words (minimum necessary, 45 CFR 164.502(b),
// 164.514(d)(3)), so whatever can hold a sentence goes: display texts, CodeableConcept.text, notes, reasons in words,
// narratives, attachments, extensions and contained resources. It is decided by data type: a string stays only in the elements
// that claimString names, so that an element that nobody thought of goes.
//
// A modifier extension changes the meaning of what it stands in; since extensions go, so does that.
func keepCodes(r *fhir.Resource) *fhir.Resource {
	modified := false
	for _, e := range r.Elements {
		modified = modified || e.Name == "modifierExtension"
	}
	return r.Walk(func(path, fhirType string, raw []byte) (replacement []byte, keep bool) {
		if modified {
			return nil, false
		}
		switch fhirType {
		case "boolean", "code", "integer", "positiveInt", "unsignedInt", "decimal", "date", "dateTime", "instant", "time", "uri", "oid",
			"Coding", "CodeableConcept", "Quantity", "SimpleQuantity", "Age", "Duration", "Distance", "Count", "Money", "MoneyQuantity",
			"Period", "Range", "Ratio", "Timing", "Identifier", "Address", "HumanName", "ContactPoint":
			return nil, true
		case "string":
			return nil, claimString(path)
		case "id", "canonical": // meta's
			return nil, true
		case "Meta":
			return nil, true
		case "Reference":
			return nil, !strings.HasPrefix(gjson.GetBytes(raw, "reference").String(), "#") // what is contained goes
		}
		return nil, strings.Contains(fhirType, ".") && !gjson.GetBytes(raw, "modifierExtension").Exists()
	})
}

// claimString reports whether a string is a number, a name or a part of an address, by the name of its element.
func claimString(path string) bool {
	switch path[strings.LastIndexByte(path, '.')+1:] {
	case "reference",
		"value",                               // Identifier, ContactPoint, Coverage.class
		"family", "given", "prefix", "suffix", // HumanName
		"line", "city", "district", "state", "postalCode", "country", // Address
		"version",                              // Coding
		"subscriberId", "dependent", "network", // Coverage
		"preAuthRef", "businessArrangement": // Claim, ExplanationOfBenefit
		return true
	}
	return false
}
