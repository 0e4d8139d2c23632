package phi

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// tooOld is the age, in years, from which on ages and what indicates them are not told (45 CFR 164.514(b)(2)(i)(C)).
const tooOld = 90

// years judges the dates and ages of one resource.
type years struct {
	of    *fhir.Resource
	now   int  // the current year
	first int  // the earliest year that the resource shows, -1 when it shows none; 0 before it was looked for
	aged  bool // the resource is about somebody's age, so its numbers may be ages whatever their unit
}

// year makes a date or dateTime its year, and drops one that is so long ago that whoever lived then is too old. A birth date
// goes by the same rule.
func (y *years) year(raw []byte) ([]byte, bool) {
	year, ok := yearIn(raw)
	if !ok || y.now-year >= tooOld {
		return nil, false
	}
	return strconv.AppendQuote(nil, string(raw[1:5])), true
}

// yearIn reads the year of a quoted date.
func yearIn(raw []byte) (int, bool) {
	if len(raw) < len(`"2006"`) || raw[0] != '"' {
		return 0, false
	}
	year := 0
	for _, c := range raw[1:5] {
		if c < '0' || c > '9' {
			return 0, false
		}
		year = year*10 + int(c-'0')
	}
	return year, true
}

// earliest is the earliest year that the resource shows; -1 when it shows none.
func (y *years) earliest() int {
	if y.first != 0 {
		return y.first
	}
	y.first = -1
	y.of.Walk(func(_, fhirType string, raw []byte) ([]byte, bool) {
		switch fhirType {
		case "date", "dateTime", "instant":
			if year, ok := yearIn(raw); ok && y.now-year < tooOld && (y.first < 0 || year < y.first) { // one before is not shown
				y.first = year
			}
		}
		return nil, true
	})
	return y.first
}

// young reports whether an age tells of nobody who is too old today: counted from the earliest year that the resource shows. In
// one that shows none it could be joined to a year elsewhere in the export; below a year it makes no difference.
func (y *years) young(age float64) bool {
	return age < 1 || age < tooOld && y.earliest() >= 0 && float64(y.now-y.earliest())+age < tooOld
}

// quantity keeps of a quantity number, comparator and UCUM unit. An age of 90 years and more becomes the category of all of
// them, ">= 90 a"; one that is not young goes.
func (y *years) quantity(fhirType string, raw []byte) ([]byte, bool) {
	q := gjson.ParseBytes(raw)
	value := q.Get("value")
	if !isMeasure([]byte(value.Raw)) {
		return nil, false
	}
	age, isAge := inYears(q)
	switch {
	case isAge && age >= tooOld:
		return []byte(`{"value":90,"comparator":">=","system":"` + ucum + `","code":"a"}`), true
	case isAge && !y.young(age), !isAge && (fhirType == "Age" || y.aged) && !y.young(value.Float()): // years, for all one knows
		return nil, false
	}
	unit := ""
	if q.Get("system").String() == ucum {
		unit = unitCode(q.Get("code").String())
	}
	return filterObject(raw, func(name string, member gjson.Result) (string, bool) {
		switch name {
		case "value":
			return member.Raw, member.Type == gjson.Number
		case "comparator":
			return member.Raw, true
		case "system":
			return member.Raw, unit != ""
		case "code":
			return `"` + unit + `"`, unit != ""
		}
		return "", false
	}), value.Exists()
}

// inYears converts a quantity of time to years: by its UCUM code, or by the word for its unit.
func inYears(q gjson.Result) (years float64, ok bool) {
	unit := q.Get("code").String()
	if unit == "" {
		unit = strings.ToLower(q.Get("unit").String())
	}
	value := q.Get("value").Float()
	switch unit {
	case "a", "a_j", "a_g", "a_t", "y", "yr", "yrs", "year", "years", "yo":
		return value, true
	case "mo", "mo_j", "mo_g", "mo_s", "month", "months":
		return value / 12, true
	case "wk", "week", "weeks":
		return value / 52, true
	case "d", "day", "days":
		return value / 365, true
	}
	return 0, false
}

// aboutAge reports whether an Observation states an age, by the codes of LOINC and SNOMED CT for it.
func aboutAge(r *fhir.Resource) bool {
	if r.Type != "Observation" {
		return false
	}
	for _, code := range []string{
		"30525-0", "21611-9", "21612-7", "29553-5", "39016-1", "35267-4", // age; estimated, reported, calculated, at onset, at death
		"424144002", "397669002", "105727008", // current chronological age; age; age AND/OR growth period
	} {
		if bytes.Contains(r.Text(), []byte(`"`+code+`"`)) {
			return true
		}
	}
	return false
}
