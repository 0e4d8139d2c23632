package audit_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// corpse is a journal of three segments on a disk in memory, all of it acknowledged at level power.
type corpse struct {
	stream audit.StreamID
	files  map[string][]byte // by name
	bodies map[string]string // body of each disclosure by patient
}

func newCorpse(t testing.TB) *corpse {
	t.Helper()
	disk := audittest.NewDisk()
	l := open(t, audit.Config{Dir: "/journal", FS: disk, SegmentBytes: 4096, Heartbeat: -1})
	c := &corpse{stream: l.Stream(), files: map[string][]byte{}, bodies: map[string]string{}}
	for i := range 24 {
		if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint("p", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("/journal", c.stream.String())
	names, err := disk.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	segments := 0
	for _, name := range names {
		f, err := disk.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		c.files[name] = make([]byte, size)
		if _, err := f.ReadAt(c.files[name], 0); err != nil && size > 0 {
			t.Fatal(err)
		}
		if filepath.Ext(name) == ".journal" {
			segments++
		}
	}
	if segments < 3 {
		t.Fatalf("%d segments", segments)
	}
	for row, err := range audit.Records(disk, dir, c.stream) {
		if err != nil {
			t.Fatal(err)
		}
		c.bodies[row.Event.Patient] = string(row.Body)
	}
	return c
}

// segments are the names of the segment files, in order.
func (c *corpse) segments() (names []string) {
	for n := 1; ; n++ {
		name := fmt.Sprintf("%016x.journal", n)
		if c.files[name] == nil {
			return names
		}
		names = append(names, name)
	}
}

// disk holds the journal with one file changed.
func (c *corpse) disk(t testing.TB, name string, content []byte) *audittest.Disk {
	disk := audittest.NewDisk()
	dir := filepath.Join("/journal", c.stream.String())
	if err := disk.MkdirAll(dir); err != nil {
		t.Fatal(err)
	}
	for file, b := range c.files {
		if file == name {
			b = content
		}
		f, err := disk.Create(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Datasync(); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

// revive starts a log on the journal with one file changed, ships, and checks what comes out: no altered event, none twice, none
// missing but those whose group was damaged, and somebody was told.
func (c *corpse) revive(t testing.TB, what, name string, content []byte, spared int) {
	t.Helper()
	disk := c.disk(t, name, content)
	dir := filepath.Join("/journal", c.stream.String())
	var storage audittest.Storage // checks every row
	l, err := audit.Open(audit.Config{Dir: "/journal", FS: disk, Storage: &storage, SegmentBytes: 4096, Heartbeat: -1})
	if err != nil {
		t.Fatalf("%s: the log does not start: %v", what, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	finished := func() bool {
		if l.Stream() == c.stream {
			return true
		}
		f, err := disk.Open(filepath.Join(dir, "rescued"))
		if err != nil {
			return len(patients(storage.Rows())) >= spared
		}
		var b [32]byte
		_, err = f.ReadAt(b[:], 0)
		return err == nil && b[27] == 1
	}
	for deadline := time.Now().Add(3 * time.Second); !finished() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	waiting, stop := context.WithTimeout(ctx, 5*time.Second)
	if err := l.Drain(waiting); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	stop()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	seen := map[string]bool{}
	told := false
	for _, r := range storage.Rows() {
		told = told || r.Event.Type == audit.TypeSecurityAlert
		id := r.Event.Patient
		if id == "" {
			continue
		}
		if c.bodies[id] != string(r.Body) {
			t.Fatalf("%s: an altered event is returned", what)
		}
		if seen[id] {
			t.Fatalf("%s: %s is stored twice", what, id)
		}
		seen[id] = true
	}
	if len(seen) < spared {
		t.Errorf("%s: %d events are left where %d were not touched", what, len(seen), spared)
	}
	if len(seen) < 24 && !told {
		t.Errorf("%s: %d of 24 events are left and nobody was told", what, len(seen))
	}
}

// untouched counts the disclosures that lie in groups whose bytes, header included, are the same in both contents. A record is
// found by the text of its event.
func (c *corpse) untouched(name string, content []byte) (n int) {
	for file, b := range c.files {
		if filepath.Ext(file) != ".journal" {
			continue
		}
		changed := content
		if file != name {
			changed = b
		}
		for at := bytes.Index(b, []byte("CKGRP")); at >= 0; {
			end := len(b)
			next := bytes.Index(b[at+1:], []byte("CKGRP"))
			if next >= 0 {
				end = at + 1 + next
			}
			if len(changed) >= end && bytes.Equal(b[at:end], changed[at:end]) {
				for id := range c.bodies {
					if id != "" && bytes.Contains(b[at:end], []byte("r-"+id+"\x00")) {
						n++
					}
				}
			}
			if next < 0 {
				break
			}
			at += 1 + next
		}
	}
	return n
}

// Experiment 6: every region of a journal of three segments is truncated, zeroed, flipped, doubled, swapped, or followed by garbage.
func TestCorruption(t *testing.T) {
	cases := 1000
	if os.Getenv("CHARTKEEP_LONG") != "" {
		cases = 10_000
	}
	c := newCorpse(t)
	second := c.segments()[1]
	whole := c.files[second]
	header := bytes.LastIndex(whole, []byte("CKGRP")) // of a group that is cut off right behind it
	for cut := header; cut <= header+168; cut += 8 {
		c.revive(t, fmt.Sprintf("cut at %d in %s", cut, second), second, whole[:cut], c.untouched(second, whole[:cut]))
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for worker := range 4 {
		t.Run(fmt.Sprint(worker), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, uint64(worker)))
			segments := c.segments()
			for i := 0; i < cases/4 && !t.Failed(); i++ {
				name := segments[r.IntN(len(segments))]
				what, content := corrupt(r, bytes.Clone(c.files[name]))
				c.revive(t, fmt.Sprintf("case %d: %s in %s", i, what, name), name, content, c.untouched(name, content))
			}
		})
	}
}

func corrupt(r *rand.Rand, b []byte) (what string, content []byte) {
	at := r.IntN(len(b))
	block := 512 << (3 * r.IntN(2))
	other := r.IntN(len(b))
	switch r.IntN(6) {
	case 0:
		return fmt.Sprintf("cut at %d", at), b[:at]
	case 1:
		at = at / 512 * 512
		clear(b[at:min(len(b), at+block)])
		return fmt.Sprintf("%d zeros at %d", block, at), b
	case 2:
		b[at] ^= 1 << r.IntN(8)
		return fmt.Sprintf("a bit of %d", at), b
	case 3:
		at, other = at/512*512, other/512*512
		copy(b[at:], bytes.Clone(b[other:min(len(b), other+512)]))
		return fmt.Sprintf("%d copied to %d", other, at), b
	case 4:
		at, other = at/512*512, other/512*512
		if at+512 > len(b) || other+512 > len(b) {
			return "nothing", b
		}
		first := bytes.Clone(b[at : at+512])
		copy(b[at:], b[other:other+512])
		copy(b[other:], first)
		return fmt.Sprintf("%d and %d swapped", at, other), b
	default:
		garbage := make([]byte, 1+r.IntN(600))
		for i := range garbage {
			garbage[i] = byte(r.Uint32())
		}
		return "garbage behind", append(b, garbage...)
	}
}

// FuzzRecover starts logs on journals whose segment is whatever the fuzzer makes of it: each starts, and what can be read
// afterwards is what was written.
func FuzzRecover(f *testing.F) {
	c := newCorpse(f)
	for i, name := range c.segments() {
		f.Add(byte(i), c.files[name])
	}
	f.Add(byte(0), []byte{})
	f.Fuzz(func(t *testing.T, segment byte, content []byte) {
		if len(content) > 1<<16 {
			return
		}
		segments := c.segments()
		disk := c.disk(t, segments[int(segment)%len(segments)], content)
		l, err := audit.Open(audit.Config{Dir: "/journal", FS: disk, SegmentBytes: 4096, Heartbeat: -1})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		streams, err := audit.Streams(disk, "/journal")
		if err != nil {
			t.Fatal(err)
		}
		for _, stream := range streams {
			for row, err := range audit.Records(disk, filepath.Join("/journal", stream.String()), stream) {
				if err != nil && stream == l.Stream() {
					t.Errorf("the stream that goes on cannot be read: %v", err)
				}
				if id := row.Event.Patient; err == nil && id != "" && string(row.Body) != c.bodies[id] {
					t.Error("an altered event is returned")
				}
			}
		}
	})
}
