package postgres

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
)

func merging(t testing.TB, db *DB) phi.MergeStorage {
	t.Helper()
	s, err := db.Merges(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestMergesExclude: of two merges that begin at once and share a patient, as source of one and target of the other, one is refused.
func TestMergesExclude(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	s := merging(t, db)
	a, b, c := chartOf(t, db, "a"), chartOf(t, db, "b"), chartOf(t, db, "c")
	// As BeginMerge does, of b into c.
	other := connect(t, name, "")
	must(t, other, `BEGIN`)
	must(t, other, `SELECT pg_advisory_xact_lock(hashtextextended('b', `+mergeSeed+`)), pg_advisory_xact_lock(hashtextextended('c', `+mergeSeed+`))`)
	must(t, other, `INSERT INTO phi_merge (`+mergeColumns+`) VALUES (gen_random_uuid(), 'b', 'c', '`+b.String()+`', '`+c.String()+`', 1, 'merging', 'x', now())`)
	begun := make(chan error, 1)
	go func() {
		begun <- s.BeginMerge(context.WithoutCancel(t.Context()), &phi.Merge{
			ID: random16(), Source: "a", Target: "b", SourceSubject: a, TargetSubject: b, TargetVersion: 1, State: phi.Merging, By: "x", Begun: time.Now(),
		})
	}()
	waiting(t, name)
	must(t, other, `COMMIT`)
	if err := <-begun; !errors.Is(err, phi.ErrMerge) {
		t.Errorf("a merge into a patient who is being merged: %v", err)
	}
}

// TestErasedWhileMerged: with a person go the subjects of all that were merged into it, whose keys are in older backups; and no unmerge of it
// begins.
func TestErasedWhileMerged(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	ctx, s, admin, before := t.Context(), db.Erasures(), connect(t, name, ""), phi.UUID(random16())
	subject := chartOf(t, db, "tgt")
	source := write(phi.Ref{Type: "Patient", ID: "src"}, 1, "src", "tgt")
	source.Subject = subject
	if err := db.Records().Commit(ctx, []phi.Write{source}, nil); err != nil {
		t.Fatal(err)
	}
	merge := phi.UUID(random16())
	must(t, admin, `INSERT INTO phi_merge (`+mergeColumns+`) VALUES ('`+merge.String()+`', 'src', 'tgt', '`+before.String()+`', '`+subject.String()+`', 1, 'merged', 'x', now())`)
	e := requestOf(t, s, "tgt")
	must(t, admin, `UPDATE phi_merge SET begun_at = begun_at + interval '1 minute'`)
	if err := s.Erase(ctx, e.ID, "Amari", subject, sure); !errors.Is(err, phi.ErrErasureGrown) {
		t.Errorf("merged since the request: %v", err)
	}
	must(t, admin, `UPDATE phi_merge SET begun_at = begun_at - interval '1 hour'`)
	if err := s.Erase(ctx, e.ID, "Amari", subject, sure); err != nil {
		t.Fatal(err)
	}
	k := testKey(before)
	_, err := admin.Exec(ctx, `INSERT INTO phi_key (subject, segment, key_id, kek, wrapped) VALUES ($1, 0, 1, $2, $3)`, [16]byte(before), k.KEK, k.Wrapped)
	if sqlState(err) != stateErased {
		t.Errorf("a key of the source's came back: %v", err)
	}
	if err := merging(t, db).BeginUnmerge(ctx, merge, random16()); !errors.Is(err, phi.ErrKey) {
		t.Errorf("an unmerge of who is erased: %v", err)
	}
}
