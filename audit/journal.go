package audit

import (
	"errors"
	"fmt"
	"path/filepath"
)

// The journal of a stream is a directory:
//
//	stream          locked (flock) by the process that writes or ships the stream
//	N.journal       segments, N counting up in hexadecimal, zero-filled ahead so that fdatasync has no metadata to write
//	N.damaged       a segment in which acknowledged records were found damaged
//	N.torn          the bytes of a torn tail, as they were found
//
// What a crash means, step by step. Before write(2) returned, nobody was told anything: the group may be torn, recovery
// keeps its whole records and sets the rest aside. After write(2), a killed process loses nothing: the page cache holds
// the group. After fdatasync, neither does a power cut. After Storage took it, the host may burn. A group that is torn
// is always the last one written: damage with a readable group behind it is no crash but a fault, and never cut off.
//
// After an error of write(2) or fdatasync, the file is not touched again: the groups that are not yet durable are written
// to a new segment, whose first sequence number tells readers where the old one ends.
const (
	lockName        = "stream"
	firstSegment    = 1 << 20 // bytes; later ones grow eightfold up to Config.SegmentBytes
	fillStep        = 1 << 20
	defaultSegments = 64 << 20
)

// segment is an open segment file. Its fields belong to the committer, but for f, which the syncer uses too.
type segment struct {
	f       File
	path    string
	number  uint64
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
}

type preparation struct {
	segment *segment
	err     error
}

// create makes a zero-filled segment of the size, durable by name and by size.
func (j *journal) create(number uint64, size int64) (*segment, error) {
	s := &segment{path: filepath.Join(j.dir, fmt.Sprintf("%016x%s", number, segmentSuffix)), number: number, size: size}
	var err error
	if s.f, err = j.fs.Create(s.path); err != nil {
		return nil, fmt.Errorf("creating segment: %w", err)
	}
	if err := j.fill(s.f, size); err != nil {
		return nil, errors.Join(fmt.Errorf("creating segment: %w", err), s.f.Close(), j.fs.Remove(s.path))
	}
	return s, nil
}

// fill makes the file's size and name durable.
func (j *journal) fill(f File, size int64) error {
	zeros := make([]byte, min(size, fillStep))
	for off := int64(0); off < size; off += fillStep {
		if _, err := f.WriteAt(zeros[:min(fillStep, size-off)], off); err != nil {
			return err
		}
		// In steps, so that the fdatasync of the segment in use never queues behind one large flush.
		if err := f.Datasync(); err != nil {
			return err
		}
	}
	return j.fs.SyncDir(j.dir)
}

// prepare makes the segment after one of the given size in the background.
func (j *journal) prepare(size int64) {
	if j.filling {
		return
	}
	j.filling = true
	j.number++
	number, size := j.number, max(min(8*size, j.limit), min(firstSegment, j.limit))
	go func() {
		s, err := j.create(number, size)
		j.prepared <- preparation{s, err}
	}()
}

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
