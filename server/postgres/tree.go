package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
)

// Tree is the log's Merkle tree beside its rows: what the sequencer writes, and all that verification reads. It reads as the
// trail's reader and writes as the sequencer's role. Safe for concurrent use.
type Tree struct{ db *DB }

var (
	_ audit.TreeStorage = (*Tree)(nil)
	_ audit.Evidence    = (*Tree)(nil)
)

// Tree of this database.
func (d *DB) Tree() *Tree { return &Tree{db: d} }

const (
	stateFenced = "CKA30"
	stateUnique = "23505"

	leaderLock   = 7393
	leaseSilence = "10000"          // milliseconds
	scanTimeout  = 30 * time.Minute // of a look at the whole trail
)

// Checkpoint implements audit.TreeReader.
func (t *Tree) Checkpoint(ctx context.Context) ([]byte, error) {
	notes, err := t.notes(ctx, `ORDER BY c.size DESC LIMIT 1`)
	if err != nil || len(notes) == 0 {
		return nil, err
	}
	return notes[0], nil
}

// Checkpoints implements audit.TreeReader.
func (t *Tree) Checkpoints(ctx context.Context, after int64, limit int) ([][]byte, error) {
	return t.notes(ctx, `WHERE c.size > $1 ORDER BY c.size LIMIT $2`, after, limit)
}

func (t *Tree) notes(ctx context.Context, which string, args ...any) ([][]byte, error) {
	rows, err := t.db.reader.Query(ctx, `SELECT c.note || coalesce((SELECT string_agg(s.line, '' ORDER BY s.gathered_at, s.line)
		FROM audit_cosignature s WHERE s.size = c.size), '') FROM audit_checkpoint c `+which, args...)
	if err != nil {
		return nil, bare("reading checkpoints", err)
	}
	notes, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]byte, error) {
		var note string
		err := row.Scan(&note)
		return []byte(note), err
	})
	if err != nil {
		return nil, bare("reading checkpoints", err)
	}
	return notes, nil
}

// Tiles implements audit.TreeReader. A partial tile of an older tree is a prefix of what is there by now.
func (t *Tree) Tiles(ctx context.Context, tiles []tlog.Tile) ([][]byte, error) {
	levels, indexes := make([]int16, len(tiles)), make([]int64, len(tiles))
	for i, tile := range tiles {
		if tile.H != audit.TileHeight || tile.L < 0 || tile.L > 8 || tile.N < 0 || tile.W < 1 || tile.W > 1<<audit.TileHeight {
			return nil, fmt.Errorf("reading tiles: %d/%d is none of ours", tile.L, tile.N)
		}
		levels[i], indexes[i] = int16(tile.L), tile.N
	}
	contents := make([][]byte, len(tiles))
	// One statement: with two, a tile could become full in between.
	rows, err := t.db.reader.Query(ctx, `
		WITH asked AS (SELECT * FROM unnest($1::smallint[], $2::bigint[]) WITH ORDINALITY a(level, idx, place))
		SELECT a.place, t.hashes FROM asked a JOIN audit_tile t USING (level, idx)
		UNION ALL SELECT a.place, e.hashes FROM asked a JOIN audit_edge e USING (level, idx)`, levels, indexes)
	if err != nil {
		return nil, bare("reading tiles", err)
	}
	var place int64
	var hashes []byte
	if _, err := pgx.ForEachRow(rows, []any{&place, &hashes}, func() error {
		w := tiles[place-1].W * tlog.HashSize
		if len(hashes) >= w && len(contents[place-1]) == 0 {
			contents[place-1] = bytes.Clone(hashes[:w])
		}
		return nil
	}); err != nil {
		return nil, bare("reading tiles", err)
	}
	return contents, nil
}

const spanColumns = `index, stream, first_seq, count, prev, chain, first_us, last_us`

