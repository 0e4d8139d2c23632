package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// Rotation is the storage of rotations, under a role that may replace keys and what they sealed, and delete no record.
type Rotation struct {
	pool *pgxpool.Pool
	rows *recordStorage
}

var _ phi.RotationStorage = (*Rotation)(nil)

// rotationTimeout is for a statement over a group of keys or a batch of rows.
const rotationTimeout = 60 * time.Second

// Rotation opens the role's pool, for the verb or the job that needs it. jobs is how many batches go at a time. Close it.
func (d *DB) Rotation(ctx context.Context, jobs int) (*Rotation, error) {
	// Each job may hold a claim, and work on a group and a batch.
	pool, err := openPool(ctx, d.records.Config().ConnString(), "chartkeep_keys", int32(3*max(1, jobs)+1), rotationTimeout, pgx.QueryExecModeCacheStatement)
	if err != nil {
		return nil, err
	}
	return &Rotation{pool: pool, rows: &recordStorage{pool: pool, binary: pgx.QueryResultFormats{pgx.BinaryFormatCode}}}, nil
}

// Close closes the pool.
func (r *Rotation) Close() { r.pool.Close() }

// BeginRenewal implements phi.RotationStorage.
func (r *Rotation) BeginRenewal(ctx context.Context, by string) (renewal phi.Renewal, err error) {
	if _, err := r.pool.Exec(ctx, `INSERT INTO phi_renewal (begun_by) VALUES ($1) ON CONFLICT DO NOTHING`, by); err != nil {
		return renewal, bare("beginning renewal", err)
	}
	err = r.pool.QueryRow(ctx, `SELECT id, begun_by, begun FROM phi_renewal WHERE finished IS NULL`).Scan(&renewal.ID, &renewal.By, &renewal.Begun)
	if errors.Is(err, pgx.ErrNoRows) { // somebody finished it in between
		return r.BeginRenewal(ctx, by)
	}
	if err != nil {
		return renewal, bare("beginning renewal", err)
	}
	return renewal, nil
}

// FinishRenewal implements phi.RotationStorage.
func (r *Rotation) FinishRenewal(ctx context.Context, id int64) error {
	if _, err := r.pool.Exec(ctx, `UPDATE phi_renewal SET finished = now() WHERE id = $1 AND finished IS NULL`, id); err != nil {
		return bare("finishing renewal", err)
	}
	return nil
}

// keyCondition is what a query demands of phi_key k, and its parameters.
func keyCondition(q phi.KeyQuery) (where string, args []any) {
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	// The state is no parameter: a plan that is kept must know that the partial index of the few that turn will do.
	conditions := []string{"k.state = '" + string(q.State) + "'"}
	if q.Subjects != nil {
		subjects := make([][16]byte, len(q.Subjects))
		for i, s := range q.Subjects {
			subjects[i] = s
		}
		conditions = append(conditions, "k.subject = ANY ("+arg(subjects)+"::uuid[])")
	}
	if !q.Due.IsZero() {
		conditions = append(conditions, "(k.uses >= 268435456 OR k.created < "+arg(q.Due)+"::date)")
	}
	if q.Renewal != 0 {
		conditions = append(conditions, "k.renewal < "+arg(q.Renewal))
	}
	return strings.Join(conditions, " AND "), args
}

// DataKeys implements phi.RotationStorage.
func (r *Rotation) DataKeys(ctx context.Context, q phi.KeyQuery) ([]phi.StoredKey, error) {
	where, args := keyCondition(q)
	n := len(args)
	args = append(args, q.After.Subject, int32(q.After.Segment), int64(q.After.KeyID), q.Limit)
	rows, err := r.pool.Query(ctx, fmt.Sprintf(`SELECT k.subject, k.segment, k.key_id, k.kek, k.wrapped, k.state, k.renewal FROM phi_key k
		WHERE %s AND (k.subject, k.segment, k.key_id) > ($%d::uuid, $%d::integer, $%d::bigint)
		ORDER BY k.subject, k.segment, k.key_id LIMIT $%d`, where, n+1, n+2, n+3, n+4), args...)
	if err != nil {
		return nil, bare("reading data keys", err)
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (k phi.StoredKey, err error) {
		var segment int32
		var id int64
		err = row.Scan((*[16]byte)(&k.Subject), &segment, &id, &k.KEK, &k.Wrapped, &k.State, &k.Renewal)
		k.Segment, k.KeyID = uint16(segment), uint32(id)
		return k, err
	})
	if err != nil {
		return nil, bare("reading data keys", err)
	}
	return keys, nil
}

