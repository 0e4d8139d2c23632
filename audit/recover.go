package audit

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
)

// recovered is where a stream ends and what was found there.
type recovered struct {
	next    uint64
	chain   Hash
	part    int64
	number  uint64 // of the last segment
	oldest  uint64 // first seq that is kept
	shipped uint64 // what Storage had when that was last written down
	bytes   int64
	damaged bool     // acknowledged records cannot be read: the stream must not be continued
	alerts  []string // for the trail; never content
}

// tear is the place where a walk could not go on.
type tear struct {
	at      int // index of the segment
	off     int64
	records []record // whole records found there
	run     [16]byte
}

// recoverStream walks the stream in constant memory, makes what it read durable, and repairs a torn tail. The caller
// holds the stream's lock.
func recoverStream(fs FS, dir string, stream StreamID, logger *slog.Logger) (recovered, error) {
	var found recovered
	segments, prepared, err := listSegments(fs, dir, stream)
	if err != nil {
		return found, err
	}
	ended, err := exists(fs, filepath.Join(dir, endedName))
	if err != nil {
		return found, err
	}
	found.damaged = ended // and reported when it was ended
	for _, path := range prepared {
		number, lost, err := dropPrepared(fs, path, segments)
		if err != nil {
			return found, err
		}
		found.number = max(found.number, number)
		if lost && !ended {
			found.damaged = true
			found.alerts = append(found.alerts, fmt.Sprintf("stream %s: a segment lost its beginning; the stream ends there", stream))
			if err := end(fs, dir); err != nil {
				return found, err
			}
			ended = true
		}
	}
	at, err := readPosition(fs, dir, stream)
	if err != nil {
		return found, err
	}
	found.shipped = at.shipped
	if len(segments) == 0 && (at.synced == 0 || found.damaged) {
		return found, nil
	}
	for _, s := range segments {
		found.number = max(found.number, s.number)
	}
	for _, s := range segments {
		if isDamaged(s.path) {
			found.damaged = true // and reported when it was found
		}
	}
	if found.damaged {
		return found, nil
	}
	torn, err := walk(fs, segments, stream, at.shipped, &found)
	if err != nil {
		return found, err
	}
	if torn == nil && found.next < at.synced {
		found.damaged = true
		found.alerts = append(found.alerts, fmt.Sprintf("stream %s: the journal lost records %d to %d, which were durable; the stream ends there", stream, found.next, at.synced-1))
		logger.Error("audit journal lost its tail", "stream", stream, "seq", found.next, "durable", at.synced)
		return found, end(fs, dir)
	}
	if torn == nil {
		return found, nil
	}
	broken := &segments[torn.at]
	lost, last, err := acknowledged(fs, segments[torn.at:], torn.off, stream, found.next)
	if err != nil {
		return found, err
	}
	if lost || at.synced > found.next {
		found.damaged = true
		found.alerts = append(found.alerts, fmt.Sprintf("stream %s: acknowledged records from %d on are damaged; the stream ends there", stream, found.next))
		logger.Error("audit journal is damaged", "stream", stream, "segment", filepath.Base(broken.path), "offset", torn.off, "seq", found.next)
		aside := strings.TrimSuffix(broken.path, segmentSuffix) + damagedSuffix
		return found, errors.Join(fs.Rename(broken.path, aside), fs.SyncDir(dir))
	}
	logger.Warn("audit journal has a torn tail", "stream", stream, "segment", filepath.Base(broken.path), "offset", torn.off, "seq", found.next, "saved", len(torn.records))
	desc := fmt.Sprintf("stream %s: the tail was torn at %d; %d whole records were saved", stream, found.next, len(torn.records))
	if saved := found.next + uint64(len(torn.records)); last > saved {
		desc += fmt.Sprintf(", %d that were not yet durable are lost", last-saved)
	}
	found.alerts = append(found.alerts, desc)
	return found, mend(fs, dir, stream, segments, torn, &found)
}

