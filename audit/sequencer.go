package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// LogKey is a key that signs for the log, with the verifier key that belongs to it.
type LogKey struct {
	note.Signer
	Verifier string // https://c2sp.org/signed-note
}

// NewLogKey reads a signer key as note.GenerateKey makes it.
func NewLogKey(skey string) (LogKey, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return LogKey{}, fmt.Errorf("parsing signer key of log: %w", errKey) // note's error quotes nothing, but nor should we
	}
	parts := strings.SplitN(skey, "+", 5) // PRIVATE+KEY+name+hash+type and seed, as NewSigner has checked
	seed, err := parseKey(parts[2], parts[4])
	if err != nil || seed[0] != algEd25519 {
		return LogKey{}, fmt.Errorf("parsing signer key of log: %w", errKey)
	}
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey))
	if err != nil {
		return LogKey{}, fmt.Errorf("parsing signer key of log: %w", errKey)
	}
	return LogKey{signer, vkey}, nil
}

// SequencerConfig is what a Sequencer needs. Storage and at least one key are required.
type SequencerConfig struct {
	Storage TreeStorage
	// Keys sign every checkpoint, each of them; their name is the log's origin. To change keys, sign with both for a while: a
	// sequencer takes up only what one of its keys has signed.
	Keys         []LogKey
	Interval     time.Duration // between looks at the storage when nobody calls Wake, and half of it at least between checkpoints; 1 s
	Witnesses    []WitnessAddress
	WitnessEvery time.Duration // at least between two requests to a witness; 3 s
	Anchors      []Anchor
	AnchorEvery  time.Duration     // 5 min
	Alert        func(desc string) // what an officer must know, for a TypeSecurityAlert event: at most once in ten minutes each; nil: only logged
	Logger       *slog.Logger      // nil discards
}

// Sequencer puts stored batches into the log's tree and signs checkpoints. Any number of them may run on one storage: one
// leads, the others wait for it to go.
//
// It trusts its own computations. What it signs is the tree that it signed before, which it holds in memory or has recomputed
// to the signed root, with leaves added: there is no step at which an edited table could change what came before. A batch
// that is not what its stream's chain says never goes in: its stream waits, others go on, and an alert is raised.
type Sequencer struct {
	cfg    SequencerConfig
	origin string
	known  note.Verifiers
	wake   chan struct{}

	// Of the goroutine in Run.
	highest Checkpoint // largest that was ever seen: the storage must not fall behind it
	unsure  *Extension // whose fate is not known
	alerts  map[string]time.Time

	mu    sync.Mutex
	stats SequencerStats
}

// SequencerStats is a snapshot of a Sequencer.
type SequencerStats struct {
	Leads      bool
	Size       int64         // of the newest checkpoint that it made or took up
	Signed     time.Time     // when it made or took it up
	MergeDelay time.Duration // how long the oldest record of the newest checkpoint had waited since it was stored
	Pending    int           // batches of the last look that are not in the tree
	Blocked    int           // streams that wait, because their next batch does not fit
	Anchored   int64         // largest size that is anchored everywhere
	Witnesses  []WitnessStats
}

// WitnessStats tells of one witness.
type WitnessStats struct {
	Name     string
	Cosigned int64 // largest size that it cosigned and this process gathered
	Refused  bool  // it says that the log does not continue what it saw
}

const (
	sequenceLimit = 20_000 // leaves in one extension, about
	stepTimeout   = 30 * time.Second
	partingFor    = 5 * time.Second // for the last checkpoint when Run is told to stop
	blockedFor    = time.Minute     // until a batch that does not fit is looked at again
	alertEvery    = 10 * time.Minute
	lateAfter     = time.Minute // a record that waits longer for its checkpoint is an alert
)

