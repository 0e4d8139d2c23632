package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// rotating opens the storage of rotations.
func rotating(t testing.TB, db *DB) *Rotation {
	t.Helper()
	r, err := db.Rotation(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// next is the key after one, as a rotation would make it.
func next(k keyset.Binding) phi.StoredKey {
	return phi.StoredKey{WrappedKey: phi.WrappedKey{Subject: k.Subject, Segment: k.Segment, KeyID: k.KeyID + 1, KEK: "kek-1", Wrapped: randomBytes(60)}}
}

// under makes a row as if it were sealed under another key.
func under(row *phi.Sealed, key uint32) *phi.Sealed {
	anew := *row
	anew.KeyID, anew.Seal = key, sealOf(key)
	for c, cell := range anew.Cells {
		if cell != nil {
			anew.Cells[c] = slices.Clone(cell)
			anew.Cells[c][4] = byte(key)
		}
	}
	return &anew
}

// TestKeyLife walks a key from known to gone, each step twice: two rotators do nothing twice.
func TestKeyLife(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	r, s, ctx := rotating(t, db), db.Records(), t.Context()
	ref := phi.Ref{Type: "Organization", ID: "o"}
	for version := int64(1); version <= 3; version++ {
		if err := s.Commit(ctx, []phi.Write{write(ref, version)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	old := keyset.Binding{KeyID: 1}
	if retired, err := r.Activate(ctx, []keyset.Binding{old}); err != nil || len(retired) != 0 {
		t.Errorf("activated without a next key: %v, %v", retired, err)
	}
	stranger := keyset.Binding{Subject: random16(), KeyID: 1}
	first, second := next(old), next(old)
	for _, k := range []phi.StoredKey{first, second} {
		if err := r.AddKeys(ctx, []phi.StoredKey{k, next(stranger)}); err != nil {
			t.Fatal(err)
		}
	}
	known, err := r.DataKeys(ctx, phi.KeyQuery{State: phi.KeyKnown, Limit: 9})
	if err != nil || len(known) != 1 || string(known[0].Wrapped) != string(first.Wrapped) {
		t.Fatalf("known keys %+v, %v", known, err)
	}
	for i, want := range []int{1, 0} {
		if retired, err := r.Activate(ctx, []keyset.Binding{old, stranger}); err != nil || len(retired) != want {
			t.Errorf("activating, time %d: %v, %v", i, retired, err)
		}
	}
	if k, err := s.Key(ctx, phi.UUID{}, 0); err != nil || k.KeyID != 2 {
		t.Fatalf("active is %+v, %v", k, err)
	}
	// A second rotation does not begin before the first is over.
	third := next(keyset.Binding{KeyID: 2})
	if err := r.AddKeys(ctx, []phi.StoredKey{third}); err != nil {
		t.Fatal(err)
	}
	if retired, err := r.Activate(ctx, []keyset.Binding{{KeyID: 2}}); err != nil || len(retired) != 0 {
		t.Errorf("a second rotation began: %v, %v", retired, err)
	}
	// What is new is not sealed under a retired key.
	if err := s.Commit(ctx, []phi.Write{write(phi.Ref{Type: "Organization", ID: "p"}, 1)}, nil); !errors.Is(err, phi.ErrKey) {
		t.Errorf("a commit under a retired key: %v", err)
	}
	if removed, err := r.RemoveKeys(ctx, []keyset.Binding{old}); err != nil || len(removed) != 0 {
		t.Errorf("a key with rows went: %v, %v", removed, err)
	}
	names, err := r.RowsUnder(ctx, []keyset.Binding{old}, 100)
	if err != nil || len(names) != 3 {
		t.Fatalf("rows %+v, %v", names, err)
	}
	if some, err := r.RowsUnder(ctx, []keyset.Binding{old}, 2); err != nil || len(some) != 2 || some[0].Superseded {
		t.Errorf("two rows, current first: %+v, %v", some, err)
	}
	rows, err := r.FetchRows(ctx, names)
	if err != nil || len(rows) != 3 {
		t.Fatalf("fetched %d rows, %v", len(rows), err)
	}
	var anew []phi.Resealed
	for _, row := range rows {
		anew = append(anew, phi.Resealed{Sealed: under(row, 2), Was: row.Seal, Superseded: row.Version < 3})
	}
	for i, want := range []int{3, 0} {
		if n, err := r.StoreResealed(ctx, anew); err != nil || n != want {
			t.Errorf("storing, time %d: %d rows, %v", i, n, err)
		}
	}
	for version := int64(1); version <= 3; version++ {
		got, err := s.FetchVersion(ctx, ref, version, phi.AllClasses)
		if err != nil || got.KeyID != 2 || got.Key.KeyID != 2 || string(got.Key.Wrapped) != string(first.Wrapped) || got.Cells[phi.ClassName][4] != 2 {
			t.Errorf("version %d: %+v, %v", version, got, err)
		}
	}
	for i, want := range []int{1, 0} {
		if removed, err := r.RemoveKeys(ctx, []keyset.Binding{old, {KeyID: 2}}); err != nil || len(removed) != want {
			t.Errorf("removing, time %d: %v, %v", i, removed, err)
		}
	}
	// The role replaces what is stored, and deletes no record.
	conn := connect(t, name, "chartkeep_keys")
	for _, sql := range []string{`DELETE FROM record`, `DELETE FROM record_version`, `INSERT INTO record_version SELECT * FROM record_version`, `TRUNCATE phi_key`} {
		if _, err := conn.Exec(ctx, sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// TestSweepSkipsWriters: a row that a writer has locked is left for later, and one that was written since is left alone.
func TestSweepSkipsWriters(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	r, s, ctx := rotating(t, db), db.Records(), t.Context()
	ref := phi.Ref{Type: "Organization", ID: "o"}
	if err := s.Commit(ctx, []phi.Write{write(ref, 1)}, nil); err != nil {
		t.Fatal(err)
	}
	row, err := s.Fetch(ctx, ref, phi.AllClasses)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddKeys(ctx, []phi.StoredKey{next(keyset.Binding{KeyID: 1})}); err != nil {
		t.Fatal(err)
	}
	anew := []phi.Resealed{{Sealed: under(row, 2), Was: row.Seal}}
	writer := connect(t, name, "chartkeep_records")
	must(t, writer, `BEGIN`)
	must(t, writer, `SELECT FROM record WHERE id = 'o' FOR UPDATE`)
	began := time.Now()
	if n, err := r.StoreResealed(ctx, anew); err != nil || n != 0 || time.Since(began) > time.Second {
		t.Errorf("beside a writer: %d rows after %s, %v", n, time.Since(began), err)
	}
	must(t, writer, `ROLLBACK`)
	if err := s.Commit(ctx, []phi.Write{write(ref, 2)}, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := r.StoreResealed(ctx, anew); err != nil || n != 0 {
		t.Errorf("after a write: %d rows, %v", n, err)
	}
	if got, err := s.Fetch(ctx, ref, 0); err != nil || got.Version != 2 || got.KeyID != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestRemovalWaitsForCommits: a key does not go while a transaction holds it that has sealed under it, and what that stored is seen.
func TestRemovalWaitsForCommits(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	r, ctx := rotating(t, db), t.Context()
	w := write(phi.Ref{Type: "Organization", ID: "o"}, 1)
	if err := db.Records().Commit(ctx, []phi.Write{w}, nil); err != nil {
		t.Fatal(err)
	}
	old := keyset.Binding{KeyID: 1}
	if err := r.AddKeys(ctx, []phi.StoredKey{next(old)}); err != nil {
		t.Fatal(err)
	}
	// As Commit does: hold the key, then store. The rotation retires the key in between.
	writer := connect(t, name, "")
	must(t, writer, `BEGIN`)
	must(t, writer, `SELECT FROM phi_key WHERE key_id = 1 FOR KEY SHARE`)
	if retired, err := r.Activate(ctx, []keyset.Binding{old}); err != nil || len(retired) != 1 {
		t.Fatalf("a writer is waited for: %v, %v", retired, err)
	}
	row, err := db.Records().Fetch(ctx, w.Ref, phi.AllClasses)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.StoreResealed(ctx, []phi.Resealed{{Sealed: under(row, 2), Was: row.Seal}}); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	must(t, writer, `INSERT INTO record SELECT 'Organization', 'p', gen_random_uuid(), 1, now(), 'PUT', '{}', subject, segment, 1, NULL, NULL, NULL, NULL, NULL, NULL,
		overlay(overlay(seal PLACING '\x00000001' FROM 116) PLACING '\x01' FROM 1), digest, 1 FROM record`)
	removed := make(chan int, 1)
	go func() {
		gone, err := r.RemoveKeys(context.WithoutCancel(ctx), []keyset.Binding{old})
		if err != nil {
			t.Errorf("removing: %v", err)
		}
		removed <- len(gone)
	}()
	select {
	case n := <-removed:
		t.Fatalf("%d keys went under a writer", n)
	case <-time.After(300 * time.Millisecond):
	}
	must(t, writer, `COMMIT`)
	if n := <-removed; n != 0 {
		t.Error("a key went whose row was just stored")
	}
}

// TestClaims: what one rotator has claimed no other gets, until it releases it or its session ends.
func TestClaims(t *testing.T) {
	db, name := open(t)
	a, b := rotating(t, db), rotating(t, db)
	one, two := keyset.Binding{Subject: random16(), KeyID: 1}, keyset.Binding{Subject: random16(), KeyID: 1}
	mine, release, err := a.Claim(t.Context(), []keyset.Binding{one})
	if err != nil || len(mine) != 1 {
		t.Fatal(mine, err)
	}
	others, releaseOthers, err := b.Claim(t.Context(), []keyset.Binding{one, two})
	if err != nil || len(others) != 1 || others[0] != two {
		t.Errorf("claimed %v, %v", others, err)
	}
	releaseOthers()
	release()
	mine, release, err = b.Claim(t.Context(), []keyset.Binding{one})
	if err != nil || len(mine) != 1 {
		t.Errorf("after the release: %v, %v", mine, err)
	}
	defer release()
	must(t, connect(t, name, ""), `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()`)
	for deadline := time.Now().Add(5 * time.Second); ; {
		mine, release, err := a.Claim(t.Context(), []keyset.Binding{one})
		if err != nil {
			t.Fatal(err)
		}
		release()
		if len(mine) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a claim outlives its session")
		}
	}
}

// TestKeyEncryptionKeyStaysWhileNamed: the database does not let go of what wraps a key.
func TestKeyEncryptionKeyStaysWhileNamed(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	r, ctx := rotating(t, db), t.Context()
	for range 2 {
		active, err := r.BeginEpoch(ctx, "kek-1", keyset.WrappedKEK{ID: "kek-2", Root: "test", Wrapped: randomBytes(60), Active: true})
		if err != nil || active.ID != "kek-2" || !active.Active {
			t.Fatalf("%+v, %v", active, err)
		}
	}
	if removed, err := r.RemoveKEK(ctx, "kek-1"); err != nil || removed {
		t.Errorf("removed %t, %v", removed, err)
	}
	keys, err := r.WrappedBy(ctx, "kek-1", keyset.Binding{}, 10)
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	k := keys[0]
	was := k.Wrapped
	k.KEK, k.Wrapped = "kek-2", randomBytes(60)
	for i, want := range []int{1, 0} {
		if n, err := r.StoreRewrapped(ctx, []phi.Rewrapped{{WrappedKey: k, Was: was}}); err != nil || n != want {
			t.Errorf("time %d: %d, %v", i, n, err)
		}
	}
	if removed, err := r.RemoveKEK(ctx, "kek-1"); err != nil || !removed {
		t.Errorf("removed %t, %v", removed, err)
	}
	if removed, err := r.RemoveKEK(ctx, "kek-2"); err == nil && removed {
		if keks, err := r.KEKs(ctx); err != nil || len(keks) != 1 {
			t.Errorf("the active one went: %+v, %v", keks, err)
		}
	}
}

// TestSummary sums up what is there.
func TestSummary(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	r := rotating(t, db)
	admin := connect(t, name, "")
	must(t, admin, `UPDATE phi_key SET created = current_date - 2000`)
	must(t, admin, `INSERT INTO phi_key (subject, segment, key_id, kek, wrapped, uses) VALUES (gen_random_uuid(), 0, 1, 'kek-1', substr(sha256('') || sha256(''), 1, 60), 1 << 28)`)
	renewal, err := r.BeginRenewal(t.Context(), "ines")
	if err != nil || renewal.By != "ines" {
		t.Fatal(renewal, err)
	}
	if again, err := r.BeginRenewal(t.Context(), "sam"); err != nil || again.ID != renewal.ID || again.By != "ines" {
		t.Errorf("a second renewal: %+v, %v", again, err)
	}
	s, err := r.Summary(t.Context(), phi.KeysDueBefore(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if s.Due != 2 || s.Worn != 1 || s.Turning != 0 || len(s.KEKs) != 1 || s.KEKs[0].DataKeys != 2 || len(s.DataKeys) != 1 || s.Renewal == nil || s.Renewal.By != "ines" || len(s.Generations) != 1 {
		t.Errorf("summary %+v", s)
	}
	due, err := r.DataKeys(t.Context(), phi.KeyQuery{State: phi.KeyActive, Due: phi.KeysDueBefore(time.Now()), Limit: 9})
	if err != nil || len(due) != 2 {
		t.Errorf("due %+v, %v", due, err)
	}
	if err := r.FinishRenewal(t.Context(), renewal.ID); err != nil {
		t.Fatal(err)
	}
	if again, err := r.BeginRenewal(t.Context(), "sam"); err != nil || again.ID == renewal.ID {
		t.Errorf("after the end: %+v, %v", again, err)
	}
}

// TestRotationPlans: what a rotation asks again and again goes by an index.
func TestRotationPlans(t *testing.T) {
	db, name := open(t)
	fillRecords(t, connect(t, name, ""))
	r := rotating(t, db)
	conn, err := r.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		must(t, conn.Conn(), `SET plan_cache_mode = `+mode)
		where, _ := keyCondition(phi.KeyQuery{State: phi.KeyRetired})
		for what, plan := range map[string]string{
			"retired keys": explain(t, conn.Conn(), `SELECT * FROM phi_key k WHERE `+where+` ORDER BY subject, segment, key_id LIMIT 10`),
			"rows under": explain(t, conn.Conn(), `SELECT r.type, r.id FROM `+namedKeys+` JOIN record r USING (subject, segment, key_id) LIMIT 10`,
				[][16]byte{random16()}, []int32{0}, []int64{1}),
			"of a generation": explain(t, conn.Conn(), `SELECT r.type, r.id FROM record r WHERE r.index_id = $1 LIMIT 10`, int32(7)),
			"resealed": explain(t, conn.Conn(), `SELECT FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) w(type, id, version, was)
				JOIN record l USING (type, id, version) WHERE l.seal = w.was FOR NO KEY UPDATE OF l SKIP LOCKED`, []string{"Patient"}, []string{"id-20"}, []int64{1}, [][]byte{{1}}),
		} {
			if strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Hash") || strings.Contains(plan, "Merge") {
				t.Errorf("%s, %s:\n%s", what, mode, plan)
			}
		}
	}
}
