package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// keysDrillVerb rehearses the restore.
type keysDrillVerb struct {
	deployment         `embed:""`
	Out                string `help:"File for the evidence; standard output when empty." placeholder:"FILE" type:"path"`
	ScratchDatabaseURL string `help:"A database that was migrated and is empty, to restore into, as the role chartkeep with the same password; drop it afterwards. A demo makes its own." placeholder:"URL"`
	Folder             string `help:"Where the drill's backups lie while it runs: as much space as the data takes." placeholder:"DIR" type:"existingdir"`
	OldKeys            string `help:"A backup of the keys from before the last rewrap: that it opens nothing of an erased patient is proven, too." placeholder:"DIR" type:"existingdir"`
	By                 string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*keysDrillVerb) Help() string {
	return `Writes two made-up patients, backs up data and keys, erases one of the two, restores the data with the current keys into a scratch database, and proves that the
living one opens byte for byte and the erased one stays shut. Then it erases the living one as well. The evidence says how long a restore takes, what the drill
proves and what it does not. Exit code 1, with the step that failed, when it does not hold. Once a month is good practice (45 CFR 164.308(a)(7)(ii)(D)).
Example: chartkeep keys drill --data .chartkeep --out drill.json
Example: chartkeep keys drill --scratch-database-url postgres://chartkeep@db2/drill --out /var/lib/chartkeep/drill-2026-11.json`
}

// drillTag marks the drill's patients.
const drillTag = "urn:chartkeep:drill"

// drillEvidence is what a drill leaves behind.
type drillEvidence struct {
	Format    string      `json:"format"`
	Program   string      `json:"program"`
	By        string      `json:"by"`
	Began     time.Time   `json:"began"`
	Ended     time.Time   `json:"ended"`
	Passed    bool        `json:"passed"`
	Failed    string      `json:"failed,omitempty"` // the step
	Living    string      `json:"living_canary"`
	Shredded  string      `json:"shredded_canary"`
	Restore   float64     `json:"restore_seconds"`
	Rows      int64       `json:"restored_rows"`
	Manifests []string    `json:"manifests"` // SHA-256 of the backups' manifests: data, keys before, keys after the erasure
	OldOpen   *bool       `json:"shredded_canary_opens_with_keys_from_before"`
	OldKeys   *deadKeys   `json:"old_keys,omitempty"`
	Steps     []drillStep `json:"steps"`
	Proves    []string    `json:"proves"`
	ProvesNot []string    `json:"does_not_prove"`
	Erasures  []phi.UUID  `json:"erasures"`
}

type drillStep struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// deadKeys says what an old backup of keys still opens.
type deadKeys struct {
	Manifest string `json:"manifest"`
	Erased   int    `json:"keys_of_erased_subjects"`
	Open     int    `json:"that_open"`
}

// drill is one under way.
type drill struct {
	*drillEvidence
	verb     *keysDrillVerb
	term     terminal
	rooms    *rooms
	settings *settings
	dir      string
	scratch  string // DSN
	drop     func() error
	text     map[string][]byte // of the canaries, by id
	data     *archive
	before   *archive
	after    *archive
}

// Run drills.
func (v *keysDrillVerb) Run(ctx context.Context, t terminal) error {
	if (v.DatabaseURL != "") != (v.ScratchDatabaseURL != "") {
		return usage("--scratch-database-url goes with --database-url; a demo makes its own scratch database")
	}
	return v.onRooms(ctx, t, func(r *rooms, s *settings) (err error) {
		d := &drill{
			drillEvidence: &drillEvidence{Format: "chartkeep drill v1", Program: version(), By: operator(v.By), Began: time.Now().UTC()},
			verb:          v, term: t, rooms: r, settings: s, text: map[string][]byte{}, drop: func() error { return nil },
		}
		var release func()
		if d.dir, release, err = drillFolder(v.Folder); err != nil {
			return fmt.Errorf("making a folder for the drill: %w", err)
		}
		defer release()
		e := audit.Event{Type: audit.TypePolicy, Interaction: "keys-drill", Action: audit.ActionExecute}
		failed := r.change(ctx, d.By, e, func() error { return d.run(ctx) })
		return errors.Join(failed, d.leave(context.WithoutCancel(ctx)))
	})
}

