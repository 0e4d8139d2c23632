package rest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/balp"
)

type shownAuditEvent struct {
	ResourceType, ID, Action, Outcome string
	Meta                              struct{ Profile []string }
	Type                              struct{ Code string }
	Subtype                           []struct{ Code string }
	Entity                            []struct {
		What struct{ Reference string }
		Role struct{ Code string }
	}
}

type auditBundle struct {
	Link  []struct{ Relation, URL string }
	Entry []struct {
		FullURL  string
		Resource json.RawMessage
		Search   struct{ Mode string }
	}
	events   []shownAuditEvent
	warnings int
}

func (b *auditBundle) next() string {
	for _, l := range b.Link {
		if l.Relation == "next" {
			return l.URL
		}
	}
	return ""
}

func (d *deployment) auditBundle(a answer) *auditBundle {
	d.t.Helper()
	d.want(a, http.StatusOK)
	validFHIR(d.t, a.body)
	var b auditBundle
	check(d.t, json.Unmarshal(a.body, &b))
	for _, e := range b.Entry {
		if e.Search.Mode == "outcome" {
			b.warnings++
			continue
		}
		var shown shownAuditEvent
		check(d.t, json.Unmarshal(e.Resource, &shown))
		if e.FullURL != d.base+"/AuditEvent/"+shown.ID || shown.ResourceType != "AuditEvent" {
			d.t.Errorf("entry %s", e.FullURL)
		}
		b.events = append(b.events, shown)
	}
	return &b
}

// auditEvents searches once everything that was recorded has arrived.
func (d *deployment) auditEvents(query string) *auditBundle {
	d.t.Helper()
	d.events(audit.Query{})
	return d.auditBundle(d.do("GET", "/fhir/R4/AuditEvent"+query, d.as("officer"), ""))
}

