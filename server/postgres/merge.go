package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/phi"
)

// mergeStorage is phi.MergeStorage, with the role of keys.
type mergeStorage struct {
	pool *pgxpool.Pool
	rows *recordStorage
}

var _ phi.MergeStorage = (*mergeStorage)(nil)

// Merges opens the storage of merges, for the call that needs it. Close it.
func (d *DB) Merges(ctx context.Context) (phi.MergeStorage, error) {
	// One connection holds the claim while the other works.
	pool, err := openPool(ctx, d.records.Config().ConnString(), "chartkeep_keys", 2, erasureTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return nil, err
	}
	return &mergeStorage{pool: pool, rows: &recordStorage{pool: pool, binary: pgx.QueryResultFormats{pgx.BinaryFormatCode}}}, nil
}

// Close implements phi.MergeStorage.
func (s *mergeStorage) Close() { s.pool.Close() }

const mergeColumns = `id, source, target, source_subject, target_subject, target_version, state, begun_by, begun_at`

func scanMerge(row pgx.CollectableRow) (*phi.Merge, error) {
	m := &phi.Merge{}
	err := row.Scan((*[16]byte)(&m.ID), &m.Source, &m.Target, (*[16]byte)(&m.SourceSubject), (*[16]byte)(&m.TargetSubject), &m.TargetVersion,
		(*string)(&m.State), &m.By, &m.Begun)
	m.Begun = m.Begun.UTC()
	return m, err
}

// MergeOf implements phi.MergeStorage.
func (s *mergeStorage) MergeOf(ctx context.Context, source string) (*phi.Merge, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+mergeColumns+` FROM phi_merge WHERE source = $1 AND state <> 'unmerged'`, source)
	if err != nil {
		return nil, bare("fetching merge", err)
	}
	m, err := pgx.CollectExactlyOneRow(rows, scanMerge)
	return m, mergeError("fetching merge", err)
}

// UnfinishedMerges implements phi.MergeStorage.
func (s *mergeStorage) UnfinishedMerges(ctx context.Context) ([]*phi.Merge, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+mergeColumns+` FROM phi_merge WHERE state IN ('merging', 'unmerging') ORDER BY begun_at`)
	if err != nil {
		return nil, bare("listing merges", err)
	}
	list, err := pgx.CollectRows(rows, scanMerge)
	return list, mergeError("listing merges", err)
}

// Claim implements phi.MergeStorage with a lock of the session: it ends with the connection at the latest.
func (s *mergeStorage) Claim(ctx context.Context, id phi.UUID) (release func(), ok bool, err error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, false, bare("claiming merge", err)
	}
	key := int64(binary.BigEndian.Uint64(id[:8]))
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, key).Scan(&ok); err != nil || !ok {
		conn.Release()
		return nil, false, mergeError("claiming merge", err)
	}
	return func() {
		_, _ = conn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, key)
		conn.Release()
	}, true, nil
}

// mergeSeed makes the names of merges' locks. Who begins a merge, or undoes one, takes those of both; who commits a record of several patients takes those of
// all of them for share: the one sees what the other wrote. (Records of one patient alone are under that patient's keys, which a merge
// destroys when nothing is under them any more.)
const mergeSeed = `7394`

// queueMerges refuses records that name, among several patients, one who is merged into another.
func queueMerges(batch *pgx.Batch, writes []phi.Write, conflict *error) {
	var patients []string
	var refs []phi.Ref
	for i := range writes {
		if w := &writes[i]; len(w.Patients) > 1 && w.Type != "Patient" {
			for _, p := range w.Patients {
				patients, refs = append(patients, p), append(refs, w.Ref)
			}
		}
	}
	if len(patients) == 0 {
		return
	}
	batch.Queue(`SELECT pg_advisory_xact_lock_shared(l) FROM (SELECT DISTINCT hashtextextended(p, `+mergeSeed+`) FROM unnest($1::text[]) p ORDER BY 1) l(l)`, patients)
	batch.Queue(`SELECT w.n FROM unnest($1::text[]) WITH ORDINALITY w(patient, n) JOIN phi_merge m ON m.source = w.patient AND m.state IN ('merging', 'merged')
		ORDER BY w.n LIMIT 1`, patients).QueryRow(func(row pgx.Row) error {
		var n int
		err := row.Scan(&n)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err == nil && *conflict == nil {
			*conflict = &phi.ConflictError{Ref: refs[n-1], Err: phi.ErrVersion}
		}
		return err
	})
}

