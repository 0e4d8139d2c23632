package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// keysShredVerb erases a patient for good: one person asks, another executes.
type keysShredVerb struct {
	deployment `embed:""`
	Patient    string `arg:"" optional:"" help:"Logical id of the patient to ask for."`
	Reason     string `help:"Why, e.g. a case number. It must not describe the patient." placeholder:"TEXT"`
	Approve    string `help:"Execute a request: its id. By another person than the one who asked." placeholder:"ID" xor:"what"`
	Withdraw   string `help:"Withdraw a request that waits: its id." placeholder:"ID" xor:"what"`
	List       bool   `help:"List requests, newest first." xor:"what"`
	By         string `help:"Who asks or decides: the name of a person." placeholder:"NAME"`
}

// Help is shown by --help.
func (*keysShredVerb) Help() string {
	return `Erasure destroys the patient's data keys: from then on nothing of the records opens, on any instance, and there is no way back. The first call makes a
request and says what would go; a second person executes it. Patients who were merged are one person and go together. A legal hold refuses it. Every step is
an event of the trail. A certificate says what was destroyed and what remains: chartkeep keys certificate ID.
Example: chartkeep keys shred 9927a129-abed-4903-96d0-078c4a605356 --reason "request 2026-17" --by "Ines Diaz"
Example: chartkeep keys shred --approve 3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11 --by "Sam Amari"`
}

// Run asks, executes, withdraws or lists.
func (v *keysShredVerb) Run(ctx context.Context, t terminal) error {
	by := strings.TrimSpace(v.By)
	others := v.Approve != "" || v.Withdraw != "" || v.List
	switch {
	case v.Patient == "" && !others:
		return usage("name a patient, or give --approve, --withdraw or --list")
	case v.Patient != "" && others:
		return usage("a patient goes with --reason; --approve, --withdraw and --list stand for themselves")
	case v.Patient != "" && !fhir.ValidID(v.Patient):
		return usage("%q is not the logical id of a patient", v.Patient)
	case v.Patient != "" && (strings.TrimSpace(v.Reason) == "" || len(v.Reason) > 1000):
		return usage("--reason must be a text of at most 1000 bytes")
	case !v.List && by == "":
		return usage("--by is missing: an erasure takes two persons, by name")
	}
	var id phi.UUID
	if text := v.Approve + v.Withdraw; text != "" {
		var err error
		if id, err = phi.ParseUUID(text); err != nil {
			return usage("%q is not the id of a request", text)
		}
	}
	return v.onRooms(ctx, t, func(r *rooms, _ *settings) error {
		erasures, who := r.erasures, operating(operator(by))
		switch {
		case v.List:
			return listErasures(ctx, t, erasures, who)
		case v.Withdraw != "":
			if err := erasures.Withdraw(ctx, who, id); err != nil {
				return plainly(err)
			}
			_, err := fmt.Fprintln(t.out, "withdrawn")
			return err
		case v.Approve != "":
			c, err := erasures.Approve(ctx, who, id)
			if err != nil {
				return plainly(err)
			}
			_, err = fmt.Fprintf(t.out, "erased: %d keys destroyed; %d records and %d versions of them are noise from now on\ncertificate: chartkeep keys certificate %s\n",
				len(c.Keys), c.Records, c.Versions, c.Erasure)
			return err
		}
		e, scope, err := erasures.Request(ctx, who, v.Patient, v.Reason)
		if err != nil {
			return plainly(err)
		}
		if _, err := fmt.Fprintln(t.out, e.ID); err != nil {
			return err
		}
		return explainScope(t.err, e, scope)
	})
}

// explainScope says what an erasure would destroy, and what not.
func explainScope(w io.Writer, e *phi.Erasure, scope *phi.ErasureScope) error {
	segments := map[uint16]bool{}
	for _, k := range scope.Keys {
		segments[k.Segment] = true
	}
	together := ""
	if len(scope.Patients) > 1 {
		together = "\n  the same person, merged: " + strings.Join(scope.Patients[1:], ", ")
	}
	_, err := fmt.Fprintf(w, `Requested. Another person executes it: chartkeep keys shred --approve %s --by NAME
What goes:
  %d data keys of %d segments, and with them %d records and %d earlier versions%s
  %d index tokens, %d treatment relationships
What stays:
  the events of the audit trail, which name the patient by id
  %d records of other patients that mention this one
  older backups of the keys, until the keys are wrapped anew (chartkeep keys rewrap) and the old root is deleted in its KMS
`, e.ID, len(scope.Keys), len(segments), scope.Records, scope.Versions, together, scope.Tokens, scope.Relationships, scope.Mentions)
	return err
}

