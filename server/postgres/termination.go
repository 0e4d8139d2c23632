package postgres

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/auth"
)

var _ auth.TerminationStorage = (*SessionStorage)(nil)

// Terminate implements auth.TerminationStorage. Epochs are advanced in the order in which an assignment of a role does it, the
// revocations' last: two who change what one person may do do not wait for one another.
func (s *SessionStorage) Terminate(ctx context.Context, t auth.Termination, revoke func(sessions []string) ([]auth.Revocation, error)) (ended auth.Ended, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT end_assignments($1, $2, $3)`, t.Subject, t.By, t.Reason).Scan(&ended.Assignments); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT id, fhir_user, expires_at FROM session_seen WHERE subject = $1 ORDER BY id`, t.Subject)
		if err != nil {
			return err
		}
		var sessions []string
		practitioners := []string{t.Practitioner}
		var id, user string
		var expires time.Time
		now := time.Now()
		if _, err := pgx.ForEachRow(rows, []any{&id, &user, &expires}, func() error {
			if p, ok := strings.CutPrefix(user, "Practitioner/"); ok {
				practitioners = append(practitioners, p)
			}
			sessions = append(sessions, id)
			if expires.After(now) {
				ended.Sessions++
			}
			return nil
		}); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM treatment WHERE practitioner = ANY($1) AND source = 'grant'`, practitioners).Scan(&ended.Relationships); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `WITH changed AS (
				DELETE FROM treatment WHERE practitioner = ANY($1) AND source = 'grant' RETURNING practitioner),`+bumpRelationships, practitioners); err != nil {
			return err
		}
		done, err := tx.Exec(ctx, `UPDATE emergency_access SET state = 'revoked', ended_by = $2, ended_at = clock_timestamp()
			WHERE subject = $1 AND state = 'granted' AND until_at > statement_timestamp()`, t.Subject, t.By)
		if err != nil {
			return err
		}
		ended.Emergencies = int(done.RowsAffected())
		list, err := revoke(sessions)
		if err != nil {
			return err
		}
		return storeRevocations(ctx, tx, list)
	})
	if err != nil {
		return auth.Ended{}, bare("terminating", err)
	}
	return ended, nil
}
