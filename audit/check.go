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
		return fmt.Errorf("checking %d rows from %d on: chain: %w", len(b.Rows), b.First, ErrTampered)
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
