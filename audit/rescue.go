package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// rescuedName marks a damaged stream whose readable rest has been recorded again.
const rescuedName = "rescued"

// rescue records again, in this process's stream, what can still be read of a damaged stream and cannot follow the
// damage into Storage, because a stream there has no gaps. The events keep their ids and their bytes. A crash in the
// middle rescues some of them twice: the ids tell.
func (l *Log) rescue(ctx context.Context, dir string, stream StreamID) error {
	mark := filepath.Join(dir, rescuedName)
	if f, err := l.fs.Open(mark); err == nil {
		return f.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	next, _, err := l.cfg.Storage.Head(ctx, stream)
	if err != nil {
		return fmt.Errorf("asking for the head: %w", err)
	}
	segments, _, err := listSegments(l.fs, dir, stream)
	if err != nil {
		return err
	}
	saved := 0
	for _, s := range segments {
		n, err := l.rescueSegment(ctx, s.path, stream, &next)
		saved += n
		if err != nil {
			return err
		}
	}
	e := l.alert(fmt.Sprintf("stream %s: %d records behind the damage were recorded again", stream, saved))
	if _, err := l.Record(ctx, Power, e); err != nil {
		return err
	}
	f, err := l.fs.Create(mark)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), l.fs.SyncDir(dir))
}

func (l *Log) rescueSegment(ctx context.Context, path string, stream StreamID, next *uint64) (saved int, err error) {
	f, err := l.fs.Open(path)
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
		s := newSubmission()
		s.level = Power
		for _, r := range g.records {
			if r.seq < *next {
				continue
			}
			s.bodies = append(s.bodies, r.body...)
			s.ends = append(s.ends, len(s.bodies))
			*next = r.seq + 1
		}
		if len(s.ends) > 0 {
			if err := l.enqueue(s); err != nil {
				return saved, err
			}
			s.timer.Reset(l.cfg.TicketTimeout)
			if err, _ := s.wait(ctx, s.timer.C); err != nil {
				return saved, err
			}
			saved += len(s.ends)
		}
		off = at + 8
		if err == nil {
			off = at + g.head.size()
		}
	}
}
