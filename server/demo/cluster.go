package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	superuser    = "postgres"
	database     = "chartkeep"
	startTimeout = 60 * time.Second // recovery after a crash may take long
	fastTimeout  = 15 * time.Second // what a fast shutdown gets before an immediate one
	logLimit     = 16 << 20         // a larger server log is put aside at the next start
)

// Cluster is a private PostgreSQL, 15 or newer, in a data directory.
type Cluster struct {
	dir      string // data directory of PostgreSQL
	log      string // what the server writes
	password string
	port     int
	process  *process
	lock     *lock
	stop     sync.Once
	stopErr  error
}

// ClusterConfig configures StartCluster.
type ClusterConfig struct {
	Dir      string    // created when missing; the cluster lives in Dir/postgres
	Progress io.Writer // plain lines: what is found, installed, waited for; nil is silent
	Install  bool      // may install PostgreSQL (apt, else npm) when none is found
}

// StartCluster finds PostgreSQL (PATH, Debian's folders, what an earlier Install left in the user's cache), initialises the
// cluster when there is none (checksums, SCRAM, loopback only, superuser password in Dir/postgres-password, 0600, an empty
// database "chartkeep"), takes over or stops what a killed process left behind, and starts it on a free port, the one of the
// last start when nobody has taken it. As root it runs as another user. ctx bounds the start only. The cluster stops when
// this process dies, however it dies. A second StartCluster on the same Dir fails and says who holds it.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	say := func(format string, args ...any) {
		if cfg.Progress != nil {
			fmt.Fprintf(cfg.Progress, format+"\n", args...)
		}
	}
	c, err := startCluster(ctx, cfg, say)
	if err != nil {
		return nil, fmt.Errorf("starting the private PostgreSQL in %s: %w", cfg.Dir, err)
	}
	return c, nil
}

func startCluster(ctx context.Context, cfg ClusterConfig, say func(string, ...any)) (_ *Cluster, err error) {
	home, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	// 0711: as root the cluster runs as another user, who must reach its folder but need not list this one.
	if err := os.MkdirAll(home, 0o711); err != nil {
		return nil, err
	}
	if home, err = filepath.EvalSymlinks(home); err != nil {
		return nil, err
	}
	held, err := acquire(filepath.Join(home, "postgres.lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			held.release()
		}
	}()

	link := filepath.Join(home, "postgres")
	own, err := ownerOf(ctx, link, say)
	if err != nil {
		return nil, err
	}
	bin, err := findPostgres(ctx, link, own, cfg.Install, say)
	if err != nil {
		return nil, err
	}
	data, err := place(ctx, home, own, bin, say)
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: data, log: filepath.Join(home, "postgres.log"), lock: held}
	if err := takeOver(data, say); err != nil {
		return nil, err
	}
	if c.password, err = superuserPassword(filepath.Join(home, "postgres-password"), data); err != nil {
		return nil, err
	}
	if !initialised(data) {
		say("Making a new database cluster in %s", data)
		if err := c.initialise(ctx, bin, own); err != nil {
			return nil, err
		}
	}
	if err := c.start(ctx, bin, own); err != nil {
		return nil, err
	}
	say("PostgreSQL %s is ready on 127.0.0.1:%d", bin.version, c.port)
	return c, nil
}

// DSN is the superuser's connection URL for a database ("postgres", "chartkeep").
func (c *Cluster) DSN(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, c.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Stop stops the cluster (fast mode) and waits for it; after 15 s it stops it in immediate mode, and then kills it. Later
// calls return what the first one returned.
func (c *Cluster) Stop() error {
	c.stop.Do(func() {
		defer c.lock.release()
		select {
		case <-c.process.done: // it went by itself, or was killed
			return
		default:
		}
		for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
			if err := syscall.Kill(c.process.pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
				c.stopErr = fmt.Errorf("stopping PostgreSQL: %w", err)
				return
			}
			select {
			case <-c.process.done:
				return
			case <-time.After(fastTimeout):
			}
		}
		c.stopErr = fmt.Errorf("stopping PostgreSQL: process %d does not end", c.process.pid)
	})
	return c.stopErr
}

