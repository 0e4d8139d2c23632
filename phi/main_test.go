package phi_test

import (
	"testing"

	"go.uber.org/goleak"
)

// Rooms that tests open leave no goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
