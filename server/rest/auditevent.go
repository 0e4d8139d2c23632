package rest

import (
	"net/http"
	"net/url"
	"slices"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/balp"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// The trail as FHIR R4 AuditEvents after IHE BALP (package audit/balp): read and search-type, nothing else. It needs what the
// officers' API needs, the capability audit:read, and a user/ or system/ scope on AuditEvent. patient/ scopes do not do: an
// event tells about workforce members, too.

const trailType = "AuditEvent"

// auditEvent reads one AuditEvent.
func (c *call) auditEvent() error {
	if err := c.trailCall(auth.Read); err != nil {
		return err
	}
	s, err := c.inspected()
	if err != nil {
		return err
	}
	c.versioned(&phi.Resource{Version: 1, Updated: s.Ingested})
	if c.unchanged(1, s.Ingested) {
		c.http.Response().SetStatusCode(http.StatusNotModified)
		return nil
	}
	return c.send(http.StatusOK, balp.Append(nil, s, c.s.observer()))
}

// auditEvents searches AuditEvents, newest first.
func (c *call) auditEvents() error {
	if err := c.trailCall(auth.Search); err != nil {
		return err
	}
	list, err := c.searchParams()
	if err != nil {
		return err
	}
	t := trailSearch{base: c.s.cfg.Base, issuer: c.s.cfg.Issuer.Issuer, count: 50, alternatives: [][]audit.Term{nil}}
	if err := t.parse(list, c.prefer().strict); err != nil {
		return err
	}
	place := t.place()
	if t.page != "" && (!c.s.cursors.open(place, t.page) || place.query.Forward != t.forward) {
		return invalid("_page is not one that this search was given")
	}
	if err := c.recordTrailSearch(&t); err != nil {
		return err
	}
	found, err := c.union(&t, place.query.After)
	if err != nil {
		return unavailable(err)
	}
	next := ""
	if found.Next != (audit.Position{}) {
		next = c.s.cursors.seal(place, found.Next, t.forward)
	}
	return c.send(http.StatusOK, t.appendBundle(nil, found.Events, next, c.s.observer()))
}

// trailCall checks what both interactions demand beyond the capability.
func (c *call) trailCall(letter auth.Interaction) error {
	if err := c.negotiate(); err != nil {
		return err
	}
	scopes := c.principal.Scopes
	if !scopes.Covers(auth.LevelUser, trailType, letter) && !scopes.Covers(auth.LevelSystem, trailType, letter) {
		d := auth.Decision{Rule: c.granted.Rule, Reason: auth.ReasonScope, Policy: c.granted.Policy}
		return &refusal{status: http.StatusForbidden, code: "forbidden", text: "not permitted", decision: &d}
	}
	return nil
}

// observer is this server in AuditEvents.
func (s *Server) observer() balp.Source {
	return balp.Source{Base: s.cfg.Base, Issuer: s.cfg.Issuer.Issuer}
}

// recordTrailSearch makes the event of the search durable: what was asked, sealed, and whom and what it named.
func (c *call) recordTrailSearch(t *trailSearch) error {
	e := c.adminEvent(audit.TypeAuditLogUsed)
	e.Entities = append([]audit.Entity{{Type: trailType}}, t.named...)
	e.Patient = t.patient
	if text := t.query(); text != "" {
		e.Query = c.s.cfg.Records.SealQuery(text, trailType)
	}
	_, err := c.record(c.s.cfg.Level.Disclosure, e)
	return err
}

// union looks for each alternative and merges what is found into one page.
func (c *call) union(t *trailSearch, after audit.Position) (audit.Found, error) {
	var page audit.Found
	if t.count == 0 { // asks for the total only, which is left out: nobody counts the trail for a search
		return page, nil
	}
	direction := -1
	if t.forward {
		direction = 1
	}
	for _, terms := range t.alternatives {
		q := audit.Query{Terms: terms, From: t.from, To: t.to, After: after, Forward: t.forward, Limit: t.count}
		quiet(&q)
		found, err := c.s.cfg.Trail.Find(c.ctx, q)
		if err != nil {
			return page, err
		}
		page.Events = append(page.Events, found.Events...)
		// What lies beyond the place that the slowest alternative has reached has to wait.
		if found.Next != (audit.Position{}) && (page.Next == (audit.Position{}) || found.Next.Compare(page.Next)*direction < 0) {
			page.Next = found.Next
		}
	}
	slices.SortFunc(page.Events, func(a, b audit.Stored) int { return a.Position().Compare(b.Position()) * direction })
	page.Events = slices.CompactFunc(page.Events, func(a, b audit.Stored) bool { return a.Event.ID == b.Event.ID })
	if page.Next != (audit.Position{}) {
		page.Events = slices.DeleteFunc(page.Events, func(s audit.Stored) bool { return s.Position().Compare(page.Next)*direction > 0 })
	}
	if len(page.Events) > t.count {
		page.Events = page.Events[:t.count]
		page.Next = page.Events[t.count-1].Position()
	}
	return page, nil
}

// appendBundle appends the page as a searchset.
func (t *trailSearch) appendBundle(dst []byte, events []audit.Stored, next string, source balp.Source) []byte {
	self := t.base + "/" + trailType
	separator := "?"
	if q := t.query(); q != "" {
		self, separator = self+"?"+q, "&"
	}
	dst = append(dst, `{"resourceType":"Bundle","type":"searchset","link":[{"relation":"self","url":`...)
	dst = appendString(dst, self)
	if next != "" {
		dst = append(dst, `},{"relation":"next","url":`...)
		dst = appendString(dst, self+separator+pageParam+"="+url.QueryEscape(next))
	}
	entries := entryList{dst: append(dst, `}]`...)}
	for i := range events {
		dst = entries.next()
		dst = appendMember(dst, "fullUrl", t.base+"/"+trailType+"/"+events[i].Event.ID.String())
		dst = append(dst, `,"resource":`...)
		dst = balp.Append(dst, &events[i], source)
		entries.dst = append(dst, `,"search":{"mode":"match"}}`...)
	}
	if len(t.warnings) > 0 {
		dst = append(entries.next(), `"resource":`...)
		dst = appendOutcome(dst, t.warnings)
		entries.dst = append(dst, `,"search":{"mode":"outcome"}}`...)
	}
	return entries.end()
}

// trailCapability is AuditEvent in the CapabilityStatement.
func trailCapability() resourceMode {
	m := resourceMode{
		Type: trailType, Interaction: []coded{{"read"}, {"search-type"}}, Versioning: "no-version", ConditionalRead: "full-support",
		Documentation: "The audit trail, after IHE BALP 1.1. It is never writable. Needs the capability audit:read and a user/ or system/ scope.",
	}
	for _, name := range balp.Profiles() {
		m.SupportedProfile = append(m.SupportedProfile, balp.ProfileBase+name)
	}
	for _, p := range trailParams() {
		m.SearchParam = append(m.SearchParam, searchParam{Name: p.name, Type: p.kind, Documentation: p.documentation})
	}
	return m
}
