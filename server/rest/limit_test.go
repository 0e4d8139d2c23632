package rest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/rest"
)

// A request over a limit is refused in the words of its API, with what a client needs to come back in time, and is an event; what
// comes before is told when little is left.
func TestLimits(t *testing.T) {
	const far = 1e6
	for _, c := range []struct {
		limit  string
		limits rest.Limits
		passes int // of reads; each counts one
	}{
		{"ip", rest.Limits{IP: rest.Rate{PerSecond: 0.5, Burst: 12}}, 12},
		{"client", rest.Limits{Client: rest.Rate{PerSecond: 0.5, Burst: 12}, IP: rest.Rate{PerSecond: far, Burst: far}}, 12},
		{"subject", rest.Limits{Subject: rest.Rate{PerSecond: 0.5, Burst: 12}, Client: rest.Rate{PerSecond: far, Burst: far}}, 12},
	} {
		d := deploy(t, func(cfg *rest.Config) { cfg.Limits = c.limits; cfg.TLSClientNetworks = []string{"127.0.0.0/8"} })
		token := d.as("researcher")
		ask := func(path string, headers ...string) answer {
			return d.do("GET", path, token, "", append([]string{"X-Forwarded-For", "203.0.113.5"}, headers...)...)
		}
		near := 0
		for n := range c.passes {
			a := ask("/fhir/R4/Patient/p1")
			if a.StatusCode != http.StatusNotFound {
				t.Fatalf("%s: request %d: status %d", c.limit, n, a.StatusCode)
			}
			if a.Header.Get("RateLimit") != "" {
				near++
			}
		}
		if near < 2 || near > 6 {
			t.Errorf("%s: %d answers told what is left", c.limit, near)
		}
		for path, words := range map[string]string{"/fhir/R4/Patient/p1": `"code":"throttled"`, "/v1/roles": `"title":"Too Many Requests"`} {
			a := d.want(ask(path), http.StatusTooManyRequests)
			wait, err := strconv.Atoi(a.Header.Get("Retry-After"))
			if err != nil || wait < 1 || wait > 2 {
				t.Errorf("%s: Retry-After %q", c.limit, a.Header.Get("Retry-After"))
			}
			if p := a.Header.Get("RateLimit-Policy"); p != `"`+c.limit+`";q=12;w=24` {
				t.Errorf("%s: RateLimit-Policy %s", c.limit, p)
			}
			if r := a.Header.Get("RateLimit"); !strings.HasPrefix(r, `"`+c.limit+`";r=0;t=2`) {
				t.Errorf("%s: RateLimit %s", c.limit, r)
			}
			if !strings.Contains(string(a.body), words) {
				t.Errorf("%s: %s", c.limit, a.body)
			}
		}
		if c.limit != "ip" {
			continue
		}
		d.want(d.do("GET", "/fhir/R4/Patient/p1", token, "", "X-Forwarded-For", "203.0.113.6"), http.StatusNotFound)
		d.want(d.do("GET", "/healthz", "", "", "X-Forwarded-For", "203.0.113.5"), http.StatusOK)
		d.want(d.do("GET", "/v1/nothing", "", "", "X-Forwarded-For", "203.0.113.5"), http.StatusTooManyRequests)
		for range 30 { // nobody is limited for the proxy
			d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusNotFound)
		}
	}
}

// The first refusal is an event with its request's id; those like it are one event with their number.
func TestLimitEvents(t *testing.T) {
	d := deploy(t, func(cfg *rest.Config) { cfg.Limits.Subject = rest.Rate{PerSecond: 0.01, Burst: 1} })
	token := d.as("researcher")
	d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusNotFound)
	first := d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusTooManyRequests)
	for range 9 {
		d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusTooManyRequests)
	}
	e := d.eventsOf(first.Header.Get("X-Request-Id"))
	if len(e) != 1 || e[0].Event.Interaction != "read" || e[0].Event.Agent.User != "researcher-1" || e[0].Event.Outcome != audit.MinorFailure {
		t.Errorf("event of the first: %+v", e)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		e = d.events(audit.Query{Terms: []audit.Term{audit.Is(audit.FieldInteraction, "throttled")}})
		if len(e) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the others were not recorded")
		}
	}
	var counted struct {
		Limit   string
		Refused int
	}
	if err := json.Unmarshal(e[0].Event.Detail, &counted); err != nil || counted.Limit != "subject" || counted.Refused != 9 {
		t.Errorf("recorded %s, %v", e[0].Event.Detail, err)
	}
	if e[0].Event.Agent.User != "researcher-1" || e[0].Event.RequestID != "" || !strings.Contains(e[0].Event.OutcomeDesc, "9 refused") {
		t.Errorf("recorded %+v", e[0].Event)
	}
}