func scanSpan(row pgx.CollectableRow) (audit.Span, error) {
	var s audit.Span
	var index, first, firstUS, lastUS *int64
	var prev, chain []byte
	var count int64
	if err := row.Scan(&index, (*[16]byte)(&s.Stream), &first, &count, &prev, &chain, &firstUS, &lastUS); err != nil {
		return s, err
	}
	s.Index = -1
	if index != nil {
		s.Index = *index
	}
	s.First, s.Count = uint64(*first), int(min(count, math.MaxInt32))
	copy(s.Prev[:], prev)
	copy(s.Chain[:], chain)
	if firstUS != nil && lastUS != nil {
		s.FirstPart, s.LastPart = time.UnixMicro(*firstUS).UTC(), time.UnixMicro(*lastUS).UTC()
	}
	return s, nil
}

// Locate implements audit.TreeReader.
func (t *Tree) Locate(ctx context.Context, stream audit.StreamID, seq uint64) (audit.Span, bool, error) {
	rows, err := t.db.reader.Query(ctx, `SELECT `+spanColumns+` FROM audit_span WHERE stream = $1 AND first_seq <= $2 ORDER BY first_seq DESC LIMIT 1`,
		[16]byte(stream), int64(min(seq, math.MaxInt64)))
	if err != nil {
		return audit.Span{}, false, bare("locating record", err)
	}
	s, err := pgx.CollectExactlyOneRow(rows, scanSpan)
	if errors.Is(err, pgx.ErrNoRows) {
		return audit.Span{}, false, nil
	}
	if err != nil {
		return audit.Span{}, false, bare("locating record", err)
	}
	if seq-s.First >= uint64(s.Count) {
		return audit.Span{}, false, nil
	}
	return s, true, nil
}

// Spans implements audit.TreeReader.
func (t *Tree) Spans(ctx context.Context, from int64, limit int) ([]audit.Span, error) {
	rows, err := t.db.reader.Query(ctx, `SELECT `+spanColumns+`, (SELECT (m.last_seq - m.first_seq + 1, m.prev, m.chain, m.first_us, m.last_us)
			FROM audit_manifest m WHERE m.stream = s.stream AND m.first_seq = s.first_seq) IS DISTINCT FROM (s.count::bigint, s.prev, s.chain, s.first_us, s.last_us)
		FROM audit_span s
		WHERE index >= coalesce((SELECT max(s.index) FROM audit_span s WHERE s.index <= $1), 0) AND index + count > $1 ORDER BY index LIMIT $2`, from, limit)
	if err != nil {
		return nil, bare("reading batches of the tree", err)
	}
	spans, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (audit.Span, error) {
		var disputed bool
		s, err := scanSpan(withLast{row, &disputed})
		s.Disputed = disputed
		return s, err
	})
	if err != nil {
		return nil, bare("reading batches of the tree", err)
	}
	return spans, nil
}

// Cosign implements audit.TreeReader.
func (t *Tree) Cosign(ctx context.Context, size int64, line []byte) error {
	if _, err := t.db.sequencer.Exec(ctx, `INSERT INTO audit_cosignature (size, line) VALUES ($1, $2) ON CONFLICT DO NOTHING`, size, string(line)); err != nil {
		return bare("keeping cosignature", err)
	}
	return nil
}

// partRange is the range of part times in which a batch's rows are. What PostgreSQL knows no year for is in quarantine.
func partRange(s *audit.Span) (low, high pgtype.Timestamptz) {
	first, last := pgtype.Timestamptz{Valid: true, InfinityModifier: pgtype.NegativeInfinity}, pgtype.Timestamptz{Valid: true, InfinityModifier: pgtype.Infinity}
	if yearKnown(s.FirstPart) && !s.FirstPart.IsZero() {
		first = pgtype.Timestamptz{Valid: true, Time: s.FirstPart}
	}
	if yearKnown(s.LastPart) && !s.LastPart.IsZero() {
		last = pgtype.Timestamptz{Valid: true, Time: s.LastPart}
	}
	return first, last
}

