package phi

import (
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// soundLength is how many sounds a code has: what differs later sounds alike.
const soundLength = 4

// soundsOf returns how a name may sound: its Double Metaphone codes (Lawrence Philips, C/C++ Users Journal, June 2000), of which
// the second, for how others pronounce it, is often the first again. Two names sound alike when they share a code. Names
// without a Latin letter have none.
func soundsOf(name string) []string {
	m := metaphone{word: normalizeName(name)}
	m.slavic = strings.ContainsAny(m.word, "wk") || strings.Contains(m.word, "cz")
	if m.is(0, "gn", "kn", "pn", "wr", "ps") {
		m.at = 1
	}
	for m.at < len(m.word) && (len(m.first) < soundLength || len(m.second) < soundLength) {
		m.at += m.letter()
	}
	var sounds []string
	for _, code := range []string{m.first, m.second} {
		code = code[:min(len(code), soundLength)]
		if code != "" && !slices.Contains(sounds, code) {
			sounds = append(sounds, code)
		}
	}
	return sounds
}

// metaphone is a word on its way to its codes.
type metaphone struct {
	word          string // lower case
	at            int    // the letter that is looked at
	slavic        bool   // or Germanic
	first, second string
}

// add appends to both codes, or each its own.
func (m *metaphone) add(first string, second ...string) {
	m.first += first
	if len(second) > 0 {
		first = second[0]
	}
	m.second += first
}

// char is the letter at a place, 0 outside the word.
func (m *metaphone) char(i int) byte {
	if i < 0 || i >= len(m.word) {
		return 0
	}
	return m.word[i]
}

// in reports whether the letter at a place is one of letters.
func (m *metaphone) in(i int, letters string) bool {
	c := m.char(i)
	return c != 0 && strings.IndexByte(letters, c) >= 0
}

func (m *metaphone) vowel(i int) bool { return m.in(i, "aeiouy") }

// is reports whether one of the texts stands at a place.
func (m *metaphone) is(i int, texts ...string) bool {
	if i < 0 || i > len(m.word) {
		return false
	}
	return slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(m.word[i:], s) })
}

func (m *metaphone) germanic() bool { return m.is(0, "sch") }
func (m *metaphone) last() bool     { return m.at == len(m.word)-1 }

// doubled is how far a sound goes that the same letter may follow, or one of others.
func (m *metaphone) doubled(others string) int {
	if m.in(m.at+1, others) || m.char(m.at+1) == m.char(m.at) {
		return 2
	}
	return 1
}

// letter adds the sound of the letter at hand and returns how many letters it took.
func (m *metaphone) letter() int {
	switch c := m.char(m.at); c {
	case 'a', 'e', 'i', 'o', 'u', 'y':
		if m.at == 0 {
			m.add("A")
		}
		return 1
	case 'b':
		m.add("P")
		return m.doubled("")
	case 'c':
		return m.c()
	case 'd':
		return m.d()
	case 'f', 'v':
		m.add("F")
		return m.doubled("")
	case 'g':
		return m.g()
	case 'h':
		if (m.at == 0 || m.vowel(m.at-1)) && m.vowel(m.at+1) {
			m.add("H")
			return 2
		}
		return 1
	case 'j':
		return m.j()
	case 'k', 'q':
		m.add("K")
		return m.doubled("")
	case 'l':
		return m.l()
	case 'm':
		m.add("M")
		if m.is(m.at-1, "umb") && (m.at+1 == len(m.word)-1 || m.is(m.at+2, "er")) {
			return 2
		}
		return m.doubled("")
	case 'n':
		m.add("N")
		return m.doubled("")
	case 'p':
		if m.char(m.at+1) == 'h' {
			m.add("F")
			return 2
		}
		m.add("P")
		return m.doubled("b")
	case 'r':
		if m.last() && !m.slavic && m.is(m.at-2, "ie") && !m.is(m.at-4, "me", "ma") { // Rogier
			m.add("", "R")
		} else {
			m.add("R")
		}
		return m.doubled("")
	case 's':
		return m.s()
	case 't':
		return m.t()
	case 'w':
		return m.w()
	case 'x':
		switch {
		case m.at == 0: // Xavier
			m.add("S")
		case m.last() && (m.is(m.at-3, "iau", "eau") || m.is(m.at-2, "au", "ou")): // Breaux
		default:
			m.add("KS")
		}
		return m.doubled("c")
	case 'z':
		switch {
		case m.char(m.at+1) == 'h': // Zhao
			m.add("J")
			return 2
		case m.is(m.at+1, "zo", "zi", "za") || m.slavic && m.at > 0 && m.char(m.at-1) != 't':
			m.add("S", "TS")
		default:
			m.add("S")
		}
		return m.doubled("")
	}
	return 1 // no Latin letter: it has no sound here
}

