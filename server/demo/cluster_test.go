package demo

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
)

// TestMain lets the test binary be the process that is killed: with CHARTKEEP_TEST_CLUSTER it holds a cluster and waits.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CHARTKEEP_TEST_CLUSTER"); dir != "" {
		c, err := StartCluster(context.Background(), ClusterConfig{Dir: dir})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(c.process.pid, c.DSN("chartkeep"))
		select {}
	}
	os.Exit(m.Run())
}

// clusterDir is a folder that another user can reach, as /tmp is; t.TempDir is open to its owner only.
func clusterDir(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("postgres"); err != nil && len(folders(t.Context())) == 0 {
		t.Skip("NO POSTGRESQL on this machine: the cluster is not tested")
	}
	dir, err := os.MkdirTemp("", "chartkeep-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if target, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres")); err == nil {
			os.RemoveAll(target)
		}
		os.RemoveAll(dir)
	})
	return dir
}

func start(t *testing.T, dir string) *Cluster {
	t.Helper()
	began := time.Now()
	c, err := StartCluster(t.Context(), ClusterConfig{Dir: dir, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() { c.Stop() })
	return c
}

func query(t *testing.T, dsn, statement string) string {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var answer string
	if err := db.QueryRowContext(t.Context(), statement).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return answer
}

func TestClusterLife(t *testing.T) {
	dir := clusterDir(t)
	c := start(t, dir)
	for setting, want := range map[string]string{
		"data_checksums": "on", "fsync": "on", "synchronous_commit": "on", "listen_addresses": "127.0.0.1",
		"server_encoding": "UTF8", "log_statement": "none", "log_min_error_statement": "panic",
		"log_parameter_max_length_on_error": "0", "unix_socket_directories": "",
	} {
		if got := query(t, c.DSN("postgres"), "SHOW "+setting); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	if got := query(t, c.DSN("chartkeep"), "SELECT current_database() || ' ' || current_user"); got != "chartkeep postgres" {
		t.Errorf("connected as %q", got)
	}
	for _, wrong := range []string{"wrong", ""} {
		db, err := sql.Open("pgx", strings.Replace(c.DSN("postgres"), c.password, wrong, 1))
		if err != nil {
			t.Fatal(err)
		}
		if db.PingContext(t.Context()) == nil {
			t.Errorf("let in with password %q", wrong)
		}
		db.Close()
	}
	for name, want := range map[string]os.FileMode{"postgres-password": 0o600, "postgres.log": 0o600, "postgres": 0o700} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want mode %v", name, info.Mode(), err, want)
		}
	}
	query(t, c.DSN("chartkeep"), "SELECT set_config('search_path', '', false)")

	if second, err := StartCluster(t.Context(), ClusterConfig{Dir: dir}); err == nil {
		second.Stop()
		t.Fatal("a second cluster started on the same folder")
	} else if !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("the refusal does not say who holds the folder: %v", err)
	}

	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	again := start(t, dir)
	if again.DSN("x") != c.DSN("x") {
		t.Error("port or password changed although both were free to stay")
	}
	// Data survive, and so does a server that is killed under us.
	if err := syscall.Kill(again.process.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-again.process.done
	if err := again.Stop(); err != nil {
		t.Fatal(err)
	}
	query(t, start(t, dir).DSN("chartkeep"), "SELECT current_database()")
}

// A statement that fails leaves neither its text nor its values in the server's log.
func TestClusterLogIsSilent(t *testing.T) {
	dir := clusterDir(t)
	c := start(t, dir)
	db, err := sql.Open("pgx", c.DSN("chartkeep"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE t (a text UNIQUE CHECK (a <> 'Zebra'))"); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"INSERT INTO t VALUES ('Zebra')",
		"INSERT INTO t VALUES ('Zebra1'), ('Zebra1')",
		"SELECT 'Zebra' FROM nowhere",
	} {
		if _, err := db.Exec(statement); err == nil {
			t.Fatalf("%s succeeded", statement)
		}
	}
	if _, err := db.Exec("INSERT INTO t VALUES ($1)", "Zebra"); err == nil {
		t.Fatal("the check let it pass")
	}
	text, err := os.ReadFile(filepath.Join(dir, "postgres.log"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "ERROR") {
		t.Error("the log misses the errors altogether")
	}
	if strings.Contains(string(text), "Zebra") {
		t.Errorf("the log has a value:\n%s", text)
	}
}

// hold starts another process that holds the cluster, and returns the server's pid and DSN.
func hold(t *testing.T, dir string) (holder *exec.Cmd, pid int, dsn string) {
	t.Helper()
	holder = exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), "CHARTKEEP_TEST_CLUSTER="+dir)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(bufio.NewReader(out), &pid, &dsn); err != nil {
		t.Fatal(err)
	}
	return holder, pid, dsn
}

// After kill -9 of the holder the kernel stops the server: nothing is left even when there is no next start.
func TestClusterDiesWithHolder(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux does that")
	}
	dir := clusterDir(t)
	start(t, dir).Stop() // initialised
	holder, _, dsn := hold(t, dir)
	query(t, dsn, "SELECT 'x'")
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	holder.Wait()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if pids, err := workers(mustResolve(t, dir)); err == nil && len(pids) == 0 {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("still there: %v %v", pids, err)
		}
	}
}

// What the kernel could not stop, the next start takes over.
func TestClusterTakeOver(t *testing.T) {
	dir := clusterDir(t)
	start(t, dir).Stop() // initialised
	holder, pid, dsn := hold(t, dir)
	query(t, dsn, "SELECT 'x'")
	if _, err := StartCluster(t.Context(), ClusterConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", holder.Process.Pid)) {
		t.Errorf("started beside its holder, or the refusal does not name it: %v", err)
	}
	// A server that is stopped (SIGSTOP) cannot follow the kernel's SIGINT: only a take-over gets rid of it.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	holder.Wait()
	if pids, _ := workers(mustResolve(t, dir)); len(pids) == 0 {
		t.Fatal("nothing was left to take over")
	}
	go func() { // let it go on, late
		time.Sleep(300 * time.Millisecond)
		syscall.Kill(pid, syscall.SIGCONT)
	}()
	c := start(t, dir)
	if c.process.pid == pid {
		t.Error("the old server goes on")
	}
	query(t, c.DSN("chartkeep"), "SELECT 'x'")
}

// Pid files of the dead, and of another program that got their number, do not stand in the way; an interrupted
// initialisation is done again.
func TestClusterLeftovers(t *testing.T) {
	dir := clusterDir(t)
	c := start(t, dir)
	c.Stop()
	data := mustResolve(t, dir)
	stale := fmt.Sprintf("%d\n%s\n1\n%d\n\n127.0.0.1\n\nready\n", os.Getpid(), data, c.port)
	if err := os.WriteFile(filepath.Join(data, "postmaster.pid"), []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir).Stop()

	if err := os.Remove(filepath.Join(data, "chartkeep.conf")); err != nil {
		t.Fatal(err)
	}
	query(t, start(t, dir).DSN("chartkeep"), "SELECT 'x'")
}

func mustResolve(t *testing.T, dir string) string {
	t.Helper()
	data, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
