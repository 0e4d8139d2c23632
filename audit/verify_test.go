package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// TestVerifyClean has nothing to find in trails of many shapes, whole, in steps, and sampled.
func TestVerifyClean(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLedger(t)
		streams := rapid.IntRange(1, 3).Draw(rt, "streams")
		var from *Verified
		for range rapid.IntRange(0, 8).Draw(rt, "checkpoints") {
			for range rapid.IntRange(1, 3).Draw(rt, "batches") {
				var events []*Event
				for range rapid.IntRange(1, 300).Draw(rt, "rows") {
					events = append(events, testEvent(len(events)))
				}
				l.record(t, StreamID{byte(rapid.IntRange(1, streams).Draw(rt, "stream"))}, events...)
			}
			l.sequence(t)
			if rapid.Bool().Draw(rt, "look") {
				r := l.clean(t, VerifyOptions{From: from})
				if from = r.Verified; from == nil || from.Size != l.size {
					t.Fatalf("verified %+v of %d", from, l.size)
				}
				// The state is kept as JSON.
				b, err := json.Marshal(from)
				if err != nil {
					t.Fatal(err)
				}
				from = new(Verified)
				if err := json.Unmarshal(b, from); err != nil {
					t.Fatal(err)
				}
			}
		}
		if rapid.Bool().Draw(rt, "tail") {
			l.record(t, StreamID{1}, testEvent(1), testEvent(2))
		}
		r := l.clean(t, VerifyOptions{From: from})
		whole := l.clean(t, VerifyOptions{})
		if whole.Rows != l.size+whole.Unsequenced || r.Checkpoint != whole.Checkpoint || fmt.Sprint(r.Streams) != fmt.Sprint(whole.Streams) {
			t.Errorf("in steps %+v, whole %+v", r, whole)
		}
		sampled := l.clean(t, VerifyOptions{Sample: 0.5})
		if sampled.Rows+sampled.Unsampled != whole.Rows {
			t.Errorf("sampled %d and %d of %d", sampled.Rows, sampled.Unsampled, whole.Rows)
		}
	})
}

// attack is a change to a trail of three streams, 12 batches of 100 rows, and what verification must say of it.
type attack struct {
	name   string
	change func(t *testing.T, l *ledger)
	kind   Kind
	index  int64 // -2: not checked
	stream StreamID
	seq    uint64
	column string
}

