package postgres

import (
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

func TestDatabaseClock(t *testing.T) {
	db, _ := open(t)
	clock, ok := db.Audit().(audit.Clock)
	if !ok {
		t.Fatal("the trail's storage has no clock")
	}
	if now, err := clock.Now(t.Context()); err != nil || time.Since(now).Abs() > time.Minute {
		t.Errorf("the database says it is %v, %v", now, err)
	}
}
