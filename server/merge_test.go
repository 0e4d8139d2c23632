package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// chart is rooms on a demo's database, with what the tests of merges do to charts.
type chart struct {
	*rooms
	t   testing.TB
	ctx context.Context
	sql *pgx.Conn
}

func openChart(t testing.TB, d *instance) *chart {
	t.Helper()
	s, err := demoSettings(d.dir, d.DatabaseURL, audit.Process)
	if err != nil {
		t.Fatal(err)
	}
	s.journal, s.keys = t.TempDir(), nil // the demo sequences
	ctx := context.Background()
	r, err := openRooms(ctx, s, newLog(os.Stderr).Logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.close(ctx) })
	conn, err := pgx.Connect(ctx, d.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) })
	return &chart{r, t, ctx, conn}
}

func (c *chart) caller() *phi.Caller {
	return &phi.Caller{Principal: system("test"), RequestID: "merge", Start: time.Now()}
}

// put writes a record.
func (c *chart) put(ref phi.Ref, members string) {
	c.t.Helper()
	body := fmt.Sprintf(`{"resourceType":%q,"id":%q,%s}`, ref.Type, ref.ID, members)
	if _, err := c.records.Update(c.ctx, c.caller(), ref, []byte(body), 0); err != nil {
		c.t.Fatalf("writing %s: %v", ref, err)
	}
}

func (c *chart) patient(id, mrn string) {
	c.t.Helper()
	c.put(phi.Ref{Type: "Patient", ID: id}, `"active":true,"identifier":[{"use":"official","system":"urn:mrn","value":"`+mrn+`"}],"name":[{"family":"Merge`+mrn+`"}]`)
}

func (c *chart) observation(id, patient, text string) {
	c.t.Helper()
	c.put(phi.Ref{Type: "Observation", ID: id}, `"status":"final","code":{"text":"`+text+`"},"subject":{"reference":"Patient/`+patient+`"}`)
}

// text is a record's JSON without its meta, "" when it cannot be read.
func (c *chart) text(ref phi.Ref) string {
	c.t.Helper()
	res, err := c.records.Read(c.ctx, c.caller(), ref)
	if err != nil {
		return err.Error()
	}
	return withoutMeta(c.t, res.JSON.Reveal())
}

func withoutMeta(t testing.TB, b []byte) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	delete(m, "meta")
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// found are the ids that a search finds, sorted.
func (c *chart) found(resourceType string, params ...phi.Param) []string {
	c.t.Helper()
	page, err := c.records.Search(c.ctx, c.caller(), resourceType, params, true)
	if err != nil {
		c.t.Fatal(err)
	}
	var ids []string
	for _, r := range page.Resources {
		ids = append(ids, r.ID)
	}
	slices.Sort(ids)
	return ids
}

// count is what a statement counts.
func (c *chart) count(sql string, args ...any) (n int) {
	c.t.Helper()
	if err := c.sql.QueryRow(c.ctx, sql, args...).Scan(&n); err != nil {
		c.t.Fatal(err)
	}
	return n
}