// BeginMerge implements phi.MergeStorage.
func (s *mergeStorage) BeginMerge(ctx context.Context, m *phi.Merge) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := lockMerging(ctx, tx, m.Source, m.Target); err != nil {
			return err
		}
		// Held for share, the keys keep an erasure out until this merge is there to be seen.
		var subjects int
		if err := tx.QueryRow(ctx, `SELECT count(DISTINCT k.subject) FROM (SELECT subject FROM phi_key WHERE subject = ANY ($1) AND segment = 0
			ORDER BY subject, key_id FOR KEY SHARE) k`, [][16]byte{m.SourceSubject, m.TargetSubject}).Scan(&subjects); err != nil {
			return err
		}
		if subjects < 2 {
			return phi.ErrKey
		}
		var taken bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM phi_merge WHERE state <> 'unmerged' AND source IN ($1, $2)
			OR state IN ('merging', 'unmerging') AND target IN ($1, $2))`, m.Source, m.Target).Scan(&taken); err != nil {
			return err
		}
		if taken {
			return phi.ErrMerge
		}
		if _, err := tx.Exec(ctx, `INSERT INTO phi_merge (`+mergeColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`, [16]byte(m.ID), m.Source, m.Target,
			[16]byte(m.SourceSubject), [16]byte(m.TargetSubject), m.TargetVersion, string(m.State), m.By, m.Begun); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `WITH changed AS (INSERT INTO treatment (practitioner, patient, source, type, id, reason, granted_by, granted_at, starts, ends)
			SELECT practitioner, $2, source, '', '', $3, granted_by, granted_at, starts, ends FROM treatment WHERE patient = $1 AND source = 'grant'
			ON CONFLICT DO NOTHING RETURNING practitioner),`+bumpRelationships, m.Source, m.Target, mergeReason(m.ID))
		if err != nil {
			return err
		}
		// What the source's Consents say is about the target from the first record that moves on, and about the source up to the last.
		_, err = tx.Exec(ctx, copyConsents+` FROM consent_rule c WHERE c.patient = $1 ON CONFLICT DO NOTHING RETURNING patient),`+bumpConsents, m.Source, m.Target)
		return err
	})
	return mergeError("beginning merge", err)
}

