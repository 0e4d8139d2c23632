// Package balp renders events of the trail as FHIR R4 AuditEvents (http://hl7.org/fhir/R4/auditevent.html) after IHE Basic
// Audit Log Patterns 1.1 (https://profiles.ihe.net/ITI/BALP/).
//
// The stored bytes of an event are never touched: FHIR is a way to look at them. It is one to one: each event is one
// resource, and every field of the event can be read back from it (the package's test does). What FHIR and BALP have no
// element for stands in extensions under ExtensionBase. Only text that no FHIR string can hold (control characters,
// nothing but white space) comes out with U+FFFD in its place.
//
// A resource claims a BALP profile in meta.profile only when it has everything that the profile demands; see profileOf for
// which. BALP describes what succeeded; other events are plain AuditEvents of the same shape.
//
// Two liberties are taken, and said in the resource. The text of a search may hold names, so the trail keeps it sealed:
// entity.query holds the sealed bytes and says so in an extension. And a denial follows the authorization decision pattern,
// which BALP wrote for decisions by consent: where it wants the consent, ours names the version of the access policy.
package balp

import (
	"slices"
	"strconv"
	"strings"

	"github.com/chartkeep/chartkeep/audit"
)

// ProfileBase begins the canonical URL of every BALP profile, e.g. ProfileBase + "PatientRead".
const ProfileBase = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."

// ExtensionBase begins the URL of our extensions:
//
//	stream, seq, leaf, part-time      the event's place in the log: stream (hex), number in it, leaf hash (hex), part time
//	intent                            true: what was about to happen; another event with this one's id as correlation has the outcome
//	correlation                       id of the intent that this event tells the outcome of
//	decision                          allowed, rule, reason, view, policy: what access control said, and why
//	class                             PHI class that was touched; repeated
//	duration                          total, auth, decision, database, crypto, audit: microseconds
//	session                           of the user agent: session of the token
//	version                           of an entity: its version, where the reference cannot say it
//	sealed                            of entity.query: the bytes are the sealed text of the search
//	detail                            payload of the event's type
//	interaction, action, entity, request, query   of a denial, whose pattern has no element for what was attempted
const ExtensionBase = "https://github.com/chartkeep/chartkeep/StructureDefinition/"

// Code systems.
const (
	systemEventType   = "http://terminology.hl7.org/CodeSystem/audit-event-type"
	systemDICOM       = "http://dicom.nema.org/resources/ontology/DCM"
	systemREST        = "http://hl7.org/fhir/restful-interaction"
	systemLifecycle   = "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle"
	systemEntityType  = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
	systemObjectRole  = "http://terminology.hl7.org/CodeSystem/object-role"
	systemResource    = "http://hl7.org/fhir/resource-types"
	systemReason      = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
	systemParticipant = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
	systemRoleClass   = "http://terminology.hl7.org/CodeSystem/v3-RoleClass"
	systemProvenance  = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
	systemSecurity    = "http://terminology.hl7.org/CodeSystem/extra-security-role-type"
	systemSourceType  = "http://terminology.hl7.org/CodeSystem/security-source-type"
	systemURI         = "urn:ietf:rfc:3986"
	balpEntityType    = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
	balpAuthZ         = "https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType"
	balpUserAgent     = "https://profiles.ihe.net/ITI/BALP/CodeSystem/UserAgentTypes"
	ownInteraction    = ExtensionBase + "interaction"
	ownType           = ExtensionBase + "type"
	ownPolicy         = ExtensionBase + "policy"
)

// AuthZRole is the subtype of a denial: BALP's "Authorization Decision using only Roles".
const AuthZRole = "AuthZ-Role"

// Disclose is the subtype of a disclosure (ISO 21089), see audit.TypeExport.
const Disclose = "disclose"

// Source is who recorded the events.
type Source struct {
	Base   string // FHIR base URL of the server: its identity and its network address
	Issuer string // issuer of the tokens: the namespace of users and clients; "" when not known
}

// Denied reports whether the event is a decision of access control against a request. Such an event renders as an
// authorization decision: type 110113, subtype AuthZRole, action E.
func Denied(e *audit.Event) bool {
	return e.Type == audit.TypeREST && e.Decision.Reason != "" && e.Decision.Reason != "allowed"
}

// DeniedReasons is the term that holds for exactly the denials among the events of type audit.TypeREST; with Not, for
// the others.
func DeniedReasons() audit.Term {
	return audit.Term{Field: audit.FieldReason, Not: true, Values: []string{"", "allowed"}}
}

