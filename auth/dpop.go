package auth

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// A DPoP proof (RFC 9449 section 4) is a small token that the client signs for one request: method, URL, access token, time. It
// passes the same gate as a token. It is verified on every request and never cached.

const (
	maxProof    = 4096             // bytes; one with a key of RSA-4096 has 1,400
	proofWindow = 30 * time.Second // when nothing else was configured
	noncePeriod = time.Minute

	maxProofWindow = time.Minute // RFC 9449 section 11.1: seconds or minutes
	nonceOverlap   = 2           // periods for which a nonce goes on being accepted
)

// ProofAlgorithms lists the signature algorithms of DPoP proofs, the preferred one first (RFC 9449 section 5.1).
func ProofAlgorithms() []string { return []string{"ES256", "EdDSA", "PS256"} }

func badProof(why string) error { return fmt.Errorf("%w: %s", ErrProof, why) }

// proofs checks DPoP proofs. Safe for concurrent use.
type proofs struct {
	window time.Duration
	now    func() time.Time
	seen   *replays
	nonces *nonces
}

func newProofs(window time.Duration, now func() time.Time) *proofs {
	// An iat is in whole seconds, and is good until the second is over that it ends in.
	return &proofs{window: window, now: now, seen: newReplays(2*window + time.Second), nonces: newNonces(now)}
}

// proofHeader is all that the header of a proof may hold.
type proofHeader struct {
	Type      string         `json:"typ"`
	Algorithm string         `json:"alg"`
	Key       jsontext.Value `json:"jwk"`
}

// proofClaims are those of RFC 9449 section 4.2. A client may add others.
type proofClaims struct {
	ID     string `json:"jti"`
	Method string `json:"htm"`
	Target string `json:"htu"`
	Issued *int64 `json:"iat"`
	Token  string `json:"ath"`
	Nonce  string `json:"nonce"`
}

// check does what RFC 9449 section 4.3 demands, the cheap before the dear. Only a proof that is good in everything else is
// remembered as used: forged ones find no room to fill.
func (x *proofs) check(c *Credentials, token []byte, thumbprint string, nonce bool, signature func(*key, compact) error) error {
	if len(c.Proofs) != 1 {
		return badProof("not exactly one DPoP header")
	}
	if len(c.Proofs[0]) > maxProof {
		return badProof("length")
	}
	parts, err := split(c.Proofs[0])
	if err != nil {
		return badProof("not a compact JWS")
	}
	k, err := proofKey(parts.header, thumbprint)
	if err != nil {
		return err
	}
	claims, err := x.claims(c, parts.payload, token)
	if err != nil {
		return err
	}
	if (nonce || claims.Nonce != "") && !x.nonces.valid(claims.Nonce) {
		return ErrNonce
	}
	if err := signature(k, parts); err != nil {
		return err
	}
	switch first, room := x.seen.first(thumbprint, claims.ID, x.now()); {
	case !room:
		return fmt.Errorf("%w: proofs", ErrOverload)
	case !first:
		return badProof("jti was used before")
	}
	return nil
}

// proofKey takes the key out of a proof's header. One that is not the token's is the token's fault, not the proof's: this is
// somebody else who has got hold of it.
func proofKey(header []byte, thumbprint string) (*key, error) {
	var h proofHeader
	if tooDeep(header) || json.Unmarshal(header, &h, json.RejectUnknownMembers(true)) != nil {
		return nil, badProof("header does not parse, or holds more than typ, alg and jwk")
	}
	if h.Type != "dpop+jwt" {
		return nil, badProof("typ is not dpop+jwt")
	}
	k, is, err := parseProofKey(h.Key, h.Algorithm)
	if err != nil {
		return nil, badProof(err.Error())
	}
	if subtle.ConstantTimeCompare([]byte(is), []byte(thumbprint)) != 1 {
		return nil, ErrBound
	}
	return k, nil
}

