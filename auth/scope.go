package auth

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

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
// (https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html: v1, v2, and v2 with search parameters). The zero Scopes
// cover nothing. Immutable.
type Scopes struct {
	any   [levels]mask          // granted on every type
	types map[string]typeScopes // granted on one type
	names map[string]struct{}   // scopes that are not about resources
}

// typeScopes are the scopes of one type.
type typeScopes struct {
	whole  [levels]mask // without a constraint
	narrow *narrowed    // nil when no scope of the type has one
}

// narrowed says, first for who may not use system/ scopes and then for who may, and by letter, what is left where only scopes with
// constraints reach.
type narrowed [2][len(letters)]narrowing

// narrowing are alternatives, of which one must hold; bound says that they are all about the launch patient.
type narrowing struct {
	only  []Constraint
	bound bool
}

// Constraint is what one scope leaves of a type: the records for which all of it holds (SMART App Launch 2.2, "Finer-grained
// resource constraints using search parameters"). A constraint that who reads it cannot evaluate to the last byte leaves nothing.
type Constraint struct {
	Patient    bool // in the launch patient's compartment
	Predicates []Predicate
}

// Predicate is a search parameter, without modifier or chain, and its value; a comma separates alternatives, as in a search.
type Predicate struct{ Name, Value string }

// Limits of what is kept of one token's scopes. Beyond them a scope grants nothing.
const (
	maxScopeTypes = 192 // FHIR R4 has 148 resource types
	maxScopeNames = 32
	maxConstraint = 512 // bytes of a constraint's text
	maxPredicates = 8   // of a constraint
	maxGranular   = 32  // scopes with constraints
)

// granular is a scope with a constraint.
type granular struct {
	resourceType string
	level        Level
	letters      mask
	predicates   []Predicate
}

