package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Experiment 1: kill -9 under load, again and again, on one data folder, now and then SIGTERM instead. Every response that a client
// received has its events in the trail, once; an intent without an outcome belongs to a request that nobody saw answered; and
// the next start takes over what is left. A panicking handler is TestMounts' of server/rest.
func TestKillStorm(t *testing.T) {
	rounds := form(20, 200)
	if testing.Short() {
		rounds = 3
	}
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &storm{asked: map[string]bool{}}
	var slowest time.Duration
	for round := range rounds {
		d, err := launch(dir, "--patients", "4")
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if round == 0 {
			s.Invariants = invariantsOf(t, dir)
		} else {
			slowest = max(slowest, d.took)
			s.look(t, d, fmt.Sprintf("after round %d", round-1))
		}
		stop := (*instance).kill
		if round%7 == 3 {
			stop = (*instance).terminate
		}
		s.load(t, d, round, stop)
	}
	d, err := launch(dir, "--patients", "4")
	if err != nil {
		t.Fatal(err)
	}
	defer d.interrupt()
	time.Sleep(time.Second) // what the killed processes left behind is shipped by now
	found := s.look(t, d, "at the end")
	answers := 0
	for _, answered := range s.asked {
		if answered {
			answers++
		}
	}
	t.Logf("%d kills, %d of %d requests answered, %d records, %d intents without outcome; slowest restart %s",
		rounds, answers, len(s.asked), found.Records, len(found.Unmatched), slowest)
	if answers < rounds {
		t.Errorf("only %d answers: the load did not load", answers)
	}
	for _, id := range found.Unmatched {
		if s.asked[id] {
			t.Errorf("%s was answered and its outcome is not in the trail", id)
		}
	}
	if len(found.Unmatched) > 0 {
		if listed := d.events(t, d.token(t, "officer-diaz"), "outcome=-1&limit=200", len(found.Unmatched)); len(listed) < min(200, len(found.Unmatched)) {
			t.Errorf("the officers' list has %d intents", len(listed))
		}
	}
}

// storm is a mixed load whose answers are all remembered.
type storm struct {
	*audittest.Invariants
	mu    sync.Mutex
	asked map[string]bool // request ids, and whether a whole answer came
}

// look re-checks every property against the running demo's database.
func (s *storm) look(t *testing.T, d *instance, when string) audittest.Findings {
	t.Helper()
	db := d.open(t)
	defer db.Close()
	s.Evidence = db.Tree()
	return holds(t, s.Invariants, when, audit.Process)
}

// load reads, searches, writes and is refused, from eight clients, until the server is stopped under them.
func (s *storm) load(t *testing.T, d *instance, round int, stop func(*instance) error) {
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	clinician, stranger, backend := d.token(t, "dr-rivera"), d.token(t, "dr-chen"), d.token(t, "app-backend")
	observation := `{"resourceType":"Observation","status":"final","code":{"text":"storm"},"subject":{"reference":"Patient/` + one.PatientOne + `"}}`
	routes := []struct {
		method, path, token, body string
		want                      int
		events                    int // exactly so many; 0: one or more
	}{
		{"GET", "/Patient/" + one.PatientOne, clinician, "", http.StatusOK, 1},
		{"GET", "/Patient/" + one.PatientOne, clinician, "", http.StatusOK, 1},
		{"GET", "/Patient/" + one.PatientOne, stranger, "", http.StatusNotFound, 1},
		{"GET", "/Observation?_count=3&patient=" + one.PatientOne, clinician, "", http.StatusOK, 0},
		{"POST", "/Observation", backend, observation, http.StatusCreated, 2},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				r := routes[(n+c)%len(routes)]
				id := fmt.Sprintf("storm-%d-%d-%d", round, c, n)
				s.mu.Lock()
				s.asked[id] = false
				s.mu.Unlock()
				req, err := http.NewRequestWithContext(ctx, r.method, d.FHIR+r.path, strings.NewReader(r.body))
				if err != nil {
					return
				}
				req.Header.Set("Authorization", "Bearer "+r.token)
				req.Header.Set("X-Request-Id", id)
				if r.body != "" {
					req.Header.Set("Content-Type", "application/fhir+json")
				}
				res, err := client.Do(req)
				if err != nil {
					return // killed
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil {
					return
				}
				if res.StatusCode != r.want {
					if res.StatusCode != http.StatusServiceUnavailable { // while it stops by itself
						t.Errorf("%s: %s\n%s", id, res.Status, body)
					}
					return
				}
				level := audit.Process
				if r.want == http.StatusOK {
					level = audit.Power
				}
				s.Acknowledge(audittest.Ack{Key: id, Level: level, Events: r.events, PHI: r.want == http.StatusOK && n%20 == 0})
				s.mu.Lock()
				s.asked[id] = true
				s.mu.Unlock()
			}
		})
	}
	time.Sleep(time.Duration(100+rand.IntN(form(600, 2900))) * time.Millisecond)
	if err := stop(d); err != nil && d.cmd.ProcessState.ExitCode() >= 0 {
		t.Errorf("stopping: %v\n%s", err, d.output)
	}
	wg.Wait()
}

