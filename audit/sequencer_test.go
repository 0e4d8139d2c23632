package audit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

const sequencedOrigin = "hospital.example/audit"

func newLogKey(t testing.TB) audit.LogKey {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, sequencedOrigin)
	if err != nil {
		t.Fatal(err)
	}
	key, err := audit.NewLogKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	if key.Verifier != vkey {
		t.Fatalf("verifier key %s, want %s", key.Verifier, vkey)
	}
	return key
}

// writer stores batches of random leaves of some streams.
type writer struct {
	tree   *audittest.Tree
	mu     sync.Mutex
	heads  map[audit.StreamID]audit.Span // the batch stored last
	leaves map[audit.StreamID][]audit.Hash
}

func newWriter(tree *audittest.Tree) *writer {
	return &writer{tree: tree, heads: map[audit.StreamID]audit.Span{}, leaves: map[audit.StreamID][]audit.Hash{}}
}

// batch makes the next batch of a stream, to be stored by the caller, in order.
func (w *writer) batch(stream audit.StreamID, count int) (audit.Span, []audit.Hash) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := w.heads[stream]
	s := audit.Span{Stream: stream, First: last.First + uint64(last.Count), Count: count, Prev: last.Chain, Chain: last.Chain}
	leaves := make([]audit.Hash, count)
	for i := range leaves {
		rand.Read(leaves[i][:])
		s.Chain = sha256.Sum256(append(s.Chain[:], leaves[i][:]...))
	}
	w.heads[stream] = s
	w.leaves[stream] = append(w.leaves[stream], leaves...)
	return s, leaves
}

func (w *writer) store(stream audit.StreamID, count int) audit.Span {
	s, leaves := w.batch(stream, count)
	w.tree.Ingest(s, leaves)
	return s
}

func (w *writer) total() (n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.leaves {
		n += int64(len(l))
	}
	return n
}

// audits holds a tree against a foreign implementation: every checkpoint, in the order of the batches, nothing twice and nothing
// left out, every stream in its order.
func (w *writer) audits(t testing.TB, keys ...audit.LogKey) int64 {
	t.Helper()
	ctx := t.Context()
	var list []note.Verifier
	for _, k := range keys {
		v, err := note.NewVerifier(k.Verifier)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, v)
	}
	notes, err := w.tree.Checkpoints(ctx, 0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	spans, err := w.tree.Spans(ctx, 0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	foreign := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	next := map[audit.StreamID]uint64{}
	var size int64
	at := 0
	for _, msg := range notes {
		c, n, err := audit.OpenCheckpoint(msg, note.VerifierList(list...))
		if err != nil {
			t.Fatal(err)
		}
		if len(n.Sigs) != len(keys) {
			t.Errorf("checkpoint of %d leaves has %d signatures, want %d", c.Size, len(n.Sigs), len(keys))
		}
		if c.Size <= size {
			t.Fatalf("a checkpoint of %d leaves after one of %d", c.Size, size)
		}
		for ; at < len(spans) && size < c.Size; at++ {
			s := spans[at]
			if s.Index != size || s.First != next[s.Stream] {
				t.Fatalf("batch from record %d of %s at leaf %d; the tree goes on at %d, the stream at %d", s.First, s.Stream, s.Index, size, next[s.Stream])
			}
			for _, leaf := range w.leaves[s.Stream][s.First : s.First+uint64(s.Count)] {
				if err := foreign.Append(leaf[:], nil); err != nil {
					t.Fatal(err)
				}
			}
			size, next[s.Stream] = size+int64(s.Count), s.First+uint64(s.Count)
		}
		want, err := foreign.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		if size != c.Size || !bytes.Equal(want, c.Root[:]) {
			t.Fatalf("checkpoint of %d leaves: root %x; the rows give %d leaves and %x", c.Size, c.Root, size, want)
		}
	}
	if at != len(spans) {
		t.Errorf("%d batches stand beyond the newest checkpoint", len(spans)-at)
	}
	// Consistency by proofs from tiles, between random pairs of checkpoints.
	for range min(len(notes), 50) {
		i, j := mathrand.IntN(len(notes)), mathrand.IntN(len(notes))
		older, _, _ := audit.OpenCheckpoint(notes[min(i, j)], note.VerifierList(list...))
		newer, _, _ := audit.OpenCheckpoint(notes[max(i, j)], note.VerifierList(list...))
		proof, err := tlog.ProveTree(newer.Size, older.Size, audit.HashReader(ctx, w.tree, newer))
		if err == nil {
			err = tlog.CheckTree(proof, newer.Size, tlog.Hash(newer.Root), older.Size, tlog.Hash(older.Root))
		}
		if err != nil {
			t.Fatalf("checkpoints of %d and %d leaves: %v", older.Size, newer.Size, err)
		}
	}
	return size
}

// running is a sequencer under way.
type running struct {
	*audit.Sequencer
	stop   func()
	alerts func() []string
}

func run(t testing.TB, cfg audit.SequencerConfig) *running {
	t.Helper()
	if cfg.Interval == 0 {
		cfg.Interval = 2 * time.Millisecond
	}
	var mu sync.Mutex
	var alerts []string
	cfg.Alert = func(desc string) {
		mu.Lock()
		defer mu.Unlock()
		alerts = append(alerts, desc)
	}
	s, err := audit.NewSequencer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	r := &running{s, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}), func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(alerts) }}
	t.Cleanup(r.stop)
	return r
}

