package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
)

// SQLSTATEs of migration/0012_erasure.sql and of the standard.
const (
	stateErased  = "CKP10"
	stateDecided = "CKP11"
	stateCheck   = "23514"

	erasureTimeout = 60 * time.Second // a chart may be large, and a hold may be being placed
)

// erasureStorage is phi.ErasureStorage. It works with the role of keys, in a pool that is there only while a call runs.
type erasureStorage struct{ db *DB }

var _ phi.ErasureStorage = (*erasureStorage)(nil)

// Erasures is the storage of requests to erase.
func (d *DB) Erasures() phi.ErasureStorage { return &erasureStorage{d} }

// withKeys runs work on one connection that has the role of keys while it lasts.
func (d *DB) withKeys(ctx context.Context, work func(*pgxpool.Pool) error) error {
	pool, err := openPool(ctx, d.records.Config().ConnString(), "chartkeep_keys", 1, erasureTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return err
	}
	defer pool.Close()
	return work(pool)
}

// transact runs work in one transaction of the role of keys.
func (s *erasureStorage) transact(ctx context.Context, work func(pgx.Tx) error) error {
	return s.db.withKeys(ctx, func(pool *pgxpool.Pool) error {
		return pgx.BeginFunc(ctx, pool, work)
	})
}

const erasureColumns = `id, patient, reason, requested_by, requested_at, request_event, state, coalesce(decided_by, ''), decided_at, certificate`

func scanErasure(row pgx.CollectableRow) (*phi.Erasure, error) {
	e := &phi.Erasure{}
	var decided *time.Time
	err := row.Scan((*[16]byte)(&e.ID), &e.Patient, &e.Reason, &e.RequestedBy, &e.RequestedAt, (*[16]byte)(&e.RequestEvent), (*string)(&e.State),
		&e.DecidedBy, &decided, &e.Certificate)
	e.RequestedAt = e.RequestedAt.UTC()
	if decided != nil {
		e.DecidedAt = decided.UTC()
	}
	return e, err
}

// Erasures implements phi.ErasureStorage.
func (s *erasureStorage) Erasures(ctx context.Context) (list []*phi.Erasure, err error) {
	err = s.transact(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+erasureColumns+` FROM phi_erasure ORDER BY requested_at DESC, id`)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, scanErasure)
		return err
	})
	return list, erasureError("listing erasures", err)
}

// Erasure implements phi.ErasureStorage.
func (s *erasureStorage) Erasure(ctx context.Context, id phi.UUID) (e *phi.Erasure, err error) {
	err = s.transact(ctx, func(tx pgx.Tx) error {
		e, err = erasure(ctx, tx, id, ``)
		return err
	})
	return e, erasureError("fetching erasure", err)
}

func erasure(ctx context.Context, tx pgx.Tx, id phi.UUID, lock string) (*phi.Erasure, error) {
	rows, err := tx.Query(ctx, `SELECT `+erasureColumns+` FROM phi_erasure WHERE id = $1 `+lock, [16]byte(id))
	if err != nil {
		return nil, err
	}
	return pgx.CollectExactlyOneRow(rows, scanErasure)
}

// RequestErasure implements phi.ErasureStorage.
func (s *erasureStorage) RequestErasure(ctx context.Context, e *phi.Erasure) error {
	return erasureError("storing erasure", s.transact(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO phi_erasure (id, patient, reason, requested_by, requested_at, request_event) VALUES ($1, $2, $3, $4, $5, $6)`,
			[16]byte(e.ID), e.Patient, e.Reason, e.RequestedBy, e.RequestedAt, [16]byte(e.RequestEvent))
		return err
	}))
}

// UntoldErasures implements phi.ErasureStorage.
func (s *erasureStorage) UntoldErasures(ctx context.Context, before time.Time) (list []*phi.Erasure, err error) {
	err = s.transact(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+erasureColumns+` FROM phi_erasure WHERE state = 'executed' AND NOT told AND decided_at < $1`, before)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, scanErasure)
		return err
	})
	return list, erasureError("listing erasures", err)
}

// ToldErasure implements phi.ErasureStorage.
func (s *erasureStorage) ToldErasure(ctx context.Context, id phi.UUID) error {
	return erasureError("noting an erasure's outcome", s.transact(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE phi_erasure SET told = true WHERE id = $1`, [16]byte(id))
		return err
	}))
}

