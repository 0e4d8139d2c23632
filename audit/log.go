package audit

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
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
	TicketTimeout time.Duration // how long Record waits, by the monotonic clock; 2 s when 0
	MinFree       int64         // bytes below which callers are refused; when 0, two segments, but at most 1/16 of the volume; negative: none
	GiveUpAfter   time.Duration // how long the file system may fail before Failed says so; 60 s when 0
	Heartbeat     time.Duration // between heartbeats; 10 s when 0, none when negative
	MaxSkew       time.Duration // from the database's clock, beyond which callers are refused; 5 min when 0
	Keep          time.Duration // how long shipped segments are kept; 7 days when 0, not at all when negative
	KeepBytes     int64         // and how many bytes of them; 1 GiB when 0
	Logger        *slog.Logger
	Now           func() time.Time // nil = time.Now
	FS            FS               // nil = the operating system
}

// Log is one process's stream. All methods are safe for concurrent use.
type Log struct {
	cfg     Config
	fs      FS
	now     func() time.Time
	logger  *slog.Logger
	home    atomic.Pointer[home]
	run     [16]byte
	opened  time.Time // with its monotonic reading
	journal journal

	in     chan *submission
	spare  sync.Pool // of *submission, of Record only: a Ticket may be waited for at any time
	groups sync.Pool // of *group
	gate   sync.RWMutex
	closed bool // guarded by gate

	// Shared by committer and syncer.
	mu        sync.Mutex
	idle      sync.Cond // the syncer is not in fdatasync
	unsynced  []*group
	syncing   bool
	repairing bool // the syncer keeps its hands off

	wake      chan struct{}         // a group waits for power
	broken    chan struct{}         // the syncer found the segment failed
	synced    chan struct{}         // an fdatasync ended, either way
	busy      atomic.Bool           // an fdatasync is under way
	finished  chan struct{}         // the committer is done
	stopped   chan struct{}         // the syncer is done
	down      atomic.Pointer[error] // why the journal takes nothing
	skewed    atomic.Pointer[error] // why callers are refused although it does
	skew      atomic.Int64          // wall clock minus the database's, ns
	failed    chan error            // see Failed
	renewals  chan renewal
	committer committer

	ending   chan struct{} // no more heartbeats
	rested   chan struct{} // the heart stopped
	rotated  chan struct{} // a segment was begun
	position sync.Mutex    // of the file that says it; home does not change meanwhile

	shipping shipping
	counters counters
}

// home is where this process's stream is.
type home struct {
	dir    string
	stream StreamID
	lock   io.Closer
}

type counters struct {
	accepted, settled             atomic.Uint64 // submissions taken from callers, and written or refused by the committer
	recorded, rejected            atomic.Uint64
	groups, syncs                 atomic.Uint64
	syncTime                      atomic.Int64
	bytes                         atomic.Int64
	written, durable, oldestInLog atomic.Uint64 // sequence numbers: next to be written, next to be synced, first kept
	segment                       atomic.Uint64 // number of the segment in use
}

const (
	defaultCapacity = 8192
	defaultTimeout  = 2 * time.Second
	fullWait        = 50 * time.Millisecond // how long a caller waits for room in the channel
)

// Open locks a stream directory under cfg.Dir (the first that no living process holds, a new one otherwise), recovers
// its journal, starts the committer and records that the application started. A torn tail is repaired, a damaged
// directory is left to an investigation (its readable events are still shipped) and a new stream begun: either is
// recorded as a security alert. A disk that is full refuses callers until there is room. Only a directory that cannot be
// used at all makes Open fail, with an error that wraps ErrIO.
func Open(cfg Config) (*Log, error) {
	l := &Log{
		cfg: cfg, fs: cfg.FS, now: cfg.Now, logger: cfg.Logger, opened: time.Now(),
		wake: make(chan struct{}, 1), broken: make(chan struct{}, 1), synced: make(chan struct{}, 1), finished: make(chan struct{}), stopped: make(chan struct{}),
		failed: make(chan error, 1), renewals: make(chan renewal), ending: make(chan struct{}), rested: make(chan struct{}), rotated: make(chan struct{}, 1),
	}
	if l.cfg.Capacity <= 0 {
		l.cfg.Capacity = defaultCapacity
	}
	if l.cfg.SegmentBytes <= 0 {
		l.cfg.SegmentBytes = defaultSegments
	}
	if l.cfg.TicketTimeout <= 0 {
		l.cfg.TicketTimeout = defaultTimeout
	}
	l.cfg.GiveUpAfter = cmp.Or(l.cfg.GiveUpAfter, defaultGiveUp)
	l.cfg.Heartbeat = cmp.Or(l.cfg.Heartbeat, defaultHeartbeat)
	l.cfg.MaxSkew = cmp.Or(l.cfg.MaxSkew, defaultMaxSkew)
	l.cfg.Keep = cmp.Or(l.cfg.Keep, defaultKeep)
	l.cfg.KeepBytes = cmp.Or(l.cfg.KeepBytes, defaultKeepBytes)
	if l.fs == nil {
		l.fs = OS{}
	}
	if l.now == nil {
		l.now = time.Now
	}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	l.in = make(chan *submission, l.cfg.Capacity)
	l.shipping.ready, l.shipping.ending = make(chan struct{}, 1), make(chan struct{})
	l.idle.L = &l.mu
	l.spare.New = func() any { return newSubmission() }
	if _, err := crand.Read(l.run[:]); err != nil {
		return nil, fmt.Errorf("opening journal: %w", err)
	}
	alerts, err := l.adopt()
	if err != nil {
		return nil, fmt.Errorf("opening journal: %w: %w", err, ErrIO)
	}
	go l.commit()
	go l.sync()
	go l.beat()
	start := []*Event{l.application("110120")}
	for _, desc := range alerts {
		start = append(start, l.alert(desc))
	}
	if err := l.tellNow(start...); err != nil {
		return nil, errors.Join(fmt.Errorf("opening journal: %w: %w", err, ErrIO), l.shut())
	}
	return l, nil
}

