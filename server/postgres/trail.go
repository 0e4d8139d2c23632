package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
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
	ensure  atomic.Int64 // Unix seconds from which on partitions are to be made ahead again
	buffers sync.Pool    // of *copyData

	quarantined atomic.Uint64
	patience    time.Duration // how long a call may take before the connection counts as dead; trailPatience when 0
}

// trailPatience is longer than any statement may run: what takes longer waits for an answer that the network has swallowed.
const trailPatience = writerTimeout + 5*time.Second

// bounded is ctx with an end. The shipper has none, and a connection can be dead without anybody noticing.
func (s *trailStorage) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, cmp.Or(s.patience, trailPatience))
}

var (
	_ audit.Storage    = (*trailStorage)(nil)
	_ audit.Quarantine = (*trailStorage)(nil)
)

// Quarantined implements audit.Quarantine.
func (s *trailStorage) Quarantined() uint64 { return s.quarantined.Load() }

// ensurePartitions makes the partitions of the coming months, once a day: it costs nothing when they are there. When it fails
// it is tried again some minutes later, not with every batch.
func (s *trailStorage) ensurePartitions(ctx context.Context) error {
	const day, soon = 86400, 600
	now := s.now().Unix()
	if now < s.ensure.Load() {
		return nil
	}
	s.ensure.Store(now + soon)
	var made int
	if err := s.pool.QueryRow(ctx, `SELECT audit_ensure_partitions()`).Scan(&made); err != nil {
		return bare("making audit partitions", err)
	}
	if _, err := s.pool.Exec(ctx, `SELECT audit_trim_rollups()`); err != nil {
		return bare("trimming rollups", err)
	}
	s.ensure.Store((now/day + 1) * day)
	if made > 0 {
		s.logger.InfoContext(ctx, "audit partitions made", "count", made)
	}
	return nil
}

