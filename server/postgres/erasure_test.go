package postgres

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// chartOf stores a patient with a key of its own, two observations (one of them in a second version), and an observation of somebody
// else's that names the patient.
func chartOf(t testing.TB, db *DB, patient string) (subject phi.UUID) {
	t.Helper()
	subject = random16()
	records := db.Records()
	key := testKey(subject)
	p := write(phi.Ref{Type: "Patient", ID: patient}, 1, patient)
	p.Subject, p.NewKeys, p.Tokens = subject, []phi.WrappedKey{key}, []phi.Token{{Kind: phi.TokenEmail, Value: random16()}}
	first, second := write(phi.Ref{Type: "Observation", ID: patient + "-o"}, 1, patient), write(phi.Ref{Type: "Observation", ID: patient + "-o"}, 2, patient)
	visit := write(phi.Ref{Type: "Encounter", ID: patient + "-e"}, 1, patient)
	visit.Treats = []phi.Treatment{{Practitioner: "dr", Patient: patient}}
	first.Subject, second.Subject, visit.Subject = subject, subject, subject
	second.Row = first.Row
	others := write(phi.Ref{Type: "Observation", ID: patient + "-other"}, 1, "somebody", patient)
	for _, w := range []phi.Write{p, first, second, visit, others} {
		if err := records.Commit(t.Context(), []phi.Write{w}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Auth().Grant(t.Context(), auth.Relationship{Practitioner: "dr-2", Patient: patient, Reason: "ticket 1", By: "admin"}); err != nil {
		t.Fatal(err)
	}
	return subject
}

func requestOf(t testing.TB, s phi.ErasureStorage, patient string) *phi.Erasure {
	t.Helper()
	e := &phi.Erasure{ID: random16(), Patient: patient, Reason: "case 1", RequestedBy: "Officer Diaz", RequestedAt: time.Now(), RequestEvent: audit.ID(random16())}
	if err := s.RequestErasure(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	return e
}

func sure(*phi.ErasureScope) ([]byte, error) { return []byte("certificate"), nil }

// TestErase erases a person and looks at every table afterwards.
func TestErase(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	ctx, admin, s := t.Context(), connect(t, name, ""), db.Erasures()
	subject, other := chartOf(t, db, "p-1"), chartOf(t, db, "p-2")

	scope, err := s.ErasureScope(ctx, "p-1", subject)
	if err != nil {
		t.Fatal(err)
	}
	if scope.Records != 3 || scope.Versions != 1 || scope.Tokens != 1 || scope.Relationships != 2 || scope.Mentions != 1 || len(scope.Keys) != 1 || scope.Keys[0].Root != "test" {
		t.Errorf("the scope is %+v", scope)
	}
	if _, err := s.ErasureScope(ctx, "p-1", other); !errors.Is(err, phi.ErrVersion) {
		t.Errorf("another's subject: %v", err)
	}
	if _, err := s.ErasureScope(ctx, "p-3", other); !errors.Is(err, phi.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	e := requestOf(t, s, "p-1")
	for what, refused := range map[string]struct{ err, want error }{
		"a second request":     {s.RequestErasure(ctx, &phi.Erasure{ID: random16(), Patient: "p-1", Reason: "r", RequestedBy: "x"}), phi.ErrErasurePending},
		"the same person":      {s.Erase(ctx, e.ID, " officer DIAZ ", subject, sure), phi.ErrOnePerson},
		"an unknown request":   {s.Erase(ctx, random16(), "Amari", subject, sure), phi.ErrNotFound},
		"another's subject":    {s.Erase(ctx, e.ID, "Amari", other, sure), phi.ErrVersion},
		"an unknown withdrawn": {s.WithdrawErasure(ctx, random16(), "x"), phi.ErrNotFound},
	} {
		if !errors.Is(refused.err, refused.want) {
			t.Errorf("%s: %v, want %v", what, refused.err, refused.want)
		}
	}
	// A certificate that cannot be made erases nothing.
	broken := errors.New("no signature")
	if err := s.Erase(ctx, e.ID, "Amari", subject, func(*phi.ErasureScope) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("without a certificate: %v", err)
	}
	if row, err := db.Records().Fetch(ctx, phi.Ref{Type: "Patient", ID: "p-1"}, 0); err != nil || row.Erased || row.Key.Wrapped == nil {
		t.Errorf("after what failed the row is %+v, %v", row, err)
	}
	if err := s.Erase(ctx, e.ID, "Amari", subject, sure); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []phi.Ref{{Type: "Patient", ID: "p-1"}, {Type: "Observation", ID: "p-1-o"}, {Type: "Encounter", ID: "p-1-e"}} {
		if row, err := db.Records().Fetch(ctx, ref, phi.AllClasses); err != nil || !row.Erased || row.Key.Wrapped != nil {
			t.Errorf("%s is %+v, %v", ref, row, err)
		}
	}
	if row, err := db.Records().FetchVersion(ctx, phi.Ref{Type: "Observation", ID: "p-1-o"}, 1, 0); err != nil || !row.Erased {
		t.Errorf("the version before is %+v, %v", row, err)
	}
	for _, ref := range []phi.Ref{{Type: "Patient", ID: "p-2"}, {Type: "Observation", ID: "p-2-o"}, {Type: "Observation", ID: "p-1-other"}} {
		if row, err := db.Records().Fetch(ctx, ref, 0); err != nil || row.Erased || row.Key.Wrapped == nil {
			t.Errorf("%s is %+v, %v", ref, row, err)
		}
	}
	for sql, want := range map[string]int{
		`SELECT count(*) FROM phi_key WHERE subject = $1`:                                                             0,
		`SELECT count(*) FROM index_token t JOIN record r USING (type, id) WHERE subject = $1`:                        0,
		`SELECT count(*) FROM record_patient t JOIN record r USING (type, id) WHERE subject = $1`:                     0,
		`SELECT count(*) FROM record_patient WHERE patient = 'p-1' AND $1::uuid IS NOT NULL`:                          1, // of somebody else's
		`SELECT count(*) FROM treatment WHERE patient = 'p-1' AND $1::uuid IS NOT NULL`:                               0,
		`SELECT count(*) FROM treatment WHERE patient = 'p-2' AND $1::uuid IS NOT NULL`:                               2,
		`SELECT count(*) FROM phi_erased WHERE subject = $1 AND patient = 'p-1'`:                                      1,
		`SELECT count(*) FROM phi_erasure WHERE state = 'executed' AND decided_by = 'Amari' AND $1::uuid IS NOT NULL`: 1,
	} {
		var n int
		if err := admin.QueryRow(ctx, sql, [16]byte(subject)).Scan(&n); err != nil || n != want {
			t.Errorf("%s: %d, %v; want %d", sql, n, err, want)
		}
	}
	if stored, err := s.Erasure(ctx, e.ID); err != nil || stored.State != phi.ErasureExecuted || string(stored.Certificate) != "certificate" || stored.DecidedAt.IsZero() {
		t.Errorf("the request is %+v, %v", stored, err)
	}
	for what, err := range map[string]error{"erased again": s.Erase(ctx, e.ID, "Amari", subject, sure), "withdrawn": s.WithdrawErasure(ctx, e.ID, "Amari")} {
		if !errors.Is(err, phi.ErrErasureDecided) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// No key comes back: not of a segment, not of a later generation, not from a copy, whoever brings it.
	segment, later, back := testKey(subject), testKey(subject), testKey(subject)
	segment.Segment, later.KeyID = 1, 2
	for what, k := range map[string]phi.WrappedKey{"a segment's": segment, "a later": later, "the old": back} {
		_, err := admin.Exec(ctx, `INSERT INTO phi_key (subject, segment, key_id, kek, wrapped) VALUES ($1, $2, $3, $4, $5)`, [16]byte(k.Subject), k.Segment, k.KeyID, k.KEK, k.Wrapped)
		if sqlState(err) != stateErased {
			t.Errorf("%s key came back: %v", what, err)
		}
	}
	// The rules hold against whoever has the role, too.
	keys := connect(t, name, "chartkeep_keys")
	for _, sql := range []string{
		`DELETE FROM phi_erased`, `UPDATE phi_erased SET subject = gen_random_uuid()`, `DELETE FROM phi_erasure`,
		`UPDATE phi_erasure SET reason = 'another'`, `UPDATE phi_erasure SET state = 'withdrawn', certificate = NULL`,
	} {
		if _, err := keys.Exec(ctx, sql); err == nil {
			t.Errorf("%s went through", sql)
		}
	}
}

// TestEraseHeld refuses while a hold stands on the person, or on the time of one of the versions.
func TestEraseHeld(t *testing.T) {
	db, _ := open(t)
	keyed(t, db)
	ctx, s := t.Context(), db.Erasures()
	subject := chartOf(t, db, "p-1")
	e := requestOf(t, s, "p-1")
	retention := openRetention(t, db)
	made := time.UnixMilli(1_700_000_000_000) // of every version that write makes
	for what, h := range map[string]Hold{
		"the person": {Patient: "p-1"}, "the time": {From: made.Add(-time.Hour), To: made.Add(time.Hour)},
	} {
		h.ID, h.Reason, h.By = audit.ID(random16()), "case", "counsel"
		if err := retention.Place(ctx, h); err != nil {
			t.Fatal(err)
		}
		if err := s.Erase(ctx, e.ID, "Amari", subject, sure); !errors.Is(err, phi.ErrHeld) {
			t.Errorf("a hold on %s: %v", what, err)
		}
		if err := retention.Release(ctx, h.ID, "counsel"); err != nil {
			t.Fatal(err)
		}
	}
	for what, h := range map[string]Hold{"another person": {Patient: "p-2"}, "another time": {From: made.Add(-48 * time.Hour), To: made.Add(-time.Hour)}} {
		h.ID, h.Reason, h.By = audit.ID(random16()), "case", "counsel"
		if err := retention.Place(ctx, h); err != nil {
			t.Fatal(what, err)
		}
	}
	if err := s.Erase(ctx, e.ID, "Amari", subject, sure); err != nil {
		t.Errorf("holds on others: %v", err)
	}
}

// TestEraseRaces erases while others write, place a hold, and erase, too: writers commit before it or learn that the key is gone.
func TestEraseRaces(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	ctx, admin, s := t.Context(), connect(t, name, ""), db.Erasures()
	subject := chartOf(t, db, "p-1")
	e := requestOf(t, s, "p-1")

	// A writer that holds the key makes the erasure wait, and what it wrote is counted.
	writer := connect(t, name, "chartkeep_records")
	tx, err := writer.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM phi_key WHERE subject = $1 FOR KEY SHARE`, [16]byte(subject)); err != nil {
		t.Fatal(err)
	}
	// A key of another segment that is being made, too.
	segment := testKey(subject)
	segment.Segment = 1
	if _, err := tx.Exec(ctx, `INSERT INTO phi_key (subject, segment, key_id, kek, wrapped) VALUES ($1, 1, 1, 'kek-1', $2)`, [16]byte(subject), segment.Wrapped); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	erased := make([]error, 2)
	var scopes [2]*phi.ErasureScope
	for i := range erased {
		wg.Go(func() {
			erased[i] = s.Erase(ctx, e.ID, "Amari", subject, func(scope *phi.ErasureScope) ([]byte, error) {
				scopes[i] = scope
				return []byte("certificate"), nil
			})
		})
	}
	waiting(t, name)
	// Who writes now is before it or after it.
	commit := func(id string) error {
		w := write(phi.Ref{Type: "Observation", ID: id}, 1, "p-1")
		w.Subject = subject
		return db.Records().Commit(context.WithoutCancel(ctx), []phi.Write{w}, nil)
	}
	meanwhile := make(chan error, 1)
	go func() { meanwhile <- commit("meanwhile") }()
	time.Sleep(50 * time.Millisecond)
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if errors.Is(erased[0], phi.ErrErasureDecided) {
		erased[0], erased[1], scopes[0] = erased[1], erased[0], scopes[1]
	}
	if erased[0] != nil || !errors.Is(erased[1], phi.ErrErasureDecided) {
		t.Fatalf("two who erase: %v, %v", erased[0], erased[1])
	}
	if len(scopes[0].Keys) != 2 {
		t.Errorf("destroyed %+v: the key of the other segment is missing", scopes[0].Keys)
	}
	switch err := <-meanwhile; {
	case err == nil && scopes[0].Records != 4, err != nil && (!errors.Is(err, phi.ErrKey) || scopes[0].Records != 3):
		t.Errorf("%d records, and the writer meanwhile: %v", scopes[0].Records, err)
	}
	if err := commit("late"); !errors.Is(err, phi.ErrKey) {
		t.Errorf("the late writer: %v", err)
	}
	var left int
	if err := admin.QueryRow(ctx, `SELECT count(*) FROM phi_key WHERE subject = $1`, [16]byte(subject)).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d keys are left, %v", left, err)
	}
}

// waiting returns when a session waits for a lock in the database.
func waiting(t testing.TB, name string) {
	t.Helper()
	admin := connect(t, name, "")
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var n int
		if err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'`, name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return
		}
	}
	t.Fatal("nobody waits")
}

// TestNoTokensOfTheErased: tokens that were minted from an opened row before the patient was erased do not get in afterwards.
func TestNoTokensOfTheErased(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	ctx, r, s := t.Context(), rotating(t, db), db.Erasures()
	subject := chartOf(t, db, "p-1")
	row, err := db.Records().Fetch(ctx, phi.Ref{Type: "Patient", ID: "p-1"}, phi.AllClasses)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Erase(ctx, requestOf(t, s, "p-1").ID, "Amari", subject, sure); err != nil {
		t.Fatal(err)
	}
	anew := phi.Reindexed{Sealed: row, Was: row.Seal, Tokens: []phi.Token{{Kind: phi.TokenEmail, Value: random16()}}, IndexID: 2}
	if n, err := r.StoreReindexed(ctx, []phi.Reindexed{anew}); err != nil || n != 0 {
		t.Errorf("stored %d, %v", n, err)
	}
	var tokens int
	if err := connect(t, name, "").QueryRow(ctx, `SELECT count(*) FROM index_token WHERE id = 'p-1'`).Scan(&tokens); err != nil || tokens != 0 {
		t.Errorf("%d tokens of an erased patient, %v", tokens, err)
	}
	// The row as it is now, erased, gets on to the new generation.
	erased, err := db.Records().Fetch(ctx, row.Ref, phi.AllClasses)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.StoreReindexed(ctx, []phi.Reindexed{{Sealed: erased, Was: erased.Seal, IndexID: 2}}); err != nil || n != 1 {
		t.Errorf("the erased row: %d, %v", n, err)
	}
}
