package phi

import (
	"bytes"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// safeHarbor removes the identifiers of 45 CFR 164.514(b)(2)(i), A to R, from resources. It keeps what is named here and
// drops all else, so that a data type or an element that nobody thought of goes too:
//
//   - Names, contact points, identifiers, photos, attachments, URLs, account, certificate and device numbers (A, D to Q): their
//     data types are not among those kept, nor is any free text, which could hold each of them. Display texts are free text.
//   - Addresses (B): the State stays, and three digits of a ZIP code as reduceAddress says.
//   - Dates (C): the year stays, unless it is 90 or more years ago, since who was there then is older than 89. Ages of 90 and more
//     become one category (reduceAge). Times, instants and weekdays go.
//   - Other unique numbers and codes (R): ids go; codes stay when they are of a public code system and look like one
//     (publicCode), and numbers when they have less than nine digits before the point.
//   - References stay as pseudonyms where alias gives one, so that the records of one export join.
//   - Extensions, contained resources and contact persons go. Of a patient's extensions stay the codes of race, ethnicity and
//     birth sex, which 164.514 does not name.
//
// A modifier extension changes the meaning of what it stands in; since extensions go, so does that (in a resource,
// everything). The id and meta are the caller's matter: meta goes, too.
type safeHarbor struct {
	year  int // the current one
	alias func(Ref) (id string, ok bool)
}

func (h safeHarbor) reduce(r *fhir.Resource) *fhir.Resource {
	modified := false
	for _, e := range r.Elements {
		modified = modified || e.Name == "modifierExtension"
	}
	since := years{of: r, now: h.year, aged: aboutAge(r)}
	return r.Walk(func(path, fhirType string, raw []byte) (replacement []byte, keep bool) {
		if modified {
			return nil, false
		}
		switch fhirType {
		case "boolean":
			return nil, true
		case "code":
			return nil, !anyCode(path[strings.LastIndexByte(path, '.')+1:])
		case "integer", "positiveInt", "unsignedInt", "decimal":
			return nil, isMeasure(raw) && (!since.aged || since.young(gjson.ParseBytes(raw).Float()))
		case "date", "dateTime":
			return since.year(raw)
		case "CodeableConcept", "Period", "Range", "Ratio", "Timing", "Dosage", "SampledData":
			return nil, true
		case "Coding":
			return publicCoding(raw)
		case "Quantity", "SimpleQuantity", "Age", "Duration", "Distance", "Count":
			return since.quantity(fhirType, raw)
		case "Money", "MoneyQuantity":
			return keepAmount(raw)
		case "Address":
			return reduceAddress(raw)
		case "Reference":
			return h.reference(raw)
		case "Extension":
			if path == "Patient.extension" {
				return personalCode(raw)
			}
			return nil, false
		}
		switch path {
		case "Location.position", "Patient.contact": // where somebody is (B), and who else that is
			return nil, false
		}
		// What is left are backbone elements, whose types are paths.
		return nil, strings.Contains(fhirType, ".") && !gjson.GetBytes(raw, "modifierExtension").Exists()
	})
}

// anyCode reports whether an element of type code, by its name, can hold whatever a client writes there, or says on which day
// something was. What other elements hold is of a required value set: the validator has seen to it.
func anyCode(element string) bool {
	switch element {
	case "language", "contentType", "payloadMimeType", "payload", "code", "name", "property", "op", "accept", "format", "patchFormat",
		"targetFormat", "sigFormat", "currency", "dayOfWeek", "daysOfWeek":
		return true
	}
	return strings.HasSuffix(element, "Code") // a choice
}

// reference keeps a relative reference to a record that is part of the export.
func (h safeHarbor) reference(raw []byte) ([]byte, bool) {
	kind, id, _ := strings.Cut(gjson.GetBytes(raw, "reference").String(), "/")
	id, _, _ = strings.Cut(id, "/_history/")
	if !fhir.Known(kind) || !fhir.ValidID(id) {
		return nil, false
	}
	alias, ok := h.alias(Ref{kind, id})
	if !ok {
		return nil, false
	}
	return []byte(`{"reference":"` + kind + "/" + alias + `"}`), true
}

// personalCode keeps US Core's codes of race and ethnicity (the parts with codings, not the text) and of birth sex.
func personalCode(raw []byte) ([]byte, bool) {
	const usCore = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"
	extension := gjson.ParseBytes(raw)
	url, ours := strings.CutPrefix(extension.Get("url").String(), usCore)
	if !ours {
		return nil, false
	}
	switch url {
	case "race", "ethnicity":
		var parts [][]byte
		extension.Get("extension").ForEach(func(_, part gjson.Result) bool {
			name := part.Get("url").String()
			coding, ok := publicCoding([]byte(part.Get("valueCoding").Raw))
			if ok && (name == "ombCategory" || name == "detailed") {
				parts = append(parts, []byte(`{"url":"`+name+`","valueCoding":`+string(coding)+`}`))
			}
			return true
		})
		if len(parts) == 0 {
			return nil, false
		}
		return []byte(`{"url":"` + usCore + url + `","extension":[` + string(bytes.Join(parts, []byte(","))) + `]}`), true
	case "birthsex":
		switch sex := extension.Get("valueCode").String(); sex {
		case "F", "M", "OTH", "UNK", "ASKU":
			return []byte(`{"url":"` + usCore + `birthsex","valueCode":"` + sex + `"}`), true
		}
	}
	return nil, false
}

// isMeasure reports whether a number counts or measures: one with nine digits and more before the point is a record, phone or
// social security number, or may be.
func isMeasure(number []byte) bool {
	digits := 0
	for _, c := range number {
		switch {
		case '0' <= c && c <= '9':
			digits++
		case c == 'e' || c == 'E':
			return len(number) < 9
		case c == '.':
			return digits < 9
		}
	}
	return digits < 9
}

// keepAmount keeps of an amount of money value and currency (ISO 4217).
func keepAmount(raw []byte) ([]byte, bool) {
	money := gjson.ParseBytes(raw)
	value, currency := money.Get("value"), money.Get("currency").String()
	if value.Type != gjson.Number || !isMeasure([]byte(value.Raw)) {
		return nil, false
	}
	if len(currency) != 3 || strings.Trim(currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return []byte(`{"value":` + value.Raw + `}`), true
	}
	return []byte(`{"value":` + value.Raw + `,"currency":"` + currency + `"}`), true
}
