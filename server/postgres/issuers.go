package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chartkeep/chartkeep/auth"
)

// issuerStorage is auth.PublicationStorage.
type issuerStorage struct{ pool *pgxpool.Pool }

// Issuers is the storage of what issuers of tokens publish.
func (d *DB) Issuers() auth.PublicationStorage { return &issuerStorage{d.records} }

// Publish implements auth.PublicationStorage.
func (s *issuerStorage) Publish(ctx context.Context, issuer string, kind auth.PublicationKind, p auth.Publication) error {
	_, err := s.pool.Exec(ctx, `INSERT INTO issuer_publication AS stored (issuer, kind, document, fetched, mac) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (issuer, kind) DO UPDATE SET document = excluded.document, fetched = excluded.fetched, mac = excluded.mac
		WHERE stored.fetched < excluded.fetched`, issuer, kind, p.Body, p.At, p.MAC)
	if err != nil {
		return bare("storing issuer's publication", err)
	}
	return nil
}

// Published implements auth.PublicationStorage.
func (s *issuerStorage) Published(ctx context.Context, issuer string, kind auth.PublicationKind) (auth.Publication, error) {
	var p auth.Publication
	err := s.pool.QueryRow(ctx, `SELECT document, fetched, mac FROM issuer_publication WHERE issuer = $1 AND kind = $2`, issuer, kind).
		Scan(&p.Body, &p.At, &p.MAC)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return auth.Publication{}, nil
	case err != nil:
		return auth.Publication{}, bare("loading issuer's publication", err)
	}
	p.At = p.At.UTC()
	return p, nil
}