// opens demands that every version of every record of these ids opens.
func (c *chart) opens(ids ...string) {
	c.t.Helper()
	rows, err := c.sql.Query(c.ctx, `SELECT type, id, version FROM record WHERE id LIKE ANY ($1) AND method <> 'DELETE'
		UNION ALL SELECT type, id, version FROM record_version WHERE id LIKE ANY ($1) AND method <> 'DELETE'`, ids)
	if err != nil {
		c.t.Fatal(err)
	}
	var ref phi.Ref
	var version int64
	type row struct {
		phi.Ref
		version int64
	}
	var all []row
	if _, err := pgx.ForEachRow(rows, []any{&ref.Type, &ref.ID, &version}, func() error {
		all = append(all, row{ref, version})
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	for _, r := range all {
		if _, err := c.records.ReadVersion(c.ctx, c.caller(), r.Ref, r.version); err != nil {
			c.t.Errorf("%s version %d: %v", r.Ref, r.version, err)
		}
	}
}

func kindOf(err error) phi.Kind {
	var e *phi.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

// TestMerge merges two charts, looks at every place where a record could have stayed behind, undoes it, and looks again.
func TestMerge(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "1")
	c := openChart(t, d)
	c.patient("src", "1")
	c.patient("tgt", "2")
	c.patient("other", "3")
	for i := range 120 { // more than two batches
		c.observation(fmt.Sprintf("src-o%03d", i), "src", "first")
	}
	c.observation("src-o000", "src", "second")
	c.observation("src-gone", "src", "deleted")
	if _, err := c.records.Delete(c.ctx, c.caller(), phi.Ref{Type: "Observation", ID: "src-gone"}, 0); err != nil {
		t.Fatal(err)
	}
	c.observation("tgt-o", "tgt", "the target's")
	c.put(phi.Ref{Type: "Observation", ID: "src-part2"}, `"status":"final","code":{"text":"x"},"subject":{"reference":"Patient/src"},
		"meta":{"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"SUD"}]}`)
	c.put(phi.Ref{Type: "Encounter", ID: "src-e"}, `"status":"finished","class":{"code":"AMB"},"subject":{"reference":"Patient/src"},
		"participant":[{"individual":{"reference":"Practitioner/dr-merge"}}]`)
	both := phi.Ref{Type: "Appointment", ID: "other-a"}
	c.put(both, `"status":"booked","participant":[{"actor":{"reference":"Patient/other"},"status":"accepted"},{"actor":{"reference":"Patient/src"},"status":"accepted"}]`)
	if err := c.db.Auth().Grant(c.ctx, auth.Relationship{Practitioner: "dr-granted", Patient: "src", Reason: "ticket 1", By: "admin"}); err != nil {
		t.Fatal(err)
	}
	before := map[phi.Ref]string{}
	for _, ref := range []phi.Ref{{Type: "Patient", ID: "src"}, {Type: "Patient", ID: "tgt"}, {Type: "Observation", ID: "src-o000"}, {Type: "Encounter", ID: "src-e"}, both} {
		before[ref] = c.text(ref)
	}

	for _, bad := range []phi.MergeRequest{{Source: "src", Target: "src"}, {Source: "nobody", Target: "tgt"}, {Source: "src", Target: "nobody"}, {Source: "../x", Target: "tgt"}} {
		if _, err := c.merges.Merge(c.ctx, c.caller(), bad); kindOf(err) != phi.Invalid && kindOf(err) != phi.NotFound {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if out, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt", Preview: true}); err != nil || out.Moved != 123 || c.text(phi.Ref{Type: "Patient", ID: "src"}) != before[phi.Ref{Type: "Patient", ID: "src"}] {
		t.Fatalf("preview: %+v, %v", out, err)
	}
	if _, err := c.merges.Unmerge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"}); kindOf(err) != phi.Unprocessable {
		t.Errorf("undone before: %v", err)
	}
	out, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"})
	if err != nil || !out.Done || out.Moved != 123 {
		t.Fatalf("merge: %+v, %v", out, err)
	}

	// Every record is in the target's chart, under its keys, every version opens, and nothing is under the source's.
	if got := c.found("Observation", phi.Param{Name: "patient", Value: "tgt"}); len(got) != 50 {
		t.Errorf("the target has %d observations on its first page", len(got))
	}
	if n := c.count(`SELECT count(*) FROM record_patient WHERE patient = 'tgt' AND type = 'Observation'`); n != 122 {
		t.Errorf("the target has %d observations", n)
	}
	if got := c.found("Observation", phi.Param{Name: "patient", Value: "src"}); len(got) != 0 {
		t.Errorf("the source still has %v", got)
	}
	c.opens("src%", "tgt%", "other%")
	if n := c.count(`SELECT count(DISTINCT subject) FROM (SELECT subject FROM record WHERE id LIKE 'src%' OR id LIKE 'tgt%'
		UNION ALL SELECT subject FROM record_version WHERE id LIKE 'src%' OR id LIKE 'tgt%') s`); n != 1 {
		t.Errorf("the charts are under %d subjects", n)
	}
	if n := c.count(`SELECT count(*) FROM phi_key k WHERE NOT EXISTS (SELECT FROM record r WHERE r.subject = k.subject) AND subject <> '00000000-0000-0000-0000-000000000000'`); n != 0 {
		t.Errorf("%d keys of nobody are left", n)
	}
	source := c.text(phi.Ref{Type: "Patient", ID: "src"})
	if !strings.Contains(source, `"active":false`) || !strings.Contains(source, `"type":"replaced-by"`) || !strings.Contains(source, "Patient/tgt") {
		t.Errorf("the source is %s", source)
	}
	target := c.text(phi.Ref{Type: "Patient", ID: "tgt"})
	if !strings.Contains(target, `"type":"replaces"`) || !strings.Contains(target, `"use":"old","value":"1"`) && !strings.Contains(target, `"use":"old"`) {
		t.Errorf("the target is %s", target)
	}
	if got := c.found("Patient", phi.Param{Name: "identifier", Value: "urn:mrn|1"}); !slices.Equal(got, []string{"tgt"}) {
		t.Errorf("the source's identifier finds %v", got)
	}
	if got := c.found("Patient", phi.Param{Name: "family", Value: "Merge1"}); len(got) != 0 {
		t.Errorf("the source's name finds %v", got)
	}
	if text := c.text(both); !strings.Contains(text, "Patient/tgt") || strings.Contains(text, "Patient/src") {
		t.Errorf("another's appointment is %s", text)
	}
	for practitioner, want := range map[string]int{"dr-merge": 1, "dr-granted": 1} {
		if n := c.count(`SELECT count(*) FROM treatment WHERE practitioner = $1 AND patient = 'tgt'`, practitioner); n != want {
			t.Errorf("%s treats the target %d times", practitioner, n)
		}
	}
	// The source takes no more writes.
	_, err = c.records.Create(c.ctx, c.caller(), "Observation", []byte(`{"resourceType":"Observation","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/src"}}`), nil)
	if kindOf(err) != phi.Unprocessable {
		t.Errorf("a record of the source's: %v", err)
	}
	if _, err := c.records.Update(c.ctx, c.caller(), phi.Ref{Type: "Patient", ID: "src"}, []byte(`{"resourceType":"Patient","id":"src","active":true}`), 0); kindOf(err) != phi.Conflict {
		t.Errorf("the source is written: %v", err)
	}
	if out, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"}); err != nil || !out.Done {
		t.Errorf("asked again: %+v, %v", out, err)
	}
	if _, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "other"}); kindOf(err) != phi.Conflict {
		t.Errorf("merged elsewhere: %v", err)
	}
	if _, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "other", Target: "src"}); kindOf(err) != phi.Conflict {
		t.Errorf("merged into what was merged: %v", err)
	}

	// What comes later stays; what somebody changed goes back changed.
	c.observation("tgt-later", "tgt", "later")
	c.observation("src-o001", "tgt", "changed since")
	out, err = c.merges.Unmerge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"})
	if err != nil || !out.Done || !slices.Equal(out.Stayed, []phi.Ref{{Type: "Observation", ID: "tgt-later"}}) {
		t.Fatalf("unmerge: %+v, %v", out, err)
	}
	for ref, want := range before {
		if got := c.text(ref); got != want {
			t.Errorf("%s is\n%s, was\n%s", ref, got, want)
		}
	}
	if got := c.text(phi.Ref{Type: "Observation", ID: "src-o001"}); !strings.Contains(got, "changed since") || !strings.Contains(got, "Patient/src") {
		t.Errorf("what was changed since is %s", got)
	}
	if got := c.found("Observation", phi.Param{Name: "patient", Value: "tgt"}); !slices.Equal(got, []string{"tgt-later", "tgt-o"}) {
		t.Errorf("the target has %v", got)
	}
	if n := c.count(`SELECT count(*) FROM record_patient WHERE patient = 'src'`); n != 124 {
		t.Errorf("the source has %d records", n)
	}
	c.opens("src%", "tgt%", "other%")
	if n := c.count(`SELECT count(*) FROM record_version v WHERE id LIKE 'src%' AND subject <> (SELECT subject FROM record WHERE type = 'Patient' AND id = 'src')`); n != 0 {
		t.Errorf("%d versions of the source's are under another's keys", n)
	}
	if n := c.count(`SELECT count(*) FROM treatment WHERE patient = 'tgt' AND practitioner LIKE 'dr-%'`); n != 0 {
		t.Errorf("%d relationships with the target are left", n)
	}
	if got := c.found("Patient", phi.Param{Name: "identifier", Value: "urn:mrn|1"}); !slices.Equal(got, []string{"src"}) {
		t.Errorf("the source's identifier finds %v", got)
	}
	for interaction, patients := range map[string][]string{"patient-merge": {"src", "tgt"}, "patient-unmerge": {"src", "tgt"}} {
		for _, patient := range patients {
			got, err := c.db.Trail().Find(c.ctx, audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, interaction), audit.Is(audit.FieldPatient, patient)}, Limit: 200})
			if err != nil || len(got.Events) == 0 {
				t.Errorf("%s: no event of %s, %v", interaction, patient, err)
			}
		}
	}
	// Merged again, one erasure takes the person whole, by either id.
	if _, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"}); err != nil {
		t.Fatal(err)
	}
	e, scope, err := c.erasures.Request(c.ctx, operating("Ines Diaz"), "src", "case 1")
	if err != nil || !slices.Equal(scope.Patients, []string{"src", "tgt"}) {
		t.Fatalf("request: %+v, %v", scope, err)
	}
	if _, err := c.erasures.Approve(c.ctx, operating("Sam Amari"), e.ID); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []phi.Ref{{Type: "Patient", ID: "src"}, {Type: "Patient", ID: "tgt"}, {Type: "Observation", ID: "src-o000"}, {Type: "Observation", ID: "tgt-o"}} {
		if _, err := c.records.Read(c.ctx, c.caller(), ref); kindOf(err) != phi.Gone {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := c.merges.Unmerge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"}); kindOf(err) != phi.Gone {
		t.Errorf("unmerged after the erasure: %v", err)
	}
	if _, err := c.records.Read(c.ctx, c.caller(), both); err != nil {
		t.Errorf("another's appointment: %v", err)
	}
}

