package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"golang.org/x/text/unicode/norm"
)

// A clinician who treats the patient reads the chart, one who does not is refused, and both are in the trail a second later.
func TestReadAndRefusalAreInTheTrail(t *testing.T) {
	d := demoShared(t)
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	officer := d.token(t, "officer-diaz")
	path := "/fhir/R4/Patient/" + one.PatientOne

	read := d.do(t, "GET", path, d.token(t, "dr-rivera"), "", "X-Request-Id: tour-rivera")
	if read.StatusCode != http.StatusOK || read.json(t)["id"] != one.PatientOne {
		t.Fatalf("dr-rivera: %s\n%s", read.Status, read.body)
	}
	if ct := read.Header.Get("Content-Type"); ct != "application/fhir+json; charset=utf-8" {
		t.Errorf("Content-Type %q", ct)
	}
	if read.Header.Get("ETag") == "" || read.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers: %v", read.Header)
	}
	refused := d.do(t, "GET", path, d.token(t, "dr-chen"), "", "X-Request-Id: tour-chen")
	if refused.StatusCode != http.StatusNotFound && refused.StatusCode != http.StatusForbidden {
		t.Fatalf("dr-chen: %s\n%s", refused.Status, refused.body)
	}
	if refused.json(t)["resourceType"] != "OperationOutcome" {
		t.Errorf("refusal is no OperationOutcome: %s", refused.body)
	}
	unknown := d.do(t, "GET", "/fhir/R4/Patient/00000000-0000-4000-8000-000000000000", d.token(t, "dr-chen"), "")
	if unknown.StatusCode != refused.StatusCode || !bytes.Equal(unknown.body, refused.body) {
		t.Errorf("a refusal can be told from an unknown id:\n%s %s\n%s %s", refused.Status, refused.body, unknown.Status, unknown.body)
	}
	for _, c := range []struct {
		request string
		allowed bool
	}{{"tour-rivera", true}, {"tour-chen", false}} {
		events := d.events(t, officer, "request_id="+c.request, 1)
		if len(events) != 1 {
			t.Fatalf("%s: %d events", c.request, len(events))
		}
		b, _ := json.Marshal(events[0])
		if !strings.Contains(string(b), one.PatientOne) || strings.Contains(string(b), `"allowed":true`) != c.allowed {
			t.Errorf("%s: %s", c.request, b)
		}
	}
	if by := d.events(t, officer, "patient="+one.PatientOne+"&limit=5", 2); len(by) < 2 {
		t.Errorf("the patient's own trail has %d events", len(by))
	}
}

// Each persona sees what its role may see and not more.
func TestPersonas(t *testing.T) {
	d := demoShared(t)
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	patient := "/fhir/R4/Patient/" + one.PatientOne
	for _, c := range []struct {
		persona, path string
		want          int
		has, hasNot   []string // top-level elements
	}{
		{"dr-rivera", patient, 200, []string{"name", "identifier", "birthDate", "gender"}, nil},
		{"dr-chen", patient, 404, nil, nil},
		{"registrar-lee", patient, 200, []string{"name", "identifier", "birthDate"}, []string{"extension", "text", "gender"}},
		{"registrar-lee", "/fhir/R4/Observation?patient=" + one.PatientOne, 403, nil, nil},
		{"billing-novak", patient, 200, []string{"name"}, []string{"extension", "text"}},
		{"researcher-kim", patient, 200, []string{"gender", "birthDate", "address"}, []string{"name", "identifier", "telecom", "contact", "text"}}, // year, State and ZIP3: TestViews
		{"patient-1", patient, 200, []string{"name"}, nil},
		{"officer-diaz", patient, 403, nil, nil},
		{"security-amari", patient, 403, nil, nil},
		{"admin-root", patient, 403, nil, nil},
		{"app-backend", patient, 200, []string{"name", "identifier", "birthDate", "gender"}, nil},
	} {
		t.Run(c.persona+strings.ReplaceAll(c.path, "/", " "), func(t *testing.T) {
			res := d.do(t, "GET", c.path, d.token(t, c.persona), "")
			if res.StatusCode != c.want {
				t.Fatalf("%s, want %d\n%s", res.Status, c.want, res.body)
			}
			body := res.json(t)
			for _, e := range c.has {
				if _, ok := body[e]; !ok {
					t.Errorf("%s is missing", e)
				}
			}
			for _, e := range c.hasNot {
				if _, ok := body[e]; ok {
					t.Errorf("%s is disclosed", e)
				}
			}
			if len(c.hasNot) > 0 && !strings.Contains(string(res.body), "SUBSETTED") {
				t.Error("a part of the record is not tagged SUBSETTED")
			}
		})
	}
	others := d.do(t, "GET", "/fhir/R4/Patient?_count=200", d.token(t, "patient-1"), "")
	if n := len(entries(t, others)); n != 1 {
		t.Errorf("patient-1 finds %d patients", n)
	}
}

