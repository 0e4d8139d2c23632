package rest

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/valyala/fasthttp"

	"github.com/chartkeep/chartkeep/auth"
)

// errHeader says that a request's head could be read in two ways.
var errHeader = errors.New("head of the request is not strictly HTTP/1.1")

// unambiguous refuses a head that fasthttp reads leniently and a proxy in front may have read otherwise, which is how requests are
// smuggled past it: lines that end in a bare LF, bare CRs, folded lines (RFC 9112 section 5.2), NUL, headers without a name, spaces in the target, two
// Hosts or none (section 3.2), Transfer-Encoding beside Content-Length (section 6.1) or in HTTP/1.0. Two Content-Lengths, names
// with spaces and unknown codings are refused by fasthttp itself. What HTTP takes off a value, space at its end, makes no other
// token of one, and is refused as what it is: nobody's spelling.
func unambiguous(h *fasthttp.RequestHeader) error {
	http10 := string(h.Protocol()) == "HTTP/1.0"
	if !http10 && string(h.Protocol()) != "HTTP/1.1" || bytes.ContainsAny(h.RequestURI(), " \t\x00") {
		return errHeader
	}
	raw := h.RawHeaders()
	if bytes.IndexByte(raw, 0) >= 0 || bytes.Count(raw, []byte{'\r'}) != bytes.Count(raw, []byte{'\n'}) {
		return errHeader
	}
	hosts, lengths, codings := 0, 0, 0
	for len(raw) > 0 {
		end := bytes.IndexByte(raw, '\n')
		if end < 1 || raw[end-1] != '\r' || raw[0] == ' ' || raw[0] == '\t' || raw[0] == ':' {
			return errHeader
		}
		line := raw[:end-1]
		raw = raw[end+1:]
		switch {
		case named(line, "host:"):
			hosts++
		case named(line, "content-length:"):
			lengths++
		case named(line, "transfer-encoding:"):
			codings++
		case named(line, "authorization:") && line[len(line)-1] == ' ' && len(bytes.TrimSpace(line[len("authorization:"):])) > len("Bearer"):
			return fmt.Errorf("%w: space after the token", auth.ErrToken)
		}
	}
	if hosts > 1 || hosts == 0 && !http10 || codings > 1 || codings == 1 && (lengths > 0 || http10) {
		return errHeader
	}
	return nil
}

// named reports whether a line begins with a name, given in lower case with its colon.
func named(line []byte, name string) bool {
	return len(line) >= len(name) && line[0]|0x20 == name[0] && bytes.EqualFold(line[:len(name)], []byte(name))
}
