package phi

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// testIndex has a fixed key for each kind.
func testIndex() *index {
	keys := map[TokenKind][]byte{}
	for kind := range indexKeyNames() {
		keys[kind] = bytes.Repeat([]byte{byte(kind)}, 32)
	}
	return newIndex(keys)
}

func found(tokens, alternatives []Token) bool {
	return slices.ContainsFunc(alternatives, func(t Token) bool { return slices.Contains(tokens, t) })
}

func TestNormalizers(t *testing.T) {
	for _, tt := range []struct {
		name      string
		normalize func(string) string
		want      string
		in        []string
	}{
		{"name", normalizeName, "obrienmuller", []string{"O'Brien-Müller", "o’brien mu\u0308ller", "OBRIEN MULLER", "ＯBrien Müller", "O\u200bBrien Muller"}},
		{"name", normalizeName, "strasse", []string{"Straße", "STRASSE", "strasse", "Stra\u1e9ee"}},
		{"name", normalizeName, "istanbul", []string{"Istanbul", "İstanbul", "ISTANBUL"}},
		{"name", normalizeName, "ıslak", []string{"ıslak"}}, // the dotless i is a letter of its own
		{"name", normalizeName, "jose", []string{"José", "Jose\u0301", "JOSÉ"}},
		{"name", normalizeName, "σισυφοσ", []string{"Σίσυφος", "ΣΊΣΥΦΟΣ"}},
		{"name", normalizeName, "李小龍", []string{"李小龍", " 李 小 龍 "}},
		{"name", normalizeName, "fi", []string{"ﬁ", "fi", "FI"}},
		{"name", normalizeName, "", []string{"", " ", "-'", "\u0301"}},
		{"identifier", normalizeIdentifier, "MRN-001", []string{"MRN-001", " MRN-001\t", "ＭＲＮ－００１"}},
		{"identifier", normalizeIdentifier, "mrn-001", []string{"mrn-001"}},
		{"identifier", normalizeIdentifier, "MRN 001", []string{"MRN 001"}},
		{"phone", normalizePhone, "+15551234567", []string{"555-123-4567", "(555) 123-4567", "+1 555 123 4567", "1-555-123-4567", "555.123.4567", "555-123-4567 x12"}},
		{"phone", normalizePhone, "+4930123456", []string{"+49 30 123456", "011 49 30 123456"}},
		{"phone", normalizePhone, "https://example.org/me", []string{"https://Example.org/me"}},
		{"email", normalizeEmail, "ann.lee@example.org", []string{"Ann.Lee@Example.ORG", " ann.lee@example.org "}},
	} {
		for _, in := range tt.in {
			if got := tt.normalize(in); got != tt.want {
				t.Errorf("%s %q = %q, want %q", tt.name, in, got, tt.want)
			}
		}
	}
}

