package rest_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/rest"
)

// get asks the officers' API as a role and reads the answer.
func (d *deployment) get(role, path string, into any) answer {
	d.t.Helper()
	d.events(audit.Query{Limit: 1}) // what happened is stored
	a := d.want(d.do("GET", path, d.as(role), ""), http.StatusOK)
	if err := json.Unmarshal(a.body, into); err != nil {
		d.t.Fatalf("%s: %v in %s", path, err, a.body)
	}
	d.described(a)
	return a
}

func q(text string) string { return "?q=" + url.QueryEscape(text) }

type shownProblem struct {
	Detail, Parameter string
	Position          *int
	Allowed           []string
}

// TestOfficersBadInput demands of every refusal that it names what is at fault, holds nothing of it, and is an event.
func TestOfficersBadInput(t *testing.T) {
	d := deploy(t, nil)
	const secret = "p-secret"
	position := func(n int) *int { return &n }
	var other shownPage
	d.happen(0, 3)
	d.get("officer", "/v1/audit/events?limit=1", &other)
	for path, want := range map[string]shownProblem{
		"events?" + secret + "=1":                  {},
		"events?limit=201":                         {Parameter: "limit"},
		"events?limit=0":                           {Parameter: "limit"},
		"events?limit=many":                        {Parameter: "limit"},
		"events?agent=a&agent=" + secret:           {Parameter: "agent"},
		"events?agent=":                            {Parameter: "agent"},
		"events?agent=%00":                         {Parameter: "agent"},
		"events?agent=" + strings.Repeat("x", 300): {Parameter: "agent"},
		"events?outcome=5":                         {Parameter: "outcome"},
		"events?action=X":                          {Parameter: "action"},
		"events?entity=Patient/..%2f" + secret:     {Parameter: "entity"},
		"events?from=yesterday":                    {Parameter: "from"},
		"events?from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z": {Parameter: "to"},
		"events?system=perhaps": {Parameter: "system"},
		"events" + q("recorded:24h") + "&from=2026-11-02T00:00:00Z":      {Parameter: "from"},
		"events" + q(secret+":x"):                                        {Parameter: "q", Position: position(0)},
		"events" + q("agent:a outcome:5"):                                {Parameter: "q", Position: position(16)},
		"events" + q(`"`+secret):                                         {Parameter: "q", Position: position(0)},
		"events" + q(strings.Repeat("x", 5000)):                          {Parameter: "q", Position: position(0)},
		"events?cursor=" + secret:                                        {Parameter: "cursor"},
		"events?agent=u1&limit=1&cursor=" + other.Next:                   {Parameter: "cursor"},
		"events?system=true&limit=1&cursor=" + other.Next:                {Parameter: "cursor"},
		"events?limit=1&cursor=" + other.Next[:len(other.Next)-2] + "AA": {Parameter: "cursor"},
		"events?limit=1&cursor=" + other.Next + "%0a":                    {Parameter: "cursor"},
		"facets?fields=id":                                               {Parameter: "fields"},
		"facets?fields=agent,agent":                                      {Parameter: "fields"},
		"facets?fields=" + secret:                                        {Parameter: "fields"},
		"facets?top=0":                                                   {Parameter: "top"},
		"facets?limit=1":                                                 {},
		"histogram?step=0h":                                              {Parameter: "step"},
		"histogram?step=" + secret:                                       {Parameter: "step"},
		"histogram?step=1500ms":                                          {Parameter: "step"},
		"histogram?step=1s":                                              {Parameter: "step"},
		"checkpoints?after=-1":                                           {Parameter: "after"},
		"checkpoints?limit=1000":                                         {Parameter: "limit"},
		"../latency?from=" + secret:                                      {Parameter: "from"},
		"../latency?by=" + secret:                                        {Parameter: "by"},
		"../latency?part=" + secret:                                      {Parameter: "part"},
		"../latency?step=1s":                                             {Parameter: "step"},
		"../latency?to=2026-11-02T00:00:00Z&from=2026-11-02T00:00:00Z":   {Parameter: "from"},
		"../latency?q=" + secret:                                         {},
	} {
		target := strings.Replace("/v1/audit/"+path, "audit/../", "", 1)
		a := d.want(d.do("GET", target, d.as("officer"), ""), http.StatusBadRequest)
		d.described(a)
		var got shownProblem
		check(t, json.Unmarshal(a.body, &got))
		if got.Parameter != want.Parameter || (got.Position == nil) != (want.Position == nil) || got.Position != nil && *got.Position != *want.Position {
			t.Errorf("%.80s: %s", path, a.body)
		}
		if strings.Contains(string(a.body), secret) {
			t.Errorf("%.80s: the answer quotes the request: %s", path, a.body)
		}
		events := d.eventsOf(a.Header.Get("X-Request-Id"))
		if len(events) != 1 || events[0].Event.Outcome != audit.MinorFailure || strings.Contains(string(events[0].Body), secret) {
			t.Errorf("%.80s: events %+v", path, events)
		}
	}
	if strings.Contains(d.logs.String(), secret) {
		t.Error("the log quotes a request")
	}
	// A cursor of one caller's view is none of the other's.
	d.want(d.do("GET", "/v1/audit/events?limit=1&cursor="+other.Next, d.as("assessor"), ""), http.StatusBadRequest)
	d.want(d.do("GET", "/v1/audit/events?limit=1&cursor="+other.Next, d.as("officer"), ""), http.StatusOK)
	for _, path := range []string{"audit/facets", "audit/histogram", "audit/checkpoints", "audit/live", "audit/events/018f3e1a-0000-7000-8000-000000000001/proof", "latency"} {
		for _, role := range []string{"clinician", "admin", "patient"} {
			d.want(d.do("GET", "/v1/"+path, d.as(role), ""), http.StatusForbidden)
		}
	}
}