// CountKeys implements phi.RotationStorage. Rows of named subjects are counted; those of others are estimated from the share of
// the keys.
func (r *Rotation) CountKeys(ctx context.Context, q phi.KeyQuery) (keys, rows int64, err error) {
	where, args := keyCondition(q)
	if err := r.pool.QueryRow(ctx, `SELECT count(*) FROM phi_key k WHERE `+where, args...).Scan(&keys); err != nil {
		return 0, 0, bare("counting data keys", err)
	}
	if q.Subjects != nil {
		subjects := args[0]
		err = r.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM record WHERE subject = ANY ($1::uuid[]))
			+ (SELECT count(*) FROM record_version WHERE subject = ANY ($1::uuid[]))`, subjects).Scan(&rows)
	} else {
		err = r.pool.QueryRow(ctx, `SELECT (sum(greatest(reltuples, 0)) * least(1, $1::float8 / greatest(1, (SELECT count(*) FROM phi_key WHERE state = 'active'))))::bigint
			FROM pg_class WHERE oid IN ('record'::regclass, 'record_version'::regclass)`, keys).Scan(&rows)
	}
	if err != nil {
		return 0, 0, bare("counting rows", err)
	}
	return keys, rows, nil
}

// claimSpace keeps the advisory locks of claims apart from the program's others.
const claimSpace = 0x636b_726f_7461_7465

// Claim implements phi.RotationStorage with advisory locks of a session of its own, which end with it.
func (r *Rotation) Claim(ctx context.Context, keys []keyset.Binding) (mine []keyset.Binding, release func(), err error) {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, bare("claiming keys", err)
	}
	release = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, err := conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`); err != nil {
			_ = conn.Conn().Close(ctx) // and its locks go with it
		}
		conn.Release()
	}
	locks := make([]int64, len(keys))
	for i, k := range keys {
		locks[i] = claimSpace ^ int64(binary.BigEndian.Uint64(k.Subject[:])) ^ int64(k.Segment) //nolint:gosec // any bits will do
	}
	rows, err := conn.Query(ctx, `SELECT n FROM unnest($1::bigint[]) WITH ORDINALITY w(l, n) WHERE pg_try_advisory_lock(l)`, locks)
	if err == nil {
		var n int
		_, err = pgx.ForEachRow(rows, []any{&n}, func() error {
			mine = append(mine, keys[n-1])
			return nil
		})
	}
	if err != nil {
		release()
		return nil, nil, bare("claiming keys", err)
	}
	return mine, release, nil
}

// names turns keys into arrays for unnest, in the order in which rows are locked.
func names(keys []keyset.Binding) keyColumns {
	sorted := slices.Clone(keys)
	slices.SortFunc(sorted, func(a, b keyset.Binding) int {
		return cmp.Or(bytes.Compare(a.Subject[:], b.Subject[:]), cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.KeyID, b.KeyID))
	})
	var c keyColumns
	for _, k := range sorted {
		c.add(k.Subject, k.Segment, k.KeyID)
	}
	return c
}

// namedKeys joins phi_key k to the keys named by the first three parameters.
const namedKeys = `unnest($1::uuid[], $2::integer[], $3::bigint[]) w(subject, segment, key_id) JOIN phi_key k USING (subject, segment, key_id)`

// AddKeys implements phi.RotationStorage. A key is added beside an active one only, which is held meanwhile: who was erased gets none.
func (r *Rotation) AddKeys(ctx context.Context, keys []phi.StoredKey) error {
	var c keyColumns
	renewals := make([]int64, len(keys))
	for i, k := range keys {
		c.add(k.Subject, k.Segment, k.KeyID)
		c.keks, c.wrapped, renewals[i] = append(c.keks, k.KEK), append(c.wrapped, k.Wrapped), k.Renewal
	}
	if _, err := r.pool.Exec(ctx, `INSERT INTO phi_key (subject, segment, key_id, kek, wrapped, renewal, state)
		SELECT n.subject, n.segment, n.key_id, n.kek, n.wrapped, n.renewal, 'known'
		FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::text[], $5::bytea[], $6::bigint[]) n(subject, segment, key_id, kek, wrapped, renewal)
		JOIN (SELECT k.subject, k.segment FROM unnest($1::uuid[], $2::integer[]) w(subject, segment) JOIN phi_key k USING (subject, segment)
			WHERE k.state = 'active' ORDER BY k.subject, k.segment FOR KEY SHARE OF k) a USING (subject, segment)
		ON CONFLICT DO NOTHING`, c.subjects, c.segments, c.ids, c.keks, c.wrapped, renewals); err != nil {
		return bare("storing data keys", err)
	}
	return nil
}