// TestMergeWhileOthersWrite merges a chart that is being written, read and rotated: every write that was answered is in the target's chart
// afterwards, and no reader finds a record nowhere.
func TestMergeWhileOthersWrite(t *testing.T) {
	d := demoFresh(t, "--patients", "1")
	c := openChart(t, d)
	c.patient("src", "1")
	c.patient("tgt", "2")
	c.patient("other", "3")
	for i := range 60 {
		c.observation(fmt.Sprintf("o%d", i), "src", "first")
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var mu sync.Mutex
	written := map[string]bool{}
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("w%d-%d", w, i%40)
				subject := `"subject":{"reference":"Patient/src"}`
				ref := phi.Ref{Type: "Observation", ID: id}
				body := fmt.Sprintf(`{"resourceType":"Observation","id":%q,"status":"final","code":{"text":"n %d"},%s}`, id, i, subject)
				if w == 2 { // records of others that name the source
					ref.Type = "Appointment"
					body = fmt.Sprintf(`{"resourceType":"Appointment","id":%q,"status":"booked","participant":[{"actor":{"reference":"Patient/other"},"status":"accepted"},{"actor":{"reference":"Patient/src"},"status":"accepted"}]}`, id)
				}
				_, err := c.records.Update(c.ctx, c.caller(), ref, []byte(body), 0)
				switch kindOf(err) {
				case phi.Conflict, phi.Unprocessable:
				default:
					if err != nil {
						t.Errorf("writing: %v", err)
						return
					}
					mu.Lock()
					written[ref.String()] = true
					mu.Unlock()
				}
			}
		})
	}
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := c.records.Read(c.ctx, c.caller(), phi.Ref{Type: "Observation", ID: fmt.Sprintf("o%d", i%60)}); err != nil {
				t.Errorf("reading: %v", err)
				return
			}
		}
	})
	time.Sleep(200 * time.Millisecond)
	var outs [2]*phi.MergeOutcome
	var merging sync.WaitGroup
	for i := range outs { // two at once
		merging.Go(func() {
			out, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"})
			if err != nil && kindOf(err) != phi.Conflict {
				t.Errorf("merging: %v", err)
			}
			outs[i] = out
		})
	}
	merging.Wait()
	time.Sleep(200 * time.Millisecond)
	close(stop)
	wg.Wait()
	if !(outs[0] != nil && outs[0].Done) && !(outs[1] != nil && outs[1].Done) { // the writers outran it
		if out, err := c.merges.Merge(c.ctx, c.caller(), phi.MergeRequest{Source: "src", Target: "tgt"}); err != nil || !out.Done {
			t.Fatalf("merges: %+v, %+v, %+v, %v", outs[0], outs[1], out, err)
		}
	}
	if len(written) == 0 {
		t.Fatal("nothing was written meanwhile")
	}
	for name := range written {
		typ, id, _ := strings.Cut(name, "/")
		if text := c.text(phi.Ref{Type: typ, ID: id}); !strings.Contains(text, "Patient/tgt") || strings.Contains(text, "Patient/src") {
			t.Errorf("%s is %s", name, text)
		}
	}
	if n := c.count(`SELECT count(*) FROM record_patient WHERE patient = 'src' AND type <> 'Patient'`); n != 0 {
		t.Errorf("%d records are left behind", n)
	}
	c.opens("o%", "w%", "src", "tgt")
}

