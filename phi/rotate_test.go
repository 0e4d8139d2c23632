package phi_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// chart is what was written, to be found again whatever happens to keys.
type chart struct {
	mu      sync.Mutex
	content map[phi.Ref][]string // of each version
}

func (c *chart) wrote(t *testing.T, w *phi.Written) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.content[w.Ref] = append(c.content[w.Ref], content(t, w.JSON.Reveal()))
}

// readable holds that every version of every record opens and is what was written.
func (c *chart) readable(t *testing.T, r *phi.Records, when string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for ref, versions := range c.content {
		for i, want := range versions {
			got, err := r.ReadVersion(context.Background(), backend(), ref, int64(i+1))
			if err != nil {
				t.Fatalf("%s: %s, version %d: %v", when, ref, i+1, err)
			}
			if got := content(t, got.JSON.Reveal()); got != want {
				t.Fatalf("%s: %s, version %d: %s, was %s", when, ref, i+1, got, want)
			}
		}
	}
}

// keysOf are the data keys in a state.
func (b *bench) keysOf(state phi.KeyState, subjects ...phi.UUID) []phi.StoredKey {
	b.t.Helper()
	keys, err := b.Storage.DataKeys(context.Background(), phi.KeyQuery{State: state, Subjects: subjects, Limit: 1 << 20})
	if err != nil {
		b.t.Fatal(err)
	}
	return keys
}

// settled holds that no rotation is under way: one active key for each subject and segment, under which all is.
func (b *bench) settled(when string) {
	b.t.Helper()
	if n := len(b.keysOf(phi.KeyKnown)) + len(b.keysOf(phi.KeyRetired)); n > 0 {
		b.t.Fatalf("%s: %d keys are not active", when, n)
	}
	seen := map[string]bool{}
	for _, k := range b.keysOf(phi.KeyActive) {
		name := fmt.Sprint(k.Subject, k.Segment)
		if seen[name] {
			b.t.Fatalf("%s: %s has two active keys", when, name)
		}
		seen[name] = true
	}
	for _, row := range b.Storage.Rows() {
		k, err := b.Storage.Key(context.Background(), row.Subject, row.Segment)
		if err != nil || k.KeyID != row.KeyID {
			b.t.Fatalf("%s: %s is under key %d, active is %d (%v)", when, row.Ref, row.KeyID, k.KeyID, err)
		}
	}
}

// fill writes a few charts: several versions, segments, and what is nobody's.
func (b *bench) fill(patients int) *chart {
	c := &chart{content: map[phi.Ref][]string{}}
	for range patients {
		p := b.create("Patient", adam)
		c.wrote(b.t, p)
		for n := range 4 {
			labels := []string{}
			if n == 3 {
				labels = append(labels, actCode+"|42CFRPart2")
			}
			o := b.create("Observation", labelled(p.ID, labels...))
			c.wrote(b.t, o)
			c.wrote(b.t, b.update(o.Ref, fmt.Sprintf(`{"resourceType":"Observation","id":%q,"status":"amended","code":{"text":"again %d"},"subject":{"reference":"Patient/%s"}}`, o.ID, n, p.ID)))
		}
	}
	c.wrote(b.t, b.create("Organization", `{"resourceType":"Organization","name":"Ward"}`))
	return c
}

