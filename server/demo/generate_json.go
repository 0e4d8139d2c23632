package demo

import (
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// object is a JSON object as names and values in turn, written in this order; a nil value is left out.
type object []any

// list is a JSON array.
type list []any

// decimal is a number in its own text: FHIR keeps the digits, and so does Chartkeep.
type decimal string

// appendJSON writes what the generator is made of. Anything else is a mistake in the generator.
func appendJSON(dst []byte, v any) []byte {
	switch v := v.(type) {
	case object:
		dst = append(dst, '{')
		for i, first := 0, true; i < len(v); i += 2 {
			if v[i+1] == nil {
				continue
			}
			if !first {
				dst = append(dst, ',')
			}
			first = false
			dst = appendJSON(append(appendJSON(dst, v[i]), ':'), v[i+1])
		}
		return append(dst, '}')
	case list:
		dst = append(dst, '[')
		for i, e := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSON(dst, e)
		}
		return append(dst, ']')
	case string:
		dst, err := jsontext.AppendQuote(dst, v)
		if err != nil {
			panic(fmt.Sprintf("generated text is not UTF-8: %v", err))
		}
		return dst
	case decimal:
		return append(dst, v...)
	case int:
		return strconv.AppendInt(dst, int64(v), 10)
	case bool:
		return strconv.AppendBool(dst, v)
	}
	panic(fmt.Sprintf("generated value of type %T", v))
}

func coding(system, code, display string) object {
	c := object{"system", system, "code", code}
	if display != "" {
		c = append(c, "display", display)
	}
	return c
}

// concept is a CodeableConcept; its text is the display.
func concept(system, code, display string) object {
	c := object{"coding", list{coding(system, code, display)}}
	if display != "" {
		c = append(c, "text", display)
	}
	return c
}

func identifier(system, value string) object { return object{"system", system, "value", value} }

// quantity is in UCUM units.
func quantity(value decimal, unit, code string) object {
	return object{"value", value, "unit", unit, "system", "http://unitsofmeasure.org", "code", code}
}

// terminology is HL7's code system of that name.
func terminology(name string) string { return "http://terminology.hl7.org/CodeSystem/" + name }

const (
	loinc  = "http://loinc.org"
	snomed = "http://snomed.info/sct"
	rxnorm = "http://www.nlm.nih.gov/research/umls/rxnorm"
	cvx    = "http://hl7.org/fhir/sid/cvx"
	icd10  = "http://hl7.org/fhir/sid/icd-10-cm"
)
