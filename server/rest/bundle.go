package rest

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Bundles are made by appending bytes around the resources' own text, which is never decoded here.

// appendString appends s as a JSON string. Invalid UTF-8 (an echoed search parameter may hold it) becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	out, _ := jsontext.AppendQuote(dst, s) // the error is about invalid UTF-8, which was replaced
	return out
}

// appendMember appends ,"name":"value"; the comma is left out after an opening brace.
func appendMember(dst []byte, name, value string) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	dst = appendString(dst, name)
	dst = append(dst, ':')
	return appendString(dst, value)
}

func appendOutcome(dst []byte, issues []fhir.Issue) []byte {
	dst = append(dst, `{"resourceType":"OperationOutcome","issue":[`...)
	for i, is := range issues {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, '{')
		dst = appendMember(dst, "severity", is.Severity)
		dst = appendMember(dst, "code", is.Code)
		if is.Diagnostics != "" {
			dst = appendMember(dst, "diagnostics", is.Diagnostics)
		}
		if is.Expression != "" {
			dst = append(dst, `,"expression":[`...)
			dst = appendString(dst, is.Expression)
			dst = append(dst, ']')
		}
		dst = append(dst, '}')
	}
	return append(dst, `]}`...)
}

// appendRecord appends what is shown of a record and clears where it stood: the body that is written is the copy that is left.
func appendRecord(dst []byte, p phi.PHI) []byte {
	dst = append(dst, p.Reveal()...)
	p.Clear()
	return dst
}

// room is the size of what a page needs: its resources and a little around each.
func room(p *phi.Page) int {
	n := 512
	for _, r := range p.Resources {
		n += r.JSON.Len() + 256
	}
	return n
}

// appendSearchset appends a page of a search (http://hl7.org/fhir/R4/bundle.html#searchset).
func appendSearchset(dst []byte, base, resourceType string, p *phi.Page) []byte {
	if dst == nil {
		dst = make([]byte, 0, room(p))
	}
	dst = append(dst, `{"resourceType":"Bundle","type":"searchset"`...)
	if p.Total >= 0 {
		dst = append(dst, `,"total":`...)
		dst = strconv.AppendInt(dst, int64(p.Total), 10)
	}
	self := base + "/" + resourceType
	for i, s := range p.Self {
		self += string("?&"[min(i, 1)]) + url.QueryEscape(s.Name) + "=" + url.QueryEscape(s.Value)
	}
	dst = appendLinks(dst, self, base+"/"+resourceType, p.Next)
	entries := entryList{dst: dst}
	for _, r := range p.Resources {
		dst = entries.next()
		dst = appendMember(dst, "fullUrl", base+"/"+r.Type+"/"+r.ID)
		dst = append(dst, `,"resource":`...)
		dst = appendRecord(dst, r.JSON)
		entries.dst = append(dst, `,"search":{"mode":"match"}}`...)
	}
	if len(p.Warnings) > 0 {
		dst = append(entries.next(), `"resource":`...)
		dst = appendOutcome(dst, p.Warnings)
		entries.dst = append(dst, `,"search":{"mode":"outcome"}}`...)
	}
	return entries.end()
}

// appendHistory appends a page of a history, whose entries say what made each version. path is relative to base.
func appendHistory(dst []byte, base, path string, p *phi.Page) []byte {
	if dst == nil {
		dst = make([]byte, 0, room(p))
	}
	dst = append(dst, `{"resourceType":"Bundle","type":"history"`...)
	if p.Total >= 0 {
		dst = append(dst, `,"total":`...)
		dst = strconv.AppendInt(dst, int64(p.Total), 10)
	}
	dst = appendLinks(dst, base+"/"+path, base+"/"+path, p.Next)
	entries := entryList{dst: dst}
	for _, r := range p.Resources {
		dst = entries.next()
		dst = appendMember(dst, "fullUrl", base+"/"+r.Type+"/"+r.ID)
		if !r.Deleted && r.JSON.Len() > 0 {
			dst = append(dst, `,"resource":`...)
			dst = appendRecord(dst, r.JSON)
		}
		target, status := r.Type+"/"+r.ID, "200 OK"
		switch {
		case r.Method == http.MethodPost:
			target, status = r.Type, "201 Created"
		case r.Method == http.MethodDelete:
			status = "204 No Content"
		case r.Version == 1:
			status = "201 Created"
		}
		dst = append(dst, `,"request":{`...)
		dst = appendMember(dst, "method", r.Method)
		dst = appendMember(dst, "url", target)
		dst = append(dst, `},"response":{`...)
		dst = appendMember(dst, "status", status)
		dst = appendVersion(dst, r)
		entries.dst = append(dst, `}}`...)
	}
	if len(p.Warnings) > 0 {
		// An entry of a history must have request and response (bdl-3, bdl-4).
		dst = append(entries.next(), `"resource":`...)
		dst = appendOutcome(dst, p.Warnings)
		dst = append(dst, `,"request":{"method":"GET","url":`...)
		dst = appendString(dst, path)
		entries.dst = append(dst, `},"response":{"status":"200 OK"}}`...)
	}
	return entries.end()
}

