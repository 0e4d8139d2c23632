package postgres

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// Generation is a trail of made-up events, to measure with: a year of a hospital whose users read their patients' records. Rows
// are whole (bodies, salts, leaves, chains, manifests, rollups) and are stored by the same code and under the same triggers
// as real ones.
type Generation struct {
	Rows     int64
	Months   int               // 12 when 0; the last is the present one
	Progress func(rows int64)  // called now and then from several goroutines; nil for none
	people   *population       // made by Generate
	from     time.Time         // of the first row
	step     time.Duration     // between rows
	writers  int               // streams
	done     atomic.Int64      // rows stored
	indexes  map[string]string // that are made again at the end: their statements by name
}

const (
	generatedPatients = 50_000
	generatedUsers    = 2_000
	generatedClients  = 20
	generatedBatch    = 5_000
)

// Generate fills the trail of an empty, migrated database. It drops the secondary indexes first and makes them again at the end.
// adminDSN logs in as a superuser.
func (g *Generation) Generate(ctx context.Context, adminDSN string) error {
	admin, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost
	if g.Months == 0 {
		g.Months = 12
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	g.from = time.Date(now.Year(), now.Month()-time.Month(g.Months-1), 1, 0, 0, 0, 0, time.UTC)
	g.step = max(now.Sub(g.from)/time.Duration(max(g.Rows, 1)), time.Microsecond)
	g.people, g.writers = newPopulation(), 2
	if err := g.prepare(ctx, admin); err != nil {
		return err
	}
	db, err := Open(ctx, Config{DSN: adminDSN})
	if err != nil {
		return err
	}
	defer db.Close()
	var wg sync.WaitGroup
	failed := make([]error, g.writers)
	for w := range g.writers {
		wg.Go(func() { failed[w] = g.write(ctx, db, w) })
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return g.finish(ctx, admin)
}

// summary is what resume needs to know.
func (g *Generation) summary() string {
	return fmt.Sprintf("%d rows from %d each %d", g.Rows, g.from.Unix(), g.step.Nanoseconds())
}

// resume makes g the Generation that a trail was made by.
func (g *Generation) resume(summary string) error {
	var from int64
	if _, err := fmt.Sscanf(summary, "%d rows from %d each %d", &g.Rows, &from, (*int64)(&g.step)); err != nil {
		return fmt.Errorf("reading what a trail was made of: %w", err)
	}
	g.from, g.people = time.Unix(from, 0).UTC(), newPopulation()
	return nil
}

// prepare makes the months and drops the indexes that can wait.
func (g *Generation) prepare(ctx context.Context, admin *pgx.Conn) error {
	if _, err := admin.Exec(ctx, `SET ROLE chartkeep_audit_owner; SET timezone = 'UTC'`); err != nil {
		return bare("becoming the trail's owner", err)
	}
	for m := range g.Months {
		month := g.from.AddDate(0, m, 0)
		if _, err := admin.Exec(ctx, `SELECT audit_add_month($1, 0) WHERE to_regclass($2) IS NULL`, month, "public.audit_event_"+month.Format("2006_01")); err != nil {
			return bare("making a month", err)
		}
	}
	rows, err := admin.Query(ctx, `SELECT c.relname, pg_get_indexdef(c.oid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
		WHERE i.indrelid = 'public.audit_event'::regclass AND NOT i.indisunique`)
	if err != nil {
		return bare("listing indexes", err)
	}
	g.indexes = map[string]string{}
	var name, statement string
	if _, err := pgx.ForEachRow(rows, []any{&name, &statement}, func() error {
		g.indexes[name] = strings.Replace(statement, " ON ONLY ", " ON ", 1)
		return nil
	}); err != nil {
		return bare("listing indexes", err)
	}
	for name := range g.indexes {
		if _, err := admin.Exec(ctx, `DROP INDEX public.`+pgx.Identifier{name}.Sanitize()); err != nil {
			return bare("dropping an index", err)
		}
	}
	return nil
}

// finish makes the indexes again, and does what autovacuum would have done by now.
func (g *Generation) finish(ctx context.Context, admin *pgx.Conn) error {
	if _, err := admin.Exec(ctx, `SET maintenance_work_mem = '512MB'`); err != nil {
		return bare("making indexes", err)
	}
	for _, statement := range g.indexes {
		if _, err := admin.Exec(ctx, statement); err != nil {
			return bare("making an index", err)
		}
	}
	for _, sql := range []string{
		`SELECT audit_trim_rollups()`, `RESET ROLE`, `VACUUM (FREEZE, ANALYZE) audit_event`,
		`VACUUM (ANALYZE) audit_rollup_total, audit_rollup_deed, audit_rollup_actor, audit_rollup_latency, audit_batch`, `CHECKPOINT`,
	} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			return bare("tidying up", err)
		}
	}
	return nil
}

