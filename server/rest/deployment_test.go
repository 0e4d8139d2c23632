package rest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/phi/phitest"
	"github.com/chartkeep/chartkeep/server/rest"
)

// Planted values: whatever goes wrong, none of them may show up in an error body or a log line.
const (
	plantedFamily = "Quackenbush"
	plantedMRN    = "MRN-7719-XYZ"
)

const rivera = "rivera"

// issuer signs access tokens with one ES256 key, on the standard library alone.
type issuer struct {
	key *ecdsa.PrivateKey
	url string
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	point, err := key.PublicKey.Bytes() // 0x04 || x || y
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"k1","x":%q,"y":%q}]}`, b64(point[1:33]), b64(point[33:]))
	}))
	t.Cleanup(srv.Close)
	i.url = srv.URL
	return i
}

// token signs an access token for a role; change may edit the claims.
func (i *issuer) token(t testing.TB, audience, role, scope string, change func(map[string]any)) string {
	t.Helper()
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": "https://issuer.test", "aud": audience, "sub": role + "-1", "client_id": "test-app", "jti": rand.Text(),
		"iat": now, "exp": now + 600, "scope": scope, "roles": []string{role},
	}
	if role != "backend" { // a service, which nobody signs in to
		claims["auth_time"] = now
	}
	if change != nil {
		change(claims)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(`{"alg":"ES256","kid":"k1","typ":"at+jwt"}`)) + "." + b64(payload)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return signed + "." + b64(sig[:])
}

// deployment is a server on a real socket with everything real behind it but PostgreSQL.
type deployment struct {
	t       testing.TB
	addr    string
	base    string // FHIR
	issuer  *issuer
	storage *phitest.Storage
	trail   *audittest.Storage
	log     *audit.Log
	server  *rest.Server
	logs    *lockedBuffer

	tree        *tree
	verifier    *auth.Verifier
	revocations *auth.Revocations
}

// lockedBuffer is a log file.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// deploy starts a server; change may edit its configuration.
func deploy(t testing.TB, change func(*rest.Config)) *deployment {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &deployment{
		t: t, addr: l.Addr().String(), issuer: newIssuer(t), storage: phitest.NewStorage(), trail: &audittest.Storage{}, logs: &lockedBuffer{},
	}
	d.base = "http://" + d.addr + "/fhir/R4"
	d.tree = newTree(t, d.trail)
	logger := slog.New(slog.NewJSONHandler(d.logs, nil))
	d.log, err = audit.Open(audit.Config{Dir: t.TempDir(), Storage: d.trail, Logger: logger})
	check(t, err)
	root, err := keyset.NewFileRoot(filepath.Join(t.TempDir(), "root.key"), true)
	check(t, err)
	keys, err := keyset.Open(ctx, root, d.storage)
	check(t, err)
	access, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: d.storage, Logger: logger})
	check(t, err)
	d.revocations, err = auth.NewRevocations(ctx, auth.RevocationConfig{Logger: logger})
	check(t, err)
	verifier, err := auth.NewVerifier(auth.VerifierConfig{
		Issuers: []auth.IssuerConfig{{
			Issuer: "https://issuer.test", Audience: d.base, JWKSURL: d.issuer.url, AssertsSignIn: true, RolesInToken: true,
		}},
		Insecure: true, Logger: logger, Revocations: d.revocations,
	})
	check(t, err)
	d.verifier = verifier
	level := phi.Levels{Disclosure: audit.Process, Other: audit.Process}
	records, err := phi.Open(ctx, phi.Config{
		Storage: d.storage, Keys: keys, Access: access, Audit: d.log, Level: level, Source: "test", Logger: logger,
	})
	check(t, err)
	key, err := records.OfficersKey(ctx)
	check(t, err)
	cfg := rest.Config{
		Base: d.base, Records: records, Verifier: verifier, Revocations: d.revocations, Access: access, Log: d.log, Trail: d.trail, Level: level,
		Policies: &policies{}, Emergencies: d.storage, Key: key, Tree: d.tree, Erasures: phi.NewErasures(phi.ErasureConfig{Records: records, Storage: d.storage}),
		Issuer: rest.Issuer{
			Issuer: "https://issuer.test", Authorize: "https://issuer.test/authorize", Token: "https://issuer.test/token", JWKS: d.issuer.url,
			Grants: []string{"authorization_code"}, Responses: []string{"code"}, Challenges: []string{"S256", "plain"}, Auth: []string{"private_key_jwt"},
			Scopes: []string{"openid", "patient/*.rs"},
		},
		Logger: logger, Version: "test",
	}
	if change != nil {
		change(&cfg)
	}
	d.server, err = rest.New(cfg)
	check(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = verifier.Run(ctx) })
	running.Go(func() { _ = access.Run(ctx) })
	running.Go(func() { _ = d.log.Run(ctx) })
	running.Go(func() {
		if err := d.server.Serve(l); err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		stop, done := context.WithTimeout(context.Background(), 10*time.Second)
		defer done()
		if err := d.server.Shutdown(stop); err != nil {
			t.Errorf("shutting down: %v", err)
		}
		cancel()
		running.Wait()
		check(t, d.log.Close())
		access.Close()
		keys.Close()
		for _, planted := range []string{plantedFamily, plantedMRN} {
			if strings.Contains(d.logs.String(), planted) {
				t.Errorf("the log holds %q", planted)
			}
		}
	})
	for deadline := time.Now().Add(10 * time.Second); verifier.Healthy() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the issuer's keys did not arrive")
		}
	}
	return d
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as is a bearer token of a role with all scopes of its level.
func (d *deployment) as(role string) string {
	scope := "user/*.cruds"
	if role == "backend" {
		scope = "system/*.cruds"
	}
	return d.issuer.token(d.t, d.base, role, scope, func(c map[string]any) {
		if role == "clinician" {
			c["fhirUser"] = "Practitioner/" + rivera
		}
	})
}

// answer is a response that was read whole.
type answer struct {
	*http.Response
	body []byte
}

// do sends a request; path is relative to the server's root unless absolute. headers are name, value, name, value…
func (d *deployment) do(method, path, token, body string, headers ...string) answer {
	d.t.Helper()
	if !strings.HasPrefix(path, "http://") {
		path = "http://" + d.addr + path
	}
	req, err := http.NewRequestWithContext(d.t.Context(), method, path, strings.NewReader(body))
	check(d.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/fhir+json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	check(d.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(d.t, err)
	return answer{resp, b}
}

// want checks status and that a refusal is a proper one: in the words of its API, with a request id, without PHI.
func (d *deployment) want(a answer, status int) answer {
	d.t.Helper()
	name := a.Request.Method + " " + a.Request.URL.Path
	if a.StatusCode != status {
		d.t.Errorf("%s: status %d, want %d; body %s", name, a.StatusCode, status, a.body)
	}
	checkEveryAnswer(d.t, name, a)
	return a
}

func checkEveryAnswer(t testing.TB, name string, a answer) {
	t.Helper()
	if a.Header.Get("X-Request-Id") == "" {
		t.Errorf("%s: no X-Request-Id", name)
	}
	if a.StatusCode < 400 {
		return
	}
	for _, planted := range []string{plantedFamily, plantedMRN, "goroutine", ".go:"} {
		if bytes.Contains(a.body, []byte(planted)) {
			t.Errorf("%s: the error body holds %q: %s", name, planted, a.body)
		}
	}
	if len(a.body) == 0 {
		return // HEAD
	}
	media := a.Header.Get("Content-Type")
	var o struct {
		ResourceType string
		Issue        []struct{ Severity, Code string }
		Title        string
		Status       int
	}
	if err := json.Unmarshal(a.body, &o); err != nil {
		t.Errorf("%s: error body is not JSON: %v: %s", name, err, a.body)
		return
	}
	switch media {
	case "application/fhir+json; charset=utf-8":
		if o.ResourceType != "OperationOutcome" || len(o.Issue) == 0 || o.Issue[0].Code == "" || o.Issue[0].Severity == "" {
			t.Errorf("%s: not an OperationOutcome: %s", name, a.body)
		}
	case "application/problem+json":
		if o.Title == "" || o.Status != a.StatusCode {
			t.Errorf("%s: not problem details: %s", name, a.body)
		}
	default:
		t.Errorf("%s: an error has Content-Type %q", name, media)
	}
}

// raw writes bytes to a connection of its own and reads the response; head is the method for reading it.
func (d *deployment) raw(text string) answer {
	d.t.Helper()
	conn, err := net.Dial("tcp", d.addr)
	check(d.t, err)
	defer conn.Close()
	check(d.t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	go func() { _, _ = io.WriteString(conn, text) }() // a refused request may be closed before it is read whole
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		d.t.Fatalf("reading response: %v", err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return answer{resp, b}
}

// events are the stored events that fit, once everything that was recorded has arrived.
func (d *deployment) events(q audit.Query) []audit.Stored {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Second)
	defer cancel()
	check(d.t, d.log.Drain(ctx))
	if q.Limit == 0 {
		q.Limit = audit.MaxPage
	}
	found, err := d.trail.Find(ctx, q)
	check(d.t, err)
	return found.Events
}

// eventsOf are the stored events of one request.
func (d *deployment) eventsOf(requestID string) []audit.Stored {
	d.t.Helper()
	return d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldRequest, requestID)}})
}

// patient stores the planted patient under an id and lets Rivera treat it.
func (d *deployment) patient(id string) answer {
	d.t.Helper()
	body := fmt.Sprintf(`{"resourceType":"Patient","id":%q,"identifier":[{"system":"urn:mrn","value":%q}],"name":[{"family":%q,"given":["Ana"]}],"gender":"female","birthDate":"1980-02-29"}`,
		id, plantedMRN, plantedFamily)
	a := d.want(d.do("PUT", "/fhir/R4/Patient/"+id, d.as("backend"), body), http.StatusCreated)
	d.storage.Grant(rivera, id)
	return a
}
