package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// structure is what we read of a StructureDefinition.
type structure struct {
	ResourceType, Name, Kind, Derivation, FhirVersion string
	Abstract                                          bool
	Snapshot                                          struct{ Element []element }
}

type element struct {
	ID               string
	Min              int
	Max              string
	ContentReference string
	Type             []struct {
		Code      string
		Extension []struct{ URL, ValueURL string }
	}
	Binding struct{ Strength, ValueSet string }
}

// model is the elements of all types; the elements that hold a backbone are types too, named by their path.
type model struct {
	names []string
	kinds map[string]string
	rows  map[string][]row
}

type row struct {
	name     string
	min      int
	max      string
	types    []string // names of types
	valueSet string
}

func newModel(structures []structure) *model {
	m := &model{kinds: map[string]string{}, rows: map[string][]row{}}
	for _, s := range structures {
		// SubscriptionStatus is R5; the package backports it. Profiles of Quantity are not types.
		if s.ResourceType != "StructureDefinition" || s.Derivation == "constraint" || s.Name == "SubscriptionStatus" ||
			s.Abstract && s.Kind == "resource" {
			continue
		}
		kind := strings.TrimSuffix(s.Kind, "-type")
		if kind == "primitive" {
			m.add(s.Name, kind)
			continue
		}
		m.addType(s, kind)
	}
	slices.Sort(m.names)
	return m
}

func (m *model) add(name, kind string) {
	m.names = append(m.names, name)
	m.kinds[name] = kind
}

func (m *model) addType(s structure, kind string) {
	m.add(s.Name, kind)
	for i, e := range s.Snapshot.Element[1:] {
		dot := strings.LastIndexByte(e.ID, '.')
		owner, name := e.ID[:dot], e.ID[dot+1:]
		r := row{name: name, min: e.Min, max: e.Max}
		switch {
		case e.ContentReference != "":
			r.types = []string{strings.TrimPrefix(e.ContentReference, "#")}
		case i+2 < len(s.Snapshot.Element) && strings.HasPrefix(s.Snapshot.Element[i+2].ID, e.ID+"."):
			m.add(e.ID, "backbone")
			r.types = []string{e.ID}
		default:
			for _, t := range e.Type {
				code := t.Code
				for _, x := range t.Extension {
					if strings.HasSuffix(x.URL, "structuredefinition-fhir-type") {
						code = x.ValueURL
					}
				}
				if owner == s.Name && name == "id" && kind == "resource" {
					code = "id" // R4 says string here; http://hl7.org/fhir/R4/resource.html says id
				}
				r.types = append(r.types, code)
			}
		}
		if e.Binding.Strength == "required" {
			url, _, _ := strings.Cut(e.Binding.ValueSet, "|")
			r.valueSet = url
		}
		m.rows[owner] = append(m.rows[owner], r)
	}
}

// write renders the types and returns the value sets that they bind.
func (m *model) write(w io.Writer) map[string]bool {
	bound := map[string]bool{}
	for _, name := range m.names {
		fmt.Fprintf(w, "type %s %s\n", name, m.kinds[name])
		for _, r := range m.rows[name] {
			fmt.Fprintf(w, " %s %d %s %s", r.name, r.min, r.max, strings.Join(r.types, "|"))
			if r.valueSet != "" && !boundless[r.valueSet] {
				bound[r.valueSet] = true
				fmt.Fprintf(w, " ^%s", short(r.valueSet))
			}
			fmt.Fprintln(w)
		}
	}
	return bound
}

// boundless are the required bindings whose codes cannot be listed: grammars, catalogues outside HL7, and three value
// sets that R4 itself does not define.
var boundless = map[string]bool{
	"http://hl7.org/fhir/ValueSet/mimetypes":                      true,
	"http://hl7.org/fhir/ValueSet/currencies":                     true,
	"http://hl7.org/fhir/ValueSet/ucum-units":                     true,
	"http://hl7.org/fhir/ValueSet/characteristic-combination":     true,
	"http://hl7.org/fhir/ValueSet/subscription-notification-type": true,
	"http://loinc.org/vs/LL379-9":                                 true,
}

// short names a value set by the part of its URL that HL7 does not share.
func short(url string) string { return strings.TrimPrefix(url, "http://hl7.org/fhir/ValueSet/") }
