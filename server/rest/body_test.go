package rest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/server/rest"
)

// Who shows no token that stands is not waited for until a large body has come, let alone given memory for it.
func TestBodiesOfStrangers(t *testing.T) {
	d := deploy(t, nil)
	const size = 8 << 20
	forged := d.as("backend")
	forged = forged[:len(forged)-8] + "AAAAAAAA"
	ask := func(token string, lines ...string) answer {
		head := "POST /fhir/R4/Patient HTTP/1.1\r\nHost: " + d.addr + "\r\nContent-Type: application/fhir+json\r\n"
		if token != "" {
			head += "Authorization: Bearer " + token + "\r\n"
		}
		return d.raw(head + strings.Join(lines, "\r\n") + "\r\n\r\n" + "{")
	}
	whole := fmt.Sprintf("Content-Length: %d", size) // which never comes
	for _, c := range []struct {
		name, token string
		status      int
	}{
		{"none", "", http.StatusUnauthorized},
		{"no token at all", strings.Repeat("x", 40), http.StatusUnauthorized},
		{"forged", forged, http.StatusUnauthorized},
	} {
		a := ask(c.token, whole)
		if a.StatusCode != c.status {
			t.Errorf("%s: status %d", c.name, a.StatusCode)
		}
		checkEveryAnswer(t, c.name, a)
		if events := d.eventsOf(a.Header.Get("X-Request-Id")); len(events) != 1 {
			t.Errorf("%s: %d events", c.name, len(events))
		}
	}
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<17, strings.Repeat("x", 1<<17))
	if a := d.raw("POST /fhir/R4/Patient HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + forged + "\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk); a.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("chunked: status %d", a.StatusCode)
	}
	large := `{"resourceType":"Patient","name":[{"family":"` + strings.Repeat("x", 1<<17) + `"}]}`
	d.want(d.do("POST", "/fhir/R4/Patient", d.as("backend"), large), http.StatusCreated) // a token that comes for the first time
	d.want(d.do("POST", "/fhir/R4/Patient", "", strings.Repeat("x", 1<<10)), http.StatusUnauthorized)
}

// A flood of forged tokens before large bodies is not looked at for ever; a token that comes for the first time meanwhile is told to
// come back, and then it is known.
func TestForgedTokensBeforeLargeBodies(t *testing.T) {
	d := deploy(t, func(c *rest.Config) {
		c.Limits.Failed = rest.Rate{PerSecond: 0.01, Burst: 20}
		c.TLSClientNetworks = []string{"127.0.0.0/8"}
	})
	forged := d.as("backend")
	forged = forged[:len(forged)-8] + "AAAAAAAA"
	body := `{"resourceType":"Patient","name":[{"family":"` + strings.Repeat("x", 1<<17) + `"}]}`
	ask := func(token, from string) answer {
		return d.do("POST", "/fhir/R4/Patient", token, body, "X-Forwarded-For", from)
	}
	for n := range 6 {
		ask(forged, fmt.Sprintf("203.0.%d.5", n))
	}
	refused := d.verifier.Stats().Refused
	d.want(ask(forged, "198.51.100.1"), http.StatusUnauthorized)
	if n := d.verifier.Stats().Refused - refused; n != 1 {
		t.Errorf("a forged token was verified %d times", n)
	}
	token := d.as("backend")
	d.want(ask(token, "198.51.100.1"), http.StatusServiceUnavailable)
	d.want(ask(token, "198.51.100.1"), http.StatusCreated)
}