// Head implements audit.Storage.
func (s *trailStorage) Head(ctx context.Context, stream audit.StreamID) (uint64, audit.Hash, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
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
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	for i := range b.Rows {
		if b.Rows[i].Seq != b.First+uint64(i) {
			return fmt.Errorf("ingesting batch: rows are not contiguous: %w", audit.ErrChain)
		}
	}
	err := s.ingest(ctx, b, false, true)
	if poison(err) {
		err = s.ingest(ctx, b, true, true)
	}
	if errors.Is(err, errUncounted) {
		s.logger.ErrorContext(ctx, "audit batch stored and not counted in rollups: rebuild them", "error", err)
		err = s.ingest(ctx, b, true, false)
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

// ingest stores a batch; rows that the table refuses are an errPoison, or quarantined. What the rollups refuse is errUncounted.
func (s *trailStorage) ingest(ctx context.Context, b audit.Batch, quarantine, count bool) error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return bare("beginning ingest", err)
	}
	// After Commit this does nothing; before it, the transaction ends even when ctx is done.
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	batch := &pgx.Batch{}
	batch.Queue(`SET LOCAL synchronous_commit = on`)
	batch.Queue(`INSERT INTO audit_batch (stream, first_seq, last_seq, prev, chain, first_us, last_us) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		[16]byte(b.Stream), int64(b.First), int64(b.First)+int64(len(b.Rows))-1, b.Prev[:], b.Chain[:],
		b.Rows[0].PartTime.UnixMicro(), b.Rows[len(b.Rows)-1].PartTime.UnixMicro())
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		switch sqlState(err) {
		case stateIngested:
			return audit.ErrIngested
		case stateGap, stateChain:
			return fmt.Errorf("ingesting batch: PostgreSQL error %s: %w", sqlState(err), audit.ErrChain)
		}
		return bare("inserting manifest", err)
	}
	quarantined, counted := 0, newRollup()
	if quarantine {
		quarantined, err = s.bisectRows(ctx, tx, b.Stream, b.Rows, counted)
	} else {
		err = s.copyRows(ctx, tx, b.Stream, b.Rows, counted)
	}
	if err != nil {
		return err
	}
	if count {
		if err := counted.store(ctx, tx); err != nil {
			return err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return bare("committing batch", err)
	}
	s.quarantined.Add(uint64(quarantined))
	return nil
}

// errPoison says that a row's values are refused, whenever they are tried.
type errPoison struct{ state string }

func (e errPoison) Error() string { return "copying rows: PostgreSQL error " + e.state }

func poison(err error) bool { return errors.As(err, new(errPoison)) }

// trailColumns are copied in this order by row.
var trailColumns = []string{
	"part_ts", "stream", "seq", "event_id", "recorded", "type", "interaction", "action", "outcome", "agent_user", "client",
	"session", "network", "roles", "purpose", "patient", "entity_type", "entity_id", "entities", "allowed", "rule", "reason", "view",
	"policy", "request_id", "correlation", "total_us", "salt", "leaf", "body", "classes",
}

// row appends a row of trailColumns, paragraph by line, each field as wide as its column's type.
func (c *copyData) row(stream audit.StreamID, r *audit.Row) {
	e := &r.Event
	var entity audit.Entity
	if len(e.Entities) > 0 {
		entity = e.Entities[0]
	}
	c.int16(int16(len(trailColumns)))

	c.time(r.PartTime)
	c.bytes(stream[:])
	c.int64(int64(r.Seq))
	c.bytes(e.ID[:])
	c.time(e.Recorded)
	c.text(string(e.Type))
	c.text(e.Interaction)
	c.text(string(rune(e.Action)))
	if e.Outcome == audit.Intent {
		c.null()
	} else {
		c.size(2)
		c.int16(int16(e.Outcome))
	}
	c.text(e.Agent.User)
	c.text(e.Agent.Client)

	c.text(e.Agent.Session)
	c.text(e.Agent.Network)
	c.texts(len(e.Agent.Roles), func(i int) string { return e.Agent.Roles[i] })
	c.text(e.Purpose)
	c.text(e.Patient)
	c.text(entity.Type)
	c.text(entity.ID)
	c.texts(len(e.Entities), func(i int) string { return e.Entities[i].Type + "/" + e.Entities[i].ID })
	c.bool(e.Decision.Allowed)
	c.text(e.Decision.Rule)
	c.text(e.Decision.Reason)
	c.text(e.Decision.View)

	c.int64(e.Decision.Policy)
	c.text(e.RequestID)
	if e.Correlation == (audit.ID{}) {
		c.null()
	} else {
		c.bytes(e.Correlation[:])
	}
	c.int64(int64(e.Timing.Total))
	c.bytes(r.Salt[:])
	c.bytes(r.Leaf[:])
	c.bytes(r.Body)
	c.texts(len(e.Classes), func(i int) string { return e.Classes[i] })
}

// copyData is what COPY reads: "Binary Format" in https://www.postgresql.org/docs/current/sql-copy.html, with the fields as
// the send functions of their types write them. pgx's CopyFrom boxes every value and looks for its encoder; without it
// an Ingest takes about half the processor time.
type copyData []byte

func (c *copyData) begin() {
	*c = append((*c)[:0], "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
}
func (c *copyData) end() { c.int16(-1) }

func (c *copyData) int16(v int16) { *c = binary.BigEndian.AppendUint16(*c, uint16(v)) }
func (c *copyData) size(n int)    { *c = binary.BigEndian.AppendUint32(*c, uint32(n)) }
func (c *copyData) null()         { c.size(-1) }

func (c *copyData) bytes(v []byte) {
	c.size(len(v))
	*c = append(*c, v...)
}

func (c *copyData) bool(v bool) {
	c.size(1)
	if v {
		*c = append(*c, 1)
	} else {
		*c = append(*c, 0)
	}
}

func (c *copyData) int64(v int64) {
	c.size(8)
	*c = binary.BigEndian.AppendUint64(*c, uint64(v))
}

// time appends microseconds since 2000. A time beyond them becomes one that PostgreSQL, too, knows no year for: it is to
// be refused, and neither to wrap around nor to be infinity, which the ends of int64 mean.
func (c *copyData) time(t time.Time) {
	const since2000 = 946_684_800
	seconds := min(max(t.Unix(), -9e12)-since2000, math.MaxInt64/1_000_000-1)
	c.int64(seconds*1_000_000 + int64(t.Nanosecond())/1000)
}

func (c *copyData) text(s string) {
	s = projected(s)
	c.size(len(s))
	*c = append(*c, s...)
}

// texts appends a text[] of n elements, as array_send does: dimensions, whether there are nulls, the type of the elements,
// then the dimension's length and lower bound. An empty array has no dimension.
func (c *copyData) texts(n int, element func(i int) string) {
	c.size(0)
	start := len(*c)
	c.size(min(n, 1))
	c.size(0)
	c.size(pgtype.TextOID)
	if n > 0 {
		c.size(n)
		c.size(1)
	}
	for i := range n {
		c.text(element(i))
	}
	binary.BigEndian.PutUint32((*c)[start-4:], uint32(len(*c)-start))
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

// copyRows stores rows with one COPY and counts them.
func (s *trailStorage) copyRows(ctx context.Context, tx pgx.Tx, stream audit.StreamID, rows []audit.Row, counted *rollup) error {
	data, _ := s.buffers.Get().(*copyData)
	if data == nil {
		data = new(copyData)
	}
	data.begin()
	for i := range rows {
		data.row(stream, &rows[i])
	}
	data.end()
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(*data),
		`COPY audit_event (`+strings.Join(trailColumns, ", ")+`) FROM STDIN (FORMAT binary)`)
	if err == nil {
		// Only now: after an error pgconn may still be reading.
		s.buffers.Put(data)
		if tag.RowsAffected() != int64(len(rows)) {
			return fmt.Errorf("copying rows: %d of %d were stored", tag.RowsAffected(), len(rows))
		}
		for i := range rows {
			counted.add(rows[i].Time(), &rows[i].Event)
		}
		return nil
	}
	if refusedData(err) {
		return errPoison{sqlState(err)}
	}
	return bare("copying rows", err)
}

// refusedData reports whether an error is about the data (data exceptions, constraints, limits of the program), not about the
// state of the server.
func refusedData(err error) bool {
	state := sqlState(err)
	return strings.HasPrefix(state, "22") || strings.HasPrefix(state, "23") || strings.HasPrefix(state, "54")
}

// bisectRows stores rows and quarantines those that the table refuses, halving the run around each of them.
func (s *trailStorage) bisectRows(ctx context.Context, tx pgx.Tx, stream audit.StreamID, rows []audit.Row, counted *rollup) (quarantined int, err error) {
	var refused errPoison
	err = pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error { return s.copyRows(ctx, savepoint, stream, rows, counted) })
	switch {
	case !errors.As(err, &refused):
		return 0, err
	case len(rows) > 1:
		half := len(rows) / 2
		left, err := s.bisectRows(ctx, tx, stream, rows[:half], counted)
		if err != nil {
			return 0, err
		}
		right, err := s.bisectRows(ctx, tx, stream, rows[half:], counted)
		return left + right, err
	}
	r := &rows[0]
	s.logger.ErrorContext(ctx, "audit row quarantined", "stream", fmt.Sprintf("%x", stream), "seq", r.Seq, "sqlstate", refused.state)
	if _, err := tx.Exec(ctx, `INSERT INTO audit_quarantine (stream, seq, part_us, salt, leaf, body, sqlstate)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`, [16]byte(stream), int64(r.Seq), r.PartTime.UnixMicro(), r.Salt[:], r.Leaf[:], r.Body,
		refused.state); err != nil {
		return 0, bare("quarantining row", err)
	}
	return 1, nil
}
