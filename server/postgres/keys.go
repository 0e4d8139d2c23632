package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// keyStorage keeps wrapped key-encryption keys.
type keyStorage struct{ pool *pgxpool.Pool }

var _ keyset.Storage = (*keyStorage)(nil)

// KEK implements keyset.Storage.
func (s *keyStorage) KEK(ctx context.Context, id string, candidate *keyset.WrappedKEK) (keyset.WrappedKEK, error) {
	if id == "" && candidate != nil {
		// The unique index on the active key decides who was first.
		if _, err := s.pool.Exec(ctx, `INSERT INTO phi_kek (id, root, wrapped, active) VALUES ($1, $2, $3, true)
			ON CONFLICT DO NOTHING`, candidate.ID, candidate.Root, candidate.Wrapped); err != nil {
			return keyset.WrappedKEK{}, bare("storing key-encryption key", err)
		}
	}
	var k keyset.WrappedKEK
	err := s.pool.QueryRow(ctx, `SELECT id, root, wrapped, active FROM phi_kek WHERE CASE WHEN $1 = '' THEN active ELSE id = $1 END`, id).
		Scan(&k.ID, &k.Root, &k.Wrapped, &k.Active)
	if errors.Is(err, pgx.ErrNoRows) {
		return keyset.WrappedKEK{}, keyset.ErrUnknownKEK
	}
	if err != nil {
		return keyset.WrappedKEK{}, bare("fetching key-encryption key", err)
	}
	return k, nil
}

// KEKs implements keyset.Storage.
func (s *keyStorage) KEKs(ctx context.Context) ([]keyset.WrappedKEK, error) {
	rows, err := s.pool.Query(ctx, `SELECT id, root, wrapped, active FROM phi_kek`)
	if err != nil {
		return nil, bare("fetching key-encryption keys", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[keyset.WrappedKEK])
	if err != nil {
		return nil, bare("fetching key-encryption keys", err)
	}
	return all, nil
}

// AddUses implements keyset.Storage. Rows are locked in one order, so that two instances do not wait for each other.
func (s *keyStorage) AddUses(ctx context.Context, uses []keyset.Uses) ([]keyset.Uses, error) {
	slices.SortFunc(uses, func(a, b keyset.Uses) int {
		return cmp.Or(cmp.Compare(a.KEK, b.KEK), bytes.Compare(a.Binding.Subject[:], b.Binding.Subject[:]),
			cmp.Compare(a.Binding.Segment, b.Binding.Segment), cmp.Compare(a.Binding.KeyID, b.Binding.KeyID))
	})
	var keks []string
	var subjects [][16]byte
	var segments []int32
	var ids, wraps, seals []int64
	for _, u := range uses {
		if u.KEK != "" {
			keks, wraps = append(keks, u.KEK), append(wraps, u.N)
			continue
		}
		b := u.Binding
		subjects, segments, ids, seals = append(subjects, b.Subject), append(segments, int32(b.Segment)), append(ids, int64(b.KeyID)), append(seals, u.N)
	}
	var worn []keyset.Uses
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if len(keks) > 0 {
			if _, err := tx.Exec(ctx, `UPDATE phi_kek k SET uses = k.uses + u.n FROM unnest($1::text[], $2::bigint[]) AS u (id, n)
				WHERE k.id = u.id`, keks, wraps); err != nil {
				return err
			}
		}
		if len(subjects) > 0 {
			if _, err := tx.Exec(ctx, `UPDATE phi_key k SET uses = k.uses + u.n
				FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::bigint[]) AS u (subject, segment, key_id, n)
				WHERE k.subject = u.subject AND k.segment = u.segment AND k.key_id = u.key_id`, subjects, segments, ids, seals); err != nil {
				return err
			}
		}
		rows, err := tx.Query(ctx, `
			SELECT '', subject, segment, key_id, uses FROM phi_key WHERE uses >= 268435456 AND state = 'active'
			UNION ALL SELECT id, '00000000-0000-0000-0000-000000000000', 0, 0, uses FROM phi_kek WHERE uses >= 268435456 AND active`)
		if err != nil {
			return err
		}
		worn, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (u keyset.Uses, err error) {
			return u, row.Scan(&u.KEK, &u.Binding.Subject, &u.Binding.Segment, &u.Binding.KeyID, &u.N)
		})
		return err
	})
	if err != nil {
		return nil, bare("storing counts of encryptions", err)
	}
	return worn, nil
}

