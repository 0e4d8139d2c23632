package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/formats/log"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// logKey makes a key of a log.
func logKey(t testing.TB, origin string) (note.Signer, note.Verifier, string) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return s, v, vkey
}

// witnessKey makes a key of a witness.
func witnessKey(t testing.TB, name string) (note.Signer, note.Verifier, string) {
	t.Helper()
	skey, vkey, err := GenerateWitnessKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewCosigner(skey, func() time.Time { return time.Unix(1679315147, 0) })
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewCosignatureVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return s, v, vkey
}

// TestCheckpointForeign reads what the other implementation writes, and the reverse.
func TestCheckpointForeign(t *testing.T) {
	signer, verifier, _ := logKey(t, "example.com/behind-the-sofa")
	c := Checkpoint{Origin: "example.com/behind-the-sofa", Size: 20852163, Root: Hash{1, 2, 3}}
	msg, err := c.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	theirs, rest, _, err := log.ParseCheckpoint(msg, c.Origin, verifier)
	if err != nil || theirs.Size != uint64(c.Size) || string(theirs.Hash) != string(c.Root[:]) || len(rest) != 0 {
		t.Errorf("formats reads ours as %+v, %q, %v", theirs, rest, err)
	}
	msg, err = note.Sign(&note.Note{Text: string(log.Checkpoint{Origin: c.Origin, Size: 7, Hash: c.Root[:]}.Marshal())}, signer)
	if err != nil {
		t.Fatal(err)
	}
	ours, _, err := OpenCheckpoint(msg, note.VerifierList(verifier))
	if want := (Checkpoint{c.Origin, 7, c.Root}); err != nil || ours != want {
		t.Errorf("we read theirs as %+v, %v", ours, err)
	}
	// The text of the example in https://c2sp.org/tlog-checkpoint.
	const example = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
	if c, err = ParseCheckpoint(example); err != nil || c.Text() != example {
		t.Errorf("the example is %+v, %v", c, err)
	}
}

// TestCosignatureForeign checks cosignatures of each implementation with the other, also with plain Ed25519 verifier keys.
func TestCosignatureForeign(t *testing.T) {
	logSigner, logVerifier, _ := logKey(t, "example.com/log")
	msg, err := Checkpoint{Origin: "example.com/log", Size: 3}.Sign(logSigner)
	if err != nil {
		t.Fatal(err)
	}
	skey, vkey, err := GenerateWitnessKey(rand.Reader, "witness.example.com/w1")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := NewCosigner(skey, nil)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := formats.NewSignerForCosignatureV1(skey)
	if err != nil {
		t.Fatal(err)
	}
	ourVerifier, err := NewCosignatureVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	theirVerifier, err := formats.NewVerifierForCosignatureV1(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if ourVerifier.KeyHash() != theirVerifier.KeyHash() {
		t.Errorf("key ids %08x and %08x", ourVerifier.KeyHash(), theirVerifier.KeyHash())
	}
	for _, signer := range []note.Signer{ours, theirs} {
		opened, err := note.Open(msg, note.VerifierList(logVerifier))
		if err != nil {
			t.Fatal(err)
		}
		cosigned, err := note.Sign(opened, signer)
		if err != nil {
			t.Fatal(err)
		}
		for _, verifier := range []note.Verifier{ourVerifier, theirVerifier} {
			_, n, err := OpenCheckpoint(cosigned, note.VerifierList(logVerifier, verifier))
			if err != nil || len(n.Sigs) != 2 {
				t.Fatalf("%T's cosignature with %T: %v", signer, verifier, err)
			}
			at, err := CosignatureTime(n.Sigs[1])
			if err != nil || time.Since(at) > time.Minute || time.Since(at) < -time.Minute {
				t.Errorf("cosigned at %v, %v", at, err)
			}
		}
	}

	plainSigner, plain, err := note.GenerateKey(rand.Reader, "witness.example.com/w2")
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewCosignatureVerifier(plain)
	if err != nil {
		t.Fatal(err)
	}
	other, err := formats.NewVerifierForCosignatureV1(plain)
	if err != nil || v.KeyHash() != other.KeyHash() {
		t.Errorf("a plain key stands for %08x here and %08x there: %v", v.KeyHash(), other.KeyHash(), err)
	}
	if _, err := NewCosigner(plainSigner, nil); err == nil {
		t.Error("a log's key became a witness's")
	}
	if _, err := note.NewSigner(skey); err == nil {
		t.Error("a witness's key became a log's")
	}
	if _, err := ours.Sign([]byte("no checkpoint\n")); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("a witness signed something else: %v", err)
	}
}

