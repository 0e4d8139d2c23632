package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi/keyset/kmstest"
	"github.com/chartkeep/chartkeep/server/demo"
)

// impatientMain is serve with limits that no deployment may set: it asks the KMS each second and waits for it three.
func impatientMain() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := func() error {
		var v serveVerb
		parser, err := kong.New(&v, kong.Vars{"default_data": defaultData})
		if err != nil {
			return err
		}
		if _, err := parser.Parse(os.Args[1:]); err != nil {
			return err
		}
		s, err := v.resolve(true)
		if err != nil {
			return err
		}
		if s.issuers, err = v.trusts(); err != nil {
			return err
		}
		s.refresh, s.hold = time.Second, 3*time.Second
		return v.serve(ctx, s, terminal{os.Stdout, os.Stderr})
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// production is what serve needs around it: a private PostgreSQL, an issuer over TLS that is not on loopback, and Vault.
type production struct {
	vault  *kmstest.Vault
	token  string
	idp    *httptest.Server
	client *http.Client
	env    []string
	args   []string // but --kms
	verb   []string // those that verbs beside serve take, too
	output *safeBuffer
	cmd    *exec.Cmd
	exited chan error
	origin string
}

func newProduction(t *testing.T) *production {
	t.Helper()
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cluster, err := demo.StartCluster(t.Context(), demo.ClusterConfig{Dir: dir, Install: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := prepare(t.Context(), dir, cluster, audit.Power); err != nil {
		t.Fatal(err)
	}
	p := &production{vault: kmstest.NewVault(t), output: &safeBuffer{}}
	outside := outsideAddress(t)
	cert, ca := kmstest.Certificate(t, outside, net.IPv4(127, 0, 0, 1))
	private, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "tls-cert.pem"), filepath.Join(dir, "tls-key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(outside.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	issuer := "https://" + l.Addr().String() + "/oauth2"
	const audience = "https://chartkeep.example/fhir/R4"
	signs, err := demo.NewAuthServer(demo.AuthServerConfig{Dir: filepath.Join(dir, demoOAuth), Issuer: issuer, Audience: audience, Personas: demo.Personas("")})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(signs.Handler())
	server.Listener.Close()
	server.Listener = l
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	p.idp = server
	if p.token, err = signs.Token("app-backend", ""); err != nil {
		t.Fatal(err)
	}
	trust := x509.NewCertPool()
	trust.AddCert(server.Certificate())
	p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12}}, Timeout: 20 * time.Second}
	t.Cleanup(p.client.CloseIdleConnections)
	p.env = append(os.Environ(), "SSL_CERT_FILE="+ca)
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := port.Addr().String()
	port.Close()
	p.origin = "https://" + addr
	dsn := cluster.DSN(demoDatabase)
	_, host, _ := strings.Cut(dsn, "@")
	p.verb = []string{
		"--database-url", "postgres://chartkeep@" + host, "--database-password-file", filepath.Join(dir, demoPasswordFile),
		"--kms-token-file", p.vault.TokenFile, "--kms-ca-file", p.vault.CAFile,
	}
	p.args = append(slices.Clone(p.verb), "--journal", filepath.Join(dir, demoJournal), "--checkpoint-key", filepath.Join(dir, demoCheckpoint),
		"--issuer", issuer, "--audience", audience, "--addr", addr, "--tls-cert", certFile, "--tls-key", keyFile)
	p.verb = append(p.verb, "--journal", filepath.Join(dir, "journal-of-verbs"))
	return p
}

// outsideAddress is an address of this host that is not loopback's.
func outsideAddress(t testing.TB) net.IP {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP
		}
	}
	t.Skip("this host has loopback only: serve takes no issuer there")
	return nil
}

// roots are --kms settings.
func roots(uris ...string) (args []string) {
	for _, uri := range uris {
		args = append(args, "--kms", uri)
	}
	return args
}

// start runs the program until it is ready or has ended; the error is how it ended.
func (p *production) start(t *testing.T, program []string, kms ...string) error {
	t.Helper()
	p.cmd = exec.Command(program[0], slices.Concat(program[1:], p.args, roots(kms...))...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.exited = make(chan error, 1)
	go func() { p.exited <- p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-p.exited:
			return err
		default:
		}
		if status, _ := p.get(t, "/readyz"); status == http.StatusOK {
			return nil
		}
	}
	t.Fatalf("%s was not ready in time\n%s", program[0], p.output)
	return nil
}

func (p *production) stop(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.exited:
		if err != nil {
			t.Errorf("ended with %v\n%s", err, p.output)
		}
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		t.Fatalf("did not end\n%s", p.output)
	}
}

// get asks as the backend service; status 0 is no answer.
func (p *production) get(t *testing.T, path string) (int, string) {
	t.Helper()
	return p.send(t, http.MethodGet, path, "")
}

