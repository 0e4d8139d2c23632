package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// TestShredVerb erases a patient of a running demo from the command line: by two persons, never while a hold stands, for every
// instance at once, with a certificate that verifies.
func TestShredVerb(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "3")
	officer, backend := d.token(t, "officer-diaz"), d.token(t, "app-backend")
	var found struct {
		Entry []struct{ Resource struct{ ID string } }
	}
	if err := json.Unmarshal(d.do(t, "GET", "/fhir/R4/Patient", backend, "").body, &found); err != nil || len(found.Entry) != 3 {
		t.Fatalf("%d patients, %v", len(found.Entry), err)
	}
	patient, other := found.Entry[0].Resource.ID, found.Entry[1].Resource.ID
	keys := func(args ...string) (string, string, int) {
		t.Helper()
		return d.verb(t, append(append([]string{"keys"}, args...), "--data", d.dir)...)
	}
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"shred"}, 2, "name a patient"},
		{[]string{"shred", patient}, 2, "--reason"},
		{[]string{"shred", patient, "--reason", "case 1"}, 2, "--by"},
		{[]string{"shred", "../x", "--reason", "case 1", "--by", "a"}, 2, "logical id"},
		{[]string{"shred", patient, "--approve", "x", "--by", "a"}, 2, "themselves"},
		{[]string{"shred", "--approve", "x", "--by", "a"}, 2, "not the id"},
		{[]string{"shred", "--approve", "3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11", "--by", "a"}, 1, "no such"},
		{[]string{"shred", "nobody", "--reason", "case 1", "--by", "a"}, 1, "no such"},
		{[]string{"certificate", "x"}, 2, "not the id"},
	} {
		if _, errs, code := keys(test.args...); code != test.code || !strings.Contains(errs, test.says) {
			t.Errorf("%q: exit code %d, %s; want %d and %q", test.args, code, errs, test.code, test.says)
		}
	}
	id, says, code := keys("shred", patient, "--reason", "request 2026-17", "--by", "Ines Diaz")
	if id = strings.TrimSpace(id); code != 0 || !strings.Contains(says, "--approve "+id) || !strings.Contains(says, "data keys") {
		t.Fatalf("shred: %d, %s, %s", code, id, says)
	}
	if _, errs, code := keys("shred", "--approve", id, "--by", "ines diaz"); code != 1 || !strings.Contains(errs, "another person") {
		t.Errorf("the same person: %d, %s", code, errs)
	}
	if _, errs, code := keys("certificate", id); code != 1 || !strings.Contains(errs, "requested") {
		t.Errorf("the certificate of what waits: %d, %s", code, errs)
	}
	hold, errs, code := d.verb(t, "audit", "hold", "add", "--patient", patient, "--reason", "case", "--data", d.dir)
	if code != 0 {
		t.Fatalf("hold: %s", errs)
	}
	if _, errs, code := keys("shred", "--approve", id, "--by", "Sam Amari"); code != 1 || !strings.Contains(errs, "legal hold") || !strings.Contains(errs, strings.TrimSpace(hold)) {
		t.Errorf("under a hold: %d, %s", code, errs)
	}
	if _, errs, code := d.verb(t, "audit", "hold", "release", strings.TrimSpace(hold), "--data", d.dir); code != 0 {
		t.Fatalf("release: %s", errs)
	}
	read := func(id string) answered { return d.do(t, "GET", "/fhir/R4/Patient/"+id, backend, "") }
	if a := read(patient); a.StatusCode != http.StatusOK { // its cipher is in the server's cache now
		t.Fatalf("before: %s", a.Status)
	}
	if out, errs, code := keys("shred", "--approve", id, "--by", "Sam Amari"); code != 0 || !strings.Contains(out, "erased") {
		t.Fatalf("approve: %d, %s, %s", code, out, errs)
	}
	if a := read(patient); a.StatusCode != http.StatusGone || !strings.Contains(string(a.body), "erased") {
		t.Errorf("after: %s %s", a.Status, a.body)
	}
	if a := read(other); a.StatusCode != http.StatusOK {
		t.Errorf("another patient: %s", a.Status)
	}
	list, _, code := keys("shred", "--list")
	for _, want := range []string{id, patient, "Ines Diaz", "executed", "by Sam Amari", "request 2026-17"} {
		if code != 0 || !strings.Contains(list, want) {
			t.Errorf("list does not say %q (%d):\n%s", want, code, list)
		}
	}
	out, says, code := keys("certificate", id)
	var c phi.Certificate
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 || !strings.Contains(says, "signed by chartkeep.demo/audit") {
		t.Fatalf("certificate: %d, %s, %v", code, says, err)
	}
	if c.Patients[0] != patient || c.ApprovedBy != "Sam Amari" || c.RequestedBy != "Ines Diaz" || len(c.Keys) == 0 || c.Records < 2 || len(c.Events) != 2 {
		t.Errorf("the certificate is %s", out)
	}
	for _, event := range c.Events {
		if a := d.do(t, "GET", "/v1/audit/events/"+event, officer, ""); a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), patient) {
			t.Errorf("event %s: %s", event, a.Status)
		}
		if a := d.do(t, "GET", "/fhir/R4/AuditEvent/"+event, officer, ""); a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), c.Erasure) {
			t.Errorf("AuditEvent %s: %s %s", event, a.Status, a.body)
		}
	}
	file := filepath.Join(t.TempDir(), "certificate.txt")
	if _, errs, code := keys("certificate", id, "--out", file); code != 0 {
		t.Fatalf("--out: %s", errs)
	}
	msg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := readCheckpointKey(filepath.Join(d.dir, demoCheckpoint))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openCertificate(msg, []audit.LogKey{key}); err != nil {
		t.Error(err)
	}
	if _, _, err := openCertificate([]byte(strings.Replace(string(msg), "Ines", "Enis", 1)), []audit.LogKey{key}); err == nil {
		t.Error("an edited certificate verified")
	}
	if _, errs, code := keys("certificate", id, "--out", file); code != 1 {
		t.Errorf("written over: %s", errs)
	}
}

