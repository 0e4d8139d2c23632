package main

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/server/rest"
)

// reader is a token of a caller who may read the chart, of its own session.
func (x *target) reader(over map[string]any) []string {
	return []string{"Bearer " + x.forger.token(x.good(over))}
}

// signedBy is the same with a named key.
func (x *target) signedBy(kid, alg string) []string {
	return []string{"Bearer " + x.forger.sign(`{"alg":"`+alg+`","kid":"`+kid+`","typ":"at+jwt"}`, x.good(nil), kid, alg)}
}

// refreshed makes the verifier fetch the keys anew: an unknown kid asks for it, and time enough has passed since the last one did.
func (x *target) refreshed(t *testing.T, number int) {
	t.Helper()
	x.later(70 * time.Second)
	before := x.forger.fetches.Load()
	x.attack(t, attack{number: number, name: "unknown kid", want: answerT, reason: "kid is unknown",
		auth: []string{"Bearer " + x.forger.sign(`{"alg":"ES256","kid":"`+plantedText+`","typ":"at+jwt"}`, x.good(nil), "es", "ES256")}})
	for deadline := time.Now().Add(5 * time.Second); x.forger.fetches.Load() == before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("case %d: the keys were not fetched anew", number)
		}
	}
}

// Cases 19, 36, 38 to 42 and 48: what the issuer's keys go through.
func TestAttacksOnKeys(t *testing.T) {
	x := openTarget(t, rest.Limits{}, nil)
	f := x.forger

	before := f.fetches.Load()
	for n := range 300 {
		x.attack(t, attack{number: 19, name: "many unknown kids", want: answerT, reason: "kid is unknown",
			auth: []string{"Bearer " + f.sign(fmt.Sprintf(`{"alg":"ES256","kid":"%s-%d","typ":"at+jwt"}`, plantedText, n), x.good(nil), "es", "ES256")}})
	}
	if n := f.fetches.Load() - before; n > 3 {
		t.Errorf("case 19: %d fetches of the keys", n)
	}

	// 36: verified for one audience, a hit of the cache is none for another.
	for range 2 {
		here := x.reader(nil)
		x.attack(t, attack{number: 36, name: "at home", auth: here, want: "200", reason: `"read"`})
		x.attack(t, attack{number: 36, name: "on routes of another audience", path: "/v1/audit/events", auth: here, want: answerT, reason: "aud"})
	}
	officer := []string{"Bearer " + f.token(f.claims(x.officers, "officer", nil))}
	x.attack(t, attack{number: 36, name: "the other way round, warmed up", path: "/v1/audit/checkpoints", auth: officer, want: "200", reason: "audit-checkpoints"})
	x.attack(t, attack{number: 36, name: "the other way round", auth: officer, want: answerT, reason: "aud"})

	// 38 to 41: documents that must not be taken over, or not whole.
	weak := func(name string, key map[string]any) (string, http.HandlerFunc) {
		key["kid"] = "weak"
		body := f.document(key)
		return name, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }
	}
	serve := func(body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }
	}
	many := make([]map[string]any, 10_000)
	for i := range many {
		many[i] = map[string]any{"kty": "EC", "kid": fmt.Sprint("k", i)}
	}

	for _, c := range []struct {
		number int
		name   string
		answer http.HandlerFunc
	}{
		{38, "10,000 keys", serve(f.document(many...))},
		{38, "5 MiB", serve(append(f.document(), bytes.Repeat([]byte(" "), 5<<20)...))},
		{38, "redirect to http", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://localhost:1/keys", http.StatusFound)
		}},
		{38, "redirect to the metadata service", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		}},
		{39, "one kid for two keys", serve(f.document(map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(make([]byte, 32)), "kid": "es", "alg": "EdDSA"}))},
		{41, "no keys", serve([]byte(`{"keys":[]}`))},
		{41, "HTML", serve([]byte(`<html>maintenance</html>`))},
		{41, "an error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }},
	} {
		f.answers(c.answer)
		x.refreshed(t, c.number)
		x.attack(t, attack{number: c.number, name: c.name + ": the old keys stay", auth: x.reader(nil), want: "200", reason: `"read"`})

	}
	for _, c := range []struct {
		name string
		key  map[string]any
	}{
		{"RSA 1024", map[string]any{"kty": "RSA", "alg": "RS256", "e": "AQAB", "n": b64(bytes.Repeat([]byte{0xff}, 128))}},
		{"e=3", map[string]any{"kty": "RSA", "alg": "RS256", "e": "Aw", "n": f.public["rs"]["n"]}},
		{"off the curve", map[string]any{"kty": "EC", "crv": "P-256", "alg": "ES256", "x": b64(bytes.Repeat([]byte{1}, 32)), "y": b64(bytes.Repeat([]byte{2}, 32))}},
		{"symmetric", map[string]any{"kty": "oct", "alg": "HS256", "k": b64(bytes.Repeat([]byte{1}, 32))}},
		{"private", map[string]any{"kty": "RSA", "alg": "RS256", "e": "AQAB", "n": f.public["rs"]["n"], "d": plantedText}},
	} {
		name, answer := weak(c.name, c.key)
		f.answers(answer)
		x.refreshed(t, 40)
		header := `{"alg":"RS256","kid":"weak","typ":"at+jwt"}`
		x.attack(t, attack{number: 40, name: name, auth: []string{"Bearer " + f.sign(header, x.good(nil), "rs", "RS256")}, want: answerT, reason: "kid is unknown"})
		x.attack(t, attack{number: 40, name: name + ": the others stay", auth: x.reader(nil), want: "200", reason: `"read"`})
	}

	// 42: a key that is withdrawn takes its cached tokens with it.
	f.answers(nil)
	x.refreshed(t, 42)
	ed := x.signedBy("ed", "EdDSA")
	x.attack(t, attack{number: 42, name: "cached", auth: ed, want: "200", reason: `"read"`})
	f.withdraw("ed")
	x.refreshed(t, 42)
	x.attack(t, attack{number: 42, name: "withdrawn", auth: ed, want: answerT, reason: "kid is unknown"})
	x.settle(t)

	// 48: an issuer that hangs costs nobody time; one that fails is done without for a day.
	release := make(chan struct{})
	t.Cleanup(sync1(release))
	f.answers(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	began := time.Now()
	x.attack(t, attack{number: 48, name: "unknown kid while the issuer hangs", want: answerT, reason: "kid is unknown",
		auth: []string{"Bearer " + f.sign(`{"alg":"ES256","kid":"new","typ":"at+jwt"}`, x.good(nil), "es", "ES256")}})
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("case 48: an unknown kid waited %v for an issuer that hangs", took)
	}
	var worst time.Duration
	for range 50 {
		began := time.Now()
		x.attack(t, attack{number: 48, name: "known kid while the issuer hangs", auth: x.reader(nil), want: "200", reason: `"read"`})
		worst = max(worst, time.Since(began))
	}
	if worst > time.Second {
		t.Errorf("case 48: a reader waited %v for an issuer that hangs", worst)
	}
	sync1(release)()
	f.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	x.later(22*time.Hour + 50*time.Minute)
	x.attack(t, attack{number: 48, name: "23 hours without the issuer", auth: x.reader(nil), want: "200", reason: `"read"`})
	x.settle(t)
	x.later(2 * time.Hour)
	x.attack(t, attack{number: 48, name: "25 hours without the issuer", auth: x.reader(nil), want: answerX, reason: "keys are unavailable"})
	f.answers(nil)
	x.later(2 * time.Minute)
	x.attack(t, attack{number: 48, name: "the issuer is back", auth: x.reader(nil), want: "200", reason: `"read"`})
	x.settle(t)
}

