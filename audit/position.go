package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The file "stream" of a stream's directory says how far the stream is known to be durable and how far it was shipped. It is
// written in place with every heartbeat, after a segment was begun and at the end, in one sector:
//
//	magic 8 | stream 16 | synced 8 | shipped 8 | 0 4 | crc 4
//
// Both numbers are lower bounds, so that a file that is old, empty or unreadable only says less.
const (
	positionMagic = "CKPOS\x00\x001"
	positionLen   = 48
)

// position is what that file says.
type position struct {
	synced  uint64 // seq up to which the journal was durable: it must not end before
	shipped uint64 // seq up to which Storage had it
}

// readPosition returns zeros for a file that says nothing.
func readPosition(fs FS, dir string, stream StreamID) (p position, err error) {
	f, err := fs.Open(filepath.Join(dir, lockName))
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	defer f.Close()
	var b [positionLen]byte
	if n, _ := f.ReadAt(b[:], 0); n < positionLen || string(b[:8]) != positionMagic || !checked(b[:]) || StreamID(b[8:24]) != stream {
		return p, nil
	}
	return position{binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])}, nil
}

func writePosition(fs FS, dir string, stream StreamID, p position) error {
	b := append(make([]byte, 0, positionLen), positionMagic...)
	b = append(b, stream[:]...)
	b = binary.BigEndian.AppendUint64(b, p.synced)
	b = binary.BigEndian.AppendUint64(b, p.shipped)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, checksum(b))
	if err := overwrite(fs, filepath.Join(dir, lockName), b); err != nil {
		return fmt.Errorf("writing position: %w", err)
	}
	return nil
}

// savePosition writes down how far this process's stream is. A failure costs nothing but knowledge.
func (l *Log) savePosition() {
	l.position.Lock()
	defer l.position.Unlock()
	p := l.home.Load()
	now := position{l.counters.durable.Load(), l.shipping.next.Load()}
	if err := writePosition(l.fs, p.dir, p.stream, now); err != nil {
		l.logger.Warn("audit journal's position was not saved", "error", err)
	}
}

// endedName marks a stream that must not be continued, because numbers that it would give are taken.
const endedName = "ended"

// end marks the stream, durably.
func end(fs FS, dir string) error {
	err := touch(fs, filepath.Join(dir, endedName))
	if err == nil {
		err = fs.SyncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("marking stream as ended: %w", err)
	}
	return nil
}
