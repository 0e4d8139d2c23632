package auth

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// rule is one permission for one letter, ready to be applied.
type rule struct {
	name     string // "role:Type:letter:relation"
	role     uint16 // its number
	letter   uint8  // in letters
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

// roleRules are the rules of one role, by type, "*" among them. A type that has permits of its own does not fall back on those for every
// type.
type roleRules struct{ permits, forbids map[string][]rule }

// cell is everything that a policy says about one letter of one type.
type cell struct {
	roles   roleSet  // that have a permit here
	permits []*rule  // widest first
	of      []uint16 // whose they are
	start   []uint16 // where in at the places of a role begin; the next one's is where they end
	at      []uint16 // places in permits, role by role
	forbids []*rule
}

// cells are those of a type, by letter.
type cells [len(letters)]cell

// Limits of a policy. They bound what a decision looks at and what it keeps on the stack.
const (
	maxPolicyRoles = 512
	maxCellRules   = 1024
)

// roleSet is a set of roles by their number in a snapshot.
type roleSet [maxPolicyRoles / 64]uint64

func (s *roleSet) add(n uint16)      { s[n>>6] |= 1 << (n & 63) }
func (s *roleSet) has(n uint16) bool { return s[n>>6]&(1<<(n&63)) != 0 }

// snapshot is a compiled policy; immutable but for what it remembers of principals.
type snapshot struct {
	version      int64
	forbidding   bool // some role has a forbidding rule
	names        []string
	numbers      map[string]uint16
	types        map[string]*cells
	any          *cells                  // of a type that no permission names
	capabilities map[string][]capability // by name
	assigned     map[string][]Assignment // by subject
	conflicts    []conflict
	alarm        func(Alarm)

	emergencyOverConsent bool

	seed  maphash.Seed
	known [holdings]atomic.Pointer[holding]
}

// capability is one of a role.
type capability struct {
	role   uint16
	rule   string // its name
	stepUp StepUp
}

// conflict is a Conflict by the numbers of its roles.
type conflict struct {
	role, other uint16
	Conflict
}

// holdings is how many principals a snapshot remembers the roles of; another one that falls on the same place is resolved anew.
const holdings = 1 << 14

// holding is which roles a principal has, from since until until; immutable.
type holding struct {
	principal    *Principal
	since, until int64 // UnixNano
	names        []string
	set          roleSet
}

// held returns the roles that a principal has at a moment: those that the token names and those that are assigned. Of roles that
// conflict, nobody has any.
func (s *snapshot) held(p *Principal, now time.Time) *holding {
	at := now.UnixNano()
	place := &s.known[maphash.Comparable(s.seed, p)%holdings]
	if h := place.Load(); h != nil && h.principal == p && at >= h.since && at < h.until {
		return h
	}
	h := s.resolve(p, now)
	place.Store(h)
	return h
}

func (s *snapshot) resolve(p *Principal, now time.Time) *holding {
	h := &holding{principal: p, since: math.MinInt64, until: math.MaxInt64, names: slices.Clone(p.Roles)}
	for _, a := range s.assigned[p.Subject] {
		begun, over := !now.Before(a.From), !a.Until.IsZero() && !now.Before(a.Until)
		switch {
		case !begun:
			h.until = min(h.until, a.From.UnixNano())
			continue
		case over:
			h.since = max(h.since, a.Until.UnixNano())
			continue
		}
		h.since = max(h.since, a.From.UnixNano())
		if !a.Until.IsZero() {
			h.until = min(h.until, a.Until.UnixNano())
		}
		if !slices.Contains(h.names, a.Role) {
			h.names = append(h.names, a.Role)
		}
	}
	for _, name := range h.names {
		if n, ok := s.numbers[name]; ok {
			h.set.add(n)
		}
	}
	var lost []string
	all := h.set
	for _, c := range s.conflicts {
		if !all.has(c.role) || !all.has(c.other) {
			continue
		}
		lost = append(lost, c.Role, c.Other)
		if s.alarm != nil {
			s.alarm(Alarm{Principal: p, Conflict: c.Conflict, Policy: s.version})
		}
	}
	if lost == nil {
		return h
	}
	h.names = slices.DeleteFunc(h.names, func(name string) bool { return slices.Contains(lost, name) })
	h.set = roleSet{}
	for _, name := range h.names {
		if n, ok := s.numbers[name]; ok {
			h.set.add(n)
		}
	}
	return h
}

// cell returns what the policy says about an interaction with a type; nil for a letter that there is not.
func (s *snapshot) cell(resourceType string, i Interaction) *cell {
	letter := i.index()
	if letter < 0 {
		return nil
	}
	if own := s.types[resourceType]; own != nil {
		return &own[letter]
	}
	return &s.any[letter]
}

// forbid overrules an allowance when a rule of one of the roles keeps them out.
func (s *snapshot) forbid(p *Principal, now func() time.Time, i Interaction, resourceType string, segment Segment, d Decision) Decision {
	if !d.Allowed || !s.forbidding {
		return d
	}
	c := s.cell(resourceType, i)
	if c == nil || len(c.forbids) == 0 {
		return d
	}
	h := s.held(p, now())
	for _, r := range c.forbids {
		if h.set.has(r.role) && (len(r.purposes) == 0 || slices.Contains(r.purposes, d.Purpose) || d.Emergency != "" && slices.ContainsFunc(r.purposes, urgent)) && (r.segments == 0 || segment != SegmentGeneral && r.segments.Has(segment)) {
			return Decision{Rule: r.name, Reason: ReasonForbidden, Purpose: d.Purpose, Policy: s.version}
		}
	}
	return d
}

// compile checks a policy and prepares it; the lists in it are kept. A policy with one wrong row is refused whole: half a policy is another policy.
func compile(p Policy) (*snapshot, error) {
	s := &snapshot{
		version: p.Version, numbers: map[string]uint16{}, types: map[string]*cells{}, capabilities: map[string][]capability{},
		assigned: map[string][]Assignment{}, seed: maphash.MakeSeed(), emergencyOverConsent: p.EmergencyOverConsent,
	}
	var roles []*roleRules
	number := func(name string) (uint16, error) {
		n, ok := s.numbers[name]
		switch {
		case ok:
			return n, nil
		case name == "":
			return 0, errors.New("role is empty")
		case len(roles) == maxPolicyRoles:
			return 0, fmt.Errorf("more than %d roles", maxPolicyRoles)
		}
		n = uint16(len(roles))
		s.numbers[name], s.names = n, append(s.names, name)
		roles = append(roles, &roleRules{map[string][]rule{}, map[string][]rule{}})
		return n, nil
	}
	for _, r := range p.Roles {
		if _, err := number(r.Name); err != nil {
			return nil, fmt.Errorf("compiling policy %d: %w", p.Version, err)
		}
	}
	for i, row := range p.Permissions {
		n, err := number(row.Role)
		if err == nil {
			err = roles[n].add(row, n, i)
		}
		if err != nil {
			return nil, fmt.Errorf("compiling permission %d of policy %d: %w", i, p.Version, err)
		}
		s.forbidding = s.forbidding || row.Effect == Forbid
	}
	for _, c := range p.Capabilities {
		n, err := number(c.Role)
		if err != nil || c.Name == "" {
			return nil, fmt.Errorf("compiling policy %d: empty capability", p.Version)
		}
		s.capabilities[c.Name] = append(s.capabilities[c.Name], capability{n, c.Role + ":" + c.Name, c.StepUp})
	}
	for _, c := range p.Conflicts {
		role, err := number(c.Role)
		other, also := number(c.Other)
		if err != nil || also != nil || role == other {
			return nil, fmt.Errorf("compiling policy %d: a conflict is not of two roles", p.Version)
		}
		s.conflicts = append(s.conflicts, conflict{role, other, c})
	}
	for _, a := range p.Assignments {
		if a.Subject == "" || a.Role == "" {
			return nil, fmt.Errorf("compiling policy %d: empty assignment", p.Version)
		}
		s.assigned[a.Subject] = append(s.assigned[a.Subject], a)
	}
	if err := s.lay(roles); err != nil {
		return nil, fmt.Errorf("compiling policy %d: %w", p.Version, err)
	}
	return s, nil
}

// add takes over a permission of the role of number n; place is where it stands in the policy.
func (role *roleRules) add(row Permission, n uint16, place int) error {
	_, ok := letterMask(row.Interactions)
	segments, named := segmentSet(row.Segments)
	forbidden := row.Effect == Forbid
	switch {
	case row.View == "" && !forbidden:
		return errors.New("view is empty")
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
	to, last := role.permits, string(row.Relation)
	if forbidden {
		to, last = role.forbids, "forbid"
	}
	// The names of all letters are parts of one text: there are a hundred thousand of them in a large policy.
	first, rest := row.Role+":"+row.Type+":", ":"+last
	names := strings.Builder{}
	names.Grow(len(row.Interactions) * (len(first) + 1 + len(rest)))
	for _, letter := range row.Interactions {
		names.WriteString(first)
		names.WriteByte(byte(letter))
		names.WriteString(rest)
	}
	all, size := names.String(), len(first)+1+len(rest)
	list := slices.Grow(to[row.Type], len(row.Interactions))
	for i := range row.Interactions {
		list = append(list, rule{
			name:     all[i*size : (i+1)*size],
			role:     n,
			letter:   uint8(Interaction(row.Interactions[i]).index()),
			view:     row.View,
			relation: row.Relation,
			purposes: row.Purposes,
			segments: segments,
			stepUp:   row.StepUp,
			place:    place,
		})
	}
	to[row.Type] = list
	return nil
}

// lay puts the rules of the roles where decisions find them.
func (s *snapshot) lay(roles []*roleRules) error {
	for _, role := range roles {
		for _, rules := range []map[string][]rule{role.permits, role.forbids} {
			for t := range rules {
				s.types[t] = nil
			}
		}
	}
	delete(s.types, "*")
	for t := range s.types {
		c, err := newCells(roles, t)
		if err != nil {
			return err
		}
		s.types[t] = c
	}
	var err error
	s.any, err = newCells(roles, "*")
	return err
}

func newCells(roles []*roleRules, resourceType string) (*cells, error) {
	all := &cells{}
	for _, role := range roles {
		own := role.permits[resourceType]
		if own == nil {
			own = role.permits["*"]
		}
		for i := range own {
			c := &all[own[i].letter]
			c.permits = append(c.permits, &own[i])
		}
		closed := [][]rule{role.forbids[resourceType]}
		if resourceType != "*" {
			closed = append(closed, role.forbids["*"])
		}
		for _, rules := range closed {
			for i := range rules {
				c := &all[rules[i].letter]
				c.forbids = append(c.forbids, &rules[i])
			}
		}
	}
	for letter := range all {
		c := &all[letter]
		if len(c.permits) > maxCellRules {
			return nil, fmt.Errorf("more than %d rules for %s of %s", maxCellRules, letters[letter:letter+1], resourceType)
		}
		slices.SortFunc(c.permits, func(a, b *rule) int {
			if a.wider(b) {
				return -1
			}
			return 1
		})
		c.of, c.at, c.start = make([]uint16, len(c.permits)), make([]uint16, len(c.permits)), make([]uint16, len(roles)+1)
		for place, r := range c.permits {
			c.roles.add(r.role)
			c.of[place] = r.role
			c.start[r.role+1]++
		}
		for n := range roles {
			c.start[n+1] += c.start[n]
		}
		next := slices.Clone(c.start)
		for place, r := range c.permits {
			c.at[next[r.role]] = uint16(place)
			next[r.role]++
		}
	}
	return all, nil
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

// candidates walks over the rules that roles have for a type and an interaction, widest first. It lives on the stack.
type candidates struct {
	*cell
	held  *roleSet
	few   bool                      // the roles are: left says which places to come to
	left  [maxCellRules / 64]uint64 // of places in permits, those that were not come to
	place int                       // of the next one to look at
	rule  *rule                     // the one that next came to
}

// all returns the rules that a principal's roles have for the type and interaction.
func (s *snapshot) all(h *holding, resourceType string, i Interaction) (list candidates) {
	c := s.cell(resourceType, i)
	if c == nil {
		return list
	}
	list.cell, list.held = c, &h.set
	roles := 0
	for w := range h.set {
		roles += bits.OnesCount64(h.set[w] & c.roles[w])
	}
	if list.few = len(c.permits) > 16*roles; !list.few {
		return list // every so many places there is one of the roles'
	}
	for w := range h.set {
		for both := h.set[w] & c.roles[w]; both != 0; both &= both - 1 {
			n := w<<6 + bits.TrailingZeros64(both)
			for _, place := range c.at[c.start[n]:c.start[n+1]] {
				list.left[place>>6] |= 1 << (place & 63)
			}
		}
	}
	return list
}

// next comes to the next rule; false when there is none.
func (l *candidates) next() bool {
	if l.cell == nil {
		return false
	}
	if !l.few {
		for l.place < len(l.permits) {
			place := l.place
			l.place++
			if l.held.has(l.of[place]) {
				l.rule = l.permits[place]
				return true
			}
		}
		return false
	}
	for word := l.place >> 6; word<<6 < len(l.permits); word++ {
		if left := l.left[word]; left != 0 {
			l.left[word], l.place = left&(left-1), word<<6
			l.rule = l.permits[word<<6+bits.TrailingZeros64(left)]
			return true
		}
	}
	return false
}