// lockMerging keeps other merges of the patients from beginning until the transaction ends, and waits for writes that name one of them among
// several.
func lockMerging(ctx context.Context, tx pgx.Tx, patients ...string) error {
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(l) FROM (SELECT DISTINCT hashtextextended(p, `+mergeSeed+`) FROM unnest($1::text[]) p ORDER BY 1) l(l)`, patients)
	return err
}

// copyConsents makes the rules of some Consents be about the patient $2 too.
const copyConsents = `WITH changed AS (INSERT INTO consent_rule (patient, consent, position, depth, permit, actor, segments, purposes, starts, ends)
	SELECT $2::text, c.consent, c.position, c.depth, c.permit, c.actor, c.segments, c.purposes, c.starts, c.ends`

// mergeReason marks relationships that a merge gave.
func mergeReason(id phi.UUID) string { return "merge " + id.String() }

// BeginUnmerge implements phi.MergeStorage.
func (s *mergeStorage) BeginUnmerge(ctx context.Context, id phi.UUID, subject phi.UUID) error {
	return mergeError("beginning unmerge", pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var source, target string
		if err := tx.QueryRow(ctx, `SELECT source, target FROM phi_merge WHERE id = $1`, [16]byte(id)).Scan(&source, &target); err != nil {
			return err
		}
		if err := lockMerging(ctx, tx, source, target); err != nil {
			return err
		}
		done, err := tx.Exec(ctx, `UPDATE phi_merge m SET state = 'unmerging', source_subject = $2 WHERE id = $1 AND state = 'merged'
			AND NOT EXISTS (SELECT FROM phi_merge o WHERE o.state <> 'unmerged' AND o.source = m.target)`, [16]byte(id), [16]byte(subject))
		if err != nil {
			return err
		}
		if done.RowsAffected() == 0 {
			return phi.ErrMerge
		}
		if _, err := tx.Exec(ctx, copyConsents+` FROM consent_rule c JOIN phi_merge_row w ON w.type = 'Consent' AND w.id = c.consent
			WHERE c.patient = $1 AND w.merge = $3 GROUP BY c.patient, c.consent, c.position ON CONFLICT DO NOTHING RETURNING patient),`+bumpConsents,
			target, source, [16]byte(id)); err != nil {
			return err
		}
		// Held for share, the key keeps an erasure out until this unmerge is there to be seen.
		held, err := tx.Exec(ctx, `SELECT FROM record r JOIN phi_key k ON k.subject = r.subject AND k.segment = 0
			WHERE r.type = 'Patient' AND r.id = $1 ORDER BY k.key_id FOR KEY SHARE OF k`, target)
		if err == nil && held.RowsAffected() == 0 {
			err = phi.ErrKey
		}
		return err
	}))
}

// Compartment implements phi.MergeStorage.
func (s *mergeStorage) Compartment(ctx context.Context, patient string, after phi.Ref, limit int) ([]phi.Ref, error) {
	return s.refs(ctx, "listing a compartment", `SELECT type, id FROM record_patient WHERE patient = $1 AND (type, id) > ($2, $3)
		AND NOT (type = 'Patient' AND id = $1) ORDER BY type, id LIMIT $4`, patient, after.Type, after.ID, limit)
}

func (s *mergeStorage) refs(ctx context.Context, doing, sql string, args ...any) ([]phi.Ref, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, bare(doing, err)
	}
	refs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[phi.Ref])
	return refs, mergeError(doing, err)
}

// queueNotes adds to what an unmerge gives back.
func queueNotes(batch *pgx.Batch, id phi.UUID, rows []phi.MovedRow) {
	for _, r := range rows {
		batch.Queue(`INSERT INTO phi_merge_row (merge, type, id, version, patients) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
			[16]byte(id), r.Type, r.ID, r.Version, r.Patients)
	}
}

// NoteMoved implements phi.MergeStorage.
func (s *mergeStorage) NoteMoved(ctx context.Context, id phi.UUID, rows []phi.MovedRow) error {
	batch := &pgx.Batch{}
	queueNotes(batch, id, rows)
	return mergeError("noting what a merge moves", s.pool.SendBatch(ctx, batch).Close())
}

// MovedRecords implements phi.MergeStorage.
func (s *mergeStorage) MovedRecords(ctx context.Context, id phi.UUID, after phi.Ref, limit int) ([]phi.MovedRow, error) {
	rows, err := s.pool.Query(ctx, `SELECT DISTINCT ON (type, id) type, id, version, patients FROM phi_merge_row
		WHERE merge = $1 AND (type, id) > ($2, $3) ORDER BY type, id, version DESC LIMIT $4`, [16]byte(id), after.Type, after.ID, limit)
	if err != nil {
		return nil, bare("listing what a merge moved", err)
	}
	moved, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m phi.MovedRow, err error) {
		return m, row.Scan(&m.Type, &m.ID, &m.Version, &m.Patients)
	})
	return moved, mergeError("listing what a merge moved", err)
}

// MovedPatients implements phi.MergeStorage.
func (s *mergeStorage) MovedPatients(ctx context.Context, id phi.UUID, ref phi.Ref, version int64) (patients []string, err error) {
	err = s.pool.QueryRow(ctx, `SELECT patients FROM phi_merge_row WHERE merge = $1 AND type = $2 AND id = $3 AND version = $4`,
		[16]byte(id), ref.Type, ref.ID, version).Scan(&patients)
	return patients, mergeError("looking up what a merge moved", err)
}

