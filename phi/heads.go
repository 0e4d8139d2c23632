package phi

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Head is what the audit trail says of a record: the newest version that was written, and which of the 64 versions up to that
// were (bit i of Seen: Version - i). Instances ship their events when they can, so versions may come in any order.
type Head struct {
	Ref
	Version int64
	Seen    uint64
}

// note takes in that a version was written. It returns false when that one was written before: the record was rolled back in
// between, and whoever wrote it again could not know. What the trail said last counts from then on.
func (h *Head) note(version int64) bool {
	switch ahead := version - h.Version; {
	case ahead >= 64:
		h.Version, h.Seen = version, 1
	case ahead > 0:
		h.Version, h.Seen = version, h.Seen<<ahead|1
	case ahead > -64 && h.Seen>>-ahead&1 == 0:
		h.Seen |= 1 << -ahead
	default:
		h.Version, h.Seen = version, 1
		return false
	}
	return true
}

// headSum is the sum (exclusive or) of a keyed digest of each head. It is stored sealed only: who sees sums could find changes
// that cancel out.
type headSum [sha256.Size]byte

func (s *headSum) add(key []byte, h Head) {
	if h.Version == 0 {
		return // there is none
	}
	mac := hmac.New(sha256.New, key)
	var b []byte
	for _, text := range [...]string{h.Type, h.ID} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
		b = append(b, text...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(h.Version))
	mac.Write(binary.BigEndian.AppendUint64(b, h.Seen))
	for i, x := range mac.Sum(nil) {
		s[i] ^= x
	}
}

// intended is a version that an event announces, until another one tells what became of it.
type intended struct {
	Correlation audit.ID  `json:"correlation"`
	Type        string    `json:"type"`
	ID          string    `json:"id"`
	Version     int64     `json:"version"`
	At          time.Time `json:"at"`
}

// outcomeWait is how long an announced version is remembered whose outcome does not come.
const outcomeWait = 24 * time.Hour

// written is a version that was committed, as the trail tells it.
type writtenVersion struct {
	Ref
	version int64
}

// tell takes in one event and returns the versions that it says were committed. A write is an Intent of each version, and one
// event with the outcome of all that have its correlation; other events say nothing about versions.
func (s *sweepState) tell(e *audit.Event) (committed []writtenVersion) {
	if e.Type == audit.TypePolicy && e.Interaction == "patient-shred" && e.Outcome == audit.Success {
		for _, about := range e.Entities {
			if about.Type == "Erasure" {
				s.Erased[about.ID] = e.Patient
			}
		}
		return nil
	}
	if e.Correlation == (audit.ID{}) || e.Type == audit.TypeSecurityAlert {
		return nil
	}
	own := writtenVersion{}
	if changes := e.Action == audit.ActionCreate || e.Action == audit.ActionUpdate || e.Action == audit.ActionDelete; changes && len(e.Entities) > 0 {
		if about := e.Entities[0]; about.Version > 0 && fhir.Known(about.Type) {
			own = writtenVersion{Ref{about.Type, about.ID}, about.Version}
		}
	}
	if e.Outcome == audit.Intent {
		if own.version > 0 {
			i := intended{e.Correlation, own.Type, own.ID, own.version, e.Recorded}
			// One event for each patient of a record.
			if same := s.Pending[e.Correlation.String()]; !slices.ContainsFunc(same, func(o intended) bool { return o.Type == i.Type && o.ID == i.ID && o.Version == i.Version }) {
				s.Pending[e.Correlation.String()] = append(same, i)
			}
		}
		return nil
	}
	announced := s.Pending[e.Correlation.String()]
	delete(s.Pending, e.Correlation.String())
	if e.Outcome != audit.Success {
		return nil
	}
	for _, i := range announced {
		committed = append(committed, writtenVersion{Ref{i.Type, i.ID}, i.Version})
	}
	if own.version > 0 && !slices.Contains(committed, own) {
		committed = append(committed, own)
	}
	return committed
}

