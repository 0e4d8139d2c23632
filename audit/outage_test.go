package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// eventually waits for something that the log does by itself.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

// told are the descriptions of the alerts in a journal, oldest first.
func told(t *testing.T, fs audit.FS, dir string, stream audit.StreamID) (descs []string) {
	t.Helper()
	for row, err := range audit.Records(fs, filepath.Join(dir, stream.String()), stream) {
		if err != nil {
			t.Fatal(err)
		}
		if row.Event.Type == audit.TypeSecurityAlert {
			descs = append(descs, row.Event.OutcomeDesc)
		}
	}
	return descs
}

// ballast takes space on a disk.
func ballast(t *testing.T, disk *audittest.Disk, free int64) {
	t.Helper()
	space, err := disk.Space("/")
	if err != nil {
		t.Fatal(err)
	}
	f, err := disk.Create("/ballast")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, space.Free-free), 0); err != nil {
		t.Fatal(err)
	}
}

// Callers are refused before the disk is full, and taken again when there is clearly room.
func TestLowSpace(t *testing.T) {
	disk := audittest.NewDisk()
	disk.Size = 1 << 20
	l := open(t, audit.Config{Dir: "/journal", FS: disk, SegmentBytes: 16 << 10, MinFree: 64 << 10})
	if _, err := l.Record(t.Context(), audit.Power, read("before")); err != nil {
		t.Fatal(err)
	}
	ballast(t, disk, 60<<10)
	eventually(t, "the log refuses", func() bool { return l.Healthy() != nil })
	if _, err := l.Record(t.Context(), audit.Power, read("during")); !errors.Is(err, audit.ErrUnavailable) || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("with little space: %v", err)
	}
	eventually(t, "the news is in the journal", func() bool { return len(told(t, disk, "/journal", l.Stream())) == 1 })
	if err := disk.Remove("/ballast"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log heals", func() bool { return l.Healthy() == nil })
	if _, err := l.Record(t.Context(), audit.Power, read("after")); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if alerts := told(t, disk, "/journal", l.Stream()); len(alerts) != 2 || !strings.Contains(alerts[1], "1 events were refused") {
		t.Errorf("told %q", alerts)
	}
}

