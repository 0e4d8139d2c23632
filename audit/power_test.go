package audit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Experiment 2: the power is cut under load, again and again, on a disk that forgets all that it may forget. What was acknowledged
// at level power is there, what is there is a chain, and every start does without a human.
func TestPowerCut(t *testing.T) {
	rounds := 104
	if os.Getenv("CHARTKEEP_LONG") != "" {
		rounds = 3000
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for chunk := range 4 { // separate journals: a history of a few dozen cuts each
		t.Run(fmt.Sprint(chunk), func(t *testing.T) {
			t.Parallel()
			powerCuts(t, rand.New(rand.NewPCG(seed, uint64(chunk))), rounds/4)
		})
	}
}

func powerCuts(t *testing.T, r *rand.Rand, rounds int) {
	disk := audittest.NewDisk()
	var storage audittest.Storage
	var mu sync.Mutex
	durable, written := map[string]bool{}, map[string]bool{}
	v := &audittest.Invariants{Journals: []string{"/journal"}, Evidence: storage.Evidence(), Key: func(e *audit.Event) string { return e.Patient }}
	for round := range rounds {
		shipping := r.IntN(2) == 0
		cfg := audit.Config{Dir: "/journal", FS: disk, SegmentBytes: 8192, TicketTimeout: time.Second, Keep: -1, Heartbeat: 5 * time.Millisecond}
		if shipping {
			cfg.Storage = &storage
		}
		l, err := audit.Open(cfg)
		if err != nil {
			t.Fatalf("round %d: the log does not start: %v\n%s", round, err, disk.Tree())
		}
		v.FS = disk
		if found, err := v.Check(t.Context(), audit.Power); err != nil || len(found.Violations) > 0 {
			t.Errorf("round %d: %v, %v", round, found.Violations, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		var writers sync.WaitGroup
		for w := range 4 {
			writers.Go(func() {
				for i := range 300 {
					e := read(fmt.Sprint(round, "-", w, "-", i))
					level := audit.Process + audit.Level(w%2)
					if _, err := l.Record(context.Background(), level, e); err != nil {
						return
					}
					v.Acknowledge(audittest.Ack{Key: e.Patient, Level: level, Events: 1})
					mu.Lock()
					if written[e.Patient] = true; level == audit.Power {
						durable[e.Patient] = true
					}
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(r.IntN(int(8 * time.Millisecond))))
		disk = disk.Cut(r)
		_ = l.Close() // it cannot write any more
		writers.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, audit.Config{Dir: "/journal", FS: disk, Storage: &storage})
	ship(t, l)
	var rows []audit.Stored
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		drain(t, l)
		rows = storage.Rows()
		if missing(durable, patients(rows)) == 0 {
			break
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	contiguous(t, rows)
	seen := patients(rows)
	if n := missing(durable, seen); n > 0 {
		t.Errorf("%d of %d events that were acknowledged at level power are gone", n, len(durable))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s is stored %d times", id, n)
		}
	}
	streams := map[audit.StreamID]bool{}
	for _, row := range rows {
		streams[row.Stream] = true
	}
	torn := 0
	for _, a := range alertsIn(&storage) {
		if strings.Contains(a.Event.OutcomeDesc, "torn") {
			torn++
		}
		if strings.Contains(a.Event.OutcomeDesc, "damaged") || strings.Contains(a.Event.OutcomeDesc, "lost its") || strings.Contains(a.Event.OutcomeDesc, "lost records") {
			t.Errorf("a power cut is taken for damage: %s", a.Event.OutcomeDesc)
		}
	}
	t.Logf("%d cuts: %d durable events, all found; %d of %d that were only written; %d torn tails, %d streams",
		rounds, len(durable), len(written)-missing(written, seen), len(written), torn, len(streams))
}

func missing(wanted map[string]bool, seen map[string]int) (n int) {
	for id := range wanted {
		if seen[id] == 0 {
			n++
		}
	}
	return n
}
