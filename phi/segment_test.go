package phi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

const actCode = "http://terminology.hl7.org/CodeSystem/v3-ActCode"

// labelled is an Observation of a patient with security labels, each "system|code".
func labelled(patient string, labels ...string) string {
	if len(labels) == 0 {
		return fmt.Sprintf(weight, patient)
	}
	var security []map[string]string
	for _, l := range labels {
		system, code, _ := strings.Cut(l, "|")
		label := map[string]string{"code": code}
		if system != "" {
			label["system"] = system
		}
		security = append(security, label)
	}
	text, err := json.Marshal(security)
	if err != nil {
		panic(err)
	}
	return strings.Replace(fmt.Sprintf(weight, patient), `{`, `{"meta":{"security":`+string(text)+`},`, 1)
}

// row is what is stored of a record's current version.
func (b *bench) row(ref phi.Ref) *phi.Sealed {
	b.t.Helper()
	row, err := b.Storage.Fetch(context.Background(), ref, phi.AllClasses)
	if err != nil {
		b.t.Fatal(err)
	}
	return row
}

// TestSegments holds which labels put a record where, and that each segment has a key of its own under the same subject.
func TestSegments(t *testing.T) {
	b := newBench(t)
	patient := b.create("Patient", adam)
	subject := b.row(patient.Ref).Subject
	wrapped := map[string]uint16{}
	for _, c := range []struct {
		labels []string
		want   uint16
	}{
		{nil, 0},
		{[]string{actCode + "|HIV"}, 0},
		{[]string{"http://terminology.hl7.org/CodeSystem/v3-Confidentiality|R"}, 0},
		{[]string{"http://example.test/ethnicity|ETH"}, 0},
		{[]string{actCode + "|42CFRPart2"}, 1},
		{[]string{actCode + "|ETH"}, 1},
		{[]string{actCode + "|ETHUD"}, 1},
		{[]string{actCode + "|OPIOIDUD"}, 1},
		{[]string{"http://hl7.org/fhir/v3/ActCode|SUD"}, 1},
		{[]string{"urn:oid:2.16.840.1.113883.5.4|SUD"}, 1},
		{[]string{"http://hl7.org/fhir/v3/ActUSPrivacyLaw|42CFRPart2"}, 1},
		{[]string{"|42CFRPart2"}, 1},
		{[]string{actCode + "|HIV", actCode + "|SUD"}, 1},
		{[]string{actCode + "|PSYTHPN"}, 2},
		{[]string{actCode + "|HIPAAPsyNotes"}, 2},
		{[]string{actCode + "|PSYTHPN", actCode + "|42CFRPart2"}, 2},
		{[]string{actCode + "|42CFRPart2", actCode + "|PSYTHPN"}, 2},
	} {
		row := b.row(b.create("Observation", labelled(patient.ID, c.labels...)).Ref)
		if row.Segment != c.want || row.Subject != subject {
			t.Errorf("labels %v: segment %d of %s, want %d of the patient", c.labels, row.Segment, row.Subject, c.want)
		}
		wrapped[string(row.Key.Wrapped)] = row.Segment
	}
	if len(wrapped) != 3 {
		t.Errorf("three segments have %d keys", len(wrapped))
	}
	b.Storage.Edit(patient.Ref, func(s *phi.Sealed) { s.Segment = 1 })
	_, err := b.Records.Read(context.Background(), backend(), patient.Ref)
	wantKind(t, err, phi.Integrity)
}

