package rest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/rest"
)

// TestLife follows one record from its creation to its deletion and checks status and headers on the way.
func TestLife(t *testing.T) {
	d := deploy(t, nil)
	token := d.as("backend")
	created := d.want(d.do("POST", "/fhir/R4/Patient", token, `{"resourceType":"Patient","gender":"female","multipleBirthInteger":2,"extension":[{"url":"http://x.test","valueDecimal":1.10}]}`), http.StatusCreated)
	validFHIR(t, created.body)
	location := created.Header.Get("Location")
	id, ok := strings.CutPrefix(location, d.base+"/Patient/")
	id, version, found := strings.Cut(id, "/_history/")
	if !ok || !found || version != "1" || created.Header.Get("ETag") != `W/"1"` {
		t.Fatalf("Location %s, ETag %s", location, created.Header.Get("ETag"))
	}
	path := "/fhir/R4/Patient/" + id

	read := d.want(d.do("GET", path, token, ""), http.StatusOK)
	if string(read.body) != string(created.body) || !strings.Contains(string(read.body), `"valueDecimal":1.10`) {
		t.Errorf("read %s, created %s", read.body, created.body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/fhir+json; charset=utf-8", "ETag": `W/"1"`, "Cache-Control": "no-store", "Pragma": "no-cache",
		"Vary": "Accept, Authorization", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Strict-Transport-Security": "", "Server": "",
	} {
		if got := read.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	modified, err := http.ParseTime(read.Header.Get("Last-Modified"))
	if err != nil || time.Since(modified) > time.Minute {
		t.Errorf("Last-Modified %s", read.Header.Get("Last-Modified"))
	}
	head := d.want(d.do("HEAD", path, token, ""), http.StatusOK)
	if len(head.body) != 0 || head.ContentLength != int64(len(read.body)) || head.Header.Get("ETag") != `W/"1"` {
		t.Errorf("HEAD: %d bytes, Content-Length %d", len(head.body), head.ContentLength)
	}

	// Conditional reads are disclosures of a kind: they are audited too.
	for _, c := range []struct {
		name, value string
		status      int
	}{
		{"If-None-Match", `W/"1"`, 304}, {"If-None-Match", `W/"7", W/"1"`, 304}, {"If-None-Match", "*", 304}, {"If-None-Match", `W/"2"`, 200},
		{"If-Modified-Since", modified.Format(http.TimeFormat), 304}, {"If-Modified-Since", modified.Add(-time.Minute).Format(http.TimeFormat), 200},
		{"If-Modified-Since", "yesterday", 200},
	} {
		a := d.want(d.do("GET", path, token, "", c.name, c.value), c.status)
		if c.status == 304 && (a.Header.Get("Content-Length") != "" || a.Header.Get("Cache-Control") != "no-store") {
			t.Errorf("%s %s: headers %v", c.name, c.value, a.Header)
		}
		if (len(a.body) == 0) != (c.status == 304) || a.Header.Get("ETag") != `W/"1"` {
			t.Errorf("%s %s: %d bytes, ETag %s", c.name, c.value, len(a.body), a.Header.Get("ETag"))
		}
		if len(d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldRequest, a.Header.Get("X-Request-Id")), audit.Is(audit.FieldInteraction, "read")}})) != 1 {
			t.Errorf("%s %s left no event", c.name, c.value)
		}
	}

	body := fmt.Sprintf(`{"resourceType":"Patient","id":%q,"gender":"male"}`, id)
	d.want(d.do("PUT", path, token, body, "If-Match", `W/"9"`), http.StatusPreconditionFailed)
	for _, malformed := range []string{"1", "W/1", `W/"x"`, "*", `W/"1", W/"2"`, ""} {
		d.want(d.do("PUT", path, token, body, "If-Match", malformed), http.StatusBadRequest)
		d.want(d.do("DELETE", path, token, "", "If-Match", malformed), http.StatusBadRequest)
	}
	updated := d.want(d.do("PUT", path, token, body, "If-Match", `W/"1"`), http.StatusOK)
	if updated.Header.Get("ETag") != `W/"2"` || updated.Header.Get("Content-Location") != d.base+"/Patient/"+id+"/_history/2" {
		t.Errorf("update: %v", updated.Header)
	}
	if a := d.want(d.do("GET", path+"/_history/1", token, ""), http.StatusOK); string(a.body) != string(created.body) {
		t.Errorf("version 1 reads as %s", a.body)
	}
	d.want(d.do("GET", path+"/_history/3", token, ""), http.StatusNotFound)
	d.want(d.do("DELETE", path, token, "", "If-Match", `W/"1"`), http.StatusPreconditionFailed)
	if a := d.want(d.do("DELETE", path, token, "", "If-Match", `W/"2"`), http.StatusNoContent); len(a.body) != 0 || a.Header.Get("ETag") != `W/"3"` {
		t.Errorf("delete: %s, ETag %s", a.body, a.Header.Get("ETag"))
	}
	d.want(d.do("GET", path, token, ""), http.StatusGone)
	d.want(d.do("DELETE", path, token, ""), http.StatusNoContent)
	history := d.want(d.do("GET", path+"/_history", token, ""), http.StatusOK)
	validFHIR(t, history.body)
	if n := strings.Count(string(history.body), `"request":`); n < 3 {
		t.Errorf("history of %d entries: %s", n, history.body)
	}
}

