package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
)

// holder is a client with a key of its own, to which its tokens are bound.
type holder struct {
	private crypto.Signer
	alg     string
	jwk     map[string]any
}

func newHolder() *holder {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	point, _ := k.PublicKey.Bytes()
	return &holder{k, "ES256", map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}}
}

func newEdHolder() *holder {
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	return &holder{private, "EdDSA", map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(public)}}
}

func newRSAHolder(bits int) *holder {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return &holder{k, "PS256", map[string]any{"kty": "RSA", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}}
}

// thumbprint is RFC 7638's, spelt out: the required members in the order of their names, and nothing between.
func (h *holder) thumbprint() string {
	var text string
	switch h.jwk["kty"] {
	case "EC":
		text = fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, h.jwk["x"], h.jwk["y"])
	case "OKP":
		text = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":%q}`, h.jwk["x"])
	default:
		text = fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, h.jwk["e"], h.jwk["n"])
	}
	sum := sha256.Sum256([]byte(text))
	return b64(sum[:])
}

func (h *holder) sign(header, payload []byte) string {
	input := b64(header) + "." + b64(payload)
	sum := sha256.Sum256([]byte(input))
	var sig []byte
	switch k := h.private.(type) {
	case *ecdsa.PrivateKey:
		r, s, _ := ecdsa.Sign(rand.Reader, k, sum[:])
		sig = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(input))
	case *rsa.PrivateKey:
		sig, _ = rsa.SignPSS(rand.Reader, k, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	return input + "." + b64(sig)
}

const testTarget = "https://chart.example.test/fhir/R4/Patient/p1"

// proof is a good one for a GET of testTarget with parts replaced; a nil takes a part away. "header." goes before names of the header's.
func (h *holder) proof(token string, over map[string]any) string {
	ath := sha256.Sum256([]byte(token))
	header := map[string]any{"typ": "dpop+jwt", "alg": h.alg, "jwk": h.jwk}
	payload := map[string]any{"jti": rand.Text(), "htm": "GET", "htu": testTarget, "iat": time.Now().Unix(), "ath": b64(ath[:])}
	for name, v := range over {
		into := payload
		if rest, ok := strings.CutPrefix(name, "header."); ok {
			name, into = rest, header
		}
		if into[name] = v; v == nil {
			delete(into, name)
		}
	}
	return h.sign(marshal(header), marshal(payload))
}

func (h *holder) token(is *issuer, over map[string]any) string {
	claims := map[string]any{"cnf": map[string]any{"jkt": h.thumbprint()}, "jti": rand.Text()}
	for k, v := range over {
		claims[k] = v
	}
	return is.token(claims)
}

// show presents a token with proofs as a GET of testTarget.
func show(v *Verifier, token string, proofs ...string) (*Principal, error) {
	c := Credentials{Authorization: [][]byte{[]byte("DPoP " + token)}, Method: "GET", URL: testTarget}
	for _, p := range proofs {
		c.Proofs = append(c.Proofs, []byte(p))
	}
	return v.Authenticate(context.Background(), c)
}

func TestProof(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	for name, h := range map[string]*holder{"ES256": newHolder(), "EdDSA": newEdHolder(), "PS256": newRSAHolder(2048)} {
		token := h.token(is, nil)
		for range 2 { // the second time the token is known
			p, err := show(v, token, h.proof(token, nil))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if p.Confirmation.Key != h.thumbprint() {
				t.Errorf("%s: bound to %q", name, p.Confirmation.Key)
			}
		}
		for _, good := range []map[string]any{
			{"htu": testTarget + "?_elements=name#x"},
			{"htu": "HTTPS://CHART.example.test:443/fhir/R4/Patient/p1"},
			{"htu": "https://chart.example.test/fhir/R4/x/../%50atient/%701"},
			{"iat": time.Now().Unix() - 28},
			{"iat": time.Now().Unix() + 28},
			{"extra": "a client may say more"},
			{"nonce": v.Nonce(nil)},
		} {
			if _, err := show(v, token, h.proof(token, good)); err != nil {
				t.Errorf("%s: %v: %v", name, good, err)
			}
		}
	}
}

// TestHostileProofs is case 54. The token is good and known in each.
func TestHostileProofs(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	h, thief := newHolder(), newHolder()
	token, other := h.token(is, nil), h.token(is, nil)
	if _, err := show(v, token, h.proof(token, nil)); err != nil {
		t.Fatal(err)
	}
	with := func(name string, value any) string { return h.proof(token, map[string]any{name: value}) }
	private := map[string]any{"d": b64(make([]byte, 32))}
	for k, x := range h.jwk {
		private[k] = x
	}
	used := h.proof(token, nil)
	if _, err := show(v, token, used); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	good := h.proof(token, nil)
	parts := strings.Split(good, ".")
	wide := newRSAHolder(2048)
	wide.jwk["n"] = b64(append([]byte{1}, make([]byte, 600)...))
	for name, c := range map[string]struct {
		proofs []string
		want   error
	}{
		"none":                          {nil, ErrProof},
		"empty":                         {[]string{""}, ErrProof},
		"two":                           {[]string{h.proof(token, nil), h.proof(token, nil)}, ErrProof},
		"another method":                {[]string{with("htm", "POST")}, ErrProof},
		"method in small letters":       {[]string{with("htm", "get")}, ErrProof},
		"no method":                     {[]string{with("htm", nil)}, ErrProof},
		"another path":                  {[]string{with("htu", testTarget+"2")}, ErrProof},
		"path with a slash more":        {[]string{with("htu", testTarget+"/")}, ErrProof},
		"path in other letters":         {[]string{with("htu", strings.ToUpper(testTarget))}, ErrProof},
		"slash escaped":                 {[]string{with("htu", "https://chart.example.test/fhir/R4/Patient%2Fp1")}, ErrProof},
		"another host":                  {[]string{with("htu", "https://chart.example.test.evil.test/fhir/R4/Patient/p1")}, ErrProof},
		"another port":                  {[]string{with("htu", "https://chart.example.test:8443/fhir/R4/Patient/p1")}, ErrProof},
		"another scheme":                {[]string{with("htu", "http://chart.example.test/fhir/R4/Patient/p1")}, ErrProof},
		"user in the URL":               {[]string{with("htu", "https://chart.example.test@evil.test/fhir/R4/Patient/p1")}, ErrProof},
		"path only":                     {[]string{with("htu", "/fhir/R4/Patient/p1")}, ErrProof},
		"no URL":                        {[]string{with("htu", nil)}, ErrProof},
		"ath of another token":          {[]string{h.proof(other, nil)}, ErrProof},
		"no ath":                        {[]string{with("ath", nil)}, ErrProof},
		"old":                           {[]string{with("iat", now-33)}, ErrProof},
		"of the future":                 {[]string{with("iat", now+33)}, ErrProof},
		"iat as text":                   {[]string{with("iat", fmt.Sprint(now))}, ErrProof},
		"iat null":                      {[]string{with("iat", json.RawMessage("null"))}, ErrProof},
		"no iat":                        {[]string{with("iat", nil)}, ErrProof},
		"no jti":                        {[]string{with("jti", nil)}, ErrProof},
		"long jti":                      {[]string{with("jti", strings.Repeat("a", 256))}, ErrProof},
		"used before":                   {[]string{used}, ErrProof},
		"private key":                   {[]string{with("header.jwk", private)}, ErrProof},
		"symmetric key":                 {[]string{with("header.jwk", map[string]any{"kty": "oct", "k": "AAAA"})}, ErrProof},
		"weak key":                      {[]string{newRSAHolder(1024).proof(token, nil)}, ErrProof},
		"key too large":                 {[]string{wide.proof(token, nil)}, ErrProof},
		"no key":                        {[]string{with("header.jwk", nil)}, ErrProof},
		"key by URL":                    {[]string{with("header.jku", "https://evil.test/jwks")}, ErrProof},
		"crit":                          {[]string{with("header.crit", []string{})}, ErrProof},
		"b64":                           {[]string{with("header.b64", false)}, ErrProof},
		"alg none":                      {[]string{with("header.alg", "none")}, ErrProof},
		"alg HS256":                     {[]string{with("header.alg", "HS256")}, ErrProof},
		"alg of another key":            {[]string{with("header.alg", "PS256")}, ErrProof},
		"typ of a token":                {[]string{with("header.typ", "at+jwt")}, ErrProof},
		"typ JWT":                       {[]string{with("header.typ", "JWT")}, ErrProof},
		"no typ":                        {[]string{with("header.typ", nil)}, ErrProof},
		"the token itself":              {[]string{token}, ErrProof},
		"no signature":                  {[]string{parts[0] + "." + parts[1] + "."}, ErrProof},
		"signature of another":          {[]string{parts[0] + "." + parts[1] + "." + strings.Split(h.proof(token, nil), ".")[2]}, ErrProof},
		"claims of another":             {[]string{parts[0] + "." + strings.Split(h.proof(token, nil), ".")[1] + "." + parts[2]}, ErrProof},
		"padding":                       {[]string{good + "=="}, ErrProof},
		"JSON":                          {[]string{`{"payload":"` + parts[1] + `"}`}, ErrProof},
		"too long":                      {[]string{with("extra", strings.Repeat("a", maxProof))}, ErrProof},
		"nested":                        {[]string{with("extra", json.RawMessage(strings.Repeat("[", 500)+strings.Repeat("]", 500)))}, ErrProof},
		"claim twice":                   {[]string{h.sign(marshal(map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": h.jwk}), []byte(`{"jti":"a","jti":"b"}`))}, ErrProof},
		"a thief's key":                 {[]string{thief.proof(token, nil)}, ErrBound},
		"nonce of another server":       {[]string{with("nonce", "AAAAAAAAAAAAAAAAAAAAAAAA")}, ErrNonce},
		"the thief's key in our header": {[]string{thief.proof(token, map[string]any{"header.jwk": h.jwk})}, ErrProof},
	} {
		p, err := show(v, token, c.proofs...)
		if !errors.Is(err, c.want) || !errors.Is(err, ErrToken) || p != nil {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), token[:40]) || strings.Contains(err.Error(), h.thumbprint())) {
			t.Errorf("%s: error quotes what was sent", name)
		}
	}
	if _, err := ask(v, token); !errors.Is(err, ErrBound) {
		t.Errorf("bound token as bearer: %v", err)
	}
	unbound := is.token(nil)
	if _, err := show(v, unbound, h.proof(unbound, nil)); !errors.Is(err, ErrToken) || errors.Is(err, ErrProof) {
		t.Errorf("unbound token with scheme DPoP: %v", err)
	}
	if _, err := show(v, token, good); err != nil {
		t.Errorf("the good proof after all of them: %v", err)
	}
}

// TestProofIsNotCached holds that a token which is known is asked for its proof all the same, by whoever sends it.
func TestProofIsNotCached(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	h := newHolder()
	token := h.token(is, nil)
	proof := h.proof(token, nil)
	if _, err := show(v, token, proof); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := show(v, token, proof); !errors.Is(err, ErrProof) {
			t.Fatalf("a proof was good twice: %v", err)
		}
		if _, err := show(v, token); !errors.Is(err, ErrProof) {
			t.Fatalf("no proof: %v", err)
		}
	}
	if n := v.Stats().Misses; n != 1 {
		t.Errorf("the token was verified %d times", n)
	}
	p, err := v.Authenticate(context.Background(), Credentials{Authorization: [][]byte{[]byte("DPoP " + token)}, Proven: true})
	if err != nil || p == nil {
		t.Errorf("on a connection that has shown its proof: %v", err)
	}
}

// TestReplayRace holds that of many who come with one proof at once, one passes.
func TestReplayRace(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	h := newHolder()
	token := h.token(is, nil)
	for range 20 {
		proof := h.proof(token, nil)
		var passed sync.Map
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				if _, err := show(v, token, proof); err == nil {
					passed.Store(i, true)
				}
			})
		}
		all.Wait()
		n := 0
		passed.Range(func(any, any) bool { n++; return true })
		if n != 1 {
			t.Fatalf("%d of 8 passed", n)
		}
	}
}

