package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// watched is a witness of one ledger.
type watched struct {
	*Witness
	l        *ledger
	cfg      WitnessConfig
	verifier note.Verifier
}

func newWatched(t testing.TB, l *ledger, more ...note.Verifier) *watched {
	t.Helper()
	w := &watched{l: l}
	w.cfg.Signer, w.verifier, _ = witnessKey(t, "witness.example/w")
	w.cfg.Logs = append(more, mustVerifier(t, l.vkey))
	w.cfg.Dir = t.TempDir()
	w.open(t)
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *watched) open(t testing.TB) {
	t.Helper()
	var err error
	if w.Witness, err = NewWitness(w.cfg); err != nil {
		t.Fatal(err)
	}
}

// body is what a log sends.
func (w *watched) body(t testing.TB, old int64, c Checkpoint, signers ...note.Signer) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "old %d\n", old)
	if old > 0 && old < c.Size && c.Size <= w.l.size {
		p, err := tlog.ProveTree(c.Size, old, w.l.reader())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range p {
			fmt.Fprintln(&b, h)
		}
	}
	if signers == nil {
		signers = []note.Signer{w.l.signer}
	}
	msg, err := c.Sign(signers...)
	if err != nil {
		t.Fatal(err)
	}
	return b.String() + "\n" + string(msg)
}

func (w *watched) post(body string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", strings.NewReader(body)))
	return rec
}

