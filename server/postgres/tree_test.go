package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
)

func treeKey(t testing.TB) audit.LogKey {
	t.Helper()
	skey, _, err := note.GenerateKey(rand.Reader, "test.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	key, err := audit.NewLogKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sequence runs a sequencer on a database; its alerts go to the returned function.
func sequence(t testing.TB, db *DB, key audit.LogKey) (stop func(), alerts func() string) {
	t.Helper()
	var mu sync.Mutex
	var told []string
	s, err := audit.NewSequencer(audit.SequencerConfig{Storage: db.Tree(), Keys: []audit.LogKey{key}, Interval: 20 * time.Millisecond, Alert: func(desc string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, desc)
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	running.Go(func() { _ = db.ListenIngested(ctx, s.Wake) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return stop, func() string { mu.Lock(); defer mu.Unlock(); return strings.Join(told, "; ") }
}

// grown waits until the tree has a size.
func grown(t testing.TB, tree *Tree, size int64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		notes, err := tree.Checkpoints(t.Context(), size-1, 1)
		if err == nil && len(notes) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the tree has not got %d leaves (%v)", size, err)
		}
	}
}

// verified verifies everything and returns the findings.
func verified(t testing.TB, tree *Tree, key audit.LogKey) *audit.Report {
	t.Helper()
	r, err := audit.Verify(t.Context(), tree, audit.VerifyOptions{Keys: []string{key.Verifier}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func clean(t testing.TB, tree *Tree, key audit.LogKey, size int64) {
	t.Helper()
	r := verified(t, tree, key)
	for _, f := range r.Findings {
		t.Errorf("finding: %v", f)
	}
	if r.Checkpoint.Size != size || r.Unsequenced != 0 {
		t.Errorf("the tree has %d leaves and %d wait, want %d", r.Checkpoint.Size, r.Unsequenced, size)
	}
}

// chained makes the batch of n rows that follows prev, with leaves and chain as the log makes them.
func chained(t testing.TB, stream audit.StreamID, first uint64, prev audit.Hash, n int) audit.Batch {
	t.Helper()
	b := batchOf(t, stream, first, prev, n)
	for i := range b.Rows {
		r := &b.Rows[i]
		r.PartTime = noon.Add(time.Duration(r.Seq) * time.Second)
	}
	b.Seal()
	return b
}

// Two sequencers whose connections are cut at random points, while instances store: one tree, everything in it once.
func TestSequencersOnOneDatabase(t *testing.T) {
	db, name := open(t)
	second := openDatabase(t, name)
	key := treeKey(t)
	stop1, alerts1 := sequence(t, db, key)
	stop2, alerts2 := sequence(t, second, key)
	admin := connect(t, name, "")
	var total int64
	heads := make([]struct {
		next  uint64
		chain audit.Hash
	}, 3)
	streams := []audit.StreamID{random16(), random16(), random16()}
	for i := range 60 {
		at := mathrand.IntN(len(streams))
		h := &heads[at]
		b := chained(t, streams[at], h.next, h.chain, 1+mathrand.IntN(60))
		if err := db.Audit().Ingest(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		h.next, h.chain, total = h.next+uint64(len(b.Rows)), b.Chain, total+int64(len(b.Rows))
		time.Sleep(time.Duration(mathrand.IntN(20)) * time.Millisecond)
		if i%3 == 0 {
			must(t, admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chartkeep_audit_sequencer' AND datname = $1`, name)
		}
	}
	grown(t, db.Tree(), total)
	clean(t, db.Tree(), key, total)
	stop1()
	stop2()
	if a := alerts1() + alerts2(); a != "" {
		t.Errorf("alerts: %s", a)
	}
	notes, err := db.Tree().Checkpoints(t.Context(), 0, 1000)
	if err != nil || len(notes) < 5 {
		t.Errorf("%d checkpoints (%v)", len(notes), err)
	}
	if keys, err := db.Tree().Keys(t.Context()); err != nil || len(keys) != 1 || keys[0] != key.Verifier {
		t.Errorf("keys %q (%v)", keys, err)
	}
	// Every partial tile of every size is the prefix of what is there.
	for _, msg := range notes {
		c, _, err := audit.OpenCheckpoint(msg, note.VerifierList(must1(note.NewVerifier(key.Verifier))))
		if err != nil {
			t.Fatal(err)
		}
		root, err := tlog.TreeHash(c.Size, audit.HashReader(t.Context(), db.Tree(), c))
		if err != nil || root != tlog.Hash(c.Root) {
			t.Fatalf("tree of %d leaves: %v", c.Size, err)
		}
	}
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A transaction that commits late is not skipped; what is tampered with before it is sequenced is not; quarantined rows are.
func TestSequencerFollowsStreams(t *testing.T) {
	db, name := open(t)
	key := treeKey(t)
	admin := connect(t, name, "")
	early, late, poisoned := audit.StreamID(random16()), audit.StreamID(random16()), audit.StreamID(random16())

	slow := chained(t, late, 0, audit.Hash{}, 5)
	writing, err := db.writer.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writing.Exec(t.Context(), `INSERT INTO audit_batch (stream, first_seq, last_seq, prev, chain, first_us, last_us) VALUES ($1, 0, 4, $2, $3, $4, $5)`,
		[16]byte(late), slow.Prev[:], slow.Chain[:], slow.Rows[0].PartTime.UnixMicro(), slow.Rows[4].PartTime.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if err := db.trailStorage.copyRows(t.Context(), writing, late, slow.Rows, newRollup()); err != nil {
		t.Fatal(err)
	}
	b := chained(t, early, 0, audit.Hash{}, 7)
	if err := db.Audit().Ingest(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	_, alerts := sequence(t, db, key)
	grown(t, db.Tree(), 7)
	if err := writing.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	grown(t, db.Tree(), 12)

	wild := chained(t, poisoned, 0, audit.Hash{}, 6)
	r := &wild.Rows[5]
	r.Event.Recorded = time.Date(-100_000, 1, 1, 0, 0, 0, 0, time.UTC) // PostgreSQL knows no such year
	if r.Body, err = audit.Encode(&r.Event); err != nil {
		t.Fatal(err)
	}
	wild.Seal()
	if err := db.Audit().Ingest(t.Context(), wild); err != nil {
		t.Fatal(err)
	}
	grown(t, db.Tree(), 18)
	clean(t, db.Tree(), key, 18)

	// The edge, changed by hand while nobody looks, is computed anew by the next sequencer.
	must(t, admin, `UPDATE audit_edge SET hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1)`)
	must(t, admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chartkeep_audit_sequencer' AND datname = $1`, name)
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(alerts(), "edge") {
		if time.Now().After(deadline) {
			t.Fatalf("the damaged edge was not noticed: %q", alerts())
		}
		time.Sleep(10 * time.Millisecond)
	}
	next := chained(t, early, 7, b.Chain, 3)
	if err := db.Audit().Ingest(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	grown(t, db.Tree(), 21)
	clean(t, db.Tree(), key, 21)

	// A batch whose rows are not what its manifest says stays out, and the others go on.
	bad := chained(t, late, 5, slow.Chain, 4)
	bad.Rows[2].Leaf[3] ^= 1
	if err := db.Audit().Ingest(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	next = chained(t, early, 10, next.Chain, 2)
	if err := db.Audit().Ingest(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	grown(t, db.Tree(), 23)
	for !strings.Contains(alerts(), fmt.Sprintf("%x", late[:4])) {
		if time.Now().After(deadline.Add(10 * time.Second)) {
			t.Fatalf("the tampered batch was not noticed: %q", alerts())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if spans, err := db.Tree().Unsequenced(t.Context(), 10); err != nil || len(spans) != 1 || spans[0].First != 5 {
		t.Errorf("unsequenced: %v (%v)", spans, err)
	}
}

// The database lets only one history of checkpoints through, whatever a sequencer believes.
func TestExtendIsFenced(t *testing.T) {
	db, _ := open(t)
	tree := db.Tree()
	first, err := tree.Lead(t.Context())
	if err != nil || first == nil {
		t.Fatalf("Lead: %v, %v", first, err)
	}
	if other, err := tree.Lead(t.Context()); err != nil || other != nil {
		t.Fatalf("a second lease: %v, %v", other, err)
	}
	extension := func(old, size int64) audit.Extension {
		return audit.Extension{Old: old, Size: size, Checkpoint: []byte(fmt.Sprintf("note of %d\n", size))}
	}
	if err := first.Extend(t.Context(), extension(0, 5)); err != nil {
		t.Fatal(err)
	}
	for _, e := range []audit.Extension{extension(0, 6), extension(4, 6), extension(5, 5), extension(6, 7)} {
		if err := first.Extend(t.Context(), e); !errors.Is(err, audit.ErrFenced) && e.Size != e.Old {
			t.Errorf("from %d to %d: %v", e.Old, e.Size, err)
		} else if err == nil {
			t.Errorf("from %d to %d: stored", e.Old, e.Size)
		}
	}
	// Somebody drew a newer token while the connection lived, as after a failover.
	must(t, first.(*lease).conn, `SELECT nextval('audit_token')`)
	if err := first.Extend(t.Context(), extension(5, 8)); !errors.Is(err, audit.ErrFenced) {
		t.Errorf("with an old token: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := tree.Lead(t.Context())
	for deadline := time.Now().Add(5 * time.Second); second == nil && err == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		second, err = tree.Lead(t.Context()) // PostgreSQL takes a moment to end a session
	}
	if err != nil || second == nil {
		t.Fatalf("Lead after Close: %v, %v", second, err)
	}
	if err := second.Extend(t.Context(), extension(5, 8)); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// What was asked for while the database was away is asked for again: a process must not need a restart to read its trail.
func TestTreeAfterOutage(t *testing.T) {
	dsn, err := url.Parse(loginDSN(t, newDatabase(t, true)))
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, dsn.Host)
	dsn.Host = w.addr
	db, err := Open(t.Context(), Config{DSN: dsn.String()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tree := db.Tree()
	w.unplug()
	if _, err := tree.Rows(t.Context(), audit.Span{Count: 1}); err == nil {
		t.Fatal("rows were read without a database")
	}
	w.plug(t)
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err = tree.Rows(t.Context(), audit.Span{Count: 1}); err == nil {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("the database is back: %v", err)
		}
	}
}
