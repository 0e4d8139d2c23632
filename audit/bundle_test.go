package audit

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// export writes a bundle and opens it.
func (l *ledger) export(t testing.TB, path string, o ExportOptions) *Bundle {
	t.Helper()
	w, err := CreateBundle(path)
	if err != nil {
		t.Fatal(err)
	}
	o.Signers = []note.Signer{l.signer}
	if _, err := Export(t.Context(), l, w, o); err != nil {
		t.Fatal(err)
	}
	b, c, err := OpenBundlePath(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return b
}

func (b *Bundle) mustVerify(t testing.TB, o VerifyOptions) *Report {
	t.Helper()
	r, err := b.Verify(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantClean(t testing.TB, r *Report) {
	t.Helper()
	for _, f := range r.Findings {
		t.Errorf("finding: %v", f)
	}
}

// selected yields every n-th row of a stream.
func (l *ledger) selected(stream StreamID, n int) func(func(Place, error) bool) {
	return func(yield func(Place, error) bool) {
		for i := len(l.rows[stream]) - 1; i >= 0; i -= n {
			if r := l.rows[stream][i]; !yield(Place{stream, r.Seq, r.PartTime}, nil) {
				return
			}
		}
	}
}

func TestBundle(t *testing.T) {
	for _, name := range []string{"folder", "file.zip"} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t)
			l.fill(t, 3, 100, 300, 1, 2, 3, 250, 100)
			l.prune(t, l.signer, StreamID{2}, 0, 300)
			l.record(t, StreamID{1}, testEvent(0)) // not in the tree: not exported
			b := l.export(t, filepath.Join(t.TempDir(), name), ExportOptions{})
			newest, _ := l.Checkpoint(t.Context())
			r := b.mustVerify(t, VerifyOptions{Keys: []string{l.vkey}, Anchors: [][]byte{newest, l.checkpoints[2]}})
			wantClean(t, r)
			if r.Rows != 456 || r.Pruned != 300 || r.Checkpoints != 7 || r.Anchors != 2 || !r.Signed || r.Partial || len(r.Streams) != 3 {
				t.Errorf("report %+v", r)
			}
			if r = b.mustVerify(t, VerifyOptions{}); r.Trust != TrustSelf || !r.OK() {
				t.Errorf("without a key: %+v", r)
			}
			if _, _, other := logKey(t, testOrigin); true {
				if r = b.mustVerify(t, VerifyOptions{Keys: []string{other}}); r.OK() {
					t.Error("another key believed the bundle")
				}
			}
			p, err := Prove(t.Context(), b, StreamID{1}, &l.rows[StreamID{1}][1])
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := p.Verify(keyList{mustVerifier(t, l.vkey)}); err != nil {
				t.Error(err)
			}
			l.sequence(t)
			newest, _ = l.Checkpoint(t.Context())
			if r = b.mustVerify(t, VerifyOptions{Keys: []string{l.vkey}, Anchors: [][]byte{newest}}); r.Ahead != 1 || !r.OK() {
				t.Errorf("a checkpoint that is newer than the bundle: %+v", r)
			}
			if _, err := CreateBundle(filepath.Join(t.TempDir(), "x", name)); err == nil {
				t.Error("a bundle in a folder that is not there")
			}
		})
	}
}