// TestMergeOutrun merges a chart of which one record is changed by somebody else whenever the merge comes to it: the merge is under way, not
// refused, and is done when that ends.
func TestMergeOutrun(t *testing.T) {
	d := demoFresh(t, "--patients", "1")
	c := openChart(t, d)
	c.patient("src", "1")
	c.patient("tgt", "2")
	c.observation("o1", "src", "first")
	for _, sql := range []string{ // an update that finds no row is one that lost
		`CREATE FUNCTION outrun() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`,
		`CREATE TRIGGER outrun BEFORE UPDATE ON record FOR EACH ROW WHEN (OLD.id = 'o1') EXECUTE FUNCTION outrun()`,
	} {
		if _, err := c.sql.Exec(c.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	req := phi.MergeRequest{Source: "src", Target: "tgt"}
	if out, err := c.merges.Merge(c.ctx, c.caller(), req); err != nil || out.Done {
		t.Fatalf("outrun: %+v, %v", out, err)
	}
	// While somebody else is at it, whoever asks learns that it is under way, and the trail tells of no second one.
	st, err := c.db.Merges(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	begun, err := st.MergeOf(c.ctx, "src")
	if err != nil {
		t.Fatal(err)
	}
	release, ok, err := st.Claim(c.ctx, begun.ID)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	told := func() int {
		t.Helper()
		if err := c.log.Drain(c.ctx); err != nil {
			t.Fatal(err)
		}
		got, err := c.db.Trail().Find(c.ctx, audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, "patient-merge")}, Limit: 200})
		if err != nil {
			t.Fatal(err)
		}
		return len(got.Events)
	}
	before := told()
	if out, err := c.merges.Merge(c.ctx, c.caller(), req); err != nil || out.Done {
		t.Errorf("beside somebody else: %+v, %v", out, err)
	}
	if n := told(); before == 0 || n != before {
		t.Errorf("%d events of a merge before, %d after a second one asked", before, n)
	}
	release()
	if _, err := c.sql.Exec(c.ctx, `DROP TRIGGER outrun ON record`); err != nil {
		t.Fatal(err)
	}
	if out, err := c.merges.Merge(c.ctx, c.caller(), req); err != nil || !out.Done {
		t.Fatalf("afterwards: %+v, %v", out, err)
	}
	if text := c.text(phi.Ref{Type: "Observation", ID: "o1"}); !strings.Contains(text, "Patient/tgt") {
		t.Errorf("the record is %s", text)
	}
}

