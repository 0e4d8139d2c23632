package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/jackc/pgx/v5"
)

// planted are 500 values that nothing else holds. They begin alike, so that one search finds them all, cut short or not: those
// of letters, and those of digits (record numbers, telephones).
type planted struct {
	letters, digits string // how they begin
	n               int
}

func newPlanted() *planted {
	n, _ := rand.Int(rand.Reader, big.NewInt(1e11))
	return &planted{letters: "Qz" + strings.ToLower(rand.Text()[:10]), digits: fmt.Sprintf("9%011d", n)}
}

func (p *planted) word() string { p.n++; return fmt.Sprintf("%s%04d", p.letters, p.n) }

func (p *planted) number() string { p.n++; return fmt.Sprintf("%s%04d", p.digits, p.n) }

// forms are what a planted value looks like where it leaks: as it is, folded as an index folds it, hexadecimal, base64 at any
// offset, UTF-16, backwards.
func (p *planted) forms() map[string][]byte {
	forms := map[string][]byte{}
	for name, s := range map[string]string{"letters": p.letters, "folded": strings.ToLower(p.letters), "upper": strings.ToUpper(p.letters), "digits": p.digits} {
		forms[name] = []byte(s)
		forms[name+", hexadecimal"] = []byte(hex.EncodeToString([]byte(s)))
		forms[name+", hexadecimal in capitals"] = []byte(strings.ToUpper(hex.EncodeToString([]byte(s))))
		backwards := []byte(s)
		slices.Reverse(backwards)
		forms[name+", backwards"] = backwards
		var little, big []byte
		for _, u := range utf16.Encode([]rune(s)) {
			little, big = append(little, byte(u), byte(u>>8)), append(big, byte(u>>8), byte(u))
		}
		forms[name+", UTF-16 LE"], forms[name+", UTF-16 BE"] = little, big
		for offset := range 3 {
			// What stands before and after shares characters with its neighbours: the middle is the value's own.
			text := base64.StdEncoding.EncodeToString(append(make([]byte, offset), s...))
			forms[fmt.Sprintf("%s, base64 at %d", name, offset)] = []byte(text[(offset*8+5)/6 : (offset+len(s))*8/6])
		}
	}
	return forms
}

// A planted value is found in each of its forms, whatever stands around it.
func TestPlantedForms(t *testing.T) {
	p := newPlanted()
	for _, value := range []string{p.word(), p.number(), strings.ToUpper(p.word())} {
		backwards := []byte(value)
		slices.Reverse(backwards)
		wide := []byte{}
		for _, u := range utf16.Encode([]rune(value)) {
			wide = append(wide, byte(u>>8), byte(u))
		}
		leaks := map[string][]byte{"text": []byte(value), "hexadecimal": []byte(hex.EncodeToString([]byte(value))), "backwards": backwards, "UTF-16": wide}
		for before := range 4 {
			leaks[fmt.Sprint("base64 after ", before)] = []byte(base64.StdEncoding.EncodeToString([]byte("name"[:before] + value + "!")))
		}
		for form, leak := range leaks {
			s := &searched{forms: p.forms(), found: map[string][]string{}}
			s.look("a file", slices.Concat([]byte("before "), leak, []byte(" after")))
			if len(s.found) == 0 {
				t.Errorf("%s, %s: not found in %q", value, form, leak)
			}
		}
	}
}

// searched are files and what was found in them.
type searched struct {
	forms map[string][]byte
	files int
	mu    sync.Mutex
	found map[string][]string // forms by file
}

func (s *searched) look(name string, content []byte) {
	for form, needle := range s.forms {
		if bytes.Contains(content, needle) {
			s.mu.Lock()
			s.found[name] = append(s.found[name], form)
			s.mu.Unlock()
		}
	}
}

