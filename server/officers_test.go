package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// officersEvent is what these tests read of an event.
type officersEvent struct {
	ID, Patient string
	RequestID   string `json:"request_id"`
	Agent       struct{ User string }
}

// ask reads an answer of the officers' API.
func (d *instance) ask(t testing.TB, persona, path string, into any) {
	t.Helper()
	res := d.do(t, "GET", path, d.token(t, persona), "")
	if res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: status %d: %s", path, res.StatusCode, res.body)
	}
	if err := json.Unmarshal(res.body, into); err != nil {
		t.Fatalf("GET %s: %v in %s", path, err, res.body)
	}
}

// eventually asks until what came is as it should be.
func (d *instance) eventually(t testing.TB, persona, path string, into any, good func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		d.ask(t, persona, path, into)
		if good() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("GET %s: %+v", path, into)
		}
	}
}

// TestOfficers follows one read of a chart through the officers' API of a real deployment.
func TestOfficers(t *testing.T) {
	d := demoShared(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(d.API, "http")+"/audit/live", &websocket.DialOptions{ //nolint:bodyclose // of an upgrade, there is none
		HTTPHeader: http.Header{"Authorization": {"Bearer " + d.token(t, "officer-diaz")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	if err := conn.Write(ctx, websocket.MessageText, []byte(`{"q":"interaction:read,search-type agent:dr-rivera"}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(ctx); err != nil { // where it stands
		t.Fatal(err)
	}

	search := d.do(t, "GET", "/fhir/R4/Patient?_count=1", d.token(t, "officer-diaz"), "")
	if search.StatusCode != http.StatusForbidden {
		t.Fatalf("an officer searches charts: %d", search.StatusCode)
	}
	request := fmt.Sprintf("officers-%d", time.Now().UnixNano())
	read := d.do(t, "GET", "/fhir/R4/Patient?_id=any", d.token(t, "dr-rivera"), "", "X-Request-Id: "+request)
	if read.StatusCode != http.StatusOK {
		t.Fatalf("search: %d %s", read.StatusCode, read.body)
	}

	// It comes by itself, once it is in a signed tree.
	began := time.Now()
	var live struct {
		Position int64
		Events   []officersEvent
	}
	for len(live.Events) == 0 || live.Events[0].RequestID != request {
		_, b, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		live.Events = nil
		if err := json.Unmarshal(b, &live); err != nil {
			t.Fatal(err)
		}
	}

	t.Logf("watched %v after the answer", time.Since(began))

	// One page of the search for it, counted and drawn.
	q := "q=" + url.QueryEscape("request:"+request+" recorded:1h")
	var page struct{ Events []officersEvent }
	d.eventually(t, "officer-diaz", "/v1/audit/events?"+q, &page, func() bool { return len(page.Events) > 0 })
	if page.Events[0].ID != live.Events[0].ID {
		t.Errorf("found %s, saw %s", page.Events[0].ID, live.Events[0].ID)
	}
	var facets struct {
		Facets []struct {
			Values []struct {
				Value  string
				Events int
			}
		}
	}
	d.ask(t, "officer-diaz", "/v1/audit/facets?fields=agent&"+q, &facets)
	if len(facets.Facets) != 1 || len(facets.Facets[0].Values) != 1 || facets.Facets[0].Values[0].Value != "dr-rivera" {
		t.Errorf("facets %+v", facets)
	}
	var histogram struct{ Bins []struct{ Events int } }
	d.ask(t, "officer-diaz", "/v1/audit/histogram?step=1m&"+q, &histogram)
	sum := 0
	for _, b := range histogram.Bins {
		sum += b.Events
	}
	if sum != len(page.Events) {
		t.Errorf("%d events in the histogram, %d in the list", sum, len(page.Events))
	}

	// The event itself, with its words, its durations, which come later, and its proof, which verifies elsewhere.
	var one struct {
		Search    *struct{ Text string }
		Took      *struct{ Total, Audit int }
		Why       struct{ Sentence string }
		Inclusion struct {
			Sequenced bool
			Proof     string
		}
	}
	path := "/v1/audit/events/" + page.Events[0].ID
	d.eventually(t, "officer-diaz", path, &one, func() bool { return one.Took != nil && one.Inclusion.Sequenced })
	if one.Search == nil || one.Search.Text != "_id=any" || one.Took.Total == 0 || one.Took.Audit == 0 || !strings.Contains(one.Why.Sentence, "dr-rivera was allowed search-type Patient") {
		t.Errorf("event %+v, search %+v, took %+v", one, one.Search, one.Took)
	}
	proof := d.do(t, "GET", path+"/proof", d.token(t, "officer-diaz"), "")
	if proof.StatusCode != http.StatusOK || !strings.HasPrefix(string(proof.body), "c2sp.org/tlog-proof@v1\n") {
		t.Errorf("proof: %d %.100s", proof.StatusCode, proof.body)
	}
	file := filepath.Join(t.TempDir(), "event.tlog-proof")
	for name, content := range map[string][]byte{"the proof": proof.body, "a changed proof": bytes.Replace(proof.body, []byte("\nindex "), []byte("\nindex 1"), 1)} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		code := run(ctx, []string{"audit", "verify", "--key", d.CheckpointKey, file}, terminal{&out, &errs})
		if (code == 0) != (name == "the proof") {
			t.Errorf("%s: exit code %d: %s %s", name, code, &out, &errs)
		}
	}
	var latency struct {
		Series []struct {
			Route, Part string
			Requests    int
		}
	}
	counted := func() bool {
		for _, s := range latency.Series {
			if s.Route == "/fhir/R4/:type" && s.Part == "total" && s.Requests > 0 {
				return true
			}
		}
		return false
	}
	d.eventually(t, "officer-diaz", "/v1/latency?by=route&from="+url.QueryEscape(time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)), &latency, counted)

	// An assessor sees the same event, and nobody in it.
	res := d.do(t, "GET", path, d.token(t, "assessor-lund"), "")
	if res.StatusCode != http.StatusOK || strings.Contains(string(res.body), "rivera") || strings.Contains(string(res.body), "_id=any") || !strings.Contains(string(res.body), `"user":"user-`) {
		t.Errorf("an assessor sees %d %s", res.StatusCode, res.body)
	}
}
