package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/audit"
)

// SQLSTATEs of the trail's triggers, see migration/0002_trail.sql.
const (
	stateIngested = "CKA01"
	stateGap      = "CKA02"
	stateChain    = "CKA03"
)

// trailStorage is audit.Storage, as the role that may only insert.
type trailStorage struct {
	pool    *pgxpool.Pool
	logger  *slog.Logger
	now     func() time.Time
	ensured atomic.Int64 // Unix day on which partitions were last made ahead
}

var _ audit.Storage = (*trailStorage)(nil)

// ensurePartitions makes the partitions of the coming months, once a day: it costs nothing when they are there.
func (s *trailStorage) ensurePartitions(ctx context.Context) error {
	day := s.now().Unix() / 86400
	if s.ensured.Load() == day {
		return nil
	}
	var made int
	if err := s.pool.QueryRow(ctx, `SELECT audit_ensure_partitions()`).Scan(&made); err != nil {
		return bare("making audit partitions", err)
	}
	s.ensured.Store(day)
	if made > 0 {
		s.logger.InfoContext(ctx, "audit partitions made", "count", made)
	}
	return nil
}

// Head implements audit.Storage.
func (s *trailStorage) Head(ctx context.Context, stream audit.StreamID) (uint64, audit.Hash, error) {
	var next *int64
	var chain []byte
	if err := s.pool.QueryRow(ctx, `SELECT next, chain FROM audit_head($1)`, [16]byte(stream)).Scan(&next, &chain); err != nil {
		return 0, audit.Hash{}, bare("fetching head of stream", err)
	}
	if next == nil {
		return 0, audit.Hash{}, nil
	}
	if len(chain) != len(audit.Hash{}) {
		return 0, audit.Hash{}, fmt.Errorf("fetching head of stream: chain of %d bytes: %w", len(chain), audit.ErrChain)
	}
	return uint64(*next), audit.Hash(chain), nil
}

// Ingest implements audit.Storage. A row that the table refuses goes to the quarantine as raw bytes: its sequence number
// and leaf stay, and the rows around it are stored as ever.
func (s *trailStorage) Ingest(ctx context.Context, b audit.Batch) error {
	if len(b.Rows) == 0 {
		return nil
	}
	for i := range b.Rows {
		if b.Rows[i].Seq != b.First+uint64(i) {
			return fmt.Errorf("ingesting batch: rows are not contiguous: %w", audit.ErrChain)
		}
	}
	err := s.ingest(ctx, b, s.copyRows)
	if poison(err) {
		err = s.ingest(ctx, b, s.bisectRows)
	}
	if err != nil {
		return err
	}
	if err := s.ensurePartitions(ctx); err != nil {
		// The batch is stored, and what no partition covers goes to the default one.
		s.logger.WarnContext(ctx, "making audit partitions failed", "error", err)
	}
	return nil
}

func (s *trailStorage) ingest(ctx context.Context, b audit.Batch, store func(context.Context, pgx.Tx, audit.StreamID, []audit.Row) error) error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return bare("beginning ingest", err)
	}
	// After Commit this does nothing; before it, the transaction ends even when ctx is done.
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	batch := &pgx.Batch{}
	batch.Queue(`SET LOCAL synchronous_commit = on`)
	batch.Queue(`INSERT INTO audit_batch (stream, first_seq, last_seq, prev, chain) VALUES ($1, $2, $3, $4, $5)`,
		[16]byte(b.Stream), int64(b.First), int64(b.First)+int64(len(b.Rows))-1, b.Prev[:], b.Chain[:])
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		switch sqlState(err) {
		case stateIngested:
			return audit.ErrIngested
		case stateGap, stateChain:
			return fmt.Errorf("ingesting batch: PostgreSQL error %s: %w", sqlState(err), audit.ErrChain)
		}
		return bare("inserting manifest", err)
	}
	if err := store(ctx, tx, b.Stream, b.Rows); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return bare("committing batch", err)
	}
	return nil
}

// errPoison says that a row's values are refused, whenever they are tried.
type errPoison struct{ state string }

func (e errPoison) Error() string { return "copying rows: PostgreSQL error " + e.state }