// write stores every writers-th row as a stream of its own.
func (g *Generation) write(ctx context.Context, db *DB, writer int) error {
	s := g.people.stream(uint64(g.Rows), uint64(writer), g.from.Add(time.Duration(writer)*g.step), time.Duration(g.writers)*g.step)
	for left := (g.Rows - int64(writer) + int64(g.writers) - 1) / int64(g.writers); left > 0; left -= generatedBatch {
		b, err := s.next(int(min(left, generatedBatch)))
		if err != nil {
			return err
		}
		if err := db.Audit().Ingest(ctx, b); err != nil {
			return fmt.Errorf("generating: %w", err)
		}
		if done := g.done.Add(int64(len(b.Rows))); g.Progress != nil {
			g.Progress(done)
		}
	}
	return nil
}

// generatedStream is a stream of made-up events, one each step.
type generatedStream struct {
	people *population
	random *rand.Rand
	last   audit.Batch
	at     time.Time // of the next row
	step   time.Duration
}

// stream is the one of these seeds.
func (p *population) stream(seed, number uint64, from time.Time, step time.Duration) *generatedStream {
	s := &generatedStream{people: p, random: rand.New(rand.NewPCG(seed, number)), at: from, step: step} //nolint:gosec // made-up events
	binary.BigEndian.PutUint64(s.last.Stream[:], s.random.Uint64())
	return s
}

// next is the stream's next batch.
func (s *generatedStream) next(rows int) (audit.Batch, error) {
	b := audit.Batch{Stream: s.last.Stream, First: s.last.First + uint64(len(s.last.Rows)), Prev: s.last.Chain, Rows: make([]audit.Row, rows)}
	for i := range b.Rows {
		r := &b.Rows[i]
		r.Seq, r.Event, r.PartTime = b.First+uint64(i), s.people.event(s.random, s.at), s.at.Add(300*time.Microsecond)
		r.Salt = randomID(s.random)
		var err error
		if r.Body, err = audit.Encode(&r.Event); err != nil {
			return b, fmt.Errorf("generating: %w", err)
		}
		s.at = s.at.Add(s.step)
	}
	b.Seal()
	s.last = b
	return b, nil
}

// population is who and what the events are about.
type population struct {
	patients, users []string
	deeds           []generatedDeed // one is drawn with equal chance
}

type generatedDeed struct {
	interaction string
	action      audit.Action
	entity      string
}

func newPopulation() *population {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // made-up people
	p := &population{}
	for range generatedPatients {
		p.patients = append(p.patients, randomHex(random))
	}
	for i := range generatedUsers {
		p.users = append(p.users, fmt.Sprintf("practitioner-%04d", i))
	}
	for _, d := range []struct {
		generatedDeed
		share int
	}{
		{generatedDeed{"read", audit.ActionRead, "Patient"}, 30}, {generatedDeed{"read", audit.ActionRead, "Observation"}, 12},
		{generatedDeed{"read", audit.ActionRead, "MedicationRequest"}, 8}, {generatedDeed{"read", audit.ActionRead, "DiagnosticReport"}, 5},
		{generatedDeed{"read", audit.ActionRead, "Encounter"}, 5}, {generatedDeed{"search-type", audit.ActionExecute, "Observation"}, 14},
		{generatedDeed{"search-type", audit.ActionExecute, "Condition"}, 8}, {generatedDeed{"search-type", audit.ActionExecute, "Patient"}, 4},
		{generatedDeed{"vread", audit.ActionRead, "Condition"}, 1}, {generatedDeed{"history-instance", audit.ActionRead, "Patient"}, 1},
		{generatedDeed{"create", audit.ActionCreate, "Observation"}, 6}, {generatedDeed{"create", audit.ActionCreate, "Encounter"}, 2},
		{generatedDeed{"update", audit.ActionUpdate, "Patient"}, 2}, {generatedDeed{"update", audit.ActionUpdate, "MedicationRequest"}, 1},
		{generatedDeed{"delete", audit.ActionDelete, "Condition"}, 1},
	} {
		for range d.share {
			p.deeds = append(p.deeds, d.generatedDeed)
		}
	}
	return p
}

