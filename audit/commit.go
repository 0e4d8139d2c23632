package audit

import (
	crand "crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
)

const (
	groupEvents = 4096                  // a group takes no further submission once it holds so many events
	groupBytes  = 1 << 20               // or bytes
	lazySync    = 50 * time.Millisecond // a group that nobody waits for is synced within this time, to be shipped
)

// group is a frame that is written but not yet durable.
type group struct {
	frame   []byte
	first   uint64 // seq of the first record
	prev    Hash   // chain before it
	floor   int64  // part time before it
	next    uint64
	waiting []*submission // not yet granted
	power   bool          // somebody waits for fdatasync
	segment *segment
}

// committer is the state of the goroutine that numbers, chains and writes.
type committer struct {
	next     uint64
	chain    Hash
	part     int64 // part time of the last record, µs
	current  *segment
	held     []*submission
	together int // submissions in the last group
	salts    [4096]byte
	saltsAt  int
	clock    clock

	downFrom time.Time
	rejected uint64    // counters.rejected when the journal went down
	failing  time.Time // since when the file system fails otherwise than by being full; zero when it does not
	watched  time.Time
	low      bool   // too little space is left
	reserved bool   // current was the reserve: it takes the system's own events only
	bare     bool   // there is no reserve, and it was said
	removed  uint64 // number of the segment whose name was lost last
}

// commit takes what waits, without any timer: while one group is being written the next one gathers.
func (l *Log) commit() {
	defer close(l.finished)
	l.probe()
	probe := time.NewTicker(probeInterval)
	defer probe.Stop()
	for {
		select {
		case s, ok := <-l.in:
			if !ok {
				l.seal()
				return
			}
			if s.level > Process || l.committer.together > 1 || len(l.in) > 0 {
				// Callers that are about to submit go first: larger groups, fewer system calls. Measured at 32 callers: 15
				// events a group instead of 2, twice the throughput at level process. Whoever comes alone and does not wait
				// for the disk would wait for nobody: 7 µs to its ticket instead of 20.
				runtime.Gosched()
			}
			l.write(l.hold(s)...)
		case <-l.broken:
			if l.stuck() {
				l.repair(nil)
			}
		case r := <-l.renewals:
			r.done <- l.renew()
		case <-probe.C:
			l.probe()
		}
	}
}

// hold keeps submissions that wait for fdatasync back while another one is under way: they could not be granted before its end
// anyway, and one group is cheaper to write than ten. Whoever waits for write(2) only ends it at once.
func (l *Log) hold(s *submission) []*submission {
	held := append(l.committer.held[:0], s)
	for s != nil && s.level > Process && len(held) < groupEvents && l.busy.Load() {
		select {
		case s = <-l.in: // nil when the channel is closed
			if s != nil {
				held = append(held, s)
			}
		case <-l.synced:
			s = nil
		}
	}
	l.committer.held = held
	return held
}

// write makes one group of the submissions and of all that wait behind them, and writes it.
func (l *Log) write(held ...*submission) {
	if l.down.Load() != nil {
		if held = l.admit(held); len(held) == 0 {
			return
		}
	}
	now := l.read()
	if events := l.checkClock(now); len(events) > 0 {
		if s, err := l.notice(events); err == nil {
			held = append([]*submission{s}, held...)
		}
	}
	g := l.gather(held, now)
	l.committer.together = len(g.waiting)
	defer l.counters.settled.Add(uint64(len(g.waiting)))
	c := &l.committer
	if l.stuck() {
		l.repair(g)
		return
	}
	err := l.room(g)
	if errors.Is(err, errNoReserve) {
		l.withdraw(g, err)
		return
	}
	if errors.Is(err, os.ErrNotExist) && l.unlinked() {
		// The folder is gone. What stands in the segment is lost once it is closed: it goes to a new one first.
		l.withdraw(g, err)
		l.watchName()
		return
	}
	if err == nil {
		_, err = c.current.f.WriteAt(g.frame, c.current.off)
	}
	if err != nil {
		l.mu.Lock()
		c.current.failed = true
		l.mu.Unlock()
		l.logger.Error("audit journal cannot be written", "error", err)
	}
	if l.stuck() { // asked again: the syncer may have failed meanwhile, and then the page cache cannot be trusted
		l.repair(g)
		return
	}
	c.current.off += int64(len(g.frame))
	g.segment = c.current
	l.counters.groups.Add(1)
	l.counters.written.Store(g.next)
	l.release(g, Process)
	power := g.power

	l.mu.Lock()
	l.unsynced = append(l.unsynced, g) // g belongs to the syncer from here on
	l.mu.Unlock()
	if power {
		l.nudge()
	}
	if c.current.off > c.current.size/2 && l.down.Load() == nil {
		l.journal.prepare(c.current.size)
	}
}

