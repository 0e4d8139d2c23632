package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"sort"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// chunk is one span on its way from the storage through a worker to the pass.
type chunk struct {
	span    Span
	rows    []Row
	sampled bool   // rows were read
	tile    []byte // leaves of the span as the tiles have them; nil when one of those tiles is not there
	done    chan struct{}

	leaves   []Hash    // of rows, computed
	outlines []outline // of rows
	readable []bool    // rows that are events
}

// tree passes over all spans up to the newest checkpoint.
func (v *verification) tree(ctx context.Context) error {
	size := v.report.Checkpoint.Size
	v.signed = &checkpointCursor{v: v, after: v.front.size}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	chunks, failed := v.readAhead(ctx, &wg, size)
	shown := time.Now()
	for c := range chunks {
		<-c.done
		if err := v.span(ctx, c); err != nil {
			return err
		}
		if v.o.Progress != nil && time.Since(shown) > 100*time.Millisecond {
			v.o.Progress(v.front.size, size)
			shown = time.Now()
		}
	}
	if err := <-failed; err != nil {
		return err
	}
	switch {
	case v.front.size < size:
		v.findf(KindSpan, v.front.size, "the list of batches ends at leaf %d of %d", v.front.size, size)
	case v.front.root() != v.report.Checkpoint.Root && !v.wrong:
		// Also where the list of checkpoints lacks the newest.
		v.findf(KindRoot, v.good, "the leaves do not hash to the root of the newest checkpoint, of size %d", size)
	}
	if v.o.Progress != nil {
		v.o.Progress(size, size)
	}
	for level, t := range v.tiles {
		if err := v.closeTile(ctx, level, t); err != nil {
			return err
		}
	}
	return nil
}

// readAhead reads spans, rows and leaves in the order of the tree and has workers hash them. The error comes after the last
// chunk.
func (v *verification) readAhead(ctx context.Context, wg *sync.WaitGroup, size int64) (<-chan *chunk, <-chan error) {
	workers := min(max(runtime.GOMAXPROCS(0)-1, 1), 8)
	chunks, work, failed := make(chan *chunk, 2*workers), make(chan *chunk, 2*workers), make(chan error, 1)
	for range workers {
		wg.Go(func() {
			for c := range work {
				c.hash()
				close(c.done)
			}
		})
	}
	wg.Go(func() {
		defer close(chunks)
		defer close(work)
		failed <- v.readSpans(ctx, size, func(c *chunk) bool {
			for _, to := range []chan *chunk{work, chunks} {
				select {
				case to <- c:
				case <-ctx.Done():
					return false
				}
			}
			return true
		})
	})
	return chunks, failed
}

// readSpans hands out a chunk for each span that continues the tree, and one for the first that does not.
func (v *verification) readSpans(ctx context.Context, size int64, yield func(*chunk) bool) error {
	leaves := leafTiles{e: v.e, size: size}
	for next := v.front.size; next < size; {
		spans, err := v.e.Spans(ctx, next, spanPage)
		if err != nil {
			return fmt.Errorf("reading batches from leaf %d: %w", next, err)
		}
		if len(spans) == 0 {
			return nil
		}
		for len(spans) > 0 {
			n := fitting(spans, next, size)
			if n == 0 {
				c := &chunk{span: spans[0], done: make(chan struct{})}
				yield(c)
				return ctx.Err()
			}
			chunks, err := v.readRows(ctx, spans[:n])
			if err != nil {
				return fmt.Errorf("reading rows from leaf %d: %w", next, err)
			}
			for _, c := range chunks {
				if c.tile, err = leaves.read(ctx, c.span.Index, c.span.Count); err != nil {
					return fmt.Errorf("reading tiles from leaf %d: %w", c.span.Index, err)
				}
				if !yield(c) {
					return ctx.Err()
				}
				next += int64(c.span.Count)
			}
			if spans = spans[n:]; next >= size {
				return nil
			}
		}
	}
	return nil
}

