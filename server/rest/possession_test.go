package rest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/rest"
)

// holder is a client with a key that its tokens are bound to.
type holder struct {
	key *ecdsa.PrivateKey
	jwk string // as RFC 7638 spells it
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func newHolder(t testing.TB) *holder {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	point, err := key.PublicKey.Bytes()
	check(t, err)
	return &holder{key, fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, b64(point[1:33]), b64(point[33:]))}
}

func (h *holder) thumbprint() string {
	sum := sha256.Sum256([]byte(h.jwk))
	return b64(sum[:])
}

// proof is a good one for a request, with claims replaced.
func (h *holder) proof(t testing.TB, token, method, target string, over map[string]any) string {
	t.Helper()
	ath := sha256.Sum256([]byte(token))
	claims := map[string]any{"jti": rand.Text(), "htm": method, "htu": target, "iat": time.Now().Unix(), "ath": b64(ath[:])}
	for k, v := range over {
		claims[k] = v
	}
	payload, err := json.Marshal(claims)
	check(t, err)
	signed := b64([]byte(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+h.jwk+`}`)) + "." + b64(payload)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, h.key, sum[:])
	check(t, err)
	return signed + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// bound is a token of a backend service that is bound as cnf says.
func (d *deployment) bound(cnf map[string]any) string {
	return d.issuer.token(d.t, d.base, "backend", "system/*.cruds", func(c map[string]any) { c["cnf"] = cnf })
}

// demanding makes the issuer one whose tokens must be bound to a key, and proofs carry nonces.
func demanding(t testing.TB, issuer *issuer, binding auth.Binding) func(*rest.Config) {
	return func(cfg *rest.Config) {
		v, err := auth.NewVerifier(auth.VerifierConfig{
			Issuers: []auth.IssuerConfig{{
				Issuer: "https://issuer.test", Audience: cfg.Base, JWKSURL: issuer.url, AssertsSignIn: true, RolesInToken: true, Binding: binding,
			}},
			Insecure: true,
		})
		check(t, err)
		cfg.Verifier = v
	}
}

const (
	proofAlgs  = `, algs="ES256 EdDSA PS256"`
	boundToken = `DPoP realm="chartkeep", error="invalid_token"` + proofAlgs
	badProof   = `DPoP realm="chartkeep", error="invalid_dpop_proof"` + proofAlgs
	wantNonce  = `DPoP realm="chartkeep", error="use_dpop_nonce"` + proofAlgs
	badToken   = `Bearer realm="chartkeep", error="invalid_token"`
)

