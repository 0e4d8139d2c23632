package phi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// FindingKind is what a sweep found. The list is closed; the text is what officers read.
type FindingKind string

// The kinds.
const (
	FindingUnopened   FindingKind = "a stored row does not open"
	FindingNoKey      FindingKind = "the data key of a row is gone, and its subject is not erased"
	FindingRolledBack FindingKind = "a record is older than the audit trail says: it was rolled back"
	FindingDeleted    FindingKind = "a record that the audit trail tells of is gone"
	FindingRewritten  FindingKind = "a version was written twice: the record was rolled back in between"
	FindingHistory    FindingKind = "versions of a record are missing, or too many"
	FindingTokens     FindingKind = "the index tokens of a record are not those that were sealed"
	FindingPatients   FindingKind = "a record is not in the compartments that were sealed"
	FindingStray      FindingKind = "index tokens, compartments or versions of no record"
	FindingLiveKey    FindingKind = "an erased subject has a data key again"
	FindingUnerased   FindingKind = "an erasure that the audit trail tells of is not noted any more"
	FindingErased     FindingKind = "a subject is noted as erased, and no erasure in the audit trail says so"
	FindingTrail      FindingKind = "events of the audit trail are not those that were signed"
	FindingMemory     FindingKind = "what the sweep remembers of the audit trail was edited"
)

// Finding is something that nobody who goes through Records can have done.
type Finding struct {
	Kind    FindingKind
	Ref     Ref   // zero where no record is concerned
	Version int64 // of the stored row; 0 when there is none
	Trail   int64 // version that the audit trail says; 0 when it says none
	KEK     string
	KeyID   uint32
	Patient string
}

// String is a line for an operator.
func (f Finding) String() string {
	line := string(f.Kind)
	if f.Ref != (Ref{}) {
		line = f.Ref.String() + ": " + line
	}
	if f.Version > 0 {
		line += fmt.Sprintf("; version %d", f.Version)
	}
	if f.Trail > 0 {
		line += fmt.Sprintf("; the trail says %d", f.Trail)
	}
	if f.KEK != "" {
		line += fmt.Sprintf("; key %d under %s", f.KeyID, f.KEK)
	}
	return line
}

// SweepPage is a run of current records with all that is stored about them, of one moment.
type SweepPage struct {
	Rows     []*Sealed // by type and id, whole, with their keys
	Heads    []Head    // by type and id
	Tokens   map[Ref][]Token
	Patients map[Ref][]string
	Versions map[Ref]VersionRange
	Last     Ref  // up to here everything is in the page
	Done     bool // there is nothing after it
}

// VersionRange sums up the superseded versions of a record.
type VersionRange struct{ Count, First, Last int64 }

// ErasedSubject is a subject that is noted as erased.
type ErasedSubject struct {
	Subject UUID
	Patient string
	Erasure UUID
	At      time.Time
	Live    bool // it has a data key
}

// SweepStorage is what the sweep needs of the storage.
type SweepStorage interface {
	// Claim makes the caller the only one to sweep, until release or until its connection ends. release is nil while
	// another one does.
	Claim(ctx context.Context) (release func(), err error)
	// State returns what Advance stored last, nil when there is nothing.
	State(ctx context.Context) ([]byte, error)
	// Advance stores heads and the state in one transaction, or ErrVersion when the state is not was.
	Advance(ctx context.Context, was, state []byte, heads []Head) error
	// Forget removes all heads and the state.
	Forget(ctx context.Context) error
	// Heads returns those of the records that have one.
	Heads(ctx context.Context, refs []Ref) ([]Head, error)
	// Page returns the next records, about limit of them.
	Page(ctx context.Context, after Ref, limit int) (*SweepPage, error)
	// Superseded returns superseded versions by type, id and version, whole, with their keys.
	Superseded(ctx context.Context, after Ref, version int64, limit int) ([]*Sealed, error)
	// ErasedSubjects returns all subjects that are noted as erased.
	ErasedSubjects(ctx context.Context) ([]ErasedSubject, error)
}

// SweepTrail is the audit trail as the log's tree has it, see audit.Evidence.
type SweepTrail interface {
	Spans(ctx context.Context, from int64, limit int) ([]audit.Span, error)
	Rows(ctx context.Context, s audit.Span) ([]audit.Row, error)
}

