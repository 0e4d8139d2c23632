package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/rest"
)

// The attack cases of notes/auth.md, section 4, by their numbers, over a raw TCP connection to a server with everything real behind
// it. What is planted in a hostile request shows up in no answer, no log line and no event.
const plantedText = "Zyxwvutsrq"

// Answers, in the letters of the notes. The realm is fixed.
const (
	answerN = "N" // 401, no credentials
	answerT = "T" // 401 invalid_token
	answerQ = "Q" // 400 invalid_request
	answerS = "S" // 403 insufficient_scope; with a scope behind it where the request tells which
	answerU = "U" // 401, another sign-in is needed (RFC 9470)
	answerD = "D" // 401 to a token that is bound to a key (RFC 9449)
	answerP = "P" // the same, for a bad proof
	answerX = "X" // 503 with Retry-After
)

// answers says what a letter stands for; a plain status stands for itself, without a challenge.
func answers(letter string) (status int, challenge string) {
	switch letter {
	case answerN:
		return 401, `Bearer realm="chartkeep", DPoP realm="chartkeep", algs="` + strings.Join(auth.ProofAlgorithms(), " ") + `"`
	case answerT:
		return 401, `Bearer realm="chartkeep", error="invalid_token"`
	case answerQ:
		return 400, `Bearer realm="chartkeep", error="invalid_request"`
	case answerS:
		return 403, `Bearer realm="chartkeep", error="insufficient_scope"`
	case answerX:
		return 503, ""
	case answerU:
		return 401, `Bearer realm="chartkeep", error="insufficient_user_authentication", max_age="300"`
	case answerD:
		return 401, `DPoP realm="chartkeep", error="invalid_token", algs="` + strings.Join(auth.ProofAlgorithms(), " ") + `"`
	case answerP:
		return 401, `DPoP realm="chartkeep", error="invalid_dpop_proof", algs="` + strings.Join(auth.ProofAlgorithms(), " ") + `"`
	}
	if scope, ok := strings.CutPrefix(letter, answerS+" "); ok {
		return 403, `Bearer realm="chartkeep", error="insufficient_scope", scope="` + scope + `"`
	}
	fmt.Sscan(letter, &status)
	return status, ""
}

// attack is one request and what becomes of it. It is sent byte for byte.
type attack struct {
	number int // of the notes
	name   string
	auth   []string // Authorization headers
	lines  []string // other header lines
	method string   // GET
	path   string   // a chart that a backend service may read
	body   string
	raw    string // instead of all that: the request's bytes, in which %s is its id

	want   string // a letter, or a status
	reason string // of the one event, for officers; where maps have no order, one of several
	events int    // when it is not one; -1 for none, -2 for one or more
}

// target is a server under attack.
type target struct {
	*laboratory
	forger   *forger
	verifier *auth.Verifier
	api      *api
	addr     string
	base     string // of the FHIR API, and what aud must contain there
	officers string // what aud must contain under /v1
	offset   *atomic.Int64
	shots    int
	fired    []shot
	bodies   map[string]string // one for each kind of refusal
}

// shot is an attack that was answered, until its event is looked up.
type shot struct {
	attack
	id string
}

// openTarget starts a server whose tokens the test signs itself.
func openTarget(t *testing.T, limits rest.Limits, change func(*auth.VerifierConfig)) *target {
	t.Helper()
	return targetOn(t, openLaboratory(t, audit.Process, ""), limits, change)
}

// targetOn starts one on rooms that are there.
func targetOn(t *testing.T, lab *laboratory, limits rest.Limits, change func(*auth.VerifierConfig)) *target {
	t.Helper()
	x := &target{laboratory: lab, bodies: map[string]string{}, offset: new(atomic.Int64)}
	x.forger = newForger(t, x.now)
	x.serve(t, limits, change)
	return x
}

