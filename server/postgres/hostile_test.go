package postgres

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
)

// liveTrail is a trail as an instance, its shipper and a sequencer make it.
type liveTrail struct {
	name string // database
	db   *DB
	log  *audit.Log
	stop func() // everything recorded is in the tree afterwards
}

const hostileOrigin = "hostile.example/audit"

func startTrail(t testing.TB, name, journal string, key audit.LogKey) *liveTrail {
	t.Helper()
	l := &liveTrail{name: name, db: openDatabase(t, name)}
	var err error
	if l.log, err = audit.Open(audit.Config{Dir: journal, Storage: l.db.Audit(), Logger: slog.New(slog.DiscardHandler), Heartbeat: -1}); err != nil {
		t.Fatal(err)
	}
	sequencer, err := audit.NewSequencer(audit.SequencerConfig{Storage: l.db.Tree(), Keys: []audit.LogKey{key}, Interval: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.log.Run(ctx) })
	wg.Go(func() { _ = sequencer.Run(ctx) })
	l.stop = sync.OnceFunc(func() {
		if err := l.log.Close(); err != nil {
			t.Error(err)
		}
		l.sequenced(t)
		cancel()
		wg.Wait()
		l.db.Close()
	})
	t.Cleanup(l.stop)
	return l
}

// sequenced waits until everything that is stored is in the tree.
func (l *liveTrail) sequenced(t testing.TB) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		waiting, err := l.db.Tree().Unsequenced(context.Background(), 1)
		if err != nil {
			t.Error(err)
			return
		}
		if len(waiting) == 0 {
			return
		}
		if time.Now().After(until) {
			t.Error("the sequencer does not keep up")
			return
		}
	}
}

// record hands events over, some in a batch of their own.
func (l *liveTrail) record(t testing.TB, events int) {
	t.Helper()
	for i := range events {
		e := &audit.Event{
			Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: fmt.Sprint("p-", i%7), RequestID: fmt.Sprint("r-", i),
			Agent: audit.Agent{User: "dr-rivera", Client: "app", Roles: []string{"clinician"}}, Decision: audit.Decision{Allowed: true, Rule: "clinician:*:r:treatment", Reason: "allowed"},
		}
		level := audit.Process
		if i%20 == 19 {
			level = audit.Database
		}
		if _, err := l.log.Record(t.Context(), level, e); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *liveTrail) checkpoint(t testing.TB) []byte {
	t.Helper()
	msg, err := l.db.Tree().Checkpoint(t.Context())
	if err != nil || msg == nil {
		t.Fatalf("checkpoint: %q, %v", msg, err)
	}
	return msg
}

// copyDatabase copies a database, from which it throws everybody out.
func copyDatabase(t testing.TB, from string) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	must(t, connect(t, "postgres", ""), `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1`, from)
	if err := createDatabase(t.Context(), name, from); err != nil {
		t.Fatal(err)
	}
	admin := connect(t, name, "")
	must(t, admin, `GRANT CONNECT ON DATABASE `+name+` TO chartkeep`)
	_ = admin.Close(t.Context())
	return name
}

