package audit_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// TestChild is the process that TestKill kills: it records for ever and prints what was acknowledged.
func TestChild(t *testing.T) {
	dir, round := os.Getenv("AUDIT_CHILD_DIR"), os.Getenv("AUDIT_CHILD_ROUND")
	if dir == "" {
		t.Skip("runs as a child of TestKill")
	}
	l := open(t, audit.Config{Dir: dir, SegmentBytes: 256 << 10})
	for w := range 16 {
		go func() {
			for i := 0; ; i++ {
				e := read(fmt.Sprintf("%s-%d-%d", round, w, i))
				if _, err := l.Record(context.Background(), audit.Process+audit.Level(w%2), e); err != nil {
					panic(err)
				}
				fmt.Println("ACK", e.Patient) // one write(2)
			}
		}()
	}
	select {}
}

// A process is killed in the middle of its work, again and again: each event that it acknowledged is found, once.
func TestKill(t *testing.T) {
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	dir := t.TempDir()
	acknowledged := map[string]bool{}
	for round := range rounds {
		child := exec.Command(os.Args[0], "-test.run=^TestChild$")
		child.Env = append(os.Environ(), "AUDIT_CHILD_DIR="+dir, fmt.Sprint("AUDIT_CHILD_ROUND=", round))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(30*time.Millisecond+rand.N(120*time.Millisecond), func() { _ = child.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if id, ok := strings.CutPrefix(lines.Text(), "ACK "); ok {
				acknowledged[id] = true
			}
		}
		_ = child.Wait() // killed
		kill.Stop()
	}
	var storage audittest.Storage
	l := open(t, audit.Config{Dir: dir, Storage: &storage})
	ship(t, l)
	drain(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rows := storage.Rows()
	contiguous(t, rows)
	seen := patients(rows)
	for id := range acknowledged {
		if seen[id] != 1 {
			t.Fatalf("acknowledged event %s is found %d times", id, seen[id])
		}
	}
	streams := map[audit.StreamID]bool{}
	for _, r := range rows {
		streams[r.Stream] = true
	}
	if len(acknowledged) < 100 || len(streams) != 1 {
		t.Errorf("%d acknowledged events in %d streams", len(acknowledged), len(streams))
	}
	t.Logf("%d rounds, %d events acknowledged, %d found", rounds, len(acknowledged), len(seen))
}

// written makes a stream of several segments whose events are all acknowledged at level power, and returns its directory.
func written(t *testing.T) (dir, stream string) {
	dir = t.TempDir()
	l := open(t, audit.Config{Dir: dir, SegmentBytes: 2048})
	for i := range 20 {
		if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint("p", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, l.Stream().String()
}

// Every region of a journal is damaged in every way: the log always starts, never returns altered bytes as an event,
// loses nothing before the damage, and says that something was lost.
func TestDamage(t *testing.T) {
	dir, stream := written(t)
	segments, err := filepath.Glob(filepath.Join(dir, stream, "*.journal"))
	if err != nil || len(segments) < 3 {
		t.Fatalf("segments %v, %v", segments, err)
	}
	damages := map[string]func(b []byte, at int) []byte{
		"flip":     func(b []byte, at int) []byte { b[at] ^= 1 << (at % 8); return b },
		"truncate": func(b []byte, at int) []byte { return b[:at] },
		"zero":     func(b []byte, at int) []byte { clear(b[at:min(len(b), at+512)]); return b },
		"append":   func(b []byte, at int) []byte { return append(b, hex.AppendEncode(nil, b[at:])...) },
		"duplicate": func(b []byte, at int) []byte {
			copy(b[at:], b[:min(at, 512)])
			return b
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i, path := range segments {
				original, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				for at := 0; at < len(original); at += 131 {
					damaged := damage(append([]byte(nil), original...), at)
					copied := t.TempDir()
					if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
					target := filepath.Join(copied, stream, filepath.Base(path))
					if err := os.WriteFile(target, damaged, 0o600); err != nil {
						t.Fatal(err)
					}
					survives(t, fmt.Sprintf("segment %d at %d", i, at), copied, stream, string(damaged) == string(original))
				}
			}
		})
	}
}

// What can be read behind a damaged record is recorded again in the new stream, once.
func TestRescue(t *testing.T) {
	dir, stream := written(t)
	segments, _ := filepath.Glob(filepath.Join(dir, stream, "*.journal"))
	b, err := os.ReadFile(segments[1])
	if err != nil {
		t.Fatal(err)
	}
	b[400] ^= 1
	if err := os.WriteFile(segments[1], b, 0o600); err != nil {
		t.Fatal(err)
	}
	var storage audittest.Storage
	for range 2 {
		l := open(t, audit.Config{Dir: dir, Storage: &storage})
		ship(t, l)
		for deadline := time.Now().Add(3 * time.Second); len(patients(storage.Rows())) < 19 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		drain(t, l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	rows := storage.Rows()
	contiguous(t, rows)
	seen := patients(rows)
	if len(seen) != 19 {
		t.Errorf("%d of 20 events are left; one was damaged", len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s is stored %d times", id, n)
		}
	}
	alerts := alertsIn(&storage)
	if len(alerts) != 2 {
		t.Errorf("%d alerts, want the damage and the rescue", len(alerts))
	}
}

// survives opens a damaged directory, ships what can be read, and checks that it is a prefix of what was written.
func survives(t *testing.T, where, dir, stream string, intact bool) {
	t.Helper()
	var storage audittest.Storage // checks every row
	l, err := audit.Open(audit.Config{Dir: dir, Storage: &storage, SegmentBytes: 2048})
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	waiting, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	if err := l.Drain(waiting); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	deadline := time.Now().Add(200 * time.Millisecond)
	for l.Stream().String() != stream && len(storage.Rows()) < 3 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("%s: %v", where, err)
	}
	contiguous(t, storage.Rows())
	seen := patients(storage.Rows())
	alerts := alertsIn(&storage)
	if len(seen) < 20 && len(alerts) == 0 {
		t.Errorf("%s: %d of 20 events are left and nobody was told", where, len(seen))
	}
	if intact && len(seen) != 20 {
		t.Errorf("%s: %d of 20 events of an intact journal", where, len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s: %s is stored %d times", where, id, n)
		}
	}
}

// alertsIn are the security alerts that a storage holds, newest first.
func alertsIn(storage *audittest.Storage) []audit.Stored {
	found, _ := storage.Find(context.Background(), audit.Query{Terms: []audit.Term{audit.Is(audit.FieldType, string(audit.TypeSecurityAlert))}})
	return found.Events
}