// serve starts the HTTP surface on the target's rooms; what aud must contain is that of the first instance.
func (x *target) serve(t *testing.T, limits rest.Limits, change func(*auth.VerifierConfig)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x.addr = l.Addr().String()
	if x.base == "" {
		x.base, x.officers = "http://"+x.addr+"/fhir/R4", "http://"+x.addr+"/v1"
	}
	cfg := auth.VerifierConfig{
		Issuers: []auth.IssuerConfig{{
			Issuer: x.forger.issuer, Audience: x.base, Audiences: map[auth.Profile]string{auth.ProfileOfficers: x.officers},
			JWKSURL: x.forger.server.URL, AssertsSignIn: true, RolesInToken: true,
		}},
		Insecure: true, Now: x.now, Logger: x.sink.Logger, Revocations: x.rooms.revoked, Sessions: x.rooms.sessions,
	}
	if change != nil {
		change(&cfg)
	}
	if x.verifier, err = auth.NewVerifier(cfg); err != nil {
		t.Fatal(err)
	}
	if x.api, err = startAPI(t.Context(), x.rooms, surface{
		base: x.base, records: x.rooms.records, levels: phi.Levels{Disclosure: audit.Process, Other: audit.Process}, limits: limits, verifier: x.verifier,
		issuer: rest.Issuer{Issuer: x.forger.issuer, JWKS: x.forger.server.URL},
	}, l, x.sink.Logger); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.api.close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if err := awaitReady(t.Context(), "http://"+x.addr+"/readyz"); err != nil {
		t.Fatal(err)
	}
}

// now is the verifier's clock.
func (x *target) now() time.Time { return time.Now().Add(time.Duration(x.offset.Load())) }

// later moves the verifier's clock.
func (x *target) later(d time.Duration) { x.offset.Add(int64(d)) }

func (x *target) chart() string { return "/fhir/R4/Patient/" + x.patients[0] }

// good is the claims of a caller who may do what he asks for.
func (x *target) good(over map[string]any) string { return x.forger.claims(x.base, "backend", over) }

// bytes are the request as it is sent.
func (x *target) bytes(a attack, id string) string {
	if a.raw != "" {
		return strings.Replace(a.raw, "%s", id, 1)
	}
	if a.method == "" {
		a.method = "GET"
	}
	if a.path == "" {
		a.path = x.chart()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nX-Request-Id: %s\r\n", a.method, a.path, x.addr, id)
	for _, v := range a.auth {
		b.WriteString("Authorization: " + v + "\r\n")
	}
	for _, l := range a.lines {
		b.WriteString(l + "\r\n")
	}
	if a.body != "" || a.method == "POST" || a.method == "PUT" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(a.body))
	}
	b.WriteString("\r\n" + a.body)
	return b.String()
}

// send writes bytes from a network of its own, so that the limits of one case are not another's, and reads the answer.
func (x *target) send(t *testing.T, text string) answered {
	t.Helper()
	x.shots++
	return x.sendFrom(t, net.IPv4(127, byte(1+x.shots>>8), byte(x.shots), 7), text)
}