// fitting returns how many spans, from the first on, continue the tree and one stream, so that one query reads their rows: a
// quiet deployment has a batch for every heartbeat.
func fitting(spans []Span, next, size int64) int {
	count := int64(0)
	for i, s := range spans {
		if s.Index != next+count || s.Count <= 0 || s.Count > MaxSpan || s.Index+int64(s.Count) > size {
			return i
		}
		if i > 0 && (s.Stream != spans[0].Stream || s.First != spans[0].First+uint64(count) || count+int64(s.Count) > rowsTogether) {
			return i
		}
		count += int64(s.Count)
	}
	return len(spans)
}

// readRows makes a chunk of each span, with its rows if it is in the sample.
func (v *verification) readRows(ctx context.Context, spans []Span) ([]*chunk, error) {
	chunks := make([]*chunk, len(spans))
	all := Span{Index: spans[0].Index, Stream: spans[0].Stream, First: spans[0].First, FirstPart: spans[0].FirstPart, LastPart: spans[0].LastPart}
	wanted := false
	for i, s := range spans {
		all.Count += s.Count
		in := v.o.Sample <= 0 || v.o.Sample >= 1 || rand.Float64() < v.o.Sample //nolint:gosec // the runtime's generator is seeded, and nobody sees what it gives
		chunks[i] = &chunk{span: s, done: make(chan struct{}), sampled: in}
		wanted = wanted || in
		if s.FirstPart.Before(all.FirstPart) {
			all.FirstPart = s.FirstPart
		}
		if s.LastPart.IsZero() || s.LastPart.After(all.LastPart) && !all.LastPart.IsZero() {
			all.LastPart = s.LastPart
		}
	}
	if !wanted {
		return chunks, nil
	}
	rows, err := v.e.Rows(ctx, all)
	if err != nil {
		return nil, err
	}
	for i, c := range chunks {
		from := 0
		if i > 0 {
			from = sort.Search(len(rows), func(k int) bool { return rows[k].Seq >= c.span.First })
		}
		to := len(rows)
		if i < len(chunks)-1 {
			to = sort.Search(len(rows), func(k int) bool { return rows[k].Seq >= c.span.First+uint64(c.span.Count) })
		}
		if c.sampled && from < to {
			c.rows = rows[from:to]
		}
	}
	return chunks, nil
}

// leafTiles reads the leaves of a tree from its tiles, forwards.
type leafTiles struct {
	e    TreeReader
	size int64
	n    int64 // tile in hand
	data []byte
	have bool
}

const tileWidth = 1 << TileHeight

// read returns the hashes of leaves, or nil when a tile of theirs is missing.
func (l *leafTiles) read(ctx context.Context, index int64, count int) ([]byte, error) {
	hashes := make([]byte, 0, count*tlog.HashSize)
	missing := false
	for end := index + int64(count); index < end; {
		n := index / tileWidth
		if !l.have || l.n != n {
			data, err := readTile(ctx, l.e, tlog.Tile{H: TileHeight, L: 0, N: n, W: int(min(tileWidth, l.size-n*tileWidth))})
			if err != nil {
				return nil, err
			}
			l.n, l.data, l.have = n, data, true
		}
		to := min(end-n*tileWidth, tileWidth)
		if l.data == nil {
			missing = true
		} else {
			hashes = append(hashes, l.data[(index-n*tileWidth)*tlog.HashSize:to*tlog.HashSize]...)
		}
		index = n*tileWidth + to
	}
	if missing {
		return nil, nil
	}
	return hashes, nil
}

// readTile returns nil for a tile that is not there or has the wrong length.
func readTile(ctx context.Context, e TreeReader, t tlog.Tile) ([]byte, error) {
	contents, err := e.Tiles(ctx, []tlog.Tile{t})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(contents) != 1 || len(contents[0]) != t.W*tlog.HashSize {
		return nil, nil
	}
	return contents[0], nil
}

// hash does what needs no order: leaves and outlines of the rows.
func (c *chunk) hash() {
	n := min(len(c.rows), 2*c.span.Count+16)
	c.leaves, c.outlines, c.readable = make([]Hash, n), make([]outline, n), make([]bool, n)
	for i := range n {
		r := &c.rows[i]
		if len(r.Body) < headLen || len(r.Body) > MaxBody {
			continue
		}
		c.leaves[i] = leafOf(c.span.Stream, r.Seq, &r.Salt, r.Body)
		c.outlines[i], c.readable[i] = outlineOf(r.Body)
	}
}