// Interactions returns the interactions that a code of AuditEvent.subtype stands for.
func Interactions(subtype string) []string {
	list := []string{subtype}
	for interaction, code := range dicomInteractions() {
		if code == subtype {
			list = append(list, interaction)
		}
	}
	return list
}

// Profiles are the BALP profiles that resources may claim, to go after ProfileBase.
func Profiles() []string {
	return []string{
		"Read", "PatientRead", "Query", "PatientQuery", "Create", "PatientCreate", "Update", "PatientUpdate", "Delete", "PatientDelete",
		"PrivacyDisclosure.Source", "AuthZconsent", "OAUTHaccessTokenUse.Minimal",
	}
}

// profileOf names the BALP profile that the event's resource satisfies, "" for none.
func profileOf(e *audit.Event) string {
	client, patient := e.Agent.Client != "" && e.Agent.Network != "", validID(e.Patient)
	if Denied(e) {
		if client && patient && e.Agent.User != "" && e.Outcome != audit.Intent {
			return "AuthZconsent"
		}
		return ""
	}
	if e.Outcome != audit.Success {
		return ""
	}
	if e.Type == audit.TypeAuthentication {
		if e.Interaction == audit.InteractionLogin && e.Agent.User != "" && tokenID(e) != "" {
			return "OAUTHaccessTokenUse.Minimal"
		}
		return ""
	}
	if e.Type == audit.TypeExport {
		if client && e.Action == audit.ActionRead && patient && len(e.Entities) > 0 {
			return "PrivacyDisclosure.Source"
		}
		return ""
	}
	name := ""
	switch i := e.Interaction; {
	case e.Type != audit.TypeREST || !client:
	case e.Action == audit.ActionExecute && strings.HasPrefix(i, "search-"):
		if len(e.Query) > 0 {
			name = "Query"
		}
	case len(e.Entities) == 0:
	case e.Action == audit.ActionRead && (i == "read" || i == "vread" || i == "history-instance"):
		name = "Read"
	case e.Action == audit.ActionCreate && i == "create":
		name = "Create"
	case e.Action == audit.ActionUpdate && i == "update":
		name = "Update"
	case e.Action == audit.ActionDelete && i == "delete":
		name = "Delete"
	}
	if name != "" && patient {
		name = "Patient" + name
	}
	return name
}

// tokenID is the jti in a sign-in event.
func tokenID(e *audit.Event) string {
	if e.Type != audit.TypeAuthentication {
		return ""
	}
	s, err := audit.DecodeSignIn(e.Detail)
	if err != nil {
		return ""
	}
	return s.TokenID
}

// Append appends the event as a FHIR R4 AuditEvent in JSON. It keeps neither s nor what it points to.
func Append(dst []byte, s *audit.Stored, cfg Source) []byte {
	r := render{writer: writer{b: dst}, Stored: s, cfg: cfg, profile: profileOf(&s.Event), denied: Denied(&s.Event)}
	r.resource()
	return r.b
}

type render struct {
	writer
	*audit.Stored
	cfg     Source
	profile string
	denied  bool
}

// instants have microseconds: no digit of an event's time is lost.
const instant = "2006-01-02T15:04:05.000000Z"

func (r *render) resource() {
	e := &r.Event
	r.b = append(r.b, '{')
	r.text("resourceType", "AuditEvent")
	r.text("id", e.ID.String())
	r.open("meta", '{')
	r.text("versionId", "1")
	if !r.Ingested.IsZero() {
		r.text("lastUpdated", r.Ingested.UTC().Format(instant))
	}
	if r.profile != "" {
		r.open("profile", '[')
		r.text("", ProfileBase+r.profile)
		r.close(']')
	}
	r.close('}')
	r.extensions()
	r.typed()
	r.text("recorded", e.Recorded.UTC().Format(instant))
	if e.Outcome != audit.Intent {
		r.text("outcome", strconv.Itoa(int(e.Outcome)))
	}
	r.optional("outcomeDesc", e.OutcomeDesc)
	if e.Purpose != "" {
		r.open("purposeOfEvent", '[')
		r.concept("", systemReason, e.Purpose, "")
		r.close(']')
	}
	r.agents()
	r.open("source", '{')
	r.observer("observer")
	r.open("type", '[')
	r.coding("", systemSourceType, "4", "Application Server")
	r.close(']')
	r.close('}')
	r.entities()
	r.close('}')
}

