package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

var noon = time.Now().UTC().Truncate(time.Hour)

// rowOf makes a row of a stream. Leaf and salt are random: the database does not compute them.
func rowOf(t testing.TB, seq uint64, at time.Time, e audit.Event) audit.Row {
	t.Helper()
	if e.ID == (audit.ID{}) {
		e.ID = random16()
	}
	if e.Recorded.IsZero() {
		e.Recorded = at
	}
	body, err := audit.Encode(&e)
	if err != nil {
		t.Fatal(err)
	}
	if e, err = audit.DecodeEvent(body); err != nil {
		t.Fatal(err)
	}
	return audit.Row{Seq: seq, Event: e, PartTime: at, Salt: random16(), Body: body, Leaf: audit.Hash(randomBytes(32))}
}

// batchOf makes the batch of n rows that follows prev.
func batchOf(t testing.TB, stream audit.StreamID, first uint64, prev audit.Hash, n int) audit.Batch {
	t.Helper()
	b := audit.Batch{Stream: stream, First: first, Prev: prev, Chain: audit.Hash(randomBytes(32))}
	for i := range n {
		b.Rows = append(b.Rows, rowOf(t, first+uint64(i), noon.Add(time.Duration(i)*time.Second), audit.Event{
			Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: "p-1",
			Agent: audit.Agent{User: "dr-rivera", Client: "app", Roles: []string{"clinician"}},
		}))
	}
	return b
}

