package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
)

// How names are indexed can be chosen while nothing is; a writer that minted under what was there before does not get in.
func TestChooseNames(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	want := func(generations ...phi.IndexGeneration) {
		t.Helper()
		if got, err := s.IndexGenerations(ctx); err != nil || !slices.Equal(got, generations) {
			t.Errorf("generations %+v, %v; want %+v", got, err, generations)
		}
	}
	want(phi.IndexGeneration{ID: 1, State: phi.IndexActive, Rules: phi.IndexRules, Names: phi.NamesPrefix})
	if err := s.ChooseNames(ctx, phi.NamesPrefix); err != nil {
		t.Fatal(err)
	}
	want(phi.IndexGeneration{ID: 1, State: phi.IndexActive, Rules: phi.IndexRules, Names: phi.NamesPrefix})
	if err := s.ChooseNames(ctx, phi.NamesExact); err != nil {
		t.Fatal(err)
	}
	chosen := phi.IndexGeneration{ID: 2, State: phi.IndexActive, Rules: phi.IndexRules, Names: phi.NamesExact}
	want(chosen)
	w := write(phi.Ref{Type: "Patient", ID: "p"}, 1, "p")
	if err := s.Commit(ctx, []phi.Write{w}, nil); !errors.Is(err, phi.ErrKey) {
		t.Errorf("tokens of a generation that is gone: %v", err)
	}
	w.IndexID = 2
	if err := s.Commit(ctx, []phi.Write{w}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.ChooseNames(ctx, phi.NamesCompound); err != nil {
		t.Fatal(err)
	}
	want(chosen)
}

// A commit holds the generation under which it minted: whoever removes it waits, or the commit fails.
func TestGenerationIsHeld(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	admin := connect(t, name, "")
	must(t, admin, `INSERT INTO index_generation (id, state) VALUES (2, 'reading')`)
	// The remover's transaction: it sees no record of generation 1, and deletes it.
	remover := connect(t, name, "chartkeep_keys")
	must(t, remover, `BEGIN`)
	must(t, remover, `DELETE FROM index_generation WHERE id = 1 AND NOT EXISTS (SELECT FROM record WHERE index_id = 1)`)
	result := make(chan error, 1)
	go func() {
		result <- s.Commit(ctx, []phi.Write{write(phi.Ref{Type: "Patient", ID: "late"}, 1, "late")}, nil)
	}()
	select {
	case err := <-result:
		t.Fatalf("the commit did not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	must(t, remover, `COMMIT`)
	if err := <-result; !errors.Is(err, phi.ErrKey) {
		t.Errorf("committed under a generation that is gone: %v", err)
	}
}

// Guards of which one knows an older generation only still meet.
func TestGuardRaceAcrossGenerations(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	must(t, connect(t, name, ""), `INSERT INTO index_generation (id, state) VALUES (2, 'reading')`)
	old, fresh := phi.Token{Kind: phi.TokenIdentifier, Value: random16()}, phi.Token{Kind: phi.TokenIdentifier, Value: random16()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	stored := 0
	for n := range 16 {
		wg.Go(func() {
			w := write(phi.Ref{Type: "Patient", ID: fmt.Sprint(n)}, 1, fmt.Sprint(n))
			w.Tokens = []phi.Token{old}
			alternatives := []phi.Token{old}
			if n%2 == 0 {
				alternatives = []phi.Token{fresh, old}
			}
			err := s.Commit(ctx, []phi.Write{w}, []phi.Guard{{Type: "Patient", Tokens: [][]phi.Token{alternatives}}})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				stored++
			} else if !errors.Is(err, phi.ErrGuard) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if stored != 1 {
		t.Errorf("%d were stored, want 1", stored)
	}
}

// Whoever changes a generation tells, without thinking of it.
func TestGenerationsTell(t *testing.T) {
	_, name := open(t)
	listener := connect(t, name, "chartkeep_records")
	must(t, listener, `LISTEN chartkeep_keys`)
	must(t, connect(t, name, "chartkeep_keys"), `INSERT INTO index_generation (id, state) VALUES (2, 'reading')`)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := listener.WaitForNotification(ctx); err != nil {
		t.Error(err)
	}
}

// The records role can neither make, change nor remove generations.
func TestGenerationsAreNotTheRecordsRole(t *testing.T) {
	_, name := open(t)
	conn := connect(t, name, "chartkeep_records")
	for _, sql := range []string{
		`INSERT INTO index_generation (id, state) VALUES (9, 'reading')`, `DELETE FROM index_generation`,
		`UPDATE index_generation SET state = 'retiring'`, `UPDATE index_generation SET names = 'exact'`, `UPDATE index_generation SET rules = 1`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("%s: %v", sql, err)
		}
	}
}
