package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// VerifyOptions say what a verification trusts and how far it looks.
type VerifyOptions struct {
	Keys        []string     // verifier keys of the log that the caller trusts; none: TrustSelf
	WitnessKeys []string     // verifier keys of witnesses that the caller trusts
	Quorum      int          // how many of them must have cosigned a checkpoint
	Anchors     [][]byte     // signed checkpoints known from outside (a witness's, an anchor's): the tree must continue them
	Known       []Checkpoint // checkpoints that the caller knows to be the log's without a signature: an earlier verification's
	From        *Verified    // what an earlier verification established: only what came later is looked at, and not for strays; nil for everything
	Sample      float64      // share of the batches in the tree whose rows are read, (0, 1); 0 or 1 is all. Other leaves are taken from the tiles
	// Now is what streams are held against to tell which are unaccounted. Zero is the time of the newest record, which is
	// what an export has; a live verification gives the present.
	Now      time.Time
	Progress func(done, total int64) // leaves; called now and then from one goroutine; may be nil
}

const (
	spanPage       = 128
	checkpointPage = 256
	tailLimit      = 100_000 // unsequenced batches that are looked at
	strayLimit     = maxFindings
	maxRereads     = 16
	rowsTogether   = 2000 // of several small batches
	unaccounted    = time.Minute
)

// Verify reads everything once, in the order of the tree, and checks what can be checked: that batches follow one another
// without a gap in the tree and in their streams; that every row hashes to the leaf that stands in the tree, its batch to
// its chain, and the columns to its bytes; that the leaves hash to the tiles and to the root of every checkpoint that was
// ever signed, so that all of them are consistent; signatures and cosignatures; then what is not in the tree yet. Rows may be
// missing only where a signed pruning record covers them. Memory does not grow with the trail, but by its streams and open
// intents.
//
// What is wrong is in the report, not in the error: that says that the evidence could not be read, that ctx is done, or that
// options make no sense (ErrOptions).
func Verify(ctx context.Context, e Evidence, o VerifyOptions) (*Report, error) {
	v, err := newVerification(ctx, e, o)
	if err != nil {
		return nil, fmt.Errorf("verifying trail: %w", err)
	}
	if err := v.run(ctx); err != nil {
		return nil, fmt.Errorf("verifying trail: %w", err)
	}
	return &v.report, nil
}

// ErrOptions says that a verification was asked for that makes no sense.
var ErrOptions = errors.New("audit: impossible verification")

// verification is one run of Verify. One goroutine; readAhead has others that share nothing but chunks.
type verification struct {
	e      Evidence
	bundle *Bundle // e, where it is one
	o      VerifyOptions
	report Report

	trusted note.Verifiers // log keys that the caller trusts
	known   note.Verifiers // and those that came with the evidence
	witness note.Verifiers
	pruned  map[StreamID][]PrunedRange

	front    frontier
	tiles    map[int]*tileCheck // by level above 0
	signed   *checkpointCursor
	outside  []outsideCheckpoint // sizes still to come, smallest first
	good     int64               // newest size at which a root was right
	unsigned bool                // the newest checkpoint is
	wrong    bool                // a root was wrong: further ones are bound to be

	streams map[StreamID]*StreamState
	intents map[ID]OpenIntent
	newest  time.Time // part time

	sequenced *Verified // what the pass over the tree established
	prunings  int       // records that were opened
	rereads   int       // how often they were read again
}

// outsideCheckpoint is a checkpoint that the evidence did not bring.
type outsideCheckpoint struct {
	Checkpoint
	where string
}

func newVerification(ctx context.Context, e Evidence, o VerifyOptions) (*verification, error) {
	v := &verification{
		e: e, o: o, tiles: map[int]*tileCheck{}, streams: map[StreamID]*StreamState{}, intents: map[ID]OpenIntent{}, pruned: map[StreamID][]PrunedRange{},
		report: Report{Started: time.Now(), Trust: TrustKeys, Streams: []StreamState{}, Intents: []OpenIntent{}, Findings: []Finding{}},
	}
	if err := v.trust(ctx); err != nil {
		return nil, err
	}
	if from := o.From; from != nil {
		var err error
		if v.front, err = resume(from.Size, from.Frontier, from.Root); err != nil {
			return nil, fmt.Errorf("state of the earlier verification: %w: %w", err, ErrOptions)
		}
		v.report.From, v.good = from.Size, from.Size
		for _, s := range from.Streams {
			v.streams[s.Stream] = &s
			v.newest = later(v.newest, s.Last)
		}
		for _, i := range from.Intents {
			v.intents[i.Correlation] = i
		}
	}
	return v, nil
}

