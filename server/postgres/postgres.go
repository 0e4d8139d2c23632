// Package postgres keeps the storages of audit, phi and auth on PostgreSQL (pgx stays in here), and the migrations with
// their roles and grants.
//
// It promises least privilege: the program logs in as one role that owns nothing, and each pool takes the role of its room
// (records, audit writer, audit reader); the trail is owned by a role that nobody logs in as, and triggers refuse UPDATE,
// DELETE and TRUNCATE from anyone. And it promises that a batch of audit rows is stored exactly once: its manifest and its
// COPY commit in one transaction, and a trigger demands that it continues the stream.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// Config configures Open.
type Config struct {
	DSN      string // login of role chartkeep
	ReadDSN  string // of a replica, for officers' queries; the primary answers them when empty
	MaxConns int32  // of the records pool; 4 x cores, at least 16, when 0
	Logger   *slog.Logger
}

// DB holds one pool a room. All methods and all storages are safe for concurrent use. A pool heals by itself after
// PostgreSQL was away.
type DB struct {
	records, writer, reader *pgxpool.Pool
	officers                *pgxpool.Pool // reader, or a replica's
	sequencer               *pgxpool.Pool // a lease has a connection of its own
	listen                  *pgx.ConnConfig
	logger                  *slog.Logger
	recordStorage           *recordStorage
	trailStorage            *trailStorage
}

// Statement timeouts of the pools.
const (
	recordsTimeout = 10 * time.Second
	writerTimeout  = 60 * time.Second
	readerTimeout  = 5 * time.Second
)

// Open connects the pools, checks that the schema is the one this program was built for, and makes the trail's partitions
// of the coming months.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = recordsConns()
	}
	d := &DB{logger: cfg.Logger}
	var err error
	if d.records, err = openPool(ctx, cfg.DSN, "chartkeep_records", cfg.MaxConns, recordsTimeout, pgx.QueryExecModeCacheStatement); err != nil {
		return nil, err
	}
	d.writer, err = openPool(ctx, cfg.DSN, "chartkeep_audit_writer", 2, writerTimeout, pgx.QueryExecModeCacheStatement)
	if err != nil {
		d.Close()
		return nil, err
	}
	// An officer's query is planned for its own values, so that months outside its window are pruned.
	d.reader, err = openPool(ctx, cfg.DSN, "chartkeep_audit_reader", 4, readerTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		d.Close()
		return nil, err
	}
	d.officers = d.reader
	if cfg.ReadDSN != "" {
		replica, err := openPool(ctx, cfg.ReadDSN, "chartkeep_audit_reader", 4, readerTimeout, pgx.QueryExecModeCacheDescribe)
		if err != nil {
			cfg.Logger.ErrorContext(ctx, "no replica for officers' queries: the primary answers them until the next start", "error", err)
		} else {
			d.officers = replica
		}
	}
	if d.sequencer, err = openPool(ctx, cfg.DSN, "chartkeep_audit_sequencer", 2, writerTimeout, pgx.QueryExecModeCacheStatement); err != nil {
		d.Close()
		return nil, err
	}
	d.listen = d.records.Config().ConnConfig.Copy()
	d.listen.RuntimeParams["application_name"] = "chartkeep listener"
	if err := checkSchema(ctx, d.records); err != nil {
		d.Close()
		return nil, err
	}
	d.recordStorage = newRecordStorage(d.records)
	d.trailStorage = &trailStorage{pool: d.writer, logger: d.logger, now: time.Now}
	if err := d.trailStorage.ensurePartitions(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// recordsConns is the records pool's size when nobody says.
func recordsConns() int32 { return int32(max(16, 4*runtime.GOMAXPROCS(0))) }

// openPool makes a pool whose sessions take the role, and checks one connection.
func openPool(ctx context.Context, dsn, role string, conns int32, timeout time.Duration, mode pgx.QueryExecMode) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		// A ParseConfigError redacts the password, and still quotes the DSN: what it says stays out of our errors.
		return nil, errors.New("parsing the database URL: malformed")
	}
	cfg.MaxConns = conns
	cfg.MaxConnIdleTime = 5 * time.Minute
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	cfg.ConnConfig.DefaultQueryExecMode = mode
	p := cfg.ConnConfig.RuntimeParams
	p["role"] = role
	p["application_name"] = role
	p["timezone"] = "UTC"
	p["search_path"] = "public"
	p["statement_timeout"] = strconv.FormatInt(timeout.Milliseconds(), 10)
	// A connection that the network has swallowed must not keep its locks: the next one may wait for them.
	p["idle_in_transaction_session_timeout"] = p["statement_timeout"]
	p["tcp_keepalives_idle"], p["tcp_keepalives_interval"], p["tcp_keepalives_count"] = "10", "5", "3"
	if role == "chartkeep_audit_reader" {
		// A page is there before workers have started, or a plan is compiled.
		p["max_parallel_workers_per_gather"], p["jit"] = "0", "off"
	}
	if role == "chartkeep_records" || role == "chartkeep_sweep" || role == "chartkeep_keys" {
		// Every statement of this pool goes by an index. A plan that was made and kept while a table was still small would scan it
		// when it has grown, until it is analyzed.
		p["enable_seqscan"], p["enable_hashjoin"], p["enable_mergejoin"] = "off", "off", "off"
		// Nor is a look-up planned anew each time, which takes longer than the look-up: PostgreSQL would, since it takes an array of
		// unknown length for ten elements and so a kept plan for the dearer one.
		p["plan_cache_mode"] = "force_generic_plan"
		// A scan that must be all the same looks so dear that it would be compiled, for half a second.
		p["jit"] = "off"
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening pool of %s: %w", role, err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("connecting as %s: %w", role, err)
	}
	return pool, nil
}

