package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// backupVerb writes the data.
type backupVerb struct {
	deployment `embed:""`
	Out        string `help:"Folder for the backup; it must not be there, or be empty." placeholder:"DIR" required:"" type:"path"`
	By         string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*backupVerb) Help() string {
	return `Writes the records, every value of them sealed, from one snapshot. Keys are not in it: chartkeep keys backup writes them, for other hands. The audit trail is
not in it either: chartkeep audit export. pg_dump, pgBackRest and whatever else backs up PostgreSQL do as well, and do all three at once.
Example: chartkeep backup --out /mnt/backup/2026-11-22`
}

// Run writes the backup.
func (v *backupVerb) Run(ctx context.Context, t terminal) error {
	return backUp(ctx, t, &v.deployment, postgres.BackupData, v.Out, v.By)
}

// keysBackupVerb writes the key tables.
type keysBackupVerb struct {
	deployment `embed:""`
	Out        string `help:"Folder for the backup; it must not be there, or be empty." placeholder:"DIR" required:"" type:"path"`
	By         string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*keysBackupVerb) Help() string {
	return `Writes the key tables from one snapshot. Every key in it is wrapped: it opens nothing without the KMS keys that the manifest names. Keep it apart from backups of
the data, and no longer than an epoch: an old one holds the keys of patients who were erased since, until chartkeep keys rewrap and the end of the old KMS key.
Example: chartkeep keys backup --out /mnt/keys/2026-11-22`
}

// Run writes the backup.
func (v *keysBackupVerb) Run(ctx context.Context, t terminal) error {
	return backUp(ctx, t, &v.deployment, postgres.BackupKeys, v.Out, v.By)
}

func backUp(ctx context.Context, t terminal, d *deployment, kind postgres.BackupKind, dir, by string) error {
	return d.onTrail(ctx, t, func(r *rooms, _ *settings) error {
		a, err := r.backUp(ctx, t, kind, dir, operator(by))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.out, "%d rows, %d bytes in %s\nmanifest sha256 %s\n", a.rows(), a.bytes(), dir, a.digest)
		return err
	})
}

// restoreVerb puts the data back.
type restoreVerb struct {
	deployment `embed:""`
	From       string `arg:"" help:"Folder of a backup." type:"existingdir"`
	By         string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*restoreVerb) Help() string {
	return `Puts a backup of the data into a migrated database without records, in one transaction: all of it, verified, or nothing. The keys come after it: chartkeep keys
restore, the newest there are, and with --force those of the data's time where keys were rotated since. Then chartkeep sweep says what was written after the
backup and is lost.
Example: chartkeep restore /mnt/backup/2026-11-22 --database-url postgres://chartkeep@db2/chartkeep --kms hcvault://vault/transit/keys/phi --journal /var/lib/chartkeep/journal`
}

// Run restores the data.
func (v *restoreVerb) Run(ctx context.Context, t terminal) error {
	return v.onTrail(ctx, t, func(r *rooms, _ *settings) error {
		a, err := openArchive(v.From, postgres.BackupData)
		if err != nil {
			return err
		}
		if err := r.restoreData(ctx, t, a, operator(v.By)); err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.out, "%d rows restored; next: chartkeep keys restore DIR\n", a.rows())
		return err
	})
}

// keysRestoreVerb puts the key tables back.
type keysRestoreVerb struct {
	deployment `embed:""`
	From       string `arg:"" help:"Folder of a backup." type:"existingdir"`
	Force      bool   `help:"Add what is missing to key tables that hold other keys than the backup. Nothing that is there changes."`
	By         string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*keysRestoreVerb) Help() string {
	return `Verifies a backup of the key tables, opens every key in it with the KMS keys that --kms names, and puts it back in one transaction. Restore the data first. A key
of a patient who was erased since does not come back, with --force neither: the database, the backup and the audit trail are asked.
Example: chartkeep keys restore /mnt/keys/2026-11-22`
}