// admit refuses callers during an outage, and the system's own events where there is nothing to write them to.
func (l *Log) admit(held []*submission) (admitted []*submission) {
	down, stuck := l.down.Load(), l.stuck()
	for _, s := range held {
		if s.system && !stuck {
			admitted = append(admitted, s)
			continue
		}
		l.refuse(s, *down)
		l.counters.settled.Add(1)
	}
	return admitted
}

// stuck reports whether a segment that is still needed has failed.
func (l *Log) stuck() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.committer.current.failed || len(l.unsynced) > 0 && l.unsynced[0].segment.failed
}

// gather numbers and chains the submissions and those that wait behind them.
func (l *Log) gather(held []*submission, now reading) *group {
	c := &l.committer
	g := l.newGroup()
	g.first, g.prev, g.floor = c.next, c.chain, c.part
	wall := l.partTime(now)
	g.frame = append(g.frame, make([]byte, groupHeadLen)...)
	add := func(s *submission) {
		start := 0
		for _, end := range s.ends {
			r := record{seq: c.next, part: wall, mono: now.mono, salt: c.salt(), body: s.bodies[start:end]}
			g.frame = r.append(g.frame)
			c.chain = link(c.chain, leafOf(l.journal.stream, r.seq, &r.salt, r.body))
			c.next++
			start = end
		}
		s.last = c.next
		g.waiting = append(g.waiting, s)
		g.power = g.power || s.level > Process
	}
	for i, s := range held {
		add(s)
		held[i] = nil
	}
	for more := true; more && c.next-g.first < groupEvents && len(g.frame) < groupBytes; {
		select {
		case s := <-l.in:
			if more = s != nil; !more { // the channel is closed
				break
			}
			if down := l.down.Load(); down != nil && !s.system {
				l.refuse(s, *down)
				l.counters.settled.Add(1)
				break
			}
			add(s)
		default:
			more = false
		}
	}
	if l.shipping.next.Load() >= g.first {
		l.shipping.oldest.Store(wall) // nothing older waits for Storage
	}
	c.part, g.next = wall, c.next
	h := groupHead{stream: l.journal.stream, run: l.run, first: g.first, count: uint32(g.next - g.first), length: uint32(len(g.frame) - groupHeadLen), prev: g.prev, chain: c.chain, synced: l.counters.durable.Load()}
	h.put(g.frame)
	for len(g.frame)%8 != 0 {
		g.frame = append(g.frame, 0)
	}
	l.counters.recorded.Add(g.next - g.first)
	return g
}

// salt takes 16 random bytes from a block, so that the kernel is asked once in 256 events.
func (c *committer) salt() (salt [16]byte) {
	if c.saltsAt == len(c.salts) {
		_, _ = crand.Read(c.salts[:]) // never fails: it ends the process instead
		c.saltsAt = 0
	}
	copy(salt[:], c.salts[c.saltsAt:])
	clear(c.salts[c.saltsAt : c.saltsAt+len(salt)])
	c.saltsAt += len(salt)
	return salt
}

// room makes sure that the current segment has place for the group, or is a fresh one.
func (l *Log) room(g *group) error {
	c := &l.committer
	if c.current.off+int64(len(g.frame)) <= c.current.size || c.current.off == segmentHeadLen {
		return nil
	}
	if c.reserved {
		return errNoReserve // used up; a new segment is tried by probe
	}
	s, err := l.journal.take(c.current.size)
	if err != nil {
		return err
	}
	err = l.start(s, g.first, g.prev, g.floor)
	if err == nil {
		// Before any group: groups behind a header that is gone are damage, never the traces of a power cut.
		err = s.f.Datasync()
	}
	if err != nil {
		return errors.Join(err, s.f.Close(), l.fs.Remove(s.path))
	}
	l.retire()
	l.use(s)
	select {
	case l.rotated <- struct{}{}:
	default:
	}
	return nil
}

// use makes a segment that was started the current one.
func (l *Log) use(s *segment) {
	l.committer.current = s
	l.counters.segment.Store(s.number)
}

// start writes the segment's header.
func (l *Log) start(s *segment, first uint64, prev Hash, floor int64) error {
	h := segmentHead{stream: l.journal.stream, number: s.number, first: first, prev: prev, floor: floor, synced: l.counters.durable.Load()}
	if _, err := s.f.WriteAt(h.append(nil), 0); err != nil {
		return fmt.Errorf("starting segment: %w", err)
	}
	s.first, s.prev, s.floor, s.off = first, prev, floor, segmentHeadLen
	l.counters.bytes.Add(s.size)
	return nil
}

