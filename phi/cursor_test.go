package phi

import (
	"crypto/aes"
	"crypto/cipher"
	"slices"
	"testing"
)

func testCipher(t testing.TB) cipher.AEAD {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

// Whatever is not a cursor of this scope is refused with the one error, and what is comes back whole.
func FuzzCursor(f *testing.F) {
	aead := testCipher(f)
	good, err := sealCursor(aead, "a", cursor{Params: []Param{{"name", "x"}}, After: "1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("", "")
	f.Add(good, "x")
	f.Add(good[:len(good)-1], "\xff")
	f.Fuzz(func(t *testing.T, text, value string) {
		if _, err := openCursor(aead, "a", text); err != nil && err != errCursor {
			t.Errorf("error %v", err)
		}
		if text != good {
			if _, err := openCursor(aead, "a", text); err == nil {
				t.Errorf("%q opened", text)
			}
		}
		c := cursor{Params: []Param{{"name", value}}, Strict: true, After: "7", Before: 3}
		sealed, err := sealCursor(aead, "a", c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := openCursor(aead, "b", sealed); err == nil {
			t.Error("opened in another scope")
		}
		got, err := openCursor(aead, "a", sealed)
		if err != nil || got.After != c.After || got.Before != c.Before || !got.Strict || len(got.Params) != 1 {
			t.Errorf("got %+v, %v", got, err)
		}
		if slices.ContainsFunc([]rune(value), func(r rune) bool { return r == '\ufffd' }) {
			return // JSON cannot carry what is not UTF-8
		}
		if got.Params[0].Value != value {
			t.Errorf("value %q came back as %q", value, got.Params[0].Value)
		}
	})
}
