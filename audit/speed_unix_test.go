//go:build unix

package audit

import (
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// cpu is the processor time that this process has taken.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestVerifySpeed measures the verification of an export, and that memory stays flat.
func TestVerifySpeed(t *testing.T) {
	if testing.Short() {
		t.Skip("a measurement")
	}
	measure := func(batches int) (eventsPerSecond float64, peak uint64) {
		l := newLedger(t)
		for range batches {
			var events []*Event
			for range 1000 {
				e := testEvent(len(events))
				e.Query = make([]byte, 180) // as large as a usual event
				events = append(events, e)
			}
			l.rows[StreamID{1}] = slices.Grow(l.rows[StreamID{1}], 1000)
			l.append(t, StreamID{1}, events)
		}
		l.sign(t, l.size)
		dir := filepath.Join(t.TempDir(), "b")
		l.export(t, dir, ExportOptions{})
		vkey := l.vkey
		l = nil
		b, c, err := OpenBundlePath(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		base := m.HeapAlloc
		began := cpu(t)
		r := b.mustVerify(t, VerifyOptions{Keys: []string{vkey}, Progress: func(int64, int64) {
			runtime.ReadMemStats(&m)
			if m.HeapAlloc > base {
				peak = max(peak, m.HeapAlloc-base)
			}
		}})
		took := cpu(t) - began
		wantClean(t, r)
		return float64(r.Rows) / took.Seconds(), peak
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one core
	_, small := measure(20)
	rate, large := measure(100)
	t.Logf("%.0f events a second of one core, heap %d KiB above its start with 20,000 rows, %d KiB with 100,000", rate, small>>10, large>>10)
	if large > 2*small+8<<20 {
		t.Errorf("memory grew from %d to %d bytes", small, large)
	}
	if rate < 75_000 && !RaceDetector {
		t.Errorf("%.0f events a second; 150,000 are promised, and measured while nothing else runs", rate)
	}
}
