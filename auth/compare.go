package auth

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// Change is one difference between two policies, in words.
type Change struct {
	Widens  bool   `json:"widens"`  // somebody may do more, or it takes less to let him
	Narrows bool   `json:"narrows"` // somebody may do less
	Text    string `json:"text"`
}

// Sign is + for what widens, − for what narrows, = for the rest.
func (c Change) Sign() string {
	switch {
	case c.Widens:
		return "+"
	case c.Narrows:
		return "−"
	}
	return "="
}

// Widens reports whether one of the changes does.
func Widens(changes []Change) bool {
	return slices.ContainsFunc(changes, func(c Change) bool { return c.Widens })
}

// Compare lists what changes from one document to the other, those that widen first. In doubt a change widens: what none of the changes
// widens lets nobody do what he could not do before, for any purpose, nor see more of it.
func Compare(was, is Document) []Change {
	c := comparison{}
	old, roles := byName(was.Roles), byName(is.Roles)
	types := typesOf(was, is)
	for _, r := range is.Roles {
		before, known := old[r.Name]
		if known && reflect.DeepEqual(before, r) {
			continue
		}
		if !known {
			c.note(false, false, "role %s is new", r.Name)
		}
		c.role(before, r, known)
		c.rules(before, r, types)
	}
	for _, r := range was.Roles {
		if _, stays := roles[r.Name]; !stays {
			c.note(false, true, "role %s is gone", r.Name)
			c.rules(r, DocumentRole{Name: r.Name}, types)
		}
	}
	c.conflicts(was.Conflicts, is.Conflicts)
	if a, b := was.Settings.EmergencyOverConsent, is.Settings.EmergencyOverConsent; a != b {
		c.note(b, a, "emergency access where a consent denies: %s", map[bool]string{true: "always", false: "only when the consent permits it"}[b])
	}
	if len(c.list) == 0 && !was.Equal(&is) {
		c.note(false, false, "it is written or ordered differently")
	}
	slices.SortStableFunc(c.list, func(a, b Change) int { return rank(a) - rank(b) })
	return c.list
}

func rank(c Change) int {
	switch {
	case c.Widens:
		return 0
	case c.Narrows:
		return 1
	}
	return 2
}

// Equal reports whether two documents are the same but for what goes without saying, and the order of what has none.
func (d *Document) Equal(other *Document) bool {
	x, xe := json.Marshal(d.ordered())
	y, ye := json.Marshal(other.ordered())
	return xe == nil && ye == nil && bytes.Equal(x, y)
}

// ordered is the document with capabilities and conflicts in the order of their names.
func (d *Document) ordered() Document {
	o := NewDocument(d.Policy())
	for _, r := range o.Roles {
		slices.SortFunc(r.Capabilities, func(a, b DocumentCapability) int { return strings.Compare(a.Name, b.Name) })
	}
	slices.SortFunc(o.Conflicts, func(a, b DocumentConflict) int { return strings.Compare(a.Role+" "+a.Other, b.Role+" "+b.Other) })
	return o
}

type comparison struct{ list []Change }

func (c *comparison) note(widens, narrows bool, format string, args ...any) {
	c.list = append(c.list, Change{widens, narrows, fmt.Sprintf(format, args...)})
}

func byName(roles []DocumentRole) map[string]DocumentRole {
	m := make(map[string]DocumentRole, len(roles))
	for _, r := range roles {
		m[r.Name] = r
	}
	return m
}

// typesOf lists the types that one of the documents has a rule for, with "*" for all others.
func typesOf(documents ...Document) []string {
	types := []string{"*"}
	for _, d := range documents {
		for _, r := range d.Roles {
			for _, p := range r.Permissions {
				types = append(types, p.Type)
			}
		}
	}
	slices.Sort(types)
	return slices.Compact(types)
}