// skewed is a number below n; the first tenth is drawn half of the time.
func skewed(random *rand.Rand, n int) int {
	u := random.Float64()
	return int(u * u * u * float64(n))
}

var generatedRoles = [...]struct{ role, purpose, view string }{
	{"clinician", "TREAT", "full"}, {"clinician", "TREAT", "full"}, {"nurse", "TREAT", "full"}, {"nurse", "TREAT", "full"},
	{"registrar", "HOPERAT", "demographics"}, {"billing", "HPAYMT", "billing"},
}

var generatedParts = [...]string{"/fhir/R4/:type/:id", "/fhir/R4/:type", "/fhir/R4/:type/:id/_history/:vid", "/v1/audit/events"}

// event is one event of the population.
func (p *population) event(random *rand.Rand, at time.Time) audit.Event {
	e := audit.Event{Recorded: at, Type: audit.TypeREST}
	binary.BigEndian.PutUint64(e.ID[:], uint64(at.UnixMilli())<<16|7<<12|random.Uint64N(1<<12))
	binary.BigEndian.PutUint64(e.ID[8:], random.Uint64()|1<<63)
	if random.IntN(2000) == 0 {
		e.Type, e.Interaction, e.Action, e.Agent.User = audit.TypeApplication, audit.InteractionTimings, audit.ActionExecute, "system"
		var list []audit.Timed
		for range 20 {
			us := uint32(200 + random.ExpFloat64()*900)
			list = append(list, audit.Timed{
				RequestID: randomHex(random), Route: generatedParts[skewed(random, len(generatedParts))], Role: generatedRoles[random.IntN(len(generatedRoles))].role,
				Status: 200, Timing: audit.Timing{Total: us, Auth: us / 40, Decision: us / 60, Database: us / 2, Crypto: us / 30, Audit: us / 3},
			})
		}
		e.Detail = audit.AppendTimings(nil, list)
		return e
	}
	user := skewed(random, generatedUsers)
	who := generatedRoles[user%len(generatedRoles)]
	deed := p.deeds[random.IntN(len(p.deeds))]
	patient := p.patients[skewed(random, generatedPatients)]
	e.Interaction, e.Action, e.Patient, e.Purpose, e.RequestID = deed.interaction, deed.action, patient, who.purpose, randomHex(random)
	e.Agent = audit.Agent{
		User: p.users[user], Client: fmt.Sprintf("app-%02d", user%generatedClients), Session: fmt.Sprintf("s-%04d-%d", user, at.Unix()/28800),
		Roles: []string{who.role}, Network: fmt.Sprintf("10.0.%d.%d", user/250, user%250),
	}
	entity := audit.Entity{Type: deed.entity, ID: patient, Version: 1}
	if deed.entity != "Patient" {
		entity.ID = fmt.Sprintf("%016x", random.Uint64N(1<<22)*0x9E3779B97F4A7C15)
	}
	e.Entities = []audit.Entity{entity}
	e.Decision = audit.Decision{Allowed: true, Rule: who.role + ":*:r:treatment", Reason: "allowed", View: who.view, Policy: 3}
	us := uint32(150 + random.ExpFloat64()*700)
	e.Timing = audit.Timing{Total: us, Auth: us / 40, Decision: us / 60, Database: us / 2}
	switch n := random.IntN(1000); {
	case n < 15:
		e.Outcome, e.OutcomeDesc = audit.MinorFailure, "denied"
		e.Decision.Allowed, e.Decision.Reason, e.Decision.View = false, "relationship-missing", ""
		return e
	case n < 25:
		e.Outcome, e.OutcomeDesc = audit.MinorFailure, "malformed"
	case n < 26:
		e.Outcome, e.OutcomeDesc = audit.SeriousFailure, "unavailable"
	case deed.action == audit.ActionCreate && n < 500:
		e.Outcome = audit.Intent
	}
	switch who.view {
	case "full":
		e.Classes = []string{"identifier", "name", "birth_date", "contact", "clinical"}
	default:
		e.Classes = []string{"identifier", "name", "birth_date"}
	}
	return e
}

func randomHex(random *rand.Rand) string {
	id := randomID(random)
	return hex.EncodeToString(id[:])
}

func randomID(random *rand.Rand) (id [16]byte) {
	binary.NativeEndian.PutUint64(id[:], random.Uint64())
	binary.NativeEndian.PutUint64(id[8:], random.Uint64())
	return id
}