func count(t testing.TB, conn *pgx.Conn, sql string, args ...any) (n int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestIngestOnceAndInOrder(t *testing.T) {
	db, name := open(t)
	s, ctx := db.Audit(), t.Context()
	stream := audit.StreamID(random16())
	if next, chain, err := s.Head(ctx, stream); err != nil || next != 0 || chain != (audit.Hash{}) {
		t.Fatalf("Head of an unknown stream: %d, %x, %v", next, chain, err)
	}
	first := batchOf(t, stream, 0, audit.Hash{}, 5)
	second := batchOf(t, stream, 5, first.Chain, 3)

	otherChain := first
	otherChain.Chain = audit.Hash{7}
	otherPrev := second
	otherPrev.Prev = audit.Hash{7}
	gap := batchOf(t, stream, 9, second.Chain, 1)
	overlap := batchOf(t, stream, 3, audit.Hash{1}, 8)
	late := batchOf(t, audit.StreamID(random16()), 1, audit.Hash{}, 1)
	started := batchOf(t, audit.StreamID(random16()), 0, audit.Hash{9}, 1)
	holes := batchOf(t, stream, 8, second.Chain, 2)
	holes.Rows[1].Seq = 12
	for _, step := range []struct {
		name  string
		batch audit.Batch
		want  error
	}{
		{"first", first, nil},
		{"replay", first, audit.ErrIngested},
		{"the same rows under another chain", otherChain, audit.ErrChain},
		{"another chain before it", otherPrev, audit.ErrChain},
		{"second", second, nil},
		{"replay of the second", second, audit.ErrIngested},
		{"replay of the first, later", first, audit.ErrIngested},
		{"gap", gap, audit.ErrChain},
		{"overlap", overlap, audit.ErrIngested},
		{"a stream that does not start at 0", late, audit.ErrChain},
		{"a stream that does not start at the zero hash", started, audit.ErrChain},
		{"rows with a hole", holes, audit.ErrChain},
	} {
		if err := s.Ingest(ctx, step.batch); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
	}
	if next, chain, err := s.Head(ctx, stream); err != nil || next != 8 || chain != second.Chain {
		t.Errorf("Head: %d, %x, %v", next, chain, err)
	}
	admin := connect(t, name, "")
	if n := count(t, admin, `SELECT count(*) FROM audit_event`); n != 8 {
		t.Errorf("%d rows, want 8", n)
	}
	if n := count(t, admin, `SELECT count(*) FROM audit_event_default`); n != 0 {
		t.Errorf("%d rows outside the months", n)
	}
}

func TestTwinsOfOneStream(t *testing.T) {
	db, name := open(t)
	stream := audit.StreamID(random16())
	var wg sync.WaitGroup
	results := make([]error, 8)
	for i := range results {
		b := batchOf(t, stream, 0, audit.Hash{}, 4)
		wg.Go(func() { results[i] = db.Audit().Ingest(t.Context(), b) })
	}
	wg.Wait()
	won := 0
	for _, err := range results {
		if err == nil {
			won++
		} else if !errors.Is(err, audit.ErrChain) {
			t.Errorf("loser got %v, want ErrChain", err)
		}
	}
	if n := count(t, connect(t, name, ""), `SELECT count(*) FROM audit_event`); won != 1 || n != 4 {
		t.Errorf("%d won, %d rows; want 1 and 4", won, n)
	}
}

// TestLogThroughPostgres ships a real log's events and checks every hash of what comes back.
func TestLogThroughPostgres(t *testing.T) {
	db, _ := open(t)
	log, err := audit.Open(audit.Config{Dir: t.TempDir(), Storage: db.Audit(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	run := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	defer stop()
	go func() { run <- log.Run(running) }()
	for i := range 50 {
		e := &audit.Event{
			Type: audit.TypeREST, Interaction: "update", Action: audit.ActionUpdate, Outcome: audit.Intent, Patient: fmt.Sprint("p-", i%3),
			Agent:    audit.Agent{User: "dr-rivera", Name: "Dr. Ana Rivera", Client: "app", Roles: []string{"clinician", "nurse"}, Network: "127.0.0.1"},
			Entities: []audit.Entity{{Type: "Observation", ID: "o", Version: 3}, {Type: "Patient", ID: "p"}},
			Classes:  []string{"clinical"}, Query: []byte{0, 1, 2}, Timing: audit.Timing{Total: 7, Audit: 2},
			Decision: audit.Decision{Allowed: true, Rule: "clinician:Patient:r:treatment", Reason: "allowed", View: "full", Policy: 4},
		}
		if _, err := log.Record(ctx, audit.Database, e); err != nil {
			t.Fatal(err)
		}
	}
	stream := log.Stream()
	all, err := db.Trail().Find(ctx, audit.Query{Limit: audit.MaxPage})
	if err != nil {
		t.Fatal(err)
	}
	found := all.Events
	stop()
	<-run
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(found, func(a, b audit.Stored) int { return int(a.Seq) - int(b.Seq) })
	b := audit.Batch{Stream: stream}
	for _, s := range found {
		if s.Stream != stream || s.Ingested.IsZero() {
			t.Errorf("row %d of stream %x ingested %v", s.Seq, s.Stream, s.Ingested)
		}
		b.Rows = append(b.Rows, s.Row)
	}
	if len(b.Rows) < 50 {
		t.Fatalf("%d rows", len(b.Rows))
	}
	next, chain, err := db.Audit().Head(ctx, stream)
	if err != nil || next != uint64(len(b.Rows)) {
		t.Fatalf("Head: %d, %v; %d rows were found", next, err, len(b.Rows))
	}
	b.Chain = chain
	if err := audit.Check(b); err != nil {
		t.Error(err)
	}
}

func TestPoisonRowIsQuarantined(t *testing.T) {
	db, name := open(t)
	stream := audit.StreamID(random16())
	b := batchOf(t, stream, 0, audit.Hash{}, 20)
	// PostgreSQL knows no such year.
	b.Rows[7].Event.Recorded = time.Date(-100_000, 1, 1, 0, 0, 0, 0, time.UTC)
	b.Rows[13].Event.Recorded = time.Date(-250_000, 1, 1, 0, 0, 0, 0, time.UTC)
	// These are awkward, and fit all the same.
	b.Rows[3].Event.Patient = "nul\x00 and \xff"
	b.Rows[4].Event.Agent.User = strings.Repeat("ü", 5000)
	if err := db.Audit().Ingest(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	admin := connect(t, name, "")
	if n := count(t, admin, `SELECT count(*) FROM audit_event`); n != 18 {
		t.Errorf("%d rows, want 18", n)
	}
	for _, seq := range []uint64{7, 13} {
		var leaf, body []byte
		if err := admin.QueryRow(t.Context(), `SELECT leaf, body FROM audit_quarantine WHERE stream = $1 AND seq = $2`,
			[16]byte(stream), int64(seq)).Scan(&leaf, &body); err != nil {
			t.Fatal(err)
		}
		if string(leaf) != string(b.Rows[seq].Leaf[:]) || string(body) != string(b.Rows[seq].Body) {
			t.Errorf("row %d was changed on its way into the quarantine", seq)
		}
	}
	if next, _, err := db.Audit().Head(t.Context(), stream); err != nil || next != 20 {
		t.Errorf("Head: %d, %v; the stream must go on", next, err)
	}
}

func TestStrayMonthsGoToDefault(t *testing.T) {
	db, name := open(t)
	b := batchOf(t, audit.StreamID(random16()), 0, audit.Hash{}, 2)
	b.Rows[0].PartTime = noon.AddDate(-30, 0, 0)
	b.Rows[1].PartTime = noon.AddDate(30, 0, 0)
	if err := db.Audit().Ingest(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if n := count(t, connect(t, name, ""), `SELECT count(*) FROM audit_event_default`); n != 2 {
		t.Errorf("%d rows in the default partition, want 2", n)
	}
}

// TestAppendOnly is the matrix of attempts of notes/audit-pipeline.md 2.8.
func TestAppendOnly(t *testing.T) {
	db, name := open(t)
	stream := audit.StreamID(random16())
	b := batchOf(t, stream, 0, audit.Hash{}, 3)
	if err := db.Audit().Ingest(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	const denied, refused, uncovered = "42501", "CKA10", "CKA04"
	month := "audit_event_" + noon.Format("2006_01")
	ahead := "audit_event_" + time.Date(noon.Year(), noon.Month()+6, 1, 0, 0, 0, 0, time.UTC).Format("2006_01")
	columns := strings.Join(trailColumns, ", ")
	forged := func(table string) string {
		return `INSERT INTO ` + table + ` (` + columns + `) VALUES (now(), gen_random_uuid(), 0, gen_random_uuid(), now(), '', '', 'R', 0, '', '',
			'', '', '{}', '', '', '', '', '{}', true, '', '', '', 0, '', null, 0, '\x00112233445566778899aabbccddeeff', sha256(''), '', '{}')`
	}
	changes := []string{
		`UPDATE audit_event SET patient = 'x'`, `DELETE FROM audit_event`, `TRUNCATE audit_event`,
		`UPDATE audit_batch SET chain = prev`, `DELETE FROM audit_batch`, `TRUNCATE audit_batch`,
		`TRUNCATE audit_quarantine`,
		`UPDATE ` + month + ` SET patient = 'x'`, `DELETE FROM ` + month, `TRUNCATE ` + month, `TRUNCATE audit_event_default`, `TRUNCATE ` + ahead,
	}
	ddl := []string{
		`ALTER TABLE audit_event DISABLE TRIGGER ALL`, `ALTER TABLE audit_event DETACH PARTITION ` + month,
		`ALTER TABLE ` + month + ` RENAME TO innocent`, `ALTER TABLE audit_batch OWNER TO postgres`, `DROP TABLE audit_event CASCADE`,
		`DROP TABLE ` + month, `DROP TRIGGER audit_refuse_truncate ON ` + month, `DROP TRIGGER audit_continues ON audit_batch`,
		`CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'`,
		`CREATE OR REPLACE FUNCTION audit_head(of uuid, OUT next bigint, OUT chain bytea) LANGUAGE sql AS 'SELECT 0, null::bytea'`,
		`CREATE TRIGGER quiet BEFORE INSERT ON audit_event FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()`,
		`CREATE RULE quiet AS ON INSERT TO audit_batch DO INSTEAD NOTHING`, `ALTER TABLE audit_event ENABLE ROW LEVEL SECURITY`,
		`CREATE POLICY quiet ON audit_batch FOR SELECT USING (false)`, `DROP INDEX audit_event_patient`, `ALTER TABLE audit_event DROP CONSTRAINT audit_event_pkey`,
		`CREATE OR REPLACE VIEW audit_trail AS SELECT * FROM audit_event WHERE agent_user <> 'postgres'`,
		`CREATE TABLE elsewhere PARTITION OF audit_event FOR VALUES FROM ('1990-01-01') TO ('1990-02-01')`, `DROP OWNED BY chartkeep_audit_owner CASCADE`,
	}
	reads := []string{`SELECT * FROM audit_event`, `SELECT * FROM ` + month, `SELECT * FROM audit_batch`, `SELECT * FROM audit_quarantine`}
	for _, who := range []struct {
		name, role, setup string
		attempts          []string
		want              string
	}{
		{"writer", "chartkeep_audit_writer", ``, slices.Concat(changes, ddl[:2], reads, []string{
			`SELECT * FROM audit_trail`, forged(month), `CREATE TEMP TABLE x ()`, `CREATE TABLE x ()`, `SELECT * FROM record`,
			`INSERT INTO audit_batch SELECT * FROM audit_batch`}), denied},
		{"writer without a manifest", "chartkeep_audit_writer", ``, []string{forged("audit_event")}, uncovered},
		{"reader", "chartkeep_audit_reader", ``, slices.Concat(changes, reads, []string{
			forged("audit_event"), forged("audit_trail"), `UPDATE audit_trail SET patient = 'x'`, `DELETE FROM audit_trail`,
			`SELECT audit_ensure_partitions()`, `SELECT audit_head(gen_random_uuid())`, `SELECT * FROM record`}), denied},
		{"records", "chartkeep_records", ``, slices.Concat(changes, reads, []string{
			forged("audit_event"), `SELECT * FROM audit_trail`, `UPDATE permission SET view = 'full'`, `DELETE FROM record`,
			`DELETE FROM record_version`, `UPDATE record_version SET version = 1`, `DELETE FROM phi_key`, `TRUNCATE record`}), denied},
		{"superuser", "", ``, changes, refused},
		{"superuser as a replica", "", `SET session_replication_role = replica`, changes, refused},
		{"owner", "", `SET ROLE chartkeep_audit_owner`, changes, refused},
		{"superuser without a manifest", "", ``, []string{forged("audit_event"), forged(month)}, uncovered},
		{"superuser's DDL", "", ``, ddl, refused},
		{"superuser's DDL as a replica", "", `SET session_replication_role = replica`, ddl, refused},
	} {
		t.Run(who.name, func(t *testing.T) {
			conn := connect(t, name, who.role)
			if who.setup != "" {
				must(t, conn, who.setup)
			}
			for _, sql := range who.attempts {
				// An UPDATE's row trigger needs rows to fire on; all of these tables have some.
				if _, err := conn.Exec(t.Context(), sql); sqlState(err) != who.want {
					t.Errorf("%s: %v, want SQLSTATE %s", sql, err, who.want)
				}
			}
		})
	}
	found, err := db.Trail().Find(t.Context(), audit.Query{Limit: 10})
	if err != nil || len(found.Events) != 3 {
		t.Fatalf("%d rows are left (%v)", len(found.Events), err)
	}
}

// TestRowsFitTheirManifest tries, with the writer's stolen credentials and as a superuser, to slip rows in beside a manifest.
func TestRowsFitTheirManifest(t *testing.T) {
	db, name := open(t)
	ctx := t.Context()
	if err := db.Audit().Ingest(ctx, batchOf(t, audit.StreamID{1}, 0, audit.Hash{}, 3)); err != nil {
		t.Fatal(err)
	}
	at := func(rows []audit.Row, seqs ...uint64) []audit.Row {
		for i := range rows {
			rows[i].Seq = seqs[i]
		}
		return rows
	}
	for what, rows := range map[string]func(b audit.Batch) []audit.Row{
		"before it":        func(b audit.Batch) []audit.Row { return at(b.Rows[:1], 2) },
		"after it":         func(b audit.Batch) []audit.Row { return at(b.Rows[:1], 6) },
		"reaching over it": func(b audit.Batch) []audit.Row { return at(b.Rows[:4], 3, 4, 5, 6) },
		"with a gap":       func(b audit.Batch) []audit.Row { return at(b.Rows[:2], 3, 5) },
		"one twice": func(b audit.Batch) []audit.Row {
			return at(b.Rows[:3], 3, 4, 4)
		},
		"before its time": func(b audit.Batch) []audit.Row {
			b.Rows[1].PartTime = b.Rows[0].PartTime.Add(-time.Second)
			return at(b.Rows[:2], 3, 4)
		},
		"after its time": func(b audit.Batch) []audit.Row {
			b.Rows[1].PartTime = b.Rows[3].PartTime.Add(time.Second)
			return at(b.Rows[:2], 3, 4)
		},
		"some of another month": func(b audit.Batch) []audit.Row {
			b.Rows[1].PartTime = b.Rows[1].PartTime.AddDate(-20, 0, 0)
			return at(b.Rows[:3], 3, 9, 5)
		},
	} {
		for _, role := range []string{"chartkeep_audit_writer", ""} {
			b := batchOf(t, audit.StreamID{1}, 3, audit.Hash{}, 4)
			conn := connect(t, name, role)
			err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, `INSERT INTO audit_batch (stream, first_seq, last_seq, prev, chain, first_us, last_us)
					SELECT $1, 3, 5, chain, sha256(''), $2, $3 FROM audit_head($1)`, [16]byte(b.Stream), b.Rows[0].PartTime.UnixMicro(), b.Rows[3].PartTime.UnixMicro()); err != nil {
					return err
				}
				return (&trailStorage{}).copyRows(ctx, tx, b.Stream, rows(b), newRollup())
			})
			if err == nil || !strings.Contains(err.Error(), "CKA04") {
				t.Errorf("rows %s as %q: %v, want CKA04", what, role, err)
			}
		}
		// Of another stream.
		b := batchOf(t, audit.StreamID(random16()), 0, audit.Hash{}, 4)
		err := pgx.BeginFunc(ctx, connect(t, name, "chartkeep_audit_writer"), func(tx pgx.Tx) error {
			return (&trailStorage{}).copyRows(ctx, tx, b.Stream, b.Rows, newRollup())
		})
		if err == nil || !strings.Contains(err.Error(), "CKA04") {
			t.Errorf("rows of another stream: %v, want CKA04", err)
		}
	}
}

func TestPartitionsAreMadeAhead(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	must(t, admin, `SET ROLE chartkeep_audit_owner`)
	ahead := "audit_event_" + time.Date(noon.Year(), noon.Month()+6, 1, 0, 0, 0, 0, time.UTC).Format("2006_01")
	must(t, admin, `DROP TABLE `+ahead)
	must(t, admin, `RESET ROLE`)
	s := db.trailStorage
	if err := s.ensurePartitions(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, admin, `SELECT count(*) FROM pg_class WHERE relname = $1`, ahead); n != 0 {
		t.Error("the same day looked twice")
	}
	s.now = func() time.Time { return time.Now().AddDate(0, 0, 1) }
	if err := s.Ingest(t.Context(), batchOf(t, audit.StreamID(random16()), 0, audit.Hash{}, 1)); err != nil {
		t.Fatal(err)
	}
	// The new partition has every trigger, firing always.
	if n := count(t, admin, `SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgenabled = 'A'`, ahead); n != 3 {
		t.Errorf("%d triggers fire always on the new partition, want 3", n)
	}
}

func TestFind(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	stream := audit.StreamID(random16())
	b := audit.Batch{Stream: stream, Chain: audit.Hash(randomBytes(32))}
	users, types := []string{"dr-rivera", "nurse-okafor", "100%_sure"}, []string{"Observation", "Condition"}
	for i := range 120 {
		e := audit.Event{
			Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Outcome: audit.Outcome(4 * (i % 2)),
			Agent: audit.Agent{User: users[i%3], Client: fmt.Sprint("app-", i%2)}, Patient: fmt.Sprint("p-", i%5), RequestID: fmt.Sprint("r-", i),
			Entities: []audit.Entity{{Type: "Patient", ID: "x"}, {Type: types[i%2], ID: fmt.Sprint("e-", i%7)}},
			Recorded: noon.Add(time.Duration(i) * time.Minute), Timing: audit.Timing{Total: uint32(i)},
			Decision: audit.Decision{Rule: "clinician:Patient:r:treatment"},
		}
		if i%4 == 0 {
			e.Agent.Roles, e.Classes, e.Purpose = []string{"clinician", "nurse"}, []string{"name", "clinical"}, "TREAT"
			e.Decision.Allowed, e.Decision.Reason, e.Decision.View, e.Decision.Policy = true, "allowed", "full", 4
		}
		if i%6 == 0 {
			e.Agent.Session, e.Agent.Network, e.Correlation = "s-3", "10.0.0.1", random16()
		}
		if i%10 == 0 {
			e.Type, e.Interaction, e.Action, e.Outcome, e.Patient = audit.TypeAuthentication, "token", audit.ActionExecute, audit.Intent, ""
		}
		// Three rows share each partition time: only the id tells them apart.
		b.Rows = append(b.Rows, rowOf(t, uint64(i), noon.Add(time.Duration(i/3)*time.Minute), e))
	}
	if err := db.Audit().Ingest(ctx, b); err != nil {
		t.Fatal(err)
	}
	is := func(f audit.Field, values ...string) audit.Query {
		return audit.Query{Terms: []audit.Term{audit.Is(f, values...)}}
	}
	tests := map[string]audit.Query{
		"everything":      {},
		"oldest first":    {Forward: true},
		"id":              is(audit.FieldID, fmt.Sprintf("%x", [16]byte(b.Rows[17].Event.ID))),
		"request":         is(audit.FieldRequest, "r-42"),
		"patient":         is(audit.FieldPatient, "p-3"),
		"two patients":    is(audit.FieldPatient, "p-3", "p-1"),
		"no patient":      is(audit.FieldPatient, ""),
		"agent":           is(audit.FieldAgent, "dr-rivera"),
		"client":          is(audit.FieldClient, "app-1"),
		"session":         is(audit.FieldSession, "s-3"),
		"network":         is(audit.FieldNetwork, "10.0.0.1"),
		"role":            is(audit.FieldRole, "nurse"),
		"interaction":     is(audit.FieldInteraction, "token"),
		"type":            is(audit.FieldType, string(audit.TypeAuthentication)),
		"action":          is(audit.FieldAction, "E", "C"),
		"intent":          is(audit.FieldOutcome, "-1"),
		"failure":         is(audit.FieldOutcome, "4", "8"),
		"entity":          is(audit.FieldEntity, "Condition/e-4"),
		"entity type":     is(audit.FieldEntityType, "Condition"),
		"mixed entity":    is(audit.FieldEntity, "Patient/e-4"),
		"purpose":         is(audit.FieldPurpose, "TREAT"),
		"class":           is(audit.FieldClass, "clinical"),
		"rule":            is(audit.FieldRule, "clinician:Patient:r:treatment"),
		"reason":          is(audit.FieldReason, "allowed"),
		"view":            is(audit.FieldView, "full"),
		"policy":          is(audit.FieldPolicy, "4"),
		"allowed":         is(audit.FieldAllowed, "false"),
		"stream":          is(audit.FieldStream, fmt.Sprintf("%x", [16]byte(stream))),
		"seq":             is(audit.FieldSeq, "7", "8"),
		"correlation":     is(audit.FieldCorrelation, fmt.Sprintf("%x", [16]byte(b.Rows[30].Event.Correlation))),
		"not one of them": {Terms: []audit.Term{{Field: audit.FieldCorrelation, Not: true, Values: []string{fmt.Sprintf("%x", [16]byte(b.Rows[30].Event.Correlation))}}}},
		"not a role":      {Terms: []audit.Term{{Field: audit.FieldRole, Not: true, Values: []string{"nurse"}}}},
		"not an intent":   {Terms: []audit.Term{{Field: audit.FieldOutcome, Not: true, Values: []string{"-1"}}}},
		"agent's prefix":  {Terms: []audit.Term{{Field: audit.FieldAgent, Op: audit.OpPrefix, Values: []string{"dr-", "100%_"}}}},
		"role's prefix":   {Terms: []audit.Term{{Field: audit.FieldRole, Op: audit.OpPrefix, Values: []string{"clin"}}}},
		"class's prefix":  {Terms: []audit.Term{{Field: audit.FieldClass, Op: audit.OpPrefix, Values: []string{"cl"}}}},
		"entity's prefix": {Terms: []audit.Term{{Field: audit.FieldEntity, Op: audit.OpPrefix, Values: []string{"Obs"}}}},
		"type's prefix":   {Terms: []audit.Term{{Field: audit.FieldEntityType, Op: audit.OpPrefix, Values: []string{"Obs"}}}},
		"slow":            {Terms: []audit.Term{{Field: audit.FieldDuration, Op: audit.OpAtLeast, Values: []string{"60"}}}},
		"quick":           {Terms: []audit.Term{{Field: audit.FieldDuration, Op: audit.OpBelow, Values: []string{"60"}}}},
		"failed somehow":  {Terms: []audit.Term{{Field: audit.FieldOutcome, Op: audit.OpAtLeast, Values: []string{"4"}}}},
		"window":          {From: noon.Add(30 * time.Minute), To: noon.Add(60 * time.Minute)},
		"text":            {Text: "NURSE-ok"},
		"no wildcards":    {Text: "%_s"},
		"all together": {Text: "treatment", From: noon, Forward: true, Terms: []audit.Term{
			audit.Is(audit.FieldPatient, "p-3"), audit.Is(audit.FieldAgent, "dr-rivera"), audit.Is(audit.FieldClient, "app-1")}},
		"injection": {Text: "'); DROP TABLE audit_event; --", Terms: []audit.Term{audit.Is(audit.FieldPatient, "' OR true --")}},
	}
	for name, query := range tests {
		t.Run(name, func(t *testing.T) {
			var want []audit.Position
			for i := range b.Rows {
				s := audit.Stored{Row: b.Rows[i], Stream: stream}
				if query.Matches(&s) {
					want = append(want, s.Position())
				}
			}
			if fits := len(want); fits == 0 != slices.Contains([]string{"mixed entity", "injection"}, name) {
				t.Fatalf("%d events fit", fits)
			}
			slices.SortFunc(want, audit.Position.Compare)
			if !query.Forward {
				slices.Reverse(want)
			}
			// Page by page: nothing twice, nothing left out, in order; and back again from the end.
			page := func(q audit.Query) (positions []audit.Position) {
				for {
					found, err := db.Trail().Find(ctx, q)
					if err != nil {
						t.Fatal(err)
					}
					for _, s := range found.Events {
						positions = append(positions, s.Position())
						if !reflect.DeepEqual(s.Event, b.Rows[s.Seq].Event) {
							t.Errorf("row %d came back changed", s.Seq)
						}
					}
					if q.After = found.Next; q.After == (audit.Position{}) {
						return positions
					}
				}
			}
			query.Limit = 7
			if got := page(query); !slices.Equal(got, want) {
				t.Errorf("%d events, want %d in order", len(got), len(want))
			}
			if len(want) == 0 {
				return
			}
			back := query
			back.Forward, back.After = !query.Forward, want[len(want)-1]
			slices.Reverse(want)
			if got := page(back); !slices.Equal(got, want[1:]) {
				t.Errorf("%d events on the way back, want %d in order", len(got), len(want)-1)
			}
		})
	}
}

func BenchmarkIngest1000(b *testing.B) {
	db, _ := open(b)
	stream := audit.StreamID(random16())
	var next uint64
	var prev audit.Hash
	for b.Loop() {
		batch := batchOf(b, stream, next, prev, 1000)
		for i := range batch.Rows {
			batch.Rows[i].Event.Patient = fmt.Sprintf("%x", random16())
			batch.Rows[i].Event.RequestID = fmt.Sprintf("%x", random16())
		}
		if err := db.Audit().Ingest(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		next, prev = next+1000, batch.Chain
	}
	b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "rows/s")
}
