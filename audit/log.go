package audit

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// ErrUnavailable says that the event could not be made durable (journal not writable, channel full, ticket timed out,
// log closed): the caller answers 503 and discloses nothing.
var ErrUnavailable = errors.New("audit: event could not be made durable")

// Config configures a Log.
type Config struct {
	Dir           string        // holds one subdirectory a stream; created when missing
	Storage       Storage       // where groups are shipped; nil keeps the journal only
	Capacity      int           // events waiting for the committer; 8192 when 0
	SegmentBytes  int64         // 64 MiB when 0
	TicketTimeout time.Duration // how long Record waits; 2 s when 0
	Logger        *slog.Logger
	Now           func() time.Time // nil = time.Now
	FS            FS               // nil = the operating system
}

// Log is one process's stream. All methods are safe for concurrent use.
type Log struct{ unwritten int }

// FS is the file system as the journal uses it, so that every call can be made to fail in tests.
type FS interface{}

// Receipt is the proof that an event is durable at its level. Only Log makes one; the zero Receipt covers nothing.
type Receipt struct{ events []*Event }

// Open locks a stream directory under cfg.Dir (the first that no living process holds, a new one otherwise), recovers
// its journal, and starts the committer.
func Open(cfg Config) (*Log, error) { panic("unwritten") }

// Record hands the events over as one group and waits until they are durable at the level, the ticket timeout has
// passed, or ctx is done. Any error wraps ErrUnavailable.
func (l *Log) Record(ctx context.Context, level Level, events ...*Event) (Receipt, error) {
	panic("unwritten")
}

// Submit is Record without the wait: the event is on its way, and the Ticket is redeemed later.
func (l *Log) Submit(level Level, events ...*Event) (Ticket, error) { panic("unwritten") }

// Ticket is an event on its way.
type Ticket struct{ unwritten int }

// Wait waits as Record does.
func (t Ticket) Wait(ctx context.Context) (Receipt, error) { panic("unwritten") }

// Run ships groups to Storage until ctx is done, retrying for ever with jittered backoff. It also ships what other
// streams' dead processes left behind under cfg.Dir.
func (l *Log) Run(ctx context.Context) error { panic("unwritten") }

// Drain waits until everything recorded so far is in Storage, or ctx is done.
func (l *Log) Drain(ctx context.Context) error { panic("unwritten") }

// Close refuses new events, makes what was accepted durable and releases the lock.
func (l *Log) Close() error { panic("unwritten") }

// Healthy returns nil when the journal takes events, or what stands in the way.
func (l *Log) Healthy() error { panic("unwritten") }

// Stream is the id of this process's stream.
func (l *Log) Stream() StreamID { panic("unwritten") }

// Covers reports whether the receipt is for an event that names the record, or that names the patient to whose
// compartment the record belongs, or (for a search whose hits are not known yet) the type: an event with
// Interaction "search-type" and an Entity of that type without an ID.
func (r Receipt) Covers(entityType, id, patient string) bool { panic("unwritten") }

// Events are the events that the receipt is for; do not change them.
func (r Receipt) Events() []*Event { return r.events }

// Stats is a snapshot of counters, as database/sql's DBStats is.
type Stats struct {
	Recorded, Rejected, Shipped, Quarantined uint64
	Queued                                   int           // waiting in the channel
	Pending                                  uint64        // in the journal, not yet in Storage
	Lag                                      time.Duration // age of the oldest event not yet in Storage
	JournalBytes                             int64
	GroupCommits, Syncs                      uint64
	SyncTime                                 time.Duration // sum over all syncs
}

// Stats returns the snapshot.
func (l *Log) Stats() Stats { panic("unwritten") }
