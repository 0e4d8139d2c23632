package postgres

import "testing"

// TestIngestRatio holds what keeps the trail's promises (manifest, chain, triggers, rollups) to a fifth of the time of a bare COPY. bench
// measures the same for longer; here the bound has room for a busy machine and the race detector.
func TestIngestRatio(t *testing.T) {
	if cluster == nil {
		t.Skip("no PostgreSQL binaries on this machine")
	}
	r, err := MeasureIngest(t.Context(), cluster.DSN("postgres"), 5)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows each way: COPY %.0f rows/s, ingest %.0f rows/s, ratio %.2f (target 0.80)", r.Rows, r.Raw, r.Ingest, r.Ratio)
	if r.Ratio < 0.4 {
		t.Errorf("ingest at %.2f of a bare COPY", r.Ratio)
	}
}