func TestPrefer(t *testing.T) {
	d := deploy(t, nil)
	token := d.as("backend")
	const body = `{"resourceType":"Patient","gender":"female"}`
	for prefer, want := range map[string]string{
		"": "Patient", "return=representation": "Patient", "return=minimal": "", "return=OperationOutcome": "OperationOutcome",
		"respond-async, return=minimal": "", "return=nonsense": "Patient",
	} {
		a := d.want(d.do("POST", "/fhir/R4/Patient", token, body, "Prefer", prefer), http.StatusCreated)
		var r struct{ ResourceType string }
		_ = json.Unmarshal(a.body, &r)
		if r.ResourceType != want || a.Header.Get("Location") == "" {
			t.Errorf("Prefer %q: %q, Location %s", prefer, a.body, a.Header.Get("Location"))
		}
	}
}

func TestConditionalCreate(t *testing.T) {
	d := deploy(t, nil)
	token := d.as("backend")
	const body = `{"resourceType":"Patient","identifier":[{"system":"urn:mrn","value":"77"}]}`
	first := d.want(d.do("POST", "/fhir/R4/Patient", token, body, "If-None-Exist", "identifier=urn:mrn|77"), http.StatusCreated)
	second := d.want(d.do("POST", "/fhir/R4/Patient", token, body, "If-None-Exist", "identifier=urn:mrn|77"), http.StatusOK)
	if second.Header.Get("Content-Location") != first.Header.Get("Location") || second.Header.Get("Location") != first.Header.Get("Location") {
		t.Errorf("the match is %s, want %s", second.Header.Get("Content-Location"), first.Header.Get("Location"))
	}
	d.want(d.do("POST", "/fhir/R4/Patient", token, body), http.StatusCreated)
	d.want(d.do("POST", "/fhir/R4/Patient", token, body, "If-None-Exist", "?identifier=urn:mrn|77"), http.StatusPreconditionFailed)
	d.want(d.do("POST", "/fhir/R4/Patient", token, body, "If-None-Exist", "?"), http.StatusBadRequest)
}

