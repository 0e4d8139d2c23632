package auth

import (
	"errors"
	"fmt"
	"slices"
)

// rule is one permission for one letter, ready to be applied.
type rule struct {
	name     string // "role:Type:letter:relation"
	view     string
	relation Relation
	purposes []string
	place    int // in the policy; earlier wins among equals
}

// purpose picks the purpose of use that applies: the one asked for when the rule has it, its first when none was.
func (r *rule) purpose(asked string) (string, bool) {
	switch {
	case asked == "" && len(r.purposes) == 0:
		return "", true
	case asked == "":
		return r.purposes[0], true
	}
	return asked, slices.Contains(r.purposes, asked)
}

// wider reports whether r goes before other: the full view is the widest, otherwise the order of permissions says.
func (r *rule) wider(other *rule) bool {
	if full := r.view == "full"; full != (other.view == "full") {
		return full
	}
	return r.place < other.place
}

// typeRules are the rules for one type, by letter.
type typeRules [len(letters)][]*rule

// roleRules are the rules of one role. A type that has rules of its own does not fall back on those for every type.
type roleRules struct {
	types map[string]*typeRules
	any   *typeRules
}

func (r *roleRules) rules(resourceType string, letter int) []*rule {
	if own := r.types[resourceType]; own != nil {
		return own[letter]
	}
	if r.any != nil {
		return r.any[letter]
	}
	return nil
}

// snapshot is a compiled policy; immutable.
type snapshot struct {
	version      int64
	roles        map[string]*roleRules
	capabilities map[Capability]string // to the name of the rule
}

// compile checks a policy and prepares it. A policy with one wrong row is refused whole: half a policy is another policy.
func compile(p Policy) (*snapshot, error) {
	s := &snapshot{version: p.Version, roles: map[string]*roleRules{}, capabilities: map[Capability]string{}}
	for i, row := range p.Permissions {
		if err := s.add(row, i); err != nil {
			return nil, fmt.Errorf("compiling permission %d of policy %d: %w", i, p.Version, err)
		}
	}
	for _, c := range p.Capabilities {
		if c.Role == "" || c.Name == "" {
			return nil, fmt.Errorf("compiling policy %d: empty capability", p.Version)
		}
		s.capabilities[c] = c.Role + ":" + c.Name
	}
	return s, nil
}

func (s *snapshot) add(row Permission, place int) error {
	m, ok := letterMask(row.Interactions)
	switch {
	case row.Role == "" || row.View == "":
		return errors.New("role or view is empty")
	case row.Type != "*" && !isTypeName(row.Type):
		return errors.New("type is not a resource type")
	case !ok:
		return errors.New("interactions are not letters of cruds in order")
	case row.Relation != RelationNone && row.Relation != RelationTreatment && row.Relation != RelationSelf:
		return errors.New("relation is unknown")
	}
	role := s.roles[row.Role]
	if role == nil {
		role = &roleRules{types: map[string]*typeRules{}}
		s.roles[row.Role] = role
	}
	to := role.any
	if row.Type != "*" {
		to = role.types[row.Type]
	}
	if to == nil {
		to = &typeRules{}
	}
	if row.Type == "*" {
		role.any = to
	} else {
		role.types[row.Type] = to
	}
	for i := range letters {
		if m&(1<<i) == 0 {
			continue
		}
		to[i] = append(to[i], &rule{
			name:     row.Role + ":" + row.Type + ":" + letters[i:i+1] + ":" + string(row.Relation),
			view:     row.View,
			relation: row.Relation,
			purposes: slices.Clone(row.Purposes),
			place:    place,
		})
	}
	return nil
}

// maxRules is how many rules one decision weighs; a principal has few roles, and a role few rules for a type.
const maxRules = 32

// ruleList is a small sorted list that lives on the stack.
type ruleList struct {
	rules [maxRules]*rule
	n     int
}

// all returns the rules that the roles have for the type and interaction, widest first.
func (s *snapshot) all(roles []string, resourceType string, i Interaction) (list ruleList) {
	letter := i.index()
	if letter < 0 {
		return list
	}
	for _, name := range roles {
		role := s.roles[name]
		if role == nil {
			continue
		}
		for _, r := range role.rules(resourceType, letter) {
			list.insert(r)
		}
	}
	return list
}

// insert keeps the list sorted; the narrowest rules fall off its end.
func (l *ruleList) insert(r *rule) {
	at := l.n
	for at > 0 && r.wider(l.rules[at-1]) {
		at--
	}
	if at == maxRules {
		return
	}
	l.n = min(l.n+1, maxRules)
	copy(l.rules[at+1:l.n], l.rules[at:l.n-1])
	l.rules[at] = r
}