// A disk that is full at the start does not keep the program from starting, refusing, and healing; the start is on record.
func TestFullAtStart(t *testing.T) {
	disk := audittest.NewDisk()
	disk.Size = 64 << 10
	cfg := audit.Config{Dir: "/journal", FS: disk, SegmentBytes: 16 << 10, MinFree: -1}
	l := open(t, cfg)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ballast(t, disk, 0)
	l = open(t, cfg)
	if _, err := l.Record(t.Context(), audit.Process, read("p")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if err := disk.Remove("/ballast"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log heals", func() bool { return l.Healthy() == nil })
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	starts := 0
	for row, err := range audit.Records(disk, filepath.Join("/journal", l.Stream().String()), l.Stream()) {
		if err != nil {
			t.Fatal(err)
		}
		if row.Event.Interaction == "110120" {
			starts++
		}
	}
	if starts != 2 {
		t.Errorf("%d starts on record", starts)
	}
}

// A segment that is removed or replaced while it is written to is noticed, and all it held is written again.
func TestSegmentRemoved(t *testing.T) {
	dir := t.TempDir()
	l := open(t, audit.Config{Dir: dir})
	stream := filepath.Join(dir, l.Stream().String())
	for i := range 2 {
		if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint("p", i))); err != nil {
			t.Fatal(err)
		}
		segments, err := filepath.Glob(filepath.Join(stream, "*.journal"))
		if err != nil || len(segments) == 0 {
			t.Fatal(segments, err)
		}
		last := segments[len(segments)-1]
		if err := os.Remove(last); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if err := os.WriteFile(last, make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Record(t.Context(), audit.Process, read(fmt.Sprint("q", i))); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the loss is noticed", func() bool { return len(told(t, audit.OS{}, dir, l.Stream())) == i+1 })
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var storage audittest.Storage
	again := open(t, audit.Config{Dir: dir, Storage: &storage})
	ship(t, again)
	drain(t, again)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	contiguous(t, storage.Rows())
	if seen := patients(storage.Rows()); len(seen) != 4 || again.Stream() != l.Stream() {
		t.Errorf("found %v", seen)
	}
}

// A file system that fails for long, and not for want of space, is reported, once; it may still heal.
func TestGiveUp(t *testing.T) {
	fs := &faults{}
	l := open(t, audit.Config{Dir: t.TempDir(), FS: fs, GiveUpAfter: 700 * time.Millisecond})
	fs.set(func(op, path string) error {
		if op == "write" || op == "overwrite" || op == "create" {
			return syscall.EIO
		}
		return nil
	})
	if _, err := l.Record(t.Context(), audit.Process, read("p")); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatal(err)
	}
	select {
	case err := <-l.Failed():
		t.Fatalf("given up at once: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	select {
	case err := <-l.Failed():
		if !errors.Is(err, audit.ErrIO) || !errors.Is(err, syscall.EIO) {
			t.Errorf("given up with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("never given up")
	}
	fs.set(nil)
	eventually(t, "the log heals", func() bool { return l.Healthy() == nil })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Open(audit.Config{Dir: filepath.Join(t.TempDir(), "no\x00where")}); !errors.Is(err, audit.ErrIO) {
		t.Errorf("a folder that cannot be: %v", err)
	}
}

// A disk that stalls for longer than a ticket refuses, stays one stream, and loses nothing that it took.
func TestDiskStalls(t *testing.T) {
	fs, dir := &faults{}, t.TempDir()
	l := open(t, audit.Config{Dir: dir, FS: fs, TicketTimeout: 50 * time.Millisecond})
	var stalled atomic.Bool
	fs.set(func(op, path string) error {
		if op == "datasync" && !stalled.Swap(true) {
			time.Sleep(500 * time.Millisecond)
		}
		return nil
	})
	if _, err := l.Record(t.Context(), audit.Power, read("late")); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("during the stall: %v", err)
	}
	eventually(t, "the disk is back", func() bool {
		_, err := l.Record(context.Background(), audit.Power, read("after"))
		return err == nil
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if alerts := told(t, audit.OS{}, dir, l.Stream()); len(alerts) != 0 {
		t.Errorf("a stall is no outage: %q", alerts)
	}
}

// A journal whose tail was cut off at a group boundary is shorter than its own position says.
func TestTailCutAtGroup(t *testing.T) {
	for name, cut := range map[string]func(t *testing.T, segments []string){
		"last segment": func(t *testing.T, segments []string) {
			if err := os.Remove(segments[len(segments)-1]); err != nil {
				t.Fatal(err)
			}
		},
		"all segments": func(t *testing.T, segments []string) {
			for _, s := range segments {
				if err := os.Remove(s); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, stream := written(t)
			segments, err := filepath.Glob(filepath.Join(dir, stream, "*.journal"))
			if err != nil {
				t.Fatal(err)
			}
			cut(t, segments)
			for i := range 2 {
				l := open(t, audit.Config{Dir: dir})
				if l.Stream().String() == stream {
					t.Error("the stream goes on with numbers that were given before")
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if alerts := told(t, audit.OS{}, dir, l.Stream()); len(alerts) != 1 || !strings.Contains(alerts[0], "lost records") {
					t.Errorf("start %d: told %q", i, alerts)
				}
			}
		})
	}
}

// Shipped segments stay as a second copy, for a time, up to a size, and not when space is short.
func TestKeep(t *testing.T) {
	fill := func(t *testing.T, cfg audit.Config, spaceLeft int64) int64 {
		disk := audittest.NewDisk()
		disk.Size = 1 << 20
		var storage audittest.Storage
		cfg.Dir, cfg.FS, cfg.Storage, cfg.SegmentBytes, cfg.MinFree = "/journal", disk, &storage, 4096, 8192
		l := open(t, cfg)
		ship(t, l)
		for range 3 {
			for i := range 60 {
				if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
			}
			drain(t, l)
			time.Sleep(1100 * time.Millisecond) // old segments are looked for once a second
		}
		if spaceLeft > 0 {
			ballast(t, disk, spaceLeft)
			eventually(t, "old segments go", func() bool { return l.Stats().JournalBytes < 5*4096 })
		}
		if _, err := l.Record(t.Context(), audit.Database, read("last")); err != nil {
			t.Fatal(err)
		}
		bytes := l.Stats().JournalBytes
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		dir, stored := filepath.Join("/journal", l.Stream().String()), int64(0)
		names, err := disk.ReadDir(dir)
		for _, name := range names {
			if f, err := disk.Open(filepath.Join(dir, name)); err == nil && filepath.Ext(name) == ".journal" {
				size, _ := f.Size()
				stored += size
			}
		}
		if err != nil || stored == 0 || stored > bytes+2*4096 {
			t.Errorf("segments of %d bytes, %v; stats say %d", stored, err, bytes)
		}
		for r, err := range audit.Records(disk, dir, l.Stream()) {
			if err != nil {
				t.Errorf("after record %d: %v", r.Seq, err)
			}
		}
		return bytes
	}
	t.Run("week", func(t *testing.T) {
		t.Parallel()
		if n := fill(t, audit.Config{}, 0); n < 50_000 {
			t.Errorf("%d bytes are kept of 180 events", n)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		if n := fill(t, audit.Config{KeepBytes: 20_000}, 0); n > 45_000 || n < 12_000 {
			t.Errorf("%d bytes are kept", n)
		}
	})
	t.Run("not", func(t *testing.T) {
		t.Parallel()
		if n := fill(t, audit.Config{Keep: -1}, 0); n > 4*4096 {
			t.Errorf("%d bytes are kept", n)
		}
	})
	t.Run("short", func(t *testing.T) {
		t.Parallel()
		fill(t, audit.Config{}, 12_000)
	})
}

// A journal whose folder is removed under load heals by itself: the stream's folder is made again, and what was not yet in Storage
// is written there or in the next stream, once.
func TestFolderRemoved(t *testing.T) {
	for _, name := range []string{"idle", "under load", "the database is away"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			var storage audittest.Storage
			l := open(t, audit.Config{Dir: dir, Storage: &storage, SegmentBytes: 1 << 16})
			if name != "the database is away" {
				ship(t, l)
			}
			granted := map[string]bool{}
			for i := range 3 {
				id := fmt.Sprint("p", i)
				if _, err := l.Record(t.Context(), audit.Power, read(id)); err != nil {
					t.Fatal(err)
				}
				granted[id] = true
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			for i := 0; name == "under load" && i < 2000; i++ {
				id := fmt.Sprint("q", i)
				if _, err := l.Record(t.Context(), audit.Process, read(id)); err == nil {
					granted[id] = true
				}
			}
			eventually(t, "the folder is made again", func() bool {
				segments, err := filepath.Glob(filepath.Join(dir, l.Stream().String(), "*.journal"))
				return err == nil && len(segments) > 0
			})
			eventually(t, "the log heals", func() bool { return l.Healthy() == nil })
			if _, err := (audit.OS{}).Lock(filepath.Join(dir, l.Stream().String(), "stream")); !errors.Is(err, audit.ErrLocked) {
				t.Errorf("locking the stream: %v", err)
			}
			if _, err := l.Record(t.Context(), audit.Power, read("later")); err != nil {
				t.Fatal(err)
			}
			granted["later"] = true
			if name == "the database is away" {
				ship(t, l)
			}
			drain(t, l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			contiguous(t, storage.Rows())
			seen := patients(storage.Rows())
			for id := range granted {
				if seen[id] != 1 {
					t.Errorf("%s is stored %d times", id, seen[id])
				}
			}
		})
	}
}
