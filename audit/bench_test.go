package audit_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// catcher is a Storage that also keeps the batches.
type catcher struct {
	audittest.Storage
	batches []audit.Batch
}

func (c *catcher) Ingest(ctx context.Context, b audit.Batch) error {
	c.batches = append(c.batches, b)
	return c.Storage.Ingest(ctx, b)
}

func benchmarkRecord(b *testing.B, level audit.Level) {
	l := open(b, audit.Config{Dir: b.TempDir()})
	b.SetParallelism(16) // times GOMAXPROCS
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Record(context.Background(), level, read("p1")); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	s := l.Stats()
	b.ReportMetric(float64(s.Recorded)/float64(s.GroupCommits), "events/group")
	b.ReportMetric(float64(s.Recorded)/float64(max(1, s.Syncs)), "events/sync")
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkRecordProcess(b *testing.B) { benchmarkRecord(b, audit.Process) }

func BenchmarkRecordPower(b *testing.B) { benchmarkRecord(b, audit.Power) }

// BenchmarkHandOff is what a caller spends before it can go on with its own work, at a pace that the journal can keep.
func BenchmarkHandOff(b *testing.B) {
	l := open(b, audit.Config{Dir: b.TempDir()})
	e := read("p1")
	took := make([]time.Duration, 0, 1<<16)
	for b.Loop() {
		began := time.Now()
		ticket, err := l.Submit(audit.Process, e)
		if len(took) < cap(took) {
			took = append(took, time.Since(began))
		}
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ticket.Wait(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2]), "ns/hand-off-p50")
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
}
