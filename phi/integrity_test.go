package phi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// ways are all the calls that open or believe a stored Observation. Each returns what it disclosed.
func ways(ctx context.Context, c *phi.Caller, records *phi.Records, ref phi.Ref, patient string) map[string]func() (string, error) {
	one := func(res *phi.Resource, err error) (string, error) {
		if res == nil {
			return "", err
		}
		return string(res.JSON.Reveal()), err
	}
	page := func(p *phi.Page, err error) (text string, _ error) {
		if p != nil {
			for _, res := range p.Resources {
				text += string(res.JSON.Reveal())
			}
		}
		return text, err
	}
	bundle := func(kind, url string) func() (string, error) {
		return func() (string, error) {
			result, err := records.Bundle(ctx, c, fmt.Appendf(nil, `{"resourceType":"Bundle","type":%q,"entry":[{"request":{"method":"GET","url":%q}}]}`, kind, url))
			if err != nil {
				return "", err
			}
			e := result.Entries[0]
			text, _ := page(e.Page, nil)
			if e.Resource != nil {
				text += string(e.Resource.JSON.Reveal())
			}
			if e.Err == nil {
				return text, nil
			}
			return text, e.Err
		}
	}
	again := strings.Replace(fmt.Sprintf(weight, patient), "{", `{"id":"`+ref.ID+`",`, 1)
	written := func(w *phi.Written, err error) (string, error) {
		if w == nil {
			return "", err
		}
		return one(w.Resource, err)
	}
	return map[string]func() (string, error){
		"read":    func() (string, error) { return one(records.Read(ctx, c, ref)) },
		"vread":   func() (string, error) { return one(records.ReadVersion(ctx, c, ref, 2)) },
		"history": func() (string, error) { return page(records.History(ctx, c, ref, 0, "")) },
		"search by patient": func() (string, error) {
			return page(records.Search(ctx, c, "Observation", params("patient", patient), false))
		},
		"search by id": func() (string, error) {
			return page(records.Search(ctx, c, "Observation", params("_id", ref.ID), false))
		},
		"search by code": func() (string, error) {
			return page(records.Search(ctx, c, "Observation", params("patient", patient, "code", "29463-7"), false))
		},
		"batch read":         bundle("batch", ref.String()),
		"batch vread":        bundle("batch", ref.String()+"/_history/2"),
		"batch search":       bundle("batch", "Observation?_id="+ref.ID),
		"transaction read":   bundle("transaction", ref.String()),
		"transaction search": bundle("transaction", "Observation?patient="+patient),
		"update":             func() (string, error) { return written(records.Update(ctx, c, ref, []byte(again), 0)) },
		"delete":             func() (string, error) { return written(records.Delete(ctx, c, ref, 0)) },
	}
}

