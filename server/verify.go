package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/term"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// errFindings ends a verification that found something wrong: exit code 1.
var errFindings = errors.New("verification failed")

// auditVerifyVerb verifies the live trail, or files.
type auditVerifyVerb struct {
	deployment `embed:""`
	Path       string   `arg:"" optional:"" help:"An export (folder or .zip) or a .tlog-proof: verified with no network, no database and no configuration. The live trail when missing." type:"path"`
	Key        []string `help:"Verifier key of the log that you trust, or a file with one a line. Of a demo its own by default." placeholder:"VKEY|FILE" sep:"none"`
	WitnessKey []string `help:"Verifier key of a witness that you trust, or a file." placeholder:"VKEY|FILE" sep:"none"`
	Quorum     int      `help:"How many of these witnesses must have cosigned." placeholder:"N"`
	Checkpoint []string `help:"A signed checkpoint from outside, e.g. what a witness returns or an anchor keeps: the trail must continue it." placeholder:"FILE" type:"path"`
	State      string   `help:"File that keeps what was established, so that the next run looks at what is new, and notices a tree that shrank or forked since." placeholder:"FILE" type:"path"`
	Full       bool     `help:"With --state: look at everything again."`
	Sample     float64  `help:"Read only this share of the batches, e.g. 0.01; the others by their hashes." placeholder:"SHARE"`
	JSON       bool     `name:"json" help:"Print the report as JSON."`
}

// Help is shown by --help.
func (*auditVerifyVerb) Help() string {
	return `Exit code 0: nothing is wrong. 1: findings, each with its place, or it could not be verified. 2: bad usage. Without --key an export is
held against the keys that came with it, and the output says so: that shows that it is consistent, not who made it.
With --witness, the witness is asked what it cosigned last, and with --anchor DIR the checkpoints there are read: the trail must
continue them all.
Example: chartkeep audit verify --data .chartkeep --state verified.json
Example: chartkeep audit verify --key hospital.pub --checkpoint witness.checkpoint export.zip
Example: chartkeep audit verify --key hospital.pub event.tlog-proof`
}

// Run verifies.
func (v *auditVerifyVerb) Run(ctx context.Context, t terminal) error {
	o := audit.VerifyOptions{Quorum: v.Quorum, Sample: v.Sample, Progress: newCounter(t.err, "events").show}
	var err error
	if o.Keys, err = publicKeys("--key", v.Key); err != nil {
		return err
	}
	if o.WitnessKeys, err = publicKeys("--witness-key", v.WitnessKey); err != nil {
		return err
	}
	for _, file := range v.Checkpoint {
		b, err := os.ReadFile(file)
		if err != nil {
			return usage("--checkpoint: %v", err)
		}
		o.Anchors = append(o.Anchors, b)
	}
	switch {
	case v.Sample < 0 || v.Sample >= 1:
		return usage("--sample is a share between 0 and 1")
	case v.Path != "" && (v.State != "" || v.Full || v.Sample > 0 || len(v.Witness) > 0 || v.Data != "" || v.DatabaseURL != ""):
		return usage("files are verified whole, and without a deployment")
	case v.Full && v.State == "":
		return usage("--full goes with --state")
	}
	proof, err := isProof(v.Path)
	if err != nil {
		return err
	}
	var report *audit.Report
	switch {
	case proof:
		return v.proof(o, t)
	case v.Path != "":
		report, err = v.bundle(ctx, o)
	default:
		report, err = v.live(ctx, o, t)
	}
	if errors.Is(err, audit.ErrOptions) {
		return usage("%v", err)
	}
	if err != nil {
		return err
	}
	return v.print(report, t)
}