// profiles lists what the events claim, without repetition.
func (b *auditBundle) profiles() string {
	var list []string
	for _, e := range b.events {
		name := strings.TrimPrefix(strings.Join(e.Meta.Profile, ","), balp.ProfileBase)
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func TestAuditEventSearch(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	d.patient("p2")
	clinician := d.as("clinician")
	read := d.want(d.do("GET", "/fhir/R4/Patient/p1", clinician, ""), 200).Header.Get("X-Request-Id")
	denied := d.do("GET", "/fhir/R4/Patient/p1", d.issuer.token(t, d.base, "clinician", "user/*.cruds", func(c map[string]any) {
		c["fhirUser"] = "Practitioner/chen"
		c["sub"] = "chen"
	}), "")
	d.want(denied, 404)
	searched := d.want(d.do("GET", "/fhir/R4/Patient?identifier=urn:mrn%7C"+plantedMRN, d.as("backend"), ""), 200).Header.Get("X-Request-Id")
	d.want(d.do("DELETE", "/fhir/R4/Patient/p2", d.as("backend"), ""), 204)

	for query, want := range map[string]struct {
		n        int
		profiles string
	}{
		"?entity.identifier=" + read:                                       {1, "PatientRead"},
		"?entity.identifier=" + read + "&type=rest":                        {1, "PatientRead"},
		"?entity.identifier=" + read + "&type=110113":                      {0, ""},
		"?entity.identifier=" + searched:                                   {3, "PatientQuery Query"}, // a query over N patients is N events
		"?entity.identifier=" + searched + "&patient=p1":                   {1, "PatientQuery"},
		"?entity.identifier=" + searched + "&patient=Patient/p1,p2":        {2, "PatientQuery"},
		"?entity.identifier=" + searched + "&action=E&subtype=search-type": {3, "PatientQuery Query"},
		"?subtype=AuthZ-Role":                                              {1, "AuthZconsent"},
		"?type=110113":                                                     {1, "AuthZconsent"},
		"?type=http://dicom.nema.org/resources/ontology/DCM|110113":        {1, "AuthZconsent"},
		"?agent=chen&action=E&outcome=4":                                   {1, "AuthZconsent"},
		"?agent=chen&action=R":                                             {0, ""},
		"?agent=chen&type=rest":                                            {0, ""},
		"?agent.identifier=https://issuer.test|chen&type=110113":           {1, "AuthZconsent"},
		"?patient=p1&action=R":                                             {1, "PatientRead"},
		"?patient=" + url.QueryEscape(d.base+"/Patient/p1") + "&action=R":  {1, "PatientRead"},
		"?entity=Patient/p1&subtype=read":                                  {1, "PatientRead"},
		"?entity=Patient/p2&subtype=delete&outcome=0":                      {1, "PatientDelete"},
		"?entity=Patient/p2&subtype=delete&outcome:missing=true":           {1, ""},
		"?subtype=update&outcome=0&entity-type=Patient":                    {2, "PatientUpdate"},
		"?agent-role=clinician&purpose=TREAT&address=127.0":                {2, "AuthZconsent PatientRead"},
		"?agent=test-app&patient=p1&action=R,D":                            {1, "PatientRead"},
		"?_id=nonsense":                                                    {0, ""},
		"?date=gt2999":                                                     {0, ""},
		"?date=lt2020&type=rest":                                           {0, ""},
		"?date=ge2020-01-01&date=lt2999-12&action=D&outcome=0":             {1, "PatientDelete"},
		"?date=gt2999&date=lt2020":                                         {0, ""},
		"?date=" + time.Now().UTC().Format("2006") + "&action=D&outcome=0": {1, "PatientDelete"},
		"?subtype=110122&agent=chen":                                       {1, "OAUTHaccessTokenUse.Minimal"},
		"?type=110114&subtype=login&agent=chen":                            {1, "OAUTHaccessTokenUse.Minimal"},
	} {
		b := d.auditEvents(query)
		if len(b.events) != want.n || b.profiles() != want.profiles || b.warnings != 0 {
			t.Errorf("%s: %d events of %q with %d warnings, want %d of %q: %+v", query, len(b.events), b.profiles(), b.warnings, want.n, want.profiles, b.events)
		}
	}

	// A form does the same, and keeps the patient out of the URL.
	d.events(audit.Query{})
	form := d.auditBundle(d.do("POST", "/fhir/R4/AuditEvent/_search", d.as("officer"), "patient=p1&action=R", "Content-Type", "application/x-www-form-urlencoded"))
	if len(form.events) != 1 {
		t.Errorf("form: %+v", form.events)
	}
	// What is not known is said, or refused.
	if b := d.auditEvents("?favourite=x&altid=y"); b.warnings != 1 {
		t.Errorf("%d outcomes", b.warnings)
	}
	if b := d.auditEvents("?patient=p1&_count=0"); len(b.Entry) != 0 || b.next() != "" {
		t.Errorf("a count was asked for, and %d entries came", len(b.Entry))
	}
	d.want(d.do("GET", "/fhir/R4/AuditEvent?favourite=x", d.as("officer"), "", "Prefer", "handling=strict"), 400)
	for _, query := range []string{
		"?patient=../x", "?entity=p1", "?entity=Nonsense/p1", "?outcome=x", "?outcome=5", "?action=Q", "?date=yesterday", "?date=ap2020", "?date=2020,2021",
		"?_count=-1", "?_count=x", "?patient:exact=p1", "?agent=Practitioner/rivera", "?entity-type=x", "?_page=x", "?outcome:missing=maybe",
		"?patient=" + strings.Repeat("x", 2000), "?agent=a%00b", "?action=" + strings.Repeat("R,", 200) + "R",
		"?action=E&action=E&action=E&action=E", "?access_token=x",
	} {
		d.want(d.do("GET", "/fhir/R4/AuditEvent"+query, d.as("officer"), ""), 400)
	}
	d.want(d.do("GET", "/fhir/R4/AuditEvent", d.as("officer"), "", "Accept", "application/fhir+xml"), http.StatusNotAcceptable)
}

func TestAuditEventPages(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	backend := d.as("backend")
	for range 7 {
		d.want(d.do("GET", "/fhir/R4/Patient/p1", backend, ""), 200)
	}
	officer := d.as("officer")
	for _, query := range []string{"?patient=p1&_count=3", "?patient=p1&_count=2&_sort=date", "?patient=p1&action=R,U,E&_count=2"} {
		whole := d.auditEvents(strings.NewReplacer("_count=2", "_count=200", "_count=3", "_count=200").Replace(query))
		var paged []string
		for b, pages := d.auditEvents(query), 0; ; pages++ {
			for _, e := range b.events {
				paged = append(paged, e.ID)
			}
			next := b.next()
			if next == "" || pages > 20 {
				break
			}
			b = d.auditBundle(d.do("GET", next, officer, ""))
		}
		var want []string
		for _, e := range whole.events {
			want = append(want, e.ID)
		}
		// Looking at a patient's trail is an event of that patient's trail; forward, those of the paging come last.
		if len(want) < 9 || len(paged) < len(want) || !slices.Equal(paged[:len(want)], want) && !subset(want, paged) {
			t.Errorf("%s: paged over %d events, want %d", query, len(paged), len(want))
		}
		seen := map[string]bool{}
		for _, id := range paged {
			if seen[id] {
				t.Errorf("%s: %s twice", query, id)
			}
			seen[id] = true
		}
	}
	// A page belongs to its search.
	next := d.auditEvents("?patient=p1&_count=2").next()
	d.want(d.do("GET", strings.Replace(next, "patient=p1", "patient=p2", 1), officer, ""), 400)
	d.want(d.do("GET", strings.Replace(next, "_count=2", "_count=100", 1), officer, ""), 200)
	d.want(d.do("GET", next[:len(next)-4], officer, ""), 400)
}

func subset(small, big []string) bool {
	for _, s := range small {
		if !slices.Contains(big, s) {
			return false
		}
	}
	return true
}

func TestAuditEventRead(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	stored := d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldPatient, "p1"), audit.Is(audit.FieldOutcome, "0")}})
	id := stored[0].Event.ID.String()
	a := d.want(d.do("GET", "/fhir/R4/AuditEvent/"+id, d.as("officer"), ""), 200)
	validFHIR(t, a.body)
	want := string(balp.Append(nil, &stored[0], balp.Source{Base: d.base, Issuer: "https://issuer.test"}))
	if string(a.body) != want {
		t.Errorf("read %s\nwant %s", a.body, want)
	}
	if etag := a.Header.Get("ETag"); etag != `W/"1"` {
		t.Errorf("ETag %s", etag)
	}
	if again := d.do("GET", "/fhir/R4/AuditEvent/"+id, d.as("officer"), "", "If-None-Match", `W/"1"`); again.StatusCode != http.StatusNotModified {
		t.Errorf("conditional read: %d", again.StatusCode)
	}
	// Each look is an event that names what was looked at.
	looks := d.eventsOf(a.Header.Get("X-Request-Id"))
	if len(looks) != 1 || looks[0].Event.Type != audit.TypeAuditLogUsed || looks[0].Event.Entities[0] != (audit.Entity{Type: "AuditEvent", ID: id}) {
		t.Errorf("recorded %+v", looks)
	}
	searched := d.want(d.do("GET", "/fhir/R4/AuditEvent?patient=p1,p2&entity=Observation/b1", d.as("officer"), ""), 200)
	looks = d.eventsOf(searched.Header.Get("X-Request-Id"))
	if len(looks) != 1 || looks[0].Event.Patient != "p1" || len(looks[0].Event.Query) == 0 || len(looks[0].Event.Entities) != 3 || looks[0].Event.Interaction != "search-type" {
		t.Errorf("recorded %+v", looks)
	}
	for _, id := range []string{"x", "1", "00000000-0000-0000-0000-000000000000", "018f3e1a-0000-7000-8000-000000000001", strings.ReplaceAll(id, "-", "")} {
		d.want(d.do("GET", "/fhir/R4/AuditEvent/"+id, d.as("officer"), ""), 404)
	}
}

