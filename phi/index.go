package phi

import (
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// index makes the blind index tokens of one generation:
//
//	HMAC-SHA256(key of the kind and generation, rules | resource type | 0x00 | normalised value), first 16 bytes
//
// Each kind has its own random key in each generation, and the type is in the message, so equal values show as equal only
// within one kind, type and generation. Whoever has a key can enumerate (all birth dates within milliseconds): index keys are
// guarded like key-encryption keys. Safe for concurrent use.
type index struct {
	IndexGeneration
	keys map[TokenKind][]byte
}

// indexKeyNames names the organisation's secret behind each kind of token, in generation 1.
func indexKeyNames() map[TokenKind]string {
	return map[TokenKind]string{
		TokenIdentifier:      "index-identifier",
		TokenIdentifierValue: "index-identifier-value",
		TokenNamePrefix:      "index-name-prefix",
		TokenFamilyPrefix:    "index-family-prefix",
		TokenGivenPrefix:     "index-given-prefix",
		TokenBirthDate:       "index-birth-date",
		TokenPhone:           "index-phone",
		TokenEmail:           "index-email",
		TokenName:            "index-name",
		TokenFamily:          "index-family",
		TokenGiven:           "index-given",
		TokenFamilyBirth:     "index-family-birth",
		TokenInitialYear:     "index-initial-year",
		TokenSoundYear:       "index-sound-year",
	}
}

// kinds are the kinds of tokens of a generation, with the names of their secrets: what has no key is not indexed.
func (g IndexGeneration) kinds() map[TokenKind]string {
	kinds := indexKeyNames()
	drop := func(unwanted ...TokenKind) {
		for _, kind := range unwanted {
			delete(kinds, kind)
		}
	}
	if !g.named(NamesPrefix) {
		drop(TokenNamePrefix, TokenFamilyPrefix, TokenGivenPrefix)
	}
	if !g.named(NamesExact) {
		drop(TokenName, TokenFamily, TokenGiven)
	}
	if !strings.HasSuffix(string(g.Names), phonetically) {
		drop(TokenSoundYear)
	}
	if g.Rules < 2 {
		drop(TokenFamilyBirth, TokenInitialYear, TokenSoundYear)
	}
	return kinds
}

// named reports how names are indexed, whether by sound too or not.
func (g IndexGeneration) named(names NameSearch) bool {
	return strings.TrimSuffix(string(g.Names), phonetically) == string(names)
}

// newIndex makes an index of keys (32 bytes a kind), which it keeps. Kinds without a key are not indexed, and lookups
// that need them are not ok.
func newIndex(g IndexGeneration, keys map[TokenKind][]byte) *index {
	return &index{IndexGeneration: g, keys: keys}
}

// prefixLengths returns the lengths at which normalised names are cut, in bytes of UTF-8: the cut is at the rune
// boundary at or before. In bytes, because a Han character says as much as three Latin letters. One Latin letter is not
// indexed: it would sort all patients by initial for whoever holds a dump, and finds too many to be of use.
func prefixLengths() [6]int { return [...]int{2, 3, 4, 6, 8, 12} }

// cut returns the prefix of s of at most n bytes that ends at a rune boundary. When s is a prefix of t and n ≤ len(s),
// both give the same.
func cut(s string, n int) string {
	for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// prefixes are the indexed prefixes of a normalised name, ascending.
func prefixes(name string) []string {
	lengths := prefixLengths()
	return cuts(name, lengths[:])
}

// compoundPrefixes are those that compounds hold: with a birth date, few letters are enough.
func compoundPrefixes(name string) []string { return cuts(name, []int{2, 4}) }

func cuts(name string, lengths []int) []string {
	var all []string
	for _, n := range lengths {
		if n > len(name) {
			break
		}
		if prefix := cut(name, n); prefix != "" && (len(all) == 0 || all[len(all)-1] != prefix) {
			all = append(all, prefix)
		}
	}
	return all
}

// tokens returns the tokens of a record's elements, sorted, without duplicates: of identifier and telecom in every type, of
// name and birthDate in types that stand for persons.
func (x *index) tokens(resourceType string, elements []fhir.Element) []Token {
	return x.some(allKinds, resourceType, elements)
}

// allKinds has a bit for each kind of token.
const allKinds uint32 = 1<<NumTokenKinds - 1

// some returns the tokens of some kinds.
func (x *index) some(kinds uint32, resourceType string, elements []fhir.Element) []Token {
	if replaced(resourceType, elements) {
		return nil
	}
	m := minter{index: x, kinds: kinds, resourceType: resourceType}
	var p person
	for _, e := range elements {
		class := classOf(resourceType, e.Name)
		switch {
		case e.Name == "identifier" && class == ClassIdentifier:
			each(e.Raw, func(id gjson.Result) {
				value := x.identifier(id.Get("value").String())
				if value == "" {
					return
				}
				m.add(TokenIdentifierValue, value)
				m.add(TokenIdentifier, identified(id.Get("system").String(), value))
			})
		case e.Name == "name" && isPerson(resourceType):
			each(e.Raw, func(name gjson.Result) {
				m.addName(name)
				p.add(&m, name)
			})
		case e.Name == "birthDate" && isPerson(resourceType):
			date := gjson.ParseBytes(e.Raw).String()
			if isDate(date) {
				p.day = date
				m.add(TokenBirthDate, date)
			}
			p.year, _ = birthYear(date)
		case e.Name == "telecom" && class == ClassContact && (m.wants(TokenPhone) || m.wants(TokenEmail)):
			each(e.Raw, func(telecom gjson.Result) {
				value := telecom.Get("value").String()
				switch {
				case strings.TrimSpace(value) == "":
				case telecom.Get("system").String() == "email":
					m.add(TokenEmail, normalizeEmail(value))
				default:
					m.addPhone(value)
				}
			})
		}
	}
	m.addCompounds(&p)
	slices.SortFunc(m.tokens, compareTokens)
	return slices.Compact(m.tokens)
}

// isPerson reports whether records of the type stand for persons: Patient, Person, Practitioner, RelatedPerson.
func isPerson(resourceType string) bool { return classOf(resourceType, "birthDate") == ClassBirthDate }

// each calls f for the items of an array, or for a lone object.
func each(raw []byte, f func(gjson.Result)) {
	v := gjson.ParseBytes(raw)
	if !v.IsArray() {
		f(v)
		return
	}
	v.ForEach(func(_, item gjson.Result) bool { f(item); return true })
}

// identified is the message of an identifier's token. A system has no bar, or the value would seem to begin earlier; where one
// does, two identifiers may share a token, and the candidates are verified after opening.
func identified(system, value string) string { return strings.TrimSpace(system) + "|" + value }

// person is what compound tokens are made of.
type person struct {
	families []string // as the generation indexes them in compounds
	initials []string // first letters of the given names
	sounds   []string // of the words of family and given names
	day      string   // of birth; "" when it is not known to the day
	year     string
}

func (p *person) add(m *minter, name gjson.Result) {
	if m.wants(TokenSoundYear) {
		p.sounds = append(p.sounds, soundsOfName(name)...)
	}
	if !m.wants(TokenFamilyBirth) && !m.wants(TokenInitialYear) {
		return
	}
	p.families = append(p.families, m.familyTerms(name.Get("family").String())...)
	for _, given := range name.Get("given").Array() {
		if initial := initialOf(given.String()); initial != "" {
			p.initials = append(p.initials, initial)
		}
	}
}

// familyTerms are a family name as compounds hold it: cut where prefixes are indexed, else whole and by word.
func (x *index) familyTerms(family string) []string {
	if _, ok := x.keys[TokenFamilyPrefix]; ok {
		return compoundPrefixes(normalizeName(family))
	}
	return nameWords(family)
}

// familyTerm is the one of familyTerms by which a search finds the family name.
func (x *index) familyTerm(search string) string {
	name := normalizeName(search)
	if _, ok := x.keys[TokenFamilyPrefix]; ok {
		cuts := compoundPrefixes(name)
		if len(cuts) == 0 {
			return ""
		}
		return cuts[len(cuts)-1]
	}
	return name
}

// minter makes the tokens of one record or one lookup.
type minter struct {
	*index
	kinds        uint32 // that are wanted, a bit each
	resourceType string
	macs         [NumTokenKinds]hash.Hash
	tokens       []Token
}

// wants reports whether tokens of a kind are made: the generation has it, and it was asked for. What they are made of need not be
// normalised otherwise.
func (m *minter) wants(kind TokenKind) bool { return m.keys[kind] != nil && m.kinds>>kind&1 != 0 }

// add adds the token of a normalised value; not ok when its kind is not wanted.
func (m *minter) add(kind TokenKind, value string) bool {
	if !m.wants(kind) {
		return false
	}
	mac := m.macs[kind]
	if mac == nil {
		mac = hmac.New(sha256.New, m.keys[kind])
		m.macs[kind] = mac
	}
	mac.Reset()
	message := make([]byte, 0, 64)
	message = append(append(append(message, m.Rules), m.resourceType...), 0)
	mac.Write(append(message, value...))
	var sum [sha256.Size]byte
	t := Token{Kind: kind}
	copy(t.Value[:], mac.Sum(sum[:0]))
	m.tokens = append(m.tokens, t)
	return true
}

func (m *minter) addName(name gjson.Result) {
	m.addPart(name.Get("text").String(), TokenNamePrefix, TokenName)
	m.addPart(name.Get("family").String(), TokenNamePrefix, TokenName, TokenFamilyPrefix, TokenFamily)
	for _, given := range name.Get("given").Array() {
		m.addPart(given.String(), TokenNamePrefix, TokenName, TokenGivenPrefix, TokenGiven)
	}
	for _, affix := range [...]string{"prefix", "suffix"} {
		for _, part := range name.Get(affix).Array() {
			m.addPart(part.String(), TokenNamePrefix, TokenName)
		}
	}
}

// addPart adds a part of a name under those of the kinds that the generation has.
func (m *minter) addPart(part string, kinds ...TokenKind) {
	for _, word := range nameWords(part) {
		for _, kind := range kinds {
			switch kind {
			case TokenNamePrefix, TokenFamilyPrefix, TokenGivenPrefix:
				if !m.wants(kind) {
					continue
				}
				for _, prefix := range prefixes(word) {
					m.add(kind, prefix)
				}
			default:
				m.add(kind, word)
			}
		}
	}
}

// addPhone adds a phone number as E.164 has it, and as FHIR compares it: by its digits, whatever country code they lack.
func (m *minter) addPhone(value string) bool {
	ok := m.add(TokenPhone, normalizePhone(value))
	if digits := digitsOf(value); m.Rules >= 2 && digits != "" {
		m.add(TokenPhone, digits)
	}
	return ok
}

// addCompounds adds the tokens of a person's compounds. Any family name may go with any given name: FHIR's parameters are
// independent of each other.
func (m *minter) addCompounds(p *person) {
	if p.year == "" {
		return
	}
	for _, family := range p.families {
		if p.day != "" {
			m.add(TokenFamilyBirth, compound(family, p.day))
		}
		for _, initial := range p.initials {
			m.add(TokenInitialYear, compound(family, initial, p.year))
		}
	}
	for _, sound := range p.sounds {
		m.add(TokenSoundYear, compound(sound, p.year))
	}
}

// compound joins values, none of which holds the separator: they are letters and digits, or dates.
func compound(values ...string) string { return strings.Join(values, "|") }