func (s *searched) tree(t *testing.T, root string) {
	t.Helper()
	if err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if b, err := os.ReadFile(path); err == nil { // else PostgreSQL took it away meanwhile
				s.files++
				s.look(path, b)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// memory looks into what PostgreSQL's processes hold in memory: more than a core dump of each would show.
func (s *searched) memory(t *testing.T, dir string) (processes int) {
	t.Helper()
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range pids {
		cwd, err := os.Readlink(filepath.Join(proc, "cwd"))
		if err != nil || !strings.HasPrefix(cwd, dir) {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		if !bytes.Contains(command, []byte("postgres")) {
			continue
		}
		maps, err := os.ReadFile(filepath.Join(proc, "maps"))
		if err != nil {
			continue
		}
		mem, err := os.Open(filepath.Join(proc, "mem"))
		if err != nil {
			continue // not root, or gone
		}
		processes++
		for line := range strings.Lines(string(maps)) {
			var from, to int64
			var mode string
			if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || !strings.HasPrefix(mode, "rw") {
				continue
			}
			if strings.HasSuffix(mode, "s") && processes > 1 {
				continue // shared by all
			}
			b := make([]byte, to-from)
			n, _ := mem.ReadAt(b, from)
			s.look("memory of "+strings.ReplaceAll(string(bytes.TrimRight(command, "\x00")), "\x00", " "), b[:n])
		}
		mem.Close()
	}
	return processes
}

// Experiments 1 and 2: 500 planted values go through the API, the verbs and every error that a client can provoke, with PostgreSQL
// logging each statement with its parameters; keys rotate, patients are merged and erased, everything is backed up and
// swept. Then nothing that was written anywhere holds one of them, in any form.
func TestPlantedValues(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "2")
	ctx := t.Context()
	admin, err := pgx.Connect(ctx, d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	do := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for name, value := range map[string]string{
		"log_statement": "all", "log_duration": "on", "log_min_duration_statement": "0", "log_min_error_statement": "debug5", "log_min_messages": "debug1",
		"log_parameter_max_length": "-1", "log_parameter_max_length_on_error": "-1", "log_error_verbosity": "verbose",
	} {
		do(`ALTER SYSTEM SET ` + name + ` = '` + value + `'`)
	}
	do(`SELECT pg_reload_conf()`)

	p := newPlanted()
	backend, clinician, registrar := d.token(t, "app-backend"), d.token(t, "dr-rivera"), d.token(t, "registrar-lee")
	var refused [][]byte // bodies of refusals
	send := func(want int, method, path, body string, header ...string) answered {
		t.Helper()
		res := d.do(t, method, "/fhir/R4"+path, backend, body, header...)
		if res.StatusCode >= 400 {
			refused = append(refused, res.body)
		}
		if want != 0 && res.StatusCode != want {
			t.Fatalf("%s %s: %s, want %d\n%s", method, strings.Split(path, "?")[0], res.Status, want, res.body)
		}
		return res
	}
	patient := func(id string) string {
		return fmt.Sprintf(`{"resourceType":"Patient","id":%q,"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\">%s</div>"},`+
			`"extension":[{"url":"urn:example:x","valueString":%q}],"identifier":[{"system":"urn:example:mrn","value":%q}],"name":[{"family":%q,"given":[%q]}],`+
			`"telecom":[{"system":"phone","value":"+1%s"},{"system":"email","value":"%s@example.org"}],"address":[{"line":[%q],"city":%q}],"contact":[{"name":{"text":%q}}]}`,
			id, p.word(), p.word(), p.number(), p.word(), p.word(), p.number(), p.word(), p.word(), p.word(), p.word())
	}
	observation := func(id, of string) string {
		return fmt.Sprintf(`{"resourceType":"Observation","id":%q,"status":"final","code":{"text":%q},"subject":{"reference":"Patient/%s","display":%q},"valueString":%q,"note":[{"text":%q}]}`,
			id, p.word(), of, p.word(), p.word(), p.word())
	}
	for n := range 25 {
		id := fmt.Sprintf("planted-%d", n)
		send(http.StatusCreated, "PUT", "/Patient/"+id, patient(id))
		send(http.StatusCreated, "PUT", "/Observation/"+id, observation(id, id))
	}
	send(http.StatusOK, "PUT", "/Patient/planted-0", patient("planted-0"))
	send(http.StatusNoContent, "DELETE", "/Observation/planted-3", "")
	send(http.StatusOK, "POST", "", fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"fullUrl":"urn:uuid:b3a1f0f4-9a42-4b8e-9d6a-3a7a1f0c0001","resource":%s,"request":{"method":"PUT","url":"Patient/planted-30"}},`+
		`{"resource":%s,"request":{"method":"PUT","url":"Observation/planted-30"}}]}`, patient("planted-30"), observation("planted-30", "planted-30")))

	// Searches, found and not found, in addresses and in bodies.
	for _, q := range []url.Values{{"name": {p.word()}}, {"family": {p.letters}}, {"identifier": {"urn:example:mrn|" + p.digits}}, {"phone": {p.number()}}, {"email": {p.word() + "@example.org"}}} {
		send(0, "GET", "/Patient?"+q.Encode(), "")
		send(0, "POST", "/Patient/_search", q.Encode(), "Content-Type: application/x-www-form-urlencoded")
	}
	// Every way to be refused.
	for _, r := range []struct {
		want                          int
		method, path, body, condition string
	}{
		{400, "POST", "/Patient", `{"resourceType":"Patient","name":[{"family":"` + p.word() + `"`, ""},
		{400, "POST", "/Patient", `{"resourceType":"Patient","name":[{"family":"` + p.word() + `"}],"name":[]}`, ""},
		{0, "POST", "/Patient", `{"resourceType":"Patient","gender":"` + p.word() + `"}`, ""},
		{0, "POST", "/Patient", `{"resourceType":"Patient","birthDate":"` + p.number() + `"}`, ""},
		{0, "POST", "/Patient", `{"resourceType":"Patient","nickname":"` + p.word() + `"}`, ""}, // an element's name is no value: who sent it is told
		{0, "POST", "/Patient", `{"resourceType":"` + p.word() + `"}`, ""},
		{400, "PUT", "/Patient/planted-1", patient("planted-2"), ""},
		{412, "PUT", "/Patient/planted-1", patient("planted-1"), "If-Match: W/\"77\""},
		{0, "POST", "/Patient", patient("x"), "If-None-Exist: identifier=urn:example:mrn|" + p.number()},
		{0, "POST", "/Patient", patient("x"), "If-None-Exist: family=" + p.letters},
		{0, "POST", "/Patient", patient("x"), "If-None-Exist: " + p.word() + "=" + p.word()},
		{0, "GET", "/Patient?" + p.word() + "=" + p.word(), "", ""},
		{0, "GET", "/Patient?birthdate=" + p.word(), "", ""},
		{0, "GET", "/Observation?value-string=" + p.word(), "", ""},
		{0, "GET", "/Patient?name:" + p.word() + "=" + p.word(), "", ""},
		{0, "GET", "/Patient/planted-1?_elements=" + p.word(), "", ""},
		{0, "GET", "/" + p.word(), "", ""},
		{0, "POST", "", `{"resourceType":"Bundle","type":"transaction","entry":[{"resource":` + patient("planted-31") + `,"request":{"method":"PUT","url":"Patient/planted-31"}},{"resource":{"resourceType":"Patient","gender":"` + p.word() + `"},"request":{"method":"POST","url":"Patient"}}]}`, ""},
		{0, "POST", "", `{"resourceType":"Bundle","type":"batch","entry":[{"resource":{"resourceType":"Patient","gender":"` + p.word() + `"},"request":{"method":"POST","url":"Patient"}},{"request":{"method":"GET","url":"Patient?name=` + p.word() + `"}}]}`, ""},
		{0, "PATCH", "/Patient/planted-1", `[{"op":"replace","path":"/name/0/family","value":"` + p.word() + `"}]`, ""},
		{0, "POST", "/Patient", strings.Repeat(patient("x"), 3), "Content-Type: text/plain"},
		{0, "POST", "/Patient", patient("x"), "Content-Encoding: gzip"},
	} {
		header := []string{}
		if r.condition != "" {
			header = append(header, r.condition)
		}
		send(r.want, r.method, r.path, r.body, header...)
	}
	for _, token := range []string{clinician, registrar, d.token(t, "dr-chen"), d.token(t, "researcher-kim"), "not." + p.word() + ".a-token"} {
		for _, path := range []string{"/fhir/R4/Patient/planted-1", "/fhir/R4/Patient?name=" + p.letters, "/fhir/R4/Observation/planted-1/_history"} {
			if res := d.do(t, "GET", path, token, ""); res.StatusCode >= 400 {
				refused = append(refused, res.body)
			}
		}
	}
	// A constraint that fails, and a database that does not answer in time.
	do(`ALTER TABLE record ADD CONSTRAINT never CHECK (type <> 'Basic') NOT VALID`)
	send(0, "POST", "/Basic", `{"resourceType":"Basic","code":{"text":"`+p.word()+`"}}`)
	do(`ALTER TABLE record DROP CONSTRAINT never`)
	if _, err := admin.Exec(ctx, `BEGIN; LOCK TABLE record IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	send(http.StatusServiceUnavailable, "PUT", "/Patient/planted-4", patient("planted-4"))
	do(`ROLLBACK`)

	// The verbs, with what is at work behind them.
	verb := func(args ...string) string {
		t.Helper()
		out, errs, code := d.verb(t, append(args, "--data", d.dir)...)
		if code != 0 {
			t.Fatalf("%s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
		}
		refused = append(refused, []byte(out), []byte(errs))
		return strings.TrimSpace(out)
	}
	file := filepath.Join(t.TempDir(), "import.json")
	for n, content := range []string{patient("planted-32"), `{"resourceType":"Patient","name":[{"family":"` + p.word(), `{"resourceType":"Patient","gender":"` + p.word() + `"}`} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		out, errs, code := d.verb(t, "import", file, "--data", d.dir)
		if (code == 0) != (n == 0) {
			t.Errorf("import %d: exit code %d\n%s%s", n, code, out, errs)
		}
		refused = append(refused, []byte(out), []byte(errs))
	}
	merge := `{"resourceType":"Parameters","parameter":[{"name":"source-patient","valueReference":{"reference":"Patient/planted-10"}},{"name":"target-patient","valueReference":{"reference":"Patient/planted-11"}}]}`
	if res := send(0, "POST", "/Patient/$merge", merge); res.StatusCode != http.StatusOK {
		t.Errorf("$merge: %s\n%s", res.Status, res.body)
	}
	verb("keys", "rotate", "--all")
	verb("keys", "rotate", "--index")
	verb("keys", "rewrap")
	id := verb("keys", "shred", "planted-20", "--reason", "case 20", "--by", "Ines Diaz")
	verb("keys", "shred", "--approve", id, "--by", "Sam Amari")
	verb("keys", "drill", "--out", filepath.Join(d.dir, "drill.json"))
	verb("backup", "--out", filepath.Join(d.dir, "backup"))
	verb("keys", "backup", "--out", filepath.Join(d.dir, "backup-keys"))
	verb("sweep")
	verb("keys", "list")

	if p.n < 500 {
		t.Errorf("only %d values were planted", p.n)
	}
	s := &searched{forms: p.forms(), found: map[string][]string{}}
	for n, b := range refused {
		s.look(fmt.Sprintf("answer %d: %.200s", n, b), b)
	}
	s.look("metrics", d.do(t, "GET", d.Metrics, "", "").body)
	s.look("output", []byte(d.output.String()))
	processes := s.memory(t, d.dir)
	do(`CHECKPOINT`)
	dump := filepath.Join(t.TempDir(), "dump.sql")
	dumpCluster(t, d, dump)
	s.tree(t, filepath.Dir(dump))
	s.tree(t, d.dir)
	for name, forms := range s.found {
		slices.Sort(forms)
		t.Errorf("%s: %v", name, forms)
	}
	// The search is known to find: the ids are no secret, and stand in all of these.
	control := &searched{forms: map[string][]byte{"id": []byte("planted-17")}, found: map[string][]string{}}
	control.tree(t, filepath.Dir(dump))
	control.tree(t, d.dir)
	controlled := strings.Join(slices.Collect(func(yield func(string) bool) {
		for name := range control.found {
			if !yield(name) {
				return
			}
		}
	}), "\n")
	for _, place := range []string{"dump.sql", "pg_wal/", "/base/", "/journal/", "/backup/", "postgres.log"} {
		if !strings.Contains(controlled, place) {
			t.Errorf("the search is broken: no id in %s, only in\n%s", place, controlled)
		}
	}
	if log := serverLog(t, d); !bytes.Contains(log, []byte("INSERT INTO record")) || !bytes.Contains(log, []byte("parameters: $1")) {
		t.Error("PostgreSQL did not log statements with parameters")
	}
	t.Logf("%d values, %d files, %d processes of PostgreSQL, %d answers, %v", p.n, s.files, processes, len(refused), time.Now().Format(time.TimeOnly))
	var search struct{ Total int }
	if res := d.do(t, "GET", "/fhir/R4/Patient?family="+p.letters+"&_summary=count", backend, ""); json.Unmarshal(res.body, &search) != nil || res.StatusCode != http.StatusOK {
		t.Errorf("the values are not there any more: %s", res.Status)
	}
}

// serverLog is PostgreSQL's log.
func serverLog(t *testing.T, d *instance) (log []byte) {
	t.Helper()
	logs, _ := filepath.Glob(filepath.Join(d.dir, "postgres*.log"))
	more, _ := filepath.Glob(filepath.Join(d.dir, "postgres", "*.log"))
	for _, f := range append(logs, more...) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, b...)
	}
	return log
}