// TestIntegrity damages a row in every way there is, and asks for it in every way there is: nothing of it is disclosed or
// believed, the answer does not say what is wrong, and each try is one alert that names type, id, version and key.
func TestIntegrity(t *testing.T) {
	cellsOnly := map[string]bool{
		"swapped cells": true, "nulled cell": true, "added cell": true, "foreign cell": true, "bit of a cell": true, "bit of a tag": true,
	}
	for name, edit := range map[string]func(mine, other *phi.Sealed){
		"swapped cells": func(s, _ *phi.Sealed) {
			s.Cells[phi.ClassClinical], s.Cells[phi.ClassNarrative] = s.Cells[phi.ClassNarrative], s.Cells[phi.ClassClinical]
		},
		"nulled cell":        func(s, _ *phi.Sealed) { s.Cells[phi.ClassNarrative] = nil },
		"added cell":         func(s, _ *phi.Sealed) { s.Cells[phi.ClassName] = s.Cells[phi.ClassClinical] },
		"foreign cell":       func(s, o *phi.Sealed) { s.Cells[phi.ClassClinical] = o.Cells[phi.ClassClinical] },
		"foreign cells":      func(s, o *phi.Sealed) { s.Cells, s.Seal = o.Cells, o.Seal },
		"foreign row":        func(s, o *phi.Sealed) { ref := s.Ref; *s = *o; s.Ref = ref },
		"patient added":      func(s, _ *phi.Sealed) { s.Patients = append(slices.Clone(s.Patients), "somebody-else") },
		"time":               func(s, _ *phi.Sealed) { s.Updated = s.Updated.Add(time.Second) },
		"digest":             func(s, _ *phi.Sealed) { s.Digest[3] ^= 1 },
		"row":                func(s, _ *phi.Sealed) { s.Row[3] ^= 1 },
		"method":             func(s, _ *phi.Sealed) { s.Method = "POST" },
		"made a tombstone":   func(s, _ *phi.Sealed) { s.Method = "DELETE"; s.Cells = [phi.NumClasses][]byte{} },
		"bit of a cell":      func(s, _ *phi.Sealed) { s.Cells[phi.ClassClinical][20] ^= 1 },
		"bit of a tag":       func(s, _ *phi.Sealed) { s.Cells[phi.ClassClinical][len(s.Cells[phi.ClassClinical])-1] ^= 1 },
		"bit of the seal":    func(s, _ *phi.Sealed) { s.Seal[40] ^= 1 },
		"seal nulled":        func(s, _ *phi.Sealed) { s.Seal = nil },
		"seal cut":           func(s, _ *phi.Sealed) { s.Seal = s.Seal[:len(s.Seal)-1] },
		"token digest":       func(s, _ *phi.Sealed) { s.Seal[2] ^= 1 },
		"another generation": func(s, _ *phi.Sealed) { s.KeyID = 2 },
		"another subject":    func(s, _ *phi.Sealed) { s.Subject = phi.UUID{} },
		"another segment":    func(s, _ *phi.Sealed) { s.Segment = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			ctx := context.Background()
			p := b.create("Patient", adam)
			o, other := b.create("Observation", fmt.Sprintf(weight, p.ID)), b.create("Observation", fmt.Sprintf(weight, p.ID))
			for _, ref := range []phi.Ref{o.Ref, other.Ref} {
				again := strings.Replace(fmt.Sprintf(weight, p.ID), "{", `{"id":"`+ref.ID+`",`, 1)
				if _, err := b.Records.Update(ctx, backend(), ref, []byte(again), 0); err != nil {
					t.Fatal(err)
				}
			}
			var stolen phi.Sealed
			b.Storage.Edit(other.Ref, func(s *phi.Sealed) { stolen = *s })
			b.Storage.Edit(o.Ref, func(s *phi.Sealed) { edit(s, &stolen) })
			row := b.row(o.Ref)
			n := len(b.events())
			c := backend()
			tried := map[string]bool{}
			for way, do := range ways(ctx, c, b.Records, o.Ref, p.ID) {
				switch {
				case row.Deleted() && strings.Contains(way, "search"):
					continue // the storage does not offer it
				case cellsOnly[name] && (way == "update" || way == "delete"):
					continue // a write replaces the cells, and believes what is beside them
				}
				tried[way], c.RequestID = true, way
				text, err := do()
				e := wantKind(t, err, phi.Integrity)
				if got := e.Issues[0].Diagnostics; got != "the stored record failed its integrity check and is withheld" {
					t.Errorf("%s: says %q", way, got)
				}
				if strings.Contains(text, o.ID) {
					t.Errorf("%s: disclosed %q", way, text)
				}
			}
			alerts := map[string]int{}
			for _, e := range b.events()[n:] {
				if e.Type != audit.TypeSecurityAlert || e.Interaction != "phi.integrity_failure" {
					continue
				}
				alerts[e.RequestID]++
				if len(e.Entities) < 2 || e.Entities[0] != (audit.Entity{Type: "Observation", ID: o.ID, Version: row.Version}) {
					t.Errorf("%s: alert about %+v", e.RequestID, e.Entities)
				}
				if key := e.Entities[len(e.Entities)-1]; key.Type != "key" || key.Version != int64(row.KeyID) || key.ID != row.Key.KEK {
					t.Errorf("%s: alert names key %+v", e.RequestID, key)
				}
			}
			for way := range tried {
				if alerts[way] != 1 {
					t.Errorf("%s: %d alerts, want 1", way, alerts[way])
				}
			}
		})
	}
}

// TestRollback puts one old cell back into an updated row (experiment 4, first half).
func TestRollback(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	p := b.create("Patient", adam)
	old := *b.row(p.Ref)
	again := strings.Replace(adam, "{", `{"id":"`+p.ID+`",`, 1)
	if _, err := b.Records.Update(ctx, backend(), p.Ref, []byte(again), 0); err != nil {
		t.Fatal(err)
	}
	good := *b.row(p.Ref)
	for class := range phi.Class(phi.NumClasses) {
		b.Storage.Edit(p.Ref, func(s *phi.Sealed) { s.Cells = good.Cells; s.Cells[class] = old.Cells[class] })
		_, err := b.Records.Read(ctx, backend(), p.Ref)
		if good.Cells[class] == nil {
			if err != nil {
				t.Errorf("%s: NULL in the place of NULL: %v", class, err)
			}
			continue
		}
		wantKind(t, err, phi.Integrity)
	}
}