func (b *bench) update(ref phi.Ref, body string) *phi.Written {
	b.t.Helper()
	w, err := b.Records.Update(context.Background(), backend(), ref, []byte(body), 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return w
}

func (b *bench) rotation(jobs int) *phi.Rotation {
	return b.Records.Rotation(phi.RotationConfig{By: "ines", Jobs: jobs})
}

// TestRotateKeys replaces a patient's keys, and then all: what is stored opens as before, under the next key, and the old one is gone.
func TestRotateKeys(t *testing.T) {
	b := newBench(t)
	c := b.fill(3)
	patient := phi.Ref{}
	for ref := range c.content {
		if ref.Type == "Patient" {
			patient = ref
		}
	}
	subject := b.row(patient).Subject
	r := b.rotation(2)
	events := b.during(func() {
		if err := r.DataKeys(context.Background(), b.Storage, phi.Scope{Patient: patient.ID}); err != nil {
			t.Fatal(err)
		}
	})
	for _, k := range b.keysOf(phi.KeyActive) {
		if want := map[bool]uint32{true: 2, false: 1}[k.Subject == subject]; k.KeyID != want {
			t.Errorf("key %d of %s is active, want %d", k.KeyID, k.Subject, want)
		}
	}
	b.settled("after a patient's rotation")
	c.readable(t, b.Records, "after a patient's rotation")
	if p := r.Progress(); p.KeysDone != 2 || p.RowsDone != 10-1 || p.Rows != p.RowsDone || p.Keys != 2 {
		t.Errorf("progress %+v", p) // 1 patient, 4 observations of 2 versions, in two segments
	}
	told := map[string]int{}
	for _, e := range events {
		told[e.Interaction+fmt.Sprint(" ", e.Outcome)]++
		if e.Agent.User != "ines" || e.Type != audit.TypePolicy {
			t.Errorf("event %+v", e)
		}
	}
	for _, want := range []string{fmt.Sprint("key-rotate ", audit.Intent), "key-rotate 0", "key-activate 0", "key-reseal 0", "key-destroy 0"} {
		if told[want] == 0 {
			t.Errorf("no event %q among %v", want, told)
		}
	}
	for _, scope := range []phi.Scope{{Organisation: true}, {All: true}} {
		if err := b.rotation(1).DataKeys(context.Background(), b.Storage, scope); err != nil {
			t.Fatal(err)
		}
		b.settled("after more")
		c.readable(t, b.Records, "after more")
	}
	if err := b.rotation(1).DataKeys(context.Background(), b.Storage, phi.Scope{Patient: "nobody"}); !errors.Is(err, phi.ErrNotFound) {
		t.Errorf("of a patient who is not there: %v", err)
	}
	if r := b.rotation(1); r.DataKeys(context.Background(), b.Storage, phi.Scope{}) != nil || r.Progress().KeysDone != 0 {
		t.Error("a key was due")
	}
}

// TestWornKeyIsDue: what is due is replaced without being named.
func TestWornKeyIsDue(t *testing.T) {
	b := newBench(t)
	row := b.row(b.create("Patient", adam).Ref)
	worn := keyset.Binding{Subject: row.Subject, KeyID: 1}
	if _, err := b.Storage.AddUses(context.Background(), []keyset.Uses{{Binding: worn, N: keyset.Worn}}); err != nil {
		t.Fatal(err)
	}
	r := b.rotation(1)
	if err := r.DataKeys(context.Background(), b.Storage, phi.Scope{}); err != nil || r.Progress().KeysDone != 1 {
		t.Fatalf("%v, %+v", err, r.Progress())
	}
	if k := b.keysOf(phi.KeyActive, row.Subject); len(k) != 1 || k[0].KeyID != 2 {
		t.Errorf("keys %+v", k)
	}
}

// mortal is the storage of a rotator that is killed after so many calls: neither this one nor any later reaches the storage, or this
// one does and its answer is lost.
type mortal struct {
	phi.RotationStorage
	calls *atomic.Int64
	done  bool // the last call reaches the storage
}

var errKilled = errors.New("killed")

func killed[T any](m mortal, call func() (T, error)) (T, error) {
	var nothing T
	switch left := m.calls.Add(-1); {
	case left > 0:
		return call()
	case left == 0 && m.done:
		_, _ = call()
	}
	return nothing, errKilled
}

func (m mortal) BeginRenewal(ctx context.Context, by string) (phi.Renewal, error) {
	return killed(m, func() (phi.Renewal, error) { return m.RotationStorage.BeginRenewal(ctx, by) })
}

func (m mortal) FinishRenewal(ctx context.Context, id int64) error {
	_, err := killed(m, func() (int, error) { return 0, m.RotationStorage.FinishRenewal(ctx, id) })
	return err
}

func (m mortal) DataKeys(ctx context.Context, q phi.KeyQuery) ([]phi.StoredKey, error) {
	return killed(m, func() ([]phi.StoredKey, error) { return m.RotationStorage.DataKeys(ctx, q) })
}

func (m mortal) AddKeys(ctx context.Context, keys []phi.StoredKey) error {
	_, err := killed(m, func() (int, error) { return 0, m.RotationStorage.AddKeys(ctx, keys) })
	return err
}

func (m mortal) Activate(ctx context.Context, keys []keyset.Binding) ([]keyset.Binding, error) {
	return killed(m, func() ([]keyset.Binding, error) { return m.RotationStorage.Activate(ctx, keys) })
}

func (m mortal) RowsUnder(ctx context.Context, keys []keyset.Binding, limit int) ([]phi.RowName, error) {
	return killed(m, func() ([]phi.RowName, error) { return m.RotationStorage.RowsUnder(ctx, keys, min(limit, 7)) })
}

func (m mortal) FetchRows(ctx context.Context, rows []phi.RowName) ([]*phi.Sealed, error) {
	return killed(m, func() ([]*phi.Sealed, error) { return m.RotationStorage.FetchRows(ctx, rows) })
}

func (m mortal) StoreResealed(ctx context.Context, rows []phi.Resealed) (int, error) {
	return killed(m, func() (int, error) { return m.RotationStorage.StoreResealed(ctx, rows) })
}

func (m mortal) RemoveKeys(ctx context.Context, keys []keyset.Binding) ([]keyset.Binding, error) {
	return killed(m, func() ([]keyset.Binding, error) { return m.RotationStorage.RemoveKeys(ctx, keys) })
}

// TestRotationKilledAnywhere kills a rotation at every call of the storage, before and after it: everything opens at any time, and the
// next run finishes what was begun, and does nothing twice.
func TestRotationKilledAnywhere(t *testing.T) {
	for name, scope := range map[string]phi.Scope{"all": {All: true}, "organisation": {Organisation: true}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c := b.fill(2)
			generation := uint32(1)
			for n := int64(1); ; n++ {
				finished := false
				for _, done := range []bool{false, true} {
					calls := &atomic.Int64{}
					calls.Store(n)
					err := b.rotation(1).DataKeys(context.Background(), mortal{b.Storage, calls, done}, scope)
					if err != nil && !errors.Is(err, errKilled) {
						t.Fatal(err)
					}
					c.readable(t, b.Records, fmt.Sprintf("killed at call %d", n))
					if finished = err == nil; !finished {
						if err := b.rotation(1).DataKeys(context.Background(), b.Storage, scope); err != nil {
							t.Fatal(err)
						}
					}
					b.settled(fmt.Sprintf("killed at call %d", n))
					c.readable(t, b.Records, fmt.Sprintf("finished after call %d", n))
					organisation := b.keysOf(phi.KeyActive, phi.UUID{})[0].KeyID
					// Where only the answer to a renewal's end was lost, the run after it began another. A key that is named is replaced
					// again when the run that was killed had replaced it already.
					if organisation != generation+1 && !(!finished && (done || name != "all") && organisation == generation+2) {
						t.Fatalf("killed at call %d, done %t: key %d is active after %d", n, done, organisation, generation)
					}
					generation = organisation
					for _, k := range b.keysOf(phi.KeyActive) {
						if name == "all" && k.KeyID != generation || name != "all" && k.Subject != (phi.UUID{}) && k.KeyID != 1 {
							t.Fatalf("killed at call %d, done %t: key %d of %s is active, want %d", n, done, k.KeyID, k.Subject, generation)
						}
					}
				}
				if finished {
					if n < 10 {
						t.Errorf("a rotation took %d calls", n)
					}
					return
				}
			}
		})
	}
}

