package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/compliance"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// complyVerb checks the controls on the live deployment.
type complyVerb struct {
	deployment `embed:""`
	Out        string `help:"Folder for findings.json; printed only when empty." placeholder:"DIR"`
}

// Help is shown by --help.
func (*complyVerb) Help() string {
	return `Each control is looked at on the running deployment; what could not be looked at is an error and never a pass. Exit code 1 when anything
fails. A demo fails key-separation: its key lies beside its data.
Example: chartkeep comply --data .chartkeep --out evidence`
}

// Run assesses and reports.
func (v *complyVerb) Run(ctx context.Context, t terminal) error {
	return v.onRooms(ctx, t, func(r *rooms, s *settings) error { return v.assess(ctx, r, s, t) })
}

func (v *complyVerb) assess(ctx context.Context, r *rooms, s *settings, t terminal) error {
	name := v.Data
	if name == "" {
		name = "the deployment"
	}
	report, err := compliance.Assess(ctx, name, probes(r, s), time.Now)
	if err != nil {
		return err
	}
	if err := report.WriteText(t.out); err != nil {
		return err
	}
	if v.Out != "" {
		if err := os.MkdirAll(v.Out, 0o700); err != nil {
			return fmt.Errorf("making folder: %w", err)
		}
		b, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(v.Out, "findings.json"), append(b, '\n')); err != nil {
			return err
		}
	}
	if worst := report.Worst(); worst != compliance.Pass {
		return fmt.Errorf("there are controls with status %s", worst)
	}
	return nil
}

// probes are the looks at this deployment, by control.
func probes(r *rooms, s *settings) map[string]compliance.Probe {
	e := r.db.Evidence()
	var classes []string
	for c := range phi.Class(phi.NumClasses) {
		classes = append(classes, c.String())
	}
	return map[string]compliance.Probe{
		"encryption-at-rest": func(ctx context.Context) (string, bool, error) {
			sealed, open, err := e.SealedColumns(ctx, classes)
			if err != nil {
				return "", false, err
			}
			unsealed, err := e.UnsealedCells(ctx, classes)
			if err != nil {
				return "", false, err
			}
			takes, err := e.TakesPlaintext(ctx)
			seen := fmt.Sprintf("%d columns constrained to cells, not constrained: %s; %d stored values are no cells; a readable value is refused: %v",
				len(sealed), list(open), unsealed, !takes)
			return seen, len(sealed) == 2*len(classes) && len(open) == 0 && unsealed == 0 && !takes, err
		},
		"key-separation": func(context.Context) (string, bool, error) {
			return fmt.Sprintf("root of the key hierarchy: %s", s.roots[0].Name()), !slices.ContainsFunc(s.roots, keyset.Root.Development), nil
		},
		"access-enforced": func(context.Context) (string, bool, error) {
			nobody := r.access.Type(&auth.Principal{Subject: "nobody", Scopes: auth.ParseScopes("user/*.cruds")}, auth.Read, "Patient", "")
			err := r.access.Healthy()
			return fmt.Sprintf("policy version %d; a caller without roles is answered %q", nobody.Policy, nobody.Reason), !nobody.Allowed && err == nil, nil
		},
		"audit-append-only": func(ctx context.Context) (string, bool, error) {
			tried, succeeded, err := e.TrailAttempts(ctx)
			if err != nil {
				return "", false, err
			}
			unguarded, err := e.UnguardedPartitions(ctx)
			return fmt.Sprintf("%d attempts to change the trail, not refused: %s; tables without guards: %s", tried, list(succeeded), list(unguarded)),
				len(succeeded)+len(unguarded) == 0, err
		},
		"audit-durable": func(ctx context.Context) (string, bool, error) {
			_, err := r.log.Record(ctx, audit.Power, &audit.Event{
				Type: audit.TypeApplication, Interaction: "control-check", Action: audit.ActionExecute, Agent: audit.Agent{User: "system", Client: "chartkeep-comply"},
			})
			if err != nil {
				return "", false, err
			}
			return fmt.Sprintf("PHI waits until its event is durable at level %s (power survives a power cut, database the loss of the host); an event was made durable just now", s.level), s.level >= audit.Power, nil
		},
		"audit-chain": func(ctx context.Context) (string, bool, error) {
			newest, err := r.db.Trail().Find(ctx, audit.Query{Limit: audit.MaxPage})
			if err != nil {
				return "", false, err
			}
			for _, row := range newest.Events {
				if err := audit.CheckRow(row.Stream, &row.Row); err != nil {
					return fmt.Sprintf("event %s does not verify: %v", row.Event.ID, err), false, nil
				}
			}
			return fmt.Sprintf("the newest %d stored events hash to their leaves", len(newest.Events)), len(newest.Events) > 0, nil
		},
		"database-checksums": func(ctx context.Context) (string, bool, error) {
			v, err := e.Settings(ctx, "data_checksums", "fsync", "full_page_writes", "synchronous_commit")
			return fmt.Sprintf("data_checksums %s, fsync %s, full_page_writes %s, synchronous_commit %s", v["data_checksums"], v["fsync"], v["full_page_writes"], v["synchronous_commit"]),
				v["data_checksums"] == "on" && v["fsync"] == "on" && v["full_page_writes"] == "on" && v["synchronous_commit"] != "off", err
		},
		"least-privilege": func(ctx context.Context) (string, bool, error) {
			excess, err := e.ExcessRights(ctx)
			return "rights of the login beyond its need: " + list(excess), len(excess) == 0, err
		},
	}
}

func list(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}