// dropPrepared removes a segment that was never started. One that lost its beginning or all of its content is kept and
// reported: it has groups behind a blank header, or stands before the first segment of a stream that does not start there.
func dropPrepared(fs FS, path string, started []segmentInfo) (number uint64, lost bool, err error) {
	if _, err := fmt.Sscanf(filepath.Base(path), "%x", &number); err != nil {
		return 0, false, fmt.Errorf("reading segment name: %w", err)
	}
	f, err := fs.Open(path)
	if err != nil {
		return 0, false, err
	}
	at, err := findGroup(f, 0, StreamID{})
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, false, err
	}
	if at >= 0 || len(started) > 0 && number < started[0].number && started[0].head.first > 0 {
		return number, true, nil
	}
	return number, false, fs.Remove(path)
}

// walk checks everything from the segment on that holds the record, or the first that is kept: what was shipped and kept need
// not be read at a start. It leaves in found where the readable part ends, and returns a
// tear when that is not where the journal ends.
func walk(fs FS, segments []segmentInfo, stream StreamID, from uint64, found *recovered) (*tear, error) {
	skipped := 0
	for skipped < len(segments)-1 && !segments[skipped].damaged && segments[skipped].limit <= from {
		size, err := fileSize(fs, segments[skipped].path)
		if err != nil {
			return nil, err
		}
		found.bytes += size
		skipped++
	}
	for i := skipped; i < len(segments); i++ {
		s := &segments[i]
		if s.damaged && i > skipped && s.limit <= found.next {
			continue // it failed before it held anything, and a later segment took over
		}
		if s.damaged {
			return &tear{at: i}, nil
		}
		if i == skipped {
			found.next, found.chain, found.part, found.oldest = s.head.first, s.head.prev, s.head.floor, s.head.first
		}
		if s.head.first >= s.limit {
			continue // superseded as a whole
		}
		if s.head.first != found.next || s.head.prev != found.chain {
			return &tear{at: i}, nil
		}
		torn, err := walkSegment(fs, s, stream, found)
		if torn != nil {
			torn.at = i
		}
		if err != nil || torn != nil {
			return torn, err
		}
	}
	return nil, nil
}

func walkSegment(fs FS, s *segmentInfo, stream StreamID, found *recovered) (*tear, error) {
	f, err := fs.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	found.bytes += size
	off := int64(segmentHeadLen)
	for found.next < s.limit {
		g, err := readGroup(f, off, size, stream)
		if errors.Is(err, io.EOF) {
			rest, err := firstByte(f, off)
			if err != nil {
				return nil, err
			}
			if rest >= 0 {
				return &tear{off: off}, nil
			}
			break
		}
		if err != nil && !errors.Is(err, errFrame) {
			return nil, err
		}
		follows := g.head.first == found.next && g.head.prev == found.chain
		if err != nil && follows {
			return &tear{off: off, records: g.records, run: g.head.run}, nil
		}
		if err != nil || !follows {
			return &tear{off: off}, nil
		}
		found.next, found.chain = g.head.first+uint64(g.head.count), g.head.chain
		found.part = max(found.part, g.records[len(g.records)-1].part)
		off += g.head.size()
	}
	// A process that was killed leaves pages that no fdatasync has seen.
	if err := f.Datasync(); err != nil {
		return nil, fmt.Errorf("syncing recovered segment: %w", err)
	}
	return nil, nil
}

// firstByte returns the offset of the 8 bytes that hold the first byte after off that is not zero, or -1.
func firstByte(f File, off int64) (int64, error) {
	buf := make([]byte, 1<<20)
	for {
		n, err := f.ReadAt(buf, off)
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return -1, err
		}
		if !blank(buf[:n]) {
			for i := 0; ; i += 8 {
				if !blank(buf[i:min(i+8, n)]) {
					return off + int64(i), nil
				}
			}
		}
		if end {
			return -1, nil
		}
		off += int64(n)
	}
}

