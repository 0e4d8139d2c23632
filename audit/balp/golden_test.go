package balp_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/balp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Code systems of the profiles.
const (
	dicom       = "http://dicom.nema.org/resources/ontology/DCM"
	restful     = "http://hl7.org/fhir/restful-interaction"
	entityType  = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
	participant = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
)

// demand is what a profile fixes, as published: elements, and slices by the pattern of their type.
type demand struct {
	page        string // below https://profiles.ihe.net/ITI/BALP/
	kind        code
	subtypes    []code // one of them must be there; none means any
	action      string
	outcome     string // "" any, but there
	agents      []slice
	entities    []slice
	minEntities int
	closed      bool // no entity beside the slices
}

// slice is agents or entities whose type has the code.
type slice struct {
	name     string
	kind     []code // any of them
	role     []code // any of them, where the profile fixes one
	min, max int    // max 0: any number
	need     []string
	forbid   []string
}

// demands is the table of IHE BALP 1.1.4 (https://profiles.ihe.net/ITI/BALP/artifacts.html; its source is
// github.com/IHE/ITI.BasicAudit, input/fsh).
func demands() map[string]demand {
	rest := code{"http://terminology.hl7.org/CodeSystem/audit-event-type", "rest"}
	who, requestor := "who", "requestor"
	side := func(name, system, c string, forbid ...string) slice {
		return slice{name: name, kind: []code{{system, c}}, min: 1, max: 1, need: []string{who, requestor, "network.address"}, forbid: append(forbid, "media")}
	}
	reader := slice{name: "user", kind: []code{{participant, "IRCP"}}, max: 1, need: []string{who, requestor}, forbid: []string{"media", "network"}}
	writer := slice{name: "user", kind: []code{{participant, "AUT"}, {participant, "INF"}, {participant, "CST"}}, max: 1, need: []string{who, requestor},
		forbid: []string{"media", "network"}}
	transaction := slice{name: "transaction", kind: []code{{"https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType", "XrequestId"}}, max: 1,
		need: []string{"what.identifier.value"}}
	data := slice{name: "data", kind: []code{{entityType, "2"}}, min: 1, max: 1, need: []string{"what"},
		role: []code{{"http://terminology.hl7.org/CodeSystem/object-role", "4"}, {"http://terminology.hl7.org/CodeSystem/object-role", "3"}, {"http://terminology.hl7.org/CodeSystem/object-role", "20"}}}
	query := slice{name: "query", kind: []code{{entityType, "2"}}, min: 1, max: 1, need: []string{"query"}, forbid: []string{"what", "lifecycle", "detail"},
		role: []code{{"http://terminology.hl7.org/CodeSystem/object-role", "24"}}}
	patient := slice{name: "patient", kind: []code{{entityType, "1"}}, min: 1, max: 1, need: []string{"what.reference"},
		role: []code{{"http://terminology.hl7.org/CodeSystem/object-role", "1"}}}
	bare := func(s slice, more ...string) slice {
		s.forbid = append(slices.Clone(s.forbid), more...)
		return s
	}
	m := map[string]demand{}
	both := func(name string, d demand) {
		d.page = "StructureDefinition-IHE.BasicAudit." + name + ".html"
		d.minEntities = max(d.minEntities, 1)
		m[name] = d
		d.page = "StructureDefinition-IHE.BasicAudit.Patient" + name + ".html"
		d.minEntities++
		d.entities = append(slices.Clone(d.entities), patient)
		m["Patient"+name] = d
	}
	both("Read", demand{kind: rest, subtypes: []code{{restful, "read"}, {restful, "vread"}}, action: "R", outcome: "0",
		agents:   []slice{side("client", dicom, "110152"), side("server", dicom, "110153"), reader},
		entities: []slice{transaction, data}})
	both("Query", demand{kind: rest, subtypes: []code{{restful, "search"}, {restful, "search-type"}, {restful, "search-system"}}, action: "E", outcome: "0",
		agents:   []slice{side("client", dicom, "110153"), side("server", dicom, "110152"), reader},
		entities: []slice{transaction, query}})
	both("Create", demand{kind: rest, subtypes: []code{{restful, "create"}}, action: "C", outcome: "0",
		agents:   []slice{side("client", dicom, "110153"), side("server", dicom, "110152"), writer},
		entities: []slice{transaction, data}})
	both("Update", demand{kind: rest, subtypes: []code{{restful, "update"}, {restful, "patch"}}, action: "U", outcome: "0",
		agents:   []slice{side("client", dicom, "110153"), side("server", dicom, "110152"), writer},
		entities: []slice{transaction, data}})
	plain := []string{"role", "altId", "name", "location", "policy", "purposeOfUse"}
	both("Delete", demand{kind: rest, subtypes: []code{{restful, "delete"}}, action: "D", outcome: "0",
		agents: []slice{
			side("client", dicom, "110150", plain...), side("server", "http://terminology.hl7.org/CodeSystem/provenance-participant-type", "custodian", plain...),
			bare(writer, "altId", "location", "policy"),
		},
		entities: []slice{bare(transaction, "lifecycle", "securityLabel", "name", "query", "detail"), bare(data, "lifecycle", "name", "query", "detail")}})
	m["PrivacyDisclosure.Source"] = demand{page: "StructureDefinition-IHE.BasicAudit.PrivacyDisclosure.Source.html",
		kind: code{dicom, "110106"}, subtypes: []code{{"http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle", "disclose"}}, action: "R",
		agents: []slice{side("source", dicom, "110153"), side("recipient", dicom, "110152")}, entities: []slice{patient}, minEntities: 2}
	m["AuthZconsent"] = demand{page: "StructureDefinition-IHE.BasicAudit.AuthZconsent.html",
		kind: code{dicom, "110113"}, action: "E",
		subtypes: []code{{"https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType", "AuthZ-Role"}, {"https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType", "AuthZ-Consent"}},
		agents: []slice{
			side("client", dicom, "110150", "role", "altId", "name", "location", "purposeOfUse"),
			bare(slice{name: "user", kind: reader.kind, min: 1, max: 1, need: reader.need, forbid: reader.forbid}, "altId", "location"),
			{name: "userorg", kind: []code{{"http://terminology.hl7.org/CodeSystem/v3-RoleClass", "PROV"}}, min: 1, max: 1, need: []string{who, requestor},
				forbid: []string{"role", "altId", "name", "location", "policy", "media", "network"}},
			{name: "authorizer", kind: []code{{"http://terminology.hl7.org/CodeSystem/extra-security-role-type", "authserver"}}, min: 1, max: 1, need: []string{who, requestor},
				forbid: []string{"role", "altId", "name", "location", "policy", "media", "network", "purposeOfUse"}},
		},
		entities: []slice{patient, {name: "consent", kind: []code{{"http://hl7.org/fhir/resource-types", "Consent"}}, min: 1, need: []string{"what"}}}, minEntities: 2, closed: true}
	m["OAUTHaccessTokenUse.Minimal"] = demand{page: "StructureDefinition-IHE.BasicAudit.OAUTHaccessTokenUse.Minimal.html",
		agents: []slice{{name: "oUser", kind: []code{{"https://profiles.ihe.net/ITI/BALP/CodeSystem/UserAgentTypes", "UserOauthAgent"}}, min: 1, need: []string{requestor, "policy"}}}}
	return m
}

