package audit_test

import (
	"bytes"
	"encoding/hex"
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
		e.Detail = append([]byte(nil), rapid.SliceOf(rapid.Byte()).Draw(t, "detail")...)
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

// bodyV1 is an event as the journals of the first release hold it. Its bytes were hashed: they never change.
const bodyV1 = "010102030000000000000000000000000000060a24181e4000047265737404726561645200000964722d726976657261000361707003732d310109636c696e696369616e093132372e302e302e3100055452454154027031010750617469656e740270310202046e616d6508636c696e6963616c0113636c696e696369616e2f74726561746d656e7407616c6c6f7765640466756c6c0604722d70310000000000000000000000000000000000000000000000"

func TestEncodeVersions(t *testing.T) {
	golden, err := hex.DecodeString(bodyV1)
	if err != nil {
		t.Fatal(err)
	}
	old := read("p1")
	old.ID, old.Recorded = audit.ID{1, 2, 3}, time.UnixMicro(1_700_000_000_000_000).UTC()
	e, err := audit.DecodeEvent(golden)
	if err != nil || !reflect.DeepEqual(&e, old) {
		t.Errorf("a body of version 1 says %+v, %v", e, err)
	}
	if body, err := audit.Encode(&e); err != nil || !bytes.Equal(body, golden) {
		t.Errorf("a body of version 1 is encoded as %x, %v", body, err)
	}
	e.Detail = []byte("d")
	body, err := audit.Encode(&e)
	if want := append(append([]byte{2}, golden[1:]...), 1, 'd'); err != nil || !bytes.Equal(body, want) {
		t.Errorf("with Detail it is %x, %v", body, err)
	}
	if _, err := audit.DecodeEvent(append(append([]byte{2}, golden[1:]...), 0)); err == nil {
		t.Error("a second spelling of an event without Detail was taken")
	}
}

func FuzzDecodeEvent(f *testing.F) {
	body, err := audit.Encode(read("p1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{1})
	f.Add(append(append([]byte{2}, body[1:]...), 1, 7))
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
