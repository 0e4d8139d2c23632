package main

import (
	"context"
	"time"

	"github.com/chartkeep/chartkeep/phi"
)

// mergesEvery is how often merges that were interrupted are looked for.
const mergesEvery = time.Minute

// resumeMerges goes on with merges that a request left unfinished, because its time was over or its process died.
func (r *rooms) resumeMerges(ctx context.Context) error {
	tick := time.NewTicker(mergesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		finished, err := r.merges.Resume(ctx, &phi.Caller{Principal: system("chartkeep-merges"), RequestID: "resume-merges", Start: time.Now()})
		if err != nil && ctx.Err() == nil {
			r.logger.Warn("a merge that was interrupted cannot be finished now", "error", err.Error())
		}
		if finished > 0 {
			r.logger.Info("finished merges that were interrupted", "merges", finished)
		}
	}
}
