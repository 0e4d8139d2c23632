package auth

import "context"

// Policy is the stored policy: rows as they are in the database.
type Policy struct {
	Version      int64
	Permissions  []Permission
	Capabilities []Capability
}

// Relation is what must hold between caller and patient for a Permission to apply.
type Relation string

const (
	RelationNone      Relation = "none"      // no relationship needed
	RelationTreatment Relation = "treatment" // treatment relationship with a patient of the record
	RelationSelf      Relation = "self"      // the record is in the caller's own compartment (launch patient)
)

// Permission lets a role do interactions on a type.
type Permission struct {
	Role         string
	Type         string // FHIR type, or "*" for every clinical type
	Interactions string // letters of cruds, in that order
	View         string
	Relation     Relation
	Purposes     []string // first is the default
}

// Capability is a permission that is not about a FHIR type, e.g. "audit:read".
type Capability struct{ Role, Name string }

// Storage is what auth needs of a database. Both calls may be made from many goroutines.
type Storage interface {
	// Policy returns the whole policy.
	Policy(ctx context.Context) (Policy, error)
	// PolicyVersion is a cheap read of the current version.
	PolicyVersion(ctx context.Context) (int64, error)
	// Related reports whether the practitioner (id of a Practitioner resource) has a treatment relationship with any of
	// the patients now, and where it comes from ("Encounter", "CareTeam", "grant").
	Related(ctx context.Context, practitioner string, patients []string) (source string, ok bool, err error)
	// RelationshipEpoch is a number that grows with every change of any treatment relationship.
	RelationshipEpoch(ctx context.Context) (int64, error)
}