// retire lets go of the current segment: it is closed once nothing in it waits for the syncer.
func (l *Log) retire() {
	s := l.committer.current
	if s == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.retired = true
	if !l.syncing && (len(l.unsynced) == 0 || l.unsynced[len(l.unsynced)-1].segment != s) {
		l.closeSegment(s)
	}
}

func (l *Log) closeSegment(s *segment) {
	if err := s.f.Close(); err != nil {
		l.logger.Warn("audit segment did not close", "error", err)
	}
}

// refuse fails a ticket.
func (l *Log) refuse(s *submission, cause error) {
	l.counters.rejected.Add(uint64(len(s.ends)))
	s.grant(fmt.Errorf("recording: %w: %w", cause, ErrUnavailable))
}

// release grants the group's tickets up to the level and keeps the rest.
func (l *Log) release(g *group, level Level) {
	kept := g.waiting[:0]
	for _, s := range g.waiting {
		switch {
		case s.level <= level:
			s.grant(nil)
		case level == Power:
			l.shipping.await(s)
		default:
			kept = append(kept, s)
		}
	}
	clear(g.waiting[len(kept):])
	g.waiting = kept
}

// nudge tells the syncer that somebody waits.
func (l *Log) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// seal ends the stream for this process.
func (l *Log) seal() {
	if err := l.journal.discard(); err != nil {
		l.logger.Warn("audit segment was not removed", "error", err)
	}
}

// sync makes groups durable: one fdatasync for all that were written meanwhile.
func (l *Log) sync() {
	defer close(l.stopped)
	lazy := time.NewTicker(lazySync)
	defer lazy.Stop()
	for {
		last := false
		select {
		case <-l.wake:
		case <-lazy.C:
		case <-l.finished:
			last = true
		}
		for l.syncOnce(last) {
		}
		if last {
			l.abandon()
			return
		}
	}
}

// abandon fails what could not be made durable before the end, and closes the segment in use.
func (l *Log) abandon() {
	l.retire()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.unsynced {
		for _, s := range g.waiting {
			l.refuse(s, errors.New("log is closed"))
		}
	}
}

// syncOnce syncs the oldest segment that has groups to sync and reports whether there is more to do: groups for which
// somebody waits, or any.
func (l *Log) syncOnce(any bool) bool {
	l.mu.Lock()
	if l.repairing || len(l.unsynced) == 0 || l.unsynced[0].segment.failed {
		l.mu.Unlock()
		return false
	}
	n, s := 0, l.unsynced[0].segment
	for n < len(l.unsynced) && l.unsynced[n].segment == s {
		n++
	}
	groups := l.unsynced[:n:n]
	l.syncing = true
	l.mu.Unlock()

	began := time.Now()
	l.busy.Store(true)
	err := s.f.Datasync()
	l.busy.Store(false)
	select {
	case l.synced <- struct{}{}:
	default:
	}
	l.counters.syncs.Add(1)
	l.counters.syncTime.Add(int64(time.Since(began)))

	l.mu.Lock()
	l.syncing = false
	l.idle.Broadcast()
	if err != nil {
		s.failed = true
		l.mu.Unlock()
		l.logger.Error("audit journal cannot be synced", "error", err)
		select {
		case l.broken <- struct{}{}:
		default:
		}
		return false
	}
	l.unsynced = l.unsynced[n:]
	if s.retired && (len(l.unsynced) == 0 || l.unsynced[0].segment != s) {
		l.closeSegment(s)
	}
	more := any && len(l.unsynced) > 0
	for _, g := range l.unsynced {
		more = more || g.power
	}
	l.mu.Unlock()

	next := groups[n-1].next
	l.advance(next)
	for _, g := range groups {
		l.release(g, Power)
	}
	l.recycle(groups)
	return more
}

// advance publishes how far the journal is durable.
func (l *Log) advance(next uint64) {
	l.counters.durable.Store(next)
	l.shipping.kick()
}

// newGroup is an empty group. Between two syncs there may be hundreds, or one: the pool keeps as many as are used.
func (l *Log) newGroup() *group {
	g, _ := l.groups.Get().(*group)
	if g == nil {
		return &group{}
	}
	*g = group{frame: g.frame[:0], waiting: g.waiting[:0]}
	return g
}

// recycle keeps the buffers of ordinary groups.
func (l *Log) recycle(groups []*group) {
	for _, g := range groups {
		if cap(g.frame) <= groupBytes {
			l.groups.Put(g)
		}
	}
}
