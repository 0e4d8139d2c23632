package audittest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
)

// Property is one of the seven that hold after every step of every experiment, whatever failed in it.
type Property string

const (
	I1 Property = "I1: what was acknowledged at a level is there after that level's fault"
	I2 Property = "I2: a stream's sequence numbers are contiguous from 0 and its chain fits"
	I3 Property = "I3: every stored row is covered by exactly one manifest, and no event is stored twice"
	I4 Property = "I4: the tree never shrinks, and every checkpoint is consistent with all earlier ones"
	I5 Property = "I5: no PHI leaves before its event is at its level"
	I6 Property = "I6: an event is never modified: the journal's bytes are the hashed bytes and the stored body"
	I7 Property = "I7: nothing is dropped without a chained record of the loss"
)

// Violation is a property that does not hold, and where.
type Violation struct {
	Property Property
	Stream   audit.StreamID // zero when it concerns no single stream
	Seq      uint64
	Desc     string
}

// String is a line for a test's log.
func (v Violation) String() string {
	if v.Stream == (audit.StreamID{}) {
		return fmt.Sprintf("%s: %s", v.Property, v.Desc)
	}
	return fmt.Sprintf("%s: stream %s, record %d: %s", v.Property, v.Stream, v.Seq, v.Desc)
}

// Ack is what a client was told: a response, or a Receipt.
type Ack struct {
	Key    string // names the events, see Invariants.Key
	Level  audit.Level
	Events int  // exactly so many of them; 0 is one or more
	PHI    bool // the answer held PHI: its event must be found at once
}

// Findings is what a step's check saw. Counts are of all streams, in journals or stored, each record once.
type Findings struct {
	Violations []Violation
	Records    int
	Stored     int
	Alerts     int      // security alerts
	Unmatched  []string // keys of intents whose outcome is missing
	Lost       int      // records seen at an earlier step that are gone; allowed below the level of the fault, when it is recorded
	Torn       []string // journals whose readable part ends before their bytes do
	TreeSize   int64    // of the newest checkpoint
}

// Invariants re-checks the seven properties from outside, after each step of an experiment: from what clients were told,
// the journals' own bytes, the stored rows and the signed checkpoints. It remembers what earlier steps saw, so that it
// notices what shrinks, changes or disappears in between. It knows the contracts of audit.Evidence and of the journal's
// reader, and recomputes the tree by itself: it shares no code with the sequencer and the verifier.
//
// Set the exported fields before the first use. All methods are safe for concurrent use; Check is for one at a time.
type Invariants struct {
	FS       audit.FS                  // of the journals; nil = the operating system
	Journals []string                  // folders of journals (audit.Config.Dir); one that does not exist is empty
	Evidence audit.Evidence            // what is stored; nil when there are only journals
	Keys     note.Verifiers            // of the log; nil does not check signatures
	Key      func(*audit.Event) string // names an event as clients know it; nil = its request id
	Twins    bool                      // a stream had two writers: what both held is stored in the winner's and, recorded again, in the loser's new one

	mu   sync.Mutex
	acks []Ack
	late []Violation // of I5

	steps       int
	streams     map[audit.StreamID]*seen
	batches     map[batchID]audit.Hash // chain after each stored batch that was checked
	leaves      []tlog.Hash            // stored hashes of the tree, as tlog orders them
	size        int64                  // leaves in them
	checkpoints map[int64]tlog.Hash    // root by size, of every checkpoint ever seen
	newest      int64
	alerts      map[audit.ID]bool
	abrupt      int // runs that ended without a stop
}

type batchID struct {
	stream audit.StreamID
	first  uint64
}

// seen is what earlier steps saw of a stream.
type seen struct {
	records map[uint64]record
	next    uint64     // of the stored part
	chain   audit.Hash // of the stored part
}

type record struct {
	id       audit.ID
	key      string
	leaf     audit.Hash
	intent   bool
	starts   bool
	stops    bool
	group    audit.ID // what ties intent and outcome; zero for neither
	checked  int      // step at which it was last found
	isStored bool
}

// Acknowledge notes what a client was told. Call it when the answer is there and before anything else is done: for PHI it
// looks into the journals at once.
func (v *Invariants) Acknowledge(a Ack) {
	found := !a.PHI || v.journaled(a.Key)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.acks = append(v.acks, a)
	if !found {
		v.late = append(v.late, Violation{Property: I5, Desc: fmt.Sprintf("%s was answered before its event was in a journal", a.Key)})
	}
}