// trust sorts the keys.
func (v *verification) trust(ctx context.Context) error {
	var trusted, known, witnesses keyList
	for _, k := range v.o.Keys {
		key, err := note.NewVerifier(k)
		if err != nil {
			return fmt.Errorf("key %q: %w: %w", k, err, ErrOptions)
		}
		trusted.add(key)
		known.add(key)
	}
	for _, k := range v.o.WitnessKeys {
		key, err := NewCosignatureVerifier(k)
		if err != nil {
			return fmt.Errorf("witness key %q: %w: %w", k, err, ErrOptions)
		}
		witnesses.add(key)
	}
	if v.o.Quorum > len(witnesses) {
		return fmt.Errorf("a quorum of %d with %d witness keys: %w", v.o.Quorum, len(witnesses), ErrOptions)
	}
	keys, err := v.e.Keys(ctx)
	if err != nil {
		return fmt.Errorf("reading keys: %w", err)
	}
	for _, k := range keys {
		// Cosigners' keys, and what is no key at all, are no log's; a key that collides with a trusted one is not let in.
		if key, err := note.NewVerifier(k); err == nil {
			known.add(key)
		}
	}
	if len(trusted) == 0 {
		trusted, v.report.Trust = known, TrustSelf
	}
	v.trusted, v.known, v.witness = trusted, known, witnesses
	return nil
}

// keyList is a note.Verifiers without two keys of one name and id: the first stays.
type keyList []note.Verifier

func (l *keyList) add(v note.Verifier) {
	if _, err := l.Verifier(v.Name(), v.KeyHash()); err != nil {
		*l = append(*l, v)
	}
}

