package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrIO says that the journal cannot be used, and not for want of space: waiting helps no more, and the process should end and
// say so, that traffic goes elsewhere.
var ErrIO = errors.New("audit: journal's file system fails")

// errLowSpace says that callers are refused before the disk is full.
var errLowSpace = errors.New("audit: journal's file system is nearly full")

const (
	probeInterval  = 500 * time.Millisecond
	watchInterval  = time.Second
	defaultGiveUp  = time.Minute
	fewestFiles    = 16
	freePart       = 16 // Config.MinFree is by default at most this part of the file system
	reserveForNews = 4096
)

// noSpace reports whether an error goes away when somebody makes room.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, errLowSpace)
}

// reason is what the trail says about a failure: no paths.
func reason(err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(err, errLowSpace):
		return "little space is left"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return "the file system failed"
}

// fall begins an outage: callers are refused from here on. It reports whether there was none.
func (l *Log) fall(cause error) bool {
	c := &l.committer
	began := l.down.Load() == nil
	if began {
		c.downFrom, c.rejected = l.now(), l.counters.rejected.Load()
		l.logger.Error("audit journal is down", "error", cause)
	}
	l.down.Store(&cause)
	return began
}

// repair carries on in a new segment after a failure, or when the disk may be back: it rewrites what is not yet durable
// and the group that could not be written (nil when there is none). Where that fails too, the log is down: what was written
// goes to the reserve, with the news, callers are refused, and the committer comes back here every probeInterval.
func (l *Log) repair(unwritten *group) {
	c := &l.committer
	l.mu.Lock()
	for l.syncing {
		l.idle.Wait()
	}
	groups := l.unsynced
	l.repairing = true // until it succeeds, the groups are the committer's
	l.mu.Unlock()
	all := groups
	if unwritten != nil {
		all = append(groups[:len(groups):len(groups)], unwritten)
	}
	err := l.replace(all)
	rehoused := false
	if errors.Is(err, os.ErrNotExist) {
		var failed error
		if rehoused, failed = l.rehouse(); failed == nil {
			err = l.replace(all)
		}
	}
	if err == nil {
		c.reserved, c.failing = false, time.Time{}
		l.healed()
		if rehoused {
			l.note(l.alert("the stream's folder was removed while it was in use; records that were durable in it may be lost"))
		}
		return
	}
	began := l.fall(err)
	if unwritten != nil {
		l.withdraw(unwritten, err)
	}
	if c.reserved && !l.stuck() {
		l.mu.Lock()
		l.repairing = false // the reserve goes on
		l.mu.Unlock()
	} else if s, failed := l.useReserve(groups); failed == nil {
		c.reserved = true
		l.logger.Warn("audit journal uses its reserve", "segment", s.number)
	} else {
		for _, g := range groups {
			for _, s := range g.waiting {
				l.refuse(s, err)
			}
			g.waiting = g.waiting[:0]
		}
	}
	if began && c.reserved {
		l.note(l.alert("journal is down since " + c.downFrom.UTC().Format(time.RFC3339) + ": " + reason(err) + "; events are refused"))
	}
	l.lastResort(err)
}

// withdraw takes a group back that could not be written. Nobody was told that it is recorded: its numbers are given to others.
func (l *Log) withdraw(g *group, cause error) {
	c := &l.committer
	for _, s := range g.waiting {
		l.refuse(s, cause)
	}
	g.waiting = g.waiting[:0]
	c.next, c.chain, c.part = g.first, g.prev, g.floor
	l.counters.recorded.Add(-(g.next - g.first))
}

// lastResort reports the failure of the file system once it has lasted for Config.GiveUpAfter.
func (l *Log) lastResort(err error) {
	c := &l.committer
	switch {
	case noSpace(err):
		c.failing = time.Time{}
	case c.failing.IsZero():
		c.failing = time.Now()
	case time.Since(c.failing) >= l.cfg.GiveUpAfter:
		select {
		case l.failed <- fmt.Errorf("%w: %w", err, ErrIO):
		default: // reported before
		}
	}
}

