package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/phi"
)

// recordStorage is phi.Storage. Statements that fetch sealed rows exist once per set of classes, so that a cell outside the
// caller's view is not even read from disk.
type recordStorage struct {
	pool       *pgxpool.Pool
	binary     any // asks for all columns in PostgreSQL's binary format, which scanSealed reads; first argument of a query
	statements [phi.AllClasses + 1]statements
	gatherers  [phi.AllClasses + 1]*gatherer
}

type statements struct{ columns, current, version, history, many string }

var _ phi.Storage = (*recordStorage)(nil)

func newRecordStorage(pool *pgxpool.Pool) *recordStorage {
	s := &recordStorage{pool: pool, binary: pgx.QueryResultFormats{pgx.BinaryFormatCode}}
	for set := range s.statements {
		columns := sealedColumns(phi.ClassSet(set))
		both := `(SELECT ` + columns + ` FROM record r WHERE type = $1 AND id = $2 AND %[1]s
			UNION ALL SELECT ` + columns + ` FROM record_version r WHERE type = $1 AND id = $2 AND %[1]s %[2]s)`
		s.statements[set] = statements{
			columns: columns,
			current: `SELECT ` + columns + ` FROM record r WHERE type = $1 AND id = $2`,
			version: fmt.Sprintf(both, `version = $3`, ``),
			history: fmt.Sprintf(both, `version < $3`, `ORDER BY version DESC LIMIT $4`),
			many:    `SELECT ` + columns + ` FROM unnest($1::text[], $2::text[]) w(type, id) JOIN record r USING (type, id)`,
		}
		classes := phi.ClassSet(set)
		s.gatherers[set] = newGatherer(
			func(ctx context.Context, ref phi.Ref) (*phi.Sealed, error) {
				return s.one(ctx, s.statements[classes].current, classes, s.binary, ref.Type, ref.ID)
			},
			func(ctx context.Context, refs []phi.Ref, take func(*phi.Sealed)) error {
				types, ids := make([]string, len(refs)), make([]string, len(refs))
				for i, r := range refs {
					types[i], ids[i] = r.Type, r.ID
				}
				return s.each(ctx, s.statements[classes].many, classes, []any{s.binary, types, ids}, take)
			})
	}
	return s
}

// wrappedKey is the data key of record r, and behind its fixed length the id of the key that wraps it; one byte when the subject was
// erased, which is looked up only where there is no key. A sub-select costs half of what a join does: PostgreSQL starts the executor
// of one node, not of three.
const wrappedKey = `COALESCE((SELECT k.wrapped || convert_to(k.kek, 'UTF8') FROM phi_key k
	WHERE k.subject = r.subject AND k.segment = r.segment AND k.key_id = r.key_id),
	(SELECT '\x00'::bytea FROM phi_erased e WHERE e.subject = r.subject))`

// wrappedLen is the length of phi_key.wrapped.
const wrappedLen = 60

// sealedColumns lists what scanSealed reads, in its order, from record r.
func sealedColumns(classes phi.ClassSet) string {
	var b strings.Builder
	b.WriteString(`r.type, r.id, r.row_id, r.version, r.updated, r.method, r.patients, r.subject, r.segment, r.key_id, r.seal, r.digest, ` + wrappedKey)
	for c := range phi.Class(phi.NumClasses) {
		if classes.Has(c) {
			b.WriteString(", r.")
			b.WriteString(c.String())
		}
	}
	return b.String()
}

// scanSealed reads a row of sealedColumns from its raw values. It makes one copy of all bytes, one of the patients.
func scanSealed(raw [][]byte, classes phi.ClassSet) (*phi.Sealed, error) {
	const fixed = 13
	size := 0
	for _, v := range raw[10:] {
		size += len(v)
	}
	buf := make([]byte, 0, size)
	keep := func(v []byte) []byte {
		if v == nil {
			return nil
		}
		n := len(buf)
		buf = append(buf, v...)
		return buf[n:len(buf):len(buf)]
	}
	s := &phi.Sealed{Fetched: classes}
	s.Type, s.ID = string(raw[0]), string(raw[1])
	copy(s.Row[:], raw[2])
	s.Version = int64(binary.BigEndian.Uint64(raw[3]))
	s.Updated = time.UnixMicro(int64(binary.BigEndian.Uint64(raw[4])) + postgresEpoch).UTC()
	switch string(raw[5]) {
	case "POST":
		s.Method = "POST"
	case "PUT":
		s.Method = "PUT"
	case "DELETE":
		s.Method = "DELETE"
	}
	var err error
	if s.Patients, err = textArray(raw[6]); err != nil {
		return nil, err
	}
	copy(s.Subject[:], raw[7])
	s.Segment = uint16(binary.BigEndian.Uint32(raw[8]))
	s.KeyID = uint32(binary.BigEndian.Uint64(raw[9]))
	s.Seal = keep(raw[10])
	copy(s.Digest[:], raw[11])
	s.Key = phi.WrappedKey{Subject: s.Subject, Segment: s.Segment, KeyID: s.KeyID}
	switch k := raw[12]; {
	case len(k) > wrappedLen:
		s.Key.Wrapped, s.Key.KEK = keep(k[:wrappedLen]), string(k[wrappedLen:])
	case len(k) == 1:
		s.Erased = true
	}
	next := fixed
	for c := range phi.Class(phi.NumClasses) {
		if classes.Has(c) {
			s.Cells[c] = keep(raw[next])
			next++
		}
	}
	return s, nil
}

