package audit

import (
	"context"
	"errors"
	"time"
)

// Row is one event on its way into the database: the exact bytes that were hashed, and the decoded event they hold, of
// which the columns are projections.
type Row struct {
	Seq      uint64
	Event    Event
	PartTime time.Time // stored in the record, so that a replay lands in the same partition
	Salt     [16]byte
	Body     []byte
	Leaf     Hash
	Altered  []string // columns that are not what Body says, by name; only storages that keep columns set it
}

// ClockTolerance is how far an event's wall clock may be off its part time before it is not believed.
const ClockTolerance = 10 * time.Second

// Time is when the event happened: when it was recorded, or its part time where the clock that it was recorded by had stepped.
// So a search by time needs to look at part times only within ClockTolerance around.
func (r *Row) Time() time.Time {
	if off := r.Event.Recorded.Sub(r.PartTime); off < -ClockTolerance || off > ClockTolerance {
		return r.PartTime
	}
	return r.Event.Recorded
}

// Batch is a contiguous run of rows of one stream.
type Batch struct {
	Stream StreamID
	First  uint64 // sequence number of Rows[0]; streams start at 0
	Prev   Hash   // chain head before Rows[0]; zero at the start of a stream
	Chain  Hash   // chain head after the last row
	Rows   []Row
}

// Seal gives the rows their leaves and the batch its Chain, from Stream, Prev and what the rows hold.
func (b *Batch) Seal() {
	b.Chain = b.Prev
	for i := range b.Rows {
		r := &b.Rows[i]
		r.Leaf = leafOf(b.Stream, r.Seq, &r.Salt, r.Body)
		b.Chain = link(b.Chain, r.Leaf)
	}
}

// ErrIngested says that the batch (or a part of it from its first row on) is stored already: a replay after a lost
// answer. The shipper then asks for the Head and goes on from there.
var ErrIngested = errors.New("audit: batch is ingested already")

// ErrChain says that the database holds another history for this stream: a gap, or a different chain. It is never
// retried silently.
var ErrChain = errors.New("audit: stream does not continue what is stored")

// Storage takes batches for keeps. Ingest stores the manifest and every row in one transaction that is durable
// (synchronous_commit on) when it returns nil, or stores nothing. Any error but ErrIngested and ErrChain is retried
// for ever. Calls for one stream never overlap.
type Storage interface {
	// Head returns the next sequence number and the chain head that the database expects of the stream (0 and the
	// zero hash for an unknown one).
	Head(ctx context.Context, stream StreamID) (next uint64, chain Hash, err error)
	Ingest(ctx context.Context, b Batch) error
}

// Quarantine is what a Storage may implement besides: how many rows it has put aside, since the process started, because its
// tables would not take their columns. Such a row keeps its number, its leaf and its body; only searches do not find it.
type Quarantine interface {
	Quarantined() uint64
}