// attacks are those that need no view from outside.
func attacks() []attack {
	s2 := StreamID{2} // batches at leaves 100, 400, 700, 1000: records 0, 100, 200, 300
	return []attack{
		{"edit a body", func(_ *testing.T, l *ledger) { l.rows[s2][150].Body[40] ^= 1 }, KindBody, 450, s2, 150, ""},
		{"edit a salt", func(_ *testing.T, l *ledger) { l.rows[s2][150].Salt[0] ^= 1 }, KindBody, 450, s2, 150, ""},
		{"empty a body", func(_ *testing.T, l *ledger) { l.rows[s2][150].Body = nil }, KindBody, 450, s2, 150, ""},
		{"edit a leaf", func(_ *testing.T, l *ledger) { l.rows[s2][150].Leaf[0] ^= 1 }, KindLeaf, 450, s2, 150, "leaf"},
		{"edit body and leaf", func(_ *testing.T, l *ledger) {
			r := &l.rows[s2][150]
			r.Body[40] ^= 1
			r.Leaf = leafOf(s2, r.Seq, &r.Salt, r.Body)
		}, KindLeaf, 450, s2, 150, ""},
		{"edit a column", func(_ *testing.T, l *ledger) { l.rows[s2][150].Altered = []string{"patient"} }, KindColumn, 450, s2, 150, "patient"},
		{"edit a part time", func(_ *testing.T, l *ledger) { l.rows[s2][150].PartTime = testStart.AddDate(-1, 0, 0) }, KindColumn, 450, s2, 150, "part_ts"},
		{"delete a row", func(_ *testing.T, l *ledger) { l.rows[s2] = slices.Delete(l.rows[s2], 150, 151) }, KindMissing, 450, s2, 150, ""},
		{"delete a batch's rows", func(_ *testing.T, l *ledger) { l.rows[s2] = slices.Delete(l.rows[s2], 100, 200) }, KindMissing, 400, s2, 100, ""},
		{"delete the tail's rows", func(_ *testing.T, l *ledger) { l.rows[s2] = l.rows[s2][:390] }, KindMissing, 1090, s2, 390, ""},
		{"double a row", func(_ *testing.T, l *ledger) { l.rows[s2] = slices.Insert(l.rows[s2], 150, l.rows[s2][150]) }, KindExtra, 450, s2, 150, ""},
		{"swap two rows", func(_ *testing.T, l *ledger) {
			r := l.rows[s2]
			r[150], r[160] = r[160], r[150]
			r[150].Seq, r[160].Seq = 150, 160
			r[150].PartTime, r[160].PartTime = r[160].PartTime, r[150].PartTime
		}, KindOrder, 450, s2, 150, ""},
		{"a row without a batch", func(_ *testing.T, l *ledger) { l.strays = []Stray{{Stream: s2, Seq: 999, PartTime: testStart}} }, KindStray, -1, s2, 999, ""},
		{"edit a tile", func(t *testing.T, l *ledger) { l.editTile(t, tlog.Tile{H: 8, L: 0, N: 1, W: 256}, 450-256) }, KindTile, 450, s2, 150, ""},
		{"edit a tile above", func(t *testing.T, l *ledger) { l.editTile(t, tlog.Tile{H: 8, L: 1, N: 0, W: 4}, 2) }, KindTile, 0, StreamID{}, 0, ""},
		{"drop a tile", func(_ *testing.T, l *ledger) { l.tiles["tile/0/001"] = nil }, KindTile, -2, StreamID{}, 0, ""},
		{"drop a batch from the tree", func(_ *testing.T, l *ledger) { l.spans = slices.Delete(l.spans, 4, 5) }, KindSpan, 400, StreamID{3}, 100, ""},
		{"drop the last batch from the tree", func(_ *testing.T, l *ledger) { l.spans = l.spans[:11] }, KindSpan, 1100, StreamID{}, 0, ""},
		{"edit a chain", func(_ *testing.T, l *ledger) { l.spans[4].Chain[0] ^= 1 }, KindChain, 400, s2, 100, ""},
		{"edit a batch's begin", func(_ *testing.T, l *ledger) { l.spans[4].First++ }, KindGap, -2, s2, 100, ""},
		{"edit a root", func(t *testing.T, l *ledger) {
			c, err := claimed(l.checkpoints[4])
			if err != nil {
				t.Fatal(err)
			}
			c.Root[0] ^= 1
			l.checkpoints[4] = append([]byte(c.Text()), l.checkpoints[4][len(c.Text()):]...)
		}, KindSignature, 500, StreamID{}, 0, ""},
		{"sign another root with the key", func(t *testing.T, l *ledger) {
			c := l.at(t, 500)
			c.Root[0] ^= 1
			msg, err := c.Sign(l.signer)
			if err != nil {
				t.Fatal(err)
			}
			l.checkpoints[4] = msg
		}, KindRoot, 400, StreamID{}, 0, ""},
		{"a stranger's checkpoint at the end", func(t *testing.T, l *ledger) {
			stranger, _, vkey := logKey(t, testOrigin)
			msg, err := l.at(t, 1200).Sign(stranger)
			if err != nil {
				t.Fatal(err)
			}
			l.checkpoints[11], l.keys = msg, append(l.keys, vkey)
		}, KindSignature, -1, StreamID{}, 0, ""},
		{"drop the newest checkpoint", func(_ *testing.T, l *ledger) { l.checkpoints = l.checkpoints[:11] }, KindRollback, 1100, StreamID{3}, 300, ""},
		{"a checkpoint of another log", func(t *testing.T, l *ledger) {
			s, _, _ := logKey(t, "example.com/other")
			c := l.at(t, 500)
			c.Origin = "example.com/other"
			msg, err := c.Sign(s)
			if err != nil {
				t.Fatal(err)
			}
			l.checkpoints[4] = msg
		}, KindCheckpoint, 500, StreamID{}, 0, ""},
		{"rewrite everything but the signature", func(t *testing.T, l *ledger) { l.rewrite(t, 450) }, KindRoot, 400, StreamID{}, 0, ""},
		{"garbage for a checkpoint", func(_ *testing.T, l *ledger) { l.checkpoints[4] = []byte("garbage") }, KindCheckpoint, 400, StreamID{}, 0, ""},
		{"forged pruning", func(t *testing.T, l *ledger) {
			stranger, _, vkey := logKey(t, testOrigin)
			l.prune(t, stranger, s2, 100, 100)
			l.keys = append(l.keys, vkey)
		}, KindPruning, -1, StreamID{}, 0, ""},
		{"pruning with another history", func(t *testing.T, l *ledger) {
			p := l.pruning(s2, 100, 100)
			p.Ranges[0].Chain[0] ^= 1
			msg, err := p.Sign(l.signer)
			if err != nil {
				t.Fatal(err)
			}
			l.prunings = append(l.prunings, msg)
		}, KindPruning, 499, s2, 199, ""},
	}
}