// What is much work counts for more, and a subject's refused requests do not count against the client that others use, too.
func TestLimitWeights(t *testing.T) {
	d := deploy(t, func(cfg *rest.Config) {
		cfg.Limits.Subject = rest.Rate{PerSecond: 0.01, Burst: 20}
		cfg.Limits.Client = rest.Rate{PerSecond: 0.01, Burst: 30}
	})
	token := func(who string) string {
		return d.issuer.token(t, d.base, "backend", "system/*.cruds", func(c map[string]any) { c["sub"] = who })
	}
	noisy, quiet := token("noisy"), token("quiet")
	for range 4 {
		d.want(d.do("GET", "/fhir/R4/Patient?_id=p1", noisy, ""), http.StatusOK)
	}
	for range 50 {
		d.want(d.do("GET", "/fhir/R4/Patient?_id=p1", noisy, ""), http.StatusTooManyRequests)
	}
	for range 2 {
		d.want(d.do("GET", "/fhir/R4/Patient?_id=p1", quiet, ""), http.StatusOK)
	}
	if a := d.want(d.do("GET", "/fhir/R4/Patient/p1", quiet, ""), http.StatusTooManyRequests); !strings.HasPrefix(a.Header.Get("RateLimit"), `"client"`) {
		t.Errorf("RateLimit %s", a.Header.Get("RateLimit"))
	}
}

// A client whose tokens are genuine and refused all the same is limited wherever it comes from; one that forgers name is not.
func TestFailuresOfAClient(t *testing.T) {
	d := deploy(t, func(cfg *rest.Config) {
		cfg.Limits.Failed = rest.Rate{PerSecond: 0.01, Burst: 10}
		cfg.TLSClientNetworks = []string{"127.0.0.0/8"}
	})
	from := func(n int) []string { return []string{"X-Forwarded-For", fmt.Sprintf("203.0.%d.5", n)} }
	claims := func(client string, expired bool) string {
		return d.issuer.token(t, d.base, "backend", "system/*.cruds", func(c map[string]any) {
			c["client_id"] = client
			if expired {
				c["iat"], c["exp"] = time.Now().Unix()-900, time.Now().Unix()-300
			}
		})
	}
	for n := range 10 {
		d.want(d.do("GET", "/fhir/R4/Patient/p1", claims("careless", true), "", from(n)...), http.StatusUnauthorized)
	}
	d.want(d.do("GET", "/fhir/R4/Patient/p1", claims("careless", true), "", from(100)...), http.StatusTooManyRequests)
	for n := range 30 {
		forged := claims("victim", true)
		forged = forged[:len(forged)-8] + "AAAAAAAA"
		d.want(d.do("GET", "/fhir/R4/Patient/p1", forged, "", from(n)...), http.StatusUnauthorized)
	}
	d.want(d.do("GET", "/fhir/R4/Patient/p1", claims("victim", true), "", from(101)...), http.StatusUnauthorized)
	d.want(d.do("GET", "/fhir/R4/Patient/p1", claims("victim", false), "", from(102)...), http.StatusNotFound)
}

// Whatever stands in the Authorization header, only the token that was minted opens anything, and nothing breaks.
func FuzzAuthorization(f *testing.F) {
	d := deploy(f, nil)
	d.patient("p1")
	token := d.as("backend")
	for _, seed := range []string{
		"", "Bearer", "Bearer ", "Bearer " + token, "bearer " + token, "Bearer " + token + "=", "Bearer " + token[1:], "Basic dTpw", "DPoP " + token,
		"Bearer\t" + token, "Bearer " + strings.Repeat(".", 64), `Bearer {"payload":"` + token, "Bearer eyJhbGciOiJub25lIn0.e30.AAAA", "Bearer " + token + ", Bearer " + token,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsAny(value, "\r\n\x00") || len(value) > 12<<10 {
			return // another request
		}
		here := *d
		here.t = t
		a := here.raw("GET /fhir/R4/Patient/p1 HTTP/1.1\r\nHost: x\r\nAuthorization: " + value + "\r\nConnection: close\r\n\r\n")
		minted := strings.EqualFold(strings.TrimLeft(value, " "), "Bearer "+token) && strings.HasSuffix(value, token)
		switch {
		case minted && a.StatusCode != http.StatusOK:
			t.Errorf("%q: %d", value, a.StatusCode)
		case !minted && a.StatusCode != http.StatusUnauthorized && a.StatusCode != http.StatusBadRequest:
			t.Errorf("%q: %d", value, a.StatusCode)
		}
		checkEveryAnswer(t, "fuzzed", a)
	})
}

// A form is parsed up to a size only, by whomever it comes.
func TestFormSize(t *testing.T) {
	d := deploy(t, nil)
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	large := strings.Repeat("a&", 64<<10)
	d.want(d.do("POST", "/fhir/R4/Patient/_search", d.as("backend"), large, form...), http.StatusRequestEntityTooLarge)
	d.want(d.do("POST", "/fhir/R4/Patient/_search", "", large, form...), http.StatusUnauthorized) // not even read
	d.want(d.do("POST", "/fhir/R4/Patient/_search", "", large[:60<<10], form...), http.StatusUnauthorized)
	d.want(d.do("POST", "/fhir/R4/Patient/_search", d.as("backend"), "_id=p1", form...), http.StatusOK)
}
