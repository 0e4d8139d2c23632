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
)

// brief is a room with a lease so short that a rotation of the index takes a moment.
func (b *bench) brief() *phi.Records {
	b.t.Helper()
	records, err := phi.Open(context.Background(), phi.Config{Storage: b.Storage, Keys: b.Keys, Access: b.Access, Audit: b.Log, IndexLease: 20 * time.Millisecond,
		Level: phi.Levels{Disclosure: audit.Process, Other: audit.Process}})
	if err != nil {
		b.t.Fatal(err)
	}
	return records
}

func numbered(n int) string {
	return fmt.Sprintf(`{"resourceType":"Patient","identifier":[{"system":"http://hospital.test/mrn","value":"N-%d"}],"name":[{"family":"Tester%d","given":["Nr"]}],"birthDate":"1980-01-%02d"}`, n, n, 1+n%28)
}

// found holds that every one of n patients is found, and nobody else, by each of their indexed values.
func found(t *testing.T, r *phi.Records, n int, when string) {
	t.Helper()
	for i := range n {
		for _, by := range [][]phi.Param{
			params("identifier", fmt.Sprintf("http://hospital.test/mrn|N-%d", i)),
			params("identifier", fmt.Sprintf("n-%d", i)),
			params("family:exact", fmt.Sprintf("Tester%d", i)),
			params("family", fmt.Sprintf("Tester%d", i), "birthdate", fmt.Sprintf("1980-01-%02d", 1+i%28), "identifier", fmt.Sprintf("N-%d", i)),
		} {
			page, err := r.Search(context.Background(), backend(), "Patient", by, false)
			if err != nil {
				t.Errorf("%s: %v: %v", when, by, err)
				return
			}
			if by[0].Value == fmt.Sprintf("n-%d", i) && len(page.Resources) == 0 {
				continue // values of identifiers are compared as they are
			}
			if len(page.Resources) != 1 {
				t.Errorf("%s: %v finds %d", when, by, len(page.Resources))
				return
			}
		}
	}
}

// TestReindexWhileSearched rotates the index again and again, by two rotators, while patients come, change, and are looked up: searches
// are complete at every moment, and in the end there is one generation.
func TestReindexWhileSearched(t *testing.T) {
	b := newBench(t)
	records := b.brief()
	const patients = 6
	var refs []phi.Ref
	for n := range patients {
		w, err := records.Create(context.Background(), backend(), "Patient", []byte(numbered(n)), nil)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, w.Ref)
	}
	var wg, rotating sync.WaitGroup
	stop := make(chan struct{})
	until := func(work func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					work()
				}
			}
		})
	}
	until(func() { found(t, records, patients, "while the index rotates") })
	i := 0
	until(func() {
		i++
		n := i % patients
		body := fmt.Sprintf(`{"resourceType":"Patient","id":%q,%s`, refs[n].ID, numbered(n)[len(`{"resourceType":"Patient",`):])
		if _, err := records.Update(context.Background(), backend(), refs[n], []byte(body), 0); err != nil {
			t.Errorf("updating: %v", err)
		}
	})
	until(func() { // another instance
		if err := b.rotation(1).DataKeys(context.Background(), b.Storage, phi.Scope{All: true}); err != nil {
			t.Errorf("rotating data keys: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	})
	names := []phi.NameSearch{phi.NamesPrefix, phi.NamesExact, phi.NamesPrefix}
	for _, search := range names {
		for range 2 {
			rotating.Go(func() {
				err := records.Rotation(phi.RotationConfig{By: "ines", Jobs: 2}).Index(context.Background(), b.Storage, search)
				if err != nil {
					t.Errorf("rotating the index: %v", err)
				}
			})
		}
		rotating.Wait()
	}
	close(stop)
	wg.Wait()
	generations, err := b.Storage.IndexGenerations(context.Background())
	if err != nil || len(generations) != 1 || generations[0].ID < 4 || generations[0].Names != phi.NamesPrefix {
		t.Fatalf("generations %+v, %v", generations, err)
	}
	for _, w := range b.Storage.Rows() {
		if w.IndexID != generations[0].ID {
			t.Errorf("%s is of generation %d", w.Ref, w.IndexID)
		}
	}
	found(t, records, patients, "at the end")
}

// mortalIndex is mortal for a rotation of the index.
type mortalIndex struct {
	phi.ReindexStorage
	mortal
}

func (m mortalIndex) BeginGeneration(ctx context.Context, next phi.IndexGeneration) error {
	_, err := killed(m.mortal, func() (int, error) { return 0, m.ReindexStorage.BeginGeneration(ctx, next) })
	return err
}

func (m mortalIndex) ActivateGeneration(ctx context.Context, id uint32) error {
	_, err := killed(m.mortal, func() (int, error) { return 0, m.ReindexStorage.ActivateGeneration(ctx, id) })
	return err
}

func (m mortalIndex) RowsOfGeneration(ctx context.Context, id uint32, limit int) ([]phi.RowName, error) {
	return killed(m.mortal, func() ([]phi.RowName, error) { return m.ReindexStorage.RowsOfGeneration(ctx, id, min(limit, 2)) })
}

func (m mortalIndex) FetchRows(ctx context.Context, rows []phi.RowName) ([]*phi.Sealed, error) {
	return killed(m.mortal, func() ([]*phi.Sealed, error) { return m.ReindexStorage.FetchRows(ctx, rows) })
}

func (m mortalIndex) StoreReindexed(ctx context.Context, rows []phi.Reindexed) (int, error) {
	return killed(m.mortal, func() (int, error) { return m.ReindexStorage.StoreReindexed(ctx, rows) })
}

func (m mortalIndex) RemoveGeneration(ctx context.Context, id uint32, secrets []string) (bool, error) {
	return killed(m.mortal, func() (bool, error) { return m.ReindexStorage.RemoveGeneration(ctx, id, secrets) })
}

// TestReindexKilledAnywhere kills a rotation of the index at every call of the storage: everybody is found at any time, and the next
// run finishes the one that was begun.
func TestReindexKilledAnywhere(t *testing.T) {
	for _, done := range []bool{false, true} {
		b := newBench(t)
		records := b.brief()
		const patients = 3
		for n := range patients {
			b.create("Patient", numbered(n))
		}
		rotate := func(s phi.ReindexStorage) error {
			return records.Rotation(phi.RotationConfig{By: "ines"}).Index(context.Background(), s, "")
		}
		for n := int64(1); ; n++ {
			before, err := b.Storage.IndexGenerations(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			calls := &atomic.Int64{}
			calls.Store(n)
			err = rotate(mortalIndex{b.Storage, mortal{calls: calls, done: done}})
			if err == nil {
				if n < 8 {
					t.Errorf("a rotation took %d calls", n)
				}
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			found(t, records, patients, fmt.Sprintf("killed at call %d", n))
			after, err := b.Storage.IndexGenerations(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if len(after) > 1 || after[0].ID == before[0].ID {
				if err := rotate(b.Storage); err != nil {
					t.Fatal(err)
				}
			}
			if after, err = b.Storage.IndexGenerations(context.Background()); err != nil || len(after) != 1 || after[0].ID != before[0].ID+1 {
				t.Fatalf("killed at call %d: generations %+v after %+v, %v", n, after, before, err)
			}
			found(t, records, patients, fmt.Sprintf("finished after call %d", n))
		}
	}
}
