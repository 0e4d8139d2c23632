package postgres

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// QueryVolume is how fast officers' queries are on a trail of so many rows.
type QueryVolume struct {
	Rows   int64
	Loaded time.Duration // to make the rows and their indexes
	Bytes  int64         // of the database
	Shapes []QueryShape
}

// QueryShape is one kind of query, asked many times for different values.
type QueryShape struct {
	Name     string
	Promised bool // under 50 ms at the 95th percentile, and no slower than 1.3 × of a tenth of the rows
	P50, P95 time.Duration
}

// MeasureQueries makes a trail of each size in a database of its own, asks each kind of query so many times, and drops the
// database again. adminDSN logs in as a superuser. Progress may be nil.
func MeasureQueries(ctx context.Context, adminDSN string, sizes []int64, instances int, progress func(format string, args ...any)) ([]QueryVolume, error) {
	if progress == nil {
		progress = func(string, ...any) {}
	}
	var volumes []QueryVolume
	for _, rows := range sizes {
		err := onOwnDatabase(ctx, adminDSN, func(dsn string) error {
			v := QueryVolume{Rows: rows}
			began := time.Now()
			g := &Generation{Rows: rows, Progress: func(done int64) {
				if done%(100*generatedBatch) == 0 {
					progress("%d of %d rows, %.0f a second", done, rows, float64(done)/time.Since(began).Seconds())
				}
			}}
			if err := g.Generate(ctx, dsn); err != nil {
				return err
			}
			v.Loaded = time.Since(began)
			db, err := Open(ctx, Config{DSN: dsn})
			if err != nil {
				return err
			}
			defer db.Close()
			v.Bytes = g.bytes
			progress("%d rows of %.1f GB after %v; asking", rows, float64(v.Bytes)/1e9, v.Loaded.Round(time.Second))
			v.Shapes, err = g.ask(ctx, db.Trail(), instances)
			volumes = append(volumes, v)
			return err
		})
		if err != nil {
			return volumes, err
		}
	}
	return volumes, nil
}

// onOwnDatabase runs work on a migrated database that it makes and drops again.
func onOwnDatabase(ctx context.Context, adminDSN string, work func(dsn string) error) (err error) {
	admin, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost
	name := "chartkeep_measured_" + hex.EncodeToString(random(4))
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return bare("making a database", err)
	}
	defer func() {
		if _, drop := admin.Exec(context.WithoutCancel(ctx), "DROP DATABASE "+name+" WITH (FORCE)"); err == nil && drop != nil {
			err = bare("dropping the database", drop)
		}
	}()
	dsn, err := url.Parse(adminDSN)
	if err != nil {
		return fmt.Errorf("parsing database URL: malformed")
	}
	dsn.Path = "/" + name
	if err := Migrate(ctx, dsn.String(), ""); err != nil {
		return err
	}
	return work(dsn.String())
}

// shape is a kind of query: ask asks one of them, for values drawn at random.
type shape struct {
	name     string
	promised bool
	ask      func(*rand.Rand) error
}

// ask measures every shape.
func (g *Generation) ask(ctx context.Context, trail audit.Reader, instances int) ([]QueryShape, error) {
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // which of made-up events is asked for
	var measured []QueryShape
	for _, s := range g.shapes(ctx, trail) {
		took := make([]time.Duration, instances)
		for range instances / 2 { // plans, catalogs and whatever else a server that runs for a while has at hand
			if err := s.ask(random); err != nil {
				return measured, fmt.Errorf("asking for the %s: %w", s.name, err)
			}
		}
		for i := range took {
			began := time.Now()
			if err := s.ask(random); err != nil {
				return measured, fmt.Errorf("asking for the %s: %w", s.name, err)
			}
			took[i] = time.Since(began)
		}
		slices.Sort(took)
		measured = append(measured, QueryShape{s.name, s.promised, took[instances/2], took[min(instances-1, instances*95/100)]})
	}
	return measured, nil
}