// SweepConfig configures a Sweep.
type SweepConfig struct {
	Storage SweepStorage
	Trail   SweepTrail
	By      string        // who asked for it, in events; "system" when empty
	Rate    int           // rows a second at most; 0: as many as go
	Level   audit.Level   // of the events of findings; audit.Database when 0
	Save    time.Duration // how often it notes where it is; 5 s when 0
}

// Sweep holds everything that is stored against its seals and against the audit trail: that each row, current or superseded,
// opens; that index tokens, compartments and histories are those of the records; that no record is older than the version that was
// written last, or gone; that who was erased stays erased. It finds what no read would: a row that was rolled back whole, one that
// was deleted, a key that came back.
//
// It goes by what the trail says was committed, and remembers that (heads), so that a sweep reads what is new in the trail only, and
// knows versions whose events retention has dropped. Who can write to the database can edit what it remembers, too: a keyed sum
// over all of it is part of its sealed state, and an older state with its heads is no harm, because the trail is read on from
// there. The trail itself is verified by audit.Patrol. What is opened is cleared at once and goes nowhere.
//
// A sweep that was ended anywhere goes on where it was.
type Sweep struct {
	*Records
	SweepConfig
	pace pace
	rows atomic.Int64
}

// Sweep returns a sweep of these records.
func (r *Records) Sweep(cfg SweepConfig) *Sweep {
	cfg.By = cmp.Or(cfg.By, "system")
	cfg.Level = cmp.Or(cfg.Level, audit.Database)
	cfg.Save = cmp.Or(cfg.Save, 5*time.Second)
	return &Sweep{Records: r, SweepConfig: cfg, pace: pace{rate: cfg.Rate}}
}

// Rows is how many rows it has looked at so far. Safe for concurrent use.
func (s *Sweep) Rows() int64 { return s.rows.Load() }

// SweepReport is what a whole sweep found.
type SweepReport struct {
	Began, Ended time.Time
	Rows         int64     // current and superseded
	Trail        int64     // events of the trail that were read, ever
	Total        int64     // findings
	Findings     []Finding // the first of them, of this run
}

// ErrSweeping says that another instance is at it.
var ErrSweeping = errors.New("phi: another sweep is under way")

// Sizes of a sweep's steps.
const (
	sweepPage    = 500
	keptFindings = 1000        // of one run; all of them are counted
	erasureGrace = time.Hour   // until the event of an erasure must be in the trail's tree
	walkCurrent  = "current"   // current rows, against heads
	walkHistory  = "histories" // superseded rows
)

// sweepState is where the sweep stands. It is stored sealed.
type sweepState struct {
	Tree    int64                 `json:"tree"` // leaves of the trail's tree that were read
	Sum     headSum               `json:"sum"`
	Pending map[string][]intended `json:"pending"` // by correlation
	Erased  map[string]string     `json:"erased"`  // patients by erasure
	Walk    walkState             `json:"walk"`
	Last    SweepReport           `json:"last"`
}

// walkState is how far the walk over the rows is.
type walkState struct {
	Began    time.Time `json:"began"` // zero: none is under way
	Phase    string    `json:"phase"`
	After    Ref       `json:"after"`
	Version  int64     `json:"version"`
	Sum      headSum   `json:"sum"` // of the heads that it passed
	Rows     int64     `json:"rows"`
	Findings int64     `json:"findings"`
}

// passed reports whether the walk has summed up the record's head.
func (w *walkState) passed(ref Ref) bool {
	return !w.Began.IsZero() && (w.Phase == walkHistory || ref.Compare(w.After) <= 0)
}

// sweeping is one run.
type sweeping struct {
	*Sweep
	storage  SweepStorage
	trail    SweepTrail
	key      []byte // of headSum
	state    sweepState
	stored   []byte // the state as it is stored
	saved    time.Time
	findings []Finding
	untold   []Finding
}

