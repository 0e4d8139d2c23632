package phi

import (
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"

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

	IndexLease time.Duration // see the constant, which 0 stands for

	// UniqueIdentifiers are systems of identifiers of which no two current patients may carry the same value, however it is
	// punctuated. What is stored already is not looked at.
	UniqueIdentifiers []string
	// Names is how names must be indexed; "" takes what is there, which is NamesPrefix on an empty storage. Where the index is of
	// another kind, Open fails with ErrNames, until a new generation is at least being made.
	Names NameSearch
}

// ErrNames says that names are indexed in another way than they must be.
var ErrNames = errors.New("phi: names are indexed in another way; a new index generation is needed")

// Levels are the durability levels that events wait for.
type Levels struct {
	Disclosure audit.Level // opened PHI and writes; Power when 0
	Other      audit.Level // refusals; Process when 0
}

// Records is the door to the sealed records. Safe for concurrent use. Every call records its own audit events, refusals
// and failures included; every error is an *Error. Strings of Caller and Ref end up in events, which outlive the call:
// they must not be borrowed from request buffers.
type Records struct {
	storage Storage
	keys    *keyset.Keys
	access  *auth.Access
	log     *audit.Log
	level   Levels
	logger  *slog.Logger
	now     func() time.Time
	alarm   alarm
	usual   map[audit.AccessFacts][]byte // see found

	indexes  atomic.Pointer[generations]
	learning chan struct{} // held by who asks for the index generations
	lease    time.Duration
	unique   []string
	pages    cipher.AEAD // seals paging cursors
	queries  cipher.AEAD // seals search text in events
	imports  []byte      // HMAC key of ids and digests of imported content, and of merges
	memory   sync.Pool   // of *[]byte, where rows are opened; cleared before it gets back
}

