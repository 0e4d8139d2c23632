package main

import (
	"bytes"
	"context"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/server/demo"
)

// epochRoot is a root of one epoch: a KMS key that can be scheduled for deletion.
type epochRoot struct {
	keyset.Root
	name string
}

func (r epochRoot) Name() string { return r.name }

// TestErasedInBackups plays the end of an epoch with the real parts (experiment 12, second half): everything is dumped, one patient is
// erased, the keys are wrapped anew under the next epoch's root, and the old root is gone. The dump alone opens nothing any more; with
// today's key tables it opens for everybody but the erased.
func TestErasedInBackups(t *testing.T) {
	t.Parallel()
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx := context.Background()
	cluster, err := demo.StartCluster(ctx, demo.ClusterConfig{Dir: dir, Install: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Stop() })
	s, _, err := prepare(ctx, dir, cluster, audit.Process)
	if err != nil {
		t.Fatal(err)
	}
	var roots [2]epochRoot
	for i, name := range []string{"epoch-1", "epoch-2"} {
		root, err := keyset.NewFileRoot(filepath.Join(t.TempDir(), name), true)
		if err != nil {
			t.Fatal(err)
		}
		roots[i] = epochRoot{root, name}
	}
	open := func(database string, roots ...keyset.Root) (*rooms, error) {
		own := *s
		u, err := url.Parse(s.databaseDSN)
		if err != nil {
			t.Fatal(err)
		}
		u.Path = "/" + database
		own.databaseDSN, own.roots, own.journal = u.String(), roots, t.TempDir()
		return openRooms(ctx, &own, newLog(os.Stderr).Logger)
	}
	must := func(r *rooms, err error) *rooms {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	exec := func(database string, statements ...string) {
		t.Helper()
		conn, err := pgx.Connect(ctx, cluster.DSN(database))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		for _, sql := range statements {
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	caller := func() *phi.Caller {
		return &phi.Caller{Principal: system("test"), RequestID: "backups", Start: time.Now()}
	}
	read := func(r *rooms, id string) error {
		_, err := r.records.Read(ctx, caller(), phi.Ref{Type: "Patient", ID: id})
		return err
	}

	r := must(open(demoDatabase, roots[0]))
	for _, id := range []string{"erased", "other"} {
		if _, err := r.records.Update(ctx, caller(), phi.Ref{Type: "Patient", ID: id}, []byte(`{"resourceType":"Patient","id":"`+id+`","name":[{"family":"Doe"}]}`), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.close(ctx); err != nil {
		t.Fatal(err)
	}
	// A template copies files: a dump of data and keys, as of now.
	exec("postgres", `CREATE DATABASE dump TEMPLATE `+demoDatabase)

	r = must(open(demoDatabase, roots[1], roots[0]))
	e, _, err := r.erasures.Request(ctx, operating("Ines Diaz"), "erased", "case 1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.erasures.Approve(ctx, operating("Sam Amari"), e.ID)
	if err != nil || len(c.Keys) != 1 || c.Keys[0].Root != "epoch-1" {
		t.Fatalf("certificate %+v, %v", c, err)
	}
	storage, err := r.db.Rotation(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer storage.Close()
	if _, err := r.records.Rotation(phi.RotationConfig{By: "operator"}).Rewrap(ctx, storage); err != nil {
		t.Fatal(err)
	}
	storage.Close()
	if err := r.close(ctx); err != nil {
		t.Fatal(err)
	}

	// While the old root exists, the dump opens whole: that is what the certificate says.
	exec("postgres", `CREATE DATABASE early TEMPLATE dump`)
	r = must(open("early", roots[0]))
	if err := read(r, "erased"); err != nil {
		t.Errorf("before the old root is gone the dump should open: %v", err)
	}
	if err := r.close(ctx); err != nil {
		t.Fatal(err)
	}
	// Without it, nothing of the dump does.
	if r, err := open("dump", roots[1]); err == nil {
		for _, id := range []string{"erased", "other"} {
			if err := read(r, id); err == nil {
				t.Errorf("%s opens from the dump without the old root", id)
			}
		}
		_ = r.close(ctx)
	}
	// With today's key tables, the others' records do.
	from, err := pgx.Connect(ctx, cluster.DSN(demoDatabase))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close(ctx)
	to, err := pgx.Connect(ctx, cluster.DSN("dump"))
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`SET session_replication_role = replica`, `DELETE FROM phi_key`, `DELETE FROM phi_secret`, `DELETE FROM phi_kek`} {
		if _, err := to.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"phi_kek", "phi_key", "phi_secret", "phi_erased"} {
		var rows bytes.Buffer
		if _, err := from.PgConn().CopyTo(ctx, &rows, `COPY `+table+` TO STDOUT`); err != nil {
			t.Fatal(err)
		}
		if _, err := to.PgConn().CopyFrom(ctx, &rows, `COPY `+table+` FROM STDIN`); err != nil {
			t.Fatal(err)
		}
	}
	to.Close(ctx)
	r = must(open("dump", roots[1]))
	if err := read(r, "other"); err != nil {
		t.Errorf("the other patient from the dump with today's keys: %v", err)
	}
	if err := read(r, "erased"); kindOf(err) != phi.Gone {
		t.Errorf("the erased patient: %v", err)
	}
	// Nor does it when somebody removes the note of the erasure.
	exec("dump", `DELETE FROM phi_erased`)
	if err := read(r, "erased"); kindOf(err) != phi.Integrity {
		t.Errorf("the erased patient without the note: %v", err)
	}
	if err := r.close(ctx); err != nil {
		t.Fatal(err)
	}
}
