package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// settled holds what a finished rotation leaves: every key active, every row under its subject's active key, one key-encryption key
// and one generation of the index; and that every stored row opens and is what the trail says.
func (d *instance) settled(t *testing.T, when string) {
	t.Helper()
	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	for what, count := range map[string]string{
		"keys that are not active":      `SELECT count(*) FROM phi_key WHERE state <> 'active'`,
		"segments with two active keys": `SELECT count(*) FROM (SELECT FROM phi_key WHERE state = 'active' GROUP BY subject, segment HAVING count(*) > 1) k`,
		"rows under another key than the active": `SELECT count(*) FROM (SELECT subject, segment, key_id FROM record UNION ALL SELECT subject, segment, key_id FROM record_version) r
			WHERE NOT EXISTS (SELECT FROM phi_key k WHERE k.subject = r.subject AND k.segment = r.segment AND k.key_id = r.key_id AND k.state = 'active')`,
		"key-encryption keys but one":          `SELECT count(*) - 1 FROM phi_kek`,
		"generations of the index but one":     `SELECT count(*) - 1 FROM index_generation`,
		"records of another generation":        `SELECT count(*) FROM record WHERE index_id NOT IN (SELECT id FROM index_generation)`,
		"rotations of every key that go on":    `SELECT count(*) FROM phi_renewal WHERE finished IS NULL`,
		"tokens of records that are not there": `SELECT count(*) FROM index_token t WHERE NOT EXISTS (SELECT FROM record r WHERE r.type = t.type AND r.id = t.id)`,
		"patients without tokens":              `SELECT count(*) FROM record r WHERE type = 'Patient' AND method <> 'DELETE' AND NOT EXISTS (SELECT FROM index_token t WHERE t.type = r.type AND t.id = r.id)`,
	} {
		var n int
		if err := admin.QueryRow(t.Context(), count).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s: %d %s (%v)", when, n, what, err)
		}
	}
	d.opens(t, when)
}

// opens holds that every stored row opens.
func (d *instance) opens(t *testing.T, when string) {
	t.Helper()
	if out, errs, code := d.verb(t, "sweep", "--data", d.dir); code != 0 {
		t.Errorf("%s: the sweep found\n%s\n%s", when, out, errs)
	}
}

// TestKeysVerbs replaces keys on a running demo as an operator does, also by two rotators at once (experiment 11).
func TestKeysVerbs(t *testing.T) {
	d := demoFresh(t, "--patients", "12")
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	summary := func() (s postgres.KeySummary) {
		t.Helper()
		out, errs, code := d.verb(t, "keys", "list", "--json", "--data", d.dir)
		if err := json.Unmarshal([]byte(out), &s); err != nil || code != 0 {
			t.Fatalf("keys list: %d, %v\n%s%s", code, err, out, errs)
		}
		return s
	}
	before := summary()
	if len(before.KEKs) != 1 || before.KEKs[0].ID != "kek-1" || before.KEKs[0].DataKeys < 13 || before.Turning != 0 || before.Due != 0 {
		t.Errorf("summary %+v", before)
	}
	must := func(want string, args ...string) {
		t.Helper()
		out, errs, code := d.verb(t, append([]string{"keys"}, append(args, "--data", d.dir, "--by", "ines")...)...)
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("keys %v: exit code %d, want %q in\n%s%s", args, code, want, out, errs)
		}
	}
	must("1 data keys replaced, ", "rotate", one.PatientOne)
	must("0 data keys replaced, ", "rotate")
	must("data keys replaced, ", "rotate", "--organisation")
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { must("nothing names a key that was replaced", "rotate", "--all", "--jobs", "3") })
	}
	wg.Wait()
	d.settled(t, "after two rotators")
	must("kek-2, wrapped by file, wraps every key now", "rewrap")
	must("tokens of ", "rotate", "--index", "--name-search", "exact")
	d.settled(t, "after all")
	out, _, code := d.verb(t, "keys", "list", "--data", d.dir)
	if code != 0 || !strings.Contains(out, "Nothing is in progress, and nothing is due.") || !strings.Contains(out, "kek-2") {
		t.Errorf("keys list: %d\n%s", code, out)
	}
	for _, args := range [][]string{
		{"rotate", "--all", one.PatientOne}, {"rotate", "--all", "--index"}, {"rotate", "no/id"}, {"rotate", "--name-search", "exact"}, {"rotate", "--jobs", "0"}, {"rotate", "--rate", "-1"},
	} {
		if _, errs, code := d.verb(t, append(append([]string{"keys"}, args...), "--data", d.dir)...); code != 2 {
			t.Errorf("keys %v: exit code %d\n%s", args, code, errs)
		}
	}
	if _, errs, code := d.verb(t, "keys", "rotate", "nobody", "--data", d.dir); code != 1 || !strings.Contains(errs, "patient") {
		t.Errorf("of a patient who is not there: %d\n%s", code, errs)
	}
	officer := d.token(t, "officer-diaz")
	for _, interaction := range []string{"key-rotate", "key-activate", "key-reseal", "key-destroy", "key-rewrap", "index-rotate", "key-reindex"} {
		if events := d.events(t, officer, "agent=ines&interaction="+interaction, 1); len(events) == 0 {
			t.Errorf("no event of %s", interaction)
		}
	}
}

