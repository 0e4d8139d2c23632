package audittest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/chartkeep/chartkeep/audit"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// ErrCut is what calls return on a disk whose power was cut, until it is switched on again as another Disk.
var ErrCut = errors.New("audittest: the power is cut")

// Disk is a file system in memory that forgets what POSIX allows it to forget in a power cut: of each file, writes and sizes that
// no Datasync has covered are kept, dropped, torn at sectors and reordered; of each directory, names that no SyncDir has covered
// are kept or not, a rename as a whole. It implements audit.FS. All methods are safe for concurrent use.
//
// It is stricter than ext4 and xfs in one way: a file's name does not survive because the file was synced.
type Disk struct {
	// Fail, when set before use, is asked before each call by name ("create", "open", "write", "datasync", "truncate", "read",
	// "rename", "remove", "syncdir", "mkdir", "readdir", "lock", "space") and path; what it returns, the call returns.
	Fail func(op, path string) error
	// Size is how many bytes fit, 0 for no limit. What a file was given once it keeps.
	Size int64

	mu    sync.Mutex
	cut   bool
	dirs  map[string]bool
	names map[string]*node // as processes see them
	kept  map[string]*node // as they are after a power cut at the worst moment
	later []change         // to names, not covered by SyncDir, in their order
	locks map[string]bool
	used  int64
}

// change gives names to files, or takes them (nil), all at once.
type change struct {
	dir   string
	names map[string]*node
	isDir string // a directory that was made
}

// node is a file's content.
type node struct {
	live    []byte
	durable []byte
	later   []write // not covered by Datasync, in their order
}

type write struct {
	off  int64
	data []byte
	size int64 // of the file afterwards: Truncate has no data
}

// NewDisk returns an empty disk.
func NewDisk() *Disk {
	return &Disk{dirs: map[string]bool{"/": true, ".": true}, names: map[string]*node{}, kept: map[string]*node{}, locks: map[string]bool{}}
}

// Cut cuts the power: every later call on d fails with ErrCut, also on files that are open. It returns the disk as it is found
// when the power comes back; r decides what survived.
func (d *Disk) Cut(r *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = true
	after := NewDisk()
	after.Size = d.Size
	gone := map[string]bool{}
	for _, c := range d.later {
		if r.IntN(2) == 0 {
			if c.isDir != "" {
				gone[c.isDir] = true
			}
			continue
		}
		for name, n := range c.names {
			if n == nil {
				delete(d.kept, name)
			} else {
				d.kept[name] = n
			}
		}
	}
	for dir := range d.dirs {
		if !gone[dir] {
			after.dirs[dir] = true
		}
	}
	copies := map[*node]*node{}
	for _, name := range sorted(d.kept) {
		n := d.kept[name]
		if !after.dirs[filepath.Dir(name)] {
			continue
		}
		if copies[n] == nil {
			content := n.survive(r)
			copies[n] = &node{live: content, durable: slices.Clone(content)}
			after.used += int64(len(content))
		}
		after.names[name], after.kept[name] = copies[n], copies[n]
	}
	return after
}

