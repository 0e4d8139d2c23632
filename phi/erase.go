package phi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// ErasureState is how far an erasure got.
type ErasureState string

// A request waits for a second person, who executes it; until then either may withdraw it.
const (
	ErasureRequested ErasureState = "requested"
	ErasureWithdrawn ErasureState = "withdrawn"
	ErasureExecuted  ErasureState = "executed"
)

// Erasure is a request to erase a patient for good, and what became of it.
type Erasure struct {
	ID           UUID
	Patient      string // logical id
	Reason       string // a ground or a case number; it must not describe the patient
	RequestedBy  string
	RequestedAt  time.Time
	RequestEvent audit.ID // of the trail
	State        ErasureState
	DecidedBy    string // who executed or withdrew it
	DecidedAt    time.Time
	Certificate  []byte // signed, of an executed one; see Certificate

	also []string // the same person's other ids, as far as they were looked up by now
}

// ErasureScope is what an erasure destroys, and what it makes unreadable by that. Everything is counted as of one moment.
type ErasureScope struct {
	Patients      []string // logical ids of the person: the one asked for first, then those that were merged with it
	Subjects      []UUID   // key subjects of the person
	Keys          []ErasedKey
	Records       int // whose current version is sealed under these keys
	Versions      int // superseded versions
	Tokens        int // index tokens, destroyed
	Relationships int // treatment relationships, destroyed
	Mentions      int // records of other patients that name the person: they stay, readable
}

// ErasedKey is a data key that is destroyed, and the key that wrapped it: whoever still has that key, its root, and an old copy
// of the wrapped key can open old copies of what it sealed.
type ErasedKey struct {
	Subject UUID   `json:"subject"`
	Segment uint16 `json:"segment"`
	KeyID   uint32 `json:"generation"`
	KEK     string `json:"wrapped_by"`
	Root    string `json:"root"`
}

// Errors of ErasureStorage, beside ErrNotFound and ErrVersion.
var (
	ErrErasurePending = errors.New("phi: an erasure of the patient is requested already")
	ErrErasureDecided = errors.New("phi: the erasure is decided")
	ErrOnePerson      = errors.New("phi: who asked for an erasure does not execute it")
	ErrHeld           = errors.New("phi: a legal hold stands")
	ErrErasureGrown   = errors.New("phi: the patient was merged since the erasure was asked for")
)

// ErasureStorage keeps requests to erase, and erases. Safe for concurrent use.
type ErasureStorage interface {
	// ErasureScope counts what erasing the patient with this subject would destroy. ErrVersion says that the stored patient has
	// another subject.
	ErasureScope(ctx context.Context, patient string, subject UUID) (*ErasureScope, error)
	// RequestErasure stores a request. One that waits for the same patient is ErrErasurePending.
	RequestErasure(ctx context.Context, e *Erasure) error
	// Erasures returns all requests, newest first. Erasure returns one; ErrNotFound.
	Erasures(ctx context.Context) ([]*Erasure, error)
	Erasure(ctx context.Context, id UUID) (*Erasure, error)
	// UntoldErasures returns those executed before a time of which it is not known that the trail has the outcome; ToldErasure says
	// that it has.
	UntoldErasures(ctx context.Context, before time.Time) ([]*Erasure, error)
	ToldErasure(ctx context.Context, id UUID) error
	// WithdrawErasure ends a request. ErrNotFound, ErrErasureDecided.
	WithdrawErasure(ctx context.Context, id UUID, by string) error
	// Erase executes a request in one transaction: it waits for writers that hold the subject's data keys, refuses while a
	// legal hold stands on the person or on a time at which one of their versions was made (ErrHeld, also against a hold that is
	// being placed), and deletes the data keys of all segments, the index tokens, the compartments and the treatment
	// relationships. The subjects are noted as erased, with those that merged patients had before: no key comes back to them. Other
	// instances are told when it commits. certify is called with what was destroyed before the commit; its result is stored with
	// the request. It also fails with ErrNotFound, ErrErasureDecided, ErrOnePerson, ErrMerge while a merge of the patient is under
	// way, ErrErasureGrown when one was begun after the request (more would go than was asked for) and, when the patient has another
	// subject by now, ErrVersion.
	Erase(ctx context.Context, id UUID, by string, subject UUID, certify func(*ErasureScope) ([]byte, error)) error
}

