package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/phi"
)

// Sweep is phi.SweepStorage. Its role may read all that is sealed, and write nothing but what the sweep remembers.
type Sweep struct {
	pool *pgxpool.Pool
	rows *recordStorage
}

var _ phi.SweepStorage = (*Sweep)(nil)

const (
	sweepLock    = 7397
	sweepTimeout = time.Minute
)

// Sweep opens the role's pool, for as long as a sweep takes. Close it.
func (d *DB) Sweep(ctx context.Context) (*Sweep, error) {
	// One connection holds the claim, one works.
	pool, err := openPool(ctx, d.records.Config().ConnString(), "chartkeep_sweep", 2, sweepTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return nil, err
	}
	return &Sweep{pool, &recordStorage{pool: pool, binary: pgx.QueryResultFormats{pgx.BinaryFormatCode}}}, nil
}

// Close closes the pool.
func (s *Sweep) Close() { s.pool.Close() }

// Claim implements phi.SweepStorage.
func (s *Sweep) Claim(ctx context.Context) (release func(), err error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, bare("claiming the sweep", err)
	}
	var mine bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, sweepLock).Scan(&mine); err != nil {
		conn.Release()
		return nil, bare("claiming the sweep", err)
	}
	if !mine {
		conn.Release()
		return nil, nil
	}
	return func() {
		// The lock goes with the connection, also when nobody can be asked to unlock.
		_ = conn.Conn().Close(context.WithoutCancel(ctx))
		conn.Release()
	}, nil
}

// State implements phi.SweepStorage.
func (s *Sweep) State(ctx context.Context) (state []byte, err error) {
	err = s.pool.QueryRow(ctx, `SELECT sealed FROM sweep_state`).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, bare("reading the sweep's state", err)
	}
	return state, nil
}

// Advance implements phi.SweepStorage.
func (s *Sweep) Advance(ctx context.Context, was, state []byte, heads []phi.Head) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		sql, args := `UPDATE sweep_state SET sealed = $1 WHERE sealed = $2`, []any{state, was}
		if was == nil {
			sql, args = `INSERT INTO sweep_state (sealed) VALUES ($1) ON CONFLICT DO NOTHING`, []any{state}
		}
		tag, err := tx.Exec(ctx, sql, args...)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return phi.ErrVersion
		}
		if len(heads) == 0 {
			return nil
		}
		types, ids, versions, seen := make([]string, len(heads)), make([]string, len(heads)), make([]int64, len(heads)), make([]int64, len(heads))
		for i, h := range heads {
			types[i], ids[i], versions[i], seen[i] = h.Type, h.ID, h.Version, int64(h.Seen)
		}
		_, err = tx.Exec(ctx, `INSERT INTO record_head (type, id, version, seen) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
			ON CONFLICT (type, id) DO UPDATE SET version = excluded.version, seen = excluded.seen`, types, ids, versions, seen)
		return err
	})
	if err != nil && !errors.Is(err, phi.ErrVersion) {
		return bare("storing the sweep's state", err)
	}
	return err
}