// role compares what is said of a role beside its rules.
func (c *comparison) role(was, is DocumentRole, known bool) {
	if known && was.Workforce != is.Workforce {
		c.note(is.Workforce, was.Workforce, "role %s: %s", is.Name, map[bool]string{true: "can be assigned", false: "can no longer be assigned"}[is.Workforce])
	}
	if known && was.Approval != is.Approval {
		c.note(was.Approval, is.Approval, "role %s: to assign it %s a second person", is.Name, map[bool]string{true: "takes", false: "no longer takes"}[is.Approval])
	}
	if known && was.Description != is.Description {
		c.note(false, false, "role %s: is described differently", is.Name)
	}
	before, after := map[string]DocumentCapability{}, map[string]DocumentCapability{}
	for _, x := range was.Capabilities {
		before[x.Name] = x
	}
	for _, x := range is.Capabilities {
		after[x.Name] = x
		old, had := before[x.Name]
		now, then := stepUpOf(x.ACR, x.MaxAge), stepUpOf(old.ACR, old.MaxAge)
		switch {
		case !had:
			c.note(true, false, "role %s: has %s%s", is.Name, x.Name, now.words())
		case !then.demandsNoMore(now) || !now.demandsNoMore(then):
			c.note(!then.demandsNoMore(now), then.demandsNoMore(now), "role %s: %s takes another sign-in than before%s", is.Name, x.Name, now.words())
		}
		if had && old.Approval != x.Approval {
			c.note(old.Approval, x.Approval, "role %s: with %s, to assign it %s a second person", is.Name, x.Name, map[bool]string{true: "takes", false: "need not take"}[x.Approval])
		}
	}
	for _, x := range was.Capabilities {
		if _, stays := after[x.Name]; !stays {
			c.note(false, true, "role %s: no longer has %s", is.Name, x.Name)
			if x.Approval { // the other capabilities may become easier to get
				c.note(true, false, "role %s: without %s, to assign it need not take a second person", is.Name, x.Name)
			}
		}
	}
}

func stepUpOf(acr []string, maxAge int64) StepUp {
	return StepUp{acr, time.Duration(maxAge) * time.Second}
}

// demandsNoMore reports whether whoever passes other passes u.
func (u StepUp) demandsNoMore(other StepUp) bool {
	if len(u.ACR) > 0 && (len(other.ACR) == 0 || slices.ContainsFunc(other.ACR, func(x string) bool { return !slices.Contains(u.ACR, x) })) {
		return false
	}
	return u.MaxAge == 0 || other.MaxAge != 0 && other.MaxAge <= u.MaxAge
}

func (u StepUp) words() string {
	var b strings.Builder
	if len(u.ACR) > 0 {
		fmt.Fprintf(&b, ", signed in with %s", strings.Join(u.ACR, " or "))
	}
	if u.MaxAge > 0 {
		fmt.Fprintf(&b, ", signed in within %s", u.MaxAge)
	}
	return b.String()
}

// rules compares what a role permits and forbids.
func (c *comparison) rules(was, is DocumentRole, types []string) {
	g := gathered{c: c, role: is.Name}
	for _, t := range types {
		if t != "*" && !was.names(t) && !is.names(t) {
			continue // the rules for every type tell
		}
		for i := range letters {
			old, now := was.permits(t, i), is.permits(t, i)
			for _, n := range now {
				for _, purpose := range n.Purposes {
					if !covered(n, purpose, old, now) {
						g.add(true, "may now", t, i, n, purpose)
					}
				}
			}
			for _, o := range old {
				for _, purpose := range o.Purposes {
					if !slices.ContainsFunc(now, func(n DocumentPermission) bool { return n.covers(o, purpose) }) {
						g.add(false, "may no longer", t, i, o, purpose)
					}
				}
			}
			kept, keeps := was.forbids(t, i), is.forbids(t, i)
			for _, f := range kept {
				if !slices.ContainsFunc(keeps, func(k DocumentPermission) bool { return k.shuts(f) }) {
					g.add(true, "is no longer kept from", t, i, f, strings.Join(f.Purposes, " "))
				}
			}
			for _, f := range keeps {
				if !slices.ContainsFunc(kept, func(k DocumentPermission) bool { return k.shuts(f) }) {
					g.add(false, "is now kept from", t, i, f, strings.Join(f.Purposes, " "))
				}
			}
		}
	}
	g.tell()
	if len(is.Permissions)+len(is.Capabilities) == 0 {
		return // what lets nobody do anything is anybody's to have
	}
	for _, x := range was.Permissions {
		if x.Approval && !slices.ContainsFunc(is.Permissions, func(y DocumentPermission) bool { return y.Approval && y.Type == x.Type && y.View == x.View }) {
			c.note(true, false, "role %s: its permission on %s no longer makes assigning it take a second person", is.Name, typeWords(x.Type))
		}
	}
}

