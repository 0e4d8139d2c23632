package postgres

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/auth"
)

// following makes revocations on a DB, as an instance has them.
func following(t *testing.T, db *DB) *auth.Revocations {
	t.Helper()
	r, err := auth.NewRevocations(t.Context(), auth.RevocationConfig{Storage: db.Sessions()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// running runs revocations with their listener until the test ends.
func running(t *testing.T, db *DB, r *auth.Revocations) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = r.Run(ctx) })
	all.Go(func() { _ = db.Listen(ctx, r.Wake) })
	t.Cleanup(func() { stop(); all.Wait() })
}

// TestRevocationsAreStored: what is revoked comes back as it was, once, in order, under growing epochs, and not when it is over.
func TestRevocationsAreStored(t *testing.T) {
	db, name := open(t)
	s := db.Sessions()
	at := time.Now().UTC().Truncate(time.Microsecond)
	list := []auth.Revocation{
		{Kind: auth.RevokeToken, ID: "t-1", NotBefore: at, Reason: "lost", By: "officer", Expires: at.AddDate(0, 0, 8)},
		{Kind: auth.RevokeSession, ID: "name|s-1", NotBefore: at, Reason: "lost", By: "officer", Expires: at.AddDate(0, 0, 90)},
		{Kind: auth.RevokeSubject, ID: "left", NotBefore: auth.Never(), Reason: "left", By: "admin"},
		{Kind: auth.RevokeAll, NotBefore: at, Reason: "incident", By: "admin", Expires: at.AddDate(0, 0, 8)},
		{Kind: auth.RevokeKey, ID: "k-1", NotBefore: at, Reason: "leaked", By: "admin"},
	}
	before, none, err := s.Revocations(t.Context(), 0)
	if err != nil || len(none) != 0 {
		t.Fatalf("at first %v, %v", none, err)
	}
	for _, some := range [][]auth.Revocation{list[:2], list[2:], list[:1]} {
		if err := s.Revoke(t.Context(), append(some, some...)...); err != nil {
			t.Fatal(err)
		}
	}
	epoch, got, err := s.Revocations(t.Context(), before)
	if err != nil || epoch != before+3 {
		t.Fatalf("epoch %d after %d, %v", epoch, before, err)
	}
	var kinds []string
	for _, r := range got {
		if r.At.Sub(at).Abs() > time.Minute {
			t.Errorf("stored at %v", r.At)
		}
		r.At = time.Time{}
		if !slices.Contains(list, r) {
			t.Errorf("came back as %+v", r)
		}
		kinds = append(kinds, string(r.Kind))
	}
	if len(got) != 6 || kinds[5] != "token" {
		t.Errorf("came back %v", kinds)
	}
	if _, got, err := s.Revocations(t.Context(), before+2); err != nil || len(got) != 1 {
		t.Errorf("after the second %v, %v", got, err)
	}
	if listed, err := s.Revoked(t.Context(), 2); err != nil || len(listed) != 2 || listed[0].ID != "t-1" {
		t.Errorf("listed %v, %v", listed, err)
	}

	// Nobody changes them, and nobody drops them before their time; not even whoever owns the table.
	admin := connect(t, name, "")
	records := connect(t, name, "chartkeep_records")
	for conn, statements := range map[*pgx.Conn][]string{
		admin:   {`UPDATE revocation SET not_before = '2000-01-01Z'`, `DELETE FROM revocation`, `TRUNCATE revocation`, `INSERT INTO revocation (epoch, kind, id, not_before, reason, by, expires_at) VALUES (999, 'token', 'x', now(), 'r', 'b', now())`},
		records: {`DELETE FROM revocation`, `UPDATE revocation SET reason = 'x'`, `TRUNCATE revocation`, `INSERT INTO revocation (epoch, kind, id, not_before, reason, by, at, expires_at) VALUES (999, 'token', 'x', now(), 'r', 'b', '2000-01-01Z', '2000-02-01Z')`},
	} {
		for _, sql := range statements {
			if _, err := conn.Exec(t.Context(), sql); err == nil {
				t.Errorf("allowed: %s", sql)
			}
		}
	}
	if err := s.DropOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, got, err := s.Revocations(t.Context(), 0); err != nil || len(got) != 6 {
		t.Errorf("before their time %d are left, %v", len(got), err)
	}
	must(t, admin, `INSERT INTO revocation (epoch, kind, id, not_before, reason, by, at, expires_at) VALUES (1000000, 'token', 'old', now() - interval '10 days', 'r', 'b', now() - interval '10 days', now() - interval '1 day')`)
	if _, got, _ := s.Revocations(t.Context(), 0); len(got) != 6 {
		t.Error("one that is over is in force")
	}
	if err := s.DropOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	var left int
	if err := admin.QueryRow(t.Context(), `SELECT count(*) FROM revocation`).Scan(&left); err != nil || left != 6 {
		t.Errorf("%d are left, %v", left, err)
	}
}

