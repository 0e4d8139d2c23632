package phi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

const (
	adam = `{"resourceType":"Patient","identifier":[{"system":"http://hospital.test/mrn","value":"MRN-1"}],` +
		`"name":[{"family":"Lindqvist","given":["Adàm"]}],"telecom":[{"system":"phone","value":"555-014-0001"}],"gender":"male","birthDate":"1970-02-03"}`
	weight = `{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"29463-7"}]},` +
		`"subject":{"reference":"Patient/%s"},"effectiveDateTime":"2024-05-06","valueQuantity":{"value":71.10,"unit":"kg"},"note":[{"text":"secretly weighed"}]}`
)

// bench is a room with a trail and a few callers.
type bench struct {
	*phitest.Room
	t     *testing.T
	trail *audittest.Storage
}

func newBench(t *testing.T) *bench {
	trail := &audittest.Storage{}
	return &bench{phitest.Open(t, phitest.Options{Trail: trail}), t, trail}
}

func backend() *phi.Caller { return phitest.Caller(phitest.Principal("backend", "")) }

func clinician(id string) *phi.Caller {
	return phitest.Caller(phitest.Principal("clinician", "Practitioner/"+id))
}

func (b *bench) create(resourceType, body string) *phi.Written {
	b.t.Helper()
	w, err := b.Records.Create(context.Background(), backend(), resourceType, []byte(body), nil)
	if err != nil {
		b.t.Fatalf("creating %s: %v", resourceType, err)
	}
	return w
}

// events drains the journal and returns everything that was recorded, oldest first.
func (b *bench) events() []audit.Event {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := b.Log.Drain(ctx); err != nil {
		b.t.Fatalf("draining: %v", err)
	}
	var events []audit.Event
	var after audit.Position
	for {
		page, err := b.trail.Find(ctx, audit.Query{After: after, Limit: audit.MaxPage})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, s := range page.Events {
			events = append([]audit.Event{s.Event}, events...)
		}
		if after = page.Next; after == (audit.Position{}) {
			return events
		}
	}
}

// during returns the events that do recorded.
func (b *bench) during(do func()) []audit.Event {
	b.t.Helper()
	n := len(b.events())
	do()
	return b.events()[n:]
}

func wantKind(t *testing.T, err error, kind phi.Kind) *phi.Error {
	t.Helper()
	e, ok := errors.AsType[*phi.Error](err)
	if !ok {
		t.Fatalf("got error %v, want a *phi.Error of kind %v", err, kind)
	}
	if e.Kind != kind || len(e.Issues) == 0 {
		t.Fatalf("got kind %v with %d issues (%v), want %v", e.Kind, len(e.Issues), err, kind)
	}
	return e
}

func params(pairs ...string) (p []phi.Param) {
	for i := 0; i < len(pairs); i += 2 {
		p = append(p, phi.Param{Name: pairs[i], Value: pairs[i+1]})
	}
	return p
}

// content is a resource without id and meta, compact.
func content(t *testing.T, text []byte) string {
	t.Helper()
	var out bytes.Buffer
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			t.Fatal(err)
		}
		if name == "id" || name == "meta" || name == "resourceType" {
			continue
		}
		fmt.Fprintf(&out, "%q:", name)
		if err := json.Compact(&out, raw); err != nil {
			t.Fatal(err)
		}
		out.WriteByte(',')
	}
	return out.String()
}

