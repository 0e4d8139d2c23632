package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// cell looks like a sealed cell under key 1: format, key, nonce and tag about whole blocks.
func cell(text string) []byte {
	c := append([]byte{1, 0, 0, 0, 1}, make([]byte, 28+(len(text)/32+1)*32)...)
	copy(c[5:], text)
	return c
}

// sealOf looks like the seal of a row under a key.
func sealOf(key uint32) []byte {
	seal := randomBytes(147)
	seal[0], seal[114] = 1, 1
	binary.BigEndian.PutUint32(seal[115:], key)
	return seal
}

func testKey(subject phi.UUID) phi.WrappedKey {
	return phi.WrappedKey{Subject: subject, KeyID: 1, KEK: "kek-1", Wrapped: randomBytes(60)}
}

// keyed stores a key-encryption key and the organisation's data key, under which write seals.
func keyed(t testing.TB, db *DB) {
	t.Helper()
	if _, err := db.Keys().KEK(t.Context(), "", &keyset.WrappedKEK{ID: "kek-1", Root: "test", Wrapped: randomBytes(60)}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Records().EnsureKey(t.Context(), testKey(phi.UUID{})); err != nil {
		t.Fatal(err)
	}
}

// write makes a version of a record as phi would.
func write(ref phi.Ref, version int64, patients ...string) phi.Write {
	w := phi.Write{IndexID: 1, Sealed: phi.Sealed{
		Ref: ref, Row: random16(), Version: version, Updated: time.UnixMilli(1_700_000_000_000 + version).UTC(), Method: "PUT",
		Patients: patients, KeyID: 1, Seal: sealOf(1), Digest: random16(),
	}, Expect: version - 1}
	w.Cells[phi.ClassName] = cell("name")
	w.Cells[phi.ClassClinical] = cell(fmt.Sprintf("clinical %d", version))
	return w
}

func TestRecordRoundTrip(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	ref := phi.Ref{Type: "Observation", ID: "o-1"}
	w := write(ref, 1, "p-2", "p-1")
	w.Subject, w.Segment, w.KeyID, w.Seal = random16(), 65535, 4294967295, sealOf(4294967295)
	for _, c := range w.Cells {
		if c != nil {
			binary.BigEndian.PutUint32(c[1:], w.KeyID)
		}
	}
	key := phi.WrappedKey{Subject: w.Subject, Segment: 65535, KeyID: 4294967295, KEK: "kek-1", Wrapped: randomBytes(60)}
	w.NewKeys = []phi.WrappedKey{key}
	if err := s.Commit(ctx, []phi.Write{w}, nil); err != nil {
		t.Fatal(err)
	}
	for classes := range phi.AllClasses + 1 {
		got, err := s.Fetch(ctx, ref, classes)
		if err != nil {
			t.Fatal(err)
		}
		want := w.Sealed
		want.Fetched, want.Key = classes, key
		for c := range phi.Class(phi.NumClasses) {
			if !classes.Has(c) {
				want.Cells[c] = nil
			}
		}
		equalSealed(t, got, &want)
	}
	if _, err := s.Fetch(ctx, phi.Ref{Type: "Observation", ID: "o-2"}, 0); !errors.Is(err, phi.ErrNotFound) {
		t.Errorf("Fetch of an unknown record: %v", err)
	}
	if k, err := s.Key(ctx, w.Subject, 65535); err != nil || k.KeyID != key.KeyID || string(k.Wrapped) != string(key.Wrapped) {
		t.Errorf("Key: %+v, %v", k, err)
	}
	if _, err := s.Key(ctx, w.Subject, 1); !errors.Is(err, phi.ErrNotFound) {
		t.Errorf("Key of an unknown segment: %v", err)
	}
}

func equalSealed(t interface {
	Helper()
	Errorf(string, ...any)
}, got, want *phi.Sealed) {
	t.Helper()
	if g, w := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", *want); g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
	for c := range got.Cells {
		if (got.Cells[c] == nil) != (want.Cells[c] == nil) {
			t.Errorf("cell %d: nil is %t, want %t", c, got.Cells[c] == nil, want.Cells[c] == nil)
		}
	}
}

func TestCommitConflicts(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	a, b := phi.Ref{Type: "Patient", ID: "a"}, phi.Ref{Type: "Patient", ID: "b"}
	if err := s.Commit(ctx, []phi.Write{write(a, 1, "a")}, nil); err != nil {
		t.Fatal(err)
	}
	tests := map[string]phi.Write{
		"created twice":      write(a, 1, "a"),
		"stale version":      write(a, 3, "a"),
		"update of nothing":  write(b, 2, "b"),
		"version from ahead": write(a, 9, "a"),
	}
	for name, w := range tests {
		// A good write beside it must not be stored either.
		err := s.Commit(ctx, []phi.Write{write(phi.Ref{Type: "Patient", ID: "z"}, 1, "z"), w}, nil)
		var conflict *phi.ConflictError
		if !errors.As(err, &conflict) || !errors.Is(err, phi.ErrVersion) || conflict.Ref != w.Ref {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Fetch(ctx, phi.Ref{Type: "Patient", ID: "z"}, 0); !errors.Is(err, phi.ErrNotFound) {
			t.Errorf("%s: its neighbour was stored", name)
		}
	}
}

func TestCommitRaces(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	const writers, rounds, records = 8, 5, 4
	var wg sync.WaitGroup
	wins := make([]int, writers)
	for n := range writers {
		wg.Go(func() {
			for round := range int64(rounds) {
				var writes []phi.Write
				for r := range records {
					// Different orders: without ordered locks this would deadlock.
					id := fmt.Sprint((r + n) % records)
					writes = append(writes, write(phi.Ref{Type: "Patient", ID: id}, round+1, id))
				}
				for {
					err := s.Commit(ctx, writes, nil)
					if err == nil {
						wins[n]++
					} else if !errors.Is(err, phi.ErrVersion) {
						t.Error(err)
					} else if got, err := s.Fetch(ctx, phi.Ref{Type: "Patient", ID: "0"}, 0); err != nil || got.Version <= round {
						continue // this round is not over: somebody else's commit is still to come
					}
					break
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range wins {
		total += n
	}
	if total != rounds {
		t.Errorf("%d commits won %d rounds", total, rounds)
	}
	history, err := s.FetchHistory(ctx, phi.Ref{Type: "Patient", ID: "0"}, 0, 0, 100)
	if err != nil || len(history) != rounds {
		t.Errorf("history of %d versions, want %d (%v)", len(history), rounds, err)
	}
}

func TestGuardRace(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	tokens := []phi.Token{{Kind: phi.TokenIdentifier, Value: random16()}, {Kind: phi.TokenBirthDate, Value: random16()}}
	guards := []phi.Guard{{Type: "Patient", Tokens: [][]phi.Token{tokens[:1], tokens[1:]}}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	stored, refused := 0, 0
	for n := range 16 {
		wg.Go(func() {
			id := fmt.Sprint(n)
			w := write(phi.Ref{Type: "Patient", ID: id}, 1, id)
			w.Tokens = tokens
			err := s.Commit(ctx, []phi.Write{w}, guards)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				stored++
			case errors.Is(err, phi.ErrGuard):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if stored != 1 || refused != 15 {
		t.Errorf("%d stored, %d refused; want 1 and 15", stored, refused)
	}
	// One token of two, and another type, do not match.
	other := write(phi.Ref{Type: "Person", ID: "x"}, 1)
	if err := s.Commit(ctx, []phi.Write{other}, []phi.Guard{
		{Type: "Person", Tokens: guards[0].Tokens},
		{Type: "Patient", Tokens: [][]phi.Token{tokens[:1], {{Kind: phi.TokenEmail, Value: random16()}}}},
	}); err != nil {
		t.Error(err)
	}
}

func TestPlainCellsAreRefused(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	for class := range phi.Class(phi.NumClasses) {
		for _, text := range []string{"Jane Doe", "", "Jane Doe, and a text of more than thirty-three bytes"} {
			w := write(phi.Ref{Type: "Patient", ID: "p"}, 1, "p")
			w.Cells[class] = []byte(text)
			if err := s.Commit(ctx, []phi.Write{w}, nil); err == nil {
				t.Errorf("%s took %q", class, text)
			}
		}
	}
}

func TestSecretsAndKeys(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	var wg sync.WaitGroup
	got := make([]phi.WrappedKey, 8)
	ensured := make([]phi.WrappedKey, 8)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = s.Secret(ctx, "page", testKey(phi.UUID{})); err != nil {
				t.Error(err)
			}
			if ensured[i], err = s.EnsureKey(ctx, testKey(phi.UUID{15: 1})); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range got {
		if string(got[i].Wrapped) != string(got[0].Wrapped) || string(ensured[i].Wrapped) != string(ensured[0].Wrapped) {
			t.Fatal("two callers got different secrets or keys")
		}
	}
	special := testKey(phi.UUID{15: 1})
	special.Segment = 1
	if k, err := s.EnsureKey(ctx, special); err != nil || string(k.Wrapped) != string(special.Wrapped) {
		t.Errorf("key of another segment beside the general one: %v", err)
	}
	special.Subject = phi.UUID{15: 2}
	if _, err := s.EnsureKey(ctx, special); !errors.Is(err, phi.ErrNotFound) {
		t.Errorf("key of another segment of nobody: %v, want ErrNotFound", err)
	}
	digest := random16()
	if done, err := s.Imported(ctx, digest); err != nil || done {
		t.Errorf("Imported: %t, %v", done, err)
	}
	for range 2 {
		if err := s.MarkImported(ctx, digest); err != nil {
			t.Fatal(err)
		}
	}
	if done, err := s.Imported(ctx, digest); err != nil || !done {
		t.Errorf("Imported after MarkImported: %t, %v", done, err)
	}
}

// TestIndexSecretIsNotMadeAnew: another key in the place of a lost one would hide what is indexed.
func TestIndexSecretIsNotMadeAnew(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	if _, err := s.Secret(ctx, "index-identifier", testKey(phi.UUID{1})); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, []phi.Write{write(phi.Ref{Type: "Patient", ID: "p"}, 1, "p")}, nil); err != nil {
		t.Fatal(err)
	}
	must(t, connect(t, name, ""), `DELETE FROM phi_secret WHERE name = 'index-identifier'`)
	if _, err := s.Secret(ctx, "index-identifier", testKey(phi.UUID{2})); !errors.Is(err, phi.ErrSecretLost) {
		t.Errorf("a lost secret was made anew: %v", err)
	}
	for _, other := range []string{"index-identifier/2", "page"} {
		if _, err := s.Secret(ctx, other, testKey(phi.UUID{3})); err != nil {
			t.Errorf("%s: %v", other, err)
		}
	}
}

// TestLikeMemory plays random calls on PostgreSQL and on the storage in memory: both must answer alike.
func TestLikeMemory(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	admin := connect(t, name, "")
	ids := rapid.SampledFrom([]string{"a", "b", "C", "d-1", "d.2"})
	types := rapid.SampledFrom([]string{"Patient", "Encounter", "Consent"})
	people := rapid.SampledFrom([]string{"a", "b", "C"})
	doctors := rapid.SampledFrom([]string{"rivera", "chen"})
	token := rapid.Custom(func(t *rapid.T) phi.Token {
		return phi.Token{Kind: phi.TokenKind(rapid.IntRange(1, 2).Draw(t, "kind")), Value: [16]byte{rapid.Byte().Draw(t, "value") % 3}}
	})
	// Moments that are far from now, from now with a tail, and from each other's ends.
	today := time.Now().UTC().Truncate(24 * time.Hour)
	at := func(days ...int) *rapid.Generator[time.Time] {
		return rapid.Custom(func(t *rapid.T) time.Time {
			if day := rapid.SampledFrom(days).Draw(t, "day"); day != 0 {
				return today.AddDate(0, 0, day)
			}
			return time.Time{}
		})
	}
	starts, ends := at(0, 0, -50, 2, 10), at(0, 0, -40, -20, 15)
	purposes := rapid.SampledFrom([]string{"TREAT", "HRESCH"})
	sets := rapid.Custom(func(t *rapid.T) auth.SegmentSet {
		return auth.SegmentSet(rapid.SampledFrom([]int{0, 0, 2, 4, 6}).Draw(t, "set"))
	})
	rules := rapid.Custom(func(t *rapid.T) auth.ConsentRule {
		return auth.ConsentRule{
			Depth: rapid.IntRange(0, 2).Draw(t, "depth"), Permit: rapid.Bool().Draw(t, "permit"), Segments: sets.Draw(t, "segments"),
			Actor:    rapid.SampledFrom([]string{"", "Practitioner/rivera", "Practitioner/chen"}).Draw(t, "actor"),
			Purposes: rapid.SliceOfNDistinct(purposes, 0, 1, rapid.ID).Draw(t, "purposes"),
			From:     starts.Draw(t, "from"), Until: at(0, 0, 15).Draw(t, "until"),
		}
	})
	byText := func(a, b auth.ConsentRule) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	rapid.Check(t, func(r *rapid.T) {
		ctx := t.Context()
		if _, err := admin.Exec(ctx, `TRUNCATE record, record_version, record_patient, index_token, treatment, consent_rule, phi_key`); err != nil {
			r.Fatal(err)
		}
		memory, stored := phitest.NewStorage(), db.Records()
		for _, s := range []phi.Storage{memory, stored} {
			for segment := range uint16(3) {
				if _, err := s.EnsureKey(ctx, phi.WrappedKey{Segment: segment, KeyID: 1, KEK: "kek-1", Wrapped: make([]byte, 60)}); err != nil {
					r.Fatal(err)
				}
			}
		}
		same := func(doing string, a, b error) bool {
			if (a == nil) != (b == nil) || errors.Is(a, phi.ErrVersion) != errors.Is(b, phi.ErrVersion) ||
				errors.Is(a, phi.ErrGuard) != errors.Is(b, phi.ErrGuard) || errors.Is(a, phi.ErrKey) != errors.Is(b, phi.ErrKey) || errors.Is(a, phi.ErrNotFound) != errors.Is(b, phi.ErrNotFound) {
				r.Fatalf("%s: PostgreSQL says %v, memory says %v", doing, a, b)
			}
			return a == nil
		}
		sameRows := func(doing string, a, b []*phi.Sealed) {
			if len(a) != len(b) {
				r.Fatalf("%s: PostgreSQL has %d rows, memory %d", doing, len(a), len(b))
			}
			for i := range a {
				equalSealed(r, a[i], b[i])
			}
		}
		for range rapid.IntRange(1, 12).Draw(r, "commits") {
			var writes []phi.Write
			seen := map[phi.Ref]bool{}
			for range rapid.IntRange(1, 4).Draw(r, "writes") {
				ref := phi.Ref{Type: types.Draw(r, "type"), ID: ids.Draw(r, "id")}
				if seen[ref] {
					continue
				}
				seen[ref] = true
				expect := int64(0)
				if current, err := memory.Fetch(ctx, ref, 0); err == nil {
					expect = current.Version
				}
				if rapid.IntRange(0, 9).Draw(r, "stale") == 0 {
					expect++
				}
				w := write(ref, expect+1, slices.Compact(rapid.SliceOfN(people, 0, 2).Draw(r, "patients"))...)
				w.Tokens = rapid.SliceOfNDistinct(token, 0, 3, rapid.ID).Draw(r, "tokens")
				for range rapid.IntRange(0, 2).Draw(r, "treats") {
					treatment := phi.Treatment{
						Practitioner: doctors.Draw(r, "doctor"), Patient: people.Draw(r, "patient"), From: starts.Draw(r, "from"), Until: ends.Draw(r, "until"),
					}
					if treatment.Until.IsZero() || treatment.Until.After(treatment.From) {
						w.Treats = append(w.Treats, treatment)
					}
				}
				if w.Type == "Consent" && rapid.Bool().Draw(r, "applied") {
					w.Consent = people.Draw(r, "whose consent")
					w.Rules = rapid.SliceOfN(rules, 0, 4).Draw(r, "rules")
				}
				w.Segment = rapid.SampledFrom([]uint16{0, 0, 1, 2}).Draw(r, "segment")
				if rapid.IntRange(0, 19).Draw(r, "erased") == 0 {
					w.Subject = phi.UUID{1} // nobody's key
				}
				if rapid.IntRange(0, 4).Draw(r, "delete") == 0 {
					w.Method, w.Cells, w.Tokens, w.Treats, w.Rules = "DELETE", [phi.NumClasses][]byte{}, nil, nil, nil
				}
				writes = append(writes, w)
			}
			var guards []phi.Guard
			if rapid.IntRange(0, 4).Draw(r, "guarded") == 0 {
				guards = []phi.Guard{{Type: types.Draw(r, "type"), Tokens: rapid.SliceOfN(rapid.SliceOfN(token, 1, 2), 1, 2).Draw(r, "guard")}}
				if rapid.Bool().Draw(r, "except") {
					guards[0].Except = map[string]int64{ids.Draw(r, "excepted"): rapid.Int64Range(0, 2).Draw(r, "its version")}
				}
			}
			same("Commit", stored.Commit(ctx, writes, guards), memory.Commit(ctx, writes, guards))
		}
		classes := phi.ClassSet(rapid.IntRange(0, int(phi.AllClasses)).Draw(r, "classes"))
		for range 8 {
			sel := phi.Selection{Type: types.Draw(r, "type"), Limit: rapid.IntRange(1, 5).Draw(r, "limit"), Named: rapid.Bool().Draw(r, "named")}
			if rapid.Bool().Draw(r, "by ids") {
				sel.IDs = rapid.SliceOfN(ids, 0, 3).Draw(r, "ids")
			}
			if rapid.Bool().Draw(r, "by patients") {
				sel.Patients = rapid.SliceOfN(people, 0, 2).Draw(r, "patients")
			}
			for range rapid.IntRange(0, 2).Draw(r, "conjuncts") {
				sel.Tokens = append(sel.Tokens, rapid.SliceOfN(token, 1, 2).Draw(r, "alternatives"))
			}
			switch rapid.IntRange(0, 2).Draw(r, "filter") {
			case 1:
				sel.Practitioner = doctors.Draw(r, "practitioner")
			case 2:
				sel.Patient = people.Draw(r, "patient")
			}
			if rapid.Bool().Draw(r, "gates") {
				sel.Gates = &auth.Filter{
					Decision: auth.Decision{Purpose: purposes.Draw(r, "purpose")}, Exempt: rapid.IntRange(0, 5).Draw(r, "exempt") == 0,
					Actor:    auth.Actor{Practitioner: rapid.SampledFrom([]string{"", "rivera", "chen"}).Draw(r, "actor")},
					Segments: sets.Draw(r, "open"), Closed: sets.Draw(r, "closed"),
				}
			}
			if rapid.Bool().Draw(r, "after") {
				sel.After = ids.Draw(r, "after id")
			}
			if rapid.Bool().Draw(r, "since") {
				sel.UpdatedFrom = time.UnixMilli(1_700_000_000_002)
				sel.UpdatedTo = time.UnixMilli(1_700_000_000_004)
			}
			a, errA := stored.Search(ctx, sel, classes)
			b, errB := memory.Search(ctx, sel, classes)
			if same("Search", errA, errB) {
				sameRows(fmt.Sprintf("Search %+v", sel), a, b)
			}
		}
		for _, kind := range []string{"Patient", "Encounter", "Consent"} {
			for _, id := range []string{"a", "b", "C", "d-1", "d.2"} {
				ref := phi.Ref{Type: kind, ID: id}
				before, limit := int64(rapid.IntRange(0, 3).Draw(r, "before")), rapid.IntRange(1, 4).Draw(r, "versions")
				h, errA := stored.FetchHistory(ctx, ref, classes, before, limit)
				m, errB := memory.FetchHistory(ctx, ref, classes, before, limit)
				if same("FetchHistory", errA, errB) {
					sameRows("FetchHistory", h, m)
				}
				for version := range int64(4) {
					x, errA := stored.FetchVersion(ctx, ref, version, classes)
					y, errB := memory.FetchVersion(ctx, ref, version, classes)
					if same("FetchVersion", errA, errB) {
						equalSealed(r, x, y)
					}
				}
				for _, doctor := range []string{"rivera", "chen"} {
					a, errA := db.Auth().Facts(ctx, auth.Actor{Practitioner: doctor}, []string{id})
					b, errB := memory.Facts(ctx, auth.Actor{Practitioner: doctor}, []string{id})
					if !same("Facts", errA, errB) {
						continue
					}
					a[0].RelationshipShard, a[0].ConsentShard = 0, 0
					slices.SortFunc(a[0].Consents, byText)
					slices.SortFunc(b[0].Consents, byText)
					if fmt.Sprint(a[0]) != fmt.Sprint(b[0]) {
						r.Fatalf("Facts(%s, %s): PostgreSQL says %+v, memory %+v", doctor, id, a, b)
					}
				}
			}
		}
	})
}

func TestFetchMany(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	s, ctx := db.Records(), t.Context()
	var refs []phi.Ref
	var writes []phi.Write
	for i := range 20 {
		ref := phi.Ref{Type: "Observation", ID: fmt.Sprint(i)}
		refs = append(refs, ref, ref, phi.Ref{Type: "Condition", ID: ref.ID})
		writes = append(writes, write(ref, 1, "p"))
	}
	if err := s.Commit(ctx, writes, nil); err != nil {
		t.Fatal(err)
	}
	got, err := s.FetchMany(ctx, refs, phi.AllClasses)
	if err != nil || len(got) != 20 {
		t.Errorf("%d rows, want 20 (%v)", len(got), err)
	}
	if none, err := s.FetchMany(ctx, nil, 0); err != nil || none != nil {
		t.Errorf("FetchMany of nothing: %v, %v", none, err)
	}
}

func BenchmarkCommit500(b *testing.B) {
	db, _ := open(b)
	keyed(b, db)
	n := 0
	for b.Loop() {
		writes := make([]phi.Write, 500)
		for i := range writes {
			n++
			writes[i] = write(phi.Ref{Type: "Observation", ID: fmt.Sprintf("%x-%d", random16(), n)}, 1, fmt.Sprint(n%100))
			writes[i].Cells[phi.ClassClinical] = cell(string(make([]byte, 700)))
			writes[i].Tokens = []phi.Token{{Kind: 1, Value: random16()}, {Kind: 2, Value: random16()}}
		}
		if err := db.Records().Commit(b.Context(), writes, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(500*b.N)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkFetch(b *testing.B) {
	db, _ := open(b)
	keyed(b, db)
	ref := phi.Ref{Type: "Patient", ID: "p"}
	w := write(ref, 1, "p")
	w.NewKeys = []phi.WrappedKey{testKey(w.Subject)}
	if err := db.Records().Commit(b.Context(), []phi.Write{w}, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := db.Records().Fetch(b.Context(), ref, phi.AllClasses); err != nil {
			b.Fatal(err)
		}
	}
}