// TestRefusedRequests is the error table for what a client can get wrong; every refusal is one event.
func TestRefusedRequests(t *testing.T) {
	d := deploy(t, func(c *rest.Config) { c.BodyLimit = 64 << 10 })
	d.patient("p1")
	token := d.as("backend")
	planted := fmt.Sprintf(`"name":[{"family":%q}],"identifier":[{"value":%q}]`, plantedFamily, plantedMRN)
	good := `{"resourceType":"Patient","id":"p1",` + planted + `}`
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		code                     string
	}{
		{"not JSON", "POST", "/Patient", `{"resourceType":"Patient",` + planted, nil, 400, ""},
		{"empty body", "POST", "/Patient", " ", nil, 400, "required"},
		{"an array", "POST", "/Patient", `[` + good + `]`, nil, 400, ""},
		{"other resourceType", "PUT", "/Patient/p1", `{"resourceType":"Observation","id":"p1"}`, nil, 400, ""},
		{"other id", "PUT", "/Patient/p1", `{"resourceType":"Patient","id":"p2",` + planted + `}`, nil, 400, ""},
		{"unknown element", "POST", "/Patient", `{"resourceType":"Patient","nonsense":1,` + planted + `}`, nil, 422, ""},
		{"bad code", "POST", "/Patient", `{"resourceType":"Patient","gender":"` + plantedFamily + `"}`, nil, 422, ""},
		{"bad date", "POST", "/Patient", `{"resourceType":"Patient","birthDate":"` + plantedFamily + `"}`, nil, 422, ""},
		{"deep nesting", "POST", "/Patient", `{"resourceType":"Patient","extension":` + strings.Repeat(`[{"extension":`, 500) + `1` + strings.Repeat(`}]`, 500) + `}`, nil, 400, ""},
		{"XML body", "POST", "/Patient", `<Patient/>`, []string{"Content-Type", "application/fhir+xml"}, 415, "not-supported"},
		{"no type of body", "POST", "/Patient", good, []string{"Content-Type", "text/plain"}, 415, "not-supported"},
		{"latin-1", "POST", "/Patient", good, []string{"Content-Type", "application/fhir+json; charset=iso-8859-1"}, 415, "not-supported"},
		{"gzip", "POST", "/Patient", good, []string{"Content-Encoding", "gzip"}, 415, "not-supported"},
		{"form as JSON", "POST", "/Patient/_search", good, nil, 415, "not-supported"},
		{"XML wanted", "GET", "/Patient/p1", "", []string{"Accept", "application/fhir+xml"}, 406, "not-supported"},
		{"XML format", "GET", "/Patient/p1?_format=xml", "", nil, 406, "not-supported"},
		{"_pretty", "GET", "/Patient/p1?_pretty=perhaps", "", nil, 400, "invalid"},
		{"unknown id", "GET", "/Patient/p9", "", nil, 404, "not-found"},
		{"unknown type", "GET", "/Nothing/p1", "", nil, 404, "not-supported"},
		{"purpose", "GET", "/Patient/p1", "", []string{"X-Purpose-Of-Use", "<script>"}, 400, "invalid"},
		{"other purpose", "GET", "/Patient/p1", "", []string{"X-Purpose-Of-Use", "MARKETING"}, 403, "forbidden"},
		{"_count", "GET", "/Patient/p1/_history?_count=0", "", nil, 400, "invalid"},
		{"cursor", "GET", "/Patient?_page=" + plantedFamily, "", nil, 400, ""},
		{"history cursor", "GET", "/Patient/p1/_history?_page=" + plantedFamily, "", nil, 400, ""},
		{"update if there is none", "PUT", "/Patient/p1", `{"resourceType":"Patient","id":"p1"}`, []string{"If-None-Match", "*"}, 400, "invalid"},
		{"modifier", "GET", "/Patient?_id=p1&name:nothing=" + plantedFamily, "", nil, 400, "not-supported"},
		{"strict", "GET", "/Patient?_id=p1&nothing=" + plantedFamily, "", []string{"Prefer", "handling=strict"}, 400, ""},
		{"strict history", "GET", "/Patient/p1/_history?_since=" + plantedFamily, "", []string{"Prefer", "handling=strict"}, 400, "not-supported"},
		{"not a bundle", "POST", "", good, nil, 400, ""},
		{"broken bundle", "POST", "", `{"resourceType":"Bundle","type":"transaction","entry":[{"resource":` + good + `}]}`, nil, 0, ""},
		{"too large", "POST", "/Patient", `{"resourceType":"Patient","text":"` + strings.Repeat("x", 70<<10) + `"}`, nil, 413, "too-long"},
		{"more than the buffers of a connection hold", "POST", "/Patient", `{"resourceType":"Patient","text":"` + strings.Repeat("x", 20<<20) + `"}`, nil, 413, "too-long"},
	} {
		a := d.do(c.method, "/fhir/R4"+c.path, token, c.body, c.headers...)
		if c.status == 0 { // 400 and 422 are both true
			if a.StatusCode != 400 && a.StatusCode != 422 {
				t.Errorf("%s: status %d", c.name, a.StatusCode)
			}
			checkEveryAnswer(t, c.name, a)
		} else {
			d.want(a, c.status)
		}
		var o struct{ Issue []struct{ Code string } }
		_ = json.Unmarshal(a.body, &o)
		if c.code != "" && (len(o.Issue) == 0 || o.Issue[0].Code != c.code) {
			t.Errorf("%s: issue %s, want %s", c.name, a.body, c.code)
		}
		if got := d.eventsOf(a.Header.Get("X-Request-Id")); len(got) == 0 {
			t.Errorf("%s: no event", c.name)
		} else if last := got[0].Event; last.Outcome == audit.Success {
			t.Errorf("%s: event of outcome %d", c.name, last.Outcome)
		}
	}
	validFHIR(t, d.want(d.do("GET", "/fhir/R4/Patient/p9", token, ""), 404).body)
}

