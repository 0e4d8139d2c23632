package balp

import (
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
)

// writer appends JSON. Commas come from what stands before; the caller opens and closes in pairs.
type writer struct{ b []byte }

// name begins a member, or an item of an array when the name is "".
func (w *writer) name(name string) {
	if last := w.b[len(w.b)-1]; last != '{' && last != '[' {
		w.b = append(w.b, ',')
	}
	if name != "" {
		w.b = append(w.b, '"')
		w.b = append(w.b, name...)
		w.b = append(w.b, `":`...)
	}
}

func (w *writer) open(name string, bracket byte) {
	w.name(name)
	w.b = append(w.b, bracket)
}

func (w *writer) close(bracket byte) { w.b = append(w.b, bracket) }

// text writes a string that FHIR can hold: what it cannot is replaced.
func (w *writer) text(name, s string) {
	w.name(name)
	w.b = appendString(w.b, s)
}

// optional writes a string unless it is empty: FHIR has no empty strings.
func (w *writer) optional(name, s string) {
	if s != "" {
		w.text(name, s)
	}
}

func (w *writer) binary(name string, b []byte) {
	w.name(name)
	w.b = append(w.b, '"')
	w.b = base64.StdEncoding.AppendEncode(w.b, b)
	w.b = append(w.b, '"')
}

func (w *writer) coding(name, system, code, display string) {
	w.open(name, '{')
	w.text("system", system)
	w.text("code", uri(code))
	w.optional("display", display)
	w.close('}')
}

func (w *writer) concept(name, system, code, display string) {
	w.open(name, '{')
	w.open("coding", '[')
	w.coding("", system, code, display)
	w.close(']')
	w.close('}')
}

func (w *writer) identifier(system, value string) {
	w.open("identifier", '{')
	w.optional("system", uri(system))
	w.text("value", value)
	w.close('}')
}

// extension writes an extension of ours with a string of some type; none for "".
func (w *writer) extension(name, kind, value string) {
	if value == "" {
		return
	}
	w.open("", '{')
	w.text("url", ExtensionBase+name)
	w.text(kind, value)
	w.close('}')
}

func (w *writer) bytes(name string, b []byte) {
	if len(b) == 0 {
		return
	}
	w.open("", '{')
	w.text("url", ExtensionBase+name)
	w.binary("valueBase64Binary", b)
	w.close('}')
}

func (w *writer) number(name, digits string) {
	w.open("", '{')
	w.text("url", ExtensionBase+name)
	w.name("valueDecimal")
	w.b = append(w.b, digits...)
	w.close('}')
}

func (w *writer) flag(name string, value bool) {
	w.open("", '{')
	w.text("url", ExtensionBase+name)
	w.name("valueBoolean")
	w.b = strconv.AppendBool(w.b, value)
	w.close('}')
}

func (w *writer) openExtension(name string) {
	w.open("", '{')
	w.text("url", ExtensionBase+name)
	w.open("extension", '[')
}

func (w *writer) closeExtension() {
	w.close(']')
	w.close('}')
}

const replacement = "\uFFFD"

// appendString appends s as a JSON string that is a FHIR string: http://hl7.org/fhir/R4/datatypes.html#string has no control
// characters but tab and line ends, and something other than white space.
func appendString(b []byte, s string) []byte {
	if strings.TrimSpace(s) == "" {
		return append(b, `"`+replacement+`"`...)
	}
	b = append(b, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < ' ':
			b = append(b, replacement...)
		default:
			b = append(b, string(c)...)
		}
	}
	return append(b, '"')
}

// uri makes s fit for a FHIR uri or code: no white space.
func uri(s string) string {
	return strings.Map(func(c rune) rune {
		if c <= ' ' {
			return '\uFFFD'
		}
		return c
	}, s)
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
