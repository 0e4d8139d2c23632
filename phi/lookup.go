package phi

import (
	"slices"
	"strings"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// maximalCompounds bounds the alternatives that a compound lookup asks for; with more, a search goes by its parts.
const maximalCompounds = 64

// lookup returns a conjunction of alternatives: a record that satisfies the search parameters carries at least one token of
// each. Parameters may carry a modifier; values are as they came, commas separating alternatives. Nil means that the index
// cannot answer and the caller must filter otherwise. What the tokens find are candidates: values are normalised and names
// truncated, so verify them after opening.
//
// What finds the fewest goes alone, since every set is read whole: identifiers and contacts; then the family name with the birth
// date; a sound, or the family name and the given name's initial, with the birth year; then the birth date; names alone at last.
func (x *index) lookup(resourceType string, params []Param) [][]Token {
	var unique, names, days [][]Token
	var w wanted
	for _, p := range params {
		m := minter{index: x, kinds: allKinds, resourceType: resourceType}
		name, modifier, _ := strings.Cut(p.Name, ":")
		values := fhir.SplitSearchValue(p.Value, ',')
		switch name {
		case "identifier", "phone", "email", "telecom":
			if m.all(values, func(value string) bool { return modifier == "" && m.addSearch(name, value) }) {
				unique = append(unique, m.tokens)
			}
		case "name", "family", "given":
			if !isPerson(resourceType) || modifier != "" && modifier != "exact" {
				continue
			}
			w.addName(x, name, values)
			if m.all(values, func(value string) bool { return m.addNameSearch(name, fhir.SearchLiteral(value)) }) {
				names = append(names, m.tokens)
			}
		case "phonetic":
			if p, ok := parsePhonetic(p.Value); ok && resourceType == "Patient" && modifier == "" && w.sounds == nil {
				w.sounds = p.sounds
			}
		case "birthdate":
			if !isPerson(resourceType) || modifier != "" {
				continue
			}
			w.addBirth(values)
			if m.all(values, func(value string) bool {
				date := strings.TrimPrefix(value, "eq")
				return isDate(date) && m.add(TokenBirthDate, date)
			}) {
				days = append(days, m.tokens)
			}
		}
	}
	if len(unique) > 0 {
		return unique
	}
	m := minter{index: x, kinds: allKinds, resourceType: resourceType}
	switch {
	case m.addProduct(TokenFamilyBirth, w.families, w.days),
		m.addProduct(TokenSoundYear, w.sounds, w.years),
		m.addProduct(TokenInitialYear, w.families, w.initials, w.years):
		return [][]Token{m.tokens}
	case len(days) > 0:
		return days
	}
	return names
}

// wanted is what the parts of compounds must be, each a list of alternatives; the first parameter of a kind counts.
type wanted struct{ families, initials, sounds, days, years []string }

func (w *wanted) addName(x *index, param string, values []string) {
	switch {
	case param == "family" && w.families == nil:
		w.families = terms(values, func(value string) string { return x.familyTerm(fhir.SearchLiteral(value)) })
	case param == "given" && w.initials == nil:
		w.initials = terms(values, func(value string) string { return initialOf(fhir.SearchLiteral(value)) })
	}
}

func (w *wanted) addBirth(values []string) {
	days := terms(values, func(value string) string {
		if date := strings.TrimPrefix(value, "eq"); isDate(date) {
			return date
		}
		return ""
	})
	years := terms(values, func(value string) string {
		year, _ := birthYear(strings.TrimPrefix(value, "eq"))
		return year
	})
	if w.days == nil {
		w.days = days
	}
	if w.years == nil {
		w.years = years
	}
}

// terms returns the term of each value, nil when one has none: then the alternatives cannot be told.
func terms(values []string, term func(string) string) []string {
	all := make([]string, 0, len(values))
	for _, value := range values {
		t := term(value)
		if t == "" {
			return nil
		}
		all = append(all, t)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// all adds every alternative; one that cannot be told makes the parameter useless.
func (m *minter) all(values []string, add func(string) bool) bool {
	for _, value := range values {
		if !add(value) {
			return false
		}
	}
	return true
}

// addProduct adds a compound of each combination.
func (m *minter) addProduct(kind TokenKind, parts ...[]string) bool {
	combined := []string{""}
	for i, alternatives := range parts {
		if len(alternatives) == 0 || len(combined)*len(alternatives) > maximalCompounds {
			return false
		}
		var next []string
		for _, already := range combined {
			for _, part := range alternatives {
				if i > 0 {
					part = compound(already, part)
				}
				next = append(next, part)
			}
		}
		combined = next
	}
	return m.all(combined, func(value string) bool { return m.add(kind, value) })
}

// addNameSearch adds the token of the longest indexed prefix of what was searched for, or of the whole of it.
func (m *minter) addNameSearch(param, search string) bool {
	name := normalizeName(search)
	prefix := map[string]TokenKind{"name": TokenNamePrefix, "family": TokenFamilyPrefix, "given": TokenGivenPrefix}[param]
	if _, ok := m.keys[prefix]; ok {
		cuts := prefixes(name)
		return len(cuts) > 0 && m.add(prefix, cuts[len(cuts)-1])
	}
	whole := map[string]TokenKind{"name": TokenName, "family": TokenFamily, "given": TokenGiven}[param]
	return name != "" && m.add(whole, name)
}

// addSearch adds the tokens of one alternative of a token parameter, in which FHIR's escapes still stand.
func (m *minter) addSearch(param, value string) bool {
	class := func(element string) Class { return classOf(m.resourceType, element) }
	parts := fhir.SplitSearchValue(value, '|')
	if len(parts) > 2 {
		return false // malformed
	}
	literal := fhir.SearchLiteral(parts[len(parts)-1])
	if param == "identifier" {
		id := m.identifier(literal)
		switch {
		case id == "" || class("identifier") != ClassIdentifier:
			return false // a whole system, or nothing
		case len(parts) == 1:
			return m.add(TokenIdentifierValue, id)
		}
		return m.add(TokenIdentifier, identified(fhir.SearchLiteral(parts[0]), id))
	}
	if class("telecom") != ClassContact || strings.TrimSpace(literal) == "" {
		return false
	}
	switch param {
	case "phone":
		return m.addPhone(literal)
	case "email":
		return m.add(TokenEmail, normalizeEmail(literal))
	}
	return m.addPhone(literal) && m.add(TokenEmail, normalizeEmail(literal))
}