// isProof reports whether the path is a file that begins as a tlog-proof does.
func isProof(path string) (_ bool, err error) {
	if path == "" {
		return false, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return false, usage("%v", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || info.IsDir() {
		return false, err
	}
	var b [12]byte
	n, err := io.ReadFull(f, b[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return false, err
	}
	return bytes.HasPrefix(b[:n], []byte("c2sp.org/")), nil
}

func (v *auditVerifyVerb) bundle(ctx context.Context, o audit.VerifyOptions) (_ *audit.Report, err error) {
	b, closer, err := audit.OpenBundlePath(v.Path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	return b.Verify(ctx, o)
}

func (v *auditVerifyVerb) live(ctx context.Context, o audit.VerifyOptions, t terminal) (_ *audit.Report, err error) {
	dsn, err := v.readerDSN()
	if err != nil {
		return nil, err
	}
	if err := v.ownKeys(&o); err != nil {
		return nil, err
	}
	if err := v.askWitnesses(ctx, &o); err != nil {
		return nil, err
	}
	var known *audit.Verified
	if v.State != "" {
		if known, err = readVerified(v.State); err != nil {
			return nil, err
		}
	}
	if known != nil && v.Full {
		o.Known = append(o.Known, known.Checkpoint)
	} else {
		o.From = known
	}
	if err := v.readAnchors(&o, t); err != nil {
		return nil, err
	}
	sink := newLog(t.err)
	defer sink.close()
	db, err := postgres.Open(ctx, postgres.Config{DSN: dsn, Logger: sink.Logger})
	if err != nil {
		return nil, fmt.Errorf("opening database: %w", err)
	}
	defer db.Close()
	o.Now = time.Now()
	report, err := audit.Verify(ctx, db.Tree(), o)
	if err != nil {
		return nil, err
	}
	if v.State != "" && report.Verified != nil {
		b, err := json.Marshal(report.Verified)
		if err != nil {
			return nil, err
		}
		if err := writeFile(v.State, append(b, '\n')); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// ownKeys fills in the deployment's keys where the caller named none.
func (v *auditVerifyVerb) ownKeys(o *audit.VerifyOptions) (err error) {
	if len(o.Keys) > 0 {
		return nil
	}
	for _, file := range v.CheckpointKey {
		key, err := readCheckpointKey(file)
		if err != nil {
			return err
		}
		o.Keys = append(o.Keys, key.Verifier)
	}
	if len(o.Keys) == 0 && v.Data != "" {
		o.Keys, err = publicKeys("--key", []string{filepath.Join(v.Data, demoCheckpoint+".pub")})
	}
	return err
}

// readAnchors takes the checkpoints that the deployment's anchors keep as known from outside, before the trail's newest one is read.
// Those below an earlier verification were held against it then. Anchors of the time of a retired key need that key.
func (v *auditVerifyVerb) readAnchors(o *audit.VerifyOptions, t terminal) error {
	anchors := v.Anchor
	if v.Data != "" && v.DatabaseURL == "" {
		anchors = append(slices.Clone(anchors), filepath.Join(v.Data, demoAnchors))
	}
	var keys []note.Verifier
	for _, k := range o.Keys {
		key, err := note.NewVerifier(k)
		if err != nil {
			return usage("--key: %q is no log's verifier key", k)
		}
		keys = append(keys, key)
	}
	size, foreign := int64(0), 0
	if o.From != nil {
		size = o.From.Size
	}
	for _, value := range anchors {
		if strings.HasPrefix(value, "s3://") {
			fmt.Fprintf(t.err, "%s is not read: fetch its newest checkpoint and name it with --checkpoint\n", value)
			continue
		}
		notes, err := audit.AnchorDir(value).Since(size)
		if err != nil {
			return err
		}
		for _, msg := range notes {
			if _, _, err := audit.OpenCheckpoint(msg, note.VerifierList(keys...)); err != nil {
				foreign++
				continue
			}
			o.Anchors = append(o.Anchors, msg)
		}
	}
	if foreign > 0 {
		fmt.Fprintf(t.err, "%d anchored checkpoints are not signed by a key that was given: name retired keys, too, with --key\n", foreign)
	}
	return nil
}

// askWitnesses takes the checkpoints that the deployment's witnesses cosigned last as known from outside. It is done before the
// trail's newest one is read, which then must not be older.
func (v *auditVerifyVerb) askWitnesses(ctx context.Context, o *audit.VerifyOptions) error {
	for _, value := range v.Witness {
		witnesses, err := witnessAddresses(value)
		if err != nil {
			return err
		}
		for _, w := range witnesses {
			if !slices.Contains(o.WitnessKeys, w.Verifier) {
				o.WitnessKeys = append(o.WitnessKeys, w.Verifier)
			}
			if len(o.Keys) == 0 {
				return usage("--witness: give --key, too: the witness is asked for its log")
			}
			origin, _, _ := strings.Cut(o.Keys[0], "+")
			msg, err := lastCosigned(ctx, w.URL, origin)
			if err != nil {
				return fmt.Errorf("asking witness %s: %w", w.URL, err)
			}
			if msg != nil {
				o.Anchors = append(o.Anchors, msg)
			}
		}
	}
	return nil
}

// lastCosigned asks a witness, see audit.Witness; nil when it has cosigned nothing of the log yet.
func lastCosigned(ctx context.Context, base, origin string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/checkpoint?origin="+url.QueryEscape(origin), nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode == http.StatusNotFound:
		return nil, nil
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("status %d", res.StatusCode)
	}
	return body, nil
}

// readerDSN is where the database is; keys and journal of the deployment are not needed to read its trail.
func (d *deployment) readerDSN() (string, error) {
	if d.DatabaseURL != "" {
		return withPassword(d.DatabaseURL, d.DatabasePasswordFile)
	}
	s, err := d.resolve(false)
	if err != nil {
		return "", err
	}
	return s.databaseDSN, nil
}

// readVerified reads the state of an earlier verification; nil when there is none yet.
func readVerified(file string) (*audit.Verified, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var known audit.Verified
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&known); err != nil {
		return nil, fmt.Errorf("reading %s: it is no state of a verification: %w", file, err)
	}
	return &known, nil
}

// maxShown is how many findings, streams or intents are printed; --json has all.
const maxShown = 20

// print says what was found, worst first.
func (v *auditVerifyVerb) print(r *audit.Report, t terminal) error {
	if v.JSON {
		b, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return err
		}
		if _, err := t.out.Write(append(b, '\n')); err != nil {
			return err
		}
	} else if err := r.Write(t.out, maxShown); err != nil {
		return err
	}
	if !r.OK() {
		return fmt.Errorf("%d findings: %w", int64(len(r.Findings))+r.More, errFindings)
	}
	return nil
}

// proof verifies a tlog-proof and prints the event.
func (v *auditVerifyVerb) proof(o audit.VerifyOptions, t terminal) error {
	if len(o.Keys) == 0 {
		return usage("a proof proves nothing without a key that you trust; give --key")
	}
	text, err := os.ReadFile(v.Path)
	if err != nil {
		return err
	}
	p, err := audit.ParseProof(text)
	if err != nil {
		return err
	}
	var known []note.Verifier
	for _, k := range o.Keys {
		key, err := note.NewVerifier(k)
		if err != nil {
			return usage("--key: %q is no log's verifier key", k)
		}
		known = append(known, key)
	}
	witnesses := map[string]bool{}
	for _, k := range o.WitnessKeys {
		key, err := audit.NewCosignatureVerifier(k)
		if err != nil {
			return usage("--witness-key: %q is no witness's verifier key", k)
		}
		known = append(known, key)
		witnesses[key.Name()] = true
	}
	c, n, err := p.Verify(note.VerifierList(known...))
	if err != nil {
		return err
	}
	for _, a := range o.Anchors {
		ac, _, err := audit.OpenCheckpoint(a, note.VerifierList(known...))
		if err != nil {
			return err
		}
		if ac.Size == c.Size && ac.Root != c.Root {
			return fmt.Errorf("the checkpoint of the proof is not the one from outside: %w", errFindings)
		}
	}
	cosigned := 0
	w := tabwriter.NewWriter(t.out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "log\t%s\nleaf\t%d of %d\n", c.Origin, p.Index, c.Size)
	for _, s := range n.Sigs {
		if at, err := audit.CosignatureTime(s); err == nil && witnesses[s.Name] {
			cosigned++
			fmt.Fprintf(w, "cosigned\t%s by %s\n", at.Format(time.RFC3339), s.Name)
		}
	}
	if cosigned < v.Quorum {
		return fmt.Errorf("%d of the %d witnesses asked for cosigned: %w", cosigned, v.Quorum, errFindings)
	}
	if len(p.Body) > 0 {
		e, err := audit.DecodeEvent(p.Body)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "stream\t%s, record %d\n", p.Stream, p.Seq)
		describe(w, &e)
	} else {
		fmt.Fprintf(w, "event\twithheld: the proof is of its leaf %s\n", p.Leaf)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(t.out, "OK: the event is in the log's tree")
	return err
}

// describe writes the fields of an event that are set.
func describe(w io.Writer, e *audit.Event) {
	outcome := map[audit.Outcome]string{audit.Intent: "announced (intent)", audit.Success: "success", audit.MinorFailure: "refused or malformed",
		audit.SeriousFailure: "failed", audit.MajorFailure: "failed for good"}[e.Outcome]
	var entities []string
	for _, x := range e.Entities {
		entities = append(entities, x.Type+"/"+x.ID)
	}
	decision := ""
	if e.Decision.Rule != "" || e.Decision.Reason != "" {
		decision = fmt.Sprintf("%s, rule %s, policy %d", e.Decision.Reason, e.Decision.Rule, e.Decision.Policy)
	}
	for _, f := range [][2]string{
		{"event", e.ID.String()}, {"recorded", e.Recorded.Format(time.RFC3339Nano)}, {"what", string(e.Type) + " " + e.Interaction}, {"outcome", outcome},
		{"", e.OutcomeDesc}, {"who", strings.TrimSpace(e.Agent.User + " " + e.Agent.Name)}, {"with", e.Agent.Client}, {"roles", strings.Join(e.Agent.Roles, ", ")},
		{"from", e.Agent.Network}, {"purpose", e.Purpose}, {"patient", e.Patient}, {"entities", strings.Join(entities, ", ")},
		{"classes", strings.Join(e.Classes, ", ")}, {"decision", decision}, {"request", e.RequestID},
	} {
		if f[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", f[0], printable(f[1]))
		}
	}
}

// printable keeps control characters of a hostile file from the terminal.
func printable(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// counter shows how far long work is: a line that is written over on a terminal, a line every few seconds elsewhere.
type counter struct {
	w     io.Writer
	tty   bool
	what  string
	began time.Time
	said  time.Time
}

func newCounter(w io.Writer, what string) *counter {
	f, ok := w.(*os.File)
	return &counter{w: w, tty: ok && term.IsTerminal(int(f.Fd())), what: what, began: time.Now(), said: time.Now()}
}

func (c *counter) show(done, total int64) {
	rate := float64(done) / max(time.Since(c.began).Seconds(), 0.001)
	switch {
	case c.tty && done >= total && total > 0:
		fmt.Fprint(c.w, "\r\x1b[K")
	case c.tty:
		fmt.Fprintf(c.w, "\r%d of %d %s, %.0f a second \x1b[K", done, total, c.what, rate)
	case time.Since(c.said) > 5*time.Second:
		c.said = time.Now()
		fmt.Fprintf(c.w, "%d of %d %s, %.0f a second\n", done, total, c.what, rate)
	}
}