// TestAuditEventGuards: the capability and the scope are both needed, and neither a patient's scope nor a role without the
// capability will do.
func TestAuditEventGuards(t *testing.T) {
	d := deploy(t, nil)
	for name, c := range map[string]struct {
		role, scope string
		search      int
		read        int
	}{
		"officer":                     {"officer", "user/*.cruds", 200, 404},
		"officer, v1":                 {"officer", "user/AuditEvent.read", 200, 404},
		"officer, search only":        {"officer", "user/AuditEvent.s", 200, 403},
		"officer, read only":          {"officer", "user/AuditEvent.r", 403, 404},
		"officer without scope":       {"officer", "openid", 403, 403},
		"officer with another scope":  {"officer", "user/Patient.rs", 403, 403},
		"officer, a patient's scopes": {"officer", "patient/*.rs", 403, 403},
		"clinician":                   {"clinician", "user/*.cruds", 403, 403},
		"patient":                     {"patient", "patient/*.rs", 403, 403},
		"backend":                     {"backend", "system/*.cruds", 403, 403},
		"assessor":                    {"assessor", "user/*.cruds", 403, 403},
	} {
		token := d.issuer.token(t, d.base, c.role, c.scope, nil)
		for path, status := range map[string]int{"/fhir/R4/AuditEvent": c.search, "/fhir/R4/AuditEvent/018f3e1a-0000-7000-8000-000000000001": c.read} {
			a := d.do("GET", path, token, "")
			if a.StatusCode != status {
				t.Errorf("%s at %s: %d, want %d", name, path, a.StatusCode, status)
			}
			checkEveryAnswer(t, name, a)
			if e := d.eventsOf(a.Header.Get("X-Request-Id")); len(e) == 0 || status == 403 && e[0].Event.Decision.Reason == "" {
				t.Errorf("%s at %s recorded %+v", name, path, e)
			}
		}
	}
}

