package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrPruning says that a note is no pruning record of the log.
var ErrPruning = errors.New("audit: not a pruning record of this log")

// RetentionYears is the shortest time for which the trail is kept: 45 CFR 164.316(b)(2)(i), and 164.528 for disclosures.
const RetentionYears = 6

// Pruning says which rows were dropped when their retention was over. Their leaves stay in the tree, so every proof stays
// valid; rows may be missing only where a signed Pruning says so.
type Pruning struct {
	Origin    string        `json:"origin"`    // of the log
	Partition string        `json:"partition"` // that was dropped, by its name in the database
	Before    time.Time     `json:"before"`    // the part time of every dropped row is below it
	Made      time.Time     `json:"made"`      // at least RetentionYears after Before
	Rows      int64         `json:"rows"`      // that were dropped: the sum over Ranges
	Archive   Hash          `json:"archive"`   // SHA-256 of the manifest of the bundle they were exported to
	Ranges    []PrunedRange `json:"ranges"`    // by stream, then First, not overlapping
}

// PrunedRange is a run of one stream's records.
type PrunedRange struct {
	Stream StreamID `json:"stream"`
	First  uint64   `json:"first"`
	Count  uint64   `json:"count"`
	Prev   Hash     `json:"prev"`  // chain of the stream before the range
	Chain  Hash     `json:"chain"` // and after it
}

// pruningHeader keeps a pruning record from being taken for anything else that the same key signs.
const pruningHeader = "chartkeep audit pruning v1"

// maxPruning bounds the bytes of a pruning record that is read.
const maxPruning = 64 << 20

// Text is the body of the note: the header, one line a field, one line a range.
func (p *Pruning) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\norigin %s\npartition %s\nbefore %s\nmade %s\nrows %d\narchive %s\n", pruningHeader, p.Origin, p.Partition,
		pruningTime(p.Before), pruningTime(p.Made), p.Rows, p.Archive)
	for _, r := range p.Ranges {
		fmt.Fprintf(&b, "range %s %d %d %s %s\n", r.Stream, r.First, r.Count, r.Prev, r.Chain)
	}
	return b.String()
}

func pruningTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Sign returns the record as a note. Times are kept to the second. It refuses what OpenPruning would refuse.
func (p *Pruning) Sign(signers ...note.Signer) ([]byte, error) {
	if _, err := parsePruning(p.Text()); err != nil {
		return nil, fmt.Errorf("signing pruning record: %w", err)
	}
	msg, err := note.Sign(&note.Note{Text: p.Text()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("signing pruning record: %w", err)
	}
	return msg, nil
}

// OpenPruning opens a signed record. As with a checkpoint, a known key whose name is the origin must have signed it. It
// refuses a record of rows that were younger than RetentionYears. Errors wrap ErrPruning.
func OpenPruning(msg []byte, known note.Verifiers) (*Pruning, error) {
	if len(msg) > maxPruning {
		return nil, fmt.Errorf("opening pruning record: %d bytes: %w", len(msg), ErrPruning)
	}
	n, err := openNote(msg, known)
	if err != nil {
		return nil, fmt.Errorf("opening pruning record: %w: %w", err, ErrPruning)
	}
	p, err := parsePruning(n.Text)
	if err != nil {
		return nil, fmt.Errorf("opening pruning record: %w", err)
	}
	if !signedBy(n, known, p.Origin) {
		return nil, fmt.Errorf("opening pruning record: no key of the log signed it: %w", ErrPruning)
	}
	return p, nil
}

// parsePruning is the inverse of Text: what it accepts, Text gives back.
func parsePruning(text string) (*Pruning, error) {
	bad := func(what string) (*Pruning, error) { return nil, fmt.Errorf("%s: %w", what, ErrPruning) }
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 7 || lines[0] != pruningHeader {
		return bad("header")
	}
	var p Pruning
	var values [6]string
	for i, name := range [...]string{"origin", "partition", "before", "made", "rows", "archive"} {
		value, ok := strings.CutPrefix(lines[1+i], name+" ")
		if !ok || value == "" {
			return bad(name)
		}
		values[i] = value
	}
	p.Origin, p.Partition = values[0], values[1]
	var err [4]error
	p.Before, err[0] = time.Parse(time.RFC3339, values[2])
	p.Made, err[1] = time.Parse(time.RFC3339, values[3])
	p.Rows, err[2] = parseDecimal(values[4])
	p.Archive, err[3] = parseHash(values[5])
	if e := errors.Join(err[:]...); e != nil {
		return bad("fields")
	}
	if p.Made.Before(p.Before.AddDate(RetentionYears, 0, 0)) {
		return bad("rows were younger than the retention time")
	}
	var rows uint64
	for _, line := range lines[7:] {
		r, ok := parseRange(line)
		if !ok {
			return bad("range")
		}
		if n := len(p.Ranges); n > 0 {
			last := p.Ranges[n-1]
			if c := strings.Compare(string(last.Stream[:]), string(r.Stream[:])); c > 0 || c == 0 && r.First < last.First+last.Count {
				return bad("order of ranges")
			}
		}
		rows += r.Count
		p.Ranges = append(p.Ranges, r)
	}
	if rows != uint64(p.Rows) || p.Text() != text {
		return bad("spelling")
	}
	return &p, nil
}

func parseRange(line string) (r PrunedRange, ok bool) {
	f := strings.Split(line, " ")
	if len(f) != 6 || f[0] != "range" {
		return r, false
	}
	stream, err1 := hex.DecodeString(f[1])
	first, err2 := strconv.ParseUint(f[2], 10, 63)
	count, err3 := strconv.ParseUint(f[3], 10, 48)
	prev, err4 := parseHash(f[4])
	chain, err5 := parseHash(f[5])
	if errors.Join(err1, err2, err3, err4, err5) != nil || len(stream) != len(r.Stream) || count == 0 {
		return r, false
	}
	return PrunedRange{Stream: StreamID(stream), First: first, Count: count, Prev: prev, Chain: chain}, true
}

// PrunedRangeOf returns the range of a run of a stream's records that is about to be pruned, with the stream's chain before and
// after it, from the leaves that stand in the tree of a checkpoint: its rows are not needed for that, nor those around them.
// It fails with ErrNotSequenced, and with ErrTampered when the stored batches do not fit the tree.
func PrunedRangeOf(ctx context.Context, t TreeReader, c Checkpoint, stream StreamID, first, count uint64) (PrunedRange, error) {
	r := PrunedRange{Stream: stream, First: first, Count: count}
	var err error
	if r.Prev, err = chainBefore(ctx, t, c, stream, first, false); err != nil {
		return r, fmt.Errorf("finding chain before record %d of stream %s: %w", first, stream, err)
	}
	if r.Chain, err = chainBefore(ctx, t, c, stream, first+count, true); err != nil {
		return r, fmt.Errorf("finding chain before record %d of stream %s: %w", first+count, stream, err)
	}
	return r, nil
}

// chainBefore returns the stream's chain before a record, going by the batch that holds it, or, where it need not be there,
// the one before it.
func chainBefore(ctx context.Context, t TreeReader, c Checkpoint, stream StreamID, seq uint64, before bool) (Hash, error) {
	at := seq
	if before {
		at--
	}
	span, ok, err := t.Locate(ctx, stream, at)
	if err != nil {
		return Hash{}, err
	}
	if !ok || span.Index+int64(span.Count) > c.Size {
		return Hash{}, ErrNotSequenced
	}
	if seq < span.First || seq-span.First > uint64(span.Count) {
		return Hash{}, fmt.Errorf("batch from %d: %w", span.First, ErrTampered)
	}
	indexes := make([]int64, span.Count)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, span.Index+int64(i))
	}
	leaves, err := HashReader(ctx, t, c).ReadHashes(indexes)
	if err != nil {
		return Hash{}, err
	}
	chain := span.Prev
	var found Hash
	for i, leaf := range leaves {
		if span.First+uint64(i) == seq {
			found = chain
		}
		chain = link(chain, Hash(leaf))
	}
	if chain != span.Chain {
		return Hash{}, fmt.Errorf("batch from %d: chain: %w", span.First, ErrTampered)
	}
	if seq == span.First+uint64(span.Count) {
		found = chain
	}
	return found, nil
}