// TestRotationKilled is experiment 9: rotators, the server that writes, and PostgreSQL are killed at random points while everything goes
// on. Nothing that was answered is lost, every row opens at any time, and in the end everything is under new keys.
func TestRotationKilled(t *testing.T) {
	rounds := form(8, 100)
	if testing.Short() {
		rounds = 2
	}
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := launch(dir, "--patients", "30")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { d.interrupt() }()
	one, err := readPopulation(dir)
	if err != nil {
		t.Fatal(err)
	}
	var answered sync.Map // ids of observations that a client was told of
	died := map[string]int{}
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		token := d.token(t, "app-backend")
		for range 2 {
			wg.Go(func() { d.observe(ctx, token, one.PatientOne, &answered) })
		}
		var rotators []*exec.Cmd
		for _, args := range [][]string{{"rotate", "--all"}, {"rotate", "--all", "--jobs", "1"}, {"rewrap"}, {"rotate", "--index"}}[:2+rand.IntN(3)] {
			cmd := exec.Command("chartkeep", append(append([]string{"keys"}, args...), "--data", dir)...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			rotators = append(rotators, cmd)
		}
		time.Sleep(time.Duration(50+rand.IntN(1500)) * time.Millisecond)
		victim := []string{"rotators", "server", "PostgreSQL", "rotators"}[round%4]
		died[victim]++
		switch victim {
		case "server":
			d.kill()
		case "PostgreSQL":
			syscall.Kill(postmasterPID(t, dir), syscall.SIGKILL)
			time.Sleep(100 * time.Millisecond)
			d.kill()
		}
		for _, cmd := range rotators {
			cmd.Process.Kill()
			cmd.Wait()
		}
		cancel()
		wg.Wait()
		if victim != "rotators" {
			if d, err = launch(dir, "--patients", "30"); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		d.opens(t, fmt.Sprintf("round %d, %s killed", round, victim))
	}
	for _, args := range [][]string{{"rotate", "--all"}, {"rewrap"}, {"rotate", "--index"}, {"rotate"}} {
		if out, errs, code := d.verb(t, append(append([]string{"keys"}, args...), "--data", dir)...); code != 0 {
			t.Errorf("keys %v at the end: %d\n%s%s", args, code, out, errs)
		}
	}
	// What was begun before is finished by now; one more of each has begun and ended since.
	d.settled(t, "at the end")
	n := 0
	token := d.token(t, "app-backend")
	answered.Range(func(id, _ any) bool {
		n++
		if res := d.do(t, "GET", "/fhir/R4/Observation/"+id.(string), token, ""); res.StatusCode != http.StatusOK {
			t.Errorf("an observation that was answered: %s", res.Status)
		}
		return n < 500
	})
	t.Logf("killed %v; %d answered writes are there", died, n)
	if n == 0 {
		t.Error("nothing was written")
	}
}

// observe writes observations of a patient until ctx is done, and notes those that were answered.
func (d *instance) observe(ctx context.Context, token, patient string, answered *sync.Map) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		body := strings.NewReader(`{"resourceType":"Observation","status":"final","code":{"text":"while keys turn"},"subject":{"reference":"Patient/` + patient + `"}}`)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.FHIR+"/Observation", body)
		if err != nil {
			return
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/fhir+json")
		res, err := client.Do(req)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		var made struct{ ID string }
		err = json.NewDecoder(res.Body).Decode(&made)
		res.Body.Close()
		if err == nil && res.StatusCode == http.StatusCreated {
			answered.Store(made.ID, true)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestRotationUnderLoad is experiment 10: every key is replaced again and again under 200 requests a second and a writer; none of them
// fails. What it does to latencies is measured by bench --phi, on a machine that does nothing else.
func TestRotationUnderLoad(t *testing.T) {
	lab := openLaboratory(t, audit.Process, "")
	span := form(4*time.Second, 60*time.Second)
	calm, others := lab.paced(t, 200, span)
	if len(others) > 0 {
		t.Fatalf("without a rotation: %v", others)
	}
	storage, err := lab.rooms.db.Rotation(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer storage.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var rows, writes atomic.Int64
	wg.Go(func() {
		for ctx.Err() == nil {
			r := lab.rooms.records.Rotation(phi.RotationConfig{By: "ines", Jobs: 2})
			if err := r.DataKeys(context.Background(), storage, phi.Scope{All: true}); err != nil {
				t.Errorf("rotating: %v", err)
				return
			}
			rows.Add(r.Progress().RowsDone)
		}
	})
	wg.Go(func() {
		caller := &phi.Caller{Principal: system("test"), RequestID: "under-load", Start: time.Now()}
		for ctx.Err() == nil {
			body := `{"resourceType":"Observation","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/` + lab.patients[int(writes.Load())%len(lab.patients)] + `"}}`
			if _, err := lab.rooms.records.Create(context.Background(), caller, "Observation", []byte(body), nil); err != nil {
				t.Errorf("writing: %v", err)
				return
			}
			writes.Add(1)
			time.Sleep(2 * time.Millisecond)
		}
	})
	took, others := lab.paced(t, 200, span)
	cancel()
	wg.Wait()
	if len(others) > 0 || len(took) < len(calm)*9/10 {
		t.Errorf("during rotations: %d answers, %v", len(took), others)
	}
	p99 := func(d []time.Duration) time.Duration { return d[len(d)*99/100] }
	t.Logf("%d rows sealed anew (%.0f a second), %d writes; p99 of reads %s, %s without", rows.Load(), float64(rows.Load())/span.Seconds(), writes.Load(), p99(took), p99(calm))
	if rows.Load() == 0 || writes.Load() == 0 {
		t.Error("nothing was rotated or written")
	}
}
