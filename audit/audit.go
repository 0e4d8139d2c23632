// Package audit is the tamper-evident log of who did what to whose record.
//
// It promises three things. A Receipt exists only for events that are durable at the level that was asked for. Nothing
// that was acknowledged is lost: not on kill -9, not while the database is away, not on a full disk; when an event
// cannot be made durable, Record fails and the caller must not disclose, and the outage itself is recorded. And nothing is
// changed unnoticed: each process writes its own stream, whose records carry contiguous sequence numbers and a hash chain from
// the first byte on, with a heartbeat every ten seconds.
//
// # Life of an event
//
// Record copies the event, encodes it once to bytes that are never re-encoded, and hands it to a bounded channel. One
// committer goroutine drains what waits, numbers and chains it, and writes the whole group with one write(2): that
// releases tickets at level Process. A syncer makes the group durable with one fdatasync: that releases Power. The
// shipper, off the request path, stores whole groups through Storage (manifest and rows in one transaction): that
// releases Database.
//
// An event's leaf is SHA-256(0x00 || id || stream || sequence number || recorded || SHA-256(salt || body)), a salted commitment; its
// stream's chain goes on with SHA-256(chain || leaf). One elected Sequencer recomputes the chain of every stored batch and
// appends the leaves of those that fit to the log's one RFC 6962 tree. Tiles and the checkpoint, a C2SP signed note, are stored
// together, within seconds. What is signed is the tree that was signed before with leaves added, never what a table
// says that it was: whoever edits tables cannot have it signed. Of two processes that believe to lead, the database's fencing
// token lets one write.
//
// Checkpoints leave the house. A Witness, run by somebody else, cosigns only what continues what it cosigned before; an
// Anchor keeps checkpoints where nobody can change them. From then on, another history is noticed whoever made it, with
// the log's key or without.
//
// Anybody verifies. Prove shows that one event is in the tree. Verify holds everything against everything: rows against leaves,
// leaves against chains, tiles and every checkpoint that was ever signed, columns against the bytes, and all of it against what
// is known from outside. Export writes a Bundle, of which Bundle.Verify needs nothing but the log's public key. A Patrol
// verifies the live trail again and again and raises the alarm. THREATS.md names each attack and what notices it.
//
// After RetentionYears at least, and unless a legal hold stands on it, a month of rows is exported, noted in a Pruning that the
// log signs, and dropped. Leaves and checkpoints stay: every proof stays valid, and rows may be missing only where a
// Pruning says so.
//
// # Where to read
//
//	audit.go receipt.go encode.go text.go     the event, its bytes, and the proof that it is durable
//	log.go ticket.go commit.go                from Record to write and fdatasync
//	journal.go frame.go segment.go …          what a crash at each step means; the bytes of the journal
//	recover.go outage.go rescue.go renew.go   after a crash, a disk that fills or fails, damage, a database that was restored
//	clock.go heartbeat.go                     times, and signs of life
//	storage.go ship.go check.go               into the database
//	tree.go sequencer.go edge.go followers.go the tree, who extends it, and who takes its checkpoints out
//	checkpoint.go cosignature.go witness.go proof.go anchor.go pruning.go
//	                                          what outsiders hold in their hands
//	verify.go verify_tree.go report.go        verification; bundle.go, export.go, verify_bundle.go: of files
//	query.go language.go facet.go latency.go timing.go
//	                                          what officers ask, and how long requests took
//
// The package imports the standard library and golang.org/x/mod/sumdb only, so that an outside auditor can read all
// that matters in one sitting: the first lines for what is promised, tree.go, checkpoint.go, proof.go and verify*.go for how it is checked.
package audit

import (
	"fmt"
	"time"
)

// ID identifies an event: a UUID version 7 (RFC 9562), so ids of one process sort by time.
type ID [16]byte

// String writes the id as RFC 9562 section 4 has it; ParseID reads it.
func (id ID) String() string { return formatUUID(id) }

// StreamID identifies the stream of one journal directory: 16 random bytes minted when the directory is created.
type StreamID [16]byte

// Hash is a SHA-256 value: a leaf, or the head of a stream's chain.
type Hash [32]byte

// Action is FHIR AuditEvent.action.
type Action byte

// Actions after http://hl7.org/fhir/R4/valueset-audit-event-action.html. A search is Execute (IHE BALP).
const (
	ActionCreate  Action = 'C'
	ActionRead    Action = 'R'
	ActionUpdate  Action = 'U'
	ActionDelete  Action = 'D'
	ActionExecute Action = 'E'
)

