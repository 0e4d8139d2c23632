package phi

import (
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// TestFound: what a decision was made from is in its event, and costs an everyday one no allocation.
func TestFound(t *testing.T) {
	r := &Records{usual: usualFacts()}
	for want, a := range map[audit.AccessFacts]*attempt{
		{}:                    {Records: r},
		{Related: "CareTeam"}: {Records: r, decision: auth.Decision{Related: "CareTeam"}},
		{Segment: "part2"}:    {Records: r, segment: auth.SegmentPart2},
		{Related: "grant", Segment: "psychotherapy"}: {Records: r, segment: auth.SegmentPsychotherapy, decision: auth.Decision{Related: "grant"}},
	} {
		b := a.found()
		if b == nil && want == (audit.AccessFacts{}) {
			continue
		}
		if got, err := audit.DecodeAccessFacts(b); err != nil || got != want {
			t.Errorf("%+v came out as %+v, %v", want, got, err)
		}
	}
	a := &attempt{Records: r, decision: auth.Decision{Related: "Encounter"}}
	if n := testing.AllocsPerRun(100, func() { a.found() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	for _, damaged := range [][]byte{nil, {0}, {1}, {1, 5, 'a'}, {1, 0, 0, 0}, []byte(`{"jti":"x"}`)} {
		if _, err := audit.DecodeAccessFacts(damaged); err == nil {
			t.Errorf("%x was taken", damaged)
		}
	}
}
