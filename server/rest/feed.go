package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// feed reads the trail in the order of the tree, once for all who watch it, and keeps the newest events in memory. It goes no
// further than the newest signed checkpoint, so a position that it gives out is one for good.
type feed struct {
	tree   Tree
	logger *slog.Logger
	loads  chan struct{} // bounds reading from storage for those who are far behind

	mu    sync.Mutex
	kept  []*entry // kept[i] is leaf base+i
	base  int64
	moved chan struct{} // closed when the feed has moved on

	ready   chan struct{} // closed when the feed knows where the trail ends
	stop    context.CancelFunc
	running sync.WaitGroup
}

const (
	feedKept  = 8192 // events in memory
	feedPage  = 512  // events read at once
	feedPoll  = time.Second
	feedLoads = 2
)

// entry is one leaf of the tree. stored is nil for a leaf whose row was dropped.
type entry struct {
	stored *audit.Stored
	once   [2]sync.Once
	text   [2][]byte
}

// json is the event as the lens shows it, rendered once for all who look through the same.
func (e *entry) json(l *lens) []byte {
	i := 0
	if l.aliases != nil {
		i = 1
	}
	e.once[i].Do(func() {
		e.text[i], _ = json.Marshal(l.newEventJSON(e.stored)) // of texts, numbers and times: cannot fail
	})
	return e.text[i]
}

// startFeed starts to follow the trail from its end on, until close.
func startFeed(tree Tree, listen func(context.Context, func()) error, logger *slog.Logger) *feed {
	f := &feed{tree: tree, logger: logger, loads: make(chan struct{}, feedLoads), moved: make(chan struct{}), ready: make(chan struct{})}
	var ctx context.Context
	ctx, f.stop = context.WithCancel(context.Background())
	wake := make(chan struct{}, 1)
	f.running.Go(func() { f.run(ctx, wake) })
	if listen != nil {
		f.running.Go(func() {
			err := listen(ctx, func() {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
			if err != nil && ctx.Err() == nil {
				f.logger.Warn("listening for checkpoints ended; the live trail is polled", "error", err.Error())
			}
		})
	}
	return f
}

func (f *feed) close() {
	f.stop()
	f.running.Wait()
}

func (f *feed) run(ctx context.Context, wake <-chan struct{}) {
	tick := time.NewTicker(feedPoll)
	defer tick.Stop()
	known := false
	for {
		if err := f.advance(ctx, known); err != nil {
			if ctx.Err() == nil {
				f.logger.Warn("the live trail stands still", "error", err.Error())
			}
		} else if !known {
			known = true
			close(f.ready)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-tick.C:
		}
	}
}

// advance reads what was signed since. The first call only learns where the trail ends.
func (f *feed) advance(ctx context.Context, known bool) error {
	size, err := f.signed(ctx)
	if err != nil {
		return err
	}
	if !known {
		f.mu.Lock()
		f.base = size
		f.mu.Unlock()
		return nil
	}
	for head := f.head(); head < size; head = f.head() {
		entries, err := f.load(ctx, head, size)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.kept = append(f.kept, entries...)
		if extra := len(f.kept) - feedKept; extra >= feedKept/2 {
			f.kept = append(make([]*entry, 0, 2*feedKept), f.kept[extra:]...)
			f.base += int64(extra)
		}
		close(f.moved)
		f.moved = make(chan struct{})
		f.mu.Unlock()
	}
	return nil
}

// signed is the size of the newest checkpoint.
func (f *feed) signed(ctx context.Context) (int64, error) {
	note, err := f.tree.Checkpoint(ctx)
	if err != nil || note == nil {
		return 0, err
	}
	c, err := storedCheckpoint(note)
	if err != nil {
		return 0, fmt.Errorf("reading the newest checkpoint: %w", err)
	}
	return c.Size, nil
}

// load reads the leaves from on, below end, and at least one.
func (f *feed) load(ctx context.Context, from, end int64) ([]*entry, error) {
	spans, err := f.tree.Spans(ctx, from, 16)
	if err != nil {
		return nil, fmt.Errorf("reading spans: %w", err)
	}
	var entries []*entry
	at := from
	for _, s := range spans {
		if s.Index > at || at >= end || len(entries) >= feedPage {
			break
		}
		rows, err := f.tree.Rows(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("reading rows: %w", err)
		}
		bySeq := make(map[uint64]*audit.Row, len(rows))
		for i := range rows {
			bySeq[rows[i].Seq] = &rows[i]
		}
		for ; at < s.Index+int64(s.Count) && at < end; at++ {
			e := &entry{}
			if row := bySeq[s.First+uint64(at-s.Index)]; row != nil {
				e.stored = &audit.Stored{Row: *row, Stream: s.Stream}
			}
			entries = append(entries, e)
		}
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("reading spans: leaf %d is in none", from)
	}
	return entries, nil
}

func (f *feed) head() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.base + int64(len(f.kept))
}

// after returns leaves from a position on, in order, none when there are none yet; head is where the feed has come to, and moved
// is closed when it has come further. The slice is read only.
func (f *feed) after(ctx context.Context, from int64) (entries []*entry, head int64, moved <-chan struct{}, err error) {
	f.mu.Lock()
	head, moved = f.base+int64(len(f.kept)), f.moved
	if from >= f.base {
		entries = f.kept[min(from, head)-f.base:]
		entries = entries[:min(len(entries), feedPage):min(len(entries), feedPage)]
		f.mu.Unlock()
		return entries, head, moved, nil
	}
	end := f.base
	f.mu.Unlock()
	select {
	case f.loads <- struct{}{}:
		defer func() { <-f.loads }()
	case <-ctx.Done():
		return nil, head, moved, ctx.Err()
	}
	entries, err = f.load(ctx, from, end)
	return entries, head, moved, err
}