// editTile changes a hash in a tile.
func (l *ledger) editTile(t *testing.T, tile tlog.Tile, place int) {
	t.Helper()
	data, err := tlog.ReadTileData(tile, l.reader())
	if err != nil {
		t.Fatal(err)
	}
	data[place*tlog.HashSize] ^= 1
	tile.W = 256
	l.tiles[tilePath(tile)] = data
}

// rewrite changes the row of a leaf and everything that follows from it but the checkpoints.
func (l *ledger) rewrite(t *testing.T, leaf int64) {
	t.Helper()
	spans := l.spans
	for _, s := range spans {
		if leaf >= s.Index && leaf < s.Index+int64(s.Count) {
			r := &l.rows[s.Stream][s.First+uint64(leaf-s.Index)]
			r.Body[40] ^= 1
			r.Leaf = leafOf(s.Stream, r.Seq, &r.Salt, r.Body)
		}
	}
	chains := map[StreamID]Hash{}
	l.hashes, l.size, l.spans = nil, 0, nil
	for _, s := range spans {
		s.Prev = chains[s.Stream]
		s.Chain = s.Prev
		for _, r := range l.rows[s.Stream][s.First : s.First+uint64(s.Count)] {
			s.Chain = link(s.Chain, r.Leaf)
			h, err := tlog.StoredHashesForRecordHash(l.size, tlog.Hash(r.Leaf), l.reader())
			if err != nil {
				t.Fatal(err)
			}
			l.hashes, l.size = append(l.hashes, h...), l.size+1
		}
		chains[s.Stream] = s.Chain
		l.spans = append(l.spans, s)
	}
}

// pruning describes rows that are there.
func (l *ledger) pruning(stream StreamID, first, count uint64) *Pruning {
	p := &Pruning{Origin: testOrigin, Partition: "p", Before: testStart.AddDate(1, 0, 0), Made: testStart.AddDate(8, 0, 0), Rows: int64(count)}
	r := PrunedRange{Stream: stream, First: first, Count: count}
	for _, row := range l.rows[stream][:first] {
		r.Prev = link(r.Prev, row.Leaf)
	}
	r.Chain = r.Prev
	for _, row := range l.rows[stream][first : first+count] {
		r.Chain = link(r.Chain, row.Leaf)
	}
	p.Ranges = []PrunedRange{r}
	return p
}

