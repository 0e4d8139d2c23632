package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/phi/keyset/kmstest"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// scratchDatabase makes a migrated database beside a demo's and returns the flags by which verbs work on it, as on one of production.
func (d *instance) scratchDatabase(t *testing.T, name string) (flags []string, admin *pgx.Conn) {
	t.Helper()
	drop, err := postgres.Scratch(t.Context(), d.DatabaseURL, name, name)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	if err := postgres.Migrate(t.Context(), u.String(), ""); err != nil {
		t.Fatal(err)
	}
	if admin, err = pgx.Connect(t.Context(), u.String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = admin.Close(context.Background())
		if err := drop(); err != nil {
			t.Error(err)
		}
	})
	u.User = url.User("chartkeep")
	return []string{
		"--database-url", u.String(), "--database-password-file", filepath.Join(d.dir, demoPasswordFile), "--kms", "file:" + filepath.Join(d.dir, demoRootKey),
		"--journal", t.TempDir(),
	}, admin
}

// copied is a backup's folder, copied and changed.
func copied(t *testing.T, dir string, change func(dir string)) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	change(to)
	return to
}

// rewritten changes a file.
func rewritten(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func counted(t *testing.T, conn *pgx.Conn, sql string) (n int64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// TestBackupVerbs backs data and keys up apart, restores both into another database, and tries every backup that must be refused.
func TestBackupVerbs(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "4")
	backend := d.token(t, "app-backend")
	var found struct {
		Entry []struct{ Resource struct{ ID string } }
	}
	if err := json.Unmarshal(d.do(t, "GET", "/fhir/R4/Patient", backend, "").body, &found); err != nil || len(found.Entry) != 4 {
		t.Fatalf("%d patients, %v", len(found.Entry), err)
	}
	lost, shredded := found.Entry[0].Resource.ID, found.Entry[1].Resource.ID
	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	data, keys := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "keys")
	here := []string{"--data", d.dir}
	verb := func(want int, says string, args ...string) string {
		t.Helper()
		out, errs, code := d.verb(t, args...)
		if code != want || !strings.Contains(out+errs, says) {
			t.Fatalf("%s: exit code %d, want %d and %q\n%s%s", strings.Join(args[:min(3, len(args))], " "), code, want, says, out, errs)
		}
		return out
	}
	verb(0, "manifest sha256", append([]string{"backup", "--out", data}, here...)...)
	verb(0, "manifest sha256", append([]string{"keys", "backup", "--out", keys}, here...)...)
	verb(1, "never written over", append([]string{"backup", "--out", data}, here...)...)
	verb(2, "backup of the data", append([]string{"keys", "restore", data}, here...)...)
	verb(1, "only migrated", append([]string{"restore", data}, here...)...)
	verb(1, "--force", append([]string{"keys", "restore", keys}, here...)...)

	t.Run("neither holds what the other does", func(t *testing.T) {
		var wrapped []byte
		if err := admin.QueryRow(t.Context(), `SELECT wrapped FROM phi_key LIMIT 1`).Scan(&wrapped); err != nil {
			t.Fatal(err)
		}
		hex := fmt.Appendf(nil, "%x", wrapped)
		cells := false
		for _, dir := range []string{data, keys} {
			if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				if info, _ := e.Info(); info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v", path, info.Mode())
				}
				b, err := os.ReadFile(path)
				if dir == data && (bytes.Contains(b, wrapped) || bytes.Contains(b, hex)) {
					t.Errorf("%s holds a wrapped key", path)
				}
				if dir == keys {
					cells = cells || bytes.Contains(b, hex)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if !cells {
			t.Error("the search is broken: the backup of the keys holds no key")
		}
	})

	there, empty := d.scratchDatabase(t, "restored")
	t.Run("what was altered, cut short or is missing is refused", func(t *testing.T) {
		for name, change := range map[string]func(dir string){
			"a bit": func(dir string) {
				rewritten(t, filepath.Join(dir, "record.copy"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
			},
			"a bit of a key": func(dir string) {
				rewritten(t, filepath.Join(dir, "phi_key.jsonl"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
			},
			"the end": func(dir string) {
				for _, f := range []string{"record.copy", "phi_key.jsonl"} {
					if _, err := os.Stat(filepath.Join(dir, f)); err == nil {
						rewritten(t, filepath.Join(dir, f), func(b []byte) []byte { return b[:len(b)-200] })
					}
				}
			},
			"a whole line": func(dir string) {
				rewritten(t, filepath.Join(dir, "phi_key.jsonl"), func(b []byte) []byte { return b[bytes.IndexByte(b, '\n')+1:] })
			},
			"a file": func(dir string) {
				os.Remove(filepath.Join(dir, "index_token.copy"))
				os.Remove(filepath.Join(dir, "phi_secret.jsonl"))
			},
			"the manifest":        func(dir string) { os.Remove(filepath.Join(dir, archiveManifest)) },
			"a field of nobody's": func(dir string) { rewritten(t, filepath.Join(dir, archiveManifest), addField) },
			"another schema": func(dir string) {
				rewritten(t, filepath.Join(dir, archiveManifest), func(b []byte) []byte { return bytes.Replace(b, []byte("0001_roles.sql"), []byte("0001_rules.sql"), 1) })
			},
		} {
			for _, kind := range []struct {
				dir  string
				verb []string
			}{{data, []string{"restore"}}, {keys, []string{"keys", "restore", "--force"}}} {
				if strings.Contains(name, "key") != (kind.dir == keys) && (name == "a bit" || name == "a bit of a key") || name == "a whole line" && kind.dir == data {
					continue
				}
				out, errs, code := d.verb(t, append(append(kind.verb, copied(t, kind.dir, change)), there...)...)
				if code != 1 {
					t.Errorf("%s, %v: exit code %d\n%s%s", name, kind.verb, code, out, errs)
				}
			}
		}
		for _, table := range []string{"record", "record_version", "index_token", "phi_key", "phi_secret", "phi_kek"} {
			if n := counted(t, empty, `SELECT count(*) FROM `+table); n != 0 {
				t.Errorf("refused backups left %d rows in %s", n, table)
			}
		}
	})

	verb(0, "next: chartkeep keys restore", append([]string{"restore", data}, there...)...)
	t.Run("another deployment's keys are refused", func(t *testing.T) {
		strange := copied(t, keys, func(dir string) {
			rewritten(t, filepath.Join(dir, archiveManifest), func(b []byte) []byte {
				at := bytes.Index(b, []byte(`"deployment": "`)) + len(`"deployment": "`)
				copy(b[at:], "00000000")
				return b
			})
		})
		verb(1, "another deployment", append([]string{"keys", "restore", strange, "--force"}, there...)...)
		root := filepath.Join(t.TempDir(), "root")
		if err := os.WriteFile(root, bytes.Repeat([]byte{7}, 32), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, errs, code := d.verb(t, append(append([]string{"keys", "restore", keys}, there[:4]...), "--kms", "file:"+root, "--journal", t.TempDir())...); code != 1 || !strings.Contains(errs, "do not open") {
			t.Errorf("another root: exit code %d, %s", code, errs)
		}
	})
	verb(0, " 0 were there", append([]string{"keys", "restore", keys}, there...)...)
	for _, table := range []string{"record", "record_patient", "index_token", "treatment", "import_source", "phi_key", "phi_secret", "phi_kek"} {
		if got, want := counted(t, empty, `SELECT count(*) FROM `+table), counted(t, admin, `SELECT count(*) FROM `+table); got != want || want == 0 {
			t.Errorf("%s: %d rows of %d", table, got, want)
		}
	}
	// Every row of the restored database opens.
	verb(0, " 0 findings", append([]string{"sweep"}, there...)...)

	t.Run("lost keys come back, those of erased patients never", func(t *testing.T) {
		id := strings.TrimSpace(verb(0, "", append([]string{"keys", "shred", shredded, "--reason", "case 9", "--by", "Ines Diaz"}, here...)...))
		verb(0, "erased", append([]string{"keys", "shred", "--approve", id, "--by", "Sam Amari"}, here...)...)
		// Somebody removes a key, and all that the database knows about the erasure but the trail.
		for _, sql := range []string{
			`SET session_replication_role = replica`, `DELETE FROM phi_erased`, `DELETE FROM phi_erasure`,
			`DELETE FROM phi_key WHERE subject = (SELECT subject FROM record WHERE type = 'Patient' AND id = '` + lost + `')`,
		} {
			if _, err := admin.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		if res := d.do(t, "GET", "/fhir/R4/Patient/"+lost, backend, ""); res.StatusCode == http.StatusOK {
			t.Fatal("the record opens without its key")
		}
		verb(0, "1 left out", append([]string{"keys", "restore", keys, "--force"}, here...)...)
		if res := d.do(t, "GET", "/fhir/R4/Patient/"+lost, backend, ""); res.StatusCode != http.StatusOK {
			t.Errorf("the key did not come back: %s", res.Status)
		}
		if res := d.do(t, "GET", "/fhir/R4/Patient/"+shredded, backend, ""); res.StatusCode != http.StatusGone {
			t.Errorf("an erased patient: %s\n%s", res.Status, res.body)
		}
	})
}

// addField adds what no manifest has.
func addField(b []byte) []byte { return bytes.Replace(b, []byte(`{`), []byte(`{"signed": true,`), 1) }

// TestDrill rehearses a restore on a running demo, and again when the restore is spoiled.
func TestDrill(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "3")
	out := filepath.Join(t.TempDir(), "drill.json")
	if _, errs, code := d.verb(t, "keys", "drill", "--data", d.dir, "--out", out); code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var e drillEvidence
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	if !e.Passed || e.Failed != "" || len(e.Steps) != 11 || e.Restore <= 0 || e.Rows < 50 || len(e.Erasures) != 2 || len(e.Proves) != 2 {
		t.Errorf("evidence: %s", b)
	}
	if e.OldOpen == nil || !*e.OldOpen {
		t.Error("the evidence hides that keys from before the erasure still open: no epoch has ended")
	}
	backend := d.token(t, "app-backend")
	for _, id := range []string{e.Living, e.Shredded} {
		if res := d.do(t, "GET", "/fhir/R4/Patient/"+id, backend, ""); res.StatusCode != http.StatusGone {
			t.Errorf("a canary is left: %s", res.Status)
		}
	}
	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	if n := counted(t, admin, `SELECT count(*) FROM pg_database WHERE datname LIKE 'drill%'`); n != 0 {
		t.Errorf("%d scratch databases are left", n)
	}
	// Keys from before an erasure that no epoch has ended since are not dead, and the drill says so with exit code 1.
	old := filepath.Join(t.TempDir(), "old")
	var found struct {
		Entry []struct{ Resource struct{ ID string } }
	}
	if err := json.Unmarshal(d.do(t, "GET", "/fhir/R4/Patient", backend, "").body, &found); err != nil || len(found.Entry) != 3 {
		t.Fatalf("%d patients, %v", len(found.Entry), err)
	}
	if _, errs, code := d.verb(t, "keys", "backup", "--data", d.dir, "--out", old); code != 0 {
		t.Fatal(errs)
	}
	id, errs, code := d.verb(t, "keys", "shred", found.Entry[0].Resource.ID, "--reason", "case 3", "--by", "Ines Diaz", "--data", d.dir)
	if code != 0 {
		t.Fatal(errs)
	}
	if _, errs, code := d.verb(t, "keys", "shred", "--approve", strings.TrimSpace(id), "--by", "Sam Amari", "--data", d.dir); code != 0 {
		t.Fatal(errs)
	}
	text, errs, code := d.verb(t, "keys", "drill", "--data", d.dir, "--old-keys", old)
	if err := json.Unmarshal([]byte(text), &e); err != nil || code != 1 || e.Passed || e.Failed == "" || e.OldKeys == nil || e.OldKeys.Open != 1 || e.OldKeys.Erased != 1 {
		t.Errorf("old keys that open: exit code %d, %v\n%s%s", code, err, text, errs)
	}
	if n := counted(t, admin, `SELECT count(*) FROM pg_database WHERE datname LIKE 'drill%'`); n != 0 {
		t.Errorf("%d scratch databases are left after a failure", n)
	}
}

// A drill that is killed leaves data and keys side by side; the next one takes them away, and leaves those of one that still runs.
func TestDrillKilled(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "1")
	folder := t.TempDir()
	for _, running := range []bool{false, true} {
		dir, release, err := drillFolder(folder)
		if err != nil {
			t.Fatal(err)
		}
		drop, err := postgres.Scratch(t.Context(), d.DatabaseURL, fmt.Sprintf("drill_%t", running), "drill_running")
		if err != nil {
			t.Fatal(err)
		}
		if running {
			defer drop() //nolint:errcheck // the cluster goes, too
			defer release()
			continue
		}
		// As after a kill: the lock is gone, the rest is there.
		if err := drop(); err != nil {
			t.Fatal(err)
		}
		release()
		if err := os.MkdirAll(filepath.Join(dir, "keys-before"), 0o700); err != nil {
			t.Fatal(err)
		}
		admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close(t.Context())
		if _, err := admin.Exec(t.Context(), `CREATE DATABASE drill_false`); err != nil {
			t.Fatal(err)
		}
	}
	if _, errs, code := d.verb(t, "keys", "drill", "--data", d.dir, "--folder", folder); code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	left, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("folders: %v, %v, want that of the drill that runs", left, err)
	}
	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	if dead, alive := counted(t, admin, `SELECT count(*) FROM pg_database WHERE datname = 'drill_false'`), counted(t, admin, `SELECT count(*) FROM pg_database WHERE datname LIKE 'drill%'`); dead != 0 || alive != 1 {
		t.Errorf("scratch databases: %d of a dead drill, %d in all", dead, alive)
	}
}

// Experiment 12, second half, as in production: after the epoch's end a backup of the keys from before an erasure opens nothing of
// the erased patient, and the drill proves it; other patients open.
func TestDrillAfterEpoch(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "3")
	dir := t.TempDir()
	must := func(args ...string) string {
		t.Helper()
		out, errs, code := d.verb(t, args...)
		if code != 0 {
			t.Fatalf("%s: exit code %d\n%s%s", strings.Join(args[:2], " "), code, out, errs)
		}
		return strings.TrimSpace(out)
	}
	data, keys := filepath.Join(dir, "data"), filepath.Join(dir, "keys")
	must("backup", "--out", data, "--data", d.dir)
	must("keys", "backup", "--out", keys, "--data", d.dir)
	flags, admin := d.scratchDatabase(t, "production")
	must(append([]string{"restore", data}, flags...)...)
	must(append([]string{"keys", "restore", keys}, flags...)...)
	var shredded string
	if err := admin.QueryRow(t.Context(), `SELECT id FROM record WHERE type = 'Patient' ORDER BY id LIMIT 1`).Scan(&shredded); err != nil {
		t.Fatal(err)
	}
	id := must(append([]string{"keys", "shred", shredded, "--reason", "case 12", "--by", "Ines Diaz"}, flags...)...)
	must(append([]string{"keys", "shred", "--approve", id, "--by", "Sam Amari"}, flags...)...)

	// --kms NEW --kms OLD, rewrap, and then the old one is gone.
	vault := kmstest.NewVault(t)
	at := slices.Index(flags, "--kms")
	next := append(slices.Delete(slices.Clone(flags), at, at+2), "--kms", vault.URI, "--kms-token-file", vault.TokenFile, "--kms-ca-file", vault.CAFile)
	must(append([]string{"keys", "rewrap"}, append(slices.Clone(next), flags[at:at+2]...)...)...)
	scratch, _ := d.scratchDatabase(t, "scratch")
	var e drillEvidence
	out := must(append([]string{"keys", "drill", "--scratch-database-url", scratch[1], "--old-keys", keys}, next...)...)
	if err := json.Unmarshal([]byte(out), &e); err != nil || !e.Passed || e.OldKeys == nil || e.OldKeys.Erased != 1 || e.OldKeys.Open != 0 || len(e.Proves) != 3 {
		t.Errorf("%v\n%s", err, out)
	}
	must(append([]string{"sweep"}, next...)...)
}

// Data that was backed up before keys and index keys were rotated: the newest keys open what they can, the restore says what is missing, and
// with the keys of the data's time everything opens; the index is made anew.
func TestRestoreAfterRotation(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "3")
	dir := t.TempDir()
	must := func(says string, args ...string) {
		t.Helper()
		if out, errs, code := d.verb(t, args...); code != 0 || !strings.Contains(out, says) {
			t.Fatalf("%s: exit code %d, want %q\n%s%s", strings.Join(args[:2], " "), code, says, out, errs)
		}
	}
	data, then, now := filepath.Join(dir, "data"), filepath.Join(dir, "then"), filepath.Join(dir, "now")
	here := []string{"--data", d.dir}
	must("", append([]string{"backup", "--out", data}, here...)...)
	must("", append([]string{"keys", "backup", "--out", then}, here...)...)
	must("", append([]string{"keys", "rotate", "--all"}, here...)...)
	must("", append([]string{"keys", "rotate", "--index"}, here...)...)
	must("", append([]string{"keys", "backup", "--out", now}, here...)...)
	there, admin := d.scratchDatabase(t, "older")
	must("", append([]string{"restore", data}, there...)...)
	must("rows are under keys that were rotated away", append([]string{"keys", "restore", now}, there...)...)
	// The index keys of the data's time are not made anew: they would find nothing.
	if out, errs, code := d.verb(t, append([]string{"sweep"}, there...)...); code != 1 || !strings.Contains(errs, "chartkeep keys restore") {
		t.Errorf("without the old keys: exit code %d\n%s%s", code, out, errs)
	}
	must("", append([]string{"keys", "restore", then, "--force"}, there...)...)
	must(" 0 findings", append([]string{"sweep"}, there...)...)
	if n := counted(t, admin, `SELECT count(*) FROM record WHERE index_id = 1`); n == 0 {
		t.Fatal("nothing is indexed by the old keys")
	}
	must("", append([]string{"keys", "rotate", "--index"}, there...)...)
	if n := counted(t, admin, `SELECT count(*) FROM record WHERE index_id NOT IN (SELECT id FROM index_generation WHERE state = 'active')`); n != 0 {
		t.Errorf("%d records are still indexed under old keys", n)
	}
	must(" 0 findings", append([]string{"sweep"}, there...)...)
}