// journaled reports whether the bytes of any segment hold the key: every text of an event is in its body as it is.
func (v *Invariants) journaled(key string) bool {
	fs := v.fs()
	for _, dir := range v.Journals {
		streams, err := audit.Streams(fs, dir)
		if err != nil {
			continue
		}
		for _, s := range streams {
			sub := filepath.Join(dir, s.String())
			names, err := fs.ReadDir(sub)
			if err != nil {
				continue
			}
			for _, name := range slices.Backward(names) {
				if strings.HasSuffix(name, ".journal") && holds(fs, filepath.Join(sub, name), key) {
					return true
				}
			}
		}
	}
	return false
}

func holds(fs audit.FS, path, key string) bool {
	f, err := fs.Open(path)
	if err != nil {
		return false // removed meanwhile
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return false
	}
	b := make([]byte, min(size, 1<<20)+int64(len(key)))
	for off := int64(0); off < size; off += 1 << 20 {
		n, _ := f.ReadAt(b, off)
		if bytes.Contains(b[:n], []byte(key)) {
			return true
		}
	}
	return false
}

func (v *Invariants) fs() audit.FS {
	if v.FS == nil {
		return audit.OS{}
	}
	return v.FS
}

// step collects what one Check finds.
type step struct {
	*Findings
	number   int
	survives audit.Level
}

func (s *step) violates(p Property, stream audit.StreamID, seq uint64, format string, args ...any) {
	const enough = 50
	if len(s.Violations) < enough {
		s.Violations = append(s.Violations, Violation{p, stream, seq, fmt.Sprintf(format, args...)})
	}
}

// Check looks at everything that is new since the last call, and at what must not have changed. survives is the lowest
// level that the fault since then leaves alone: audit.Process after kill -9 or none at all, audit.Power after a power cut,
// audit.Database after the loss of a host. What was acknowledged below it may be gone once, recorded as a loss; it is
// forgotten. It returns an error when the evidence cannot be read; the properties are then neither held nor broken.
func (v *Invariants) Check(ctx context.Context, survives audit.Level) (Findings, error) {
	v.mu.Lock()
	acks, late := slices.Clone(v.acks), v.late
	v.late = nil
	v.mu.Unlock()
	if v.streams == nil {
		v.streams, v.batches = map[audit.StreamID]*seen{}, map[batchID]audit.Hash{}
		v.checkpoints, v.alerts = map[int64]tlog.Hash{}, map[audit.ID]bool{}
	}
	v.steps++
	s := &step{Findings: &Findings{Violations: late}, number: v.steps, survives: survives}
	before := len(v.alerts)
	// Journals first: a record on its way into the database is then in at least one of them.
	if err := v.checkJournals(s); err != nil {
		return Findings{}, err
	}
	if v.Evidence != nil {
		if err := v.checkStored(ctx, s); err != nil {
			return Findings{}, err
		}
		if err := v.checkCheckpoints(ctx, s); err != nil {
			return Findings{}, err
		}
	}
	v.settle(s, acks, len(v.alerts) > before)
	s.Alerts, s.TreeSize = len(v.alerts), v.newest
	return *s.Findings, nil
}

// Recheck is Check that reads everything again: rows that were stored long ago, too.
func (v *Invariants) Recheck(ctx context.Context, survives audit.Level) (Findings, error) {
	v.batches, v.leaves, v.size = nil, nil, 0
	if v.streams != nil {
		v.batches = map[batchID]audit.Hash{}
		for _, st := range v.streams {
			st.next, st.chain = 0, audit.Hash{}
		}
	}
	return v.Check(ctx, survives)
}

func (v *Invariants) stream(id audit.StreamID) *seen {
	if v.streams[id] == nil {
		v.streams[id] = &seen{records: map[uint64]record{}}
	}
	return v.streams[id]
}