// prune drops rows under a record of the signer.
func (l *ledger) prune(t *testing.T, signer note.Signer, stream StreamID, first, count uint64) {
	t.Helper()
	msg, err := l.pruning(stream, first, count).Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	l.prunings = append(l.prunings, msg)
	l.rows[stream] = slices.Delete(l.rows[stream], int(first), int(first+count))
}

func twelveBatches(t testing.TB) *ledger {
	l := newLedger(t)
	l.fill(t, 3, slices.Repeat([]int{100}, 12)...)
	return l
}

// TestVerifyAttacks names each attack by kind and place, as the first of its kind.
func TestVerifyAttacks(t *testing.T) {
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			l := twelveBatches(t)
			l.clean(t, VerifyOptions{})
			a.change(t, l)
			r := l.verify(t, VerifyOptions{})
			i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Kind == a.kind })
			if i < 0 {
				t.Fatalf("no finding of kind %s: %v", a.kind, r.Findings)
			}
			f := r.Findings[i]
			if a.index != -2 && (f.Index != a.index || f.Stream != a.stream || f.Seq != a.seq || f.Column != a.column) {
				t.Errorf("found %v; want leaf %d, stream %s, record %d, column %q", f, a.index, a.stream, a.seq, a.column)
			}
			if r.OK() || r.Verified != nil {
				t.Error("the report says that all is well")
			}
			if _, err := json.Marshal(r); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestVerifyTail finds changes to what is not in the tree yet.
func TestVerifyTail(t *testing.T) {
	s2 := StreamID{2}
	for _, a := range []attack{
		{"edit a body", func(_ *testing.T, l *ledger) { l.rows[s2][405].Body[40] ^= 1 }, KindBody, -1, s2, 405, ""},
		{"edit a leaf", func(_ *testing.T, l *ledger) { l.rows[s2][405].Leaf[0] ^= 1 }, KindLeaf, -1, s2, 405, "leaf"},
		{"delete a row", func(_ *testing.T, l *ledger) { l.rows[s2] = slices.Delete(l.rows[s2], 405, 406) }, KindMissing, -1, s2, 405, ""},
		{"delete a batch", func(_ *testing.T, l *ledger) { l.unsequenced = l.unsequenced[1:] }, KindGap, -1, s2, 400, ""},
		{"edit a chain", func(_ *testing.T, l *ledger) { l.unsequenced[0].Chain[0] ^= 1 }, KindChain, -1, s2, 400, ""},
	} {
		t.Run(a.name, func(t *testing.T) {
			l := twelveBatches(t)
			for range 2 {
				var events []*Event
				for range 10 {
					events = append(events, testEvent(0))
				}
				l.record(t, s2, events...)
			}
			l.clean(t, VerifyOptions{})
			a.change(t, l)
			r := l.verify(t, VerifyOptions{})
			if len(r.Findings) == 0 {
				t.Fatal("nothing found")
			}
			if f := r.Findings[0]; f.Kind != a.kind || f.Index != -1 || f.Stream != a.stream || f.Seq != a.seq || f.Column != a.column {
				t.Errorf("found %v; want %s, record %d", f, a.kind, a.seq)
			}
		})
	}
}