func TestBundleSelection(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 3, 100, 300, 1, 2, 3, 250, 100, 900, 800)
	dir := t.TempDir()
	b := l.export(t, filepath.Join(dir, "some.zip"), ExportOptions{Filter: "every seventh of a stream", Select: l.selected(StreamID{2}, 7)})
	r := b.mustVerify(t, VerifyOptions{Keys: []string{l.vkey}})
	wantClean(t, r)
	if want := int64((1203 + 6) / 7); r.Rows != want || b.Manifest.Rows != want || !r.Partial || !r.Signed {
		t.Errorf("report %+v, want %d rows", r, want)
	}
	from, to := testStart.Add(10*time.Second), testStart.Add(20*time.Second)
	b = l.export(t, filepath.Join(dir, "window"), ExportOptions{Filter: "ten seconds", From: from, To: to})
	r = b.mustVerify(t, VerifyOptions{Keys: []string{l.vkey}})
	wantClean(t, r)
	if r.Rows != 30 {
		t.Errorf("%d rows of ten seconds of three streams", r.Rows)
	}
	b = l.export(t, filepath.Join(dir, "none"), ExportOptions{Filter: "nothing", From: to, To: from})
	wantClean(t, b.mustVerify(t, VerifyOptions{Keys: []string{l.vkey}}))
	if b.Manifest.Rows != 0 {
		t.Error("rows outside the window")
	}
	w, err := CreateBundle(filepath.Join(dir, "wordless"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), l, w, ExportOptions{From: from}); !errors.Is(err, ErrOptions) {
		t.Errorf("a selection without words: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// files reads a folder into memory.
func files(t testing.TB, dir string) fstest.MapFS {
	t.Helper()
	m := fstest.MapFS{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, path))
		m[path] = &fstest.MapFile{Data: b, Mode: 0o600}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// failure is what verification says of files; nil when it says that all is well.
func failure(ctx context.Context, fsys fs.FS, vkey string) error {
	b, err := OpenBundle(fsys)
	if err != nil {
		return err
	}
	defer b.Close()
	r, err := b.Verify(ctx, VerifyOptions{Keys: []string{vkey}})
	if err != nil {
		return err
	}
	if !r.OK() {
		return errors.New(r.Findings[0].String())
	}
	return nil
}

// The rendering is vouched for by the manifest's signature alone.
func TestBundleRenderingWithoutSignature(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, 20)
	dir := filepath.Join(t.TempDir(), "export")
	b := l.export(t, dir, ExportOptions{FHIR: func(dst []byte, _ *Stored) []byte { return append(dst, `{"resourceType":"AuditEvent"}`...) }})
	wantClean(t, b.mustVerify(t, VerifyOptions{Keys: []string{l.vkey}}))
	if err := os.Remove(filepath.Join(dir, fileSignature)); err != nil {
		t.Fatal(err)
	}
	b, c, err := OpenBundlePath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := b.mustVerify(t, VerifyOptions{Keys: []string{l.vkey}})
	if len(r.Findings) != 1 || r.Findings[0].Kind != KindManifest || r.Findings[0].File != fileFHIR {
		t.Errorf("findings %v, want one about %s", r.Findings, fileFHIR)
	}
}

// That no row of a part was left out is the manifest's word: whoever brings a key is not content with one that nobody signed.
func TestBundleUnsigned(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 3, 100)
	part := ExportOptions{Filter: "some", Select: l.selected(StreamID{1}, 3)}
	for _, tt := range []struct {
		name string
		o    ExportOptions
		keys []string
		ok   bool
		says string
	}{
		{"a part", part, []string{l.vkey}, false, "rows may have been left out"},
		{"a part, without a key", part, nil, true, "WARNING: no key of the log"},
		{"the whole", ExportOptions{}, []string{l.vkey}, true, "WARNING: no key of the log"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bundle")
			l.export(t, dir, tt.o)
			if err := os.Remove(filepath.Join(dir, fileSignature)); err != nil {
				t.Fatal(err)
			}
			b, err := OpenBundle(os.DirFS(dir))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close() //nolint:errcheck // it was read
			r, err := b.Verify(t.Context(), VerifyOptions{Keys: tt.keys})
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			if err := r.Write(&text, 10); err != nil {
				t.Fatal(err)
			}
			if r.OK() != tt.ok || !strings.Contains(text.String(), tt.says) {
				t.Errorf("report:\n%s", &text)
			}
		})
	}
}

