package audit

import (
	"crypto/sha256"
	"errors"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// frontier computes RFC 6962 roots while leaves pass by: it holds the roots of the perfect subtrees that make up the tree so
// far, largest first, so its memory is the logarithm of the tree. One goroutine at a time.
type frontier struct {
	size   int64
	hashes []tlog.Hash
}

// resume goes on from the subtree roots of a tree, if they are those of its root.
func resume(size int64, hashes []Hash, root Hash) (frontier, error) {
	f := frontier{size: size}
	for _, h := range hashes {
		f.hashes = append(f.hashes, tlog.Hash(h))
	}
	if size < 0 || bits.OnesCount64(uint64(size)) != len(hashes) || f.root() != root {
		return frontier{}, errors.New("frontier does not belong to the root")
	}
	return f, nil
}

// add appends a leaf. It calls node with every hash that stands in a tile above level 0: tile level, place in that level.
func (f *frontier) add(leaf Hash, node func(level int, n int64, h tlog.Hash)) {
	h := tlog.Hash(leaf)
	height := 0
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.hashes) - 1
		h = tlog.NodeHash(f.hashes[last], h)
		f.hashes = f.hashes[:last]
		if height++; height%TileHeight == 0 {
			node(height/TileHeight, f.size>>height, h)
		}
	}
	f.hashes = append(f.hashes, h)
	f.size++
}

// emptyRoot is the root of a tree without leaves (RFC 6962, 2.1).
func emptyRoot() Hash { return sha256.Sum256(nil) }

// root of the tree so far.
func (f *frontier) root() Hash {
	if f.size == 0 {
		return emptyRoot()
	}
	last := len(f.hashes) - 1
	if last < 0 {
		return Hash{}
	}
	h := f.hashes[last]
	for i := last - 1; i >= 0; i-- {
		h = tlog.NodeHash(f.hashes[i], h)
	}
	return Hash(h)
}

// snapshot returns the subtree roots.
func (f *frontier) snapshot() []Hash {
	hashes := make([]Hash, len(f.hashes))
	for i, h := range f.hashes {
		hashes[i] = Hash(h)
	}
	return hashes
}