// yearKnown reports whether PostgreSQL has a timestamp for a time. Nothing else that an event may hold is refused by the table, see
// projected.
func yearKnown(t time.Time) bool { return t.Year() > -4700 && t.Year() < 290_000 }

// Rows implements audit.Evidence. Every column is compared with what ingest would write for the row's bytes, in
// PostgreSQL's binary form.
func (t *Tree) Rows(ctx context.Context, s audit.Span) ([]audit.Row, error) {
	low, high := partRange(&s)
	last := int64(s.First) + int64(s.Count) - 1
	rows, err := t.db.reader.Query(ctx, `SELECT `+strings.Join(trailColumns, ", ")+` FROM audit_trail
		WHERE stream = $1 AND seq BETWEEN $2 AND $3 AND part_ts BETWEEN $4 AND $5 ORDER BY seq`, pgx.QueryResultFormats{pgx.BinaryFormatCode}, [16]byte(s.Stream), int64(s.First), last, low, high)
	if err != nil {
		return nil, bare("reading rows", err)
	}
	defer rows.Close()
	var list []audit.Row
	var want copyData
	for rows.Next() {
		r, err := storedRow(s.Stream, rows.RawValues(), &want)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		return nil, bare("reading rows", err)
	}
	aside, err := t.db.reader.Query(ctx, `SELECT seq, part_us, salt, leaf, body FROM audit_aside WHERE stream = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq`,
		[16]byte(s.Stream), int64(s.First), last)
	if err != nil {
		return nil, bare("reading quarantine", err)
	}
	quarantined, err := pgx.CollectRows(aside, func(row pgx.CollectableRow) (audit.Row, error) {
		var r audit.Row
		var seq, us int64
		var salt, leaf []byte
		if err := row.Scan(&seq, &us, &salt, &leaf, &r.Body); err != nil {
			return r, err
		}
		r.Seq, r.PartTime = uint64(seq), time.UnixMicro(us).UTC()
		copy(r.Salt[:], salt)
		copy(r.Leaf[:], leaf)
		if e, err := audit.DecodeEvent(r.Body); err == nil {
			r.Event = e
			if yearKnown(r.PartTime) && yearKnown(e.Recorded) {
				r.Altered = []string{"quarantine"} // ingest would have stored it: somebody hid it from searches
			}
		}
		return r, nil
	})
	if err != nil {
		return nil, bare("reading quarantine", err)
	}
	if len(quarantined) > 0 {
		list = append(list, quarantined...)
		slices.SortStableFunc(list, func(a, b audit.Row) int { return int(int64(a.Seq) - int64(b.Seq)) })
	}
	return list, nil
}

// storedRow makes a row of the bytes of trailColumns, which it does not keep.
func storedRow(stream audit.StreamID, raw [][]byte, want *copyData) (audit.Row, error) {
	var r audit.Row
	const part, seq, salt, leaf, body = 0, 2, 27, 28, 29
	if len(raw) != len(trailColumns) || len(raw[part]) != 8 || len(raw[seq]) != 8 {
		return r, errors.New("reading rows: PostgreSQL sends other columns")
	}
	const since2000 = 946_684_800_000_000
	r.PartTime = time.UnixMicro(int64(binary.BigEndian.Uint64(raw[part])) + since2000).UTC()
	r.Seq = binary.BigEndian.Uint64(raw[seq])
	copy(r.Salt[:], raw[salt])
	copy(r.Leaf[:], raw[leaf])
	r.Body = bytes.Clone(raw[body])
	var err error
	if r.Event, err = audit.DecodeEvent(r.Body); err != nil {
		return r, nil //nolint:nilerr // it is verification that complains
	}
	*want = (*want)[:0]
	want.row(stream, &r)
	rest := (*want)[2:]
	for i, name := range trailColumns {
		n := int32(binary.BigEndian.Uint32(rest))
		rest = rest[4:]
		var expected []byte
		if n >= 0 {
			expected, rest = rest[:n], rest[n:]
		}
		if (n < 0) != (raw[i] == nil) || !bytes.Equal(expected, raw[i]) {
			r.Altered = append(r.Altered, name)
		}
	}
	return r, nil
}