// Run restores the keys.
func (v *keysRestoreVerb) Run(ctx context.Context, t terminal) error {
	return v.onTrail(ctx, t, func(r *rooms, s *settings) error {
		a, err := openArchive(v.From, postgres.BackupKeys)
		if err != nil {
			return err
		}
		done, err := r.restoreKeys(ctx, s, a, v.Force, operator(v.By))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(t.out, "%d data keys restored, %d left out because their patients are erased, %d were there\n", done.Keys, done.Erased, done.Kept); err != nil {
			return err
		}
		if done.Shut > 0 {
			fmt.Fprintf(t.out, "%d rows are under keys that were rotated away since the data was backed up; a backup of the keys of that time has them: chartkeep keys restore DIR --force\n", done.Shut)
		}
		if done.Stale > 0 {
			fmt.Fprintf(t.out, "%d records are indexed under keys that were rotated away since; make the index anew: chartkeep keys rotate --index\n", done.Stale)
		}
		return nil
	})
}

// onTrail runs a verb's work with the database and the audit trail open, and nothing that makes keys.
func (d *deployment) onTrail(ctx context.Context, t terminal, work func(*rooms, *settings) error) (err error) {
	s, err := d.resolve(false)
	if err != nil {
		return err
	}
	log := newLog(t.err)
	defer log.close()
	r := &rooms{logger: log.Logger}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	if r.db, err = postgres.Open(ctx, postgres.Config{DSN: s.databaseDSN, Logger: r.logger}); err != nil {
		return fmt.Errorf("opening database: %w", err)
	}
	if r.log, err = audit.Open(audit.Config{Dir: s.journal, Storage: r.db.Audit(), Keep: s.keep, Logger: r.logger}); err != nil {
		return fmt.Errorf("opening audit journal: %w", err)
	}
	var background context.Context
	background, r.stopRuns = context.WithCancel(context.WithoutCancel(ctx))
	r.start(background, "audit shipper", r.log.Run)
	return work(r, s)
}

// archive is a backup in a folder: a file a table, and manifest.json, which is written last.
type archive struct {
	Format string `json:"format"`
	postgres.Backup
	Files []archiveFile `json:"files"` // in the order of Tables

	dir    string
	digest string // SHA-256 of the manifest
}

// archiveFile is what a table's file must be.
type archiveFile struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

const (
	archiveFormat   = "chartkeep backup v1"
	archiveManifest = "manifest.json"
)

func (a *archive) rows() (n int64) {
	for _, t := range a.Tables {
		n += t.Rows
	}
	return n
}

func (a *archive) bytes() (n int64) {
	for _, f := range a.Files {
		n += f.Bytes
	}
	return n
}

func (a *archive) file(table string) string {
	if a.Kind == postgres.BackupKeys {
		return filepath.Join(a.dir, table+".jsonl")
	}
	return filepath.Join(a.dir, table+".copy")
}

// metered counts and digests what goes through.
type metered struct {
	bytes int64
	sum   hash.Hash
	tell  func(bytes int64) // may be nil
}

func (m *metered) Write(p []byte) (int, error) {
	m.bytes += int64(len(p))
	if m.tell != nil {
		m.tell(m.bytes)
	}
	return m.sum.Write(p)
}

func (m *metered) file() archiveFile { return archiveFile{m.bytes, hex.EncodeToString(m.sum.Sum(nil))} }

// telling says how far a table is: on a terminal all the time, elsewhere every few seconds.
func telling(t terminal, doing, table string) (tell func(int64), end func()) {
	p := newProgress(t.err, 1)
	said := time.Now()
	return func(bytes int64) {
		if pause := time.Since(said); pause > 5*time.Second || p.tty && pause > 100*time.Millisecond {
			said = time.Now()
			line := fmt.Sprintf("%s %s: %d MB", doing, table, bytes>>20)
			if p.tty {
				fmt.Fprintf(t.err, "\r%s ", line)
			} else {
				fmt.Fprintln(t.err, line)
			}
		}
	}, p.clear
}