// TestShredInstances erases under three instances whose caches are warm (experiment 12): within a second nothing of the patient's opens
// on any, and the others' does.
func TestShredInstances(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	s, err := demoSettings(d.dir, d.DatabaseURL, audit.Power)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	var instances []*rooms
	for range 3 {
		own := *s
		own.journal = t.TempDir()
		own.keys = nil // the demo sequences
		r, err := openRooms(ctx, &own, newLog(os.Stderr).Logger)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.close(ctx) })
		instances = append(instances, r)
	}
	caller := func() *phi.Caller {
		return &phi.Caller{Principal: system("test"), RequestID: "shred", Start: time.Now()}
	}
	ref := phi.Ref{Type: "Patient", ID: one.PatientOne}
	page, err := instances[0].records.Search(ctx, caller(), "Patient", nil, false)
	if err != nil || len(page.Resources) != 2 {
		t.Fatal(err)
	}
	other := page.Resources[0].Ref
	if other == ref {
		other = page.Resources[1].Ref
	}
	for _, r := range instances {
		for range 3 {
			if _, err := r.records.Read(ctx, caller(), ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	e, _, err := instances[0].erasures.Request(ctx, operating("Ines Diaz"), ref.ID, "case 1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := instances[1].erasures.Approve(ctx, operating("Sam Amari"), e.ID); err != nil {
		t.Fatal(err)
	}
	for i, r := range instances {
		_, err := r.records.Read(ctx, caller(), ref)
		if kindOf(err) != phi.Gone {
			t.Errorf("instance %d, right after: %v", i, err)
		}
		if _, err := r.records.Read(ctx, caller(), other); err != nil {
			t.Errorf("instance %d, the other patient: %v", i, err)
		}
	}
}

// TestShredUnderLoad erases a patient who is being read, written and rotated: readers see the record or learn that it is erased, never
// anything else; what was written is erased with the rest; no key is left or comes back; and the rotation goes on with the others.
func TestShredUnderLoad(t *testing.T) {
	d := demoFresh(t, "--patients", "1")
	c := openChart(t, d)
	c.patient("erased", "1")
	c.patient("other", "2")
	for i := range 60 {
		c.observation(fmt.Sprintf("e%d", i), "erased", "x")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(once func(i int) bool) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if !once(i) {
					return
				}
			}
		})
	}
	for range 2 {
		loop(func(i int) bool {
			_, err := c.records.Read(c.ctx, c.caller(), phi.Ref{Type: "Observation", ID: fmt.Sprintf("e%d", i%60)})
			if err != nil && kindOf(err) != phi.Gone {
				t.Errorf("reading: %v", err)
				return false
			}
			return true
		})
		loop(func(i int) bool {
			ref := phi.Ref{Type: "Observation", ID: fmt.Sprintf("w%d", i%60)}
			_, err := c.records.Update(c.ctx, c.caller(), ref, []byte(`{"resourceType":"Observation","id":"`+ref.ID+`","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/erased"}}`), 0)
			switch kindOf(err) {
			case phi.Conflict, phi.Gone, phi.Unprocessable:
			default:
				if err != nil {
					t.Errorf("writing: %v", err)
					return false
				}
			}
			return true
		})
	}
	var rotations int
	loop(func(int) bool {
		storage, err := c.db.Rotation(c.ctx, 1)
		if err != nil {
			t.Error(err)
			return false
		}
		defer storage.Close()
		if err := c.records.Rotation(phi.RotationConfig{By: "operator"}).DataKeys(c.ctx, storage, phi.Scope{All: true}); err != nil {
			t.Errorf("rotating: %v", err)
			return false
		}
		rotations++
		return true
	})
	time.Sleep(500 * time.Millisecond)
	subject := [16]byte{}
	if err := c.sql.QueryRow(c.ctx, `SELECT subject FROM record WHERE type = 'Patient' AND id = 'erased'`).Scan(&subject); err != nil {
		t.Fatal(err)
	}
	e, _, err := c.erasures.Request(c.ctx, operating("Ines Diaz"), "erased", "case 1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.erasures.Approve(c.ctx, operating("Sam Amari"), e.ID); err != nil {
		t.Fatal(err)
	}
	done := time.Now()
	for i := range 60 {
		if _, err := c.records.Read(c.ctx, c.caller(), phi.Ref{Type: "Observation", ID: fmt.Sprintf("e%d", i)}); kindOf(err) != phi.Gone {
			t.Errorf("e%d after %v: %v", i, time.Since(done), err)
		}
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
	if rotations == 0 {
		t.Error("nothing was rotated meanwhile")
	}
	if n := c.count(`SELECT count(*) FROM phi_key WHERE subject = $1`, subject); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	if n := c.count(`SELECT count(*) FROM record r WHERE id LIKE 'w%' AND subject <> $1 OR id LIKE 'w%' AND EXISTS (SELECT FROM record_patient p WHERE p.type = r.type AND p.id = r.id)`, subject); n != 0 {
		t.Errorf("%d records of the patient's are not erased", n)
	}
	if text := c.text(phi.Ref{Type: "Patient", ID: "other"}); !strings.Contains(text, "Merge2") {
		t.Errorf("the other patient is %s", text)
	}
}

