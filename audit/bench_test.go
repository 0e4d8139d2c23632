package audit_test

import (
	"context"
	"sync/atomic"
	"testing"

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

// BenchmarkHandOff is what a caller spends before it can go on with its own work; where the channel is full it waits.
func BenchmarkHandOff(b *testing.B) {
	l := open(b, audit.Config{Dir: b.TempDir(), Capacity: 1 << 16})
	var refused atomic.Int64
	e := read("p1")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Submit(audit.Process, e); err != nil {
			refused.Add(1)
		}
	}
	b.ReportMetric(float64(refused.Load()), "refused")
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
}