// backUp writes a backup, between events of the trail; its manifest's digest is in the trail, so that an altered backup can be told.
func (r *rooms) backUp(ctx context.Context, t terminal, kind postgres.BackupKind, dir, by string) (a *archive, err error) {
	e := audit.Event{Type: audit.TypePolicy, Interaction: string(kind) + "-backup", Action: audit.ActionRead}
	err = r.change(ctx, by, e, func() error {
		if a, err = writeArchive(ctx, t, r.db, kind, dir); err != nil {
			return err
		}
		_, err := r.log.Record(ctx, audit.Database, &audit.Event{
			Type: audit.TypePolicy, Interaction: string(kind) + "-backup-digest", Action: audit.ActionCreate, Agent: audit.Agent{User: by, Client: "chartkeep"},
			Decision: audit.Decision{Allowed: true}, Detail: []byte("sha256 " + a.digest),
		})
		if err != nil {
			return fmt.Errorf("recording the backup's digest: %w", err)
		}
		return nil
	})
	return a, err
}

func writeArchive(ctx context.Context, t terminal, db *postgres.DB, kind postgres.BackupKind, dir string) (_ *archive, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		if there, rerr := os.ReadDir(dir); rerr != nil || len(there) > 0 {
			return nil, fmt.Errorf("%s is there already and not empty; a backup is never written over", dir)
		}
	}
	a := &archive{Format: archiveFormat, dir: dir}
	a.Kind = kind
	defer func() {
		if err != nil {
			err = errors.Join(err, a.remove())
		}
	}()
	b, err := db.Backup(ctx, kind, func(table string, rows func(io.Writer) (int64, error)) error {
		tell, end := telling(t, "writing", table)
		defer end()
		f, err := os.OpenFile(a.file(table), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("writing backup: %w", err)
		}
		m := &metered{sum: sha256.New(), tell: tell}
		w := bufio.NewWriterSize(f, 1<<20)
		_, err = rows(io.MultiWriter(w, m))
		if err == nil {
			err = w.Flush()
		}
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("writing %s: %w", table, err)
		}
		a.Files = append(a.Files, m.file())
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.Backup = *b
	manifest, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return nil, err
	}
	manifest = append(manifest, '\n')
	sum := sha256.Sum256(manifest)
	a.digest = hex.EncodeToString(sum[:])
	return a, writeFile(filepath.Join(dir, archiveManifest), manifest)
}

// remove takes an unfinished backup away.
func (a *archive) remove() error {
	var errs []error
	for _, pattern := range []string{"*.copy", "*.jsonl"} {
		files, _ := filepath.Glob(filepath.Join(a.dir, pattern))
		for _, f := range files {
			errs = append(errs, os.Remove(f))
		}
	}
	return errors.Join(errs...)
}