func (m *metaphone) c() int {
	i := m.at
	switch {
	case i > 1 && !m.vowel(i-2) && m.is(i-1, "ach") && m.char(i+2) != 'i' && (m.char(i+2) != 'e' || m.is(i-2, "bacher", "macher")), // Bacher
		m.is(i, "chia"): // Chianti
		m.add("K")
		return 2
	case i == 0 && m.is(0, "caesar"):
		m.add("S")
		return 2
	case m.is(i, "ch"):
		return m.ch()
	case m.is(i, "cz") && !m.is(i-2, "wicz"): // Czerny
		m.add("S", "X")
		return 2
	case m.is(i+1, "cia"): // focaccia
		m.add("X")
		return 3
	case m.is(i, "cc") && (i != 1 || m.char(0) != 'm'): // not McClellan
		switch {
		case !m.in(i+2, "ieh") || m.is(i+2, "hu"):
			m.add("K")
			return 2
		case i == 1 && m.char(0) == 'a' || m.is(i-1, "uccee", "ucces"): // accident
			m.add("KS")
		default: // Bertucci
			m.add("X")
		}
		return 3
	case m.is(i, "ck", "cg", "cq"):
		m.add("K")
		return 2
	case m.is(i, "cio", "cie", "cia"):
		m.add("S", "X")
		return 2
	case m.is(i, "ci", "ce", "cy"):
		m.add("S")
		return 2
	}
	m.add("K")
	if m.in(i+1, "ckq") && !m.is(i+1, "ce", "ci") {
		return 2
	}
	return 1
}

func (m *metaphone) ch() int {
	i := m.at
	switch {
	case i > 0 && m.is(i, "chae"): // Michael
		m.add("K", "X")
	case i == 0 && m.is(1, "harac", "haris", "hor", "hym", "hia", "hem") && !m.is(0, "chore"), // chorus
		m.germanic(), m.is(i-2, "orches", "archit", "orchid"), m.in(i+2, "ts"),
		(i == 0 || m.in(i-1, "aoue")) && (i+2 == len(m.word) || m.in(i+2, "lrnmbhfvw")): // Wachtler
		m.add("K")
	case i == 0:
		m.add("X")
	case m.is(0, "mc"):
		m.add("K")
	default:
		m.add("X", "K")
	}
	return 2
}

func (m *metaphone) d() int {
	switch {
	case m.is(m.at, "dg") && m.in(m.at+2, "iey"): // edge
		m.add("J")
		return 3
	case m.is(m.at, "dg"): // Edgar
		m.add("TK")
		return 2
	}
	m.add("T")
	return m.doubled("t")
}

func (m *metaphone) g() int {
	i := m.at
	switch {
	case m.char(i+1) == 'h':
		m.gh()
		return 2
	case m.char(i+1) == 'n':
		switch {
		case i == 1 && m.vowel(0) && !m.slavic:
			m.add("KN", "N")
		case !m.is(i+2, "ey") && !m.slavic:
			m.add("N", "KN")
		default:
			m.add("KN")
		}
		return 2
	case m.is(i+1, "li") && !m.slavic: // Tagliaro
		m.add("KL", "L")
		return 2
	case i == 0 && (m.char(1) == 'y' || m.is(1, "es", "ep", "eb", "el", "ey", "ib", "il", "in", "ie", "ei", "er")),
		(m.is(i+1, "er") || m.char(i+1) == 'y') && !m.is(0, "danger", "ranger", "manger") && !m.in(i-1, "ei") && !m.is(i-1, "rgy", "ogy"):
		m.add("K", "J")
		return 2
	case m.in(i+1, "eiy") || m.is(i-1, "aggi", "oggi"):
		switch {
		case m.germanic() || m.is(i+1, "et"):
			m.add("K")
		case m.is(i+1, "ier") && i+4 == len(m.word):
			m.add("J")
		default:
			m.add("J", "K")
		}
		return 2
	}
	m.add("K")
	return m.doubled("")
}

func (m *metaphone) gh() {
	i := m.at
	switch {
	case i > 0 && !m.vowel(i-1):
		m.add("K")
	case i == 0 && m.char(2) == 'i': // Ghislane
		m.add("J")
	case i == 0:
		m.add("K")
	case m.in(i-2, "bhd"), m.in(i-3, "bhd"), m.in(i-4, "bh"): // Hugh, bough, Broughton
	case m.char(i-1) == 'u' && m.in(i-3, "cglrt"): // laugh, McLaughlin, cough, rough, tough
		m.add("F")
	case m.char(i-1) != 'i':
		m.add("K")
	}
}