// NewSequencer checks the configuration. It reads nothing.
func NewSequencer(cfg SequencerConfig) (*Sequencer, error) {
	if cfg.Storage == nil || len(cfg.Keys) == 0 {
		return nil, errors.New("configuring sequencer: storage and a key are needed")
	}
	for given, otherwise := range map[*time.Duration]time.Duration{
		&cfg.Interval: time.Second, &cfg.WitnessEvery: 3 * time.Second, &cfg.AnchorEvery: 5 * time.Minute,
	} {
		if *given <= 0 {
			*given = otherwise
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sequencer{cfg: cfg, origin: cfg.Keys[0].Name(), wake: make(chan struct{}, 1), alerts: map[string]time.Time{}}
	var list []note.Verifier
	for _, k := range cfg.Keys {
		v, err := note.NewVerifier(k.Verifier)
		if err != nil || v.Name() != s.origin || k.Name() != s.origin || v.KeyHash() != k.KeyHash() {
			return nil, fmt.Errorf("configuring sequencer: keys are not of one log: %w", errKey)
		}
		list = append(list, v)
	}
	s.known = note.VerifierList(list...)
	for _, w := range cfg.Witnesses {
		if _, err := w.verifier(); err != nil {
			return nil, fmt.Errorf("configuring sequencer: %w", err)
		}
		s.stats.Witnesses = append(s.stats.Witnesses, WitnessStats{Name: w.name()})
	}
	return s, nil
}

// Origin is the log's identity.
func (s *Sequencer) Origin() string { return s.origin }

// Wake says that a batch was stored. It never blocks and may be called from anywhere.
func (s *Sequencer) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Stats may be called at any time.
func (s *Sequencer) Stats() SequencerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Witnesses = slices.Clone(stats.Witnesses)
	return stats
}

func (s *Sequencer) note(change func(*SequencerStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.stats)
}

// alert tells an officer, not all the time.
func (s *Sequencer) alert(desc string) {
	s.mu.Lock()
	last, told := s.alerts[desc]
	if told = told && time.Since(last) < alertEvery; !told {
		s.alerts[desc] = time.Now()
	}
	s.mu.Unlock()
	if told {
		return
	}
	s.cfg.Logger.Error("audit tree: alert", "what", desc)
	if s.cfg.Alert != nil {
		s.cfg.Alert(desc)
	}
}

// Run leads whenever it can until ctx is done; then it makes a last checkpoint, if it leads, and returns nil. Failures are
// logged and tried again, with growing patience.
func (s *Sequencer) Run(ctx context.Context) error {
	patience := s.cfg.Interval
	for ctx.Err() == nil {
		began := time.Now()
		err := s.lead(ctx)
		if err == nil || time.Since(began) > 10*s.cfg.Interval {
			patience = s.cfg.Interval
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("sequencing the audit trail broke off", "error", err)
		}
		pause(ctx, patience)
		if err != nil {
			patience = min(2*patience, 10*time.Second)
		}
	}
	return nil
}

// lead takes the lead, if nobody has it, and keeps it until ctx is done or something fails.
func (s *Sequencer) lead(ctx context.Context) (err error) {
	opening, cancel := context.WithTimeout(ctx, stepTimeout)
	lease, err := s.cfg.Storage.Lead(opening)
	cancel()
	if err != nil || lease == nil {
		return err
	}
	defer func() {
		s.note(func(st *SequencerStats) { st.Leads = false })
		err = errors.Join(err, lease.Close())
	}()
	r := &reign{s: s, lease: lease, began: time.Now(), blocked: map[StreamID]time.Time{}}
	if err := r.within(ctx, stepTimeout, r.takeUp); err != nil {
		return err
	}
	s.note(func(st *SequencerStats) { st.Leads = true })
	followers := s.follow(ctx)
	defer followers.end(ctx)
	if r.tree.head.Size > 0 {
		followers.publish()
	}
	for {
		var more bool
		size := r.tree.head.Size
		err := r.within(ctx, stepTimeout, func(ctx context.Context) (err error) {
			more, err = r.round(ctx)
			return err
		})
		grew := r.tree.head.Size > size
		if grew {
			followers.publish()
		}
		if ctx.Err() != nil {
			// Whoever stops the process has recorded that; the last words belong into the tree.
			return r.within(context.WithoutCancel(ctx), partingFor, r.part)
		}
		if err != nil {
			return err
		}
		if more {
			continue
		}
		s.rest(ctx, grew)
	}
}

// rest waits until there may be something to do; after a checkpoint for a while in any case, so that what comes together goes in
// together.
func (s *Sequencer) rest(ctx context.Context, grew bool) {
	if grew && !pause(ctx, s.cfg.Interval/2) {
		return
	}
	select {
	case <-ctx.Done():
	case <-s.wake:
	case <-time.After(s.cfg.Interval):
	}
}

// reign is the work of a sequencer under one lease. One goroutine.
type reign struct {
	s       *Sequencer
	lease   Lease
	tree    *growing
	began   time.Time
	blocked map[StreamID]time.Time // until when
}

func (r *reign) within(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}

// takeUp recomputes the tree of the newest checkpoint. What is wrong with it is an alert, and nothing is signed.
func (r *reign) takeUp(ctx context.Context) error {
	size, err := r.size(ctx)
	if err != nil {
		return err
	}
	err = r.resume(ctx)
	if errors.Is(err, ErrTampered) || errors.Is(err, ErrCheckpoint) || errors.Is(err, errEdge) {
		if err := r.still(ctx, size); err != nil {
			return err
		}
		r.s.alert("the stored audit tree is not the one that was signed; nothing is sequenced")
	}
	return err
}

// still fails with ErrFenced when somebody else has extended the tree: then what does not fit says nothing.
func (r *reign) still(ctx context.Context, size int64) error {
	now, err := r.size(ctx)
	if err == nil && now != size {
		err = fmt.Errorf("the tree grew to %d leaves meanwhile: %w", now, ErrFenced)
	}
	return err
}

// size is that of the newest checkpoint, whoever signed it; -1 for what is none.
func (r *reign) size(ctx context.Context) (int64, error) {
	msg, err := r.s.cfg.Storage.Checkpoint(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading newest checkpoint: %w", err)
	}
	if msg == nil {
		return 0, nil
	}
	if c, err := claimed(msg); err == nil {
		return c.Size, nil
	}
	return -1, nil
}

func (r *reign) resume(ctx context.Context) error {
	s := r.s
	head, err := r.head(ctx)
	if err != nil {
		return err
	}
	if u := s.unsure; u != nil && u.Old == head.Size {
		// It did not get through. What was signed for this size stays the only thing that was.
		if err := r.lease.Extend(ctx, *u); err != nil {
			if errors.Is(err, ErrFenced) {
				s.unsure = nil
			}
			return err
		}
		if head, err = r.head(ctx); err != nil {
			return err
		}
	}
	s.unsure = nil
	contents, err := s.cfg.Storage.Tiles(ctx, partialTiles(head.Size))
	if err != nil {
		return fmt.Errorf("reading edge of the tree: %w", err)
	}
	if r.tree, err = restore(head, contents); errors.Is(err, errEdge) {
		if r.tree, err = rebuild(ctx, s.cfg.Storage, r.lease, head); err == nil {
			s.alert("the stored edge of the audit tree was damaged; it is computed anew from tiles and rows")
		}
	}
	if err != nil {
		return err
	}
	if err := s.continued(ctx, r.tree); err != nil {
		return err
	}
	s.highest = head
	s.note(func(st *SequencerStats) { st.Size, st.Signed = head.Size, time.Now() })
	return nil
}

// head reads the newest checkpoint; Size 0 before the first.
func (r *reign) head(ctx context.Context) (head Checkpoint, err error) {
	storage := r.s.cfg.Storage
	before := int64(-1)
	for range 10 {
		msg, err := storage.Checkpoint(ctx)
		if err != nil {
			return head, fmt.Errorf("reading newest checkpoint: %w", err)
		}
		if msg == nil {
			head = Checkpoint{Origin: r.s.origin, Root: emptyRoot()}
		} else if head, _, err = OpenCheckpoint(msg, r.s.known); err != nil {
			return head, fmt.Errorf("opening newest checkpoint: %w", err)
		}
		if head.Origin != r.s.origin {
			return head, fmt.Errorf("newest checkpoint is of another log: %w", ErrCheckpoint)
		}
		spans, err := storage.Spans(ctx, head.Size, 1)
		if err != nil {
			return head, fmt.Errorf("reading batches: %w", err)
		}
		if len(spans) == 0 {
			return head, nil
		}
		// What a sequencer before this one had under way may have come through just now.
		if head.Size == before {
			break
		}
		before = head.Size
	}
	return head, fmt.Errorf("batches are in the tree beyond its newest checkpoint: %w", ErrTampered)
}

// continued checks that a tree that was taken up continues the largest that this process has seen.
func (s *Sequencer) continued(ctx context.Context, g *growing) error {
	head := g.head
	switch {
	case head.Size < s.highest.Size, head.Size == s.highest.Size && head.Size > 0 && head.Root != s.highest.Root:
		return fmt.Errorf("the tree of %d leaves is another than the one of %d that was signed before: %w", head.Size, s.highest.Size, ErrTampered)
	case s.highest.Size == 0 || head.Size == s.highest.Size:
		return nil
	}
	tree := &edged{TreeReader: s.cfg.Storage, tree: g}
	proof, err := tlog.ProveTree(head.Size, s.highest.Size, HashReader(ctx, tree, head))
	if err == nil {
		err = tlog.CheckTree(proof, head.Size, tlog.Hash(head.Root), s.highest.Size, tlog.Hash(s.highest.Root))
	}
	if tree.failed != nil {
		return tree.failed
	}
	if err != nil {
		return fmt.Errorf("the tree of %d leaves does not continue the one of %d that was signed before: %w: %w", head.Size, s.highest.Size, err, ErrTampered)
	}
	return nil
}

// part is the last round. Batches may have come while the one before it was under way.
func (r *reign) part(ctx context.Context) error {
	if r.tree == nil || r.s.unsure != nil {
		if err := r.takeUp(ctx); err != nil {
			return err
		}
	}
	for {
		if more, err := r.round(ctx); err != nil || !more {
			return err
		}
	}
}

// round puts what is pending into the tree and signs it. more is true when there may be more at once.
func (r *reign) round(ctx context.Context) (more bool, err error) {
	s, now := r.s, time.Now()
	var skip []StreamID
	for stream, until := range r.blocked {
		if now.Before(until) {
			skip = append(skip, stream)
		}
	}
	pending, err := r.lease.Pending(ctx, skip, sequenceLimit)
	if err != nil {
		return false, fmt.Errorf("reading what is pending: %w", err)
	}
	next := r.tree.clone()
	e := Extension{Old: r.tree.head.Size}
	var oldest time.Duration
	leaves := 0
	stuck := map[StreamID]bool{}
	for i := range pending {
		p := &pending[i]
		leaves += len(p.Leaves)
		if stuck[p.Stream] {
			continue
		}
		why, err := r.fits(ctx, next, p)
		if err != nil {
			return false, err
		}
		if why != "" {
			if err := r.still(ctx, r.tree.head.Size); err != nil {
				return false, err
			}
			stuck[p.Stream] = true
			r.blocked[p.Stream] = now.Add(blockedFor)
			s.alert(fmt.Sprintf("stream %s is not sequenced any more: %s, at record %d", p.Stream, why, p.First))
			continue
		}
		delete(r.blocked, p.Stream)
		span := p.Span
		span.Index = next.front.size
		e.Spans = append(e.Spans, span)
		for _, leaf := range p.Leaves {
			next.add(leaf, func(t Tile) { e.Tiles = append(e.Tiles, t) })
		}
		next.streams[p.Stream] = streamHead{p.First + uint64(p.Count), p.Chain}
		oldest = max(oldest, p.Waited)
	}
	s.note(func(st *SequencerStats) { st.Pending, st.Blocked = len(pending)-len(e.Spans), len(r.blocked) })
	if oldest > lateAfter && time.Since(r.began) > lateAfter {
		s.alert("records wait for more than a minute to be sequenced")
	}
	if len(e.Spans) == 0 {
		return false, nil
	}
	if err := r.extend(ctx, next, e); err != nil {
		return false, err
	}
	s.note(func(st *SequencerStats) {
		st.Size, st.Signed, st.MergeDelay = next.head.Size, time.Now(), oldest+time.Since(now)
	})
	return leaves >= sequenceLimit, nil
}

// extend signs and stores the tree with what was added. Its old part is the one that was signed last: the root of what was
// computed says so once more.
func (r *reign) extend(ctx context.Context, next *growing, e Extension) error {
	s := r.s
	if r.tree.front.root() != r.tree.head.Root || r.tree.front.size != r.tree.head.Size {
		s.alert("the audit tree in memory is not the one that was signed; it is read again")
		return fmt.Errorf("tree in memory: %w", ErrTampered)
	}
	next.head = Checkpoint{Origin: s.origin, Size: next.front.size, Root: next.front.root()}
	signers := make([]note.Signer, len(s.cfg.Keys))
	for i, k := range s.cfg.Keys {
		signers[i] = k
		e.Keys = append(e.Keys, k.Verifier)
	}
	for _, w := range s.cfg.Witnesses {
		e.Keys = append(e.Keys, w.Verifier)
	}
	var err error
	if e.Checkpoint, err = next.head.Sign(signers...); err != nil {
		return err
	}
	e.Size, e.Edge = next.head.Size, next.partial()
	s.unsure = &e
	if err := r.lease.Extend(ctx, e); err != nil {
		if errors.Is(err, ErrFenced) {
			s.unsure = nil
		}
		return fmt.Errorf("extending the tree: %w", err)
	}
	s.unsure, s.highest, r.tree = nil, next.head, next
	return nil
}

// fits checks a batch against its stream's chain. why is not empty when it must not go in.
func (r *reign) fits(ctx context.Context, g *growing, p *Pending) (why string, err error) {
	if p.Count <= 0 || p.Count > MaxSpan {
		return "its next batch is absurd", nil
	}
	at, known := g.streams[p.Stream]
	if !known && p.First > 0 {
		before, ok, err := r.s.cfg.Storage.Locate(ctx, p.Stream, p.First-1)
		if err != nil {
			return "", fmt.Errorf("locating end of stream: %w", err)
		}
		if !ok {
			return "a batch is missing", nil
		}
		at = streamHead{before.First + uint64(before.Count), before.Chain}
	}
	if known && p.First < at.next {
		return "", fmt.Errorf("a batch is pending that is in the tree: %w", ErrFenced)
	}
	switch {
	case p.First != at.next:
		return "a batch is missing", nil
	case p.Prev != at.chain:
		return "its next batch does not continue its chain", nil
	case len(p.Leaves) != p.Count:
		return "rows are missing, or there twice", nil
	}
	chain := p.Prev
	for _, leaf := range p.Leaves {
		chain = link(chain, leaf)
	}
	if chain != p.Chain {
		return "rows are not those that were recorded", nil
	}
	return "", nil
}