// TestCosignatureVector is the example of https://c2sp.org/tlog-cosignature: without the key, its time and key id.
func TestCosignatureVector(t *testing.T) {
	at, err := CosignatureTime(note.Signature{Base64: "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA=="})
	if err != nil || at.Unix() != 1679315147 {
		t.Errorf("time %v, %v", at, err)
	}
}

func TestCheckpointRefused(t *testing.T) {
	signer, verifier, _ := logKey(t, "example.com/log")
	cosigner, cosignatures, _ := witnessKey(t, "example.com/log") // a witness that bears the log's name
	stranger, strangers, _ := logKey(t, "example.com/other")
	known := note.VerifierList(verifier, cosignatures, strangers)
	root := Hash{9}.String()
	for _, c := range []struct {
		name, text string
		signer     note.Signer
	}{
		{"extension line", "example.com/log\n1\n" + root + "\nmore\n", signer},
		{"two lines", "example.com/log\n1\n", signer},
		{"leading zero", "example.com/log\n01\n" + root + "\n", signer},
		{"sign", "example.com/log\n+1\n" + root + "\n", signer},
		{"negative", "example.com/log\n-1\n" + root + "\n", signer},
		{"beyond int64", "example.com/log\n9223372036854775808\n" + root + "\n", signer},
		{"no origin", "\n1\n" + root + "\n", signer},
		{"short root", "example.com/log\n1\nAAAA\n", signer},
		{"loose base64", "example.com/log\n1\n" + root[:42] + "B=\n", signer},
		{"another log's key", "example.com/log\n1\n" + root + "\n", stranger},
		{"witness instead of log", "example.com/log\n1\n" + root + "\n", cosigner},
	} {
		msg, err := note.Sign(&note.Note{Text: c.text}, c.signer)
		if err != nil && c.signer == signer {
			t.Fatal(err)
		}
		if got, _, err := OpenCheckpoint(msg, known); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%s: opened as %+v, %v", c.name, got, err)
		}
	}
	msg, err := Checkpoint{Origin: "example.com/log", Size: 1}.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	for i := range msg {
		bad := append([]byte(nil), msg...)
		bad[i] ^= 1
		if _, _, err := OpenCheckpoint(bad, known); err == nil {
			t.Fatalf("opened with byte %d changed: %q", i, bad)
		}
	}
}

func TestPruning(t *testing.T) {
	signer, verifier, _ := logKey(t, "example.com/log")
	known := note.VerifierList(verifier)
	p := Pruning{
		Origin: "example.com/log", Partition: "audit_event_2019_01", Before: time.Date(2019, 2, 1, 0, 0, 0, 0, time.UTC),
		Made: time.Date(2025, 2, 1, 0, 0, 0, 0, time.UTC), Rows: 12, Archive: Hash{1},
		Ranges: []PrunedRange{{Stream: StreamID{1}, First: 0, Count: 5, Chain: Hash{2}}, {Stream: StreamID{1}, First: 7, Count: 3}, {Stream: StreamID{2}, First: 9, Count: 4}},
	}
	msg, err := p.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenPruning(msg, known)
	if err != nil || fmt.Sprint(*got) != fmt.Sprint(p) {
		t.Errorf("opened %+v, %v", got, err)
	}
	if _, _, err := OpenCheckpoint(msg, known); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("a pruning record was taken for a checkpoint: %v", err)
	}
	text := p.Text()
	for name, bad := range map[string]string{
		"too young":    strings.Replace(text, "made 2025-02-01T00:00:00Z", "made 2025-01-31T23:59:59Z", 1),
		"sum":          strings.Replace(text, "rows 12", "rows 13", 1),
		"spelling":     strings.Replace(text, "rows 12", "rows 012", 1),
		"fraction":     strings.Replace(text, "01T00:00:00Z\nmade", "01T00:00:00.0Z\nmade", 1),
		"overlap":      strings.Replace(text, " 7 3 ", " 4 3 ", 1),
		"order":        strings.Replace(text, "range 01", "range 03", 1),
		"empty range":  strings.Replace(strings.Replace(text, " 7 3 ", " 7 0 ", 1), "rows 12", "rows 9", 1),
		"trailing":     text + "more\n",
		"other header": strings.Replace(text, pruningHeader, pruningHeader+"0", 1),
		"no fields":    pruningHeader + "\n",
	} {
		msg, err := note.Sign(&note.Note{Text: bad}, signer)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenPruning(msg, known); !errors.Is(err, ErrPruning) {
			t.Errorf("%s: opened as %+v, %v", name, got, err)
		}
	}
	p.Made = p.Before
	if _, err := p.Sign(signer); !errors.Is(err, ErrPruning) {
		t.Errorf("rows of yesterday were pruned: %v", err)
	}
}
