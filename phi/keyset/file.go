package keyset

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// FileRoot is a root key in a file: 32 random bytes, readable by its owner only. It is for development: who can read
// the disk has the key beside the data, so production refuses it (Development).
type FileRoot struct{ aead cipher.AEAD }

// NewFileRoot reads the key file at path. When there is none and create is set it makes one, in an existing directory;
// when two do so at once, both get the same key. A file that others may read or write, or that is not exactly a key, is
// refused.
func NewFileRoot(path string, create bool) (*FileRoot, error) {
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := createKey(path); err != nil {
			return nil, fmt.Errorf("creating root key file: %w", err)
		}
		key, err = readKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading root key file: %w", err)
	}
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("root key file %s: %w", path, err)
	}
	return &FileRoot{aead: aead}, nil
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has permissions %04o: others than its owner may use it; run chmod 600", path, info.Mode().Perm())
	case info.Size() != keySize:
		return nil, fmt.Errorf("%s has %d bytes instead of %d", path, info.Size(), keySize)
	}
	key := make([]byte, keySize)
	if _, err := f.ReadAt(key, 0); err != nil {
		return nil, err
	}
	return key, nil
}

// createKey writes a whole, durable file before it gets its name: a crash leaves either no key or all of it, and data
// sealed under it never outlives it.
func createKey(path string) error {
	key := make([]byte, keySize)
	defer clear(key)
	rand.Read(key)
	f, err := os.CreateTemp(filepath.Dir(path), ".root-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// Link, unlike Rename, does not replace the key of whoever came first.
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if runtime.GOOS == "windows" {
		return nil // directories cannot be synced there
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Name is "file".
func (*FileRoot) Name() string { return "file" }

// Wrap seals key with AES-256-GCM.
func (r *FileRoot) Wrap(_ context.Context, key, associatedData []byte) ([]byte, error) {
	return r.aead.Seal(nil, nil, key, associatedData), nil
}

// Unwrap opens what Wrap made; anything else is ErrWrapped.
func (r *FileRoot) Unwrap(_ context.Context, wrapped, associatedData []byte) ([]byte, error) {
	key, err := r.aead.Open(nil, nil, wrapped, associatedData)
	if err != nil {
		return nil, ErrWrapped
	}
	return key, nil
}

// Development is true.
func (*FileRoot) Development() bool { return true }
