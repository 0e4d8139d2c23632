package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/compliance"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// policyVerb groups the policy.
type policyVerb struct {
	Show   policyShowVerb   `cmd:"" help:"Show the policy, or a version of it."`
	Diff   policyDiffVerb   `cmd:"" help:"Say in words what a file would change."`
	Test   policyTestVerb   `cmd:"" help:"Hold the policy, or a file, against what you expect of it."`
	Apply  policyApplyVerb  `cmd:"" help:"Make a file the policy; what lets somebody do more takes a second person."`
	Assign policyAssignVerb `cmd:"" help:"Give a role to somebody, approve that, or end it."`
}

// policyShowVerb shows the policy.
type policyShowVerb struct {
	deployment `embed:""`
	JSON       bool  `name:"json" help:"As a document that apply takes." xor:"how"`
	Versions   bool  `help:"List the versions that there were, newest first." xor:"how"`
	Proposals  bool  `help:"List proposed changes, newest first." xor:"how"`
	At         int64 `help:"Show this version instead of the newest." placeholder:"VERSION"`
}

// Help is shown by --help.
func (*policyShowVerb) Help() string {
	return `A role permits letters (create, read, update, delete, search) on types, in a view, for purposes of use, of patients who are in treatment (treatment), of
everybody (none) or of oneself (self).
Example: chartkeep policy show --json > policy.json`
}

// Run shows it.
func (v *policyShowVerb) Run(ctx context.Context, t terminal) error {
	return v.onPolicies(ctx, t, func(_ *rooms, policies *postgres.Policies) error {
		switch {
		case v.Versions:
			return listVersions(ctx, t.out, policies)
		case v.Proposals:
			return listProposals(ctx, t.out, policies)
		}
		version, d, err := policies.Version(ctx, v.At)
		if err != nil {
			return err
		}
		if v.JSON {
			return writeIndented(t.out, d)
		}
		by := version.By
		if version.ApprovedBy != "" {
			by += ", approved by " + version.ApprovedBy
		}
		fmt.Fprintf(t.out, "version %d of %s by %s: %s\n\n", version.Version, version.At.Format(time.DateTime), by, version.Summary)
		return showPolicy(t.out, d)
	})
}

func writeIndented(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

func showPolicy(out io.Writer, d auth.Document) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROLE\tON\tMAY\tVIEW\tRELATION\tFOR\tBESIDE")
	for _, r := range d.Roles {
		for _, p := range r.Permissions {
			may, beside := p.Interactions, []string{}
			if p.Effect == auth.Forbid {
				may = "not " + may
			}
			if len(p.Segments) > 0 {
				beside = append(beside, "segments "+strings.Join(p.Segments, ","))
			}
			beside = append(beside, demands(p.ACR, p.MaxAge, p.Approval)...)
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, p.Type, may, p.View, p.Relation, strings.Join(p.Purposes, ","), strings.Join(beside, "; "))
		}
		for _, c := range r.Capabilities {
			fmt.Fprintf(w, "%s\t\t%s\t\t\t\t%s\n", r.Name, c.Name, strings.Join(demands(c.ACR, c.MaxAge, c.Approval), "; "))
		}
	}
	fmt.Fprintln(w, "\nROLE\tIS")
	for _, r := range d.Roles {
		is := r.Description
		if !r.Workforce {
			is += " (nobody's to assign)"
		}
		if r.Approval {
			is += " (to assign it takes a second person)"
		}
		fmt.Fprintf(w, "%s\t%s\n", r.Name, is)
	}
	fmt.Fprintln(w, "\nNOT TOGETHER\tBECAUSE")
	for _, c := range d.Conflicts {
		fmt.Fprintf(w, "%s, %s\t%s\n", c.Role, c.Other, c.Reason)
	}
	fmt.Fprintf(w, "\nSETTING\tIS\nemergency-over-consent\t%v\n", d.Settings.EmergencyOverConsent)
	return w.Flush()
}