// Verifier implements note.Verifiers.
func (l keyList) Verifier(name string, hash uint32) (note.Verifier, error) {
	for _, v := range l {
		if v.Name() == name && v.KeyHash() == hash {
			return v, nil
		}
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

func (v *verification) find(f Finding) {
	if len(v.report.Findings) < maxFindings {
		v.report.Findings = append(v.report.Findings, f)
	} else {
		v.report.More++
	}
}

// findf is a finding about a size of the tree.
func (v *verification) findf(kind Kind, index int64, format string, args ...any) {
	v.find(Finding{Kind: kind, Index: index, Detail: fmt.Sprintf(format, args...)})
}

func (v *verification) run(ctx context.Context) error {
	// What is not in the tree is asked for first: what enters it meanwhile is then seen twice, and not missed.
	tail, err := v.e.Unsequenced(ctx, tailLimit)
	if err != nil {
		return fmt.Errorf("reading batches that are not in the tree: %w", err)
	}
	if err := v.head(ctx); err != nil {
		return err
	}
	if err := v.readPrunings(ctx); err != nil {
		return err
	}
	if err := v.tree(ctx); err != nil {
		return err
	}
	if err := v.beyond(ctx); err != nil {
		return err
	}
	// Only what is in the tree is taken over by the next run.
	v.sequenced = &Verified{Checkpoint: v.report.Checkpoint, At: v.report.Started.UTC(), Frontier: v.front.snapshot(), Streams: v.streamStates(), Intents: v.openIntents()}
	if err := v.tail(ctx, tail); err != nil {
		return err
	}
	var strays []Stray
	if v.o.From == nil && (v.o.Sample <= 0 || v.o.Sample >= 1) { // to look for them is to look at every row
		if strays, err = v.e.Strays(ctx, strayLimit); err != nil {
			return fmt.Errorf("reading strays: %w", err)
		}
	}
	for _, s := range strays {
		v.find(Finding{Kind: KindStray, Index: -1, Stream: s.Stream, Seq: s.Seq,
			Detail: fmt.Sprintf("a row of %s belongs to no stored batch", s.PartTime.UTC().Format(time.RFC3339))})
	}
	v.finish()
	return nil
}

// head opens the newest checkpoint and holds it against what is known from outside.
func (v *verification) head(ctx context.Context) error {
	msg, err := v.e.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading newest checkpoint: %w", err)
	}
	c := Checkpoint{Root: emptyRoot()}
	if msg != nil {
		if c, err = claimed(msg); err != nil {
			v.findf(KindCheckpoint, -1, "the newest checkpoint is malformed")
			return nil //nolint:nilerr // that is the finding
		}
		if _, _, err := OpenCheckpoint(msg, v.trusted); err != nil {
			v.unsigned = true
			v.findf(KindSignature, -1, "the newest checkpoint, of size %d, is not signed by a key that is trusted", c.Size)
		}
	}
	v.report.Checkpoint = c
	for i, msg := range v.o.Anchors {
		a, _, err := OpenCheckpoint(msg, v.trusted)
		if err != nil {
			return fmt.Errorf("checkpoint %d from outside: %w: %w", i+1, err, ErrOptions)
		}
		if c.Origin != "" && a.Origin != c.Origin {
			return fmt.Errorf("checkpoint %d from outside is of log %q, the trail's is %q: %w", i+1, a.Origin, c.Origin, ErrOptions)
		}
		if err := v.expect(ctx, outsideCheckpoint{a, "a checkpoint from outside"}); err != nil {
			return err
		}
	}
	for _, k := range v.o.Known {
		if c.Origin != "" && k.Origin != "" && k.Origin != c.Origin {
			return fmt.Errorf("a known checkpoint is of log %q, this trail's is %q: %w", k.Origin, c.Origin, ErrOptions)
		}
		if err := v.expect(ctx, outsideCheckpoint{k, "an earlier verification"}); err != nil {
			return err
		}
	}
	if from := v.o.From; from != nil {
		if c.Origin != "" && from.Origin != "" && from.Origin != c.Origin {
			return fmt.Errorf("the earlier verification was of log %q, this trail's is %q: %w", from.Origin, c.Origin, ErrOptions)
		}
		if err := v.expect(ctx, outsideCheckpoint{from.Checkpoint, "an earlier verification"}); err != nil {
			return err
		}
	}
	slices.SortFunc(v.outside, func(a, b outsideCheckpoint) int { return int(min(max(a.Size-b.Size, -1), 1)) })
	return nil
}

// expect holds the tree against a checkpoint from outside: now where the pass will not come by, else when it does.
func (v *verification) expect(ctx context.Context, a outsideCheckpoint) error {
	switch {
	case a.Size > v.report.Checkpoint.Size && v.bundle != nil:
		v.report.Ahead++ // an export is of its time
	case a.Size > v.report.Checkpoint.Size:
		v.findf(KindRollback, v.report.Checkpoint.Size, "%s knows a tree of %d leaves; this one has %d", a.where, a.Size, v.report.Checkpoint.Size)
	case a.Size > v.front.size:
		v.outside = append(v.outside, a)
	case a.Size == v.front.size:
		v.compare(a, v.front.root())
	default:
		// Below what was taken over: the tiles are held against its root.
		root, err := tlog.TreeHash(a.Size, HashReader(ctx, v.e, v.o.From.Checkpoint))
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			v.findf(KindTile, a.Size, "the tiles of a tree of %d leaves cannot be read, or do not belong to it", a.Size)
			return nil
		}
		v.compare(a, Hash(root))
	}
	return nil
}

func (v *verification) compare(a outsideCheckpoint, root Hash) {
	if a.Root != root {
		v.findf(KindFork, v.good, "%s knows another tree of %d leaves than this one", a.where, a.Size)
		return
	}
	v.report.Anchors++
}

// readPrunings opens the pruning records; it may be called again, when further ones may have come.
func (v *verification) readPrunings(ctx context.Context) error {
	notes, err := v.e.Prunings(ctx)
	if err != nil {
		return fmt.Errorf("reading pruning records: %w", err)
	}
	for i, msg := range notes[min(v.prunings, len(notes)):] {
		i += v.prunings
		// A retired key must be brought to be believed: here its word is all there is.
		p, err := OpenPruning(msg, v.trusted)
		if err != nil {
			v.findf(KindPruning, -1, "pruning record %d: %v", i+1, err)
			continue
		}
		if p.Origin != v.report.Checkpoint.Origin {
			v.findf(KindPruning, -1, "pruning record %d is of another log", i+1)
			continue
		}
		for _, r := range p.Ranges {
			v.pruned[r.Stream] = append(v.pruned[r.Stream], r)
		}
	}
	v.prunings = max(v.prunings, len(notes))
	for _, ranges := range v.pruned {
		slices.SortFunc(ranges, func(a, b PrunedRange) int {
			if a.First < b.First {
				return -1
			}
			return 1
		})
	}
	return nil
}