// Erasures is the door to erasing patients for good: one person asks, another executes. Safe for concurrent use; every call
// records its own audit events, durable in the database before anything happens; every error is an *Error.
type Erasures struct {
	records *Records
	storage ErasureStorage
	sign    func(text string) ([]byte, error)
	level   audit.Level
}

// ErasureConfig configures Erasures.
type ErasureConfig struct {
	Records *Records
	Storage ErasureStorage
	Sign    func(text string) ([]byte, error) // makes a signed note of a certificate's text; nil leaves it unsigned
	Level   audit.Level                       // of events; audit.Database when 0
}

// NewErasures prepares Erasures. It reads nothing.
func NewErasures(cfg ErasureConfig) *Erasures {
	x := &Erasures{records: cfg.Records, storage: cfg.Storage, sign: cfg.Sign, level: cfg.Level}
	if x.level == 0 {
		x.level = audit.Database
	}
	if x.sign == nil {
		x.sign = func(text string) ([]byte, error) { return []byte(text), nil }
	}
	return x
}

// Officer is who asks for or decides about an erasure. That he may was decided before: Decision says by which rule. Two persons
// are two values of Agent.User.
type Officer struct {
	Agent     audit.Agent
	RequestID string
	Decision  audit.Decision
}

// maximalReason bounds a reason, in bytes.
const maximalReason = 1000

// Request asks for a patient to be erased, and says what that would destroy.
func (x *Erasures) Request(ctx context.Context, who Officer, patient, reason string) (*Erasure, *ErasureScope, error) {
	e := &Erasure{
		ID: newUUID(), Patient: patient, Reason: strings.TrimSpace(reason), State: ErasureRequested,
		RequestedBy: strings.TrimSpace(who.Agent.User), RequestedAt: x.records.now().UTC().Truncate(time.Millisecond),
	}
	var scope *ErasureScope
	err := x.administer(ctx, who, "erasure-request", audit.ActionCreate, e, func(intent audit.ID) *Error {
		switch {
		case !fhir.ValidID(patient):
			return invalid("value", "the patient is not a FHIR id")
		case e.Reason == "" || len(e.Reason) > maximalReason:
			return invalid("value", "a reason of at most 1000 bytes is needed")
		case e.RequestedBy == "":
			return invalid("value", "nobody is named who asks")
		}
		subject, fault := x.subject(ctx, patient)
		if fault != nil {
			return fault
		}
		e.RequestEvent = intent
		var err error
		if scope, err = x.storage.ErasureScope(ctx, patient, subject); err != nil {
			return erasureFault(err)
		}
		return erasureFault(x.storage.RequestErasure(ctx, e))
	})
	if err != nil {
		return nil, nil, err
	}
	return e, scope, nil
}

