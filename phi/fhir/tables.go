package fhir

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
)

//go:generate go run ./generate -out tables.txt.gz

//go:embed tables.txt.gz
var packedTables []byte

// definitions are the tables, read once when first needed and never changed: about 4 ms.
var definitions = sync.OnceValue(func() *tables {
	t, err := readTables(packedTables)
	if err != nil {
		panic(err) // the file is part of the program; its test would have failed
	}
	return t
})

// tables is the content of tables.txt.gz; the format is described in generate.
type tables struct {
	types       map[string]*typ
	resources   []string // sorted
	sets        map[string]*valueSet
	search      map[string][]*param // by resource type, sorted by name
	compartment map[string][]*param // the patient compartment's parameters in the definition's order
}

// typ is a FHIR type, or the content of a backbone element, named by its path.
type typ struct {
	name     string
	kind     string // primitive, complex, backbone, resource; any for the abstract Resource
	elements map[string]*elem
	slots    []slot
}

// slot is an element as FHIR defines it; a choice is one slot under several JSON names.
type slot struct {
	name     string
	min, max int // max 0 is unbounded
}

type elem struct {
	typ  *typ
	slot int
	many bool // a JSON array
	set  *valueSet
}

// valueSet is the codes of a required binding.
type valueSet struct {
	name    string
	systems map[string][]string // code → systems that define it
}

func (v *valueSet) has(system, code string) bool { return slices.Contains(v.systems[code], system) }

func readTables(packed []byte) (*tables, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("reading the FHIR tables: %w", err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("reading the FHIR tables: %w", err)
	}
	t := &tables{
		types:       map[string]*typ{"Resource": {name: "Resource", kind: "any"}},
		sets:        map[string]*valueSet{},
		search:      map[string][]*param{},
		compartment: map[string][]*param{},
	}
	var section []string // the heading above the line
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		if row, ok := strings.CutPrefix(line, " "); ok {
			err = t.row(section, row)
		} else {
			section = strings.Fields(line)
			err = t.heading(section)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the FHIR tables: line %d: %w", i+1, err)
		}
	}
	slices.Sort(t.resources)
	return t, nil
}

func (t *tables) heading(section []string) error {
	if len(section) < 2 {
		return fmt.Errorf("heading %q", section)
	}
	switch name := section[1]; section[0] {
	case "type":
		ty := t.typ(name)
		ty.kind = section[2]
		if ty.kind == "resource" {
			t.resources = append(t.resources, name)
		}
	case "valueset":
		t.set(name)
	case "search":
	case "compartment":
		for _, p := range section[2:] {
			found := findParam(t.search[name], p)
			if found == nil {
				return fmt.Errorf("compartment parameter %s of %s", p, name)
			}
			t.compartment[name] = append(t.compartment[name], found)
		}
	default:
		return fmt.Errorf("heading %q", section)
	}
	return nil
}

// typ and set return a place to fill, since lines may name what comes later.
func (t *tables) typ(name string) *typ {
	if t.types[name] == nil {
		t.types[name] = &typ{name: name, elements: map[string]*elem{}}
	}
	return t.types[name]
}

func (t *tables) set(name string) *valueSet {
	if t.sets[name] == nil {
		t.sets[name] = &valueSet{name: name, systems: map[string][]string{}}
	}
	return t.sets[name]
}

func (t *tables) row(section []string, row string) error {
	switch section[0] {
	case "type":
		return t.element(t.typ(section[1]), strings.Fields(row))
	case "valueset":
		set := t.set(section[1])
		codes := strings.Split(row, "\t")
		for _, code := range codes[1:] {
			set.systems[code] = append(set.systems[code], codes[0])
		}
	case "search":
		p, err := t.param(section[1], strings.Fields(row))
		if err != nil {
			return err
		}
		t.search[section[1]] = append(t.search[section[1]], p)
	default:
		return fmt.Errorf("row %q under %q", row, section)
	}
	return nil
}

func (t *tables) element(owner *typ, f []string) error {
	if len(f) < 4 {
		return fmt.Errorf("element %q", f)
	}
	s := slot{name: f[0]}
	var err error
	if s.min, err = strconv.Atoi(f[1]); err != nil {
		return fmt.Errorf("element %q: %w", f, err)
	}
	if f[2] != "*" {
		if s.max, err = strconv.Atoi(f[2]); err != nil {
			return fmt.Errorf("element %q: %w", f, err)
		}
	}
	owner.slots = append(owner.slots, s)
	e := elem{slot: len(owner.slots) - 1, many: s.max != 1}
	if len(f) > 4 {
		e.set = t.set(strings.TrimPrefix(f[4], "^"))
	}
	stem, choice := strings.CutSuffix(s.name, "[x]")
	for _, name := range strings.Split(f[3], "|") {
		one := e
		one.typ = t.typ(name)
		if choice {
			owner.elements[stem+strings.ToUpper(name[:1])+name[1:]] = &one
		} else {
			owner.elements[stem] = &one
		}
	}
	return nil
}

// Known reports whether t is a resource type that can be stored.
func Known(t string) bool {
	found := definitions().types[t]
	return found != nil && found.kind == "resource"
}

// Types lists the resource types, sorted.
func Types() []string { return slices.Clone(definitions().resources) }

// InPatientCompartment reports whether records of the type belong to patients.
func InPatientCompartment(t string) bool { return len(definitions().compartment[t]) > 0 }