// demands are what a rule asks for beside the role.
func demands(acr []string, maxAge int64, approval bool) (list []string) {
	if len(acr) > 0 {
		list = append(list, "sign-in "+strings.Join(acr, " or "))
	}
	if maxAge > 0 {
		list = append(list, fmt.Sprintf("signed in within %s", time.Duration(maxAge)*time.Second))
	}
	if approval {
		list = append(list, "to assign it takes a second person")
	}
	return list
}

func listVersions(ctx context.Context, out io.Writer, policies *postgres.Policies) error {
	list, err := policies.Versions(ctx, 0, 500)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VERSION\tAT\tBY\tAPPROVED BY\tWHY")
	for _, v := range list {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", v.Version, v.At.Format(time.DateTime), v.By, v.ApprovedBy, v.Summary)
	}
	return w.Flush()
}

func listProposals(ctx context.Context, out io.Writer, policies *postgres.Policies) error {
	list, err := policies.Proposals(ctx, "", 500)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tREQUESTED\tBY\tSTATE\tWHY")
	for _, p := range list {
		state := p.State
		switch {
		case p.State == auth.StateRequested:
			state = "waits for a second person until " + p.ExpiresAt.Format(time.DateOnly)
		case p.DecidedBy != "":
			state += " by " + p.DecidedBy
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.ID, p.RequestedAt.Format(time.DateOnly), p.RequestedBy, state, p.Reason)
	}
	return w.Flush()
}

// checkPolicy says what is wrong with a policy, as the views and types are that this program knows.
func checkPolicy(d *auth.Document) error {
	types := map[string]bool{}
	for _, t := range fhir.Types() {
		types[t] = true
	}
	return d.Check(func(view string) bool { _, _, ok := phi.ViewOf(view, "Patient"); return ok }, func(t string) bool { return types[t] })
}