// List returns all requests, newest first.
func (x *Erasures) List(ctx context.Context, who Officer) ([]*Erasure, error) {
	if err := x.look(ctx, who, "erasure-list", nil); err != nil {
		return nil, err
	}
	list, err := x.storage.Erasures(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	return list, nil
}

// Get returns one request.
func (x *Erasures) Get(ctx context.Context, who Officer, id UUID) (*Erasure, error) {
	if err := x.look(ctx, who, "erasure-read", &id); err != nil {
		return nil, err
	}
	e, err := x.storage.Erasure(ctx, id)
	if err != nil {
		return nil, erasureFault(err)
	}
	return e, nil
}

// look records that somebody reads requests.
func (x *Erasures) look(ctx context.Context, who Officer, interaction string, id *UUID) error {
	e := &audit.Event{Type: audit.TypePolicy, Interaction: interaction, Action: audit.ActionRead, Agent: who.Agent, RequestID: who.RequestID, Decision: who.Decision}
	if id != nil {
		e.Entities = []audit.Entity{{Type: "Erasure", ID: id.String()}}
	}
	if _, err := x.records.log.Record(ctx, x.records.level.Disclosure, e); err != nil {
		return unavailable(err)
	}
	return nil
}

// Withdraw ends a request that waits.
func (x *Erasures) Withdraw(ctx context.Context, who Officer, id UUID) error {
	return x.decide(ctx, who, "erasure-withdraw", audit.ActionUpdate, id, func(*Erasure, audit.ID) *Error {
		return erasureFault(x.storage.WithdrawErasure(ctx, id, strings.TrimSpace(who.Agent.User)))
	})
}

// Approve executes a request. From its return on nothing of the patient's opens on any instance: data keys are fetched with
// each row.
func (x *Erasures) Approve(ctx context.Context, who Officer, id UUID) (*Certificate, error) {
	var made Certificate
	err := x.decide(ctx, who, "patient-shred", audit.ActionDelete, id, func(e *Erasure, intent audit.ID) *Error {
		by := strings.TrimSpace(who.Agent.User)
		switch {
		case e.State != ErasureRequested:
			return erasureFault(ErrErasureDecided)
		case by == "" || strings.EqualFold(by, e.RequestedBy):
			return erasureFault(ErrOnePerson)
		}
		subject, fault := x.subject(ctx, e.Patient)
		if fault != nil {
			return fault
		}
		return erasureFault(x.storage.Erase(ctx, id, by, subject, func(scope *ErasureScope) ([]byte, error) {
			e.also = scope.Patients[1:]
			made = newCertificate(e, by, x.records.now().UTC().Truncate(time.Millisecond), scope, intent)
			text, err := made.Text()
			if err != nil {
				return nil, err
			}
			return x.sign(text)
		}))
	}, func() { x.told(ctx, id) })
	if err != nil {
		return nil, err
	}
	return &made, nil
}

// told notes that the trail has an erasure's outcome. When that fails, Tell tells it once more.
func (x *Erasures) told(ctx context.Context, id UUID) {
	if err := x.storage.ToldErasure(context.WithoutCancel(ctx), id); err != nil {
		x.records.logger.Warn("erasures: not noted that the outcome is recorded", "err", err)
	}
}

// Tell records the outcome of erasures that were executed by a process that died before it could, and returns how many those were.
func (x *Erasures) Tell(ctx context.Context) (n int, err error) {
	list, err := x.storage.UntoldErasures(ctx, x.records.now().Add(-tellAfter))
	if err != nil {
		return 0, unavailable(err)
	}
	for _, e := range list {
		done := &audit.Event{
			Type: audit.TypePolicy, Interaction: "patient-shred", Action: audit.ActionDelete, Agent: audit.Agent{User: e.DecidedBy, Client: "chartkeep"},
			Patient: e.Patient, Entities: []audit.Entity{{Type: "Erasure", ID: e.ID.String()}}, Decision: audit.Decision{Allowed: true},
		}
		if c, err := ReadCertificate(e.Certificate); err == nil && len(c.Events) == 2 {
			done.Correlation, _ = audit.ParseID(c.Events[1])
			done.Entities = append(done.Entities, patients(c.Patients[min(1, len(c.Patients)):])...)
		}
		if _, err := x.records.log.Record(ctx, x.level, done); err != nil {
			return n, unavailable(err)
		}
		x.told(ctx, e.ID)
		n++
	}
	return n, nil
}

// patients names those who were erased with another in an event: a restore of older backups, in which they are not one person yet, asks for
// them.
func patients(ids []string) []audit.Entity {
	var all []audit.Entity
	for _, id := range ids {
		all = append(all, audit.Entity{Type: "Patient", ID: id})
	}
	return all
}

// tellAfter is how long whoever executed an erasure has to record its outcome.
const tellAfter = time.Minute

// decide is administer for a request that is there.
func (x *Erasures) decide(ctx context.Context, who Officer, interaction string, action audit.Action, id UUID, do func(*Erasure, audit.ID) *Error, then ...func()) error {
	e, err := x.storage.Erasure(ctx, id)
	if err != nil {
		return x.administer(ctx, who, interaction, action, &Erasure{ID: id}, func(audit.ID) *Error { return erasureFault(err) })
	}
	return x.administer(ctx, who, interaction, action, e, func(intent audit.ID) *Error { return do(e, intent) }, then...)
}

// administer does something between an event of the intent and one of the outcome; then is done when that is durable, too.
func (x *Erasures) administer(ctx context.Context, who Officer, interaction string, action audit.Action, about *Erasure, do func(intent audit.ID) *Error, then ...func()) error {
	event := func(outcome audit.Outcome) *audit.Event {
		e := &audit.Event{
			Type: audit.TypePolicy, Interaction: interaction, Action: action, Outcome: outcome, Agent: who.Agent, RequestID: who.RequestID, Decision: who.Decision,
		}
		if about != nil {
			e.Entities = []audit.Entity{{Type: "Erasure", ID: about.ID.String()}}
			if fhir.ValidID(about.Patient) {
				e.Patient = about.Patient
			}
			e.Entities = append(e.Entities, patients(about.also)...)
		}
		return e
	}
	intent := event(audit.Intent)
	intent.ID = newEventID(x.records.now())
	id := intent.ID // the log owns the event from here on
	if _, err := x.records.log.Record(ctx, x.level, intent); err != nil {
		return unavailable(err)
	}
	fault := do(id)
	done := event(audit.Success)
	done.Correlation = id
	if fault != nil {
		done.Outcome, done.OutcomeDesc = audit.MinorFailure, fault.Kind.String()
		if fault.Kind == Unavailable || fault.Kind == Integrity {
			done.Outcome = audit.SeriousFailure
		}
	}
	// What happened has happened: an answer that denied it would be wrong, and the intent is durable.
	_, err := x.records.log.Record(context.WithoutCancel(ctx), x.level, done)
	switch {
	case fault != nil:
		return fault
	case err != nil:
		x.records.logger.Error("erasures: outcome not recorded", "request_id", who.RequestID, "err", err)
	default:
		for _, f := range then {
			f()
		}
	}
	return nil
}

// subject returns the key subject of a patient, as the patient's seal says it: a row that somebody edited would have another
// person erased.
func (x *Erasures) subject(ctx context.Context, patient string) (UUID, *Error) {
	row, err := x.records.storage.Fetch(ctx, Ref{"Patient", patient}, 0)
	if err != nil {
		return UUID{}, stored(err)
	}
	if row.Erased {
		return UUID{}, erased()
	}
	if row.Subject == (UUID{}) {
		return UUID{}, fail(Integrity, "exception", "the stored record failed its integrity check and is withheld")
	}
	return row.Subject, x.records.begin(&Caller{}, verbRead, row.Ref).verify(ctx, row)
}

// erasureFault turns what an ErasureStorage returned into an Error; nil stays nil.
func erasureFault(err error) *Error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound):
		return fail(NotFound, "not-found", "there is no such erasure or patient")
	case errors.Is(err, ErrErasurePending):
		return fail(Conflict, "duplicate", "an erasure of the patient is requested already")
	case errors.Is(err, ErrErasureDecided):
		return fail(Conflict, "conflict", "the erasure was executed or withdrawn before")
	case errors.Is(err, ErrOnePerson):
		return fail(Denied, "forbidden", "who asked for an erasure does not execute it: another person must")
	case errors.Is(err, ErrHeld):
		return fail(Conflict, "business-rule", "a legal hold stands on the patient, or on a time at which one of the records was made").because(err)
	case errors.Is(err, ErrErasureGrown):
		return fail(Conflict, "business-rule", "the patient was merged since this was asked for, and more would go: withdraw it, and ask anew")
	case errors.Is(err, ErrMerge):
		return fail(Conflict, "business-rule", "a merge of the patient is under way: when it is done, the person is erased whole")
	case errors.Is(err, ErrVersion):
		return changed().because(err)
	}
	return unavailable(err)
}

