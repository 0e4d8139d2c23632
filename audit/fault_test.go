package audit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// faults is the operating system's file system with calls that fail on command.
type faults struct {
	audit.OS
	fail atomic.Pointer[func(op, path string) error]
}

func (f *faults) set(fail func(op, path string) error) {
	if fail == nil {
		f.fail.Store(nil)
		return
	}
	f.fail.Store(&fail)
}

func (f *faults) check(op, path string) error {
	if fail := f.fail.Load(); fail != nil {
		return (*fail)(op, path)
	}
	return nil
}

func (f *faults) MkdirAll(path string) error {
	return errors.Join(f.check("mkdir", path), f.OS.MkdirAll(path))
}

func (f *faults) ReadDir(path string) ([]string, error) {
	if err := f.check("readdir", path); err != nil {
		return nil, err
	}
	return f.OS.ReadDir(path)
}

func (f *faults) Create(path string) (audit.File, error) {
	if err := f.check("create", path); err != nil {
		return nil, err
	}
	file, err := f.OS.Create(path)
	return &faultyFile{File: file, fs: f, path: path, op: "write"}, err
}

func (f *faults) Open(path string) (audit.File, error) {
	if err := f.check("open", path); err != nil {
		return nil, err
	}
	file, err := f.OS.Open(path)
	return &faultyFile{File: file, fs: f, path: path, op: "overwrite"}, err
}

func (f *faults) Rename(from, to string) error {
	if err := f.check("rename", from); err != nil {
		return err
	}
	return f.OS.Rename(from, to)
}

func (f *faults) Remove(path string) error {
	if err := f.check("remove", path); err != nil {
		return err
	}
	return f.OS.Remove(path)
}

func (f *faults) SyncDir(path string) error {
	return errors.Join(f.OS.SyncDir(path), f.check("syncdir", path))
}

func (f *faults) Lock(path string) (io.Closer, error) {
	if err := f.check("lock", path); err != nil {
		return nil, err
	}
	return f.OS.Lock(path)
}

type faultyFile struct {
	audit.File
	fs     *faults
	path   string
	op     string       // write to a file that was made, overwrite to one that was opened
	failed atomic.Int64 // when; nothing may be written to it any more
}

// untouched panics when a failed file is used again, but for a call that was under way when it failed.
func (f *faultyFile) untouched() {
	if at := f.failed.Load(); at != 0 && time.Since(time.Unix(0, at)) > 50*time.Millisecond {
		panic("a failed file is used again: " + f.path)
	}
}

// WriteAt fails after half of the bytes, as a full disk does.
func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	f.untouched()
	if err := f.fs.check(f.op, f.path); err != nil {
		f.failed.Store(time.Now().UnixNano())
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, err
	}
	return f.File.WriteAt(b, off)
}

func (f *faultyFile) Datasync() error {
	f.untouched()
	if err := f.fs.check("datasync", f.path); err != nil {
		f.failed.Store(time.Now().UnixNano())
		return err
	}
	return f.File.Datasync()
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.fs.check("read", f.path); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *faultyFile) Truncate(size int64) error {
	return errors.Join(f.fs.check("truncate", f.path), f.File.Truncate(size))
}

// patients counts the stored disclosures by patient.
func patients(rows []audit.Stored) map[string]int {
	seen := map[string]int{}
	for _, r := range rows {
		if r.Event.Patient != "" {
			seen[r.Event.Patient]++
		}
	}
	return seen
}

// contiguous fails the test unless each stream's rows count up from 0.
func contiguous(t *testing.T, rows []audit.Stored) {
	t.Helper()
	next := map[audit.StreamID]uint64{}
	for _, r := range rows {
		if r.Seq != next[r.Stream] {
			t.Fatalf("stream %s: row %d where %d belongs", r.Stream, r.Seq, next[r.Stream])
		}
		next[r.Stream]++
	}
}

// One call fails, once, at each point of a busy log's life: whatever was acknowledged is stored exactly once.
func TestOneCallFails(t *testing.T) {
	for _, op := range []string{"create", "open", "rename", "remove", "syncdir", "write", "overwrite", "datasync", "read", "readdir", "truncate"} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC, syscall.EINTR} {
			if errors.Is(cause, syscall.ENOSPC) && op != "create" && op != "write" && op != "datasync" {
				continue
			}
			for at := range 10 {
				t.Run(fmt.Sprint(op, cause, at), func(t *testing.T) {
					t.Parallel()
					outage(t, op, cause, int64(at*3), int64(at*3))
				})
			}
		}
	}
}