// WithdrawErasure implements phi.ErasureStorage.
func (s *erasureStorage) WithdrawErasure(ctx context.Context, id phi.UUID, by string) error {
	return erasureError("withdrawing erasure", s.transact(ctx, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, `UPDATE phi_erasure SET state = 'withdrawn', decided_by = $2, decided_at = now() WHERE id = $1`, [16]byte(id), by)
		if err == nil && done.RowsAffected() == 0 {
			return pgx.ErrNoRows
		}
		return err
	}))
}

// ErasureScope implements phi.ErasureStorage.
func (s *erasureStorage) ErasureScope(ctx context.Context, patient string, subject phi.UUID) (scope *phi.ErasureScope, err error) {
	err = s.transact(ctx, func(tx pgx.Tx) error {
		scope, err = erasureScope(ctx, tx, patient, subject)
		return err
	})
	return scope, erasureError("counting what an erasure destroys", err)
}

// erasureScope counts what goes with a person.
func erasureScope(ctx context.Context, tx pgx.Tx, patient string, subject phi.UUID) (*phi.ErasureScope, error) {
	scope := &phi.ErasureScope{}
	var stored [16]byte
	if err := tx.QueryRow(ctx, `SELECT subject FROM record WHERE type = 'Patient' AND id = $1`, patient).Scan(&stored); err != nil {
		return nil, err
	}
	if stored != subject {
		return nil, phi.ErrVersion
	}
	subjects := [][16]byte{stored}
	for _, s := range subjects {
		scope.Subjects = append(scope.Subjects, phi.UUID(s))
	}
	rows, err := tx.Query(ctx, `SELECT id FROM record WHERE type = 'Patient' AND subject = ANY ($1) ORDER BY id <> $2, id`, subjects, patient)
	if err != nil {
		return nil, err
	}
	if scope.Patients, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return nil, err
	}
	rows, err = tx.Query(ctx, `SELECT k.subject, k.segment, k.key_id, k.kek, e.root FROM phi_key k JOIN phi_kek e ON e.id = k.kek
		WHERE k.subject = ANY ($1) ORDER BY k.subject, k.segment, k.key_id`, subjects)
	if err != nil {
		return nil, err
	}
	scope.Keys, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (k phi.ErasedKey, err error) {
		return k, row.Scan((*[16]byte)(&k.Subject), &k.Segment, &k.KeyID, &k.KEK, &k.Root)
	})
	if err != nil {
		return nil, err
	}
	err = tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM record WHERE subject = ANY ($1)), (SELECT count(*) FROM record_version WHERE subject = ANY ($1)),
		(SELECT count(*) FROM record r JOIN index_token t USING (type, id) WHERE r.subject = ANY ($1)),
		(SELECT count(*) FROM treatment t WHERE `+treatmentOf+`),
		(SELECT count(DISTINCT (p.type, p.id)) FROM record_patient p JOIN record r USING (type, id) WHERE p.patient = ANY ($2) AND r.subject <> ALL ($1))`,
		subjects, scope.Patients).Scan(&scope.Records, &scope.Versions, &scope.Tokens, &scope.Relationships, &scope.Mentions)
	return scope, err
}

// treatmentOf chooses the relationships t with a person: to one of the patients $2, or stated by a record of the subjects $1.
const treatmentOf = `t.patient = ANY ($2) OR t.type <> '' AND EXISTS (SELECT FROM record r WHERE r.type = t.type AND r.id = t.id AND r.subject = ANY ($1))`

// Erase implements phi.ErasureStorage.
func (s *erasureStorage) Erase(ctx context.Context, id phi.UUID, by string, subject phi.UUID, certify func(*phi.ErasureScope) ([]byte, error)) error {
	return erasureError("erasing patient", s.transact(ctx, func(tx pgx.Tx) error {
		e, err := erasure(ctx, tx, id, `FOR UPDATE`)
		if err != nil {
			return err
		}
		if e.State != phi.ErasureRequested {
			return phi.ErrErasureDecided
		}
		// Writers hold the keys that sealed their rows to the end of their transactions, and so does whoever adds a key beside others:
		// one that came while the others were waited for is held by the next look. From here on, what they wrote is there to be
		// counted, and nobody writes any more.
		for held, before := int64(0), int64(-1); held != before; {
			before = held
			locked, err := tx.Exec(ctx, `SELECT FROM phi_key WHERE subject = $1 ORDER BY subject, segment, key_id FOR UPDATE`, [16]byte(subject))
			if err != nil {
				return err
			}
			held = locked.RowsAffected()
		}
		scope, err := erasureScope(ctx, tx, e.Patient, subject)
		if err != nil {
			return err
		}
		var merging, merged bool
		if err := tx.QueryRow(ctx, `SELECT coalesce(bool_or(state <> 'merged'), false), coalesce(bool_or(begun_at > $2), false) FROM phi_merge
			WHERE state <> 'unmerged' AND (source = ANY ($1) OR target = ANY ($1))`, scope.Patients, e.RequestedAt).Scan(&merging, &merged); err != nil {
			return err
		}
		switch {
		case merging:
			return phi.ErrMerge
		case merged:
			return phi.ErrErasureGrown
		}
		if err := refuseHeld(ctx, tx, scope); err != nil {
			return err
		}
		if err := destroy(ctx, tx, e, scope); err != nil {
			return err
		}
		certificate, err := certify(scope)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE phi_erasure SET state = 'executed', decided_by = $2, decided_at = now(), certificate = $3 WHERE id = $1`,
			[16]byte(id), by, certificate); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `SELECT pg_notify('chartkeep_keys', 'erased')`)
		return err
	}))
}