// Run sweeps once, or finishes a sweep that was ended before. Findings are in the report; an error says that it could not go on.
func (s *Sweep) Run(ctx context.Context) (*SweepReport, error) {
	release, err := s.Storage.Claim(ctx)
	if err != nil {
		return nil, err
	}
	if release == nil {
		return nil, ErrSweeping
	}
	defer release()
	w := &sweeping{Sweep: s, storage: s.Storage, trail: s.Trail}
	begin := s.event(audit.Event{Type: audit.TypeApplication, Interaction: "sweep", Outcome: audit.Intent})
	receipt, err := s.log.Record(ctx, s.Level, begin)
	if err != nil {
		return nil, fmt.Errorf("recording the sweep: %w", err)
	}
	outcome := audit.Event{Type: audit.TypeApplication, Interaction: "sweep", Correlation: receipt.Events()[0].ID}
	failed := w.run(ctx)
	outcome.Detail, _ = json.Marshal(map[string]int64{"rows": w.state.Last.Rows, "findings": w.state.Last.Total, "trail": w.state.Tree}) // numbers always encode
	if failed != nil {
		outcome.Outcome, outcome.OutcomeDesc, outcome.Detail = audit.SeriousFailure, "not finished", nil
	}
	if _, err := s.log.Record(context.WithoutCancel(ctx), s.Level, s.event(outcome)); err != nil {
		failed = errors.Join(failed, fmt.Errorf("recording what the sweep found: %w", err))
	}
	if failed != nil {
		return nil, failed
	}
	report := w.state.Last
	report.Findings = w.findings
	return &report, nil
}

// LastSweep returns the last whole sweep of any instance, nil when there was none.
func (s *Sweep) LastSweep(ctx context.Context) (*SweepReport, error) {
	w := &sweeping{Sweep: s, storage: s.Storage}
	if err := w.load(ctx); err != nil || w.state.Last.Ended.IsZero() {
		return nil, err
	}
	return &w.state.Last, nil
}

func (s *Sweep) event(e audit.Event) *audit.Event {
	e.Action = audit.ActionExecute
	e.Agent = audit.Agent{User: s.By, Client: "chartkeep"}
	e.Decision.Allowed = true
	return &e
}

func (w *sweeping) run(ctx context.Context) error {
	var err error
	if w.key, err = w.secret(ctx, "sweep-heads"); err != nil {
		return err
	}
	defer clear(w.key)
	if err := w.load(ctx); err != nil {
		return err
	}
	if w.stored == nil {
		// Heads without a state are somebody else's work, or of a run that was ended in its first step.
		if err := w.storage.Forget(ctx); err != nil {
			return err
		}
	}
	for try := 1; ; try++ {
		if err := w.readTrail(ctx); err != nil {
			return err
		}
		intact, err := w.walk(ctx)
		if err != nil {
			return err
		}
		if intact || try == 2 {
			break
		}
		// All is read anew, so that what the edit was to hide is found now.
		w.find(Finding{Kind: FindingMemory})
		if err := w.tellFindings(ctx); err != nil {
			return err
		}
		if err := w.storage.Forget(ctx); err != nil {
			return err
		}
		w.stored, w.state = nil, newSweepState()
		w.state.Walk.Findings = 1
	}
	if err := w.checkErasures(ctx); err != nil {
		return err
	}
	walk := &w.state.Walk
	w.state.Last = SweepReport{Began: walk.Began, Ended: w.now().UTC(), Rows: walk.Rows, Trail: w.state.Tree, Total: walk.Findings}
	w.state.Walk = walkState{}
	return w.save(ctx, w.stored, nil)
}

func newSweepState() sweepState {
	return sweepState{Pending: map[string][]intended{}, Erased: map[string]string{}}
}

// load reads the state. One that does not open was edited: everything begins anew.
func (w *sweeping) load(ctx context.Context) error {
	w.state = newSweepState()
	var err error
	if w.stored, err = w.storage.State(ctx); err != nil || w.stored == nil {
		return err
	}
	aead, err := w.cipher(ctx, "sweep-state")
	if err != nil {
		return err
	}
	text, err := aead.Open(nil, nil, w.stored, nil)
	if err == nil {
		err = json.Unmarshal(text, &w.state)
	}
	if err != nil {
		w.find(Finding{Kind: FindingMemory})
		w.stored, w.state = nil, newSweepState()
		w.state.Walk.Findings = 1
	}
	return nil
}

// save stores heads and the state, which was was.
func (w *sweeping) save(ctx context.Context, was []byte, heads []Head) error {
	aead, err := w.cipher(ctx, "sweep-state")
	if err != nil {
		return err
	}
	text, err := json.Marshal(w.state)
	if err != nil {
		return fmt.Errorf("writing the sweep's state: %w", err)
	}
	state := aead.Seal(nil, nil, text, nil)
	if err := w.storage.Advance(ctx, was, state, heads); err != nil {
		return err
	}
	w.stored, w.saved = state, time.Now()
	return nil
}