// check returns what the resource lacks of the demand.
func (d demand) check(r map[string]any) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for _, path := range []string{"recorded", "type.code", "source.observer"} {
		if at(r, path) == nil {
			fault("no %s", path)
		}
	}
	if d.kind != (code{}) && !coded(r["type"], []code{d.kind}) {
		fault("type is not %v", d.kind)
	}
	if len(d.subtypes) > 0 && !slices.ContainsFunc(list(r["subtype"]), func(s any) bool { return coded(s, d.subtypes) }) {
		fault("no subtype is one of %v", d.subtypes)
	}
	if d.action != "" && r["action"] != d.action {
		fault("action %v, want %s", r["action"], d.action)
	}
	if d.kind != (code{}) && (r["outcome"] == nil || d.outcome != "" && r["outcome"] != d.outcome) {
		fault("outcome %v, want %s", r["outcome"], d.outcome)
	}
	for _, s := range d.agents {
		s.check("agent", list(r["agent"]), fault)
	}
	entities := list(r["entity"])
	if len(entities) < d.minEntities {
		fault("%d entities", len(entities))
	}
	sliced := 0
	for _, s := range d.entities {
		sliced += s.check("entity", entities, fault)
	}
	if d.closed && sliced != len(entities) {
		fault("an entity beside the slices")
	}
	return faults
}

