package rest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
	"github.com/valyala/fasthttp"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// resourceType is the type that the path names, in our own text.
func (c *call) resourceType() (string, error) {
	name := c.http.Params("type")
	if t, ok := c.s.types[name]; ok {
		return t, nil
	}
	if name == trailType && c.http.Method() != http.MethodGet && c.http.Method() != http.MethodHead {
		c.http.Response().Header.Set("Allow", "GET, HEAD, OPTIONS")
		return "", &refusal{status: http.StatusMethodNotAllowed, code: "not-supported", text: "audit events are recorded by the server and cannot be written"}
	}
	return "", &refusal{status: http.StatusNotFound, code: "not-supported", text: "this resource type is not served"}
}

// ref is the record that the path names.
func (c *call) ref() (phi.Ref, error) {
	t, err := c.resourceType()
	if err != nil {
		return phi.Ref{}, err
	}
	id := c.http.Params("id")
	if !fhir.ValidID(id) {
		return phi.Ref{}, &refusal{status: http.StatusNotFound, code: "not-found", text: "no such resource"}
	}
	return phi.Ref{Type: t, ID: string(append([]byte(nil), id...))}, nil
}

// target is what most handlers begin with: representation, record, caller.
func (c *call) target() (phi.Ref, *phi.Caller, error) {
	if err := c.negotiate(); err != nil {
		return phi.Ref{}, nil, err
	}
	ref, err := c.ref()
	if err != nil {
		return phi.Ref{}, nil, err
	}
	who, err := c.caller()
	return ref, who, err
}

func (c *call) read() error {
	ref, who, err := c.target()
	if err != nil {
		return err
	}
	r, err := c.s.cfg.Records.Read(c.ctx, who, ref)
	if err != nil {
		return err
	}
	c.versioned(r)
	if c.unchanged(r.Version, r.Updated) {
		c.http.Response().SetStatusCode(http.StatusNotModified)
		return nil
	}
	return c.send(http.StatusOK, r.JSON.Reveal())
}

func (c *call) readVersion() error {
	ref, who, err := c.target()
	if err != nil {
		return err
	}
	version, ok := parseVersion(c.http.Params("vid"))
	if !ok {
		return &refusal{status: http.StatusNotFound, code: "not-found", text: "no such resource"}
	}
	r, err := c.s.cfg.Records.ReadVersion(c.ctx, who, ref, version)
	if err != nil {
		return err
	}
	c.versioned(r)
	return c.send(http.StatusOK, r.JSON.Reveal())
}

func (c *call) history() error {
	ref, who, err := c.target()
	if err != nil {
		return err
	}
	list, err := params(nil, c.http.Context().QueryArgs())
	if err != nil {
		return err
	}
	count, page, strict := 0, "", c.prefer().strict
	var ignored []fhir.Issue
	for _, p := range list {
		switch p.Name {
		case "_count":
			if count, err = strconv.Atoi(p.Value); err != nil || count < 1 {
				return invalid("_count is a number from 1 on")
			}
		case "_page":
			page = p.Value
		default:
			if strict {
				return &refusal{status: http.StatusBadRequest, code: "not-supported", text: "a parameter is not supported for histories"}
			}
			ignored = []fhir.Issue{{Severity: "warning", Code: "not-supported", Diagnostics: "a parameter is not supported for histories and was ignored"}}
		}
	}
	p, err := c.s.cfg.Records.History(c.ctx, who, ref, count, page)
	if err != nil {
		return err
	}
	p.Warnings = append(p.Warnings, ignored...)
	self := ref.String() + "/_history"
	return c.send(http.StatusOK, appendHistory(nil, c.s.cfg.Base, self, p))
}

func (c *call) search() error {
	list, err := c.searchParams()
	if err != nil {
		return err
	}
	if err := c.negotiate(); err != nil {
		return err
	}
	t, err := c.resourceType()
	if err != nil {
		return err
	}
	who, err := c.caller()
	if err != nil {
		return err
	}
	p, err := c.s.cfg.Records.Search(c.ctx, who, t, list, c.prefer().strict)
	if err != nil {
		return err
	}
	return c.send(http.StatusOK, appendSearchset(nil, c.s.cfg.Base, t, p))
}

// searchParams are the parameters of the URL and, of a POST, those of the form, which are kept out of the URL.
func (c *call) searchParams() ([]phi.Param, error) {
	list, err := params(nil, c.http.Context().QueryArgs())
	if err != nil || c.http.Method() != http.MethodPost {
		return list, err
	}
	if len(c.http.Request().Body()) == 0 {
		return list, nil
	}
	form, err := c.form()
	if err != nil {
		return nil, err
	}
	return params(list, form)
}

