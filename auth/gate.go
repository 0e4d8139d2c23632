package auth

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits of what the gate looks at. They bound the work that one hostile token can cause.
const (
	minToken    = 32
	maxToken    = 8192
	maxName     = 255 // sub, client_id, jti, sid, acr, kid and the like
	maxKeyID    = 128
	maxRoles    = 32
	maxMethods  = 16
	maxAudience = 16
	maxDepth    = 8   // of JSON in a token; real ones have 2
	maxListed   = 512 // values in lists that mean nothing here
)

// refuse is ErrToken with a reason from the source text, never from the token, so that it may be logged.
func refuse(why string) error { return fmt.Errorf("%w: %s", ErrToken, why) }

// compact is a token in JWS compact serialisation, cut into its parts.
type compact struct {
	header  []byte // decoded
	payload []byte // decoded; not to be believed before the signature is verified
	signed  []byte // the received bytes that the signature covers
	sig     []byte // decoded
}

// split cuts a token and decodes its parts. Only the base64url alphabet and exactly two dots pass, so the decoder never
// sees the line breaks that it would skip; strict decoding refuses unused bits that are not zero (RFC 4648 section 3.5):
// a token has one spelling.
func split(token []byte) (compact, error) {
	var dots [2]int
	found := 0
	for i, c := range token {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		case c == '.' && found < 2:
			dots[found] = i
			found++
		case c == ',':
			return compact{}, fmt.Errorf("%w: more than one credential", ErrRequest)
		default:
			return compact{}, refuse("character outside the token alphabet")
		}
	}
	if found != 2 {
		return compact{}, refuse("not three parts")
	}
	out := compact{signed: token[:dots[1]]}
	strict := base64.RawURLEncoding.Strict()
	for _, part := range []struct {
		to   *[]byte
		text []byte
	}{{&out.header, token[:dots[0]]}, {&out.payload, token[dots[0]+1 : dots[1]]}, {&out.sig, token[dots[1]+1:]}} {
		decoded, err := strict.AppendDecode(nil, part.text)
		if err != nil || len(decoded) == 0 {
			return compact{}, refuse("part is empty or not canonical base64url")
		}
		*part.to = decoded
	}
	return out, nil
}

// header is all that a token header may hold. Every other name (jku, jwk, x5u, x5c, crit, b64, zip, cty…) would change
// what is verified or how, so each is refused by its presence.
type header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

func parseHeader(b []byte) (header, error) {
	var h header
	if tooDeep(b) {
		return h, refuse("header is nested too deeply")
	}
	if b[0] != '{' || b[len(b)-1] != '}' { // other libraries verify such a header without its padding
		return h, refuse("header is not an object and nothing else")
	}
	if err := json.Unmarshal(b, &h, json.RejectUnknownMembers(true)); err != nil {
		return h, refuse("header does not parse, or holds more than alg, kid and typ")
	}
	if !printable(h.KeyID, maxKeyID) {
		return h, refuse("kid is missing or not printable")
	}
	return h, nil
}

// claims are the members of a payload that mean something here (RFC 9068 section 2.2, SMART App Launch). Numbers are
// pointers because null would otherwise decode as zero.
type claims struct {
	Issuer       string         `json:"iss"`
	Audience     jsontext.Value `json:"aud"`
	Subject      string         `json:"sub"`
	Client       string         `json:"client_id"`
	ID           string         `json:"jti"`
	Session      string         `json:"sid"`
	Expires      *int64         `json:"exp"`
	Issued       *int64         `json:"iat"`
	NotBefore    *int64         `json:"nbf"`
	AuthTime     *int64         `json:"auth_time"`
	Scope        string         `json:"scope"`
	Roles        []string       `json:"roles"`
	Patient      string         `json:"patient"`
	FHIRUser     string         `json:"fhirUser"`
	Name         string         `json:"name"`
	ACR          string         `json:"acr"`
	AMR          []string       `json:"amr"`
	Confirmation jsontext.Value `json:"cnf"`

	// What ID and logout tokens have and access tokens have not.
	Nonce     jsontext.Value `json:"nonce"`
	TokenHash jsontext.Value `json:"at_hash"`
	CodeHash  jsontext.Value `json:"c_hash"`
	StateHash jsontext.Value `json:"s_hash"`
	Events    jsontext.Value `json:"events"`
}

