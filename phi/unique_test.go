package phi_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

const mrnSystem = "http://hospital.test/mrn"

func withMRN(id, mrn string) string {
	if id != "" {
		id = `"id":"` + id + `",`
	}
	return `{"resourceType":"Patient",` + id + `"identifier":[{"system":"urn:other","value":"same for all"},{"system":"` + mrnSystem + `","value":"` + mrn + `"}]}`
}

// wantDuplicate demands a refusal that names the element and no value.
func wantDuplicate(t *testing.T, err error, element string) {
	t.Helper()
	wantKind(t, err, phi.Conflict)
	e, ok := errors.AsType[*phi.Error](err)
	if !ok || e.Issues[0].Code != "duplicate" || e.Issues[0].Expression != element {
		t.Errorf("got %+v, want duplicate at %s", err, element)
	}
	if strings.Contains(fmt.Sprintf("%v %+v", err, e), "77") {
		t.Errorf("the refusal holds the value: %v", err)
	}
}

func TestUniqueIdentifiers(t *testing.T) {
	ctx := context.Background()
	room := phitest.Open(t, phitest.Options{UniqueIdentifiers: []string{mrnSystem}})
	create := func(mrn string) (*phi.Written, error) {
		return room.Records.Create(ctx, backend(), "Patient", []byte(withMRN("", mrn)), nil)
	}
	first, err := create("MRN-77")
	if err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{"MRN-77", "mrn 77", "ＭＲＮ７７", "MRN_77"} {
		_, err := create(same)
		wantDuplicate(t, err, "Patient.identifier[1]")
	}
	second, err := create("MRN-78")
	if err != nil {
		t.Fatal("another value of the system, and the same of another:", err)
	}
	// Its own value is no obstacle, somebody else's is.
	update := func(id, mrn string) error {
		_, err := room.Records.Update(ctx, backend(), phi.Ref{Type: "Patient", ID: id}, []byte(withMRN(id, mrn)), 0)
		return err
	}
	if err := update(first.ID, "MRN 77"); err != nil {
		t.Error("one's own value, written otherwise:", err)
	}
	wantDuplicate(t, update(second.ID, "MRN77"), "Patient.identifier[1]")

	bundle := func(entries ...string) error {
		_, err := room.Records.Bundle(ctx, backend(), []byte(`{"resourceType":"Bundle","type":"transaction","entry":[`+strings.Join(entries, ",")+`]}`))
		return err
	}
	put := func(id, mrn string) string {
		return `{"request":{"method":"PUT","url":"Patient/` + id + `"},"resource":` + withMRN(id, mrn) + `}`
	}
	if err := bundle(put(first.ID, "MRN-78"), put(second.ID, "MRN-77")); err != nil {
		t.Error("two exchange their values in a transaction:", err)
	}
	wantDuplicate(t, bundle(put("a", "MRN-177"), put("b", "mrn 177")), "Bundle.entry[1].resource.identifier[1]")
	wantDuplicate(t, bundle(put("c", "MRN-79"), put("d", "MRN-77")), "Bundle.entry[1].resource.identifier[1]")
	if _, err := room.Records.Delete(ctx, backend(), first.Ref, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := create("MRN-78"); err != nil {
		t.Error("the value of a deleted patient:", err)
	}
}

// Of many who bring the same new value at once, one comes through, also while the index is made anew.
func TestUniqueIdentifiersRace(t *testing.T) {
	for _, during := range []string{"", "reading", "switched"} {
		storage := phitest.NewStorage()
		room := phitest.Open(t, phitest.Options{Storage: storage, UniqueIdentifiers: []string{mrnSystem}})
		old := phi.IndexGeneration{ID: 1, State: phi.IndexActive, Rules: 1, Names: phi.NamesPrefix}
		storage.SetIndexGenerations(old)
		room.Records.KeysChanged()
		for i := range 20 {
			if i == 10 && during != "" {
				next := phi.IndexGeneration{ID: 2, State: phi.IndexReading, Rules: phi.IndexRules, Names: phi.NamesPrefix}
				if during == "switched" {
					old.State, next.State = phi.IndexRetiring, phi.IndexActive
				}
				storage.SetIndexGenerations(old, next)
				room.Records.KeysChanged()
			}
			var wg sync.WaitGroup
			var stored atomic.Int32
			for range 4 {
				wg.Go(func() {
					if _, err := room.Records.Create(context.Background(), backend(), "Patient", fmt.Appendf(nil, withMRN("", "%d"), i%10), nil); err == nil {
						stored.Add(1)
					}
				})
			}
			wg.Wait()
			if want := int32(1 - i/10); stored.Load() != want { // the second round finds what the first stored, under whatever generation
				t.Errorf("%q, round %d: %d were stored, want %d", during, i, stored.Load(), want)
			}
		}
	}
}

// An import names the duplicate and takes in the rest.
func TestUniqueIdentifiersImport(t *testing.T) {
	room := phitest.Open(t, phitest.Options{UniqueIdentifiers: []string{mrnSystem}})
	var entries []string
	for i, mrn := range []string{"1", "2", "77", "4"} {
		id := fmt.Sprint("p", i)
		entries = append(entries, `{"resource":`+withMRN(id, mrn)+`}`,
			`{"resource":{"resourceType":"Observation","id":"o`+id+`","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/`+id+`"}}}`)
	}
	if _, err := room.Records.Create(context.Background(), backend(), "Patient", []byte(withMRN("", "77")), nil); err != nil {
		t.Fatal(err)
	}
	result, err := room.Records.Import(context.Background(), backend(), []byte(`{"resourceType":"Bundle","type":"collection","entry":[`+strings.Join(entries, ",")+`]}`), true)
	if err != nil {
		t.Fatal(err)
	}
	if result.Written != 6 || len(result.Failed) != 2 || result.Failed[0].Entry != 4 || result.Failed[1].Entry != 5 {
		t.Errorf("written %d, failed %+v", result.Written, result.Failed)
	}
	wantDuplicate(t, result.Failed[0].Err, "Bundle.entry[4].resource.identifier[1]")
}

// A conditional create is not kept from its identifier by one that is only written alike: the index does not tell them apart, the
// condition does.
func TestConditionalCreateBesideLookalike(t *testing.T) {
	ctx := context.Background()
	room := phitest.Open(t, phitest.Options{})
	create := func(mrn string) (*phi.Written, error) {
		return room.Records.Create(ctx, backend(), "Patient", []byte(withMRN("", mrn)), params("identifier", mrnSystem+"|"+mrn))
	}
	for _, mrn := range []string{"MRN-77", "MRN77", "mrn-77"} {
		w, err := create(mrn)
		if err != nil || w.Unchanged {
			t.Fatalf("%s: %+v, %v", mrn, w, err)
		}
		again, err := create(mrn)
		if err != nil || !again.Unchanged || again.ID != w.ID {
			t.Errorf("%s again: %+v, %v", mrn, again, err)
		}
	}
}