// ParseScopes parses a space-separated scope string. Scopes that are not about resources are kept as names (openid,
// fhirUser, launch/patient). A resource scope that is not understood to its last byte grants nothing.
func ParseScopes(s string) Scopes {
	out := Scopes{}
	var list []granular
	for scope := range strings.SplitSeq(s, " ") {
		level, rest, resource := cutLevel(scope)
		switch {
		case scope == "":
		case resource:
			if len(list) == maxGranular && strings.Contains(rest, "?") {
				continue
			}
			if g, ok := out.grant(level, rest); ok {
				list = append(list, g)
			}
		case len(out.names) < maxScopeNames && len(scope) <= maxName:
			if out.names == nil {
				out.names = map[string]struct{}{}
			}
			out.names[scope] = struct{}{}
		}
	}
	for _, g := range list {
		out.narrow(g, list)
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

// grant adds "Type.letters", or returns what "Type.letters?constraint" says. Anything it does not understand adds nothing. A
// constraint on every type would have to be evaluated on types that do not know its parameters.
func (s *Scopes) grant(level Level, rest string) (g granular, constrained bool) {
	rest, constraint, constrained := strings.Cut(rest, "?")
	resourceType, permissions, ok := strings.Cut(rest, ".")
	if constrained {
		letters, spelled := letterMask(permissions) // version 1 has no constraints
		predicates, understood := parseConstraint(constraint)
		g = granular{resourceType, level, letters, predicates}
		return g, ok && spelled && understood && isTypeName(resourceType)
	}
	m := permissionMask(permissions)
	switch {
	case !ok || m == 0:
	case resourceType == "*":
		s.any[level] |= m
	case isTypeName(resourceType):
		t := s.types[resourceType]
		t.whole[level] |= m
		s.put(resourceType, t)
	}
	return granular{}, false
}

func (s *Scopes) put(resourceType string, t typeScopes) {
	if s.types == nil {
		s.types = map[string]typeScopes{}
	}
	if _, known := s.types[resourceType]; known || len(s.types) < maxScopeTypes {
		s.types[resourceType] = t
	}
}

// narrow adds a scope with a constraint, where none without one says the same. What a patient/ scope grants beside a narrowed user/
// scope becomes one more alternative.
func (s *Scopes) narrow(g granular, all []granular) {
	t := s.types[g.resourceType]
	if t.narrow != nil {
		return // with an earlier scope of the type
	}
	t.narrow = &narrowed{}
	for system := range t.narrow {
		for at := range letters {
			wide := s.any[LevelUser] | t.whole[LevelUser]
			if system == 1 {
				wide |= s.any[LevelSystem] | t.whole[LevelSystem]
			}
			if bit := mask(1) << at; wide&bit == 0 {
				t.narrow[system][at] = alternatives(g.resourceType, system == 1, bit, (s.any[LevelPatient]|t.whole[LevelPatient])&bit != 0, all)
			}
		}
	}
	s.put(g.resourceType, t)
}

// alternatives collects what is left of a type for one letter; patient says that the launch patient's compartment is there as a whole.
func alternatives(resourceType string, system bool, letter mask, patient bool, all []granular) (n narrowing) {
	n.bound = true
	for _, g := range all {
		if g.resourceType != resourceType || g.letters&letter == 0 || g.level == LevelSystem && !system || g.level == LevelPatient && patient {
			continue
		}
		n.only = append(n.only, Constraint{Patient: g.level == LevelPatient, Predicates: g.predicates})
		n.bound = n.bound && g.level == LevelPatient
	}
	if patient && n.only != nil {
		n.only = append(n.only, Constraint{Patient: true})
	}
	return n
}

// parseConstraint reads "name=value&name=value". Modifiers, chains, _has and whatever else a plain name and a value do not spell
// are refused, and so is text that could be read in two ways.
func parseConstraint(text string) (list []Predicate, ok bool) {
	if len(text) > maxConstraint || strings.Count(text, "&") >= maxPredicates {
		return nil, false
	}
	list = make([]Predicate, 0, strings.Count(text, "&")+1)
	for pair := range strings.SplitSeq(text, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if !isParamName(name) || strings.ContainsRune(value, '+') {
			return nil, false // a plus sign is a space to some, and a plus sign to others
		}
		value, err := url.PathUnescape(value)
		if err != nil || value == "" || !utf8.ValidString(value) || !readable(value) {
			return nil, false
		}
		list = append(list, Predicate{name, value})
	}
	return list, true
}

// isParamName reports whether s can be the name of a search parameter that looks at a record's own elements: category,
// value-quantity. Names that begin with an underscore are about more than that (_has, _include, _filter), or about the server's
// bookkeeping.
func isParamName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (i == 0 || (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-') {
			return false
		}
	}
	return s != ""
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

// Covers reports whether a scope of the level grants the interaction on the type, without a constraint.
func (s Scopes) Covers(level Level, resourceType string, i Interaction) bool {
	if level >= levels {
		return false
	}
	return (s.any[level]|s.types[resourceType].whole[level])&i.mask() != 0
}

// reach says what the scopes leave open to the roles of a caller: everything, or what is in the launch patient's compartment (bound);
// and of that, when only is set, what one of the constraints holds for. system says that system/ scopes count.
func (s *Scopes) reach(system bool, resourceType string, i Interaction) (bound bool, only []Constraint, ok bool) {
	at := i.index()
	if at < 0 {
		return true, nil, false // an unknown interaction is in no set: denied
	}
	t := s.types[resourceType]
	bit := mask(1) << at
	wide, set := s.any[LevelUser]|t.whole[LevelUser], 0
	if system {
		wide, set = wide|s.any[LevelSystem]|t.whole[LevelSystem], 1
	}
	if wide&bit != 0 {
		return false, nil, true
	}
	if t.narrow != nil {
		if n := &t.narrow[set][at]; n.only != nil {
			return n.bound, n.only, true
		}
	}
	return true, nil, (s.any[LevelPatient]|t.whole[LevelPatient])&bit != 0
}

// Has reports whether a scope that is not about resources (openid, launch/patient) was granted.
func (s Scopes) Has(name string) bool {
	_, ok := s.names[name]
	return ok
}
