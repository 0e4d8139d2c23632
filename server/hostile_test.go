package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// Experiment 7, on a running demo: a superuser switches every guard off and changes the trail. The program's own verb names what was
// done and where, with exit code 1, and says nothing against the trail before and after. All twelve attacks, each on a copy of
// its own, are TestHostileSuperuser's of server/postgres.
func TestHostileSuperuser(t *testing.T) {
	d := demoFresh(t, "--patients", "2")
	one, err := readPopulation(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	token := d.token(t, "dr-rivera")
	v := d.invariants(t)
	for n := range 40 {
		id := fmt.Sprintf("hostile-%d", n)
		if res := d.do(t, "GET", "/fhir/R4/Patient/"+one.PatientOne, token, "", "X-Request-Id: "+id); res.StatusCode != http.StatusOK {
			t.Fatal(res.Status)
		}
		v.Acknowledge(audittest.Ack{Key: id, Level: audit.Power, Events: 1})
	}
	found := shipped(t, v, "before any attack")
	for deadline := time.Now().Add(10 * time.Second); found.TreeSize < int64(found.Stored)-20 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		found = holds(t, v, "before any attack", audit.Process)
	}
	admin, err := pgx.Connect(t.Context(), d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	do := func(sql string, args ...any) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if out, code := verified(d); code != 0 {
		t.Fatalf("the untouched trail: exit code %d\n%s", code, out)
	}
	// The event triggers go first, then the row triggers of every table of the trail.
	for _, name := range column(t, admin, `SELECT evtname FROM pg_event_trigger`) {
		do(`ALTER EVENT TRIGGER ` + pgx.Identifier{name}.Sanitize() + ` DISABLE`)
	}
	for _, table := range column(t, admin, `SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE 'audit\_%'`) {
		do(`ALTER TABLE ` + table + ` DISABLE TRIGGER ALL`)
	}
	var stream string
	var seq int64
	if err := admin.QueryRow(t.Context(), `SELECT stream::text, seq FROM audit_event WHERE request_id = 'hostile-7'`).Scan(&stream, &seq); err != nil {
		t.Fatal(err)
	}
	row := fmt.Sprintf("stream = '%s' AND seq = %d", stream, seq)
	do(`CREATE TEMPORARY TABLE kept AS SELECT * FROM audit_event WHERE ` + row)
	for _, attack := range []struct{ name, sql, undo, names string }{
		{"one column", `UPDATE audit_event SET patient = 'somebody-else' WHERE ` + row,
			`UPDATE audit_event SET patient = (SELECT patient FROM kept) WHERE ` + row, `patient`},
		{"the body", `UPDATE audit_event SET body = set_byte(body, 60, get_byte(body, 60) # 1) WHERE ` + row,
			`UPDATE audit_event SET body = (SELECT body FROM kept) WHERE ` + row, `leaf|body`},
		{"a row is deleted", `DELETE FROM audit_event WHERE ` + row, `INSERT INTO audit_event SELECT * FROM kept`, `missing`},
		{"body and leaf", `UPDATE audit_event SET body = set_byte(body, 60, get_byte(body, 60) # 1), leaf = sha256('x') WHERE ` + row,
			`UPDATE audit_event SET body = (SELECT body FROM kept), leaf = (SELECT leaf FROM kept) WHERE ` + row, `leaf`},
	} {
		do(attack.sql)
		out, code := verified(d)
		where := regexp.MustCompile(fmt.Sprintf(`(?s)(%s|%s).*\b%d\b`, stream, strings.ReplaceAll(stream, "-", ""), seq))
		if code != 1 || !where.MatchString(out) || !regexp.MustCompile(attack.names).MatchString(out) {
			t.Errorf("%s: exit code %d, want 1, stream %s, record %d and %q\n%s", attack.name, code, stream, seq, attack.names, out)
		}
		do(attack.undo)
		if out, code := verified(d); code != 0 {
			t.Fatalf("%s, undone: exit code %d\n%s", attack.name, code, out)
		}
	}
}

// verified runs the program's verification against the running demo.
func verified(d *instance) (output string, code int) {
	cmd := exec.Command("chartkeep", "audit", "verify", "--data", d.dir)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func column(t *testing.T, admin *pgx.Conn, sql string) []string {
	t.Helper()
	rows, err := admin.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}
