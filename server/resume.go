package main

import (
	"context"
	"time"

	"github.com/chartkeep/chartkeep/phi"
)

// resumeEvery is how often work that was interrupted is looked for.
const resumeEvery = time.Minute

// resume goes on with merges that a request left unfinished, because its time was over or its process died, tells the outcome of
// erasures that nobody has told, and forgets relationships that are long over.
func (r *rooms) resume(ctx context.Context) error {
	tick := time.NewTicker(resumeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := r.db.Auth().ForgetRelationships(ctx); err != nil && ctx.Err() == nil {
			r.logger.Warn("relationships that are long over cannot be forgotten now", "error", err.Error())
		}
		if n, err := r.erasures.Tell(ctx); err != nil && ctx.Err() == nil {
			r.logger.Warn("the outcome of an erasure cannot be recorded now", "error", err.Error())
		} else if n > 0 {
			r.logger.Info("recorded the outcome of erasures whose process had died", "erasures", n)
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