// TestVerifyOutside holds a trail against what is known from outside: rollbacks and forks by somebody who has the log's key.
func TestVerifyOutside(t *testing.T) {
	l := twelveBatches(t)
	before := l.clean(t, VerifyOptions{}).Verified
	l.fill(t, 3, 100, 100)
	newest, _ := l.Checkpoint(t.Context())
	old := l.checkpoints[6]
	if r := l.clean(t, VerifyOptions{Anchors: [][]byte{newest, old}}); r.Anchors != 2 {
		t.Errorf("%d checkpoints from outside held", r.Anchors)
	}
	// Below the state of an earlier run, and at it.
	if r := l.clean(t, VerifyOptions{From: before, Anchors: [][]byte{old, newest}}); r.Anchors != 3 || r.From != 1200 || r.Rows != 200 {
		t.Errorf("report %+v", r)
	}

	forked := twelveBatches(t)
	forked.signer, forked.vkey, forked.keys = l.signer, l.vkey, l.keys
	forked.checkpoints = nil
	for size := int64(100); size <= 1200; size += 100 {
		forked.sign(t, size)
	}
	forked.clean(t, VerifyOptions{}) // it is whole in itself
	for name, o := range map[string]VerifyOptions{"an anchor": {Anchors: [][]byte{old}}, "an earlier run": {From: before}} {
		r := forked.verify(t, o)
		if len(r.Findings) == 0 || r.Findings[0].Kind != KindFork && name == "an anchor" {
			t.Errorf("with %s the fork is %v", name, r.Findings)
		}
	}
	for name, o := range map[string]VerifyOptions{"an anchor": {Anchors: [][]byte{newest}}, "an earlier run": {From: l.clean(t, VerifyOptions{}).Verified}} {
		backup := twelveBatches(t)
		backup.signer, backup.vkey, backup.keys = l.signer, l.vkey, l.keys
		*backup = *l
		backup.checkpoints, backup.spans = l.checkpoints[:12], l.spans[:12]
		backup.rows = map[StreamID][]Row{}
		for _, s := range backup.spans {
			backup.rows[s.Stream] = l.rows[s.Stream][:s.First+uint64(s.Count)]
		}
		r := backup.verify(t, o)
		if len(r.Findings) == 0 || r.Findings[0].Kind != KindRollback || r.Findings[0].Index != 1200 {
			t.Errorf("with %s the rollback is %v", name, r.Findings)
		}
	}
	stranger, _, _ := logKey(t, testOrigin)
	msg, err := l.at(t, 600).Sign(stranger)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]VerifyOptions{
		"a stranger's checkpoint": {Keys: []string{l.vkey}, Anchors: [][]byte{msg}},
		"a key that is none":      {Keys: []string{"x"}},
		"a quorum without keys":   {Keys: []string{l.vkey}, Quorum: 1},
		"a broken state":          {Keys: []string{l.vkey}, From: &Verified{Checkpoint: before.Checkpoint, Frontier: before.Frontier[1:]}},
	} {
		if _, err := Verify(t.Context(), l, o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestVerifyKeys follows a log through a change of keys.
func TestVerifyKeys(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, 10, 10)
	old, oldKey := l.signer, l.vkey
	var fresh note.Signer
	fresh, _, l.vkey = logKey(t, testOrigin)
	l.keys = append(l.keys, l.vkey)
	l.record(t, StreamID{1}, testEvent(0))
	c := l.sequence(t)
	both, err := c.Sign(old, fresh)
	if err != nil {
		t.Fatal(err)
	}
	l.checkpoints[2] = both
	l.clean(t, VerifyOptions{Keys: []string{oldKey}})
	l.clean(t, VerifyOptions{Keys: []string{l.vkey}})
	l.signer = fresh
	l.fill(t, 1, 10)
	l.clean(t, VerifyOptions{Keys: []string{l.vkey}})
	if r := l.verify(t, VerifyOptions{Keys: []string{oldKey}}); len(r.Findings) != 1 || r.Findings[0].Kind != KindSignature {
		t.Errorf("with the retired key alone: %v", r.Findings)
	}
	if r := l.clean(t, VerifyOptions{Keys: []string{}}); r.Trust != TrustSelf {
		t.Errorf("without a key the trust is %q", r.Trust)
	}
}

// TestVerifyWitnesses asks for a quorum.
func TestVerifyWitnesses(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, 10, 10, 10)
	var keys []string
	for i := range 2 {
		signer, _, vkey := witnessKey(t, fmt.Sprintf("witness.example/%d", i))
		keys = append(keys, vkey)
		for _, at := range []int{0, 1}[:2-i] {
			n, err := note.Open(l.checkpoints[at], keyList{mustVerifier(t, l.vkey)})
			if err != nil {
				t.Fatal(err)
			}
			n.UnverifiedSigs = append(n.UnverifiedSigs, n.Sigs...)
			n.Sigs = nil
			if l.checkpoints[at], err = note.Sign(n, signer); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := l.clean(t, VerifyOptions{WitnessKeys: keys, Quorum: 2})
	if r.Witnessed == nil || r.Witnessed.Size != 10 || len(r.Witnessed.By) != 2 || r.Witnessed.At.Unix() != 1679315147 {
		t.Errorf("witnessed %+v", r.Witnessed)
	}
	if r = l.clean(t, VerifyOptions{WitnessKeys: keys}); r.Witnessed == nil || r.Witnessed.Size != 20 {
		t.Errorf("witnessed %+v", r.Witnessed)
	}
	_, _, third := witnessKey(t, "witness.example/3")
	r = l.verify(t, VerifyOptions{WitnessKeys: []string{keys[1], third}, Quorum: 2})
	if len(r.Findings) != 1 || r.Findings[0].Kind != KindWitness {
		t.Errorf("without a quorum: %v", r.Findings)
	}
	i := bytes.LastIndexByte(l.checkpoints[0][:len(l.checkpoints[0])-8], '\n')
	l.checkpoints[0][i+40] ^= 1
	r = l.verify(t, VerifyOptions{WitnessKeys: keys})
	if len(r.Findings) == 0 || r.Findings[0].Kind != KindWitness && r.Findings[0].Kind != KindCheckpoint {
		t.Errorf("with a changed cosignature: %v", r.Findings)
	}
}

func mustVerifier(t testing.TB, vkey string) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVerifyPruned verifies a trail whose old rows are gone under signed records, whole and in part.
func TestVerifyPruned(t *testing.T) {
	l := twelveBatches(t)
	before, err := Prove(t.Context(), l, StreamID{2}, &l.rows[StreamID{2}][30])
	if err != nil {
		t.Fatal(err)
	}
	l.prune(t, l.signer, StreamID{2}, 0, 150) // one and a half batches
	l.prune(t, l.signer, StreamID{3}, 0, 100)
	if r := l.clean(t, VerifyOptions{}); r.Pruned != 250 || r.Rows != 950 {
		t.Errorf("report %+v", r)
	}
	if _, _, err := before.Verify(keyList{mustVerifier(t, l.vkey)}); err != nil {
		t.Errorf("an old proof: %v", err)
	}
	fresh, err := Prove(t.Context(), l, StreamID{2}, &l.rows[StreamID{2}][0])
	if err != nil || fresh.Seq != 150 {
		t.Fatalf("a proof of the first kept row: %v", err)
	}
	if _, _, err := fresh.Verify(keyList{mustVerifier(t, l.vkey)}); err != nil {
		t.Errorf("a proof of the first kept row: %v", err)
	}
	l.rows[StreamID{3}] = l.rows[StreamID{3}][1:]
	if r := l.verify(t, VerifyOptions{}); len(r.Findings) != 1 || r.Findings[0].Kind != KindMissing || r.Findings[0].Seq != 100 {
		t.Errorf("a row that no record covers: %v", r.Findings)
	}
}

// TestVerifyStreams accounts for streams and intents.
func TestVerifyStreams(t *testing.T) {
	l := newLedger(t)
	alive, stopped, dead := StreamID{1}, StreamID{2}, StreamID{3}
	l.record(t, dead, testEvent(0))
	l.record(t, stopped, testEvent(0), &Event{Type: TypeApplication, Interaction: "110121", Action: ActionExecute})
	intent := func(id byte) *Event {
		e := testEvent(0)
		e.Outcome, e.ID = Intent, ID{id}
		e.Correlation = e.ID
		return e
	}
	outcome := testEvent(0)
	outcome.Correlation = ID{7}
	events := []*Event{intent(7), intent(8), outcome}
	for range 100 {
		events = append(events, testEvent(0))
	}
	l.record(t, alive, events...)
	l.sequence(t)
	r := l.clean(t, VerifyOptions{})
	if len(r.Streams) != 3 || r.Streams[0].Unaccounted || r.Streams[1].Unaccounted || !r.Streams[1].Stopped || !r.Streams[2].Unaccounted {
		t.Errorf("streams %+v", r.Streams)
	}
	if r.OpenIntents != 1 || r.Intents[0].Event != (ID{8}) || r.Intents[0].Stream != alive || r.Intents[0].Seq != 1 {
		t.Errorf("intents %+v", r.Intents)
	}
	if r = l.clean(t, VerifyOptions{Now: testStart.Add(time.Hour)}); !r.Streams[0].Unaccounted || r.Streams[1].Unaccounted {
		t.Errorf("an hour later: streams %+v", r.Streams)
	}
	// The outcome comes, and the next run knows what it belongs to.
	from := r.Verified
	late := testEvent(0)
	late.Correlation = ID{8}
	l.record(t, alive, late)
	if r = l.clean(t, VerifyOptions{From: from}); r.OpenIntents != 0 {
		t.Errorf("intents %+v", r.Intents)
	}
}

// TestProofs checks proofs with the other implementation, and its with ours, at many sizes.
func TestProofs(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 2, 1, 1, 2, 3, 70, 180, 1, 256, 300)
	known := keyList{mustVerifier(t, l.vkey)}
	for _, s := range l.spans {
		for _, seq := range []uint64{s.First, s.First + uint64(s.Count)/2, s.First + uint64(s.Count) - 1} {
			row := &l.rows[s.Stream][seq]
			p, err := Prove(t.Context(), l, s.Stream, row)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := ParseProof(p.Text())
			if err != nil {
				t.Fatal(err)
			}
			c, _, err := parsed.Verify(known)
			if err != nil || parsed.Leaf != row.Leaf || parsed.Seq != seq || !bytes.Equal(parsed.Body, row.Body) {
				t.Fatalf("proof of record %d: %+v, %v", seq, parsed, err)
			}
			var path [][]byte
			for _, h := range p.Hashes {
				path = append(path, h[:])
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(p.Index), uint64(c.Size), row.Leaf[:], path, c.Root[:]); err != nil {
				t.Errorf("merkle says of record %d: %v", seq, err)
			}
			redacted, err := ParseProof(p.Redacted().Text())
			if err != nil || redacted.Body != nil || redacted.Stream != (StreamID{}) {
				t.Fatalf("redacted %+v, %v", redacted, err)
			}
			if _, _, err := redacted.Verify(known); err != nil {
				t.Error(err)
			}
		}
	}
	waiting := l.record(t, StreamID{1}, testEvent(0))
	if _, err := Prove(t.Context(), l, StreamID{1}, &l.rows[StreamID{1}][waiting.First]); !errors.Is(err, ErrNotSequenced) {
		t.Errorf("proof of a row outside the tree: %v", err)
	}
	row := l.rows[StreamID{1}][0]
	row.Body = bytes.Clone(row.Body)
	row.Body[40] ^= 1
	if _, err := Prove(t.Context(), l, StreamID{1}, &row); !errors.Is(err, ErrProof) {
		t.Errorf("proof of a changed row: %v", err)
	}
	l.editTile(t, tlog.Tile{H: 8, L: 0, N: 0, W: 256}, 3)
	if _, err := Prove(t.Context(), l, StreamID{1}, &l.rows[StreamID{1}][0]); !errors.Is(err, ErrProof) {
		t.Errorf("proof from a changed tile: %v", err)
	}
}

// TestProofRefused changes each byte of a proof.
func TestProofRefused(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, 9)
	p, err := Prove(t.Context(), l, StreamID{1}, &l.rows[StreamID{1}][4])
	if err != nil {
		t.Fatal(err)
	}
	known := keyList{mustVerifier(t, l.vkey)}
	text := p.Text()
	for i := range text {
		bad := bytes.Clone(text)
		bad[i] ^= 1
		q, err := ParseProof(bad)
		if err != nil {
			continue
		}
		if _, _, err := q.Verify(known); err == nil {
			t.Fatalf("a proof holds with byte %d changed: %q", i, bad)
		}
	}
	for _, cut := range []int{0, 5, 30, len(text) / 2, len(text) - 1} {
		if q, err := ParseProof(text[:cut]); err == nil {
			if _, _, err := q.Verify(known); err == nil {
				t.Errorf("a proof holds with %d bytes", cut)
			}
		}
	}
}

