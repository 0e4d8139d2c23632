package postgres

import (
	"context"
	"errors"

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
	err := s.pool.QueryRow(ctx, `SELECT id, root, wrapped FROM phi_kek WHERE CASE WHEN $1 = '' THEN active ELSE id = $1 END`, id).
		Scan(&k.ID, &k.Root, &k.Wrapped)
	if errors.Is(err, pgx.ErrNoRows) {
		return keyset.WrappedKEK{}, keyset.ErrUnknownKEK
	}
	if err != nil {
		return keyset.WrappedKEK{}, bare("fetching key-encryption key", err)
	}
	return k, nil
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
		VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
		name, [16]byte(k.Subject), k.Segment, k.KeyID, k.KEK, k.Wrapped); err != nil {
		return phi.WrappedKey{}, bare("storing secret", err)
	}
	var stored phi.WrappedKey
	err := s.pool.QueryRow(ctx, `SELECT subject, segment, key_id, kek, wrapped FROM phi_secret WHERE name = $1`, name).
		Scan((*[16]byte)(&stored.Subject), &stored.Segment, &stored.KeyID, &stored.KEK, &stored.Wrapped)
	if err != nil {
		return phi.WrappedKey{}, bare("fetching secret", err)
	}
	return stored, nil
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