// sized says whether the newest checkpoint has a size.
func (w *writer) sized(size int64) func() bool {
	return func() bool {
		notes, err := w.tree.Checkpoints(context.Background(), size-1, 1)
		return err == nil && len(notes) > 0 && size > 0
	}
}

func TestSequencerSignsWhatIsStored(t *testing.T) {
	tree := &audittest.Tree{}
	w := newWriter(tree)
	old, key := newLogKey(t), newLogKey(t)
	s := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{old, key}})
	for i := range 200 {
		w.store(audit.StreamID{byte(i % 3)}, 1+mathrand.IntN(40))
		if i%10 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	s.Wake()
	eventually(t, "everything is signed", w.sized(w.total()))
	w.audits(t, old, key)
	// What was stored while it was told to stop goes in, too.
	w.store(audit.StreamID{9}, 5)
	s.stop()
	if size := w.audits(t, old, key); size != w.total() {
		t.Errorf("%d of %d leaves are signed", size, w.total())
	}
	if alerts := s.alerts(); len(alerts) > 0 {
		t.Errorf("alerts: %q", alerts)
	}
	if keys := tree.Keys(); !slices.Equal(keys, []string{old.Verifier, key.Verifier}) {
		t.Errorf("keys %q", keys)
	}
	if st := s.Stats(); st.Size != w.total() || st.Leads {
		t.Errorf("stats %+v of %d leaves", st, w.total())
	}
}

// What its keys have not signed, a sequencer does not take up.
func TestSequencerTakesUpOnlyItsOwnTree(t *testing.T) {
	tree := &audittest.Tree{}
	w := newWriter(tree)
	old, key := newLogKey(t), newLogKey(t)
	w.store(audit.StreamID{1}, 300)
	first := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{old}})
	eventually(t, "the first checkpoint", w.sized(300))
	first.stop()
	w.store(audit.StreamID{1}, 1)
	stranger := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{key}})
	eventually(t, "an alert", func() bool { return len(stranger.alerts()) > 0 })
	stranger.stop()
	if w.sized(301)() {
		t.Error("it went on with a tree that another key has signed")
	}
	both := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{key, old}})
	eventually(t, "the overlap's checkpoint", w.sized(301))
	both.stop()
	w.store(audit.StreamID{1}, 1)
	run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{key}})
	eventually(t, "the new key's checkpoint", w.sized(302))
}