// find keeps a finding until it is told.
func (w *sweeping) find(f Finding) {
	w.state.Walk.Findings++
	if len(w.findings) < keptFindings {
		w.findings = append(w.findings, f)
		w.untold = append(w.untold, f)
	}
}

// tellFindings makes each a security alert: type, id, version and key of the row, never bytes.
func (w *sweeping) tellFindings(ctx context.Context) error {
	if len(w.untold) == 0 {
		return nil
	}
	var events []*audit.Event
	for _, f := range w.untold {
		e := w.event(audit.Event{
			Type: audit.TypeSecurityAlert, Interaction: "phi.sweep_finding", Outcome: audit.SeriousFailure, OutcomeDesc: string(f.Kind), Patient: f.Patient,
		})
		if f.Kind == FindingUnopened {
			e.Interaction = "phi.integrity_failure"
		}
		if f.Ref != (Ref{}) {
			e.Entities = append(e.Entities, audit.Entity{Type: f.Ref.Type, ID: f.Ref.ID, Version: cmp.Or(f.Version, f.Trail)})
		}
		if f.KEK != "" {
			e.Entities = append(e.Entities, audit.Entity{Type: "key", ID: f.KEK, Version: int64(f.KeyID)})
		}
		events = append(events, e)
	}
	if _, err := w.log.Record(ctx, w.Level, events...); err != nil {
		return fmt.Errorf("recording findings: %w", err)
	}
	w.untold = nil
	return nil
}

// walk goes over all rows, from where the walk is. It returns false when the heads do not add up.
func (w *sweeping) walk(ctx context.Context) (intact bool, err error) {
	walk := &w.state.Walk
	if walk.Began.IsZero() {
		*walk = walkState{Began: w.now().UTC(), Phase: walkCurrent, Findings: walk.Findings}
	}
	for done := false; walk.Phase == walkCurrent; {
		page, err := w.storage.Page(ctx, walk.After, sweepPage)
		if err != nil {
			return false, err
		}
		if err := w.checkPage(ctx, page); err != nil {
			return false, err
		}
		if walk.After, done = page.Last, page.Done; done {
			if walk.Sum != w.state.Sum {
				return false, nil
			}
			walk.Phase, walk.After = walkHistory, Ref{}
		}
		if err := w.passed(ctx, len(page.Rows)); err != nil {
			return false, err
		}
	}
	for {
		rows, err := w.storage.Superseded(ctx, walk.After, walk.Version, sweepPage)
		if err != nil {
			return false, err
		}
		if len(rows) == 0 {
			return true, nil
		}
		for _, row := range rows {
			if err := w.checkRow(ctx, row); err != nil {
				return false, err
			}
		}
		last := rows[len(rows)-1]
		walk.After, walk.Version = last.Ref, last.Version
		if err := w.passed(ctx, len(rows)); err != nil {
			return false, err
		}
	}
}

// passed tells what was found in so many rows, waits as the rate asks for, and notes from time to time where the walk is.
func (w *sweeping) passed(ctx context.Context, rows int) error {
	w.state.Walk.Rows += int64(rows)
	w.rows.Add(int64(rows))
	if err := w.tellFindings(ctx); err != nil {
		return err
	}
	if time.Since(w.saved) > w.Save {
		if err := w.save(ctx, w.stored, nil); err != nil {
			return err
		}
	}
	return w.pace.wait(ctx, rows)
}