// Key implements phi.Storage.
func (s *recordStorage) Key(ctx context.Context, subject phi.UUID, segment uint16) (phi.WrappedKey, error) {
	k := phi.WrappedKey{Subject: subject, Segment: segment}
	err := s.pool.QueryRow(ctx, `SELECT key_id, kek, wrapped FROM phi_key WHERE subject = $1 AND segment = $2
		AND state = 'active'`, [16]byte(subject), segment).Scan(&k.KeyID, &k.KEK, &k.Wrapped)
	if errors.Is(err, pgx.ErrNoRows) {
		return phi.WrappedKey{}, phi.ErrNotFound
	}
	if err != nil {
		return phi.WrappedKey{}, bare("fetching data key", err)
	}
	return k, nil
}

// EnsureKey implements phi.Storage.
func (s *recordStorage) EnsureKey(ctx context.Context, k phi.WrappedKey) (phi.WrappedKey, error) {
	if _, err := s.pool.Exec(ctx, `INSERT INTO phi_key (subject, segment, key_id, kek, wrapped)
		SELECT $1::uuid, $2::integer, $3, $4, $5::bytea
		WHERE NOT EXISTS (SELECT FROM phi_key WHERE subject = $1::uuid AND segment = $2::integer)
			AND ($2::integer = 0 OR $1::uuid = '00000000-0000-0000-0000-000000000000'
				OR EXISTS (SELECT FROM phi_key WHERE subject = $1::uuid AND segment = 0 FOR KEY SHARE))
		ON CONFLICT DO NOTHING`, [16]byte(k.Subject), k.Segment, k.KeyID, k.KEK, k.Wrapped); err != nil {
		return phi.WrappedKey{}, bare("storing data key", err)
	}
	return s.Key(ctx, k.Subject, k.Segment)
}

// Secret implements phi.Storage.
func (s *recordStorage) Secret(ctx context.Context, name string, k phi.WrappedKey) (phi.WrappedKey, error) {
	if _, err := s.pool.Exec(ctx, `INSERT INTO phi_secret (name, subject, segment, key_id, kek, wrapped)
		SELECT $1, $2::uuid, $3::integer, $4::bigint, $5, $6::bytea WHERE NOT EXISTS (SELECT FROM record WHERE index_id = $7)
		ON CONFLICT DO NOTHING`,
		name, [16]byte(k.Subject), k.Segment, k.KeyID, k.KEK, k.Wrapped, phi.SecretGeneration(name)); err != nil {
		return phi.WrappedKey{}, bare("storing secret", err)
	}
	var stored phi.WrappedKey
	err := s.pool.QueryRow(ctx, `SELECT subject, segment, key_id, kek, wrapped FROM phi_secret WHERE name = $1`, name).
		Scan((*[16]byte)(&stored.Subject), &stored.Segment, &stored.KeyID, &stored.KEK, &stored.Wrapped)
	if errors.Is(err, pgx.ErrNoRows) {
		return phi.WrappedKey{}, phi.ErrSecretLost
	}
	if err != nil {
		return phi.WrappedKey{}, bare("fetching secret", err)
	}
	return stored, nil
}

// IndexGenerations implements phi.Storage.
func (s *recordStorage) IndexGenerations(ctx context.Context) ([]phi.IndexGeneration, error) {
	rows, err := s.pool.Query(ctx, `SELECT id, state, rules, names FROM index_generation ORDER BY id`)
	if err != nil {
		return nil, bare("fetching index generations", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[phi.IndexGeneration])
	if err != nil {
		return nil, bare("fetching index generations", err)
	}
	return list, nil
}

// ChooseNames implements phi.Storage.
func (s *recordStorage) ChooseNames(ctx context.Context, names phi.NameSearch) error {
	if _, err := s.pool.Exec(ctx, `SELECT choose_index($1, $2)`, string(names), phi.IndexRules); err != nil {
		return bare("choosing how names are indexed", err)
	}
	return nil
}

// Imported implements phi.Storage.
func (s *recordStorage) Imported(ctx context.Context, digest [16]byte) (bool, error) {
	var done bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM import_source WHERE digest = $1)`, digest[:]).Scan(&done)
	if err != nil {
		return false, bare("looking up import", err)
	}
	return done, nil
}

// MarkImported implements phi.Storage.
func (s *recordStorage) MarkImported(ctx context.Context, digest [16]byte) error {
	if _, err := s.pool.Exec(ctx, `INSERT INTO import_source (digest) VALUES ($1) ON CONFLICT DO NOTHING`, digest[:]); err != nil {
		return bare("noting import", err)
	}
	return nil
}
