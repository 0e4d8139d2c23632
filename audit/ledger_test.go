package audit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ledger is a whole trail in memory, in which a test may change anything. It implements Evidence as a database does: it
// returns what is there and checks nothing.
type ledger struct {
	signer note.Signer
	vkey   string

	rows        map[StreamID][]Row
	spans       []Span
	unsequenced []Span
	strays      []Stray
	hashes      []tlog.Hash // stored hashes in tlog's order
	size        int64
	checkpoints [][]byte
	prunings    [][]byte
	keys        []string
	tiles       map[string][]byte // instead of what hashes says; nil content: missing
	reads       int               // calls of Rows
}

const testOrigin = "example.com/audit"

func newLedger(t testing.TB) *ledger {
	t.Helper()
	l := &ledger{rows: map[StreamID][]Row{}, tiles: map[string][]byte{}}
	l.signer, _, l.vkey = logKey(t, testOrigin)
	l.keys = []string{l.vkey}
	return l
}

// testStart is the part time of every stream's first record; each further one is a second later.
var testStart = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// record appends rows to a stream and returns them as a batch that is stored and not in the tree.
func (l *ledger) record(t testing.TB, stream StreamID, events ...*Event) Span {
	t.Helper()
	rows := l.rows[stream]
	s := Span{Index: -1, Stream: stream, First: uint64(len(rows)), Count: len(events)}
	for _, r := range rows {
		s.Prev = link(s.Prev, r.Leaf)
	}
	s.Chain = s.Prev
	for i, e := range events {
		r := Row{Seq: s.First + uint64(i), PartTime: testStart.Add(time.Duration(s.First+uint64(i)) * time.Second)}
		if _, err := rand.Read(r.Salt[:]); err != nil {
			t.Fatal(err)
		}
		if e.ID == (ID{}) {
			copy(e.ID[:], stream[:8])
			binary.BigEndian.PutUint64(e.ID[8:], r.Seq+1)
		}
		if e.Recorded.IsZero() {
			e.Recorded = r.PartTime
		}
		var err error
		if r.Body, err = Encode(e); err != nil {
			t.Fatal(err)
		}
		r.Leaf = leafOf(stream, r.Seq, &r.Salt, r.Body)
		s.Chain = link(s.Chain, r.Leaf)
		rows = append(rows, r)
	}
	s.FirstPart, s.LastPart = rows[s.First].PartTime, rows[len(rows)-1].PartTime
	l.rows[stream] = rows
	l.unsequenced = append(l.unsequenced, s)
	return s
}

// sequence puts everything that waits into the tree and signs a checkpoint.
func (l *ledger) sequence(t testing.TB) Checkpoint {
	t.Helper()
	for _, s := range l.unsequenced {
		s.Index = l.size
		for _, r := range l.rows[s.Stream][s.First : s.First+uint64(s.Count)] {
			h, err := tlog.StoredHashesForRecordHash(l.size, tlog.Hash(r.Leaf), l.reader())
			if err != nil {
				t.Fatal(err)
			}
			l.hashes = append(l.hashes, h...)
			l.size++
		}
		l.spans = append(l.spans, s)
	}
	l.unsequenced = nil
	return l.sign(t, l.size)
}

// sign makes a checkpoint of the tree as it is.
func (l *ledger) sign(t testing.TB, size int64) Checkpoint {
	t.Helper()
	c := l.at(t, size)
	msg, err := c.Sign(l.signer)
	if err != nil {
		t.Fatal(err)
	}
	l.checkpoints = append(l.checkpoints, msg)
	return c
}

// at is the tree of a size.
func (l *ledger) at(t testing.TB, size int64) Checkpoint {
	t.Helper()
	root := Hash(tlog.Hash((&frontier{}).root()))
	if size > 0 {
		h, err := tlog.TreeHash(size, l.reader())
		if err != nil {
			t.Fatal(err)
		}
		root = Hash(h)
	}
	return Checkpoint{Origin: testOrigin, Size: size, Root: root}
}

func (l *ledger) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, n := range indexes {
			if n >= int64(len(l.hashes)) {
				return nil, fs.ErrNotExist
			}
			hashes[i] = l.hashes[n]
		}
		return hashes, nil
	})
}

