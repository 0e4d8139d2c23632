package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	segmentSuffix = ".journal"
	damagedSuffix = ".damaged" // a segment in which acknowledged records were found damaged: readable, never trimmed
	tornSuffix    = ".torn"    // the bytes of a torn tail, kept for an investigation
)

// segmentInfo is a segment that has been started.
type segmentInfo struct {
	path    string
	number  uint64
	head    segmentHead
	damaged bool // the header cannot be read
	limit   uint64
}

// listSegments returns the started segments of a stream in order, and the paths of those that are prepared only.
//
// A segment is valid up to its limit: the lowest sequence number with which any later segment starts. What it holds
// from there on was written to a file that then failed, and was written again or refused: the later segment wins.
func listSegments(fs FS, dir string, stream StreamID) (started []segmentInfo, prepared []string, err error) {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("listing segments: %w", err)
	}
	for _, name := range names {
		base, ok := strings.CutSuffix(name, segmentSuffix)
		if !ok {
			if base, ok = strings.CutSuffix(name, damagedSuffix); !ok {
				continue
			}
		}
		number, err := strconv.ParseUint(base, 16, 64)
		if err != nil {
			continue
		}
		info := segmentInfo{path: filepath.Join(dir, name), number: number}
		head, err := readSegmentHead(fs, info.path)
		switch {
		case errors.Is(err, io.EOF):
			prepared = append(prepared, info.path)
			continue
		case errors.Is(err, os.ErrNotExist):
			continue // trimmed since it was listed
		case errors.Is(err, errFrame):
			info.damaged = true
		case err != nil:
			return nil, nil, fmt.Errorf("reading segment %s: %w", name, err)
		case head.stream != stream || head.number != number:
			info.damaged = true
		}
		info.head = head
		started = append(started, info)
	}
	slices.SortFunc(started, func(a, b segmentInfo) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	limit := uint64(1<<64 - 1)
	for i := len(started) - 1; i >= 0; i-- {
		started[i].limit = limit
		if !started[i].damaged {
			limit = min(limit, started[i].head.first)
		}
	}
	return started, prepared, nil
}

// readSegmentHead returns io.EOF for a segment that is prepared but not started.
func readSegmentHead(fs FS, path string) (h segmentHead, err error) {
	f, err := fs.Open(path)
	if err != nil {
		return h, err
	}
	defer f.Close()
	var b [segmentHeadLen]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, err
	}
	if blank(b[:n]) {
		return h, io.EOF
	}
	return parseSegmentHead(b[:n])
}

// frame is a group as it was read and checked.
type frame struct {
	head    groupHead
	records []record
	leaves  []Hash
}

// readGroup reads the group at off and checks everything in it. It returns io.EOF where nothing but zeros can follow a
// header's length, and an error that wraps errFrame for damage, in that case with the records that are whole and chained.
// chain is the chain value before the group.
func readGroup(f io.ReaderAt, off, size int64, stream StreamID) (g frame, err error) {
	var b [groupHeadLen]byte
	n, err := f.ReadAt(b[:min(groupHeadLen, max(0, size-off))], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return g, err
	}
	if blank(b[:n]) {
		return g, io.EOF
	}
	if g.head, err = parseGroupHead(b[:n]); err != nil {
		return g, err
	}
	if g.head.stream != stream {
		return g, fmt.Errorf("group of another stream: %w", errFrame)
	}
	payload := make([]byte, min(int64(g.head.length), size-off-groupHeadLen))
	if _, err = f.ReadAt(payload, off+groupHeadLen); errors.Is(err, io.EOF) { // io.EOF is for where no group begins
		return g, fmt.Errorf("group %d is cut off: %w", g.head.first, errFrame)
	} else if err != nil {
		return g, err
	}
	chain := g.head.prev
	for i := range uint64(g.head.count) {
		r, rest, err := cutRecord(payload, g.head.first+i)
		if err != nil {
			return g, err
		}
		leaf := leafOf(stream, r.seq, &r.salt, r.body)
		chain = link(chain, leaf)
		g.records, g.leaves, payload = append(g.records, r), append(g.leaves, leaf), rest
	}
	if len(payload) != 0 || chain != g.head.chain {
		return g, fmt.Errorf("group %d: chain: %w", g.head.first, errFrame)
	}
	return g, nil
}

// findGroup returns the offset of the first readable group header of the stream (of any stream for the zero value) at or
// after off, or -1.
func findGroup(f File, off int64, stream StreamID) (int64, error) {
	size, err := f.Size()
	if err != nil {
		return -1, err
	}
	const step = 1 << 20
	buf := make([]byte, step+groupHeadLen)
	for ; off < size; off += step {
		n, err := f.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return -1, err
		}
		for i := 0; i+groupHeadLen <= n && i < step; i += 8 {
			if string(buf[i:i+8]) != groupMagic {
				continue
			}
			if h, err := parseGroupHead(buf[i:n]); err == nil && (h.stream == stream || stream == StreamID{}) {
				return off + int64(i), nil
			}
		}
	}
	return -1, nil
}

func isDamaged(path string) bool { return strings.HasSuffix(path, damagedSuffix) }