func entries(t *testing.T, res answered) []json.RawMessage {
	t.Helper()
	var bundle struct {
		Entry []struct {
			Resource json.RawMessage
			Search   struct{ Mode string }
		}
	}
	if err := json.Unmarshal(res.body, &bundle); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v\n%s", res.Status, err, res.body)
	}
	var found []json.RawMessage
	for _, e := range bundle.Entry {
		if e.Search.Mode == "match" {
			found = append(found, e.Resource)
		}
	}
	return found
}

// The data beside the checkout goes in by the program's own verb; what comes out is what went in; nothing of it can be read at
// rest. One demo of its own, since it looks at everything that the demo wrote.
func TestImportedRecords(t *testing.T) {
	t.Parallel()
	synthea, uscore := sharedData(t, "synthea"), sharedData(t, "us-core-6.1.0/examples")
	d := demoFresh(t, "--patients", "2")
	needles := identifying(t, synthea, uscore)
	for n := range atRest(t, d, needles, false) { // words that PostgreSQL itself, or our own files, hold are no evidence
		delete(needles, n.needle)
	}
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"resourceType":"Bundle","type":"transaction","entry":[{"resource":{"resourceType":"Pat`), 0o600); err != nil {
		t.Fatal(err)
	}
	chartkeep := func(args ...string) (string, int) {
		cmd := exec.Command("chartkeep", args...)
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	out, code := chartkeep("import", "--data", d.dir, broken, synthea, uscore)
	if code != 1 || !strings.Contains(out, broken) {
		t.Fatalf("import with a truncated file: exit code %d\n%s", code, out)
	}
	t.Log(out)
	if out, code = chartkeep("import", "--data", d.dir, synthea, uscore); code != 0 || !strings.Contains(out, "imported 0 resources") {
		t.Fatalf("imported twice: exit code %d\n%s", code, out)
	}
	backend := d.token(t, "app-backend")

	t.Run("search", func(t *testing.T) { searchImported(t, d, backend, synthea) })
	t.Run("round trip", func(t *testing.T) { readBack(t, d, backend, synthea, uscore) })
	t.Run("nothing readable at rest", func(t *testing.T) { nothingReadable(t, d, needles) })
}

// syntheaPatients are the Patient resources of the bundles.
func syntheaPatients(t *testing.T, dir string) []map[string]any {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	var patients []map[string]any
	for _, f := range files {
		for _, r := range resourcesOf(t, f) {
			if r.value["resourceType"] == "Patient" {
				patients = append(patients, r.value)
			}
		}
	}
	return patients
}

func searchImported(t *testing.T, d *instance, token, synthea string) {
	for _, p := range syntheaPatients(t, synthea) {
		name := p["name"].([]any)[0].(map[string]any)
		family := name["family"].(string)
		plain := strings.Map(func(r rune) rune {
			if r >= 0x300 && r < 0x370 {
				return -1
			}
			return r
		}, norm.NFD.String(family))
		var mrn string
		for _, i := range p["identifier"].([]any) {
			id := i.(map[string]any)
			if ty, ok := id["type"].(map[string]any); ok && strings.Contains(fmt.Sprint(ty), "MR") {
				mrn = id["value"].(string)
			}
		}
		for _, query := range []url.Values{
			{"identifier": {mrn}}, {"name": {family}}, {"name": {family[:4]}}, {"family": {plain}}, {"name": {strings.ToUpper(plain)}},
			{"birthdate": {p["birthDate"].(string)}, "family": {family[:3]}}, {"name": {family}, "gender": {p["gender"].(string)}},
		} {
			res := d.do(t, "GET", "/fhir/R4/Patient?"+query.Encode(), token, "")
			found := slices.ContainsFunc(entries(t, res), func(e json.RawMessage) bool { return bytes.Contains(e, []byte(`"`+mrn+`"`)) })
			if !found {
				t.Errorf("%v does not find the patient: %s", slices.Collect(maps.Keys(query)), res.body)
			}
		}
	}
	none := d.do(t, "GET", "/fhir/R4/Patient?name=zzzzqq", token, "")
	if n := len(entries(t, none)); n != 0 {
		t.Errorf("a name that nobody has finds %d", n)
	}
}

// sourced is a resource of a file, decoded, and its text.
type sourced struct {
	value map[string]any
	file  string
}

// resourcesOf are the resources of a file: a bundle's entries or the file itself. Numbers keep their digits.
func resourcesOf(t *testing.T, file string) []sourced {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	v := decode(t, b)
	if v["resourceType"] != "Bundle" {
		return []sourced{{v, file}}
	}
	var all []sourced
	for _, e := range v["entry"].([]any) {
		all = append(all, sourced{e.(map[string]any)["resource"].(map[string]any), file})
	}
	return all
}

func decode(t *testing.T, b []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// readBack compares every imported resource with its source, apart from id, meta and resolved references.
func readBack(t *testing.T, d *instance, token string, dirs ...string) {
	stored := map[string]map[string][]map[string]any{} // type → digest of content → resources
	bare := func(v map[string]any) map[string]any {
		v = maps.Clone(v)
		delete(v, "id")
		delete(v, "meta")
		return v
	}
	key := func(v map[string]any) string {
		b, err := json.Marshal(withoutReferences(bare(v)))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	load := func(resourceType string) {
		stored[resourceType] = map[string][]map[string]any{}
		for page := "/fhir/R4/" + resourceType + "?_count=200"; page != ""; {
			res := d.do(t, "GET", page, token, "")
			if res.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s\n%s", page, res.Status, res.body)
			}
			for _, e := range entries(t, res) {
				v := decode(t, e)
				k := key(v)
				stored[resourceType][k] = append(stored[resourceType][k], v)
			}
			page = ""
			for _, l := range decode(t, res.body)["link"].([]any) {
				if l := l.(map[string]any); l["relation"] == "next" {
					page = l["url"].(string)
				}
			}
		}
	}
	n := 0
	for _, dir := range dirs {
		files, _ := filepath.Glob(filepath.Join(dir, "*.json"))
		for _, f := range files {
			for _, r := range resourcesOf(t, f) {
				ty := r.value["resourceType"].(string)
				if stored[ty] == nil {
					load(ty)
				}
				if len(stored[ty][key(r.value)]) == 0 {
					t.Errorf("%s: a %s (id %v) does not come back as it was", filepath.Base(r.file), ty, r.value["id"])
				}
				n++
			}
		}
	}
	t.Logf("%d resources compared", n)
}

// withoutReferences replaces what a bundle resolves: references to its entries, by urn: or by the fullUrl of where they came from.
func withoutReferences(v any) any {
	switch v := v.(type) {
	case map[string]any:
		c := map[string]any{}
		for k, e := range v {
			if s, ok := e.(string); ok && k == "reference" && !strings.HasPrefix(s, "#") {
				e = "resolved"
			}
			c[k] = withoutReferences(e)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i := range v {
			c[i] = withoutReferences(v[i])
		}
		return c
	}
	return v
}

// identifying collects what identifies the imported patients: names, identifiers, phone numbers, addresses, dates, narrative.
func identifying(t *testing.T, synthea, uscore string) map[string]bool {
	needles := map[string]bool{}
	add := func(s string) {
		// Short runs of hexadecimal digits turn up by chance in megabytes of it, which is how a dump writes bytes.
		if len(s) >= 12 || len(s) >= 6 && strings.Trim(strings.ToLower(s), "0123456789abcdef") != "" {
			needles[s] = true
		}
	}
	var walk func(v any, identifying bool)
	walk = func(v any, identifying bool) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				switch k {
				case "family", "given", "birthDate", "deceasedDateTime", "line", "div", "note", "conclusion":
					walk(e, true)
				case "identifier", "telecom":
					walk(e, true)
				case "system", "use", "code", "url", "reference", "display", "type", "period", "status", "assigner":
					walk(e, false)
				default:
					walk(e, identifying)
				}
			}
		case []any:
			for _, e := range v {
				walk(e, identifying)
			}
		case string:
			if !identifying {
				return
			}
			add(v)
			if strings.HasPrefix(v, "<div") {
				for _, w := range strings.FieldsFunc(v, func(r rune) bool { return strings.ContainsRune("<>/ \n\t\"=.:", r) }) {
					if len(w) >= 12 && !strings.Contains(v, w+"=") {
						add(w)
					}
				}
			}
		}
	}
	patients := syntheaPatients(t, synthea)
	for _, p := range patients {
		walk(p, false)
	}
	for _, name := range []string{"Patient-example.json", "Patient-child-example.json", "Patient-infant-example.json", "RelatedPerson-shaw-niece.json"} {
		for _, r := range resourcesOf(t, filepath.Join(uscore, name)) {
			walk(r.value, false)
		}
	}
	// The examples' authors put these into ids, too; an id is a pseudonym that the client chose.
	for _, n := range []string{"Infant", "Example"} {
		delete(needles, n)
	}
	return needles
}

// nothingReadable looks for what identifies the imported patients in everything that the demo wrote.
func nothingReadable(t *testing.T, d *instance, needles map[string]bool) {
	if len(needles) < 100 {
		t.Fatalf("only %d needles", len(needles))
	}
	for f := range atRest(t, d, needles, true) {
		t.Errorf("%s holds %q as %s", f.file, f.needle, f.form)
	}
}

// finding is a needle in a file.
type finding struct{ needle, form, file string }

// atRest searches a dump of the whole cluster, PostgreSQL's own files and logs, the journal and the program's log: for the text,
// and (disguised) its hexadecimal, base64, UTF-16 and backwards forms.
func atRest(t *testing.T, d *instance, needles map[string]bool, disguised bool) map[finding]bool {
	t.Helper()
	findings := map[finding]bool{}
	dump := filepath.Join(t.TempDir(), "dump.sql")
	dumpCluster(t, d, dump)
	files := []string{dump}
	for _, root := range []string{filepath.Join(d.dir, demoJournal), filepath.Join(d.dir, "postgres")} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	files = append(files, filepath.Join(d.dir, demoLog), filepath.Join(d.dir, demoJSON))
	control := []byte("audit_event") // must be found in the dump, or the search is broken
	found, looked := false, 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a temporary file of PostgreSQL that is gone by now
		}
		looked++
		found = found || bytes.Contains(b, control)
		lower := bytes.ToLower(b)
		for n := range needles {
			if bytes.Contains(lower, []byte(strings.ToLower(n))) {
				findings[finding{n, "text", filepath.Base(f)}] = true
			}
			if !disguised {
				continue
			}
			for form, x := range disguises(n) {
				if bytes.Contains(b, x) {
					findings[finding{n, form, filepath.Base(f)}] = true
				}
			}
		}
	}
	if !found || looked < 100 {
		t.Errorf("the search is broken: control found %v in %d files", found, looked)
	}
	t.Logf("%d needles, %d files", len(needles), looked)
	return findings
}

func disguises(s string) map[string][]byte {
	reversed := []byte(s)
	slices.Reverse(reversed)
	var wide []byte
	for _, u := range utf16.Encode([]rune(s)) {
		wide = append(wide, byte(u), byte(u>>8))
	}
	return map[string][]byte{
		"hexadecimal": []byte(hex.EncodeToString([]byte(s))), "base64": []byte(base64.StdEncoding.EncodeToString([]byte(s))[:len(s)/3*4]),
		"UTF-16": wide, "backwards": reversed,
	}
}

// dumpCluster is pg_dumpall with the binaries that run the cluster.
func dumpCluster(t *testing.T, d *instance, file string) {
	t.Helper()
	tool, err := exec.LookPath("pg_dumpall")
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pg_dumpall"); len(found) > 0 {
		tool, err = found[len(found)-1], nil
	}
	if err != nil {
		t.Skip("no pg_dumpall here: the npm package of PostgreSQL brings none")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	u, err := url.Parse(d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	cmd := exec.CommandContext(ctx, tool, "--dbname", u.String(), "--file", file)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_dumpall: %v\n%s", err, out)
	}
}
