package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/demo"
)

// form picks an experiment's size: short in CI, long where CHARTKEEP_LONG is set (task test:audit:long).
func form[T any](short, long T) T {
	if longForm {
		return long
	}
	return short
}

// laboratory is a deployment inside this process: a private PostgreSQL, the rooms and the HTTP surface, with a network in
// between that can fail. What an experiment needs a process of its own for, it starts with launch.
type laboratory struct {
	*audittest.Invariants
	dir      string
	cluster  *demo.Cluster
	network  *network
	settings *settings
	rooms    *rooms
	api      *benchServer
	patients []string // whom dr-rivera treats
	sink     *programLog
	requests atomic.Int64
}

// openLaboratory starts one. The network fails for connections of the role only, "" for all.
func openLaboratory(t *testing.T, level audit.Level, role string) *laboratory {
	t.Helper()
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lab := &laboratory{dir: dir}
	if lab.cluster, err = demo.StartCluster(t.Context(), demo.ClusterConfig{Dir: dir, Install: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	if lab.settings, _, err = prepare(t.Context(), dir, lab.cluster, level); err != nil {
		t.Fatal(err)
	}
	if _, err := ensureCheckpointKey(filepath.Join(dir, demoCheckpoint)); err != nil {
		t.Fatal(err)
	}
	lab.network = between(t, lab.settings.databaseDSN, role)
	lab.settings.databaseDSN = lab.network.url
	file, err := os.Create(filepath.Join(dir, demoLog))
	if err != nil {
		t.Fatal(err)
	}
	lab.sink = newLog(file)
	t.Cleanup(func() { lab.sink.close(); file.Close() })
	if lab.rooms, err = openRooms(t.Context(), lab.settings, lab.sink.Logger); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.rooms.close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	bench := &benchVerb{Patients: 6}
	if lab.patients, err = bench.fill(t.Context(), lab.rooms.records, terminal{io.Discard, io.Discard}); err != nil {
		t.Fatal(err)
	}
	levels := phi.Levels{Disclosure: level, Other: audit.Process}
	if lab.api, err = benchAPI(t.Context(), lab.rooms, dir, levels, loadLimits(), lab.sink.Logger); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.api.close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	lab.Invariants = invariantsOf(t, dir)
	lab.Evidence = lab.rooms.db.Tree()
	return lab
}

// invariantsOf watches a demo's folder; the evidence is the caller's to set.
func invariantsOf(t testing.TB, dir string) *audittest.Invariants {
	t.Helper()
	v := &audittest.Invariants{Journals: []string{filepath.Join(dir, demoJournal)}}
	b, err := os.ReadFile(filepath.Join(dir, demoCheckpoint+".pub"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := note.NewVerifier(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	v.Keys = note.VerifierList(key)
	return v
}

// invariants watches a demo: its folder, and the trail in its database.
func (d *instance) invariants(t testing.TB) *audittest.Invariants {
	t.Helper()
	v := invariantsOf(t, d.dir)
	db := d.open(t)
	t.Cleanup(db.Close)
	v.Evidence = db.Tree()
	return v
}

// holds fails the test for each property that does not hold after a step.
func holds(t *testing.T, v *audittest.Invariants, when string, survives audit.Level) audittest.Findings {
	t.Helper()
	found, err := v.Check(t.Context(), survives)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	report(t, when, found)
	return found
}

// report says what is violated: the first few of each step tell enough.
func report(t *testing.T, when string, found audittest.Findings) {
	t.Helper()
	for i, x := range found.Violations {
		if i == 5 {
			t.Errorf("%s: and %d more", when, len(found.Violations)-i)
			break
		}
		t.Errorf("%s: %s", when, x)
	}
}

// drained waits until the trail is in the database and in the tree.
func (lab *laboratory) drained(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := lab.rooms.log.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		rest, err := lab.Evidence.Unsequenced(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(rest) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// paced reads charts at a fixed rate for a while, whatever the answers take, and returns how long they took, from the moment
// at which each was due. Answers other than 200 are counted by status; each 200 is acknowledged to the invariants.
func (lab *laboratory) paced(t *testing.T, perSecond int, d time.Duration) (took []time.Duration, others map[int]int) {
	t.Helper()
	const callers = 8
	gap := time.Second * callers / time.Duration(perSecond)
	others = map[int]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for c := range callers {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
			defer client.CloseIdleConnections()
			for due := start.Add(gap * time.Duration(c) / callers); due.Sub(start) < d; due = due.Add(gap) {
				time.Sleep(time.Until(due))
				status, err := lab.read(t.Context(), client)
				late := time.Since(due)
				mu.Lock()
				switch {
				case err != nil:
					others[0]++
				case status != http.StatusOK:
					others[status]++
				default:
					took = append(took, late)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took, others
}

// read is one chart read; every fiftieth is looked up in the journal the moment its answer is there.
func (lab *laboratory) read(ctx context.Context, client *http.Client) (int, error) {
	n := lab.requests.Add(1)
	id := fmt.Sprintf("lab-%d", n)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, lab.api.base+lab.patients[n%int64(len(lab.patients))], nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+lab.api.token)
	req.Header.Set("X-Request-Id", id)
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return 0, err
	}
	if res.StatusCode == http.StatusOK {
		lab.Acknowledge(audittest.Ack{Key: id, Level: lab.settings.level, Events: 1, PHI: n%50 == 0})
	}
	return res.StatusCode, nil
}

func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}