// certificateHeader keeps a certificate from being taken for anything else that the same key signs.
const certificateHeader = "chartkeep erasure certificate v1"

// Certificate says what an erasure destroyed, what remains, and until when. Its Text is signed by the deployment as a note
// (https://c2sp.org/signed-note). It names pseudonyms only.
type Certificate struct {
	Erasure       string      `json:"erasure"`
	Patients      []string    `json:"patients"` // logical ids of the one person
	Reason        string      `json:"reason"`
	RequestedBy   string      `json:"requested_by"`
	RequestedAt   time.Time   `json:"requested_at"`
	ApprovedBy    string      `json:"approved_by"`
	ErasedAt      time.Time   `json:"erased_at"`
	Keys          []ErasedKey `json:"destroyed_keys"`
	Records       int         `json:"unreadable_records"`
	Versions      int         `json:"unreadable_versions"` // superseded ones
	Tokens        int         `json:"destroyed_tokens"`
	Relationships int         `json:"destroyed_relationships"`
	Mentions      int         `json:"records_of_others"` // that name the person, and stay
	Events        []string    `json:"events"`            // ids in the audit trail: of the request, of the approval
	Backups       string      `json:"backups"`
	Remains       []string    `json:"remains"`
}

func newCertificate(e *Erasure, by string, at time.Time, scope *ErasureScope, approval audit.ID) Certificate {
	var wrapping []string
	for _, k := range scope.Keys {
		if name := k.KEK + " under " + k.Root; !slices.Contains(wrapping, name) {
			wrapping = append(wrapping, name)
		}
	}
	return Certificate{
		Erasure: e.ID.String(), Patients: scope.Patients, Reason: e.Reason, RequestedBy: e.RequestedBy, RequestedAt: e.RequestedAt, ApprovedBy: by, ErasedAt: at,
		Keys: scope.Keys, Records: scope.Records, Versions: scope.Versions, Tokens: scope.Tokens, Relationships: scope.Relationships, Mentions: scope.Mentions,
		Events: []string{e.RequestEvent.String(), approval.String()},
		Backups: "Copies of the key tables made before this erasure hold the destroyed keys, wrapped by " + strings.Join(wrapping, ", ") +
			". They can be opened until the keys are wrapped anew (chartkeep keys rewrap) and the root that wrapped the old key is deleted in its KMS.",
		Remains: []string{
			"ciphertext without a key: the rows of the records, with type, id, version, time and patient pseudonym",
			"events of the audit trail, which name the patient by pseudonym (45 CFR 164.316(b)(2)(i))",
			"records of other patients that name the patient",
			"index tokens in older backups, which a holder of the index keys can confirm until these are rotated (chartkeep keys rotate --index)",
		},
	}
}

// Text is what is signed: the header, and the certificate as one line of JSON.
func (c *Certificate) Text() (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("writing erasure certificate: %w", err)
	}
	return certificateHeader + "\n" + string(b) + "\n", nil
}

// ReadCertificate reads a certificate from its text, or from the note that it was signed as. Who signed it is not its affair.
func ReadCertificate(msg []byte) (*Certificate, error) {
	text, ok := strings.CutPrefix(string(msg), certificateHeader+"\n")
	if !ok {
		return nil, errors.New("phi: not an erasure certificate")
	}
	line, _, _ := strings.Cut(text, "\n")
	var c Certificate
	if err := json.Unmarshal([]byte(line), &c); err != nil {
		return nil, fmt.Errorf("phi: reading erasure certificate: %w", err)
	}
	return &c, nil
}