// TestPagesBothWays walks to the oldest event and back.
func TestPagesBothWays(t *testing.T) {
	d := deploy(t, nil)
	d.happen(0, 25)
	type page struct {
		shownPage
		Prev     string
		Complete bool
	}
	ids := func(p page) (list []string) {
		for _, e := range p.Events {
			list = append(list, e.RequestID)
		}
		return list
	}
	search := "/v1/audit/events" + q("interaction:read recorded:1h") + "&limit=10&cursor="
	var pages []page
	for cursor := ""; ; {
		var p page
		d.get("officer", search+cursor, &p)
		pages = append(pages, p)
		if cursor = p.Next; cursor == "" || len(pages) > 5 {
			break
		}
	}
	want := consecutive(0, 25)
	slices.Reverse(want)
	if len(pages) != 3 || !slices.Equal(slices.Concat(ids(pages[0]), ids(pages[1]), ids(pages[2])), want) || !pages[0].Complete || pages[0].Prev != "" {
		t.Fatalf("pages %+v", pages)
	}
	d.happen(25, 12) // meanwhile
	var back page
	d.get("officer", search+pages[2].Prev, &back)
	if !slices.Equal(ids(back), ids(pages[1])) || back.Next == "" {
		t.Errorf("back on the second page: %v, want %v", ids(back), ids(pages[1]))
	}
	d.get("officer", search+back.Prev, &back)
	if !slices.Equal(ids(back), ids(pages[0])) {
		t.Errorf("back on the first page: %v, want %v", ids(back), ids(pages[0]))
	}
	var newer page
	d.get("officer", search+back.Prev, &newer)
	if len(newer.Events) != 10 || newer.Events[9].RequestID != "live-25" {
		t.Errorf("what came meanwhile: %v", ids(newer))
	}
	d.get("officer", search+newer.Prev, &newer)
	if !slices.Equal(ids(newer), []string{"live-36", "live-35"}) || newer.Prev != "" {
		t.Errorf("the newest: %v, prev %q", ids(newer), newer.Prev)
	}
}

type inspection struct {
	shownEvent
	Searched bool
	Why      struct {
		Sentence, Needed string
		Gates            []struct{ Gate, State, Detail string }
	}
	Took   *struct{ Total, Crypto int }
	Search *struct {
		Text    string
		Damaged bool
	}
	Partner    *struct{ ID string }
	Neighbours struct {
		Patient, User, Session struct{ Previous, Next string }
	}
	Inclusion struct {
		Sequenced         bool
		Index, Size       int64
		Checkpoint, Proof string
	}
	FHIR string
}

