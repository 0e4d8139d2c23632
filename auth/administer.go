package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// How the administration of a policy can fail. They may be shown to administrators.
var (
	ErrOnePerson     = errors.New("another person than the one who asked decides")
	ErrOneself       = errors.New("nobody gives himself a role, nor approves one for himself")
	ErrDecided       = errors.New("this is decided or over")
	ErrPolicyChanged = errors.New("the policy has changed meanwhile")
	ErrUnchanged     = errors.New("nothing would change")
	ErrNoSuch        = errors.New("there is no such thing")
	ErrHeld          = errors.New("the subject has the role already, or waits for it, in a part of this time")
	ErrNotAssignable = errors.New("the role is not one of the workforce's")
	ErrLastAdmin     = errors.New("nobody else is assigned a role that administers: assign one to another person first")
)

// ConflictError refuses to assign a role to somebody who holds one that it conflicts with, or waits for one.
type ConflictError struct {
	Conflict
	Held string // the one he has
}

// Error names the roles and why they conflict.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("the role conflicts with %s, which the subject has or waits for: %s", e.Held, e.Reason)
}

// States of an AssignmentRecord and of a Proposal.
const (
	StateRequested = "requested" // waits for a second person
	StateApproved  = "approved"  // of an assignment: in force within its time
	StateApplied   = "applied"   // of a proposal
	StateWithdrawn = "withdrawn"
	StateExpired   = "expired" // nobody approved it in time
	StateEnded     = "ended"   // of an assignment, before its time
)

// AssignmentRecord is an Assignment and how it came about.
type AssignmentRecord struct {
	Assignment
	ID          string // UUID
	Reason      string // a ticket number or the like
	Approval    bool   // it takes a second person
	State       string
	RequestedBy string
	RequestedAt time.Time
	ExpiresAt   time.Time // of a request
	DecidedBy   string    // "" when it took nobody
	DecidedAt   time.Time
	EndedBy     string
	EndedAt     time.Time
	EndReason   string
}

// AssignmentFilter chooses records; a zero field does not restrict.
type AssignmentFilter struct {
	Subject, Role, State string
	After                string // id of the last record of the page before
	Limit                int
}

// Proposal is a change of the policy, and what became of it.
type Proposal struct {
	ID          string // UUID
	Base        int64  // the version that it changes
	Document    Document
	Changes     []Change
	Widens      bool // it takes a second person
	Reason      string
	State       string
	RequestedBy string
	RequestedAt time.Time
	ExpiresAt   time.Time // of a request
	DecidedBy   string
	DecidedAt   time.Time
	Version     int64 // that it became, 0 before
}

// PolicyVersion is one state of the policy.
type PolicyVersion struct {
	Version    int64 // the epoch at which it came into force
	At         time.Time
	By         string
	ApprovedBy string
	Summary    string
}

// Consequences are the changes between two policies, and what the new one does to those who hold roles. The error is a *DocumentError: a
// role that somebody holds cannot go.
func Consequences(was Policy, is Document, now time.Time) ([]Change, error) {
	changes := Compare(NewDocument(was), is)
	held, people := map[string]int{}, map[string][]string{}
	for _, a := range was.Assignments {
		if !a.Until.IsZero() && !now.Before(a.Until) {
			continue
		}
		held[a.Role]++
		people[a.Subject] = append(people[a.Subject], a.Role)
	}
	for role, n := range held {
		if !slices.ContainsFunc(is.Roles, func(r DocumentRole) bool { return r.Name == role }) {
			return nil, &DocumentError{"/roles", fmt.Sprintf("role %s is assigned %d times: end that first", role, n)}
		}
	}
	after := is.Policy()
	if administrators(was, people) > 0 && administrators(after, people) == 0 {
		return nil, &DocumentError{"/roles", "nobody who is assigned a role would administer any more: that locks everybody out"}
	}
	for _, c := range is.Conflicts {
		n := 0
		for _, roles := range people {
			if slices.Contains(roles, c.Role) && slices.Contains(roles, c.Other) {
				n++
			}
		}
		if n > 0 && !slices.ContainsFunc(was.Conflicts, func(x Conflict) bool { return x.Role == c.Role && x.Other == c.Other }) {
			changes = append(changes, Change{Narrows: true, Text: fmt.Sprintf("%d people are assigned both %s and %s: they will have neither", n, c.Role, c.Other)})
		}
	}
	return changes, nil
}

// administrators counts those who may change who may do what, of people with the roles that they are assigned.
func administrators(p Policy, people map[string][]string) (n int) {
	for _, roles := range people {
		lost := func(role string) bool {
			return slices.ContainsFunc(p.Conflicts, func(c Conflict) bool {
				return c.Role == role && slices.Contains(roles, c.Other) || c.Other == role && slices.Contains(roles, c.Role)
			})
		}
		if slices.ContainsFunc(roles, func(role string) bool { return p.Administers(role) && !lost(role) }) {
			n++
		}
	}
	return n
}

// role finds a role of the policy.
func (p *Policy) role(name string) (Role, bool) {
	at := slices.IndexFunc(p.Roles, func(r Role) bool { return r.Name == name })
	if at < 0 {
		return Role{}, false
	}
	return p.Roles[at], true
}

// Assignable checks that a role may be assigned to somebody who has, or waits for, the held ones. It says whether that takes a second
// person: when the role says so, or something that it permits. The error is ErrNoSuch, ErrNotAssignable or a *ConflictError.
func (p *Policy) Assignable(role string, held []string) (approval bool, err error) {
	r, ok := p.role(role)
	switch {
	case !ok:
		return false, ErrNoSuch
	case !r.Workforce:
		return false, ErrNotAssignable
	}
	for _, c := range p.Conflicts {
		for _, h := range held {
			if c.Role == role && c.Other == h || c.Other == role && c.Role == h {
				return false, &ConflictError{c, h}
			}
		}
	}
	approval = r.Approval || slices.ContainsFunc(p.Permissions, func(x Permission) bool { return x.Role == role && x.Approval }) ||
		slices.ContainsFunc(p.Capabilities, func(x Capability) bool { return x.Role == role && x.Approval })
	return approval, nil
}

// Administers reports whether a role may change who may do what.
func (p *Policy) Administers(role string) bool {
	return slices.ContainsFunc(p.Capabilities, func(c Capability) bool {
		return c.Role == role && (c.Name == CapabilityAssignmentWrite || c.Name == CapabilityPolicyWrite)
	})
}

// SamePerson compares two names as people write them.
func SamePerson(a, b string) bool {
	return strings.EqualFold(strings.TrimSpace(a), strings.TrimSpace(b))
}