// Close closes the pools. It waits for what is under way.
func (d *DB) Close() {
	pools := []*pgxpool.Pool{d.records, d.writer, d.reader, d.sequencer}
	if d.officers != d.reader {
		pools = append(pools, d.officers)
	}
	for _, p := range pools {
		if p != nil {
			p.Close()
		}
	}
}

// Ping checks the records pool.
func (d *DB) Ping(ctx context.Context) error {
	if err := d.records.Ping(ctx); err != nil {
		return fmt.Errorf("pinging the database: %w", err)
	}
	return nil
}

// Records, Keys, Audit, Trail and Auth are the rooms' storages.
func (d *DB) Records() phi.Storage { return d.recordStorage }
func (d *DB) Keys() keyset.Storage { return &keyStorage{d.records} }
func (d *DB) Audit() audit.Storage { return d.trailStorage }
func (d *DB) Trail() audit.Reader  { return &trailReader{d.officers} }
func (d *DB) Auth() *AuthStorage   { return &AuthStorage{d.records} }

// PoolStats is a snapshot of one pool.
type PoolStats struct {
	Name                string
	Acquired, Idle, Max int32
	Waits               int64 // acquires that found no idle connection, since Open
}

// Stats returns a snapshot of all pools.
func (d *DB) Stats() []PoolStats {
	stats := make([]PoolStats, 0, 4)
	for _, p := range []struct {
		name string
		pool *pgxpool.Pool
	}{{"records", d.records}, {"audit_writer", d.writer}, {"audit_reader", d.reader}, {"audit_sequencer", d.sequencer}} {
		s := p.pool.Stat()
		stats = append(stats, PoolStats{
			Name: p.name, Acquired: s.AcquiredConns(), Idle: s.IdleConns(), Max: s.MaxConns(), Waits: s.EmptyAcquireCount(),
		})
	}
	return stats
}

// sqlState returns PostgreSQL's code of an error, "" when it did not come from PostgreSQL.
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// bare reduces an error of PostgreSQL to its code and our own context: its detail can quote values of a row.
func bare(doing string, err error) error {
	if code := sqlState(err); code != "" {
		return fmt.Errorf("%s: PostgreSQL error %s", doing, code)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
