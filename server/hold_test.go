package main

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
)

// verb runs the program on a deployment and returns what it printed and its exit code.
func (d *instance) verb(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("chartkeep", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// TestHoldVerbs places, lists and releases holds on a running demo; each change is two events of the trail.
func TestHoldVerbs(t *testing.T) {
	d := demoShared(t)
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	hold := func(args ...string) (string, string, int) {
		t.Helper()
		return d.verb(t, append(append([]string{"audit", "hold"}, args...), "--data", d.dir)...)
	}
	patient, errs, code := hold("add", "--patient", one.PatientOne, "--reason", "case 2026-17", "--by", "officer-diaz")
	if code != 0 {
		t.Fatalf("add: %d, %s", code, errs)
	}
	period, errs, code := hold("add", "--from", "2019-01-01", "--to", "2019-12-31", "--reason", "case 2026-18")
	if code != 0 {
		t.Fatalf("add: %d, %s", code, errs)
	}
	patient, period = strings.TrimSpace(patient), strings.TrimSpace(period)
	if _, errs, code := hold("release", patient, "--by", "officer-diaz"); code != 0 {
		t.Fatalf("release: %d, %s", code, errs)
	}
	list, _, code := hold("list")
	for _, want := range []string{patient, "patient " + one.PatientOne, "by officer-diaz", "case 2026-17", period, "2019-01-01 to 2019-12-31", "stands", "case 2026-18"} {
		if code != 0 || !strings.Contains(list, want) {
			t.Errorf("list does not say %q (exit code %d):\n%s", want, code, list)
		}
	}
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"release " + patient, 1, "released before"},
		{"release 00000000-0000-4000-8000-000000000000", 1, "no such"},
		{"release x", 2, "not the id"},
		{"add --patient p --from 2019-01-01 --to 2019-02-01 --reason r", 2, "--from"},
		{"add --reason r", 2, "--patient"},
		{"add --patient p", 2, "--reason"},
		{"add --patient ../x --reason r", 2, "--patient"},
		{"add --from 2019-02-01 --to 2019-01-01 --reason r", 2, "--to"},
		{"add --from yesterday --to 2019-01-01 --reason r", 2, "--from"},
	} {
		if _, errs, code := hold(strings.Fields(test.args)...); code != test.code || !strings.Contains(errs, test.says) {
			t.Errorf("%s: exit code %d, %s; want %d and %q", test.args, code, errs, test.code, test.says)
		}
	}
	db := d.open(t)
	defer db.Close()
	for _, want := range []struct {
		interaction string
		outcomes    []audit.Outcome
	}{{"hold-add", []audit.Outcome{audit.Success, audit.Intent, audit.Success, audit.Intent}}, {"hold-release", []audit.Outcome{audit.SeriousFailure, audit.Intent, audit.SeriousFailure, audit.Intent, audit.Success, audit.Intent}}} {
		found, err := db.Trail().Find(t.Context(), audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, want.interaction)}})
		if err != nil {
			t.Fatal(err)
		}
		var outcomes []audit.Outcome
		for _, e := range found.Events {
			outcomes = append(outcomes, e.Event.Outcome)
		}
		if len(outcomes) != len(want.outcomes) {
			t.Errorf("%s: outcomes %v, want %v", want.interaction, outcomes, want.outcomes)
		}
	}
}