func (p *production) send(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.origin+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	req.Header.Set("Content-Type", "application/fhir+json")
	res, err := p.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// within waits until get answers the status.
func (p *production) within(t *testing.T, d time.Duration, path string, want int) string {
	t.Helper()
	for deadline := time.Now().Add(d); ; time.Sleep(50 * time.Millisecond) {
		status, body := p.get(t, path)
		if status == want {
			return body
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s answers %d after %v, want %d: %s\n%s", path, status, d, want, body, p.output)
		}
	}
}

// TestServe is a deployment's happy path, and what a KMS that goes away does to it: nothing for a while, then nothing is
// disclosed, then all is well again without a restart. At last a new epoch begins under its load.
func TestServe(t *testing.T) {
	p := newProduction(t)
	serve := []string{"chartkeep", "serve"}
	p.vault.Fail(kmstest.Denied, -1)
	if err := p.start(t, serve, p.vault.URI); err == nil {
		t.Fatal("serve started without its KMS")
	}
	if said := p.output.String(); !strings.Contains(said, p.vault.URI) || !strings.Contains(said, "policy") {
		t.Errorf("serve does not say which root denies and what to do:\n%s", said)
	}
	p.vault.Fail(kmstest.None, 0)
	if err := p.start(t, serve, p.vault.URI); err != nil {
		t.Fatalf("serve: %v\n%s", err, p.output)
	}
	const family = "Quillfeather"
	status, body := p.send(t, http.MethodPost, "/fhir/R4/Patient", `{"resourceType":"Patient","name":[{"family":"`+family+`"}]}`)
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(body), &made); status != http.StatusCreated || err != nil {
		t.Fatalf("create answers %d: %s", status, body)
	}
	patient := "/fhir/R4/Patient/" + made.ID
	if status, body := p.get(t, patient); status != http.StatusOK || !strings.Contains(body, family) {
		t.Fatalf("read answers %d: %s", status, body)
	}
	p.stop(t)

	if err := p.start(t, []string{"impatient"}, p.vault.URI); err != nil {
		t.Fatalf("again: %v\n%s", err, p.output)
	}
	if body := p.within(t, time.Second, patient, http.StatusOK); !strings.Contains(body, family) {
		t.Fatalf("after a restart the record is %s", body)
	}
	p.vault.Fail(kmstest.Away, -1)
	away := time.Now()
	for time.Since(away) < time.Second {
		if status, body := p.get(t, patient); status != http.StatusOK {
			t.Fatalf("away for %v: read answers %d: %s", time.Since(away), status, body)
		}
	}
	body = p.within(t, 4*time.Second, patient, http.StatusServiceUnavailable)
	if strings.Contains(body, family) || !strings.Contains(body, "transient") {
		t.Errorf("without its KMS the server answers %s", body)
	}
	if status, body := p.send(t, http.MethodPost, "/fhir/R4/Patient", `{"resourceType":"Patient"}`); status != http.StatusServiceUnavailable {
		t.Errorf("without its KMS a write is answered %d: %s", status, body)
	}
	if status, body := p.get(t, "/fhir/R4/Patient?name="+family); status != http.StatusServiceUnavailable || strings.Contains(body, family) {
		t.Errorf("without its KMS a search is answered %d: %s", status, body)
	}
	if body := p.within(t, time.Second, "/readyz", http.StatusServiceUnavailable); !strings.Contains(body, `"keys":"failing since 20`) {
		t.Errorf("readiness says %s", body)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, body := p.get(t, "/metrics")
		if strings.Contains(body, "chartkeep_kek_age_seconds") && !strings.Contains(body, "chartkeep_kek_refresh_failures_total 0\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Error("the metrics do not tell of the KMS")
			break
		}
	}
	p.vault.Fail(kmstest.None, 0)
	if body := p.within(t, 5*time.Second, patient, http.StatusOK); !strings.Contains(body, family) {
		t.Errorf("recovered, the record is %s", body)
	}
	p.within(t, time.Second, "/readyz", http.StatusOK)
	p.stop(t)
	p.epoch(t, serve, patient, family)
	token, err := os.ReadFile(p.vault.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	if said := p.output.String(); strings.Contains(said, family) || strings.Contains(said, string(bytes.TrimSpace(token))) || !strings.Contains(said, "not refreshed") {
		t.Errorf("the log holds PHI or a token, or says nothing of the KMS:\n%s", said)
	}
}

// epoch begins a new epoch under another KMS key while the server runs, and destroys the old KMS key.
func (p *production) epoch(t *testing.T, serve []string, patient, family string) {
	t.Helper()
	last, next := p.vault.URI, p.vault.Other
	if err := p.start(t, serve, next, last); err != nil {
		t.Fatalf("serve with both KMS keys: %v\n%s", err, p.output)
	}
	rewrapped := make(chan error, 1)
	go func() {
		verb := exec.Command("chartkeep", slices.Concat([]string{"keys", "rewrap"}, p.verb, roots(next, last))...)
		verb.Env, verb.Stdout, verb.Stderr = p.env, p.output, p.output
		rewrapped <- verb.Run()
	}()
	for done := false; !done; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-rewrapped:
			if err != nil {
				t.Fatalf("keys rewrap: %v\n%s", err, p.output)
			}
			done = true
		default:
		}
		if status, body := p.get(t, patient); status != http.StatusOK || !strings.Contains(body, family) {
			t.Fatalf("while keys are wrapped anew a read is answered %d: %s\n%s", status, body, p.output)
		}
	}
	p.vault.Set("app", kmstest.Deleting)
	if status, body := p.send(t, http.MethodPost, "/fhir/R4/Patient", `{"resourceType":"Patient"}`); status != http.StatusCreated {
		t.Errorf("in the new epoch a write is answered %d: %s", status, body)
	}
	p.stop(t)
	if err := p.start(t, serve, next); err != nil {
		t.Fatalf("serve with the new KMS key only: %v\n%s", err, p.output)
	}
	if body := p.within(t, time.Second, patient, http.StatusOK); !strings.Contains(body, family) {
		t.Errorf("in the new epoch the record is %s", body)
	}
	p.stop(t)
	if err := p.start(t, serve, last); err == nil {
		t.Error("serve started with a KMS key that wraps nothing")
	} else if said := p.output.String(); !strings.Contains(said, "none of those that may be asked") {
		t.Errorf("serve does not say that --kms is another's:\n%s", said)
	}
}
