package audit

import (
	"errors"
	"fmt"
	"reflect"
)

// ErrTampered says that rows are not what was recorded.
var ErrTampered = errors.New("audit: rows do not match their hashes")

// Check re-computes everything that a batch claims: sequence numbers, each leaf from salt and body, the chain from Prev
// to Chain, and each Event, whose columns an officer searches, from the body. It returns an error that wraps ErrTampered
// and names the first row that is wrong.
func Check(b Batch) error {
	chain := b.Prev
	for i := range b.Rows {
		r := &b.Rows[i]
		if r.Seq != b.First+uint64(i) {
			return fmt.Errorf("checking row %d: sequence number %d: %w", b.First+uint64(i), r.Seq, ErrTampered)
		}
		if err := CheckRow(b.Stream, r); err != nil {
			return err
		}
		chain = link(chain, r.Leaf)
	}
	if chain != b.Chain {
		return fmt.Errorf("checking rows %d to %d: chain: %w", b.First, b.First+uint64(len(b.Rows)), ErrTampered)
	}
	return nil
}

// CheckRow re-computes what one row claims by itself: its leaf from salt and body, and its Event from the body. The error wraps
// ErrTampered. Whether the row is in its place only Check can tell.
func CheckRow(stream StreamID, r *Row) error {
	e, err := DecodeEvent(r.Body)
	if err != nil {
		return fmt.Errorf("checking row %d: %w: %w", r.Seq, err, ErrTampered)
	}
	if leafOf(stream, r.Seq, &r.Salt, r.Body) != r.Leaf {
		return fmt.Errorf("checking row %d: leaf: %w", r.Seq, ErrTampered)
	}
	if !reflect.DeepEqual(e, r.Event) {
		return fmt.Errorf("checking row %d: columns differ from the body: %w", r.Seq, ErrTampered)
	}
	return nil
}

// State is what VerifyJournal found in a stream directory.
type State struct {
	Stream  StreamID
	First   uint64   // first record that is kept
	Next    uint64   // after the last readable record
	Chain   Hash     // chain after it
	Bytes   int64    // size of the segments read
	Damaged []string // names of segments that recovery found damaged
	Err     error    // why the walk stopped before the end of the journal; nil when all is well
}

// VerifyJournal walks a stream directory without changing it: checksums, contiguity, leaves and chain. On a directory that
// a process is writing to, the last group may look torn. The error is for what cannot be read at all.
func VerifyJournal(fs FS, dir string, stream StreamID) (State, error) {
	state := State{Stream: stream}
	segments, _, err := listSegments(fs, dir, stream)
	if err != nil {
		return state, fmt.Errorf("verifying journal: %w", err)
	}
	var found recovered
	torn, err := walk(fs, segments, stream, 0, &found)
	if err != nil {
		return state, fmt.Errorf("verifying journal: %w", err)
	}
	state.First, state.Next, state.Chain, state.Bytes = found.oldest, found.next, found.chain, found.bytes
	for _, s := range segments {
		if isDamaged(s.path) {
			state.Damaged = append(state.Damaged, s.path)
		}
	}
	if torn != nil {
		state.Err = fmt.Errorf("segment %d, offset %d, record %d: %w", segments[torn.at].number, torn.off, found.next, errFrame)
	}
	return state, nil
}