func poison(err error) bool { return errors.As(err, new(errPoison)) }

// trailColumns are copied in this order by trailRow.
var trailColumns = []string{
	"part_ts", "stream", "seq", "event_id", "recorded", "type", "interaction", "action", "outcome", "agent_user", "client",
	"session", "network", "roles", "purpose", "patient", "entity_type", "entity_id", "entities", "allowed", "rule", "reason", "view",
	"policy", "request_id", "correlation", "total_us", "salt", "leaf", "body",
}

func trailRow(stream audit.StreamID, r *audit.Row) []any {
	e := &r.Event
	var outcome, correlation any
	if e.Outcome != audit.Intent {
		outcome = int16(e.Outcome)
	}
	if e.Correlation != (audit.ID{}) {
		correlation = [16]byte(e.Correlation)
	}
	var entity audit.Entity
	if len(e.Entities) > 0 {
		entity = e.Entities[0]
	}
	entities := make([]string, len(e.Entities))
	for i, n := range e.Entities {
		entities[i] = projected(n.Type + "/" + n.ID)
	}
	roles := make([]string, len(e.Agent.Roles))
	for i, role := range e.Agent.Roles {
		roles[i] = projected(role)
	}
	return []any{
		r.PartTime, [16]byte(stream), int64(r.Seq), [16]byte(e.ID), e.Recorded, projected(string(e.Type)), projected(e.Interaction),
		projected(string(rune(e.Action))), outcome, projected(e.Agent.User), projected(e.Agent.Client), projected(e.Agent.Session),
		projected(e.Agent.Network), roles, projected(e.Purpose), projected(e.Patient), projected(entity.Type), projected(entity.ID),
		entities, e.Decision.Allowed, projected(e.Decision.Rule), projected(e.Decision.Reason), projected(e.Decision.View), e.Decision.Policy,
		projected(e.RequestID), correlation, int64(e.Timing.Total), r.Salt[:], r.Leaf[:], r.Body,
	}
}

// maxProjection bounds a projected text in bytes: an index entry holds about 2,700.
const maxProjection = 512

// projected makes a text fit for a column to search by: valid UTF-8, no NUL, bounded. The body keeps what was recorded.
func projected(s string) string {
	if len(s) <= maxProjection && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	if len(s) <= maxProjection {
		return s
	}
	end := maxProjection
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// copyRows stores rows with one COPY.
func (s *trailStorage) copyRows(ctx context.Context, tx pgx.Tx, stream audit.StreamID, rows []audit.Row) error {
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"audit_event"}, trailColumns, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
		return trailRow(stream, &rows[i]), nil
	}))
	if err == nil {
		return nil
	}
	// Data exceptions, constraints, and limits of the program: not the state of the server.
	switch state := sqlState(err); {
	case strings.HasPrefix(state, "22"), strings.HasPrefix(state, "23"), strings.HasPrefix(state, "54"):
		return errPoison{state}
	}
	return bare("copying rows", err)
}

// bisectRows stores rows and quarantines those that the table refuses, halving the run around each of them.
func (s *trailStorage) bisectRows(ctx context.Context, tx pgx.Tx, stream audit.StreamID, rows []audit.Row) error {
	var refused errPoison
	err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error { return s.copyRows(ctx, savepoint, stream, rows) })
	switch {
	case !errors.As(err, &refused):
		return err
	case len(rows) > 1:
		half := len(rows) / 2
		if err := s.bisectRows(ctx, tx, stream, rows[:half]); err != nil {
			return err
		}
		return s.bisectRows(ctx, tx, stream, rows[half:])
	}
	r := &rows[0]
	s.logger.ErrorContext(ctx, "audit row quarantined", "stream", fmt.Sprintf("%x", stream), "seq", r.Seq, "sqlstate", refused.state)
	if _, err := tx.Exec(ctx, `INSERT INTO audit_quarantine (stream, seq, part_us, salt, leaf, body, sqlstate)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`, [16]byte(stream), int64(r.Seq), r.PartTime.UnixMicro(), r.Salt[:], r.Leaf[:], r.Body,
		refused.state); err != nil {
		return bare("quarantining row", err)
	}
	return nil
}
