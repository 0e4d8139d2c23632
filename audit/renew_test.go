package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Two processes that go on from copies of one journal, as after a clone of the host: the first to ship keeps the stream, the
// other one notices, refuses who waits for the database, and goes on in a new stream by itself. No event of either is lost.
func TestTwins(t *testing.T) {
	var storage audittest.Storage
	one := t.TempDir()
	l := open(t, audit.Config{Dir: one, Storage: &storage})
	if _, err := l.Record(t.Context(), audit.Power, read("common")); err != nil {
		t.Fatal(err)
	}
	ship(t, l)
	drain(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	two := t.TempDir()
	if err := os.CopyFS(two, os.DirFS(one)); err != nil {
		t.Fatal(err)
	}
	a, b := open(t, audit.Config{Dir: one, Storage: &storage}), open(t, audit.Config{Dir: two, Storage: &storage})
	stream := a.Stream()
	if b.Stream() != stream {
		t.Fatal("the copy is another stream")
	}
	for i := range 20 {
		for name, l := range map[string]*audit.Log{"a": a, "b": b} {
			if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint(name, i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	ship(t, a)
	drain(t, a)
	ticket, err := b.Submit(audit.Database, read("export"))
	if err != nil {
		t.Fatal(err)
	}
	ship(t, b)
	if _, err := ticket.Wait(t.Context()); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("the database did not take it: %v", err)
	}
	eventually(t, "the twin has a new stream", func() bool { return b.Stream() != stream })
	if _, err := b.Record(t.Context(), audit.Database, read("later")); err != nil {
		t.Error(err)
	}
	eventually(t, "the twin's events are recorded again", func() bool { return b.Healthy() == nil })
	drain(t, b)
	if n := b.Stats().Refused; n != 1 {
		t.Errorf("%d streams refused", n)
	}
	for _, l := range []*audit.Log{a, b} {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if a.Stream() != stream {
		t.Error("the first one lost its stream")
	}
	rows := storage.Rows()
	contiguous(t, rows)
	seen := patients(rows)
	for i := range 20 {
		for _, name := range []string{"a", "b"} {
			if id := fmt.Sprint(name, i); seen[id] != 1 {
				t.Errorf("%s is stored %d times", id, seen[id])
			}
		}
	}
	if seen["common"] != 1 || seen["export"] != 1 || seen["later"] != 1 {
		t.Errorf("common %d, export %d, later %d", seen["common"], seen["export"], seen["later"])
	}
	// The ended stream is neither continued nor shipped again.
	again := open(t, audit.Config{Dir: two, Storage: &storage})
	if again.Stream() == stream {
		t.Error("the refused stream goes on")
	}
	ship(t, again)
	drain(t, again)
	time.Sleep(100 * time.Millisecond)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if seen := patients(storage.Rows()); seen["b3"] != 1 {
		t.Errorf("after another start b3 is stored %d times", seen["b3"])
	}
}

// The folder of a stream that the database does not continue is removed before its records are recorded again: the log says so and
// is well.
func TestRefusedFolderRemoved(t *testing.T) {
	var storage audittest.Storage
	one, two := t.TempDir(), t.TempDir()
	if err := open(t, audit.Config{Dir: one}).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(two, os.DirFS(one)); err != nil {
		t.Fatal(err)
	}
	a, b := open(t, audit.Config{Dir: one, Storage: &storage}), open(t, audit.Config{Dir: two, Storage: &storage})
	stream := a.Stream()
	if _, err := a.Record(t.Context(), audit.Power, read("a")); err != nil {
		t.Fatal(err)
	}
	ship(t, a)
	drain(t, a)
	ship(t, b)
	eventually(t, "the twin has a new stream", func() bool { return b.Stream() != stream })
	if err := os.RemoveAll(filepath.Join(two, stream.String())); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log is well", func() bool { return b.Healthy() == nil })
	if descs := told(t, audit.OS{}, two, b.Stream()); !slices.ContainsFunc(descs, func(s string) bool { return strings.Contains(s, "its folder was removed") }) {
		t.Errorf("alerts %q", descs)
	}
	for _, l := range []*audit.Log{a, b} {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The twin goes on from the same place and writes as much: only the chain tells them apart.
func TestTwinOfSameLength(t *testing.T) {
	var storage audittest.Storage
	one, two := t.TempDir(), t.TempDir()
	l := open(t, audit.Config{Dir: one})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(two, os.DirFS(one)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{one, two} {
		l := open(t, audit.Config{Dir: dir, Storage: &storage})
		if _, err := l.Record(t.Context(), audit.Power, read(dir)); err != nil {
			t.Fatal(err)
		}
		ship(t, l)
		eventually(t, "the event is stored", func() bool { return patients(storage.Rows())[dir] == 1 })
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	contiguous(t, storage.Rows())
}

// A rescue that is cut short, at any moment and several times, records every event once.
func TestRescueInterrupted(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		disk := audittest.NewDisk()
		l := open(t, audit.Config{Dir: "/journal", FS: disk, SegmentBytes: 4096})
		stream := l.Stream()
		for i := range 60 {
			if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint("p", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		names, err := disk.ReadDir("/journal/" + stream.String())
		if err != nil {
			t.Fatal(err)
		}
		f, err := disk.Open(filepath.Join("/journal", stream.String(), names[1]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), 500); err != nil {
			t.Fatal(err)
		}
		if err := f.Datasync(); err != nil {
			t.Fatal(err)
		}
		var storage audittest.Storage
		for range 4 {
			l := open(t, audit.Config{Dir: "/journal", FS: disk, Storage: &storage, SegmentBytes: 4096})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			time.Sleep(time.Duration(r.IntN(int(6 * time.Millisecond))))
			disk = disk.Cut(r)
			_ = l.Close() // it cannot write any more
			cancel()
			<-done
		}
		l = open(t, audit.Config{Dir: "/journal", FS: disk, Storage: &storage})
		ship(t, l)
		eventually(t, "the rescue is done", func() bool {
			for _, a := range alertsIn(&storage) {
				if strings.Contains(a.Event.OutcomeDesc, "recorded again") {
					return true
				}
			}
			return false
		})
		drain(t, l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		contiguous(t, storage.Rows())
		seen := patients(storage.Rows())
		if len(seen) < 58 {
			t.Errorf("seed %d: %d of 60 events are left; one group was damaged", seed, len(seen))
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("seed %d: %s is stored %d times", seed, id, n)
			}
		}
	}
}