// fill makes streams with batches of the sizes given, in turn, each in the tree with a checkpoint of its own.
func (l *ledger) fill(t testing.TB, streams int, batches ...int) {
	t.Helper()
	for i, n := range batches {
		stream := StreamID{byte(1 + i%streams)}
		var events []*Event
		for range n {
			events = append(events, testEvent(len(events)))
		}
		l.record(t, stream, events...)
		l.sequence(t)
	}
}

func testEvent(n int) *Event {
	return &Event{
		Type: TypeREST, Interaction: "read", Action: ActionRead, Outcome: Success, Agent: Agent{User: fmt.Sprintf("user-%d", n), Roles: []string{"clinician"}},
		Patient: fmt.Sprintf("patient-%d", n), Entities: []Entity{{Type: "Observation", ID: "o1", Version: 3}}, Classes: []string{"clinical"},
	}
}

func (l *ledger) Checkpoint(context.Context) ([]byte, error) {
	if len(l.checkpoints) == 0 {
		return nil, nil
	}
	return l.checkpoints[len(l.checkpoints)-1], nil
}

func (l *ledger) Checkpoints(_ context.Context, after int64, limit int) ([][]byte, error) {
	var list [][]byte
	for _, msg := range l.checkpoints {
		if c, err := claimed(msg); len(list) < limit && (err != nil || c.Size > after) {
			list = append(list, msg)
		}
	}
	return list, nil
}

func (l *ledger) Tiles(_ context.Context, tiles []tlog.Tile) ([][]byte, error) {
	var list [][]byte
	for _, t := range tiles {
		full := t
		full.W = 1 << t.H
		data, changed := l.tiles[tilePath(full)]
		if changed && len(data) >= t.W*tlog.HashSize {
			data = data[:t.W*tlog.HashSize]
		}
		if !changed {
			var err error
			if data, err = tlog.ReadTileData(t, l.reader()); err != nil {
				return nil, err
			}
		}
		list = append(list, data)
	}
	return list, nil
}

func (l *ledger) Locate(_ context.Context, stream StreamID, seq uint64) (Span, bool, error) {
	for _, s := range l.spans {
		if s.Stream == stream && seq >= s.First && seq < s.First+uint64(s.Count) {
			return s, true, nil
		}
	}
	return Span{}, false, nil
}

func (l *ledger) Spans(_ context.Context, from int64, limit int) ([]Span, error) {
	var list []Span
	for _, s := range l.spans {
		if s.Index+int64(s.Count) > from && len(list) < limit {
			list = append(list, s)
		}
	}
	return list, nil
}

func (l *ledger) Cosign(_ context.Context, size int64, line []byte) error {
	for i, msg := range l.checkpoints {
		if c, err := claimed(msg); err == nil && c.Size == size {
			l.checkpoints[i] = slices.Concat(msg, line)
			return nil
		}
	}
	return fs.ErrNotExist
}

func (l *ledger) Rows(_ context.Context, s Span) ([]Row, error) {
	l.reads++
	rows := l.rows[s.Stream]
	at, _ := slices.BinarySearchFunc(rows, s.First, func(r Row, seq uint64) int { return int(min(max(int64(r.Seq)-int64(seq), -1), 1)) })
	var list []Row
	for _, r := range rows[at:] {
		if r.Seq >= s.First+uint64(s.Count) {
			break
		}
		r.Body = bytes.Clone(r.Body)
		list = append(list, r)
	}
	return list, nil
}

func (l *ledger) Unsequenced(context.Context, int) ([]Span, error) { return l.unsequenced, nil }
func (l *ledger) Strays(context.Context, int) ([]Stray, error)     { return l.strays, nil }
func (l *ledger) Prunings(context.Context) ([][]byte, error)       { return l.prunings, nil }
func (l *ledger) Keys(context.Context) ([]string, error)           { return l.keys, nil }

// verify verifies with the ledger's key unless options name others.
func (l *ledger) verify(t testing.TB, o VerifyOptions) *Report {
	t.Helper()
	if o.Keys == nil {
		o.Keys = []string{l.vkey}
	}
	r, err := Verify(t.Context(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// clean fails the test unless nothing is wrong.
func (l *ledger) clean(t testing.TB, o VerifyOptions) *Report {
	t.Helper()
	r := l.verify(t, o)
	for _, f := range r.Findings {
		t.Errorf("finding: %v", f)
	}
	return r
}
