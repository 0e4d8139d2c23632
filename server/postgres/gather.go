package postgres

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/chartkeep/chartkeep/phi"
)

// gatherer joins look-ups of single records that come at the same time into one statement, as group commit joins writes: no timer,
// the next statement gathers while the last one runs. A look-up that comes alone goes out alone and at once; under load a statement
// carries a dozen, and the price of a round trip (four system calls here, the start of an executor there) is shared by them.
// What each caller may see of its row is decided after the fetch, caller by caller, as ever.
type gatherer struct {
	one  func(ctx context.Context, ref phi.Ref) (*phi.Sealed, error)
	many func(ctx context.Context, refs []phi.Ref, take func(*phi.Sealed)) error

	mu      sync.Mutex
	waiting []*lookup // empty unless limit statements are running
	running int
	limit   int
}

// lookup is one caller's part of a statement. row and err are set before done is closed.
type lookup struct {
	ref  phi.Ref
	row  *phi.Sealed
	err  error
	done chan struct{}
}

const (
	gatherMost = 64   // look-ups in one statement
	waitMost   = 4096 // look-ups waiting for one; more are refused, a database that slow is overloaded
)

// errBusy says that too many look-ups wait already.
var errBusy = errors.New("fetching records: too many look-ups are waiting")

func newGatherer(one func(context.Context, phi.Ref) (*phi.Sealed, error), many func(context.Context, []phi.Ref, func(*phi.Sealed)) error) *gatherer {
	return &gatherer{one: one, many: many, limit: runtime.NumCPU()}
}

// fetch looks one record up, alone or together with others.
func (g *gatherer) fetch(ctx context.Context, ref phi.Ref) (*phi.Sealed, error) {
	g.mu.Lock()
	if g.running < g.limit {
		g.running++
		g.mu.Unlock()
		defer g.next()
		return g.one(ctx, ref)
	}
	if len(g.waiting) >= waitMost {
		g.mu.Unlock()
		return nil, errBusy
	}
	l := &lookup{ref: ref, done: make(chan struct{})}
	g.waiting = append(g.waiting, l)
	g.mu.Unlock()
	select {
	case <-l.done:
		return l.row, l.err
	case <-ctx.Done():
		return nil, fmt.Errorf("fetching records: %w", context.Cause(ctx))
	}
}

// next hands the place of a statement that ended to those who wait.
func (g *gatherer) next() {
	if batch := g.take(); batch != nil {
		go func() {
			for ; batch != nil; batch = g.take() {
				g.serve(batch)
			}
		}()
	}
}

// take takes who waits; when nobody does it gives the place up.
func (g *gatherer) take() []*lookup {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(g.waiting), gatherMost)
	if n == 0 {
		g.running--
		return nil
	}
	batch := make([]*lookup, n)
	copy(batch, g.waiting)
	left := copy(g.waiting, g.waiting[n:])
	clear(g.waiting[left:])
	g.waiting = g.waiting[:left]
	return batch
}

// serve runs one statement for the batch. It is nobody's request, so it has a deadline of its own.
func (g *gatherer) serve(batch []*lookup) {
	ctx, cancel := context.WithTimeout(context.Background(), recordsTimeout)
	defer cancel()
	refs := make([]phi.Ref, len(batch))
	for i, l := range batch {
		refs[i], l.err = l.ref, phi.ErrNotFound
	}
	err := g.many(ctx, refs, func(row *phi.Sealed) {
		for _, l := range batch { // two look-ups of one record get a row each
			if l.row == nil && l.ref == row.Ref {
				l.row, l.err = row, nil
				return
			}
		}
	})
	for _, l := range batch {
		if err != nil {
			l.row, l.err = nil, err
		}
		close(l.done)
	}
}