// prunedRange returns the pruned range that holds a record.
func (v *verification) prunedRange(stream StreamID, seq uint64) (PrunedRange, bool) {
	ranges := v.pruned[stream]
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].First+ranges[i].Count > seq })
	if i == len(ranges) || ranges[i].First > seq {
		return PrunedRange{}, false
	}
	return ranges[i], true
}

// rootsUpTo compares the root with every checkpoint of this size, stored or from outside.
func (v *verification) rootsUpTo(ctx context.Context, size int64) error {
	for len(v.outside) > 0 && v.outside[0].Size <= size {
		if a := v.outside[0]; a.Size == size {
			v.compare(a, v.front.root())
		}
		v.outside = v.outside[1:]
	}
	for {
		next, ok, err := v.signed.peek(ctx)
		if err != nil {
			return err
		}
		if !ok || next.Size > size {
			return nil
		}
		v.signed.pop()
		if next.Size < size {
			continue // below where the pass began
		}
		v.report.Checkpoints++
		if root := v.front.root(); next.Root == root {
			v.good = size
		} else if !v.wrong {
			v.wrong = true
			v.findf(KindRoot, v.good, "the leaves do not hash to the root that was signed for size %d; up to leaf %d they are what was signed", size, v.good)
		}
	}
}

// beyond checks that the tree does not go on where its newest checkpoint says it ends.
func (v *verification) beyond(ctx context.Context) error {
	if next, ok, err := v.signed.peek(ctx); err != nil {
		return err
	} else if ok && next.Size < v.report.Checkpoint.Size {
		v.findf(KindSpan, v.front.size, "the checkpoint of size %d could not be held against the tree", next.Size)
	}
	spans, err := v.e.Spans(ctx, v.report.Checkpoint.Size, 1)
	if err != nil {
		return fmt.Errorf("reading batches beyond the tree: %w", err)
	}
	if len(spans) == 0 || spans[0].Index < v.report.Checkpoint.Size {
		return nil
	}
	// The sequencer may have gone on; then there is a newer checkpoint by now.
	msg, err := v.e.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading newest checkpoint: %w", err)
	}
	if c, err := claimed(msg); err == nil && c.Size > v.report.Checkpoint.Size {
		return nil
	}
	v.find(Finding{Kind: KindRollback, Index: v.report.Checkpoint.Size, Stream: spans[0].Stream, Seq: spans[0].First,
		Detail: "batches are in the tree beyond its newest checkpoint: a checkpoint is gone"})
	return nil
}

// tail checks batches that are stored and not in the tree yet.
func (v *verification) tail(ctx context.Context, spans []Span) error {
	for _, s := range spans {
		if at := v.streams[s.Stream]; at != nil && s.First+uint64(max(s.Count, 0)) <= at.Next {
			continue // in the tree by now
		}
		p := &perSpan{v: v, span: &s}
		s.Index = -1
		if s.Count <= 0 || s.Count > MaxSpan {
			p.add(KindSpan, s.First, "", fmt.Sprintf("a batch of %d records", s.Count))
			p.flush()
			continue
		}
		rows, err := v.e.Rows(ctx, s)
		if err != nil {
			return fmt.Errorf("reading rows that are not in the tree: %w", err)
		}
		v.continues(p)
		c := &chunk{span: s, rows: rows, sampled: true}
		c.hash()
		// No tile has these leaves yet: what the rows say they are takes its place, and the chain decides.
		c.tile = make([]byte, 0, s.Count*tlog.HashSize)
		byseq := make(map[uint64]*Row, len(rows))
		for i := range rows {
			byseq[rows[i].Seq] = &rows[i]
		}
		for i := range s.Count {
			var leaf Hash
			if r := byseq[s.First+uint64(i)]; r != nil {
				leaf = r.Leaf
			}
			c.tile = append(c.tile, leaf[:]...)
		}
		before := v.report.Rows
		leaves, err := v.leaves(ctx, c, p)
		if err != nil {
			return err
		}
		v.report.Unsequenced += v.report.Rows - before
		chain := s.Prev
		for _, leaf := range leaves {
			chain = link(chain, leaf)
		}
		if chain != s.Chain {
			p.add(KindChain, s.First, "", "the batch does not hash to the chain that was stored with it")
		}
		v.advance(&s)
		p.flush()
	}
	return nil
}

