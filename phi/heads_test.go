package phi

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
)

// Versions of a record come in any order, each once, and are believed; one that comes twice is told, whatever came in between.
func TestHeadNotes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 60).Draw(t, "versions")
		var order []int64
		for v := range n {
			order = append(order, v+1)
		}
		order = rapid.Permutation(order).Draw(t, "order")
		h := Head{Version: order[0], Seen: 1}
		for _, v := range order[1:] {
			if !h.note(v) {
				t.Fatalf("version %d is told to have been written twice; order %v", v, order)
			}
		}
		if h.Version != n {
			t.Fatalf("the newest of %v is %d", order, h.Version)
		}
		again := rapid.Int64Range(1, n).Draw(t, "again")
		if h.note(again) || h.Version != again {
			t.Fatalf("version %d was written twice: head %+v", again, h)
		}
	})
	h := Head{Version: 1000, Seen: 1}
	if h.note(900) || h.Version != 900 {
		t.Errorf("a version far below the newest: %+v", h)
	}
	if h = (Head{Version: 5, Seen: 1}); !h.note(500) || h.Version != 500 || h.note(500) {
		t.Errorf("a version far above the newest: %+v", h)
	}
}

// Sums do not depend on the order, and change with everything that a head says.
func TestHeadSum(t *testing.T) {
	key := []byte("a key for sums of heads, 32 bytes")
	a, b := Head{Ref{"Patient", "1"}, 3, 7}, Head{Ref{"Patient", "2"}, 1, 1}
	var ab, ba headSum
	ab.add(key, a)
	ab.add(key, b)
	ba.add(key, b)
	ba.add(key, a)
	if ab != ba || ab == (headSum{}) {
		t.Error("the order counts")
	}
	for _, other := range []Head{{Ref{"Patient", "1"}, 2, 7}, {Ref{"Patient", "1"}, 3, 3}, {Ref{"Patient", "11"}, 3, 7}, {Ref{"Patien", "t1"}, 3, 7}} {
		var s headSum
		s.add(key, other)
		s.add(key, b)
		if s == ab {
			t.Errorf("%+v sums up like %+v", other, a)
		}
	}
	ab.add(key, a)
	ab.add(key, b)
	if ab != (headSum{}) {
		t.Error("what is taken away again does not cancel out")
	}
}

// What events say about versions: a write is committed when an outcome with its correlation says so, and only then.
func TestTrailTellsVersions(t *testing.T) {
	intent := func(correlation byte, id string, version int64) audit.Event {
		return audit.Event{
			Type: audit.TypeREST, Interaction: "update", Action: audit.ActionUpdate, Outcome: audit.Intent, Correlation: audit.ID{correlation},
			Entities: []audit.Entity{{Type: "Patient", ID: id, Version: version}}, Recorded: time.Unix(1_700_000_000, 0),
		}
	}
	outcome := func(correlation byte, kind audit.Type, o audit.Outcome, about ...audit.Entity) audit.Event {
		return audit.Event{Type: kind, Interaction: "transaction", Action: audit.ActionExecute, Outcome: o, Correlation: audit.ID{correlation}, Entities: about}
	}
	for _, test := range []struct {
		name   string
		events []audit.Event
		want   []writtenVersion
	}{
		{"a transaction", []audit.Event{intent(1, "a", 2), intent(1, "b", 1), outcome(1, audit.TypeREST, audit.Success)}, []writtenVersion{{Ref{"Patient", "a"}, 2}, {Ref{"Patient", "b"}, 1}}},
		{"an import", []audit.Event{intent(1, "a", 1), outcome(1, audit.TypeImport, audit.Success)}, []writtenVersion{{Ref{"Patient", "a"}, 1}}},
		{"one intent for each patient", []audit.Event{intent(1, "a", 2), intent(1, "a", 2), outcome(1, audit.TypeREST, audit.Success)}, []writtenVersion{{Ref{"Patient", "a"}, 2}}},
		{"a failure", []audit.Event{intent(1, "a", 2), outcome(1, audit.TypeREST, audit.MinorFailure), outcome(1, audit.TypeREST, audit.Success)}, nil},
		{"no outcome", []audit.Event{intent(1, "a", 2), outcome(2, audit.TypeREST, audit.Success)}, nil},
		{"a delete of what is deleted", []audit.Event{{Type: audit.TypeREST, Interaction: "delete", Action: audit.ActionDelete, Entities: []audit.Entity{{Type: "Patient", ID: "a", Version: 2}}}}, nil},
		{"a read", []audit.Event{{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Correlation: audit.ID{3}, Entities: []audit.Entity{{Type: "Patient", ID: "a", Version: 2}}}}, nil},
	} {
		s := newSweepState()
		var got []writtenVersion
		for i := range test.events {
			got = append(got, s.tell(&test.events[i])...)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	s := newSweepState()
	first := intent(1, "a", 2)
	s.tell(&first)
	s.forgetIntents(first.Recorded.Add(outcomeWait + time.Second))
	if len(s.Pending) != 0 {
		t.Error("an intent without outcome is remembered for ever")
	}
}