func TestLifeOfARecord(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	p := b.create("Patient", adam)
	if !p.Created || p.Version != 1 || p.ID == "" {
		t.Fatalf("created %+v", p)
	}
	got, err := b.Records.Read(ctx, backend(), p.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if content(t, got.JSON.Reveal()) != content(t, []byte(adam)) {
		t.Errorf("read back %s", got.JSON.Reveal())
	}
	if want := fmt.Sprintf(`{"resourceType":"Patient","id":%q,"meta":{"versionId":"1","lastUpdated":%q},`, p.ID,
		got.Updated.Format("2006-01-02T15:04:05.000Z")); !strings.HasPrefix(string(got.JSON.Reveal()), want) {
		t.Errorf("JSON starts %.150s, want %s", got.JSON, want)
	}

	second := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"`+p.ID+`","meta":{"versionId":"77","profile":["http://p.test"]}`, 1)
	second = strings.Replace(second, `"male"`, `"other"`, 1)
	if _, err := b.Records.Update(ctx, backend(), p.Ref, []byte(second), 7); err != nil {
		wantKind(t, err, phi.PreconditionFailed)
	} else {
		t.Error("an update of version 7 went through")
	}
	u, err := b.Records.Update(ctx, backend(), p.Ref, []byte(second), 1)
	if err != nil || u.Version != 2 || u.Created {
		t.Fatalf("updated %+v: %v", u, err)
	}
	if !strings.Contains(string(u.JSON.Reveal()), `"meta":{"versionId":"2","lastUpdated":"`) || !strings.Contains(string(u.JSON.Reveal()), `"profile":["http://p.test"]}`) {
		t.Errorf("meta of %.200s", u.JSON.Reveal())
	}
	old, err := b.Records.ReadVersion(ctx, backend(), p.Ref, 1)
	if err != nil || !strings.Contains(string(old.JSON.Reveal()), `"male"`) {
		t.Errorf("version 1: %v", err)
	}
	_, err = b.Records.ReadVersion(ctx, backend(), p.Ref, 9)
	wantKind(t, err, phi.NotFound)

	d, err := b.Records.Delete(ctx, backend(), p.Ref, 0)
	if err != nil || d.Version != 3 {
		t.Fatalf("deleted %+v: %v", d, err)
	}
	if d, err = b.Records.Delete(ctx, backend(), p.Ref, 0); err != nil || !d.Unchanged {
		t.Errorf("deleted again: %+v, %v", d, err)
	}
	_, err = b.Records.Read(ctx, backend(), p.Ref)
	wantKind(t, err, phi.Gone)

	h, err := b.Records.History(ctx, backend(), p.Ref, 2, "")
	if err != nil || len(h.Resources) != 2 || !h.Resources[0].Deleted || h.Resources[1].Version != 2 || h.Next == "" {
		t.Fatalf("history: %+v, %v", h, err)
	}
	h, err = b.Records.History(ctx, backend(), p.Ref, 2, h.Next)
	if err != nil || len(h.Resources) != 1 || h.Resources[0].Method != "POST" || h.Next != "" {
		t.Fatalf("history, page 2: %+v, %v", h, err)
	}

	if u, err = b.Records.Update(ctx, backend(), p.Ref, []byte(second), 0); err != nil || !u.Created || u.Version != 4 {
		t.Errorf("update after delete: %+v, %v", u, err)
	}
}

func TestUpdateAsCreate(t *testing.T) {
	b := newBench(t)
	body := `{"resourceType":"Organization","id":"org-1","name":"Clinic"}`
	w, err := b.Records.Update(context.Background(), backend(), phi.Ref{Type: "Organization", ID: "org-1"}, []byte(body), 0)
	if err != nil || !w.Created || w.Version != 1 {
		t.Fatalf("%+v, %v", w, err)
	}
	_, err = b.Records.Update(context.Background(), backend(), phi.Ref{Type: "Organization", ID: "org-2"}, []byte(body), 0)
	wantKind(t, err, phi.Invalid)
	_, err = b.Records.Update(context.Background(), backend(), phi.Ref{Type: "Organization", ID: "org-2"},
		[]byte(strings.Replace(body, "org-1", "org-2", 1)), 3)
	wantKind(t, err, phi.PreconditionFailed)
}

func TestBadInput(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	planted := "Zyxwvut"
	for name, c := range map[string]struct {
		kind phi.Kind
		do   func() error
		at   string
	}{
		"malformed": {phi.Invalid, func() error { return b.tryCreate("Patient", `{"resourceType":"Patient","name":"`+planted) }, ""},
		"other type": {phi.Invalid, func() error {
			return b.tryCreate("Patient", `{"resourceType":"Organization","name":"`+planted+`"}`)
		}, ""},
		"unknown type":    {phi.NotFound, func() error { return b.tryCreate("Zebra", `{"resourceType":"Zebra"}`) }, ""},
		"unknown element": {phi.Unprocessable, func() error { return b.tryCreate("Patient", `{"resourceType":"Patient","stripes":"`+planted+`"}`) }, "Patient.stripes"},
		"bad code":        {phi.Unprocessable, func() error { return b.tryCreate("Patient", `{"resourceType":"Patient","gender":"`+planted+`"}`) }, "Patient.gender"},
		"no such patient": {phi.Unprocessable, func() error { return b.tryCreate("Observation", fmt.Sprintf(weight, planted)) }, "Observation.subject"},
		"subsetted": {phi.Unprocessable, func() error {
			return b.tryCreate("Patient", `{"resourceType":"Patient","meta":{"tag":[{"code":"SUBSETTED"}]},"gender":"male"}`)
		}, "Patient.meta.tag"},
		"bundle as a record": {phi.Unprocessable, func() error { return b.tryCreate("Bundle", `{"resourceType":"Bundle","type":"document"}`) }, "Bundle"},
		"bad id": {phi.Invalid, func() error {
			_, err := b.Records.Read(ctx, backend(), phi.Ref{Type: "Patient", ID: planted + " " + planted})
			return err
		}, ""},
		"unknown": {phi.NotFound, func() error {
			_, err := b.Records.Read(ctx, backend(), phi.Ref{Type: "Patient", ID: "nobody"})
			return err
		}, ""},
		"delete of nothing": {phi.NotFound, func() error {
			_, err := b.Records.Delete(ctx, backend(), phi.Ref{Type: "Patient", ID: "nobody"}, 0)
			return err
		}, ""},
		"no principal": {phi.Denied, func() error {
			_, err := b.Records.Read(ctx, &phi.Caller{RequestID: "r"}, phi.Ref{Type: "Patient", ID: "nobody"})
			return err
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			events := b.during(func() { err = c.do() })
			e := wantKind(t, err, c.kind)
			if c.at != "" && e.Issues[0].Expression != c.at {
				t.Errorf("expression %q, want %q", e.Issues[0].Expression, c.at)
			}
			if len(events) != 1 || events[0].Outcome != audit.MinorFailure || events[0].OutcomeDesc != c.kind.String() {
				t.Errorf("recorded %+v, want one refusal", events)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %+v", err, e.Issues, events), planted) && name != "no such patient" {
				t.Errorf("the planted word is in %v %+v %+v", err, e.Issues, events)
			}
		})
	}
}

func (b *bench) tryCreate(resourceType, body string) error {
	_, err := b.Records.Create(context.Background(), backend(), resourceType, []byte(body), nil)
	return err
}

func TestWriteLeavesIntentAndOutcome(t *testing.T) {
	b := newBench(t)
	var p *phi.Written
	events := b.during(func() { p = b.create("Patient", adam) })
	if len(events) != 2 || events[0].Outcome != audit.Intent || events[1].Outcome != audit.Success {
		t.Fatalf("recorded %+v", events)
	}
	for _, e := range events {
		if e.Correlation != events[0].ID || e.Patient != p.ID || e.Interaction != "create" || e.Entities[0] != (audit.Entity{Type: "Patient", ID: p.ID, Version: 1}) {
			t.Errorf("event %+v", e)
		}
	}
	body := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"`+p.ID+`"`, 1)
	events = b.during(func() {
		_, err := b.Records.Update(context.Background(), backend(), p.Ref, []byte(body), 2)
		wantKind(t, err, phi.PreconditionFailed)
	})
	if len(events) != 1 || events[0].Outcome != audit.MinorFailure {
		t.Errorf("recorded %+v", events)
	}
}

// What a row says in the clear is not believed before its seal was checked: not for whom a write is allowed, not whose
// key a new record gets, not that a record was deleted.
func TestEditedRowStopsWrites(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	p, other := b.create("Patient", adam), b.create("Patient", adam)
	obs := b.create("Observation", fmt.Sprintf(weight, p.ID))
	b.Storage.Edit(obs.Ref, func(s *phi.Sealed) { s.Patients = []string{other.ID} })
	_, err := b.Records.Delete(ctx, backend(), obs.Ref, 0)
	wantKind(t, err, phi.Integrity)
	b.Storage.Edit(p.Ref, func(s *phi.Sealed) { s.Updated = s.Updated.Add(-time.Hour) })
	wantKind(t, b.tryCreate("Observation", fmt.Sprintf(weight, p.ID)), phi.Integrity)
	b.Storage.Edit(other.Ref, func(s *phi.Sealed) { s.Method, s.Cells = "DELETE", [phi.NumClasses][]byte{} })
	_, err = b.Records.Read(ctx, backend(), other.Ref)
	wantKind(t, err, phi.Integrity)
}

func TestRollbackIsNoticed(t *testing.T) {
	b := newBench(t)
	p := b.create("Patient", adam)
	var old phi.Sealed
	b.Storage.Edit(p.Ref, func(s *phi.Sealed) { old = *s })
	body := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"`+p.ID+`"`, 1)
	if _, err := b.Records.Update(context.Background(), backend(), p.Ref, []byte(body), 0); err != nil {
		t.Fatal(err)
	}
	b.Storage.Edit(p.Ref, func(s *phi.Sealed) { s.Cells[phi.ClassName] = old.Cells[phi.ClassName] })
	_, err := b.Records.Read(context.Background(), backend(), p.Ref)
	wantKind(t, err, phi.Integrity)
}