// TestShredKilled kills who executes an erasure, again and again: the patient is erased whole or not at all, and the request says which.
func TestShredKilled(t *testing.T) {
	d := demoFresh(t, "--patients", "1")
	c := openChart(t, d)
	for k := range form(5, 50) {
		patient := fmt.Sprintf("p%d", k)
		c.patient(patient, fmt.Sprint(k))
		c.observation(patient+"-o", patient, "x")
		e, _, err := c.erasures.Request(c.ctx, operating("Ines Diaz"), patient, "case 1")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("chartkeep", "keys", "shred", "--approve", e.ID.String(), "--by", "Sam Amari", "--data", d.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(800 * time.Millisecond))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for c.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chartkeep_keys'`) > 0 { // what the killed process left
			time.Sleep(10 * time.Millisecond)
		}
		stored, err := c.db.Erasures().Erasure(c.ctx, e.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := phi.Kind(0)
		if stored.State == phi.ErasureExecuted {
			want = phi.Gone
		}
		for _, ref := range []phi.Ref{{Type: "Patient", ID: patient}, {Type: "Observation", ID: patient + "-o"}} {
			if _, err := c.records.Read(c.ctx, c.caller(), ref); kindOf(err) != want || (err == nil) != (want == 0) {
				t.Errorf("%s is %v, and the request %s", ref, err, stored.State)
			}
		}
		if n := c.count(`SELECT count(*) FROM phi_erased WHERE patient = $1`, patient); (n == 1) != (want == phi.Gone) {
			t.Errorf("%s is noted %d times, and the request %s", patient, n, stored.State)
		}
		if stored.State == phi.ErasureRequested {
			if _, err := c.erasures.Approve(c.ctx, operating("Sam Amari"), e.ID); err != nil {
				t.Errorf("executed after a kill: %v", err)
			}
		}
	}
}
