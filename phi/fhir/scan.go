package fhir

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// node is one JSON value of a resource's compact text. Nodes lie in document order, so that the first child of a
// container is the next node and the sibling is the node after the subtree: no pointers, one allocation.
type node struct {
	start, end int32 // of the value in the text
	after      int32 // index of the first node that is not in this subtree
	nameLen    int32 // of a property's name, which stands in the text before the value: "name":value
	kind       byte  // first byte of the value: { [ " t f n, or 0 for a number
	escaped    bool  // a string with a backslash
}

const number = 0 // kind of a number, whatever its first byte

// maxText keeps offsets within int32.
const maxText = 1 << 30

// Parse parses one resource of a known type. The data is not kept. A non-nil error slice means nothing was parsed; codes
// are structure (not JSON, not an object, duplicate name, too deep) or not-supported (unknown type).
//
// JSON is RFC 8259 and I-JSON's rule of unique names (RFC 7493). A property name with an escape is refused, because no
// FHIR element needs one and two spellings of one name must not pass. An escape of a lone surrogate is kept as text. The
// resource is a value that methods only read: many goroutines may use it at once.
func Parse(data []byte) (*Resource, []Issue) {
	if len(data) > maxText {
		return nil, []Issue{{"error", "structure", "the text is too long", ""}}
	}
	if !utf8.Valid(data) {
		return nil, []Issue{{"error", "structure", "the text is not UTF-8", ""}}
	}
	s := scanner{in: data, out: make([]byte, 0, len(data)), nodes: make([]node, 0, len(data)/20+8)}
	s.space()
	if s.peek() != '{' {
		return nil, s.issues("a resource must be a JSON object")
	}
	if problem := s.value(0, 1); problem != "" {
		return nil, s.issues(problem)
	}
	if s.space(); s.pos < len(s.in) {
		s.open = s.open[:0]
		return nil, s.issues("there is text after the resource")
	}
	r := &Resource{text: s.out, nodes: s.nodes}
	return r.readRoot()
}

// readRoot fills the exported fields from the nodes.
func (r *Resource) readRoot() (*Resource, []Issue) {
	count := 0
	for c := int32(1); c < r.nodes[0].after; c = r.nodes[c].after {
		count++
	}
	r.Elements = make([]Element, 0, count)
	for c := int32(1); c < r.nodes[0].after; c = r.nodes[c].after {
		name := r.name(c)
		switch {
		case string(name) == "resourceType":
			if r.nodes[c].kind != '"' {
				return nil, []Issue{{"error", "structure", "resourceType must be a string", ""}}
			}
			r.Type = r.str(c)
		case string(name) == "id":
			if r.nodes[c].kind != '"' {
				return nil, []Issue{{"error", "structure", "id must be a string", "id"}}
			}
			r.ID = r.str(c)
		default:
			r.Elements = append(r.Elements, Element{string(name), r.raw(c)})
		}
	}
	if r.Type == "" {
		return nil, []Issue{{"error", "structure", "resourceType is missing", "resourceType"}}
	}
	if !Known(r.Type) {
		return nil, []Issue{{"error", "not-supported", "the resource type is not one of FHIR R4", "resourceType"}}
	}
	return r, nil
}

// scanner reads JSON once, copying it without its white space and noting its nodes.
type scanner struct {
	in    []byte
	pos   int
	out   []byte
	nodes []node
	open  []int32 // the containers around pos, and the value that is being read
}

func (s *scanner) space() {
	for s.pos < len(s.in) {
		switch s.in[s.pos] {
		case ' ', '\n', '\r', '\t':
			s.pos++
		default:
			return
		}
	}
}

// peek is the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.pos < len(s.in) {
		return s.in[s.pos]
	}
	return 0
}

// value reads one value; nameLen belongs to its node. It returns what is wrong, "" for nothing, and leaves open as it
// was at the fault.
func (s *scanner) value(nameLen, depth int) string {
	at := int32(len(s.nodes))
	c := s.peek()
	s.nodes = append(s.nodes, node{start: int32(len(s.out)), after: at + 1, nameLen: int32(nameLen), kind: c})
	s.open = append(s.open, at)
	var problem string
	switch c {
	case '{', '[':
		if depth > MaxDepth {
			return fmt.Sprintf("nesting is deeper than %d", MaxDepth)
		}
		s.take()
		if c == '{' {
			problem = s.members(at, depth)
		} else {
			problem = s.items(depth)
		}
		s.nodes[at].after = int32(len(s.nodes))
		if problem == "" && c == '{' {
			problem = s.unique(at)
		}
	case '"':
		s.nodes[at].escaped, problem = s.quoted()
	case 't':
		problem = s.word("true")
	case 'f':
		problem = s.word("false")
	case 'n':
		problem = s.word("null")
	default:
		s.nodes[at].kind = number
		problem = s.number()
	}
	if problem != "" {
		return problem
	}
	s.nodes[at].end = int32(len(s.out))
	s.open = s.open[:len(s.open)-1]
	return ""
}