// note takes a record in, wherever it was found, and compares it with what was seen before at its place.
func (v *Invariants) note(s *step, stream audit.StreamID, r *audit.Row, isStored bool) {
	if err := audit.CheckRow(stream, r); err != nil {
		s.violates(I6, stream, r.Seq, "%v", err)
		return
	}
	if len(r.Altered) > 0 {
		s.violates(I6, stream, r.Seq, "columns %v are not what the body says", r.Altered)
	}
	st := v.stream(stream)
	known, ok := st.records[r.Seq]
	switch {
	case !ok || known.leaf == r.Leaf:
	case s.survives > audit.Process && !known.isStored:
		s.Lost++ // its number, which nobody relied on, was given to another
	default:
		s.violates(I6, stream, r.Seq, "it is another record than before")
	}
	e := &r.Event
	key := e.RequestID
	if v.Key != nil {
		key = v.Key(e)
	}
	n := record{id: e.ID, key: key, leaf: r.Leaf, intent: e.Outcome == audit.Intent, group: e.Correlation, checked: s.number, isStored: isStored || known.isStored}
	if n.intent && n.group == (audit.ID{}) {
		n.group = e.ID
	}
	if e.Type == audit.TypeApplication {
		n.starts, n.stops = e.Interaction == "110120", e.Interaction == "110121" // DICOM PS3.16 CID 400
	}
	st.records[r.Seq] = n
	if e.Type == audit.TypeSecurityAlert {
		v.alerts[e.ID] = true
	}
}

func (v *Invariants) checkJournals(s *step) error {
	fs := v.fs()
	for _, dir := range v.Journals {
		streams, err := audit.Streams(fs, dir)
		if err != nil {
			continue // there is none yet
		}
		for _, stream := range streams {
			sub := filepath.Join(dir, stream.String())
			next, started := uint64(0), false
			for r, err := range audit.Records(fs, sub, stream) {
				switch {
				case errors.Is(err, audit.ErrChain):
					s.violates(I2, stream, next, "the journal's chain does not fit: %v", err)
				case err != nil:
					s.Torn = append(s.Torn, fmt.Sprintf("%s: %v", sub, err))
				default:
					if started && r.Seq != next {
						s.violates(I2, stream, r.Seq, "the journal goes on from %d", next)
					}
					started, next = true, r.Seq+1
					v.note(s, stream, &r, false)
				}
			}
		}
	}
	return nil
}

// pages is how much is asked for at once.
const pages = 1 << 20

func (v *Invariants) checkStored(ctx context.Context, s *step) error {
	// The ones outside the tree first: one that moves in between is then seen twice, not never.
	outside, err := v.Evidence.Unsequenced(ctx, pages)
	if err != nil {
		return fmt.Errorf("reading batches outside the tree: %w", err)
	}
	for {
		spans, err := v.Evidence.Spans(ctx, v.size, 1000)
		if err != nil {
			return fmt.Errorf("reading spans: %w", err)
		}
		if len(spans) == 0 {
			break
		}
		for _, span := range spans {
			if span.Index != v.size {
				s.violates(I4, span.Stream, span.First, "a span stands at leaf %d where %d comes next", span.Index, v.size)
				return nil
			}
			leaves, err := v.checkBatch(ctx, s, span)
			if err != nil {
				return err
			}
			if len(leaves) != span.Count {
				return nil // said already; the tree cannot be recomputed beyond it
			}
			for _, leaf := range leaves {
				hashes, err := tlog.StoredHashesForRecordHash(v.size, tlog.Hash(leaf), tlog.HashReaderFunc(v.hashes))
				if err != nil {
					return fmt.Errorf("recomputing the tree: %w", err)
				}
				v.leaves = append(v.leaves, hashes...)
				v.size++
			}
		}
	}
	for _, span := range outside {
		if _, done := v.batches[batchID{span.Stream, span.First}]; done {
			continue
		}
		if _, err := v.checkBatch(ctx, s, span); err != nil {
			return err
		}
	}
	strays, err := v.Evidence.Strays(ctx, pages)
	if err != nil {
		return fmt.Errorf("reading strays: %w", err)
	}
	for _, x := range strays {
		s.violates(I3, x.Stream, x.Seq, "a row without a manifest")
	}
	return nil
}

func (v *Invariants) hashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(v.leaves)) {
			return nil, fmt.Errorf("audittest: hash %d of %d", x, len(v.leaves))
		}
		out[i] = v.leaves[x]
	}
	return out, nil
}

// Prove returns the consistency proof between two sizes of the tree that the last Check recomputed, for a witness.
func (v *Invariants) Prove(old, size int64) (tlog.TreeProof, error) {
	if old == 0 {
		return nil, nil
	}
	p, err := tlog.ProveTree(size, old, tlog.HashReaderFunc(v.hashes))
	if err != nil {
		return nil, fmt.Errorf("proving consistency: %w", err)
	}
	return p, nil
}

