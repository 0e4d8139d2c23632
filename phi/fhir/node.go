package fhir

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

func (r *Resource) raw(n int32) []byte {
	start, end := r.nodes[n].start, r.nodes[n].end
	return r.text[start:end:end]
}

// name is a property's name; empty for array items and the root.
func (r *Resource) name(n int32) []byte {
	start := r.nodes[n].start
	if length := r.nodes[n].nameLen; length > 0 {
		return r.text[start-2-length : start-2]
	}
	return nil
}

// child is the property of an object, 0 when it has none: node 0 is the root and nobody's child.
func (r *Resource) child(n int32, name string) int32 {
	if r.nodes[n].kind != '{' {
		return 0
	}
	for c := n + 1; c < r.nodes[n].after; c = r.nodes[c].after {
		if string(r.name(c)) == name {
			return c
		}
	}
	return 0
}

// str is a string's value, "" for other values.
func (r *Resource) str(n int32) string {
	v := r.nodes[n]
	if v.kind != '"' {
		return ""
	}
	inner := r.text[v.start+1 : v.end-1]
	if !v.escaped {
		return string(inner)
	}
	return string(unescape(inner))
}

// childString is the string value of an object's property, "" when there is none.
func (r *Resource) childString(n int32, name string) string {
	if c := r.child(n, name); c != 0 {
		return r.str(c)
	}
	return ""
}

// unescape resolves the escapes of a well-formed JSON string; a lone surrogate becomes U+FFFD.
func unescape(in []byte) []byte {
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); i++ {
		if in[i] != '\\' {
			out = append(out, in[i])
			continue
		}
		i++
		switch in[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			c := hex4(in[i+1:])
			i += 4
			if utf16.IsSurrogate(c) {
				pair := rune(utf8.RuneError)
				if i+6 < len(in) && in[i+1] == '\\' && in[i+2] == 'u' {
					pair = utf16.DecodeRune(c, hex4(in[i+3:]))
				}
				if c = pair; c != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, c)
		default:
			out = append(out, in[i])
		}
	}
	return out
}

func hex4(in []byte) rune {
	c, _ := strconv.ParseUint(string(in[:4]), 16, 32)
	return rune(c)
}

// appendQuoted appends s as a JSON string; bytes that are not UTF-8 become U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return appendEscaped(dst, s)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}

func appendEscaped(dst []byte, s string) []byte {
	s = strings.ToValidUTF8(s, "\uFFFD")
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