// Failed yields an error that wraps ErrIO, once, when the journal has not been writable for Config.GiveUpAfter for another reason
// than want of space. Callers are refused all the while and tries go on; the process should end.
func (l *Log) Failed() <-chan error { return l.failed }

// replace makes a new segment current that begins with the groups, durably, and grants them.
func (l *Log) replace(groups []*group) error {
	if err := l.journal.discard(); err != nil {
		l.logger.Warn("audit segment was not removed", "error", err)
	}
	s, err := l.journal.fresh(sizeOf(groups))
	if err != nil {
		return err
	}
	return l.install(s, groups)
}

// useReserve is replace with the reserve.
func (l *Log) useReserve(groups []*group) (*segment, error) {
	if sizeOf(groups)+segmentHeadLen+reserveForNews > l.journal.smallest() {
		return nil, errNoReserve
	}
	s, err := l.journal.spend()
	if err != nil {
		return nil, err
	}
	return s, l.install(s, groups)
}

func sizeOf(groups []*group) (n int64) {
	for _, g := range groups {
		n += int64(len(g.frame))
	}
	return n
}

// install makes a segment current, durably with the groups that it begins with; a segment that will not have them is removed.
func (l *Log) install(s *segment, groups []*group) error {
	c := &l.committer
	first, prev, floor := c.next, c.chain, c.part
	if len(groups) > 0 {
		first, prev, floor = groups[0].first, groups[0].prev, groups[0].floor
	}
	err := l.start(s, first, prev, floor)
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
	l.use(s)
	for _, g := range groups {
		g.segment = s
		l.release(g, Power)
	}
	l.counters.written.Store(c.next)
	l.advance(c.next)
	return nil
}

// healed ends an outage and records it, unless there is another reason for it.
func (l *Log) healed() {
	c := &l.committer
	if l.down.Load() == nil {
		return
	}
	if c.low {
		l.fall(errLowSpace)
		return
	}
	l.down.Store(nil)
	if err := l.journal.stock(); err != nil {
		l.logger.Warn("audit journal has no reserve", "error", err)
	}
	desc := fmt.Sprintf("journal was down from %s to %s; %d events were refused",
		c.downFrom.UTC().Format(time.RFC3339), l.now().UTC().Format(time.RFC3339), l.counters.rejected.Load()-c.rejected)
	l.logger.Error("audit journal is back", "outage", desc)
	l.note(l.alert(desc))
}

// note records an event of the committer's own.
func (l *Log) note(events ...*Event) {
	s, err := l.notice(events)
	if err != nil {
		l.logger.Error("audit event about the journal was not recorded", "error", err)
		return
	}
	l.write(s)
}

func (l *Log) notice(events []*Event) (*submission, error) {
	s := newSubmission()
	s.system = true
	now := l.now()
	for _, e := range events {
		e.ID, e.Recorded = newID(now), now.UTC().Truncate(time.Microsecond)
	}
	if err := s.encode(Power, events); err != nil {
		return nil, err
	}
	l.counters.accepted.Add(1)
	return s, nil
}

// probe looks after what nobody asks for: space, the file's name, the clock, and the way out of an outage.
func (l *Log) probe() {
	c := &l.committer
	if events := l.checkClock(l.read()); len(events) > 0 {
		l.note(events...)
	}
	if time.Since(c.watched) >= watchInterval {
		c.watched = time.Now()
		l.watchSpace()
		l.watchName()
	}
	switch {
	case l.stuck():
		l.repair(nil)
	case l.down.Load() == nil:
		if err := l.journal.stock(); err != nil && !c.bare {
			l.logger.Warn("audit journal has no reserve", "error", err)
		}
		c.bare = !l.journal.stocked
	case c.low: // the current segment, or the reserve, takes the news
	case c.reserved:
		l.repair(nil)
	default:
		l.healed()
	}
}

