package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
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

// publicKeys reads verifier keys: each value is one, or a file with one a line (# begins a comment).
func publicKeys(flag string, values []string) ([]string, error) {
	var keys []string
	for _, value := range values {
		lines := []string{value}
		if b, err := os.ReadFile(value); err == nil {
			lines = strings.Split(string(b), "\n")
		} else if strings.Count(value, "+") < 2 {
			return nil, usage("%s %s is neither a verifier key nor a file: %v", flag, value, err)
		}
		before := len(keys)
		for _, line := range lines {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				if strings.HasPrefix(line, "PRIVATE+KEY+") {
					return nil, usage("%s %s is a secret key; name the verifier key (its .pub)", flag, value)
				}
				keys = append(keys, line)
			}
		}
		if len(keys) == before {
			return nil, usage("%s %s holds no key", flag, value)
		}
	}
	return keys, nil
}
