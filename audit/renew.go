package audit

import (
	"errors"
	"fmt"
)

// renewal asks the committer to go on in a new stream.
type renewal struct{ done chan error }

// renew ends the stream that Storage does not continue, or whose journal cannot be read any more, and goes on in a new one. The
// old one becomes an orphan: what can still be shipped of it is shipped, and the rest is recorded again here. Nothing of it
// is lost, and no number is given twice.
func (l *Log) renew() error {
	l.watchName() // what lost its name is to be found where the old stream is
	if down := l.down.Load(); down != nil {
		return *down
	}
	if err := l.settle(); err != nil {
		return err
	}
	c := &l.committer
	if err := l.journal.discard(); err != nil {
		l.logger.Warn("audit segment was not removed", "error", err)
	}
	old := l.home.Load()
	if err := end(l.fs, old.dir); err != nil {
		return err
	}
	fresh, err := l.found()
	if err != nil {
		return err
	}
	journal, next, chain := l.journal, c.next, c.chain
	last := position{next, l.shipping.next.Load()}

	l.position.Lock() // nobody reads home and counters apart
	defer l.position.Unlock()
	l.journal, c.next, c.chain = l.journalAt(fresh), 0, Hash{}
	if err := l.replace(nil); err != nil {
		l.journal, c.next, c.chain = journal, next, chain
		return errors.Join(err, fresh.lock.Close())
	}
	if err := l.journal.stock(); err != nil {
		l.logger.Warn("audit journal has no reserve", "error", err)
	}
	c.reserved = false
	l.counters.oldestInLog.Store(0)
	l.shipping.restart()
	l.home.Store(&fresh)
	if err := writePosition(l.fs, old.dir, old.stream, last); err != nil {
		l.logger.Warn("audit journal's position was not saved", "error", err)
	}
	l.note(l.application("110120"), l.alert(fmt.Sprintf("the database does not continue stream %s at record %d; this stream goes on", old.stream, next)))
	return old.lock.Close()
}

// settle makes all that was written durable, in the committer.
func (l *Log) settle() error {
	l.mu.Lock()
	for l.syncing {
		l.idle.Wait()
	}
	groups := l.unsynced
	l.repairing = true
	l.mu.Unlock()
	var err error
	for i, g := range groups {
		if err == nil && (i == 0 || groups[i-1].segment != g.segment) {
			if err = g.segment.f.Datasync(); err != nil {
				l.mu.Lock()
				g.segment.failed = true
				l.mu.Unlock()
			}
		}
	}
	l.mu.Lock()
	l.repairing = false
	if err == nil {
		l.unsynced = nil
	}
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("syncing journal: %w", err) // probe repairs it
	}
	for i, g := range groups {
		if g.segment.retired && (i == len(groups)-1 || groups[i+1].segment != g.segment) {
			l.closeSegment(g.segment)
		}
		l.release(g, Power)
	}
	if len(groups) > 0 {
		l.advance(groups[len(groups)-1].next)
	}
	return nil
}
