package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The journal of a stream is a directory:
//
//	stream          locked (flock) by the process that writes or ships the stream; says how far it was durable and shipped
//	N.journal       segments, N counting up in hexadecimal, zero-filled ahead so that fdatasync has no metadata to write
//	reserve         a zero-filled segment that becomes N.journal when no other can be made: the outage is recorded there
//	N.damaged       a segment in which acknowledged records were found damaged
//	N.torn          the bytes of a torn tail, as they were found
//	ended           the stream must not be continued; what can be read is still shipped
//	rescued         how far the records that cannot be shipped were recorded again in another stream
//
// What a crash means, step by step. Before write(2) returned, nobody was told anything: the group may be torn, recovery
// keeps its whole records and sets the rest aside. After write(2), a killed process loses nothing: the page cache holds
// the group. After fdatasync, neither does a power cut. After Storage took it, the host may burn. A group that is torn
// is always the last one written: damage with a readable group behind it is no crash but a fault, and never cut off. A
// journal that ends before the place that its file stream speaks of lost records that were durable: it is ended.
//
// After an error of write(2) or fdatasync, the file is not touched again: the groups that are not yet durable are written
// to a new segment, whose first sequence number tells readers where the old one ends. Where no segment can be made, they go
// into the reserve together with the news, callers are refused, and a new segment is tried twice a second.
//
// Segments that were shipped are kept for Config.Keep, a second copy for an investigation, and go earlier when they are many
// or space is short.
const (
	lockName        = "stream"
	reserveName     = "reserve"
	firstSegment    = 1 << 20 // bytes; later ones grow eightfold up to Config.SegmentBytes
	fillStep        = 1 << 20
	defaultSegments = 64 << 20
)

// segment is an open segment file. Its fields belong to the committer, but for f, which the syncer uses too.
type segment struct {
	f       File
	path    string
	number  uint64
	first   uint64 // seq of the first record, chain and part time before it: what its header says
	prev    Hash
	floor   int64
	off     int64 // where the next group goes
	size    int64
	retired bool // no more groups will be written; guarded by Log.mu
	failed  bool // a write or fdatasync failed: never use f again; guarded by Log.mu
}

// journal makes the segments of a stream. It belongs to the committer.
type journal struct {
	fs       FS
	dir      string
	stream   StreamID
	limit    int64  // size of the largest segment
	number   uint64 // of the segment made last
	prepared chan preparation
	filling  bool
	stocked  bool // there is a reserve
}

type preparation struct {
	segment *segment
	err     error
}

// errNoReserve says that the reserve is used up.
var errNoReserve = errors.New("audit: journal has no reserve")

func (j *journal) path(number uint64) string {
	return filepath.Join(j.dir, fmt.Sprintf("%016x%s", number, segmentSuffix))
}

// create makes a zero-filled segment of the size, durable by name and by size.
func (j *journal) create(number uint64, size int64) (*segment, error) {
	s := &segment{path: j.path(number), number: number, size: size}
	var err error
	if s.f, err = j.fill(s.path, size); err != nil {
		return nil, fmt.Errorf("creating segment: %w", err)
	}
	return s, nil
}

// fill makes a file of zeros, durable by name and by size.
func (j *journal) fill(path string, size int64) (File, error) {
	f, err := j.fs.Create(path)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, min(size, fillStep))
	for off := int64(0); off < size && err == nil; off += fillStep {
		if _, err = f.WriteAt(zeros[:min(fillStep, size-off)], off); err == nil {
			// In steps, so that the fdatasync of the segment in use never queues behind one large flush.
			err = f.Datasync()
		}
	}
	if err == nil {
		err = j.fs.SyncDir(j.dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), j.fs.Remove(path))
	}
	return f, nil
}

// prepare makes the segment after one of the given size in the background.
func (j *journal) prepare(size int64) {
	if j.filling {
		return
	}
	j.filling = true
	j.number++
	number, size := j.number, max(min(8*size, j.limit), j.smallest())
	go func() {
		s, err := j.create(number, size)
		j.prepared <- preparation{s, err}
	}()
}

func (j *journal) smallest() int64 { return min(firstSegment, j.limit) }

// take returns the prepared segment, waiting for it where it is not ready.
func (j *journal) take(size int64) (*segment, error) {
	j.prepare(size)
	p := <-j.prepared
	j.filling = false
	return p.segment, p.err
}

// discard waits for a segment in preparation and removes it: segments must be started in the order of their numbers.
func (j *journal) discard() error {
	if !j.filling {
		return nil
	}
	p := <-j.prepared
	j.filling = false
	if p.err == nil { // else create has cleaned up
		return errors.Join(p.segment.f.Close(), j.fs.Remove(p.segment.path))
	}
	return nil
}

// fresh makes a segment at once, with room for so many bytes of groups.
func (j *journal) fresh(groups int64) (*segment, error) {
	j.number++
	return j.create(j.number, max(segmentHeadLen+groups, j.smallest()))
}

// stock makes the reserve where there is none. One of the right size was left by the process before.
func (j *journal) stock() error {
	if j.stocked {
		return nil
	}
	path := filepath.Join(j.dir, reserveName)
	size, err := fileSize(j.fs, path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err == nil && size == j.smallest():
		j.stocked = true
		return nil
	case err == nil:
		err = j.fs.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("making reserve: %w", err)
	}
	f, err := j.fill(path, j.smallest())
	if err != nil {
		return fmt.Errorf("making reserve: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("making reserve: %w", err)
	}
	j.stocked = true
	return nil
}

// spend makes the reserve the next segment. Whatever happens, there is none afterwards. Until its header is written it looks
// like a segment that was prepared only.
func (j *journal) spend() (*segment, error) {
	if !j.stocked {
		return nil, errNoReserve
	}
	j.stocked = false
	j.number++
	s := &segment{path: j.path(j.number), number: j.number, size: j.smallest()}
	err := j.fs.Rename(filepath.Join(j.dir, reserveName), s.path)
	if err == nil {
		err = j.fs.SyncDir(j.dir)
	}
	if err == nil {
		s.f, err = j.fs.Open(s.path) // by its new name, which Linked looks at
	}
	if err != nil {
		return nil, fmt.Errorf("using reserve: %w", err)
	}
	return s, nil
}
