package rest

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// eventJSON is an event as officers see it. Times are RFC 3339 in UTC, durations microseconds, hashes and ids hex.
type eventJSON struct {
	ID          string       `json:"id"`
	Recorded    time.Time    `json:"recorded"`
	Ingested    time.Time    `json:"ingested"`
	Type        string       `json:"type"`
	Interaction string       `json:"interaction"`
	Action      string       `json:"action"`
	Outcome     int8         `json:"outcome"` // FHIR's 0, 4, 8, 12; -1 is an intent whose outcome is another event
	OutcomeDesc string       `json:"outcome_desc,omitempty"`
	Agent       agentJSON    `json:"agent"`
	Purpose     string       `json:"purpose,omitempty"`
	Patient     string       `json:"patient,omitempty"`
	Entities    []entityJSON `json:"entities"`
	Classes     []string     `json:"classes"`
	Decision    decisionJSON `json:"decision"` // why allowed, or why not
	RequestID   string       `json:"request_id,omitempty"`
	Correlation string       `json:"correlation,omitempty"`
	Timing      timingJSON   `json:"timing"`
	Stream      string       `json:"stream"`
	Seq         uint64       `json:"seq"`
	Leaf        string       `json:"leaf"`
}

type agentJSON struct {
	User     string   `json:"user,omitempty"`
	Name     string   `json:"name,omitempty"`
	Client   string   `json:"client,omitempty"`
	Session  string   `json:"session,omitempty"`
	Roles    []string `json:"roles,omitempty"`
	Network  string   `json:"network,omitempty"`
	FHIRUser string   `json:"fhir_user,omitempty"`
}

type entityJSON struct {
	Type    string `json:"type"`
	ID      string `json:"id,omitempty"`
	Version int64  `json:"version,omitempty"`
}

type decisionJSON struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule,omitempty"`
	Reason  string `json:"reason,omitempty"`
	View    string `json:"view,omitempty"`
	Policy  int64  `json:"policy,omitempty"`
}

type timingJSON struct {
	Total    uint32 `json:"total"`
	Auth     uint32 `json:"auth"`
	Decision uint32 `json:"decision"`
	Database uint32 `json:"database"`
	Crypto   uint32 `json:"crypto"`
	Audit    uint32 `json:"audit"`
}

func newEventJSON(s audit.Stored) eventJSON {
	e := s.Event
	j := eventJSON{
		ID:          formatUUID(e.ID),
		Recorded:    e.Recorded.UTC(),
		Ingested:    s.Ingested.UTC(),
		Type:        string(e.Type),
		Interaction: e.Interaction,
		Action:      string(rune(e.Action)),
		Outcome:     int8(e.Outcome),
		OutcomeDesc: e.OutcomeDesc,
		Agent:       agentJSON(e.Agent),
		Purpose:     e.Purpose,
		Patient:     e.Patient,
		Entities:    make([]entityJSON, len(e.Entities)),
		Classes:     append([]string{}, e.Classes...),
		Decision:    decisionJSON(e.Decision),
		RequestID:   e.RequestID,
		Timing:      timingJSON(e.Timing),
		Stream:      hex.EncodeToString(s.Stream[:]),
		Seq:         s.Seq,
		Leaf:        hex.EncodeToString(s.Leaf[:]),
	}
	for i, n := range e.Entities {
		j.Entities[i] = entityJSON(n)
	}
	if e.Correlation != (audit.ID{}) {
		j.Correlation = formatUUID(e.Correlation)
	}
	return j
}

// events searches the trail, newest first. Who looks at the trail is an event of the trail itself, durable before
// anything is shown.
func (c *call) events() error {
	q, err := c.trailQuery()
	if err != nil {
		return err
	}
	if err := c.recordLook(q); err != nil {
		return err
	}
	found, err := c.s.cfg.Trail.Find(c.ctx, q)
	if err != nil {
		return unavailable(err)
	}
	page := struct {
		Events []eventJSON `json:"events"`
		Next   string      `json:"next"` // cursor; "" on the last page
	}{Events: make([]eventJSON, 0, len(found.Events))}
	for _, s := range found.Events {
		page.Events = append(page.Events, newEventJSON(s))
	}
	if found.Next != (audit.Position{}) {
		page.Next = formatCursor(found.Next)
	}
	return c.sendJSON(http.StatusOK, page)
}

// event shows one event, with why it was allowed and its place in the log.
func (c *call) event() error {
	id, ok := parseUUID(c.http.Params("id"))
	if !ok {
		return notFound()
	}
	q := audit.Query{Terms: []audit.Term{audit.Is(audit.FieldID, hex.EncodeToString(id[:]))}, Limit: 1}
	if err := c.recordLook(q); err != nil {
		return err
	}
	found, err := c.s.cfg.Trail.Find(c.ctx, q)
	if err != nil {
		return unavailable(err)
	}
	if len(found.Events) == 0 {
		return notFound()
	}
	return c.sendJSON(http.StatusOK, newEventJSON(found.Events[0]))
}

