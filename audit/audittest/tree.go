package audittest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
)

// Tree is audit.TreeStorage in memory, beside batches that a test stores with Ingest, under the same rules as the database: one
// lease at a time, fencing tokens, a head that only grows. The zero value is ready. Safe for concurrent use.
type Tree struct {
	// Fail, when set before use, is asked before each call ("lead", "pending", "leaves", "extend", "read") and after an extension that
	// was stored ("answer"): a non-nil error is what the caller gets, and failing "answer" is a COMMIT whose answer is lost.
	// It may block, as a process does that is stopped.
	Fail func(step string) error

	mu           sync.Mutex
	batches      map[audit.StreamID][]audit.Pending
	order        []audit.StreamID
	spans        []audit.Span
	ends         map[audit.StreamID]uint64
	tiles        map[tlog.Tile][]byte
	edge         map[int]audit.Tile
	checkpoints  [][]byte
	sizes        []int64
	cosignatures map[int64][][]byte
	keys         []string
	token        int64
	leader       *treeLease
}

func (t *Tree) fail(step string) error {
	if t.Fail == nil {
		return nil
	}
	return t.Fail(step)
}

// Ingest stores a batch with the leaves of its rows. It must continue what is stored of its stream; nothing else is checked,
// so that a test may store what was tampered with.
func (t *Tree) Ingest(s audit.Span, leaves []audit.Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.batches == nil {
		t.batches, t.ends = map[audit.StreamID][]audit.Pending{}, map[audit.StreamID]uint64{}
		t.tiles, t.edge, t.cosignatures = map[tlog.Tile][]byte{}, map[int]audit.Tile{}, map[int64][][]byte{}
	}
	if t.batches[s.Stream] == nil {
		t.order = append(t.order, s.Stream)
	}
	s.Index = -1
	t.batches[s.Stream] = append(t.batches[s.Stream], audit.Pending{Span: s, Leaves: slices.Clone(leaves)})
}

// Alter changes what is stored of a stream's batch, as somebody with all rights would.
func (t *Tree) Alter(stream audit.StreamID, first uint64, change func(*audit.Pending)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.batches[stream] {
		if t.batches[stream][i].First == first {
			change(&t.batches[stream][i])
		}
	}
}

// AlterEdge changes the partial tile of a level.
func (t *Tree) AlterEdge(level int, change func(hashes []byte)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.edge[level]
	e.Hashes = bytes.Clone(e.Hashes)
	change(e.Hashes)
	t.edge[level] = e
}

// Restore takes everything back to the first n checkpoints, as a backup does.
func (t *Tree) Restore(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var size int64
	if n > 0 {
		size = t.sizes[n-1]
	}
	t.checkpoints, t.sizes = t.checkpoints[:n], t.sizes[:n]
	t.spans = slices.DeleteFunc(t.spans, func(s audit.Span) bool { return s.Index >= size })
	t.ends = map[audit.StreamID]uint64{}
	for _, s := range t.spans {
		t.ends[s.Stream] = s.First + uint64(s.Count)
	}
	for stream, batches := range t.batches {
		t.batches[stream] = slices.DeleteFunc(batches, func(p audit.Pending) bool { return p.First >= t.ends[stream] })
	}
	maps.DeleteFunc(t.tiles, func(tile tlog.Tile, _ []byte) bool {
		return (tile.N+1)<<(audit.TileHeight*(tile.L+1)) > size
	})
	t.edge = map[int]audit.Tile{} // the sequencer computes it anew
}

// Depose ends the lease there is, as the loss of its connection does: its calls fail from now on.
func (t *Tree) Depose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leader != nil {
		t.leader.lost = true
	}
	t.leader = nil
}

// Usurp lets somebody else lead, while who leads now does not learn of it and goes on: only its token is too old.
func (t *Tree) Usurp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leader = nil
}

// Lead implements audit.TreeStorage.
func (t *Tree) Lead(ctx context.Context) (audit.Lease, error) {
	if err := errors.Join(ctx.Err(), t.fail("lead")); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leader != nil {
		return nil, nil
	}
	t.token++
	t.leader = &treeLease{Tree: t, token: t.token}
	return t.leader, nil
}

type treeLease struct {
	*Tree
	token int64
	lost  bool
}

// begin locks the tree for a call of the lease.
func (l *treeLease) begin() error {
	l.mu.Lock()
	if l.lost {
		l.mu.Unlock()
		return errors.New("audittest: the lease is lost")
	}
	return nil
}

// Close implements audit.Lease.
func (l *treeLease) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leader == l {
		l.leader = nil
	}
	return nil
}

// Pending implements audit.Lease.
func (l *treeLease) Pending(ctx context.Context, skip []audit.StreamID, limit int) ([]audit.Pending, error) {
	if err := errors.Join(ctx.Err(), l.fail("pending")); err != nil {
		return nil, err
	}
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	var pending []audit.Pending
	leaves := 0
	for turn, more := 0, true; more && leaves < limit; turn++ {
		more = false
		for _, stream := range l.order {
			waiting := slices.DeleteFunc(slices.Clone(l.batches[stream]), func(p audit.Pending) bool { return p.First < l.ends[stream] })
			if slices.Contains(skip, stream) || len(waiting) <= turn || leaves >= limit && len(pending) > 0 {
				continue
			}
			more = true
			pending = append(pending, waiting[turn])
			leaves += waiting[turn].Count
		}
	}
	return pending, nil
}

