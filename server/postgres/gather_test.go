package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chartkeep/chartkeep/phi"
)

// held is a gatherer over rows whose version is the number in their id; statements wait for release.
type held struct {
	*gatherer
	single, joined atomic.Int32
	started        chan struct{}
	release        chan error
}

func newHeld(limit int) *held {
	h := &held{started: make(chan struct{}, 100), release: make(chan error)}
	row := func(ref phi.Ref) *phi.Sealed {
		var n int64
		if _, err := fmt.Sscanf(ref.ID, "r%d", &n); err != nil {
			return nil
		}
		return &phi.Sealed{Ref: ref, Version: n}
	}
	h.gatherer = newGatherer(func(_ context.Context, ref phi.Ref) (*phi.Sealed, error) {
		h.single.Add(1)
		h.started <- struct{}{}
		if err := <-h.release; err != nil {
			return nil, err
		}
		if r := row(ref); r != nil {
			return r, nil
		}
		return nil, phi.ErrNotFound
	}, func(_ context.Context, refs []phi.Ref, take func(*phi.Sealed)) error {
		h.joined.Add(1)
		h.started <- struct{}{}
		if err := <-h.release; err != nil {
			return err
		}
		for i := range refs { // in another order than asked
			if r := row(refs[len(refs)-1-i]); r != nil {
				take(r)
			}
		}
		return nil
	})
	h.limit = limit
	return h
}

// queued waits until n look-ups wait.
func (h *held) queued(n int) {
	for {
		h.mu.Lock()
		waiting := len(h.waiting)
		h.mu.Unlock()
		if waiting == n {
			return
		}
	}
}

func TestLookUpsAreJoined(t *testing.T) {
	h := newHeld(1)
	type answer struct {
		row *phi.Sealed
		err error
	}
	var wg sync.WaitGroup
	ask := func(ctx context.Context, id string) *answer {
		a := &answer{}
		wg.Go(func() { a.row, a.err = h.fetch(ctx, phi.Ref{Type: "Patient", ID: id}) })
		return a
	}
	first := ask(t.Context(), "r1")
	<-h.started
	var answers []*answer
	for _, id := range []string{"r2", "r3", "r2", "absent"} {
		answers = append(answers, ask(t.Context(), id))
		h.queued(len(answers))
	}
	gone, cancel := context.WithCancel(t.Context())
	left := ask(gone, "r4")
	h.queued(5)
	cancel()
	h.release <- nil // the first
	<-h.started
	h.release <- nil // the five
	wg.Wait()
	if h.single.Load() != 1 || h.joined.Load() != 1 {
		t.Errorf("%d single and %d joined statements", h.single.Load(), h.joined.Load())
	}
	if first.err != nil || first.row.Version != 1 {
		t.Errorf("first: %+v", first)
	}
	for i, want := range []int64{2, 3, 2} {
		if a := answers[i]; a.err != nil || a.row.Version != want {
			t.Errorf("look-up %d: %v, %v", i, a.row, a.err)
		}
	}
	if answers[0].row == answers[2].row {
		t.Error("two callers share a row")
	}
	if !errors.Is(answers[3].err, phi.ErrNotFound) {
		t.Errorf("absent: %v", answers[3].err)
	}
	if !errors.Is(left.err, context.Canceled) {
		t.Errorf("the one who left: %v", left.err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running != 0 || len(h.waiting) != 0 {
		t.Errorf("%d statements run, %d look-ups wait", h.running, len(h.waiting))
	}
}

// A statement that fails fails everybody in it, and the next ones run.
func TestJoinedFailure(t *testing.T) {
	h := newHeld(1)
	var wg sync.WaitGroup
	var failed atomic.Int32
	ask := func() {
		wg.Go(func() {
			if _, err := h.fetch(t.Context(), phi.Ref{Type: "Patient", ID: "r1"}); err != nil {
				failed.Add(1)
			}
		})
	}
	ask()
	<-h.started
	for i := range 3 {
		ask()
		h.queued(i + 1)
	}
	h.release <- nil
	<-h.started
	h.release <- errors.New("gone")
	wg.Wait()
	if failed.Load() != 3 {
		t.Errorf("%d look-ups failed", failed.Load())
	}
	ask()
	<-h.started
	h.release <- nil
	wg.Wait()
	if failed.Load() != 3 {
		t.Error("the gatherer did not recover")
	}
}

// Many readers on the real database each get their own row, and those who ask for what is not there are told.
func TestFetchUnderLoad(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	storage := db.Records()
	writes := make([]phi.Write, 50)
	for i := range writes {
		writes[i] = write(phi.Ref{Type: "Patient", ID: fmt.Sprintf("load-%d", i)}, 1)
		writes[i].Subject = random16()
		writes[i].NewKeys = []phi.WrappedKey{testKey(writes[i].Subject)}
	}
	if err := storage.Commit(t.Context(), writes, nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for reader := range 32 {
		wg.Go(func() {
			for i := range 100 {
				ref := phi.Ref{Type: "Patient", ID: fmt.Sprintf("load-%d", (reader*7+i)%60)}
				classes := phi.AllClasses
				if i%5 == 0 {
					classes = 1 << phi.ClassName
				}
				row, err := storage.Fetch(t.Context(), ref, classes)
				switch {
				case (reader*7+i)%60 >= 50:
					if !errors.Is(err, phi.ErrNotFound) {
						t.Errorf("%s: %v", ref, err)
					}
				case err != nil:
					t.Errorf("%s: %v", ref, err)
				case row.Ref != ref || row.Fetched != classes || row.Key.Subject != row.Subject || len(row.Key.Wrapped) != wrappedLen:
					t.Errorf("%s: got %s with classes %b", ref, row.Ref, row.Fetched)
				}
			}
		})
	}
	wg.Wait()
}
