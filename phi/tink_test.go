package phi

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/tink"
)

func newTink(t *testing.T, key []byte, id uint32) (tink.AEAD, *keyset.Handle) {
	t.Helper()
	params, err := aesgcm.NewParameters(aesgcm.ParametersOpts{
		KeySizeInBytes: 32, IVSizeInBytes: 12, TagSizeInBytes: 16, Variant: aesgcm.VariantTink,
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := aesgcm.NewKey(secretdata.NewBytesFromData(key, insecuresecretdataaccess.Token{}), id, params)
	if err != nil {
		t.Fatal(err)
	}
	m := keyset.NewManager()
	if _, err := m.AddKey(k); err != nil {
		t.Fatal(err)
	}
	if err := m.SetPrimary(id); err != nil {
		t.Fatal(err)
	}
	handle, err := m.Handle()
	if err != nil {
		t.Fatal(err)
	}
	a, err := aead.New(handle)
	if err != nil {
		t.Fatal(err)
	}
	return a, handle
}

// tinkCells is how many cells are exchanged with each implementation, each way (experiment 14).
const tinkCells = 10_000

// TestTink holds that Tink opens what is sealed here, seals included, and that what Tink seals opens here.
func TestTink(t *testing.T) {
	exchanged := 0
	for exchanged < tinkCells {
		key := make([]byte, 32)
		rand.Read(key)
		s, plain := identity(), contents()
		s.KeyID = uint32(exchanged)*0x9e3779b1 | 1
		ours := newCipher(t, key)
		theirs, _ := newTink(t, key, s.KeyID)
		for range 100 {
			s.Version++
			if err := sealRow(ours, &s, &plain, nil); err != nil {
				t.Fatal(err)
			}
			for c := range Class(NumClasses) {
				aad := appendAAD(nil, aadCell, uint16(c), &s)
				padded, err := theirs.Decrypt(s.Cells[c], aad)
				if err != nil {
					t.Fatalf("Tink does not open %s: %v", c, err)
				}
				if got, err := unpad(padded); err != nil || !bytes.Equal(got, plain[c]) {
					t.Fatalf("Tink opened %s as %q, %v", c, got, err)
				}
				cell, err := theirs.Encrypt(padded, aad)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := openCell(nil, ours, s.KeyID, cell, aad); err != nil || !bytes.Equal(got, padded) {
					t.Fatalf("%s as Tink seals it opened as %q, %v", c, got, err)
				}
				exchanged++
			}
			manifest := s.Seal[:manifestSize]
			if _, err := theirs.Decrypt(s.Seal[manifestSize:], appendSealAAD(nil, &s, manifest)); err != nil {
				t.Fatalf("Tink does not verify the row seal: %v", err)
			}
		}
	}
}

// TestTinkJavaScript does the same with Tink for JavaScript, which shares no code with the other two. It is fetched from the
// registry of npm, so it belongs to the long form.
func TestTinkJavaScript(t *testing.T) {
	if !long() {
		t.Skip("fetches tink-crypto from npm: set CHARTKEEP_LONG")
	}
	dir := t.TempDir()
	if out, err := exec.Command("npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "--ignore-scripts", "tink-crypto@0.1.1").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no tink-crypto: %v\n%s", err, out)
	}
	key := make([]byte, 32)
	rand.Read(key)
	s, plain := identity(), contents()
	s.KeyID = 0xdeadbeef
	ours := newCipher(t, key)
	_, handle := newTink(t, key, s.KeyID)
	var serialized bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewBinaryWriter(&serialized)); err != nil {
		t.Fatal(err)
	}
	type cell struct {
		Cell []byte `json:"cell"`
		AAD  []byte `json:"aad"`
	}
	request := struct {
		Keyset []byte `json:"keyset"`
		Cells  []cell `json:"cells"`
	}{Keyset: serialized.Bytes()}
	for len(request.Cells) < tinkCells {
		s.Version++
		if err := sealRow(ours, &s, &plain, nil); err != nil {
			t.Fatal(err)
		}
		for c := range Class(NumClasses) {
			request.Cells = append(request.Cells, cell{s.Cells[c], appendAAD(nil, aadCell, uint16(c), &s)})
		}
	}
	input, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("testdata/tink.cjs")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", script)
	cmd.Env = append(cmd.Environ(), "NODE_PATH="+filepath.Join(dir, "node_modules"))
	cmd.Stdin = bytes.NewReader(input)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &failure)
	}
	var answers []struct{ Opened, Sealed []byte }
	if err := json.Unmarshal(output, &answers); err != nil || len(answers) != len(request.Cells) {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	for i, a := range answers {
		if got, err := unpad(a.Opened); err != nil || !bytes.Equal(got, plain[i%NumClasses]) {
			t.Fatalf("cell %d opened as %q, %v", i, got, err)
		}
		if got, err := openCell(nil, ours, s.KeyID, a.Sealed, request.Cells[i].AAD); err != nil || !bytes.Equal(got, a.Opened) {
			t.Fatalf("cell %d as JavaScript seals it: %v", i, err)
		}
	}
	t.Logf("%d cells each way", len(answers))
}
