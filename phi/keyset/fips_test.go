package keyset_test

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"testing"
)

// TestFIPS runs this package's tests again in the mode that refuses everything but approved algorithms.
func TestFIPS(t *testing.T) {
	if fips140.Enabled() {
		t.Skip("already in FIPS mode")
	}
	cmd := exec.Command(os.Args[0], "-test.skip=TestHitDoesNotAllocate")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("with fips140=only: %v\n%s", err, out)
	}
}
