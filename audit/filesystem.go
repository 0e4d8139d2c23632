package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// FS is the file system as the journal uses it, so that every call can be made to fail in tests. Paths are native.
type FS interface {
	MkdirAll(path string) error
	// ReadDir lists the names in a directory, sorted.
	ReadDir(path string) ([]string, error)
	// Create makes a file for reading and writing and fails when it exists.
	Create(path string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(path string) (File, error)
	Rename(from, to string) error
	Remove(path string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(path string) error
	// Space tells how full the file system is that holds a directory.
	Space(dir string) (Space, error)
	// Lock takes an exclusive lock for this process, on a file that it creates when missing, until the closer is closed
	// or the process ends. It returns ErrLocked at once when another holder lives.
	Lock(path string) (io.Closer, error)
}

// Space is how much room a file system has for a process without privileges.
type Space struct {
	Free  int64 // bytes; negative when it is not known
	Total int64 // bytes
	Files int64 // files that can still be made; negative when it is not known
}

// File is an open journal file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Datasync makes the file's content durable against a power cut (fdatasync(2)). After an error the state of what was
	// written is unknown, and calling it again would report success without having written: the journal never does.
	Datasync() error
	// Linked reports whether the name by which the file was opened still leads to it: a file that somebody removed or replaced
	// can be written to for ever, and nobody will find what was written (HashiCorp Vault issue 31718).
	Linked() (bool, error)
}

// ErrLocked says that a living process holds the lock.
var ErrLocked = errors.New("audit: stream is locked by another process")

// OS is the file system of the operating system: directories are made with mode 0700, files with 0600.
type OS struct{}

// MkdirAll implements FS.
func (OS) MkdirAll(path string) error { return os.MkdirAll(path, 0o700) }

// ReadDir implements FS.
func (OS) ReadDir(path string) ([]string, error) {
	list, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, entry := range list {
		names[i] = entry.Name()
	}
	return names, nil
}

// Create implements FS.
func (OS) Create(path string) (File, error) {
	return openFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

// Open implements FS.
func (OS) Open(path string) (File, error) { return openFile(path, os.O_RDWR) }

func openFile(path string, flag int) (File, error) {
	f, err := os.OpenFile(filepath.Clean(path), flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (OS) Remove(path string) error { return os.Remove(path) }

// SyncDir implements FS.
func (OS) SyncDir(path string) error {
	d, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Space implements FS.
func (OS) Space(dir string) (Space, error) { return space(dir) }

// Lock implements FS with flock(2) where there is one.
func (OS) Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("locking: %w", err), f.Close())
	}
	return f, nil
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Datasync() error { return datasync(f.File) }

func (f osFile) Linked() (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(f.Name())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(open, named), err
}

// overwrite writes a few bytes at the beginning of a file that exists, durably.
func overwrite(fs FS, path string, b []byte) error {
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Datasync()
	}
	return errors.Join(err, f.Close())
}

func touch(fs FS, path string) error {
	f, err := fs.Create(path)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func exists(fs FS, path string) (bool, error) {
	f, err := fs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

func fileSize(fs FS, path string) (int64, error) {
	f, err := fs.Open(path)
	if err != nil {
		return 0, err
	}
	size, err := f.Size()
	return size, errors.Join(err, f.Close())
}
