package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
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
	segments, _, err := listSegments(l.fs, dir, stream)
	if err != nil {
		return err
	}
	saved := 0
	for _, s := range segments {
		n, err := l.rescueSegment(ctx, &s, dir, stream, &state)
		saved += n
		if err != nil {
			return err
		}
	}
	if err := l.tellNow(l.alert(fmt.Sprintf("stream %s: %d records %s were recorded again", stream, saved, which))); err != nil {
		return err
	}
	state.complete = true
	return state.write(l.fs, dir)
}

func (l *Log) rescueSegment(ctx context.Context, from *segmentInfo, dir string, stream StreamID, state *rescueState) (saved int, err error) {
	f, err := l.fs.Open(from.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	for off := int64(0); ; {
		at, err := findGroup(f, off, stream)
		if at < 0 || err != nil {
			return saved, err
		}
		g, err := readGroup(f, at, size, stream)
		if err != nil && !errors.Is(err, errFrame) {
			return saved, err
		}
		off = at + 8
		if err == nil {
			off = at + g.head.size()
		}
		records := g.records
		for len(records) > 0 && records[len(records)-1].seq >= from.limit { // a later segment has the valid ones
			records = records[:len(records)-1]
		}
		n, err := l.rescueGroup(ctx, dir, stream, records, state)
		saved += n
		if err != nil {
			return saved, err
		}
	}
}

func (l *Log) rescueGroup(ctx context.Context, dir string, stream StreamID, records []record, state *rescueState) (saved int, err error) {
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