// postgresEpoch is 2000-01-01 in Unix microseconds, where PostgreSQL's timestamps start.
const postgresEpoch = 946684800 * 1_000_000

// textArray reads PostgreSQL's binary format of a one-dimensional text[]: dimensions, flags, element type, length, lower
// bound, then each element after its length.
func textArray(b []byte) ([]string, error) {
	if len(b) < 12 {
		return nil, fmt.Errorf("reading text array: %d bytes", len(b))
	}
	if binary.BigEndian.Uint32(b) == 0 {
		return nil, nil
	}
	if len(b) < 20 {
		return nil, fmt.Errorf("reading text array: %d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint32(b[12:]))
	b = b[20:]
	if n > len(b)/4 {
		return nil, fmt.Errorf("reading text array: %d elements in %d bytes", n, len(b))
	}
	out := make([]string, n)
	for i := range out {
		if len(b) < 4 {
			return nil, fmt.Errorf("reading text array: cut short")
		}
		size := int(int32(binary.BigEndian.Uint32(b)))
		if b = b[4:]; size < 0 || size > len(b) {
			return nil, fmt.Errorf("reading text array: element of %d bytes", size)
		}
		out[i], b = string(b[:size]), b[size:]
	}
	return out, nil
}

// all runs a statement that returns sealedColumns; args starts with s.binary.
func (s *recordStorage) all(ctx context.Context, sql string, classes phi.ClassSet, args ...any) ([]*phi.Sealed, error) {
	var out []*phi.Sealed
	err := s.each(ctx, sql, classes, args, func(row *phi.Sealed) { out = append(out, row) })
	return out, err
}

// one is all for at most one row.
func (s *recordStorage) one(ctx context.Context, sql string, classes phi.ClassSet, args ...any) (*phi.Sealed, error) {
	var found *phi.Sealed
	if err := s.each(ctx, sql, classes, args, func(row *phi.Sealed) { found = row }); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, phi.ErrNotFound
	}
	return found, nil
}

func (s *recordStorage) each(ctx context.Context, sql string, classes phi.ClassSet, args []any, take func(*phi.Sealed)) error {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return bare("fetching records", err)
	}
	defer rows.Close()
	for rows.Next() {
		sealed, err := scanSealed(rows.RawValues(), classes)
		if err != nil {
			return err
		}
		take(sealed)
	}
	if err := rows.Err(); err != nil {
		return bare("fetching records", err)
	}
	return nil
}

// Fetch implements phi.Storage.
func (s *recordStorage) Fetch(ctx context.Context, ref phi.Ref, classes phi.ClassSet) (*phi.Sealed, error) {
	return s.gatherers[classes&phi.AllClasses].fetch(ctx, ref)
}

// FetchVersion implements phi.Storage.
func (s *recordStorage) FetchVersion(ctx context.Context, ref phi.Ref, version int64, classes phi.ClassSet) (*phi.Sealed, error) {
	classes &= phi.AllClasses
	return s.one(ctx, s.statements[classes].version, classes, s.binary, ref.Type, ref.ID, version)
}

// FetchHistory implements phi.Storage.
func (s *recordStorage) FetchHistory(ctx context.Context, ref phi.Ref, classes phi.ClassSet, before int64, limit int) ([]*phi.Sealed, error) {
	classes &= phi.AllClasses
	if before == 0 {
		before = math.MaxInt64
	}
	return s.all(ctx, s.statements[classes].history, classes, s.binary, ref.Type, ref.ID, before, limit)
}

// FetchMany implements phi.Storage.
func (s *recordStorage) FetchMany(ctx context.Context, refs []phi.Ref, classes phi.ClassSet) ([]*phi.Sealed, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	classes &= phi.AllClasses
	seen := make(map[phi.Ref]bool, len(refs))
	types, ids := make([]string, 0, len(refs)), make([]string, 0, len(refs))
	for _, r := range refs {
		if !seen[r] {
			seen[r] = true
			types, ids = append(types, r.Type), append(ids, r.ID)
		}
	}
	return s.all(ctx, s.statements[classes].many, classes, s.binary, types, ids)
}
