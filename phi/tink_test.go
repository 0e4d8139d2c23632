package phi

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/tink"
)

func newTink(t *testing.T, key []byte, id uint32) tink.AEAD {
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
	return a
}

// TestTink holds that Tink opens what is sealed here, seal included, and that what Tink seals opens here.
func TestTink(t *testing.T) {
	key := make([]byte, 32)
	rand.Read(key)
	s, plain := identity(), contents()
	s.KeyID = 0xdeadbeef
	ours, theirs := newCipher(t, key), newTink(t, key, s.KeyID)
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
			t.Errorf("Tink opened %s as %q, %v", c, got, err)
		}
		cell, err := theirs.Encrypt(padded, aad)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := openCell(nil, ours, s.KeyID, cell, aad); err != nil || !bytes.Equal(got, padded) {
			t.Errorf("%s as Tink seals it opened as %q, %v", c, got, err)
		}
	}
	manifest := s.Seal[:manifestSize]
	if _, err := theirs.Decrypt(s.Seal[manifestSize:], appendSealAAD(nil, &s, manifest)); err != nil {
		t.Errorf("Tink does not verify the row seal: %v", err)
	}
}