// accepts reports whether the issuer's access tokens have the type (RFC 9068 section 4): never ID, logout or DPoP tokens. Media
// types do not care about case.
func (is *trusted) accepts(typ string) bool {
	return slices.ContainsFunc(is.Types, func(t string) bool { return strings.EqualFold(t, typ) })
}

// issuerOf finds the issuer that a payload names, before its signature is verified: it decides with whose keys that is done,
// and nothing else.
func (v *Verifier) issuerOf(payload []byte) (*trusted, error) {
	var peeked struct {
		Issuer string `json:"iss"`
	}
	if tooDeep(payload) {
		return nil, refuse("claims are nested too deeply")
	}
	if crowded(payload) {
		return nil, refuse("too many claims")
	}
	if err := json.Unmarshal(payload, &peeked); err != nil {
		return nil, refuse("claims do not parse")
	}
	for _, is := range v.issuers {
		if is.Issuer == peeked.Issuer {
			return is, nil
		}
	}
	return nil, refuse("iss is another issuer")
}

// principal decodes a payload whose signature was verified and judges it.
func (is *trusted) principal(payload []byte, on Profile, typ string, now time.Time) (*Principal, error) {
	var c claims
	if tooDeep(payload) {
		return nil, refuse("claims are nested too deeply")
	}
	// This decoder is case-sensitive and refuses duplicate names, invalid UTF-8 and trailing bytes.
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, refuse("claims do not parse")
	}
	if strings.EqualFold(typ, "JWT") && !c.accessToken() {
		return nil, refuse("JWT is no access token")
	}
	return is.judge(c, on, now)
}

// relative makes "Practitioner/1" of an absolute fhirUser that is a record of this server (SMART App Launch 2.2, "Scopes for requesting
// identity data"). One of another server stays as it is, and is nobody here.
func relative(fhirUser, base string) string {
	if own, ok := strings.CutPrefix(fhirUser, base+"/"); ok && base != "" {
		return own
	}
	return fhirUser
}

// judge checks every claim and makes the principal that they are about.
func (is *trusted) judge(c claims, on Profile, now time.Time) (*Principal, error) {
	if c.Issuer != is.Issuer {
		return nil, refuse("iss is another issuer")
	}
	if !meant(c.Audience, is.audience(on)) {
		return nil, refuse("aud does not name this service")
	}
	if err := is.current(c, now); err != nil {
		return nil, err
	}
	if err := c.wellFormed(); err != nil {
		return nil, err
	}
	bound, err := confirmation(c.Confirmation)
	if err != nil {
		return nil, err
	}
	if !is.Binding.accepts(bound) {
		return nil, refuse("token is not bound to its sender")
	}
	p := &Principal{
		Confirmation: bound,
		Subject:      c.Subject, Issuer: c.Issuer, Client: c.Client, Session: c.Session, TokenID: c.ID, Name: c.Name,
		Roles: c.Roles, Scopes: ParseScopes(c.Scope), Patient: c.Patient, FHIRUser: relative(c.FHIRUser, is.base), ACR: c.ACR, AMR: c.AMR,
		Issued: time.Unix(*c.Issued, 0).UTC(), Expires: time.Unix(*c.Expires, 0).UTC(),
	}
	if p.Session == "" {
		p.Session = p.TokenID
	}
	if c.AuthTime != nil {
		p.AuthTime = time.Unix(*c.AuthTime, 0).UTC()
	}
	if !is.AssertsSignIn {
		p.ACR, p.AMR, p.AuthTime = "", nil, time.Time{}
	}
	switch {
	case !is.RolesInToken:
		p.Roles = nil
	case is.Roles != nil:
		p.Roles = slices.DeleteFunc(p.Roles, func(role string) bool { return !slices.Contains(is.Roles, role) })
	}
	return p, nil
}

