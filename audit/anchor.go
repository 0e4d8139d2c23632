package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Anchor keeps checkpoints where those who administer the log and its database cannot change them: what it holds shows what
// the tree was, whatever becomes of the log. Calls of one Anchor do not overlap.
type Anchor interface {
	// Put keeps data under a name, for good. Putting the same again is no error; putting other data under a name that is taken is.
	Put(ctx context.Context, name string, data []byte) error
}

// AnchorDir is an Anchor in a directory, such as a mount of write-once storage. Files are made whole or not at all, and never
// written over.
type AnchorDir string

// Put implements Anchor.
func (d AnchorDir) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("anchoring: %w", err)
	}
	if !filepath.IsLocal(name) || name != filepath.Base(name) {
		return errors.New("anchoring: the name is a path")
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("anchoring: %w", err)
	}
	if err := d.put(filepath.Join(string(d), name), data); err != nil {
		return fmt.Errorf("anchoring: %w", err)
	}
	return nil
}

// Since returns what was anchored of sizes above the given one, and the newest in any case, smallest first: a live trail must
// continue each of them. Where there is no directory, nothing was anchored.
func (d AnchorDir) Since(size int64) (notes [][]byte, err error) {
	entries, err := os.ReadDir(string(d)) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading anchors: %w", err)
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), anchorSuffix) || strings.HasPrefix(e.Name(), ".")
	})
	for i, e := range entries {
		digits, _, _ := strings.Cut(e.Name(), "-")
		if n, err := strconv.ParseInt(digits, 10, 64); err == nil && n <= size && i < len(entries)-1 {
			continue
		}
		b, err := os.ReadFile(filepath.Join(string(d), e.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading anchors: %w", err)
		}
		notes = append(notes, b)
	}
	return notes, nil
}

// put writes a file of another name and links it, which, unlike a rename, fails where there is one.
func (d AnchorDir) put(path string, data []byte) (err error) {
	tmp, err := os.CreateTemp(string(d), ".anchor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(0o444)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); errors.Is(err, os.ErrExist) {
		return same(path, data)
	} else if err != nil {
		return err
	}
	return OS{}.SyncDir(string(d))
}

// same fails unless a file holds the data.
func same(path string, data []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	have, err := io.ReadAll(io.LimitReader(f, int64(len(data))+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if !bytes.Equal(have, data) {
		return fmt.Errorf("%s holds something else", filepath.Base(path))
	}
	return nil
}

const anchorSuffix = ".checkpoint"

// AnchorName is the name under which a checkpoint of a size is anchored: names sort as sizes do, and different contents have
// different names.
func AnchorName(size int64, note []byte) string {
	sum := sha256.Sum256(note)
	return fmt.Sprintf("%016d-%x%s", size, sum[:8], anchorSuffix)
}
