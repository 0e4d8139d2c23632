package postgres

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// Measurement is what MeasureQueries measures.
type Measurement struct {
	Sizes     []int64                          // rows of the trails
	Instances int                              // how often each kind of query is asked, for different values; a quarter of it where nothing is promised
	Keep      bool                             // the trails stay in the cluster, and the next measurement takes them as they are
	Progress  func(format string, args ...any) // nil for none
}

// QueryVolume is how fast officers' queries are on a trail of so many rows.
type QueryVolume struct {
	Rows   int64
	Loaded time.Duration // to make the rows and their indexes; 0 when they were there
	Bytes  int64         // of the database
	Shapes []QueryShape
}

// QueryShape is one kind of query, asked many times for different values, and each time once more: what nobody has asked for comes
// from wherever it lies, maybe a disk; the second time it is in memory, and what is left is work.
type QueryShape struct {
	Name     string
	Promised bool // under 50 ms at the 95th percentile, and no slower than 1.3 × of a tenth of the rows when both are in memory
	P50, P95 time.Duration
	Again    time.Duration // 95th percentile of the second time
}

// MeasureQueries makes a trail of each size in a database of its own, asks all of them the same kinds of queries in turns, and drops
// the databases again, unless they are kept. adminDSN logs in as a superuser.
func MeasureQueries(ctx context.Context, adminDSN string, m Measurement) (volumes []QueryVolume, err error) {
	if len(m.Sizes) == 0 || m.Instances <= 0 {
		return nil, errors.New("measuring queries: there are no sizes, or no instances, to measure")
	}
	if m.Progress == nil {
		m.Progress = func(string, ...any) {}
	}
	admin, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost
	var trails []measured
	defer func() {
		for _, t := range trails {
			t.db.Close()
		}
	}()
	for _, rows := range m.Sizes {
		name := fmt.Sprintf("chartkeep_measured_%d", rows)
		if !m.Keep {
			name += "_" + hex.EncodeToString(random(4))
			defer func() {
				if _, drop := admin.Exec(context.WithoutCancel(ctx), "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err == nil && drop != nil {
					err = bare("dropping the database", drop)
				}
			}()
		}
		t, v, err := m.trail(ctx, admin, adminDSN, name, rows)
		if err != nil {
			return nil, err
		}
		trails, volumes = append(trails, t), append(volumes, v)
	}
	return volumes, m.ask(ctx, trails, volumes)
}

// measured is a trail that is measured.
type measured struct {
	*Generation
	db *DB
}

// trail opens a generated trail, or makes it first. The database's comment says that it was made in full, and of what.
func (m *Measurement) trail(ctx context.Context, admin *pgx.Conn, adminDSN, name string, rows int64) (t measured, v QueryVolume, err error) {
	dsn, err := url.Parse(adminDSN)
	if err != nil {
		return t, v, errors.New("parsing database URL: malformed")
	}
	dsn.Path = "/" + name
	began := time.Now()
	v.Rows, t.Generation = rows, &Generation{Rows: rows, Progress: func(done int64) {
		if done%(100*generatedBatch) == 0 {
			m.Progress("%d of %d rows, %.0f a second", done, rows, float64(done)/time.Since(began).Seconds())
		}
	}}
	var kept *string
	switch err := admin.QueryRow(ctx, `SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1`, name).Scan(&kept); {
	case err == nil && kept != nil:
		if err := t.resume(*kept); err != nil {
			return t, v, err
		}
	case err == nil:
		return t, v, fmt.Errorf("database %s holds half a trail: drop it", name)
	case !errors.Is(err, pgx.ErrNoRows):
		return t, v, bare("looking for a database", err)
	default:
		if _, err := admin.Exec(ctx, "CREATE DATABASE "+name); err != nil {
			return t, v, bare("making a database", err)
		}
		if err := Migrate(ctx, dsn.String(), ""); err != nil {
			return t, v, err
		}
		if err := t.Generate(ctx, dsn.String()); err != nil {
			return t, v, err
		}
		if _, err := admin.Exec(ctx, "COMMENT ON DATABASE "+name+" IS '"+t.summary()+"'"); err != nil {
			return t, v, bare("describing the database", err)
		}
		v.Loaded = time.Since(began)
	}
	if err := admin.QueryRow(ctx, `SELECT pg_database_size($1::name)`, name).Scan(&v.Bytes); err != nil {
		return t, v, bare("measuring the database", err)
	}
	m.Progress("%d rows of %.1f GB after %v", rows, float64(v.Bytes)/1e9, v.Loaded.Round(time.Second))
	t.db, err = Open(ctx, Config{DSN: dsn.String()})
	return t, v, err
}

// shape is a kind of query: ask asks one of them, for values drawn at random.
type shape struct {
	name     string
	promised bool
	ask      func(*rand.Rand) error
}

// ask measures every shape on all trails in turns, so that what else the machine does strikes all alike.
func (m *Measurement) ask(ctx context.Context, trails []measured, volumes []QueryVolume) error {
	shapes := make([][]shape, len(trails))
	for i, t := range trails {
		shapes[i] = t.shapes(ctx, t.db.Trail())
	}
	for k := range shapes[0] {
		first, again := make([][]time.Duration, len(trails)), make([][]time.Duration, len(trails))
		instances := m.Instances
		if !shapes[0][k].promised {
			instances = max(instances/4, 1)
		}
		for n := range instances * 3 / 2 { // a third for plans, catalogs and whatever else a server that runs for a while has at hand
			for i := range trails {
				var took [2]time.Duration
				for j := range took {
					random := rand.New(rand.NewPCG(uint64(k), uint64(n))) //nolint:gosec // which of made-up events is asked for
					began := time.Now()
					if err := shapes[i][k].ask(random); err != nil {
						return fmt.Errorf("asking for the %s: %w", shapes[i][k].name, err)
					}
					took[j] = time.Since(began)
				}
				if n >= instances/2 {
					first[i], again[i] = append(first[i], took[0]), append(again[i], took[1])
				}
			}
		}
		for i := range trails {
			slices.Sort(first[i])
			slices.Sort(again[i])
			at := func(took []time.Duration, percent int) time.Duration {
				return took[min(len(took)-1, len(took)*percent/100)]
			}
			volumes[i].Shapes = append(volumes[i].Shapes, QueryShape{
				Name: shapes[i][k].name, Promised: shapes[i][k].promised, P50: at(first[i], 50), P95: at(first[i], 95), Again: at(again[i], 95),
			})
		}
	}
	return nil
}

// shapes are the kinds of queries that officers ask.
func (g *Generation) shapes(ctx context.Context, trail audit.Reader) []shape {
	at := func(r *rand.Rand) time.Time {
		return g.from.Add(time.Duration(r.Int64N(max(g.Rows, 1))) * g.step)
	}
	until := g.from.Add(time.Duration(g.Rows) * g.step)
	anywhere := func(r *rand.Rand) audit.Position { return audit.Position{PartTime: at(r), ID: audit.ID(randomID(r))} }
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