// names reports whether the role has a rule of its own for a type.
func (r *DocumentRole) names(t string) bool {
	return slices.ContainsFunc(r.Permissions, func(p DocumentPermission) bool { return p.Type == t })
}

// permits lists the rules that let the role do a letter on a type, in the order in which they are tried.
func (r *DocumentRole) permits(t string, letter int) (list []DocumentPermission) {
	permit := func(p DocumentPermission) bool { return p.Effect != Forbid && p.Type == t }
	on := t
	if !slices.ContainsFunc(r.Permissions, permit) {
		on = "*"
	}
	for _, p := range r.Permissions {
		if p.Effect != Forbid && p.Type == on && strings.IndexByte(p.Interactions, letters[letter]) >= 0 {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b DocumentPermission) int {
		switch full := a.View == "full"; {
		case full == (b.View == "full"):
			return 0
		case full:
			return -1
		}
		return 1
	})
	return list
}

// forbids lists the rules that keep the role from a letter on a type.
func (r *DocumentRole) forbids(t string, letter int) (list []DocumentPermission) {
	for _, p := range r.Permissions {
		if p.Effect == Forbid && (p.Type == t || p.Type == "*") && strings.IndexByte(p.Interactions, letters[letter]) >= 0 {
			list = append(list, p)
		}
	}
	return list
}

// covered reports whether a rule of the new list lets nobody do, for the purpose, what the old list did not, nor see more of it: an old rule
// covers it, and where one went before that and showed less, one still goes before it.
func covered(n DocumentPermission, purpose string, old, now []DocumentPermission) bool {
	ahead := now[:slices.IndexFunc(now, func(x DocumentPermission) bool { return reflect.DeepEqual(x, n) })]
	for i, o := range old {
		if !o.covers(n, purpose) {
			continue
		}
		return !slices.ContainsFunc(old[:i], func(e DocumentPermission) bool {
			if !slices.Contains(e.Purposes, purpose) || viewShows(e.View, n.View) {
				return false
			}
			return !slices.ContainsFunc(ahead, func(f DocumentPermission) bool { return f.reaches(e, purpose) })
		})
	}
	return false
}

// viewShows reports whether a view shows all that the other shows, as far as this package can tell.
func viewShows(view, other string) bool { return view == "full" || view == other }

// reaches reports whether p applies wherever o does for the purpose.
func (p DocumentPermission) reaches(o DocumentPermission, purpose string) bool {
	mine, _ := segmentSet(p.Segments)
	others, _ := segmentSet(o.Segments)
	return slices.Contains(p.Purposes, purpose) && (p.Relation == RelationNone || p.Relation == o.Relation) && others&^mine == 0 &&
		stepUpOf(p.ACR, p.MaxAge).demandsNoMore(stepUpOf(o.ACR, o.MaxAge))
}

// covers reports whether p lets through all that o does for the purpose, and shows as much of it.
func (p DocumentPermission) covers(o DocumentPermission, purpose string) bool {
	return p.reaches(o, purpose) && viewShows(p.View, o.View)
}

