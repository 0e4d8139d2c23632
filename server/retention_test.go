package main

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// recordThen records events into a journal as if it were another time, ships them and closes the journal.
func recordThen(t *testing.T, db *postgres.DB, journal string, then time.Time, patient string, events int) audit.StreamID {
	t.Helper()
	began := time.Now()
	// Without the storage's clock: the log would not believe its own.
	log, err := audit.Open(audit.Config{Dir: journal, Storage: struct{ audit.Storage }{db.Audit()}, Logger: slog.New(slog.DiscardHandler), Heartbeat: -1,
		Now: func() time.Time { return then.Add(time.Since(began)) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	running := make(chan struct{})
	go func() {
		defer close(running)
		_ = log.Run(ctx)
	}()
	for range events {
		if _, err := log.Record(ctx, audit.Process, &audit.Event{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: patient, Agent: audit.Agent{User: "dr-then"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-running
	return log.Stream()
}

// TestRetentionVerb lets two months of a demo's trail grow old and go: held back by a hold first, then by a verb that is killed again and
// again. Nothing is lost, nothing is done twice, and old proofs and the rest of the trail verify as before.
func TestRetentionVerb(t *testing.T) {
	d := demoFresh(t, "--patients", "1")
	ctx := t.Context()
	db := d.open(t)
	defer db.Close()
	admin, err := pgx.Connect(ctx, d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(ctx)
	do := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	months := []string{"audit_event_2015_03", "audit_event_2015_04"}
	do(`SET ROLE chartkeep_audit_owner`)
	do(`SET timezone = 'UTC'`)
	do(`SELECT audit_add_month('2015-03-01', 0), audit_add_month('2015-04-01', 0)`)
	journal := t.TempDir()
	stream := recordThen(t, db, journal, time.Date(2015, 3, 10, 9, 0, 0, 0, time.UTC), "p-held", 30)
	recordThen(t, db, journal, time.Date(2015, 4, 30, 23, 59, 0, 0, time.UTC), "p-free", 20)
	recordThen(t, db, journal, time.Now(), "p-now", 10)
	for _, m := range months {
		do(`ALTER TABLE ` + m + ` DISABLE TRIGGER audit_refuse_change`)
		do(`UPDATE ` + m + ` SET ingested_at = part_ts`)
		do(`ALTER TABLE ` + m + ` ENABLE ALWAYS TRIGGER audit_refuse_change`)
	}
	do(`RESET ROLE`)
	count := func(sql string, args ...any) (n int64) {
		t.Helper()
		if err := admin.QueryRow(ctx, sql, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	gone := count(`SELECT (SELECT count(*) FROM audit_event_2015_03) + (SELECT count(*) FROM audit_event_2015_04)`)
	if gone < 50 {
		t.Fatalf("%d rows in the old months", gone)
	}
	tree := db.Tree()
	last := uint64(count(`SELECT max(seq) FROM audit_event WHERE stream = $1`, [16]byte(stream)))
	row := func(seq uint64) *audit.Row {
		t.Helper()
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			span, ok, err := tree.Locate(ctx, stream, seq)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				if time.Now().After(until) {
					t.Fatal("the trail is not sequenced")
				}
				continue
			}
			rows, err := tree.Rows(ctx, span)
			if err != nil {
				t.Fatal(err)
			}
			for i := range rows {
				if rows[i].Seq == seq {
					return &rows[i]
				}
			}
			t.Fatalf("record %d is gone", seq)
		}
	}
	row(last)
	issued, err := audit.Prove(ctx, tree, stream, row(5))
	if err != nil {
		t.Fatal(err)
	}

	archive := filepath.Join(t.TempDir(), "archive")
	retention := func(args ...string) (string, string, int) {
		t.Helper()
		return d.verb(t, append([]string{"audit", "retention", "--data", d.dir, "--grace", "0s", "--archive", archive}, args...)...)
	}
	if out, errs, code := retention("--dry-run"); code != 0 || !strings.Contains(out, months[0]+" would go") || !strings.Contains(out, months[1]+" would go") {
		t.Fatalf("dry run: exit code %d\n%s%s", code, out, errs)
	}
	if _, err := os.Stat(archive); err == nil {
		t.Error("a dry run archived something")
	}
	for args, want := range map[string]int{"--years 5": 2, "--grace -1s": 2} {
		if _, errs, code := retention(strings.Fields(args)...); code != want {
			t.Errorf("%s: exit code %d, %s", args, code, errs)
		}
	}
	if _, errs, code := d.verb(t, "audit", "retention", "--data", d.dir); code == 0 || !strings.Contains(errs, "--archive") {
		t.Errorf("without an archive: exit code %d, %s", code, errs)
	}
	hold, errs, code := d.verb(t, "audit", "hold", "add", "--data", d.dir, "--patient", "p-held", "--reason", "case 1")
	if code != 0 {
		t.Fatal(errs)
	}
	hold = strings.TrimSpace(hold)
	out, errs, code := retention()
	if code != 0 || !strings.Contains(out, months[0]+" stays: legal hold "+hold) || !strings.Contains(out, months[1]+" is out of the trail") {
		t.Fatalf("under a hold: exit code %d\n%s%s", code, out, errs)
	}
	if _, errs, code := d.verb(t, "audit", "hold", "release", hold, "--data", d.dir); code != 0 {
		t.Fatal(errs)
	}

	// Killed at any moment, it goes on where it was.
	for n := range 12 {
		cmd := exec.Command("chartkeep", "audit", "retention", "--data", d.dir, "--grace", "0s", "--archive", archive)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(40+n*20+rand.IntN(60)) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for range 2 {
		if out, errs, code = retention(); code != 0 {
			t.Fatalf("exit code %d\n%s%s", code, out, errs)
		}
	}
	for _, m := range months {
		if n := count(`SELECT count(*) FROM pg_class WHERE relname = $1`, m); n != 0 {
			t.Errorf("%s is still there:\n%s", m, out)
		}
		found, err := db.Trail().Find(ctx, audit.Query{Terms: []audit.Term{audit.Is(audit.FieldRequest, "prune-"+m)}})
		if err != nil || len(found.Events) != 1 || len(found.Events[0].Event.Detail) == 0 {
			t.Errorf("%d events tell that %s went (%v)", len(found.Events), m, err)
		}
		bundle, err := audit.OpenBundle(os.DirFS(filepath.Join(archive, m)))
		if err != nil {
			t.Fatal(err)
		}
		report, err := bundle.Verify(ctx, audit.VerifyOptions{})
		if err != nil || !report.OK() {
			t.Errorf("the archive of %s: %v, %v", m, report, err)
		}
		bundle.Close()
	}
	report, err := audit.Verify(ctx, tree, audit.VerifyOptions{})
	if err != nil || !report.OK() || report.Pruned != gone {
		t.Fatalf("after pruning: %v, %d pruned of %d, findings %v", err, report.Pruned, gone, report.Findings)
	}
	keys, err := tree.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	known := verifiers(t, keys)
	if _, _, err := issued.Verify(known); err != nil {
		t.Errorf("a proof from before: %v", err)
	}
	first := uint64(count(`SELECT min(seq) FROM audit_event WHERE stream = $1`, [16]byte(stream)))
	fresh, err := audit.Prove(ctx, tree, stream, row(first))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := fresh.Verify(known); err != nil || first == 0 {
		t.Errorf("a proof of the first kept record, %d: %v", first, err)
	}
}

func verifiers(t *testing.T, keys []string) note.Verifiers {
	t.Helper()
	var list []note.Verifier
	for _, k := range keys {
		if v, err := note.NewVerifier(k); err == nil {
			list = append(list, v)
		}
	}
	return note.VerifierList(list...)
}
