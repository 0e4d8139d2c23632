package postgres

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi/keyset"
)

// TestUses adds counts from several instances at once, in orders that would lock each other, and finds what is worn.
func TestUses(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	keyed(t, db)
	keys, records, ctx := db.Keys(), db.Records(), t.Context()
	const patients = 200
	var all []keyset.Uses
	for range patients {
		k := testKey(random16())
		if _, err := records.EnsureKey(ctx, k); err != nil {
			t.Fatal(err)
		}
		all = append(all, keyset.Uses{Binding: keyset.Binding{Subject: k.Subject, KeyID: 1}, N: 3})
	}
	all = append(all, keyset.Uses{KEK: "kek-1", N: 7}, keyset.Uses{KEK: "kek-9", N: 1},
		keyset.Uses{Binding: keyset.Binding{Subject: random16(), KeyID: 1}, N: 1}) // gone meanwhile
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine := slices.Clone(all)
			if i%2 == 1 {
				slices.Reverse(mine)
			}
			for range 5 {
				if worn, err := keys.AddUses(ctx, mine); err != nil || len(worn) > 0 {
					t.Errorf("AddUses: %v, %v", worn, err)
				}
			}
		})
	}
	wg.Wait()
	count := func(query string) (n int64) {
		t.Helper()
		if err := admin.QueryRow(ctx, query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(`SELECT count(*) FROM phi_key WHERE uses = 8 * 5 * 3`); n != patients {
		t.Errorf("%d of %d data keys have their count", n, patients)
	}
	if n := count(`SELECT uses FROM phi_kek`); n != 8*5*7 {
		t.Errorf("the key-encryption key has %d uses", n)
	}
	want := []keyset.Uses{{KEK: "kek-1", N: 8*5*7 + keyset.Worn}}
	want = append(want, keyset.Uses{Binding: all[0].Binding, N: 8*5*3 + keyset.Worn})
	if _, err := keys.AddUses(ctx, []keyset.Uses{
		{KEK: "kek-1", N: keyset.Worn}, {Binding: all[0].Binding, N: keyset.Worn}, {Binding: all[1].Binding, N: keyset.Worn - 8*5*3 - 1},
	}); err != nil {
		t.Fatal(err)
	}
	worn, err := keys.AddUses(ctx, nil)
	if err != nil || len(worn) != len(want) {
		t.Fatalf("worn are %v (%v), want %v", worn, err, want)
	}
	for _, w := range want {
		if !slices.Contains(worn, w) {
			t.Errorf("worn are %v without %v", worn, w)
		}
	}
}

// TestKEKs reads what is stored, and wakes when keys are changed elsewhere.
func TestKEKs(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	ctx, stop := context.WithCancel(t.Context())
	if all, err := db.Keys().KEKs(ctx); err != nil || len(all) != 0 {
		t.Errorf("an empty storage has %v, %v", all, err)
	}
	keyed(t, db)
	all, err := db.Keys().KEKs(ctx)
	if err != nil || len(all) != 1 || all[0].ID != "kek-1" || all[0].Root != "test" || len(all[0].Wrapped) != 60 || !all[0].Active {
		t.Errorf("stored are %v, %v", all, err)
	}
	woken := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- db.ListenKeys(ctx, func() { woken <- struct{}{} }) }()
	for began := time.Now(); ; {
		if _, err := admin.Exec(t.Context(), `NOTIFY chartkeep_keys`); err != nil {
			t.Fatal(err)
		}
		select {
		case <-woken:
		case <-time.After(50 * time.Millisecond):
			if time.Since(began) < 10*time.Second {
				continue // it may not listen yet
			}
			t.Error("nobody was woken")
		}
		break
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("ListenKeys: %v", err)
	}
}
