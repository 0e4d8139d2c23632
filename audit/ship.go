package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	batchRows    = 1000
	batchWait    = 200 * time.Millisecond
	retryFirst   = 50 * time.Millisecond
	retryLast    = 5 * time.Second
	orphansEvery = 5 * time.Second
	closingWait  = 2 * time.Second

	defaultKeep      = 7 * 24 * time.Hour
	defaultKeepBytes = 1 << 30
	trimEvery        = time.Second
)

// shipping is what the shipper shares with the rest of the Log.
type shipping struct {
	next    atomic.Uint64 // seq up to which Storage has this stream
	rows    atomic.Uint64
	oldest  atomic.Int64 // part time of the oldest record that Storage does not have, as far as it is known
	broken  atomic.Pointer[error]
	active  atomic.Bool // Run ships this stream
	failing atomic.Bool // the last attempt failed
	short   atomic.Bool // of space: keep nothing that was shipped
	hurry   atomic.Int64
	streams atomic.Uint64 // that Storage did not continue
	refused atomic.Pointer[refusal]

	mu      sync.Mutex
	waiting []*submission // at level Database, by last
	ready   chan struct{}
	ending  chan struct{}
	ended   bool
	running sync.WaitGroup
}

func (p *shipping) kick() {
	select {
	case p.ready <- struct{}{}:
	default:
	}
}

// await takes over a submission that waits for Storage.
func (p *shipping) await(s *submission) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Load() >= s.last {
		s.grant(nil)
		return
	}
	if len(p.waiting) == cap(p.waiting) {
		// Before it grows: while Storage is away, callers give up and must not pile up here.
		kept := p.waiting[:0]
		for _, w := range p.waiting {
			if w.gone.Load() {
				w.grant(ErrUnavailable)
				continue
			}
			kept = append(kept, w)
		}
		clear(p.waiting[len(kept):])
		p.waiting = kept
	}
	p.waiting = append(p.waiting, s)
	p.kick()
}

// stored says that Storage has everything before next.
func (p *shipping) stored(next uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next.Store(next)
	n := 0
	for n < len(p.waiting) && p.waiting[n].last <= next {
		p.waiting[n].grant(nil)
		n++
	}
	p.waiting = append(p.waiting[:0], p.waiting[n:]...)
}

// refusal is a stream that Storage did not continue, until its records are recorded again in the next one.
type refusal struct {
	stream StreamID
	err    error
}

// restart begins a new stream: whoever waits for records of the old one is refused.
func (p *shipping) restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.waiting {
		s.grant(fmt.Errorf("the database does not continue the stream: %w", ErrUnavailable))
	}
	p.waiting = nil
	p.next.Store(0)
}

func (p *shipping) urgent() bool {
	if p.hurry.Load() > 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting) > 0
}

// enter counts a Run in, unless the log is closed.
func (p *shipping) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	p.running.Add(1)
	return true
}

// end lets a shipper that keeps up finish, then stops it and fails whoever still waits.
func (p *shipping) end(l *Log) {
	if p.active.Load() && !p.failing.Load() {
		ctx, cancel := context.WithTimeout(context.Background(), closingWait)
		_ = l.drain(ctx, p.failing.Load) // what is not shipped now is shipped after the next start
		cancel()
	}
	p.mu.Lock()
	p.ended = true
	close(p.ending)
	p.mu.Unlock()
	p.running.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.waiting {
		s.grant(fmt.Errorf("log is closed: %w", ErrUnavailable))
	}
	p.waiting = nil
}

// Run ships groups to Storage until ctx is done or the log is closed, retrying for ever with jittered backoff. It also
// ships what other streams' dead processes left behind under cfg.Dir. A stream that Storage does not continue (ErrChain: it was
// restored from a backup, or a twin of this host wrote on) is ended and a new one begun, in which the records that Storage does
// not have are recorded again; when Storage does not continue that one either, shipping stops. Run returns nil when it was told
// to stop. Call it once.
func (l *Log) Run(ctx context.Context) error {
	if l.cfg.Storage == nil {
		return nil
	}
	if !l.shipping.enter() {
		return fmt.Errorf("shipping: log is closed: %w", ErrUnavailable)
	}
	defer l.shipping.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-l.shipping.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	var orphans sync.WaitGroup
	orphans.Go(func() { l.shipOrphans(ctx) })
	l.shipping.active.Store(true)
	l.shipOwn(ctx)
	l.shipping.active.Store(false)
	<-ctx.Done()
	orphans.Wait()
	return nil
}