func sorted(m map[string]*node) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// survive returns what the disk holds of a file: some of the sectors of some of the writes since the last Datasync.
func (n *node) survive(r *rand.Rand) []byte {
	out := slices.Clone(n.durable)
	order := make([]int, len(n.later))
	for i := range order {
		order[i] = i
	}
	switch r.IntN(3) {
	case 0: // as if the last Datasync had just ended
		return out
	case 1:
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	for _, i := range order {
		w := n.later[i]
		if r.IntN(3) == 0 {
			continue // dropped whole
		}
		if len(w.data) == 0 {
			out = resize(out, w.size)
			continue
		}
		for at := int64(0); at < int64(len(w.data)); {
			end := min(int64(len(w.data)), (w.off+at)/sector*sector+sector-w.off)
			if r.IntN(4) > 0 {
				out = put(out, w.data[at:end], w.off+at)
			}
			at = end
		}
	}
	return out
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func put(b, data []byte, off int64) []byte {
	if end := off + int64(len(data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[off:], data)
	return b
}

// enter begins a call; the caller unlocks d.mu when it returns nil.
func (d *Disk) enter(op, path string) error {
	if d.Fail != nil {
		if err := d.Fail(op, path); err != nil {
			return err
		}
	}
	d.mu.Lock()
	if d.cut {
		d.mu.Unlock()
		return ErrCut
	}
	return nil
}

func missing(op, path string) error { return &os.PathError{Op: op, Path: path, Err: os.ErrNotExist} }

// MkdirAll implements audit.FS.
func (d *Disk) MkdirAll(path string) error {
	if err := d.enter("mkdir", path); err != nil {
		return err
	}
	defer d.mu.Unlock()
	for dir := filepath.Clean(path); !d.dirs[dir]; dir = filepath.Dir(dir) {
		d.dirs[dir] = true
		d.later = append(d.later, change{dir: filepath.Dir(dir), isDir: dir})
	}
	return nil
}

// ReadDir implements audit.FS.
func (d *Disk) ReadDir(path string) ([]string, error) {
	if err := d.enter("readdir", path); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	path = filepath.Clean(path)
	if !d.dirs[path] {
		return nil, missing("readdir", path)
	}
	var list []string
	for name := range d.names {
		if filepath.Dir(name) == path {
			list = append(list, filepath.Base(name))
		}
	}
	for dir := range d.dirs {
		if dir != path && filepath.Dir(dir) == path {
			list = append(list, filepath.Base(dir))
		}
	}
	slices.Sort(list)
	return list, nil
}

// Create implements audit.FS.
func (d *Disk) Create(path string) (audit.File, error) {
	if err := d.enter("create", path); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	if !d.dirs[filepath.Dir(path)] {
		return nil, missing("create", path)
	}
	if d.names[path] != nil {
		return nil, &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	return d.make(path), nil
}

func (d *Disk) make(path string) *openFile {
	n := &node{}
	d.names[path] = n
	d.later = append(d.later, change{dir: filepath.Dir(path), names: map[string]*node{path: n}})
	return &openFile{d: d, n: n, path: path}
}

// Open implements audit.FS.
func (d *Disk) Open(path string) (audit.File, error) {
	if err := d.enter("open", path); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	n := d.names[path]
	if n == nil {
		return nil, missing("open", path)
	}
	return &openFile{d: d, n: n, path: path}, nil
}

// Rename implements audit.FS, within one directory.
func (d *Disk) Rename(from, to string) error {
	if err := d.enter("rename", from); err != nil {
		return err
	}
	defer d.mu.Unlock()
	n := d.names[from]
	if n == nil {
		return missing("rename", from)
	}
	delete(d.names, from)
	d.names[to] = n
	d.later = append(d.later, change{dir: filepath.Dir(to), names: map[string]*node{from: nil, to: n}})
	return nil
}

// Remove implements audit.FS.
func (d *Disk) Remove(path string) error {
	if err := d.enter("remove", path); err != nil {
		return err
	}
	defer d.mu.Unlock()
	if d.names[path] == nil {
		return missing("remove", path)
	}
	d.used -= int64(len(d.names[path].live))
	delete(d.names, path)
	d.later = append(d.later, change{dir: filepath.Dir(path), names: map[string]*node{path: nil}})
	return nil
}

// SyncDir implements audit.FS.
func (d *Disk) SyncDir(path string) error {
	if err := d.enter("syncdir", path); err != nil {
		return err
	}
	defer d.mu.Unlock()
	path = filepath.Clean(path)
	d.later = slices.DeleteFunc(d.later, func(c change) bool {
		if c.dir != path {
			return false
		}
		for name, n := range c.names {
			if n == nil {
				delete(d.kept, name)
			} else {
				d.kept[name] = n
			}
		}
		return true
	})
	return nil
}

// Space implements audit.FS.
func (d *Disk) Space(dir string) (audit.Space, error) {
	if err := d.enter("space", dir); err != nil {
		return audit.Space{}, err
	}
	defer d.mu.Unlock()
	if d.Size == 0 {
		return audit.Space{Free: -1, Files: -1}, nil
	}
	return audit.Space{Free: max(0, d.Size-d.used), Total: d.Size, Files: -1}, nil
}

// Lock implements audit.FS.
func (d *Disk) Lock(path string) (io.Closer, error) {
	if err := d.enter("lock", path); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	if !d.dirs[filepath.Dir(path)] {
		return nil, missing("lock", path)
	}
	if d.locks[path] {
		return nil, audit.ErrLocked
	}
	if d.names[path] == nil {
		d.make(path)
	}
	d.locks[path] = true
	return unlocker{d, path}, nil
}

type unlocker struct {
	d    *Disk
	path string
}

func (u unlocker) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	delete(u.d.locks, u.path)
	return nil
}

// Tree lists the files with their sizes, for the log of a test that failed.
func (d *Disk) Tree() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, name := range sorted(d.names) {
		fmt.Fprintf(&b, "%s %d\n", name, len(d.names[name].live))
	}
	return b.String()
}

type openFile struct {
	d    *Disk
	n    *node
	path string
}

func (f *openFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.d.enter("read", f.path); err != nil {
		return 0, err
	}
	defer f.d.mu.Unlock()
	if off >= int64(len(f.n.live)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.live[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt fails as a full disk does where the file would grow beyond Size.
func (f *openFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.d.enter("write", f.path); err != nil {
		return 0, err
	}
	defer f.d.mu.Unlock()
	grow := max(0, off+int64(len(b))-int64(len(f.n.live)))
	if f.d.Size > 0 && f.d.used+grow > f.d.Size {
		return 0, &os.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC}
	}
	f.d.used += grow
	f.n.live = put(f.n.live, b, off)
	f.n.later = append(f.n.later, write{off: off, data: slices.Clone(b)})
	return len(b), nil
}

func (f *openFile) Truncate(size int64) error {
	if err := f.d.enter("truncate", f.path); err != nil {
		return err
	}
	defer f.d.mu.Unlock()
	f.d.used += size - int64(len(f.n.live))
	f.n.live = resize(f.n.live, size)
	f.n.later = append(f.n.later, write{size: size})
	return nil
}

func (f *openFile) Datasync() error {
	if err := f.d.enter("datasync", f.path); err != nil {
		return err
	}
	defer f.d.mu.Unlock()
	for _, w := range f.n.later {
		if len(w.data) == 0 {
			f.n.durable = resize(f.n.durable, w.size)
		} else {
			f.n.durable = put(f.n.durable, w.data, w.off)
		}
	}
	f.n.later = nil
	return nil
}

func (f *openFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.cut {
		return 0, ErrCut
	}
	return int64(len(f.n.live)), nil
}

func (f *openFile) Linked() (bool, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.d.names[f.path] == f.n, nil
}

func (f *openFile) Close() error { return nil }