// checkBatch checks a stored batch against its rows and its stream, and returns its leaves. Of a batch that was checked before
// it only takes the leaves from memory.
func (v *Invariants) checkBatch(ctx context.Context, s *step, b audit.Span) ([]audit.Hash, error) {
	st := v.stream(b.Stream)
	id := batchID{b.Stream, b.First}
	if chain, done := v.batches[id]; done {
		if chain != b.Chain {
			s.violates(I6, b.Stream, b.First, "the batch has another chain than before")
		}
		leaves := make([]audit.Hash, b.Count)
		for i := range leaves {
			leaves[i] = st.records[b.First+uint64(i)].leaf
		}
		return leaves, nil
	}
	if b.First != st.next {
		s.violates(I2, b.Stream, b.First, "the stored batch does not follow record %d", st.next)
	} else if b.Prev != st.chain {
		s.violates(I2, b.Stream, b.First, "the stored batch does not continue the chain")
	}
	rows, err := v.Evidence.Rows(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("reading rows: %w", err)
	}
	if len(rows) == 0 {
		pruned, err := v.pruned(ctx, s, b)
		if err != nil || pruned != nil {
			st.next, st.chain = b.First+uint64(b.Count), b.Chain
			v.batches[id] = b.Chain
			return pruned, err
		}
	}
	batch := audit.Batch{Stream: b.Stream, First: b.First, Prev: b.Prev, Chain: b.Chain, Rows: rows}
	leaves := make([]audit.Hash, len(rows))
	for i := range rows {
		leaves[i] = rows[i].Leaf
		v.note(s, b.Stream, &rows[i], true)
	}
	switch err := audit.Check(batch); {
	case len(rows) != b.Count:
		s.violates(I3, b.Stream, b.First, "the manifest speaks of %d rows and there are %d", b.Count, len(rows))
	case err != nil:
		s.violates(I2, b.Stream, b.First, "%v", err)
	}
	st.next, st.chain = b.First+uint64(b.Count), b.Chain
	v.batches[id] = b.Chain
	return leaves, nil
}

// pruned returns the leaves of a batch whose rows retention dropped, from the tree's tiles: nil when no pruning was recorded. Which
// rows it covers is the verifier's business.
func (v *Invariants) pruned(ctx context.Context, s *step, b audit.Span) ([]audit.Hash, error) {
	records, err := v.Evidence.Prunings(ctx)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	const width = 1 << audit.TileHeight
	leaves := make([]audit.Hash, 0, b.Count)
	for i := b.Index; i < b.Index+int64(b.Count); {
		n := i / width
		tile := tlog.Tile{H: audit.TileHeight, N: n, W: int(min(width, b.Index+int64(b.Count)-n*width))}
		content, err := v.Evidence.Tiles(ctx, []tlog.Tile{tile})
		if err != nil {
			return nil, fmt.Errorf("reading a tile of pruned rows: %w", err)
		}
		for ; i < n*width+int64(tile.W); i++ {
			leaves = append(leaves, audit.Hash(content[0][(i-n*width)*tlog.HashSize:]))
		}
	}
	st := v.stream(b.Stream)
	for i, leaf := range leaves {
		seq := b.First + uint64(i)
		known, ok := st.records[seq]
		if ok && known.leaf != leaf {
			s.violates(I6, b.Stream, seq, "the leaf of a pruned row is another than before")
		}
		known.leaf, known.isStored = leaf, true
		st.records[seq] = known
	}
	return leaves, nil
}