// TestAlarm fails three times within a minute, then more slowly.
func TestAlarm(t *testing.T) {
	now := time.Now()
	var log bytes.Buffer
	room := phitest.Open(t, phitest.Options{Now: func() time.Time { return now }, Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	ctx := context.Background()
	w, err := room.Records.Create(ctx, backend(), "Patient", []byte(adam), nil)
	if err != nil {
		t.Fatal(err)
	}
	room.Storage.Edit(w.Ref, func(s *phi.Sealed) { s.Seal[50] ^= 1 })
	rings := func() int { return strings.Count(log.String(), "again and again") }
	for i, step := range []struct {
		after  time.Duration
		raised bool
		rings  int
	}{
		{0, false, 0}, {20 * time.Second, false, 0}, {20 * time.Second, true, 1}, {10 * time.Second, true, 1}, // said once a minute
		{59 * time.Second, false, 1}, {30 * time.Second, false, 1}, {29 * time.Second, true, 2},
	} {
		now = now.Add(step.after)
		if _, err := room.Records.Read(ctx, backend(), w.Ref); !errors.As(err, new(*phi.Error)) {
			t.Fatal(err)
		}
		if s := room.Records.Stats(); s.IntegrityAlarm != step.raised || rings() != step.rings || s.IntegrityFailures != uint64(i)+1 {
			t.Errorf("failure %d: alarm %v, rang %d times, %d failures; want %v and %d", i+1, s.IntegrityAlarm, rings(), s.IntegrityFailures, step.raised, step.rings)
		}
	}
	now = now.Add(time.Minute)
	if room.Records.Stats().IntegrityAlarm {
		t.Error("the alarm does not end")
	}
}

// TestForgedTokens puts A's index tokens on B and searches for A (experiment 21): A alone is returned, and an event names B.
// Candidates that the index offers rightly, and that do not match all the same, are no alert.
func TestForgedTokens(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	a := b.create("Patient", adam)
	victim := b.create("Patient", `{"resourceType":"Patient","name":[{"family":"Lindqvistsson"}],"birthDate":"1990-10-11","identifier":[{"system":"http://hospital.test/mrn","value":"MRN-2"}]}`)
	search := func(pairs ...string) (ids []string, alerts []audit.Event) {
		for _, e := range b.during(func() {
			page, err := b.Records.Search(ctx, backend(), "Patient", params(pairs...), false)
			if err != nil {
				t.Fatal(pairs, err)
			}
			for _, r := range page.Resources {
				ids = append(ids, r.ID)
			}
		}) {
			if e.Interaction == "phi.integrity_failure" {
				alerts = append(alerts, e)
			}
		}
		return ids, alerts
	}
	searches := [][]string{
		{"identifier", "http://hospital.test/mrn|MRN-1"}, {"identifier", "MRN-1"}, {"phone", "555-014-0001"}, {"birthdate", "1970-02-03"},
		{"given", "adam"}, {"family", "lindqvist", "birthdate", "1970-02-03"},
	}
	for _, s := range append(searches, []string{"family:exact", "Lindqvist"}, []string{"family", "lindqvistsso"}) {
		if _, alerts := search(s...); len(alerts) > 0 {
			t.Errorf("%v, before anything was forged: %+v", s, alerts)
		}
	}
	b.Storage.Forge(victim.Ref, a.Ref)
	for _, s := range searches {
		ids, alerts := search(s...)
		if !slices.Equal(ids, []string{a.ID}) {
			t.Errorf("%v found %v, want %s alone", s, ids, a.ID)
		}
		if len(alerts) != 1 || alerts[0].Type != audit.TypeSecurityAlert || alerts[0].Entities[0] != (audit.Entity{Type: "Patient", ID: victim.ID, Version: 1}) {
			t.Errorf("%v: alerts %+v, want one about %s", s, alerts, victim.ID)
		}
	}
	if n := b.Records.Stats().IntegrityFailures; n != uint64(len(searches)) {
		t.Errorf("%d failures counted", n)
	}
	// A conditional create is not kept from its identifier by a forged token.
	_, err := b.Records.Create(ctx, backend(), "Patient", []byte(adam), params("identifier", "http://hospital.test/mrn|MRN-1"))
	if err != nil {
		t.Error(err)
	}
}
