package audit_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Each call of a start on a torn journal fails in turn: the log either starts all the same or says ErrIO, and the start after it
// finds everything that was durable, in one chain.
func TestOneCallFailsAtOpen(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
		failed := 0
		for at := range int64(400) {
			r := rand.New(rand.NewPCG(uint64(at), 1))
			disk := audittest.NewDisk()
			cfg := audit.Config{Dir: "/journal", FS: disk, SegmentBytes: 4096, Heartbeat: -1}
			l := open(t, cfg)
			for i := range 12 {
				if _, err := l.Record(t.Context(), audit.Power, read(fmt.Sprint("p", i))); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := l.Record(t.Context(), audit.Process, read("maybe")); err != nil {
				t.Fatal(err)
			}
			disk = disk.Cut(r)
			_ = l.Close() // it cannot write any more

			var calls atomic.Int64
			disk.Fail = func(string, string) error {
				if calls.Add(1)-1 == at {
					return cause
				}
				return nil
			}
			cfg.FS = disk
			switch l, err := audit.Open(cfg); {
			case err == nil:
				if err := l.Close(); err != nil && !errors.Is(err, audit.ErrUnavailable) {
					t.Errorf("call %d: closing: %v", at, err)
				}
			case errors.Is(err, audit.ErrIO):
				failed++
			default:
				t.Errorf("call %d: %v", at, err)
			}
			if calls.Load() <= at {
				break // there are no more
			}
			var storage audittest.Storage
			cfg.Storage = &storage
			l = open(t, cfg)
			ship(t, l)
			eventually(t, fmt.Sprintf("all that was durable is stored (call %d, %v)", at, cause), func() bool {
				seen := patients(storage.Rows())
				for i := range 12 {
					if seen[fmt.Sprint("p", i)] != 1 {
						return false
					}
				}
				return true
			})
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			contiguous(t, storage.Rows())
		}
		if failed == 0 {
			t.Errorf("%v: no start failed", cause)
		}
	}
}
