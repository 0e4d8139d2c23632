package audittest

import (
	"context"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
)

// Evidence is what verification reads of a Storage: its batches, none of them in a tree.
func (s *Storage) Evidence() audit.Evidence { return evidence{s} }

type evidence struct{ *Storage }

func (e evidence) Unsequenced(_ context.Context, limit int) ([]audit.Span, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.batches[:min(limit, len(e.batches))]), nil
}

func (e evidence) Rows(_ context.Context, s audit.Span) (rows []audit.Row, _ error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.rows {
		if r := &e.rows[i]; r.Stream == s.Stream && r.Seq >= s.First && r.Seq < s.First+uint64(s.Count) {
			rows = append(rows, r.Row)
		}
	}
	return rows, nil
}

func (evidence) Spans(context.Context, int64, int) ([]audit.Span, error)   { return nil, nil }
func (evidence) Checkpoint(context.Context) ([]byte, error)                { return nil, nil }
func (evidence) Checkpoints(context.Context, int64, int) ([][]byte, error) { return nil, nil }
func (evidence) Tiles(context.Context, []tlog.Tile) ([][]byte, error)      { return nil, nil }
func (evidence) Cosign(context.Context, int64, []byte) error               { return nil }
func (evidence) Strays(context.Context, int) ([]audit.Stray, error)        { return nil, nil }
func (evidence) Prunings(context.Context) ([][]byte, error)                { return nil, nil }
func (evidence) Keys(context.Context) ([]string, error)                    { return nil, nil }
func (evidence) Locate(context.Context, audit.StreamID, uint64) (audit.Span, bool, error) {
	return audit.Span{}, false, nil
}