func (s *scanner) take() {
	s.out = append(s.out, s.in[s.pos])
	s.pos++
}

func (s *scanner) members(at int32, depth int) string {
	s.space()
	if s.peek() == '}' {
		s.take()
		return ""
	}
	for {
		if s.peek() != '"' {
			return "a property name is missing"
		}
		start := len(s.out)
		escaped, problem := s.quoted()
		if problem != "" {
			return problem
		}
		if escaped {
			return "a property name has an escape"
		}
		nameLen := len(s.out) - start - 2
		if s.space(); s.peek() != ':' {
			return "a colon is missing"
		}
		s.take()
		s.space()
		if problem := s.value(nameLen, depth+1); problem != "" {
			return problem
		}
		s.space()
		switch s.peek() {
		case ',':
			s.take()
			s.space()
		case '}':
			s.take()
			return ""
		default:
			return "a comma or closing brace is missing"
		}
	}
}

func (s *scanner) items(depth int) string {
	s.space()
	if s.peek() == ']' {
		s.take()
		return ""
	}
	for {
		if problem := s.value(0, depth+1); problem != "" {
			return problem
		}
		s.space()
		switch s.peek() {
		case ',':
			s.take()
			s.space()
		case ']':
			s.take()
			return ""
		default:
			return "a comma or closing bracket is missing"
		}
	}
}

// fewNames is up to how many names comparing each with each is cheaper than a map.
const fewNames = 24

// unique reports a name that an object has twice.
func (s *scanner) unique(at int32) string {
	r := Resource{text: s.out, nodes: s.nodes}
	count := 0
	var seen map[string]struct{}
	for c := at + 1; c < s.nodes[at].after; c = s.nodes[c].after {
		name := r.name(c)
		duplicate := false
		if count++; count <= fewNames {
			for d := at + 1; d < c && !duplicate; d = s.nodes[d].after {
				duplicate = string(r.name(d)) == string(name)
			}
		} else {
			if seen == nil {
				seen = make(map[string]struct{})
				for d := at + 1; d < c; d = s.nodes[d].after {
					seen[string(r.name(d))] = struct{}{}
				}
			}
			_, duplicate = seen[string(name)]
			seen[string(name)] = struct{}{}
		}
		if duplicate {
			s.open = append(s.open, c)
			return "a property name stands twice in one object"
		}
	}
	return ""
}

// quoted reads a string and reports whether it has escapes.
func (s *scanner) quoted() (escaped bool, problem string) {
	start := s.pos
	for s.pos++; s.pos < len(s.in); s.pos++ {
		switch c := s.in[s.pos]; {
		case c == '"':
			s.pos++
			s.out = append(s.out, s.in[start:s.pos]...)
			return escaped, ""
		case c < ' ':
			return escaped, "a string has a control character"
		case c == '\\':
			escaped = true
			s.pos++
			switch s.peek() {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					s.pos++
					if !isHex(s.peek()) {
						return escaped, "a string has a malformed escape"
					}
				}
			default:
				return escaped, "a string has a malformed escape"
			}
		}
	}
	return escaped, "a string is not closed"
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func (s *scanner) word(w string) string {
	if !strings.HasPrefix(string(s.in[s.pos:min(s.pos+len(w), len(s.in))]), w) {
		return "a value is not JSON"
	}
	s.pos += len(w)
	s.out = append(s.out, w...)
	return ""
}

// number reads RFC 8259's number.
func (s *scanner) number() string {
	start := s.pos
	if s.peek() == '-' {
		s.pos++
	}
	switch {
	case s.peek() == '0':
		s.pos++
	case !s.digits():
		return "a value is not JSON"
	}
	if s.peek() == '.' {
		s.pos++
		if !s.digits() {
			return "a number is malformed"
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if !s.digits() {
			return "a number is malformed"
		}
	}
	s.out = append(s.out, s.in[start:s.pos]...)
	return ""
}

func (s *scanner) digits() bool {
	start := s.pos
	for isDigit(s.peek()) {
		s.pos++
	}
	return s.pos > start
}

// issues makes the one finding of a failed scan, with the path of the value at fault.
func (s *scanner) issues(problem string) []Issue {
	r := Resource{text: s.out, nodes: s.nodes}
	// The open containers do not know their ends yet, and a value at fault is none to read.
	for _, at := range s.open {
		r.nodes[at].after = int32(len(r.nodes))
		if r.nodes[at].kind == '"' {
			r.nodes[at].kind = 'n'
		}
	}
	expression := ""
	if len(s.open) > 0 {
		expression = r.path(s.open[len(s.open)-1])
	}
	return []Issue{{"error", "structure", problem, expression}}
}