// Activate implements phi.RotationStorage. Writers who hold the old key for share are not waited for: what they commit is swept, too.
func (r *Rotation) Activate(ctx context.Context, keys []keyset.Binding) (retired []keyset.Binding, err error) {
	c := names(keys)
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM `+namedKeys+` ORDER BY k.subject, k.segment, k.key_id FOR NO KEY UPDATE OF k`,
			c.subjects, c.segments, c.ids); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `UPDATE phi_key o SET state = 'decrypt_only' FROM `+namedKeys+`
			WHERE o.subject = k.subject AND o.segment = k.segment AND o.key_id = k.key_id AND o.state = 'active'
			AND EXISTS (SELECT FROM phi_key n WHERE n.subject = k.subject AND n.segment = k.segment AND n.key_id = k.key_id + 1 AND n.state = 'known')
			AND NOT EXISTS (SELECT FROM phi_key n WHERE n.subject = k.subject AND n.segment = k.segment AND n.state = 'decrypt_only')
			RETURNING o.subject, o.segment, o.key_id`, c.subjects, c.segments, c.ids)
		if err != nil {
			return err
		}
		if retired, err = pgx.CollectRows(rows, scanBinding); err != nil {
			return err
		}
		next := names(retired)
		_, err = tx.Exec(ctx, `UPDATE phi_key n SET state = 'active' FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) w(subject, segment, key_id)
			WHERE n.subject = w.subject AND n.segment = w.segment AND n.key_id = w.key_id + 1`, next.subjects, next.segments, next.ids)
		return err
	})
	if err != nil {
		return nil, bare("activating data keys", err)
	}
	return retired, nil
}

func scanBinding(row pgx.CollectableRow) (k keyset.Binding, err error) {
	var segment int32
	var id int64
	err = row.Scan(&k.Subject, &segment, &id)
	k.Segment, k.KeyID = uint16(segment), uint32(id)
	return k, err
}

// cellsSize is how many bytes the cells of record r take, told without reading those that are stored apart.
const cellsSize = `coalesce(octet_length(r.identifier), 0) + coalesce(octet_length(r.name), 0) + coalesce(octet_length(r.birth_date), 0)
	+ coalesce(octet_length(r.contact), 0) + coalesce(octet_length(r.clinical), 0) + coalesce(octet_length(r.narrative), 0)`

// RowsUnder implements phi.RotationStorage.
func (r *Rotation) RowsUnder(ctx context.Context, keys []keyset.Binding, limit int) ([]phi.RowName, error) {
	c := names(keys)
	rows, err := r.pool.Query(ctx, `(SELECT r.type, r.id, r.version, false, `+cellsSize+` FROM `+namedKeys+`
			JOIN record r USING (subject, segment, key_id) LIMIT $4)
		UNION ALL (SELECT r.type, r.id, r.version, true, `+cellsSize+` FROM `+namedKeys+`
			JOIN record_version r USING (subject, segment, key_id) LIMIT $4) LIMIT $4`, c.subjects, c.segments, c.ids, limit)
	if err != nil {
		return nil, bare("looking for rows of keys", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (n phi.RowName, err error) {
		return n, row.Scan(&n.Type, &n.ID, &n.Version, &n.Superseded, &n.Size)
	})
	if err != nil {
		return nil, bare("looking for rows of keys", err)
	}
	return found, nil
}

// FetchRows implements phi.RotationStorage.
func (r *Rotation) FetchRows(ctx context.Context, rows []phi.RowName) ([]*phi.Sealed, error) {
	var all []*phi.Sealed
	for superseded, table := range map[bool]string{false: "record", true: "record_version"} {
		var types, ids []string
		var versions []int64
		for _, n := range rows {
			if n.Superseded == superseded {
				types, ids, versions = append(types, n.Type), append(ids, n.ID), append(versions, n.Version)
			}
		}
		if len(ids) == 0 {
			continue
		}
		found, err := r.rows.all(ctx, `SELECT `+sealedColumns(phi.AllClasses)+` FROM unnest($1::text[], $2::text[], $3::bigint[]) w(type, id, version)
			JOIN `+table+` r USING (type, id, version)`, phi.AllClasses, r.rows.binary, types, ids, versions)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// StoreResealed implements phi.RotationStorage: one transaction. Rows that a writer has locked are skipped, so that nobody waits in a
// circle. The commit is not waited for to be on disk: a crash that takes it leaves the rows under the old key, which is removed by a
// commit that comes after and is.
func (r *Rotation) StoreResealed(ctx context.Context, rows []phi.Resealed) (stored int, err error) {
	batch := &pgx.Batch{}
	batch.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
	for superseded, table := range map[bool]string{false: "record", true: "record_version"} {
		var c columns
		var was [][]byte
		for _, row := range rows {
			if row.Superseded == superseded {
				c.add(&phi.Write{Sealed: *row.Sealed})
				was = append(was, row.Was)
			}
		}
		if len(was) == 0 {
			continue
		}
		batch.Queue(`UPDATE `+table+` r SET key_id = n.key_id, identifier = n.identifier, name = n.name, birth_date = n.birth_date,
				contact = n.contact, clinical = n.clinical, narrative = n.narrative, seal = n.seal
			FROM (SELECT w.* FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[], $5::bigint[],
					$6::bytea[], $7::bytea[], $8::bytea[], $9::bytea[], $10::bytea[], $11::bytea[], $12::bytea[])
				w(type, id, version, was, key_id, identifier, name, birth_date, contact, clinical, narrative, seal)
				JOIN `+table+` l USING (type, id, version) WHERE l.seal = w.was FOR NO KEY UPDATE OF l SKIP LOCKED) n
			WHERE r.type = n.type AND r.id = n.id AND r.version = n.version`,
			c.types, c.ids, c.versions, was, c.keyIDs,
			c.cells[0], c.cells[1], c.cells[2], c.cells[3], c.cells[4], c.cells[5], c.seals).
			Exec(func(tag pgconn.CommandTag) error {
				stored += int(tag.RowsAffected())
				return nil
			})
	}
	if err := r.pool.SendBatch(ctx, batch).Close(); err != nil {
		return 0, bare("storing rows sealed anew", err)
	}
	return stored, nil
}

// RemoveKeys implements phi.RotationStorage. Who commits under a key holds it for share; after the lock, in the next statement, is seen
// what they stored, and who comes later finds no key.
func (r *Rotation) RemoveKeys(ctx context.Context, keys []keyset.Binding) (removed []keyset.Binding, err error) {
	c := names(keys)
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM `+namedKeys+` ORDER BY k.subject, k.segment, k.key_id FOR UPDATE OF k`,
			c.subjects, c.segments, c.ids); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `DELETE FROM phi_key o USING `+namedKeys+`
			WHERE o.subject = k.subject AND o.segment = k.segment AND o.key_id = k.key_id AND o.state = 'decrypt_only'
			AND NOT EXISTS (SELECT FROM record r WHERE r.subject = k.subject AND r.segment = k.segment AND r.key_id = k.key_id)
			AND NOT EXISTS (SELECT FROM record_version r WHERE r.subject = k.subject AND r.segment = k.segment AND r.key_id = k.key_id)
			RETURNING o.subject, o.segment, o.key_id`, c.subjects, c.segments, c.ids)
		if err != nil {
			return err
		}
		removed, err = pgx.CollectRows(rows, scanBinding)
		return err
	})
	if err != nil {
		return nil, bare("removing data keys", err)
	}
	return removed, nil
}