// tileLeaf returns leaf i of the span as the tiles have it.
func (c *chunk) tileLeaf(i int) (h Hash, ok bool) {
	if c.tile == nil {
		return h, false
	}
	return Hash(c.tile[i*tlog.HashSize : (i+1)*tlog.HashSize]), true
}

// perSpan gathers findings of one batch, one a kind and column.
type perSpan struct {
	v    *verification
	span *Span
	at   map[[2]string]int // index in list
	list []Finding
}

func (p *perSpan) add(kind Kind, seq uint64, column, detail string) {
	key := [2]string{string(kind), column}
	if i, ok := p.at[key]; ok {
		p.list[i].Count++
		return
	}
	if p.at == nil {
		p.at = map[[2]string]int{}
	}
	index := int64(-1)
	if p.span.Index >= 0 {
		index = p.span.Index + int64(seq-p.span.First)
	}
	p.at[key] = len(p.list)
	p.list = append(p.list, Finding{Kind: kind, Index: index, Stream: p.span.Stream, Seq: seq, Count: 1, Column: column, Detail: detail})
}

func (p *perSpan) flush() {
	for _, f := range p.list {
		if f.Count == 1 {
			f.Count = 0
		}
		p.v.find(f)
	}
}

// span checks one batch in the tree.
func (v *verification) span(ctx context.Context, c *chunk) error {
	s := &c.span
	if s.Index != v.front.size || s.Count <= 0 || s.Count > MaxSpan || s.Index+int64(s.Count) > v.report.Checkpoint.Size {
		v.find(Finding{Kind: KindSpan, Index: v.front.size, Stream: s.Stream, Seq: s.First,
			Detail: fmt.Sprintf("a batch of %d leaves is said to stand at leaf %d, where the tree goes on at %d", s.Count, s.Index, v.front.size)})
		return nil
	}
	v.report.Spans++
	p := &perSpan{v: v, span: s}
	defer p.flush()
	v.continues(p)
	leaves, err := v.leaves(ctx, c, p)
	if err != nil {
		return err
	}
	chain := s.Prev
	for i := range leaves {
		v.pruningChain(p, s.First+uint64(i), chain)
		chain = link(chain, leaves[i])
	}
	v.pruningChain(p, s.First+uint64(s.Count), chain)
	switch {
	case chain != s.Chain:
		p.add(KindChain, s.First, "", "the batch does not hash to the chain that was stored with it")
	case s.Disputed:
		p.add(KindSpan, s.First, "", "the batch, as it was stored, is gone or is not what the tree has of it")
	}
	v.advance(s)
	for _, leaf := range leaves {
		v.front.add(leaf, func(level int, n int64, h tlog.Hash) { v.node(ctx, level, n, h) })
		if err := v.rootsUpTo(ctx, v.front.size); err != nil {
			return err
		}
	}
	return nil
}

// continues checks that a batch goes on where its stream stands.
func (v *verification) continues(p *perSpan) {
	s := p.span
	at := v.streams[s.Stream]
	switch {
	case at == nil && (s.First != 0 || s.Prev != Hash{}):
		p.add(KindGap, 0, "", fmt.Sprintf("the stream starts with record %d", s.First))
	case at == nil:
	case s.First > at.Next:
		p.add(KindGap, at.Next, "", fmt.Sprintf("records %d to %d of the stream are in no batch", at.Next, s.First-1))
	case s.First < at.Next:
		p.add(KindSpan, s.First, "", "records of the stream stand in two batches")
	case s.Prev != at.Chain:
		p.add(KindChain, s.First, "", "the batch does not continue the chain of its stream")
	}
}