// WaitingRows implements phi.MergeStorage.
func (s *mergeStorage) WaitingRows(ctx context.Context, subject phi.UUID, refs []phi.Ref, limit int) ([]phi.Rehomed, error) {
	var found []phi.Rehomed
	for _, from := range []struct {
		table      string
		superseded bool
	}{{`record_version r WHERE true`, true}, {`record r WHERE r.method = 'DELETE'`, false}} {
		args := []any{s.rows.binary, [16]byte(subject), limit - len(found)}
		where := ` AND r.subject = $1`
		if refs != nil {
			types, ids := make([]string, len(refs)), make([]string, len(refs))
			for i, ref := range refs {
				types[i], ids[i] = ref.Type, ref.ID
			}
			where += ` AND (r.type, r.id) IN (SELECT * FROM unnest($3::text[], $4::text[]))`
			args = append(args, types, ids)
		}
		if len(found) == limit {
			break
		}
		err := s.rows.each(ctx, `SELECT `+sealedColumns(phi.AllClasses)+` FROM `+from.table+where+` LIMIT $2`, phi.AllClasses, args, func(row *phi.Sealed) {
			found = append(found, phi.Rehomed{Sealed: row, FromSubject: row.Subject, FromKey: row.KeyID, FromPatient: row.Patients, Superseded: from.superseded})
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// StoreRehomed implements phi.MergeStorage.
func (s *mergeStorage) StoreRehomed(ctx context.Context, id phi.UUID, rows []phi.Rehomed, note bool) (stored int, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		held := map[phi.UUID]keyColumns{}
		type name struct {
			subject phi.UUID
			segment uint16
			id      uint32
		}
		keys := map[name]bool{}
		for _, row := range rows {
			if n := (name{row.Subject, row.Segment, row.KeyID}); !keys[n] {
				keys[n] = true
				c := held[row.Subject]
				c.add(n.subject, n.segment, n.id)
				held[row.Subject] = c
			}
		}
		var there int
		for _, c := range held { // of one subject
			var n int
			if err := tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) w(subject, segment, key_id)
				JOIN phi_key k USING (subject, segment, key_id) WHERE k.state = 'active' ORDER BY segment, key_id FOR KEY SHARE OF k) k`,
				c.subjects, c.segments, c.ids).Scan(&n); err != nil {
				return err
			}
			there += n
		}
		if there < len(keys) {
			return phi.ErrKey
		}
		batch := &pgx.Batch{}
		for _, row := range rows {
			table := "record"
			if row.Superseded {
				table = "record_version"
			}
			batch.Queue(`UPDATE `+table+` SET subject = $6, key_id = $7, patients = $8, identifier = $9, name = $10, birth_date = $11, contact = $12,
				clinical = $13, narrative = $14, seal = $15 WHERE type = $1 AND id = $2 AND version = $3 AND subject = $4 AND key_id = $5`,
				row.Type, row.ID, row.Version, [16]byte(row.FromSubject), row.FromKey, [16]byte(row.Subject), row.KeyID, row.Patients,
				row.Cells[0], row.Cells[1], row.Cells[2], row.Cells[3], row.Cells[4], row.Cells[5], row.Seal).Exec(func(tag pgconn.CommandTag) error {
				stored += int(tag.RowsAffected())
				return nil
			})
			if note {
				queueNotes(batch, id, []phi.MovedRow{{Ref: row.Ref, Version: row.Version, Patients: row.FromPatient}})
			}
		}
		return tx.SendBatch(ctx, batch).Close()
	})
	return stored, mergeError("storing rows that move", err)
}

// FinishMerge implements phi.MergeStorage.
func (s *mergeStorage) FinishMerge(ctx context.Context, id phi.UUID) (finished bool, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+mergeColumns+` FROM phi_merge WHERE id = $1 FOR UPDATE`, [16]byte(id))
		if err != nil {
			return err
		}
		m, err := pgx.CollectExactlyOneRow(rows, scanMerge)
		if err != nil {
			return err
		}
		if m.State != phi.Merging {
			finished = m.State == phi.Merged
			return nil
		}
		// Who commits under a key holds it for share; after the lock, in the next statement, is seen what they stored.
		if _, err := tx.Exec(ctx, `SELECT FROM phi_key WHERE subject = $1 ORDER BY segment, key_id FOR UPDATE`, [16]byte(m.SourceSubject)); err != nil {
			return err
		}
		var left bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM record WHERE subject = $1) OR EXISTS (SELECT FROM record_version WHERE subject = $1)
			OR EXISTS (SELECT FROM record_patient WHERE patient = $2 AND NOT (type = 'Patient' AND id = $2))`, [16]byte(m.SourceSubject), m.Source).Scan(&left); err != nil || left {
			return err
		}
		batch := &pgx.Batch{}
		batch.Queue(`DELETE FROM phi_key WHERE subject = $1`, [16]byte(m.SourceSubject))
		batch.Queue(`UPDATE phi_merge SET state = 'merged', ended_at = now() WHERE id = $1`, [16]byte(id))
		batch.Queue(`WITH changed AS (DELETE FROM consent_rule WHERE patient = $1 RETURNING patient),`+bumpConsents, m.Source)
		batch.Queue(`SELECT pg_notify('chartkeep_keys', 'merged')`)
		finished = true
		return tx.SendBatch(ctx, batch).Close()
	})
	return finished && err == nil, mergeError("finishing merge", err)
}