func TestSequencerLeavesOutWhatDoesNotFit(t *testing.T) {
	flip := func(p *audit.Pending) { p.Leaves[1][5] ^= 1 }
	for what, spoil := range map[string]struct {
		change func(*audit.Pending)
		desc   string
	}{
		"a leaf":             {flip, "not those that were recorded"},
		"a row less":         {func(p *audit.Pending) { p.Leaves = p.Leaves[1:] }, "missing, or there twice"},
		"a row twice":        {func(p *audit.Pending) { p.Leaves = append(p.Leaves, p.Leaves[0]) }, "missing, or there twice"},
		"another past":       {func(p *audit.Pending) { p.Prev[0] ^= 1 }, "does not continue"},
		"another end":        {func(p *audit.Pending) { p.Chain[0] ^= 1 }, "not those that were recorded"},
		"a gap":              {func(p *audit.Pending) { p.First += 3 }, "a batch is missing"},
		"an absurd manifest": {func(p *audit.Pending) { p.Count = 1 << 30 }, "absurd"},
	} {
		t.Run(what, func(t *testing.T) {
			tree := &audittest.Tree{}
			w := newWriter(tree)
			bad, good := audit.StreamID{1}, audit.StreamID{2}
			w.store(bad, 10)
			s, leaves := w.batch(bad, 10)
			p := audit.Pending{Span: s, Leaves: slices.Clone(leaves)}
			spoil.change(&p)
			tree.Ingest(p.Span, p.Leaves)
			w.store(bad, 10)
			w.store(good, 10)
			r := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{newLogKey(t)}})
			eventually(t, "what is sound", w.sized(20))
			w.store(good, 7)
			eventually(t, "the other stream goes on", w.sized(27))
			if spans, _ := tree.Spans(t.Context(), 0, 100); len(spans) != 3 {
				t.Errorf("%d batches are in the tree, want 3", len(spans))
			}
			if a := r.alerts(); len(a) != 1 || !strings.Contains(a[0], spoil.desc) || !strings.Contains(a[0], bad.String()) {
				t.Errorf("alerts %q", a)
			}
			if r.Stats().Blocked != 1 {
				t.Errorf("%d streams are blocked", r.Stats().Blocked)
			}
		})
	}
}

// The edge is derived data: damaged by hand, it is noticed when the tree is taken up, and computed anew.
func TestSequencerRebuildsADamagedEdge(t *testing.T) {
	tree := &audittest.Tree{}
	w := newWriter(tree)
	key := newLogKey(t)
	for range 7 {
		w.store(audit.StreamID{1}, 97)
	}
	first := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{key}})
	eventually(t, "the first checkpoint", w.sized(w.total()))
	for level := range 2 {
		tree.AlterEdge(level, func(hashes []byte) { hashes[40] ^= 1 })
		tree.Depose()
		w.store(audit.StreamID{1}, 11)
		eventually(t, "the tree goes on", w.sized(w.total()))
		w.audits(t, key)
		if a := first.alerts(); len(a) != 1 || !strings.Contains(a[0], "edge") {
			t.Fatalf("alerts %q", a)
		}
	}
	// Rows and edge changed together are noticed as well, and nothing is signed.
	tree.Alter(audit.StreamID{1}, 679, func(p *audit.Pending) { p.Leaves[3][0] ^= 1 })
	tree.AlterEdge(0, func(hashes []byte) { hashes[40] ^= 1 })
	tree.Depose()
	size := w.total()
	w.store(audit.StreamID{1}, 1)
	eventually(t, "an alert", func() bool { return len(first.alerts()) > 1 })
	if w.sized(size + 1)() {
		t.Error("a changed tree was extended")
	}
}

// A database that was taken back to a backup is not extended by a process that has signed more.
func TestSequencerNoticesARollback(t *testing.T) {
	tree := &audittest.Tree{}
	w := newWriter(tree)
	s := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{newLogKey(t)}})
	for range 3 {
		w.store(audit.StreamID{1}, 300)
		eventually(t, "a checkpoint", w.sized(w.total()))
	}
	tree.Restore(2)
	tree.Depose()
	eventually(t, "an alert", func() bool { return len(s.alerts()) > 0 })
	if w.sized(w.total())() {
		t.Error("the tree was extended behind what had been signed")
	}
}