func TestStorageAway(t *testing.T) {
	b := newBench(t)
	p := b.create("Patient", adam)
	b.Storage.Fail(errors.New("connection refused"))
	events := b.during(func() {
		_, err := b.Records.Read(context.Background(), backend(), p.Ref)
		wantKind(t, err, phi.Unavailable)
	})
	if len(events) != 1 || events[0].Outcome != audit.SeriousFailure {
		t.Errorf("recorded %+v", events)
	}
	b.Storage.Fail(nil)
	if _, err := b.Records.Read(context.Background(), backend(), p.Ref); err != nil {
		t.Errorf("after recovery: %v", err)
	}
}

func TestNoReceiptNoPlaintext(t *testing.T) {
	b := newBench(t)
	p := b.create("Patient", adam)
	if err := b.Log.Close(); err != nil { // nothing can be recorded any more
		t.Fatal(err)
	}
	ctx := context.Background()
	rows := b.Storage.Len()
	for name, do := range map[string]func() (any, error){
		"read":    func() (any, error) { return b.Records.Read(ctx, backend(), p.Ref) },
		"vread":   func() (any, error) { return b.Records.ReadVersion(ctx, backend(), p.Ref, 1) },
		"history": func() (any, error) { return b.Records.History(ctx, backend(), p.Ref, 0, "") },
		"search":  func() (any, error) { return b.Records.Search(ctx, backend(), "Patient", params("name", "lind"), false) },
		"create":  func() (any, error) { return b.Records.Create(ctx, backend(), "Patient", []byte(adam), nil) },
		"delete":  func() (any, error) { return b.Records.Delete(ctx, backend(), p.Ref, 0) },
		"refusal": func() (any, error) { return b.Records.Read(ctx, backend(), phi.Ref{Type: "Patient", ID: "nobody"}) },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := do()
			wantKind(t, err, phi.Unavailable)
			if s := fmt.Sprintf("%v", got); s != "<nil>" {
				t.Errorf("got %v without a receipt", s)
			}
		})
	}
	if b.Storage.Len() != rows {
		t.Error("something was stored without an intent")
	}
}

