package main

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// Experiment 8: two servers on one journal folder. Each takes a stream of its own; when one dies, the other ships what it left.
func TestTwoServersOneJournal(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	v := d.invariants(t)
	journal := filepath.Join(d.dir, demoJournal)
	first := employ(t, d, v, journal, "first")
	second := employ(t, d, v, journal, "second")
	if first.stream == second.stream {
		t.Fatalf("two processes write stream %s", first.stream)
	}
	first.writes(t, 50)
	second.writes(t, 50)
	holds(t, v, "both at work", audit.Process)
	second.dismiss(t, syscall.SIGKILL)
	first.writes(t, 20)
	holds(t, v, "one is dead", audit.Process)
	first.rest()
	shipped(t, v, "one is dead") // by the other, or by the demo's own server
	first.dismiss(t, syscall.SIGTERM)
	shipped(t, v, "both are gone")
}

// Experiment 8: a server is stopped for a while (SIGSTOP), its journal is shipped from a clone on another host, which also writes on in
// the same stream, and then it wakes up. Exactly one of the two goes on in the stream; no acknowledged event of either is lost.
func TestCloneAndZombie(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	v := d.invariants(t)
	journal := t.TempDir()
	original := employ(t, d, v, journal, "original")
	original.writes(t, 50)
	original.signal(syscall.SIGSTOP)
	time.Sleep(100 * time.Millisecond)
	elsewhere := cloned(t, journal, original.stream)
	clone := employ(t, d, v, elsewhere, "clone")
	if clone.stream != original.stream {
		t.Fatalf("the clone writes stream %s, not %s", clone.stream, original.stream)
	}
	clone.writes(t, 50)
	time.Sleep(form(2*time.Second, 10*time.Minute))
	original.signal(syscall.SIGCONT)
	original.writes(t, 20) // on another stream by now, or about to be
	clone.writes(t, 20)
	original.rest()
	clone.rest()
	// The loser cannot know which of its records the winner has stored, so these are there twice, with one id.
	v.Twins = true
	found := shipped(t, v, "both awake")
	if found.Alerts == 0 {
		t.Error("nobody was told that a stream has two writers")
	}
	if t.Failed() {
		t.Logf("the original:\n%s\nthe clone:\n%s", original.output, clone.output)
	}
	original.dismiss(t, syscall.SIGTERM)
	clone.dismiss(t, syscall.SIGTERM)
	shipped(t, v, "both are gone")
}
