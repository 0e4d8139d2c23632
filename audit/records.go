package audit

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"
)

// Records yields the records of a stream directory in order, from the first that is kept on, and changes nothing. Where the
// journal is damaged or torn it yields an error and ends; on a directory that a process is writing to, the last group may
// look torn. Rows share no memory.
func Records(fs FS, dir string, stream StreamID) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		segments, _, err := listSegments(fs, dir, stream)
		if err != nil {
			yield(Row{}, fmt.Errorf("reading journal: %w", err))
			return
		}
		first := slices.IndexFunc(segments, func(s segmentInfo) bool { return !s.damaged })
		if first < 0 {
			return
		}
		c := cursor{fs: fs, dir: dir, stream: stream, next: segments[first].head.first, chain: segments[first].head.prev}
		defer c.close()
		for {
			g, err := c.read()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(Row{}, fmt.Errorf("reading journal at record %d: %w", c.next, err))
				return
			}
			for i, r := range g.records {
				row := Row{Seq: r.seq, PartTime: time.UnixMicro(r.part).UTC(), Salt: r.salt, Body: slices.Clone(r.body), Leaf: g.leaves[i]}
				if row.Event, err = DecodeEvent(row.Body); err != nil {
					yield(Row{}, fmt.Errorf("reading journal at record %d: %w: %w", r.seq, err, errFrame))
					return
				}
				if !yield(row, nil) {
					return
				}
			}
		}
	}
}

// Streams lists the streams that have a directory under a journal's folder (Config.Dir).
func Streams(fs FS, dir string) ([]StreamID, error) {
	streams, err := listStreams(fs, dir)
	if err != nil {
		return nil, fmt.Errorf("listing streams: %w", err)
	}
	return streams, nil
}