// checkCheckpoints compares each signed root with the tree that the rows make: all of one sequence of leaves are consistent.
func (v *Invariants) checkCheckpoints(ctx context.Context, s *step) error {
	roots, after := map[int64]tlog.Hash{}, int64(0)
	for {
		notes, err := v.Evidence.Checkpoints(ctx, after, 1000)
		if err != nil {
			return fmt.Errorf("reading checkpoints: %w", err)
		}
		if len(notes) == 0 {
			break
		}
		for _, text := range notes {
			size, root, err := v.openCheckpoint(text)
			if err != nil || size <= after {
				s.violates(I4, audit.StreamID{}, 0, "the checkpoint after size %d: size %d, %v", after, size, err)
				return nil
			}
			after, roots[size] = size, root
		}
	}
	for size, root := range v.checkpoints {
		switch now, ok := roots[size]; {
		case !ok:
			s.violates(I4, audit.StreamID{}, 0, "the checkpoint of size %d is gone", size)
		case now != root:
			s.violates(I4, audit.StreamID{}, 0, "the checkpoint of size %d has another root than before: the log forked", size)
		}
	}
	if v.newest > v.size {
		s.violates(I4, audit.StreamID{}, 0, "a checkpoint of size %d stands over %d leaves", v.newest, v.size)
	}
	for _, size := range slices.Sorted(maps.Keys(roots)) {
		if size > v.size {
			continue // published after the spans were read: the next step looks at it
		}
		computed, err := tlog.TreeHash(size, tlog.HashReaderFunc(v.hashes))
		if err != nil {
			return fmt.Errorf("recomputing the tree: %w", err)
		}
		if computed != roots[size] {
			s.violates(I4, audit.StreamID{}, 0, "the checkpoint of size %d is not the root of the stored rows", size)
		}
		v.checkpoints[size] = roots[size]
	}
	if after < v.newest {
		s.violates(I4, audit.StreamID{}, 0, "the tree shrank from %d to %d", v.newest, after)
	}
	v.newest = max(v.newest, after)
	return nil
}

// openCheckpoint reads a note as https://c2sp.org/tlog-checkpoint has it: origin, size, root.
func (v *Invariants) openCheckpoint(text []byte) (int64, tlog.Hash, error) {
	body := string(text)
	if v.Keys != nil {
		n, err := note.Open(text, v.Keys)
		if err != nil {
			return 0, tlog.Hash{}, err
		}
		body = n.Text
	}
	lines := strings.SplitN(body, "\n", 4)
	if len(lines) < 4 {
		return 0, tlog.Hash{}, errors.New("audittest: a checkpoint has three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	if len(root) != tlog.HashSize {
		return 0, tlog.Hash{}, fmt.Errorf("audittest: a root of %d bytes", len(root))
	}
	return size, tlog.Hash(root), nil
}

// settle compares what clients were told with what was found, and forgets what a fault was allowed to take.
//
// A loss is recorded by an alert, or by a start in the stream's chain that no stop comes before: the run before it ended at once,
// and with it what it had not made durable.
func (v *Invariants) settle(s *step, acks []Ack, alerted bool) {
	abrupt := 0
	keys, stored := map[string]map[audit.ID]bool{}, map[audit.ID]bool{}
	intents, outcomes := map[audit.ID]string{}, map[audit.ID]bool{}
	for id, st := range v.streams {
		starts, stops := 0, 0
		for seq, r := range st.records {
			if r.checked != s.number && !r.isStored {
				s.Lost++
				delete(st.records, seq)
				continue
			}
			s.Records++
			if r.starts {
				starts++
			}
			if r.stops {
				stops++
			}
			if r.isStored {
				s.Stored++
				if stored[r.id] && !v.Twins && r.id != (audit.ID{}) { // zero for rows that were pruned before they were seen
					s.violates(I3, id, seq, "its event is stored twice")
				}
				stored[r.id] = true
			}
			if keys[r.key] == nil {
				keys[r.key] = map[audit.ID]bool{}
			}
			keys[r.key][r.id] = true
			switch {
			case r.intent:
				intents[r.group] = r.key
			case r.group != (audit.ID{}):
				outcomes[r.group] = true
			}
		}
		abrupt += max(0, starts-1-stops)
	}
	alerted = alerted || abrupt > v.abrupt
	v.abrupt = abrupt
	for group, key := range intents {
		if !outcomes[group] {
			s.Unmatched = append(s.Unmatched, key)
		}
	}
	if s.Lost > 0 && !alerted {
		s.violates(I7, audit.StreamID{}, 0, "%d records that were written are gone, and no alert says so", s.Lost)
	}
	var kept []Ack
	for _, a := range acks {
		n := len(keys[a.Key])
		right := n > 0 && (a.Events == 0 || a.Events == n)
		if right || a.Level >= s.survives {
			kept = append(kept, a)
		}
		switch {
		case right:
		case a.Level >= s.survives:
			s.violates(I1, audit.StreamID{}, 0, "%s was acknowledged at %s and has %d events", a.Key, a.Level, n)
		case !alerted:
			s.violates(I7, audit.StreamID{}, 0, "%s was acknowledged at %s, is gone, and no alert says so", a.Key, a.Level)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.acks = append(kept, v.acks[len(acks):]...) // what came meanwhile is looked at next time
}
