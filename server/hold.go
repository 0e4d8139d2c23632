package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// auditHoldVerb groups legal holds.
type auditHoldVerb struct {
	Add     holdAddVerb     `cmd:"" help:"Keep a patient's events, or those of a period, past their time."`
	List    holdListVerb    `cmd:"" help:"List legal holds, released ones too."`
	Release holdReleaseVerb `cmd:"" help:"Release a legal hold."`
}

// holdAddVerb places a hold.
type holdAddVerb struct {
	deployment `embed:""`
	Patient    string    `help:"Logical id of the patient whose events are kept: every month that has one stays." placeholder:"ID" xor:"what" required:""`
	From       time.Time `help:"First day of the period whose months stay." format:"2006-01-02" placeholder:"YYYY-MM-DD" xor:"what" required:""`
	To         time.Time `help:"Last day of the period." format:"2006-01-02" placeholder:"YYYY-MM-DD"`
	Reason     string    `help:"Why, e.g. a case number. It must not describe the patient." placeholder:"TEXT" required:""`
	By         string    `help:"Who places it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*holdAddVerb) Help() string {
	return `A month of the trail on which a hold stands is not dropped, however old it is: chartkeep audit retention says so. Placing and releasing are
events of the trail.
Example: chartkeep audit hold add --patient 9927a129-abed-4903-96d0-078c4a605356 --reason "case 2026-17"
Example: chartkeep audit hold add --from 2019-01-01 --to 2019-12-31 --reason "case 2026-18"`
}

// Run places the hold.
func (v *holdAddVerb) Run(ctx context.Context, t terminal) error {
	h := postgres.Hold{Patient: v.Patient, From: v.From, Reason: strings.TrimSpace(v.Reason), By: operator(v.By)}
	switch {
	case v.Patient != "" && !fhir.ValidID(v.Patient):
		return usage("--patient is the logical id of a patient")
	case v.Patient != "" && !v.To.IsZero():
		return usage("--to goes with --from")
	case v.Patient == "" && v.To.Before(v.From):
		return usage("--to must be a day on or after --from")
	case h.Reason == "" || len(h.Reason) > 1000:
		return usage("--reason must be a text of at most 1000 bytes")
	case v.Patient == "":
		h.To = v.To.AddDate(0, 0, 1) // a last day is a whole one
	}
	id := newID()
	h.ID = id
	return v.onRetention(ctx, t, func(r *rooms, _ *settings, retention *postgres.Retention) error {
		e := audit.Event{Type: audit.TypePolicy, Interaction: "hold-add", Action: audit.ActionCreate, Patient: v.Patient, Entities: []audit.Entity{{Type: "LegalHold", ID: id.String()}}}
		if err := r.change(ctx, h.By, e, func() error { return retention.Place(ctx, h) }); err != nil {
			return err
		}
		_, err := fmt.Fprintln(t.out, id)
		return err
	})
}

// newID makes a random id (RFC 9562 5.4).
func newID() (id audit.ID) {
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// holdListVerb lists holds.
type holdListVerb struct {
	deployment `embed:""`
}

// Help is shown by --help.
func (*holdListVerb) Help() string {
	return "Example: chartkeep audit hold list --data .chartkeep"
}

// Run lists the holds, oldest first.
func (v *holdListVerb) Run(ctx context.Context, t terminal) error {
	return v.onRetention(ctx, t, func(_ *rooms, _ *settings, retention *postgres.Retention) error {
		holds, err := retention.Holds(ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tON\tPLACED\tBY\tRELEASED\tREASON")
		for _, h := range holds {
			on, released := "patient "+h.Patient, "stands"
			if h.Patient == "" {
				on = h.From.UTC().Format(time.DateOnly) + " to " + h.To.UTC().AddDate(0, 0, -1).Format(time.DateOnly)
			}
			if h.ReleasedBy != "" {
				released = h.Released.UTC().Format(time.DateOnly) + " by " + h.ReleasedBy
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", h.ID, on, h.Placed.UTC().Format(time.DateOnly), h.By, released, h.Reason)
		}
		return w.Flush()
	})
}

// holdReleaseVerb releases a hold.
type holdReleaseVerb struct {
	deployment `embed:""`
	ID         string `arg:"" help:"Id of the hold, as list shows it."`
	By         string `help:"Who releases it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*holdReleaseVerb) Help() string {
	return "Example: chartkeep audit hold release 0d0f6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11"
}

// Run releases the hold.
func (v *holdReleaseVerb) Run(ctx context.Context, t terminal) error {
	id, err := audit.ParseID(v.ID)
	if err != nil {
		return usage("%q is not the id of a hold", v.ID)
	}
	by := operator(v.By)
	return v.onRetention(ctx, t, func(r *rooms, _ *settings, retention *postgres.Retention) error {
		e := audit.Event{Type: audit.TypePolicy, Interaction: "hold-release", Action: audit.ActionUpdate, Entities: []audit.Entity{{Type: "LegalHold", ID: id.String()}}}
		return r.change(ctx, by, e, func() error { return retention.Release(ctx, id, by) })
	})
}

// onRetention runs a verb's work with the rooms and the retention's storage open.
func (d *deployment) onRetention(ctx context.Context, t terminal, work func(*rooms, *settings, *postgres.Retention) error) error {
	return d.onRooms(ctx, t, func(r *rooms, s *settings) error {
		retention, err := r.db.Retention(ctx)
		if err != nil {
			return err
		}
		defer retention.Close()
		return work(r, s, retention)
	})
}
