// Package phi keeps sealed records.
//
// It promises that nothing readable rests outside this process: a resource is split by top-level element into PHI
// classes, and each class is one AES-256-GCM cell under the patient's own data key. It promises no receipt, no plaintext:
// a cell is opened only against an audit.Receipt that names the record, and only the columns of the caller's field view
// are fetched and opened. It promises that a moved, edited, nulled or rolled-back cell is noticed (associated data and
// row seal), and then the whole row is withheld under one opaque error. And it promises that what went in comes out:
// every value keeps its own text (decimal digits, unknown extensions, contained resources, key order).
//
// Records is the room's door. Reads fetch the sealed row, decide on its compartment, record the event, and only then
// open. Writes record an intent before the commit and the outcome after it.
package phi

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Ref addresses a record: FHIR type and logical id.
type Ref struct{ Type, ID string }

// String is the relative reference, e.g. "Patient/1".
func (r Ref) String() string { return r.Type + "/" + r.ID }

// Compare orders by type, then by id, byte by byte, as the storage does.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(strings.Compare(r.Type, o.Type), strings.Compare(r.ID, o.ID))
}

// Class is a PHI class: a sealed column, a unit of permission and a line in an audit event at the same time.
type Class uint8

// The classes, in column order. Numbers are part of the associated data of cells: never renumber.
const (
	ClassIdentifier Class = iota
	ClassName
	ClassBirthDate
	ClassContact
	ClassClinical
	ClassNarrative
	NumClasses = 6
)

// String is the column's name.
func (c Class) String() string {
	return [NumClasses]string{"identifier", "name", "birth_date", "contact", "clinical", "narrative"}[c]
}

// ClassSet is a set of classes, one bit each (1<<Class).
type ClassSet uint8

// AllClasses is the full set.
const AllClasses ClassSet = 1<<NumClasses - 1

// Has reports whether c is in the set.
func (s ClassSet) Has(c Class) bool { return s&(1<<c) != 0 }

// Caller is on whose behalf, and in which request, records are touched.
type Caller struct {
	Principal *auth.Principal
	Purpose   string // purpose of use asked for; "" takes the role's default
	RequestID string
	Network   string    // client address
	Start     time.Time // when the request began
	AuthTook  time.Duration
	Trace     *Trace // where the request's parts are added up; may be nil

	export *export // that the entries of a bundle share
}

// Trace adds up where a request's time went, for metrics, and says what its answer has to tell. Not safe for concurrent use.
type Trace struct {
	Decision, Database, Crypto, Audit time.Duration

	Emergency string   // id of the emergency access under which something was decided; "" for ordinary access
	Refusal   audit.ID // the event of the last call that was refused
}

// Resource is an opened record, as far as the caller's view goes.
type Resource struct {
	Ref
	Version   int64
	Updated   time.Time // UTC, milliseconds
	Deleted   bool      // a tombstone in a history; JSON is none
	Method    string    // in a history: POST, PUT or DELETE
	Subsetted bool
	JSON      PHI // FHIR JSON with id and meta
}

// Kind is the kind of an Error: a closed list that rest maps to HTTP statuses in one table.
type Kind uint8

const (
	Invalid            Kind = iota + 1 // 400: the request cannot be understood
	Unprocessable                      // 422: it can, and its content is against the rules
	Denied                             // 403: scope or role
	NotFound                           // 404: unknown, or not for this caller to know
	Gone                               // 410
	Conflict                           // 409: version clash, concurrent change
	PreconditionFailed                 // 412: If-Match, or conditional create with several matches
	TooLarge                           // 413
	Unavailable                        // 503: journal, database or keys are not there; fail closed
	Integrity                          // 500: a stored row does not open; withheld
	NotAllowed                         // 405: records of the type are made by the server alone
	StepUp                             // 401: the sign-in is too weak or too old (RFC 9470); see Error.Demand
)

// Error is what Records returns. Its message and issues never carry PHI.
type Error struct {
	Kind   Kind
	Issues []fhir.Issue // at least one
	Err    error        // cause, for logs; never shown to callers
	Demand auth.StepUp  // of StepUp: what kind of sign-in would do
}

func (e *Error) Error() string {
	m := fmt.Sprintf("phi: kind %d", e.Kind)
	if len(e.Issues) > 0 {
		m = "phi: " + e.Issues[0].Diagnostics
	}
	if e.Err != nil {
		m += ": " + e.Err.Error()
	}
	return m
}

func (e *Error) Unwrap() error { return e.Err }
