package audit_test

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// Experiment 1's second criterion: after a kill -9 a start takes less than two seconds for each gigabyte that is in the journal.
func TestStartUp(t *testing.T) {
	volume := int64(64 << 20)
	if os.Getenv("CHARTKEEP_LONG") != "" {
		volume = 1 << 30
	}
	dir := t.TempDir()
	l := open(t, audit.Config{Dir: dir})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for int64(l.Stats().Recorded)*450 < volume { // bytes of a record, about
				for range 100 {
					if _, err := l.Record(t.Context(), audit.Process, read("p1")); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	killed := t.TempDir() // what a kill would leave behind, without its lock
	if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	recorded := l.Stats().Recorded
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	again := open(t, audit.Config{Dir: killed})
	took := time.Since(began)
	gigabytes := float64(again.Stats().JournalBytes) / (1 << 30)
	t.Logf("%d records in %.2f GB: started in %s, %s for a gigabyte", recorded, gigabytes, took.Round(time.Millisecond), time.Duration(float64(took)/gigabytes).Round(time.Millisecond))
	// Other tests share the machine: the short form leaves them room.
	if limit := time.Second/2 + time.Duration(2*gigabytes*float64(time.Second)); took > limit && !audit.RaceDetector {
		t.Errorf("the start took %s", took)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}
