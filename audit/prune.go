package audit

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

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
