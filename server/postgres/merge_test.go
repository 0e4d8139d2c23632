package postgres

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
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

// TestConsentsWhileMerged: what a Consent denies stays denied at every step of a merge and of its undoing, for records that have moved and for
// those that have not.
func TestConsentsWhileMerged(t *testing.T) {
	db, name := open(t)
	keyed(t, db)
	ctx, s, admin := t.Context(), merging(t, db), connect(t, name, "")
	source, target := chartOf(t, db, "src"), chartOf(t, db, "tgt")
	version := int64(0)
	consent := func(patient string) {
		t.Helper()
		version++
		w := write(phi.Ref{Type: "Consent", ID: "c"}, version, patient)
		w.Consent, w.Rules = patient, []auth.ConsentRule{{Actor: "Practitioner/dr"}}
		if err := db.Records().Commit(ctx, []phi.Write{w}, nil); err != nil {
			t.Fatal(err)
		}
	}
	denied := func(when string, want ...bool) {
		t.Helper()
		facts, err := db.Auth().Facts(ctx, auth.Actor{Practitioner: "dr"}, []string{"src", "tgt"})
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range facts {
			if got := len(f.Consents) == 1; got != want[i] {
				t.Errorf("%s: %d of the source and the target is denied: %v", when, i, got)
			}
		}
	}
	consent("src")
	denied("before", true, false)
	id := phi.UUID(random16())
	if err := s.BeginMerge(ctx, &phi.Merge{ID: id, Source: "src", Target: "tgt", SourceSubject: source, TargetSubject: target, TargetVersion: 1, State: phi.Merging, By: "x", Begun: time.Now()}); err != nil {
		t.Fatal(err)
	}
	denied("begun", true, true)
	if err := s.NoteMoved(ctx, id, []phi.MovedRow{{Ref: phi.Ref{Type: "Consent", ID: "c"}, Version: 1, Patients: []string{"src"}}}); err != nil {
		t.Fatal(err)
	}
	consent("tgt")
	denied("the Consent has moved", true, true)
	must(t, admin, `UPDATE record SET subject = '`+target.String()+`' WHERE subject = '`+source.String()+`'`)
	must(t, admin, `UPDATE record_version SET subject = '`+target.String()+`' WHERE subject = '`+source.String()+`'`)
	must(t, admin, `DELETE FROM record_patient WHERE patient = 'src' AND type <> 'Patient'`)
	if done, err := s.FinishMerge(ctx, id); err != nil || !done {
		t.Fatal(done, err)
	}
	denied("merged", false, true)
	if err := s.BeginUnmerge(ctx, id, random16()); err != nil {
		t.Fatal(err)
	}
	denied("undoing", true, true)
	consent("src")
	denied("the Consent is back", true, true)
	if err := s.FinishUnmerge(ctx, id); err != nil {
		t.Fatal(err)
	}
	denied("undone", true, false)
}