// shipOwn returns when ctx is done, or when it is no use.
func (l *Log) shipOwn(ctx context.Context) {
	for {
		p, before := l.home.Load(), l.shipping.rows.Load()
		own := courier{l: l, dir: p.dir, stream: p.stream, own: true}
		err := own.run(ctx)
		if err == nil {
			return
		}
		err = fmt.Errorf("stream %s: %w", p.stream, err)
		l.logger.Error("audit stream is not continued by the database", "error", err)
		if l.shipping.streams.Add(1) > 1 && l.shipping.rows.Load() == before {
			l.shipping.broken.Store(&err) // it is not this stream
			l.logger.Error("audit shipping stopped", "error", err)
			if _, err := l.tell(Process, l.alert("the database does not continue this stream; shipping stopped")); err != nil {
				l.logger.Error("audit alert was not recorded", "error", err)
			}
			return
		}
		l.shipping.refused.Store(&refusal{p.stream, err})
		for l.askRenewal(ctx) != nil {
			if !pause(ctx, retryLast) {
				return
			}
		}
	}
}

// askRenewal has the committer begin a new stream.
func (l *Log) askRenewal(ctx context.Context) error {
	r := renewal{done: make(chan error, 1)}
	select {
	case l.renewals <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.finished:
		return ErrUnavailable
	}
	err := <-r.done
	if err != nil {
		l.logger.Error("audit stream was not renewed", "error", err)
	}
	return err
}

// Drain waits until everything recorded so far is in Storage, or ctx is done. Without a Storage it returns at once.
func (l *Log) Drain(ctx context.Context) error {
	if err := l.drain(ctx, func() bool { return false }); err != nil {
		return fmt.Errorf("draining audit journal: %w", err)
	}
	return nil
}