// TestRevocationsAfterRestore: a database whose epochs were lost goes on after what it holds, and nothing that is revoked then is overlooked
// by an instance that has seen more.
func TestRevocationsAfterRestore(t *testing.T) {
	db, name := open(t)
	r := following(t, db)
	ctx := t.Context()
	revoke := func(id string) {
		t.Helper()
		if err := r.Revoke(ctx, auth.Revocation{Kind: auth.RevokeToken, ID: id, Reason: "test", By: "o"}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		revoke(fmt.Sprint(i))
	}
	was := following(t, db)
	must(t, connect(t, name, ""), `UPDATE authz_epoch SET n = 0 WHERE scope = 'revocation'`)
	epoch, _, err := db.Sessions().Revocations(ctx, 0)
	if err != nil || epoch != 5 {
		t.Errorf("epoch %d, %v", epoch, err)
	}
	revoke("after")
	running(t, db, was)
	for end := time.Now().Add(5 * time.Second); was.Stats().Held != 6; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 6 are held", was.Stats().Held)
		}
	}
}

// TestRevocationTakesEffect is the figure of point 5: from the commit on one instance to its effect on another, p99 under a second, under
// the load of many that revoke at once. None is lost, whatever order they commit in.
func TestRevocationTakesEffect(t *testing.T) {
	one, name := open(t)
	two := openDatabase(t, name)
	here, there := following(t, one), following(t, two)
	running(t, two, there)
	var mu sync.Mutex
	began := map[string]time.Time{}
	var took []time.Duration
	var arrived atomic.Int32
	there.OnRevoke(func(list []auth.Revocation) {
		now := time.Now()
		mu.Lock()
		defer mu.Unlock()
		for _, r := range list {
			took = append(took, now.Sub(began[r.ID]))
		}
		arrived.Add(int32(len(list)))
	})
	const writers, each = 4, 50
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				id := fmt.Sprint(w, "-", i)
				mu.Lock()
				began[id] = time.Now()
				mu.Unlock()
				if err := here.Revoke(t.Context(), auth.Revocation{Kind: auth.RevokeSession, ID: id, Reason: "test", By: "o"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for end := time.Now().Add(5 * time.Second); arrived.Load() < writers*each; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d arrived", arrived.Load(), writers*each)
		}
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("effect elsewhere after p50 %s, p99 %s", took[len(took)/2], p99)
	if p99 > time.Second {
		t.Errorf("p99 %s", p99)
	}
}

// TestForgedNotifications: whoever may NOTIFY can make instances look, and nothing else.
func TestForgedNotifications(t *testing.T) {
	db, name := open(t)
	r := following(t, db)
	running(t, db, r)
	conn := connect(t, name, "chartkeep_audit_reader")
	for _, payload := range []string{"revocation", "revocation:99999999", "", "all", "-1"} {
		if _, err := conn.Exec(t.Context(), `SELECT pg_notify('chartkeep_authz', $1)`, payload); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	if s := r.Stats(); s.Held != 0 || s.Epoch != 0 || r.Healthy() != nil {
		t.Errorf("after forged notifications %+v, %v", s, r.Healthy())
	}
}

// TestManyRevocationsAtStart: ten thousand are loaded in no time.
func TestManyRevocationsAtStart(t *testing.T) {
	db, name := open(t)
	must(t, connect(t, name, ""), `INSERT INTO revocation (epoch, kind, id, not_before, reason, by, expires_at)
		SELECT n, 'session', 'session-' || n, now(), 'test', 'o', now() + interval '90 days' FROM generate_series(1, 10000) n`)
	began := time.Now()
	r := following(t, db)
	if took := time.Since(began); r.Stats().Held != 10_000 || took > 2*time.Second {
		t.Errorf("%d were loaded in %s", r.Stats().Held, took)
	} else {
		t.Logf("10,000 revocations in %s", took)
	}
}

// TestSessionUses: the latest use counts whoever tells of it last, and sessions are found by subject and by id.
func TestSessionUses(t *testing.T) {
	db, _ := open(t)
	s := db.Sessions()
	ctx := t.Context()
	now := time.Now().UTC().Truncate(time.Microsecond)
	use := auth.SessionUse{
		Session: "s-1", Subject: "a", Client: "app", FHIRUser: "Practitioner/p", ACR: "mfa", Network: "192.0.2.1", AuthTime: now.Add(-time.Hour),
		First: now.Add(-time.Hour), Last: now.Add(-time.Minute), Expires: now.Add(10 * time.Minute),
	}
	if _, known, err := s.Use(ctx, "s-1", "a", "app"); err != nil || known {
		t.Fatalf("known %v, %v", known, err)
	}
	other := use
	other.Session, other.Subject, other.AuthTime, other.Expires = "s-2", "b", time.Time{}, now.Add(-time.Minute)
	if err := s.Saw(ctx, "one", []auth.SessionUse{use, other}); err != nil {
		t.Fatal(err)
	}
	late := use
	late.First, late.Last, late.Network, late.Expires = now, now.Add(-2*time.Minute), "192.0.2.2", now
	for _, instance := range []string{"two", "two", "one"} {
		if err := s.Saw(ctx, instance, []auth.SessionUse{late}); err != nil {
			t.Fatal(err)
		}
	}
	got, known, err := s.Use(ctx, "s-1", "a", "app")
	if err != nil || !known || !got.Last.Equal(use.Last) || !got.First.Equal(use.First) || !got.Expires.Equal(use.Expires) || !got.AuthTime.Equal(use.AuthTime) ||
		got.Network != use.Network || !slices.Equal(got.Instances, []string{"one", "two"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range 40 {
		if err := s.Saw(ctx, fmt.Sprint("instance-", i), []auth.SessionUse{late}); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, _ := s.Use(ctx, "s-1", "a", "app"); len(got.Instances) > 16 || !slices.Contains(got.Instances, "instance-39") {
		t.Errorf("%d instances are kept: %v", len(got.Instances), got.Instances)
	}
	for _, c := range []struct {
		q    auth.SessionQuery
		want []string
	}{
		{auth.SessionQuery{Limit: 10}, []string{"s-1"}}, {auth.SessionQuery{Over: true, Limit: 10}, []string{"s-2", "s-1"}},
		{auth.SessionQuery{Over: true, Limit: 1}, []string{"s-2"}}, {auth.SessionQuery{Subject: "b", Over: true, Limit: 10}, []string{"s-2"}},
		{auth.SessionQuery{Session: "s-1", Limit: 10}, []string{"s-1"}}, {auth.SessionQuery{Subject: "c", Limit: 10}, nil},
		{auth.SessionQuery{Over: true, Before: use.First, Limit: 10}, nil},
	} {
		list, err := s.List(ctx, c.q)
		var ids []string
		for _, u := range list {
			ids = append(ids, u.Session)
		}
		if err != nil || !slices.Equal(ids, c.want) {
			t.Errorf("%+v: %v, %v", c.q, ids, err)
		}
	}
}

// TestTerminate: one transaction ends all of somebody's access, and a role that he is given later lets him in again with tokens of then.
func TestTerminate(t *testing.T) {
	db, name := open(t)
	admin := connect(t, name, "")
	ctx := t.Context()
	r := following(t, db)
	now := time.Now().UTC().Truncate(time.Microsecond)
	for _, u := range []auth.SessionUse{
		{Session: "s-1", Subject: "a", Client: "app", FHIRUser: "Practitioner/pa", First: now, Last: now, Expires: now.Add(time.Hour)},
		{Session: "s-2", Subject: "a", Client: "web", First: now, Last: now, Expires: now.Add(-time.Hour)},
		{Session: "s-3", Subject: "b", Client: "app", FHIRUser: "Practitioner/pb", First: now, Last: now, Expires: now.Add(time.Hour)},
	} {
		if err := db.Sessions().Saw(ctx, "one", []auth.SessionUse{u}); err != nil {
			t.Fatal(err)
		}
	}
	assign := func(subject string) {
		t.Helper()
		must(t, admin, `INSERT INTO role_assignment (id, subject, role, from_at, reason, approval, state, requested_by, expires_at, decided_at)
			VALUES (gen_random_uuid(), $1, 'nurse', now(), 'test', false, 'approved', 'admin', now(), now())`, subject)
	}
	for _, who := range []string{"a", "b"} {
		assign(who)
		must(t, admin, `INSERT INTO treatment (practitioner, patient, source, type, id, granted_by) SELECT 'p' || $1, p, 'grant', '', '', 'admin' FROM unnest('{p1,p2}'::text[]) p`, who)
		must(t, admin, `INSERT INTO emergency_access (id, subject, session, client, patient, reason_code, justification, event, state, duration, granted_at, until_at)
			VALUES (gen_random_uuid(), $1, 's-1', 'app', 'p9', 'other', decode(repeat('00', 60), 'hex'), gen_random_uuid(), 'granted', '30 minutes', now(), now() + interval '30 minutes')`, who)
	}
	before, err := db.Auth().Epochs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done, err := r.Terminate(ctx, db.Sessions(), auth.Termination{Subject: "a", Reason: "left", By: "admin"})
	if err != nil || done.Ended != (auth.Ended{Sessions: 1, Assignments: 1, Relationships: 2, Emergencies: 1}) {
		t.Fatalf("%+v, %v", done, err)
	}
	after, err := db.Auth().Epochs(ctx)
	if err != nil || after.Policy == before.Policy || after.Emergency == before.Emergency {
		t.Errorf("epochs %+v, before %+v, %v", after, before, err)
	}
	left := func(sql string, want int) {
		t.Helper()
		var n int
		if err := admin.QueryRow(ctx, sql).Scan(&n); err != nil || n != want {
			t.Errorf("%s: %d, want %d (%v)", sql, n, want, err)
		}
	}
	left(`SELECT count(*) FROM role_assignment WHERE state = 'approved'`, 1)
	left(`SELECT count(*) FROM treatment WHERE practitioner = 'pb'`, 2)
	left(`SELECT count(*) FROM treatment`, 2)
	left(`SELECT count(*) FROM emergency_access WHERE state = 'granted' AND subject = 'b'`, 1)
	left(`SELECT count(*) FROM emergency_access WHERE state = 'granted'`, 1)
	left(`SELECT count(*) FROM revocation WHERE kind = 'session' AND id IN ('s-1', 's-2')`, 2)
	left(`SELECT count(*) FROM revocation WHERE kind = 'subject' AND id = 'a' AND not_before = '9999-12-31Z' AND expires_at IS NULL`, 1)
	if again, err := r.Terminate(ctx, db.Sessions(), auth.Termination{Subject: "a", Practitioner: "pb", Reason: "left", By: "admin"}); err != nil || again.Ended.Relationships != 2 {
		t.Errorf("a second time, with a practitioner: %+v, %v", again, err)
	}

	// Of a termination that fails nothing has happened.
	must(t, admin, `CREATE FUNCTION refuse_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$`)
	must(t, admin, `CREATE TRIGGER refuse_all BEFORE INSERT ON revocation FOR EACH ROW EXECUTE FUNCTION refuse_all()`)
	if _, err := r.Terminate(ctx, db.Sessions(), auth.Termination{Subject: "b", Reason: "left", By: "admin"}); err == nil {
		t.Error("terminated without a revocation")
	}
	left(`SELECT count(*) FROM role_assignment WHERE state = 'approved'`, 1)
	must(t, admin, `DROP TRIGGER refuse_all ON revocation`)

	// Only a new assignment brings him back.
	left(`SELECT count(*) FROM revocation WHERE kind = 'reinstatement'`, 0)
	assign("a")
	left(`SELECT count(*) FROM revocation WHERE kind = 'reinstatement' AND id = 'a'`, 1)
	assign("a")
	assign("b")
	left(`SELECT count(*) FROM revocation WHERE kind = 'reinstatement'`, 1)
}