// TestHostileSuperuser is experiment 7: a superuser switches every guard off and changes a live trail, each time on a copy of it. The
// verifier, who has the log's verifier key and the last checkpoint that a witness saw, names the attack and its place.
func TestHostileSuperuser(t *testing.T) {
	if cluster == nil {
		t.Skip("no PostgreSQL binaries on this machine")
	}
	ctx := t.Context()
	skey, vkey, err := note.GenerateKey(rand.Reader, hostileOrigin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	key := audit.LogKey{Signer: signer, Verifier: vkey}
	journal := t.TempDir()
	live := startTrail(t, newDatabase(t, true), journal, key)
	live.record(t, 150)
	live.stop()
	yesterday := copyDatabase(t, live.name)
	live = startTrail(t, live.name, journal, key)
	live.record(t, 160)
	live.sequenced(t)
	witness := live.checkpoint(t)
	state := verifyTrail(t, live.db, audit.VerifyOptions{Keys: []string{vkey}}).Verified
	live.record(t, 100)
	stream := live.log.Stream()
	live.stop()

	// Another history, by somebody who has the key.
	forked := startTrail(t, newDatabase(t, true), t.TempDir(), key)
	forked.record(t, 450)
	forked.stop()

	month := "audit_event_" + time.Now().UTC().Format("2006_01")
	tables := []string{"audit_event", month, "audit_event_default", "audit_batch", "audit_tile", "audit_span", "audit_checkpoint"}
	const seq = 220
	where := fmt.Sprintf(` WHERE stream = '%s' AND seq = %d`, stream, seq)
	sql := func(statements ...string) func(*testing.T, *pgx.Conn) {
		return func(t *testing.T, admin *pgx.Conn) {
			for _, s := range statements {
				must(t, admin, s)
			}
		}
	}
	type place struct {
		kind   audit.Kind
		stream bool
		seq    uint64
		column string
	}
	for _, attack := range []struct {
		name string
		on   string // database that is attacked; live when empty
		do   func(*testing.T, *pgx.Conn)
		want place
	}{
		{name: "edit a body", do: sql(`UPDATE audit_event SET body = set_byte(body, 30, get_byte(body, 30) # 1)` + where), want: place{audit.KindBody, true, seq, ""}},
		{name: "edit a column", do: sql(`UPDATE audit_event SET agent_user = 'nurse-okafor'` + where), want: place{audit.KindColumn, true, seq, "agent_user"}},
		{name: "edit the classes of a row that is made old", do: sql(`UPDATE audit_event SET classes = '{name}', ingested_at = '2000-01-01'` + where),
			want: place{audit.KindColumn, true, seq, "classes"}},
		{name: "edit a leaf", do: sql(`UPDATE audit_event SET leaf = sha256('x')` + where), want: place{audit.KindLeaf, true, seq, "leaf"}},
		{name: "delete a row", do: sql(`DELETE FROM audit_event` + where), want: place{audit.KindMissing, true, seq, ""}},
		{name: "delete the tail", do: sql(
			fmt.Sprintf(`DELETE FROM audit_event USING (SELECT first_seq FROM audit_batch WHERE stream = '%[1]s' ORDER BY first_seq DESC LIMIT 1) b WHERE stream = '%[1]s' AND seq >= b.first_seq`, stream),
			fmt.Sprintf(`DELETE FROM audit_batch WHERE stream = '%[1]s' AND first_seq = (SELECT max(first_seq) FROM audit_batch WHERE stream = '%[1]s')`, stream)),
			want: place{kind: audit.KindMissing, stream: true}},
		{name: "swap two rows", do: sql(
			fmt.Sprintf(`UPDATE audit_event SET seq = 1000000 WHERE stream = '%s' AND seq = %d`, stream, seq),
			fmt.Sprintf(`UPDATE audit_event SET seq = %d WHERE stream = '%s' AND seq = %d`, seq, stream, seq+1),
			fmt.Sprintf(`UPDATE audit_event SET seq = %d WHERE stream = '%s' AND seq = 1000000`, seq+1, stream)),
			want: place{audit.KindOrder, true, seq, ""}},
		{name: "insert a row into the past", do: sql(
			fmt.Sprintf(`INSERT INTO audit_event (%[1]s) SELECT %[2]s FROM audit_event`+where, strings.Join(trailColumns, ", "),
				strings.Replace(strings.Join(trailColumns, ", "), "seq,", "100000,", 1))),
			want: place{audit.KindStray, true, 100_000, ""}},
		{name: "insert a row twice", do: sql(
			fmt.Sprintf(`INSERT INTO audit_event (%[1]s) SELECT %[2]s FROM audit_event`+where, strings.Join(trailColumns, ", "),
				strings.Replace(strings.Join(trailColumns, ", "), "part_ts,", "part_ts + interval '1 microsecond',", 1))),
			want: place{audit.KindExtra, true, seq, ""}},
		{name: "update as a replica", do: sql(`ALTER TABLE `+month+` ENABLE TRIGGER audit_refuse_change`, `SET session_replication_role = replica`,
			`UPDATE `+month+` SET patient = 'p-x'`+where, `RESET session_replication_role`, `ALTER TABLE `+month+` ENABLE ALWAYS TRIGGER audit_refuse_change`),
			want: place{audit.KindColumn, true, seq, "patient"}},
		{name: "detach, edit, attach", do: sql(`ALTER TABLE audit_event DETACH PARTITION `+month, `UPDATE `+month+` SET outcome = 8`+where,
			fmt.Sprintf(`ALTER TABLE audit_event ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`, month, monthStart(0), monthStart(1))),
			want: place{audit.KindColumn, true, seq, "outcome"}},
		{name: "truncate a month", do: sql(`TRUNCATE ` + month), want: place{kind: audit.KindMissing, stream: true}},
		{name: "edit a tile", do: sql(`UPDATE audit_tile SET hashes = set_byte(hashes, 100, get_byte(hashes, 100) # 1) WHERE level = 0 AND idx = 0`), want: place{audit.KindTile, true, 3, ""}},
		{name: "edit the list of batches", do: sql(`UPDATE audit_span SET count = count - 1 WHERE index = (SELECT max(index) FROM audit_span WHERE count > 1)`), want: place{kind: audit.KindChain, stream: true}},
		{name: "edit a stored batch", do: sql(fmt.Sprintf(`UPDATE audit_batch SET last_us = last_us + 1 WHERE stream = '%s' AND first_seq = 0`, stream)), want: place{audit.KindSpan, true, 0, ""}},
		{name: "delete a stored batch and its rows' cover", do: sql(fmt.Sprintf(`DELETE FROM audit_batch WHERE stream = '%s' AND first_seq = 0`, stream)), want: place{audit.KindSpan, true, 0, ""}},
		{name: "hide a row in the quarantine", do: sql(
			`INSERT INTO audit_quarantine SELECT stream, seq, (extract(epoch FROM part_ts) * 1000000)::bigint, salt, leaf, body, '22008', ingested_at FROM audit_event`+where,
			`DELETE FROM audit_event`+where), want: place{audit.KindColumn, true, seq, "quarantine"}},
		{name: "sign with another key", do: func(t *testing.T, admin *pgx.Conn) {
			other, _, err := note.GenerateKey(rand.Reader, hostileOrigin)
			if err != nil {
				t.Fatal(err)
			}
			signer, err := note.NewSigner(other)
			if err != nil {
				t.Fatal(err)
			}
			var msg string
			if err := admin.QueryRow(ctx, `SELECT note FROM audit_checkpoint ORDER BY size DESC LIMIT 1`).Scan(&msg); err != nil {
				t.Fatal(err)
			}
			text, _, _ := strings.Cut(msg, "\n\n")
			forged, err := note.Sign(&note.Note{Text: text + "\n"}, signer)
			if err != nil {
				t.Fatal(err)
			}
			must(t, admin, `UPDATE audit_checkpoint SET note = $1 WHERE size = (SELECT max(size) FROM audit_checkpoint)`, string(forged))
		}, want: place{kind: audit.KindSignature}},
		{name: "another history under the stolen key", on: forked.name, do: sql(), want: place{kind: audit.KindFork}},
		{name: "yesterday's backup", on: yesterday, do: sql(), want: place{kind: audit.KindRollback}},
	} {
		t.Run(attack.name, func(t *testing.T) {
			on := attack.on
			if on == "" {
				on = live.name
			}
			name := copyDatabase(t, on)
			admin := connect(t, name, "")
			must(t, admin, `ALTER EVENT TRIGGER audit_guard_drop DISABLE`)
			must(t, admin, `ALTER EVENT TRIGGER audit_guard_ddl DISABLE`)
			for _, table := range tables {
				must(t, admin, `ALTER TABLE `+table+` DISABLE TRIGGER ALL`)
			}
			attack.do(t, admin)
			db := openDatabase(t, name)
			report := verifyTrail(t, db, audit.VerifyOptions{Keys: []string{vkey}, Anchors: [][]byte{witness}})
			if len(report.Findings) == 0 {
				t.Fatal("nothing was found")
			}
			f := report.Findings[0]
			if f.Kind != attack.want.kind || attack.want.stream != (f.Stream == stream) || attack.want.seq != 0 && f.Seq != attack.want.seq || f.Column != attack.want.column {
				t.Errorf("found %v, want %+v", f, attack.want)
			}
			for _, f := range report.Findings[1:min(len(report.Findings), 4)] {
				t.Log("and:", f)
			}
			if attack.on == yesterday {
				// An auditor's state file knows as well, without any witness.
				report := verifyTrail(t, db, audit.VerifyOptions{Keys: []string{vkey}, From: state})
				if len(report.Findings) == 0 || report.Findings[0].Kind != audit.KindRollback {
					t.Errorf("against the earlier verification: %v", report.Findings)
				}
			}
		})
	}

	t.Run("nothing", func(t *testing.T) {
		db := openDatabase(t, copyDatabase(t, live.name))
		for _, o := range []audit.VerifyOptions{{Keys: []string{vkey}, Anchors: [][]byte{witness}}, {Keys: []string{vkey}, From: state}} {
			if report := verifyTrail(t, db, o); len(report.Findings) > 0 {
				t.Errorf("findings on an untouched copy: %v", report.Findings)
			}
		}
		if open, err := db.Evidence().UnguardedPartitions(ctx); err != nil || len(open) > 0 {
			t.Errorf("unguarded on an untouched copy: %v, %v", open, err)
		}
	})
	t.Run("switch guards off", func(t *testing.T) {
		for what, statement := range map[string]string{
			"event trigger audit_guard_ddl":       `ALTER EVENT TRIGGER audit_guard_ddl DISABLE`,
			"event trigger audit_guard_drop":      `DROP EVENT TRIGGER audit_guard_drop`,
			month:                                 `UPDATE pg_trigger SET tgenabled = 'D' WHERE tgname = 'audit_refuse_change' AND tgrelid = '` + month + `'::regclass`,
			"audit_batch (audit_continues)":       `UPDATE pg_trigger SET tgenabled = 'O' WHERE tgname = 'audit_continues'`,
			"audit_event_default (audit_covered)": `DELETE FROM pg_trigger WHERE tgname = 'audit_covered' AND tgrelid = 'audit_event_default'::regclass`,
			"audit_tile":                          `UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 'audit_tile'::regclass`,
		} {
			name := copyDatabase(t, live.name)
			admin := connect(t, name, "")
			must(t, admin, statement)
			open, err := openDatabase(t, name).Evidence().UnguardedPartitions(ctx)
			if err != nil || len(open) != 1 || open[0] != what {
				t.Errorf("%s: unguarded: %v, %v, want %s", statement, open, err, what)
			}
		}
	})
}

func monthStart(n int) string {
	now := time.Now().UTC()
	return time.Date(now.Year(), now.Month()+time.Month(n), 1, 0, 0, 0, 0, time.UTC).Format(time.RFC3339)
}

func verifyTrail(t testing.TB, db *DB, o audit.VerifyOptions) *audit.Report {
	t.Helper()
	report, err := audit.Verify(t.Context(), db.Tree(), o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}