// outage records while the calls number from to to of a kind fail, and checks what is stored after a restart.
func outage(t *testing.T, op string, cause error, from, to int64) {
	dir := t.TempDir()
	fs := &faults{}
	var storage audittest.Storage
	l := open(t, audit.Config{Dir: dir, FS: fs, Storage: &storage, SegmentBytes: 4096, TicketTimeout: 5 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()

	var calls atomic.Int64
	fs.set(func(got, path string) error {
		if got != op || !strings.Contains(path, ".journal") && op != "syncdir" && op != "readdir" {
			return nil
		}
		if n := calls.Add(1) - 1; n >= from && n <= to {
			return cause
		}
		return nil
	})
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 25 {
				e := read(fmt.Sprint(w, "-", i))
				level := audit.Process + audit.Level(i%2)
				if _, err := l.Record(context.Background(), level, e); err == nil {
					mu.Lock()
					acknowledged[e.Patient] = true
					mu.Unlock()
				} else if !errors.Is(err, audit.ErrUnavailable) {
					t.Errorf("Record: %v", err)
				}
			}
		})
	}
	writers.Wait()
	fs.set(nil)
	for deadline := time.Now().Add(5 * time.Second); l.Healthy() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log did not heal: %v", l.Healthy())
		}
	}
	if _, err := l.Record(context.Background(), audit.Power, read("after")); err != nil {
		t.Errorf("the healed log refuses: %v", err)
	}
	acknowledged["after"] = true
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	again := open(t, audit.Config{Dir: dir, Storage: &storage, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ship(t, again)
	drain(t, again)
	if again.Stream() != l.Stream() {
		t.Error("the restart did not continue the stream")
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	rows := storage.Rows()
	contiguous(t, rows)
	seen := patients(rows)
	for id := range acknowledged {
		if seen[id] != 1 {
			t.Errorf("acknowledged event of %s is stored %d times", id, seen[id])
		}
	}
}

// A disk that stays full refuses, says why, and heals by itself. The outage is on record, durably, before it ends: in the reserve.
// A disk that does not even take what it had promised cannot have that, and it is recorded afterwards.
func TestDiskFull(t *testing.T) {
	for name, fails := range map[string]func(op string) bool{
		"full":   func(op string) bool { return op == "create" || op == "write" },
		"broken": func(op string) bool { return op == "create" || op == "write" || op == "overwrite" || op == "datasync" },
	} {
		t.Run(name, func(t *testing.T) {
			fs, dir := &faults{}, t.TempDir()
			var storage audittest.Storage
			l := open(t, audit.Config{Dir: dir, FS: fs, Storage: &storage})
			ship(t, l)
			if _, err := l.Record(t.Context(), audit.Process, read("before")); err != nil {
				t.Fatal(err)
			}
			fs.set(func(op, path string) error {
				if fails(op) {
					return syscall.ENOSPC
				}
				return nil
			})
			began := time.Now()
			if _, err := l.Record(t.Context(), audit.Power, read("during")); !errors.Is(err, audit.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("a full disk took an event: %v", err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("the refusal took %v", took)
			}
			if err := l.Healthy(); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("healthy: %v", err)
			}
			if _, err := l.Record(t.Context(), audit.Process, read("during")); !errors.Is(err, audit.ErrUnavailable) {
				t.Errorf("a log that is down took an event: %v", err)
			}
			time.Sleep(100 * time.Millisecond)
			var told []string
			for row, err := range audit.Records(audit.OS{}, filepath.Join(dir, l.Stream().String()), l.Stream()) {
				if err == nil && row.Event.Type == audit.TypeSecurityAlert {
					told = append(told, row.Event.OutcomeDesc)
				}
			}
			if want := name == "full"; want != (len(told) == 1 && strings.Contains(told[0], "no space left")) {
				t.Errorf("on record during the outage: %q", told)
			}
			fs.set(nil)
			for deadline := time.Now().Add(3 * time.Second); l.Healthy() != nil && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			if _, err := l.Record(t.Context(), audit.Database, read("after")); err != nil {
				t.Fatal(err)
			}
			seen := patients(storage.Rows())
			if seen["before"] != 1 || seen["during"] != 0 || seen["after"] != 1 {
				t.Errorf("stored %v", seen)
			}
			contiguous(t, storage.Rows())
			if alerts := alertsIn(&storage); len(alerts) != 1+len(told) || !strings.Contains(alerts[0].Event.OutcomeDesc, "2 events were refused") {
				t.Errorf("the outage is not on record: %+v", alerts)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A disk that hangs: the channel fills, callers are refused within their time, and what was accepted is still written.
func TestDiskHangs(t *testing.T) {
	fs := &faults{}
	l := open(t, audit.Config{Dir: t.TempDir(), FS: fs, Capacity: 2, TicketTimeout: 100 * time.Millisecond})
	release := make(chan struct{})
	fs.set(func(op, path string) error {
		if op == "write" {
			<-release
		}
		return nil
	})
	first, err := l.Submit(audit.Process, read("first"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Wait(t.Context()); !errors.Is(err, audit.ErrUnavailable) {
		t.Fatalf("ticket of a hanging disk: %v", err)
	}
	for range 2 {
		if _, err := l.Submit(audit.Process, read("queued")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Submit(audit.Process, read("refused")); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("a full channel accepted: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := first.Wait(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Wait with a context that is done: %v", err)
	}
	close(release)
	fs.set(nil)
	for range 2 { // twice: a ticket stays redeemable
		if receipt, err := first.Wait(t.Context()); err != nil || !receipt.Covers("Patient", "first", "") {
			t.Errorf("the late ticket: %v", err)
		}
	}
	if s := l.Stats(); s.Rejected != 1 {
		t.Errorf("%d events rejected", s.Rejected)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// While an fdatasync is under way, events that wait for the next one become one group, and whoever waits for write(2) only does
// not wait for the disk.
func TestSlowSync(t *testing.T) {
	fs := &faults{}
	l := open(t, audit.Config{Dir: t.TempDir(), FS: fs})
	syncing, release := make(chan struct{}, 1), make(chan struct{})
	fs.set(func(op, path string) error {
		if op == "datasync" {
			select {
			case syncing <- struct{}{}:
			default:
			}
			<-release
		}
		return nil
	})
	submit := func(level audit.Level) audit.Ticket {
		t.Helper()
		ticket, err := l.Submit(level, read("slow"))
		if err != nil {
			t.Fatal(err)
		}
		return ticket
	}
	tickets := []audit.Ticket{submit(audit.Power)}
	<-syncing
	for range 5 {
		tickets = append(tickets, submit(audit.Power))
	}
	time.Sleep(20 * time.Millisecond)
	before := l.Stats().GroupCommits
	if _, err := submit(audit.Process).Wait(t.Context()); err != nil {
		t.Fatalf("level process waits for the disk: %v", err)
	}
	if n := l.Stats().GroupCommits - before; n != 1 {
		t.Errorf("six submissions became %d groups", n)
	}
	close(release)
	for _, ticket := range tickets {
		if _, err := ticket.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// The database loses answers, refuses and disappears at random: every event is stored exactly once.
func TestStorageFails(t *testing.T) {
	var calls atomic.Uint64
	storage := audittest.Storage{Fail: func(step string) error {
		if n := calls.Add(1) * 0x9E3779B97F4A7C15 >> 61; n < 1 {
			return audittest.ErrDown
		}
		return nil
	}}
	l := open(t, audit.Config{Dir: t.TempDir(), Storage: &storage, SegmentBytes: 4096})
	ship(t, l)
	for i := range 200 {
		if _, err := l.Record(t.Context(), audit.Process, read(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if i%40 == 0 {
			drain(t, l)
		}
	}
	drain(t, l)
	rows := storage.Rows()
	contiguous(t, rows)
	for id, n := range patients(rows) {
		if n != 1 {
			t.Errorf("%s is stored %d times", id, n)
		}
	}
	if len(rows) != 201 {
		t.Errorf("%d rows", len(rows))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// A database with another history is not argued with: shipping stops, the journal goes on, health says so.
func TestStorageHasAnotherHistory(t *testing.T) {
	l := open(t, audit.Config{Dir: t.TempDir(), Storage: foreign{}})
	ship(t, l)
	for deadline := time.Now().Add(3 * time.Second); l.Healthy() == nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if err := l.Healthy(); !errors.Is(err, audit.ErrChain) {
		t.Errorf("healthy: %v", err)
	}
	if _, err := l.Record(t.Context(), audit.Power, read("p")); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

type foreign struct{}

func (foreign) Head(context.Context, audit.StreamID) (uint64, audit.Hash, error) {
	return 7, audit.Hash{1}, nil
}

func (foreign) Ingest(context.Context, audit.Batch) error { return audit.ErrChain }

// While the database is away a Database ticket is refused in its time, other levels go on, and nothing is lost.
func TestStorageAway(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	storage := audittest.Storage{Fail: func(string) error {
		if down.Load() {
			return audittest.ErrDown
		}
		return nil
	}}
	l := open(t, audit.Config{Dir: t.TempDir(), Storage: &storage, TicketTimeout: 50 * time.Millisecond})
	ship(t, l)
	if _, err := l.Record(t.Context(), audit.Database, read("export")); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("a Database ticket without a database: %v", err)
	}
	if _, err := l.Record(t.Context(), audit.Power, read("disclosure")); err != nil {
		t.Error(err)
	}
	if err := l.Healthy(); err != nil {
		t.Errorf("a database that is away makes the journal unhealthy: %v", err)
	}
	if s := l.Stats(); s.Pending != 3 || s.Lag <= 0 || s.Lag > time.Minute {
		t.Errorf("stats of an outage: %+v", s)
	}
	down.Store(false)
	drain(t, l)
	if seen := patients(storage.Rows()); seen["export"] != 1 || seen["disclosure"] != 1 {
		t.Errorf("stored %v", seen)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