// TestBundleFlip changes bytes in every file of a whole bundle and of a part, one at a time.
func TestBundleFlip(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 3, 20, 30, 1, 250, 10)
	l.prune(t, l.signer, StreamID{2}, 0, 30)
	for name, o := range map[string]ExportOptions{"whole": {}, "part": {Filter: "some", Select: l.selected(StreamID{1}, 17)}} {
		dir := filepath.Join(t.TempDir(), name)
		l.export(t, dir, o)
		m := files(t, dir)
		if err := failure(t.Context(), m, l.vkey); err != nil {
			t.Fatal(err)
		}
		for path, file := range m {
			places := []int{0, len(file.Data) - 1}
			for range 12 {
				places = append(places, rand.IntN(len(file.Data)))
			}
			for _, i := range places {
				good := file.Data
				file.Data = bytes.Clone(good)
				file.Data[i] ^= 1 << rand.IntN(8)
				if err := failure(t.Context(), m, l.vkey); err == nil {
					t.Errorf("%s: byte %d of %s was changed from %q to %q unnoticed", name, i, path, good[i], file.Data[i])
				}
				file.Data = good
			}
			delete(m, path)
			if err := failure(t.Context(), m, l.vkey); err == nil && (path != fileSignature || name == "part") {
				t.Errorf("%s: %s is gone unnoticed", name, path)
			}
			m[path] = &fstest.MapFile{Data: file.Data[:len(file.Data)/2]}
			if err := failure(t.Context(), m, l.vkey); err == nil {
				t.Errorf("%s: %s is cut unnoticed", name, path)
			}
			m[path] = file
		}
		m["more.txt"] = &fstest.MapFile{Data: []byte("x")}
		if err := failure(t.Context(), m, l.vkey); err == nil {
			t.Error("a file too many went unnoticed")
		}
	}
}

// TestBundleHostile opens zips that are made to hurt.
func TestBundleHostile(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 1, 5)
	dir := filepath.Join(t.TempDir(), "b")
	l.export(t, dir, ExportOptions{})
	good := files(t, dir)
	pack := func(change func(add func(name string, data io.Reader))) *zip.Reader {
		var buf bytes.Buffer
		z := zip.NewWriter(&buf)
		add := func(name string, data io.Reader) {
			w, err := z.Create(name)
			if err == nil {
				_, err = io.Copy(w, data)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		change(add)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := zip.NewReader(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
		if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
			t.Fatal(err)
		}
		return r
	}
	but := func(name string, with io.Reader) func(func(string, io.Reader)) {
		return func(add func(string, io.Reader)) {
			for path, f := range good {
				if path != name {
					add(path, bytes.NewReader(f.Data))
				}
			}
			if with != nil {
				add(name, with)
			}
		}
	}
	bomb := func() io.Reader { return io.LimitReader(zeros{}, 128<<20) }
	for name, z := range map[string]*zip.Reader{
		"nothing":              pack(func(func(string, io.Reader)) {}),
		"a manifest of zeros":  pack(but(fileManifest, bomb())),
		"rows of zeros":        pack(but(fileRows, bomb())),
		"keys of zeros":        pack(but(fileKeys, bomb())),
		"a readme of zeros":    pack(but(fileReadme, bomb())),
		"a tile of zeros":      pack(but("tile/0/000.p/5", bomb())),
		"no tile":              pack(but("tile/0/000.p/5", nil)),
		"a path out of it":     pack(func(add func(string, io.Reader)) { but("", nil)(add); add("../evil", strings.NewReader("x")) }),
		"a file twice":         pack(func(add func(string, io.Reader)) { but("", nil)(add); add(fileRows, strings.NewReader("x")) }),
		"an endless line":      pack(but(fileSpans, io.LimitReader(ones{}, 1<<24))),
		"a folder for a file":  pack(func(add func(string, io.Reader)) { but(fileKeys, nil)(add); add("keys/x", strings.NewReader("x")) }),
		"another format":       pack(but(fileManifest, bytes.NewReader(bytes.Replace(good[fileManifest].Data, []byte("bundle v1"), []byte("bundle v2"), 1)))),
		"a manifest with more": pack(but(fileManifest, bytes.NewReader(bytes.Replace(good[fileManifest].Data, []byte("{\n"), []byte("{\n \"x\": 1,\n"), 1)))),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := failure(t.Context(), z, l.vkey)
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: all is well", name)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
			t.Errorf("%s: took %d MiB", name, used>>20)
		}
	}
	if err := failure(t.Context(), pack(but("", nil)), l.vkey); err != nil {
		t.Errorf("the bundle itself: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '1'
	}
	return len(p), nil
}

// FuzzRowLine holds parser and printer of rows together: one row has one spelling.
func FuzzRowLine(f *testing.F) {
	f.Add(appendRowLine(nil, 7, StreamID{1}, &Row{Seq: 3, PartTime: testStart, Salt: [16]byte{9}, Body: []byte("body of a row")}))
	f.Add(appendRowLine(nil, 0, StreamID{}, &Row{PartTime: time.UnixMicro(-5)}))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, ok := parseRowLine(line)
		if ok && !bytes.Equal(appendRowLine(nil, r.index, r.stream, &r.row), line) {
			t.Errorf("%q is read as %+v", line, r)
		}
		if s, ok := parseSpanLine(line); ok && !bytes.Equal(appendSpanLine(nil, &s), line) {
			t.Errorf("%q is read as %+v", line, s)
		}
		if s, ok := parseCheckpointLine(line); ok && !bytes.Equal(appendCheckpointLine(nil, s.size, s.note), line) {
			t.Errorf("%q is read as %+v", line, s)
		}
		if msg, ok := parsePruningLine(line); ok && !bytes.Equal(appendPruningLine(nil, msg), line) {
			t.Errorf("%q is read as %q", line, msg)
		}
	})
}