// shuts reports whether a forbid keeps from all that another one does.
func (p DocumentPermission) shuts(o DocumentPermission) bool {
	mine, _ := segmentSet(p.Segments)
	others, _ := segmentSet(o.Segments)
	return (len(p.Purposes) == 0 || len(o.Purposes) > 0 && !slices.ContainsFunc(o.Purposes, func(x string) bool { return !slices.Contains(p.Purposes, x) })) &&
		(mine == 0 || others != 0 && others&^mine == 0)
}

// gathered puts the letters and purposes of what is otherwise the same difference together.
type gathered struct {
	c    *comparison
	role string
	list []difference
}

type difference struct {
	widens        bool
	verb, on, how string
	letters       string
	purposes      []string
}

func (g *gathered) add(widens bool, verb, t string, letter int, p DocumentPermission, purpose string) {
	d := difference{widens: widens, verb: verb, on: typeWords(t), how: p.words()}
	at := slices.IndexFunc(g.list, func(x difference) bool {
		return x.widens == d.widens && x.verb == d.verb && x.on == d.on && x.how == d.how
	})
	if at < 0 {
		at = len(g.list)
		g.list = append(g.list, d)
	}
	x := &g.list[at]
	if !strings.Contains(x.letters, letters[letter:letter+1]) {
		x.letters += letters[letter : letter+1]
	}
	if purpose != "" && !slices.Contains(x.purposes, purpose) {
		x.purposes = append(x.purposes, purpose)
	}
}

func (g *gathered) tell() {
	for _, d := range g.list {
		purposes := ""
		if len(d.purposes) > 0 {
			purposes = " for " + strings.Join(d.purposes, ", ")
		}
		g.c.note(d.widens, !d.widens, "role %s: %s %s %s%s%s", g.role, d.verb, letterWords(d.letters), d.on, purposes, d.how)
	}
}

func typeWords(t string) string {
	if t == "*" {
		return "every type without a rule of its own"
	}
	return t
}

func letterWords(set string) string {
	words := map[rune]string{'c': "create", 'r': "read", 'u': "update", 'd': "delete", 's': "search"}
	var list []string
	for _, l := range set {
		list = append(list, words[l])
	}
	if n := len(list); n > 1 {
		return strings.Join(list[:n-1], ", ") + " and " + list[n-1]
	}
	return strings.Join(list, "")
}

// words say how a rule applies.
func (p DocumentPermission) words() string {
	var b strings.Builder
	if p.Effect != Forbid {
		fmt.Fprintf(&b, ", in view %s", p.View)
		switch p.Relation {
		case RelationTreatment:
			b.WriteString(", of patients in treatment")
		case RelationSelf:
			b.WriteString(", of the own records")
		case RelationNone:
			b.WriteString(", of everybody")
		}
		if len(p.Segments) > 0 {
			fmt.Fprintf(&b, ", with segments %s", strings.Join(p.Segments, ", "))
		}
	} else if len(p.Segments) > 0 {
		fmt.Fprintf(&b, ", in segments %s", strings.Join(p.Segments, ", "))
	}
	return b.String() + stepUpOf(p.ACR, p.MaxAge).words()
}

// conflicts compares which roles may not be held together.
func (c *comparison) conflicts(was, is []DocumentConflict) {
	has := func(list []DocumentConflict, x DocumentConflict) bool {
		return slices.ContainsFunc(list, func(y DocumentConflict) bool {
			return y.Role == x.Role && y.Other == x.Other || y.Role == x.Other && y.Other == x.Role
		})
	}
	for _, x := range was {
		if !has(is, x) {
			c.note(true, false, "roles %s and %s no longer conflict", x.Role, x.Other)
		}
	}
	for _, x := range is {
		if !has(was, x) {
			c.note(false, true, "roles %s and %s conflict: %s", x.Role, x.Other, x.Reason)
		}
	}
}