// adopt takes a stream and leaves the journal open for writing. The alerts say what was found on the way.
func (l *Log) adopt() (alerts []string, err error) {
	if _, err := l.fs.ReadDir(l.cfg.Dir); errors.Is(err, os.ErrNotExist) {
		if err := l.fs.MkdirAll(l.cfg.Dir); err != nil {
			return nil, err
		}
		if err := l.fs.SyncDir(filepath.Dir(l.cfg.Dir)); err != nil {
			return nil, err
		}
	}
	streams, err := listStreams(l.fs, l.cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, stream := range streams {
		dir := streamDir(l.cfg.Dir, stream)
		lock, err := l.fs.Lock(filepath.Join(dir, lockName))
		if errors.Is(err, ErrLocked) {
			continue
		}
		if err != nil {
			l.logger.Error("audit stream cannot be locked", "stream", stream, "error", err)
			continue
		}
		found, err := recoverStream(l.fs, dir, stream, l.logger)
		alerts = append(alerts, found.alerts...)
		if err == nil && !found.damaged {
			err = l.begin(home{dir, stream, lock}, found)
		}
		if err == nil && !found.damaged {
			return alerts, nil
		}
		if err != nil {
			l.logger.Error("audit stream cannot be continued", "stream", stream, "error", err)
		}
		if err := lock.Close(); err != nil {
			return nil, err
		}
	}
	fresh, err := l.found()
	if err != nil {
		return nil, err
	}
	if err := l.begin(fresh, recovered{}); err != nil {
		return nil, errors.Join(err, fresh.lock.Close())
	}
	return alerts, nil
}

// found makes the directory of a new stream and locks it.
func (l *Log) found() (p home, err error) {
	if _, err := crand.Read(p.stream[:]); err != nil {
		return p, err
	}
	p.dir = streamDir(l.cfg.Dir, p.stream)
	if err := l.fs.MkdirAll(p.dir); err != nil {
		return p, err
	}
	if err := l.fs.SyncDir(l.cfg.Dir); err != nil {
		return p, err
	}
	p.lock, err = l.fs.Lock(filepath.Join(p.dir, lockName))
	return p, err
}

// begin starts a new segment where the recovered stream ends: in the reserve where the disk is full.
func (l *Log) begin(p home, from recovered) error {
	l.home.Store(&p)
	l.journal = l.journalAt(p)
	l.journal.number = from.number
	c := &l.committer
	c.next, c.chain, c.part, c.saltsAt = from.next, from.chain, from.part, len(c.salts)
	now := l.read()
	offset := now.offset()
	c.clock.last, c.clock.anchor, c.clock.trusted = offset, offset, offset
	if size, err := fileSize(l.fs, filepath.Join(p.dir, reserveName)); err == nil && size == l.journal.smallest() {
		l.journal.stocked = true
	}
	err := l.replace(nil)
	if err == nil {
		if err := l.journal.stock(); err != nil {
			l.logger.Warn("audit journal has no reserve", "error", err)
		}
	} else if noSpace(err) {
		if _, failed := l.useReserve(nil); failed != nil {
			return errors.Join(err, failed)
		}
		c.reserved = true
		l.fall(err)
		err = nil
	}
	if err != nil {
		return err
	}
	l.counters.oldestInLog.Store(from.oldest)
	l.shipping.next.Store(from.shipped)
	l.shipping.oldest.Store(l.now().UnixMicro()) // until the shipper knows better
	l.counters.bytes.Add(from.bytes)
	return nil
}

func (l *Log) journalAt(p home) journal {
	return journal{fs: l.fs, dir: p.dir, stream: p.stream, limit: l.cfg.SegmentBytes, prepared: make(chan preparation, 1)}
}

func streamDir(dir string, stream StreamID) string { return filepath.Join(dir, stream.String()) }

// String is the id in hexadecimal.
func (s StreamID) String() string { return hex.EncodeToString(s[:]) }

// listStreams returns the streams that have a directory.
func listStreams(fs FS, dir string) ([]StreamID, error) {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var streams []StreamID
	for _, name := range names {
		if id, err := hex.DecodeString(name); err == nil && len(id) == 16 && hex.EncodeToString(id) == name {
			streams = append(streams, StreamID(id))
		}
	}
	return streams, nil
}

// Record hands the events over as one group and waits until they are durable at the level, the ticket timeout has
// passed, or ctx is done. Any error wraps ErrUnavailable.
func (l *Log) Record(ctx context.Context, level Level, events ...*Event) (Receipt, error) {
	s := l.spare.Get().(*submission)
	if err := l.submit(s, level, events); err != nil {
		s.receipt = Receipt{}
		l.spare.Put(s)
		return Receipt{}, err
	}
	s.timer.Reset(l.cfg.TicketTimeout)
	err, answered := s.wait(ctx, s.timer.C)
	s.timer.Stop()
	receipt := s.receipt
	if answered {
		s.receipt = Receipt{}
		l.spare.Put(s)
	}
	if err != nil {
		return Receipt{}, err
	}
	return receipt, nil
}

// tell hands over an event of the system's own: it is taken during an outage, too.
func (l *Log) tell(level Level, events ...*Event) (Ticket, error) {
	s := &submission{granted: make(chan error, 1), system: true}
	if err := l.submit(s, level, events); err != nil {
		return Ticket{}, err
	}
	return Ticket{s: s, timeout: l.cfg.TicketTimeout}, nil
}

// tellNow waits until they survive a power cut.
func (l *Log) tellNow(events ...*Event) error {
	ticket, err := l.tell(Power, events...)
	if err != nil {
		return err
	}
	_, err = ticket.Wait(context.Background())
	return err
}

// Submit is Record without the wait: the event is on its way, and the Ticket is redeemed later.
func (l *Log) Submit(level Level, events ...*Event) (Ticket, error) {
	// One allocation for all that an ordinary event needs.
	own := &struct {
		submission
		end  [1]int
		body [512]byte
	}{submission: submission{granted: make(chan error, 1)}}
	s := &own.submission
	s.bodies, s.ends = own.body[:0], own.end[:0]
	if err := l.submit(s, level, events); err != nil {
		return Ticket{}, err
	}
	return Ticket{s: s, timeout: l.cfg.TicketTimeout}, nil
}

// submit encodes in the caller's goroutine, so that the committer only copies, hashes and writes.
func (l *Log) submit(s *submission, level Level, events []*Event) error {
	if err := l.accept(s, level, events); err != nil {
		l.counters.rejected.Add(uint64(len(events)))
		return err
	}
	return nil
}

func (l *Log) accept(s *submission, level Level, events []*Event) error {
	if len(events) == 0 || level < Process || level > Database {
		return fmt.Errorf("recording %d events at level %d: %w", len(events), level, ErrUnavailable)
	}
	if level == Database && l.cfg.Storage == nil {
		return fmt.Errorf("recording at level database without a storage: %w", ErrUnavailable)
	}
	if err := l.refusing(); err != nil && !s.system {
		return fmt.Errorf("recording: %w: %w", err, ErrUnavailable)
	}
	now := l.now()
	for i, e := range events {
		if e.ID == (ID{}) {
			e.ID = newID(now)
			if len(events) > 1 { // of one instant, and officers read them in this order
				e.ID[8], e.ID[9] = 2<<6|byte(i>>8)&0x3f, byte(i)
			}
		}
		if e.Recorded.IsZero() {
			e.Recorded = now
		}
		e.Recorded = e.Recorded.UTC().Truncate(time.Microsecond)
	}
	if err := s.encode(level, events); err != nil {
		return fmt.Errorf("recording: %w: %w", err, ErrUnavailable)
	}
	return l.enqueue(s)
}

// refusing returns why callers are refused.
func (l *Log) refusing() error {
	if down := l.down.Load(); down != nil {
		return *down
	}
	if skewed := l.skewed.Load(); skewed != nil {
		return *skewed
	}
	return nil
}

// enqueue hands the submission to the committer.
func (l *Log) enqueue(s *submission) error {
	l.gate.RLock()
	defer l.gate.RUnlock()
	if l.closed {
		return fmt.Errorf("recording: log is closed: %w", ErrUnavailable)
	}
	select {
	case l.in <- s:
	default:
		timer := time.NewTimer(fullWait)
		defer timer.Stop()
		select {
		case l.in <- s:
		case <-timer.C:
			return fmt.Errorf("recording: %d groups are waiting: %w", cap(l.in), ErrUnavailable)
		}
	}
	l.counters.accepted.Add(1)
	return nil
}

// newID is a UUID version 7 (RFC 9562 5.7, with the fraction of the millisecond in rand_a after 6.2 method 3).
func newID(now time.Time) (id ID) {
	us := uint64(now.UnixMicro())
	ms, frac := us/1000, (us%1000)*4096/1000
	a, b := ms<<16|7<<12|frac, 2<<62|rand.Uint64()>>2
	for i := range 8 {
		id[i] = byte(a >> (56 - 8*i))
		id[8+i] = byte(b >> (56 - 8*i))
	}
	return id
}

// application is an event about the process itself; see DICOM PS3.16 CID 400 for the subtype.
func (l *Log) application(subtype string) *Event {
	return &Event{Type: TypeApplication, Interaction: subtype, Action: ActionExecute, Agent: Agent{User: "system"}}
}

func (l *Log) alert(desc string) *Event {
	return &Event{Type: TypeSecurityAlert, Interaction: "journal", Action: ActionExecute, Outcome: SeriousFailure, OutcomeDesc: desc, Agent: Agent{User: "system"}}
}

// Close records that the application stopped, refuses new events, makes what was accepted durable, gives a Run that is
// keeping up two seconds to ship it, and releases the lock. Closing twice returns nil.
func (l *Log) Close() error {
	l.gate.RLock()
	closed := l.closed
	l.gate.RUnlock()
	if closed {
		return nil
	}
	return errors.Join(l.tellNow(l.application("110121")), l.shut())
}

// shut ends the goroutines and releases what they used.
func (l *Log) shut() error {
	l.gate.Lock()
	closed := l.closed
	l.closed = true
	l.gate.Unlock()
	if closed {
		return nil
	}
	close(l.ending)
	<-l.rested
	close(l.in)
	<-l.finished
	<-l.stopped
	l.shipping.end(l)
	l.savePosition()
	return l.home.Load().lock.Close()
}

// Healthy returns nil when the journal takes events and what it holds can be shipped, or what stands in the way.
func (l *Log) Healthy() error {
	l.gate.RLock()
	closed := l.closed
	l.gate.RUnlock()
	if closed {
		return fmt.Errorf("log is closed: %w", ErrUnavailable)
	}
	if err := l.refusing(); err != nil {
		return fmt.Errorf("journal: %w: %w", err, ErrUnavailable)
	}
	if broken := l.shipping.broken.Load(); broken != nil {
		return fmt.Errorf("shipping: %w", *broken)
	}
	if refused := l.shipping.refused.Load(); refused != nil {
		return fmt.Errorf("shipping: %w", refused.err)
	}
	return nil
}

// Stream is the id of this process's stream.
// It changes when Storage refuses to continue it: see Run.
func (l *Log) Stream() StreamID { return l.home.Load().stream }

// Stats is a snapshot of counters, as database/sql's DBStats is.
type Stats struct {
	Recorded, Rejected, Shipped, Quarantined uint64
	Queued                                   int           // waiting in the channel
	Pending                                  uint64        // in the journal, not yet in Storage
	Lag                                      time.Duration // age of the oldest event not yet in Storage
	JournalBytes                             int64
	GroupCommits, Syncs                      uint64
	SyncTime                                 time.Duration // sum over all syncs
	Skew                                     time.Duration // wall clock minus the database's, as far as it is known
	Refused                                  uint64        // streams that Storage did not continue
}

// Stats returns the snapshot. Its numbers are read one after the other, not at one instant.
func (l *Log) Stats() Stats {
	c := &l.counters
	s := Stats{
		Recorded: c.recorded.Load(), Rejected: c.rejected.Load(), Shipped: l.shipping.rows.Load(), Queued: len(l.in),
		JournalBytes: c.bytes.Load(), GroupCommits: c.groups.Load(), Syncs: c.syncs.Load(), SyncTime: time.Duration(c.syncTime.Load()),
		Skew: time.Duration(l.skew.Load()), Refused: l.shipping.streams.Load(),
	}
	if l.cfg.Storage == nil {
		return s
	}
	if q, ok := l.cfg.Storage.(Quarantine); ok {
		s.Quarantined = q.Quarantined()
	}
	shipped := max(l.shipping.next.Load(), c.oldestInLog.Load())
	if written := c.written.Load(); written > shipped {
		s.Pending = written - shipped
		s.Lag = max(0, time.Since(time.UnixMicro(l.shipping.oldest.Load())))
	}
	return s
}