func TestRepresentation(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	token := d.as("backend")
	plain := d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), 200)
	for _, a := range []answer{
		d.do("GET", "/fhir/R4/Patient/p1?_format=json", token, "", "Accept", "application/fhir+xml"),
		d.do("GET", "/fhir/R4/Patient/p1?_format=application/fhir%2Bjson", token, ""),
		d.do("GET", "/fhir/R4/Patient/p1?_format=application/fhir+json", token, ""),
		d.do("GET", "/fhir/R4/Patient/p1", token, "", "Accept", "text/html, application/json;q=0.9, */*;q=0.8"),
		d.do("GET", "/fhir/R4/Patient/p1", token, "", "Accept", "application/fhir+json; fhirVersion=4.0"),
	} {
		if d.want(a, 200); string(a.body) != string(plain.body) {
			t.Errorf("another representation: %s", a.body)
		}
	}
	pretty := d.want(d.do("GET", "/fhir/R4/Patient/p1?_pretty=true", token, ""), 200)
	if !strings.Contains(string(pretty.body), "\n  \"") {
		t.Errorf("not pretty: %s", pretty.body)
	}
}

// TestSearchPages walks a search by its links, which say nothing of what was searched for, and takes no link of another
// caller's.
func TestSearchPages(t *testing.T) {
	d := deploy(t, nil)
	token := d.as("backend")
	for i := range 5 {
		d.patient(fmt.Sprintf("p%d", i))
	}
	type bundle struct {
		Total *int
		Link  []struct{ Relation, URL string }
		Entry []struct {
			FullURL  string
			Resource struct{ ID string }
			Search   struct{ Mode string }
		}
	}
	seen := map[string]bool{}
	next := "/fhir/R4/Patient?name=" + strings.ToLower(plantedFamily) + "&_count=2"
	var second string
	for next != "" {
		a := d.want(d.do("GET", next, token, ""), 200)
		validFHIR(t, a.body)
		var b bundle
		check(t, json.Unmarshal(a.body, &b))
		for _, e := range b.Entry {
			if e.Search.Mode != "match" || e.FullURL != d.base+"/Patient/"+e.Resource.ID || seen[e.Resource.ID] {
				t.Errorf("entry %+v", e)
			}
			seen[e.Resource.ID] = true
		}
		next = ""
		for _, l := range b.Link {
			if l.Relation == "next" {
				next = l.URL
				if !strings.HasPrefix(next, d.base+"/Patient?_page=") || strings.Contains(strings.ToLower(next), strings.ToLower(plantedFamily)) {
					t.Errorf("next link %s", next)
				}
				if second == "" {
					second = next
				}
			}
		}
		if len(seen) > 10 {
			t.Fatal("paging does not end")
		}
	}
	if len(seen) != 5 || second == "" {
		t.Errorf("found %v", seen)
	}
	d.want(d.do("GET", second, d.as("clinician"), ""), http.StatusBadRequest)
	d.want(d.do("GET", second[:len(second)-3]+"AAA", token, ""), http.StatusBadRequest)

	form := d.want(d.do("POST", "/fhir/R4/Patient/_search?_count=10", token, "name="+plantedFamily, "Content-Type", "application/x-www-form-urlencoded"), 200)
	var b bundle
	check(t, json.Unmarshal(form.body, &b))
	if len(b.Entry) != 5 || b.Total == nil || *b.Total != 5 {
		t.Errorf("POST search: %s", form.body)
	}
	warned := d.want(d.do("GET", "/fhir/R4/Patient?_id=p1&nothing=1", token, ""), 200)
	validFHIR(t, warned.body)
	if !strings.Contains(string(warned.body), `"search":{"mode":"outcome"}`) {
		t.Errorf("an unknown parameter is not warned about: %s", warned.body)
	}
}