// checkPage holds current rows against everything else.
func (w *sweeping) checkPage(ctx context.Context, page *SweepPage) error {
	heads := make(map[Ref]int64, len(page.Heads))
	for _, h := range page.Heads {
		heads[h.Ref] = h.Version
		w.state.Walk.Sum.add(w.key, h)
	}
	strays := map[Ref]bool{}
	for ref := range page.Tokens {
		strays[ref] = true
	}
	for ref := range page.Patients {
		strays[ref] = true
	}
	for ref := range page.Versions {
		strays[ref] = true
	}
	for _, row := range page.Rows {
		newest := heads[row.Ref]
		delete(heads, row.Ref)
		delete(strays, row.Ref)
		f := foundIn(row)
		if f.Trail = newest; row.Version < newest {
			f.Kind = FindingRolledBack
			w.find(f)
		}
		if v := page.Versions[row.Ref]; v != expectedVersions(row.Version) {
			f.Kind = FindingHistory
			w.find(f)
		}
		if err := w.checkRow(ctx, row); err != nil {
			return err
		}
		if row.Erased {
			if len(page.Tokens[row.Ref]) > 0 {
				f.Kind = FindingTokens
				w.find(f)
			}
			continue
		}
		if len(row.Seal) == sealSize && !bytes.Equal(row.Seal[2:manifestTags], tokensDigest(page.Tokens[row.Ref])) {
			f.Kind = FindingTokens
			w.find(f)
		}
		if !slices.Equal(page.Patients[row.Ref], expectedPatients(row)) {
			f.Kind = FindingPatients
			w.find(f)
		}
	}
	for _, ref := range sortedRefs(strays) {
		w.find(Finding{Kind: FindingStray, Ref: ref, Trail: heads[ref]})
	}
	for _, h := range page.Heads {
		if newest, there := heads[h.Ref]; there {
			w.find(Finding{Kind: FindingDeleted, Ref: h.Ref, Trail: newest})
		}
	}
	return nil
}

func sortedRefs(set map[Ref]bool) []Ref {
	refs := make([]Ref, 0, len(set))
	for ref := range set {
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, Ref.Compare)
	return refs
}

func foundIn(row *Sealed) Finding {
	f := Finding{Ref: row.Ref, Version: row.Version, KEK: row.Key.KEK, KeyID: row.KeyID}
	if len(row.Patients) > 0 {
		f.Patient = row.Patients[0]
	}
	return f
}

// expectedVersions is the history of a record that is at a version: nothing of one is ever removed.
func expectedVersions(version int64) VersionRange {
	if version <= 1 {
		return VersionRange{}
	}
	return VersionRange{Count: version - 1, First: 1, Last: version - 1}
}

// expectedPatients are the compartments that the storage lists for a row, sorted.
func expectedPatients(row *Sealed) []string {
	switch {
	case row.Deleted():
		return nil
	case len(row.Patients) == 0:
		return []string{""}
	}
	patients := slices.Clone(row.Patients)
	slices.Sort(patients)
	return slices.Compact(patients)
}

// checkRow opens a row whole and forgets what was in it. It fails when that cannot be tried now.
func (w *sweeping) checkRow(ctx context.Context, row *Sealed) error {
	if row.Key.Wrapped == nil {
		if !row.Erased {
			f := foundIn(row)
			f.Kind = FindingNoKey
			w.find(f)
		}
		return nil
	}
	aead, err := w.rowAEAD(ctx, row)
	if err == nil {
		mem := w.memory.Get().(*[]byte)
		var plain [NumClasses][]byte
		err = unseal(aead, row, AllClasses, &plain, mem)
		w.giveBack(mem)
	}
	if errors.Is(err, errIntegrity) || errors.Is(err, keyset.ErrWrapped) || errors.Is(err, keyset.ErrUnknownKEK) {
		f := foundIn(row)
		f.Kind = FindingUnopened
		w.find(f)
		return nil
	}
	return err
}

// checkErasures holds the subjects that are noted as erased against the erasures that the trail tells of.
func (w *sweeping) checkErasures(ctx context.Context) error {
	subjects, err := w.storage.ErasedSubjects(ctx)
	if err != nil {
		return err
	}
	noted := map[string]bool{}
	for _, s := range subjects {
		noted[s.Erasure.String()] = true
		f := Finding{Ref: Ref{"Patient", s.Patient}, Patient: s.Patient}
		if s.Live {
			f.Kind = FindingLiveKey
			w.find(f)
		}
		if _, told := w.state.Erased[s.Erasure.String()]; !told && w.now().Sub(s.At) > erasureGrace {
			f.Kind = FindingErased
			w.find(f)
		}
	}
	for _, id := range sortedKeys(w.state.Erased) {
		if patient := w.state.Erased[id]; !noted[id] {
			w.find(Finding{Kind: FindingUnerased, Ref: Ref{"Patient", patient}, Patient: patient})
		}
	}
	return w.tellFindings(ctx)
}