// openArchive reads a backup's manifest.
func openArchive(dir string, kind postgres.BackupKind) (*archive, error) {
	b, err := os.ReadFile(filepath.Join(dir, archiveManifest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no finished backup: it has no %s", dir, archiveManifest)
	}
	if err != nil {
		return nil, fmt.Errorf("reading backup: %w", err)
	}
	sum := sha256.Sum256(b)
	a := &archive{dir: dir, digest: hex.EncodeToString(sum[:])}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(a); err != nil || a.Format != archiveFormat || len(a.Files) != len(a.Tables) {
		return nil, fmt.Errorf("%s is not a manifest that this program writes", filepath.Join(dir, archiveManifest))
	}
	if a.Kind != kind {
		return nil, usage("%s is a backup of the %s", dir, a.Kind)
	}
	return a, nil
}

// errAltered says that a file of a backup is not what was written.
var errAltered = errors.New("the backup is altered or cut short; take another one")

// read hands a table's file over, and then says whether it was what the manifest says.
func (a *archive) read(table string, tell func(int64), take func(io.Reader) (int64, error)) error {
	var rows int64
	var want archiveFile
	for i, t := range a.Tables {
		if t.Name == table {
			rows, want = t.Rows, a.Files[i]
		}
	}
	f, err := os.Open(a.file(table))
	if err != nil {
		return fmt.Errorf("reading %s: %w: %w", table, errAltered, err)
	}
	defer f.Close()
	m := &metered{sum: sha256.New(), tell: tell}
	through := io.TeeReader(bufio.NewReaderSize(f, 1<<20), m)
	took, err := take(through)
	if errors.Is(err, postgres.ErrBackupContent) {
		return fmt.Errorf("%s: %w: %w", table, errAltered, err)
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, through); err != nil {
		return fmt.Errorf("reading %s: %w", table, err)
	}
	if took != rows || m.file() != want {
		return fmt.Errorf("%s: %w", table, errAltered)
	}
	return nil
}

// advise adds to an error of a restore what to do about it.
func advise(err error) error {
	for cause, advice := range map[error]string{
		postgres.ErrNotEmpty:        "restore into a database that was only migrated",
		postgres.ErrOtherSchema:     "restore with the program that wrote it, then migrate",
		postgres.ErrOtherDeployment: "its keys open nothing here; find this deployment's",
		postgres.ErrKeysThere:       "it is older than what is here, or what is here is damaged: --force adds what is missing and changes nothing else",
	} {
		if errors.Is(err, cause) {
			return fmt.Errorf("%w: %s", err, advice)
		}
	}
	return err
}

func (r *rooms) restoreData(ctx context.Context, t terminal, a *archive, by string) error {
	e := audit.Event{Type: audit.TypePolicy, Interaction: "data-restore", Action: audit.ActionCreate, Detail: []byte("sha256 " + a.digest)}
	return advise(r.change(ctx, by, e, func() error {
		return r.db.RestoreData(ctx, &a.Backup, func(table string, rows func(io.Reader) (int64, error)) error {
			tell, end := telling(t, "restoring", table)
			defer end()
			return a.read(table, tell, rows)
		})
	}))
}

func (r *rooms) restoreKeys(ctx context.Context, s *settings, a *archive, force bool, by string) (done *postgres.RestoredKeys, err error) {
	if err := a.opens(ctx, s.roots); err != nil {
		return nil, err
	}
	shredded, err := r.shredded(ctx)
	if err != nil {
		return nil, err
	}
	e := audit.Event{Type: audit.TypePolicy, Interaction: "keys-restore", Action: audit.ActionCreate, Detail: []byte("sha256 " + a.digest)}
	err = r.change(ctx, by, e, func() error {
		done, err = r.db.RestoreKeys(ctx, &a.Backup, shredded, force, func(table string, lines func(io.Reader) (int64, error)) error {
			return a.read(table, nil, lines)
		})
		return err
	})
	return done, advise(err)
}

// shredded asks the trail whom it says to be erased.
func (r *rooms) shredded(ctx context.Context) (all []postgres.Shredded, err error) {
	q := audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, "patient-shred"), audit.Is(audit.FieldOutcome, "0")}, Limit: audit.MaxPage}
	for {
		found, err := r.db.Trail().Find(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("asking the trail for erasures: %w", err)
		}
		for _, e := range found.Events {
			all = append(all, shreddedBy(&e.Event)...)
		}
		if q.After = found.Next; q.After == (audit.Position{}) {
			return all, nil
		}
	}
}

// shreddedBy is whom an event says to be erased: the patient, and those that were merged with it.
func shreddedBy(e *audit.Event) (all []postgres.Shredded) {
	var erasure audit.ID
	patients := []string{e.Patient}
	for _, about := range e.Entities {
		switch about.Type {
		case "Erasure":
			erasure, _ = audit.ParseID(about.ID) // zero: none of ours
		case "Patient":
			patients = append(patients, about.ID)
		}
	}
	for _, patient := range patients {
		if patient != "" && erasure != (audit.ID{}) {
			all = append(all, postgres.Shredded{Patient: patient, Erasure: erasure, At: e.Recorded})
		}
	}
	return all
}

