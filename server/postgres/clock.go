package postgres

import (
	"context"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

var _ audit.Clock = (*trailStorage)(nil)

// Now implements audit.Clock.
func (s *trailStorage) Now(ctx context.Context) (now time.Time, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return now, bare("asking for the time", err)
	}
	return now, nil
}