// shapes are the kinds of queries that officers ask.
func (g *Generation) shapes(ctx context.Context, trail audit.Reader) []shape {
	at := func(r *rand.Rand) time.Time {
		return g.from.Add(time.Duration(r.Int64N(max(g.Rows, 1))) * g.step)
	}
	until := g.from.Add(time.Duration(g.Rows) * g.step)
	anywhere := func(r *rand.Rand) audit.Position { return audit.Position{PartTime: at(r), ID: audit.ID(random(16))} }
	find := func(make func(r *rand.Rand) audit.Query) func(*rand.Rand) error {
		return func(r *rand.Rand) error {
			_, err := trail.Find(ctx, make(r))
			return err
		}
	}
	facets := func(make func(r *rand.Rand) audit.Query) func(*rand.Rand) error {
		fields := []audit.Field{
			audit.FieldType, audit.FieldInteraction, audit.FieldOutcome, audit.FieldReason, audit.FieldEntityType, audit.FieldClient, audit.FieldRole, audit.FieldPurpose,
		}
		return func(r *rand.Rand) error {
			_, err := trail.Facets(ctx, make(r), fields, 10)
			return err
		}
	}
	histogram := func(days int, step time.Duration, terms func(r *rand.Rand) []audit.Term) func(*rand.Rand) error {
		return func(r *rand.Rand) error {
			to := g.from.AddDate(0, 0, days).Add(time.Duration(r.Int64N(int64(until.Sub(g.from)) - int64(days)*int64(24*time.Hour))))
			_, err := trail.Histogram(ctx, audit.Query{From: to.AddDate(0, 0, -days), To: to, Terms: terms(r)}, step)
			return err
		}
	}
	patient := func(r *rand.Rand) []audit.Term {
		return []audit.Term{audit.Is(audit.FieldPatient, g.people.patients[skewed(r, generatedPatients)])}
	}
	user := func(r *rand.Rand) []audit.Term {
		return []audit.Term{audit.Is(audit.FieldAgent, g.people.users[skewed(r, generatedUsers)])}
	}
	is := func(f audit.Field, values ...string) func(*rand.Rand) []audit.Term {
		return func(*rand.Rand) []audit.Term { return []audit.Term{audit.Is(f, values...)} }
	}
	none := func(*rand.Rand) []audit.Term { return nil }
	of := func(terms func(r *rand.Rand) []audit.Term, deep bool) func(*rand.Rand) error {
		return find(func(r *rand.Rand) audit.Query {
			q := audit.Query{Terms: terms(r)}
			if deep {
				q.After = anywhere(r)
			}
			return q
		})
	}
	day := func(r *rand.Rand) audit.Query {
		from := at(r).Truncate(24 * time.Hour)
		return audit.Query{From: from, To: from.AddDate(0, 0, 1)}
	}
	return []shape{
		{"first page", true, of(none, false)},
		{"any deep page", true, of(none, true)},
		{"any deep page, towards the newest", true, find(func(r *rand.Rand) audit.Query { return audit.Query{After: anywhere(r), Forward: true} })},
		{"page of a day", true, find(func(r *rand.Rand) audit.Query { return day(r) })},
		{"timeline of a patient", true, of(patient, false)},
		{"deep in the timeline of a patient", true, of(patient, true)},
		{"timeline of a user", true, of(user, false)},
		{"deep in the timeline of a user", true, of(user, true)},
		{"facets of a day", true, facets(day)},
		{"facets of any 24 hours", true, facets(func(r *rand.Rand) audit.Query {
			from := at(r)
			return audit.Query{From: from, To: from.Add(24 * time.Hour)}
		})},
		{"histogram of 90 days", true, histogram(90, 24*time.Hour, none)},
		{"histogram of 90 days, failures", true, histogram(90, 24*time.Hour, is(audit.FieldOutcome, "8", "12"))},
		{"histogram of 7 days by the hour", false, histogram(7, time.Hour, none)},
		{"histogram of 90 days by the hour", false, histogram(90, time.Hour, none)},
		{"histogram of 90 days, a patient", false, histogram(90, 24*time.Hour, patient)},
		{"histogram of 90 days, a user", false, histogram(90, 24*time.Hour, user)},
		{"facets of 90 days, denials", false, facets(func(r *rand.Rand) audit.Query {
			return audit.Query{From: until.AddDate(0, 0, -90), To: until, Terms: is(audit.FieldReason, "relationship-missing")(r)}
		})},
		{"facets of a patient", false, facets(func(r *rand.Rand) audit.Query { return audit.Query{Terms: patient(r)} })},
		{"a request", false, of(func(r *rand.Rand) []audit.Term { return []audit.Term{audit.Is(audit.FieldRequest, randomHex(r))} }, false)},
		{"an entity", false, of(func(r *rand.Rand) []audit.Term {
			return []audit.Term{audit.Is(audit.FieldEntity, fmt.Sprintf("Observation/%016x", r.Uint64N(1<<22)*0x9E3779B97F4A7C15))}
		}, false)},
		{"deletions", false, of(is(audit.FieldInteraction, "delete"), true)},
		{"failures", false, of(is(audit.FieldOutcome, "8"), true)},
		{"free text", false, find(func(r *rand.Rand) audit.Query { return audit.Query{Text: "MISSING", After: anywhere(r)} })},
		{"free text that is nowhere", false, find(func(r *rand.Rand) audit.Query { return audit.Query{Text: "nowhere", After: anywhere(r)} })},
		{"latency of a day", false, func(r *rand.Rand) error {
			from := at(r)
			_, err := trail.Latency(ctx, audit.LatencyQuery{From: from, To: from.AddDate(0, 0, 1), Step: time.Hour, ByRoute: true, ByRole: true})
			return err
		}},
	}
}
