package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// The bytes of a journal. All numbers are big endian, times are microseconds since 1970, checksums are CRC32C.
//
//	segment  magic 8 | stream 16 | number 8 | first seq 8 | chain before it 32 | part time floor 8 | synced 8 | 0 4 | crc 4
//	         then groups, then zeros up to the preallocated size
//	group    magic 8 | stream 16 | run 16 | first seq 8 | count 4 | length of records 4 | chain before 32 | chain after 32 | synced 8 | 0 4 | crc 4
//	         then records, then zeros up to a multiple of 8
//	record   body length 4 | seq 8 | part time 8 | monotonic ns since the run's start 8 | salt 16 | body | crc 4
//
// Synced is the sequence number up to which the stream was durable when the header was written: what is damaged below it
// had been acknowledged, what is damaged above it may be the torn tail of a power cut.
//
// The checksum of a group's header covers the header only: each record has its own, so that the whole records of a torn
// group can be saved, and the chain value after the group says whether it is complete.
const (
	segmentMagic = "CKSEG\x00\x001"
	groupMagic   = "CKGRP\x00\x001"

	segmentHeadLen = 96
	groupHeadLen   = 136
	recordHeadLen  = 44
	recordTailLen  = 4
)

// errFrame says that bytes are not what a journal holds at this place.
var errFrame = errors.New("audit: damaged journal")

type segmentHead struct {
	stream StreamID
	number uint64
	first  uint64 // seq of the first record
	prev   Hash   // chain before it
	floor  int64  // part time that no record here may be below
	synced uint64
}

func (h segmentHead) append(b []byte) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = append(b, h.stream[:]...)
	b = binary.BigEndian.AppendUint64(b, h.number)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = append(b, h.prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.floor))
	b = binary.BigEndian.AppendUint64(b, h.synced)
	b = append(b, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(b, checksum(b[start:]))
}

func parseSegmentHead(b []byte) (h segmentHead, err error) {
	if len(b) < segmentHeadLen || string(b[:8]) != segmentMagic || !checked(b[:segmentHeadLen]) {
		return h, fmt.Errorf("segment header: %w", errFrame)
	}
	copy(h.stream[:], b[8:])
	h.number = binary.BigEndian.Uint64(b[24:])
	h.first = binary.BigEndian.Uint64(b[32:])
	copy(h.prev[:], b[40:])
	h.floor = int64(binary.BigEndian.Uint64(b[72:]))
	h.synced = binary.BigEndian.Uint64(b[80:])
	return h, nil
}

type groupHead struct {
	stream StreamID
	run    [16]byte // the process that wrote it: monotonic times compare within one run only
	first  uint64
	count  uint32
	length uint32 // of the records, without padding
	prev   Hash
	chain  Hash
	synced uint64
}

// put writes the header over the first groupHeadLen bytes of b.
func (h groupHead) put(b []byte) {
	b = append(b[:0], groupMagic...)
	b = append(b, h.stream[:]...)
	b = append(b, h.run[:]...)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = binary.BigEndian.AppendUint32(b, h.count)
	b = binary.BigEndian.AppendUint32(b, h.length)
	b = append(b, h.prev[:]...)
	b = append(b, h.chain[:]...)
	b = binary.BigEndian.AppendUint64(b, h.synced)
	b = append(b, 0, 0, 0, 0)
	binary.BigEndian.AppendUint32(b, checksum(b))
}

func parseGroupHead(b []byte) (h groupHead, err error) {
	if len(b) < groupHeadLen || string(b[:8]) != groupMagic || !checked(b[:groupHeadLen]) {
		return h, fmt.Errorf("group header: %w", errFrame)
	}
	copy(h.stream[:], b[8:])
	copy(h.run[:], b[24:])
	h.first = binary.BigEndian.Uint64(b[40:])
	h.count = binary.BigEndian.Uint32(b[48:])
	h.length = binary.BigEndian.Uint32(b[52:])
	copy(h.prev[:], b[56:])
	copy(h.chain[:], b[88:])
	h.synced = binary.BigEndian.Uint64(b[120:])
	return h, nil
}

// size is the length of the whole frame.
func (h groupHead) size() int64 { return int64(groupHeadLen) + (int64(h.length)+7)&^7 }

// record is one event in the journal.
type record struct {
	seq  uint64
	part int64 // part time, µs
	mono int64
	salt [16]byte
	body []byte
}

func (r record) append(b []byte) []byte {
	start := len(b)
	b = slices.Grow(b, recordHeadLen+len(r.body)+recordTailLen)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.body)))
	b = binary.BigEndian.AppendUint64(b, r.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(r.part))
	b = binary.BigEndian.AppendUint64(b, uint64(r.mono))
	b = append(b, r.salt[:]...)
	b = append(b, r.body...)
	return binary.BigEndian.AppendUint32(b, checksum(b[start:]))
}

// cutRecord takes the record with the sequence number off the front of b; its body points into b.
func cutRecord(b []byte, seq uint64) (r record, rest []byte, err error) {
	if len(b) < recordHeadLen {
		return r, nil, fmt.Errorf("record %d: %w", seq, errFrame)
	}
	n := int(binary.BigEndian.Uint32(b))
	if n < headLen || n > MaxBody || len(b) < recordHeadLen+n+recordTailLen || !checked(b[:recordHeadLen+n+recordTailLen]) {
		return r, nil, fmt.Errorf("record %d: %w", seq, errFrame)
	}
	r.seq = binary.BigEndian.Uint64(b[4:])
	r.part = int64(binary.BigEndian.Uint64(b[12:]))
	r.mono = int64(binary.BigEndian.Uint64(b[20:]))
	copy(r.salt[:], b[28:])
	r.body = b[recordHeadLen : recordHeadLen+n : recordHeadLen+n]
	if r.seq != seq {
		return r, nil, fmt.Errorf("record %d where %d belongs: %w", r.seq, seq, errFrame)
	}
	return r, b[recordHeadLen+n+recordTailLen:], nil
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// checked reports whether the last four bytes are the CRC32C of those before.
func checked(b []byte) bool {
	n := len(b) - 4
	return checksum(b[:n]) == binary.BigEndian.Uint32(b[n:])
}

// leafOf is the RFC 6962 leaf hash (0x00 prefix) of event id, stream, seq, recorded and SHA-256(salt || body). The leaf
// commits to the event without revealing it: the random salt keeps guessable events from being guessed, and body and
// salt may be dropped while the leaf stays provable.
func leafOf(stream StreamID, seq uint64, salt *[16]byte, body []byte) Hash {
	var buf [1024]byte
	in := append(append(buf[:0], salt[:]...), body...)
	content := sha256.Sum256(in)

	leaf := append(buf[:0], 0)
	leaf = append(leaf, body[1:17]...) // see headLen
	leaf = append(leaf, stream[:]...)
	leaf = binary.BigEndian.AppendUint64(leaf, seq)
	leaf = append(leaf, body[17:25]...)
	leaf = append(leaf, content[:]...)
	return sha256.Sum256(leaf)
}

// link is the chain value after a leaf: SHA-256(chain before || leaf).
func link(prev, leaf Hash) Hash {
	var b [64]byte
	copy(b[:], prev[:])
	copy(b[32:], leaf[:])
	return sha256.Sum256(b[:])
}

// blank reports whether b holds zeros only.
func blank(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