// TestASCIINames holds the short way to the long one.
func TestASCIINames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[ -~]{0,30}`).Draw(t, "name")
		if got, long := normalizeName(s), normalizeName(s+"é"); got+"e" != long {
			t.Fatalf("%q is %q alone and %q beside an accent", s, got, long)
		}
	})
}

const tokenPatient = `{"resourceType":"Patient","identifier":[{"system":"urn:mrn","value":"M-1"},{"value":"loose"},{"system":"urn:none"}],
 "name":[{"text":"Dr. Zoë van der Berg Jr.","family":"van der Berg","given":["Zoë","X"],"prefix":["Dr."],"suffix":["Jr."]}],
 "birthDate":"1980-02-29","telecom":[{"system":"phone","value":"(555) 123-4567"},{"system":"email","value":"Zoe@Example.org"},{"system":"url","value":"http://Z"},{"system":"phone"}]}`

// TestTokensGolden holds the tokens still: a change means that existing indexes find nothing, and asks for a new
// normalizerVersion and a rebuilt index.
func TestTokensGolden(t *testing.T) {
	var got strings.Builder
	for _, token := range testIndex().tokens(parse(t, tokenPatient)) {
		fmt.Fprintf(&got, "%d %s\n", token.Kind, hex.EncodeToString(token.Value[:]))
	}
	const path = "testdata/tokens.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("tokens are\n%s, want\n%s", got.String(), want)
	}
}

func TestLookup(t *testing.T) {
	x := testIndex()
	tokens := x.tokens(parse(t, tokenPatient))
	for _, tt := range []struct {
		param, value string
		ok, hit      bool
	}{
		{"identifier", "urn:mrn|M-1", true, true},
		{"identifier", "M-1", true, true},
		{"identifier", "|M-1", true, false},
		{"identifier", "|loose", true, true},
		{"identifier", "urn:other|M-1", true, false},
		{"identifier", "m-1", true, false},
		{"identifier", "nobody,M-1", true, true},
		{"identifier", `M\,1`, true, false},
		{"identifier", "urn:mrn|", false, false},
		{"identifier", "a|b|c", false, false},
		{"identifier", "", false, false},
		{"identifier", "M-1,", false, false},
		{"identifier:not", "M-1", false, false},
		{"name", "zoe", true, true},
		{"name", "ZOË", true, true},
		{"name", "van", true, true},
		{"name", "berg", true, true},
		{"name", "van der b", true, true},
		{"name", "dr", true, true},
		{"name", "jr", true, true},
		{"name", `z\oe`, true, true},
		{"name", "zob", true, false},
		{"name", "erg", true, false},
		{"name", "z", false, false},
		{"name", "--", false, false},
		{"name:exact", "Zoë", true, true},
		{"name:contains", "zoe", false, false},
		{"name:missing", "true", false, false},
		{"family", "vander", true, true},
		{"family", "zoe", true, false},
		{"given", "zoe", true, true},
		{"given", "van", true, false},
		{"birthdate", "1980-02-29", true, true},
		{"birthdate", "eq1980-02-29", true, true},
		{"birthdate", "1980-02-28", true, false},
		{"birthdate", "1980-02", false, false},
		{"birthdate", "ge1980-02-29", false, false},
		{"phone", "555-123-4567", true, true},
		{"phone", "+15551234567", true, true},
		{"phone", "phone|5551234567", true, true},
		{"phone", "555-123-4568", true, false},
		{"email", "zoe@example.org", true, true},
		{"email", "555-123-4567", true, false},
		{"telecom", "zoe@EXAMPLE.org", true, true},
		{"telecom", "(555)1234567", true, true},
		{"telecom", "http://z", true, true},
		{"gender", "female", false, false},
		{"address", "x", false, false},
	} {
		alternatives, ok := x.lookup("Patient", tt.param, tt.value)
		if ok != tt.ok || found(tokens, alternatives) != tt.hit {
			t.Errorf("lookup(%s, %s): ok %v, found %v, want %v, %v", tt.param, tt.value, ok, found(tokens, alternatives), tt.ok, tt.hit)
		}
	}
	for _, tt := range []struct{ resourceType, param string }{{"Organization", "name"}, {"FamilyMemberHistory", "name"}, {"Observation", "birthdate"}, {"Observation", "phone"}, {"Nothing", "identifier"}} {
		if _, ok := x.lookup(tt.resourceType, tt.param, "1980-01-01"); ok {
			t.Errorf("%s.%s is not indexed, but lookup is ok", tt.resourceType, tt.param)
		}
	}
}

// TestTokensDoNotCross holds that equal values of different kinds, types and keys have different tokens.
func TestTokensDoNotCross(t *testing.T) {
	x := testIndex()
	seen := map[[16]byte]string{}
	for _, resourceType := range []string{"Patient", "Practitioner"} {
		for _, param := range []string{"name", "family", "given", "identifier", "email"} {
			alternatives, ok := x.lookup(resourceType, param, "lee")
			if !ok || len(alternatives) != 1 {
				t.Fatalf("%s.%s: %v, %v", resourceType, param, alternatives, ok)
			}
			who := resourceType + "." + param
			if other := seen[alternatives[0].Value]; other != "" {
				t.Errorf("%s and %s share a token", who, other)
			}
			seen[alternatives[0].Value] = who
		}
	}
	if _, ok := newIndex(nil).lookup("Patient", "name", "lee"); ok {
		t.Error("an index without keys answers")
	}
}

func TestTokensElsewhere(t *testing.T) {
	x := testIndex()
	observation := x.tokens(parse(t, `{"resourceType":"Observation","identifier":[{"system":"s","value":"1"}],"status":"final","code":{"text":"x"}}`))
	alternatives, ok := x.lookup("Observation", "identifier", "s|1")
	if !ok || !found(observation, alternatives) || len(observation) != 2 {
		t.Errorf("Observation.identifier: %v, %v, %v", observation, alternatives, ok)
	}
	lone := x.tokens(parse(t, `{"resourceType":"QuestionnaireResponse","identifier":{"system":"s","value":"1"},"status":"completed"}`))
	if alternatives, ok = x.lookup("QuestionnaireResponse", "identifier", "s|1"); !ok || !found(lone, alternatives) {
		t.Errorf("a lone identifier: %v, %v, %v", lone, alternatives, ok)
	}
}

// TestSearchCompleteness holds that what FHIR's search matches, the index finds (experiment 18 of the notes, recall).
func TestSearchCompleteness(t *testing.T) {
	x := testIndex()
	letters := rapid.SampledFrom([]string{"a", "A", "e", "é", "e\u0301", "ß", "ss", "ö", " ", "-", "'", "’", ".", "n", "Ñ", "李", "ж", "İ", "ﬁ", "1"})
	word := rapid.Map(rapid.SliceOfN(letters, 1, 8), func(s []string) string { return strings.Join(s, "") })
	matched := 0
	rapid.Check(t, func(t *rapid.T) {
		family, given, text := word.Draw(t, "family"), word.Draw(t, "given"), word.Draw(t, "text")
		quote := func(s string) string { return `"` + s + `"` }
		r, issues := fhir.Parse([]byte(`{"resourceType":"Patient","name":[{"text":` + quote(text) + `,"family":` + quote(family) + `,"given":[` + quote(given) + `]}]}`))
		if issues != nil {
			t.Fatal(issues)
		}
		tokens := x.tokens(r)
		for _, param := range []string{"name", "family", "given", "name:exact"} {
			source := []rune(rapid.SampledFrom([]string{family, given, text}).Draw(t, "source"))
			query := string(source[:rapid.IntRange(1, len(source)).Draw(t, "length")])
			if rapid.Bool().Draw(t, "lower") {
				query = strings.ToLower(query)
			}
			criterion, issues := fhir.ParseCriterion("Patient", param, query)
			alternatives, ok := x.lookup("Patient", param, query)
			if issues != nil || !ok || !criterion.Match(r) {
				continue
			}
			matched++
			if !found(tokens, alternatives) {
				t.Fatalf("%s=%q matches %s, but the index does not find it", param, query, r.Text())
			}
		}
	})
	if matched < 50 {
		t.Errorf("only %d searches matched: the test tests nothing", matched)
	}
}

func FuzzLookup(f *testing.F) {
	x := testIndex()
	for _, seed := range []string{"a", `\`, `a\,b,c|d`, "|", "é", "\xff\xfe", "+1 555"} {
		f.Add("name", seed)
		f.Add("telecom", seed)
		f.Add("identifier", seed)
	}
	f.Fuzz(func(t *testing.T, param, value string) {
		alternatives, ok := x.lookup("Patient", param, value)
		if ok == (len(alternatives) == 0) {
			t.Errorf("lookup(%q, %q): %d alternatives, ok %v", param, value, len(alternatives), ok)
		}
	})
}

func BenchmarkTokens(b *testing.B) {
	x, r := testIndex(), parse(b, tokenPatient)
	b.ReportAllocs()
	for b.Loop() {
		x.tokens(r)
	}
}