// The embedded default comes back quickly on the same data, and after a kill -9 takes over what is left.
func TestRestart(t *testing.T) {
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := launch(dir, "--patients", "10")
	if err != nil {
		t.Fatal(err)
	}
	token := d.token(t, "app-backend")
	created := d.do(t, "POST", "/fhir/R4/Patient", token, `{"resourceType":"Patient","name":[{"family":"Restart"}]}`)
	if created.StatusCode != http.StatusCreated {
		t.Fatalf("create: %s\n%s", created.Status, created.body)
	}
	id := created.json(t)["id"].(string)
	for _, how := range []struct {
		name string
		stop func(*instance) error
	}{{"Ctrl-C", (*instance).interrupt}, {"kill -9", (*instance).kill}} {
		err := how.stop(d)
		if how.name == "Ctrl-C" && err != nil {
			t.Errorf("Ctrl-C: %v\n%s", err, d.output)
		}
		if d, err = launch(dir, "--patients", "10"); err != nil {
			t.Fatalf("start after %s: %v", how.name, err)
		}
		t.Logf("ready %s after %s", d.took, how.name)
		if res := d.do(t, "GET", "/fhir/R4/Patient/"+id, d.token(t, "app-backend"), ""); res.StatusCode != http.StatusOK {
			t.Errorf("after %s: %s", how.name, res.Status)
		}
	}
	second, err := launch(dir, "--patients", "10")
	if err == nil {
		second.interrupt()
		t.Error("two demos started on one folder")
	}
	d.interrupt()
	if pids := stillRunning(dir); len(pids) > 0 {
		t.Errorf("processes %v outlive the demo", pids)
	}
}

// stillRunning finds processes whose command line names the folder.
func stillRunning(dir string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// Without PostgreSQL every request for PHI is 503 with Retry-After, health says why, and when it is back so is the service,
// without a restart and with the events of the outage.
func TestDatabaseGone(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	token, officer := d.token(t, "dr-rivera"), d.token(t, "officer-diaz")
	path := "/fhir/R4/Patient/" + one.PatientOne
	if res := d.do(t, "GET", path, token, ""); res.StatusCode != http.StatusOK {
		t.Fatalf("before: %s", res.Status)
	}
	postmaster := postmasterPID(t, d.dir)
	// Stopping every backend is an outage that the demo does not heal by restarting PostgreSQL.
	signalTree(postmaster, syscall.SIGSTOP)
	began := time.Now()
	res := d.do(t, "GET", path, token, "", "X-Request-Id: outage")
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || res.json(t)["resourceType"] != "OperationOutcome" {
		t.Errorf("during the outage: %s %v\n%s", res.Status, res.Header, res.body)
	}
	t.Logf("refused after %s", time.Since(began))
	if ready := d.do(t, "GET", "/readyz", "", ""); ready.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(ready.body), "database") {
		t.Errorf("readyz: %s %s", ready.Status, ready.body)
	}
	signalTree(postmaster, syscall.SIGCONT)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if res = d.do(t, "GET", path, token, ""); res.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the outage: %s\n%s", res.Status, res.body)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for deadline := time.Now().Add(10 * time.Second); len(d.events(t, officer, "request_id=outage", 1)) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the refusal during the outage is not in the trail")
		}
	}
}

func postmasterPID(t *testing.T, dir string) int {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(dir, "postgres", "postmaster.pid"))
	if len(found) == 0 {
		found, _ = filepath.Glob(filepath.Join(dir, "postgres", "*", "postmaster.pid"))
	}
	if len(found) == 0 {
		t.Fatal("no postmaster.pid")
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.SplitN(string(b), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// signalTree signals a process and its children.
func signalTree(pid int, sig syscall.Signal) {
	syscall.Kill(pid, sig)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(s)))
			syscall.Kill(child, sig)
		}
	}
}

// Experiment 4, the journal's volume: PHI requests turn to 503 before an event is lost, health says why, and when there is room again
// the service is back without a restart, with the outage in the trail.
func TestJournalDiskFull(t *testing.T) {
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	journal := filepath.Join(dir, demoJournal)
	if err := os.Mkdir(journal, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", journal, "tmpfs", 0, "size=12m"); err != nil {
		t.Skipf("SKIPPED: a small disk cannot be mounted here (%v); audit's own tests make every call of the file system fail", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(journal, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	d, err := launch(dir, "--patients", "2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.interrupt()
		if damaged, _ := filepath.Glob(filepath.Join(journal, "*", "*.damaged")); len(damaged) > 0 {
			t.Errorf("recovery found damage: %v", damaged)
		}
	})
	one, err := readPopulation(dir)
	if err != nil {
		t.Fatal(err)
	}
	token := d.token(t, "dr-rivera")
	path := "/fhir/R4/Patient/" + one.PatientOne
	v := d.invariants(t)
	calm := shipped(t, v, "before")
	ballast := filepath.Join(journal, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 1<<16)
	refused := false
	for n := 0; n < 20000 && !refused; n++ {
		for n%100 == 0 { // whatever the journal gave back is taken
			if _, err := f.Write(chunk); err != nil {
				break
			}
		}
		id := fmt.Sprintf("full-%d", n)
		switch res := d.do(t, "GET", path, token, "", "X-Request-Id: "+id); res.StatusCode {
		case http.StatusOK:
			v.Acknowledge(audittest.Ack{Key: id, Level: audit.Power, Events: 1})
		case http.StatusServiceUnavailable:
			refused = true
			if res.Header.Get("Retry-After") == "" || strings.Contains(string(res.body), one.PatientOne) {
				t.Errorf("refusal: %v\n%s", res.Header, res.body)
			}
		default:
			t.Fatalf("request %d: %s\n%s", n, res.Status, res.body)
		}
	}
	if !refused {
		t.Fatal("the disk never filled")
	}
	if ready := d.do(t, "GET", "/readyz", "", ""); ready.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(ready.body), "journal") {
		t.Errorf("readyz: %s %s", ready.Status, ready.body)
	}
	holds(t, v, "while it is full", audit.Process)
	f.Close()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); d.do(t, "GET", path, token, "").StatusCode != http.StatusOK; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the service does not come back when there is room again")
		}
	}
	for deadline := time.Now().Add(10 * time.Second); shipped(t, v, "when there is room again").Alerts <= calm.Alerts; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the outage is not in the trail")
		}
	}
}
