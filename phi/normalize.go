package phi

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nyaruka/phonenumbers"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// IndexRules is the version of the rules by which values become tokens, and part of every token. A change of a normaliser, of
// the Unicode tables behind it, or of what is indexed gives a new version, which comes into use with the next index generation;
// TestNormalizers and TestTokensGolden hold the rules still. The versions:
//
//  1. Identifiers keep case and separators; a phone number has one token; no compounds.
//  2. Identifiers without case and separators; phone numbers by their digits too; compounds.
const IndexRules = 2

// normalizeName makes equal what people type differently: NFKC, case folding, NFKD without marks, and of that only
// letters and digits. "O’Brien-Müller" and "obrien muller" are the same. The rule is coarser than FHIR's string search
// (http://hl7.org/fhir/R4/search.html#string), so a token finds at least what a search must find.
func normalizeName(s string) string {
	if name, ok := asciiName(s); ok {
		return name
	}
	var b strings.Builder
	for _, r := range norm.NFKD.String(cases.Fold().String(norm.NFKC.String(s))) {
		if unicode.IsLetter(r) || unicode.IsNumber(r) {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// asciiName is normalizeName for what most names are made of.
func asciiName(s string) (string, bool) {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 0x80:
			return "", false
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			b = append(b, c)
		case 'A' <= c && c <= 'Z':
			b = append(b, c|0x20)
		}
	}
	return string(b), true
}

// nameWords are the searchable parts of a name part: the whole, and each word where there are several.
func nameWords(part string) []string {
	words := strings.FieldsFunc(part, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) && !unicode.IsMark(r) })
	parts := make([]string, 0, len(words)+1)
	if whole := normalizeName(part); whole != "" {
		parts = append(parts, whole)
	}
	if len(words) > 1 {
		for _, w := range words {
			if w = normalizeName(w); w != "" {
				parts = append(parts, w)
			}
		}
	}
	return parts
}

// identifier makes equal what people write and scan differently: compatibility forms (full width digits), case, white space, dashes,
// dots, slashes and underscores. "mrn 001" and "MRN-001" are the same, so they cannot be two patients' under a unique system.
// FHIR's token search tells them apart (http://hl7.org/fhir/R4/search.html#token): candidates are verified after opening.
func (g IndexGeneration) identifier(s string) string {
	s = strings.TrimSpace(norm.NFKC.String(s))
	if g.Rules < 2 {
		return s
	}
	if bare := strings.Map(func(r rune) rune {
		if r == '.' || r == '/' || r == '_' || unicode.IsSpace(r) || unicode.In(r, unicode.Pd, unicode.Cf) {
			return -1
		}
		return r
	}, norm.NFKC.String(cases.Fold().String(s))); bare != "" {
		return bare
	}
	return s // of separators only
}

// normalizePhone is E.164, numbers without a country code taken as of the United States; extensions are dropped. What
// is no phone number at all (a URL in telecom) is only folded.
func normalizePhone(s string) string {
	if n, err := phonenumbers.Parse(s, "US"); err == nil {
		return phonenumbers.Format(n, phonenumbers.E164)
	}
	return normalizeEmail(s)
}

// normalizeEmail folds case: mail domains are case-insensitive (RFC 5321, 2.4), and local parts are in practice.
func normalizeEmail(s string) string {
	return strings.TrimSpace(cases.Fold().String(norm.NFKC.String(s)))
}

// isDate reports whether s is a FHIR date of day precision.
func isDate(s string) bool {
	if len(s) != len("2006-01-02") {
		return false
	}
	for i := range len(s) {
		if i == 4 || i == 7 {
			if s[i] != '-' {
				return false
			}
		} else if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// birthYear returns the year of a FHIR date of any precision.
func birthYear(date string) (string, bool) {
	if len(date) != len("2006") && len(date) != len("2006-01") && !isDate(date) {
		return "", false
	}
	for i := range len(date) {
		if i != 4 && i != 7 && (date[i] < '0' || date[i] > '9') {
			return "", false
		}
	}
	return date[:4], true
}

// initialOf is the first letter of a normalised name.
func initialOf(name string) string {
	name = normalizeName(name)
	_, n := utf8.DecodeRuneInString(name)
	return name[:n]
}

// digitsOf is how FHIR compares phone numbers (fhir.Criterion).
func digitsOf(s string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
}
