package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// growing is the tree as its sequencer has computed it: everything at its right edge, and where each stream goes on. One
// goroutine.
type growing struct {
	head    Checkpoint // what was signed and stored last; Size 0: nothing yet
	front   frontier
	edge    [][]byte // hashes of the partial tile of each level
	streams map[StreamID]streamHead
}

// streamHead is where a stream goes on.
type streamHead struct {
	next  uint64
	chain Hash
}

// clone is for an extension that may fail.
func (g *growing) clone() *growing {
	c := &growing{head: g.head, front: frontier{g.front.size, slices.Clone(g.front.hashes)}, streams: maps.Clone(g.streams)}
	for _, hashes := range g.edge {
		c.edge = append(c.edge, slices.Clone(hashes))
	}
	return c
}

// add appends a leaf and calls full with every tile that it completes.
func (g *growing) add(leaf Hash, full func(Tile)) {
	put := func(level int, n int64, h tlog.Hash) {
		for len(g.edge) <= level {
			g.edge = append(g.edge, nil)
		}
		if g.edge[level] = append(g.edge[level], h[:]...); len(g.edge[level]) == tileWidth*tlog.HashSize {
			full(Tile{tlog.Tile{H: TileHeight, L: level, N: n >> TileHeight, W: tileWidth}, g.edge[level]})
			g.edge[level] = nil
		}
	}
	put(0, g.front.size, tlog.Hash(leaf))
	g.front.add(leaf, put)
}

// partial returns the tiles at the right edge.
func (g *growing) partial() (tiles []Tile) {
	for _, t := range partialTiles(g.front.size) {
		tiles = append(tiles, Tile{t, g.edge[t.L]})
	}
	return tiles
}

// partialTiles are the tiles at the right edge of a tree, lowest first.
func partialTiles(size int64) (tiles []tlog.Tile) {
	for level := 0; size>>(level*TileHeight) > 0; level++ {
		hashes := size >> (level * TileHeight)
		if w := int(hashes % tileWidth); w > 0 {
			tiles = append(tiles, tlog.Tile{H: TileHeight, L: level, N: hashes / tileWidth, W: w})
		}
	}
	return tiles
}

// errEdge says that the tiles at the right edge do not hash to the root that was signed.
var errEdge = errors.New("audit: the edge of the tree does not hash to its root")

// restore takes up the tree of a checkpoint from the contents of partialTiles, every hash of which goes into the root.
func restore(c Checkpoint, contents [][]byte) (*growing, error) {
	g := &growing{head: c, streams: map[StreamID]streamHead{}}
	tiles := partialTiles(c.Size)
	if len(contents) != len(tiles) {
		return nil, errEdge
	}
	var roots []Hash // of perfect subtrees, largest first
	for i, t := range slices.Backward(tiles) {
		if len(contents[i]) != t.W*tlog.HashSize {
			return nil, errEdge
		}
		for len(g.edge) <= t.L {
			g.edge = append(g.edge, nil)
		}
		g.edge[t.L] = slices.Clone(contents[i])
		rest := contents[i]
		for w := t.W; w > 0; {
			n := 1 << (bits.Len(uint(w)) - 1)
			roots = append(roots, subtree(rest[:n*tlog.HashSize]))
			rest, w = rest[n*tlog.HashSize:], w-n
		}
	}
	var err error
	if g.front, err = resume(c.Size, roots, c.Root); err != nil {
		return nil, fmt.Errorf("%w: %w", errEdge, err)
	}
	return g, nil
}

// subtree is the root of hashes whose number is a power of two.
func subtree(hashes []byte) Hash {
	level := make([]tlog.Hash, len(hashes)/tlog.HashSize)
	for i := range level {
		level[i] = tlog.Hash(hashes[i*tlog.HashSize:])
	}
	for len(level) > 1 {
		for i := range len(level) / 2 {
			level[i] = tlog.NodeHash(level[2*i], level[2*i+1])
		}
		level = level[:len(level)/2]
	}
	return Hash(level[0])
}

// rebuild computes the right edge of a tree from what cannot be replaced: full tiles, and the leaves of rows.
func rebuild(ctx context.Context, storage TreeStorage, lease Lease, c Checkpoint) (*growing, error) {
	tiles := partialTiles(c.Size)
	contents := make([][]byte, len(tiles))
	for i, t := range tiles {
		var err error
		if t.L == 0 {
			contents[i], err = lastLeaves(ctx, storage, lease, t.N*tileWidth, c.Size)
		} else {
			contents[i], err = tileRoots(ctx, storage, t)
		}
		if err != nil {
			return nil, err
		}
	}
	return restore(c, contents)
}

// lastLeaves returns the leaves from one on to the end of the tree, from rows.
func lastLeaves(ctx context.Context, storage TreeStorage, lease Lease, from, size int64) ([]byte, error) {
	spans, err := storage.Spans(ctx, from, tileWidth)
	if err != nil {
		return nil, fmt.Errorf("reading batches at the edge: %w", err)
	}
	var hashes []byte
	at := from
	for _, s := range spans {
		if at >= size {
			break
		}
		leaves, err := lease.Leaves(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("reading leaves at the edge: %w", err)
		}
		skip := at - s.Index
		if skip < 0 || len(leaves) != s.Count || skip >= int64(s.Count) {
			return nil, errEdge
		}
		for _, leaf := range leaves[skip:min(int64(s.Count), size-s.Index)] {
			hashes = append(hashes, leaf[:]...)
			at++
		}
	}
	return hashes, nil
}

// tileRoots returns the hashes of a tile above level 0, each the root of a full tile below.
func tileRoots(ctx context.Context, storage TreeStorage, t tlog.Tile) ([]byte, error) {
	below := make([]tlog.Tile, t.W)
	for i := range below {
		below[i] = tlog.Tile{H: TileHeight, L: t.L - 1, N: t.N*tileWidth + int64(i), W: tileWidth}
	}
	contents, err := storage.Tiles(ctx, below)
	if err != nil {
		return nil, fmt.Errorf("reading tiles below the edge: %w", err)
	}
	var hashes []byte
	for _, b := range contents {
		if len(b) != tileWidth*tlog.HashSize {
			return nil, errEdge
		}
		h := subtree(b)
		hashes = append(hashes, h[:]...)
	}
	return hashes, nil
}

// edged reads a tree whose stored edge may be damaged, with the one that was computed.
type edged struct {
	TreeReader
	tree   *growing
	failed error // of the storage, which is not what it holds
}

// Tiles implements TreeReader.
func (e *edged) Tiles(ctx context.Context, tiles []tlog.Tile) ([][]byte, error) {
	contents, err := e.TreeReader.Tiles(ctx, tiles)
	if err != nil {
		e.failed = fmt.Errorf("reading tiles: %w", err)
		return nil, e.failed
	}
	for _, p := range e.tree.partial() {
		for i, t := range tiles {
			if t.L == p.L && t.N == p.N && t.W <= p.W {
				contents[i] = p.Hashes[:t.W*tlog.HashSize]
			}
		}
	}
	return contents, nil
}