func (c *call) recordLook(q audit.Query) error {
	e := c.adminEvent(audit.TypeAuditLogUsed)
	e.Entities = []audit.Entity{{Type: "AuditEvent"}}
	for _, t := range q.Terms {
		switch t.Field {
		case audit.FieldPatient:
			e.Patient = t.Values[0]
		case audit.FieldID:
			if id, err := audit.ParseID(t.Values[0]); err == nil {
				e.Entities[0].ID = formatUUID(id)
			}
		}
	}
	_, err := c.record(c.s.cfg.Level.Disclosure, e)
	return err
}

// adminEvent is the event of an officers' or administrators' request that was let through.
func (c *call) adminEvent(t audit.Type) *audit.Event {
	d := auth.Decision{}
	if c.route.guard.kind == guardCapability {
		d = c.s.cfg.Access.May(c.principal, c.route.guard.capability)
	}
	return &audit.Event{
		Type:        t,
		Interaction: c.route.interaction,
		Action:      c.action(),
		Agent:       c.agent(),
		Purpose:     d.Purpose,
		Decision:    audit.Decision{Allowed: d.Allowed, Rule: d.Rule, Reason: string(d.Reason), View: d.View, Policy: d.Policy},
		RequestID:   c.requestID,
		Timing:      audit.Timing{Total: micros(time.Since(c.start)), Auth: micros(c.authTook)},
	}
}

// maxEvents is the largest page.
const maxEvents = 200

// trailQuery parses the filters. An unknown or repeated one is refused: an officer must not take a wider answer for a
// narrower one.
func (c *call) trailQuery() (audit.Query, error) {
	q := audit.Query{Limit: 50}
	seen := make(map[string]bool)
	var bad string
	c.http.Context().QueryArgs().VisitAll(func(key, value []byte) {
		k, v := string(key), string(value)
		if bad == "" && (seen[k] || !setFilter(&q, k, v)) {
			bad = k
		}
		seen[k] = true
	})
	if bad != "" || q.Validate() != nil {
		return q, invalid("a filter is unknown, repeated or malformed")
	}
	return q, nil
}

// setFilter sets one filter of the query; false when it is unknown or malformed.
func setFilter(q *audit.Query, name, value string) (ok bool) {
	if value == "" {
		return name == "cursor" || name == "q"
	}
	if len(value) > 256 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
		return false
	}
	var err error
	is := func(f audit.Field, value string) bool {
		q.Terms = append(q.Terms, audit.Is(f, value))
		return true
	}
	switch name {
	case "q":
		q.Text = value
	case "request_id":
		return is(audit.FieldRequest, value)
	case "patient":
		return is(audit.FieldPatient, strings.TrimPrefix(value, "Patient/"))
	case "agent", "client", "interaction", "type", "action", "outcome":
		return is(audit.Field(name), value)
	case "entity":
		if _, id, found := strings.Cut(value, "/"); found {
			return is(audit.FieldEntity, value) && fhir.ValidID(id)
		}
		return is(audit.FieldEntityType, value)
	case "from":
		q.From, err = time.Parse(time.RFC3339, value)
	case "to":
		q.To, err = time.Parse(time.RFC3339, value)
	case "limit":
		q.Limit, err = strconv.Atoi(value)
		return err == nil && q.Limit >= 1 && q.Limit <= maxEvents
	case "cursor":
		q.After, ok = parseCursor(value)
		return ok
	default:
		return false
	}
	return err == nil
}

// formatCursor writes a position in the trail: microseconds since 1970 (what the database keeps) and id.
func formatCursor(p audit.Position) string {
	var b [24]byte
	binary.BigEndian.PutUint64(b[:8], uint64(p.PartTime.UnixMicro()))
	copy(b[8:], p.ID[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func parseCursor(s string) (audit.Position, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 24 || len(s) != 32 { // the decoder skips line breaks
		return audit.Position{}, false
	}
	p := audit.Position{PartTime: time.UnixMicro(int64(binary.BigEndian.Uint64(b[:8]))).UTC()}
	if y := p.PartTime.Year(); y < 1970 || y > 9999 { // no database takes it
		return audit.Position{}, false
	}
	copy(p.ID[:], b[8:])
	return p, true
}

// formatUUID writes an id as RFC 9562 section 4 has it.
func formatUUID(id audit.ID) string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func parseUUID(s string) (id audit.ID, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:]))
	return id, err == nil && id != audit.ID{}
}

func notFound() *refusal {
	return &refusal{status: http.StatusNotFound, code: "not-found", text: "no such resource"}
}

// unavailable is 503 for a storage that does not answer.
func unavailable(err error) *refusal {
	return &refusal{status: http.StatusServiceUnavailable, code: "transient", text: "try again later", cause: err}
}
