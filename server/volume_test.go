package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Experiment 4, PostgreSQL's volume: it fills up under reads and writes. What cannot be stored is refused, the trail waits in the
// journal, and when there is room again everything goes on without a restart of ours.
func TestDatabaseDiskFull(t *testing.T) {
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	volume := filepath.Join(dir, "postgres")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	options := "size=320m,mode=0700"
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil && os.Geteuid() == 0 {
			options += ",uid=" + u.Uid + ",gid=" + u.Gid
			break
		}
	}
	if err := syscall.Mount("tmpfs", volume, "tmpfs", 0, options); err != nil {
		t.Skipf("SKIPPED: a small disk cannot be mounted here (%v)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(volume, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	d, err := launch(dir, "--patients", "2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.interrupt() })
	one, err := readPopulation(dir)
	if err != nil {
		t.Fatal(err)
	}
	clinician, backend := d.token(t, "dr-rivera"), d.token(t, "app-backend")
	v := d.invariants(t)
	ballast := filepath.Join(volume, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fill := func() {
		for chunk := make([]byte, 1<<20); len(chunk) >= 1<<12; {
			if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
				chunk = chunk[:len(chunk)/2]
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	observation := `{"resourceType":"Observation","status":"final","code":{"text":"full"},"subject":{"reference":"Patient/` + one.PatientOne + `"}}`
	ask := func(id string, write bool) int {
		res := answered{}
		if write {
			res = d.do(t, "POST", "/fhir/R4/Observation", backend, observation, "X-Request-Id: "+id)
		} else {
			res = d.do(t, "GET", "/fhir/R4/Patient/"+one.PatientOne, clinician, "", "X-Request-Id: "+id)
		}
		switch res.StatusCode {
		case http.StatusOK:
			v.Acknowledge(audittest.Ack{Key: id, Level: audit.Power, Events: 1})
		case http.StatusCreated:
			v.Acknowledge(audittest.Ack{Key: id, Level: audit.Process, Events: 2})
		case http.StatusServiceUnavailable:
		default:
			t.Errorf("%s: %s\n%s", id, res.Status, res.body)
		}
		return res.StatusCode
	}
	refused := 0
	for n, began := 0, time.Now(); time.Since(began) < form(4*time.Second, time.Minute); n++ {
		if n%20 == 0 { // whatever PostgreSQL gave back is taken
			fill()
		}
		if ask(fmt.Sprintf("volume-%d", n), n%3 == 0) == http.StatusServiceUnavailable {
			refused++
		}
	}
	if refused == 0 {
		t.Error("the volume never filled")
	}
	f.Close()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for n, deadline := 0, time.Now().Add(30*time.Second); ; n++ {
		read, write := ask(fmt.Sprintf("room-%d", n), false), ask(fmt.Sprintf("room-w-%d", n), true)
		if read == http.StatusOK && write == http.StatusCreated {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the service does not come back when there is room again: %d and %d", read, write)
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("%d refused while the volume was full", refused)
	shipped(t, v, "when there is room again")
}
