package auth

import "strings"

// Level is the first part of a resource scope: on whose behalf, and how far, it reaches.
type Level byte

const (
	LevelPatient Level = iota // the launch patient's compartment
	LevelUser                 // what the user's roles permit
	LevelSystem               // what a backend service's roles permit

	levels = 3
)

// letters is the order in which SMART v2 wants the letters of a scope.
const letters = "cruds"

// mask is a set of interactions, one bit for each of letters.
type mask byte

func (i Interaction) mask() mask {
	at := i.index()
	if at < 0 {
		return 0 // an unknown interaction is in no set: denied
	}
	return 1 << at
}

// index is the place of the interaction in letters, -1 when it is none of them.
func (i Interaction) index() int { return strings.IndexByte(letters, byte(i)) }

// Scopes are the SMART App Launch scopes of a token, parsed once at verification
// (https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html, v1 and v2 syntax). The zero Scopes cover
// nothing. Immutable.
type Scopes struct {
	any   [levels]mask            // granted on every type
	types map[string][levels]mask // granted on one type
	names map[string]struct{}     // scopes that are not about resources
}

// ParseScopes parses a space-separated scope string. Scopes that are not about resources are kept as names (openid,
// fhirUser, launch/patient). A resource scope that does not parse, or that carries a search constraint (?…) which is not
// supported, grants nothing.
func ParseScopes(s string) Scopes {
	out := Scopes{}
	for scope := range strings.SplitSeq(s, " ") {
		level, rest, resource := cutLevel(scope)
		switch {
		case scope == "":
		case !resource:
			if out.names == nil {
				out.names = map[string]struct{}{}
			}
			out.names[scope] = struct{}{}
		default:
			out.grant(level, rest)
		}
	}
	return out
}

// cutLevel takes the level off a resource scope.
func cutLevel(scope string) (level Level, rest string, resource bool) {
	prefix, rest, _ := strings.Cut(scope, "/")
	switch prefix {
	case "patient":
		return LevelPatient, rest, true
	case "user":
		return LevelUser, rest, true
	case "system":
		return LevelSystem, rest, true
	}
	return 0, "", false
}

// grant adds "Type.letters". Anything it does not understand to the last byte adds nothing.
func (s *Scopes) grant(level Level, rest string) {
	resourceType, permissions, ok := strings.Cut(rest, ".")
	m := permissionMask(permissions)
	if !ok || m == 0 {
		return
	}
	if resourceType == "*" {
		s.any[level] |= m
		return
	}
	if !isTypeName(resourceType) {
		return
	}
	if s.types == nil {
		s.types = map[string][levels]mask{}
	}
	masks := s.types[resourceType]
	masks[level] |= m
	s.types[resourceType] = masks
}

// permissionMask reads v1 (read, write, *) and v2 (letters of cruds in that order) permissions; 0 is a refusal.
func permissionMask(p string) mask {
	switch p {
	case "read":
		return Read.mask() | Search.mask()
	case "write":
		return Create.mask() | Update.mask() | Delete.mask()
	case "*":
		return 1<<len(letters) - 1
	}
	m, ok := letterMask(p)
	if !ok {
		return 0
	}
	return m
}

// letterMask reads letters of cruds in their order, each at most once and at least one.
func letterMask(p string) (m mask, ok bool) {
	next := 0
	for i := range len(p) {
		at := strings.IndexByte(letters[next:], p[i])
		if at < 0 {
			return 0, false
		}
		next += at
		m |= 1 << next
		next++
	}
	return m, m != 0
}

// isTypeName reports whether s looks like the name of a FHIR resource type.
func isTypeName(s string) bool {
	if s == "" || len(s) > 64 || s[0] < 'A' || s[0] > 'Z' {
		return false
	}
	for i := range len(s) {
		if c := s[i] | 0x20; c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}

// Covers reports whether a scope of the level grants the interaction on the type.
func (s Scopes) Covers(level Level, resourceType string, i Interaction) bool {
	if level >= levels {
		return false
	}
	return (s.any[level]|s.types[resourceType][level])&i.mask() != 0
}

// Has reports whether a scope that is not about resources (openid, launch/patient) was granted.
func (s Scopes) Has(name string) bool {
	_, ok := s.names[name]
	return ok
}
