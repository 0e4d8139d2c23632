package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/balp"
)

// auditExportVerb writes a bundle.
type auditExportVerb struct {
	deployment `embed:""`
	Out        string    `help:"Folder to make, or a .zip; must not be there yet." placeholder:"PATH" required:"" type:"path"`
	From       time.Time `help:"First day that is exported." format:"2006-01-02" placeholder:"YYYY-MM-DD"`
	To         time.Time `help:"Last day that is exported." format:"2006-01-02" placeholder:"YYYY-MM-DD"`
	Patient    string    `help:"Only events that concern this patient (logical id)." placeholder:"ID"`
	User       string    `help:"Only events of this user." placeholder:"USER"`
	Event      string    `help:"Only this event." placeholder:"ID"`
	FHIR       bool      `name:"fhir" help:"Add the events as FHIR AuditEvents (IHE BALP), for reading."`
	By         string    `help:"Who exports; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*auditExportVerb) Help() string {
	return `Writes what is in the log's tree, with all that an outsider needs to verify it: chartkeep audit verify --key KEY PATH. An export is an event of the
trail, durable in the database before the first byte is written. Days are UTC. The log's signing key signs the manifest. Without it the rows are proven
all the same, but not that none was left out: an export of a part that was made without it does not pass chartkeep audit verify --key.
Example: chartkeep audit export --data .chartkeep --out trail.zip
Example: chartkeep audit export --patient 9927a129-abed-4903-96d0-078c4a605356 --from 2026-01-01 --to 2026-12-31 --fhir --out patient.zip`
}

// Run exports.
func (v *auditExportVerb) Run(ctx context.Context, t terminal) error {
	o := audit.ExportOptions{From: v.From, Progress: newCounter(t.err, "events").show}
	var words []string
	e := audit.Event{Type: audit.TypeExport, Interaction: "export", Action: audit.ActionRead, Patient: v.Patient, Entities: []audit.Entity{{Type: "AuditEvent"}}}
	q := audit.Query{Limit: audit.MaxPage, Forward: true, From: v.From}
	add := func(word string, term audit.Term) {
		words = append(words, word)
		q.Terms = append(q.Terms, term)
	}
	if v.Event != "" {
		id, err := audit.ParseID(v.Event)
		if err != nil {
			return usage("--event is an event's id, a UUID")
		}
		e.Entities[0].ID = id.String()
		add("event "+id.String(), audit.Is(audit.FieldID, id.String()))
	}
	if v.Patient != "" {
		add("patient "+v.Patient, audit.Is(audit.FieldPatient, v.Patient))
	}
	if v.User != "" {
		add("user "+v.User, audit.Is(audit.FieldAgent, v.User))
	}
	if !v.From.IsZero() {
		words = append(words, "from "+v.From.Format(time.DateOnly))
	}
	if !v.To.IsZero() {
		if v.To.Before(v.From) {
			return usage("--to must not be before --from")
		}
		words = append(words, "to "+v.To.Format(time.DateOnly))
		o.To = v.To.AddDate(0, 0, 1) // a last day is a whole one
		q.To = o.To
	}
	if err := q.Validate(); err != nil {
		return usage("%v", err)
	}
	o.Filter = strings.Join(words, ", ")
	e.Detail = []byte(o.Filter)
	if _, err := os.Lstat(v.Out); !errors.Is(err, fs.ErrNotExist) {
		return usage("--out %s is there already", v.Out)
	}
	return v.onRooms(ctx, t, func(r *rooms, s *settings) error {
		for _, k := range s.keys {
			o.Signers = append(o.Signers, k.Signer)
		}
		if len(q.Terms) > 0 {
			o.Select, o.From, o.To = places(ctx, r.db.Trail(), q), time.Time{}, time.Time{} // the query has the days
		}
		if v.FHIR {
			source := balp.Source{Base: "urn:chartkeep"}
			o.FHIR = func(dst []byte, s *audit.Stored) []byte { return balp.Append(dst, s, source) }
		}
		var m *audit.Manifest
		err := r.change(ctx, operator(v.By), e, func() (err error) {
			w, err := audit.CreateBundle(v.Out)
			if err != nil {
				return err
			}
			m, err = audit.Export(ctx, r.db.Tree(), w, o)
			return err
		})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.out, "%s: %d events of a tree of %d; verify it with: chartkeep audit verify --key KEY %s\n", v.Out, m.Rows, m.Checkpoint.Size, v.Out)
		return err
	})
}

// places yields where the events of a query are stored.
func places(ctx context.Context, reader audit.Reader, q audit.Query) iter.Seq2[audit.Place, error] {
	return func(yield func(audit.Place, error) bool) {
		for {
			found, err := reader.Find(ctx, q)
			if err != nil {
				yield(audit.Place{}, err)
				return
			}
			for i := range found.Events {
				s := &found.Events[i]
				if !yield(audit.Place{Stream: s.Stream, Seq: s.Seq, PartTime: s.PartTime}, nil) {
					return
				}
			}
			if q.After = found.Next; q.After == (audit.Position{}) {
				return
			}
		}
	}
}

// auditProofVerb proves one event.
type auditProofVerb struct {
	deployment `embed:""`
	Event      string `arg:"" help:"Id of the event, a UUID."`
	Out        string `help:"File to write; standard output when empty." placeholder:"FILE" type:"path"`
	Redact     bool   `help:"Leave the event out: the proof shows that its leaf is in the tree, and nothing of it."`
	By         string `help:"Who asks; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*auditProofVerb) Help() string {
	return `Writes a C2SP tlog-proof (https://c2sp.org/tlog-proof): the path from the event's leaf to a signed checkpoint, and the event itself. Asking is an
event of the trail. Whoever has the log's key verifies it offline: chartkeep audit verify --key KEY FILE.
Example: chartkeep audit proof 019ab0a5-0000-7000-8000-000000000000 --out event.tlog-proof`
}

// Run proves.
func (v *auditProofVerb) Run(ctx context.Context, t terminal) error {
	id, err := audit.ParseID(v.Event)
	if err != nil {
		return usage("%q is no event's id, a UUID", v.Event)
	}
	return v.onRooms(ctx, t, func(r *rooms, _ *settings) error {
		e := audit.Event{
			Type: audit.TypeAuditLogUsed, Interaction: "proof", Action: audit.ActionRead, Entities: []audit.Entity{{Type: "AuditEvent", ID: id.String()}},
			Agent: audit.Agent{User: operator(v.By), Client: "chartkeep"}, Decision: audit.Decision{Allowed: true},
		}
		if _, err := r.log.Record(ctx, audit.Database, &e); err != nil {
			return err
		}
		found, err := r.db.Trail().Find(ctx, audit.Query{Terms: []audit.Term{audit.Is(audit.FieldID, id.String())}, Limit: 1})
		if err != nil {
			return err
		}
		if len(found.Events) == 0 {
			return fmt.Errorf("there is no event %s", id)
		}
		s := &found.Events[0]
		p, err := audit.Prove(ctx, r.db.Tree(), s.Stream, &s.Row)
		if errors.Is(err, audit.ErrNotSequenced) {
			return fmt.Errorf("event %s is not in the tree yet; try again in a few seconds", id)
		}
		if err != nil {
			return err
		}
		if v.Redact {
			p = p.Redacted()
		}
		if v.Out == "" {
			_, err = t.out.Write(p.Text())
			return err
		}
		return writeFile(v.Out, p.Text())
	})
}
