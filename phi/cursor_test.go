package phi

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"slices"
	"testing"

	"github.com/chartkeep/chartkeep/phi/fhir"
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
	f.Add("", "")
	f.Add("AAAA", "x")
	f.Add("%%%", "\xff")
	f.Fuzz(func(t *testing.T, text, value string) {
		if _, err := openCursor(aead, "a", text); err != nil && !errors.Is(err, errCursor) {
			t.Errorf("error %v", err)
		}
		c := cursor{Params: []Param{{"name", value}}, Strict: true, After: "7", Before: 3}
		sealed, err := sealCursor(aead, "a", c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := openCursor(aead, "b", sealed); err == nil {
			t.Error("opened in another scope")
		}
		for i := range sealed {
			if i < len(text) && text[i] != sealed[i] { // one character of another text in its place
				if _, err := openCursor(aead, "a", sealed[:i]+text[i:i+1]+sealed[i+1:]); err == nil {
					t.Errorf("opened with character %d changed", i)
				}
			}
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

// An entry that parses addresses what can exist, whatever the bundle holds.
func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"resourceType":"Bundle","type":"batch","entry":[{"fullUrl":"urn:x","resource":{"resourceType":"Patient"},"request":{"method":"POST","url":"Patient","ifNoneExist":"a=b"}}]}`))
	f.Add([]byte(`{"resourceType":"Bundle","entry":[{"request":{"method":"GET","url":"/Patient/1/_history/2"}},7,{"request":[]}]}`))
	f.Add([]byte(`{"resourceType":"Bundle","entry":[{"request":{"method":"PUT","url":"Patient/%2f?x","ifMatch":"W/\"0\""}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		_, entries, e := parseBundle(body)
		if e != nil && len(e.Issues) == 0 {
			t.Error("an error without issues")
		}
		for _, e := range entries {
			if e.err != nil || e.method == "" {
				continue
			}
			if !fhir.Known(e.target.Type) || e.target.ID != "" && !fhir.ValidID(e.target.ID) || e.ifMatch < 0 {
				t.Errorf("entry addresses %v", e.target)
			}
		}
	})
}