// place decides where the data directory is. It is home/postgres, unless the other user that a root process has to use
// cannot reach home (a clone in /root): then it is a folder under /var/lib/chartkeep, and home/postgres a link to it.
func place(ctx context.Context, home string, own *owner, bin *binaries, say func(string, ...any)) (string, error) {
	link := filepath.Join(home, "postgres")
	if target, err := filepath.EvalSymlinks(link); err == nil {
		return target, nil
	}
	// A link whose target is gone has nothing left to keep.
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	data := link
	if own.credential != nil {
		if err := os.Chmod(home, 0o711); err != nil {
			return "", err
		}
		probe := exec.CommandContext(ctx, bin.path("postgres"), "--version")
		probe.Dir = home
		probe.SysProcAttr = &syscall.SysProcAttr{Credential: own.credential}
		if probe.Run() != nil {
			if err := os.MkdirAll("/var/lib/chartkeep", 0o711); err != nil {
				return "", fmt.Errorf("user %s, who must run PostgreSQL because root may not, cannot reach %s: %w", own.name, home, err)
			}
			var err error
			if data, err = os.MkdirTemp("/var/lib/chartkeep", "postgres-"); err != nil {
				return "", err
			}
			say("User %s cannot reach %s, so the cluster lives in %s", own.name, home, data)
		}
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return "", err
	}
	if err := own.take(data); err != nil {
		return "", err
	}
	if data != link {
		if err := os.Symlink(data, link); err != nil {
			return "", err
		}
	}
	return data, nil
}