// readPolicyFile reads a document. What is wrong with it is the file's fault, not the command line's.
func readPolicyFile(name string) (auth.Document, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return auth.Document{}, err
	}
	d, err := auth.ReadDocument(b)
	if err == nil {
		err = checkPolicy(&d)
	}
	if err != nil {
		return auth.Document{}, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// explainChanges writes changes, one a line.
func explainChanges(w io.Writer, changes []auth.Change) {
	for _, c := range changes {
		fmt.Fprintln(w, c.Sign(), c.Text)
	}
}

// policyDiffVerb compares.
type policyDiffVerb struct {
	deployment `embed:""`
	File       string `arg:"" help:"Document, as policy show --json writes it." type:"existingfile"`
	At         int64  `help:"Compare with this version instead of the newest." placeholder:"VERSION"`
}

// Help is shown by --help.
func (*policyDiffVerb) Help() string {
	return `+ lets somebody do more, − less, = neither. In doubt it is more.
Example: chartkeep policy diff policy.json`
}

// Run says what is different.
func (v *policyDiffVerb) Run(ctx context.Context, t terminal) error {
	d, err := readPolicyFile(v.File)
	if err != nil {
		return err
	}
	return v.onPolicies(ctx, t, func(_ *rooms, policies *postgres.Policies) error {
		_, was, err := policies.Version(ctx, v.At)
		if err != nil {
			return err
		}
		changes := auth.Compare(was, d)
		explainChanges(t.out, changes)
		if len(changes) == 0 {
			fmt.Fprintln(t.err, "nothing would change")
		}
		return nil
	})
}

// policyTestVerb tests.
type policyTestVerb struct {
	deployment `embed:""`
	Cases      string `arg:"" help:"File with cases." type:"existingfile"`
	Policy     string `help:"Document to test instead of the policy in force; needs no deployment." placeholder:"FILE" type:"existingfile"`
}

// Help is shown by --help.
func (*policyTestVerb) Help() string {
	return `A case says who tries what, and what is expected: "allowed", or the reason of the refusal.
  {"cases": [
    {"name": "nurses do not delete", "roles": ["nurse"], "do": "d", "type": "Observation", "relation": "treatment", "expect": "role-missing"},
    {"name": "officers approve", "roles": ["officer"], "capability": "policy:approve", "expect": "allowed"}
  ]}
Exit code 1 when one is not met. server/testdata/policy/cases.json is an example.
Example: chartkeep policy test cases.json --policy policy.json`
}

// Run tries the cases.
func (v *policyTestVerb) Run(ctx context.Context, t terminal) error {
	b, err := os.ReadFile(v.Cases)
	if err != nil {
		return err
	}
	var cases auth.Expectations
	if err := auth.ReadCommented(b, &cases); err != nil {
		return fmt.Errorf("%s: %w", v.Cases, err)
	}
	try := func(d auth.Document) error {
		outcomes, err := cases.Try(ctx, d)
		if err != nil {
			return fmt.Errorf("%s: %w", v.Cases, err)
		}
		failed := 0
		for i, o := range outcomes {
			if !o.Met {
				failed++
				fmt.Fprintf(t.out, "FAIL %s: expected %s, got %s\n", cases.Cases[i].Name, cases.Cases[i].Expect, o.Got)
			}
		}
		fmt.Fprintf(t.out, "%d cases, %d failed\n", len(outcomes), failed)
		if failed > 0 {
			return errors.New("the policy is not what you expect")
		}
		return nil
	}
	if v.Policy != "" {
		d, err := readPolicyFile(v.Policy)
		if err != nil {
			return err
		}
		return try(d)
	}
	return v.onPolicies(ctx, t, func(_ *rooms, policies *postgres.Policies) error {
		_, d, err := policies.Version(ctx, 0)
		if err != nil {
			return err
		}
		return try(d)
	})
}

// policyApplyVerb changes the policy.
type policyApplyVerb struct {
	deployment `embed:""`
	File       string `arg:"" optional:"" help:"Document, as policy show --json writes it." type:"existingfile"`
	Reason     string `help:"Why, e.g. a ticket number. It must not describe a patient." placeholder:"TEXT"`
	By         string `help:"Who asks or decides: the name of a person." placeholder:"NAME"`
	Approve    string `help:"Apply a proposal: its id. By another person than the one who asked." placeholder:"ID" xor:"what"`
	Withdraw   string `help:"Withdraw a proposal that waits: its id." placeholder:"ID" xor:"what"`
	DryRun     bool   `help:"Only say what would change." xor:"what"`
}

// Help is shown by --help.
func (*policyApplyVerb) Help() string {
	return `What lets nobody do more holds at once, on every instance. The rest is stored as a proposal, which a second person applies within a week. Every step is an
event of the trail.
Example: chartkeep policy apply policy.json --reason "ticket 4711" --by "Sam Root"
Example: chartkeep policy apply --approve 3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11 --by "Carmen Díaz"`
}

// Run applies, proposes, approves or withdraws.
func (v *policyApplyVerb) Run(ctx context.Context, t terminal) error {
	by, id := strings.TrimSpace(v.By), v.Approve+v.Withdraw
	switch {
	case v.File == "" && id == "":
		return usage("name a file, or give --approve or --withdraw")
	case v.File != "" && id != "":
		return usage("--approve and --withdraw stand for themselves")
	case by == "" && !v.DryRun:
		return usage("--by is missing: a change of the policy has somebody who asked for it")
	case v.File != "" && !v.DryRun && (strings.TrimSpace(v.Reason) == "" || len(v.Reason) > 500):
		return usage("--reason must be a text of at most 500 bytes")
	}
	if id != "" {
		if _, err := phi.ParseUUID(id); err != nil {
			return usage("%q is not the id of a proposal", id)
		}
		return v.decide(ctx, t, id, by)
	}
	d, err := readPolicyFile(v.File)
	if err != nil {
		return err
	}
	return v.onPolicies(ctx, t, func(r *rooms, policies *postgres.Policies) error {
		was, version, err := policies.Current(ctx)
		if err != nil {
			return err
		}
		if v.DryRun {
			changes, err := auth.Consequences(was, d, time.Now())
			explainChanges(t.out, changes)
			return err
		}
		p := &auth.Proposal{ID: newID().String(), Base: version, Document: d, Reason: strings.TrimSpace(v.Reason), RequestedBy: by}
		if err := r.change(ctx, by, policyEvent("policy-propose", audit.ActionCreate, p.ID), func() error { return policies.Propose(ctx, p, false) }); err != nil {
			return err
		}
		explainChanges(t.err, p.Changes)
		if p.State == auth.StateApplied {
			_, err = fmt.Fprintf(t.out, "applied: version %d\n", p.Version)
			return err
		}
		fmt.Fprintf(t.err, "It lets somebody do more. Another person applies it: chartkeep policy apply --approve %s --by NAME\n", p.ID)
		_, err = fmt.Fprintln(t.out, p.ID)
		return err
	})
}

func (v *policyApplyVerb) decide(ctx context.Context, t terminal, id, by string) error {
	return v.onPolicies(ctx, t, func(r *rooms, policies *postgres.Policies) error {
		if v.Withdraw != "" {
			if err := r.change(ctx, by, policyEvent("policy-withdraw", audit.ActionUpdate, id), func() error { return policies.WithdrawProposal(ctx, id, by) }); err != nil {
				return err
			}
			_, err := fmt.Fprintln(t.out, "withdrawn")
			return err
		}
		var p *auth.Proposal
		if err := r.change(ctx, by, policyEvent("policy-approve", audit.ActionUpdate, id), func() (err error) {
			p, err = policies.ApproveProposal(ctx, id, by)
			return err
		}); err != nil {
			return err
		}
		explainChanges(t.err, p.Changes)
		_, err := fmt.Fprintf(t.out, "applied: version %d\n", p.Version)
		return err
	})
}

func policyEvent(interaction string, action audit.Action, proposal string) audit.Event {
	return audit.Event{Type: audit.TypePolicy, Interaction: interaction, Action: action, Entities: []audit.Entity{{Type: "PolicyProposal", ID: proposal}}}
}

// policyAssignVerb gives and ends roles: it is how the first administrator comes to be, and the way back when nobody is left.
type policyAssignVerb struct {
	deployment `embed:""`
	Subject    string    `arg:"" optional:"" help:"Subject of the tokens of whom it is for, after the name of the issuer and | when it has one."`
	Role       string    `arg:"" optional:"" help:"Name of the role."`
	From       time.Time `help:"First moment; now when empty." format:"2006-01-02T15:04:05Z07:00" placeholder:"TIME"`
	Until      time.Time `help:"First moment at which it is over; never when empty." format:"2006-01-02T15:04:05Z07:00" placeholder:"TIME"`
	Reason     string    `help:"Why, e.g. a ticket number. It must not describe a patient." placeholder:"TEXT"`
	By         string    `help:"Who asks or decides: the name of a person." placeholder:"NAME"`
	Approve    string    `help:"Put an assignment into force: its id. By another person than the one who asked." placeholder:"ID" xor:"what"`
	End        string    `help:"End an assignment, or withdraw one that waits: its id." placeholder:"ID" xor:"what"`
	List       bool      `help:"List assignments, newest first." xor:"what"`
}

// Help is shown by --help.
func (*policyAssignVerb) Help() string {
	return `A role that conflicts with one that the person holds is refused. Roles that are marked so take a second person.
Example: chartkeep policy assign s-4711 clinician --reason "hired" --by "Sam Root"
Example: chartkeep policy assign --end 3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11 --reason "left" --by "Sam Root"`
}

// Run assigns, approves, ends or lists.
func (v *policyAssignVerb) Run(ctx context.Context, t terminal) error {
	by, reason, id := strings.TrimSpace(v.By), strings.TrimSpace(v.Reason), v.Approve+v.End
	switch {
	case v.Subject != "" && (id != "" || v.List):
		return usage("--approve, --end and --list stand for themselves")
	case !v.List && id == "" && v.Role == "":
		return usage("name a subject and a role, or give --approve, --end or --list")
	case v.Subject != "" && !auth.ValidSubject(v.Subject):
		return usage("it is the subject of tokens, printable and of at most 400 bytes")
	case !v.List && by == "":
		return usage("--by is missing: roles are given and ended by somebody, by name")
	case !v.List && v.Approve == "" && (reason == "" || len(reason) > 500):
		return usage("--reason must be a text of at most 500 bytes")
	case !v.Until.IsZero() && (!v.Until.After(v.From) || !v.Until.After(time.Now())):
		return usage("--until is after --from, and still to come")
	}
	if id != "" {
		if _, err := phi.ParseUUID(id); err != nil {
			return usage("%q is not the id of an assignment", id)
		}
	}
	return v.onPolicies(ctx, t, func(r *rooms, policies *postgres.Policies) (err error) {
		if v.List {
			return listAssignments(ctx, t.out, policies)
		}
		a := &auth.AssignmentRecord{ID: id}
		interaction, action := "assignment-approve", audit.ActionUpdate
		do := func() (err error) { a, err = policies.ApproveAssignment(ctx, id, by); return err }
		switch {
		case v.End != "":
			interaction, action = "assignment-end", audit.ActionDelete
			do = func() (err error) { a, err = policies.EndAssignment(ctx, id, by, reason); return err }
		case id == "":
			from := v.From
			if from.IsZero() {
				from = time.Now()
			}
			a = &auth.AssignmentRecord{
				ID: newID().String(), Assignment: auth.Assignment{Subject: v.Subject, Role: v.Role, From: from.UTC(), Until: v.Until.UTC()}, Reason: reason, RequestedBy: by,
			}
			interaction, action = "assignment-create", audit.ActionCreate
			do = func() error { return policies.Assign(ctx, a) }
		}
		e := audit.Event{Type: audit.TypePolicy, Interaction: interaction, Action: action, Entities: []audit.Entity{{Type: "RoleAssignment", ID: a.ID}}}
		if err := r.change(ctx, by, e, do); err != nil {
			return err
		}
		if a.State == auth.StateRequested {
			fmt.Fprintf(t.err, "The role takes a second person: chartkeep policy assign --approve %s --by NAME\n", a.ID)
		}
		_, err = fmt.Fprintln(t.out, a.ID, a.State)
		return err
	})
}

func listAssignments(ctx context.Context, out io.Writer, policies *postgres.Policies) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSUBJECT\tROLE\tFROM\tUNTIL\tSTATE\tBY\tWHY")
	for after := ""; ; {
		list, err := policies.Assignments(ctx, auth.AssignmentFilter{After: after, Limit: 500})
		if err != nil {
			return err
		}
		for _, a := range list {
			until, by := "", a.RequestedBy
			if !a.Until.IsZero() {
				until = a.Until.Format(time.DateTime)
			}
			if a.DecidedBy != "" {
				by += ", " + a.DecidedBy
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.ID, a.Subject, a.Role, a.From.Format(time.DateTime), until, a.State, by, a.Reason)
			after = a.ID
		}
		if len(list) < 500 {
			return w.Flush()
		}
	}
}