// Unsequenced implements audit.Evidence.
func (t *Tree) Unsequenced(ctx context.Context, limit int) ([]audit.Span, error) {
	rows, err := t.db.reader.Query(ctx, pendingSQL("audit_manifest"), [][16]byte{}, limit)
	if err != nil {
		return nil, bare("reading batches", err)
	}
	pending, err := pgx.CollectRows(rows, scanPending)
	if err != nil {
		return nil, bare("reading batches", err)
	}
	spans := make([]audit.Span, len(pending))
	for i := range pending {
		spans[i] = pending[i].Span
	}
	return spans, nil
}

// pendingSQL selects batches that begin where a stream's last batch in the tree ends, or later; the first ones of all streams
// before their second ones. Never by time, nor by a number that counts inserts: another transaction may commit later what
// has a smaller one.
func pendingSQL(batches string) string {
	return `
	WITH RECURSIVE streams(stream) AS (
		(SELECT stream FROM ` + batches + ` ORDER BY stream LIMIT 1)
		UNION ALL
		SELECT (SELECT b.stream FROM ` + batches + ` b WHERE b.stream > s.stream ORDER BY b.stream LIMIT 1) FROM streams s WHERE s.stream IS NOT NULL
	)
	SELECT NULL::bigint, b.stream, b.first_seq, b.last_seq - b.first_seq + 1, b.prev, b.chain, b.first_us, b.last_us,
		(extract(epoch FROM greatest(clock_timestamp() - b.ingested_at, '0')) * 1000000)::bigint
	FROM streams s
	LEFT JOIN LATERAL (SELECT t.first_seq + t.count AS next FROM audit_span t WHERE t.stream = s.stream ORDER BY t.first_seq DESC LIMIT 1) h ON true
	CROSS JOIN LATERAL (SELECT * FROM ` + batches + ` b WHERE b.stream = s.stream AND b.first_seq >= coalesce(h.next, 0) ORDER BY b.first_seq LIMIT $2) b
	WHERE s.stream IS NOT NULL AND s.stream <> ALL ($1::uuid[])
	ORDER BY row_number() OVER (PARTITION BY b.stream ORDER BY b.first_seq), b.stream LIMIT $2`
}

func scanPending(row pgx.CollectableRow) (audit.Pending, error) {
	var p audit.Pending
	var waited int64
	var err error
	p.Span, err = scanSpan(withLast{row, &waited})
	p.Waited = time.Duration(waited) * time.Microsecond
	return p, err
}

// withLast scans one column more than it is asked for.
type withLast struct {
	pgx.CollectableRow
	last any
}

func (w withLast) Scan(dest ...any) error { return w.CollectableRow.Scan(append(dest, w.last)...) }

