package rest_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// tree is the Merkle tree of a trail in memory, with a real key, sequenced when a test says so.
type tree struct {
	trail    *audittest.Storage
	signer   note.Signer
	verifier string

	mu     sync.Mutex
	rows   map[audit.StreamID][]audit.Row // sequenced
	spans  []audit.Span
	size   int64
	hashes []tlog.Hash
	notes  [][]byte
}

func newTree(t testing.TB, trail *audittest.Storage) *tree {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, "test.log")
	check(t, err)
	signer, err := note.NewSigner(skey)
	check(t, err)
	return &tree{trail: trail, signer: signer, verifier: vkey, rows: make(map[audit.StreamID][]audit.Row)}
}

// ReadHashes implements tlog.HashReader.
func (r *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var list []tlog.Hash
	for _, i := range indexes {
		if i >= int64(len(r.hashes)) {
			return nil, errors.New("no such hash")
		}
		list = append(list, r.hashes[i])
	}
	return list, nil
}

// grow puts everything that is stored into the tree and signs it.
func (r *tree) grow(t testing.TB) int64 {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.trail.Rows() {
		have := r.rows[s.Stream]
		if s.Seq < uint64(len(have)) {
			continue
		}
		if n := len(r.spans); n > 0 && r.spans[n-1].Stream == s.Stream && r.spans[n-1].Count < 300 && r.spans[n-1].Index >= r.signed() {
			r.spans[n-1].Count++
		} else {
			r.spans = append(r.spans, audit.Span{Index: r.size, Stream: s.Stream, First: s.Seq, Count: 1})
		}
		r.rows[s.Stream] = append(have, s.Row)
		stored, err := tlog.StoredHashesForRecordHash(r.size, tlog.Hash(s.Leaf), r)
		check(t, err)
		r.hashes = append(r.hashes, stored...)
		r.size++
	}
	root, err := tlog.TreeHash(r.size, r)
	check(t, err)
	signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("test.log\n%d\n%s\n", r.size, root)}, r.signer)
	check(t, err)
	r.notes = append(r.notes, signed)
	return r.size
}

// signed is the size of the newest checkpoint.
func (r *tree) signed() int64 {
	if len(r.notes) == 0 {
		return 0
	}
	var size int64
	if _, err := fmt.Sscanf(string(r.notes[len(r.notes)-1]), "test.log\n%d\n", &size); err != nil {
		return 0
	}
	return size
}

func (r *tree) Checkpoint(context.Context) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.notes) == 0 {
		return nil, nil
	}
	return r.notes[len(r.notes)-1], nil
}

func (r *tree) Checkpoints(_ context.Context, after int64, limit int) ([][]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list [][]byte
	for _, n := range r.notes {
		var size int64
		if _, err := fmt.Sscanf(string(n), "test.log\n%d\n", &size); err == nil && size > after && len(list) < limit {
			list = append(list, n)
		}
	}
	return list, nil
}

func (r *tree) Tiles(_ context.Context, tiles []tlog.Tile) ([][]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list [][]byte
	for _, t := range tiles {
		b, err := tlog.ReadTileData(t, r)
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

func (r *tree) Locate(_ context.Context, stream audit.StreamID, seq uint64) (audit.Span, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.spans {
		if s.Stream == stream && seq >= s.First && seq < s.First+uint64(s.Count) {
			return s, true, nil
		}
	}
	return audit.Span{}, false, nil
}

func (r *tree) Spans(_ context.Context, from int64, limit int) ([]audit.Span, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []audit.Span
	for _, s := range r.spans {
		if s.Index+int64(s.Count) > from && len(list) < limit {
			list = append(list, s)
		}
	}
	return list, nil
}

func (r *tree) Rows(_ context.Context, s audit.Span) ([]audit.Row, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.rows[s.Stream][s.First : s.First+uint64(s.Count)]), nil
}

func (r *tree) Cosign(context.Context, int64, []byte) error { return errors.New("no witness") }
