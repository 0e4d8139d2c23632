package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// KeySummary is what keys there are, and what is going on with them. It holds no key, and nothing of a single patient.
type KeySummary struct {
	KEKs        []KEKSummary        `json:"key_encryption_keys"`
	DataKeys    []DataKeySummary    `json:"data_keys"`
	Generations []GenerationSummary `json:"index_generations"`
	Renewal     *RenewalSummary     `json:"renewal,omitempty"` // the rotation of every data key that is under way
	Turning     int64               `json:"turning"`           // data keys that are not active
	Due         int64               `json:"due"`               // active data keys to be replaced, for their age or their use
	Worn        int64               `json:"worn"`              // for their use
}

// KEKSummary is a key-encryption key.
type KEKSummary struct {
	ID       string    `json:"id"`
	Root     string    `json:"root"`
	State    string    `json:"state"` // active, or retiring
	Created  time.Time `json:"created"`
	Uses     int64     `json:"uses"`
	DataKeys int64     `json:"data_keys"` // that it wraps
	Secrets  int64     `json:"secrets"`
}

// DataKeySummary sums up the data keys of one segment and state.
type DataKeySummary struct {
	Segment  int          `json:"segment"`
	State    phi.KeyState `json:"state"`
	Keys     int64        `json:"keys"`
	Oldest   time.Time    `json:"oldest"` // a day
	Newest   time.Time    `json:"newest"`
	MostUses int64        `json:"most_uses"`
}

// GenerationSummary is a generation of index keys.
type GenerationSummary struct {
	ID      int32     `json:"id"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	Records int64     `json:"records"` // whose tokens were minted under it
}

// RenewalSummary is the rotation of every data key.
type RenewalSummary struct {
	By    string    `json:"by"`
	Begun time.Time `json:"begun"`
}

// Summary sums the keys up. Keys made before due are due.
func (r *Rotation) Summary(ctx context.Context, due time.Time) (*KeySummary, error) {
	s := &KeySummary{}
	err := pgx.BeginTxFunc(ctx, r.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT k.id, k.root, CASE WHEN k.active THEN 'active' ELSE 'retiring' END, k.created, k.uses,
			(SELECT count(*) FROM phi_key d WHERE d.kek = k.id), (SELECT count(*) FROM phi_secret d WHERE d.kek = k.id) FROM phi_kek k ORDER BY k.created, k.id`)
		if err == nil {
			s.KEKs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[KEKSummary])
		}
		if err != nil {
			return err
		}
		if rows, err = tx.Query(ctx, `SELECT segment, state, count(*), min(created), max(created), max(uses) FROM phi_key GROUP BY segment, state
			ORDER BY segment, array_position(ARRAY['active', 'known', 'decrypt_only'], state)`); err == nil {
			s.DataKeys, err = pgx.CollectRows(rows, pgx.RowToStructByPos[DataKeySummary])
		}
		if err != nil {
			return err
		}
		if rows, err = tx.Query(ctx, `SELECT g.id, g.state, g.created, (SELECT count(*) FROM record r WHERE r.index_id = g.id) FROM index_generation g ORDER BY g.id`); err == nil {
			s.Generations, err = pgx.CollectRows(rows, pgx.RowToStructByPos[GenerationSummary])
		}
		if err != nil {
			return err
		}
		for _, k := range s.DataKeys {
			if k.State != phi.KeyActive {
				s.Turning += k.Keys
			}
		}
		if err := tx.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE uses >= $1) FROM phi_key WHERE state = 'active' AND (uses >= $1 OR created < $2::date)`,
			int64(keyset.Worn), due).Scan(&s.Due, &s.Worn); err != nil {
			return err
		}
		var renewal RenewalSummary
		switch err := tx.QueryRow(ctx, `SELECT begun_by, begun FROM phi_renewal WHERE finished IS NULL`).Scan(&renewal.By, &renewal.Begun); {
		case err == nil:
			s.Renewal = &renewal
		case !errors.Is(err, pgx.ErrNoRows):
			return err
		}
		return nil
	})
	if err != nil {
		return nil, bare("summing keys up", err)
	}
	return s, nil
}
