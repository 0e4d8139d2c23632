package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// oldMonth makes the partition of a month that is over, as only the owner of the trail can, stores rows of a patient in it and
// makes them look as if they had been stored then. It returns the partition's name.
func oldMonth(t testing.TB, db *DB, admin *pgx.Conn, year int, month time.Month, patient string, rows int) string {
	t.Helper()
	start := time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
	name := "audit_event_" + start.Format("2006_01")
	asOwner(t, admin, `SET timezone = 'UTC'`, fmt.Sprintf(`SELECT audit_add_month('%s', 0)`, start.Format(time.RFC3339)))
	b := batchOf(t, audit.StreamID(random16()), 0, audit.Hash{}, rows)
	for i := range b.Rows {
		b.Rows[i].PartTime = start.Add(time.Duration(i) * time.Hour)
		b.Rows[i].Event.Patient = patient
	}
	if err := db.Audit().Ingest(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	storedThen(t, admin, name)
	return name
}

// storedThen makes a partition's rows look as if they had been stored when they were recorded.
func storedThen(t testing.TB, admin *pgx.Conn, partition string) {
	t.Helper()
	asOwner(t, admin, `ALTER TABLE `+partition+` DISABLE TRIGGER audit_refuse_change`, `UPDATE `+partition+` SET ingested_at = part_ts`,
		`ALTER TABLE `+partition+` ENABLE ALWAYS TRIGGER audit_refuse_change`)
}

func asOwner(t testing.TB, admin *pgx.Conn, statements ...string) {
	t.Helper()
	must(t, admin, `SET ROLE chartkeep_audit_owner`)
	for _, sql := range statements {
		must(t, admin, sql)
	}
	must(t, admin, `RESET ROLE`)
}

func openRetention(t testing.TB, db *DB) *Retention {
	t.Helper()
	r, err := db.Retention(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// month finds a month in the list.
func monthOf(t testing.TB, r *Retention, partition string) (Month, bool) {
	t.Helper()
	months, err := r.Months(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(months, func(m Month) bool { return m.Partition == partition })
	if i < 0 {
		return Month{}, false
	}
	return months[i], true
}

// TestRetention drops a month step by step, each of which is refused out of turn, while the month is young or on hold.
func TestRetention(t *testing.T) {
	db, name := open(t)
	ctx, admin, r := t.Context(), connect(t, name, ""), openRetention(t, db)
	old := oldMonth(t, db, admin, 2015, 3, "p-old", 20)
	other := oldMonth(t, db, admin, 2015, 4, "p-other", 5)
	current := "audit_event_" + time.Now().UTC().Format("2006_01")
	wild := oldMonth(t, db, admin, 2014, 1, "p", 1)
	asOwner(t, admin, `ALTER TABLE `+wild+` DISABLE TRIGGER audit_refuse_change`, `UPDATE `+wild+` SET ingested_at = now()`,
		`ALTER TABLE `+wild+` ENABLE ALWAYS TRIGGER audit_refuse_change`)

	for partition, want := range map[string]string{old: "", other: "", current: "young", wild: "stored late"} {
		if m, _ := monthOf(t, r, partition); m.Kept != want {
			t.Errorf("%s is kept %q, want %q", partition, m.Kept, want)
		}
	}
	runs, err := r.Runs(ctx, old)
	if err != nil || len(runs) != 1 || runs[0].First != 0 || runs[0].Count != 20 {
		t.Fatalf("runs: %+v, %v", runs, err)
	}
	note := func(partition string, rows int64) error {
		return r.Note(ctx, &audit.Pruning{Partition: partition, Rows: rows}, []byte("a note"))
	}
	detach := func(partition string) error { return r.Detach(ctx, partition, 10*time.Second) }
	refused := func(what string, err, want error) {
		t.Helper()
		if want == nil && err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	refused("a young month", note(current, 0), ErrKept)
	refused("an unknown month", note("audit_event_1999_01", 0), ErrNoMonth)
	refused("no month", note("record", 0), ErrNoMonth)
	refused("another number of rows", note(old, 19), nil)
	refused("detaching without a record", detach(old), nil)
	refused("dropping without a record", r.Drop(ctx, old, 0), ErrGrace)

	// Holds win, at every step.
	byPatient := Hold{ID: random16(), Patient: "p-old", Reason: "case 1", By: "officer-diaz"}
	byPeriod := Hold{ID: random16(), From: time.Date(2015, 3, 31, 0, 0, 0, 0, time.UTC), To: time.Date(2015, 4, 2, 0, 0, 0, 0, time.UTC), Reason: "case 2", By: "officer-diaz"}
	for _, h := range []Hold{byPatient, byPeriod} {
		if err := r.Place(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	if m, _ := monthOf(t, r, old); m.Kept != "hold "+byPatient.ID.String() {
		t.Errorf("kept: %q", m.Kept)
	}
	if m, _ := monthOf(t, r, other); m.Kept != "hold "+byPeriod.ID.String() {
		t.Errorf("kept: %q", m.Kept)
	}
	refused("a month on hold", note(old, 20), ErrKept)
	release := func(h Hold) {
		t.Helper()
		if err := r.Release(ctx, h.ID, "officer-diaz"); err != nil {
			t.Fatal(err)
		}
	}
	release(byPatient)
	refused("a month on hold by its period", note(old, 20), ErrKept)
	release(byPeriod)
	refused("released twice", r.Release(ctx, byPeriod.ID, "x"), ErrNoHold)
	refused("an unknown hold", r.Release(ctx, random16(), "x"), ErrNoHold)
	if err := note(old, 20); err != nil {
		t.Fatal(err)
	}
	refused("a second record", note(old, 20), nil)
	refused("dropping what is attached", r.Drop(ctx, old, 0), ErrGrace)
	again := Hold{ID: random16(), Patient: "p-old", Reason: "case 3", By: "officer-diaz"}
	if err := r.Place(ctx, again); err != nil {
		t.Fatal(err)
	}
	refused("detaching on hold", detach(old), ErrKept)
	release(again)
	if err := detach(old); err != nil {
		t.Fatal(err)
	}
	refused("detached twice", detach(old), nil)
	if m, ok := monthOf(t, r, old); !ok || m.Detached.IsZero() || !m.Noted {
		t.Errorf("after detaching: %+v", m)
	}
	if n := count(t, admin, `SELECT count(*) FROM audit_event`); n != 6 {
		t.Errorf("%d rows are left in the trail, want 6", n)
	}
	// The table is as guarded as it was.
	if open, err := db.Evidence().UnguardedPartitions(ctx); err != nil || len(open) > 0 {
		t.Errorf("unguarded: %v, %v", open, err)
	}
	must(t, admin, `SET session_replication_role = replica`)
	for _, sql := range []string{`UPDATE ` + old + ` SET patient = 'x'`, `DELETE FROM ` + old, `TRUNCATE ` + old, `DROP TABLE ` + old, `ALTER TABLE ` + old + ` DISABLE TRIGGER ALL`} {
		if _, err := admin.Exec(ctx, sql); sqlState(err) != "CKA10" {
			t.Errorf("%s: %v, want it refused", sql, err)
		}
	}
	must(t, admin, `RESET session_replication_role`)
	if n := count(t, admin, `SELECT count(*) FROM information_schema.role_table_grants WHERE table_name = $1 AND grantee <> 'chartkeep_audit_owner'`, old); n != 0 {
		t.Errorf("%d grants on the detached month", n)
	}

	refused("dropping too early", r.Drop(ctx, old, time.Hour), ErrGrace)
	last := Hold{ID: random16(), Patient: "p-old", Reason: "case 4", By: "officer-diaz"}
	if err := r.Place(ctx, last); err != nil {
		t.Fatal(err)
	}
	refused("dropping on hold", r.Drop(ctx, old, 0), ErrKept)
	release(last)
	if err := r.Drop(ctx, old, 0); err != nil {
		t.Fatal(err)
	}
	if _, ok := monthOf(t, r, old); ok {
		t.Error("the month is still there")
	}
	holds, err := r.Holds(ctx)
	if err != nil || len(holds) != 4 || slices.ContainsFunc(holds, func(h Hold) bool { return h.ReleasedBy == "" || h.Placed.IsZero() }) {
		t.Errorf("holds: %+v, %v", holds, err)
	}
	if !holds[1].From.Equal(byPeriod.From) || !holds[1].To.Equal(byPeriod.To) || holds[0].Patient != "p-old" {
		t.Errorf("holds came back changed: %+v", holds[:2])
	}
}

func TestRetentionPolicy(t *testing.T) {
	db, name := open(t)
	ctx, admin, r := t.Context(), connect(t, name, ""), openRetention(t, db)
	eight := time.Now().UTC().AddDate(-8, 0, 0)
	partition := oldMonth(t, db, admin, eight.Year(), eight.Month(), "p", 3)
	if years, err := r.Years(ctx); err != nil || years != 6 {
		t.Errorf("years: %d, %v", years, err)
	}
	if err := r.SetYears(ctx, 5, "officer-diaz"); err == nil {
		t.Error("five years were taken")
	}
	if _, err := admin.Exec(ctx, `INSERT INTO audit_policy (years, set_by) VALUES (5, 'postgres')`); sqlState(err) != "23514" {
		t.Errorf("five years in the table: %v", err)
	}
	if m, _ := monthOf(t, r, partition); m.Kept != "" {
		t.Errorf("kept %q under six years", m.Kept)
	}
	if err := r.SetYears(ctx, 10, "officer-diaz"); err != nil {
		t.Fatal(err)
	}
	if m, _ := monthOf(t, r, partition); m.Kept != "young" {
		t.Errorf("kept %q under ten years", m.Kept)
	}
	if err := r.Note(ctx, &audit.Pruning{Partition: partition, Rows: 3}, []byte("n")); !errors.Is(err, ErrKept) {
		t.Errorf("noting it: %v", err)
	}
	for what, h := range map[string]Hold{
		"on nothing":     {Reason: "r", By: "b"},
		"on both":        {Patient: "p", From: eight, To: eight.AddDate(0, 1, 0), Reason: "r", By: "b"},
		"backwards":      {From: eight, To: eight, Reason: "r", By: "b"},
		"without end":    {From: eight, Reason: "r", By: "b"},
		"no reason":      {Patient: "p", By: "b"},
		"a long reason":  {Patient: "p", Reason: strings.Repeat("x", 1001), By: "b"},
		"by nobody":      {Patient: "p", Reason: "r"},
		"an endless id":  {Patient: strings.Repeat("x", 513), Reason: "r", By: "b"},
		"an id with NUL": {Patient: "a\x00", Reason: "r", By: "b"},
	} {
		h.ID = random16()
		if err := r.Place(ctx, h); err == nil {
			t.Errorf("a hold %s was placed", what)
		}
	}
}

func TestRetentionRoleDoesNothingElse(t *testing.T) {
	db, name := open(t)
	oldMonth(t, db, connect(t, name, ""), 2015, 3, "p", 1)
	conn := connect(t, name, "chartkeep_audit_retention")
	for _, sql := range []string{
		`SELECT * FROM audit_event`, `SELECT * FROM audit_event_2015_03`, `SELECT * FROM audit_trail`, `SELECT * FROM audit_batch`, `DROP TABLE audit_event_2015_03`,
		`ALTER TABLE audit_event DETACH PARTITION audit_event_2015_03`, `INSERT INTO audit_hold VALUES (gen_random_uuid(), 'p', null, null, 'r', 'b')`,
		`DELETE FROM audit_hold`, `UPDATE audit_policy SET years = 6`, `INSERT INTO audit_pruned VALUES ('x', 0, sha256(''), '')`,
		`INSERT INTO audit_pruned_step VALUES ('x', 'detached')`, `SELECT audit_add_month(now(), 0)`, `SELECT audit_ensure_partitions()`,
		`SELECT audit_protect('audit_event')`, `SELECT * FROM record`, `SELECT * FROM phi_key`, `CREATE TABLE x ()`,
	} {
		if _, err := conn.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v, want permission denied", sql, err)
		}
	}
}

// TestDetachBesideInserts detaches a month while batches come in without a break and an officer's long query stands on the trail.
func TestDetachBesideInserts(t *testing.T) {
	db, name := open(t)
	ctx, admin, r := t.Context(), connect(t, name, ""), openRetention(t, db)
	partition := oldMonth(t, db, admin, 2015, 3, "p", 100)
	if err := r.Note(ctx, &audit.Pruning{Partition: partition, Rows: 100}, []byte("n")); err != nil {
		t.Fatal(err)
	}
	stream := audit.StreamID(random16())
	var next uint64
	var chain audit.Hash
	// slowest stores batches until done is closed, and returns the longest wait for one.
	slowest := func(done <-chan struct{}) (longest time.Duration) {
		for {
			select {
			case <-done:
				return longest
			default:
			}
			b := batchOf(t, stream, next, chain, 5)
			began := time.Now()
			if err := db.Audit().Ingest(ctx, b); err != nil {
				t.Error(err)
				return longest
			}
			longest = max(longest, time.Since(began))
			next, chain = next+5, b.Chain
		}
	}
	quiet := make(chan struct{})
	time.AfterFunc(1500*time.Millisecond, func() { close(quiet) })
	normal := slowest(quiet)

	reader := connect(t, name, "")
	tx, err := reader.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT count(*) FROM audit_event`); err != nil {
		t.Fatal(err)
	}
	if err := r.Detach(ctx, partition, 300*time.Millisecond); !errors.Is(err, ErrBusy) {
		t.Errorf("detaching under an open query: %v, want ErrBusy", err)
	}
	done, detached, ended := make(chan struct{}), make(chan error, 1), make(chan error, 1)
	time.AfterFunc(time.Second, func() { ended <- tx.Rollback(ctx) })
	go func() {
		defer close(done)
		detached <- r.Detach(ctx, partition, 20*time.Second)
	}()
	longest := slowest(done)
	if err := errors.Join(<-ended, <-detached); err != nil {
		t.Fatal(err)
	}
	t.Logf("slowest batch %v while a month was detached, %v otherwise", longest, normal)
	if longest > 100*time.Millisecond+normal {
		t.Errorf("a batch waited %v", longest)
	}
}

// TestDefaultPartitionEmpties loses the months that rows come for, and gets them back with the rows in them.
func TestDefaultPartitionEmpties(t *testing.T) {
	db, name := open(t)
	ctx, admin, r := t.Context(), connect(t, name, ""), openRetention(t, db)
	month := func(n int) time.Time {
		now := time.Now().UTC()
		return time.Date(now.Year(), now.Month()+time.Month(n), 1, 0, 0, 0, 0, time.UTC)
	}
	partition := func(n int) string { return "audit_event_" + month(n).Format("2006_01") }
	asOwner(t, admin, `DROP TABLE `+partition(2), `DROP TABLE `+partition(3), `DROP TABLE `+partition(4))
	b := batchOf(t, audit.StreamID(random16()), 0, audit.Hash{}, 5)
	for i, at := range []time.Time{month(2), month(2).AddDate(0, 0, 10), month(3).Add(-time.Microsecond), month(3), month(360)} {
		b.Rows[i].PartTime = at
	}
	if err := db.Audit().Ingest(ctx, b); err != nil {
		t.Fatal(err)
	}
	before := count(t, admin, `SELECT count(*) FROM audit_event`)
	if n := count(t, admin, `SELECT count(*) FROM audit_event_default`); n != 5 {
		t.Fatalf("%d rows in the default partition", n)
	}
	// Somebody reads the default partition: those months have to wait, and neither they nor the lock stops anything else.
	reader, err := connect(t, name, "").Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(ctx, `SELECT count(*) FROM audit_event_default`); err != nil {
		t.Fatal(err)
	}
	db.trailStorage.ensure.Store(0)
	if err := db.trailStorage.ensurePartitions(ctx); err != nil {
		t.Errorf("making partitions under a reader: %v", err)
	}
	if err := db.Audit().Ingest(ctx, batchOf(t, audit.StreamID(random16()), 0, audit.Hash{}, 1)); err != nil {
		t.Errorf("ingest under a reader: %v", err)
	}
	_ = reader.Rollback(ctx)

	db.trailStorage.ensure.Store(0)
	if err := db.trailStorage.ensurePartitions(ctx); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]int{2: 3, 3: 1, 4: 0} {
		if got := count(t, admin, `SELECT count(*) FROM `+partition(n)); got != want {
			t.Errorf("%s has %d rows, want %d", partition(n), got, want)
		}
		if got := count(t, admin, `SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgenabled = 'A'`, partition(n)); got != 3 {
			t.Errorf("%s has %d triggers that fire always", partition(n), got)
		}
	}
	if n := count(t, admin, `SELECT count(*) FROM audit_event_default`); n != 1 {
		t.Errorf("%d rows in the default partition, want the one of a clock gone wild", n)
	}
	if n := count(t, admin, `SELECT count(*) FROM audit_event`); n != before+1 {
		t.Errorf("%d rows, there were %d", n, before)
	}
	if open, err := db.Evidence().UnguardedPartitions(ctx); err != nil || len(open) > 0 {
		t.Errorf("unguarded: %v, %v", open, err)
	}
	if _, err := admin.Exec(ctx, `DELETE FROM audit_event_default`); sqlState(err) != "CKA10" {
		t.Errorf("deleting from the default partition: %v", err)
	}
	// A month that is over, which nobody made in time.
	asOwner(t, admin, `DROP TABLE `+partition(-1))
	late := batchOf(t, audit.StreamID(random16()), 0, audit.Hash{}, 2)
	late.Rows[0].PartTime, late.Rows[1].PartTime = month(-1), month(-1).Add(time.Hour)
	if err := db.Audit().Ingest(ctx, late); err != nil {
		t.Fatal(err)
	}
	if made, err := r.Rehouse(ctx); err != nil || made != 1 {
		t.Errorf("rehousing made %d months: %v", made, err)
	}
	if n := count(t, admin, `SELECT count(*) FROM `+partition(-1)); n != 2 {
		t.Errorf("%d rows came home", n)
	}
}