// forgetIntents drops what was announced long before now and never told of.
func (s *sweepState) forgetIntents(now time.Time) {
	maps.DeleteFunc(s.Pending, func(_ string, announced []intended) bool { return now.Sub(announced[0].At) > outcomeWait })
}

// Sizes of a step through the trail.
const (
	trailSpans  = 256
	trailEvents = 20_000
)

// readTrail brings the heads up to what was the newest signed leaf of the trail when it began. It reads only what is in the log's
// tree, in its order, and so nothing twice; batches whose rows are not those that the tree holds are findings.
func (w *sweeping) readTrail(ctx context.Context) error {
	for began, ahead := w.now(), false; !ahead; {
		spans, err := w.trail.Spans(ctx, w.state.Tree, trailSpans)
		if err != nil {
			return fmt.Errorf("reading the trail: %w", err)
		}
		if len(spans) == 0 {
			return nil
		}
		was, tree, events := w.stored, w.state.Tree, 0
		var committed []writtenVersion
		for _, span := range spans {
			if events > trailEvents {
				break
			}
			rows, err := w.trail.Rows(ctx, span)
			if err != nil {
				return fmt.Errorf("reading the trail: %w", err)
			}
			if len(rows) > 0 { // else it was pruned, or removed: the patrol of the trail knows
				b := audit.Batch{Stream: span.Stream, First: span.First, Prev: span.Prev, Rows: rows}
				b.Seal()
				if b.Chain != span.Chain {
					w.find(Finding{Kind: FindingTrail})
				}
			}
			for i := range rows {
				if i > 0 && rows[i].Seq == rows[i-1].Seq {
					continue // put in twice: the chain says so
				}
				committed = append(committed, w.state.tell(&rows[i].Event)...)
			}
			if len(rows) > 0 {
				w.state.forgetIntents(rows[len(rows)-1].PartTime)
				ahead = rows[len(rows)-1].PartTime.After(began) // whoever writes all the time would keep it here
			}
			events += len(rows)
			tree = span.Index + int64(span.Count)
		}
		heads, err := w.apply(ctx, committed)
		if err != nil {
			return err
		}
		w.state.Tree = tree
		if err := w.tellFindings(ctx); err != nil {
			return err
		}
		if err := w.save(ctx, was, heads); err != nil {
			return err
		}
	}
	return nil
}

// apply brings heads up to date, and the sums with them. It returns those that changed.
func (w *sweeping) apply(ctx context.Context, committed []writtenVersion) ([]Head, error) {
	var refs []Ref
	asked := map[Ref]bool{}
	for _, c := range committed {
		if !asked[c.Ref] {
			asked[c.Ref] = true
			refs = append(refs, c.Ref)
		}
	}
	if len(refs) == 0 {
		return nil, nil
	}
	stored, err := w.storage.Heads(ctx, refs)
	if err != nil {
		return nil, err
	}
	now := map[Ref]Head{}
	for _, h := range stored {
		now[h.Ref] = h
	}
	before := maps.Clone(now)
	for _, c := range committed {
		h, known := now[c.Ref]
		if !known {
			h = Head{Ref: c.Ref, Version: c.version, Seen: 1}
		} else if !h.note(c.version) {
			w.find(Finding{Kind: FindingRewritten, Ref: c.Ref, Version: c.version, Trail: before[c.Ref].Version})
		}
		now[c.Ref] = h
	}
	changed := make([]Head, 0, len(refs))
	for _, ref := range refs {
		old, h := before[ref], now[ref]
		if old == h {
			continue
		}
		changed = append(changed, h)
		w.state.Sum.add(w.key, old)
		w.state.Sum.add(w.key, h)
		if w.state.Walk.passed(ref) {
			w.state.Walk.Sum.add(w.key, old)
			w.state.Walk.Sum.add(w.key, h)
		}
	}
	return changed, nil
}
