package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// keysVerb groups the life of keys.
type keysVerb struct {
	List   keysListVerb   `cmd:"" help:"Show keys by state, age and use, what is in progress, and what is due."`
	Rotate keysRotateVerb `cmd:"" help:"Replace data keys, and seal anew what they sealed, while everything goes on."`
	Rewrap keysRewrapVerb `cmd:"" help:"Begin a new epoch: wrap every key under a new key-encryption key."`
	Shred  keysShredVerb  `cmd:"" help:"Erase a patient for good, by two persons."`

	Certificate keysCertificateVerb `cmd:"" help:"Print the certificate of an erasure."`

	Backup  keysBackupVerb  `cmd:"" help:"Write the key tables, every key wrapped."`
	Restore keysRestoreVerb `cmd:"" help:"Put a backup of the key tables back."`
	Drill   keysDrillVerb   `cmd:"" help:"Rehearse a restore: a patient opens, an erased one stays shut."`
}

// keysListVerb shows what keys there are.
type keysListVerb struct {
	deployment `embed:""`
	JSON       bool `name:"json" help:"Print JSON."`
}

// Help is shown by --help.
func (*keysListVerb) Help() string {
	return `Shows no key, and nothing of a patient: key-encryption keys with the KMS key that wraps each, data keys summed up, generations of index keys,
rotations that were begun and not finished, and what is due: data keys older than five years, or near the number of encryptions that one key is good for.
Example: chartkeep keys list --data .chartkeep
Example: chartkeep keys list --json`
}

// Run prints the summary.
func (v *keysListVerb) Run(ctx context.Context, t terminal) error {
	return v.onKeys(ctx, t, 1, func(_ *rooms, storage *postgres.Rotation) error {
		s, err := storage.Summary(ctx, phi.KeysDueBefore(time.Now()))
		if err != nil {
			return err
		}
		if v.JSON {
			e := json.NewEncoder(t.out)
			e.SetIndent("", "  ")
			return e.Encode(s)
		}
		return printKeys(t.out, s)
	})
}

// onKeys runs a verb's work with the rooms and the storage of rotations open.
func (d *deployment) onKeys(ctx context.Context, t terminal, jobs int, work func(*rooms, *postgres.Rotation) error) error {
	return d.onRooms(ctx, t, func(r *rooms, _ *settings) error {
		storage, err := r.db.Rotation(ctx, jobs)
		if err != nil {
			return err
		}
		defer storage.Close()
		return work(r, storage)
	})
}

// segmentName says what a segment of a subject's records holds.
func segmentName(segment int) string {
	switch segment {
	case 0:
		return "general"
	case 1:
		return "42 CFR part 2"
	case 2:
		return "psychotherapy notes"
	}
	return fmt.Sprintf("segment %d", segment)
}

func printKeys(out io.Writer, s *postgres.KeySummary) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY-ENCRYPTION KEY\tSTATE\tMADE\tWRAPS DATA KEYS\tSECRETS\tENCRYPTIONS\tWRAPPED BY")
	for _, k := range s.KEKs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", k.ID, k.State, k.Created.Format(time.DateOnly), k.DataKeys, k.Secrets, k.Uses, k.Root)
	}
	fmt.Fprintln(w, "\t\t\t\t\t\t")
	fmt.Fprintln(w, "DATA KEYS\tSTATE\tOLDEST\tKEYS\tNEWEST\tMOST USED\t")
	for _, k := range s.DataKeys {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t\n", segmentName(k.Segment), k.State, k.Oldest.Format(time.DateOnly), k.Keys, k.Newest.Format(time.DateOnly), k.MostUses)
	}
	fmt.Fprintln(w, "\t\t\t\t\t\t")
	fmt.Fprintln(w, "INDEX GENERATION\tSTATE\tMADE\tRECORDS\t\t\t")
	for _, g := range s.Generations {
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t\t\t\n", g.ID, g.State, g.Created.Format(time.DateOnly), g.Records)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	busy := false
	say := func(format string, args ...any) {
		busy = true
		fmt.Fprintf(out, format+"\n", args...)
	}
	if r := s.Renewal; r != nil {
		say("In progress: the rotation of every data key, begun %s by %s; go on with: chartkeep keys rotate --all", r.Begun.UTC().Format(time.RFC3339), r.By)
	}
	if s.Turning > 0 {
		say("In progress: %d data keys are on their way out or in; go on with: chartkeep keys rotate", s.Turning)
	}
	if len(s.Generations) > 1 {
		say("In progress: the rotation of the index; go on with: chartkeep keys rotate --index")
	}
	if len(s.KEKs) > 1 {
		say("In progress: an epoch ends; go on with: chartkeep keys rewrap")
	}
	if s.Due > 0 {
		say("Due: %d data keys, %d of them for having encrypted %d times or more; replace them with: chartkeep keys rotate", s.Due, s.Worn, keyset.Worn)
	}
	if !busy {
		fmt.Fprintln(out, "Nothing is in progress, and nothing is due.")
	}
	return nil
}