// drillFolder makes a folder that is gone after release, and removes those of drills that were killed: data and keys lie in them side by side.
func drillFolder(under string) (dir string, release func(), err error) {
	const prefix, lock = "chartkeep-drill-", "lock" // held while the drill runs
	left, err := filepath.Glob(filepath.Join(cmp.Or(under, os.TempDir()), prefix+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, old := range left {
		if i, err := os.Lstat(old); err != nil || !i.IsDir() {
			continue
		}
		if held, err := (audit.OS{}).Lock(filepath.Join(old, lock)); err == nil {
			err = errors.Join(os.RemoveAll(old), held.Close())
			if err != nil {
				return "", nil, err
			}
		}
	}
	if dir, err = os.MkdirTemp(under, prefix); err != nil {
		return "", nil, err
	}
	held, err := (audit.OS{}).Lock(filepath.Join(dir, lock))
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() { _ = errors.Join(os.RemoveAll(dir), held.Close()) }, nil
}

// run goes through the steps, and cleans up whatever became of them.
func (d *drill) run(ctx context.Context) (err error) {
	defer func() {
		clean := context.WithoutCancel(ctx)
		err = errors.Join(err, d.step("the canaries that are left are erased", func() error { return d.eraseAll(clean) }), d.step("the scratch database is given back", d.drop))
	}()
	for _, s := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"two canaries are written", d.write},
		{"data and keys are backed up", d.backUp},
		{"one canary is erased", func(ctx context.Context) error { return d.erase(ctx, d.Shredded) }},
		{"the current keys are backed up", func(ctx context.Context) (err error) {
			d.after, err = d.rooms.backUp(ctx, d.quiet(), postgres.BackupKeys, filepath.Join(d.dir, "keys-after"), d.By)
			return err
		}},
		{"a scratch database is there", d.prepare},
		{"data and current keys are restored", d.restore},
		{"the living canary opens, the erased one stays shut", d.open},
		{"keys from before the erasure are refused for the erased canary", d.restoreOld},
		{"what keys from before open is looked at", d.tryOld},
	} {
		if err := d.step(s.what, func() error { return s.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// quiet is a terminal that backups say nothing to: the drill tells its steps.
func (d *drill) quiet() terminal { return terminal{&bytes.Buffer{}, &bytes.Buffer{}} }

// step does one step, tells of it, and notes how it went.
func (d *drill) step(what string, do func() error) error {
	began := time.Now()
	err := do()
	s := drillStep{What: what, Seconds: time.Since(began).Seconds()}
	if err != nil {
		err = fmt.Errorf("%s: %w", what, plainly(err))
		s.Error = err.Error()
		if d.Failed == "" {
			d.Failed = what
		}
	}
	d.Steps = append(d.Steps, s)
	state := "done"
	if err != nil {
		state = "FAILED"
	}
	fmt.Fprintf(d.term.err, "%-64s %s (%.1f s)\n", what, state, s.Seconds)
	return err
}

func (d *drill) caller() *phi.Caller {
	return &phi.Caller{Principal: system("chartkeep-drill"), RequestID: "keys-drill", Start: time.Now()}
}

// write stores the canaries through the door that everything goes through, and keeps what it answered.
func (d *drill) write(ctx context.Context) error {
	for _, id := range []*string{&d.Living, &d.Shredded} {
		secret := rand.Text()
		body := fmt.Appendf(nil, `{"resourceType":"Patient","meta":{"tag":[{"system":%q,"code":"canary"}]},"active":false,"name":[{"text":"Canary of a restore drill %s"}],"birthDate":"1900-01-01"}`, drillTag, secret)
		w, err := d.rooms.records.Create(ctx, d.caller(), "Patient", body, nil)
		if err != nil {
			return err
		}
		*id = w.ID
		res, err := d.rooms.records.Read(ctx, d.caller(), w.Ref)
		if err != nil {
			return err
		}
		if d.text[w.ID] = bytes.Clone(res.JSON.Reveal()); !bytes.Contains(d.text[w.ID], []byte(secret)) {
			return errors.New("the canary does not read back")
		}
	}
	return nil
}

func (d *drill) backUp(ctx context.Context) (err error) {
	if d.data, err = d.rooms.backUp(ctx, d.quiet(), postgres.BackupData, filepath.Join(d.dir, "data"), d.By); err != nil {
		return err
	}
	d.before, err = d.rooms.backUp(ctx, d.quiet(), postgres.BackupKeys, filepath.Join(d.dir, "keys-before"), d.By)
	return err
}

// erase erases a canary by the rules: one asks, another executes. Both are the drill's own names; that a canary needs no second
// human being is the one exception, and it holds for patients that this run has made.
func (d *drill) erase(ctx context.Context, patient string) error {
	if d.text[patient] == nil {
		return errors.New("not one of this drill's canaries")
	}
	who := func(name string) phi.Officer {
		return phi.Officer{Agent: audit.Agent{User: name, Client: "chartkeep"}, RequestID: "keys-drill", Decision: audit.Decision{Allowed: true, Rule: "drill"}}
	}
	e, _, err := d.rooms.erasures.Request(ctx, who("keys drill"), patient, "restore drill")
	if err != nil {
		return err
	}
	if _, err := d.rooms.erasures.Approve(ctx, who("keys drill, second"), e.ID); err != nil {
		return err
	}
	d.Erasures = append(d.Erasures, e.ID)
	delete(d.text, patient)
	return nil
}

// eraseAll erases the canaries that are left.
func (d *drill) eraseAll(ctx context.Context) error {
	var errs []error
	for id := range d.text {
		errs = append(errs, d.erase(ctx, id))
	}
	return errors.Join(errs...)
}

// prepare finds the scratch database, or makes one beside the demo's.
func (d *drill) prepare(ctx context.Context) (err error) {
	if d.verb.ScratchDatabaseURL != "" {
		d.scratch, err = withPassword(d.verb.ScratchDatabaseURL, d.verb.DatabasePasswordFile)
		return err
	}
	f, err := readDemoFile(d.verb.Data)
	if err != nil {
		return err
	}
	admin, err := url.Parse(f.DatabaseURL)
	if err != nil {
		return fmt.Errorf("reading %s: database_url is not a URL", demoJSON)
	}
	const prefix = "drill_"
	name := prefix + strings.ToLower(rand.Text())
	if d.drop, err = postgres.Scratch(ctx, f.DatabaseURL, name, prefix); err != nil {
		return err
	}
	admin.Path = "/" + name
	if err := postgres.Migrate(ctx, admin.String(), ""); err != nil {
		return err
	}
	dsn, err := url.Parse(d.settings.databaseDSN)
	if err != nil {
		return errors.New("parsing the database URL: malformed")
	}
	dsn.Path = "/" + name
	d.scratch = dsn.String()
	return nil
}

// onScratch runs work with the scratch database open and the trail of the deployment: what is read there is in it.
func (d *drill) onScratch(ctx context.Context, work func(*rooms) error) error {
	db, err := postgres.Open(ctx, postgres.Config{DSN: d.scratch, Logger: d.rooms.logger})
	if err != nil {
		return fmt.Errorf("opening the scratch database: %w", err)
	}
	defer db.Close()
	return work(&rooms{db: db, log: d.rooms.log, logger: d.rooms.logger})
}

func (d *drill) restore(ctx context.Context) error {
	began := time.Now()
	defer func() { d.Restore = time.Since(began).Seconds() }()
	return d.onScratch(ctx, func(r *rooms) error {
		if err := r.restoreData(ctx, d.quiet(), d.data, d.By); err != nil {
			return err
		}
		d.Rows = d.data.rows()
		_, err := r.restoreKeys(ctx, d.settings, d.after, false, d.By)
		return err
	})
}

// open reads both canaries from the scratch database.
func (d *drill) open(ctx context.Context) error {
	return d.onScratch(ctx, func(r *rooms) error {
		keys, err := keyset.Config{Roots: d.settings.roots, Storage: r.db.Keys(), Logger: r.logger}.Open(ctx)
		if err != nil {
			return err
		}
		defer keys.Close()
		access, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: r.db.Auth(), Logger: r.logger})
		if err != nil {
			return err
		}
		defer access.Close()
		records, err := phi.Open(ctx, phi.Config{
			Storage: r.db.Records(), Keys: keys, Access: access, Audit: r.log, Level: d.settings.levels(), Source: "chartkeep-drill", Logger: r.logger,
		})
		if err != nil {
			return err
		}
		res, err := records.Read(ctx, d.caller(), phi.Ref{Type: "Patient", ID: d.Living})
		if err != nil {
			return fmt.Errorf("the living canary does not open: %w", plainly(err))
		}
		if !bytes.Equal(res.JSON.Reveal(), d.text[d.Living]) {
			return errors.New("the living canary is not what was written")
		}
		_, err = records.Read(ctx, d.caller(), phi.Ref{Type: "Patient", ID: d.Shredded})
		if e, ok := errors.AsType[*phi.Error](err); !ok || e.Kind != phi.Gone {
			return fmt.Errorf("the erased canary is not gone: %w", err)
		}
		return nil
	})
}

// restoreOld puts the keys from before the erasure over the current ones, which must not bring the erased canary's back.
func (d *drill) restoreOld(ctx context.Context) error {
	err := d.onScratch(ctx, func(r *rooms) error {
		done, err := r.restoreKeys(ctx, d.settings, d.before, true, d.By)
		if err == nil && done.Erased == 0 {
			err = errors.New("no key was left out")
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.open(ctx)
}

// tryOld looks at what nobody can refuse: whoever holds an old backup of the keys, and may ask the KMS, has no need of a restore.
func (d *drill) tryOld(ctx context.Context) error {
	erased, err := d.after.erasedSubjects()
	if err != nil {
		return err
	}
	opens, err := d.before.deadKeys(ctx, d.settings.roots, erased)
	if err != nil {
		return err
	}
	old := opens.Open > 0
	d.OldOpen = &old
	d.Manifests = []string{d.data.digest, d.before.digest, d.after.digest}
	d.Proves = []string{
		"a backup of the data with the current keys restores, and what was written before it opens byte for byte",
		"a patient who was erased after the backup stays shut in the restored copy, and a restore of older keys does not bring the patient back",
	}
	d.ProvesNot = []string{
		"that every record opens: chartkeep sweep does",
		"that the audit trail restores: chartkeep audit export and verify",
		"that the KMS key survives its region: its own backup",
	}
	if old {
		d.ProvesNot = append(d.ProvesNot, "that keys which were backed up before the erasure are dead: who holds such a backup and may ask the KMS opens the erased canary until chartkeep keys rewrap has run and the old KMS key is deleted; --old-keys proves that afterwards")
	} else {
		d.Proves = append(d.Proves, "keys that were backed up before the erasure are dead: their root is asked no more")
	}
	if d.verb.OldKeys == "" {
		return nil
	}
	a, err := openArchive(d.verb.OldKeys, postgres.BackupKeys)
	if err != nil {
		return err
	}
	if d.OldKeys, err = a.deadKeys(ctx, d.settings.roots, erased); err != nil {
		return err
	}
	switch {
	case d.OldKeys.Open > 0:
		return fmt.Errorf("%d of %d keys of erased patients in %s still open: its root is still asked (--kms), and not deleted", d.OldKeys.Open, d.OldKeys.Erased, d.verb.OldKeys)
	case d.OldKeys.Erased == 0:
		d.ProvesNot = append(d.ProvesNot, "anything about "+d.verb.OldKeys+": it holds no key of an erased patient")
	default:
		d.Proves = append(d.Proves, "the keys of erased patients in "+d.verb.OldKeys+" open no more")
	}
	return nil
}

// erasedSubjects are those that a backup of keys notes as erased.
func (a *archive) erasedSubjects() (map[phi.UUID]bool, error) {
	erased := map[phi.UUID]bool{}
	err := a.lines("phi_erased", func(line []byte) error {
		var row struct{ Subject string }
		if err := json.Unmarshal(line, &row); err != nil {
			return fmt.Errorf("phi_erased: %w", errAltered)
		}
		subject, err := phi.ParseUUID(row.Subject)
		erased[subject] = true
		return err
	})
	return erased, err
}

// deadKeys tries the keys of erased subjects with the roots.
func (a *archive) deadKeys(ctx context.Context, roots []keyset.Root, erased map[phi.UUID]bool) (*deadKeys, error) {
	found := &deadKeys{Manifest: a.digest}
	held, err := a.keks()
	if err != nil {
		return nil, err
	}
	keys, opening := keyset.Config{Roots: roots, Storage: held}.Open(ctx)
	if opening == nil {
		defer keys.Close()
	}
	err = a.keysOf("phi_key", func(k phi.WrappedKey) error {
		if !erased[k.Subject] {
			return nil
		}
		found.Erased++
		if opening == nil { // else: no key-encryption key, no key
			key, err := keys.Secret(ctx, k.KEK, k.Wrapped, keyset.Binding{Subject: k.Subject, Segment: k.Segment, KeyID: k.KeyID})
			clear(key)
			if err == nil {
				found.Open++
			}
		}
		return nil
	})
	return found, err
}

// leave writes the evidence, and its digest into the trail.
func (d *drill) leave(ctx context.Context) error {
	d.Ended, d.Passed = time.Now().UTC(), d.Failed == ""
	b, err := json.MarshalIndent(d.drillEvidence, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	sum := sha256.Sum256(b)
	if _, err := d.rooms.log.Record(ctx, audit.Database, &audit.Event{
		Type: audit.TypePolicy, Interaction: "keys-drill-evidence", Action: audit.ActionCreate, Agent: audit.Agent{User: d.By, Client: "chartkeep"},
		Decision: audit.Decision{Allowed: true}, Detail: []byte("sha256 " + hex.EncodeToString(sum[:])),
	}); err != nil {
		return fmt.Errorf("recording the evidence: %w", err)
	}
	if d.verb.Out != "" {
		return writeFile(d.verb.Out, b)
	}
	_, err = d.term.out.Write(b)
	return err
}