// Strays implements audit.Evidence: rows whose number, stream and part time no manifest covers. It looks at every row's key.
func (t *Tree) Strays(ctx context.Context, limit int) (strays []audit.Stray, err error) {
	err = pgx.BeginFunc(ctx, t.db.reader, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, scanTimeout.Milliseconds())); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			SELECT r.stream, r.seq, r.us FROM (
				SELECT stream, seq, (extract(epoch FROM part_ts) * 1000000)::bigint AS us FROM audit_trail
				UNION ALL SELECT stream, seq, part_us FROM audit_aside) r
			LEFT JOIN LATERAL (SELECT b.last_seq, b.first_us, b.last_us FROM audit_manifest b
				WHERE b.stream = r.stream AND b.first_seq <= r.seq ORDER BY b.first_seq DESC LIMIT 1) b ON true
			WHERE b.last_seq IS NULL OR b.last_seq < r.seq OR r.us < b.first_us OR r.us > b.last_us LIMIT $1`, limit)
		if err != nil {
			return err
		}
		strays, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (audit.Stray, error) {
			var s audit.Stray
			var seq, us int64
			err := row.Scan((*[16]byte)(&s.Stream), &seq, &us)
			s.Seq, s.PartTime = uint64(seq), time.UnixMicro(us).UTC()
			return s, err
		})
		return err
	})
	if err != nil {
		return nil, bare("looking for rows without a manifest", err)
	}
	return strays, nil
}

// Prunings implements audit.Evidence.
func (t *Tree) Prunings(ctx context.Context) ([][]byte, error) {
	rows, err := t.db.reader.Query(ctx, `SELECT note FROM audit_pruned ORDER BY noted_at, partition`)
	if err != nil {
		return nil, bare("reading pruning records", err)
	}
	notes, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return nil, bare("reading pruning records", err)
	}
	return notes, nil
}

// Keys implements audit.Evidence.
func (t *Tree) Keys(ctx context.Context) ([]string, error) {
	rows, err := t.db.reader.Query(ctx, `SELECT vkey FROM audit_key ORDER BY first_used, vkey`)
	if err != nil {
		return nil, bare("reading verifier keys", err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, bare("reading verifier keys", err)
	}
	return keys, nil
}

// Lead implements audit.TreeStorage. The lease is a lock of a connection of its own: it ends when that does, however it does.
func (t *Tree) Lead(ctx context.Context) (audit.Lease, error) {
	cfg := t.db.sequencer.Config().ConnConfig
	// A sequencer asks for work all the time. One that is silent (stopped, cut off) must not keep others from it.
	cfg.RuntimeParams["idle_session_timeout"] = leaseSilence
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = leaseSilence
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting sequencer: %w", err)
	}
	l := &lease{conn: conn}
	var leads bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, leaderLock).Scan(&leads); err != nil {
		return nil, errors.Join(bare("taking the lead", err), l.Close())
	}
	if !leads {
		return nil, l.Close()
	}
	if err := conn.QueryRow(ctx, `SELECT nextval('audit_token')`).Scan(&l.token); err != nil {
		return nil, errors.Join(bare("drawing a fencing token", err), l.Close())
	}
	return l, nil
}

// lease is audit.Lease. One goroutine at a time.
type lease struct {
	conn  *pgx.Conn
	token int64
}

// Close ends the connection, and with it the lock.
func (l *lease) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := l.conn.Close(ctx); err != nil {
		return fmt.Errorf("closing sequencer's connection: %w", err)
	}
	return nil
}

const leavesSQL = `SELECT seq, leaf FROM audit_event WHERE stream = $1 AND seq BETWEEN $2 AND $3 AND part_ts BETWEEN $4 AND $5
	UNION ALL SELECT seq, leaf FROM audit_quarantine WHERE stream = $1 AND seq BETWEEN $2 AND $3 ORDER BY 1`

func queueLeaves(b *pgx.Batch, s *audit.Span) {
	low, high := partRange(s)
	b.Queue(leavesSQL, [16]byte(s.Stream), int64(s.First), int64(s.First)+int64(s.Count)-1, low, high)
}

func collectLeaves(results pgx.BatchResults, s *audit.Span) ([]audit.Hash, error) {
	rows, err := results.Query()
	if err != nil {
		return nil, err
	}
	leaves := make([]audit.Hash, 0, s.Count)
	var seq int64
	var leaf []byte
	_, err = pgx.ForEachRow(rows, []any{&seq, &leaf}, func() error {
		var h audit.Hash
		copy(h[:], leaf)
		leaves = append(leaves, h)
		return nil
	})
	return leaves, err
}

// Pending implements audit.Lease.
func (l *lease) Pending(ctx context.Context, skip []audit.StreamID, limit int) ([]audit.Pending, error) {
	skipped := make([][16]byte, len(skip))
	for i := range skip {
		skipped[i] = skip[i]
	}
	rows, err := l.conn.Query(ctx, pendingSQL("audit_batch"), skipped, min(limit, 256))
	if err != nil {
		return nil, bare("reading batches", err)
	}
	pending, err := pgx.CollectRows(rows, scanPending)
	if err != nil {
		return nil, bare("reading batches", err)
	}
	batch, n, wanted := &pgx.Batch{}, 0, 0
	for n < len(pending) && (n == 0 || wanted < limit) {
		// One that is absurd is for the caller to refuse: nobody reads its rows.
		if pending[n].Count <= audit.MaxSpan {
			wanted += pending[n].Count
			queueLeaves(batch, &pending[n].Span)
		}
		n++
	}
	pending = pending[:n]
	if batch.Len() == 0 {
		return pending, nil
	}
	results := l.conn.SendBatch(ctx, batch)
	for i := range pending {
		if pending[i].Count > audit.MaxSpan {
			continue
		}
		if pending[i].Leaves, err = collectLeaves(results, &pending[i].Span); err != nil {
			_ = results.Close() // it reports the same again
			return nil, bare("reading leaves", err)
		}
	}
	if err := results.Close(); err != nil {
		return nil, bare("reading leaves", err)
	}
	return pending, nil
}

// Leaves implements audit.Lease.
func (l *lease) Leaves(ctx context.Context, s audit.Span) ([]audit.Hash, error) {
	batch := &pgx.Batch{}
	queueLeaves(batch, &s)
	results := l.conn.SendBatch(ctx, batch)
	leaves, err := collectLeaves(results, &s)
	if cerr := results.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, bare("reading leaves", err)
	}
	return leaves, nil
}

// Extend implements audit.Lease.
func (l *lease) Extend(ctx context.Context, e audit.Extension) error {
	tx, err := l.conn.Begin(ctx)
	if err != nil {
		return bare("beginning extension", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // does nothing after Commit
	batch := &pgx.Batch{}
	batch.Queue(`SET LOCAL synchronous_commit = on`)
	// The checkpoint comes first: its trigger and its unique key let only one pass.
	batch.Queue(`INSERT INTO audit_checkpoint (size, old, token, note) VALUES ($1, $2, $3, $4)`, e.Size, e.Old, l.token, string(e.Checkpoint))
	batch.Queue(`INSERT INTO audit_key (vkey) SELECT k FROM unnest($1::text[]) k WHERE NOT EXISTS (SELECT FROM audit_key h WHERE h.vkey = k)
		ON CONFLICT DO NOTHING`, e.Keys)
	for i := range e.Spans {
		s := &e.Spans[i]
		batch.Queue(`INSERT INTO audit_span (`+spanColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`, s.Index, [16]byte(s.Stream), int64(s.First), s.Count,
			s.Prev[:], s.Chain[:], micros(s.FirstPart), micros(s.LastPart))
	}
	for i := range e.Tiles {
		t := &e.Tiles[i]
		batch.Queue(`INSERT INTO audit_tile (level, idx, hashes) VALUES ($1, $2, $3)`, t.L, t.N, t.Hashes)
	}
	batch.Queue(`DELETE FROM audit_edge`)
	for i := range e.Edge {
		t := &e.Edge[i]
		batch.Queue(`INSERT INTO audit_edge (level, idx, hashes) VALUES ($1, $2, $3)`, t.L, t.N, t.Hashes)
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return extending(err)
	}
	if err := tx.Commit(ctx); err != nil {
		return extending(err)
	}
	return nil
}

// micros of a time that may be unknown.
func micros(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	us := t.UnixMicro()
	return &us
}

// extending tells ErrFenced from what the caller cannot know.
func extending(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == stateFenced || pg.Code == stateUnique) {
		return fmt.Errorf("extending the tree: PostgreSQL error %s: %w", pg.Code, audit.ErrFenced)
	}
	return bare("extending the tree", err)
}
