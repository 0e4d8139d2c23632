// Package postgres keeps the storages of audit, phi and auth on PostgreSQL (pgx stays in here), and the migrations with
// their roles and grants.
//
// It promises least privilege: the program logs in as one role that owns nothing, and each pool takes the role of its room
// (records, audit writer, audit reader); the trail is owned by a role that nobody logs in as, and triggers refuse UPDATE,
// DELETE and TRUNCATE from anyone. And it promises that a batch of audit rows is stored exactly once: its manifest and its
// COPY commit in one transaction, and a trigger demands that it continues the stream.
package postgres

import (
	"context"
	"log/slog"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// Migrate brings the database to the newest schema: ordered files, one transaction each, under an advisory lock; it
// refuses a history that was edited. adminDSN logs in as somebody who may create roles. password is set for the login role
// "chartkeep" when not empty.
func Migrate(ctx context.Context, adminDSN, password string) error { panic("unwritten") }

// Config configures Open.
type Config struct {
	DSN      string // login of role chartkeep
	MaxConns int32  // of the records pool; 4 x cores, at least 16, when 0
	Logger   *slog.Logger
}

// DB holds one pool a room.
type DB struct{ unwritten int }

// Open connects the pools and checks that the schema is the one this program was built for.
func Open(ctx context.Context, cfg Config) (*DB, error) { panic("unwritten") }

func (d *DB) Close() { panic("unwritten") }

// Ping checks the records pool.
func (d *DB) Ping(ctx context.Context) error { panic("unwritten") }

// Records, Keys, Audit, Trail and Auth are the rooms' storages.
func (d *DB) Records() phi.Storage { panic("unwritten") }
func (d *DB) Keys() keyset.Storage { panic("unwritten") }
func (d *DB) Audit() audit.Storage { panic("unwritten") }
func (d *DB) Trail() audit.Reader  { panic("unwritten") }
func (d *DB) Auth() *AuthStorage   { panic("unwritten") }

// AuthStorage is auth.Storage, and the administration of what it reads.
type AuthStorage struct{ unwritten int }

var _ auth.Storage = (*AuthStorage)(nil)

func (s *AuthStorage) Policy(ctx context.Context) (auth.Policy, error)      { panic("unwritten") }
func (s *AuthStorage) PolicyVersion(ctx context.Context) (int64, error)     { panic("unwritten") }
func (s *AuthStorage) RelationshipEpoch(ctx context.Context) (int64, error) { panic("unwritten") }
func (s *AuthStorage) Related(ctx context.Context, practitioner string, patients []string) (string, bool, error) {
	panic("unwritten")
}

// Grant and Ungrant make and end explicit treatment relationships.
func (s *AuthStorage) Grant(ctx context.Context, practitioner, patient, reason, by string) error {
	panic("unwritten")
}
func (s *AuthStorage) Ungrant(ctx context.Context, practitioner, patient, by string) error {
	panic("unwritten")
}

// Listen calls wake after each NOTIFY of a policy or relationship change, and once after each (re)connect, until ctx is done.
func (d *DB) Listen(ctx context.Context, wake func()) error { panic("unwritten") }

// PoolStats is a snapshot of one pool.
type PoolStats struct {
	Name                string
	Acquired, Idle, Max int32
	Waits               int64
}

// Stats returns a snapshot of all pools.
func (d *DB) Stats() []PoolStats { panic("unwritten") }
