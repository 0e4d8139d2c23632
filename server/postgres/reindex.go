package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

var _ phi.ReindexStorage = (*Rotation)(nil)

// BeginGeneration implements phi.ReindexStorage.
func (r *Rotation) BeginGeneration(ctx context.Context, next phi.IndexGeneration) error {
	if _, err := r.pool.Exec(ctx, `INSERT INTO index_generation (id, state, rules, names) SELECT $1, 'reading', $2, $3
		WHERE NOT EXISTS (SELECT FROM index_generation WHERE state <> 'active') ON CONFLICT DO NOTHING`,
		int32(next.ID), int16(next.Rules), string(next.Names)); err != nil {
		return bare("beginning index generation", err)
	}
	return nil
}

// ActivateGeneration implements phi.ReindexStorage.
func (r *Rotation) ActivateGeneration(ctx context.Context, id uint32) error {
	err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE index_generation SET state = 'retiring' WHERE state = 'active'
			AND EXISTS (SELECT FROM index_generation WHERE id = $1 AND state = 'reading')`, int32(id))
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE index_generation SET state = 'active' WHERE id = $1`, int32(id))
		return err
	})
	if err != nil {
		return bare("activating index generation", err)
	}
	return nil
}

// CountGeneration implements phi.ReindexStorage.
func (r *Rotation) CountGeneration(ctx context.Context, id uint32) (n int64, err error) {
	if err := r.pool.QueryRow(ctx, `SELECT count(*) FROM record WHERE index_id = $1`, int32(id)).Scan(&n); err != nil {
		return 0, bare("counting records of an index generation", err)
	}
	return n, nil
}

// RowsOfGeneration implements phi.ReindexStorage.
func (r *Rotation) RowsOfGeneration(ctx context.Context, id uint32, limit int) ([]phi.RowName, error) {
	rows, err := r.pool.Query(ctx, `SELECT r.type, r.id, r.version, `+cellsSize+` FROM record r WHERE r.index_id = $1 LIMIT $2`, int32(id), limit)
	if err != nil {
		return nil, bare("looking for records of an index generation", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (n phi.RowName, err error) {
		return n, row.Scan(&n.Type, &n.ID, &n.Version, &n.Size)
	})
	if err != nil {
		return nil, bare("looking for records of an index generation", err)
	}
	return found, nil
}

// StoreReindexed implements phi.ReindexStorage: one transaction, whose commit is waited for no more than StoreResealed's.
func (r *Rotation) StoreReindexed(ctx context.Context, rows []phi.Reindexed) (stored int, err error) {
	if len(rows) == 0 {
		return 0, nil
	}
	var all columns
	var was [][]byte
	for _, row := range rows {
		all.add(&phi.Write{Sealed: *row.Sealed, IndexID: row.IndexID})
		was = append(was, row.Was)
	}
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		living, err := holdKeys(ctx, tx, rows)
		if err != nil {
			return err
		}
		// Rows that a writer has locked are skipped; the others stay as they are until the end.
		locked, err := tx.Query(ctx, `SELECT w.n FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) WITH ORDINALITY w(type, id, version, was, n)
			JOIN record l USING (type, id, version) WHERE l.seal = w.was FOR NO KEY UPDATE OF l SKIP LOCKED`, all.types, all.ids, all.versions, was)
		if err != nil {
			return err
		}
		mine, err := pgx.CollectRows(locked, pgx.RowTo[int])
		if err != nil {
			return err
		}
		var c columns
		var kinds []int16
		var tokens [][]byte
		var types, ids []string
		for _, n := range mine {
			row := rows[n-1]
			if !row.Erased && !living[bindingOf(row.Sealed)] {
				continue
			}
			stored++
			c.add(&phi.Write{Sealed: *row.Sealed, IndexID: row.IndexID})
			for _, t := range row.Tokens {
				kinds, tokens = append(kinds, int16(t.Kind)), append(tokens, t.Value[:])
				types, ids = append(types, row.Type), append(ids, row.ID)
			}
		}
		batch := &pgx.Batch{}
		batch.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
		batch.Queue(`UPDATE record r SET index_id = n.index_id, identifier = n.identifier, name = n.name, birth_date = n.birth_date,
				contact = n.contact, clinical = n.clinical, narrative = n.narrative, seal = n.seal
			FROM unnest($1::text[], $2::text[], $3::integer[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[], $8::bytea[], $9::bytea[], $10::bytea[])
				n(type, id, index_id, identifier, name, birth_date, contact, clinical, narrative, seal)
			WHERE r.type = n.type AND r.id = n.id`,
			c.types, c.ids, c.indexes, c.cells[0], c.cells[1], c.cells[2], c.cells[3], c.cells[4], c.cells[5], c.seals)
		batch.Queue(`DELETE FROM index_token t USING unnest($1::text[], $2::text[]) w(type, id) WHERE t.type = w.type AND t.id = w.id`, c.types, c.ids)
		batch.Queue(`INSERT INTO index_token (kind, token, type, id) SELECT * FROM unnest($1::smallint[], $2::bytea[], $3::text[], $4::text[]) ON CONFLICT DO NOTHING`,
			kinds, tokens, types, ids)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return 0, bare("storing tokens minted anew", err)
	}
	return stored, nil
}

// holdKeys holds the data keys of rows to the end of the transaction, and returns those that are there: who erases a patient takes the keys
// for update before the tokens go, so none come back after them.
func holdKeys(ctx context.Context, tx pgx.Tx, rows []phi.Reindexed) (there map[keyset.Binding]bool, err error) {
	there = map[keyset.Binding]bool{}
	var all []keyset.Binding
	for _, row := range rows {
		if b := bindingOf(row.Sealed); !row.Erased && !there[b] {
			there[b] = true
			all = append(all, b)
		}
	}
	c := names(all)
	held, err := tx.Query(ctx, `SELECT subject, segment, key_id FROM `+namedKeys+` ORDER BY subject, segment, key_id FOR KEY SHARE OF k`, c.subjects, c.segments, c.ids)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(held, scanBinding)
	clear(there)
	for _, b := range found {
		there[b] = true
	}
	return there, err
}

func bindingOf(row *phi.Sealed) keyset.Binding {
	return keyset.Binding{Subject: row.Subject, Segment: row.Segment, KeyID: row.KeyID}
}

// RemoveGeneration implements phi.ReindexStorage. Who commits holds the generation for share; after the lock, in the next statement,
// is seen what they stored.
func (r *Rotation) RemoveGeneration(ctx context.Context, id uint32, secrets []string) (removed bool, err error) {
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM index_generation WHERE id = $1 FOR UPDATE`, int32(id)); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `DELETE FROM index_generation WHERE id = $1 AND state = 'retiring' AND NOT EXISTS (SELECT FROM record WHERE index_id = $1)`, int32(id))
		if err != nil {
			return err
		}
		var there bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM index_generation WHERE id = $1)`, int32(id)).Scan(&there); err != nil || there {
			return err
		}
		removed = true
		if tag.RowsAffected() == 0 { // another rotator did
			return nil
		}
		_, err = tx.Exec(ctx, `DELETE FROM phi_secret WHERE name = ANY ($1)`, secrets)
		return err
	})
	if err != nil {
		return false, bare("removing index generation", err)
	}
	return removed, nil
}
