package audit

import "slices"

// Receipt is the proof that an event is durable at its level. Only Log makes one; the zero Receipt covers nothing.
//
// It keeps the first event apart: a receipt for one, as nearly all are, needs no slice that outlives the call.
type Receipt struct {
	first *Event
	rest  []*Event
}

func receiptFor(events []*Event) Receipt {
	return Receipt{first: events[0], rest: append([]*Event(nil), events[1:]...)}
}

func (r Receipt) all(yield func(*Event) bool) {
	if r.first == nil || !yield(r.first) {
		return
	}
	for _, e := range r.rest {
		if !yield(e) {
			return
		}
	}
}

// Covers reports whether the receipt is for an event that names the record, or that names the patient to whose
// compartment the record belongs, or (for a search whose hits are not known yet) the type: an event with
// Interaction "search-type" and an Entity of that type without an ID. An event that tells of a refusal or a failure
// (an Outcome above Success) discloses nothing and covers nothing.
func (r Receipt) Covers(entityType, id, patient string) bool {
	for e := range r.all {
		if e.Outcome > Success {
			continue
		}
		if patient != "" && e.Patient == patient {
			return true
		}
		for i := range e.Entities {
			named := &e.Entities[i]
			if named.Type == entityType && (id != "" && named.ID == id || named.ID == "" && e.Interaction == "search-type") {
				return true
			}
		}
	}
	return false
}

// Events are the events that the receipt is for; do not change them.
func (r Receipt) Events() []*Event { return slices.Collect(r.all) }