// drain gives up early when hopeless says so.
func (l *Log) drain(ctx context.Context, hopeless func() bool) error {
	if l.cfg.Storage == nil {
		return nil
	}
	accepted := l.counters.accepted.Load()
	l.shipping.hurry.Add(1)
	defer l.shipping.hurry.Add(-1)
	l.shipping.kick()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		if l.counters.settled.Load() >= accepted && l.shipping.next.Load() >= l.counters.written.Load() {
			return nil
		}
		if broken := l.shipping.broken.Load(); broken != nil {
			return *broken
		}
		if hopeless() {
			return ErrUnavailable
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// shipOrphans ships the streams that no living process holds, again and again: a process may die at any time.
func (l *Log) shipOrphans(ctx context.Context) {
	done := map[StreamID]bool{}
	for {
		refused, own := l.shipping.refused.Load(), l.Stream()
		streams, err := listStreams(l.fs, l.cfg.Dir)
		if err != nil {
			l.logger.Error("audit streams cannot be listed", "error", err)
		}
		if err == nil && refused != nil && refused.stream != own && !slices.Contains(streams, refused.stream) {
			l.lose(refused)
		}
		for _, stream := range streams {
			if stream == l.Stream() || ctx.Err() != nil {
				continue
			}
			lock, err := l.fs.Lock(filepath.Join(streamDir(l.cfg.Dir, stream), lockName))
			if err != nil {
				delete(done, stream) // alive: it will have more to ship when it is dead
				continue
			}
			if !done[stream] {
				err := l.shipOrphan(ctx, stream)
				if err != nil {
					l.logger.Error("audit stream of a dead process cannot be shipped", "stream", stream, "error", err)
				}
				if refused := l.shipping.refused.Load(); err == nil && refused != nil && refused.stream == stream {
					l.shipping.refused.Store(nil)
				}
				// Trying again helps against neither damage nor another history.
				done[stream] = ctx.Err() == nil && (err == nil || errors.Is(err, errFrame) || errors.Is(err, ErrChain))
			}
			if err := lock.Close(); err != nil {
				l.logger.Error("audit stream cannot be unlocked", "stream", stream, "error", err)
			}
		}
		if !pause(ctx, orphansEvery) {
			return
		}
	}
}

// lose records that the folder of a refused stream is gone: nothing is left to be recorded again.
func (l *Log) lose(r *refusal) {
	if _, err := l.tell(Process, l.alert(fmt.Sprintf("stream %s: its folder was removed; records that the database does not have are lost", r.stream))); err != nil {
		l.logger.Error("audit alert was not recorded", "error", err)
		return // the next look
	}
	l.shipping.refused.CompareAndSwap(r, nil)
}

func (l *Log) shipOrphan(ctx context.Context, stream StreamID) error {
	dir := streamDir(l.cfg.Dir, stream)
	if done, err := l.rescued(dir); done || err != nil {
		return err
	}
	found, err := recoverStream(l.fs, dir, stream, l.logger)
	for _, desc := range found.alerts {
		if _, err := l.tell(Process, l.alert(desc)); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	c := courier{l: l, dir: dir, stream: stream}
	err = c.run(ctx)
	switch {
	case errors.Is(err, ErrChain):
		from, err := readPosition(l.fs, dir, stream)
		if err != nil {
			return err
		}
		return l.rescue(ctx, dir, stream, from.shipped, "which the database does not continue")
	case found.damaged && (err == nil || errors.Is(err, errFrame)) && ctx.Err() == nil:
		next, _, err := l.cfg.Storage.Head(ctx, stream)
		if err != nil {
			return fmt.Errorf("asking for the head: %w", err)
		}
		return l.rescue(ctx, dir, stream, next, "behind the damage")
	}
	return err
}

// courier takes one stream to Storage.
type courier struct {
	l      *Log
	dir    string
	stream StreamID
	own    bool // of this process: follow it; otherwise ship what is there and return

	trimmed time.Time // when old segments were last looked for
}

// run returns nil when ctx is done, and for a stream of a dead process when all is shipped. It returns an error when the
// stream cannot be shipped any further by trying again.
func (c *courier) run(ctx context.Context) error {
	wait, replayed := retryFirst, uint64(1<<64-1)
	for ctx.Err() == nil {
		err := c.follow(ctx, &wait)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrIngested) && c.l.shipping.rows.Load() != replayed:
			replayed = c.l.shipping.rows.Load()
			continue // ask for the head again, at once unless that was no help last time
		case errors.Is(err, ErrChain), errors.Is(err, errFrame):
			return err
		case ctx.Err() != nil:
			return nil //nolint:nilerr // to be stopped is no failure
		}
		c.l.shipping.failing.Store(true)
		c.l.logger.Warn("audit shipping failed", "stream", c.stream, "error", err)
		// Not cut short by new records: a database that is down must not be hammered.
		if !pause(ctx, wait/2+rand.N(wait/2)) {
			return nil
		}
		wait = min(2*wait, retryLast)
	}
	return nil
}

// follow ships from where Storage is until something fails.
func (c *courier) follow(ctx context.Context, wait *time.Duration) error {
	next, chain, err := c.l.cfg.Storage.Head(ctx, c.stream)
	if err != nil {
		return fmt.Errorf("asking for the head: %w", err)
	}
	if c.own && next > c.l.counters.written.Load() {
		return fmt.Errorf("storage has %d records of %d: %w", next, c.l.counters.written.Load(), ErrChain)
	}
	t := cursor{fs: c.l.fs, dir: c.dir, stream: c.stream, next: next, chain: chain}
	if c.own {
		t.newest = c.l.counters.segment.Load
	}
	defer t.close()
	if err := t.agree(); err != nil {
		return err
	}
	if c.own {
		c.l.shipping.stored(next)
	}
	for {
		b, err := c.collect(ctx, &t)
		if len(b.Rows) == 0 || ctx.Err() != nil {
			return err
		}
		if c.own {
			c.l.shipping.oldest.Store(b.Rows[0].PartTime.UnixMicro())
		}
		began, durable := time.Now(), c.l.counters.durable.Load()
		if err := c.l.cfg.Storage.Ingest(ctx, b); err != nil {
			return fmt.Errorf("ingesting %d rows from %d: %w", len(b.Rows), b.First, err)
		}
		*wait = retryFirst
		c.l.shipping.failing.Store(false)
		c.l.shipping.rows.Add(uint64(len(b.Rows)))
		if c.own {
			c.l.shipping.oldest.Store(b.Rows[len(b.Rows)-1].PartTime.UnixMicro())
			c.l.shipping.stored(t.next)
		}
		c.trim(t.next)
		if len(b.Rows) >= batchRows && !c.l.shipping.urgent() {
			pause(ctx, yielded(len(b.Rows), c.l.counters.durable.Load()-durable, time.Since(began)))
		}
	}
}

// yielded is how long a shipper that is behind leaves the cores to requests, after a batch of so many records that took so long
// and while which so many arrived. A backlog has waited and can wait a little longer; but it is shipped at twice the rate at
// which it grows, where that can be had.
func yielded(shipped int, arrived uint64, took time.Duration) time.Duration {
	most := took * 3 / 4
	if arrived == 0 {
		return most
	}
	return min(most, max(0, time.Duration(float64(took)*(float64(shipped)/float64(2*arrived)-1))))
}

// collect gathers groups until there are enough rows or the first has waited long enough. It returns an empty batch when
// there is nothing left to ship or ctx is done.
func (c *courier) collect(ctx context.Context, t *cursor) (Batch, error) {
	b := Batch{Stream: c.stream, First: t.next, Prev: t.chain}
	var since time.Time
	for len(b.Rows) < batchRows {
		if c.own && t.next >= c.l.counters.durable.Load() {
			rest := batchWait - time.Since(since)
			if len(b.Rows) > 0 && (rest <= 0 || c.l.shipping.urgent()) {
				break
			}
			if len(b.Rows) == 0 {
				rest = time.Hour
				if c.l.shipping.short.Load() {
					c.trim(t.next)
				}
			}
			timer := time.NewTimer(rest)
			select {
			case <-c.l.shipping.ready:
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
			if ctx.Err() != nil {
				return Batch{}, nil //nolint:nilerr // to be stopped is no failure
			}
			continue
		}
		g, err := t.read()
		if errors.Is(err, io.EOF) && !c.own {
			break
		}
		if err != nil {
			if len(b.Rows) > 0 {
				break // ship what is whole; the error comes again
			}
			return b, fmt.Errorf("reading journal at %d: %w", t.next, err)
		}
		if since.IsZero() {
			since = time.Now()
		}
		for i, r := range g.records {
			e, err := DecodeEvent(r.body)
			if err != nil {
				return Batch{}, fmt.Errorf("record %d: %w: %w", r.seq, err, errFrame)
			}
			b.Rows = append(b.Rows, Row{Seq: r.seq, Event: e, PartTime: time.UnixMicro(r.part).UTC(), Salt: r.salt, Body: r.body, Leaf: g.leaves[i]})
		}
		b.Chain = g.head.chain
	}
	return b, nil
}

// trim removes segments that Storage has and that need not be kept, from time to time.
func (c *courier) trim(shipped uint64) {
	if c.l.cfg.Keep > 0 && time.Since(c.trimmed) < trimEvery {
		return
	}
	c.trimmed = time.Now()
	if err := c.trimSegments(shipped); err != nil {
		c.l.logger.Warn("audit segments cannot be trimmed", "stream", c.stream, "error", err)
	}
}

// trimSegments never removes the last segment: it holds the place where the stream goes on. A segment is as old as the part time
// with which the next one begins.
func (c *courier) trimSegments(shipped uint64) error {
	segments, _, err := listSegments(c.l.fs, c.dir, c.stream)
	if err != nil {
		return err
	}
	n := 0 // segments that were shipped
	for n < len(segments)-1 && segments[n].limit <= shipped && !segments[n].damaged && !isDamaged(segments[n].path) {
		n++
	}
	sizes, kept := make([]int64, n), int64(0)
	for i := range n {
		if sizes[i], err = fileSize(c.l.fs, segments[i].path); err != nil {
			return err
		}
		kept += sizes[i]
	}
	removed := false
	for i := range n {
		old := c.l.now().UnixMicro()-segments[i+1].head.floor > c.l.cfg.Keep.Microseconds()
		if c.l.cfg.Keep > 0 && !old && kept <= c.l.cfg.KeepBytes && !c.l.shipping.short.Load() {
			break
		}
		if err := c.l.fs.Remove(segments[i].path); err != nil {
			return err
		}
		removed = true
		kept -= sizes[i]
		if c.own {
			c.l.counters.bytes.Add(-sizes[i])
			c.l.counters.oldestInLog.Store(segments[i].limit)
		}
	}
	if !removed {
		return nil
	}
	return c.l.fs.SyncDir(c.dir)
}

// pause waits, and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
