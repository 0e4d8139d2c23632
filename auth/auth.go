// Package auth answers two questions: who is asking (Verifier: token to Principal), and what may they do (Access:
// Principal and Request to Decision).
//
// It promises that nothing is believed that was not verified: one strict gate stands before the signature library,
// every claim that matters is mandatory, and a doubt is a refusal. It promises that access is denied unless scope, role,
// purpose and (where the role asks for it) treatment relationship all say yes, and that every Decision names the rule,
// the reason and the policy version it was made under. On a warm path both answers cost about a microsecond and no
// allocation: verified tokens are cached under a keyed digest, roles are compiled to a snapshot that is swapped
// atomically, and only relationships, which need the database, are cached with their epoch in the key.
//
// The package knows nothing of records, HTTP frameworks or databases: storages come in as small interfaces.
package auth

import "time"

// Principal is a verified caller. It is immutable and shared between requests.
type Principal struct {
	Subject  string // sub
	Issuer   string // iss
	Client   string // client_id
	Session  string // sid, or jti when there is none
	TokenID  string // jti
	Name     string // name claim of a workforce member, "" otherwise
	Roles    []string
	Scopes   Scopes
	Patient  string // launch context: id of the patient that patient/ scopes are bound to
	FHIRUser string // e.g. "Practitioner/…"
	ACR      string
	AMR      []string
	AuthTime time.Time
	Issued   time.Time
	Expires  time.Time
}

// Reason is why a decision went as it did: a closed vocabulary, safe to show to officers, never shown to the caller.
type Reason string

const (
	ReasonAllowed      Reason = "allowed"
	ReasonScope        Reason = "scope-missing"        // no scope covers type and interaction
	ReasonRole         Reason = "role-missing"         // no role permits type and interaction
	ReasonRelationship Reason = "relationship-missing" // role needs a treatment relationship and there is none
	ReasonCompartment  Reason = "outside-compartment"  // patient/ scope or patient role, other patient
	ReasonPurpose      Reason = "purpose-not-allowed"
	ReasonUnavailable  Reason = "facts-unavailable" // the relationship could not be looked up: fail closed
)

// Interaction is one letter of SMART v2 scopes, so that each is enforced by itself.
type Interaction byte

const (
	Create Interaction = 'c'
	Read   Interaction = 'r' // read, vread, instance history
	Update Interaction = 'u'
	Delete Interaction = 'd'
	Search Interaction = 's' // type search, type history
)

// Request is what the caller wants to do with one record (or, for a search, with a type).
type Request struct {
	Interaction Interaction
	Type        string   // FHIR resource type
	Patients    []string // patients in whose compartment the record is; empty for records of nobody's
	Stray       bool     // the type belongs to patients and the record names none: nobody can be said to treat its patient
	Purpose     string   // purpose of use asked for; "" takes the role's default
}

// Decision is an answer. The zero Decision denies.
type Decision struct {
	Allowed bool
	View    string // field view: a name that phi maps to PHI classes
	Purpose string // purpose of use that applies
	Rule    string // e.g. "clinician:Patient:r:treatment"
	Reason  Reason
	Policy  int64 // version of the policy snapshot
}

// Filter is a decision about a whole search, to be compiled into the query: hits outside it are never counted,
// paged over or hinted at. Exactly one of All, Patient and Practitioner is set on an allowed filter.
type Filter struct {
	Decision
	All          bool   // every record of the type
	Patient      string // records in this patient's compartment only
	Practitioner string // records of patients with a treatment relationship to this practitioner (FHIRUser's id)
}
