package audit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Field is a property of an event that queries can ask for. The vocabulary is closed.
type Field string

// Fields. Those with several values in one event (role, entity, entity-type, class) hold a term when any of them does.
const (
	FieldID          Field = "id"          // UUID, see ParseID
	FieldRequest     Field = "request"     // Event.RequestID
	FieldPatient     Field = "patient"     // logical id
	FieldAgent       Field = "agent"       // Agent.User
	FieldClient      Field = "client"      //
	FieldSession     Field = "session"     //
	FieldNetwork     Field = "network"     //
	FieldRole        Field = "role"        // any of Agent.Roles
	FieldType        Field = "type"        //
	FieldInteraction Field = "interaction" //
	FieldAction      Field = "action"      // C, R, U, D or E
	FieldOutcome     Field = "outcome"     // -1 (intent), 0, 4, 8 or 12
	FieldEntity      Field = "entity"      // "Type/id"
	FieldEntityType  Field = "entity-type" //
	FieldPurpose     Field = "purpose"     //
	FieldClass       Field = "class"       // any of Event.Classes
	FieldRule        Field = "rule"        //
	FieldReason      Field = "reason"      //
	FieldView        Field = "view"        //
	FieldPolicy      Field = "policy"      // number
	FieldAllowed     Field = "allowed"     // true or false
	FieldDuration    Field = "duration"    // Timing.Total, µs
	FieldStream      Field = "stream"      // 32 hex digits
	FieldSeq         Field = "seq"         // number
	FieldCorrelation Field = "correlation" // UUID
)

// FieldKind is what a field's values look like.
type FieldKind uint8

const (
	TextField   FieldKind = iota // any text: Is, Prefix
	NumberField                  // decimal: Is, AtLeast, Below
	CodeField                    // one of a few: Is
	UUIDField                    // 16 bytes in hex, with RFC 9562's hyphens or without any: Is
)

// Fields lists the vocabulary, in the order in which it is shown to people.
func Fields() []Field {
	return []Field{
		FieldID, FieldRequest, FieldPatient, FieldAgent, FieldClient, FieldSession, FieldNetwork, FieldRole, FieldType, FieldInteraction,
		FieldAction, FieldOutcome, FieldEntity, FieldEntityType, FieldPurpose, FieldClass, FieldRule, FieldReason, FieldView, FieldPolicy,
		FieldAllowed, FieldDuration, FieldStream, FieldSeq, FieldCorrelation,
	}
}

// Kind of the field; ok is false for a field that is not in the vocabulary.
func (f Field) Kind() (k FieldKind, ok bool) {
	switch f {
	case FieldID, FieldStream, FieldCorrelation:
		return UUIDField, true
	case FieldAction, FieldAllowed:
		return CodeField, true
	case FieldOutcome, FieldPolicy, FieldDuration, FieldSeq:
		return NumberField, true
	}
	return TextField, slices.Contains(Fields(), f)
}

// Op is how a term compares.
type Op uint8

const (
	OpIs      Op = iota // equal to one of the values
	OpPrefix            // begins with one of the values
	OpAtLeast           // a number of at least the only value
	OpBelow             // a number below the only value
)

// String names the operation in errors.
func (o Op) String() string {
	switch o {
	case OpIs:
		return "is"
	case OpPrefix:
		return "prefix"
	case OpAtLeast:
		return "at least"
	case OpBelow:
		return "below"
	}
	return "operation " + strconv.Itoa(int(o))
}

// Term is one condition. Not turns it around: no value of the event's field fits.
type Term struct {
	Field  Field
	Op     Op
	Not    bool
	Values []string
}

// Is asks for events whose field is one of the values.
func Is(f Field, values ...string) Term { return Term{Field: f, Values: values} }

// Query selects events. The zero query selects everything, newest first.
type Query struct {
	Terms    []Term    // all must hold
	Quiet    bool      // without housekeeping, see Event.Housekeeping
	Text     string    // free text over fields that hold no PHI, see Event.SearchText; case is ignored
	From, To time.Time // happened in [From, To), see Row.Time; zero does not restrict
	After    Position  // go on after this event in the direction of reading; zero starts at that direction's beginning
	Forward  bool      // oldest first; together with After this pages back towards the newest
	Limit    int       // 1 to MaxPage; 0 is 50
}

// MaxPage is the largest page of events. A query holds at most maxTerms terms with maxValues values of maxValue bytes.
const (
	MaxPage     = 200
	defaultPage = 50
	maxTerms    = 32
	maxValues   = 100
	maxValue    = 512
)

// Position is the place of a stored event in the order of reading: by part time, then by id.
type Position struct {
	PartTime time.Time
	ID       ID
}