// Forget implements phi.SweepStorage.
func (s *Sweep) Forget(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM sweep_state`)
		if err == nil {
			_, err = tx.Exec(ctx, `DELETE FROM record_head`)
		}
		return err
	})
	if err != nil {
		return bare("forgetting the sweep's state", err)
	}
	return nil
}

const headColumns = `type, id, version, seen`

func scanHead(row pgx.CollectableRow) (phi.Head, error) {
	var h phi.Head
	var seen int64
	err := row.Scan(&h.Type, &h.ID, &h.Version, &seen)
	h.Seen = uint64(seen)
	return h, err
}

// Heads implements phi.SweepStorage.
func (s *Sweep) Heads(ctx context.Context, refs []phi.Ref) ([]phi.Head, error) {
	types, ids := make([]string, len(refs)), make([]string, len(refs))
	for i, r := range refs {
		types[i], ids[i] = r.Type, r.ID
	}
	rows, err := s.pool.Query(ctx, `SELECT `+headColumns+` FROM unnest($1::text[], $2::text[]) w(type, id) JOIN record_head USING (type, id)`, types, ids)
	if err != nil {
		return nil, bare("reading heads", err)
	}
	heads, err := pgx.CollectRows(rows, scanHead)
	if err != nil {
		return nil, bare("reading heads", err)
	}
	return heads, nil
}

// Page implements phi.SweepStorage. All of it is one snapshot.
func (s *Sweep) Page(ctx context.Context, after phi.Ref, limit int) (*phi.SweepPage, error) {
	p := &phi.SweepPage{Tokens: map[phi.Ref][]phi.Token{}, Patients: map[phi.Ref][]string{}, Versions: map[phi.Ref]phi.VersionRange{}, Done: true}
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+sealedColumns(phi.AllClasses)+` FROM record r WHERE (type, id) > ($1, $2) ORDER BY type, id LIMIT $3`,
			s.rows.binary, after.Type, after.ID, limit)
		if err != nil {
			return err
		}
		if p.Rows, err = collectSealed(rows); err != nil {
			return err
		}
		if rows, err = tx.Query(ctx, `SELECT `+headColumns+` FROM record_head WHERE (type, id) > ($1, $2) ORDER BY type, id LIMIT $3`, after.Type, after.ID, 2*limit); err != nil {
			return err
		}
		if p.Heads, err = pgx.CollectRows(rows, scanHead); err != nil {
			return err
		}
		trimPage(p, limit)
		return pageDetails(ctx, tx, after, p)
	})
	if err != nil {
		return nil, bare("reading records", err)
	}
	return p, nil
}

// trimPage ends a page where both its lists know everything.
func trimPage(p *phi.SweepPage, limit int) {
	last := func(ref phi.Ref) {
		if p.Done || ref.Compare(p.Last) < 0 {
			p.Last, p.Done = ref, false
		}
	}
	if len(p.Rows) == limit {
		last(p.Rows[limit-1].Ref)
	}
	if len(p.Heads) == 2*limit {
		last(p.Heads[2*limit-1].Ref)
	}
	if p.Done {
		return
	}
	for len(p.Rows) > 0 && p.Rows[len(p.Rows)-1].Ref.Compare(p.Last) > 0 {
		p.Rows = p.Rows[:len(p.Rows)-1]
	}
	for len(p.Heads) > 0 && p.Heads[len(p.Heads)-1].Ref.Compare(p.Last) > 0 {
		p.Heads = p.Heads[:len(p.Heads)-1]
	}
}

// pageDetails reads what belongs to the records of a page, and what belongs to none that is there.
func pageDetails(ctx context.Context, tx pgx.Tx, after phi.Ref, p *phi.SweepPage) error {
	within, args := `(type, id) > ($1, $2)`, []any{after.Type, after.ID}
	if !p.Done {
		within += ` AND (type, id) <= ($3, $4)`
		args = append(args, p.Last.Type, p.Last.ID)
	}
	var ref phi.Ref
	var token phi.Token
	var value []byte
	rows, err := tx.Query(ctx, `SELECT type, id, kind, token FROM index_token WHERE `+within, args...)
	if err != nil {
		return err
	}
	if _, err := pgx.ForEachRow(rows, []any{&ref.Type, &ref.ID, (*int16)(&token.Kind), &value}, func() error {
		copy(token.Value[:], value)
		p.Tokens[ref] = append(p.Tokens[ref], token)
		return nil
	}); err != nil {
		return err
	}
	var patient string
	if rows, err = tx.Query(ctx, `SELECT type, id, patient FROM record_patient WHERE `+within+` ORDER BY type, id, patient`, args...); err != nil {
		return err
	}
	if _, err := pgx.ForEachRow(rows, []any{&ref.Type, &ref.ID, &patient}, func() error {
		p.Patients[ref] = append(p.Patients[ref], patient)
		return nil
	}); err != nil {
		return err
	}
	var versions phi.VersionRange
	if rows, err = tx.Query(ctx, `SELECT type, id, count(*), min(version), max(version) FROM record_version WHERE `+within+` GROUP BY type, id`, args...); err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, []any{&ref.Type, &ref.ID, &versions.Count, &versions.First, &versions.Last}, func() error {
		p.Versions[ref] = versions
		return nil
	})
	return err
}

// Superseded implements phi.SweepStorage.
func (s *Sweep) Superseded(ctx context.Context, after phi.Ref, version int64, limit int) ([]*phi.Sealed, error) {
	return s.rows.all(ctx, `SELECT `+sealedColumns(phi.AllClasses)+` FROM record_version r WHERE (type, id, version) > ($1, $2, $3)
		ORDER BY type, id, version LIMIT $4`, phi.AllClasses, s.rows.binary, after.Type, after.ID, version, limit)
}

// ErasedSubjects implements phi.SweepStorage.
func (s *Sweep) ErasedSubjects(ctx context.Context) ([]phi.ErasedSubject, error) {
	rows, err := s.pool.Query(ctx, `SELECT subject, patient, erasure, erased_at, EXISTS (SELECT FROM phi_key k WHERE k.subject = e.subject) FROM phi_erased e`)
	if err != nil {
		return nil, bare("reading erased subjects", err)
	}
	subjects, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e phi.ErasedSubject, err error) {
		err = row.Scan((*[16]byte)(&e.Subject), &e.Patient, (*[16]byte)(&e.Erasure), &e.At, &e.Live)
		return e, err
	})
	if err != nil {
		return nil, bare("reading erased subjects", err)
	}
	return subjects, nil
}

func collectSealed(rows pgx.Rows) (all []*phi.Sealed, err error) {
	defer rows.Close()
	for rows.Next() {
		row, err := scanSealed(rows.RawValues(), phi.AllClasses)
		if err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, rows.Err()
}