func (x *target) sendFrom(t *testing.T, from net.IP, text string) answered {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: 10 * time.Second}
	conn, err := dialer.DialContext(t.Context(), "tcp", x.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { _, _ = io.WriteString(conn, text) }() // what is refused early is not read to its end
	method, _, _ := strings.Cut(text, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return answered{res, body}
}

// attack sends a case and checks the answer; its event is looked up by settle.
func (x *target) attack(t *testing.T, a attack) answered {
	t.Helper()
	id := fmt.Sprintf("attack-%d-%d", a.number, x.shots)
	res := x.send(t, x.bytes(a, id))
	if got := res.Header.Get("X-Request-Id"); got != id {
		if a.want != "431" && a.want != "400" {
			t.Errorf("case %d, %s: X-Request-Id %q, want %q", a.number, a.name, got, id)
		}
		id = got // of a request whose headers could not be read
	}
	x.check(t, a, res)
	x.fired = append(x.fired, shot{a, id})
	return res
}

// check holds an answer against what the case wants.
func (x *target) check(t *testing.T, a attack, res answered) {
	t.Helper()
	where := fmt.Sprintf("case %d, %s", a.number, a.name)
	status, challenge := answers(a.want)
	if res.StatusCode != status {
		t.Errorf("%s: status %d, want %d\n%s", where, res.StatusCode, status, res.body)
	}
	if got := strings.Join(res.Header.Values("WWW-Authenticate"), ", "); status >= 400 && status != 503 && got != challenge {
		t.Errorf("%s: challenge %q, want %q", where, got, challenge)
	}
	if status == 503 && res.Header.Get("Retry-After") == "" {
		t.Errorf("%s: 503 without Retry-After", where)
	}
	for name, values := range res.Header {
		if strings.Contains(strings.Join(values, ""), plantedText) {
			t.Errorf("%s: header %s holds what was planted", where, name)
		}
	}
	if bytes.Contains(res.body, []byte(plantedText)) {
		t.Errorf("%s: the body holds what was planted: %s", where, res.body)
	}
	if status < 400 || status == 422 || len(res.body) == 0 { // what is wrong with the content is said
		return
	}
	body := strings.ReplaceAll(string(res.body), res.Header.Get("X-Request-Id"), "ID")
	if id := res.Header.Get("X-Decision-Id"); id != "" {
		body = strings.ReplaceAll(body, id, "DECISION")
	}
	kind := fmt.Sprint(a.want[:1], " ", status, " ", res.Header.Get("Content-Type"))
	if was, seen := x.bodies[kind]; !seen {
		x.bodies[kind] = body
	} else if was != body {
		t.Errorf("%s: the body is another than that of an earlier case with the same answer:\n%s\n%s", where, body, was)
	}
}

// settle looks up the events of everything that was fired since it was called last: one for each, that of a refusal with the precise reason.
func (x *target) settle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := x.rooms.log.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	officer := x.forger.token(x.forger.claims(x.officers, "officer", nil))
	for _, s := range x.fired {
		where := fmt.Sprintf("case %d, %s", s.number, s.name)
		ask := x.bytes(attack{path: "/v1/audit/events?request_id=" + s.id, auth: []string{"Bearer " + officer}}, "settle-"+s.id)
		res := x.send(t, ask)
		for deadline := time.Now().Add(20 * time.Second); res.StatusCode == 503 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			res = x.send(t, ask) // the database was away
		}
		var page struct{ Events []map[string]any }
		if err := json.Unmarshal(res.body, &page); err != nil || res.StatusCode != 200 {
			t.Fatalf("%s: looking for its event: %s %s", where, res.Status, res.body)
		}
		want := s.events
		if want == 0 {
			want = 1
		}
		if want == -2 && len(page.Events) == 0 || want != -2 && len(page.Events) != max(want, 0) {
			t.Errorf("%s: %d events, want %d: %s", where, len(page.Events), max(want, 0), res.body)
		}
		for _, e := range page.Events {
			text := string(jsonOf(e))
			if strings.Contains(text, plantedText) {
				t.Errorf("%s: the event holds what was planted: %s", where, text)
			}
			if !slices.ContainsFunc(strings.Split(s.reason, "|"), func(r string) bool { return strings.Contains(text, r) }) {
				t.Errorf("%s: the event does not say %q: %s", where, s.reason, text)
			}
			if status, _ := answers(s.want); status >= 400 && e["outcome"] == 0.0 {
				t.Errorf("%s: the event says success: %s", where, text)
			}
		}
	}
	x.fired = nil
	log, err := os.ReadFile(filepath.Join(x.dir, demoLog))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(log, []byte(plantedText)) {
		t.Error("the log holds what was planted")
	}
}

// attackLimits are those that serve starts with.
func attackLimits() rest.Limits {
	return rest.Limits{
		IP: rest.Rate{PerSecond: 1000, Burst: 5000}, Client: rest.Rate{PerSecond: 1000, Burst: 5000},
		Subject: rest.Rate{PerSecond: 200, Burst: 2000}, Failed: rest.Rate{PerSecond: 20, Burst: 100},
	}
}

