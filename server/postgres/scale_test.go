package postgres

import (
	"flag"
	"strings"
	"testing"
	"time"
)

var (
	scaleRows    = flag.Int64("scale-rows", 0, "TestScale: measure on so many rows and on a tenth of them")
	scaleCluster = flag.String("scale-cluster", "", "TestScale: superuser's URL of a cluster that keeps the trails for the next time")
)

// TestScale asks every kind of query on a generated trail. In short form it demands what a busy machine can keep: that nothing
// takes long, whatever is asked for.
func TestScale(t *testing.T) {
	if cluster == nil {
		t.Skip("no PostgreSQL binaries on this machine")
	}
	m, dsn := Measurement{Sizes: []int64{200_000}, Instances: 12, Progress: t.Logf}, cluster.DSN("postgres")
	if *scaleRows > 0 {
		m.Sizes, m.Instances = []int64{*scaleRows / 10, *scaleRows}, 100
	}
	if *scaleCluster != "" {
		m.Keep, dsn = true, *scaleCluster
	}
	volumes, err := MeasureQueries(t.Context(), dsn, m)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range volumes {
		t.Logf("%d rows, %.1f GB, loaded in %v", v.Rows, float64(v.Bytes)/1e9, v.Loaded.Round(time.Second))
		for j, s := range v.Shapes {
			ratio := float64(s.Again) / float64(volumes[0].Shapes[j].Again)
			t.Logf("%-36s p50 %8.2f ms  p95 %8.2f ms  again %8.2f ms  ratio %.2f", s.Name, millis(s.P50), millis(s.P95), millis(s.Again), ratio)
			if s.P95 > 2*time.Second {
				t.Errorf("%s takes %v at the 95th percentile on volume %d", s.Name, s.P95, i)
			}
		}
	}
}

// TestNothingToMeasure: a bench that is asked for no trail says so, before it connects.
func TestNothingToMeasure(t *testing.T) {
	for _, m := range []Measurement{{Instances: 1}, {Sizes: []int64{1}}} {
		if _, err := MeasureQueries(t.Context(), "postgres://nowhere.invalid", m); err == nil || !strings.Contains(err.Error(), "to measure") {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