// Compare orders positions, oldest first.
func (p Position) Compare(o Position) int {
	return cmp.Or(p.PartTime.Compare(o.PartTime), bytes.Compare(p.ID[:], o.ID[:]))
}

// Stored is an event as the database holds it.
type Stored struct {
	Row
	Stream   StreamID
	Ingested time.Time
}

// Position of the event.
func (s *Stored) Position() Position { return Position{s.PartTime, s.Event.ID} }

// Found is a page of events in the direction of reading.
type Found struct {
	Events []Stored
	// Next is where reading goes on (Query.After); zero when there is nothing further. A page may hold fewer events than were
	// asked for, even none, and still have a Next: so far was looked in the time that one call may take.
	Next Position
}

// Reader finds stored events. Every call takes bounded time, whatever is stored. Queries are validated first. All methods
// are safe for concurrent use.
type Reader interface {
	// Find returns a page of events.
	Find(ctx context.Context, q Query) (Found, error)
	// Facets counts the events of q by each of the fields and returns the top most frequent values, all when top is 0; After,
	// Forward and Limit mean nothing here.
	Facets(ctx context.Context, q Query, fields []Field, top int) ([]Facet, error)
	// Histogram counts the events of q by time, see NewHistogram.
	Histogram(ctx context.Context, q Query, step time.Duration) (Histogram, error)
	// Latency answers from events that carry late timings, see InteractionTimings.
	Latency(ctx context.Context, q LatencyQuery) (Latency, error)
}

// ErrQuery says that a query is malformed; the error that wraps it names the element at fault and never holds its value.
var ErrQuery = errors.New("audit: malformed query")

// Validate names the first element of the query that is wrong.
func (q *Query) Validate() error {
	if len(q.Terms) > maxTerms {
		return fmt.Errorf("%d terms where %d fit: %w", len(q.Terms), maxTerms, ErrQuery)
	}
	for i := range q.Terms {
		if err := q.Terms[i].validate(); err != nil {
			return fmt.Errorf("term %d: %w", i+1, err)
		}
	}
	switch {
	case len(q.Text) > maxValue:
		return fmt.Errorf("text of %d bytes where %d fit: %w", len(q.Text), maxValue, ErrQuery)
	case !storable(q.Text):
		return fmt.Errorf("text that no event can hold: %w", ErrQuery)
	case q.Limit < 0 || q.Limit > MaxPage:
		return fmt.Errorf("limit %d is not within 1 and %d: %w", q.Limit, MaxPage, ErrQuery)
	}
	for name, t := range map[string]time.Time{"from": q.From, "to": q.To, "after": q.After.PartTime} {
		if y := t.Year(); !t.IsZero() && (y < 1970 || y > 9999) {
			return fmt.Errorf("%s: year %d: %w", name, y, ErrQuery)
		}
	}
	if !q.From.IsZero() && !q.To.IsZero() && q.To.Before(q.From) {
		return fmt.Errorf("to is before from: %w", ErrQuery)
	}
	return nil
}

func (t *Term) validate() error {
	kind, ok := t.Field.Kind()
	if !ok {
		return fmt.Errorf("unknown field: %w", ErrQuery)
	}
	if t.Op != OpIs && (kind != TextField || t.Op != OpPrefix) && (kind != NumberField || t.Op != OpAtLeast && t.Op != OpBelow) {
		return fmt.Errorf("%s does not take %q: %w", t.Field, t.Op, ErrQuery)
	}
	switch n := len(t.Values); {
	case n == 0:
		return fmt.Errorf("%s has no value: %w", t.Field, ErrQuery)
	case n > maxValues, n > 1 && (t.Op == OpAtLeast || t.Op == OpBelow):
		return fmt.Errorf("%s has %d values: %w", t.Field, n, ErrQuery)
	}
	for _, v := range t.Values {
		if len(v) > maxValue || !storable(v) || !t.takes(kind, v) {
			return fmt.Errorf("%s has a malformed value: %w", t.Field, ErrQuery)
		}
	}
	return nil
}

func (t *Term) takes(kind FieldKind, v string) bool {
	switch kind {
	case NumberField:
		n, err := strconv.ParseInt(v, 10, 64)
		return err == nil && (t.Field != FieldOutcome || t.Op != OpIs || slices.Contains([]int64{-1, 0, 4, 8, 12}, n))
	case CodeField:
		if t.Field == FieldAllowed {
			return v == "true" || v == "false"
		}
		return len(v) == 1 && strings.Contains("CRUDE", v)
	case UUIDField:
		_, err := ParseID(v)
		return err == nil
	}
	return t.Op != OpPrefix || v != ""
}