// TestUnderAttack is every case that leaves the deployment as it was, on one deployment, each with a server of its own.
func TestUnderAttack(t *testing.T) {
	lab := openLaboratory(t, audit.Process, "")
	for _, c := range []struct {
		name string
		run  func(*testing.T, *laboratory)
	}{
		{"requests", testRequests}, {"ambiguous requests", testAmbiguous}, {"keys", testKeys}, {"access", testAccess}, {"memory", testMemory},
		{"forged in the same network", testForgedInTheSameNetwork}, {"forged flood", testForgedFlood}, {"noisy client", testNoisyClient},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, lab) })
	}
}

// Cases 1 to 35, 37, 47, 58 and 59: one request each.
func testRequests(t *testing.T, lab *laboratory) {
	x := targetOn(t, lab, attackLimits(), nil)
	for _, a := range x.attacks() {
		x.attack(t, a)
	}
	x.settle(t)
}

// attacks are the cases that need no history.
func (x *target) attacks() []attack {
	f := x.forger
	valid := f.token(x.good(nil))
	bearer := func(token string) []string { return []string{"Bearer " + token} }
	now := f.now().Unix()
	// with is a well-signed token with claims replaced; raw has the claims as they are written.
	with := func(over map[string]any) []string { return bearer(f.token(x.good(over))) }
	raw := func(claims string) []string { return bearer(f.token(claims)) }
	edited := func(old, new string) []string { return raw(strings.Replace(x.good(nil), old, new, 1)) }
	headed := func(h string) []string { return bearer(f.sign(h, x.good(nil), "es", "ES256")) }
	parts := strings.Split(valid, ".")
	long := func(n int) string { return strings.Repeat("A", n) }

	list := []attack{
		{1, "no header", nil, nil, "", "", "", "", answerN, "no bearer token", 0},
	}
	add := func(number int, name string, auth []string, want, reason string) {
		list = append(list, attack{number: number, name: name, auth: auth, want: want, reason: reason})
	}
	add(1, "Basic", []string{"Basic dXNlcjpwYXNz"}, answerN, "no bearer token")
	add(1, "scheme only", []string{"Bearer"}, answerN, "no bearer token")
	add(1, "scheme and a space", []string{"Bearer "}, answerN, "no bearer token")
	add(2, "two headers", []string{"Bearer " + valid, "Bearer " + valid}, answerQ, "more than one")
	add(2, "two headers, one of another scheme", []string{"Basic dXNlcjpwYXNz", "Bearer " + valid}, answerQ, "more than one")
	add(2, "two credentials in one", []string{"Bearer " + valid + ", Bearer " + valid}, answerQ, "more than one")
	add(3, "tab", []string{"Bearer\t" + valid}, answerT, "one space")
	add(3, "two spaces", []string{"Bearer  " + valid}, answerT, "alphabet")
	add(3, "non-breaking space", []string{"Bearer \u00a0" + valid}, answerT, "alphabet")
	add(3, "NUL", []string{"Bearer \x00" + valid}, "400", "malformed")
	add(3, "NUL at the end", []string{"Bearer " + valid + "\x00"}, "400", "malformed")
	add(4, "lower case", []string{"bearer " + valid}, "200", `"read"`)
	add(6, "a byte too many", bearer(long(8193)), answerT, "length")
	add(7, "8,000 dots", bearer(strings.Repeat(".", 8000)), answerT, "three parts|alphabet")
	add(7, "two parts", bearer(parts[0]+"."+parts[1]), answerT, "three parts")
	add(7, "four parts", bearer(valid+".AAAA"), answerT, "alphabet")
	add(7, "trailing dot", bearer(valid+"."), answerT, "alphabet")
	for _, alg := range []string{"none", "nOnE", "HS256", "RS256", "ES384"} {
		add(8, "alg "+alg, headed(`{"alg":"`+alg+`","kid":"es","typ":"at+jwt"}`), answerT, "alg is not the key's")
	}
	add(8, "alg none without a signature", bearer(b64([]byte(`{"alg":"none","kid":"es","typ":"at+jwt"}`))+"."+parts[1]+"."), answerT, "part is empty")
	add(8, "alg absent", headed(`{"kid":"es","typ":"at+jwt"}`), answerT, "alg is not the key's")
	add(8, "empty signature", bearer(parts[0]+"."+parts[1]+"."), answerT, "part is empty")
	for _, c := range f.symmetric() {
		signed := b64([]byte(`{"alg":"HS256","kid":"rs","typ":"at+jwt"}`)) + "." + b64([]byte(x.good(nil)))
		add(9, "HS256 keyed with "+c.name, bearer(signed+"."+b64(c.mac(signed))), answerT, "alg is not the key's")
	}
	add(10, "PS256 by the RS256 key", bearer(f.sign(`{"alg":"PS256","kid":"rs","typ":"at+jwt"}`, x.good(nil), "rs", "PS256")), answerT, "alg is not the key's")
	add(10, "a PS256 signature said to be RS256", bearer(f.sign(`{"alg":"RS256","kid":"rs","typ":"at+jwt"}`, x.good(nil), "rs", "PS256")), answerT, "signature")
	add(11, "ALG", headed(`{"ALG":"ES256","kid":"es","typ":"at+jwt"}`), answerT, "header")
	add(11, "two algs", headed(`{"alg":"none","alg":"ES256","kid":"es","typ":"at+jwt"}`), answerT, "header")
	for _, h := range []string{`"jku":"http://127.0.0.1/`, `"x5u":"http://127.0.0.1/`, `"x5t":"`, `"zip":"DEF`} {
		add(12, strings.SplitN(h, `"`, 3)[1], headed(`{"alg":"ES256","kid":"es","typ":"at+jwt",`+h+plantedText+`"}`), answerT, "header")
	}
	add(12, "embedded jwk", headed(`{"alg":"ES256","kid":"es","typ":"at+jwt","jwk":`+string(jsonOf(f.public["es"]))+`}`), answerT, "header")
	add(12, "x5c", headed(`{"alg":"ES256","kid":"es","typ":"at+jwt","x5c":["`+plantedText+`"]}`), answerT, "header")
	add(13, "crit", headed(`{"alg":"ES256","kid":"es","typ":"at+jwt","crit":["`+plantedText+`"]}`), answerT, "header")
	add(13, "empty crit", headed(`{"alg":"ES256","kid":"es","typ":"at+jwt","crit":[]}`), answerT, "header")
	add(14, "b64=false", bearer(f.unencoded(x.good(nil))), answerT, "alphabet|header|three parts")
	add(15, "JWE", bearer("eyJhbGciOiJSU0EtT0FFUCJ9."+long(64)+"."+long(16)+"."+long(64)+"."+long(22)), answerT, "alphabet")
	add(16, "flattened", bearer(`{"payload":"`+parts[1]+`","protected":"`+parts[0]+`","signature":"`+parts[2]+`"}`), answerT, "alphabet")
	add(16, "general", bearer(`{"payload":"`+parts[1]+`"}`), answerT, "alphabet")
	add(17, "a token in a token", bearer(f.sign(`{"alg":"ES256","kid":"es","typ":"at+jwt"}`, valid, "es", "ES256")), answerT, "claims|iss")
	add(17, "cty JWT", headed(`{"alg":"ES256","kid":"es","typ":"at+jwt","cty":"JWT"}`), answerT, "header")
	for name, kid := range map[string]string{
		"a path": `"../../dev/null"`, "SQL": `"' OR '1'='1' --` + plantedText + `"`, "a number": `7`, "null": `null`, "empty": `""`, "very long": `"` + long(5000) + `"`,
	} {
		reason := "kid|header"
		add(18, "kid is "+name, headed(`{"alg":"ES256","kid":`+kid+`,"typ":"at+jwt"}`), answerT, reason)
	}
	add(18, "no kid", headed(`{"alg":"ES256","typ":"at+jwt"}`), answerT, "kid")
	signed := parts[0] + "." + parts[1]
	order, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
	one := make([]byte, 32)
	one[31] = 1
	for name, sig := range map[string][]byte{
		"r=s=0": make([]byte, 64), "r=n": append(order.Bytes(), one...), "s=n": append(bytes.Clone(one), order.Bytes()...),
		"DER": f.der(signed), "63 bytes": make([]byte, 63), "65 bytes": append(f.signature(signed, "es", "ES256"), 0),
	} {
		add(20, name, bearer(signed+"."+b64(sig)), answerT, "signature")
	}
	rs := f.sign(`{"alg":"RS256","kid":"rs","typ":"at+jwt"}`, x.good(nil), "rs", "RS256")
	add(21, "the same bytes spelt otherwise", bearer(respelt(rs)), answerT, "canonical")
	add(22, "padding", bearer(valid+"=="), answerT, "alphabet")
	for name, brk := range map[string]string{"LF": "\n", "CR": "\r", "CRLF": "\r\n", "CRLF and a space": "\r\n "} {
		list = append(list, attack{number: 23, name: name + " in base64", auth: []string{"Bearer " + parts[0] + "." + parts[1][:8] + brk + parts[1][8:] + "." + parts[2]}, lines: []string{"X-Last: 1"}, want: "400", reason: "malformed"})
	}
	add(24, "an array", raw(`["`+plantedText+`"]`), answerT, "claims|iss")
	add(24, "bytes after the object", raw(x.good(nil)+`{}`), answerT, "claims|iss")
	add(25, "sub twice", edited(`{`, `{"sub":"`+plantedText+`",`), answerT, "claims|iss")
	add(26, "EXP beside exp", edited(`{`, fmt.Sprintf(`{"EXP":%d,"Exp":%d,`, now+600, now+600)), "200", `"read"`)
	add(26, "EXP beside an expired exp", raw(strings.Replace(x.good(map[string]any{"exp": now - 600, "iat": now - 900}), `{`, fmt.Sprintf(`{"EXP":%d,`, now+600), 1)), answerT, "expired")
	add(27, "not UTF-8", edited(`"sub":"backend-1"`, "\"sub\":\"\xff\xfe\""), answerT, "claims|iss")
	add(27, "an escaped NUL", edited(`"sub":"backend-1"`, `"sub":"a\u0000b"`), answerT, "sub")
	add(28, "no sub", with(map[string]any{"sub": nil}), answerT, "sub")
	add(28, "sub is a number", with(map[string]any{"sub": 7}), answerT, "claims")
	add(28, "sub is empty", with(map[string]any{"sub": ""}), answerT, "sub")
	exp := fmt.Sprintf(`"exp":%d`, now+600)
	for name, value := range map[string]string{
		"missing": `"x":1`, "null": `"exp":null`, "a string": fmt.Sprintf(`"exp":"%d"`, now+600), "1e30": `"exp":1e30`, "1e400": `"exp":1e400`,
		"negative": `"exp":-1`, "a fraction": fmt.Sprintf(`"exp":%d.5`, now+600),
	} {
		claims := x.good(map[string]any{"exp": now + 600})
		add(29, "exp "+name, raw(strings.Replace(claims, exp, value, 1)), answerT, "exp|claims")
	}
	add(30, "31 s past", with(map[string]any{"iat": now - 600, "exp": now - 31}), answerT, "expired")
	add(30, "25 s past", with(map[string]any{"iat": now - 600, "exp": now - 25}), "200", `"read"`)
	add(31, "ten years", with(map[string]any{"exp": now + 10*365*24*3600}), answerT, "lifetime")
	add(32, "nbf in a minute", with(map[string]any{"nbf": now + 60}), answerT, "nbf")
	add(32, "iat in a minute", with(map[string]any{"iat": now + 60}), answerT, "iat")
	for name, aud := range map[string]any{
		"another": "https://other.test/fhir/R4", "missing": nil, "empty": []string{}, "an object": map[string]any{x.base: 1}, "longer": x.base + ".evil.test", "a prefix": x.base[:len(x.base)-1],
	} {
		add(33, "aud "+name, with(map[string]any{"aud": aud}), answerT, "aud")
	}
	for name, iss := range map[string]any{
		"of another realm": "https://issuer.test/other", "with a slash": "https://issuer.test/", "an array": []string{f.issuer}, "in upper case": "https://ISSUER.test", "missing": nil,
	} {
		add(34, "iss "+name, with(map[string]any{"iss": iss}), answerT, "iss|claims")
	}
	for name, h := range map[string]string{
		"an ID token": `"typ":"JWT",`, "a logout token": `"typ":"logout+jwt",`, "a DPoP proof": `"typ":"dpop+jwt",`, "without typ": "",
	} {
		add(35, name, bearer(f.sign(`{`+h+`"alg":"ES256","kid":"es"}`, x.good(map[string]any{"nonce": plantedText, "at_hash": plantedText}), "es", "ES256")), answerT, "typ")
	}
	add(37, "deep", edited(`{`, `{"x":`+strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+`,`), answerT, "deep|claims|iss")
	add(37, "1,000 roles", with(map[string]any{"roles": make([]int, 1000)}), answerT, "roles|claims")
	add(37, "100 roles", with(map[string]any{"roles": strings.Split(strings.Repeat("backend,", 99)+"backend", ",")}), answerT, "roles")

	plain := func(number int, name, method, path, body, want, reason string, auth []string, lines ...string) {
		list = append(list, attack{number: number, name: name, method: method, path: path, body: body, want: want, reason: reason, auth: auth, lines: lines})
	}
	form := "Content-Type: application/x-www-form-urlencoded"
	plain(5, "token in the query", "GET", x.chart()+"?access_token="+plantedText, "", answerQ, "URL or a form", nil)
	plain(5, "token in the query beside a good one", "GET", x.chart()+"?access_token="+plantedText, "", answerQ, "URL or a form", bearer(valid))
	plain(5, "token in a form", "POST", "/fhir/R4/Patient/_search", "access_token="+plantedText, answerQ, "URL or a form", nil, form)
	plain(5, "token in a form beside a good one", "POST", "/fhir/R4/Patient/_search", "access_token="+plantedText, answerQ, "URL or a form", bearer(valid), form)
	list = append(list,
		attack{number: 3, name: "folded line", raw: "GET " + x.chart() + " HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\nAuthorization: Bearer\r\n " + valid + "\r\n\r\n", want: "400", reason: "malformed"},
		attack{number: 3, name: "space at the end", raw: "GET " + x.chart() + " HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\nAuthorization: Bearer " + valid + " \r\n\r\n", want: answerT, reason: "space after the token"},
		attack{number: 6, name: "header of 17 KiB", auth: bearer(long(17 << 10)), want: "431", reason: "headers too large"},
		attack{number: 6, name: "header of 1 MiB", auth: bearer(long(1 << 20)), want: "431", reason: "headers too large"},
		attack{number: 7, name: "a million dots", auth: bearer(strings.Repeat(".", 1e6)), want: "431", reason: "headers too large"},
		attack{number: 18, name: "kid of 1 MB", auth: bearer(b64([]byte(`{"kid":"` + long(1e6) + `"}`))), want: "431", reason: "headers too large"},
		attack{number: 58, name: "space before the colon", raw: "GET " + x.chart() + " HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\nAuthorization : Bearer " + valid + "\r\n\r\n", want: "400", reason: "malformed"},
	)
	// A subject and a record whose names, joined, are another pair's.
	plain(47, "a$$b", "GET", "", "", "200", `"read"`, with(map[string]any{"sub": "a$$b"}))
	plain(47, "a", "GET", "", "", answerS+" system/Patient.r", "scope-missing", with(map[string]any{"sub": "a", "roles": []string{"nobody"}}))
	// Headers that name a caller name nobody.
	for _, h := range []string{
		"X-User: admin-root", "X-Roles: admin", "X-Forwarded-User: admin-root", "X-Auth-Request-User: admin-root", "X-Remote-User: admin-root", "Remote-User: admin-root",
		"X-Forwarded-Client-Cert: Subject=" + plantedText, "X-Original-URL: /healthz", "X-Rewrite-URL: /healthz", "Cookie: token=" + valid, "Proxy-Authorization: Bearer " + valid,
		"X-Access-Token: " + valid, "X-Authorization: Bearer " + valid,
	} {
		plain(59, h[:strings.Index(h, ":")], "GET", "", "", answerN, "no bearer token", nil, h)
	}
	return list
}