func (m *metaphone) j() int {
	i := m.at
	switch {
	case m.is(i, "jose") || m.is(0, "san"): // Spanish
		if i == 0 && len(m.word) == 4 || m.is(0, "san") {
			m.add("H")
		} else {
			m.add("J", "H")
		}
		return 1
	case i == 0: // Jankelowicz
		m.add("J", "A")
	case m.vowel(i-1) && !m.slavic && m.in(i+1, "ao"): // bajador
		m.add("J", "H")
	case m.last():
		m.add("J", "")
	case !m.in(i+1, "ltksnmbz") && !m.in(i-1, "skl"):
		m.add("J")
	}
	return m.doubled("")
}

func (m *metaphone) l() int {
	i, n := m.at, len(m.word)
	if m.char(i+1) != 'l' {
		m.add("L")
		return 1
	}
	if i == n-3 && m.is(i-1, "illo", "illa", "alle") || (m.is(n-2, "as", "os") || m.in(n-1, "ao")) && m.is(i-1, "alle") { // Cabrillo
		m.add("L", "")
	} else {
		m.add("L")
	}
	return 2
}

func (m *metaphone) s() int {
	i := m.at
	switch {
	case m.is(i-1, "isl", "ysl"): // island, Carlisle
		return 1
	case i == 0 && m.is(0, "sugar"):
		m.add("X", "S")
		return 1
	case m.is(i, "sh"):
		if m.is(i+1, "heim", "hoek", "holm", "holz") {
			m.add("S")
		} else {
			m.add("X")
		}
		return 2
	case m.is(i, "sio", "sia"):
		if m.slavic {
			m.add("S")
		} else {
			m.add("S", "X")
		}
		return 3
	case i == 0 && m.in(1, "mnlw") || m.char(i+1) == 'z': // Smith beside Schmidt
		m.add("S", "X")
		if m.char(i+1) == 'z' {
			return 2
		}
		return 1
	case m.is(i, "sch"):
		switch {
		case m.is(i+3, "er", "en"): // Schermerhorn
			m.add("X", "SK")
		case m.is(i+3, "oo", "uy", "ed", "em"):
			m.add("SK")
		case i == 0 && !m.vowel(3) && m.char(3) != 'w':
			m.add("X", "S")
		default:
			m.add("X")
		}
		return 3
	case m.is(i, "sc"):
		if m.in(i+2, "iey") {
			m.add("S")
		} else {
			m.add("SK")
		}
		return 3
	}
	if m.last() && m.is(i-2, "ai", "oi") { // Resnais
		m.add("", "S")
	} else {
		m.add("S")
	}
	return m.doubled("z")
}

func (m *metaphone) t() int {
	i := m.at
	switch {
	case m.is(i, "tion", "tia", "tch"):
		m.add("X")
		return 3
	case m.is(i, "th", "tth"):
		if m.is(i+2, "om", "am") || m.germanic() { // Thomas
			m.add("T")
		} else {
			m.add("0", "T")
		}
		return 2
	}
	m.add("T")
	return m.doubled("d")
}

func (m *metaphone) w() int {
	i := m.at
	switch {
	case m.is(i, "wr"):
		m.add("R")
		return 2
	case i == 0 && m.vowel(1): // Wasserman
		m.add("A", "F")
	case i == 0 && m.is(0, "wh"):
		m.add("A")
	case m.last() && m.vowel(i-1), m.is(i-1, "ewski", "ewsky", "owski", "owsky"), m.germanic(): // Arnow
		m.add("", "F")
	case m.is(i, "wicz", "witz"): // Filipowicz
		m.add("TS", "FX")
		return 4
	}
	return 1
}

// phonetic is the criterion of Patient's search parameter of that name: a word of a family or given name sounds like one of
// the alternatives (http://hl7.org/fhir/R4/patient.html#search leaves the algorithm to the server).
type phonetic struct{ sounds []string }

// parsePhonetic is not ok when an alternative has no sound.
func parsePhonetic(value string) (phonetic, bool) {
	var p phonetic
	for _, alternative := range fhir.SplitSearchValue(value, ',') {
		sounds := soundsOf(fhir.SearchLiteral(alternative))
		if len(sounds) == 0 {
			return p, false
		}
		p.sounds = append(p.sounds, sounds...)
	}
	return p, true
}

// Elements implements criterion.
func (phonetic) Elements() []string { return []string{"name"} }

// Match implements criterion.
func (p phonetic) Match(r *fhir.Resource) bool {
	matches := false
	for _, e := range r.Elements {
		if e.Name == "name" {
			each(e.Raw, func(name gjson.Result) {
				matches = matches || slices.ContainsFunc(soundsOfName(name), func(s string) bool { return slices.Contains(p.sounds, s) })
			})
		}
	}
	return matches
}

// soundsOfName are the sounds of the words of a name's family and given parts.
func soundsOfName(name gjson.Result) []string {
	var sounds []string
	for _, part := range append(name.Get("given").Array(), name.Get("family")) {
		for _, word := range nameWords(part.String()) {
			sounds = append(sounds, soundsOf(word)...)
		}
	}
	return sounds
}