// Leaves implements audit.Lease.
func (l *treeLease) Leaves(ctx context.Context, s audit.Span) ([]audit.Hash, error) {
	if err := errors.Join(ctx.Err(), l.fail("leaves")); err != nil {
		return nil, err
	}
	if err := l.begin(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for _, p := range l.batches[s.Stream] {
		if p.First == s.First {
			return slices.Clone(p.Leaves), nil
		}
	}
	return nil, nil
}

// Extend implements audit.Lease.
func (l *treeLease) Extend(ctx context.Context, e audit.Extension) error {
	if err := errors.Join(ctx.Err(), l.fail("extend")); err != nil {
		return err
	}
	if err := l.extend(e); err != nil {
		return err
	}
	return l.fail("answer")
}

func (l *treeLease) extend(e audit.Extension) error {
	if err := l.begin(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if l.token != l.Tree.token || l.head() != e.Old || e.Size <= e.Old {
		return audit.ErrFenced
	}
	at := e.Old
	for _, s := range e.Spans {
		if s.Index != at || s.First != l.ends[s.Stream] {
			return fmt.Errorf("audittest: batch at leaf %d, record %d does not fit: %w", s.Index, s.First, audit.ErrFenced)
		}
		at += int64(s.Count)
		l.ends[s.Stream] = s.First + uint64(s.Count)
	}
	if at != e.Size {
		return fmt.Errorf("audittest: batches up to leaf %d in a tree of %d", at, e.Size)
	}
	for _, t := range e.Tiles {
		if l.tiles[t.Tile] != nil {
			return audit.ErrFenced
		}
		l.tiles[t.Tile] = bytes.Clone(t.Hashes)
	}
	l.edge = map[int]audit.Tile{}
	for _, t := range e.Edge {
		t.Hashes = bytes.Clone(t.Hashes)
		l.edge[t.L] = t
	}
	l.spans = append(l.spans, e.Spans...)
	l.checkpoints, l.sizes = append(l.checkpoints, e.Checkpoint), append(l.sizes, e.Size)
	for _, k := range e.Keys {
		if !slices.Contains(l.keys, k) {
			l.keys = append(l.keys, k)
		}
	}
	return nil
}

func (t *Tree) head() int64 {
	if len(t.sizes) == 0 {
		return 0
	}
	return t.sizes[len(t.sizes)-1]
}

func (t *Tree) note(i int) []byte {
	return slices.Concat(append([][]byte{t.checkpoints[i]}, t.cosignatures[t.sizes[i]]...)...)
}

// Checkpoint implements audit.TreeReader.
func (t *Tree) Checkpoint(ctx context.Context) ([]byte, error) {
	if err := errors.Join(ctx.Err(), t.fail("read")); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.checkpoints) == 0 {
		return nil, nil
	}
	return t.note(len(t.checkpoints) - 1), nil
}

// Checkpoints implements audit.TreeReader.
func (t *Tree) Checkpoints(_ context.Context, after int64, limit int) (notes [][]byte, _ error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, size := range t.sizes {
		if size > after && len(notes) < limit {
			notes = append(notes, t.note(i))
		}
	}
	return notes, nil
}

// Tiles implements audit.TreeReader.
func (t *Tree) Tiles(ctx context.Context, tiles []tlog.Tile) ([][]byte, error) {
	if err := errors.Join(ctx.Err(), t.fail("read")); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	contents := make([][]byte, len(tiles))
	for i, tile := range tiles {
		full := tile
		full.W = 1 << audit.TileHeight
		hashes := t.tiles[full]
		if e := t.edge[tile.L]; hashes == nil && e.N == tile.N {
			hashes = e.Hashes
		}
		if w := tile.W * tlog.HashSize; len(hashes) >= w {
			contents[i] = bytes.Clone(hashes[:w])
		}
	}
	return contents, nil
}

// Locate implements audit.TreeReader.
func (t *Tree) Locate(ctx context.Context, stream audit.StreamID, seq uint64) (audit.Span, bool, error) {
	if err := errors.Join(ctx.Err(), t.fail("read")); err != nil {
		return audit.Span{}, false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.spans {
		if s.Stream == stream && seq >= s.First && seq < s.First+uint64(s.Count) {
			return s, true, nil
		}
	}
	return audit.Span{}, false, nil
}

// Spans implements audit.TreeReader.
func (t *Tree) Spans(ctx context.Context, from int64, limit int) (spans []audit.Span, _ error) {
	if err := errors.Join(ctx.Err(), t.fail("read")); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.spans {
		if s.Index+int64(s.Count) > from && len(spans) < limit {
			spans = append(spans, s)
		}
	}
	return spans, nil
}

// Cosign implements audit.TreeReader.
func (t *Tree) Cosign(_ context.Context, size int64, line []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cosignatures[size] = append(t.cosignatures[size], bytes.Clone(line))
	return nil
}

// Keys returns the verifier keys that extensions brought.
func (t *Tree) Keys() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.keys)
}
