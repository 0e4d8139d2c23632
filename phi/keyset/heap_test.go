package keyset_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestHeapDump is experiment 25: two minutes after a data key was used last, a dump of the live heap does not have it; while it
// is in use it does, which shows that the search would find it. What the test cannot promise: memory that was given back
// to the collector keeps its bytes until it is used again (Go has no way to clear the expanded keys of crypto/aes), so a
// core dump of the whole process may have them for longer; and the key-encryption key is there all the time.
func TestHeapDump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		keys := running(t, &memory{}, nil, newRoot(t))
		kek, wrapped := newKey(t, keys, someone)
		secret, err := keys.Secret(t.Context(), kek, wrapped, someone)
		if err != nil {
			t.Fatal(err)
		}
		// The expanded key of AES-256 begins with the key. What is looked for is kept in another form.
		inverted := make([]byte, len(secret))
		for i, b := range secret {
			inverted[i] = ^b
		}
		clear(secret)
		dump := filepath.Join(t.TempDir(), "heap")
		found := func() bool {
			runtime.GC()
			runtime.GC() // the first moves what pools hold to their victims
			f, err := os.Create(dump)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			debug.WriteHeapDump(f.Fd())
			b, err := os.ReadFile(dump)
			if err != nil {
				t.Fatal(err)
			}
			for i := range b {
				b[i] = ^b[i]
			}
			return bytes.Contains(b, inverted)
		}
		warm(t, keys, kek, wrapped)
		if !found() {
			t.Error("the dump has no trace of a key that is in use: the search is blind")
		}
		time.Sleep(2 * time.Minute)
		if found() {
			t.Error("the key is in the live heap two minutes after its last use")
		}
		// Where keys are changed elsewhere, it is gone at once.
		warm(t, keys, kek, wrapped)
		keys.Wake()
		for range 10 {
			time.Sleep(time.Millisecond)
		}
		if found() {
			t.Error("the key is in the live heap after a change of keys")
		}
	})
}

// TestSecretsAreTheCallers shows that Secret keeps nothing: cleared by the caller, no copy is left.
func TestSecretsAreTheCallers(t *testing.T) {
	keys := open(t, newRoot(t), &memory{})
	kek, wrapped := newKey(t, keys, someone)
	first, err := keys.Secret(t.Context(), kek, wrapped, someone)
	if err != nil {
		t.Fatal(err)
	}
	kept := bytes.Clone(first)
	clear(first)
	second, err := keys.Secret(t.Context(), kek, wrapped, someone)
	if err != nil || !bytes.Equal(second, kept) {
		t.Errorf("a cleared secret changes what others get (%v)", err)
	}
	if s := keys.Stats(); s.Hits+s.Misses != 0 {
		t.Errorf("secrets went through the cache: %+v", s)
	}
}
