package phi_test

import (
	"context"
	"crypto/fips140"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// TestSpeed holds the figure that does not depend on the machine (experiment 30): at most four allocations a row. The others are
// measured by chartkeep bench --phi.
func TestSpeed(t *testing.T) {
	room := phitest.Open(t, phitest.Options{})
	ctx := context.Background()
	s, err := phi.NewSpeed(ctx, room.Keys, [][]byte{[]byte(adam), []byte(adam)})
	if err != nil {
		t.Fatal(err)
	}
	if s.Cells(0) != 5 || s.Cells(1) != 5 {
		t.Errorf("%d and %d cells, want 5", s.Cells(0), s.Cells(1))
	}
	ours, bare := s.Throughput()
	for name, run := range map[string]func() error{
		"open and show":        func() error { return s.Show(1) },
		"open, key cached":     func() error { return s.Open(ctx, 1, true) },
		"open, key unwrapped":  func() error { return s.Open(ctx, 1, false) },
		"twice, key unwrapped": func() error { return s.OpenTwice(ctx, 0, false) },
		"seal":                 func() error { return s.Seal(ctx, 1, 1, true) },
		"cells":                ours,
		"bare cells":           bare,
	} {
		if err := run(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n := testing.AllocsPerRun(100, func() { _ = run() })
		for range 50 { // the cache takes a cipher up when it finds the time
			if n <= 4 {
				break
			}
			time.Sleep(10 * time.Millisecond)
			n = testing.AllocsPerRun(100, func() { _ = run() })
		}
		if n > 4 && !fips140.Enabled() {
			t.Errorf("%s: %v allocations a row, want 4 at most", name, n)
		}
	}
	if _, err := phi.NewSpeed(ctx, room.Keys, nil); err == nil {
		t.Error("measuring nothing succeeds")
	}
}
