package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
)

// auditVerb groups what works on the audit trail.
type auditVerb struct {
	Verify    auditVerifyVerb    `cmd:"" help:"Verify the live trail, an export or a proof."`
	Export    auditExportVerb    `cmd:"" help:"Write the trail, or a part of it, as files that prove themselves."`
	Proof     auditProofVerb     `cmd:"" help:"Prove that an event is in the log's tree."`
	Witness   auditWitnessVerb   `cmd:"" help:"Be a witness: cosign checkpoints of logs, and refuse forks and rollbacks."`
	Keygen    auditKeygenVerb    `cmd:"" help:"Make a signing key for a log's checkpoints, or for a witness."`
	Hold      auditHoldVerb      `cmd:"" help:"Keep events past their time: legal holds by patient or period."`
	Retention auditRetentionVerb `cmd:"" help:"Archive and drop months of the trail that are older than the policy."`
	Rebuild   auditRebuildVerb   `cmd:"" help:"Count the rollups anew, from which facets, histograms and latencies are answered."`
}

// auditKeygenVerb makes keys.
type auditKeygenVerb struct {
	Origin  string `help:"Identity of the log, a URL without a scheme; the key's name." placeholder:"NAME" xor:"whose" required:""`
	Witness string `help:"Name of a witness, a URL without a scheme: makes a witness's key." placeholder:"NAME" xor:"whose" required:""`
	Out     string `help:"File for the secret key, made readable for its owner only; FILE.pub gets the verifier key." placeholder:"FILE" required:"" type:"path"`
}

// Help is shown by --help.
func (*auditKeygenVerb) Help() string {
	return `The verifier key, which is printed and written to FILE.pub, is what auditors and witnesses need. A log's key and its witnesses' belong to
different people on different machines.
Example: chartkeep audit keygen --origin hospital.example/audit --out /etc/chartkeep/checkpoint`
}

// Run makes the key, never over one that is there.
func (v *auditKeygenVerb) Run(t terminal) error {
	skey, vkey, err := audit.GenerateWitnessKey(rand.Reader, v.Witness)
	if v.Origin != "" {
		if strings.ContainsAny(v.Origin, "+ \t\r\n") {
			return usage("--origin must contain neither space nor plus")
		}
		skey, vkey, err = note.GenerateKey(rand.Reader, v.Origin)
	}
	if err != nil {
		return usage("--witness must contain neither space nor plus")
	}
	for _, file := range []string{v.Out, v.Out + ".pub"} {
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already; a key is never written over", file)
		}
	}
	if err := writeFile(v.Out, []byte(skey+"\n")); err != nil {
		return err
	}
	if err := writeFile(v.Out+".pub", []byte(vkey+"\n")); err != nil {
		return err
	}
	_, err = fmt.Fprintln(t.out, vkey)
	return err
}

// listed returns the entries of a file, one a line (# begins a comment), or the value itself where there is no such file: the error says why.
func listed(value string) (list []string, err error) {
	b, err := os.ReadFile(value)
	if err != nil {
		return []string{strings.TrimSpace(value)}, err
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	return list, nil
}

// publicKeys reads verifier keys: each value is one, or a file of them.
func publicKeys(flag string, values []string) (keys []string, err error) {
	for _, value := range values {
		list, err := listed(value)
		switch {
		case err != nil && strings.Count(value, "+") < 2:
			return nil, usage("%s %s is neither a verifier key nor a file: %v", flag, value, err)
		case len(list) == 0:
			return nil, usage("%s %s holds no key", flag, value)
		case slices.ContainsFunc(list, func(key string) bool { return strings.HasPrefix(key, "PRIVATE+KEY+") }):
			return nil, usage("%s was given a secret key; name the verifier key (its .pub)", flag) // and the key is not repeated
		}
		keys = append(keys, list...)
	}
	return keys, nil
}

// operator is who runs a verb: who the command line says, or the user of this machine.
func operator(name string) string {
	if name = strings.TrimSpace(name); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return cmp.Or(u.Username, "uid "+u.Uid)
	}
	return "unknown"
}

// change carries out an operator's change between an event of the intent and one of the outcome, both in the database before it goes on.
func (r *rooms) change(ctx context.Context, by string, e audit.Event, do func() error) error {
	e.Agent = audit.Agent{User: by, Client: "chartkeep"}
	e.Decision.Allowed = true
	e.Outcome = audit.Intent
	intent := e
	receipt, err := r.log.Record(ctx, audit.Database, &intent)
	if err != nil {
		return fmt.Errorf("recording what is about to be done: %w", err)
	}
	failed := do()
	e.Correlation, e.Outcome = receipt.Events()[0].ID, audit.Success
	if failed != nil {
		e.Outcome = audit.SeriousFailure
	}
	if _, err := r.log.Record(context.WithoutCancel(ctx), audit.Database, &e); err != nil {
		return errors.Join(failed, fmt.Errorf("recording what was done: %w", err))
	}
	return failed
}