func (p *inspection) gate(name string) string {
	for _, g := range p.Why.Gates {
		if g.Gate == name {
			return g.State
		}
	}
	return ""
}

func TestInspection(t *testing.T) {
	var timings *audit.Timings
	d := deploy(t, func(c *rest.Config) {
		timings = audit.NewTimings(c.Log)
		c.Observe = func(o rest.Observation) {
			if o.RequestID != "" {
				timings.Add(audit.Timed{RequestID: o.RequestID, Route: o.Route, Role: o.Role, Status: uint16(o.Status), Timing: audit.Timing{Total: 4711, Crypto: 12}})
			}
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = timings.Run(ctx)
	}()
	made := d.patient("p1")
	clinician := d.as("clinician")
	read := d.want(d.do("GET", "/fhir/R4/Patient/p1", clinician, ""), 200)
	again := d.want(d.do("GET", "/fhir/R4/Patient/p1", clinician, ""), 200)
	missed := d.want(d.do("GET", "/fhir/R4/Patient/p2", clinician, ""), 404)
	refused := d.want(d.do("GET", "/fhir/R4/Observation/o1", d.as("registrar"), ""), 403)
	searched := d.want(d.do("GET", "/fhir/R4/Patient?family="+plantedFamily, d.as("registrar"), ""), 200)
	stop()
	<-stopped
	of := func(a answer) string { return d.eventsOf(a.Header.Get("X-Request-Id"))[0].Event.ID.String() }
	look := func(role string, a answer) (p inspection) {
		d.get(role, "/v1/audit/events/"+of(a), &p)
		return p
	}

	p := look("officer", read)
	if p.gate("relationship") != "passed" || p.gate("scope") != "passed" || !strings.HasPrefix(p.Why.Sentence, "clinician-1 was allowed read Patient/p1 by rule clinician:") ||
		p.Why.Needed != "" {
		t.Errorf("why %+v", p.Why)
	}
	if p.Took == nil || p.Took.Total != 4711 || p.FHIR != "/fhir/R4/AuditEvent/"+p.ID {
		t.Errorf("took %+v, fhir %s", p.Took, p.FHIR)
	}
	if p.Neighbours.Patient.Next != of(again) || p.Neighbours.User.Next != of(again) || p.Neighbours.Session.Next != of(again) || p.Neighbours.Patient.Previous == "" {
		t.Errorf("neighbours %+v", p.Neighbours)
	}
	if p.Inclusion.Sequenced || p.Search != nil || p.Partner != nil {
		t.Errorf("inclusion %+v, search %v, partner %v", p.Inclusion, p.Search, p.Partner)
	}
	d.want(d.do("GET", "/v1/audit/events/"+p.ID+"/proof", d.as("officer"), ""), http.StatusConflict)

	if p = look("officer", refused); p.gate("role") != "failed" || p.gate("scope") != "passed" || p.gate("relationship") != "not reached" || p.Why.Needed == "" || !strings.Contains(p.Why.Sentence, "was refused") {
		t.Errorf("why refused: %+v", p.Why)
	}
	if p = look("officer", missed); !strings.Contains(p.Why.Sentence, "ended otherwise") {
		t.Errorf("why it was not found: %+v", p.Why)
	}
	// A write has an intent and an outcome, and each shows the other.
	p = look("officer", made)
	if p.Partner == nil {
		t.Fatalf("no partner of %+v", p.shownEvent)
	}
	var intent inspection
	d.get("officer", "/v1/audit/events/"+p.Partner.ID, &intent)
	if intent.Outcome != -1 || intent.Partner == nil || intent.Partner.ID != p.ID {
		t.Errorf("intent %+v of %s", intent.Partner, p.ID)
	}

	// The words of a search are in no list, on the event's page, and in an event about that page.
	var list struct{ Events []json.RawMessage }
	a := d.get("officer", "/v1/audit/events?request_id="+searched.Header.Get("X-Request-Id"), &list)
	if strings.Contains(string(a.body), plantedFamily) || !strings.Contains(string(a.body), `"searched":true`) {
		t.Errorf("the list: %s", a.body)
	}
	var text string
	for _, s := range d.eventsOf(searched.Header.Get("X-Request-Id")) {
		var one inspection
		a := d.get("officer", "/v1/audit/events/"+s.Event.ID.String(), &one)
		if one.Search == nil {
			continue
		}
		text = one.Search.Text
		opened := false
		for _, e := range d.eventsOf(a.Header.Get("X-Request-Id")) {
			opened = opened || e.Event.Interaction == "audit-search-text" && e.Event.Entities[0].ID == one.ID
		}
		if !opened {
			t.Error("search text was opened without an event")
		}
		var blind inspection
		if a := d.get("assessor", "/v1/audit/events/"+one.ID, &blind); blind.Search != nil || strings.Contains(string(a.body), plantedFamily) {
			t.Errorf("an assessor reads the search: %s", a.body)
		}
	}
	if text != "family="+plantedFamily {
		t.Errorf("search text %q", text)
	}

	// Sequenced, the event has a proof, that proves.
	d.tree.grow(t)
	p = look("officer", read)
	proof := d.want(d.do("GET", "/v1/audit/events/"+p.ID+"/proof", d.as("officer"), ""), http.StatusOK)
	if !p.Inclusion.Sequenced || p.Inclusion.Size <= p.Inclusion.Index || p.Inclusion.Proof != string(proof.body) {
		t.Errorf("inclusion %+v", p.Inclusion)
	}
	whole, err := audit.ParseProof(proof.body)
	check(t, err)
	if e, err := audit.DecodeEvent(whole.Body); err != nil || e.Patient != "p1" {
		t.Errorf("the proof is of %+v, %v", e, err)
	}
	bare := d.want(d.do("GET", "/v1/audit/events/"+p.ID+"/proof", d.as("assessor"), ""), http.StatusOK)
	leaf, err := audit.ParseProof(bare.body)
	check(t, err)
	if len(leaf.Body) != 0 || leaf.Index != whole.Index {
		t.Error("an assessor's proof tells the event")
	}
	var checkpoints struct {
		Newest      struct{ Size int64 }
		Checkpoints []struct {
			Size         int64
			Origin, Note string
		}
		Next string
	}
	d.tree.grow(t)
	d.get("assessor", "/v1/audit/checkpoints?limit=1", &checkpoints)
	if len(checkpoints.Checkpoints) != 1 || checkpoints.Checkpoints[0].Size != p.Inclusion.Size || checkpoints.Checkpoints[0].Note != p.Inclusion.Checkpoint ||
		checkpoints.Newest.Size <= p.Inclusion.Size || checkpoints.Next == "" {
		t.Errorf("checkpoints %+v", checkpoints)
	}
}

// TestVerified shows the looks of the deployment's own verification, bad news and the lack of any included.
func TestVerified(t *testing.T) {
	var news, whole audit.PatrolReport
	d := deploy(t, func(c *rest.Config) {
		c.Verified = func() (audit.PatrolReport, audit.PatrolReport) { return news, whole }
	})
	var got struct {
		News, Whole *struct {
			State    string
			Size     int64
			Findings []struct{ Kind, Stream, Column string }
		}
	}
	if d.get("officer", "/v1/audit/verify", &got); got.News != nil || got.Whole != nil {
		t.Errorf("before any look: %+v", got)
	}
	news = audit.PatrolReport{At: time.Now(), Report: &audit.Report{
		Checkpoint: audit.Checkpoint{Size: 7}, Findings: []audit.Finding{{Kind: audit.KindStray, Stream: audit.StreamID{1}, Column: "patient"}}, Duration: time.Second,
	}}
	whole = audit.PatrolReport{At: time.Now(), Err: errors.New("database is away")}
	d.get("assessor", "/v1/audit/verify", &got)
	if got.News.State != "bad" || got.News.Size != 7 || len(got.News.Findings) != 1 || got.News.Findings[0].Column != "patient" || len(got.News.Findings[0].Stream) != 32 || got.Whole.State != "unknown" {
		t.Errorf("looks %+v %+v", got.News, got.Whole)
	}
	news.Report.Findings = nil
	if d.get("officer", "/v1/audit/verify", &got); got.News.State != "good" {
		t.Errorf("a look that found nothing: %+v", got.News)
	}
}

// TestAssessorsSeeAliases compares what an officer and an assessor see of the same events.
func TestAssessorsSeeAliases(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	d.patient("018f3e1a-7d1e-4b2c-9a55-0000000000aa")
	clinician := d.as("clinician")
	for _, id := range []string{"p1", "018f3e1a-7d1e-4b2c-9a55-0000000000aa", "p1"} {
		d.want(d.do("GET", "/fhir/R4/Patient/"+id, clinician, "", "X-Request-Id", "request-of-clinician-1"), 200)
	}
	var open, blind struct{ Events []shownEvent }
	search := "/v1/audit/events" + q("interaction:read -type:110101")
	d.get("officer", search, &open)
	a := d.get("assessor", search, &blind)
	if len(open.Events) != 3 || len(blind.Events) != 3 {
		t.Fatalf("%d and %d events", len(open.Events), len(blind.Events))
	}
	for _, name := range []string{"clinician-1", `"p1"`, "018f3e1a-7d1e", rivera, "127.0.0.1", "request-of"} {
		if strings.Contains(string(a.body), name) {
			t.Errorf("an assessor sees %s: %s", name, a.body)
		}
	}
	first, second, third := blind.Events[0], blind.Events[1], blind.Events[2]
	if first.Patient != third.Patient || first.Patient == second.Patient || first.Agent.User != second.Agent.User || !strings.HasPrefix(first.Patient, "patient-") ||
		first.Entities[0].ID != first.Patient || len(first.Patient) != len(second.Patient) || first.ID != open.Events[0].ID {
		t.Errorf("aliases %+v", blind.Events)
	}
	// An alias can be asked for, a name cannot.
	var by struct {
		Events []shownEvent
		Query  struct{ Q string }
	}
	a = d.get("assessor", "/v1/audit/events"+q("interaction:read patient:"+second.Patient+" agent:"+first.Agent.User), &by)
	if len(by.Events) != 1 || by.Events[0].ID != second.ID || !strings.Contains(by.Query.Q, second.Patient) || strings.Contains(string(a.body), "018f3e1a-7d1e") {
		t.Errorf("by alias: %s", a.body)
	}
	d.get("assessor", "/v1/audit/events?entity=Patient/"+first.Patient, &by)
	if len(by.Events) == 0 {
		t.Error("no events of an entity by its alias")
	}
	for _, text := range []string{"patient:p1", "agent:clinician-1", "agent:cl*", "-agent:clinician-1", "clinician", "network:127.0.0.1", "entity:Patient/p1", "request:request-of-clinician-1",
		"session:" + first.Patient, "patient:" + strings.Replace(first.Patient, "-"+string(first.Patient[8]), "-"+string('a'+(first.Patient[8]-'a'+1)%26), 1), "patient:" + strings.ToUpper(first.Patient)} {
		a := d.want(d.do("GET", "/v1/audit/events"+q(text), d.as("assessor"), ""), http.StatusBadRequest)
		if strings.Contains(string(a.body), "p1") {
			t.Errorf("%s: %s", text, a.body)
		}
	}
	var facets struct {
		Facets []struct {
			Field  string
			Values []struct {
				Value  string
				Events int
			}
		}
	}
	d.get("assessor", "/v1/audit/facets"+q("interaction:read -type:110101")+"&fields=patient,agent", &facets)
	if len(facets.Facets) != 2 || facets.Facets[0].Values[0].Value != first.Patient || facets.Facets[0].Values[0].Events != 2 || facets.Facets[1].Values[0].Value != first.Agent.User {
		t.Errorf("facets %+v", facets)
	}
	d.tree.grow(t)
	w := d.dial(d.as("assessor"), `{"from":0,"q":"interaction:read patient:`+second.Patient+`"}`)
	m, err := w.next()
	if err != nil || len(m.Events) != 1 || m.Events[0].ID != second.ID || m.Events[0].Patient != second.Patient {
		t.Errorf("live: %+v, %v", m, err)
	}
	if page := d.search("?patient=" + first.Patient); len(page.Events) != 0 {
		t.Error("an officer finds by alias")
	}
}

func TestFacetsHistogramLatency(t *testing.T) {
	d := deploy(t, nil)
	d.happen(0, 30)
	var facets struct {
		Facets []struct {
			Field    string
			Complete bool
			Values   []struct {
				Value  string
				Events int
			}
		}
		Query struct{ Q string }
	}
	a := d.get("officer", "/v1/audit/facets"+q("interaction:read")+"&fields=agent,action&top=1", &facets)
	if len(facets.Facets) != 2 || !facets.Facets[0].Complete || len(facets.Facets[0].Values) != 1 || facets.Facets[0].Values[0].Events != 15 || facets.Facets[1].Values[0].Value != "R" ||
		facets.Query.Q != "interaction:read" {
		t.Errorf("facets %s", a.body)
	}
	var histogram struct {
		Step int
		Bins []struct{ Events, Denied, Failed int }
	}
	a = d.get("officer", "/v1/audit/histogram"+q("interaction:read recorded:2h")+"&step=15m", &histogram)
	sum := 0
	for _, b := range histogram.Bins {
		sum += b.Events
	}
	if histogram.Step != 900 || len(histogram.Bins) < 8 || sum != 30 {
		t.Errorf("histogram %s", a.body)
	}
	timed := &audit.Event{Type: audit.TypeApplication, Interaction: audit.InteractionTimings, Detail: audit.AppendTimings(nil, []audit.Timed{
		{RequestID: "a", Route: "/fhir/R4/:type/:id", Role: "clinician", Status: 200, Timing: audit.Timing{Total: 1000, Database: 800}},
		{RequestID: "b", Route: "/fhir/R4/:type/:id", Role: "nurse", Status: 200, Timing: audit.Timing{Total: 3000, Database: 100}},
	})}
	_, err := d.log.Record(t.Context(), audit.Process, timed)
	check(t, err)
	var latency struct {
		Step   int
		Series []struct {
			Route, Role, Part string
			Requests          int
			P50, P99          int
		}
		Heatmap []struct {
			Cells []struct{ From, To, Requests int }
		}
	}
	d.want(d.do("GET", "/v1/latency", d.as("security"), ""), http.StatusOK)
	a = d.get("officer", "/v1/latency?by=role&part=database&step=5m&role=nurse", &latency)
	if latency.Step%300 != 0 || len(latency.Series) == 0 || latency.Series[0].Part != "total" || latency.Series[0].Role != "nurse" || latency.Series[0].P99 < 2800 || latency.Series[0].P99 > 3200 ||
		len(latency.Heatmap) != 1 || latency.Heatmap[0].Cells[0].Requests != 1 {
		t.Errorf("latency %s", a.body)
	}
	// What the log records about itself is not in an officer's way.
	var page shownPage
	d.get("officer", "/v1/audit/events?type=110100", &page)
	for _, e := range page.Events {
		if e.Interaction == audit.InteractionTimings {
			t.Error("timings are listed")
		}
	}
	var all shownPage
	d.get("officer", "/v1/audit/events?type=110100&system=true", &all)
	if len(all.Events) != len(page.Events)+1 {
		t.Errorf("%d events with the system's own, %d without", len(all.Events), len(page.Events))
	}
	// Each look is an event that names what was asked for; its words are sealed.
	search := d.want(d.do("GET", "/v1/audit/events"+q(`patient:p9,p8 entity:Observation/o1 "`+plantedFamily+`"`), d.as("officer"), ""), 200)
	events := d.eventsOf(search.Header.Get("X-Request-Id"))
	if len(events) != 1 || events[0].Event.Patient != "p9" || len(events[0].Event.Entities) != 3 || len(events[0].Event.Query) == 0 || strings.Contains(string(events[0].Body), plantedFamily) {
		t.Errorf("the look: %+v", events)
	}
}
