package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/server/demo"
)

// cluster is this test binary's private PostgreSQL; clusterDir holds it. Nil when the machine has no PostgreSQL.
var (
	cluster    *demo.Cluster
	clusterDir string
	databases  atomic.Int32
)

const (
	template = "chartkeep_template" // migrated once, copied for each test
	password = "a test's password: $%'\"\\"
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if !havePostgres() {
			fmt.Println("NOTICE: no PostgreSQL binaries on this machine: every test of server/postgres that needs one is skipped")
			return m.Run()
		}
		ctx := context.Background()
		var err error
		if clusterDir, err = os.MkdirTemp("", "chartkeep-postgres-test"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(clusterDir)
		if cluster, err = demo.StartCluster(ctx, demo.ClusterConfig{Dir: clusterDir}); err != nil {
			panic(err)
		}
		defer func() { _ = cluster.Stop() }()
		if err := createDatabase(ctx, template, ""); err != nil {
			panic(err)
		}
		if err := Migrate(ctx, cluster.DSN(template), password); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

func havePostgres() bool {
	if _, err := exec.LookPath("postgres"); err == nil {
		return true
	}
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/postgres", "/usr/local/pgsql/bin/postgres"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return true
		}
	}
	return false
}

func createDatabase(ctx context.Context, name, from string) error {
	conn, err := pgx.Connect(ctx, cluster.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	sql := "CREATE DATABASE " + pgx.Identifier{name}.Sanitize()
	if from != "" {
		sql += " TEMPLATE " + pgx.Identifier{from}.Sanitize()
	}
	_, err = conn.Exec(ctx, sql)
	return err
}

// newDatabase makes an empty database, or a migrated one, and returns its name.
func newDatabase(t testing.TB, migrated bool) string {
	t.Helper()
	if cluster == nil {
		t.Skip("no PostgreSQL binaries on this machine")
	}
	name := fmt.Sprintf("test_%d", databases.Add(1))
	from := ""
	if migrated {
		from = template
	}
	if err := createDatabase(t.Context(), name, from); err != nil {
		t.Fatal(err)
	}
	if migrated {
		// CREATE DATABASE copies no grants on the database itself.
		admin := connect(t, name, "")
		must(t, admin, `REVOKE ALL ON DATABASE `+name+` FROM PUBLIC`)
		must(t, admin, `GRANT CONNECT ON DATABASE `+name+` TO chartkeep`)
	}
	return name
}

// loginDSN is the URL by which the program logs in.
func loginDSN(t testing.TB, database string) string {
	t.Helper()
	u, err := url.Parse(cluster.DSN(database))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("chartkeep", password)
	return u.String()
}

// open opens a fresh, migrated database.
func open(t testing.TB) (*DB, string) {
	t.Helper()
	name := newDatabase(t, true)
	return openDatabase(t, name), name
}

func openDatabase(t testing.TB, name string) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{DSN: loginDSN(t, name)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// connect connects as the superuser, or as the program with a role.
func connect(t testing.TB, database, role string) *pgx.Conn {
	t.Helper()
	dsn := cluster.DSN(database)
	if role != "" {
		dsn = loginDSN(t, database)
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if role != "" {
		cfg.RuntimeParams["role"] = role
	}
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func must(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func random16() (b [16]byte) {
	rand.Read(b[:])
	return b
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestMigrateTwiceAndEditedHistory(t *testing.T) {
	name := newDatabase(t, false)
	ctx := t.Context()
	for range 2 {
		if err := Migrate(ctx, cluster.DSN(name), ""); err != nil {
			t.Fatal(err)
		}
	}
	openDatabase(t, name).Close()

	admin := connect(t, name, "")
	must(t, admin, `UPDATE migration SET sha256 = sha256('edited') WHERE name = '0002_trail.sql'`)
	if err := Migrate(ctx, cluster.DSN(name), ""); !errors.Is(err, ErrHistory) {
		t.Errorf("Migrate over an edited file: %v, want ErrHistory", err)
	}
	if _, err := Open(ctx, Config{DSN: loginDSN(t, name)}); !errors.Is(err, ErrHistory) {
		t.Errorf("Open over an edited file: %v, want ErrHistory", err)
	}
	must(t, admin, `DELETE FROM migration WHERE name >= '0002'`)
	must(t, admin, `INSERT INTO migration (name, sha256) VALUES ('0099_future.sql', '')`)
	if err := Migrate(ctx, cluster.DSN(name), ""); !errors.Is(err, ErrHistory) {
		t.Errorf("Migrate over an unknown file: %v, want ErrHistory", err)
	}
}

func TestMigrateInParallel(t *testing.T) {
	name := newDatabase(t, false)
	done := make(chan error)
	for range 4 {
		go func() { done <- Migrate(t.Context(), cluster.DSN(name), password) }()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestOpenRefusesUnmigrated(t *testing.T) {
	name := newDatabase(t, true)
	must(t, connect(t, name, ""), `DELETE FROM migration WHERE name >= '0004'`)
	_, err := Open(t.Context(), Config{DSN: loginDSN(t, name)})
	if !errors.Is(err, ErrHistory) {
		t.Fatalf("Open: %v, want ErrHistory", err)
	}
}

func TestMigrateAsPlainAdministrator(t *testing.T) {
	name := newDatabase(t, false)
	super := connect(t, name, "")
	must(t, super, `CREATE ROLE plain LOGIN CREATEROLE PASSWORD 'plain'`)
	must(t, super, `ALTER DATABASE `+name+` OWNER TO plain`)
	// On a cluster that others migrated already, the roles are there and must be made over to this administrator.
	must(t, super, `GRANT chartkeep_owner, chartkeep_audit_owner TO plain WITH ADMIN OPTION`)
	u, err := url.Parse(cluster.DSN(name))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("plain", "plain")
	if err := Migrate(t.Context(), u.String(), password); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openDatabase(t, name).Audit().Head(t.Context(), random16()); err != nil {
		t.Error(err)
	}
}

func TestPasswordNeverReachesTheServer(t *testing.T) {
	if _, err := scramVerifier("grüße"); err == nil {
		t.Error("a password beyond ASCII was taken, and SASLprep is not applied to it")
	}
	name := newDatabase(t, true)
	must(t, connect(t, name, ""), `ALTER DATABASE `+name+` SET log_statement = 'all'`)
	if err := Migrate(t.Context(), cluster.DSN(name), password); err != nil {
		t.Fatal(err)
	}
	var found []string
	err := filepath.WalkDir(clusterDir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".log") {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.Contains(string(b), "SCRAM-SHA-256$") || strings.Contains(string(b), "a test's password") {
				found = append(found, path)
			}
		}
		return nil
	})
	if err != nil || len(found) > 0 {
		t.Errorf("verifier or password in %v (%v)", found, err)
	}
	must(t, connect(t, name, ""), `ALTER DATABASE `+name+` RESET log_statement`)
}

func TestLoginOwnsAndInheritsNothing(t *testing.T) {
	name := newDatabase(t, true)
	cfg, err := pgx.ParseConfig(loginDSN(t, name))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{
		`SELECT * FROM public.record`, `SELECT * FROM public.audit_event`, `SELECT * FROM public.audit_trail`, `SELECT * FROM public.phi_key`,
		`CREATE TABLE public.x ()`, `CREATE TEMP TABLE x ()`, `CREATE SCHEMA x`, `SET ROLE chartkeep_owner`, `SET ROLE chartkeep_audit_owner`,
		`SET session_replication_role = replica`, `SELECT public.audit_ensure_partitions()`,
	} {
		if _, err := conn.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v, want permission denied", sql, err)
		}
	}
	var owned int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relowner = 'chartkeep'::regrole`).Scan(&owned); err != nil || owned != 0 {
		t.Errorf("chartkeep owns %d relations (%v)", owned, err)
	}
}

func TestPoolsHealAfterRestart(t *testing.T) {
	if cluster == nil {
		t.Skip("no PostgreSQL binaries on this machine")
	}
	dir := t.TempDir()
	own, err := demo.StartCluster(t.Context(), demo.ClusterConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := Migrate(t.Context(), own.DSN("postgres"), password); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(own.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("chartkeep", password)
	db, err := Open(t.Context(), Config{DSN: u.String(), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, stop := context.WithCancel(t.Context())
	woken := make(chan struct{}, 16)
	listening := make(chan error, 1)
	go func() { listening <- db.Listen(ctx, func() { woken <- struct{}{} }) }()
	<-woken

	if err := own.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := policyVersion(t, db); err == nil {
		t.Error("Epochs with PostgreSQL away: no error")
	}
	if own, err = demo.StartCluster(t.Context(), demo.ClusterConfig{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Stop() }()
	if own.DSN("postgres") != strings.Replace(u.String(), u.User.String(), userOf(t, own.DSN("postgres")), 1) {
		t.Skip("the cluster came back on another port")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := policyVersion(t, db)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pool did not heal: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	select {
	case <-woken:
	case <-time.After(20 * time.Second):
		t.Error("the listener did not come back")
	}
	stop()
	if err := <-listening; err != nil {
		t.Errorf("Listen after cancel: %v", err)
	}
}

func userOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u.User.String()
}