func TestTransaction(t *testing.T) {
	d := deploy(t, nil)
	token := d.as("backend")
	const body = `{"resourceType":"Bundle","type":"transaction","entry":[
		{"fullUrl":"urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0b","resource":{"resourceType":"Observation","status":"final","code":{"text":"x"},"subject":{"reference":"urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"},"valueQuantity":{"value":1.10}},"request":{"method":"POST","url":"Observation"}},
		{"fullUrl":"urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a","resource":{"resourceType":"Patient","gender":"other"},"request":{"method":"POST","url":"Patient"}}]}`
	for _, path := range []string{"/fhir/R4", "/fhir/R4/"} {
		a := d.want(d.do("POST", path, token, body, "Prefer", "return=representation"), 200)
		validFHIR(t, a.body)
		var b struct {
			Type  string
			Entry []struct {
				Resource json.RawMessage
				Response struct{ Status, Location, ETag string }
			}
		}
		check(t, json.Unmarshal(a.body, &b))
		if b.Type != "transaction-response" || len(b.Entry) != 2 {
			t.Fatalf("response %s", a.body)
		}
		patient, ok := strings.CutPrefix(b.Entry[1].Response.Location, d.base+"/")
		patient = strings.TrimSuffix(patient, "/_history/1")
		if !ok || !strings.HasPrefix(b.Entry[1].Response.Status, "201") || !strings.Contains(string(b.Entry[0].Resource), `"`+patient+`"`) ||
			!strings.Contains(string(b.Entry[0].Resource), `1.10`) {
			t.Errorf("response %s", a.body)
		}
	}
}

// TestTwoAtOnce mixes requests of two callers on kept-alive connections. What a handler keeps must be a copy: under the
// race detector, and in the events, a string of one request must never turn into another's.
func TestTwoAtOnce(t *testing.T) {
	var seen sync.Map
	d := deploy(t, func(c *rest.Config) {
		c.Observe = func(o rest.Observation) { seen.Store(o.Route+" "+o.Method, o) }
	})
	ids := []string{"aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc", "dddddddddd"}
	for _, id := range ids {
		d.patient(id)
	}
	token := d.as("backend")
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			for i := range 40 {
				a := d.do("GET", "/fhir/R4/Patient/"+id, token, "", "X-Request-Id", fmt.Sprintf("req-%s-%d", id, i), "X-Purpose-Of-Use", "TREAT")
				if a.StatusCode != 200 || !strings.Contains(string(a.body), `"id":"`+id+`"`) || a.Header.Get("X-Request-Id") != fmt.Sprintf("req-%s-%d", id, i) {
					t.Errorf("%s got %d %s", id, a.StatusCode, a.body)
				}
			}
		})
	}
	all.Wait()
	for _, id := range ids {
		for i := range 40 {
			e := d.eventsOf(fmt.Sprintf("req-%s-%d", id, i))
			if len(e) != 1 || e[0].Event.Patient != id || e[0].Event.Purpose != "TREAT" || e[0].Event.Entities[0].ID != id {
				t.Errorf("events of request %s %d: %+v", id, i, e)
			}
		}
	}
	o, ok := seen.Load("/fhir/R4/:type/:id GET")
	if !ok || o.(rest.Observation).Took <= 0 || o.(rest.Observation).Auth <= 0 {
		t.Errorf("observed %+v", o)
	}
}

func TestRequestID(t *testing.T) {
	d := deploy(t, nil)
	for _, sent := range []string{"abc-123_X.y", strings.Repeat("a", 64)} {
		if got := d.do("GET", "/healthz", "", "", "X-Request-Id", sent).Header.Get("X-Request-Id"); got != sent {
			t.Errorf("sent %q, got %q", sent, got)
		}
	}
	for _, sent := range []string{"", "a b", strings.Repeat("a", 65), "<x>", "é"} {
		if got := d.do("GET", "/healthz", "", "", "X-Request-Id", sent).Header.Get("X-Request-Id"); got == sent || len(got) != 36 {
			t.Errorf("sent %q, got %q", sent, got)
		}
	}
}

func TestBatch(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	a := d.want(d.do("POST", "/fhir/R4", d.as("backend"), `{"resourceType":"Bundle","type":"batch","entry":[
		{"request":{"method":"GET","url":"Patient?_id=p9"}},
		{"request":{"method":"GET","url":"Patient/p1"}},
		{"request":{"method":"GET","url":"Patient/p9"}}]}`), 200)
	validFHIR(t, a.body)
	var b struct {
		Entry []struct {
			Resource struct {
				ResourceType string
				Link         []struct{ URL string }
			}
			Response struct{ Status string }
		}
	}
	check(t, json.Unmarshal(a.body, &b))
	if len(b.Entry) != 3 || b.Entry[0].Resource.Link[0].URL != d.base+"/Patient?_id=p9" || b.Entry[1].Resource.ResourceType != "Patient" ||
		b.Entry[2].Response.Status != "404 Not Found" {
		t.Errorf("batch: %s", a.body)
	}
}
