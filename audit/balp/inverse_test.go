package balp_test

import (
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/balp"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

func source() balp.Source {
	return balp.Source{Base: "https://chart.example.org/fhir/R4", Issuer: "https://id.example.org"}
}

// resource is an AuditEvent as far as events are read back from it.
type resource struct {
	ID   string
	Meta struct {
		LastUpdated time.Time
		Profile     []string
	}
	Extension      []extension
	Type           code
	Subtype        []code
	Action         string
	Recorded       time.Time
	Outcome        string
	OutcomeDesc    string
	PurposeOfEvent []concept
	Agent          []struct {
		Extension []extension
		Type      concept
		Who       what
		Name      string
		Role      []concept
		Network   struct{ Address, Type string }
	}
	Entity []struct {
		Extension []extension
		What      what
		Type      code
		Role      code
		Query     []byte
	}
}

type (
	code    struct{ System, Code string }
	concept struct {
		Coding []code
		Text   string
	}
	what struct {
		Reference, Type string
		Identifier      struct{ System, Value string }
	}
	extension struct {
		URL               string
		Extension         []extension
		ValueString       string
		ValueUUID         string
		ValueDecimal      json.Number
		ValueBoolean      bool
		ValueInstant      time.Time
		ValueBase64Binary []byte
	}
)

func (x extension) integer() int64 {
	n, _ := strconv.ParseInt(x.ValueDecimal.String(), 10, 64)
	return n
}

// parse is the inverse of Append.
func parse(t interface{ Fatalf(string, ...any) }, b []byte) audit.Stored {
	var r resource
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	var s audit.Stored
	e := &s.Event
	id, err := audit.ParseID(r.ID)
	if err != nil {
		t.Fatalf("id: %v", err)
	}
	e.ID, e.Recorded, s.Ingested = id, r.Recorded.UTC(), r.Meta.LastUpdated.UTC()
	e.Type, e.OutcomeDesc = audit.Type(r.Type.Code), r.OutcomeDesc
	if r.Action != "" {
		e.Action = audit.Action(r.Action[0])
	}
	if r.Outcome == "" {
		e.Outcome = audit.Intent
	} else {
		n, _ := strconv.Atoi(r.Outcome)
		e.Outcome = audit.Outcome(n)
	}
	for _, c := range r.Subtype {
		switch {
		case strings.HasPrefix(c.System, balp.ExtensionBase), strings.HasSuffix(c.System, "restful-interaction"):
			e.Interaction = c.Code
		case strings.HasSuffix(c.System, "AuthZsubType"):
			e.Type, e.Action = audit.TypeREST, 0
		}
	}
	for _, x := range r.Extension {
		switch strings.TrimPrefix(x.URL, balp.ExtensionBase) {
		case "stream":
			hex.Decode(s.Stream[:], []byte(x.ValueString))
		case "leaf":
			hex.Decode(s.Leaf[:], []byte(x.ValueString))
		case "seq":
			s.Seq, _ = strconv.ParseUint(x.ValueDecimal.String(), 10, 64)
		case "part-time":
			s.PartTime = x.ValueInstant.UTC()
		case "correlation":
			e.Correlation, _ = audit.ParseID(strings.TrimPrefix(x.ValueUUID, "urn:uuid:"))
		case "class":
			e.Classes = append(e.Classes, x.ValueString)
		case "detail":
			e.Detail = x.ValueBase64Binary
		case "interaction":
			e.Interaction = x.ValueString
		case "action":
			e.Action = audit.Action(x.ValueString[0])
		case "request":
			e.RequestID = x.ValueString
		case "query":
			e.Query = x.ValueBase64Binary
		case "entity":
			var n audit.Entity
			for _, part := range x.Extension {
				switch strings.TrimPrefix(part.URL, balp.ExtensionBase) {
				case "type":
					n.Type = part.ValueString
				case "id":
					n.ID = part.ValueString
				case "version":
					n.Version = part.integer()
				}
			}
			e.Entities = append(e.Entities, n)
		case "decision":
			for _, part := range x.Extension {
				switch strings.TrimPrefix(part.URL, balp.ExtensionBase) {
				case "allowed":
					e.Decision.Allowed = part.ValueBoolean
				case "rule":
					e.Decision.Rule = part.ValueString
				case "reason":
					e.Decision.Reason = part.ValueString
				case "view":
					e.Decision.View = part.ValueString
				case "policy":
					e.Decision.Policy = part.integer()
				}
			}
		case "duration":
			for _, part := range x.Extension {
				us := uint32(part.integer())
				switch strings.TrimPrefix(part.URL, balp.ExtensionBase) {
				case "total":
					e.Timing.Total = us
				case "auth":
					e.Timing.Auth = us
				case "decision":
					e.Timing.Decision = us
				case "database":
					e.Timing.Database = us
				case "crypto":
					e.Timing.Crypto = us
				case "audit":
					e.Timing.Audit = us
				}
			}
		}
	}
	if len(r.PurposeOfEvent) > 0 {
		e.Purpose = r.PurposeOfEvent[0].Coding[0].Code
	}
	for _, a := range r.Agent {
		last := a.Type.Coding[len(a.Type.Coding)-1]
		switch {
		case strings.HasSuffix(last.System, "v3-ParticipationType"):
			e.Agent.User, e.Agent.Name, e.Agent.FHIRUser = a.Who.Identifier.Value, a.Name, a.Who.Reference
			for _, x := range a.Extension {
				e.Agent.Session = x.ValueString
			}
			for _, role := range a.Role {
				e.Agent.Roles = append(e.Agent.Roles, role.Text)
			}
		case a.Who.Identifier.System == "urn:ietf:rfc:3986": // this server, and whom it serves
		default:
			e.Agent.Client, e.Agent.Network = a.Who.Identifier.Value, a.Network.Address
		}
	}
	for _, n := range r.Entity {
		kind, id, found := strings.Cut(n.What.Reference, "/")
		id, version, versioned := strings.Cut(id, "/_history/")
		if !found {
			kind, id = n.What.Type, n.What.Identifier.Value
		}
		switch n.Role.Code {
		case "1":
			e.Patient = id
			continue
		case "24":
			e.Query = n.Query
			continue
		}
		switch n.Type.Code {
		case "XrequestId":
			e.RequestID = id
			continue
		case "Consent":
			if n.Role.Code == "" {
				continue
			}
		}
		entity := audit.Entity{Type: kind, ID: id}
		if versioned {
			entity.Version, _ = strconv.ParseInt(version, 10, 64)
		}
		for _, x := range n.Extension {
			entity.Version = x.integer()
		}
		e.Entities = append(e.Entities, entity)
	}
	return s
}

// stored generates events. text is how their texts are made.
func stored(text *rapid.Generator[string]) *rapid.Generator[audit.Stored] {
	var maybe = func(g *rapid.Generator[string]) *rapid.Generator[string] {
		return rapid.OneOf(rapid.Just(""), g)
	}
	moments := rapid.Custom(func(t *rapid.T) time.Time {
		return time.UnixMicro(rapid.Int64Range(0, 250_000_000_000_000_000).Draw(t, "µs")).UTC()
	})
	bytes16 := rapid.SliceOfN(rapid.Byte(), 16, 16)
	lists := rapid.SliceOfN(text, 0, 3)
	code := rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[A-Za-z0-9._-]{1,12}`))
	durations := rapid.Uint32()
	return rapid.Custom(func(t *rapid.T) audit.Stored {
		var s audit.Stored
		copy(s.Stream[:], bytes16.Draw(t, "stream"))
		copy(s.Leaf[:], bytes16.Draw(t, "leaf"))
		s.Seq, s.PartTime, s.Ingested = rapid.Uint64().Draw(t, "seq"), moments.Draw(t, "part"), moments.Draw(t, "ingested")
		e := &s.Event
		copy(e.ID[:], bytes16.Draw(t, "id"))
		e.Recorded = moments.Draw(t, "recorded")
		e.Type = audit.Type(rapid.OneOf(rapid.SampledFrom([]string{
			"rest", "rest", "rest", "110100", "110101", "110106", "110107", "110113", "110114", "110137",
		}), rapid.StringMatching(`[a-z0-9-]{1,10}`)).Draw(t, "type"))
		e.Interaction = rapid.OneOf(rapid.SampledFrom([]string{
			"", "read", "vread", "history-instance", "search-type", "create", "update", "delete", "transaction", "login", "logout", "110120",
		}), code).Draw(t, "interaction")
		e.Action = audit.Action(rapid.SampledFrom([]byte("CRUDE")).Draw(t, "action"))
		e.Outcome = rapid.SampledFrom([]audit.Outcome{audit.Intent, audit.Success, audit.MinorFailure, audit.SeriousFailure, audit.MajorFailure}).Draw(t, "outcome")
		e.OutcomeDesc = maybe(text).Draw(t, "desc")
		e.Agent = audit.Agent{
			User: maybe(text).Draw(t, "user"), Name: maybe(text).Draw(t, "name"), Client: maybe(text).Draw(t, "client"), Session: maybe(text).Draw(t, "session"),
			Roles: lists.Draw(t, "roles"), Network: maybe(text).Draw(t, "network"), FHIRUser: maybe(text).Draw(t, "fhirUser"),
		}
		e.Purpose = code.Draw(t, "purpose")
		e.Patient = rapid.OneOf(code, maybe(text)).Draw(t, "patient")
		e.Entities = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) audit.Entity {
			return audit.Entity{
				Type:    rapid.OneOf(rapid.SampledFrom([]string{"", "Patient", "Observation", "Consent", "key"}), code).Draw(t, "entity type"),
				ID:      rapid.OneOf(code, maybe(text)).Draw(t, "entity id"),
				Version: rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, "version"),
			}
		}), 0, 3).Draw(t, "entities")
		e.Classes = lists.Draw(t, "classes")
		if rapid.Bool().Draw(t, "decided") {
			e.Decision = audit.Decision{
				Allowed: rapid.Bool().Draw(t, "allowed"), Rule: maybe(text).Draw(t, "rule"),
				Reason: rapid.OneOf(rapid.SampledFrom([]string{"allowed", "role-missing"}), maybe(text)).Draw(t, "reason"),
				View:   maybe(text).Draw(t, "view"), Policy: rapid.Int64().Draw(t, "policy"),
			}
		}
		e.RequestID = maybe(text).Draw(t, "request")
		if rapid.Bool().Draw(t, "correlated") {
			copy(e.Correlation[:], bytes16.Draw(t, "correlation"))
		}
		e.Query = rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "query")
		e.Detail = rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "detail")
		e.Timing = audit.Timing{
			Total: durations.Draw(t, "total"), Auth: durations.Draw(t, "auth"), Decision: durations.Draw(t, "decision"),
			Database: durations.Draw(t, "database"), Crypto: durations.Draw(t, "crypto"), Audit: durations.Draw(t, "audit"),
		}
		return s
	})
}

// holdable are texts that a FHIR string can hold.
func holdable() *rapid.Generator[string] {
	return rapid.String().Filter(func(s string) bool {
		return strings.TrimSpace(s) != "" && strings.IndexFunc(s, func(c rune) bool {
			return c < ' ' && c != '\t' && c != '\n' && c != '\r' || c == unicode.ReplacementChar
		}) < 0
	})
}

// TestOneToOne reads arbitrary events back from what they render as, and has the FHIR validator look at each.
func TestOneToOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := stored(holdable()).Draw(t, "event")
		b := balp.Append([]byte("before"), &want, source())[len("before"):]
		valid(t, b)
		got := parse(t, b)
		normalize(&want)
		normalize(&got)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("read back\n%+v\nwant\n%+v\nfrom %s", got, want, b)
		}
		if again := string(balp.Append(nil, &want, source())); again != string(b) {
			t.Fatalf("rendered differently the second time")
		}
	})
}

// normalize makes empty lists nil, as DecodeEvent does.
func normalize(s *audit.Stored) {
	e := &s.Event
	for _, list := range []*[]string{&e.Agent.Roles, &e.Classes} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	for _, b := range []*[]byte{&e.Query, &e.Detail} {
		if len(*b) == 0 {
			*b = nil
		}
	}
	if len(e.Entities) == 0 {
		e.Entities = nil
	}
}

// TestAlwaysValid: whatever text an event holds, the resource is valid FHIR.
func TestAlwaysValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := stored(rapid.String()).Draw(t, "event")
		body, err := audit.Encode(&s.Event) // which replaces what is not UTF-8
		if err != nil {
			t.Fatalf("encoding: %v", err)
		}
		if s.Event, err = audit.DecodeEvent(body); err != nil {
			t.Fatalf("decoding: %v", err)
		}
		valid(t, balp.Append(nil, &s, source()))
	})
}

func valid(t interface{ Fatalf(string, ...any) }, b []byte) {
	r, issues := fhir.Parse(b)
	if issues == nil {
		issues = r.Validate()
	}
	if issues != nil {
		t.Fatalf("%+v: %s", issues, b)
	}
}

func FuzzAppend(f *testing.F) {
	f.Fuzz(func(t *testing.T, user, network, kind, id, reason, request string, detail []byte) {
		s := audit.Stored{Row: audit.Row{Event: audit.Event{
			Recorded: time.UnixMicro(1_700_000_000_000_000), Type: audit.Type(kind), Interaction: request, Action: audit.ActionRead, Patient: id, RequestID: request,
			Agent: audit.Agent{User: user, Network: network, FHIRUser: user, Roles: []string{reason}}, Decision: audit.Decision{Reason: reason}, Purpose: kind,
			Entities: []audit.Entity{{Type: kind, ID: id}, {Type: "Patient", ID: user, Version: 3}}, Detail: detail,
		}}}
		body, err := audit.Encode(&s.Event)
		if err != nil {
			t.Skip()
		}
		if s.Event, err = audit.DecodeEvent(body); err != nil {
			t.Fatal(err)
		}
		b := balp.Append(nil, &s, source())
		if len(s.Event.Type) > 0 {
			valid(t, b)
		}
		if got := parse(t, b); string(got.Event.Detail) != string(detail) {
			t.Fatalf("detail %q, want %q", got.Event.Detail, detail)
		}
	})
}
