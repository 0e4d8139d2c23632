package main

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
)

// offline runs the program in an empty folder, without environment and, where this user may cut it off, without network.
func offline(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	program, err := exec.LookPath("chartkeep")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	if unshare, err := exec.LookPath("unshare"); err == nil && exec.Command(unshare, "-n", "true").Run() == nil {
		cmd = exec.Command(unshare, append([]string{"-n", program}, args...)...)
	}
	cmd.Dir, cmd.Env = t.TempDir(), []string{}
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// verified waits until everything recorded so far is in the tree, and verifies the trail.
func (d *instance) verified(t *testing.T, args ...string) audit.Report {
	t.Helper()
	var r audit.Report
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, errs, code := d.verb(t, append([]string{"audit", "verify", "--json", "--data", d.dir}, args...)...)
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v: %s%s", err, out, errs)
		}
		if code != 0 {
			t.Fatalf("exit code %d: %v", code, r.Findings)
		}
		if r.Unsequenced == 0 && r.Checkpoint.Size > 0 {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %d rows are not in the tree", r.Unsequenced)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// TestAuditFiles verifies the live trail, exports all of it and a patient's part, proves an event, and verifies the files
// elsewhere; then it changes a byte at a time in every file and looks whether that is noticed and named.
func TestAuditFiles(t *testing.T) {
	d := demoShared(t)
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	d.do(t, "GET", d.FHIR+"/Patient/"+one.PatientOne, d.token(t, "dr-rivera"), "")
	events := d.events(t, d.token(t, "officer-diaz"), "patient="+one.PatientOne+"&agent=dr-rivera&interaction=read&limit=1", 1)
	dir := t.TempDir()
	state := filepath.Join(dir, "state.json")
	first := d.verified(t, "--state", state)
	again := d.verified(t, "--state", state)
	if again.From < first.Checkpoint.Size || again.Rows > 1000 || again.Anchors < 1 {
		t.Errorf("the second run took over %d of %d leaves and read %d rows", again.From, first.Checkpoint.Size, again.Rows)
	}
	whole := d.verified(t, "--state", state, "--full", "--key", d.CheckpointKey)
	if whole.Rows < whole.Checkpoint.Size || whole.Anchors < 1 || whole.Trust != audit.TrustKeys {
		t.Errorf("the whole trail: %+v", whole)
	}

	d.rollback(t)

	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(d.CheckpointKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, part := filepath.Join(dir, "all.zip"), filepath.Join(dir, "part")
	for _, args := range [][]string{{"--out", all, "--fhir"}, {"--out", part, "--patient", one.PatientOne, "--from", "2020-01-01"}} {
		if out, errs, code := d.verb(t, append([]string{"audit", "export", "--data", d.dir}, args...)...); code != 0 {
			t.Fatalf("%v: %d, %s%s", args, code, out, errs)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--key", key, all}, 0, "\nOK "},
		{[]string{"--key", d.CheckpointKey, part}, 0, "each proven to be in the tree"},
		{[]string{all}, 0, "SELF-CONSISTENT ONLY"},
		{[]string{"--key", strings.Replace(d.CheckpointKey, "chartkeep.demo", "chartkeep.domo", 1), all}, 2, "key"},
		{[]string{"--key", key, "--quorum", "1", all}, 2, "quorum"},
	} {
		if out, code := offline(t, append([]string{"audit", "verify"}, c.args...)...); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("verify %v: exit code %d: %s", c.args, code, out)
		}
	}

	// What was exported is what the officers' API showed, and as FHIR.
	z, err := zip.OpenReader(all)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	id := events[0]["id"].(string)
	if b, err := fs.ReadFile(z, "AuditEvent.ndjson"); err != nil || !bytes.Contains(b, []byte(id)) {
		t.Errorf("event %s is not there as FHIR: %v", id, err)
	}

	proof := filepath.Join(dir, "event.tlog-proof")
	if out, errs, code := d.verb(t, "audit", "proof", id, "--data", d.dir, "--out", proof); code != 0 {
		t.Fatalf("proof: %d, %s%s", code, out, errs)
	}
	out, code := offline(t, "audit", "verify", "--key", key, proof)
	for _, want := range []string{id, "dr-rivera", one.PatientOne, "OK: "} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("the proof lacks %q: exit code %d: %s", want, code, out)
		}
	}
	text, err := os.ReadFile(proof)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/3] ^= 1
	if err := os.WriteFile(proof, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := offline(t, "audit", "verify", "--key", key, proof); code != 1 {
		t.Errorf("a changed proof: exit code %d: %s", code, out)
	}

	for _, source := range []fs.FS{&z.Reader, os.DirFS(part)} {
		files := fstest.MapFS{}
		if err := fs.WalkDir(source, ".", func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			b, err := fs.ReadFile(source, path)
			files[path] = &fstest.MapFile{Data: b, Mode: 0o600}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		verify := func() (named string) {
			b, err := audit.OpenBundle(files)
			if err != nil {
				return err.Error()
			}
			defer b.Close()
			r, err := b.Verify(t.Context(), audit.VerifyOptions{Keys: []string{d.CheckpointKey}})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Findings {
				named += f.String() + "\n"
			}
			return named
		}
		if named := verify(); named != "" {
			t.Fatal(named)
		}
		for path, file := range files {
			good := file.Data
			for range min(3, len(good)) {
				i := rand.IntN(len(good))
				file.Data = bytes.Clone(good)
				file.Data[i] ^= 1 << rand.IntN(8)
				named := verify()
				place := slices.ContainsFunc([]string{path, "leaf ", "checkpoint", "manifest"}, func(s string) bool { return strings.Contains(named, s) })
				if named == "" || !place {
					t.Errorf("byte %d of %s was changed, and verification says: %q", i, path, named)
				}
			}
			file.Data = good
		}
	}
}

// rollback has a witness that saw more of the log than there is: the trail was rolled back, or so it looks.
func (d *instance) rollback(t *testing.T) {
	t.Helper()
	skey, vkey, err := audit.GenerateWitnessKey(rand.NewChaCha8([32]byte{}), "witness.example/w")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewCosigner(skey, nil)
	if err != nil {
		t.Fatal(err)
	}
	logKey, err := note.NewVerifier(d.CheckpointKey)
	if err != nil {
		t.Fatal(err)
	}
	w, err := audit.NewWitness(audit.WitnessConfig{Dir: t.TempDir(), Signer: signer, Logs: []note.Verifier{logKey}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	server := httptest.NewServer(w)
	defer server.Close()
	add := func(msg []byte) {
		t.Helper()
		res, err := http.Post(server.URL+"/add-checkpoint", "text/plain", bytes.NewReader(append([]byte("old 0\n\n"), msg...)))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("the witness answers %s", res.Status)
		}
	}
	witness := vkey + "@" + server.URL
	if r := d.verified(t, "--witness", witness); r.Anchors > 1 { // the demo's own anchor aside
		t.Errorf("a witness that saw nothing: %+v", r)
	}
	key, err := readCheckpointKey(filepath.Join(d.dir, demoCheckpoint))
	if err != nil {
		t.Fatal(err)
	}
	forged, err := audit.Checkpoint{Origin: key.Name(), Size: 1 << 40}.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	// An anchor tells as much as a witness does, unasked.
	anchor := filepath.Join(d.dir, demoAnchors, audit.AnchorName(1<<40, forged))
	if err := os.WriteFile(anchor, forged, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, code := d.verb(t, "audit", "verify", "--data", d.dir); code != 1 || !strings.Contains(out, "FINDING rollback") {
		t.Errorf("a trail that is smaller than its anchor: exit code %d: %s", code, out)
	}
	if err := os.Remove(anchor); err != nil {
		t.Fatal(err)
	}
	add(forged)
	out, _, code := d.verb(t, "audit", "verify", "--data", d.dir, "--witness", witness)
	if code != 1 || !strings.Contains(out, "FINDING rollback") {
		t.Errorf("a trail that is smaller than its witness knows: exit code %d: %s", code, out)
	}
}
