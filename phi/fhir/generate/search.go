package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// searchParameter is what we read of a SearchParameter.
type searchParameter struct {
	Code, Type, Expression string
	Base                   []string
}

type compartmentDefinition struct {
	Resource []struct {
		Code  string
		Param []string
	}
}

// matchable lists, per kind of parameter, the types of values that phi/fhir can compare. A parameter that reaches any
// other type is left out, except for the types in passed.
var (
	matchable = map[string][]string{
		"token":     {"code", "Coding", "CodeableConcept", "Identifier", "ContactPoint", "boolean", "string", "id", "uri", "canonical", "truth"},
		"string":    {"string", "markdown", "HumanName", "Address"},
		"date":      {"date", "dateTime", "instant", "Period", "Timing"},
		"reference": {"Reference", "canonical", "uri"},
		"quantity":  {"Quantity", "Age", "Duration", "Count", "Distance", "Range", "Money"},
		"number":    {"decimal", "integer", "positiveInt", "unsignedInt"},
		"uri":       {"uri", "url", "canonical", "oid", "uuid"},
	}
	// passed are types that a choice allows but FHIR has no comparison for: http://hl7.org/fhir/R4/search.html#table
	passed = map[string][]string{
		"quantity":  {"SampledData"},
		"date":      {"string", "Age", "Range"},
		"reference": {"Attachment"},
	}
	// usCore are the parameters that US Core 6.1.0 adds, as in http://hl7.org/fhir/us/core/STU6.1/search-parameters.html.
	// Race and ethnicity are written with the coding instead of its code alone, so that system|code works.
	usCore = map[string][]string{
		"CareTeam":  {"role token participant.role:CodeableConcept"},
		"Condition": {"asserted-date date extension[url=http://hl7.org/fhir/StructureDefinition/condition-assertedDate].valueDateTime:dateTime"},
		"Encounter": {"discharge-disposition token hospitalization.dischargeDisposition:CodeableConcept"},
		"Goal":      {"description token description:CodeableConcept"},
		"Patient": {
			"ethnicity token extension[url=http://hl7.org/fhir/us/core/StructureDefinition/us-core-ethnicity].extension.valueCoding:Coding",
			"gender-identity token extension[url=http://hl7.org/fhir/us/core/StructureDefinition/us-core-genderIdentity].valueCodeableConcept:CodeableConcept",
			"race token extension[url=http://hl7.org/fhir/us/core/StructureDefinition/us-core-race].extension.valueCoding:Coding",
		},
	}
)

// place is one way from a resource to a value.
type place struct{ path, kind string }

// writeSearch renders the parameters and returns which there are, as "Type.name".
func writeSearch(w io.Writer, m *model, params []searchParameter) map[string]bool {
	written := map[string]bool{}
	slices.SortFunc(params, func(a, b searchParameter) int { return strings.Compare(a.Code, b.Code) })
	for _, base := range m.names {
		if m.kinds[base] != "resource" {
			continue
		}
		rows := slices.Clone(usCore[base])
		for _, p := range params {
			// A phonetic search needs an algorithm that FHIR leaves open; the prefix search would pass for it.
			if p.Code == "phonetic" || !slices.Contains(p.Base, base) || written[base+"."+p.Code] {
				continue
			}
			places, ok := m.places(base, p)
			if !ok {
				continue
			}
			written[base+"."+p.Code] = true
			line := p.Code + " " + p.Type
			for _, pl := range places {
				line += " " + pl.path + ":" + pl.kind
			}
			rows = append(rows, line)
		}
		slices.SortFunc(rows, func(a, b string) int {
			return strings.Compare(strings.Fields(a)[0], strings.Fields(b)[0])
		})
		fmt.Fprintf(w, "search %s\n", base)
		for _, row := range rows {
			fmt.Fprintf(w, " %s\n", row)
		}
	}
	return written
}

func writeCompartment(w io.Writer, c compartmentDefinition, m *model, searchable map[string]bool) error {
	for _, r := range c.Resource {
		if len(r.Param) == 0 || m.kinds[r.Code] == "" {
			continue
		}
		for _, p := range r.Param {
			if !searchable[r.Code+"."+p] {
				return fmt.Errorf("compartment: %s.%s has no path", r.Code, p)
			}
		}
		fmt.Fprintf(w, "compartment %s %s\n", r.Code, strings.Join(r.Param, " "))
	}
	return nil
}

// places compiles a parameter's FHIRPath for one type; false when any part of it is outside the subset.
func (m *model) places(base string, p searchParameter) ([]place, bool) {
	if p.Expression == base+".deceased.exists() and "+base+".deceased != false" {
		return []place{{"deceasedBoolean", "truth"}, {"deceasedDateTime", "truth"}}, true
	}
	var all []place
	for _, alternative := range strings.Split(p.Expression, " | ") {
		alternative = strings.TrimSpace(alternative)
		first, _, _ := strings.Cut(strings.TrimLeft(alternative, "("), ".")
		if first != base {
			if first == "" || first[0] >= 'A' && first[0] <= 'Z' {
				continue // another type's alternative
			}
			alternative = base + "." + alternative
		}
		found, ok := m.compile(base, alternative)
		if !ok {
			return nil, false
		}
		for _, f := range found {
			switch {
			case slices.Contains(passed[p.Type], f.kind):
			case !slices.Contains(matchable[p.Type], f.kind):
				return nil, false
			case !slices.Contains(all, f):
				all = append(all, f)
			}
		}
	}
	return all, len(all) > 0
}

var (
	castBinary = regexp.MustCompile(`^\((\S+) as (\w+)\)`)
	castCall   = regexp.MustCompile(`\.(?:as|ofType)\((\w+)\)`)
	isType     = regexp.MustCompile(`\.where\(resolve\(\) is (\w+)\)`)
	equals     = regexp.MustCompile(`\.where\((\w+)='([\w-]+)'\)`)
	step       = regexp.MustCompile(`^(\w+)(<\w+>)?(\[[^\]]+\])?$`)
)

// compile turns Type.a.b.where(resolve() is X) and the casts (p as X), p.as(X), p.ofType(X) into places.
func (m *model) compile(base, expression string) ([]place, bool) {
	text := castBinary.ReplaceAllString(expression, "$1<$2>")
	text = castCall.ReplaceAllString(text, "<$1>")
	text = isType.ReplaceAllString(text, "[@$1]")
	text = equals.ReplaceAllString(text, "[$1=$2]")
	steps := strings.Split(text, ".")
	if steps[0] != base {
		return nil, false
	}
	at := []place{{"", base}}
	for _, s := range steps[1:] {
		parts := step.FindStringSubmatch(s)
		if parts == nil || parts[3] == "[0]" {
			return nil, false
		}
		var next []place
		for _, p := range at {
			for _, child := range m.children(p.kind, parts[1], strings.Trim(parts[2], "<>")) {
				child.path = strings.TrimPrefix(p.path+"."+child.path+parts[3], ".")
				next = append(next, child)
			}
		}
		if len(next) == 0 {
			return nil, false
		}
		at = next
	}
	return at, true
}

// children lists the JSON properties that a FHIRPath step reaches; cast narrows a choice.
func (m *model) children(kind, name, cast string) []place {
	for _, r := range m.rows[kind] {
		if r.name == name && (cast == "" || r.types[0] == cast) {
			return []place{{name, r.types[0]}}
		}
		if r.name == name+"[x]" {
			var found []place
			for _, t := range r.types {
				if cast == "" || t == cast {
					found = append(found, place{name + strings.ToUpper(t[:1]) + t[1:], t})
				}
			}
			return found
		}
	}
	return nil
}
