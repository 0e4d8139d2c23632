package audit

import (
	"errors"
	"testing"
)

// TestPrunedRangeOf computes ranges that begin and end at any record of any batch, from the tree alone.
func TestPrunedRangeOf(t *testing.T) {
	l := newLedger(t)
	l.fill(t, 2, 5, 7, 300, 1, 4, 280)
	c := l.at(t, l.size)
	for _, stream := range []StreamID{{1}, {2}} {
		n := uint64(len(l.rows[stream]))
		for first := uint64(0); first < n; first += 1 + first%7 {
			for _, count := range []uint64{1, 2, 5, n - first} {
				if first+count > n {
					continue
				}
				got, err := PrunedRangeOf(t.Context(), l, c, stream, first, count)
				if want := l.pruning(stream, first, count).Ranges[0]; err != nil || got != want {
					t.Fatalf("records %d to %d: %+v, %v, want %+v", first, first+count, got, err, want)
				}
			}
		}
	}
	for _, bad := range []struct {
		stream       StreamID
		first, count uint64
	}{{StreamID{9}, 0, 1}, {StreamID{1}, uint64(len(l.rows[StreamID{1}])), 1}, {StreamID{1}, 0, uint64(len(l.rows[StreamID{1}])) + 1}} {
		if _, err := PrunedRangeOf(t.Context(), l, c, bad.stream, bad.first, bad.count); !errors.Is(err, ErrNotSequenced) {
			t.Errorf("records %d to %d of %s: %v, want ErrNotSequenced", bad.first, bad.first+bad.count, bad.stream, err)
		}
	}
	if _, err := PrunedRangeOf(t.Context(), l, l.at(t, 5), StreamID{2}, 0, 2); !errors.Is(err, ErrNotSequenced) {
		t.Errorf("beyond the checkpoint: %v", err)
	}
	// A batch that lies about its chain, or about where it stands, makes no record.
	honest := l.spans[2]
	l.spans[2].Prev[0] ^= 1
	if _, err := PrunedRangeOf(t.Context(), l, c, StreamID{1}, 10, 3); !errors.Is(err, ErrTampered) {
		t.Errorf("another chain: %v", err)
	}
	l.spans[2] = honest
	l.spans[2].Index++
	if _, err := PrunedRangeOf(t.Context(), l, c, StreamID{1}, 10, 3); !errors.Is(err, ErrTampered) {
		t.Errorf("another place: %v", err)
	}
}