// typed writes type, subtype and action.
func (r *render) typed() {
	e := &r.Event
	if r.denied {
		r.coding("type", systemDICOM, string(audit.TypeSecurityAlert), "Security Alert")
		r.open("subtype", '[')
		r.coding("", balpAuthZ, AuthZRole, "Authorization Decision using only Roles")
		r.close(']')
		r.text("action", string(audit.ActionExecute))
		return
	}
	if display, ok := typeDisplays()[e.Type]; ok {
		system := systemDICOM
		if e.Type == audit.TypeREST {
			system = systemEventType
		}
		r.coding("type", system, string(e.Type), display)
	} else {
		r.coding("type", ownType, string(e.Type), "")
	}
	if e.Interaction != "" || e.Type == audit.TypeExport {
		r.open("subtype", '[')
		if e.Type == audit.TypeExport {
			r.coding("", systemLifecycle, Disclose, "Disclose Record Lifecycle Event")
		}
		if code := dicomInteractions()[e.Interaction]; code != "" {
			r.coding("", systemDICOM, code, "")
		}
		if restful(e.Interaction) {
			r.coding("", systemREST, e.Interaction, "")
		} else if e.Interaction != "" {
			r.coding("", ownInteraction, e.Interaction, "")
		}
		r.close(']')
	}
	if e.Action != 0 {
		r.text("action", string(rune(e.Action)))
	}
}

// typeDisplays are the types of the trail with the names that FHIR and DICOM PS3.16 give them.
func typeDisplays() map[audit.Type]string {
	return map[audit.Type]string{
		audit.TypeREST:           "RESTful Operation",
		audit.TypeApplication:    "Application Activity",
		audit.TypeAuditLogUsed:   "Audit Log Used",
		audit.TypeExport:         "Export",
		audit.TypeImport:         "Import",
		audit.TypeSecurityAlert:  "Security Alert",
		audit.TypeAuthentication: "User Authentication",
		audit.TypePolicy:         "User Security Attributes Changed",
	}
}

// dicomInteractions are the interactions that DICOM PS3.16 (CID 403 and others) has a code for.
func dicomInteractions() map[string]string {
	return map[string]string{audit.InteractionLogin: "110122", audit.InteractionLogout: "110123"}
}

// restful reports whether FHIR has the interaction (http://hl7.org/fhir/R4/valueset-type-restful-interaction.html and
// -system-).
func restful(interaction string) bool {
	return slices.Contains([]string{
		"read", "vread", "update", "patch", "delete", "history", "history-instance", "history-type", "history-system", "create", "search",
		"search-type", "search-system", "capabilities", "transaction", "batch", "operation",
	}, interaction)
}

func (r *render) extensions() {
	e := &r.Event
	r.open("extension", '[')
	r.extension("stream", "valueString", r.Stream.String())
	r.number("seq", strconv.FormatUint(r.Seq, 10))
	r.extension("leaf", "valueString", hexOf(r.Leaf[:]))
	if !r.PartTime.IsZero() {
		r.extension("part-time", "valueInstant", r.PartTime.UTC().Format(instant))
	}
	if e.Outcome == audit.Intent {
		r.flag("intent", true)
	}
	if e.Correlation != (audit.ID{}) {
		r.extension("correlation", "valueUuid", "urn:uuid:"+e.Correlation.String())
	}
	if d := e.Decision; d != (audit.Decision{}) {
		r.openExtension("decision")
		r.flag("allowed", d.Allowed)
		r.extension("rule", "valueString", d.Rule)
		r.extension("reason", "valueString", d.Reason)
		r.extension("view", "valueString", d.View)
		if d.Policy != 0 {
			r.number("policy", strconv.FormatInt(d.Policy, 10))
		}
		r.closeExtension()
	}
	for _, c := range e.Classes {
		r.extension("class", "valueString", c)
	}
	if t := e.Timing; t != (audit.Timing{}) {
		r.openExtension("duration")
		for _, part := range [...]struct {
			name string
			us   uint32
		}{{"total", t.Total}, {"auth", t.Auth}, {"decision", t.Decision}, {"database", t.Database}, {"crypto", t.Crypto}, {"audit", t.Audit}} {
			if part.us != 0 {
				r.number(part.name, strconv.FormatUint(uint64(part.us), 10))
			}
		}
		r.closeExtension()
	}
	r.bytes("detail", e.Detail)
	if r.denied {
		r.extension("interaction", "valueString", e.Interaction)
		if e.Action != 0 {
			r.extension("action", "valueString", string(rune(e.Action)))
		}
		r.extension("request", "valueString", e.RequestID)
		r.bytes("query", e.Query)
		for i := range e.Entities {
			r.openExtension("entity")
			r.extension("type", "valueString", e.Entities[i].Type)
			r.extension("id", "valueString", e.Entities[i].ID)
			r.number("version", strconv.FormatInt(e.Entities[i].Version, 10))
			r.closeExtension()
		}
	}
	r.close(']')
}
