package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Experiment 8: three servers of one deployment elect a sequencer. Each in turn is stopped (SIGSTOP) and loses its connection, as
// the lone side of a partition does, while the others go on; then it wakes up and still believes to lead. The tree keeps
// growing, and a witness, a process of its own that sees every checkpoint, never has two trees before it.
func TestLeaderPartitioned(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	v := d.invariants(t)
	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	w := watch(t, d)
	one, two := t.TempDir(), t.TempDir()
	v.Journals = append(v.Journals, one, two)
	first := employ(t, d, v, one, "first")
	second := employ(t, d, v, two, "second")
	size := grows(t, v, w, 0)
	for round := range form(1, 20) {
		for _, p := range []struct {
			name    string
			process *os.Process
		}{{"the demo", d.cmd.Process}, {"the first scribe", first.cmd.Process}, {"the second scribe", second.cmd.Process}} {
			if err := p.process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			deposed := depose(t, admin)
			size = grows(t, v, w, size)
			if err := p.process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			size = grows(t, v, w, size)
			t.Logf("round %d: %s was away, %d connections were lost, the tree has %d leaves", round, p.name, deposed, size)
		}
	}
	deposed := 0
	for range 20 { // and in the middle of anything
		deposed += depose(t, admin)
		time.Sleep(50 * time.Millisecond)
	}
	if deposed == 0 {
		t.Error("no sequencer ever lost its connection: the experiment shows nothing")
	}
	size = grows(t, v, w, size)
	first.dismiss(t, syscall.SIGTERM)
	second.dismiss(t, syscall.SIGTERM)
	shipped(t, v, "at the end")
	t.Logf("the witness cosigned %d checkpoints up to %d leaves", w.cosigned, size)
}

// depose ends the connections on which sequencers lead.
func depose(t *testing.T, admin *pgx.Conn) (n int) {
	t.Helper()
	if err := admin.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE '%sequencer%'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// grows waits until the tree is larger, checking every property and showing the witness every new checkpoint.
func grows(t *testing.T, v *audittest.Invariants, w *witnessing, from int64) int64 {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		holds(t, v, "while the tree grows", audit.Process)
		w.show(t, v)
		if w.size > from {
			return w.size
		}
		if t.Failed() || time.Now().After(deadline) {
			t.Fatalf("the tree has %d leaves and does not grow", from)
		}
	}
}

// witnessing is a running witness and what it has cosigned.
type witnessing struct {
	url      string
	size     int64
	cosigned int
}

// watch starts a witness of the demo's log, by the program's own verb.
func watch(t *testing.T, d *instance) *witnessing {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if out, err := exec.Command("chartkeep", "audit", "keygen", "--witness", "witness.example/w1", "--out", key).CombinedOutput(); err != nil {
		t.Fatalf("keygen: %v\n%s", err, out)
	}
	cmd := exec.Command("chartkeep", "audit", "witness", "--listen", "127.0.0.1:0", "--key", key, "--state", filepath.Join(dir, "state"), "--log", d.CheckpointKey)
	var said safeBuffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the witness ended with %v\n%s", err, &said)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	at := strings.Index(line, "http://")
	if err != nil || at < 0 {
		t.Fatalf("the witness said %q, %v\n%s", line, err, &said)
	}
	return &witnessing{url: strings.TrimSpace(line[at:])}
}

// show has every checkpoint that the log published since, up to where the tree was recomputed, cosigned
// (https://c2sp.org/tlog-witness): any answer but a signature is a fork or a rollback.
func (w *witnessing) show(t *testing.T, v *audittest.Invariants) {
	t.Helper()
	notes, err := v.Evidence.Checkpoints(t.Context(), w.size, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, signed := range notes {
		size, err := strconv.ParseInt(strings.SplitN(string(signed), "\n", 3)[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := v.Prove(w.size, size)
		if err != nil {
			return // newer than the last check: next time
		}
		var body bytes.Buffer
		fmt.Fprintf(&body, "old %d\n", w.size)
		for _, h := range proof {
			fmt.Fprintln(&body, h)
		}
		fmt.Fprintf(&body, "\n%s", signed)
		res, err := http.Post(w.url+"/add-checkpoint", "text/plain", &body)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusOK || !bytes.Contains(answer, []byte("witness.example/w1")) {
			t.Fatalf("the witness refuses the checkpoint of %d leaves after %d: %s %s", size, w.size, res.Status, answer)
		}
		w.size, w.cosigned = size, w.cosigned+1
	}
}