// TestWitness plays the answers of https://c2sp.org/tlog-witness in turn.
func TestWitness(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, slices.Repeat([]int{10}, 10)...)
	otherSigner, otherVerifier, _ := logKey(t, "example.com/other")
	strangerSigner, _, _ := logKey(t, testOrigin)
	w := newWatched(t, l, otherVerifier)
	fork := l.at(t, 50)
	fork.Root[0] ^= 1
	other := Checkpoint{Origin: "example.com/other", Size: 3, Root: Hash{3}}
	unknown := Checkpoint{Origin: "example.com/unknown", Size: 3}
	unknownSigner, _, _ := logKey(t, "example.com/unknown")
	empty := Checkpoint{Origin: testOrigin, Root: Hash{1}}
	good20 := w.body(t, 0, l.at(t, 20))
	for _, step := range []struct {
		name, body string
		status     int
		size       string // in a conflict
	}{
		{"an empty tree with a wrong root", w.body(t, 0, empty), 422, ""},
		{"first with an old size", w.body(t, 10, l.at(t, 20)), 409, "0\n"},
		{"first with a proof", strings.Replace(good20, "\n\n", "\n"+Hash{}.String()+"\n\n", 1), 422, ""},
		{"first", good20, 200, ""},
		{"again from zero", good20, 409, "20\n"},
		{"again", w.body(t, 20, l.at(t, 20)), 200, ""},
		{"again with a proof", strings.Replace(w.body(t, 20, l.at(t, 20)), "\n\n", "\n"+Hash{}.String()+"\n\n", 1), 422, ""},
		{"growth", w.body(t, 20, l.at(t, 50)), 200, ""},
		{"rollback", w.body(t, 20, l.at(t, 30)), 409, "50\n"},
		{"old size above the checkpoint's", w.body(t, 50, l.at(t, 30)), 400, ""},
		{"fork of the same size", w.body(t, 50, fork), 409, "50\n"},
		{"fork that grew", strings.Replace(w.body(t, 50, l.at(t, 60)), l.at(t, 60).Root.String(), "", 1), 400, ""},
		{"no proof", "old 50\n\n" + strings.SplitN(w.body(t, 50, l.at(t, 60)), "\n\n", 2)[1], 422, ""},
		{"another's proof", w.body(t, 40, l.at(t, 60))[:7] + w.body(t, 50, l.at(t, 60))[7:], 409, "50\n"},
		{"a wrong proof", w.body(t, 50, Checkpoint{testOrigin, 60, Hash{7}}), 422, ""},
		{"a stranger's signature", w.body(t, 50, l.at(t, 60), strangerSigner), 403, ""},
		{"an unknown log", w.body(t, 0, unknown, unknownSigner), 404, ""},
		{"another log", w.body(t, 0, other, otherSigner), 200, ""},
		{"another log's key for this log", w.body(t, 50, l.at(t, 60), otherSigner), 403, ""},
		{"growth after all that", w.body(t, 50, l.at(t, 60)), 200, ""},
		{"nothing", "", 400, ""},
		{"a number with zeros", "old 060\n\n" + strings.SplitN(good20, "\n\n", 2)[1], 400, ""},
		{"too many proof lines", "old 60\n" + strings.Repeat(Hash{}.String()+"\n", 64) + "\n" + strings.SplitN(good20, "\n\n", 2)[1], 400, ""},
		{"a flood", strings.Repeat("x", 1<<20), 400, ""},
	} {
		rec := w.post(step.body)
		if rec.Code != step.status {
			t.Fatalf("%s: %d %s", step.name, rec.Code, rec.Body)
		}
		if step.status == 409 && (rec.Body.String() != step.size || rec.Header().Get("Content-Type") != "text/x.tlog.size") {
			t.Errorf("%s: %q, %q", step.name, rec.Header().Get("Content-Type"), rec.Body)
		}
		if step.status == 200 {
			msg := strings.SplitN(step.body, "\n\n", 2)[1] + rec.Body.String()
			if _, n, err := OpenCheckpoint([]byte(msg), keyList{mustVerifier(t, l.vkey), otherVerifier, w.verifier}); err != nil || len(n.Sigs) != 2 {
				t.Errorf("%s: the answer does not cosign: %v", step.name, err)
			}
		}
	}
	kept, _ := filepath.Glob(filepath.Join(w.cfg.Dir, "*.fork-*"))
	if len(kept) != 1 {
		t.Errorf("proofs of the fork: %v", kept)
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/checkpoint?origin="+testOrigin, nil))
	if c, _, err := OpenCheckpoint(rec.Body.Bytes(), keyList{mustVerifier(t, l.vkey)}); err != nil || c.Size != 60 {
		t.Errorf("what was cosigned last: %+v, %v", c, err)
	}
	for path, status := range map[string]int{"/checkpoint?origin=x": 404, "/": 404, "/add-checkpoint": 405} {
		rec := httptest.NewRecorder()
		if w.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil)); rec.Code != status {
			t.Errorf("GET %s: %d", path, rec.Code)
		}
	}
	if _, err := NewWitness(w.cfg); !errors.Is(err, ErrLocked) {
		t.Errorf("a second witness on the state: %v", err)
	}
	// A restart forgets nothing.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	if rec := w.post(good20); rec.Code != 409 || rec.Body.String() != "60\n" {
		t.Errorf("after a restart: %d %s", rec.Code, rec.Body)
	}
	if rec := w.post(w.body(t, 60, l.at(t, 100))); rec.Code != 200 {
		t.Errorf("after a restart: %d %s", rec.Code, rec.Body)
	}
	// A state that was tampered with is not taken for none.
	w.Close()
	states, _ := filepath.Glob(filepath.Join(w.cfg.Dir, "*.checkpoint"))
	for _, state := range states {
		good, err := os.ReadFile(state)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(state, bytes.Replace(good, []byte("\n1"), []byte("\n2"), 1)[:len(good)-1], 0o600); err != nil {
			t.Fatal(err)
		}
		if again, err := NewWitness(w.cfg); err == nil {
			again.Close()
			t.Error("a broken state was taken")
		}
		if err := os.WriteFile(state, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.open(t)
}

// TestWitnessCrash fails and cuts each write of the state in turn: a cosignature that went out is never forgotten.
func TestWitnessCrash(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, slices.Repeat([]int{3}, 40)...)
	w := newWatched(t, l)
	disk := &failingFS{FS: OS{}}
	w.Close()
	w.cfg.FS = disk
	w.open(t)
	last := int64(0)
	for i := range 40 {
		disk.countdown = 1 + i%8 // calls until one fails
		next := last + 3
		rec := w.post(w.body(t, last, l.at(t, next)))
		disk.countdown = 0
		switch rec.Code {
		case 200:
			last = next
		case 500:
		case 409:
			if last > 0 {
				t.Fatalf("after size %d: %s", last, rec.Body)
			}
		default:
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		if i%3 == 0 { // killed, and started again
			w.Close()
			w.open(t)
		}
		rec = w.post(w.body(t, 0, l.at(t, 3)))
		if rec.Code == 409 && rec.Body.String() == "0\n" || last > 0 && rec.Code != 409 {
			t.Fatalf("after size %d: %d %s", last, rec.Code, rec.Body)
		}
		if rec.Code == 200 {
			last = 3
		}
		var knows int64
		if _, err := fmt.Sscan(rec.Body.String(), &knows); rec.Code == 409 && (err != nil || knows < last) {
			t.Fatalf("the witness knows %d, it cosigned %d", knows, last)
		}
		last = max(last, knows) // a rename may have come through without an answer
	}
	if last < 60 {
		t.Errorf("only %d leaves were cosigned", last)
	}
}

// failingFS fails the call at which its countdown ends.
type failingFS struct {
	FS
	countdown int
}

var errDisk = errors.New("disk failure")

func (f *failingFS) fails() error {
	if f.countdown--; f.countdown == 0 {
		return errDisk
	}
	return nil
}

func (f *failingFS) Create(path string) (File, error) {
	if err := f.fails(); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(path)
	return failingFile{file, f}, err
}

func (f *failingFS) Rename(from, to string) error {
	if err := f.fails(); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

func (f *failingFS) SyncDir(path string) error {
	if err := f.fails(); err != nil {
		return err
	}
	return f.FS.SyncDir(path)
}

type failingFile struct {
	File
	fs *failingFS
}

func (f failingFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.fs.fails(); err != nil {
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, err
	}
	return f.File.WriteAt(b, off)
}

func (f failingFile) Datasync() error {
	if err := f.fs.fails(); err != nil {
		return err
	}
	return f.File.Datasync()
}

// TestWitnessRace has many logs' processes at one witness: it never goes back, and never cosigns two trees of one size.
func TestWitnessRace(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, slices.Repeat([]int{1}, 60)...)
	w := newWatched(t, l)
	var mu sync.Mutex
	var order []int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			old := int64(0)
			for next := int64(1); next <= 60; next++ {
				if next <= old {
					continue
				}
				rec := w.post(w.body(t, old, l.at(t, next)))
				switch rec.Code {
				case 200:
					old = next
					mu.Lock()
					order = append(order, next)
					mu.Unlock()
				case 409:
					fmt.Fscan(rec.Body, &old)
				default:
					t.Errorf("%d %s", rec.Code, rec.Body)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(order)
	if len(slices.Compact(order)) == 0 {
		t.Fatal("nothing was cosigned")
	}
	if c, err := claimed(w.logs[testOrigin].note); err != nil || c.Size != 60 {
		t.Errorf("last %+v, %v", c, err)
	}
}

// TestConsistencyForeign takes the other implementation's word for the proofs that a witness sees.
func TestConsistencyForeign(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, 300)
	for _, sizes := range [][2]int64{{1, 2}, {1, 300}, {3, 7}, {128, 256}, {255, 257}, {299, 300}} {
		p, err := tlog.ProveTree(sizes[1], sizes[0], l.reader())
		if err != nil {
			t.Fatal(err)
		}
		var theirs [][]byte
		for _, h := range p {
			theirs = append(theirs, h[:])
		}
		a, b := l.at(t, sizes[0]), l.at(t, sizes[1])
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, uint64(a.Size), uint64(b.Size), theirs, a.Root[:], b.Root[:]); err != nil {
			t.Errorf("merkle says of %v: %v", sizes, err)
		}
		if err := continues(p, b, a); err != nil {
			t.Errorf("%v: %v", sizes, err)
		}
	}
}

// FuzzWitness sends anything: no panic, and no cosignature on what does not continue the log.
func FuzzWitness(f *testing.F) {
	l := newLedger(f)
	l.fill(f, 1, 5, 6, 7)
	w := newWatched(f, l)
	f.Add(w.body(f, 0, l.at(f, 5)))
	f.Add(w.body(f, 5, l.at(f, 11)))
	f.Add("old 0\n\n")
	good := map[string]bool{}
	for _, msg := range l.checkpoints {
		good[strings.SplitN(string(msg), "\n\n", 2)[0]] = true
	}
	f.Fuzz(func(t *testing.T, body string) {
		rec := w.post(body)
		if b, _ := io.ReadAll(rec.Body); rec.Code == 200 {
			_, rest, _ := strings.Cut(body, "\n\n")
			if text, _, _ := strings.Cut(rest, "\n\n"); !good[text] {
				t.Errorf("cosigned %q with %q", body, b)
			}
		}
	})
}