// FinishUnmerge implements phi.MergeStorage.
func (s *mergeStorage) FinishUnmerge(ctx context.Context, id phi.UUID) error {
	return mergeError("finishing unmerge", pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue(`UPDATE phi_merge SET state = 'unmerged', ended_at = now() WHERE id = $1 AND state = 'unmerging'`, [16]byte(id))
		batch.Queue(`WITH changed AS (DELETE FROM consent_rule c USING phi_merge m WHERE m.id = $1 AND c.patient = m.target
			AND NOT EXISTS (SELECT FROM record_patient p WHERE p.patient = m.target AND p.type = 'Consent' AND p.id = c.consent) RETURNING c.patient),`+bumpConsents, [16]byte(id))
		batch.Queue(`DELETE FROM phi_merge_row WHERE merge = $1`, [16]byte(id))
		batch.Queue(`WITH changed AS (DELETE FROM treatment WHERE source = 'grant' AND reason = $1 RETURNING practitioner),`+bumpRelationships, mergeReason(id))
		return tx.SendBatch(ctx, batch).Close()
	}))
}

// MadeSince implements phi.MergeStorage.
func (s *mergeStorage) MadeSince(ctx context.Context, id phi.UUID, limit int) ([]phi.Ref, error) {
	return s.refs(ctx, "listing what came after a merge", `SELECT p.type, p.id FROM phi_merge m JOIN record_patient p ON p.patient = m.target
		JOIN record r ON r.type = p.type AND r.id = p.id LEFT JOIN record_version v ON v.type = p.type AND v.id = p.id AND v.version = 1
		WHERE m.id = $1 AND coalesce(v.updated, r.updated) >= m.begun_at AND NOT EXISTS (SELECT FROM phi_merge_row w
			WHERE w.merge = m.id AND w.type = p.type AND w.id = p.id) ORDER BY p.type, p.id LIMIT $2`, [16]byte(id), limit)
}

// mergeError says an error in phi's words.
func mergeError(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%s: %w", doing, phi.ErrNotFound)
	case violates(err, "phi_merge_source"):
		return fmt.Errorf("%s: %w", doing, phi.ErrMerge)
	case sqlState(err) == stateErased:
		return fmt.Errorf("%s: %w", doing, phi.ErrKey)
	}
	return bare(doing, err)
}
