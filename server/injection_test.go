package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Experiment 5, on the real program: the kernel answers one of its system calls with an error, or late. No request is answered
// whose event was affected, the program goes on by itself, and the journal is whole. Every call of the journal's file system,
// each error at each of its places, is TestOneCallFails' of audit.
func TestSystemCallsFail(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("SKIPPED: no strace here to make system calls fail; audit's own tests fail each call of the file system")
	}
	d := demoFresh(t, "--patients", "2")
	if out, err := exec.Command(strace, "-p", strconv.Itoa(d.cmd.Process.Pid), "-e", "trace=none", "-o", "/dev/null", "-V").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: strace does not run here: %s", out)
	}
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	token := d.token(t, "dr-rivera")
	v := d.invariants(t)
	read := func(id string) int {
		res := d.do(t, "GET", "/fhir/R4/Patient/"+one.PatientOne, token, "", "X-Request-Id: "+id)
		if res.StatusCode == http.StatusOK {
			v.Acknowledge(audittest.Ack{Key: id, Level: audit.Power, Events: 1, PHI: true})
		}
		return res.StatusCode
	}
	for i, inject := range []string{
		"pwrite64:error=EIO:when=3", "pwrite64:error=ENOSPC:when=3", "pwrite64:error=EINTR:when=3", "pwrite64:error=EAGAIN:when=3",
		"fdatasync:error=EIO:when=3", "fdatasync:error=ENOSPC:when=3", "fdatasync:error=EINTR:when=3", "fdatasync:delay_enter=" + form("2500000", "5000000") + ":when=3",
		"pwrite64,openat,fdatasync:error=EIO:when=3..40",
	} {
		t.Run(inject, func(t *testing.T) {
			logged := troubles(t, d)
			detach := attach(t, strace, d, inject)
			refused, answered := 0, 0
			for n := 0; n < 25; n++ {
				switch status := read(fmt.Sprintf("inject-%d-%d", i, n)); status {
				case http.StatusOK:
					answered++
				case http.StatusServiceUnavailable:
					refused++
				default:
					t.Errorf("a read was answered %d", status)
				}
			}
			detach()
			for deadline := time.Now().Add(15 * time.Second); read(fmt.Sprintf("inject-%d-after-%d", i, time.Now().UnixNano())) != http.StatusOK; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the service does not come back by itself")
				}
			}
			t.Logf("%d answered, %d refused", answered, refused)
			// Go tries again after EINTR by itself; a late answer is refused, not logged.
			if harmless := strings.Contains(inject, "EINTR"); !harmless && refused == 0 && troubles(t, d) == logged {
				t.Error("no call failed: the experiment shows nothing")
			}
			found := holds(t, v, inject, audit.Process)
			if len(found.Torn) > 0 {
				t.Logf("torn: %v", found.Torn)
			}
		})
	}
	select {
	case err := <-d.exited:
		t.Fatalf("the program ended: %v\n%s", err, d.output)
	default:
	}
	damaged, _ := filepath.Glob(filepath.Join(d.dir, demoJournal, "*", "*.damaged"))
	if len(damaged) > 0 {
		t.Errorf("recovery found damage: %v", damaged)
	}
}

// troubles counts what the program logged about its journal.
func troubles(t *testing.T, d *instance) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, demoLog))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("audit journal cannot be"))
}

// attach makes system calls of the program fail, not those of PostgreSQL, until it is detached.
func attach(t *testing.T, strace string, d *instance, inject string) (detach func()) {
	t.Helper()
	calls, _, _ := strings.Cut(inject, ":")
	cmd := exec.Command(strace, "-f", "-p", strconv.Itoa(d.cmd.Process.Pid), "-o", "/dev/null", "-e", "trace="+calls, "-e", "inject="+inject)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var heard bytes.Buffer
	lines := bufio.NewScanner(said)
	attached := false
	for lines.Scan() {
		fmt.Fprintln(&heard, lines.Text())
		if attached = strings.Contains(lines.Text(), "attached"); attached {
			break
		}
	}
	if !attached {
		_ = cmd.Wait()
		t.Skipf("SKIPPED: strace may not attach here: %s", &heard)
	}
	go func() {
		for lines.Scan() { // it must not block on a full pipe
		}
	}()
	return func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	}
}