// TestMergeForged has a superuser write merges into the database: the server moves nothing by them, and says so.
func TestMergeForged(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "1")
	c := openChart(t, d)
	for i, id := range []string{"src", "tgt", "mine"} {
		c.patient(id, fmt.Sprint(i))
		c.observation("o-"+id, id, "first")
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := c.sql.Exec(c.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	subject := `(SELECT subject FROM record WHERE type = 'Patient' AND id = '%s')`
	exec(`INSERT INTO phi_merge (id, source, target, source_subject, target_subject, target_version, state, begun_by) VALUES (gen_random_uuid(), 'src', 'mine', ` +
		fmt.Sprintf(subject, "src") + `, ` + fmt.Sprintf(subject, "mine") + `, 1, 'merging', 'registrar-lee')`)
	refused := func(what string) {
		t.Helper()
		if n, err := c.merges.Resume(c.ctx, c.caller()); n != 0 || kindOf(err) != phi.Integrity {
			t.Errorf("%s: %d merges, %v", what, n, err)
		}
		if text := c.text(phi.Ref{Type: "Observation", ID: "o-src"}); !strings.Contains(text, "Patient/src") && !strings.Contains(text, "Patient/tgt") {
			t.Errorf("%s: the record is %s", what, text)
		}
	}
	refused("forged")
	exec(`DELETE FROM phi_merge`)
	req := phi.MergeRequest{Source: "src", Target: "tgt"}
	if out, err := c.merges.Merge(c.ctx, c.caller(), req); err != nil || !out.Done {
		t.Fatalf("%+v, %v", out, err)
	}
	exec(`UPDATE phi_merge SET state = 'unmerging', target = 'mine', target_subject = ` + fmt.Sprintf(subject, "mine"))
	refused("turned elsewhere")
	exec(`UPDATE phi_merge SET state = 'merged', target = 'tgt', target_subject = ` + fmt.Sprintf(subject, "tgt"))
	if out, err := c.merges.Unmerge(c.ctx, c.caller(), req); err != nil || !out.Done {
		t.Errorf("%+v, %v", out, err)
	}
}

func mergeBody(source, target, more string) string {
	return `{"resourceType":"Parameters","parameter":[{"name":"source-patient","valueReference":{"reference":"Patient/` + source + `"}},
		{"name":"target-patient","valueReference":{"reference":"Patient/` + target + `"}}` + more + `]}`
}

// TestMergeOperation merges over HTTP: who may, what is answered, what the capability statement says.
func TestMergeOperation(t *testing.T) {
	t.Parallel()
	d := demoFresh(t, "--patients", "1")
	backend, registrar := d.token(t, "app-backend"), d.token(t, "registrar-lee")
	put := func(path, body string) {
		t.Helper()
		if a := d.do(t, "PUT", "/fhir/R4/"+path, backend, body); a.StatusCode >= 300 {
			t.Fatalf("PUT %s: %s %s", path, a.Status, a.body)
		}
	}
	for _, id := range []string{"src", "tgt"} {
		put("Patient/"+id, `{"resourceType":"Patient","id":"`+id+`","name":[{"family":"`+id+`"}]}`)
		put("Observation/"+id+"-o", `{"resourceType":"Observation","id":"`+id+`-o","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/`+id+`"}}`)
	}
	do := func(token, operation, body string) answered {
		return d.do(t, "POST", "/fhir/R4/Patient/$"+operation, token, body)
	}
	for _, test := range []struct {
		token, body string
		status      int
	}{
		{d.token(t, "dr-rivera"), mergeBody("src", "tgt", ""), 403},
		{d.token(t, "admin-root"), mergeBody("src", "tgt", ""), 403},
		{d.token(t, "registrar-lee", "user/*.rs"), mergeBody("src", "tgt", ""), 403}, // an app that may only read
		{registrar, mergeBody("src", "nobody", ""), 404},
		{registrar, mergeBody("src", "src", ""), 400},
		{registrar, mergeBody("src", "tgt", `,{"name":"preview","valueBoolean":"yes"}`), 400},
		{registrar, mergeBody("src", "tgt", `,{"name":"other","valueBoolean":true}`), 400},
		{registrar, mergeBody("src", "tgt", `,{"name":"result-patient","resource":{"resourceType":"Patient","id":"tgt"}}`), 422}, // sees a part
		{backend, mergeBody("src", "tgt", `,{"name":"result-patient","resource":{"resourceType":"Patient","id":"tgt"}}`), 422},   // no link
		{registrar, `{"resourceType":"Parameters"}`, 400},
		{registrar, `{"resourceType":"Patient"}`, 400},
	} {
		if a := do(test.token, "merge", test.body); a.StatusCode != test.status || !strings.Contains(string(a.body), "OperationOutcome") {
			t.Errorf("%s: %s %s, want %d", test.body, a.Status, a.body, test.status)
		}
	}
	preview := do(registrar, "merge", mergeBody("src", "tgt", `,{"name":"preview","valueBoolean":true}`))
	if preview.StatusCode != 200 || !strings.Contains(string(preview.body), "1 records would move") || strings.Contains(string(preview.body), "replaces") {
		t.Errorf("preview: %s %s", preview.Status, preview.body)
	}
	a := do(registrar, "merge", mergeBody("src", "tgt", ""))
	if a.StatusCode != 200 || !strings.Contains(string(a.body), `"name":"result","resource":{"resourceType":"Patient","id":"tgt"`) || !strings.Contains(string(a.body), "1 records moved") {
		t.Fatalf("merge: %s %s", a.Status, a.body)
	}
	if moved := d.do(t, "GET", "/fhir/R4/Observation/src-o", backend, ""); !strings.Contains(string(moved.body), "Patient/tgt") {
		t.Errorf("the record is %s", moved.body)
	}
	if a := do(registrar, "unmerge", mergeBody("src", "tgt", "")); a.StatusCode != 200 || !strings.Contains(string(a.body), "1 records moved") {
		t.Errorf("unmerge: %s %s", a.Status, a.body)
	}
	result := `,{"name":"result-patient","resource":{"resourceType":"Patient","id":"tgt","name":[{"family":"both"}],"link":[{"other":{"reference":"Patient/src"},"type":"replaces"}]}}`
	if a := do(backend, "merge", mergeBody("src", "tgt", result)); a.StatusCode != 200 || !strings.Contains(string(a.body), `"family":"both"`) {
		t.Errorf("merge with a result: %s %s", a.Status, a.body)
	}
	for _, want := range []string{`"name":"merge","definition":"http://hl7.org/fhir/OperationDefinition/Patient-merge"`, `"name":"unmerge"`} {
		if a := d.do(t, "GET", "/fhir/R4/metadata", "", ""); !strings.Contains(string(a.body), want) {
			t.Errorf("the capability statement does not say %s", want)
		}
	}
}

// TestMergeKilled kills the server while it merges a large chart, starts it again and asks again, until it is done: every version of every
// record opens at every start, and in the end all are in the target's chart.
func TestMergeKilled(t *testing.T) {
	t.Parallel()
	kills := 2
	if longForm {
		kills = 20
	}
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := launch(dir, "--patients", "1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.interrupt() })
	const records = 400
	var entries []string
	entry := func(typ, id, members string) {
		entries = append(entries, fmt.Sprintf(`{"resource":{"resourceType":%q,"id":%q,%s},"request":{"method":"PUT","url":"%s/%s"}}`, typ, id, members, typ, id))
	}
	entry("Patient", "src", `"active":true`)
	entry("Patient", "tgt", `"active":true`)
	for i := range records {
		entry("Observation", fmt.Sprintf("o%d", i), `"status":"final","code":{"text":"x"},"subject":{"reference":"Patient/src"}`)
	}
	bundle := `{"resourceType":"Bundle","type":"transaction","entry":[` + strings.Join(entries, ",") + `]}`
	if a := d.do(t, "POST", "/fhir/R4", d.token(t, "app-backend"), bundle); a.StatusCode != 200 {
		t.Fatalf("%s %s", a.Status, a.body)
	}
	interrupted := 0
	for k := range kills {
		operation := "merge"
		if k%2 == 1 {
			operation = "unmerge"
		}
		token, url := d.token(t, "app-backend"), strings.TrimSuffix(d.API, "/v1")+"/fhir/R4/Patient/$"+operation
		answer := make(chan int, 1)
		go func() {
			req, err := http.NewRequestWithContext(context.Background(), "POST", url, strings.NewReader(mergeBody("src", "tgt", "")))
			if err != nil {
				return
			}
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header.Set("Content-Type", "application/fhir+json")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				answer <- 0
				return
			}
			res.Body.Close()
			answer <- res.StatusCode
		}()
		time.Sleep(100*time.Millisecond + rand.N(400*time.Millisecond))
		_ = d.kill()
		if status := <-answer; status == 0 {
			interrupted++
		}
		if d, err = launch(dir, "--patients", "1"); err != nil {
			t.Fatal(err)
		}
		c := openChart(t, d)
		c.opens("o%", "src", "tgt")
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			a := d.do(t, "POST", "/fhir/R4/Patient/$"+operation, d.token(t, "app-backend"), mergeBody("src", "tgt", ""))
			if a.StatusCode == 200 || operation == "unmerge" && a.StatusCode == 422 { // done before it was killed
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s was not finished: %s %s", operation, a.Status, a.body)
			}
		}
		owner, other := "tgt", "src"
		if operation == "unmerge" {
			owner, other = other, owner
		}
		c.opens("o%", "src", "tgt")
		if n := c.count(`SELECT count(*) FROM record_patient WHERE type = 'Observation' AND patient = $1`, owner); n != records {
			t.Errorf("%s has %d records after %s", owner, n, operation)
		}
		if n := c.count(`SELECT count(*) FROM record_patient WHERE type = 'Observation' AND patient = $1`, other); n != 0 {
			t.Errorf("%s has %d records after %s", other, n, operation)
		}
		if n := c.count(`SELECT count(*) FROM (SELECT subject FROM record WHERE type = 'Observation' AND id LIKE 'o%' UNION SELECT subject FROM record_version
			WHERE type = 'Observation' AND id LIKE 'o%') s`); n != 1 {
			t.Errorf("the records are under %d subjects after %s", n, operation)
		}
	}
	if interrupted == 0 {
		t.Log("every merge was over before the server was killed")
	}
}