// FuzzBundle verifies a bundle one of whose files is anything.
func FuzzBundle(f *testing.F) {
	l := newLedger(f)
	l.fill(f, 2, 5, 3, 4)
	dir := filepath.Join(f.TempDir(), "b")
	l.export(f, dir, ExportOptions{})
	good := files(f, dir)
	var names []string
	for path, file := range good {
		names = append(names, path)
		f.Add(path, file.Data)
	}
	slices.Sort(names)
	f.Fuzz(func(t *testing.T, path string, data []byte) {
		m := fstest.MapFS{}
		for name, file := range good {
			m[name] = file
		}
		if !fs.ValidPath(path) || path == "." {
			return
		}
		m[path] = &fstest.MapFile{Data: data}
		err := failure(t.Context(), m, l.vkey)
		same := good[path] != nil && bytes.Equal(good[path].Data, data)
		if same != (err == nil) {
			t.Errorf("%s: %v", path, err)
		}
	})
}

// append is record and sequence without looking at the whole stream again.
func (l *ledger) append(t testing.TB, stream StreamID, events []*Event) {
	t.Helper()
	if len(l.spans) == 0 {
		l.record(t, stream, events...)
		l.sequence(t)
		l.checkpoints = nil
		return
	}
	last := l.spans[len(l.spans)-1]
	rows := l.rows[stream]
	l.rows[stream] = nil
	s := l.record(t, stream, events...)
	fresh := l.rows[stream]
	s.First, s.Prev, s.Chain = last.First+uint64(last.Count), last.Chain, last.Chain
	for i := range fresh {
		fresh[i].Seq += s.First
		fresh[i].PartTime = testStart.Add(time.Duration(fresh[i].Seq) * time.Second)
		fresh[i].Leaf = leafOf(stream, fresh[i].Seq, &fresh[i].Salt, fresh[i].Body)
		s.Chain = link(s.Chain, fresh[i].Leaf)
	}
	s.FirstPart, s.LastPart = fresh[0].PartTime, fresh[len(fresh)-1].PartTime
	l.rows[stream] = append(rows, fresh...)
	l.unsequenced = []Span{s}
	l.sequence(t)
	l.checkpoints = nil
}
