package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// scribeMain is a second server of a demo's deployment, as a process of its own without an HTTP surface: every room on the demo's
// database, a journal in the folder that it is given, and events recorded one after the other for as long as it lives. It
// prints "ACK key" for each receipt and "REFUSED key" for each refusal. When its standard input ends it records no more and lives on.
func scribeMain() {
	dir, journal, name := os.Args[1], os.Args[2], os.Args[3]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := func() error {
		f, err := readDemoFile(dir)
		if err != nil {
			return err
		}
		s, err := demoSettings(dir, f.DatabaseURL, audit.Power)
		if err != nil {
			return err
		}
		s.journal = journal
		log := newLog(os.Stderr)
		defer log.close()
		r, err := openRooms(ctx, s, log.Logger)
		if err != nil {
			return err
		}
		fmt.Println("READY", r.log.Stream())
		resting := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			close(resting)
		}()
		for n := 0; ctx.Err() == nil; n++ {
			select {
			case <-resting:
				<-ctx.Done()
				continue
			default:
			}
			key := fmt.Sprintf("%s-%d", name, n)
			verdict := "ACK"
			e := &audit.Event{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, RequestID: key, Agent: audit.Agent{User: "scribe"}}
			if _, err := r.log.Record(ctx, audit.Power, e); err != nil {
				verdict = "REFUSED"
			}
			fmt.Println(verdict, key) // one write(2)
			time.Sleep(2 * time.Millisecond)
		}
		return r.close(context.WithoutCancel(ctx))
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// scribe is that process.
type scribe struct {
	cmd    *exec.Cmd
	stream string
	output *safeBuffer
	exited chan error
	work   io.Closer

	mu            sync.Mutex
	acks, refused int
	last          string
}

// employ starts a scribe on a running demo's deployment; what it is told goes to the invariants.
func employ(t *testing.T, d *instance, v *audittest.Invariants, journal, name string) *scribe {
	t.Helper()
	s := &scribe{output: &safeBuffer{}, exited: make(chan error, 1)}
	s.cmd = exec.Command("scribe", d.dir, journal, name)
	s.cmd.Stderr = s.output
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if s.work, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			verdict, key, _ := strings.Cut(lines.Text(), " ")
			s.mu.Lock()
			switch verdict {
			case "READY":
				ready <- key
			case "ACK":
				s.acks, s.last = s.acks+1, key
				v.Acknowledge(audittest.Ack{Key: key, Level: audit.Power, Events: 1})
			case "REFUSED":
				s.refused++
			}
			s.mu.Unlock()
		}
		s.exited <- s.cmd.Wait()
	}()
	t.Cleanup(func() {
		s.signal(syscall.SIGCONT)
		s.signal(syscall.SIGKILL)
	})
	select {
	case s.stream = <-ready:
	case <-time.After(30 * time.Second):
		t.Fatalf("the scribe did not start\n%s", s.output)
	}
	return s
}

func (s *scribe) signal(sig syscall.Signal) { _ = s.cmd.Process.Signal(sig) }

// rest lets the scribe record no more, and live on to ship what it has.
func (s *scribe) rest() { s.work.Close() }

// counts returns how many events were acknowledged and refused so far.
func (s *scribe) counts() (acks, refused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acks, s.refused
}

// writes waits until the scribe has had n more receipts.
func (s *scribe) writes(t *testing.T, n int) {
	t.Helper()
	from, _ := s.counts()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		acks, refused := s.counts()
		if acks >= from+n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the scribe had %d receipts and %d refusals\n%s", acks, refused, s.output)
		}
	}
}

// dismiss ends the process and waits for it.
func (s *scribe) dismiss(t *testing.T, sig syscall.Signal) {
	t.Helper()
	s.signal(sig)
	select {
	case err := <-s.exited:
		if sig == syscall.SIGTERM && err != nil {
			t.Errorf("the scribe ended with %v\n%s", err, s.output)
		}
	case <-time.After(60 * time.Second):
		t.Fatalf("the scribe did not end\n%s", s.output)
	}
}

// shipped waits until every event that a scribe was told of is stored, and checks all properties on the database alone: the
// journals of twins contradict each other, the trail may not.
func shipped(t *testing.T, v *audittest.Invariants, when string) audittest.Findings {
	t.Helper()
	journals := v.Journals
	v.Journals = nil
	defer func() { v.Journals = journals }()
	for deadline := time.Now().Add(form(30*time.Second, 2*time.Minute)); ; time.Sleep(200 * time.Millisecond) {
		found, err := v.Check(t.Context(), audit.Process)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if len(found.Violations) == 0 || time.Now().After(deadline) {
			report(t, when, found)
			return found
		}
	}
}

// cloned copies a stream's directory as a snapshot of a virtual machine would, without its lock.
func cloned(t *testing.T, journal, stream string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, stream), os.DirFS(filepath.Join(journal, stream))); err != nil {
		t.Fatal(err)
	}
	return to
}
