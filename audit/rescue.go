package audit

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// The file "rescued" says how far the records of a stream that cannot be shipped were recorded again:
//
//	magic 8 | recorded up to 8 | being recorded up to 8 | 1 when done, else 0: 4 | crc 4
//
// The second number is written before its records are handed over. A process that goes on with the work looks whether they
// arrived before the crash, so that each is recorded once.
const (
	rescuedName  = "rescued"
	rescuedMagic = "CKRES\x00\x001"
	rescuedLen   = 32
)

type rescueState struct {
	done, trying uint64
	complete     bool
}

func readRescue(fs FS, dir string) (state rescueState, started bool, err error) {
	path := filepath.Join(dir, rescuedName)
	if started, err = exists(fs, path); err != nil || !started {
		return state, false, err
	}
	f, err := fs.Open(path)
	if err != nil {
		return state, false, err
	}
	defer f.Close()
	var b [rescuedLen]byte
	if n, _ := f.ReadAt(b[:], 0); n < rescuedLen || string(b[:8]) != rescuedMagic || !checked(b[:]) {
		return state, false, nil // begun, and nothing recorded yet
	}
	return rescueState{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:]), b[27] == 1}, true, nil
}

func (r rescueState) write(fs FS, dir string) error {
	b := append(make([]byte, 0, rescuedLen), rescuedMagic...)
	b = binary.BigEndian.AppendUint64(b, r.done)
	b = binary.BigEndian.AppendUint64(b, r.trying)
	complete := byte(0)
	if r.complete {
		complete = 1
	}
	b = append(b, 0, 0, 0, complete)
	b = binary.BigEndian.AppendUint32(b, checksum(b))
	path := filepath.Join(dir, rescuedName)
	err := touch(fs, path)
	if err == nil {
		err = fs.SyncDir(dir)
	}
	if err == nil {
		err = overwrite(fs, path, b)
	}
	if err != nil {
		return fmt.Errorf("marking rescue: %w", err)
	}
	return nil
}

// rescued reports whether everything of the stream that cannot be shipped was recorded again.
func (l *Log) rescued(dir string) (bool, error) {
	state, _, err := readRescue(l.fs, dir)
	return state.complete, err
}

// rescue records again, in this process's stream, what can be read of a stream from a record on and cannot be shipped under its
// own numbers. The events keep their ids and their bytes.
func (l *Log) rescue(ctx context.Context, dir string, stream StreamID, from uint64, which string) error {
	state, started, err := readRescue(l.fs, dir)
	if err != nil || state.complete {
		return err
	}
	if !started {
		state = rescueState{done: from, trying: from}
	}
	groups, err := l.remains(dir, stream)
	if err != nil {
		return err
	}
	saved := 0
	for _, g := range groups {
		n, err := l.rescueGroup(ctx, dir, stream, g, &state)
		saved += n
		if err != nil {
			return err
		}
	}
	if saved > 0 || started {
		if err := l.tellNow(l.alert(fmt.Sprintf("stream %s: %d records %s were recorded again", stream, saved, which))); err != nil {
			return err
		}
	}
	state.complete = true
	return state.write(l.fs, dir)
}

// remain is a group that was found in a damaged journal.
type remain struct {
	path  string
	off   int64
	first uint64
	limit uint64 // records from here on were superseded by a later segment
}

// remains lists all groups in the order of their numbers, wherever they stand: blocks may have changed places, and a segment may
// have lost its header.
func (l *Log) remains(dir string, stream StreamID) ([]remain, error) {
	segments, headless, err := listSegments(l.fs, dir, stream)
	if err != nil {
		return nil, err
	}
	for _, path := range headless {
		segments = append(segments, segmentInfo{path: path, limit: 1<<64 - 1})
	}
	var groups []remain
	for _, s := range segments {
		f, err := l.fs.Open(s.path)
		if err != nil {
			return nil, err
		}
		for off := int64(0); err == nil && off >= 0; {
			if off, err = findGroup(f, off, stream); off < 0 || err != nil {
				break
			}
			var b [groupHeadLen]byte
			if _, err = f.ReadAt(b[:], off); err == nil {
				var h groupHead
				h, err = parseGroupHead(b[:])
				groups = append(groups, remain{s.path, off, h.first, s.limit})
			}
			off += 8
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(groups, func(a, b remain) int { return cmp.Compare(a.first, b.first) })
	return groups, nil
}

// records reads the whole records of a group.
func (r remain) records(fs FS, stream StreamID) ([]record, error) {
	f, err := fs.Open(r.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	g, err := readGroup(f, r.off, size, stream)
	if err != nil && !errors.Is(err, errFrame) {
		return nil, err
	}
	records := g.records
	for len(records) > 0 && records[len(records)-1].seq >= r.limit {
		records = records[:len(records)-1]
	}
	return records, nil
}

func (l *Log) rescueGroup(ctx context.Context, dir string, stream StreamID, from remain, state *rescueState) (saved int, err error) {
	records, err := from.records(l.fs, stream)
	if err != nil {
		return 0, err
	}
	s := newSubmission()
	s.level, s.system = Power, true
	var first ID
	next := state.done
	for _, r := range records {
		if r.seq < next {
			continue
		}
		if len(s.ends) == 0 {
			first = ID(r.body[1:17])
		}
		s.bodies = append(s.bodies, r.body...)
		s.ends = append(s.ends, len(s.bodies))
		next = r.seq + 1
	}
	if len(s.ends) == 0 {
		return 0, nil
	}
	if state.trying == next { // by a process that did not come to say whether it arrived
		there, err := l.journaled(stream, first)
		if err != nil {
			return 0, err
		}
		if there {
			state.done = next
			return len(s.ends), nil
		}
	}
	state.trying = next
	if err := state.write(l.fs, dir); err != nil {
		return 0, err
	}
	if err := l.enqueue(s); err != nil {
		return 0, err
	}
	s.timer.Reset(l.cfg.TicketTimeout)
	defer s.timer.Stop()
	if err, _ := s.wait(ctx, s.timer.C); err != nil {
		return 0, err
	}
	state.done = next
	return len(s.ends), state.write(l.fs, dir)
}

// journaled reports whether any other stream's journal here holds an event.
func (l *Log) journaled(but StreamID, id ID) (bool, error) {
	streams, err := listStreams(l.fs, l.cfg.Dir)
	if err != nil {
		return false, err
	}
	for _, stream := range streams {
		if stream == but {
			continue
		}
		for row, err := range Records(l.fs, streamDir(l.cfg.Dir, stream), stream) {
			if err != nil {
				break // the tail of a stream in use
			}
			if row.Event.ID == id {
				return true, nil
			}
		}
	}
	return false, nil
}
