package postgres

import (
	"flag"
	"testing"
	"time"
)

var scaleRows = flag.Int64("scale-rows", 0, "TestScale: also measure on so many rows and on a tenth of them")

// TestScale asks every kind of query on a generated trail. In short form it demands what a busy machine can keep: that nothing
// takes long, whatever is asked for.
func TestScale(t *testing.T) {
	if cluster == nil {
		t.Skip("no PostgreSQL binaries on this machine")
	}
	sizes, instances := []int64{200_000}, 12
	if *scaleRows > 0 {
		sizes, instances = []int64{*scaleRows / 10, *scaleRows}, 100
	}
	volumes, err := MeasureQueries(t.Context(), cluster.DSN("postgres"), sizes, instances, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range volumes {
		t.Logf("%d rows, %.1f GB, loaded in %v", v.Rows, float64(v.Bytes)/1e9, v.Loaded.Round(time.Second))
		for j, s := range v.Shapes {
			ratio := float64(s.P95) / float64(volumes[0].Shapes[j].P95)
			t.Logf("%-36s p50 %8.2f ms  p95 %8.2f ms  ratio %.2f", s.Name, float64(s.P50.Microseconds())/1000, float64(s.P95.Microseconds())/1000, ratio)
			if s.P95 > 2*time.Second {
				t.Errorf("%s takes %v at the 95th percentile on volume %d", s.Name, s.P95, i)
			}
		}
	}
}
