package phi

import (
	"context"
	"log/slog"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// Config configures Records.
type Config struct {
	Storage Storage
	Keys    *keyset.Keys
	Access  *auth.Access
	Audit   *audit.Log
	Level   Levels // durability of audit events before disclosure
	Source  string // name of this server in events
	Logger  *slog.Logger
	Now     func() time.Time // nil = time.Now
}

// Levels are the durability levels that events wait for.
type Levels struct {
	Disclosure audit.Level // opened PHI and writes; Power when 0
	Other      audit.Level // refusals; Process when 0
}

// Records is the door to the sealed records. Safe for concurrent use. Every call records its own audit events, refusals
// and failures included; every error is an *Error.
type Records struct{ unwritten int }

// Open prepares Records: it loads (or, on an empty storage, makes) the organisation's secrets.
func Open(ctx context.Context, cfg Config) (*Records, error) { panic("unwritten") }

// Read returns the current version.
func (r *Records) Read(ctx context.Context, c *Caller, ref Ref) (*Resource, error) {
	panic("unwritten")
}

// ReadVersion returns one version.
func (r *Records) ReadVersion(ctx context.Context, c *Caller, ref Ref, version int64) (*Resource, error) {
	panic("unwritten")
}

// Page is one page of a search or a history.
type Page struct {
	Resources []*Resource
	Next      string       // opaque, encrypted, bound to the caller; "" on the last page
	Total     int          // -1 when not known
	Self      []Param      // the parameters that took effect, for the self link
	Warnings  []fhir.Issue // e.g. parameters that were ignored
}

// History returns versions of one record, newest first. page is "" or a Page.Next.
func (r *Records) History(ctx context.Context, c *Caller, ref Ref, count int, page string) (*Page, error) {
	panic("unwritten")
}

// Param is one search parameter as it came: name with modifier, and its raw value (comma = or).
type Param struct{ Name, Value string }

// Search returns current records of a type. A parameter "_page" holds a Page.Next and stands alone. strict refuses
// unknown parameters (Prefer: handling=strict) instead of warning.
func (r *Records) Search(ctx context.Context, c *Caller, resourceType string, params []Param, strict bool) (*Page, error) {
	panic("unwritten")
}

// Written is what a write did.
type Written struct {
	*Resource // as the caller may see it
	Created   bool
	Unchanged bool // conditional create that matched, or an import of what was there already
}

// Create stores a new record under a new id. ifNoneExist holds search parameters of a conditional create, or nil.
func (r *Records) Create(ctx context.Context, c *Caller, resourceType string, body []byte, ifNoneExist []Param) (*Written, error) {
	panic("unwritten")
}

// Update stores a new version, creating the record when it does not exist (FHIR "update as create"). ifMatch is the version
// that must be current, 0 for any.
func (r *Records) Update(ctx context.Context, c *Caller, ref Ref, body []byte, ifMatch int64) (*Written, error) {
	panic("unwritten")
}

// Delete stores a tombstone. Deleting what is deleted already succeeds. ifMatch as in Update.
func (r *Records) Delete(ctx context.Context, c *Caller, ref Ref, ifMatch int64) (*Written, error) {
	panic("unwritten")
}

// Bundle executes a transaction (all or nothing, urn:uuid: and conditional references resolved) or a batch (each entry
// for itself) and returns the entries of the response in the request's order.
func (r *Records) Bundle(ctx context.Context, c *Caller, body []byte) (*BundleResult, error) {
	panic("unwritten")
}

// BundleResult is the outcome of a bundle.
type BundleResult struct {
	Type    string // transaction-response or batch-response
	Entries []EntryResult
}

// EntryResult is the outcome of one entry: exactly one of Written, Resource, Page and Err is set.
type EntryResult struct {
	Method   string
	Written  *Written
	Resource *Resource
	Page     *Page
	Err      *Error
}
