package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// notebook records counts, or refuses to.
type notebook struct {
	mu     sync.Mutex
	fails  bool
	events []*audit.Event
}

func (n *notebook) record(e *audit.Event) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fails {
		return errors.New("no room")
	}
	n.events = append(n.events, e)
	return nil
}

func (n *notebook) fail(fails bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fails = fails
}

// told is how many refusals the recorded events stand for.
func (n *notebook) told(t *testing.T) (total uint64) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		var d throttle
		if err := json.Unmarshal(e.Detail, &d); err != nil || d.Limit != "ip" || d.Refused == 0 || d.Since.IsZero() {
			t.Fatalf("detail %s: %v", e.Detail, err)
		}
		total += d.Refused
	}
	return total
}

func likeness() audit.Event {
	return audit.Event{Interaction: interactionThrottled, Agent: audit.Agent{Network: "192.0.2.7"}, Detail: []byte(`{"limit":"ip","refused":1}`)}
}

// Every refusal is recorded: the first of a kind by its request, all others by their number, a second later at most, also when
// recording fails for a while, and when the server stops.
func TestRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &notebook{}
		r := newRepeats(n.record)
		first, later := 0, uint64(0)
		refuse := func(times int, key string) {
			for range times {
				if r.again(repeat{"ip", key}, likeness) {
					later++
				} else {
					first++
				}
			}
		}
		refuse(1, "a")
		refuse(9, "a")
		refuse(1, "b")
		if first != 2 || later != 9 || n.told(t) != 0 {
			t.Fatalf("%d first, %d later, %d told", first, later, n.told(t))
		}
		time.Sleep(repeatEvery + time.Millisecond)
		synctest.Wait()
		if n.told(t) != 9 || len(n.events) != 1 {
			t.Fatalf("%d told in %d events after a second", n.told(t), len(n.events))
		}
		refuse(5, "a") // goes on: no new first one
		n.fail(true)
		time.Sleep(5 * repeatEvery)
		refuse(5, "a")
		n.fail(false)
		time.Sleep(repeatEvery)
		synctest.Wait()
		if first != 2 || n.told(t) != later {
			t.Fatalf("%d first, %d of %d told after recording failed", first, n.told(t), later)
		}
		time.Sleep(3 * repeatEvery) // it stops, and is forgotten
		synctest.Wait()
		refuse(4, "a")
		if first != 3 {
			t.Errorf("%d first after a pause", first)
		}
		for k := range 3 * maxRepeats {
			refuse(1, fmt.Sprint("source-", k))
		}
		r.mu.Lock()
		kinds := len(r.open)
		r.mu.Unlock()
		if kinds > maxRepeats+1 {
			t.Errorf("%d kinds are counted apart", kinds)
		}
		if err := r.close(); err != nil {
			t.Fatal(err)
		}
		if n.told(t) != later {
			t.Errorf("%d of %d told at the end", n.told(t), later)
		}
	})
}