// Outcome is FHIR AuditEvent.outcome (http://hl7.org/fhir/R4/valueset-audit-event-outcome.html), and Intent, which has
// no outcome yet: a write records an Intent before its commit and an event with the outcome after it. An Intent whose
// Correlation never appears on an outcome event stays visible as such.
type Outcome int8

const (
	Intent         Outcome = -1
	Success        Outcome = 0
	MinorFailure   Outcome = 4  // the request was refused or malformed
	SeriousFailure Outcome = 8  // the server could not do it
	MajorFailure   Outcome = 12 // the server can no longer do it
)

// Type is what kind of happening an event describes (FHIR AuditEvent.type, with DICOM PS3.16 codes).
type Type string

const (
	TypeREST           Type = "rest"   // RESTful operation (IHE BALP)
	TypeAuthentication Type = "110114" // user authentication; failed tokens
	TypeApplication    Type = "110100" // application activity; subtypes 110120 start, 110121 stop
	TypeAuditLogUsed   Type = "110101" // somebody read the trail
	TypeSecurityAlert  Type = "110113" // integrity failure, clock step, lost records
	TypeExport         Type = "110106" // PHI went out for a purpose other than treatment, payment and operations
	TypeImport         Type = "110107" // data brought in from files
	TypePolicy         Type = "110137" // user security attributes changed: roles, grants
)

// Entity names a record that took part, never its content.
type Entity struct {
	Type    string // FHIR resource type
	ID      string // logical id
	Version int64  // 0 when it does not matter or is not known
}

// EntityEmergency is the type of the entity that names emergency access, of every event under it and about it.
const EntityEmergency = "EmergencyAccess"

// Agent is who acted: the user, the client application, and from where (FHIR AuditEvent.agent).
type Agent struct {
	User     string   // subject of the token; "" for an unauthenticated caller, "system" for ourselves
	Name     string   // display name of a workforce member as the issuer asserts it; never a patient's
	Client   string   // OAuth client id
	Session  string   // sid or jti of the token
	Roles    []string // role names that took part in the decision
	Network  string   // client address
	FHIRUser string   // e.g. Practitioner/…
}

// Decision is what access control said and why (section "why allowed").
type Decision struct {
	Allowed bool
	Rule    string // the rule or gate that decided, e.g. "clinician/treatment"
	Reason  string // closed vocabulary of auth.Reason
	View    string // field view that was granted
	Policy  int64  // version of the policy snapshot
}

// Timing holds durations in microseconds; 0 means not known when the event was handed over.
type Timing struct {
	Total, Auth, Decision, Database, Crypto, Audit uint32
}

// Event is one happening, mapping one to one onto FHIR R4 AuditEvent with IHE BALP. It carries references, never
// content: no names, no values, no search text in the clear. An Event belongs to the Log once it was handed over: the
// caller must not change it, nor anything it points to, afterwards. All strings must be owned by the event (copied out
// of request buffers).
type Event struct {
	ID          ID        // set by the Log when zero
	Recorded    time.Time // wall clock, set by the Log when zero; never used for ordering
	Type        Type
	Interaction string // FHIR interaction: read, vread, search-type, create, …; or the verb of another type
	Action      Action
	Outcome     Outcome
	OutcomeDesc string // fixed vocabulary; never PHI
	Agent       Agent
	Purpose     string // purpose of use code: TREAT, HPAYMT, HOPERAT, PATRQT, HRESCH, BTG, …
	Patient     string // logical id of the patient concerned, "" when there is none (a query over N patients is N events)
	Entities    []Entity
	Classes     []string // PHI classes touched ("fields touched")
	Decision    Decision
	RequestID   string
	Correlation ID     // ties an outcome to its Intent; zero when there is none
	Query       []byte // sealed search text; opaque to this package
	Timing      Timing
	Detail      []byte // what an event of its Interaction carries beside, in a format of its own; opaque to this package, never PHI
}

// Level is how durable an event must be before its Receipt is issued.
type Level uint8

const (
	Process  Level = 1 // write(2) returned: survives kill -9
	Power    Level = 2 // fdatasync returned: survives a power cut
	Database Level = 3 // committed in the database: survives the loss of this host
)

// String names the level as settings do.
func (l Level) String() string {
	switch l {
	case Process:
		return "process"
	case Power:
		return "power"
	case Database:
		return "database"
	default:
		return fmt.Sprintf("level %d", uint8(l))
	}
}