// accessToken tells an access token of an issuer that types everything JWT from its ID and logout tokens, by what OpenID Connect
// demands of those (Core 1.0 sections 2 and 3.3.2.11, Back-Channel Logout 1.0 section 2.4).
func (c claims) accessToken() bool {
	for _, member := range []jsontext.Value{c.Nonce, c.TokenHash, c.CodeHash, c.StateHash, c.Events} {
		if len(member) != 0 {
			return false
		}
	}
	return c.Client != "" && c.Scope != ""
}

// meant reports whether aud, a string or an array of strings, contains the audience.
func meant(aud jsontext.Value, audience string) bool {
	var one string
	var many []string
	switch aud.Kind() {
	case '"':
		return json.Unmarshal(aud, &one) == nil && one == audience
	case '[':
		if json.Unmarshal(aud, &many) != nil || len(many) > maxAudience {
			return false
		}
		for _, a := range many {
			if a == audience {
				return true
			}
		}
	}
	return false
}

// current checks the times of a token against now, with leeway for skewed clocks. All are whole seconds since 1970.
func (is *trusted) current(c claims, now time.Time) error {
	leeway := int64(is.Leeway / time.Second)
	if c.Expires == nil || c.Issued == nil || *c.Issued < 0 || *c.Expires <= *c.Issued {
		return refuse("exp or iat is missing or out of order")
	}
	switch t := now.Unix(); {
	case *c.Expires <= t-leeway:
		return refuse("expired")
	case *c.Issued > t+leeway:
		return refuse("iat is in the future")
	case c.NotBefore != nil && *c.NotBefore > t+leeway:
		return refuse("nbf is in the future")
	case *c.Expires-*c.Issued > int64(is.MaxLifetime/time.Second):
		return refuse("lifetime is too long")
	case c.AuthTime != nil && (*c.AuthTime < 0 || *c.AuthTime > t+leeway):
		return refuse("auth_time is in the future")
	}
	return nil
}

// wellFormed checks the claims that end up in audit events and decisions.
func (c claims) wellFormed() error {
	switch {
	case !printable(c.Subject, maxName):
		return refuse("sub is missing or not printable")
	case !printable(c.Client, maxName):
		return refuse("client_id is missing or not printable")
	case !printable(c.ID, maxName):
		return refuse("jti is missing or not printable")
	case c.Session != "" && !printable(c.Session, maxName):
		return refuse("sid is not printable")
	case c.ACR != "" && !printable(c.ACR, maxName):
		return refuse("acr is not printable")
	case c.FHIRUser != "" && !printable(c.FHIRUser, maxName):
		return refuse("fhirUser is not printable")
	case c.Patient != "" && !isID(c.Patient):
		return refuse("patient is not a FHIR id")
	case !readable(c.Name):
		return refuse("name is not readable text")
	case !allPrintable(c.Roles, maxRoles):
		return refuse("roles")
	case !allPrintable(c.AMR, maxMethods):
		return refuse("amr")
	}
	return nil
}

func allPrintable(list []string, most int) bool {
	if len(list) > most {
		return false
	}
	for _, s := range list {
		if !printable(s, maxName) {
			return false
		}
	}
	return true
}

// printable reports whether s is non-empty printable ASCII of at most most bytes.
func printable(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// ValidSubject reports whether s can be a Principal.Subject: what no token can name is given no role, whatever it looks like.
func ValidSubject(s string) bool { return printable(s, 400) && strings.TrimSpace(s) == s }

// readable reports whether s, a display name, is printable text in any script.
func readable(s string) bool {
	if utf8.RuneCountInString(s) > maxName {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// isID reports whether s is a FHIR logical id (https://hl7.org/fhir/R4/datatypes.html#id).
func isID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

// maxMembers bounds the names in claims, those in claims that mean nothing here included. A decoder remembers each, to find one that
// comes twice, and nobody has signed for them yet.
const maxMembers = 128

// crowded reports whether JSON text holds more members, or more values in lists, than a token has need of.
func crowded(b []byte) bool {
	members, values, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ':':
			members++
		case c == ',':
			values++
		}
	}
	return members > maxMembers || values > maxMembers+maxRoles+maxMethods+maxAudience+maxListed
}

// tooDeep reports whether JSON text nests deeper than maxDepth, before a parser is let near it.
func tooDeep(b []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}