// Open prepares Records: it loads (or, on an empty storage, makes) the organisation's secrets.
func Open(ctx context.Context, cfg Config) (*Records, error) {
	r := &Records{
		storage: cfg.Storage, keys: cfg.Keys, access: cfg.Access, log: cfg.Audit, level: cfg.Level, logger: cfg.Logger,
		now: cfg.Now, unique: cfg.UniqueIdentifiers, learning: make(chan struct{}, 1), lease: cfg.IndexLease, usual: usualFacts(), memory: sync.Pool{New: func() any { return new([]byte) }},
	}
	if r.level.Disclosure == 0 {
		r.level.Disclosure = audit.Power
	}
	if r.level.Other == 0 {
		r.level.Other = audit.Process
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Source != "" {
		r.logger = r.logger.With(slog.String("source", cfg.Source))
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.lease == 0 {
		r.lease = IndexLease
	}
	if err := r.openIndex(ctx, cfg.Names); err != nil {
		return nil, err
	}
	var err error
	if r.imports, err = r.secret(ctx, "import"); err != nil {
		return nil, err
	}
	if r.pages, err = r.cipher(ctx, "page"); err != nil {
		return nil, err
	}
	if r.queries, err = r.cipher(ctx, "audit-query"); err != nil {
		return nil, err
	}
	return r, nil
}

// secretSegment keeps the organisation's secrets apart from data keys, whose segments count from 0.
const secretSegment = 0xffff

// wrapped returns the organisation's secret of a name, still wrapped. The name is in the binding, so one secret cannot
// stand in for another.
func (r *Records) wrapped(ctx context.Context, name string) (WrappedKey, keyset.Binding, error) {
	digest := sha256.Sum256([]byte("organisation secret " + name))
	b := keyset.Binding{Subject: [16]byte(digest[:16]), Segment: secretSegment, KeyID: 1}
	kek, wrapped, err := r.keys.NewKey(ctx, b)
	if err != nil {
		return WrappedKey{}, b, fmt.Errorf("making secret %s: %w", name, err)
	}
	w, err := r.storage.Secret(ctx, name, WrappedKey{Subject: b.Subject, Segment: b.Segment, KeyID: b.KeyID, KEK: kek, Wrapped: wrapped})
	if err != nil {
		return WrappedKey{}, b, fmt.Errorf("storing secret %s: %w", name, err)
	}
	return w, b, nil
}

func (r *Records) secret(ctx context.Context, name string) ([]byte, error) {
	w, b, err := r.wrapped(ctx, name)
	if err != nil {
		return nil, err
	}
	key, err := r.keys.Secret(ctx, w.KEK, w.Wrapped, b)
	if err != nil {
		return nil, fmt.Errorf("opening secret %s: %w", name, err)
	}
	return key, nil
}

// cipher is for messages that nobody counts: every search makes some.
func (r *Records) cipher(ctx context.Context, name string) (cipher.AEAD, error) {
	w, b, err := r.wrapped(ctx, name)
	if err != nil {
		return nil, err
	}
	aead, err := r.keys.Derived(ctx, w.KEK, w.Wrapped, b)
	if err != nil {
		return nil, fmt.Errorf("opening secret %s: %w", name, err)
	}
	return aead, nil
}

// newKey makes the first data key of a subject's segment.
func (r *Records) newKey(ctx context.Context, subject UUID, segment uint16) (WrappedKey, error) {
	k := WrappedKey{Subject: subject, Segment: segment, KeyID: 1}
	var err error
	if k.KEK, k.Wrapped, err = r.keys.NewKey(ctx, k.binding()); err != nil {
		return WrappedKey{}, fmt.Errorf("making data key: %w", err)
	}
	return k, nil
}

func (k WrappedKey) binding() keyset.Binding {
	return keyset.Binding{Subject: k.Subject, Segment: k.Segment, KeyID: k.KeyID}
}

// Read returns the current version.
func (r *Records) Read(ctx context.Context, c *Caller, ref Ref) (*Resource, error) {
	return r.read(ctx, r.begin(c, verbRead, ref))
}

// ReadVersion returns one version.
func (r *Records) ReadVersion(ctx context.Context, c *Caller, ref Ref, version int64) (*Resource, error) {
	a := r.begin(c, verbVRead, ref)
	a.version = version
	return r.read(ctx, a)
}

func (r *Records) read(ctx context.Context, a *attempt) (*Resource, error) {
	res, e := a.read(ctx)
	if e != nil {
		return nil, a.refuse(ctx, e)
	}
	a.finish()
	return res, nil
}

// read is the hot path: one round trip to the storage, one event, one opened row.
func (a *attempt) read(ctx context.Context) (*Resource, *Error) {
	if e := a.checkRef(); e != nil {
		return nil, e
	}
	if e := a.permit(a.verb.letter, a.ref.Type); e != nil {
		return nil, e
	}
	row, e := a.fetch(ctx)
	if e != nil {
		a.decoy(ctx, e)
		return nil, e
	}
	a.version = row.Version
	if len(row.Patients) > 0 {
		a.patient = row.Patients[0]
	}
	if e := a.admitNewest(ctx, row); e != nil {
		return nil, e
	}
	// Existence is not for everybody to know: outside the caller's patients a record looks like none.
	if e := a.admit(ctx, a.verb.letter, row.Type, row.Patients, row.Segment, notFound); e != nil {
		return nil, e
	}
	if row.Erased && !a.confined() {
		return nil, erased()
	}
	if a.view.classes&^row.Fetched != 0 { // the record's decision shows more than the type's promised
		if row, e = a.fetch(ctx); e != nil {
			return nil, e
		}
	}
	if a.confined() {
		return a.discloseConfined(ctx, row)
	}
	if row.Deleted() {
		if e := a.verify(ctx, row); e != nil {
			return nil, e
		}
		return nil, gone()
	}
	return a.disclose(ctx, row)
}

// admitNewest decides about the newest version when an older one is asked for, as a history does: a record that was put into a segment, or
// into the right chart, after it was written is shut with all that it was before.
func (a *attempt) admitNewest(ctx context.Context, row *Sealed) *Error {
	if a.verb.interaction != verbVRead.interaction {
		return nil
	}
	since := a.clock()
	newest, err := a.storage.Fetch(ctx, a.ref, 0)
	a.trace.Database += a.clock() - since
	if err != nil {
		return stored(err)
	}
	if newest.Version == row.Version {
		return nil
	}
	return a.admit(ctx, a.verb.letter, newest.Type, newest.Patients, newest.Segment, notFound)
}

// decoy does for a record that is not there what is done for one that the caller may not see: the relationship is looked up, so that both
// take their time.
func (a *attempt) decoy(ctx context.Context, e *Error) {
	if e.Kind != NotFound || !belongs(a.ref.Type) {
		return
	}
	decision, view, confines := a.decision, a.view, a.confines
	_ = a.admit(ctx, a.verb.letter, a.ref.Type, []string{a.ref.ID}, segmentGeneral, notFound) // whatever it says, there is no record
	a.decision, a.view, a.confines = decision, view, confines
}

func (a *attempt) fetch(ctx context.Context) (row *Sealed, e *Error) {
	since := a.clock()
	var err error
	if a.verb.interaction == verbVRead.interaction {
		row, err = a.storage.FetchVersion(ctx, a.ref, a.version, a.view.classes)
	} else {
		row, err = a.storage.Fetch(ctx, a.ref, a.view.classes)
	}
	a.trace.Database += a.clock() - since
	if err != nil {
		return nil, stored(err)
	}
	return row, nil
}

// disclose records the event and opens the row against its receipt.
func (a *attempt) disclose(ctx context.Context, row *Sealed) (*Resource, *Error) {
	receipt, e := a.record(ctx, a.level.Disclosure, a.events(audit.Success, row.Ref, row.Version, row.Patients)...)
	if e != nil {
		return nil, e
	}
	aead, e := a.aead(ctx, row)
	if e != nil {
		return nil, e
	}
	return a.open(ctx, row, aead, receipt)
}

// verify checks a row's seal and opens nothing, before what the row says in the clear (whose it is, that it was deleted)
// is believed.
func (a *attempt) verify(ctx context.Context, row *Sealed) *Error {
	aead, e := a.aead(ctx, row)
	if e != nil {
		return e
	}
	since := a.clock()
	var nothing [NumClasses][]byte
	err := unseal(aead, row, 0, &nothing, new([]byte))
	a.trace.Crypto += a.clock() - since
	if err != nil {
		return a.broken(ctx, row, err)
	}
	return nil
}

// aead returns the cipher of a row's data key.
func (a *attempt) aead(ctx context.Context, row *Sealed) (cipher.AEAD, *Error) {
	if row.Erased {
		return nil, erased()
	}
	since := a.clock()
	aead, err := a.keys.AEAD(ctx, row.Key.KEK, row.Key.Wrapped, keyset.Binding{Subject: row.Subject, Segment: row.Segment, KeyID: row.KeyID})
	a.trace.Crypto += a.clock() - since
	switch {
	case err == nil:
		return aead, nil
	case errors.Is(err, keyset.ErrWrapped), errors.Is(err, keyset.ErrUnknownKEK):
		// A data key cannot name a key-encryption key that is not there (a foreign key), unless somebody edited it.
		return nil, a.broken(ctx, row, err)
	}
	return nil, unavailable(err)
}

// open opens what the view shows of a row and makes its JSON.
func (a *attempt) open(ctx context.Context, row *Sealed, aead cipher.AEAD, receipt audit.Receipt) (*Resource, *Error) {
	since := a.clock()
	res, err := a.show(row, aead, receipt)
	switch {
	case errors.Is(err, errOutside):
		a.trace.Crypto += a.clock() - since
		return nil, notFound().because(err)
	case errors.Is(err, errNoReceipt):
		return nil, unavailable(err)
	case err != nil:
		return nil, a.broken(ctx, row, err)
	}
	a.trace.Crypto += a.clock() - since
	return res, nil
}

// show opens a row into memory that is used again, and makes its JSON elsewhere. Nothing that is outside the caller's scopes gets out
// of here (errOutside).
func (a *attempt) show(row *Sealed, aead cipher.AEAD, receipt audit.Receipt) (*Resource, error) {
	mem := a.memory.Get().(*[]byte)
	defer a.giveBack(mem)
	var plain [NumClasses][]byte
	if err := openRow(aead, row, a.view.classes, receipt, &plain, mem); err != nil {
		return nil, err
	}
	var few [24]fhir.Element
	elements, err := join(&plain, few[:0])
	if err != nil {
		return nil, err
	}
	if a.confined() && !a.holds(row, elements) {
		return nil, errOutside
	}
	return a.render(row, elements), nil
}

// maxSpare bounds the memory that is kept for the next row: few rows are larger.
const maxSpare = 64 << 10

// giveBack keeps memory for the next row, cleared: plaintext never waits there for another request.
func (r *Records) giveBack(mem *[]byte) {
	clear(*mem)
	if cap(*mem) > maxSpare {
		return
	}
	*mem = (*mem)[:0]
	r.memory.Put(mem)
}

// render makes the JSON of opened elements, as far as the view goes. The Resource keeps nothing of their memory.
func (a *attempt) render(row *Sealed, elements []fhir.Element) *Resource {
	res := &Resource{Ref: row.Ref, Version: row.Version, Updated: row.Updated, Method: row.Method, Subsetted: !a.view.full()}
	elements = a.reduced(row.Ref, elements)
	if a.view.reduction == Deidentified {
		return a.renderAnonymous(res, elements)
	}
	var stored []byte
	size := len(`{"resourceType":"","id":"","meta":}`) + len(row.Type) + len(row.ID)
	for i := range elements {
		e := &elements[i]
		if e.Name == "meta" {
			stored = e.Raw
			continue
		}
		size += len(e.Name) + len(e.Raw) + len(`,"":`)
	}
	var meta [192]byte
	m := appendMeta(meta[:0], row.Version, row.Updated, stored, res.Subsetted)
	res.JSON = Conceal(fhir.Assemble(make([]byte, 0, size+len(m)), row.Type, row.ID, m, elements))
	return res
}

const subsettedTag = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"` + subsettedCode + `"}`

// appendMeta makes meta: what the server states, then the stored members in their own text.
func appendMeta(dst []byte, version int64, updated time.Time, stored []byte, subsetted bool) []byte {
	dst = append(dst, `{"versionId":"`...)
	dst = strconv.AppendInt(dst, version, 10)
	dst = append(dst, `","lastUpdated":"`...)
	updated = updated.UTC()
	dst = updated.AppendFormat(dst, time.RFC3339) // the layout that package time formats without reading it
	ms := updated.Nanosecond() / int(time.Millisecond)
	dst = append(dst[:len(dst)-1], '.', '0'+byte(ms/100), '0'+byte(ms/10%10), '0'+byte(ms%10), 'Z', '"')
	if members, ok := membersOf(stored); ok && !subsetted {
		dst = append(append(dst, ','), members...)
		return append(dst, '}')
	}
	tagged := !subsetted
	if len(stored) > 0 {
		gjson.ParseBytes(stored).ForEach(func(name, value gjson.Result) bool {
			dst = append(append(append(append(dst, ','), name.Raw...), ':'), value.Raw...)
			if !tagged && name.String() == "tag" && value.IsArray() {
				dst = append(append(append(dst[:len(dst)-1], ','), subsettedTag...), ']')
				tagged = true
			}
			return true
		})
	}
	if !tagged {
		dst = append(append(append(dst, `,"tag":[`...), subsettedTag...), ']')
	}
	return append(dst, '}')
}

// membersOf returns the text between the braces of a compact object, and whether there is any.
func membersOf(object []byte) ([]byte, bool) {
	n := len(object)
	if n <= 2 || object[0] != '{' || object[n-1] != '}' {
		return nil, false
	}
	return object[1 : n-1], true
}

// Page is one page of a search or a history.
type Page struct {
	Resources []*Resource
	Next      string       // opaque, encrypted, bound to the caller; "" on the last page
	Total     int          // -1 when not known
	Self      []Param      // the parameters that took effect, for the self link
	Warnings  []fhir.Issue // e.g. parameters that were ignored
}

// Param is one search parameter as it came: name with modifier, and its raw value (comma = or).
type Param struct{ Name, Value string }

// Written is what a write did.
type Written struct {
	*Resource // as the caller may see it; without JSON after a delete, or when the caller may write but not read
	Created   bool
	Unchanged bool         // conditional create that matched, or an import of what was there already
	Warnings  []fhir.Issue // e.g. what of a Consent is not applied
}
