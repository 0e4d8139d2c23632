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

// index makes blind index tokens:
//
//	HMAC-SHA256(key of the kind, normaliser version | resource type | 0x00 | normalised value), first 16 bytes
//
// Each kind has its own random key, and the type is in the message, so equal values show as equal only within one kind
// and type. Whoever has a key can enumerate (all birth dates within milliseconds): index keys are guarded like
// key-encryption keys. Safe for concurrent use.
type index struct{ keys map[TokenKind][]byte }

// indexKeyNames names the organisation's secret behind each kind of token.
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
	}
}

// newIndex makes an index of keys (32 bytes a kind), which it keeps. Kinds without a key are not indexed, and lookups
// that need them are not ok.
func newIndex(keys map[TokenKind][]byte) *index { return &index{keys: keys} }

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

// tokens returns the record's tokens, sorted, without duplicates: of identifier and telecom in every type, of name and
// birthDate in types that stand for persons.
func (x *index) tokens(r *fhir.Resource) []Token {
	m := minter{index: x, resourceType: r.Type}
	for _, e := range r.Elements {
		class := classOf(r.Type, e.Name)
		switch {
		case e.Name == "identifier" && class == ClassIdentifier:
			each(e.Raw, func(id gjson.Result) {
				value := normalizeIdentifier(id.Get("value").String())
				if value == "" {
					return
				}
				m.add(TokenIdentifierValue, value)
				m.add(TokenIdentifier, strings.TrimSpace(id.Get("system").String())+"|"+value)
			})
		case e.Name == "name" && isPerson(r.Type):
			each(e.Raw, m.addName)
		case e.Name == "birthDate" && isPerson(r.Type):
			if date := gjson.ParseBytes(e.Raw).String(); isDate(date) {
				m.add(TokenBirthDate, date)
			}
		case e.Name == "telecom" && class == ClassContact:
			each(e.Raw, func(telecom gjson.Result) {
				value := telecom.Get("value").String()
				switch {
				case strings.TrimSpace(value) == "":
				case telecom.Get("system").String() == "email":
					m.add(TokenEmail, normalizeEmail(value))
				default:
					m.add(TokenPhone, normalizePhone(value))
				}
			})
		}
	}
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

// minter makes the tokens of one record or one lookup.
type minter struct {
	*index
	resourceType string
	macs         [TokenEmail + 1]hash.Hash
	tokens       []Token
}

func (m *minter) add(kind TokenKind, value string) bool {
	key, ok := m.keys[kind]
	if !ok {
		return false
	}
	mac := m.macs[kind]
	if mac == nil {
		mac = hmac.New(sha256.New, key)
		m.macs[kind] = mac
	}
	mac.Reset()
	message := make([]byte, 0, 64)
	message = append(append(append(message, normalizerVersion), m.resourceType...), 0)
	mac.Write(append(message, value...))
	var sum [sha256.Size]byte
	t := Token{Kind: kind}
	copy(t.Value[:], mac.Sum(sum[:0]))
	m.tokens = append(m.tokens, t)
	return true
}

func (m *minter) addName(name gjson.Result) {
	m.addPrefixes(name.Get("text").String(), TokenNamePrefix)
	m.addPrefixes(name.Get("family").String(), TokenNamePrefix, TokenFamilyPrefix)
	for _, given := range name.Get("given").Array() {
		m.addPrefixes(given.String(), TokenNamePrefix, TokenGivenPrefix)
	}
	for _, affix := range [...]string{"prefix", "suffix"} {
		for _, part := range name.Get(affix).Array() {
			m.addPrefixes(part.String(), TokenNamePrefix)
		}
	}
}

func (m *minter) addPrefixes(part string, kinds ...TokenKind) {
	for _, word := range nameWords(part) {
		last := ""
		for _, n := range prefixLengths() {
			if n > len(word) {
				break
			}
			prefix := cut(word, n)
			if prefix == last {
				continue
			}
			last = prefix
			for _, kind := range kinds {
				m.add(kind, prefix)
			}
		}
	}
}

// addPrefix adds the token of the longest indexed prefix of what was searched for.
func (m *minter) addPrefix(kind TokenKind, search string) bool {
	search = normalizeName(search)
	longest := ""
	for _, n := range prefixLengths() {
		if n > len(search) {
			break
		}
		longest = cut(search, n)
	}
	return longest != "" && m.add(kind, longest)
}

// lookup returns the tokens of which a record that satisfies the search parameter carries at least one. param may carry
// a modifier; value is as it came, commas separating alternatives. Not ok means that the index cannot answer and the
// caller must filter otherwise. What the tokens find are candidates: prefixes are truncated and normalised, so verify
// them after opening.
func (x *index) lookup(resourceType, param, value string) (alternatives []Token, ok bool) {
	name, modifier, _ := strings.Cut(param, ":")
	m := minter{index: x, resourceType: resourceType}
	for _, alternative := range fhir.SplitSearchValue(value, ',') {
		if !m.addSearch(name, modifier, alternative) {
			return nil, false
		}
	}
	return m.tokens, true
}

// addSearch adds the tokens of one alternative, in which FHIR's escapes still stand.
func (m *minter) addSearch(param, modifier, value string) bool {
	class := func(element string) Class { return classOf(m.resourceType, element) }
	switch param {
	case "name", "family", "given":
		kind := map[string]TokenKind{"name": TokenNamePrefix, "family": TokenFamilyPrefix, "given": TokenGivenPrefix}[param]
		return isPerson(m.resourceType) && (modifier == "" || modifier == "exact") && m.addPrefix(kind, fhir.SearchLiteral(value))
	}
	if modifier != "" {
		return false
	}
	switch param {
	case "identifier":
		if class("identifier") != ClassIdentifier {
			return false
		}
		parts := fhir.SplitSearchValue(value, '|')
		id := normalizeIdentifier(fhir.SearchLiteral(parts[len(parts)-1]))
		switch {
		case id == "" || len(parts) > 2:
			return false // a whole system, or malformed
		case len(parts) == 1:
			return m.add(TokenIdentifierValue, id)
		}
		return m.add(TokenIdentifier, strings.TrimSpace(fhir.SearchLiteral(parts[0]))+"|"+id)
	case "birthdate":
		date := strings.TrimPrefix(value, "eq")
		return isPerson(m.resourceType) && isDate(date) && m.add(TokenBirthDate, date)
	case "phone", "email", "telecom":
		parts := fhir.SplitSearchValue(value, '|')
		contact := fhir.SearchLiteral(parts[len(parts)-1])
		if class("telecom") != ClassContact || strings.TrimSpace(contact) == "" || len(parts) > 2 {
			return false
		}
		switch param {
		case "phone":
			return m.add(TokenPhone, normalizePhone(contact))
		case "email":
			return m.add(TokenEmail, normalizeEmail(contact))
		}
		return m.add(TokenPhone, normalizePhone(contact)) && m.add(TokenEmail, normalizeEmail(contact))
	}
	return false
}
