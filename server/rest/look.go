package rest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// look is what somebody asks of the trail.
type look struct {
	query audit.Query
	shown queryJSON // as it was understood, in the caller's own words
	asked map[string]string
	bound []byte // digest of the filters as they were given, to which a cursor is bound
}

// queryJSON is a query as it was understood, so that a query bar can show it as text and as chips.
type queryJSON struct {
	Q     string     `json:"q"` // in the query language
	Terms []termJSON `json:"terms"`
	Text  string     `json:"text,omitempty"`
	From  *time.Time `json:"from,omitempty"`
	To    *time.Time `json:"to,omitempty"`
}

type termJSON struct {
	Field  string   `json:"field"`
	Op     string   `json:"op"` // is, prefix, at least, below
	Not    bool     `json:"not"`
	Values []string `json:"values"`
}

func newQueryJSON(q audit.Query) queryJSON {
	j := queryJSON{Q: audit.FormatQuery(q), Terms: []termJSON{}, Text: q.Text}
	for _, t := range q.Terms {
		j.Terms = append(j.Terms, termJSON{string(t.Field), t.Op.String(), t.Not, t.Values})
	}
	if !q.From.IsZero() {
		j.From = &q.From
	}
	if !q.To.IsZero() {
		j.To = &q.To
	}
	return j
}

// fault is the element of a request that is wrong: problem details name it, and never quote it.
type fault struct {
	text      string
	parameter string   // name of a parameter that we know; "" for one that we do not
	position  int      // within its value, in characters; -1 when that says nothing
	allowed   []string // what it takes, when that is a short list
}

// faulty refuses a request for one of its parameters.
func faulty(f *fault) *refusal {
	r := invalid(f.text)
	if f.parameter != "" {
		r.text = f.parameter + ": " + f.text
	}
	r.fault = f
	return r
}

// filters are the parameters that select events, beside q. Each is one field of the query language, or a bound of time.
func filters() []string {
	return []string{"q", "request_id", "patient", "agent", "client", "interaction", "type", "action", "outcome", "entity", "purpose", "emergency", "from", "to", "system"}
}

// parameters reads the query string. Each name may come once, and only if it is one of those: an officer must not take a wider
// answer for a narrower one.
func (c *call) parameters(names ...string) (map[string]string, error) {
	values := make(map[string]string)
	var wrong *fault
	c.http.Context().QueryArgs().VisitAll(func(key, value []byte) {
		k, v := string(key), string(value)
		_, seen := values[k]
		switch {
		case wrong != nil:
		case !slices.Contains(names, k):
			wrong = &fault{text: "there is a parameter that is not known here", position: -1, allowed: names}
		case seen:
			wrong = &fault{text: "given twice", parameter: k, position: -1}
		case k != "q" && k != "cursor" && len(v) > 256:
			wrong = &fault{text: "too long", parameter: k, position: -1}
		case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }):
			wrong = &fault{text: "control characters, or not UTF-8", parameter: k, position: -1}
		case v == "" && k != "q" && k != "cursor":
			wrong = &fault{text: "empty", parameter: k, position: -1}
		}
		values[k] = v
	})
	if wrong != nil {
		return nil, faulty(wrong)
	}
	maps.DeleteFunc(values, func(_, v string) bool { return v == "" })
	return values, nil
}

// look reads the filters of a request, and those further parameters that its route takes.
func (c *call) look(more ...string) (*look, error) {
	asked, err := c.parameters(append(filters(), more...)...)
	if err != nil {
		return nil, err
	}
	l := &look{asked: asked}
	if l.query, err = c.filter(asked); err != nil {
		return nil, err
	}
	digest := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		if slices.Contains(filters(), name) {
			fmt.Fprintf(digest, "%s=%d:%s\n", name, len(asked[name]), asked[name])
		}
	}
	fmt.Fprintf(digest, "aliased=%v\n", c.aliased)
	l.bound = digest.Sum(nil)
	if l.query.Limit, err = upTo(audit.MaxPage, asked, "limit", 0); err != nil {
		return nil, err
	}
	if cursor, ok := asked["cursor"]; ok {
		if !c.s.cursors.open(l, cursor) {
			return nil, faulty(&fault{text: "not a cursor of this search", parameter: "cursor", position: -1})
		}
	}
	l.shown = newQueryJSON(l.query)
	if f := c.lens().reveal(&l.query); f != nil {
		f.parameter, f.position = "q", -1
		return nil, faulty(f)
	}
	if asked["system"] != "true" {
		quiet(&l.query)
	}
	return l, nil
}