func listErasures(ctx context.Context, t terminal, erasures *phi.Erasures, who phi.Officer) error {
	list, err := erasures.List(ctx, who)
	if err != nil {
		return plainly(err)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tPATIENT\tREQUESTED\tBY\tSTATE\tREASON")
	for _, e := range list {
		state := "waits for a second person"
		if e.DecidedBy != "" {
			state = fmt.Sprintf("%s %s by %s", e.State, e.DecidedAt.Format(time.DateOnly), e.DecidedBy)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, e.Patient, e.RequestedAt.Format(time.DateOnly), e.RequestedBy, state, e.Reason)
	}
	return w.Flush()
}

// keysCertificateVerb shows and verifies an erasure's certificate.
type keysCertificateVerb struct {
	deployment `embed:""`
	ID         string `arg:"" help:"Id of the erasure."`
	Out        string `help:"Write the signed certificate to a file, for whoever asked for the erasure." placeholder:"FILE" type:"path"`
	By         string `help:"Who looks at it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*keysCertificateVerb) Help() string {
	return `The certificate is a signed note (https://c2sp.org/signed-note): a header, one line of JSON, and the deployment's signature with its checkpoint key, which is
verified before anything is printed.
Example: chartkeep keys certificate 3f0e6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11 --out certificate.txt`
}

// Run shows it.
func (v *keysCertificateVerb) Run(ctx context.Context, t terminal) error {
	id, err := phi.ParseUUID(v.ID)
	if err != nil {
		return usage("%q is not the id of an erasure", v.ID)
	}
	return v.onRooms(ctx, t, func(r *rooms, s *settings) error {
		e, err := r.erasures.Get(ctx, operating(operator(v.By)), id)
		if err != nil {
			return plainly(err)
		}
		if e.State != phi.ErasureExecuted {
			return fmt.Errorf("erasure %s is %s: there is no certificate", id, e.State)
		}
		text, by, err := openCertificate(e.Certificate, s.keys)
		if err != nil {
			return err
		}
		c, err := phi.ReadCertificate([]byte(text))
		if err != nil {
			return err
		}
		if c.Erasure != id.String() {
			return errors.New("the certificate is another erasure's")
		}
		fmt.Fprintln(t.err, by)
		if v.Out != "" {
			f, err := os.OpenFile(v.Out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return fmt.Errorf("writing certificate: %w", err)
			}
			_, err = f.Write(e.Certificate)
			return errors.Join(err, f.Close())
		}
		b, err := json.MarshalIndent(c, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.out, "%s\n", b)
		return err
	})
}

// openCertificate returns a certificate's text and says who signed it. A signature that is there and does not verify with the
// deployment's keys is an error; where the deployment has no key, none can be verified.
func openCertificate(msg []byte, keys []audit.LogKey) (text, by string, err error) {
	if !bytes.Contains(msg, []byte("\n\n— ")) {
		return string(msg), "not signed: the deployment had no key when it erased", nil
	}
	var known []note.Verifier
	for _, k := range keys {
		v, err := note.NewVerifier(k.Verifier)
		if err != nil {
			return "", "", fmt.Errorf("reading verifier key: %w", err)
		}
		known = append(known, v)
	}
	n, err := note.Open(msg, note.VerifierList(known...))
	if err != nil {
		return "", "", fmt.Errorf("the certificate's signature does not verify: %w", err)
	}
	return n.Text, "signed by " + n.Sigs[0].Name, nil
}

// newErasures opens the door to erasures. What the deployment's key signs, it signs for.
func newErasures(r *rooms, s *settings) *phi.Erasures {
	cfg := phi.ErasureConfig{Records: r.records, Storage: r.db.Erasures()}
	if len(s.keys) > 0 {
		cfg.Sign = func(text string) ([]byte, error) {
			var signers []note.Signer
			for _, k := range s.keys {
				signers = append(signers, k.Signer)
			}
			return note.Sign(&note.Note{Text: text}, signers...)
		}
	}
	return phi.NewErasures(cfg)
}

// operating is the person at the command line, as the person says, with the account of the machine beside it.
func operating(by string) phi.Officer {
	return phi.Officer{
		Agent:    audit.Agent{User: by, Name: "account " + operator(""), Client: "chartkeep"},
		Decision: audit.Decision{Allowed: true, Rule: "operator"},
	}
}

// plainly is an error of phi as an operator reads it: what is the matter, and why, without the kind's number.
func plainly(err error) error {
	e, ok := errors.AsType[*phi.Error](err)
	if !ok || len(e.Issues) == 0 {
		return err
	}
	if e.Err != nil {
		return fmt.Errorf("%s: %w", e.Issues[0].Diagnostics, e.Err)
	}
	return errors.New(e.Issues[0].Diagnostics)
}
