package audit

import (
	crand "crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"time"
)

const (
	groupEvents   = 4096    // a group takes no further submission once it holds so many events
	groupBytes    = 1 << 20 // or bytes
	probeInterval = 500 * time.Millisecond
	lazySync      = 50 * time.Millisecond // a group that nobody waits for is synced within this time, to be shipped
	clockWindow   = 24 * time.Hour
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
	free     []*group // guarded by Log.mu
	held     []*submission
	salts    [4096]byte
	saltsAt  int
	downFrom time.Time
	rejected uint64 // counters.rejected when the journal went down
}

// commit takes what waits, without any timer: while one group is being written the next one gathers.
func (l *Log) commit() {
	defer close(l.finished)
	l.committer.saltsAt = len(l.committer.salts)
	probe := time.NewTicker(probeInterval)
	defer probe.Stop()
	for {
		select {
		case s, ok := <-l.in:
			if !ok {
				l.seal()
				return
			}
			// Callers that are about to submit go first: larger groups, fewer system calls. Measured at 32 callers: 15
			// events a group instead of 1, twice the throughput at level process.
			runtime.Gosched()
			l.write(l.hold(s)...)
		case <-l.broken:
			if l.stuck() {
				l.repair(nil)
			}
		case <-probe.C:
			if l.down.Load() != nil {
				l.repair(nil)
			}
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
	if down := l.down.Load(); down != nil {
		for _, s := range held {
			l.refuse(s, *down)
		}
		l.counters.settled.Add(uint64(len(held)))
		return
	}
	g := l.gather(held)
	defer l.counters.settled.Add(uint64(len(g.waiting)))
	c := &l.committer
	if l.stuck() {
		l.repair(g)
		return
	}
	err := l.room(g)
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
	if c.current.off > c.current.size/2 {
		l.journal.prepare(c.current.size)
	}
}

// stuck reports whether a segment that is still needed has failed.
func (l *Log) stuck() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.committer.current.failed || len(l.unsynced) > 0 && l.unsynced[0].segment.failed
}

// gather numbers and chains the submissions and those that wait behind them.
func (l *Log) gather(held []*submission) *group {
	c := &l.committer
	g := l.newGroup()
	g.first, g.prev, g.floor = c.next, c.chain, c.part
	wall := l.partTime()
	mono := int64(time.Since(l.opened))
	g.frame = append(g.frame, make([]byte, groupHeadLen)...)
	add := func(s *submission) {
		start := 0
		for _, end := range s.ends {
			r := record{seq: c.next, part: wall, mono: mono, salt: c.salt(), body: s.bodies[start:end]}
			g.frame = r.append(g.frame)
			c.chain = link(c.chain, leafOf(l.stream, r.seq, &r.salt, r.body))
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
			if more = s != nil; more { // nil when the channel is closed
				add(s)
			}
		default:
			more = false
		}
	}
	if l.shipping.next.Load() >= g.first {
		l.shipping.oldest.Store(wall) // nothing older waits for Storage
	}
	c.part, g.next = wall, c.next
	h := groupHead{stream: l.stream, run: l.run, first: g.first, count: uint32(g.next - g.first), length: uint32(len(g.frame) - groupHeadLen), prev: g.prev, chain: c.chain, synced: l.counters.durable.Load()}
	h.put(g.frame)
	for len(g.frame)%8 != 0 {
		g.frame = append(g.frame, 0)
	}
	l.counters.recorded.Add(g.next - g.first)
	return g
}

// partTime never goes back, and a wall clock that leaves the monotonic clock by more than a day is not followed: neither
// may make events land in a partition that is gone or does not exist yet.
func (l *Log) partTime() int64 {
	reference := l.opened.Add(time.Since(l.opened))
	wall := l.now()
	if wall.Before(reference.Add(-clockWindow)) {
		wall = reference.Add(-clockWindow)
	}
	if wall.After(reference.Add(clockWindow)) {
		wall = reference.Add(clockWindow)
	}
	return max(l.committer.part, wall.UnixMicro())
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
	s, err := l.journal.take(c.current.size)
	if err != nil {
		return err
	}
	if err := l.start(s, g.first, g.prev, g.floor); err != nil {
		return errors.Join(err, s.f.Close(), l.fs.Remove(s.path))
	}
	l.retire()
	c.current = s
	l.counters.segment.Store(s.number)
	return nil
}

// start writes the segment's header.
func (l *Log) start(s *segment, first uint64, prev Hash, floor int64) error {
	h := segmentHead{stream: l.stream, number: s.number, first: first, prev: prev, floor: floor, synced: l.counters.durable.Load()}
	if _, err := s.f.WriteAt(h.append(nil), 0); err != nil {
		return fmt.Errorf("starting segment: %w", err)
	}
	s.off = segmentHeadLen
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

// repair carries on in a new segment after a failure, or when the disk may be back: it rewrites what is not yet durable
// and the group that could not be written (nil when there is none). Where that fails too, all waiting tickets fail, the
// log is down, and the committer comes back here every probeInterval.
func (l *Log) repair(unwritten *group) {
	l.mu.Lock()
	for l.syncing {
		l.idle.Wait()
	}
	groups := l.unsynced
	l.repairing = true // until it succeeds, the groups are the committer's
	l.mu.Unlock()
	if unwritten != nil {
		groups = append(groups[:len(groups):len(groups)], unwritten)
	}
	err := l.replace(groups)
	if err == nil {
		l.healed()
		return
	}
	l.logger.Error("audit journal is down", "error", err)
	c := &l.committer
	if l.down.Load() == nil {
		c.downFrom, c.rejected = l.now(), l.counters.rejected.Load()
	}
	l.down.Store(&err)
	for _, g := range groups {
		for _, s := range g.waiting {
			l.refuse(s, err)
		}
		g.waiting = g.waiting[:0]
	}
	if unwritten != nil {
		// Nobody was told that it is recorded: its numbers are given to others.
		c.next, c.chain, c.part = unwritten.first, unwritten.prev, unwritten.floor
		l.counters.recorded.Add(-(unwritten.next - unwritten.first))
	}
}

// refuse fails a ticket.
func (l *Log) refuse(s *submission, cause error) {
	l.counters.rejected.Add(uint64(len(s.ends)))
	s.grant(fmt.Errorf("recording: %w: %w", cause, ErrUnavailable))
}

// replace makes a new segment current that begins with the groups, durably, and grants them.
func (l *Log) replace(groups []*group) error {
	c := &l.committer
	first, prev, floor, size := c.next, c.chain, c.part, int64(segmentHeadLen)
	if len(groups) > 0 {
		first, prev, floor = groups[0].first, groups[0].prev, groups[0].floor
	}
	for _, g := range groups {
		size += int64(len(g.frame))
	}
	if err := l.journal.discard(); err != nil {
		l.logger.Warn("audit segment was not removed", "error", err)
	}
	l.journal.number++
	s, err := l.journal.create(l.journal.number, max(size, min(firstSegment, l.journal.limit)))
	if err != nil {
		return err
	}
	err = l.start(s, first, prev, floor)
	for _, g := range groups {
		if err == nil {
			_, err = s.f.WriteAt(g.frame, s.off)
			s.off += int64(len(g.frame))
		}
	}
	if err == nil {
		err = s.f.Datasync()
	}
	if err != nil {
		return errors.Join(err, s.f.Close(), l.fs.Remove(s.path))
	}
	l.mu.Lock()
	l.unsynced = nil
	l.repairing = false
	l.mu.Unlock()
	l.retire()
	for i, g := range groups {
		if old := g.segment; old != nil && old != c.current && (i == 0 || groups[i-1].segment != old) {
			l.closeSegment(old)
		}
	}
	c.current = s
	l.counters.segment.Store(s.number)
	for _, g := range groups {
		l.release(g, Power)
	}
	l.counters.written.Store(c.next)
	l.advance(c.next)
	return nil
}

// healed records an outage that is over.
func (l *Log) healed() {
	if l.down.Swap(nil) == nil {
		return
	}
	c := &l.committer
	desc := fmt.Sprintf("journal was down from %s to %s; %d events were refused",
		c.downFrom.UTC().Format(time.RFC3339), l.now().UTC().Format(time.RFC3339), l.counters.rejected.Load()-c.rejected)
	l.logger.Error("audit journal is back", "outage", desc)
	s := newSubmission()
	e := l.alert(desc)
	e.ID, e.Recorded = newID(l.now()), l.now()
	if err := s.encode(Process, []*Event{e}); err != nil {
		l.logger.Error("audit outage was not recorded", "error", err)
		return
	}
	l.counters.accepted.Add(1)
	l.write(s)
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

func (l *Log) newGroup() *group {
	l.mu.Lock()
	defer l.mu.Unlock()
	free := l.committer.free
	if len(free) == 0 {
		return &group{}
	}
	g := free[len(free)-1]
	l.committer.free = free[:len(free)-1]
	*g = group{frame: g.frame[:0], waiting: g.waiting[:0]}
	return g
}

// recycle keeps the buffers of a few ordinary groups.
func (l *Log) recycle(groups []*group) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range groups {
		if len(l.committer.free) < 8 && cap(g.frame) <= groupBytes {
			l.committer.free = append(l.committer.free, g)
		}
	}
}