// Page is the number of events that one answer may hold.
func (q *Query) Page() int { return cmp.Or(q.Limit, defaultPage) }

// Matches reports whether a stored event fits the query's terms, text and times. The query must be valid.
func (q *Query) Matches(s *Stored) bool {
	e := &s.Event
	if at := s.Time(); !q.From.IsZero() && at.Before(q.From) || !q.To.IsZero() && !at.Before(q.To) {
		return false
	}
	if q.Quiet && e.Housekeeping() {
		return false
	}
	for i := range q.Terms {
		t := &q.Terms[i]
		if slices.ContainsFunc(s.Values(t.Field), t.fits) == t.Not {
			return false
		}
	}
	return q.Text == "" || strings.Contains(strings.ToLower(e.SearchText()), strings.ToLower(q.Text))
}

func (t *Term) fits(got string) bool {
	return slices.ContainsFunc(t.Values, func(want string) bool {
		switch kind, _ := t.Field.Kind(); {
		case t.Op == OpPrefix:
			return strings.HasPrefix(got, want)
		case kind == NumberField:
			g, _ := strconv.ParseInt(got, 10, 64)
			w, _ := strconv.ParseInt(want, 10, 64)
			return t.Op == OpIs && g == w || t.Op == OpAtLeast && g >= w || t.Op == OpBelow && g < w
		case kind == UUIDField:
			g, _ := ParseID(got)
			w, err := ParseID(want)
			return err == nil && g == w
		}
		return got == want
	})
}

// Values are the values of a field of the event, as terms write them: none or several for a field that is a list, otherwise
// one, which may be "".
func (s *Stored) Values(f Field) []string {
	e := &s.Event
	switch f {
	case FieldID:
		return []string{hex.EncodeToString(e.ID[:])}
	case FieldRequest:
		return []string{e.RequestID}
	case FieldPatient:
		return []string{e.Patient}
	case FieldAgent:
		return []string{e.Agent.User}
	case FieldClient:
		return []string{e.Agent.Client}
	case FieldSession:
		return []string{e.Agent.Session}
	case FieldNetwork:
		return []string{e.Agent.Network}
	case FieldRole:
		return e.Agent.Roles
	case FieldType:
		return []string{string(e.Type)}
	case FieldInteraction:
		return []string{e.Interaction}
	case FieldAction:
		return []string{strings.Trim(string(rune(e.Action)), "\x00")}
	case FieldOutcome:
		return []string{strconv.Itoa(int(e.Outcome))}
	case FieldEntity:
		return e.entities()
	case FieldEntityType:
		var types []string
		for i := range e.Entities {
			types = append(types, e.Entities[i].Type)
		}
		return types
	case FieldPurpose:
		return []string{e.Purpose}
	case FieldClass:
		return e.Classes
	case FieldRule:
		return []string{e.Decision.Rule}
	case FieldReason:
		return []string{e.Decision.Reason}
	case FieldView:
		return []string{e.Decision.View}
	case FieldPolicy:
		return []string{strconv.FormatInt(e.Decision.Policy, 10)}
	case FieldAllowed:
		return []string{strconv.FormatBool(e.Decision.Allowed)}
	case FieldDuration:
		return []string{strconv.FormatUint(uint64(e.Timing.Total), 10)}
	case FieldStream:
		return []string{hex.EncodeToString(s.Stream[:])}
	case FieldSeq:
		return []string{strconv.FormatUint(s.Seq, 10)}
	case FieldCorrelation:
		if e.Correlation != (ID{}) {
			return []string{hex.EncodeToString(e.Correlation[:])}
		}
	}
	return nil
}

func (e *Event) entities() []string {
	var names []string
	for _, n := range e.Entities {
		names = append(names, n.Type+"/"+n.ID)
	}
	return names
}

// Housekeeping reports whether the event only describes the running of the log itself: heartbeats and late timings.
func (e *Event) Housekeeping() bool {
	return e.Type == TypeApplication && (e.Interaction == InteractionHeartbeat || e.Interaction == InteractionTimings)
}

// SearchText is what Query.Text looks in: type, interaction, user, client, network, roles, purpose, patient, entities, rule,
// reason, view and request id, with spaces between.
func (e *Event) SearchText() string {
	return strings.Join([]string{
		string(e.Type), e.Interaction, e.Agent.User, e.Agent.Client, e.Agent.Network, strings.Join(e.Agent.Roles, " "), e.Purpose,
		e.Patient, strings.Join(e.entities(), " "), e.Decision.Rule, e.Decision.Reason, e.Decision.View, e.RequestID,
	}, " ")
}
