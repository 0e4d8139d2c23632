// Package auth answers two questions: who is asking (Verifier: token to Principal), and what may they do (Access:
// Principal and Request to Decision).
//
// It promises that nothing is believed that was not verified: one strict gate stands before the signature library, every claim that matters
// is mandatory, and a doubt is a refusal. Each issuer is believed what it is trusted with and no more (IssuerConfig), and what it calls
// somebody means nobody of another issuer's. A token that is bound to its sender by DPoP or a TLS certificate (Confirmation) is good for
// nobody else. Whatever was revoked is dead with the next request here and within a second elsewhere, and an instance that has heard nothing
// for five seconds judges no token (Revocations); a session that nobody uses, or that is too old, is over (Sessions).
//
// It promises that access is denied unless every gate says yes (decide.go): scope, role, purpose, the age and strength of the sign-in,
// launch, treatment relationship, the patient's consent, sensitive segments; that a forbidding rule overcomes all of them; and that
// every Decision names the rule, the reason and the policy version it was made under, so that it can be explained gate by gate and made
// again (Replay). Roles come from tokens, where their issuer may give them, and from assignments, which end by themselves; of roles that
// conflict nobody has any. What widens a policy takes a second person (Compare). Emergency access (Grant) opens one patient's records to
// one person in one session, to read, for a while.
//
// On a warm path both answers cost about a microsecond and no allocation: verified tokens are cached under a keyed digest, policies are
// compiled to a snapshot that is swapped atomically, and only facts that need the database are cached, with the epochs that they depend on.
//
// The package knows nothing of records, HTTP frameworks or databases: storages come in as small interfaces.
package auth

import "time"

// Principal is a verified caller. It is immutable and shared between requests. Subject, Client and Session are unique among all
// issuers that are trusted: those of an issuer with a name (IssuerConfig.Name) begin with it and "|".
type Principal struct {
	Subject  string // sub
	Issuer   string // iss
	Client   string // client_id
	Session  string // sid, or jti when there is none
	TokenID  string // jti
	KeyID    string // kid of the key that signed the token, after the issuer's name and "|" where it has one; "" when none did
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

	Confirmation Confirmation // keys that the token is bound to
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
	ReasonStepUp       Reason = "step-up-needed"    // the sign-in is too weak or too old for what is asked (RFC 9470)
	ReasonConsent      Reason = "consent-denies"    // the patient does not want this caller to see the record
	ReasonSegment      Reason = "segment-closed"    // a sensitive segment that neither role nor consent opens
	ReasonForbidden    Reason = "forbidden"         // a rule keeps the role out, whatever else would let it in
	ReasonUnavailable  Reason = "facts-unavailable" // the relationship could not be looked up: fail closed
)

// Segment is a part of a patient's records that the law sets apart. The numbers are those that package phi stores.
type Segment uint16

const (
	SegmentGeneral       Segment = 0
	SegmentPart2         Segment = 1 // substance use disorder records (42 CFR part 2)
	SegmentPsychotherapy Segment = 2 // psychotherapy notes (45 CFR 164.501, 164.508(a)(2))
)

// segmentNames are how policies spell segments.
var segmentNames = [...]string{"general", "part2", "psychotherapy"}

// SegmentSet is a set of segments; the general one need not be in it.
type SegmentSet uint8

// Numbers lists the segments of the set, the general one not among them.
func (s SegmentSet) Numbers() []int32 {
	list := make([]int32, 0, 2)
	for x := int32(1); x < 8; x++ {
		if s&(1<<x) != 0 {
			list = append(list, x)
		}
	}
	return list
}

// Has reports whether the set opens the segment; the general one is always open.
func (s SegmentSet) Has(x Segment) bool { return x == SegmentGeneral || x < 8 && s&(1<<x) != 0 }

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
	Segment     Segment  // of the record as it is stored
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

	Related   string // where the treatment relationship that let the caller in comes from, "" when none was needed
	Emergency string // id of the Grant that let the caller in, "" for ordinary access

	// Only is what granular scopes leave: a record is the caller's to see or to write when one of them holds for it, and for a write
	// also for the record as it was. Whoever asked for the decision has to hold them against the content; nil leaves everything.
	Only   []Constraint
	StepUp StepUp // what was demanded, with ReasonStepUp
}

// Filter is a decision about a whole search, to be compiled into the query: hits outside it are never counted,
// paged over or hinted at. Exactly one of All, Patient and Practitioner is set on an allowed filter.
type Filter struct {
	Decision
	All          bool   // every record of the type
	Patient      string // records in this patient's compartment only
	Practitioner string // records of patients with a treatment relationship to this practitioner (FHIRUser's id)

	// Whatever of these is set, consents of patients narrow it, those about everybody or Actor, for Decision.Purpose, unless Exempt; and
	// so do segments: Segments are open by role, others only where a consent opens them, and Closed not even there.
	Actor            Actor
	Exempt           bool // the caller is the patient, or the deployment itself
	Segments, Closed SegmentSet
}