func (s slice) check(element string, items []any, fault func(string, ...any)) int {
	n := 0
	for _, item := range items {
		m := item.(map[string]any)
		if !coded(m["type"], s.kind) {
			continue
		}
		n++
		if s.role != nil && !coded(m["role"], s.role) {
			fault("%s %s has another role", element, s.name)
		}
		for _, path := range s.need {
			if at(m, path) == nil {
				fault("%s %s has no %s", element, s.name, path)
			}
		}
		for _, path := range s.forbid {
			if at(m, path) != nil {
				fault("%s %s has %s", element, s.name, path)
			}
		}
	}
	if n < s.min || s.max > 0 && n > s.max {
		fault("%d of %s %s", n, element, s.name)
	}
	return n
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// coded reports whether a Coding or CodeableConcept has one of the codes.
func coded(v any, codes []code) bool {
	m, _ := v.(map[string]any)
	if codings := list(m["coding"]); codings != nil {
		return slices.ContainsFunc(codings, func(c any) bool { return coded(c, codes) })
	}
	return slices.ContainsFunc(codes, func(c code) bool { return m["system"] == c.System && m["code"] == c.Code })
}

func at(m map[string]any, path string) any {
	name, rest, more := strings.Cut(path, ".")
	if !more {
		return m[name]
	}
	inner, _ := m[name].(map[string]any)
	return at(inner, rest)
}

// examples are events by the name of their golden file.
func examples(t *testing.T) map[string]audit.Stored {
	t.Helper()
	when := time.Date(2026, 11, 22, 8, 30, 15, 123456000, time.UTC)
	agent := audit.Agent{
		User: "dr-rivera", Name: "Ana Rivera", Client: "clinic-app", Session: "s-1", Roles: []string{"clinician"}, Network: "192.0.2.7",
		FHIRUser: "Practitioner/rivera",
	}
	allowed := audit.Decision{Allowed: true, Rule: "clinician:*:r:treatment", Reason: "allowed", View: "full", Policy: 7}
	base := func(interaction string, action audit.Action) audit.Event {
		return audit.Event{
			Type: audit.TypeREST, Interaction: interaction, Action: action, Agent: agent, Purpose: "TREAT", Decision: allowed,
			RequestID: "f4725670-c813-4b44-9309-f097669fc722", Timing: audit.Timing{Total: 412, Auth: 3, Decision: 5, Database: 340},
		}
	}
	organization, observation := audit.Entity{Type: "Organization", ID: "o1", Version: 1}, audit.Entity{Type: "Observation", ID: "b1", Version: 2}
	of := func(e audit.Event, patient string, entities ...audit.Entity) audit.Event {
		e.Patient, e.Entities = patient, entities
		if patient != "" {
			e.Classes = []string{"clinical"}
		}
		return e
	}
	query := func(e audit.Event) audit.Event {
		e.Query = []byte("\x01sealed search text")
		return e
	}
	denied := of(base("read", audit.ActionRead), "p1", audit.Entity{Type: "Patient", ID: "p1"})
	denied.Outcome, denied.OutcomeDesc, denied.Classes = audit.MinorFailure, "not-found", nil
	denied.Decision = audit.Decision{Rule: "clinician:*:r:treatment", Reason: "relationship-missing", Policy: 7}
	deniedType := of(base("create", audit.ActionCreate), "", audit.Entity{Type: "Medication"})
	deniedType.Outcome, deniedType.Decision = audit.MinorFailure, audit.Decision{Reason: "role-missing", Policy: 7}
	disclosed := of(base("read", audit.ActionRead), "p1", observation)
	disclosed.Type, disclosed.Purpose = audit.TypeExport, "PUBHLTH"
	signIn := base(audit.InteractionLogin, audit.ActionExecute)
	signIn.Type, signIn.Purpose, signIn.Decision = audit.TypeAuthentication, "", audit.Decision{}
	detail, err := audit.SignIn{TokenID: "0d2b9ad6", ACR: "urn:example:mfa", AMR: []string{"pwd", "hwk"}, AuthTime: when.Add(-time.Minute)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	signIn.Detail = detail
	refused := audit.Event{
		Type: audit.TypeAuthentication, Interaction: "read", Action: audit.ActionRead, Outcome: audit.MinorFailure, OutcomeDesc: "authentication failed",
		Agent: audit.Agent{Network: "192.0.2.66"}, RequestID: "r-9",
	}
	intent := of(base("update", audit.ActionUpdate), "p1", observation)
	intent.Outcome, intent.Correlation = audit.Intent, audit.ID{9}
	events := map[string]audit.Event{
		"Read":                        of(base("read", audit.ActionRead), "", organization),
		"PatientRead":                 of(base("vread", audit.ActionRead), "p1", observation, audit.Entity{Type: "Patient", ID: "p2"}),
		"Query":                       query(of(base("search-type", audit.ActionExecute), "", audit.Entity{Type: "Observation"})),
		"PatientQuery":                query(of(base("search-type", audit.ActionExecute), "p1", observation, audit.Entity{Type: "Observation", ID: "b2", Version: 1})),
		"Create":                      of(base("create", audit.ActionCreate), "", organization),
		"PatientCreate":               of(base("create", audit.ActionCreate), "p1", observation),
		"Update":                      of(base("update", audit.ActionUpdate), "", organization),
		"PatientUpdate":               of(base("update", audit.ActionUpdate), "p1", observation),
		"Delete":                      of(base("delete", audit.ActionDelete), "", organization),
		"PatientDelete":               of(base("delete", audit.ActionDelete), "p1", observation),
		"PrivacyDisclosure.Source":    disclosed,
		"AuthZconsent":                denied,
		"OAUTHaccessTokenUse.Minimal": signIn,
		"denial-without-patient":      deniedType,
		"sign-in-refused":             refused,
		"intent":                      intent,
	}
	stored := map[string]audit.Stored{}
	for name, e := range events {
		e.ID, e.Recorded = audit.ID{0x01, 0x93, 0x52, 0xd1, 15: 0x42}, when
		stored[name] = audit.Stored{
			Row:    audit.Row{Seq: 41, Event: e, PartTime: when, Leaf: audit.Hash{0xab, 31: 0xcd}},
			Stream: audit.StreamID{0x5e, 15: 0x01}, Ingested: when.Add(250 * time.Millisecond),
		}
	}
	return stored
}

// TestGolden renders an example for each profile, and some that fit none, and holds each to its profile and its file.
func TestGolden(t *testing.T) {
	table := demands()
	seen := map[string]bool{}
	for name, s := range examples(t) {
		b := balp.Append(nil, &s, source())
		valid(t, b)
		var r map[string]any
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		d, isProfile := table[name]
		claimed := list(at(r, "meta.profile"))
		switch {
		case isProfile && (len(claimed) != 1 || claimed[0] != balp.ProfileBase+name):
			t.Errorf("%s: claims %v", name, claimed)
		case !isProfile && claimed != nil:
			t.Errorf("%s: claims %v", name, claimed)
		case isProfile:
			seen[name] = true
			for _, f := range d.check(r) {
				t.Errorf("%s: %s (https://profiles.ihe.net/ITI/BALP/%s)", name, f, d.page)
			}
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, append(b, '\n'), "", "  "); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(path, pretty.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pretty.Bytes(), want) {
			t.Errorf("%s differs from its golden file (go test ./audit/balp -update rewrites it):\n%s", name, pretty.Bytes())
		}
	}
	for name := range table {
		if !seen[name] || !slices.Contains(balp.Profiles(), name) {
			t.Errorf("no example of %s, or it is not among the profiles", name)
		}
	}
	if len(balp.Profiles()) != len(table) {
		t.Errorf("profiles %v", balp.Profiles())
	}
}

// TestClaims: whatever profile a resource claims, it has what the profile demands; and what lacks something claims nothing.
func TestClaims(t *testing.T) {
	table := demands()
	for name, s := range examples(t) {
		for what, change := range map[string]func(*audit.Event){
			"no client":   func(e *audit.Event) { e.Agent.Client = "" },
			"no network":  func(e *audit.Event) { e.Agent.Network = "" },
			"no user":     func(e *audit.Event) { e.Agent = audit.Agent{Client: e.Agent.Client, Network: e.Agent.Network} },
			"no patient":  func(e *audit.Event) { e.Patient = "" },
			"no entities": func(e *audit.Event) { e.Entities = nil },
			"no query":    func(e *audit.Event) { e.Query = nil },
			"failed":      func(e *audit.Event) { e.Outcome = audit.SeriousFailure },
			"intended":    func(e *audit.Event) { e.Outcome = audit.Intent },
			"no action":   func(e *audit.Event) { e.Action = audit.ActionExecute },
			"odd patient": func(e *audit.Event) { e.Patient = "no id of FHIR's" },
			"no detail":   func(e *audit.Event) { e.Detail = nil },
			"no purpose":  func(e *audit.Event) { e.Purpose = "" },
			"no policy":   func(e *audit.Event) { e.Decision.Policy = 0 },
		} {
			changed := s
			change(&changed.Event)
			b := balp.Append(nil, &changed, source())
			valid(t, b)
			var r map[string]any
			if err := json.Unmarshal(b, &r); err != nil {
				t.Fatal(err)
			}
			for _, claimed := range list(at(r, "meta.profile")) {
				profile := strings.TrimPrefix(claimed.(string), balp.ProfileBase)
				d, known := table[profile]
				if !known {
					t.Errorf("%s with %s claims %s, which is not in the table", name, what, profile)
				}
				for _, f := range d.check(r) {
					t.Errorf("%s with %s claims %s: %s", name, what, profile, f)
				}
			}
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	when := time.Date(2026, 11, 22, 8, 30, 15, 0, time.UTC)
	s := audit.Stored{Row: audit.Row{Event: audit.Event{
		Recorded: when, Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: "p1", RequestID: "r1",
		Agent:    audit.Agent{User: "dr-rivera", Client: "clinic-app", Network: "192.0.2.7", Roles: []string{"clinician"}},
		Entities: []audit.Entity{{Type: "Observation", ID: "b1", Version: 2}}, Decision: audit.Decision{Allowed: true, Reason: "allowed", Policy: 7},
	}}}
	var buffer []byte
	b.ReportAllocs()
	for b.Loop() {
		buffer = balp.Append(buffer[:0], &s, source())
	}
}
