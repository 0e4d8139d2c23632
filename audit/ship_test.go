package audit

import (
	"testing"
	"time"
)

func TestYielded(t *testing.T) {
	const batch = 100 * time.Millisecond
	for _, c := range []struct {
		shipped int
		arrived uint64
		want    time.Duration
	}{
		{1000, 0, 75 * time.Millisecond},   // nothing but a backlog
		{1000, 100, 75 * time.Millisecond}, // gains on it ten times over
		{1000, 400, 25 * time.Millisecond}, // 1,000 in 125 ms are twice 400 in 100 ms
		{1000, 500, 0},
		{1000, 2000, 0}, // falls behind as it is
	} {
		if got := yielded(c.shipped, c.arrived, batch); (got - c.want).Abs() > time.Millisecond {
			t.Errorf("%d shipped while %d arrived: %v, want %v", c.shipped, c.arrived, got, c.want)
		}
	}
}