// finish fills in what only the end of the pass knows.
func (v *verification) finish() {
	r := &v.report
	now := v.o.Now
	if now.IsZero() {
		now = v.newest
	}
	for _, s := range v.streams {
		s.Unaccounted = !s.Stopped && !s.Unseen && s.Last.Add(unaccounted).Before(now)
	}
	r.Streams = v.streamStates()
	open := v.openIntents()
	if v.o.Quorum > 0 && r.Witnessed == nil {
		v.findf(KindWitness, -1, "no checkpoint has cosignatures of %d witnesses that are trusted", v.o.Quorum)
	}
	if r.OK() && r.Unsampled == 0 {
		r.Verified = v.sequenced
	}
	r.OpenIntents, r.Intents = len(open), open[:min(len(open), maxFindings)]
	r.Duration = time.Since(r.Started)
}

func (v *verification) streamStates() []StreamState {
	states := make([]StreamState, 0, len(v.streams))
	for _, s := range v.streams {
		states = append(states, *s)
	}
	slices.SortFunc(states, func(a, b StreamState) int { return bytes.Compare(a.Stream[:], b.Stream[:]) })
	return states
}

func (v *verification) openIntents() []OpenIntent {
	open := make([]OpenIntent, 0, len(v.intents))
	for _, i := range v.intents {
		open = append(open, i)
	}
	slices.SortFunc(open, func(a, b OpenIntent) int { return bytes.Compare(a.Event[:], b.Event[:]) })
	return open
}

// checkpointCursor reads the stored checkpoints of the trail, smallest first.
type checkpointCursor struct {
	v     *verification
	after int64
	page  []Checkpoint
	ended bool
}

func (k *checkpointCursor) pop() { k.page = k.page[1:] }

// peek returns the next checkpoint up to the newest one, with its signatures checked.
func (k *checkpointCursor) peek(ctx context.Context) (Checkpoint, bool, error) {
	for len(k.page) == 0 && !k.ended {
		notes, err := k.v.e.Checkpoints(ctx, k.after, checkpointPage)
		if err != nil {
			return Checkpoint{}, false, fmt.Errorf("reading checkpoints after size %d: %w", k.after, err)
		}
		k.ended = len(notes) == 0
		progress := false
		for _, msg := range notes {
			c, err := claimed(msg)
			if err != nil {
				k.v.findf(KindCheckpoint, k.after, "a checkpoint after size %d is malformed", k.after)
				continue
			}
			if c.Size > k.v.report.Checkpoint.Size {
				k.ended = true
				break
			}
			if c.Size <= k.after {
				k.v.findf(KindCheckpoint, c.Size, "checkpoints are not in order")
				continue
			}
			k.after, progress = c.Size, true
			if k.v.open(msg, c) {
				k.page = append(k.page, c)
			}
		}
		k.ended = k.ended || !progress
	}
	if len(k.page) == 0 {
		return Checkpoint{}, false, nil
	}
	return k.page[0], true, nil
}

// open checks the signatures of a stored checkpoint and reports whether the log made it.
func (v *verification) open(msg []byte, c Checkpoint) bool {
	if c.Origin != v.report.Checkpoint.Origin {
		v.findf(KindCheckpoint, c.Size, "the checkpoint of size %d is of another log", c.Size)
		return false
	}
	// Retired keys sign no newest checkpoint; what they signed is consistent with it, or a finding.
	if _, _, err := OpenCheckpoint(msg, v.known); err != nil {
		if c == v.report.Checkpoint && v.unsigned {
			return false // that was said
		}
		v.findf(KindSignature, c.Size, "the checkpoint of size %d is not signed by a key of the log", c.Size)
		return false
	}
	n, err := openNote(msg, v.witness)
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		return true
	}
	if err != nil {
		v.findf(KindWitness, c.Size, "a cosignature on the checkpoint of size %d does not verify", c.Size)
		return true
	}
	w := &Witnessed{Checkpoint: c}
	for _, s := range n.Sigs {
		if at, err := CosignatureTime(s); err == nil && (w.At.IsZero() || at.Before(w.At)) {
			w.At = at
		}
		w.By = append(w.By, s.Name)
	}
	if len(w.By) >= max(v.o.Quorum, 1) {
		v.report.Witnessed = w
	}
	return true
}