// TestBoundToKey is case 54, over connections of their own.
func TestBoundToKey(t *testing.T) {
	d := deploy(t, nil)
	d.patient("p1")
	h := newHolder(t)
	token := d.bound(map[string]any{"jkt": h.thumbprint()})
	target := d.base + "/Patient/p1"
	used := h.proof(t, token, "GET", target, nil)
	proof := func(over map[string]any) string { return h.proof(t, token, "GET", target, over) }
	for _, c := range []struct {
		name, scheme, token string
		proofs              []string
		status              int
		challenge           string
	}{
		{"good", "DPoP", token, []string{used}, 200, ""},
		{"scheme in small letters", "dpop", token, []string{proof(nil)}, 200, ""},
		{"as bearer", "Bearer", token, nil, 401, boundToken},
		{"as bearer, with a proof", "Bearer", token, []string{proof(nil)}, 401, boundToken},
		{"no proof", "DPoP", token, nil, 401, badProof},
		{"two proofs", "DPoP", token, []string{proof(nil), proof(nil)}, 401, badProof},
		{"two proofs, one of them empty", "DPoP", token, []string{proof(nil), ""}, 401, badProof},
		{"replayed", "DPoP", token, []string{used}, 401, badProof},
		{"htm", "DPoP", token, []string{proof(map[string]any{"htm": "DELETE"})}, 401, badProof},
		{"htu", "DPoP", token, []string{proof(map[string]any{"htu": d.base + "/Patient/p2"})}, 401, badProof},
		{"ath", "DPoP", token, []string{h.proof(t, token+"x", "GET", target, nil)}, 401, badProof},
		{"iat", "DPoP", token, []string{proof(map[string]any{"iat": time.Now().Unix() - 40})}, 401, badProof},
		{"nonce of somebody else's", "DPoP", token, []string{proof(map[string]any{"nonce": "x"})}, 401, wantNonce},
		{"key of a thief", "DPoP", token, []string{newHolder(t).proof(t, token, "GET", target, nil)}, 401, boundToken},
		{"token that is bound to nothing", "DPoP", d.as("backend"), []string{proof(nil)}, 401, `DPoP realm="chartkeep", error="invalid_token"` + proofAlgs},
		{"broken token", "DPoP", token[:len(token)-4] + "AAAA", []string{proof(nil)}, 401, `DPoP realm="chartkeep", error="invalid_token"` + proofAlgs},
	} {
		id := "bound-" + strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r
			}
			return '-'
		}, c.name)
		lines := "Authorization: " + c.scheme + " " + c.token + "\r\n"
		for _, p := range c.proofs {
			lines += "DPoP: " + p + "\r\n"
		}
		a := d.raw(fmt.Sprintf("GET /fhir/R4/Patient/p1?_summary=true HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\n%s\r\n", id, lines))
		if got := strings.Join(a.Header.Values("WWW-Authenticate"), " | "); a.StatusCode != c.status || got != c.challenge {
			t.Errorf("%s: %d %s, want %d %s", c.name, a.StatusCode, got, c.status, c.challenge)
		}
		if nonce := a.Header.Get("DPoP-Nonce"); (nonce != "") != (c.challenge == wantNonce) {
			t.Errorf("%s: DPoP-Nonce %q", c.name, nonce)
		}
		if c.status == 200 {
			continue
		}
		checkEveryAnswer(t, c.name, a)
		found := d.eventsOf(id)
		if len(found) != 1 || found[0].Event.Type != audit.TypeAuthentication || found[0].Event.Outcome != audit.MinorFailure || found[0].Event.Agent.User != "" {
			t.Errorf("%s: events %+v", c.name, found)
		}
	}
	if strings.Contains(d.logs.String(), token[:20]) || strings.Contains(d.logs.String(), used[:60]) {
		t.Error("a token or a proof is in the log")
	}
	// Who comes with nothing is told both schemes.
	a := d.do("GET", "/fhir/R4/Patient/p1", "", "")
	if got := strings.Join(a.Header.Values("WWW-Authenticate"), " | "); got != `Bearer realm="chartkeep" | DPoP realm="chartkeep"`+proofAlgs {
		t.Errorf("without credentials: %s", got)
	}
	// A refusal of another kind speaks of the scheme that was used.
	token = d.issuer.token(t, d.base, "backend", "system/Observation.r", func(c map[string]any) { c["cnf"] = map[string]any{"jkt": h.thumbprint()} })
	a = d.do("GET", "/fhir/R4/Patient/p1", "", "", "Authorization", "DPoP "+token, "DPoP", h.proof(t, token, "GET", target, nil))
	if got := a.Header.Get("WWW-Authenticate"); a.StatusCode != 403 || got != `DPoP realm="chartkeep", error="insufficient_scope", scope="system/Patient.r"`+proofAlgs {
		t.Errorf("scope: %d %s", a.StatusCode, got)
	}
}

// TestNonceDemanded plays RFC 9449 section 9: refused with a nonce, good with it, and the answer brings the next one.
func TestNonceDemanded(t *testing.T) {
	issuer := newIssuer(t)
	d := deploy(t, demanding(t, issuer, auth.BindingDPoP))
	h := newHolder(t)
	sign := func(cnf map[string]any) string {
		return issuer.token(t, d.base, "backend", "system/*.cruds", func(c map[string]any) { c["cnf"] = cnf })
	}
	token := sign(map[string]any{"jkt": h.thumbprint()})
	nonce := ""
	for i, want := range []int{401, 404, 404} {
		over := map[string]any{"nonce": nonce}
		if nonce == "" {
			over = nil
		}
		a := d.do("GET", "/fhir/R4/Patient/nobody", "", "", "Authorization", "DPoP "+token, "DPoP", h.proof(t, token, "GET", d.base+"/Patient/nobody", over))
		if a.StatusCode != want {
			t.Fatalf("request %d: %d %s", i, a.StatusCode, a.body)
		}
		if nonce = a.Header.Get("DPoP-Nonce"); nonce == "" {
			t.Fatalf("request %d: no nonce", i)
		}
		if want == 401 && a.Header.Get("WWW-Authenticate") != wantNonce {
			t.Errorf("challenge %s", a.Header.Get("WWW-Authenticate"))
		}
	}
	if a := d.do("GET", "/fhir/R4/Patient/nobody", issuer.token(t, d.base, "backend", "system/*.cruds", nil), ""); a.StatusCode != 401 || a.Header.Get("WWW-Authenticate") != badToken {
		t.Errorf("unbound token of an issuer whose tokens are bound: %d %s", a.StatusCode, a.Header.Get("WWW-Authenticate"))
	}
}

