package fhir

import (
	"bytes"
	"strings"
)

// primitive checks one value of a primitive type, http://hl7.org/fhir/R4/datatypes.html#primitive.
func (v *validator) primitive(n int32, e *elem) {
	kind, raw := v.nodes[n].kind, v.raw(n)
	switch e.typ.name {
	case "boolean":
		if kind != 't' && kind != 'f' {
			v.report(n, "value", "the value must be true or false")
		}
		return
	case "integer", "positiveInt", "unsignedInt":
		if kind != number || !isInteger(raw, e.typ.name) {
			v.report(n, "value", "the value must be a number of type "+e.typ.name)
		}
		return
	case "decimal":
		if kind != number {
			v.report(n, "value", "the value must be a number")
		}
		return
	}
	if kind != '"' {
		v.report(n, "value", "the value must be a string")
		return
	}
	inner := raw[1 : len(raw)-1]
	if v.nodes[n].escaped {
		inner = unescape(inner)
	}
	if !wellFormed(inner, e.typ.name) {
		v.report(n, "value", "the value is not a well-formed "+e.typ.name)
		return
	}
	if e.set != nil && e.set.systems[string(inner)] == nil {
		v.report(n, "code-invalid", "the code is not in value set "+e.set.name)
	}
}

// isInteger checks a JSON number against FHIR's 32-bit types: no fraction, no exponent.
func isInteger(raw []byte, kind string) bool {
	digits := raw
	negative := len(raw) > 0 && raw[0] == '-'
	if negative {
		digits = raw[1:]
	}
	if len(digits) == 0 || len(digits) > 10 {
		return false
	}
	var n int64
	for _, c := range digits {
		if !isDigit(c) {
			return false
		}
		n = n*10 + int64(c-'0')
	}
	switch kind {
	case "positiveInt":
		return !negative && n >= 1 && n <= 1<<31-1
	case "unsignedInt":
		return !negative && n <= 1<<31-1
	}
	return n <= 1<<31-1 || negative && n == 1<<31
}

// wellFormed checks a primitive that is a JSON string.
func wellFormed(s []byte, kind string) bool {
	switch kind {
	case "id":
		return ValidID(string(s))
	case "code":
		return isCode(s)
	case "uri", "url", "canonical":
		return len(s) > 0 && bytes.IndexFunc(s, isSpace) < 0
	case "oid":
		return isOID(string(s))
	case "uuid":
		return isUUID(string(s))
	case "date":
		_, p, _ := moment(string(s))
		return p != noMoment && p <= toDay
	case "dateTime":
		_, p, zoned := moment(string(s))
		return p != noMoment && p <= toDay || p == toSecond && zoned
	case "instant":
		_, p, zoned := moment(string(s))
		return p == toSecond && zoned
	case "time":
		_, _, p, rest := clock(string(s))
		return p == toSecond && rest == ""
	case "base64Binary":
		return isBase64(s)
	case "xhtml":
		return isDiv(s)
	}
	// string and markdown: something other than white space, no control characters but tab and line ends.
	return len(bytes.TrimSpace(s)) > 0 && bytes.IndexFunc(s, isControl) < 0
}

func isSpace(c rune) bool { return c <= ' ' }

func isControl(c rune) bool { return c < ' ' && c != '\t' && c != '\n' && c != '\r' }

// isCode: no white space at the ends, and inside only single spaces.
func isCode(s []byte) bool {
	if len(s) == 0 || s[0] == ' ' || s[len(s)-1] == ' ' {
		return false
	}
	for i, c := range s {
		if c < ' ' || c == ' ' && s[i+1] == ' ' {
			return false
		}
	}
	return true
}

func isOID(s string) bool {
	arcs, ok := strings.CutPrefix(s, "urn:oid:")
	if !ok || len(arcs) < 3 || arcs[0] < '0' || arcs[0] > '2' || arcs[1] != '.' {
		return false
	}
	for _, arc := range strings.Split(arcs, ".") {
		if arc == "" || len(arc) > 1 && arc[0] == '0' || strings.Trim(arc, "0123456789") != "" {
			return false
		}
	}
	return true
}

func isUUID(s string) bool {
	id, ok := strings.CutPrefix(s, "urn:uuid:")
	if !ok || len(id) != 36 {
		return false
	}
	for i := range len(id) {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash && id[i] != '-' || !dash && !isHex(id[i]) {
			return false
		}
	}
	return true
}

// isBase64 allows white space between the characters, as the FHIR pattern does.
func isBase64(s []byte) bool {
	if bytes.IndexFunc(s, isSpace) >= 0 {
		s = bytes.Join(bytes.Fields(s), nil)
	}
	if len(s) == 0 || len(s)%4 != 0 {
		return false
	}
	pad := 0
	for pad < 2 && s[len(s)-1-pad] == '=' {
		pad++
	}
	for _, c := range s[:len(s)-pad] {
		if !isDigit(c) && (c|0x20 < 'a' || c|0x20 > 'z') && c != '+' && c != '/' {
			return false
		}
	}
	return true
}

// isDiv checks that a narrative is one div element with content. What is inside is the concern of who shows it.
func isDiv(s []byte) bool {
	s = bytes.TrimSpace(s)
	if !bytes.HasPrefix(s, []byte("<div")) || len(s) < 6 || s[4] != ' ' && s[4] != '>' && !isSpace(rune(s[4])) {
		return false
	}
	return bytes.HasSuffix(s, []byte("</div>"))
}