// advance moves the stream to the end of a batch.
func (v *verification) advance(s *Span) {
	at := v.stream(s.Stream)
	at.Next, at.Chain = s.First+uint64(s.Count), s.Chain
	at.Last = later(at.Last, s.LastPart.UTC())
	v.newest = later(v.newest, at.Last)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pruningChain holds the chain before a record against the pruned ranges that begin or end there.
func (v *verification) pruningChain(p *perSpan, seq uint64, chain Hash) {
	if len(v.pruned) == 0 {
		return
	}
	if r, ok := v.prunedRange(p.span.Stream, seq); ok && r.First == seq && r.Prev != chain {
		p.add(KindPruning, seq, "", "the pruning record has another history before the record")
	}
	if seq == 0 {
		return
	}
	if r, ok := v.prunedRange(p.span.Stream, seq-1); ok && r.First+r.Count == seq && r.Chain != chain {
		p.add(KindPruning, seq-1, "", "the pruning record has another history after the record")
	}
}

// leaves checks the rows of a batch and returns the leaves that the tree is taken to have.
func (v *verification) leaves(ctx context.Context, c *chunk, p *perSpan) ([]Hash, error) {
	s := &c.span
	leaves := make([]Hash, s.Count)
	from := make([]int, s.Count) // row of each record; -1 when there is none
	for i := range from {
		from[i] = -1
	}
	for i := range c.leaves {
		r := &c.rows[i]
		at := r.Seq - s.First
		if r.Seq < s.First || at >= uint64(s.Count) || from[at] >= 0 {
			p.add(KindExtra, r.Seq, "", "a row stands where none was recorded")
			continue
		}
		from[at] = i
	}
	if c.tile == nil {
		p.add(KindTile, s.First, "", "a tile over these leaves is missing or has the wrong length")
	}
	if c.sampled && v.rereads < maxRereads && slices.Contains(from, -1) && !v.covered(s, from) {
		v.rereads++ // a partition may have been dropped since the pruning records were read
		if err := v.readPrunings(ctx); err != nil {
			return nil, err
		}
	}
	at := v.stream(s.Stream)
	at.Stopped, at.Unseen = false, from[s.Count-1] < 0
	fromRows, differ := s.Prev, false
	for i := range leaves {
		seq := s.First + uint64(i)
		tile, tiled := c.tileLeaf(i)
		if from[i] < 0 {
			leaves[i] = tile
			fromRows = link(fromRows, tile)
			switch _, pruned := v.prunedRange(s.Stream, seq); {
			case !c.sampled:
				v.report.Unsampled++
			case pruned:
				v.report.Pruned++
			default:
				p.add(KindMissing, seq, "", "the row is gone and no pruning record covers it")
			}
			continue
		}
		v.report.Rows++
		leaves[i] = c.leaves[from[i]]
		fromRows = link(fromRows, leaves[i])
		differ = differ || tiled && tile != leaves[i]
	}
	// Where rows and tiles disagree, the chain, which was stored before either was in the tree, tells who is right.
	rowsRight := fromRows == s.Chain
	var last time.Time
	for i, n := range from {
		if n < 0 {
			continue
		}
		r, seq := &c.rows[n], s.First+uint64(i)
		if tile, tiled := c.tileLeaf(i); differ && tiled && tile != leaves[i] {
			if rowsRight && s.Index >= 0 {
				p.add(KindTile, seq, "", "the tile has another leaf than row and chain")
			} else if !rowsRight {
				v.altered(c, p, r, seq, leaves[i], tile)
				leaves[i] = tile
				continue // its columns and content are somebody else's
			}
		}
		if r.Leaf != leaves[i] && v.bundle == nil { // a bundle keeps none
			p.add(KindLeaf, seq, "leaf", "the stored leaf is not what the row hashes to")
		}
		for _, column := range r.Altered {
			detail := "the column is not what the bytes of the row say"
			if column == "quarantine" {
				detail = "the row was put aside, where no search finds it, and the table would have taken it"
			}
			p.add(KindColumn, seq, column, detail)
		}
		outside := !s.FirstPart.IsZero() && r.PartTime.Before(s.FirstPart) || !s.LastPart.IsZero() && r.PartTime.After(s.LastPart)
		if outside || r.PartTime.Before(last) {
			p.add(KindColumn, seq, "part_ts", "the row lies outside the time of its batch, or out of order")
		}
		last = later(last, r.PartTime)
		if !c.readable[n] {
			p.add(KindBody, seq, "", "the bytes of the row are no event")
			continue
		}
		v.follow(&c.outlines[n], s, seq, r)
		at.Stopped = c.outlines[n].stopped
	}
	return leaves, nil
}

// covered reports whether pruning records cover every record that has no row.
func (v *verification) covered(s *Span, from []int) bool {
	for i, n := range from {
		if _, ok := v.prunedRange(s.Stream, s.First+uint64(i)); n < 0 && !ok {
			return false
		}
	}
	return true
}

// altered says what became of a row that does not hash to the leaf in the tree.
func (v *verification) altered(c *chunk, p *perSpan, r *Row, seq uint64, computed, tile Hash) {
	for i := range c.span.Count {
		other, _ := c.tileLeaf(i)
		if other == r.Leaf && other != tile && len(r.Body) >= headLen && len(r.Body) <= MaxBody &&
			leafOf(c.span.Stream, c.span.First+uint64(i), &r.Salt, r.Body) == other {
			p.add(KindOrder, seq, "", fmt.Sprintf("record %d stands here", c.span.First+uint64(i)))
			return
		}
	}
	switch {
	case r.Leaf == tile, v.bundle != nil:
		p.add(KindBody, seq, "", "salt or bytes of the row are not what was recorded")
	case r.Leaf == computed:
		p.add(KindLeaf, seq, "", "another row was put here, with a leaf that fits it; the tree has another")
	default:
		p.add(KindBody, seq, "", "neither the bytes of the row nor its stored leaf are what was recorded")
	}
}

// follow keeps account of intents.
func (v *verification) follow(o *outline, s *Span, seq uint64, r *Row) {
	switch {
	case o.intent:
		if _, ok := v.intents[o.correlation]; !ok {
			v.intents[o.correlation] = OpenIntent{Correlation: o.correlation, Event: o.id, Stream: s.Stream, Seq: seq, At: r.PartTime.UTC()}
		}
	case o.outcome:
		delete(v.intents, o.correlation)
	}
}

// stream returns the account of a stream, which begins with its first batch.
func (v *verification) stream(id StreamID) *StreamState {
	at := v.streams[id]
	if at == nil {
		at = &StreamState{Stream: id}
		v.streams[id] = at
	}
	return at
}

// tileCheck holds the hashes that a tile above level 0 should have.
type tileCheck struct {
	n     int64
	first int // place in the tile of hashes[0]: what is before it was taken over
	want  []byte
	err   error
}

// node takes a hash that stands in a tile above level 0.
func (v *verification) node(ctx context.Context, level int, n int64, h tlog.Hash) {
	t := v.tiles[level]
	if t == nil {
		t = &tileCheck{n: n / tileWidth, first: int(n % tileWidth)}
		v.tiles[level] = t
	}
	t.want = append(t.want, h[:]...)
	if t.first+len(t.want)/tlog.HashSize == tileWidth {
		if err := v.closeTile(ctx, level, t); err != nil && t.err == nil {
			t.err = err
		}
		t.n, t.first, t.want = t.n+1, 0, t.want[:0]
	}
}

// closeTile compares a tile with what it should hold.
func (v *verification) closeTile(ctx context.Context, level int, t *tileCheck) error {
	if t.err != nil || len(t.want) == 0 {
		return t.err
	}
	tile := tlog.Tile{H: TileHeight, L: level, N: t.n, W: t.first + len(t.want)/tlog.HashSize}
	data, err := readTile(ctx, v.e, tile)
	if err != nil {
		return fmt.Errorf("reading tile %s: %w", tilePath(tile), err)
	}
	index := (t.n*tileWidth + int64(t.first)) << (level * TileHeight)
	switch {
	case data == nil:
		v.findf(KindTile, index, "%s is missing or has the wrong length", tilePath(tile))
	case !bytes.Equal(data[t.first*tlog.HashSize:], t.want):
		v.findf(KindTile, index, "%s has other hashes than the leaves below it", tilePath(tile))
	}
	return nil
}