// acknowledged reports whether any group or segment behind a tear says that the stream was durable beyond seq when it
// was written: then the tear is no torn tail, but damage to records that callers relied on. Last is how far the stream had
// been written, as far as can be seen.
func acknowledged(fs FS, segments []segmentInfo, off int64, stream StreamID, seq uint64) (yes bool, last uint64, err error) {
	for i := range segments {
		if !segments[i].damaged {
			yes, last = yes || segments[i].head.synced > seq, max(last, segments[i].head.first)
		}
		f, err := fs.Open(segments[i].path)
		if err != nil {
			return false, 0, err
		}
		found, end, err := groupsSynced(f, off, stream, seq)
		if err := errors.Join(err, f.Close()); err != nil {
			return false, 0, err
		}
		yes, last, off = yes || found, max(last, end), 0
	}
	return yes, last, nil
}

func groupsSynced(f File, off int64, stream StreamID, seq uint64) (yes bool, last uint64, err error) {
	for {
		at, err := findGroup(f, off, stream)
		if at < 0 || err != nil {
			return yes, last, err
		}
		var b [groupHeadLen]byte
		if _, err := f.ReadAt(b[:], at); err != nil {
			return false, 0, err
		}
		h, err := parseGroupHead(b[:])
		if err != nil {
			return false, 0, err
		}
		yes, last, off = yes || h.synced > seq, max(last, h.first+uint64(h.count)), at+8
	}
}

// mend sets the torn bytes aside, writes the records that were saved to a new segment, and cuts the tail off. A crash
// between any two steps leaves a journal that mends to the same records.
func mend(fs FS, dir string, stream StreamID, segments []segmentInfo, torn *tear, found *recovered) error {
	broken := &segments[torn.at]
	if err := setAside(fs, broken.path, torn.off); err != nil {
		return fmt.Errorf("setting the torn tail aside: %w", err)
	}
	found.number++
	j := journal{fs: fs, dir: dir, stream: stream}
	s, err := j.create(found.number, 0)
	if err != nil {
		return err
	}
	b := segmentHead{stream: stream, number: found.number, first: found.next, prev: found.chain, floor: found.part}.append(nil)
	if n := len(torn.records); n > 0 {
		h := groupHead{stream: stream, run: torn.run, first: found.next, count: uint32(n), prev: found.chain}
		start := len(b)
		b = append(b, make([]byte, groupHeadLen)...)
		for _, r := range torn.records {
			b = r.append(b)
			found.chain = link(found.chain, leafOf(stream, r.seq, &r.salt, r.body))
			found.part = max(found.part, r.part)
		}
		h.length, h.chain = uint32(len(b)-start-groupHeadLen), found.chain
		h.put(b[start:])
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		found.next += uint64(n)
	}
	_, err = s.f.WriteAt(b, 0)
	if err == nil {
		err = s.f.Datasync()
	}
	if err := errors.Join(err, s.f.Close()); err != nil {
		return fmt.Errorf("saving whole records: %w", err)
	}
	for _, later := range segments[torn.at+1:] {
		// Never durable, and not connected to what is: readable for an investigation only.
		if err := fs.Rename(later.path, strings.TrimSuffix(later.path, segmentSuffix)+tornSuffix); err != nil {
			return err
		}
	}
	return errors.Join(cut(fs, broken.path, torn.off), fs.SyncDir(dir))
}

func setAside(fs FS, path string, off int64) error {
	from, err := fs.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	size, err := from.Size()
	if err != nil {
		return err
	}
	aside := strings.TrimSuffix(path, segmentSuffix) + tornSuffix
	to, err := fs.Create(aside)
	if err != nil {
		// A recovery that was itself interrupted began it.
		if to, err = fs.Open(aside); err != nil {
			return err
		}
	}
	buf := make([]byte, 1<<20)
	for at := off; at < size && err == nil; {
		n, failed := from.ReadAt(buf, at)
		if failed != nil && !errors.Is(failed, io.EOF) {
			err = failed
			break
		}
		if !blank(buf[:n]) {
			_, err = to.WriteAt(buf[:n], at-off)
		}
		at += int64(n)
		if n == 0 {
			break
		}
	}
	if err == nil {
		err = to.Datasync()
	}
	return errors.Join(err, to.Close())
}

func cut(fs FS, path string, off int64) error {
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	err = f.Truncate(off)
	if err == nil {
		err = f.Datasync()
	}
	return errors.Join(err, f.Close())
}