// Several sequencers, lost connections, processes that stop in the middle of anything and wake up later, answers that are
// lost: no fork, nothing twice, nothing left out.
func TestSequencersInTrouble(t *testing.T) {
	rounds := 4
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		tree := &audittest.Tree{}
		w := newWriter(tree)
		key := newLogKey(t)
		quiet := make(chan struct{}) // closed when trouble is over
		tree.Fail = func(step string) error {
			select {
			case <-quiet:
				return nil
			default:
			}
			switch mathrand.IntN(18) {
			case 0:
				return errors.New("the connection is lost")
			case 1: // the lease ends in the middle of anything
				tree.Depose()
			case 2: // SIGSTOP, while others take over
				tree.Usurp()
				time.Sleep(time.Duration(mathrand.IntN(15)) * time.Millisecond)
			}
			return nil
		}
		var all []*running
		for range 3 {
			all = append(all, run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{key}}))
		}
		var late sync.WaitGroup
		for stream := range 4 {
			late.Go(func() {
				for range 40 {
					s, leaves := w.batch(audit.StreamID{byte(stream)}, 1+mathrand.IntN(30))
					time.Sleep(time.Duration(mathrand.IntN(8)) * time.Millisecond) // a transaction that commits late
					tree.Ingest(s, leaves)
				}
			})
		}
		late.Wait()
		close(quiet)
		eventually(t, "everything is signed", w.sized(w.total()))
		size := w.audits(t, key)
		for _, r := range all {
			r.stop()
			if a := r.alerts(); len(a) > 0 {
				t.Errorf("alerts: %q", a)
			}
		}
		if size != w.total() {
			t.Errorf("%d of %d leaves are signed", size, w.total())
		}
		notes, _ := tree.Checkpoints(t.Context(), 0, 1<<30)
		t.Logf("%d leaves, %d checkpoints", size, len(notes))
	}
}

