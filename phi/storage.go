package phi

import (
	"context"
	"errors"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// UUID is a random (version 4) UUID: a row or a key subject. It never carries a time.
type UUID [16]byte

// Sealed is a row as the storage knows it: ciphertext, pseudonyms and bookkeeping.
type Sealed struct {
	Ref
	Row      UUID // identity of the record in associated data; the same for all its versions
	Version  int64
	Updated  time.Time // UTC, milliseconds
	Method   string    // POST, PUT or DELETE: what made this version
	Patients []string  // ids of the patients in whose compartment it is, the key's own first
	Subject  UUID      // key subject: the patient's, or the organisation's (zero UUID)
	Segment  uint16
	KeyID    uint32 // generation of the subject's data key that sealed the cells
	Cells    [NumClasses][]byte
	Fetched  ClassSet // which cells were asked for; the others are nil whatever is stored
	Seal     []byte
	Digest   [16]byte // keyed digest of the submitted content: an import of the same content changes nothing

	Key    WrappedKey // the data key, fetched in the same round trip
	Erased bool       // the subject was erased: its data keys are destroyed, and nothing of the row can be opened or verified
}

// Deleted reports a tombstone.
func (s *Sealed) Deleted() bool { return s.Method == "DELETE" }

// WrappedKey is a data key under a key-encryption key.
type WrappedKey struct {
	Subject UUID
	Segment uint16
	KeyID   uint32
	KEK     string // id of the key-encryption key that wraps it
	Wrapped []byte // 60 bytes
}

// TokenKind names a blind index; numbers are stored, never reused.
type TokenKind int16

const (
	TokenIdentifier      TokenKind = 1 // system|value
	TokenIdentifierValue TokenKind = 2 // value in any system
	TokenNamePrefix      TokenKind = 3 // truncated prefixes of each name part; candidates are verified after opening
	TokenFamilyPrefix    TokenKind = 4
	TokenGivenPrefix     TokenKind = 5
	TokenBirthDate       TokenKind = 6
	TokenPhone           TokenKind = 7
	TokenEmail           TokenKind = 8
	TokenName            TokenKind = 9 // whole name parts and their words
	TokenFamily          TokenKind = 10
	TokenGiven           TokenKind = 11
	TokenFamilyBirth     TokenKind = 12 // family name with the date of birth
	TokenInitialYear     TokenKind = 13 // family name with the given name's initial and the year of birth
	TokenSoundYear       TokenKind = 14 // sound of a family or given name with the year of birth
	NumTokenKinds                  = 15
)

// Token is one entry of a blind index.
type Token struct {
	Kind  TokenKind
	Value [16]byte
}

// Write is one new version of a record.
type Write struct {
	Sealed
	Expect  int64              // version that must be current; 0: the record must not exist in any version
	Tokens  []Token            // replace the record's tokens
	IndexID uint32             // generation of index keys under which the tokens were minted
	Treats  []Treatment        // replace the relationships that the record states
	Consent string             // of a Consent that is applied: its patient
	Rules   []auth.ConsentRule // of that Consent; they replace those that the record had
	NewKeys []WrappedKey
}

// Guard makes a condition safe when two run at once: inside the transaction, under a lock on the tokens, no current record of
// the type may carry one of each of the alternatives, but for those excepted. Alternatives are of different index generations,
// mostly; guards of the same condition share one, so one waits for the other.
type Guard struct {
	Type   string
	Tokens [][]Token
	Except map[string]int64 // ids of records that do not count in this version, or in any (0)
}

// Selection chooses current records of one type, ascending by id. All fields that are set must hold.
type Selection struct {
	Type        string
	IDs         []string
	Patients    []string  // in the compartment of one of them
	Tokens      [][]Token // a conjunction of alternatives
	UpdatedFrom time.Time // inclusive
	UpdatedTo   time.Time // exclusive
	After       string    // id to continue after
	Limit       int       // 1..1000

	// Practitioner restricts to records of patients that this practitioner treats; Patient to one compartment. They come
	// from auth.Filter and apply before the limit.
	Practitioner string
	Patient      string
	Named        bool // with either of them, records that name no patient are left out too

	// Gates leaves out what consents of patients deny, and segments that are not open, as its fields Actor to Closed and its purpose say.
	// Nil leaves out nothing.
	Gates *auth.Filter
}

// Errors of Storage. Any other error means that the storage is not available now.
var (
	ErrNotFound = errors.New("phi: no such row")
	ErrVersion  = errors.New("phi: row has another version")
	ErrGuard    = errors.New("phi: a matching record exists")
	ErrKey      = errors.New("phi: data key is there no more")

	// ErrSecretLost says that a secret is missing under which records are indexed. Another in its place would hide them.
	ErrSecretLost = errors.New("phi: an index key is missing that records are indexed under; put it back with: chartkeep keys restore")
)

// Storage keeps sealed rows. It sees ciphertext, tokens and pseudonyms only, so that every rule above it runs unchanged
// in memory and on PostgreSQL. All methods may be called from many goroutines; none retries by itself.
type Storage interface {
	// Fetch returns the current version (a tombstone too) with its key in one round trip. Only the cells of classes are
	// read from disk.
	Fetch(ctx context.Context, ref Ref, classes ClassSet) (*Sealed, error)
	// FetchVersion returns one version, current or not.
	FetchVersion(ctx context.Context, ref Ref, version int64, classes ClassSet) (*Sealed, error)
	// FetchHistory returns versions below before (0: from the newest), newest first.
	FetchHistory(ctx context.Context, ref Ref, classes ClassSet, before int64, limit int) ([]*Sealed, error)
	// Search returns current, not deleted records.
	Search(ctx context.Context, sel Selection, classes ClassSet) ([]*Sealed, error)
	// FetchMany returns the current versions of those that exist, in any order, tombstones too.
	FetchMany(ctx context.Context, refs []Ref, classes ClassSet) ([]*Sealed, error)
	// Key returns the data key that seals what is new in a subject's segment, ErrNotFound when there is none.
	Key(ctx context.Context, subject UUID, segment uint16) (WrappedKey, error)
	// Commit stores all writes in one transaction or none: ErrVersion (wrapped, with the ref in a *ConflictError) or
	// ErrGuard when a condition does not hold, ErrKey when a data key that sealed a write, or an index generation that minted
	// for it, was rotated away or erased meanwhile: made anew, it may pass. Both are held until the transaction ends. The
	// superseded version stays readable by FetchVersion.
	Commit(ctx context.Context, writes []Write, guards []Guard) error

	// EnsureKey stores candidate as the data key of its subject and segment when there is none, and returns the active one:
	// whoever comes first wins. For a segment other than the general one of a patient without a general key it stores nothing
	// and returns ErrNotFound: who was erased gets no new key, also not from a write that began before. (The general key is
	// held for share meanwhile; who erases takes it for update before looking for the others.)
	EnsureKey(ctx context.Context, candidate WrappedKey) (WrappedKey, error)

	// Secret returns the wrapped organisation secret of that name (index keys, cursor key), storing candidate first when
	// there is none: whoever comes first wins, all get the same. The secret of an index generation under which there are
	// records is not made anew: ErrSecretLost.
	Secret(ctx context.Context, name string, candidate WrappedKey) (WrappedKey, error)

	// IndexGenerations returns the generations of index keys that are there, by id; one of them is active.
	IndexGenerations(ctx context.Context) ([]IndexGeneration, error)
	// ChooseNames replaces the index generation by one that indexes names as wanted, with the present IndexRules, as long as no
	// record was ever stored; afterwards it does nothing.
	ChooseNames(ctx context.Context, names NameSearch) error

	// Imported reports whether a source (by keyed digest) was imported whole; MarkImported notes that it was.
	Imported(ctx context.Context, digest [16]byte) (bool, error)
	MarkImported(ctx context.Context, digest [16]byte) error
}

// ConflictError names the record whose condition failed; of a guard, the record that stands against it.
type ConflictError struct {
	Ref   Ref
	Err   error // ErrVersion, ErrGuard or ErrKey
	Guard int   // index of the guard, with ErrGuard
}

func (e *ConflictError) Error() string { return e.Ref.String() + ": " + e.Err.Error() }
func (e *ConflictError) Unwrap() error { return e.Err }