// appendLinks appends the links of a page. next is an opaque token: a link must not carry what was searched for.
func appendLinks(dst []byte, self, target, next string) []byte {
	dst = append(dst, `,"link":[{"relation":"self","url":`...)
	dst = appendString(dst, self)
	dst = append(dst, '}')
	if next != "" {
		dst = append(dst, `,{"relation":"next","url":`...)
		dst = appendString(dst, target+"?_page="+url.QueryEscape(next))
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

// entryList writes Bundle.entry, which must not be there when it is empty.
type entryList struct {
	dst []byte
	any bool
}

// next opens an entry.
func (e *entryList) next() []byte {
	if !e.any {
		e.any = true
		return append(e.dst, `,"entry":[{`...)
	}
	return append(e.dst, `,{`...)
}

// end closes the list and the bundle.
func (e *entryList) end() []byte {
	if e.any {
		e.dst = append(e.dst, ']')
	}
	return append(e.dst, '}')
}

// appendVersion appends etag and lastModified of an entry's response.
func appendVersion(dst []byte, r *phi.Resource) []byte {
	if r.Version == 0 {
		return dst
	}
	dst = appendMember(dst, "etag", etag(r.Version))
	return appendMember(dst, "lastModified", instant(r.Updated))
}

// locationOf is the absolute URL of a version.
func locationOf(base string, r *phi.Resource) string {
	return base + "/" + r.Type + "/" + r.ID + "/_history/" + strconv.FormatInt(r.Version, 10)
}

// appendBundleResult appends the response of a transaction or batch, in the order of the request. Resources that were
// written are included when the client asked for representations. searched names the type that an entry searched.
func appendBundleResult(dst []byte, base string, b *phi.BundleResult, ret string, searched func(entry int) string) []byte {
	dst = append(dst, `{"resourceType":"Bundle"`...)
	dst = appendMember(dst, "type", b.Type)
	entries := entryList{dst: dst}
	for i := range b.Entries {
		e := &b.Entries[i]
		var page []byte
		if e.Page != nil {
			page = appendSearchset(nil, base, searched(i), e.Page)
		}
		entries.dst = appendEntryResult(entries.next(), base, e, page, ret)
	}
	return entries.end()
}

// appendEntryResult appends the rest of an entry whose brace is open. page is the searchset of an entry that searched.
func appendEntryResult(dst []byte, base string, e *phi.EntryResult, page []byte, ret string) []byte {
	var status string
	resource := phi.Conceal(page)
	var version *phi.Resource
	var failure []byte
	location := ""
	switch {
	case e.Err != nil:
		r := refused(e.Err)
		status = statusLine(r.status)
		failure = outcome(r)
	case e.Written != nil:
		status = statusLine(http.StatusOK)
		if e.Method == http.MethodDelete {
			status = statusLine(http.StatusNoContent)
		} else if e.Written.Created {
			status = statusLine(http.StatusCreated)
		}
		if version = e.Written.Resource; version != nil && e.Method != http.MethodDelete {
			location = locationOf(base, version)
			if ret == "representation" {
				resource = version.JSON
			}
		}
	case e.Resource != nil:
		status, version, resource = statusLine(http.StatusOK), e.Resource, e.Resource.JSON
	case e.Page != nil:
		status = statusLine(http.StatusOK)
	}
	if resource.Len() > 0 {
		if version != nil {
			dst = appendMember(dst, "fullUrl", base+"/"+version.Type+"/"+version.ID)
			dst = append(dst, ',')
		}
		dst = append(dst, `"resource":`...)
		dst = appendRecord(dst, resource)
		dst = append(dst, ',')
	}
	dst = append(dst, `"response":{`...)
	dst = appendMember(dst, "status", status)
	if location != "" {
		dst = appendMember(dst, "location", location)
	}
	if version != nil {
		dst = appendVersion(dst, version)
	}
	if failure != nil {
		dst = append(dst, `,"outcome":`...)
		dst = append(dst, failure...)
	}
	return append(dst, `}}`...)
}

func statusLine(status int) string { return strconv.Itoa(status) + " " + http.StatusText(status) }

// instant formats a time as a FHIR instant in UTC.
func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