// TestLabelChange moves a record from key to key with the write that changes the label; all versions stay readable, and the
// tombstone stays where the last version was.
func TestLabelChange(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	patient := b.create("Patient", adam)
	o := b.create("Observation", labelled(patient.ID))
	for i, c := range []struct {
		label string
		want  uint16
	}{{actCode + "|SUD", 1}, {actCode + "|PSYTHPN", 2}, {"", 0}, {actCode + "|ETH", 1}} {
		var labels []string
		if c.label != "" {
			labels = []string{c.label}
		}
		text := strings.Replace(labelled(patient.ID, labels...), `{`, `{"id":"`+o.ID+`",`, 1)
		if _, err := b.Records.Update(ctx, backend(), o.Ref, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
		if row := b.row(o.Ref); row.Segment != c.want || row.Version != int64(i)+2 {
			t.Errorf("version %d is in segment %d, want %d", row.Version, row.Segment, c.want)
		}
	}
	if _, err := b.Records.Delete(ctx, backend(), o.Ref, 0); err != nil {
		t.Fatal(err)
	}
	if row := b.row(o.Ref); row.Segment != 1 {
		t.Errorf("tombstone is in segment %d, want 1", row.Segment)
	}
	history, err := b.Records.History(ctx, backend(), o.Ref, 0, "")
	if err != nil || len(history.Resources) != 6 {
		t.Fatal(history, err)
	}
	for _, r := range history.Resources {
		if !r.Deleted && !strings.Contains(string(r.JSON.Reveal()), "secretly weighed") {
			t.Errorf("version %d does not open", r.Version)
		}
	}
}

// TestSegmentKeyOnce lets writers meet at the first record of a segment, alone and in transactions that bring the patient too.
func TestSegmentKeyOnce(t *testing.T) {
	b := newBench(t)
	patient := b.create("Patient", adam)
	var wg sync.WaitGroup
	refs := make([]phi.Ref, 16)
	for i := range refs {
		wg.Go(func() {
			w, err := b.Records.Create(context.Background(), backend(), "Observation", []byte(labelled(patient.ID, actCode+"|SUD")), nil)
			if err != nil {
				t.Error(err)
				return
			}
			refs[i] = w.Ref
		})
	}
	wg.Wait()
	for _, ref := range refs {
		if !t.Failed() && string(b.row(ref).Key.Wrapped) != string(b.row(refs[0]).Key.Wrapped) {
			t.Error("two keys were made for one segment")
		}
	}

	arriving := fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[
		{"fullUrl":"urn:uuid:6b1f2c1e-0d3a-4b52-9c0e-0c2f8f3f3c01","resource":%s,"request":{"method":"POST","url":"Patient"}},
		{"resource":%s,"request":{"method":"POST","url":"Observation"}},
		{"resource":%s,"request":{"method":"POST","url":"Observation"}}]}`,
		strings.Replace(adam, `{`, `{"meta":{"security":[{"system":"`+actCode+`","code":"ETH"}]},`, 1),
		strings.ReplaceAll(labelled("x", actCode+"|SUD"), "Patient/x", "urn:uuid:6b1f2c1e-0d3a-4b52-9c0e-0c2f8f3f3c01"),
		strings.ReplaceAll(labelled("x"), "Patient/x", "urn:uuid:6b1f2c1e-0d3a-4b52-9c0e-0c2f8f3f3c01"))
	result, err := b.Records.Bundle(context.Background(), backend(), []byte(arriving))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint16{1, 1, 0} {
		w := result.Entries[i].Written
		if row := b.row(w.Ref); row.Segment != want || row.Subject != b.row(result.Entries[0].Written.Ref).Subject {
			t.Errorf("entry %d is in segment %d, want %d of the same patient", i, row.Segment, want)
		}
		if _, err := b.Records.Read(context.Background(), backend(), w.Ref); err != nil {
			t.Error(err)
		}
	}
}

// TestNoKeyForTheErased holds the contract of EnsureKey: a segment's key is made beside the general key only.
func TestNoKeyForTheErased(t *testing.T) {
	s := phitest.NewStorage()
	ctx := context.Background()
	k := phi.WrappedKey{Subject: phi.UUID{1}, Segment: 1, KeyID: 1, KEK: "kek-1", Wrapped: make([]byte, 60)}
	if _, err := s.EnsureKey(ctx, k); !errors.Is(err, phi.ErrNotFound) {
		t.Errorf("a segment's key without a general key: %v, want ErrNotFound", err)
	}
	if _, err := s.Key(ctx, k.Subject, k.Segment); !errors.Is(err, phi.ErrNotFound) {
		t.Errorf("a key was stored all the same: %v", err)
	}
	k.Subject = phi.UUID{}
	if _, err := s.EnsureKey(ctx, k); err != nil {
		t.Errorf("the organisation's: %v", err)
	}
}