func TestConditionalCreateRace(t *testing.T) {
	b := newBench(t)
	condition := params("identifier", "http://hospital.test/mrn|MRN-1")
	var wg sync.WaitGroup
	results := make([]*phi.Written, 8)
	for i := range results {
		wg.Go(func() {
			w, err := b.Records.Create(context.Background(), backend(), "Patient", []byte(adam), condition)
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = w
		})
	}
	wg.Wait()
	created := 0
	for _, w := range results {
		if w == nil {
			continue
		}
		if !w.Unchanged {
			created++
		}
		if w.ID != results[0].ID || len(w.JSON.Reveal()) == 0 {
			t.Errorf("got %s %.80s", w.Ref, w.JSON.Reveal())
		}
	}
	if created != 1 {
		t.Errorf("%d were created", created)
	}
	b.create("Patient", adam)
	_, err := b.Records.Create(context.Background(), backend(), "Patient", []byte(adam), condition)
	wantKind(t, err, phi.PreconditionFailed)
}

func TestConcurrentUpdates(t *testing.T) {
	b := newBench(t)
	p := b.create("Patient", adam)
	body := strings.Replace(adam, `{"resourceType":"Patient"`, `{"resourceType":"Patient","id":"`+p.ID+`"`, 1)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if _, err := b.Records.Update(context.Background(), backend(), p.Ref, []byte(body), 0); err != nil {
					if e, ok := errors.AsType[*phi.Error](err); !ok || e.Kind != phi.Conflict {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if _, err := b.Records.Read(context.Background(), backend(), p.Ref); err != nil {
		t.Error(err)
	}
}