// superuserPassword reads the password, or makes one for a cluster that is not initialised yet.
func superuserPassword(path, data string) (string, error) {
	text, err := os.ReadFile(path)
	if err == nil && len(text) > 0 {
		return strings.TrimSpace(string(text)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if initialised(data) {
		return "", fmt.Errorf("%s is gone, and the cluster in %s cannot be used without it", path, data)
	}
	password := rand.Text()
	return password, writeFile(path, []byte(password+"\n"), 0o600)
}

// initialised reports whether initialise was completed: the last thing that it makes is our configuration.
func initialised(data string) bool {
	_, err := os.Stat(filepath.Join(data, "chartkeep.conf"))
	return err == nil
}

// initialise runs initdb and makes the database. What an interrupted attempt left behind is thrown away first.
func (c *Cluster) initialise(ctx context.Context, bin *binaries, own *owner) error {
	left, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, entry := range left {
		if err := os.RemoveAll(filepath.Join(c.dir, entry.Name())); err != nil {
			return err
		}
	}
	// initdb, being another user, can read neither our password file nor a pipe of ours.
	secret, err := os.CreateTemp("", "chartkeep-initdb-")
	if err != nil {
		return err
	}
	defer os.Remove(secret.Name())
	_, err = secret.WriteString(c.password + "\n")
	if err := errors.Join(err, secret.Close(), own.take(secret.Name())); err != nil {
		return err
	}
	if err := bin.run(ctx, own, c.dir, "", "initdb", "--pgdata", c.dir, "--username", superuser, "--pwfile", secret.Name(),
		"--auth-host", "scram-sha-256", "--auth-local", "reject", "--encoding", "UTF8", "--locale", "C", "--data-checksums"); err != nil {
		return err
	}
	if err := bin.run(ctx, own, c.dir, "CREATE DATABASE "+database+";\n",
		"postgres", "--single", "-D", c.dir, "postgres"); err != nil {
		return err
	}
	main, err := os.OpenFile(filepath.Join(c.dir, "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = main.WriteString("\ninclude 'chartkeep.conf'\n")
	if err := errors.Join(err, main.Sync(), main.Close()); err != nil {
		return err
	}
	return c.configure(own, 0)
}

// settings keep statements and their parameters out of the server log, whatever goes wrong: they are not PHI, for that is
// sealed before it comes here, but a log should not have to be trusted for that.
const settings = `# Written by chartkeep at every start.
listen_addresses = '127.0.0.1'
port = %d
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
max_connections = 200
shared_buffers = '256MB'
fsync = on
full_page_writes = on
synchronous_commit = on
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%%m [%%p] %%q%%u@%%d '
log_timezone = 'UTC'
log_statement = 'none'
log_duration = off
log_min_duration_statement = -1
log_min_error_statement = 'panic'
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_error_verbosity = 'terse'
`

func (c *Cluster) configure(own *owner, port int) error {
	path := filepath.Join(c.dir, "chartkeep.conf")
	if err := writeFile(path, fmt.Appendf(nil, settings, port), 0o600); err != nil {
		return err
	}
	return own.take(path)
}

// lastPort is the port of the last start, 0 when there was none.
func (c *Cluster) lastPort() int {
	text, _ := os.ReadFile(filepath.Join(c.dir, "chartkeep.conf"))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "port = "); ok {
			port, _ := strconv.Atoi(strings.TrimSpace(value))
			return port
		}
	}
	return 0
}

// freePort tries the wanted port first.
func freePort(want int) (int, error) {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(want)))
	if err != nil {
		if l, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			return 0, err
		}
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// start starts the server and waits until it takes connections. Between freePort and the server's own listen somebody
// else may take the port, so a start that fails is tried again on another.
func (c *Cluster) start(ctx context.Context, bin *binaries, own *owner) error {
	if info, err := os.Stat(c.log); err == nil && info.Size() > logLimit {
		if err := os.Rename(c.log, c.log+".old"); err != nil {
			return err
		}
	}
	want := c.lastPort()
	for attempt := 1; ; attempt++ {
		port, err := freePort(want)
		if err != nil {
			return err
		}
		if err := c.configure(own, port); err != nil {
			return err
		}
		if err = c.launch(ctx, bin, own); err == nil {
			c.port = port
			return nil
		}
		if attempt == 3 || ctx.Err() != nil {
			return err
		}
		want = 0
	}
}

func (c *Cluster) launch(ctx context.Context, bin *binaries, own *owner) error {
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(bin.path("postgres"), "-D", c.dir) //nolint:noctx // outlives the context of its start; Stop ends it
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, out, out
	cmd.Env = own.environment()
	if c.process, err = startProcess(cmd, own.credential); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case <-c.process.done:
			return fmt.Errorf("PostgreSQL did not start: %s", lastLines(c.log, from))
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("PostgreSQL is not ready: %w", ctx.Err()), c.abandon())
		case <-tick.C:
			// The server itself writes its state there: pg_ctl waits in the same way.
			if pid, state := postmaster(c.dir); pid == c.process.pid && state == "ready" {
				tick.Stop()
				return nil
			}
		}
	}
}

// abandon ends a server that never became ready.
func (c *Cluster) abandon() error {
	if err := syscall.Kill(c.process.pid, syscall.SIGQUIT); err != nil {
		return err
	}
	<-c.process.done
	return nil
}

// postmaster reads the server's pid file: lines are pid, data directory, start time, port, socket directory, listen
// address, shared memory, state (https://www.postgresql.org/docs/15/storage-file-layout.html).
func postmaster(data string) (pid int, state string) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0, ""
	}
	lines := strings.Split(string(text), "\n")
	pid, _ = strconv.Atoi(strings.TrimSpace(lines[0]))
	if len(lines) > 7 {
		state = strings.TrimSpace(lines[7])
	}
	return pid, state
}

// lastLines is what the server said since from, at most its last 2 KiB.
func lastLines(path string, from int64) string {
	text, err := os.ReadFile(path)
	if err != nil || int64(len(text)) < from {
		return "see " + path
	}
	text = text[from:]
	if len(text) > 2048 {
		text = text[len(text)-2048:]
	}
	return strings.TrimSpace(string(text))
}

// writeFile replaces a file as a whole: after a crash it has the old content or the new one.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
