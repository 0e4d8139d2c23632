package main

import (
	"context"
	"fmt"

	"github.com/chartkeep/chartkeep/audit"
)

// auditRebuildVerb recounts the trail's rollups.
type auditRebuildVerb struct {
	deployment `embed:""`
	By         string `help:"Who does it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*auditRebuildVerb) Help() string {
	return `Facets, histograms and latencies are answered from counts that are kept beside the trail. They are no evidence and can be recounted
at any time; events that arrive meanwhile wait in the journals.
Example: chartkeep audit rebuild --data .chartkeep`
}

// Run recounts, between an event of the intent and one of the outcome.
func (v *auditRebuildVerb) Run(ctx context.Context, t terminal) error {
	return v.onRooms(ctx, t, func(r *rooms, _ *settings) error {
		e := audit.Event{Type: audit.TypeApplication, Interaction: "rollup-rebuild", Action: audit.ActionUpdate}
		if err := r.change(ctx, operator(v.By), e, func() error { return r.db.RebuildRollups(ctx) }); err != nil {
			return err
		}
		_, err := fmt.Fprintln(t.out, "recounted")
		return err
	})
}