// claims checks that the proof was made for this request, with this token, and now.
func (x *proofs) claims(c *Credentials, payload, token []byte) (proofClaims, error) {
	var p proofClaims
	if tooDeep(payload) || json.Unmarshal(payload, &p) != nil {
		return p, badProof("claims do not parse")
	}
	ath := sha256.Sum256(token)
	now := x.now()
	switch {
	case !printable(p.ID, maxName):
		return p, badProof("jti is missing or not printable")
	case p.Method != c.Method:
		return p, badProof("htm is another method")
	case !sameTarget(p.Target, c.URL):
		return p, badProof("htu is another URL")
	case p.Issued == nil || *p.Issued < now.Add(-x.window).Unix() || *p.Issued > now.Add(x.window).Unix():
		return p, badProof("iat is not now")
	case p.Token != base64.RawURLEncoding.EncodeToString(ath[:]):
		return p, badProof("ath is another token's")
	}
	return p, nil
}

// sameTarget compares two URLs as RFC 9449 section 4.3 wants it: without query and fragment, after the normalisation of RFC 3986
// sections 6.2.2 and 6.2.3.
func sameTarget(htu, target string) bool {
	if htu == target {
		return htu != ""
	}
	a, ok := normalURL(htu)
	b, okToo := normalURL(target)
	return ok && okToo && a == b
}

func normalURL(raw string) (string, bool) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" || !printable(raw, maxToken) {
		return "", false
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	default:
		return "", false
	}
	host = strings.TrimSuffix(host, ":")
	// Resolving removes dot segments.
	at := (&url.URL{Scheme: scheme, Host: host, Path: "/"}).ResolveReference(&url.URL{Path: u.Path, RawPath: u.RawPath})
	path := normalEscapes(at.EscapedPath())
	if path == "" {
		path = "/"
	}
	return scheme + "://" + host + path, true
}

// normalEscapes writes escapes in capitals, and characters that need none without.
func normalEscapes(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			out = append(out, path[i])
			continue
		}
		switch c := unhex(path[i+1])<<4 | unhex(path[i+2]); {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			out = append(out, c)
		default:
			out = append(out, bytes.ToUpper([]byte(path[i:i+3]))...)
		}
		i += 2
	}
	return string(out)
}

// unhex is of a digit that url.Parse has let through.
func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	default:
		return c - '0'
	}
}

// nonces are without state (RFC 9449 section 8 leaves their making to the server): one for each minute, its number under a key. One
// that is accepted was given out within the last three minutes by somebody who knows the key, so a proof with it was not made ahead.
type nonces struct {
	now func() time.Time
	key atomic.Pointer[[32]byte]
	set atomic.Pointer[nonceSet]
}

// nonceSet are the nonces of a period: its own first, then those that are accepted beside it.
type nonceSet struct {
	key    *[32]byte
	period int64
	values [nonceOverlap + 2]string
}

func newNonces(now func() time.Time) *nonces {
	n := &nonces{now: now}
	var key [32]byte
	_, _ = rand.Read(key[:]) // documented never to fail
	n.key.Store(&key)
	return n
}

func (n *nonces) derive(secret []byte) error {
	key, err := hkdf.Key(sha256.New, secret, nil, "chartkeep DPoP nonces", 32)
	if err != nil {
		return fmt.Errorf("deriving the key of nonces: %w", err)
	}
	n.key.Store((*[32]byte)(key))
	return nil
}

func (n *nonces) of() *nonceSet {
	period, key := n.now().Unix()/int64(noncePeriod/time.Second), n.key.Load()
	if s := n.set.Load(); s != nil && s.period == period && s.key == key {
		return s
	}
	s := &nonceSet{key: key, period: period}
	s.values[0] = makeNonce(key, period)
	s.values[1] = makeNonce(key, period+1) // of an instance whose clock is ahead
	for i := range nonceOverlap {
		s.values[i+2] = makeNonce(key, period-int64(i)-1)
	}
	n.set.Store(s)
	return s
}

func makeNonce(key *[32]byte, period int64) string {
	m := hmac.New(sha256.New, key[:])
	_ = binary.Write(m, binary.BigEndian, period)
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil)[:18])
}

func (n *nonces) current() string { return n.of().values[0] }

func (n *nonces) valid(nonce string) bool {
	found := 0
	for _, v := range n.of().values {
		found |= subtle.ConstantTimeCompare([]byte(v), []byte(nonce))
	}
	return found == 1
}
