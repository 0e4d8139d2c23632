package auth

import (
	"bytes"
	"fmt"
)

// Credentials are what a request shows of its caller, as it was received. None of the bytes are kept.
type Credentials struct {
	Profile       Profile  // of the route
	Authorization [][]byte // values of all Authorization headers
	Proofs        [][]byte // values of all DPoP headers (RFC 9449 section 4.1); needed with the DPoP scheme only
	Method, URL   string   // of the request; URL as the client addressed it, without query and fragment. Needed with Proofs only
	Certificate   []byte   // DER of the certificate by which the client authenticated in TLS (RFC 8705), nil without one
	Proven        bool     // the connection has shown the proof of this token before: possession is not asked for again
}

// scheme is how a token is presented.
type scheme uint8

const (
	schemeBearer scheme = iota // RFC 6750
	schemeDPoP                 // RFC 9449
)

// token takes the token out of the Authorization headers (RFC 6750 section 2.1, RFC 9110 section 11.4). Two headers, or
// two credentials in one, are a malformed request: proxies and frameworks disagree about which of them counts.
func (c *Credentials) token() (scheme, []byte, error) {
	switch {
	case len(c.Authorization) == 0:
		return 0, nil, ErrNoToken
	case len(c.Authorization) > 1:
		return 0, nil, fmt.Errorf("%w: more than one Authorization header", ErrRequest)
	}
	h := c.Authorization[0]
	as, rest, ok := schemeBearer, h, false
	for s, name := range [...]string{schemeBearer: "Bearer", schemeDPoP: "DPoP"} {
		if len(h) >= len(name) && bytes.EqualFold(h[:len(name)], []byte(name)) {
			as, rest, ok = scheme(s), h[len(name):], true
			break
		}
	}
	switch {
	case !ok, len(rest) == 0, string(rest) == " ":
		return 0, nil, ErrNoToken
	case rest[0] != ' ':
		return 0, nil, refuse("scheme and token are not separated by one space")
	case len(rest)-1 < minToken || len(rest)-1 > maxToken:
		if bytes.IndexByte(rest, ',') >= 0 {
			return 0, nil, fmt.Errorf("%w: more than one credential", ErrRequest)
		}
		return 0, nil, refuse("token length")
	default:
		return as, rest[1:], nil
	}
}
