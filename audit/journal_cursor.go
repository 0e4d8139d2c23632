package audit

import (
	"errors"
	"fmt"
	"io"
)

// cursor reads the groups of a stream in order, from any record on, across segments.
type cursor struct {
	fs     FS
	dir    string
	stream StreamID
	next   uint64        // seq of the next record
	chain  Hash          // chain before it
	newest func() uint64 // number of the segment in use; nil for a stream that nobody writes

	segments []segmentInfo
	listed   uint64 // newest at the time of the listing
	open     *segmentInfo
	f        File
	off      int64
}

func (c *cursor) close() {
	if c.f != nil {
		_ = c.f.Close() // it was only read
		c.f = nil
	}
}

// read returns the next group, without the records that the cursor is past. It returns io.EOF at the end.
func (c *cursor) read() (frame, error) {
	if err := c.refresh(); err != nil {
		return frame{}, err
	}
	for {
		if c.f == nil || c.next >= c.open.limit {
			if err := c.seek(); err != nil {
				return frame{}, err
			}
		}
		size, err := c.f.Size()
		if err != nil {
			return frame{}, err
		}
		var b [groupHeadLen]byte
		if n, err := c.f.ReadAt(b[:min(groupHeadLen, max(0, size-c.off))], c.off); err != nil && !errors.Is(err, io.EOF) {
			return frame{}, err
		} else if h, err := parseGroupHead(b[:n]); err == nil && h.first+uint64(h.count) <= c.next {
			c.off += h.size()
			continue
		}
		g, err := readGroup(c.f, c.off, size, c.stream)
		if err != nil {
			return frame{}, err
		}
		chain := g.head.prev
		for len(g.records) > 0 && g.records[0].seq < c.next {
			chain = link(chain, g.leaves[0])
			g.records, g.leaves = g.records[1:], g.leaves[1:]
		}
		if len(g.records) == 0 || g.records[0].seq != c.next {
			return frame{}, fmt.Errorf("group %d where record %d belongs: %w", g.head.first, c.next, errFrame)
		}
		if chain != c.chain {
			return frame{}, fmt.Errorf("record %d has another history here: %w", c.next, ErrChain)
		}
		c.off += g.head.size()
		c.next, c.chain = g.head.first+uint64(g.head.count), g.head.chain
		return g, nil
	}
}

// agree checks that the chain before the cursor's next record is the cursor's: that whoever named the place speaks of this
// history. A place that is kept no more is believed.
func (c *cursor) agree() error {
	if err := c.refresh(); err != nil {
		return err
	}
	if len(c.segments) == 0 || !c.segments[0].damaged && c.segments[0].head.first > c.next {
		return nil
	}
	if err := c.seek(); err != nil {
		return err
	}
	size, err := c.f.Size()
	if err != nil {
		return err
	}
	at, chain := c.open.head.first, c.open.head.prev
	for at < c.next {
		var b [groupHeadLen]byte
		n, err := c.f.ReadAt(b[:min(groupHeadLen, max(0, size-c.off))], c.off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if blank(b[:n]) {
			return fmt.Errorf("record %d where %d comes next: %w", c.next, at, ErrChain)
		}
		h, err := parseGroupHead(b[:n])
		if err != nil {
			return err
		}
		if at+uint64(h.count) > c.next { // read comes to this group again
			g, err := readGroup(c.f, c.off, size, c.stream)
			if err != nil {
				return err
			}
			for i := range c.next - at {
				chain = link(chain, g.leaves[i])
			}
			break
		}
		at, chain = at+uint64(h.count), h.chain
		c.off += h.size()
	}
	if chain != c.chain {
		return fmt.Errorf("record %d has another history here: %w", c.next, ErrChain)
	}
	return nil
}

// refresh lists the segments when there may be a new one, which may also take over records of an older one.
func (c *cursor) refresh() error {
	newest := uint64(0)
	if c.newest != nil {
		newest = c.newest()
	}
	if c.segments != nil && c.listed == newest {
		return nil
	}
	segments, _, err := listSegments(c.fs, c.dir, c.stream)
	if err != nil {
		return err
	}
	c.segments, c.listed = segments, newest
	if c.f == nil {
		return nil
	}
	for i := range segments {
		if segments[i].number == c.open.number {
			c.open = &segments[i]
			return nil
		}
	}
	c.close()
	return nil
}

// seek opens the segment that holds the next record.
func (c *cursor) seek() error {
	c.close()
	for i := len(c.segments) - 1; i >= 0; i-- {
		s := &c.segments[i]
		if s.damaged || s.head.first > c.next {
			continue
		}
		if c.next >= s.limit {
			break
		}
		f, err := c.fs.Open(s.path)
		if err != nil {
			return err
		}
		c.f, c.open, c.off = f, s, segmentHeadLen
		return nil
	}
	if len(c.segments) == 0 {
		return io.EOF
	}
	return fmt.Errorf("no segment holds record %d: %w", c.next, errFrame)
}