var _ phi.RewrapStorage = (*Rotation)(nil)

// KEKs implements phi.RewrapStorage.
func (r *Rotation) KEKs(ctx context.Context) ([]keyset.WrappedKEK, error) {
	return (&keyStorage{r.pool}).KEKs(ctx)
}

// BeginEpoch implements phi.RewrapStorage.
func (r *Rotation) BeginEpoch(ctx context.Context, after string, next keyset.WrappedKEK) (active keyset.WrappedKEK, err error) {
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE phi_kek SET active = false WHERE id = $1 AND active`, after)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 1 {
			if _, err := tx.Exec(ctx, `INSERT INTO phi_kek (id, root, wrapped, active) VALUES ($1, $2, $3, true)`, next.ID, next.Root, next.Wrapped); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `SELECT pg_notify('chartkeep_keys', 'epoch')`); err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, `SELECT id, root, wrapped, active FROM phi_kek WHERE active`).Scan(&active.ID, &active.Root, &active.Wrapped, &active.Active)
	})
	if err != nil {
		return active, bare("beginning epoch", err)
	}
	return active, nil
}

// WrappedBy implements phi.RewrapStorage.
func (r *Rotation) WrappedBy(ctx context.Context, kek string, after keyset.Binding, limit int) ([]phi.WrappedKey, error) {
	rows, err := r.pool.Query(ctx, `SELECT subject, segment, key_id, kek, wrapped FROM (
			(SELECT subject, segment, key_id, kek, wrapped FROM phi_key WHERE kek = $1 AND (subject, segment, key_id) > ($2::uuid, $3::integer, $4::bigint)
				ORDER BY subject, segment, key_id LIMIT $5)
			UNION ALL SELECT subject, segment, key_id, kek, wrapped FROM phi_secret WHERE kek = $1 AND (subject, segment, key_id) > ($2::uuid, $3::integer, $4::bigint)) k
		ORDER BY subject, segment, key_id LIMIT $5`, kek, after.Subject, int32(after.Segment), int64(after.KeyID), limit)
	if err != nil {
		return nil, bare("reading wrapped keys", err)
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (k phi.WrappedKey, err error) {
		var segment int32
		var id int64
		err = row.Scan((*[16]byte)(&k.Subject), &segment, &id, &k.KEK, &k.Wrapped)
		k.Segment, k.KeyID = uint16(segment), uint32(id)
		return k, err
	})
	if err != nil {
		return nil, bare("reading wrapped keys", err)
	}
	return keys, nil
}

// StoreRewrapped implements phi.RewrapStorage. Rows are locked in their order, as Activate and erasures lock them.
func (r *Rotation) StoreRewrapped(ctx context.Context, keys []phi.Rewrapped) (stored int, err error) {
	var c keyColumns
	var was [][]byte
	for _, k := range keys {
		c.add(k.Subject, k.Segment, k.KeyID)
		c.keks, c.wrapped, was = append(c.keks, k.KEK), append(c.wrapped, k.Wrapped), append(was, k.Was)
	}
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM `+namedKeys+` ORDER BY k.subject, k.segment, k.key_id FOR NO KEY UPDATE OF k`, c.subjects, c.segments, c.ids); err != nil {
			return err
		}
		for _, table := range []string{"phi_key", "phi_secret"} {
			tag, err := tx.Exec(ctx, `UPDATE `+table+` k SET kek = w.kek, wrapped = w.wrapped
				FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::text[], $5::bytea[], $6::bytea[]) w(subject, segment, key_id, kek, wrapped, was)
				WHERE k.subject = w.subject AND k.segment = w.segment AND k.key_id = w.key_id AND k.wrapped = w.was`,
				c.subjects, c.segments, c.ids, c.keks, c.wrapped, was)
			if err != nil {
				return err
			}
			stored += int(tag.RowsAffected())
		}
		return nil
	})
	if err != nil {
		return 0, bare("storing rewrapped keys", err)
	}
	return stored, nil
}

// stateForeignKey is the SQLSTATE of a row that another one names.
const stateForeignKey = "23503"

// RemoveKEK implements phi.RewrapStorage.
func (r *Rotation) RemoveKEK(ctx context.Context, id string) (bool, error) {
	_, err := r.pool.Exec(ctx, `WITH gone AS (DELETE FROM phi_kek WHERE id = $1 AND NOT active RETURNING id) SELECT pg_notify('chartkeep_keys', 'epoch') FROM gone`, id)
	if sqlState(err) == stateForeignKey {
		return false, nil
	}
	if err != nil {
		return false, bare("removing key-encryption key", err)
	}
	return true, nil
}

// CountWrapped implements phi.RewrapStorage.
func (r *Rotation) CountWrapped(ctx context.Context) (n int64, err error) {
	if err := r.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM phi_key k JOIN phi_kek e ON e.id = k.kek WHERE NOT e.active)
		+ (SELECT count(*) FROM phi_secret k JOIN phi_kek e ON e.id = k.kek WHERE NOT e.active)`).Scan(&n); err != nil {
		return 0, bare("counting wrapped keys", err)
	}
	return n, nil
}
