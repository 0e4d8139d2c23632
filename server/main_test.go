package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// The tests start the real program as a process: this test binary, called by the name chartkeep.
func TestMain(m *testing.M) {
	longForm = os.Getenv("CHARTKEEP_LONG") != ""
	os.Unsetenv("CHARTKEEP_LONG") // the program refuses settings that it does not know
	testscript.Main(cleaning{m}, map[string]func(){"chartkeep": main, "scribe": scribeMain, "keeper": keeperMain, "impatient": impatientMain})
}

// cleaning stops the shared demo after the last test.
type cleaning struct{ *testing.M }

func (c cleaning) Run() int {
	code := c.M.Run()
	if shared.instance != nil {
		shared.instance.interrupt()
	}
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	return code
}

// longForm makes the experiments take hours instead of minutes.
var longForm bool

// shared is one demo for all tests that leave it as they found it.
var shared struct {
	once     sync.Once
	dir      string
	instance *instance
	err      error
}

// instance is a running demo.
type instance struct {
	demoFile
	dir    string
	cmd    *exec.Cmd
	exited chan error
	output *safeBuffer
	took   time.Duration // from start to ready
}

// safeBuffer collects a process's output.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// demoShared returns the shared demo, starting it on first use.
func demoShared(t testing.TB) *instance {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = dataDir(); shared.err == nil {
			shared.instance, shared.err = launch(shared.dir, "--patients", "20")
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.instance
}

// dataDir makes a data folder that PostgreSQL's own user can reach, too.
func dataDir() (string, error) {
	dir, err := os.MkdirTemp("", "chartkeep-test-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// demoFresh starts a demo of its own that ends with the test.
func demoFresh(t *testing.T, args ...string) *instance {
	t.Helper()
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := launch(dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.interrupt() })
	return d
}

// launch starts a demo and waits until it says that it is ready.
func launch(dir string, args ...string) (*instance, error) {
	d := &instance{dir: dir, exited: make(chan error, 1), output: &safeBuffer{}}
	// Tests come faster than people do.
	d.cmd = exec.Command("chartkeep", append([]string{
		"demo", "--data", dir, "--addr", "127.0.0.1:0", "--rate-ip", "1e5/1000000", "--rate-client", "1e5/1000000", "--rate-subject", "1e5/1000000",
	}, args...)...)
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	d.cmd.Stderr = d.output
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(out)
		for said := false; lines.Scan(); {
			fmt.Fprintln(d.output, lines.Text())
			if !said && strings.HasPrefix(lines.Text(), "Ctrl-C") {
				said = true
				close(ready)
			}
		}
		d.exited <- d.cmd.Wait()
	}()
	select {
	case <-ready:
	case err := <-d.exited:
		return nil, fmt.Errorf("demo ended before it was ready: %w\n%s", err, d.output)
	case <-time.After(3 * time.Minute):
		d.cmd.Process.Kill()
		return nil, fmt.Errorf("demo was not ready in time\n%s", d.output)
	}
	d.took = time.Since(began)
	f, err := readDemoFile(dir)
	if err != nil {
		return nil, err
	}
	d.demoFile = *f
	return d, nil
}

// interrupt is Ctrl-C; it returns how the process ended.
func (d *instance) interrupt() error {
	d.cmd.Process.Signal(os.Interrupt)
	return d.wait()
}

// terminate is SIGTERM.
func (d *instance) terminate() error {
	d.cmd.Process.Signal(syscall.SIGTERM)
	return d.wait()
}

// open connects to the demo's database as the program does.
func (d *instance) open(t testing.TB) *postgres.DB {
	t.Helper()
	s, err := demoSettings(d.dir, d.DatabaseURL, audit.Power)
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(context.Background(), postgres.Config{DSN: s.databaseDSN})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// kill is kill -9.
func (d *instance) kill() error {
	d.cmd.Process.Signal(syscall.SIGKILL)
	return d.wait()
}

func (d *instance) wait() error {
	select {
	case err := <-d.exited:
		return err
	case <-time.After(60 * time.Second):
		d.cmd.Process.Kill()
		return fmt.Errorf("demo did not stop\n%s", d.output)
	}
}

// token mints a persona's token.
func (d *instance) token(t testing.TB, persona string, scope ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	args := []string{"token", persona, "--data", d.dir}
	for _, s := range scope {
		args = append(args, "--scope", s)
	}
	if code := run(context.Background(), args, terminal{&out, &errs}); code != 0 {
		t.Fatalf("token %s: exit code %d: %s", persona, code, &errs)
	}
	return strings.TrimSpace(out.String())
}

// answered is a response with its body read.
type answered struct {
	*http.Response
	body []byte
}

// do sends a request; header holds "Name: value" lines. A path that starts with a slash is below the server's origin.
func (d *instance) do(t testing.TB, method, path, token, body string, header ...string) answered {
	t.Helper()
	url := path
	if strings.HasPrefix(path, "/") {
		url = strings.TrimSuffix(d.API, "/v1") + path
	}
	req, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/fhir+json")
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return answered{res, b}
}

// json decodes a response's body.
func (a answered) json(t testing.TB) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%s %s answered %s and no JSON: %v\n%s", a.Request.Method, a.Request.URL.Path, a.Status, err, a.body)
	}
	return v
}

// events asks the officers' API until want events match the query or a second and a half is over.
func (d *instance) events(t testing.TB, officer, query string, want int) []map[string]any {
	t.Helper()
	for deadline := time.Now().Add(1500 * time.Millisecond); ; time.Sleep(50 * time.Millisecond) {
		res := d.do(t, "GET", "/v1/audit/events?"+query, officer, "")
		if res.StatusCode != http.StatusOK {
			t.Fatalf("audit/events?%s: %s\n%s", query, res.Status, res.body)
		}
		var page struct{ Events []map[string]any }
		if err := json.Unmarshal(res.body, &page); err != nil {
			t.Fatal(err)
		}
		if len(page.Events) >= want || time.Now().After(deadline) {
			return page.Events
		}
	}
}

// sharedData is a folder of ../shared/data, or a skip with a notice.
func sharedData(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join("..", "..", "shared", "data", name)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no %s here: this test reads the data that lies beside the checkout", dir)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
