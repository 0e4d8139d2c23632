package auth

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// rule is one permission for one letter, ready to be applied.
type rule struct {
	name     string // "role:Type:letter:relation"
	view     string
	relation Relation
	purposes []string
	segments SegmentSet
	stepUp   StepUp
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

// forbids are the rules that keep a role out, by letter.
type forbids [len(letters)][]*rule

// roleRules are the rules of one role. A type that has rules of its own does not fall back on those for every type.
type roleRules struct {
	types  map[string]*typeRules
	any    *typeRules
	closed map[string]*forbids // by type, "*" among them
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
	forbidding   bool // some role has a forbidding rule
	roles        map[string]*roleRules
	capabilities map[named]capability
	assigned     map[string][]Assignment // by subject
	conflicts    []Conflict
}

// named is a capability of a role.
type named struct{ role, name string }

type capability struct {
	rule   string // its name
	stepUp StepUp
}

// rolesOf returns the roles that a principal has at a moment: those that the token names and those that are assigned. Of roles that
// conflict, nobody has either.
func (s *snapshot) rolesOf(p *Principal, now time.Time, buffer *[maxRoles]string) []string {
	roles := append(buffer[:0], p.Roles...)
	for _, a := range s.assigned[p.Subject] {
		if now.Before(a.From) || !a.Until.IsZero() && !now.Before(a.Until) || slices.Contains(roles, a.Role) || len(roles) == maxRoles {
			continue
		}
		roles = append(roles, a.Role)
	}
	for _, c := range s.conflicts {
		if slices.Contains(roles, c.Role) && slices.Contains(roles, c.Other) {
			roles = slices.DeleteFunc(roles, func(r string) bool { return r == c.Role || r == c.Other })
		}
	}
	return roles
}

// forbid overrules an allowance when a rule of one of the roles keeps them out.
func (s *snapshot) forbid(p *Principal, now time.Time, i Interaction, resourceType string, segment Segment, d Decision) Decision {
	letter := i.index()
	if !d.Allowed || letter < 0 || !s.forbidding {
		return d
	}
	var buffer [maxRoles]string
	for _, name := range s.rolesOf(p, now, &buffer) {
		role := s.roles[name]
		if role == nil {
			continue
		}
		for _, on := range [...]string{resourceType, "*"} {
			rules := role.closed[on]
			if rules == nil {
				continue
			}
			for _, r := range rules[letter] {
				if (len(r.purposes) == 0 || slices.Contains(r.purposes, d.Purpose)) && (r.segments == 0 || segment != SegmentGeneral && r.segments.Has(segment)) {
					return Decision{Rule: r.name, Reason: ReasonForbidden, Purpose: d.Purpose, Policy: s.version}
				}
			}
		}
	}
	return d
}

// compile checks a policy and prepares it. A policy with one wrong row is refused whole: half a policy is another policy.
func compile(p Policy) (*snapshot, error) {
	s := &snapshot{version: p.Version, roles: map[string]*roleRules{}, capabilities: map[named]capability{}, assigned: map[string][]Assignment{}, conflicts: p.Conflicts}
	for i, row := range p.Permissions {
		if err := s.add(row, i); err != nil {
			return nil, fmt.Errorf("compiling permission %d of policy %d: %w", i, p.Version, err)
		}
	}
	for _, c := range p.Capabilities {
		if c.Role == "" || c.Name == "" {
			return nil, fmt.Errorf("compiling policy %d: empty capability", p.Version)
		}
		s.capabilities[named{c.Role, c.Name}] = capability{c.Role + ":" + c.Name, c.StepUp}
	}
	for _, a := range p.Assignments {
		if a.Subject == "" || a.Role == "" {
			return nil, fmt.Errorf("compiling policy %d: empty assignment", p.Version)
		}
		s.assigned[a.Subject] = append(s.assigned[a.Subject], a)
	}
	return s, nil
}

func (s *snapshot) add(row Permission, place int) error {
	m, ok := letterMask(row.Interactions)
	segments, named := segmentSet(row.Segments)
	forbidden := row.Effect == Forbid
	switch {
	case row.Role == "" || row.View == "" && !forbidden:
		return errors.New("role or view is empty")
	case row.Type != "*" && !isTypeName(row.Type):
		return errors.New("type is not a resource type")
	case !ok:
		return errors.New("interactions are not letters of cruds in order")
	case row.Relation != RelationNone && row.Relation != RelationTreatment && row.Relation != RelationSelf:
		return errors.New("relation is unknown")
	case row.Effect != "" && row.Effect != Permit && !forbidden:
		return errors.New("effect is unknown")
	case !named:
		return errors.New("segment is unknown")
	}
	role := s.roles[row.Role]
	if role == nil {
		role = &roleRules{types: map[string]*typeRules{}, closed: map[string]*forbids{}}
		s.roles[row.Role] = role
	}
	if forbidden {
		s.forbidding = true
		closed := role.closed[row.Type]
		if closed == nil {
			closed = &forbids{}
			role.closed[row.Type] = closed
		}
		for i := range letters {
			if m&(1<<i) != 0 {
				closed[i] = append(closed[i], &rule{name: row.Role + ":" + row.Type + ":" + letters[i:i+1] + ":forbid", purposes: slices.Clone(row.Purposes), segments: segments})
			}
		}
		return nil
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
			segments: segments,
			stepUp:   row.StepUp,
			place:    place,
		})
	}
	return nil
}

// segmentSet reads the names of segments.
func segmentSet(names []string) (set SegmentSet, ok bool) {
	for _, name := range names {
		at := slices.Index(segmentNames[:], name)
		if at < 0 {
			return 0, false
		}
		set |= 1 << at
	}
	return set, true
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