// watchSpace refuses callers while there is too little space, and asks for old segments to be trimmed before that.
func (l *Log) watchSpace() {
	c := &l.committer
	space, err := l.fs.Space(l.journal.dir)
	if err != nil {
		l.logger.Warn("space for the audit journal is not known", "error", err)
		return
	}
	least := l.cfg.MinFree
	if least == 0 {
		least = min(2*l.cfg.SegmentBytes, space.Total/freePart)
	}
	files := int64(fewestFiles)
	if c.low { // so that it does not come and go
		least += least / 4
		files *= 2
	}
	bytesShort := space.Free >= 0 && space.Free < least
	filesShort := space.Files >= 0 && space.Files < files
	c.low = l.cfg.MinFree >= 0 && (bytesShort || filesShort)
	l.shipping.short.Store(space.Free >= 0 && space.Free < 2*least)
	if l.shipping.short.Load() {
		l.shipping.kick()
	}
	if c.low && l.fall(fmt.Errorf("%d bytes and %d files are free: %w", space.Free, space.Files, errLowSpace)) {
		l.note(l.alert("journal is down since " + c.downFrom.UTC().Format(time.RFC3339) + ": " + reason(errLowSpace) + "; events are refused"))
	}
}

// watchName notices a current segment that was removed or replaced, and writes all that it holds to a new one.
func (l *Log) watchName() {
	c := &l.committer
	if l.stuck() {
		return
	}
	if !l.unlinked() {
		return
	}
	rehoused, err := l.rehouse()
	if err != nil {
		l.logger.Error("folder of the audit stream was not made again", "error", err)
	}
	err = l.rewrite()
	if errors.Is(err, errBusy) {
		return // the next look
	}
	l.logger.Error("audit segment was removed", "segment", c.removed)
	if err != nil {
		l.mu.Lock()
		c.current.failed = true // what is not yet durable goes to a new segment
		l.mu.Unlock()
		l.repair(nil)
	}
	desc := fmt.Sprintf("segment %d of the journal was removed or replaced while it was in use", c.removed)
	if rehoused {
		desc += ", and so was the stream's folder"
	}
	if err != nil {
		desc += "; records that were durable in it may be lost: " + reason(err)
	} else {
		desc += "; its records were written again"
	}
	l.note(l.alert(desc))
}

// unlinked reports whether the current segment has lost its name. What an error means the next write will tell.
func (l *Log) unlinked() bool {
	linked, err := l.committer.current.f.Linked()
	return err == nil && !linked
}

// rehouse makes the folder of the stream again, and locks it, when it was removed while in use. What was in it is gone, but for
// what the committer holds: when Storage lacks more than that, it does not continue the stream, see renew.
func (l *Log) rehouse() (removed bool, err error) {
	old := l.home.Load()
	path := filepath.Join(old.dir, lockName)
	there, err := exists(l.fs, path)
	if there || err != nil {
		return false, err
	}
	if err := l.fs.MkdirAll(old.dir); err != nil {
		return true, err
	}
	for _, parent := range []string{filepath.Dir(l.cfg.Dir), l.cfg.Dir} {
		if err := l.fs.SyncDir(parent); err != nil {
			return true, err
		}
	}
	lock, err := l.fs.Lock(path)
	if err != nil {
		return true, err
	}
	l.position.Lock()
	l.home.Store(&home{old.dir, old.stream, lock})
	l.position.Unlock()
	l.journal.stocked = false
	return true, old.lock.Close()
}

// errBusy says that groups of an older segment wait for the syncer.
var errBusy = errors.New("audit: journal is busy")

// rewrite copies the current segment, whose name is gone, to a new one.
func (l *Log) rewrite() error {
	c := &l.committer
	old := c.current
	c.removed = old.number
	l.mu.Lock()
	for l.syncing {
		l.idle.Wait()
	}
	for _, g := range l.unsynced {
		if g.segment != old {
			l.mu.Unlock()
			return errBusy
		}
	}
	groups := l.unsynced
	l.repairing = true
	l.mu.Unlock()
	whole := &group{first: old.first, prev: old.prev, floor: old.floor, frame: make([]byte, old.off-segmentHeadLen)}
	_, err := old.f.ReadAt(whole.frame, segmentHeadLen)
	if err == nil {
		if old.off == segmentHeadLen {
			err = l.replace(nil)
		} else {
			err = l.replace([]*group{whole})
		}
	}
	if err != nil {
		l.mu.Lock()
		l.repairing = false
		l.mu.Unlock()
		return err
	}
	for _, g := range groups {
		l.release(g, Power)
	}
	return nil
}