// TestReplayWindow holds that a proof is not good again at any time at which its iat would be.
func TestReplayWindow(t *testing.T) {
	is := newIssuer(t)
	var hand clock
	cfg := is.config()
	cfg.Now = hand.now
	cfg.ProofWindow = 10 * time.Second
	v := newTestVerifier(t, cfg)
	h := newHolder()
	token := h.token(is, nil)
	for start := range 5 {
		proof := h.proof(token, map[string]any{"iat": hand.now().Unix() + 9}) // the longest life that a proof can have
		if _, err := show(v, token, proof); err != nil {
			t.Fatalf("start %d: %v", start, err)
		}
		for range 30 {
			hand.advance(time.Second)
			if _, err := show(v, token, proof); !errors.Is(err, ErrProof) {
				t.Fatalf("start %d: %v", start, err)
			}
			filler := h.proof(token, map[string]any{"iat": hand.now().Unix()})
			if _, err := show(v, token, filler); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestReplayWithinASecond holds it for the parts of a second that an iat, which is in whole ones, says nothing of.
func TestReplayWithinASecond(t *testing.T) {
	is := newIssuer(t)
	start := time.Now().Truncate(time.Second).Add(2 * time.Second)
	var hand clock
	cfg := is.config()
	cfg.Now = hand.now
	cfg.ProofWindow = 10 * time.Second
	v := newTestVerifier(t, cfg)
	h := newHolder()
	token := h.token(is, map[string]any{"iat": start.Unix(), "exp": start.Add(time.Minute).Unix()})
	at := func(since time.Duration, proof string) error {
		hand.advance(start.Add(since).Sub(hand.now()))
		if proof == "" {
			proof = h.proof(token, map[string]any{"iat": hand.now().Unix()})
		}
		_, err := show(v, token, proof)
		return err
	}
	longest := h.proof(token, map[string]any{"iat": start.Add(20 * time.Second).Unix()})
	for i, step := range []struct {
		since time.Duration
		proof string
	}{
		{-9900 * time.Millisecond, ""}, // from when on the memory counts
		{10050 * time.Millisecond, longest},
		{10150 * time.Millisecond, ""}, // and is turned over
	} {
		if err := at(step.since, step.proof); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if err := at(30950*time.Millisecond, longest); !errors.Is(err, ErrProof) {
		t.Errorf("a proof was good twice, %v", err)
	}
}

// TestReplayMemory holds that the memory of used proofs is bounded, and that what does not fit is not let through.
func TestReplayMemory(t *testing.T) {
	r := newReplays(time.Minute)
	now := time.Now()
	for i := range replayMost {
		if first, room := r.first("key", fmt.Sprint(i), now); !first || !room {
			t.Fatalf("proof %d: first %v, room %v", i, first, room)
		}
	}
	if _, room := r.first("key", "one more", now); room {
		t.Error("a full part took one more")
	}
	if first, _ := r.first("key", "7", now); first {
		t.Error("a full part forgot")
	}
	other := 0
	for i := range 100 {
		if _, room := r.first(fmt.Sprint("key", i), "x", now); room {
			other++
		}
	}
	if other < 80 {
		t.Errorf("one busy key left room for %d of 100", other)
	}
	now = now.Add(time.Minute)
	if first, room := r.first("key", "one more", now); !first || !room {
		t.Error("no room a minute later")
	}
	if first, _ := r.first("key", "7", now.Add(time.Minute-time.Nanosecond)); first {
		t.Error("forgotten before two spans were over")
	}
}

func TestNonce(t *testing.T) {
	is := newIssuer(t)
	var hand clock
	cfg := is.config()
	cfg.Now = hand.now
	cfg.Issuers[0].Binding = BindingDPoP
	v, twin, stranger := newTestVerifier(t, cfg), newTestVerifier(t, cfg), newTestVerifier(t, cfg)
	for _, x := range []*Verifier{v, twin} {
		if err := x.ShareNonces([]byte("a secret of the whole deployment")); err != nil {
			t.Fatal(err)
		}
	}
	h := newHolder()
	fresh := func(nonce any) (string, string) {
		now := hand.now().Unix()
		token := h.token(is, map[string]any{"iat": now, "exp": now + 600, "auth_time": now})
		return token, h.proof(token, map[string]any{"iat": now, "nonce": nonce})
	}
	token, proof := fresh(nil)
	if _, err := show(v, token, proof); !errors.Is(err, ErrNonce) {
		t.Fatalf("without nonce: %v", err)
	}
	nonce := v.Nonce(nil)
	if token, proof = fresh(nonce); true {
		p, err := show(twin, token, proof)
		if err != nil {
			t.Fatalf("another instance's nonce: %v", err)
		}
		if twin.Nonce(p) == "" {
			t.Error("no nonce for the next request")
		}
	}
	if token, proof = fresh(nonce); true {
		if _, err := show(stranger, token, proof); !errors.Is(err, ErrNonce) {
			t.Errorf("a strange deployment's nonce: %v", err)
		}
	}
	hand.advance(2 * time.Minute)
	if v.Nonce(nil) == nonce {
		t.Error("the nonce does not rotate")
	}
	if token, proof = fresh(nonce); true {
		if _, err := show(v, token, proof); err != nil {
			t.Errorf("after two minutes: %v", err)
		}
	}
	hand.advance(time.Minute)
	if token, proof = fresh(nonce); true {
		if _, err := show(v, token, proof); !errors.Is(err, ErrNonce) {
			t.Errorf("after three minutes: %v", err)
		}
	}
}

// TestBindingDemanded holds that an issuer whose tokens must be bound is not believed when one is not.
func TestBindingDemanded(t *testing.T) {
	h := newHolder()
	jkt, x5t := map[string]any{"jkt": h.thumbprint()}, map[string]any{"x5t#S256": b64(make([]byte, 32))}
	for _, c := range []struct {
		binding Binding
		cnf     any
		want    bool
	}{
		{BindingNone, nil, true}, {BindingNone, jkt, true}, {BindingNone, x5t, true},
		{BindingDPoP, nil, false}, {BindingDPoP, x5t, false}, {BindingDPoP, jkt, true},
		{BindingMTLS, nil, false}, {BindingMTLS, jkt, false}, {BindingMTLS, x5t, true},
		{BindingEither, nil, false}, {BindingEither, jkt, true}, {BindingEither, x5t, true},
		{BindingNone, map[string]any{}, false}, {BindingNone, map[string]any{"jkt": "x"}, false}, {BindingNone, map[string]any{"jkt": nil}, false},
		{BindingNone, map[string]any{"kid": "x"}, false}, {BindingNone, map[string]any{"jkt": h.thumbprint(), "jwk": h.jwk}, false},
		{BindingNone, map[string]any{"jkt": strings.Repeat("a", 44)}, false}, {BindingNone, []string{"jkt"}, false},
	} {
		is := newIssuer(t)
		cfg := is.config()
		cfg.Issuers[0].Binding = c.binding
		cfg.Issuers[0].ProofNonce = NonceNever
		v := newTestVerifier(t, cfg)
		token := is.token(map[string]any{"cnf": c.cnf})
		_, err := v.Authenticate(context.Background(), Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}, Proven: true})
		if (err == nil) != c.want {
			t.Errorf("binding %q, cnf %v: %v", c.binding, c.cnf, err)
		}
	}
}

func TestCertificateBound(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	mine, other := []byte("a certificate's DER"), []byte("another's")
	sum := sha256.Sum256(mine)
	token := is.token(map[string]any{"cnf": map[string]any{"x5t#S256": b64(sum[:])}})
	for name, c := range map[string]struct {
		certificate []byte
		want        error
	}{"its own": {mine, nil}, "another": {other, ErrToken}, "none": {nil, ErrToken}, "its own again": {mine, nil}} {
		_, err := v.Authenticate(context.Background(), Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}, Certificate: c.certificate})
		if !errors.Is(err, c.want) || errors.Is(err, ErrBound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A token that is bound to both is shown by both.
	h := newHolder()
	token = h.token(is, map[string]any{"cnf": map[string]any{"x5t#S256": b64(sum[:]), "jkt": h.thumbprint()}})
	for name, c := range map[string]struct {
		certificate []byte
		proof       string
		good        bool
	}{
		"both": {mine, h.proof(token, nil), true}, "proof only": {nil, h.proof(token, nil), false},
		"certificate only": {mine, "", false}, "another certificate": {other, h.proof(token, nil), false},
	} {
		_, err := v.Authenticate(context.Background(), Credentials{
			Authorization: [][]byte{[]byte("DPoP " + token)}, Proofs: [][]byte{[]byte(c.proof)}, Method: "GET", URL: testTarget, Certificate: c.certificate,
		})
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzProof holds that no header or claims that a client could send crash the check, and that none passes which was not made for the
// request.
func FuzzProof(f *testing.F) {
	h := newHolder()
	x := newProofs(proofWindow, time.Now)
	token := []byte("token")
	f.Add(marshal(map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": h.jwk}), marshal(map[string]any{"jti": "a", "htm": "GET", "htu": testTarget}))
	f.Add([]byte(`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"","y":""}}`), []byte(`{"htu":"https://a/%2"}`))
	f.Add([]byte(`{"typ":"dpop+jwt","alg":"PS256","jwk":{"kty":"RSA","n":"AQAB","e":"AQAB"}}`), []byte(`{"htu":"https://a/%zz/../..//"}`))
	f.Fuzz(func(t *testing.T, header, payload []byte) {
		if k, err := proofKey(header, h.thumbprint()); err == nil && k.alg != "ES256" {
			t.Fatalf("the key's alg is %s", k.alg)
		}
		c := &Credentials{Method: "GET", URL: testTarget}
		if p, err := x.claims(c, payload, token); err == nil && (p.ID == "" || p.Method != "GET" || p.Token == "") {
			t.Fatalf("accepted %+v", p)
		}
		var p proofClaims
		if json.Unmarshal(payload, &p) == nil && sameTarget(p.Target, testTarget) != sameTarget(testTarget, p.Target) {
			t.Fatalf("%q is the target one way only", p.Target)
		}
	})
}

// BenchmarkProof is what a request with DPoP pays beside its token's check.
func BenchmarkProof(b *testing.B) {
	is := newIssuer(b)
	v := newTestVerifier(b, is.config())
	for name, h := range map[string]*holder{"ES256": newHolder(), "EdDSA": newEdHolder(), "PS256": newRSAHolder(2048)} {
		token := h.token(is, nil)
		c := Credentials{Authorization: [][]byte{[]byte("DPoP " + token)}, Method: "GET", URL: testTarget}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c.Proofs = [][]byte{[]byte(h.proof(token, nil))}
				b.StartTimer()
				if _, err := v.Authenticate(context.Background(), c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
