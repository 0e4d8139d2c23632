package auth

import (
	"context"
	"time"
)

// Policy is the stored policy: rows as they are in the database.
type Policy struct {
	Version      int64
	Roles        []Role // those that only permissions and capabilities name are roles too, of nobody's
	Permissions  []Permission
	Capabilities []Capability
	Assignments  []Assignment
	Conflicts    []Conflict

	// EmergencyOverConsent lets emergency access through where a consent of the patient denies it, as 45 CFR 164.522(a)(1)(iii) does
	// for emergency treatment. Otherwise only a consent whose own provision permits the purpose BTG or ETREAT lets it through.
	EmergencyOverConsent bool
}

// Role is what is said of a role beside what it permits.
type Role struct {
	Name        string
	Description string
	Workforce   bool // people hold it: it can be assigned
	Approval    bool // to assign it takes a second person
}

// Relation is what must hold between caller and patient for a Permission to apply.
type Relation string

const (
	RelationNone      Relation = "none"      // no relationship needed
	RelationTreatment Relation = "treatment" // treatment relationship with a patient of the record
	RelationSelf      Relation = "self"      // the record is in the caller's own compartment (launch patient)
)

// Effect says whether a Permission lets through or keeps out.
type Effect string

const (
	Permit Effect = "permit"
	Forbid Effect = "forbid" // wins over every permit, consent and emergency access
)

// Permission lets a role do interactions on a type, or forbids them whatever else would let them through.
type Permission struct {
	Role         string
	Type         string // FHIR type, or "*" for every clinical type
	Interactions string // letters of cruds, in that order
	View         string // of a permit
	Relation     Relation
	Purposes     []string // first is the default; those of a forbid limit it, and none means all
	Effect       Effect   // "" is Permit
	Segments     []string // segments beside the general one that a permit opens, or that alone a forbid is about; see Segment
	StepUp       StepUp
	Approval     bool // to assign a role that has it takes a second person
}

// StepUp is how well and how lately a caller must have proved who he is (RFC 9470). The zero StepUp demands nothing.
type StepUp struct {
	ACR    []string      // authentication context classes, of which the token must name one; none means any
	MaxAge time.Duration // since auth_time, at most; 0 means any
}

// Capability is a permission that is not about a FHIR type, e.g. "audit:read".
type Capability struct {
	Role, Name string
	StepUp     StepUp
	Approval   bool // to assign a role that has it takes a second person
}

// Assignment gives a role to a workforce member, beside those that the token names (45 CFR 164.308(a)(4)(ii)(B), (C)).
type Assignment struct {
	Subject string // Principal.Subject
	Role    string
	From    time.Time // inclusive
	Until   time.Time // exclusive; zero: without end
}

// Conflict is a pair of roles that nobody may hold at once (separation of duty).
type Conflict struct{ Role, Other, Reason string }

// Epochs are numbers that grow with every change of what they stand for.
type Epochs struct {
	Policy       int64  // roles, permissions, capabilities, assignments, conflicts, settings
	Relationship Shards // treatment relationships, by practitioner
	Consent      Shards // consents, by patient
	Emergency    int64  // grants of emergency access
}

// Shards are epochs of people: each person has one of them (the storage says which), so that a change about one leaves what is known of
// nearly all others standing.
type Shards [256]int64

// Actor is whom stored facts are about.
type Actor struct {
	Subject      string // Principal.Subject
	Practitioner string // id of a Practitioner resource, "" when the caller is none
}

// Fact is what is stored about an actor and one patient.
type Fact struct {
	Related  string        // where the treatment relationship comes from ("Encounter", "CareTeam", "grant"); "" when there is none now
	Until    time.Time     // when that ends by itself (the end of a period and of its tail); zero: not foreseeable
	Consents []ConsentRule // of the patient, about everybody or the actor; those of one Consent beside each other, and those that are over may be left out

	// The shards that it depends on: the practitioner's in Epochs.Relationship, the patient's in Epochs.Consent.
	RelationshipShard, ConsentShard uint8
}

// Grant is emergency access that somebody was given to one patient's chart (45 CFR 164.312(a)(2)(ii)): to read, from this session.
type Grant struct {
	ID      string
	Subject string // Principal.Subject
	Session string // Principal.Session
	Patient string
	Until   time.Time
	Left    time.Duration // from when the storage was asked until then, by its own clock
}

// Storage is what Access needs of a database. All calls may be made from many goroutines.
type Storage interface {
	// Epochs is a cheap read of the current epochs.
	Epochs(ctx context.Context) (Epochs, error)
	// Policy returns the whole policy.
	Policy(ctx context.Context) (Policy, error)
	// Emergencies returns the grants of emergency access that are neither over nor revoked.
	Emergencies(ctx context.Context) ([]Grant, error)
	// Facts returns what is known now of the actor and each of the patients, in their order.
	Facts(ctx context.Context, a Actor, patients []string) ([]Fact, error)
}