// opens verifies a backup of keys before anything is touched: its files, and that each key in it opens with the roots.
func (a *archive) opens(ctx context.Context, roots []keyset.Root) error {
	held, err := a.keks()
	if err != nil {
		return err
	}
	keys, err := keyset.Config{Roots: roots, Storage: held}.Open(ctx)
	if err != nil {
		return fmt.Errorf("the backup's keys do not open: %w", err)
	}
	defer keys.Close()
	for _, table := range []string{"phi_secret", "phi_key"} {
		if err := a.keysOf(table, func(k phi.WrappedKey) error {
			key, err := keys.Secret(ctx, k.KEK, k.Wrapped, keyset.Binding{Subject: k.Subject, Segment: k.Segment, KeyID: k.KeyID})
			clear(key)
			if err != nil {
				return fmt.Errorf("a key of %s in the backup does not open: %w", table, err)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// lines reads a table of keys line by line.
func (a *archive) lines(table string, take func(line []byte) error) error {
	return a.read(table, nil, func(r io.Reader) (rows int64, err error) {
		s := bufio.NewScanner(r)
		s.Buffer(nil, 16<<20)
		for ; s.Scan(); rows++ {
			if err := take(s.Bytes()); err != nil {
				return rows, err
			}
		}
		return rows, s.Err()
	})
}

// keysOf reads wrapped keys.
func (a *archive) keysOf(table string, take func(phi.WrappedKey) error) error {
	return a.lines(table, func(line []byte) error {
		var row struct {
			Subject, KEK, Wrapped string
			Segment               uint16
			KeyID                 uint32 `json:"key_id"`
		}
		if err := json.Unmarshal(line, &row); err != nil {
			return fmt.Errorf("%s: %w", table, errAltered)
		}
		subject, err := phi.ParseUUID(row.Subject)
		wrapped, herr := hex.DecodeString(strings.TrimPrefix(row.Wrapped, `\x`))
		if err != nil || herr != nil {
			return fmt.Errorf("%s: %w", table, errAltered)
		}
		return take(phi.WrappedKey{Subject: subject, Segment: row.Segment, KeyID: row.KeyID, KEK: row.KEK, Wrapped: wrapped})
	})
}

// heldKEKs are the key-encryption keys of a backup.
type heldKEKs []keyset.WrappedKEK

var _ keyset.Storage = heldKEKs(nil)

func (a *archive) keks() (held heldKEKs, err error) {
	err = a.lines("phi_kek", func(line []byte) error {
		var row struct {
			ID, Root, Wrapped string
			Active            bool
		}
		if err := json.Unmarshal(line, &row); err != nil {
			return fmt.Errorf("phi_kek: %w", errAltered)
		}
		wrapped, err := hex.DecodeString(strings.TrimPrefix(row.Wrapped, `\x`))
		if err != nil {
			return fmt.Errorf("phi_kek: %w", errAltered)
		}
		held = append(held, keyset.WrappedKEK{ID: row.ID, Root: row.Root, Wrapped: wrapped, Active: row.Active})
		return nil
	})
	return held, err
}

// KEK implements keyset.Storage.
func (h heldKEKs) KEK(_ context.Context, id string, _ *keyset.WrappedKEK) (keyset.WrappedKEK, error) {
	for _, k := range h {
		if k.ID == id || id == "" && k.Active {
			return k, nil
		}
	}
	return keyset.WrappedKEK{}, keyset.ErrUnknownKEK
}

// KEKs implements keyset.Storage.
func (h heldKEKs) KEKs(context.Context) ([]keyset.WrappedKEK, error) { return h, nil }

// AddUses implements keyset.Storage: a backup counts nothing.
func (heldKEKs) AddUses(context.Context, []keyset.Uses) ([]keyset.Uses, error) { return nil, nil }