func FuzzParseProof(f *testing.F) {
	l := newLedger(f)
	l.fill(f, 1, 3)
	p, err := Prove(f.Context(), l, StreamID{1}, &l.rows[StreamID{1}][1])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.Text())
	f.Add(p.Redacted().Text())
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseProof(b)
		if err == nil && !bytes.Equal(q.Text(), b) {
			t.Errorf("%q is read and written as %q", b, q.Text())
		}
	})
}

// FuzzOutline holds outlineOf to DecodeEvent.
func FuzzOutline(f *testing.F) {
	for _, e := range []*Event{{}, testEvent(1), {Type: TypeApplication, Interaction: "110121"}, {Outcome: Intent, ID: ID{1}}, {Correlation: ID{2}, Detail: []byte("d")}} {
		b, err := Encode(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEvent(b)
		o, ok := outlineOf(b)
		if ok != (err == nil) {
			t.Fatalf("decoded with %v, outlined %v", err, ok)
		}
		if !ok {
			return
		}
		want := outline{id: e.ID, correlation: e.Correlation, intent: e.Outcome == Intent, stopped: e.Type == TypeApplication && e.Interaction == "110121"}
		want.outcome = !want.intent && e.Correlation != ID{}
		if want.intent && e.Correlation == (ID{}) {
			want.correlation = e.ID
		}
		if o != want {
			t.Errorf("outline %+v, want %+v", o, want)
		}
	})
}