// upTo is the number that a parameter asks for, from 1 to most; otherwise where it is not given.
func upTo(most int, asked map[string]string, parameter string, otherwise int) (int, error) {
	v, ok := asked[parameter]
	if !ok {
		return otherwise, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > most {
		return 0, faulty(&fault{text: fmt.Sprintf("a number from 1 to %d is needed", most), parameter: parameter, position: -1})
	}
	return n, nil
}

// filter is the query that parameters ask for.
func (c *call) filter(asked map[string]string) (audit.Query, error) {
	q, err := audit.ParseQuery(asked["q"], c.start)
	var syntax *audit.SyntaxError
	if errors.As(err, &syntax) {
		return q, faulty(&fault{syntax.Problem, "q", syntax.Position, syntax.Allowed})
	}
	for _, name := range filters() {
		value, ok := asked[name]
		if !ok || name == "q" {
			continue
		}
		wrong := &fault{text: "malformed", parameter: name, position: -1}
		before := len(q.Terms)
		switch name {
		case "request_id":
			q.Terms = append(q.Terms, audit.Is(audit.FieldRequest, value))
		case "patient":
			q.Terms = append(q.Terms, audit.Is(audit.FieldPatient, strings.TrimPrefix(value, "Patient/")))
		case "emergency":
			if !isUUID(value) {
				return q, faulty(wrong)
			}
			q.Terms = append(q.Terms, audit.Is(audit.FieldEntity, audit.EntityEmergency+"/"+value))
		case "entity":
			if _, id, found := strings.Cut(value, "/"); !found {
				q.Terms = append(q.Terms, audit.Is(audit.FieldEntityType, value))
			} else if !fhir.ValidID(id) {
				return q, faulty(wrong)
			} else {
				q.Terms = append(q.Terms, audit.Is(audit.FieldEntity, value))
			}
		case "from", "to":
			bound := &q.From
			if name == "to" {
				bound = &q.To
			}
			if !bound.IsZero() {
				wrong.text = "recorded in q bounds the time already"
				return q, faulty(wrong)
			}
			if *bound, err = time.Parse(time.RFC3339, value); err != nil {
				wrong.text = "a time like 2026-11-22T08:30:00Z is needed"
				return q, faulty(wrong)
			}
			*bound = bound.UTC()
		case "system":
			if value != "true" && value != "false" {
				wrong.allowed = []string{"true", "false"}
				return q, faulty(wrong)
			}
		default: // is called as its field
			q.Terms = append(q.Terms, audit.Is(audit.Field(name), value))
		}
		if err := (&audit.Query{Terms: q.Terms[before:]}).Validate(); err != nil {
			return q, faulty(wrong)
		}
		if err := q.Validate(); err != nil {
			wrong.text = "together with the other parameters this is no query"
			return q, faulty(wrong)
		}
	}
	return q, nil
}

// quiet leaves out what the system records about itself in passing, unless the query asks for interactions by name.
func quiet(q *audit.Query) {
	for _, t := range q.Terms {
		if !t.Not && (t.Field == audit.FieldInteraction || t.Field == audit.FieldID || t.Field == audit.FieldStream) {
			return
		}
	}
	q.Quiet = true
}

// recordLook makes the event of a look durable: who asked, about whom, with what words. What was asked is sealed like the text
// of any search, for it may name patients.
func (c *call) recordLook(l *look, named ...audit.Entity) (audit.Receipt, error) {
	e := c.adminEvent(audit.TypeAuditLogUsed)
	e.Entities = named
	if len(named) == 0 {
		e.Entities = []audit.Entity{{Type: "AuditEvent"}}
	}
	if l != nil {
		nameAsked(e, &l.query)
		if text := audit.FormatQuery(l.query); text != "" {
			e.Query = c.s.cfg.Records.SealQuery(text, e.Entities[0].Type)
		}
	}
	return c.record(c.s.cfg.Level.Disclosure, e)
}

// nameAsked names in the event the patients and records that the query asks for: the first patient as the one concerned, all
// others among the entities.
func nameAsked(e *audit.Event, q *audit.Query) {
	for _, t := range q.Terms {
		if t.Not || t.Op != audit.OpIs {
			continue
		}
		for _, v := range t.Values {
			switch t.Field {
			case audit.FieldPatient:
				if e.Patient == "" {
					e.Patient = v
				} else {
					e.Entities = append(e.Entities, audit.Entity{Type: "Patient", ID: v})
				}
			case audit.FieldEntity:
				entityType, id, _ := strings.Cut(v, "/")
				e.Entities = append(e.Entities, audit.Entity{Type: entityType, ID: id})
			case audit.FieldID:
				if id, err := audit.ParseID(v); err == nil {
					e.Entities = append(e.Entities, audit.Entity{Type: "AuditEvent", ID: id.String()})
				}
			}
		}
	}
}

// adminEvent is the event of an officers' or administrators' request that was let through.
func (c *call) adminEvent(t audit.Type) *audit.Event {
	d := c.granted
	return &audit.Event{
		Type:        t,
		Interaction: c.route.interaction,
		Action:      c.action(),
		Agent:       c.agent(),
		Purpose:     d.Purpose,
		Decision:    newDecision(d),
		RequestID:   c.requestID,
		Timing:      audit.Timing{Total: micros(time.Since(c.start)), Auth: micros(c.authTook)},
	}
}

func newDecision(d auth.Decision) audit.Decision {
	return audit.Decision{Allowed: d.Allowed, Rule: d.Rule, Reason: string(d.Reason), View: d.View, Policy: d.Policy}
}

// cursors seals positions in the trail. A cursor is bound to the filters with which it was made, and holds the bounds of time
// that "24h" meant then, so that paging goes through one and the same list.
type cursors struct{ aead cipher.AEAD }

const cursorLen = 1 + 8 + 16 + 8 + 8 // direction, part time, id, from, to; times in microseconds

func newCursors(secret []byte) (*cursors, error) {
	key, err := hkdf.Expand(sha256.New, secret, "chartkeep cursor", 32)
	if err != nil {
		return nil, fmt.Errorf("deriving key of cursors: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("deriving key of cursors: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("deriving key of cursors: %w", err)
	}
	return &cursors{aead}, nil
}

func (c *cursors) seal(l *look, p audit.Position, forward bool) string {
	b := make([]byte, 1, cursorLen)
	if forward {
		b[0] = 1
	}
	b = binary.BigEndian.AppendUint64(b, uint64(p.PartTime.UnixMicro()))
	b = append(b, p.ID[:]...)
	for _, t := range []*time.Time{l.shown.From, l.shown.To} {
		at := int64(math.MinInt64)
		if t != nil {
			at = t.UnixMicro()
		}
		b = binary.BigEndian.AppendUint64(b, uint64(at))
	}
	return base64.RawURLEncoding.EncodeToString(c.aead.Seal(nil, nil, b, l.bound))
}

// open sets the query's place, direction and bounds; false for a cursor that is not of this server and these filters.
func (c *cursors) open(l *look, cursor string) bool {
	if len(cursor) > 256 {
		return false
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil {
		return false
	}
	b, err := c.aead.Open(nil, nil, sealed, l.bound)
	if err != nil || len(b) != cursorLen {
		return false
	}
	l.query.Forward = b[0] == 1
	moment := func(b []byte) time.Time {
		if at := int64(binary.BigEndian.Uint64(b)); at != math.MinInt64 {
			return time.UnixMicro(at).UTC()
		}
		return time.Time{}
	}
	l.query.After = audit.Position{PartTime: moment(b[1:9]), ID: audit.ID(b[9:25])}
	l.query.From, l.query.To = moment(b[25:33]), moment(b[33:41])
	return true
}
