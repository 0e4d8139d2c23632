package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// auditRetentionVerb drops what is older than the policy.
type auditRetentionVerb struct {
	deployment `embed:""`
	Years      int           `help:"Change the policy first: keep the trail for so many years, six at least." placeholder:"N"`
	Archive    string        `help:"Folder that a month is exported to, and read back from, before it goes." placeholder:"DIR" type:"path"`
	Grace      time.Duration `help:"How long a month, taken out of the trail, still waits before it is dropped." default:"24h"`
	DryRun     bool          `help:"Say what would be done, and do nothing."`
	By         string        `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*auditRetentionVerb) Help() string {
	return `Whole months go, when all of one is older than the policy and no legal hold stands on it: exported to the archive and verified there, noted in a record
that the log signs, taken out of the trail, and dropped by a later run. Proofs that were given out stay valid, and the rest of the trail verifies as before.
Run it once a day; it goes on where an earlier run was stopped.
Example: chartkeep audit retention --data .chartkeep --dry-run
Example: chartkeep audit retention --years 7 --archive /mnt/locked/audit`
}

// Run carries the policy out.
func (v *auditRetentionVerb) Run(ctx context.Context, t terminal) error {
	switch {
	case v.Years != 0 && v.Years < audit.RetentionYears:
		return usage("--years %d: at least %d are required (45 CFR 164.316(b)(2)(i))", v.Years, audit.RetentionYears)
	case v.Grace < 0:
		return usage("--grace must not be negative")
	}
	return v.onRetention(ctx, t, func(r *rooms, s *settings, months *postgres.Retention) error {
		p := pruner{rooms: r, months: months, trail: r.db.Tree(), keys: s.keys, archive: v.Archive, grace: v.Grace, by: operator(v.By), out: t.out}
		if err := p.policy(ctx, v.Years, v.DryRun); err != nil {
			return err
		}
		return p.run(ctx, v.DryRun)
	})
}

// pruner takes months out of the trail, step by step. Every step is one transaction of the database, which checks policy and holds
// again, and is found done by a run after one that was killed.
type pruner struct {
	rooms   *rooms
	months  *postgres.Retention
	trail   audit.Evidence
	keys    []audit.LogKey
	archive string
	grace   time.Duration
	by      string
	out     io.Writer
	years   int
}

// detachPatience is how long a busy trail is asked for a moment to take a month out.
const detachPatience = time.Minute

func (p *pruner) say(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

// policy reads the policy in force, and changes it first where that is asked for.
func (p *pruner) policy(ctx context.Context, years int, dryRun bool) (err error) {
	if p.years, err = p.months.Years(ctx); err != nil || years == 0 || years == p.years {
		return err
	}
	if dryRun {
		p.say("the policy would change from %d to %d years; what follows is after the present one", p.years, years)
		return nil
	}
	e := audit.Event{Type: audit.TypePolicy, Interaction: "retention-policy", Action: audit.ActionUpdate, Entities: []audit.Entity{{Type: "RetentionPolicy", ID: fmt.Sprint(years)}}}
	if err := p.rooms.change(ctx, p.by, e, func() error { return p.months.SetYears(ctx, years, p.by) }); err != nil {
		return err
	}
	p.say("the trail is kept for %d years, no longer for %d", years, p.years)
	p.years = years
	return nil
}

func (p *pruner) run(ctx context.Context, dryRun bool) error {
	if !dryRun {
		made, err := p.months.Rehouse(ctx)
		switch {
		case errors.Is(err, postgres.ErrBusy):
			p.say("rows of months without a partition wait: the trail is busy; the next run tries again")
		case err != nil:
			return err
		case made > 0:
			p.say("%d months got a partition of their own for rows that waited for one", made)
		}
	}
	months, err := p.months.Months(ctx)
	if err != nil {
		return err
	}
	young := 0
	var failed error
	for _, m := range months {
		hold, held := strings.CutPrefix(m.Kept, "hold ")
		switch {
		case m.Kept == "young":
			young++
		case held:
			p.say("%s stays: legal hold %s", m.Partition, hold)
		case m.Kept != "":
			p.say("%s stays: it has rows that were stored less than %d years ago, whatever their time says", m.Partition, p.years)
		case dryRun && m.Detached.IsZero():
			p.say("%s would go", m.Partition)
		case dryRun:
			p.say("%s is out of the trail since %s and would be dropped", m.Partition, m.Detached.UTC().Format(time.RFC3339))
		default:
			err := p.prune(ctx, m)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				// One month that cannot go now keeps no other.
				failed = errors.Join(failed, fmt.Errorf("%s: %w", m.Partition, err))
			}
		}
	}
	p.say("%d months stay: they are not %d years old", young, p.years)
	return failed
}

// prune takes a month as far as it may go today.
func (p *pruner) prune(ctx context.Context, m postgres.Month) error {
	if m.Detached.IsZero() {
		if !m.Noted {
			if err := p.note(ctx, m); err != nil {
				return err
			}
		}
		if err := p.recordNote(ctx, m); err != nil {
			return err
		}
		if err := p.months.Detach(ctx, m.Partition, detachPatience); err != nil {
			return err
		}
		p.say("%s is out of the trail; it is dropped by a run after %s", m.Partition, time.Now().Add(p.grace).UTC().Format(time.RFC3339))
		return nil
	}
	if due := m.Detached.Add(p.grace); time.Now().Before(due) {
		p.say("%s is out of the trail; it is dropped by a run after %s", m.Partition, due.UTC().Format(time.RFC3339))
		return nil
	}
	e := audit.Event{Type: audit.TypePolicy, Interaction: "prune-drop", Action: audit.ActionDelete, Entities: []audit.Entity{{Type: "AuditPartition", ID: m.Partition}}}
	if err := p.rooms.change(ctx, p.by, e, func() error { return p.months.Drop(ctx, m.Partition, p.grace) }); err != nil {
		return err
	}
	p.say("%s is dropped", m.Partition)
	return nil
}

// note archives a month, verifies the archive, and stores the signed record of what is about to go.
func (p *pruner) note(ctx context.Context, m postgres.Month) error {
	if p.archive == "" {
		return usage("--archive is missing: a month is exported before it goes")
	}
	if len(p.keys) == 0 {
		return usage("the log's key is missing (--checkpoint-key): the record of what goes must be signed")
	}
	checkpoint, err := p.checkpoint(ctx)
	if err != nil {
		return err
	}
	runs, err := p.months.Runs(ctx, m.Partition)
	if err != nil {
		return err
	}
	record := audit.Pruning{Origin: checkpoint.Origin, Partition: m.Partition, Before: m.To, Made: time.Now().UTC().Truncate(time.Second)}
	for _, r := range runs {
		pruned, err := audit.PrunedRangeOf(ctx, p.trail, checkpoint, r.Stream, r.First, r.Count)
		if err != nil {
			return err
		}
		record.Ranges = append(record.Ranges, pruned)
		record.Rows += int64(r.Count)
	}
	if record.Archive, err = p.export(ctx, m, record.Rows); err != nil {
		return err
	}
	signed, err := record.Sign(p.signers()...)
	if err != nil {
		return err
	}
	return p.months.Note(ctx, &record, signed)
}

// recordNote makes the record an event of the trail, once, and waits until that is in the database.
func (p *pruner) recordNote(ctx context.Context, m postgres.Month) error {
	id := "prune-" + m.Partition
	found, err := p.rooms.db.Trail().Find(ctx, audit.Query{Terms: []audit.Term{audit.Is(audit.FieldRequest, id)}, Limit: 1})
	if err != nil || len(found.Events) > 0 {
		return err
	}
	prunings, err := p.trail.Prunings(ctx)
	if err != nil {
		return err
	}
	var record []byte
	for _, msg := range prunings {
		if strings.Contains(string(msg), "\npartition "+m.Partition+"\n") {
			record = msg
		}
	}
	if len(record) > audit.MaxBody/2 {
		sum := sha256.Sum256(record)
		record = fmt.Appendf(nil, "sha256 %x", sum)
	}
	_, err = p.rooms.log.Record(ctx, audit.Database, &audit.Event{
		Type: audit.TypePolicy, Interaction: "prune", Action: audit.ActionDelete, RequestID: id, Agent: audit.Agent{User: p.by, Client: "chartkeep"},
		Entities: []audit.Entity{{Type: "AuditPartition", ID: m.Partition}}, Decision: audit.Decision{Allowed: true}, Detail: record,
	})
	return err
}

func (p *pruner) signers() (signers []note.Signer) {
	for _, k := range p.keys {
		signers = append(signers, k.Signer)
	}
	return signers
}

func (p *pruner) verifiers() (keys []string) {
	for _, k := range p.keys {
		keys = append(keys, k.Verifier)
	}
	return keys
}

// checkpoint opens the newest checkpoint with the log's own keys.
func (p *pruner) checkpoint(ctx context.Context) (audit.Checkpoint, error) {
	msg, err := p.trail.Checkpoint(ctx)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	var known []note.Verifier
	for _, k := range p.keys {
		v, err := note.NewVerifier(k.Verifier)
		if err != nil {
			return audit.Checkpoint{}, fmt.Errorf("reading verifier key: %w", err)
		}
		known = append(known, v)
	}
	c, _, err := audit.OpenCheckpoint(msg, note.VerifierList(known...))
	return c, err
}

// export writes a month's rows as a bundle below the archive, once, and reads it back. It returns the SHA-256 of its manifest.
func (p *pruner) export(ctx context.Context, m postgres.Month, rows int64) (audit.Hash, error) {
	dir := filepath.Join(p.archive, m.Partition)
	filter := "the month " + m.Partition + ", before it is dropped"
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(p.archive, 0o700); err != nil {
			return audit.Hash{}, fmt.Errorf("making the archive: %w", err)
		}
		w, err := audit.CreateBundle(dir)
		if err != nil {
			return audit.Hash{}, err
		}
		if _, err := audit.Export(ctx, p.trail, w, audit.ExportOptions{Filter: filter, From: m.From, To: m.To, Signers: p.signers()}); err != nil {
			return audit.Hash{}, err
		}
	} else if err != nil {
		return audit.Hash{}, fmt.Errorf("looking at the archive: %w", err)
	}
	bundle, err := audit.OpenBundle(os.DirFS(dir))
	if err != nil {
		return audit.Hash{}, fmt.Errorf("reading the archive back: %w", err)
	}
	defer bundle.Close() //nolint:errcheck // it was read
	report, err := bundle.Verify(ctx, audit.VerifyOptions{Keys: p.verifiers()})
	if err != nil {
		return audit.Hash{}, fmt.Errorf("reading the archive back: %w", err)
	}
	if !report.OK() || report.Rows != rows || report.Filter != filter {
		return audit.Hash{}, fmt.Errorf("reading the archive back: %s holds %d rows with %d findings, the month has %d: nothing was dropped; move it away and run again", dir, report.Rows, len(report.Findings), rows)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return audit.Hash{}, fmt.Errorf("reading the archive back: %w", err)
	}
	p.say("%s: %d rows are archived in %s", m.Partition, rows, dir)
	return sha256.Sum256(manifest), nil
}
