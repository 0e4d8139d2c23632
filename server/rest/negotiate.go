package rest

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/chartkeep/chartkeep/phi"
)

const (
	mediaFHIR = "application/fhir+json; charset=utf-8"
	mediaJSON = "application/json"
	mediaForm = "application/x-www-form-urlencoded"
)

// maxForm bounds a form, in bytes: one of many small fields takes fifty times its size when it is parsed, and what is asked in a URL
// has to fit into 16 KiB.
const maxForm = 64 << 10

// negotiate settles the representation: JSON is the only one (http://hl7.org/fhir/R4/http.html#mime-type). _format, when
// given, goes before Accept.
func (c *call) negotiate() error {
	q := c.http.Context().QueryArgs()
	switch string(q.Peek("_pretty")) {
	case "", "false":
	case "true":
		c.pretty = true
	default:
		return invalid("_pretty is true or false")
	}
	format := q.Peek("_format")
	if len(format) == 0 {
		format = c.http.Request().Header.Peek("Accept")
	}
	switch string(format) { // what nearly every request says, without cutting strings
	case "", "json", "*/*", mediaJSON, "application/fhir+json":
		return nil
	}
	// A bare "+" in a query is a space.
	for _, part := range strings.Split(strings.ReplaceAll(string(format), "fhir json", "fhir+json"), ",") {
		if jsonRange(part) {
			return nil
		}
	}
	return &refusal{status: http.StatusNotAcceptable, code: "not-supported", text: "only JSON is served: application/fhir+json"}
}

// jsonRange reports whether a media range of an Accept header takes FHIR JSON 4.0.
func jsonRange(part string) bool {
	media, params, _ := strings.Cut(part, ";")
	switch strings.ToLower(strings.TrimSpace(media)) {
	case "*/*", "application/*", "application/fhir+json", "application/json", "text/json":
	default:
		return false
	}
	for _, p := range strings.Split(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		switch strings.ToLower(name) {
		case "q":
			if q, err := strconv.ParseFloat(value, 64); err != nil || q <= 0 {
				return false
			}
		case "fhirversion":
			if v := strings.Trim(value, `"`); v != "4.0" && v != "4.0.1" {
				return false
			}
		}
	}
	return true
}

// body returns the request's JSON body, borrowed until the handler returns. A compressed body is refused: Fiber would
// unpack it without a bound.
func (c *call) body() ([]byte, error) {
	if err := c.media("application/fhir+json", mediaJSON); err != nil {
		return nil, err
	}
	b := c.http.Request().Body()
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, &refusal{status: http.StatusBadRequest, code: "required", text: "a body is needed"}
	}
	return b, nil
}

// media demands a Content-Type out of allowed, in UTF-8, and no Content-Encoding.
func (c *call) media(allowed ...string) error {
	h := &c.http.Request().Header
	if e := h.ContentEncoding(); len(e) > 0 && !bytes.EqualFold(e, []byte("identity")) {
		c.http.Response().Header.Set("Accept-Encoding", "identity")
		return &refusal{status: http.StatusUnsupportedMediaType, code: "not-supported", text: "a Content-Encoding is not supported"}
	}
	media, params, _ := strings.Cut(string(h.ContentType()), ";")
	ok := false
	for _, a := range allowed {
		ok = ok || strings.EqualFold(strings.TrimSpace(media), a)
	}
	for _, p := range strings.Split(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		value = strings.Trim(value, `"`)
		if strings.EqualFold(name, "charset") && !strings.EqualFold(value, "utf-8") {
			ok = false
		}
		if strings.EqualFold(name, "fhirVersion") && value != "4.0" && value != "4.0.1" {
			ok = false
		}
	}
	if !ok {
		return &refusal{status: http.StatusUnsupportedMediaType, code: "not-supported", text: "the Content-Type must be " + allowed[0] + " in UTF-8"}
	}
	return nil
}

// prefer is the Prefer header (RFC 7240), as far as FHIR uses it.
type prefer struct {
	ret    string // representation, minimal, OperationOutcome; "" when the client does not say
	strict bool   // handling=strict
}

func (c *call) prefer() prefer {
	var p prefer
	for _, h := range c.http.Request().Header.PeekAll("Prefer") {
		for _, part := range strings.FieldsFunc(string(h), func(r rune) bool { return r == ',' || r == ';' }) {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch value = strings.Trim(value, `"`); name {
			case "return":
				if value == "minimal" || value == "representation" || value == "OperationOutcome" {
					p.ret = value
				}
			case "handling":
				p.strict = value == "strict"
			}
		}
	}
	return p
}

// ifMatch parses If-Match: the version that must be current, 0 when there is none. A list, a star or a tag that is not
// one of ours is refused rather than ignored: the client believes itself protected.
func (c *call) ifMatch() (int64, error) {
	values := c.http.Request().Header.PeekAll("If-Match")
	if len(values) == 0 {
		return 0, nil
	}
	if len(values) == 1 {
		if v, ok := parseETag(string(values[0])); ok {
			return v, nil
		}
	}
	return 0, invalid(`If-Match must hold one version, as W/"3"`)
}

// parseETag parses W/"3" or "3".
func parseETag(s string) (int64, bool) {
	s = strings.TrimPrefix(strings.TrimSpace(s), "W/")
	if len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' {
		return 0, false
	}
	return parseVersion(s[1 : len(s)-1])
}

// parseVersion parses a version id as we write it: decimal digits, no sign, no leading zero.
func parseVersion(s string) (int64, bool) {
	if s == "" || s[0] < '1' || s[0] > '9' {
		return 0, false
	}
	v, err := strconv.ParseInt(s, 10, 64)
	return v, err == nil
}

// unchanged reports whether the client holds this version already: If-None-Match, or else If-Modified-Since (RFC 9110
// section 13.2.2).
func (c *call) unchanged(version int64, updated time.Time) bool {
	h := &c.http.Request().Header
	if tags := h.PeekAll("If-None-Match"); len(tags) > 0 {
		for _, t := range tags {
			for _, tag := range strings.Split(string(t), ",") {
				if strings.TrimSpace(tag) == "*" {
					return true
				}
				if v, ok := parseETag(tag); ok && v == version {
					return true
				}
			}
		}
		return false
	}
	if since := h.Peek("If-Modified-Since"); len(since) > 0 {
		t, err := http.ParseTime(string(since))
		return err == nil && !updated.Truncate(time.Second).After(t)
	}
	return false
}

// form parses the request's form.
func (c *call) form() (*fasthttp.Args, error) {
	if err := c.media(mediaForm); err != nil {
		return nil, err
	}
	body := c.http.Request().Body()
	if len(body) > maxForm {
		return nil, &refusal{status: http.StatusRequestEntityTooLarge, code: "too-long", text: "form too large"}
	}
	var form fasthttp.Args
	form.ParseBytes(body)
	return &form, nil
}

// params copies the parameters of a query or a form in their order, without those that are about the representation.
func params(dst []phi.Param, args queryArgs) ([]phi.Param, error) {
	bad := false
	args.VisitAll(func(key, value []byte) {
		switch string(key) {
		case "access_token":
			bad = true
		case "", "_format", "_pretty":
		default:
			dst = append(dst, phi.Param{Name: string(key), Value: string(value)})
		}
	})
	if bad {
		return nil, tokenInRequest()
	}
	return dst, nil
}

// queryArgs is fasthttp's parsed query.
type queryArgs interface {
	VisitAll(func(key, value []byte))
}
