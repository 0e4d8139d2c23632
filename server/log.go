package main

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// logFlush is how long a line of the access log may wait in memory: a write(2) of its own for every request costs more than
// its token check. What must not wait for anything is the audit journal's business, not the log's.
const logFlush = 200 * time.Millisecond

// programLog writes JSON lines, buffered; a warning or an error goes out at once, with all lines before it.
type programLog struct {
	*slog.Logger
	w    *bufferedWriter
	stop chan struct{}
	done sync.WaitGroup
}

// newLog starts a log on w. close it before w.
func newLog(w io.Writer) *programLog {
	b := &bufferedWriter{out: w, w: bufio.NewWriterSize(w, 1<<16)}
	l := &programLog{
		Logger: slog.New(flushingHandler{slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelInfo}), b}),
		w:      b, stop: make(chan struct{}),
	}
	l.done.Go(func() {
		t := time.NewTicker(logFlush)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				b.flush()
			case <-l.stop:
				b.flush()
				return
			}
		}
	})
	return l
}

func (l *programLog) close() {
	close(l.stop)
	l.done.Wait()
}

// bufferedWriter is a bufio.Writer for many goroutines. What its disk does not take is lost, what comes later is tried again.
type bufferedWriter struct {
	out io.Writer
	mu  sync.Mutex
	w   *bufio.Writer
}

func (b *bufferedWriter) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Write(p)
}

func (b *bufferedWriter) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.w.Flush(); err != nil {
		b.w.Reset(b.out)
	}
}

// flushingHandler flushes after lines that somebody should see now.
type flushingHandler struct {
	slog.Handler
	b *bufferedWriter
}

func (h flushingHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.b.flush()
	}
	return err
}

func (h flushingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return flushingHandler{h.Handler.WithAttrs(attrs), h.b}
}

func (h flushingHandler) WithGroup(name string) slog.Handler {
	return flushingHandler{h.Handler.WithGroup(name), h.b}
}
