package audit

import (
	"archive/zip"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// CreateBundle begins a bundle at a path that must not be there yet: a zip when the path ends in .zip, else a folder. It is
// built beside the path, made durable and renamed to it by Commit. Files are readable for their owner only: they tell who
// looked at whom.
func CreateBundle(path string) (BundleWriter, error) {
	path = filepath.Clean(path)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("creating bundle: %s is there already", path)
	}
	parent, name := filepath.Split(path)
	if parent == "" {
		parent = "."
	}
	if strings.HasSuffix(path, ".zip") {
		f, err := os.CreateTemp(parent, "."+name+"-")
		if err != nil {
			return nil, fmt.Errorf("creating bundle: %w", err)
		}
		b := bufio.NewWriterSize(f, 1<<16)
		return &zipBundle{path: path, f: f, b: b, z: zip.NewWriter(b)}, nil
	}
	dir, err := os.MkdirTemp(parent, "."+name+"-")
	if err != nil {
		return nil, fmt.Errorf("creating bundle: %w", err)
	}
	return &dirBundle{path: path, dir: dir, made: map[string]bool{}}, nil
}

// dirBundle writes a folder.
type dirBundle struct {
	path, dir string
	f         *os.File
	made      map[string]bool // folders
}

// File implements BundleWriter.
func (d *dirBundle) File(name string) (io.Writer, error) {
	if err := d.finish(); err != nil {
		return nil, err
	}
	file := filepath.Join(d.dir, filepath.FromSlash(name))
	if parent := filepath.Dir(file); !d.made[parent] {
		if err := os.MkdirAll(parent, 0o700); err != nil {
			return nil, err
		}
		d.made[parent] = true
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	d.f = f
	return f, nil
}

// finish makes the open file durable.
func (d *dirBundle) finish() error {
	if d.f == nil {
		return nil
	}
	err := errors.Join(d.f.Sync(), d.f.Close())
	d.f = nil
	return err
}

// Commit implements BundleWriter.
func (d *dirBundle) Commit() error {
	err := d.finish()
	for dir := range d.made {
		err = errors.Join(err, OS{}.SyncDir(dir))
	}
	if err == nil {
		err = place(d.dir, d.path)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(d.dir))
	}
	return nil
}

// Abort implements BundleWriter.
func (d *dirBundle) Abort() error {
	if d.f != nil {
		_ = d.f.Close() // it goes away
	}
	return os.RemoveAll(d.dir)
}

// zipBundle writes a zip.
type zipBundle struct {
	path string
	f    *os.File
	b    *bufio.Writer
	z    *zip.Writer
}

// File implements BundleWriter.
func (z *zipBundle) File(name string) (io.Writer, error) {
	h := &zip.FileHeader{Name: name, Method: zip.Deflate}
	if strings.HasPrefix(name, "tile/") {
		h.Method = zip.Store // hashes do not get smaller
	}
	h.SetMode(0o600)
	return z.z.CreateHeader(h)
}

// Commit implements BundleWriter.
func (z *zipBundle) Commit() error {
	err := errors.Join(z.z.Close(), z.b.Flush(), z.f.Sync(), z.f.Close())
	if err == nil {
		err = place(z.f.Name(), z.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(z.f.Name()))
	}
	return nil
}

// Abort implements BundleWriter.
func (z *zipBundle) Abort() error { return errors.Join(z.f.Close(), os.Remove(z.f.Name())) }

// place moves a finished bundle to its path, unless something came there meanwhile.
func place(from, to string) error {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already", to)
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return OS{}.SyncDir(filepath.Dir(to))
}

// OpenBundlePath opens a bundle that is a folder or a zip on the disk. Close the closer after use.
func OpenBundlePath(path string) (*Bundle, io.Closer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("opening bundle: %w", err)
	}
	if info.IsDir() {
		b, err := OpenBundle(os.DirFS(path))
		return b, b, err
	}
	z, err := zip.OpenReader(path)
	if err != nil {
		return nil, nil, fmt.Errorf("opening bundle: %w: %w", err, ErrBundle)
	}
	b, err := OpenBundle(&z.Reader)
	if err != nil {
		return nil, nil, errors.Join(err, z.Close())
	}
	return b, closers{b, z}, nil
}

// closers closes one after the other.
type closers []io.Closer

// Close implements io.Closer.
func (c closers) Close() error {
	var errs []error
	for _, x := range c {
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}
