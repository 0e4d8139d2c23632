package main

import (
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// TestIndexAsOperatorsChoose starts a deployment whose names are found together with births only, and by sound, and whose record numbers
// are unique; then its operator wants prefixes.
func TestIndexAsOperatorsChoose(t *testing.T) {
	t.Parallel()
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const system = "http://hospital.test/mrn"
	d, err := launch(dir, "--patients", "2", "--name-search", "compound+phonetic", "--unique-identifier", system)
	if err != nil {
		t.Fatal(err)
	}
	stop := func() {
		if d != nil {
			if err := d.interrupt(); err != nil {
				t.Errorf("stopping: %v", err)
			}
			d = nil
		}
	}
	t.Cleanup(stop)
	backend := d.token(t, "app-backend")
	patient := func(mrn string) string {
		return `{"resourceType":"Patient","identifier":[{"system":"` + system + `","value":"` + mrn + `"}],"name":[{"family":"Quartermaine","given":["Ann"]}],"birthDate":"1980-03-04"}`
	}
	created := d.do(t, "POST", "/fhir/R4/Patient", backend, patient("ZQ-4711"))
	if created.StatusCode != http.StatusCreated {
		t.Fatalf("creating: %s %s", created.Status, created.body)
	}
	id := gjson.Get(string(created.body), "id").String()
	twice := d.do(t, "POST", "/fhir/R4/Patient", backend, patient("zq 4711"))
	if body := string(twice.body); twice.StatusCode != http.StatusConflict || strings.Contains(strings.ToLower(body), "4711") ||
		gjson.Get(body, "issue.0.code").String() != "duplicate" || gjson.Get(body, "issue.0.expression.0").String() != "Patient.identifier[0]" {
		t.Errorf("the same number again: %s %s", twice.Status, body)
	}
	finds := func(query string, want bool) {
		t.Helper()
		res := d.do(t, "GET", "/fhir/R4/Patient?"+query, backend, "")
		found := gjson.Get(string(res.body), `entry.#(resource.id=="`+id+`")`).Exists()
		if res.StatusCode != http.StatusOK || found != want {
			t.Errorf("%s: %s, found %t, want %t: %s", query, res.Status, found, want, res.body)
		}
	}
	finds("family=Quartermaine&birthdate=1980-03-04", true)
	finds("family=Quarter&birthdate=1980-03-04", false)
	finds("phonetic=Kwortermain&birthdate=1980", true)
	finds("phonetic=Quatermain&birthdate=1980", false) // the r is heard
	finds("phonetic=Cartermane&birthdate=1980", true)
	finds("identifier="+url.QueryEscape(system+"|ZQ-4711"), true)

	again := func() error {
		var err error
		stop()
		d, err = launch(dir, "--patients", "2", "--name-search", "prefix", "--unique-identifier", system)
		return err
	}
	if err := again(); err == nil || !strings.Contains(err.Error(), "chartkeep keys rotate --index --name-search prefix") {
		t.Fatalf("started with an index that does not do what was asked for: %v", err)
	}
	if d, err = launch(dir, "--patients", "2"); err != nil {
		t.Fatal(err)
	}
	if out, errs, code := d.verb(t, "keys", "rotate", "--index", "--name-search", "prefix", "--data", dir); code != 0 {
		t.Fatalf("rotating the index: %d\n%s%s", code, out, errs)
	}
	if err := again(); err != nil {
		t.Fatal(err)
	}
	backend = d.token(t, "app-backend")
	finds("family=Quarter&birthdate=1980-03-04", true)
	finds("family=quart", true)
	if twice := d.do(t, "POST", "/fhir/R4/Patient", backend, patient("ZQ.4711")); twice.StatusCode != http.StatusConflict {
		t.Errorf("the same number under the next generation: %s %s", twice.Status, twice.body)
	}
}