// certify makes a certificate of its own signing.
func certify(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	about := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func x5t(c tls.Certificate) map[string]any {
	sum := sha256.Sum256(c.Certificate[0])
	return map[string]any{"x5t#S256": b64(sum[:])}
}

// TestBoundToCertificate is case 55, on a TLS connection.
func TestBoundToCertificate(t *testing.T) {
	d := deploy(t, func(cfg *rest.Config) { cfg.ClientCertificates = rest.ConnectionCertificates })
	d.patient("p1")
	mine, other, server := certify(t, "client"), certify(t, "client"), certify(t, "server")
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	l := tls.NewListener(plain, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12})
	go func() { _ = d.server.Serve(l) }() // until the deployment shuts down
	token := d.bound(x5t(mine))
	for name, c := range map[string]struct {
		certificates []tls.Certificate
		status       int
	}{"its own": {[]tls.Certificate{mine}, 200}, "another": {[]tls.Certificate{other}, 401}, "none": {nil, 401}} {
		for range 2 {
			client := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: c.certificates}} //nolint:gosec // the test's own server
			req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+plain.Addr().String()+"/fhir/R4/Patient/p1", nil)
			check(t, err)
			req.Header.Set("Authorization", "Bearer "+token)
			// What only a proxy may say is not listened to.
			req.Header.Set("Client-Cert", ":"+base64.StdEncoding.EncodeToString(mine.Certificate[0])+":")
			a, err := client.RoundTrip(req)
			check(t, err)
			_ = a.Body.Close()
			client.CloseIdleConnections()
			if a.StatusCode != c.status || c.status == 401 && a.Header.Get("WWW-Authenticate") != badToken {
				t.Errorf("%s: %d %s", name, a.StatusCode, a.Header.Get("WWW-Authenticate"))
			}
		}
	}
	d.want(d.do("GET", "/fhir/R4/Patient/p1", token, ""), http.StatusUnauthorized) // without TLS
	d.want(d.do("GET", "/fhir/R4/Patient/p1", d.as("backend"), ""), http.StatusOK)
}

// TestForwardedCertificate is case 55 behind a proxy (RFC 9440): the header counts when it comes from a trusted network, once, and
// says a certificate.
func TestForwardedCertificate(t *testing.T) {
	mine, other := certify(t, "client"), certify(t, "client")
	of := func(c tls.Certificate) string { return ":" + base64.StdEncoding.EncodeToString(c.Certificate[0]) + ":" }
	for name, trusted := range map[string]bool{"from the proxy": true, "from anybody": false} {
		d := deploy(t, func(cfg *rest.Config) {
			cfg.ClientCertificates, cfg.TLSClientNetworks = rest.ForwardedCertificates, []string{"192.0.2.0/24"}
			if trusted {
				cfg.TLSClientNetworks = []string{"127.0.0.0/8"}
			}
		})
		d.patient("p1")
		token := d.bound(x5t(mine))
		for what, c := range map[string]struct {
			headers []string
			good    bool
		}{
			"its own":         {[]string{of(mine)}, true},
			"another":         {[]string{of(other)}, false},
			"none":            {nil, false},
			"two":             {[]string{of(mine), of(mine)}, false},
			"two in one":      {[]string{of(mine) + ", " + of(mine)}, false},
			"not in colons":   {[]string{strings.Trim(of(mine), ":")}, false},
			"no certificate":  {[]string{":" + base64.StdEncoding.EncodeToString([]byte("text")) + ":"}, false},
			"something after": {[]string{":" + base64.StdEncoding.EncodeToString(append(bytes.Clone(mine.Certificate[0]), 0)) + ":"}, false},
		} {
			text := "GET /fhir/R4/Patient/p1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n"
			for _, h := range c.headers {
				text += "Client-Cert: " + h + "\r\n"
			}
			status := map[bool]int{true: 200, false: 401}[c.good && trusted]
			if a := d.raw(text + "\r\n"); a.StatusCode != status || status == 401 && a.Header.Get("WWW-Authenticate") != badToken {
				t.Errorf("%s, %s: %d %s, want %d", name, what, a.StatusCode, a.Header.Get("WWW-Authenticate"), status)
			}
		}
	}
}
