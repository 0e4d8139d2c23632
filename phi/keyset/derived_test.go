package keyset_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/phi/keyset"
)

// TestDerived seals under a key of its own each time, opens nothing that was changed, and is not counted: no message of it wears a key.
func TestDerived(t *testing.T) {
	storage := &memory{}
	t.Run("", func(t *testing.T) {
		keys := running(t, storage, nil, newRoot(t))
		kek, wrapped := newKey(t, keys, someone)
		d, err := keys.Derived(t.Context(), kek, wrapped, someone)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Derived(t.Context(), kek, wrapped, keyset.Binding{}); err == nil {
			t.Error("derived for another binding")
		}
		rapid.Check(t, func(t *rapid.T) {
			plain, aad := rapid.SliceOf(rapid.Byte()).Draw(t, "plain"), rapid.SliceOf(rapid.Byte()).Draw(t, "aad")
			head := rapid.SliceOf(rapid.Byte()).Draw(t, "head")
			sealed := d.Seal(bytes.Clone(head), nil, plain, aad)
			if !bytes.HasPrefix(sealed, head) || len(sealed) != len(head)+len(plain)+d.Overhead() {
				t.Fatalf("%d bytes sealed after %d are %d", len(plain), len(head), len(sealed))
			}
			sealed = sealed[len(head):]
			opened, err := d.Open(bytes.Clone(head), nil, sealed, aad)
			if err != nil || !bytes.Equal(opened, append(bytes.Clone(head), plain...)) {
				t.Fatalf("opened %x, %v", opened, err)
			}
			if again := d.Seal(nil, nil, plain, aad); bytes.Equal(again[:16], sealed[:16]) {
				t.Fatal("two messages have one salt")
			}
			changed := bytes.Clone(sealed)
			changed[rapid.IntRange(0, len(sealed)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "by"))
			for what, open := range map[string]func() ([]byte, error){
				"changed":                  func() ([]byte, error) { return d.Open(nil, nil, changed, aad) },
				"cut":                      func() ([]byte, error) { return d.Open(nil, nil, sealed[:len(sealed)-1], aad) },
				"cut short":                func() ([]byte, error) { return d.Open(nil, nil, sealed[:15], aad) },
				"of other associated data": func() ([]byte, error) { return d.Open(nil, nil, sealed, append(aad, 1)) },
			} {
				if opened, err := open(); err == nil {
					t.Fatalf("a message %s opened: %x", what, opened)
				}
			}
		})
	})
	if n := storage.uses[keyset.Uses{Binding: someone}]; n != 0 {
		t.Errorf("%d messages are counted against the secret", n)
	}
}
