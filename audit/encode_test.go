package audit_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
)

func TestEncodeRoundTrip(t *testing.T) {
	text := rapid.StringMatching(`[^\x00]*`)
	texts := rapid.Custom(func(t *rapid.T) []string {
		return append([]string(nil), rapid.SliceOfN(text, 0, 3).Draw(t, "texts")...)
	})
	rapid.Check(t, func(t *rapid.T) {
		str := func(name string) string { return text.Draw(t, name) }
		e := audit.Event{
			ID: audit.ID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id")), Recorded: time.UnixMicro(rapid.Int64Range(-1e15, 1e16).Draw(t, "recorded")).UTC(),
			Type: audit.Type(str("type")), Interaction: str("interaction"), Action: audit.Action(rapid.Byte().Draw(t, "action")),
			Outcome: audit.Outcome(rapid.Int8().Draw(t, "outcome")), OutcomeDesc: str("desc"),
			Agent:   audit.Agent{User: str("user"), Name: str("name"), Client: str("client"), Session: str("session"), Roles: texts.Draw(t, "roles"), Network: str("network"), FHIRUser: str("fhir")},
			Purpose: str("purpose"), Patient: str("patient"), Classes: texts.Draw(t, "classes"),
			Decision:  audit.Decision{Allowed: rapid.Bool().Draw(t, "allowed"), Rule: str("rule"), Reason: str("reason"), View: str("view"), Policy: rapid.Int64().Draw(t, "policy")},
			RequestID: str("request"), Correlation: audit.ID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "correlation")),
			Query:  append([]byte(nil), rapid.SliceOf(rapid.Byte()).Draw(t, "query")...),
			Timing: audit.Timing{Total: rapid.Uint32().Draw(t, "total"), Audit: rapid.Uint32().Draw(t, "audit")},
		}
		for range rapid.IntRange(0, 3).Draw(t, "entities") {
			e.Entities = append(e.Entities, audit.Entity{Type: str("entity"), ID: str("id"), Version: rapid.Int64().Draw(t, "version")})
		}
		body, err := audit.Encode(&e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := audit.DecodeEvent(body); err != nil || !reflect.DeepEqual(got, e) {
			t.Fatalf("%+v came back as %+v, %v", e, got, err)
		}
	})
}

func TestEncodeRefusesAndReplaces(t *testing.T) {
	if _, err := audit.Encode(&audit.Event{Query: make([]byte, audit.MaxBody)}); !errors.Is(err, audit.ErrTooLarge) {
		t.Errorf("an event over the limit: %v", err)
	}
	body, err := audit.Encode(&audit.Event{RequestID: "a\x00b\xff", Agent: audit.Agent{User: "\xf0\x28"}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := audit.DecodeEvent(body)
	if err != nil || e.RequestID != "a\uFFFDb\uFFFD" || !strings.HasPrefix(e.Agent.User, "\uFFFD") {
		t.Errorf("text that no database holds: %q %q, %v", e.RequestID, e.Agent.User, err)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	body, err := audit.Encode(read("p1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{1})
	f.Add(append(body, 0))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := audit.DecodeEvent(body)
		if err != nil {
			return
		}
		again, err := audit.Encode(&e)
		if err != nil || !bytes.Equal(again, body) {
			t.Errorf("%x encodes as %x, %v", body, again, err)
		}
	})
}

func TestCheckNoticesEdits(t *testing.T) {
	edits := map[string]func(b *audit.Batch){
		"column":   func(b *audit.Batch) { b.Rows[1].Event.Patient = "other" },
		"body":     func(b *audit.Batch) { b.Rows[1].Body[30] ^= 1 },
		"salt":     func(b *audit.Batch) { b.Rows[1].Salt[0] ^= 1 },
		"leaf":     func(b *audit.Batch) { b.Rows[1].Leaf[0] ^= 1 },
		"removed":  func(b *audit.Batch) { b.Rows = append(b.Rows[:1], b.Rows[2:]...) },
		"cut":      func(b *audit.Batch) { b.Rows = b.Rows[:2] },
		"swapped":  func(b *audit.Batch) { b.Rows[0], b.Rows[1] = b.Rows[1], b.Rows[0] },
		"stream":   func(b *audit.Batch) { b.Stream[0] ^= 1 },
		"previous": func(b *audit.Batch) { b.Prev[0] ^= 1 },
	}
	for name, edit := range edits {
		var seen catcher
		l := open(t, audit.Config{Dir: t.TempDir(), Storage: &seen})
		if _, err := l.Record(t.Context(), audit.Power, read("p1"), read("p2")); err != nil {
			t.Fatal(err)
		}
		ship(t, l)
		drain(t, l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		b := seen.batches[0]
		if err := audit.Check(b); err != nil {
			t.Fatalf("untouched: %v", err)
		}
		edit(&b)
		if err := audit.Check(b); !errors.Is(err, audit.ErrTampered) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDetailHasOneSpelling(t *testing.T) {
	plain, err := audit.Encode(&audit.Event{RequestID: "r"})
	if err != nil || plain[0] != 1 {
		t.Fatalf("an event without detail: %x, %v", plain, err)
	}
	with, err := audit.Encode(&audit.Event{RequestID: "r", Detail: []byte{7}})
	if err != nil || with[0] != 2 || !bytes.Equal(with[1:], append(bytes.Clone(plain[1:]), 1, 7)) {
		t.Fatalf("an event with detail: %x, %v", with, err)
	}
	if e, err := audit.DecodeEvent(with); err != nil || !bytes.Equal(e.Detail, []byte{7}) {
		t.Errorf("came back as %x, %v", e.Detail, err)
	}
	empty := append(bytes.Clone(plain), 0)
	empty[0] = 2
	if _, err := audit.DecodeEvent(empty); err == nil {
		t.Error("an empty detail is a second spelling")
	}
}