// TestTrailIsNotWritable tries every way to write an AuditEvent over HTTP.
func TestTrailIsNotWritable(t *testing.T) {
	d := deploy(t, nil)
	const rest = `"type":{"code":"rest"},"recorded":"2020-01-01T00:00:00Z","agent":[{"requestor":true}],"source":{"observer":{"display":"x"}}}`
	body := `{"resourceType":"AuditEvent","id":"x",` + rest
	for _, role := range []string{"backend", "officer", "admin"} {
		for _, c := range []struct {
			method, path string
			headers      []string
		}{
			{"POST", "/fhir/R4/AuditEvent", nil},
			{"POST", "/fhir/R4/AuditEvent", []string{"If-None-Exist", "identifier=x"}},
			{"PUT", "/fhir/R4/AuditEvent/x", nil},
			{"PUT", "/fhir/R4/AuditEvent/x", []string{"If-Match", `W/"1"`}},
			{"DELETE", "/fhir/R4/AuditEvent/x", nil},
			{"PUT", "/fhir/R4/AuditEvent", nil},
			{"PUT", "/fhir/R4/AuditEvent?patient=1", nil},
			{"DELETE", "/fhir/R4/AuditEvent?patient=1", nil},
			{"PATCH", "/fhir/R4/AuditEvent/x", nil},
			{"POST", "/fhir/R4/AuditEvent/x", nil},
		} {
			a := d.want(d.do(c.method, c.path, d.as(role), body, c.headers...), http.StatusMethodNotAllowed)
			if allow := a.Header.Get("Allow"); !strings.Contains(allow, "GET") || strings.Contains(allow, "PATCH") {
				t.Errorf("%s %s: Allow %q", c.method, c.path, allow)
			}
			events := d.eventsOf(a.Header.Get("X-Request-Id"))
			if len(events) != 1 || events[0].Event.Outcome != audit.MinorFailure {
				t.Errorf("%s %s recorded %+v", c.method, c.path, events)
			}
		}
	}
	for _, path := range []string{"/fhir/R4/AuditEvent/x/_history", "/fhir/R4/AuditEvent/x/_history/1"} {
		d.want(d.do("GET", path, d.as("officer"), ""), http.StatusNotFound)
	}
	for _, spelling := range []string{`"resourceType":"AuditEvent"`, `"resourceType":"Audit\u0045vent"`, `"resource\u0054ype":"AuditEvent"`} {
		for _, request := range []string{`"method":"POST","url":"AuditEvent"`, `"method":"PUT","url":"AuditEvent/x"`} {
			bundle := `{"resourceType":"Bundle","type":"%s","entry":[{"resource":{` + spelling + `,"id":"x",` + rest + `,"request":{` + request + `}}]}`
			if strings.Contains(spelling, `\u0054`) { // no property is written so
				d.want(d.do("POST", "/fhir/R4", d.as("backend"), fmt.Sprintf(bundle, "batch")), http.StatusBadRequest)
				continue
			}
			a := d.want(d.do("POST", "/fhir/R4", d.as("backend"), fmt.Sprintf(bundle, "transaction")), http.StatusUnprocessableEntity)
			if e := d.eventsOf(a.Header.Get("X-Request-Id")); len(e) != 1 || e[0].Event.Entities[0].Type != "AuditEvent" {
				t.Errorf("transaction recorded %+v", e)
			}
			a = d.want(d.do("POST", "/fhir/R4", d.as("backend"), fmt.Sprintf(bundle, "batch")), http.StatusOK)
			if !strings.Contains(string(a.body), `"status":"405 Method Not Allowed"`) {
				t.Errorf("batch: %s", a.body)
			}
		}
	}
	if n := d.storage.Len(); n != 0 {
		t.Errorf("%d records were stored", n)
	}
}