// refuseHeld fails while a legal hold stands on the person, or on a time at which a version of one of the records was made. No hold
// is placed before the transaction ends.
func refuseHeld(ctx context.Context, tx pgx.Tx, scope *phi.ErasureScope) error {
	rows, err := tx.Query(ctx, `SELECT h.id FROM audit_standing_holds() h WHERE h.patient = ANY ($2)
		OR h.patient = '' AND (EXISTS (SELECT FROM record r WHERE r.subject = ANY ($1) AND r.updated >= h.from_ts AND r.updated < h.to_ts)
			OR EXISTS (SELECT FROM record_version v WHERE v.subject = ANY ($1) AND v.updated >= h.from_ts AND v.updated < h.to_ts))`,
		subjectsOf(scope), scope.Patients)
	if err != nil {
		return err
	}
	holds, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err == nil && len(holds) > 0 {
		return fmt.Errorf("legal hold %s: %w", audit.ID(holds[0]), phi.ErrHeld)
	}
	return err
}

// destroy deletes a person's keys and whatever leads to the records, and notes the subjects.
func destroy(ctx context.Context, tx pgx.Tx, e *phi.Erasure, scope *phi.ErasureScope) error {
	subjects := subjectsOf(scope)
	batch := &pgx.Batch{}
	for _, table := range []string{"index_token", "record_patient"} {
		batch.Queue(`DELETE FROM `+table+` t USING record r WHERE r.subject = ANY ($1) AND t.type = r.type AND t.id = r.id`, subjects)
	}
	batch.Queue(`DELETE FROM phi_key WHERE subject = ANY ($1)`, subjects).Exec(func(done pgconn.CommandTag) error {
		if int(done.RowsAffected()) != len(scope.Keys) {
			return fmt.Errorf("%d keys destroyed, %d found", done.RowsAffected(), len(scope.Keys))
		}
		return nil
	})
	// Also those that merged patients had of their own: their keys are in backups from before the merge.
	batch.Queue(`INSERT INTO phi_erased (subject, patient, erasure) SELECT s, $2::text, $3::uuid FROM unnest($1::uuid[]) s
		UNION SELECT source_subject, $2::text, $3::uuid FROM phi_merge WHERE state = 'merged' AND source = ANY ($4)`, subjects, e.Patient, [16]byte(e.ID), scope.Patients)
	batch.Queue(`WITH changed AS (DELETE FROM treatment t WHERE `+treatmentOf+` RETURNING t.practitioner),`+bumpRelationships, subjects, scope.Patients)
	batch.Queue(`WITH changed AS (DELETE FROM consent_rule WHERE patient = ANY ($1) RETURNING patient),`+bumpConsents, scope.Patients)
	return tx.SendBatch(ctx, batch).Close()
}

func subjectsOf(scope *phi.ErasureScope) [][16]byte {
	subjects := make([][16]byte, len(scope.Subjects))
	for i, s := range scope.Subjects {
		subjects[i] = s
	}
	return subjects
}

// erasureError says an error in phi's words.
func erasureError(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%s: %w", doing, phi.ErrNotFound)
	}
	switch sqlState(err) {
	case stateUnique:
		return fmt.Errorf("%s: %w", doing, phi.ErrErasurePending)
	case stateDecided:
		return fmt.Errorf("%s: %w", doing, phi.ErrErasureDecided)
	case stateCheck:
		if violates(err, "two_persons") {
			return fmt.Errorf("%s: %w", doing, phi.ErrOnePerson)
		}
	case stateErased:
		return fmt.Errorf("%s: %w", doing, phi.ErrKey)
	}
	return bare(doing, err)
}

// violates reports whether an error is the violation of a constraint.
func violates(err error, constraint string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.ConstraintName == constraint
}
