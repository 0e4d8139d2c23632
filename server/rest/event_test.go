package rest

import (
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

func TestSuspectClockIsShown(t *testing.T) {
	at := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for recorded, suspect := range map[time.Time]bool{at: false, at.Add(5 * time.Second): false, at.Add(time.Hour): true, at.Add(-time.Hour): true} {
		s := audit.Stored{Row: audit.Row{Event: audit.Event{Recorded: recorded}, PartTime: at}, Ingested: at.Add(time.Second)}
		if j := (&lens{}).newEventJSON(&s); j.Suspect != suspect {
			t.Errorf("recorded %s, stored for %s: suspect %v", recorded, at, j.Suspect)
		}
	}
}