// TestRotateWhileWritten has two rotators replace every key again and again while charts are written and read: nothing fails, nothing
// is lost (experiment 11, in memory).
func TestRotateWhileWritten(t *testing.T) {
	for n := range 9 {
		rotators, writers, writes := 1+n%3, 1+n/3, 10
		b := newBench(t)
		c := b.fill(2)
		var patients []phi.Ref
		for ref := range c.content {
			if ref.Type == "Patient" {
				patients = append(patients, ref)
			}
		}
		var wg, writing sync.WaitGroup
		stop := make(chan struct{})
		for n := range rotators {
			wg.Go(func() {
				for {
					if err := b.rotation(n+1).DataKeys(context.Background(), b.Storage, phi.Scope{All: true}); err != nil {
						t.Errorf("rotating: %v", err)
						return
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		for n := range writers {
			writing.Go(func() {
				for i := range writes {
					body := fmt.Sprintf(weight, patients[(n+i)%len(patients)].ID)
					w, err := b.Records.Create(context.Background(), backend(), "Observation", []byte(body), nil)
					if err != nil {
						t.Errorf("writing: %v", err)
						return
					}
					c.wrote(t, w)
				}
			})
		}
		writing.Wait()
		close(stop)
		wg.Wait()
		b.settled("at the end")
		c.readable(t, b.Records, "at the end")
	}
}

// TestRotationLeavesWhatDoesNotOpen: a row that fails its integrity check stays under its key, which stays too; that is said, and the
// others go on.
func TestRotationLeavesWhatDoesNotOpen(t *testing.T) {
	b := newBench(t)
	c := b.fill(2)
	var edited phi.Ref
	for ref := range c.content {
		if ref.Type == "Observation" {
			edited = ref
		}
	}
	row := b.row(edited)
	b.Storage.Edit(edited, func(s *phi.Sealed) { s.Cells[phi.ClassClinical][20] ^= 1 })
	delete(c.content, edited)
	r := b.rotation(1)
	var err error
	events := b.during(func() { err = r.DataKeys(context.Background(), b.Storage, phi.Scope{All: true}) })
	if !errors.Is(err, phi.ErrUnopened) || r.Progress().Unopened != 1 {
		t.Fatalf("%v, %+v", err, r.Progress())
	}
	c.readable(t, b.Records, "beside a row that does not open")
	stuck := b.keysOf(phi.KeyRetired)
	if len(stuck) != 1 || stuck[0].Subject != row.Subject || stuck[0].Segment != row.Segment {
		t.Errorf("retired keys %+v", stuck)
	}
	alerts, failures := 0, 0
	for _, e := range events {
		if e.Interaction == "phi.integrity_failure" && e.Type == audit.TypeSecurityAlert && e.Entities[0].ID == edited.ID {
			alerts++
		}
		if e.Interaction == "key-rotate" && e.Outcome == audit.SeriousFailure {
			failures++
		}
	}
	if alerts != 1 || failures != 1 {
		t.Errorf("%d alerts, %d failures", alerts, failures)
	}
	b.Storage.Edit(edited, func(s *phi.Sealed) { s.Cells[phi.ClassClinical][20] ^= 1 })
	if err := b.rotation(1).DataKeys(context.Background(), b.Storage, phi.Scope{All: true}); err != nil {
		t.Fatal(err)
	}
	b.settled("after it was mended")
}

// between is a storage in which something happens between the seal and the commit.
type between struct {
	*phitest.Storage
	before func()
}

func (s *between) Commit(ctx context.Context, writes []phi.Write, guards []phi.Guard) error {
	if f := s.before; f != nil {
		s.before = nil
		f()
	}
	return s.Storage.Commit(ctx, writes, guards)
}

// TestWriteMeetsRotation rotates every key between a write's seal and its commit: the write is sealed anew, and the client sees nothing.
func TestWriteMeetsRotation(t *testing.T) {
	b := newBench(t)
	c := b.fill(1)
	s := &between{Storage: b.Storage}
	records, err := phi.Open(context.Background(), phi.Config{Storage: s, Keys: b.Keys, Access: b.Access, Audit: b.Log,
		Level: phi.Levels{Disclosure: audit.Process, Other: audit.Process}})
	if err != nil {
		t.Fatal(err)
	}
	var patient phi.Ref
	for ref := range c.content {
		if ref.Type == "Patient" {
			patient = ref
		}
	}
	rotate := func() {
		if err := b.rotation(1).DataKeys(context.Background(), b.Storage, phi.Scope{All: true}); err != nil {
			t.Error(err)
		}
	}
	observation := fmt.Sprintf(weight, patient.ID)
	for name, write := range map[string]func() error{
		"create": func() error {
			_, err := records.Create(context.Background(), backend(), "Observation", []byte(observation), nil)
			return err
		},
		"of nobody's": func() error {
			_, err := records.Create(context.Background(), backend(), "Location", []byte(`{"resourceType":"Location","name":"Door"}`), nil)
			return err
		},
		"transaction": func() error {
			_, err := records.Bundle(context.Background(), backend(), []byte(`{"resourceType":"Bundle","type":"transaction","entry":[
				{"fullUrl":"urn:uuid:0d0f6cd1-7ee9-4a54-9d8f-6a2f0f6f0a11","resource":`+adam+`,"request":{"method":"POST","url":"Patient"}},
				{"resource":`+observation+`,"request":{"method":"POST","url":"Observation"}}]}`))
			return err
		},
		"import": func() error {
			res, err := records.Import(context.Background(), backend(), []byte(observation), true)
			if err == nil && len(res.Failed) > 0 {
				err = res.Failed[0].Err
			}
			return err
		},
	} {
		s.before = rotate
		if err := write(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s.before != nil {
			t.Errorf("%s: nothing was committed", name)
		}
	}
	b.settled("after writes that met a rotation")
	c.readable(t, b.Records, "after writes that met a rotation")
}

// TestPace holds the rate.
func TestPace(t *testing.T) {
	b := newBench(t)
	b.fill(2) // 19 rows
	r := b.Records.Rotation(phi.RotationConfig{By: "ines", Rate: 60})
	began := time.Now()
	if err := r.DataKeys(context.Background(), b.Storage, phi.Scope{All: true}); err != nil {
		t.Fatal(err)
	}
	// Two runs of the clock: what goes at once is what a batch holds, the next waits for it.
	if err := r.DataKeys(context.Background(), b.Storage, phi.Scope{All: true}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 19*time.Second/60 {
		t.Errorf("38 rows at 60 a second in %s", took)
	}
}