// witnessAt runs a witness, as audit witness does, for a log's key.
func witnessAt(t *testing.T, dir string, key audit.LogKey, skey string) (*httptest.Server, func()) {
	t.Helper()
	signer, err := audit.NewCosigner(skey, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(key.Verifier)
	if err != nil {
		t.Fatal(err)
	}
	wit, err := audit.NewWitness(audit.WitnessConfig{Dir: dir, Signer: signer, Logs: []note.Verifier{v}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(wit)
	return server, sync.OnceFunc(func() {
		server.Close()
		if err := wit.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestWitnessCosigns(t *testing.T) {
	tree := &audittest.Tree{}
	w := newWriter(tree)
	key := newLogKey(t)
	skey, vkey, err := audit.GenerateWitnessKey(rand.Reader, "witness.example/w")
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := audit.NewCosignatureVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	server, stop := witnessAt(t, dir, key, skey)
	defer func() { stop() }()
	cfg := audit.SequencerConfig{
		Storage: tree, Keys: []audit.LogKey{key}, WitnessEvery: 2 * time.Millisecond,
		Witnesses: []audit.WitnessAddress{{Verifier: vkey, URL: server.URL + "/"}},
	}
	cosigned := func(size int64) func() bool {
		return func() bool {
			msg, err := tree.Checkpoint(t.Context())
			if err != nil || msg == nil {
				return false
			}
			n, err := note.Open(msg, note.VerifierList(verifier))
			return err == nil && strings.Contains(n.Text, fmt.Sprintf("\n%d\n", size))
		}
	}
	s := run(t, cfg)
	for range 4 {
		w.store(audit.StreamID{1}, 111)
		eventually(t, "the checkpoint is cosigned", cosigned(w.total()))
	}
	eventually(t, "statistics", func() bool { st := s.Stats().Witnesses[0]; return st.Cosigned == w.total() && !st.Refused })
	if keys := tree.Keys(); !slices.Contains(keys, vkey) {
		t.Errorf("keys %q lack the witness's", keys)
	}
	s.stop()
	// Another process does not know what the witness has seen, and learns it.
	w.store(audit.StreamID{1}, 5)
	again := run(t, cfg)
	eventually(t, "the next process's checkpoint is cosigned", cosigned(w.total()))
	if a := slices.Concat(s.alerts(), again.alerts()); len(a) > 0 {
		t.Errorf("alerts: %q", a)
	}
	again.stop()

	// A backup of the database, taken up by a process that knows nothing of it: the witness does.
	notes, _ := tree.Checkpoints(t.Context(), 0, 100)
	tree.Restore(len(notes) - 2)
	w.store(audit.StreamID{2}, 1)
	s = run(t, cfg)
	eventually(t, "an alert", func() bool { return strings.Contains(strings.Join(s.alerts(), " "), "witness.example/w") })
	eventually(t, "flagged", func() bool { return s.Stats().Witnesses[0].Refused })
	before := s.Stats().Size
	w.store(audit.StreamID{2}, 1)
	eventually(t, "publication goes on", func() bool { return s.Stats().Size > before })
}

// What a witness answers is believed only as far as its key has signed it.
func TestWitnessAnswers(t *testing.T) {
	skey, vkey, err := audit.GenerateWitnessKey(rand.Reader, "witness.example/w")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewCosigner(skey, nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := audit.GenerateWitnessKey(rand.Reader, "witness.example/w")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := audit.NewCosigner(other, nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := func(body []byte, signers ...note.Signer) []byte {
		_, msg, _ := bytes.Cut(body, []byte("\n\n"))
		text, _, _ := bytes.Cut(msg, []byte("\n\n"))
		signed, err := note.Sign(&note.Note{Text: string(text) + "\n"}, signers...)
		if err != nil {
			t.Error(err)
		}
		_, sigs, _ := bytes.Cut(signed, []byte("\n\n"))
		return sigs
	}
	size := func(rw http.ResponseWriter, n string) {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(rw, n+"\n")
	}
	for what, c := range map[string]struct {
		answer         func(rw http.ResponseWriter, body []byte)
		cosigned, told bool
	}{
		"its signature":        {func(rw http.ResponseWriter, body []byte) { _, _ = rw.Write(lines(body, signer)) }, true, false},
		"with another's":       {func(rw http.ResponseWriter, body []byte) { _, _ = rw.Write(lines(body, foreign, signer)) }, true, false},
		"another's signature":  {func(rw http.ResponseWriter, body []byte) { _, _ = rw.Write(lines(body, foreign)) }, false, false},
		"nothing":              {func(rw http.ResponseWriter, _ []byte) { rw.WriteHeader(http.StatusOK) }, false, false},
		"garbage":              {func(rw http.ResponseWriter, _ []byte) { _, _ = io.WriteString(rw, "— x y\n\n") }, false, false},
		"down":                 {func(rw http.ResponseWriter, _ []byte) { rw.WriteHeader(http.StatusServiceUnavailable) }, false, false},
		"a larger tree":        {func(rw http.ResponseWriter, _ []byte) { size(rw, "9999") }, false, true},
		"another of this size": {func(rw http.ResponseWriter, _ []byte) { size(rw, "10") }, false, true},
		"no size":              {func(rw http.ResponseWriter, _ []byte) { size(rw, "ten") }, false, false},
		"inconsistent":         {func(rw http.ResponseWriter, _ []byte) { rw.WriteHeader(http.StatusUnprocessableEntity) }, false, true},
	} {
		t.Run(what, func(t *testing.T) {
			asked := make(chan struct{}, 1000)
			server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil || r.Method != http.MethodPost || r.URL.Path != "/log/add-checkpoint" || !bytes.HasPrefix(body, []byte("old ")) {
					t.Errorf("%s %s %q (%v)", r.Method, r.URL.Path, body, err)
				}
				c.answer(rw, body)
				select {
				case asked <- struct{}{}:
				default:
				}
			}))
			defer server.Close()
			tree := &audittest.Tree{}
			newWriter(tree).store(audit.StreamID{1}, 10)
			s := run(t, audit.SequencerConfig{
				Storage: tree, Keys: []audit.LogKey{newLogKey(t)}, WitnessEvery: time.Millisecond,
				Witnesses: []audit.WitnessAddress{{Verifier: vkey, URL: server.URL + "/log"}},
			})
			<-asked
			eventually(t, "a conclusion", func() bool {
				st := s.Stats().Witnesses[0]
				return (st.Cosigned == 10) == c.cosigned && st.Refused == c.told && (len(s.alerts()) > 0) == c.told
			})
			s.stop()
			msg, err := tree.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(msg, []byte("\n— ")); n != 1+map[bool]int{true: 1}[c.cosigned] {
				t.Errorf("the checkpoint has %d signatures:\n%s", n, msg)
			}
		})
	}
}

func TestAnchors(t *testing.T) {
	tree := &audittest.Tree{}
	w := newWriter(tree)
	key := newLogKey(t)
	dir := t.TempDir() + "/anchors"
	s := run(t, audit.SequencerConfig{Storage: tree, Keys: []audit.LogKey{key}, Anchors: []audit.Anchor{audit.AnchorDir(dir)}, AnchorEvery: time.Hour})
	w.store(audit.StreamID{1}, 10)
	files := func() (names []string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	eventually(t, "the first checkpoint is anchored at once", func() bool { return len(files()) == 1 && s.Stats().Anchored == 10 })
	w.store(audit.StreamID{1}, 10)
	eventually(t, "a checkpoint", w.sized(20))
	if n := len(files()); n != 1 {
		t.Errorf("%d files within the hour", n)
	}
	s.stop()
	names := files()
	if len(names) != 2 || !strings.HasPrefix(names[1], "0000000000000020-") {
		t.Fatalf("after the end: %q", names)
	}
	got, err := os.ReadFile(dir + "/" + names[1])
	want, _ := tree.Checkpoint(t.Context())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("anchored %q (%v), want %q", got, err, want)
	}
}

func TestAnchorDirNeverWritesOver(t *testing.T) {
	dir := audit.AnchorDir(t.TempDir())
	ctx := t.Context()
	for range 2 {
		if err := dir.Put(ctx, "a", []byte("one")); err != nil {
			t.Fatal(err)
		}
	}
	if err := dir.Put(ctx, "a", []byte("two")); err == nil {
		t.Error("other data was put under a name that is taken")
	}
	if err := dir.Put(ctx, "../a", nil); err == nil {
		t.Error("a name left the directory")
	}
	b, err := os.ReadFile(string(dir) + "/a")
	if err != nil || string(b) != "one" {
		t.Errorf("%q (%v)", b, err)
	}
	if entries, _ := os.ReadDir(string(dir)); len(entries) != 1 {
		t.Errorf("%d files are left", len(entries))
	}
}

// What was anchored is read back, the newest always.
func TestAnchorDirSince(t *testing.T) {
	dir := audit.AnchorDir(t.TempDir() + "/anchors")
	if notes, err := dir.Since(0); err != nil || len(notes) != 0 {
		t.Errorf("%q (%v) where nothing was anchored", notes, err)
	}
	for _, size := range []int64{7, 12, 300} {
		msg := []byte(strconv.FormatInt(size, 10))
		if err := dir.Put(t.Context(), audit.AnchorName(size, msg), msg); err != nil {
			t.Fatal(err)
		}
	}
	for size, want := range map[int64]string{0: "7 12 300", 7: "12 300", 299: "300", 300: "300", 9000: "300"} {
		notes, err := dir.Since(size)
		if got := string(bytes.Join(notes, []byte(" "))); err != nil || got != want {
			t.Errorf("since %d: %s (%v), want %s", size, got, err, want)
		}
	}
}

// A failing anchor is an alert, and tried again.
type brokenAnchor struct{ fails *int }

func (a brokenAnchor) Put(context.Context, string, []byte) error {
	if *a.fails--; *a.fails >= 0 {
		return errors.New("the bucket is not there")
	}
	return nil
}

func TestAnchorFails(t *testing.T) {
	tree := &audittest.Tree{}
	w := newWriter(tree)
	fails := 2
	s := run(t, audit.SequencerConfig{
		Storage: tree, Keys: []audit.LogKey{newLogKey(t)}, Anchors: []audit.Anchor{brokenAnchor{&fails}}, AnchorEvery: time.Millisecond,
	})
	w.store(audit.StreamID{1}, 10)
	eventually(t, "it is anchored in the end", func() bool { return s.Stats().Anchored == 10 })
	if a := s.alerts(); len(a) != 1 || !strings.Contains(a[0], "anchored") {
		t.Errorf("alerts %q", a)
	}
}

func TestSequencerConfiguration(t *testing.T) {
	key := newLogKey(t)
	skey, _, err := note.GenerateKey(rand.Reader, "elsewhere.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	other, err := audit.NewLogKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	for what, cfg := range map[string]audit.SequencerConfig{
		"no storage":   {Keys: []audit.LogKey{key}},
		"no key":       {Storage: &audittest.Tree{}},
		"two origins":  {Storage: &audittest.Tree{}, Keys: []audit.LogKey{key, other}},
		"another pair": {Storage: &audittest.Tree{}, Keys: []audit.LogKey{{Signer: key, Verifier: newLogKey(t).Verifier}}},
		"bad witness":  {Storage: &audittest.Tree{}, Keys: []audit.LogKey{key}, Witnesses: []audit.WitnessAddress{{Verifier: "x"}}},
	} {
		if _, err := audit.NewSequencer(cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	for _, bad := range []string{"", "x", strings.Replace(skey, "+", "-", 3), skey[:len(skey)-4]} {
		if _, err := audit.NewLogKey(bad); err == nil || strings.Contains(err.Error(), skey[20:]) {
			t.Errorf("NewLogKey of a broken key: %v", err)
		}
	}
}