// TestRoots are the roots of RFC 6962's trees over the eight leaves that Certificate Transparency tests with, and random ones
// held against the other implementation.
func TestRoots(t *testing.T) {
	rootHex := func(f *frontier) string { h := f.root(); return hex.EncodeToString(h[:]) }
	leaves := [][]byte{{}, {0x00}, {0x10}, {0x20, 0x21}, {0x30, 0x31}, {0x40, 0x41, 0x42, 0x43}, bytes.Repeat([]byte{0x50}, 8), bytes.Repeat([]byte{0x60}, 16)}
	for i := range 8 {
		leaves[6][i] = byte(0x50 + i)
	}
	for i := range 16 {
		leaves[7][i] = byte(0x60 + i)
	}
	var f frontier
	if got := rootHex(&f); got != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Errorf("root of no leaves: %s", got)
	}
	for _, l := range leaves {
		f.add(Hash(tlog.RecordHash(l)), func(int, int64, tlog.Hash) {})
	}
	if got := rootHex(&f); got != "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328" {
		t.Errorf("root of eight leaves: %s", got)
	}
	l := newLedger(t)
	l.fill(t, 1, 600)
	f = frontier{}
	for i, r := range l.rows[StreamID{1}] {
		f.add(r.Leaf, func(int, int64, tlog.Hash) {})
		if got, want := f.root(), l.at(t, int64(i)+1).Root; got != want {
			t.Fatalf("root of %d leaves", i+1)
		}
		if rand.IntN(20) == 0 {
			g, err := resume(f.size, f.snapshot(), f.root())
			if err != nil || g.root() != f.root() {
				t.Fatal(err)
			}
		}
	}
}
