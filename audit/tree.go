package audit

import (
	"context"
	"errors"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// The log's tree is one RFC 6962 Merkle tree over the leaves of all streams, kept as C2SP tlog-tiles of height TileHeight
// (https://c2sp.org/tlog-tiles). One elected sequencer appends whole stored batches to it, in the order in which it finds
// them, each stream's in the stream's own order, and signs a checkpoint (https://c2sp.org/tlog-checkpoint) of every size
// that it publishes. The hash that stands at a leaf's place in the tree is Row.Leaf, a salted commitment: rows may be
// dropped when their time has come, and every proof stays valid.

// TileHeight is the height of tiles: a full one holds 256 hashes.
const TileHeight = 8

// Span is a run of one stream's records in the tree: record First+i is leaf Index+i, for i < Count. It is one stored batch.
type Span struct {
	Index               int64 // of the first leaf
	Stream              StreamID
	First               uint64
	Count               int
	Prev, Chain         Hash      // chain of the stream before and after
	FirstPart, LastPart time.Time // part times of its first and last record
	Disputed            bool      // the batch, as it was stored, is gone or says something else; only storages that keep both tell
}

// MaxSpan is the largest Count of a span; what says more was not written by a shipper.
const MaxSpan = 1 << 20

// ErrFenced says that somebody else leads, or that the tree is not what the caller last saw: it stops, reads the head again
// and never guesses.
var ErrFenced = errors.New("audit: the tree has another sequencer or another head")

// TreeStorage keeps the tree beside the rows.
type TreeStorage interface {
	TreeReader
	// Lead makes the caller the sequencer. It returns nil and no error while another process leads. The lease ends with
	// Close, or with the connection it hangs on; every lease has a higher fencing token than all before it.
	Lead(ctx context.Context) (Lease, error)
}

// Lease is the right to extend the tree, for one goroutine.
type Lease interface {
	// Pending returns stored batches that the tree does not hold yet, each stream's in order from where the tree ends, together
	// with their leaves as the rows have them: at most about limit leaves, at least one batch where there is any. Streams
	// take turns, and those to skip are passed over. Index is not set.
	Pending(ctx context.Context, skip []StreamID, limit int) ([]Pending, error)
	// Leaves returns the leaves of a batch as its rows have them, by sequence number. A batch that lacks rows has fewer of them
	// than its Count.
	Leaves(ctx context.Context, s Span) ([]Hash, error)
	// Extend stores everything in one transaction, if this lease is still the newest and the newest checkpoint has size
	// Old; otherwise it stores nothing and fails with ErrFenced. After any other error the caller does not know: it reads
	// the head again.
	Extend(ctx context.Context, e Extension) error
	Close() error
}

// Pending is a stored batch on its way into the tree.
type Pending struct {
	Span
	Leaves []Hash        // as Lease.Leaves returns them
	Waited time.Duration // since it was stored, by the clock of the storage
}

// Extension takes the tree from size Old to size Size.
type Extension struct {
	Old, Size  int64
	Spans      []Span
	Tiles      []Tile   // full ones, new
	Edge       []Tile   // the partial ones of the new size, at most one a level: they replace the edge that was kept
	Checkpoint []byte   // signed note of Size
	Keys       []string // verifier keys of the log and its witnesses in use, for Evidence.Keys
}

// Tile is the content of a tile: its hashes, one after the other.
type Tile struct {
	tlog.Tile
	Hashes []byte
}

// TreeReader reads the tree. Calls may be made from many goroutines.
type TreeReader interface {
	// Checkpoint returns the newest signed checkpoint with all cosignatures that were gathered for it; nil when there is none.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Checkpoints returns those of sizes above after, smallest first, at most limit.
	Checkpoints(ctx context.Context, after int64, limit int) ([][]byte, error)
	// Tiles returns the content of tiles, full or partial (tlog.Tile.W), of any published size, each in its place; one that
	// is not there has none.
	Tiles(ctx context.Context, tiles []tlog.Tile) ([][]byte, error)
	// Locate returns the span that holds a record; ok is false while it is not in the tree.
	Locate(ctx context.Context, stream StreamID, seq uint64) (span Span, ok bool, err error)
	// Spans returns the spans from the one that holds leaf from on, in order, at most limit.
	Spans(ctx context.Context, from int64, limit int) ([]Span, error)
	// Cosign keeps a witness's signature line for the checkpoint of a size.
	Cosign(ctx context.Context, size int64, line []byte) error
}

// Evidence is everything that verification reads: a live trail, or an exported bundle.
type Evidence interface {
	TreeReader
	// Rows returns the rows of a span as they are stored, ordered by sequence number, quarantined ones included. Rows that
	// are gone are missing, and rows that were put in twice are there twice: it is Verify that complains.
	Rows(ctx context.Context, s Span) ([]Row, error)
	// Unsequenced returns stored batches that are not in the tree yet, each stream's in order, at most limit.
	Unsequenced(ctx context.Context, limit int) ([]Span, error)
	// Strays returns rows that no stored batch covers, at most limit.
	Strays(ctx context.Context, limit int) ([]Stray, error)
	// Prunings returns the signed records of rows that were dropped when their retention was over, oldest first.
	Prunings(ctx context.Context) ([][]byte, error)
	// Keys returns the verifier keys (https://c2sp.org/signed-note) that the log and its witnesses have used. They prove
	// nothing by themselves: who verifies brings at least one key, and further ones are believed as far as it vouches for them.
	Keys(ctx context.Context) ([]string, error)
}

// Stray is a row that no stored batch covers.
type Stray struct {
	Stream   StreamID
	Seq      uint64
	PartTime time.Time
}