func (c *call) create() error {
	if err := c.negotiate(); err != nil {
		return err
	}
	t, err := c.resourceType()
	if err != nil {
		return err
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	var condition []phi.Param
	if h := c.http.Request().Header.PeekAll("If-None-Exist"); len(h) > 0 {
		var args fasthttp.Args
		args.ParseBytes(bytes.TrimPrefix(h[0], []byte("?")))
		if condition, err = params(nil, &args); err != nil {
			return err
		}
		if len(h) > 1 || len(condition) == 0 {
			return invalid("If-None-Exist must hold search parameters, once")
		}
	}
	who, err := c.caller()
	if err != nil {
		return err
	}
	w, err := c.s.cfg.Records.Create(c.ctx, who, t, body, condition)
	if err != nil {
		return err
	}
	return c.written(w)
}

func (c *call) update() error {
	ref, who, err := c.target()
	if err != nil {
		return err
	}
	if len(c.http.Request().Header.PeekAll("If-None-Match")) > 0 {
		// FHIR has no such update. Ignored, it would overwrite what the client believes to be protected.
		return invalid("If-None-Match is not supported for updates; use If-Match")
	}
	match, err := c.ifMatch()
	if err != nil {
		return err
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	w, err := c.s.cfg.Records.Update(c.ctx, who, ref, body, match)
	if err != nil {
		return err
	}
	return c.written(w)
}

func (c *call) remove() error {
	ref, who, err := c.target()
	if err != nil {
		return err
	}
	match, err := c.ifMatch()
	if err != nil {
		return err
	}
	w, err := c.s.cfg.Records.Delete(c.ctx, who, ref, match)
	if err != nil {
		return err
	}
	if w != nil && w.Resource != nil && w.Version > 0 {
		c.http.Response().Header.Set("ETag", etag(w.Version))
	}
	if c.prefer().ret == "OperationOutcome" {
		return c.send(http.StatusOK, appendOutcome(nil, []fhir.Issue{{Severity: "information", Code: "informational", Diagnostics: "deleted"}}))
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

// bundle is a transaction or a batch.
func (c *call) bundle() error {
	if err := c.negotiate(); err != nil {
		return err
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	who, err := c.caller()
	if err != nil {
		return err
	}
	b, err := c.s.cfg.Records.Bundle(c.ctx, who, body)
	if err != nil {
		if r := refused(err); r.status == http.StatusMethodNotAllowed { // an entry of the transaction, not the method of this request
			r.status = http.StatusUnprocessableEntity
			return r
		}
		return err
	}
	// A page does not say of which type it is; the request does.
	urls := gjson.GetBytes(body, "entry.#.request.url").Array()
	searched := func(entry int) string {
		if entry >= len(urls) {
			return ""
		}
		t, _, _ := strings.Cut(urls[entry].String(), "?")
		return c.s.types[strings.Trim(strings.TrimPrefix(t, c.s.cfg.Base), "/")]
	}
	return c.send(http.StatusOK, appendBundleResult(nil, c.s.cfg.Base, b, c.prefer().ret, searched))
}

// written answers a create or an update. The representation is sent unless the client prefers less.
func (c *call) written(w *phi.Written) error {
	status := http.StatusOK
	c.versioned(w.Resource)
	location := locationOf(c.s.cfg.Base, w.Resource)
	if w.Created {
		status = http.StatusCreated
	} else {
		c.http.Response().Header.Set("Content-Location", location)
	}
	if w.Created || w.Unchanged { // a conditional create learns where its match is
		c.http.Response().Header.Set("Location", location)
	}
	switch c.prefer().ret {
	case "minimal":
		c.http.Response().SetStatusCode(status)
		return nil
	case "OperationOutcome":
		text := "stored"
		if w.Unchanged {
			text = "a matching resource exists; nothing was stored"
		}
		return c.send(status, appendOutcome(nil, append([]fhir.Issue{{Severity: "information", Code: "informational", Diagnostics: text}}, w.Warnings...)))
	}
	return c.send(status, w.JSON.Reveal())
}

// versioned sets the headers that name a version.
func (c *call) versioned(r *phi.Resource) {
	h := &c.http.Response().Header
	h.Set("ETag", etag(r.Version))
	var stamp [len(http.TimeFormat)]byte
	h.SetBytesV("Last-Modified", r.Updated.UTC().AppendFormat(stamp[:0], http.TimeFormat))
}

func etag(version int64) string { return `W/"` + strconv.FormatInt(version, 10) + `"` }

// send answers with FHIR JSON, which it takes over.
func (c *call) send(status int, body []byte) error {
	if c.pretty {
		var b bytes.Buffer
		if json.Indent(&b, body, "", "  ") == nil { // white space only: every value keeps its text
			body = b.Bytes()
		}
	}
	res := c.http.Response()
	res.SetStatusCode(status)
	res.Header.SetContentType(mediaFHIR)
	res.SetBodyRaw(body)
	return nil
}
