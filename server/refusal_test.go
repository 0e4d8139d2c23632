package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chartkeep/chartkeep/server/demo"
)

// Every bad request is refused with the right status and an OperationOutcome that names the element, leaves one audit event,
// and neither the body nor the log holds what was planted in it.
func TestBadInput(t *testing.T) {
	d := demoShared(t)
	backend, officer := d.token(t, "app-backend"), d.token(t, "officer-diaz")
	const planted = "Zyxwvutsrq"
	deep := strings.Repeat(`{"extension":[`, 200) + strings.Repeat(`]}`, 200)
	for i, c := range []struct {
		name, method, path, token, body string
		want                            int
		expression                      string
		header                          []string
	}{
		{"no token", "GET", "/fhir/R4/Patient/x", "", "", 401, "", nil},
		{"malformed token", "GET", "/fhir/R4/Patient/x", "abc", "", 401, "", nil},
		{"foreign token", "GET", "/fhir/R4/Patient/x", foreignToken(t, d), "", 401, "", nil},
		{"token in the query", "GET", "/fhir/R4/Patient/x?access_token=" + planted, "", "", 400, "", nil},
		{"role missing", "GET", "/fhir/R4/Patient/x", d.token(t, "admin-root"), "", 403, "", nil},
		{"a clinician edits the directory", "PUT", "/fhir/R4/Practitioner/" + demo.RiveraID, d.token(t, "dr-chen"), `{"resourceType":"Practitioner","id":"` + demo.RiveraID + `"}`, 403, "", nil},
		{"scope missing", "DELETE", "/fhir/R4/Patient/x", d.token(t, "app-backend", "system/*.rs"), "", 403, "", nil},
		{"not JSON", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Patient","name":[{"family":"` + planted, 400, "", nil},
		{"duplicate name", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Patient","gender":"male","gender":"` + planted + `"}`, 400, "", nil},
		{"deep nesting", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Patient","extension":[` + deep + `]}`, 400, "", nil},
		{"unknown type", "GET", "/fhir/R4/" + planted + "/x", backend, "", 404, "", nil},
		{"wrong resourceType", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Observation","status":"final","code":{"text":"` + planted + `"}}`, 400, "", nil},
		{"unknown element", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Patient","surname":"` + planted + `"}`, 422, "Patient.surname", nil},
		{"wrong code", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Patient","gender":"` + planted + `"}`, 422, "Patient.gender", nil},
		{"wrong date", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Patient","birthDate":"` + planted + `"}`, 422, "Patient.birthDate", nil},
		{"missing element", "POST", "/fhir/R4/Observation", backend, `{"resourceType":"Observation","status":"final"}`, 422, "Observation.code", nil},
		{"id too long", "GET", "/fhir/R4/Patient/" + strings.Repeat("a", 65), backend, "", 404, "", nil},
		{"other id in the body", "PUT", "/fhir/R4/Patient/a", backend, `{"resourceType":"Patient","id":"b"}`, 400, "", nil},
		{"patient unknown", "POST", "/fhir/R4/Observation", backend, `{"resourceType":"Observation","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/` + planted + `"}}`, 422, "Observation.subject", nil},
		{"wrong If-Match", "PUT", "/fhir/R4/Patient/a", backend, `{"resourceType":"Patient","id":"a"}`, 412, "", []string{`If-Match: W/"7"`}},
		{"malformed If-Match", "PUT", "/fhir/R4/Patient/a", backend, `{"resourceType":"Patient","id":"a"}`, 400, "", []string{`If-Match: seven`}},
		{"wrong content type", "POST", "/fhir/R4/Patient", backend, `<Patient/>`, 415, "", []string{"Content-Type: application/fhir+xml"}},
		{"XML asked for", "GET", "/fhir/R4/Patient?_count=1", backend, "", 406, "", []string{"Accept: application/fhir+xml"}},
		{"body over the limit", "POST", "/fhir/R4/Patient", backend, `{"resourceType":"Patient","x":"` + strings.Repeat("a", 17<<20) + `"}`, 413, "", nil},
		{"forged page", "GET", "/fhir/R4/Patient?_page=AAAA", backend, "", 400, "", nil},
		{"method", "PATCH", "/fhir/R4/Patient/a", backend, `{}`, 405, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			request := fmt.Sprintf("bad-%d-%d", time.Now().UnixNano(), i)
			res := d.do(t, c.method, c.path, c.token, c.body, append(c.header, "X-Request-Id: "+request)...)
			if res.StatusCode != c.want {
				t.Fatalf("%s, want %d\n%s", res.Status, c.want, res.body)
			}
			var outcome struct {
				ResourceType string
				Issue        []struct {
					Severity, Code string
					Expression     []string
				}
			}
			if err := json.Unmarshal(res.body, &outcome); err != nil || outcome.ResourceType != "OperationOutcome" || len(outcome.Issue) == 0 {
				t.Fatalf("no OperationOutcome: %s", res.body)
			}
			if c.expression != "" && !strings.HasPrefix(strings.Join(outcome.Issue[0].Expression, " "), c.expression) {
				t.Errorf("expression %v, want %s", outcome.Issue[0].Expression, c.expression)
			}
			if c.want == 401 && !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("WWW-Authenticate: %q", res.Header.Get("WWW-Authenticate"))
			}
			if bytes.Contains(res.body, []byte(planted)) {
				t.Errorf("the body repeats what was sent: %s", res.body)
			}
			if res.Header.Get("X-Request-Id") != request {
				t.Errorf("X-Request-Id %q", res.Header.Get("X-Request-Id"))
			}
			// A write that got as far as an intent has two.
			if n := len(d.events(t, officer, "request_id="+request, 1)); n < 1 || n > 2 {
				t.Errorf("%d audit events", n)
			}
		})
	}
	log, err := os.ReadFile(filepath.Join(d.dir, demoLog))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(log, []byte(planted)) {
		t.Error("the log holds what was planted")
	}
}

// foreignToken is well formed, with a signature by a key that the issuer never had.
func foreignToken(t *testing.T, d *instance) string {
	t.Helper()
	parts := strings.Split(d.token(t, "dr-rivera"), ".")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// Create, update, history, delete as a client sees them.
func TestLifeOfARecord(t *testing.T) {
	d := demoShared(t)
	token := d.token(t, "app-backend")
	source := `{"resourceType":"Patient","extension":[{"url":"http://example.org/weight","valueDecimal":1.10}],"name":[{"family":"Ødegård","_family":{"extension":[{"url":"http://example.org/unknown","valueString":"kept"}]},"given":["Åse"]}],"gender":"female","birthDate":"1980-02-29"}`
	created := d.do(t, "POST", "/fhir/R4/Patient", token, source)
	if created.StatusCode != http.StatusCreated || created.Header.Get("ETag") != `W/"1"` {
		t.Fatalf("create: %s %v\n%s", created.Status, created.Header, created.body)
	}
	if !strings.HasSuffix(created.Header.Get("Location"), "/_history/1") {
		t.Errorf("Location: %q", created.Header.Get("Location"))
	}
	id := created.json(t)["id"].(string)
	path := "/fhir/R4/Patient/" + id
	read := d.do(t, "GET", path, token, "")
	if !bytes.Contains(read.body, []byte(`"valueDecimal":1.10`)) || !bytes.HasSuffix(read.body, []byte(source[len(`{"resourceType":"Patient"`):])) {
		t.Errorf("digits or order were lost:\n%s", read.body)
	}
	if res := d.do(t, "GET", path, token, "", `If-None-Match: W/"1"`); res.StatusCode != http.StatusNotModified {
		t.Errorf("If-None-Match: %s", res.Status)
	}
	second := strings.Replace(string(read.body), "Ødegård", "Berg", 1)
	updated := d.do(t, "PUT", path, token, second, `If-Match: W/"1"`)
	if updated.StatusCode != http.StatusOK || updated.Header.Get("ETag") != `W/"2"` {
		t.Fatalf("update: %s\n%s", updated.Status, updated.body)
	}
	if res := d.do(t, "PUT", path, token, second, `If-Match: W/"1"`); res.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("stale If-Match: %s", res.Status)
	}
	if res := d.do(t, "GET", path+"/_history/1", token, ""); !bytes.Contains(res.body, []byte("Ødegård")) {
		t.Errorf("version 1: %s\n%s", res.Status, res.body)
	}
	if res := d.do(t, "DELETE", path, token, ""); res.StatusCode != http.StatusNoContent && res.StatusCode != http.StatusOK {
		t.Errorf("delete: %s", res.Status)
	}
	if res := d.do(t, "GET", path, token, ""); res.StatusCode != http.StatusGone {
		t.Errorf("deleted: %s", res.Status)
	}
	history := d.do(t, "GET", path+"/_history", token, "").json(t)
	if n := len(history["entry"].([]any)); n != 3 {
		t.Errorf("%d versions in the history", n)
	}
}

// Two clients create the same patient on condition at once: one record comes of it.
func TestConditionalCreateRace(t *testing.T) {
	d := demoShared(t)
	token := d.token(t, "app-backend")
	body := `{"resourceType":"Patient","identifier":[{"system":"http://example.org/mrn","value":"race-1"}],"name":[{"family":"Race"}]}`
	done := make(chan int)
	for range 8 {
		go func() {
			res := d.do(t, "POST", "/fhir/R4/Patient", token, body, "If-None-Exist: identifier=http://example.org/mrn|race-1")
			done <- res.StatusCode
		}()
	}
	created := 0
	for range 8 {
		switch code := <-done; code {
		case http.StatusCreated:
			created++
		case http.StatusOK:
		default:
			t.Errorf("status %d", code)
		}
	}
	if created != 1 {
		t.Errorf("%d records were created", created)
	}
}

// testdata/script plays what a user of the command line sees.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error { // a development key, 32 bytes
			return os.WriteFile(filepath.Join(e.WorkDir, "root"), bytes.Repeat([]byte{7}, 32), 0o600)
		},
	})
}

// The binary that users build answers, too, not only the test's.
func TestHelpNamesEveryVerb(t *testing.T) {
	out, err := exec.Command("chartkeep", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, verb := range []string{"demo", "serve", "migrate", "token", "import", "comply", "bench"} {
		if !strings.Contains(string(out), "\n  "+verb) {
			t.Errorf("--help does not name %s", verb)
		}
	}
}