// sync1 closes a channel that may be closed.
func sync1(c chan struct{}) func() {
	return func() {
		select {
		case <-c:
		default:
			close(c)
		}
	}
}

// Case 49: while the database is away charts are not served, and everything that needs none is; when it is back, so are they.
func TestAttackDatabaseAway(t *testing.T) {
	x := openTarget(t, rest.Limits{}, nil)
	reader := x.reader(nil)
	x.attack(t, attack{number: 49, name: "before", auth: reader, want: "200", reason: `"read"`})
	x.network.turn(refused)
	x.attack(t, attack{number: 49, name: "a chart", auth: reader, want: answerX})
	x.attack(t, attack{number: 49, name: "a token that is not cached", auth: x.reader(nil), want: answerX})
	x.attack(t, attack{number: 49, name: "no token", want: answerN, reason: "no bearer token"})
	x.attack(t, attack{number: 49, name: "health", path: "/healthz", want: "200", events: -1})
	x.attack(t, attack{number: 49, name: "metadata", path: "/fhir/R4/metadata", want: "200", events: -1})
	x.network.turn(fair)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if res := x.send(t, x.bytes(attack{auth: reader}, "back")); res.StatusCode == 200 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("case 49: still %s after the database was back\n%s", res.Status, res.body)
		}
	}
	x.settle(t)
}

// No attack makes the server allocate more than 64 KiB: the cases that are large in one way or another, measured against the same
// request with a token that is refused for its first byte.
func TestAttackMemory(t *testing.T) {
	x := openTarget(t, rest.Limits{}, nil)
	f := x.forger
	long := func(n int) string { return strings.Repeat("A", n) }
	allocated := func(auth string) uint64 {
		text := x.bytes(attack{auth: []string{"Bearer " + auth}}, "memory")
		var least uint64 = 1 << 62
		for range 8 { // the server does other things, too
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			x.send(t, text)
			runtime.ReadMemStats(&after)
			least = min(least, after.TotalAlloc-before.TotalAlloc)
		}
		return least
	}
	base := allocated(long(31))
	for _, c := range []struct {
		number int
		name   string
		token  string
	}{
		{6, "8,192 bytes", long(8192)},
		{6, "17 KiB", long(17 << 10)},
		{7, "8,000 dots", strings.Repeat(".", 8000)},
		{18, "a long kid", f.sign(`{"alg":"ES256","kid":"`+long(4000)+`","typ":"at+jwt"}`, x.good(nil), "es", "ES256")},
		{37, "deep", f.token(`{"x":` + strings.Repeat("[", 2500) + strings.Repeat("]", 2500) + `}`)},
		{37, "many claims", f.token(`{"iss":"` + f.issuer + `"` + manyClaims(500) + `}`)},
		{37, "many roles", f.token(x.good(map[string]any{"roles": slices.Repeat([]string{"a"}, 1200)}))},
	} {
		if len(c.token) > 8192 && c.number != 6 {
			t.Fatalf("case %d, %s: %d bytes do not pass the length", c.number, c.name, len(c.token))
		}
		if n := allocated(c.token); n > base+64<<10 {
			t.Errorf("case %d, %s: %d bytes allocated, %d for a plain refusal", c.number, c.name, n, base)
		}
	}
}

func manyClaims(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"c%d":%d`, i, i)
	}
	return b.String()
}
