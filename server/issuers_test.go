package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/keyset/kmstest"
)

// partner is an issuer that answers about its tokens, over TLS and not on loopback.
type partner struct {
	server *httptest.Server
	answer atomic.Pointer[map[string]any] // nil: it is down
	calls  atomic.Int64
}

func newPartner(t *testing.T) (p *partner, ca string) {
	t.Helper()
	p = &partner{}
	outside := outsideAddress(t)
	cert, ca := kmstest.Certificate(t, outside)
	l, err := net.Listen("tcp", net.JoinHostPort(outside.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	p.server = httptest.NewUnstartedServer(p)
	p.server.Listener.Close()
	p.server.Listener = l
	p.server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	p.server.StartTLS()
	t.Cleanup(p.server.Close)
	return p, ca
}

func (p *partner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := p.answer.Load()
	switch {
	case answer == nil:
		w.WriteHeader(http.StatusBadGateway)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": p.server.URL, "introspection_endpoint": p.server.URL + "/introspect", "more": []int{1}})
	case r.URL.Path == "/introspect" && r.Method == http.MethodPost && r.PostFormValue("client_id") == "chartkeep" && r.PostFormValue("client_assertion") != "":
		p.calls.Add(1)
		_ = json.NewEncoder(w).Encode(*answer)
	default:
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// says sets what is answered about every token: good claims with some replaced.
func (p *partner) says(over map[string]any) {
	now := time.Now().Unix()
	a := map[string]any{
		"active": true, "sub": "registry", "client_id": "registry", "aud": "https://chartkeep.example/fhir/R4", "scope": "system/*.rs", "iat": now, "exp": now + 600,
		"roles": []string{"backend"},
	}
	for k, v := range over {
		a[k] = v
	}
	p.answer.Store(&a)
}

// TestServeTrustsSeveralIssuers runs the program with a file of two issuers, one of which answers about opaque tokens: each is believed
// what the file says, the outage of one is nobody else's, and a restart while both are down serves those whose tokens can be judged.
func TestServeTrustsSeveralIssuers(t *testing.T) {
	p := newProduction(t)
	other, ca := newPartner(t)
	other.says(nil)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	read := func(file string) []byte {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	last := len(p.env) - 1
	_, firstCA, _ := strings.Cut(p.env[last], "=")
	p.env[last] = "SSL_CERT_FILE=" + write("ca.pem", slices.Concat(read(firstCA), []byte("\n"), read(ca)))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := write("client.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	at := slices.Index(p.args, "--issuer")
	settings, err := json.Marshal(map[string]any{"issuers": []any{
		map[string]any{"issuer": p.args[at+1], "asserts_sign_in": true, "roles_in_token": true, "max_lifetime": "12h"},
		map[string]any{"name": "partner", "issuer": other.server.URL, "roles_in_token": true, "introspection": map[string]any{
			"client_id": "chartkeep", "private_key_file": keyFile, "token_prefix": "ptn_", "jwts": true, "cache_for": "1s",
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	p.args[at], p.args[at+1] = "--issuers", write("issuers.json", settings)
	if err := p.start(t, []string{"chartkeep", "serve"}, p.vault.URI); err != nil {
		t.Fatalf("serve: %v\n%s", err, p.output)
	}
	const search = "/fhir/R4/Organization"
	first := p.token
	const opaque = "ptn_0123456789abcdefghijklmnopqrstuvwxyz"
	as := func(token string, want int) string {
		t.Helper()
		p.token = token
		status, body := p.get(t, search)
		if status != want {
			t.Errorf("%s… is answered %d, want %d: %s", token[:4], status, want, body)
		}
		return body
	}
	as(first, http.StatusOK)
	as(opaque, http.StatusOK)
	as(strings.Replace(opaque, "ptn_", "abc_", 1), http.StatusUnauthorized)
	if n := other.calls.Load(); n != 1 {
		t.Errorf("the partner was asked %d times", n)
	}
	for status, over := range map[int]map[string]any{
		http.StatusUnauthorized: {"active": false},
		http.StatusForbidden:    {"roles": []string{"nobody"}},
	} {
		other.says(over)
		time.Sleep(1100 * time.Millisecond)
		as(opaque, status)
	}
	other.says(map[string]any{"aud": "https://another.example"})
	time.Sleep(1100 * time.Millisecond)
	as(opaque, http.StatusUnauthorized)

	other.answer.Store(nil) // down
	if body := as(opaque, http.StatusServiceUnavailable); !strings.Contains(body, "transient") {
		t.Errorf("while the issuer is down: %s", body)
	}
	as(first, http.StatusOK)
	metrics := p.within(t, time.Second, "/metrics", http.StatusOK)
	for _, line := range []string{
		`chartkeep_auth_refusals_total{issuer="partner",reason="introspection"} 2`, `chartkeep_auth_refusals_total{issuer="(unknown)",reason="format"} 1`,
		`chartkeep_auth_jwks_keys{issuer=""} `,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("the metrics do not say %s", line)
		}
	}
	p.stop(t)

	p.idp.Close()
	began := time.Now()
	if err := p.start(t, []string{"chartkeep", "serve"}, p.vault.URI); err != nil {
		t.Fatalf("while every issuer is down: %v\n%s", err, p.output)
	}
	t.Logf("ready %v after a start while every issuer is down", time.Since(began).Round(time.Millisecond))
	as(first, http.StatusOK)
	as(opaque, http.StatusServiceUnavailable)
	other.says(nil)
	as(opaque, http.StatusOK)
	p.stop(t)
	if said := p.output.String(); strings.Contains(said, opaque) || strings.Contains(said, first) || !strings.Contains(said, "earlier run") {
		t.Errorf("the log holds a token, or does not say that keys are those of an earlier run:\n%s", said)
	}
}

// TestIssuersFile holds that a file which could be read in two ways, or trusts nobody can tell whom, is refused.
func TestIssuersFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issuers.json")
	for text, good := range map[string]bool{
		`{"issuers":[{"issuer":"https://id.example.org","leeway":"10s","audiences":{"fhir":"a"}}]}`:                         true,
		`{"issuers":[{"issuer":"https://id.example.org","Leeway":"10s"}]}`:                                                  false,
		`{"issuers":[{"issuer":"https://id.example.org","roles_in_tokens":true}]}`:                                          false,
		`{"issuers":[{"issuer":"https://id.example.org","roles_in_token":false,"roles_in_token":true}]}`:                    false,
		`{"issuers":[{"issuer":"https://id.example.org","leeway":10}]}`:                                                     false,
		`{"issuers":[{"issuer":"https://id.example.org","leeway":"soon"}]}`:                                                 false,
		`{"issuers":[{"issuer":"https://id.example.org"}]} {}`:                                                              false,
		`{"issuers":[{"issuer":"http://id.example.org"}]}`:                                                                  false,
		`{"issuers":[{"issuer":"https://127.0.0.1/oauth2"}]}`:                                                               false,
		`{"issuers":[{"issuer":"https://id.example.org","introspection":{"client_id":"a","client_secret":"in the file"}}]}`: false,
		`{"issuers":[]}`: false,
		`{}`:             false,
		``:               false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readIssuers(file); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		} else if err != nil && strings.Contains(err.Error(), "in the file") {
			t.Errorf("the error quotes a secret: %v", err)
		}
	}
}

// TestIssuersOfREADME holds that the example for operators is one.
func TestIssuersOfREADME(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "### Issuers of tokens")
	_, after, _ = strings.Cut(after, "```json\n")
	example, _, ok := strings.Cut(after, "```")
	file := filepath.Join(t.TempDir(), "issuers.json")
	if err := os.WriteFile(file, []byte(example), 0o600); err != nil || !ok {
		t.Fatal("the README has no example")
	}
	list, err := readIssuers(file)
	if err != nil || len(list) != 3 || list[0].Binding != auth.BindingDPoP || time.Duration(list[0].MaxLifetime) != time.Hour || list[2].Introspection == nil {
		t.Errorf("%+v, %v", list, err)
	}
	// Every member of the file is in the table.
	table, _, _ := strings.Cut(after, "### The KMS key")
	for _, of := range []reflect.Type{reflect.TypeFor[issuerSettings](), reflect.TypeFor[introspectionSettings]()} {
		for i := range of.NumField() {
			if name := of.Field(i).Tag.Get("json"); !strings.Contains(table, "`"+name+"`") {
				t.Errorf("the README does not tell of %s", name)
			}
		}
	}
}