// policyAlarm tells officers of a fault of the policy, or of one that it brings to light.
func (r *rooms) policyAlarm(a auth.Alarm) {
	if a.Refused != nil {
		r.alerts.raise(compliance.AlertPolicyRefused, compliance.Critical, fmt.Sprintf("policy %d", a.Policy), "the newest policy does not compile: the one before it stays in force")
		return
	}
	r.alerts.raise(compliance.AlertConflictingRoles, compliance.High, a.Principal.Subject, "somebody bears two roles that conflict, and has neither")
}

// onPolicies runs a verb's work on the policy of a deployment, with nothing open but the database and the trail: it must work where the policy
// in the database does not compile, and no server starts.
func (d *deployment) onPolicies(ctx context.Context, t terminal, work func(*rooms, *postgres.Policies) error) (err error) {
	s, err := d.resolve(false)
	if err != nil {
		return err
	}
	sink := newLog(t.err)
	defer sink.close()
	r := &rooms{logger: sink.Logger}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	if r.db, err = postgres.Open(ctx, postgres.Config{DSN: s.databaseDSN, Logger: r.logger}); err != nil {
		return fmt.Errorf("opening database: %w", err)
	}
	if r.log, err = audit.Open(audit.Config{Dir: s.journal, Storage: r.db.Audit(), Keep: s.keep, Logger: r.logger}); err != nil {
		return fmt.Errorf("opening audit journal: %w", err)
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	r.stopRuns = stop
	r.start(background, "audit shipper", r.log.Run)
	return work(r, r.db.Policies(checkPolicy))
}
