package balp

import (
	"strconv"
	"strings"

	"github.com/chartkeep/chartkeep/audit"
)

// Roles of entities (http://hl7.org/fhir/R4/valueset-object-role.html).
const (
	rolePatient = "1"
	roleDomain  = "4"
	roleQuery   = "24"
)

func (r *render) entities() {
	e := &r.Event
	if e.Patient == "" && (r.denied && e.Decision.Policy == 0 || !r.denied && e.RequestID == "" && len(e.Query) == 0 && len(e.Entities) == 0) {
		return // FHIR has no empty arrays
	}
	r.open("entity", '[')
	if e.Patient != "" {
		r.open("", '{')
		r.reference("Patient", e.Patient, 0)
		r.coding("type", systemEntityType, "1", "Person")
		r.coding("role", systemObjectRole, rolePatient, "Patient")
		r.close('}')
	}
	if len(e.Query) > 0 && !r.denied {
		r.open("", '{')
		r.coding("type", systemEntityType, "2", "System Object")
		r.coding("role", systemObjectRole, roleQuery, "Query")
		r.binary("query", e.Query)
		r.open("_query", '{')
		r.open("extension", '[')
		r.flag("sealed", true)
		r.close(']')
		r.close('}')
		r.close('}')
	}
	if r.denied {
		r.policy()
	} else {
		for i := range e.Entities {
			r.entity(&e.Entities[i], i == 0 && len(e.Query) == 0)
		}
		if e.RequestID != "" {
			r.open("", '{')
			r.open("what", '{')
			r.identifier("", e.RequestID)
			r.close('}')
			r.coding("type", balpEntityType, "XrequestId", "")
			r.close('}')
		}
	}
	r.close(']')
}

// policy stands where the authorization decision pattern wants a consent.
func (r *render) policy() {
	if r.Event.Decision.Policy == 0 && r.profile == "" {
		return
	}
	version := strconv.FormatInt(r.Event.Decision.Policy, 10)
	r.open("", '{')
	r.open("what", '{')
	r.identifier(ownPolicy, version)
	r.text("display", "access policy, version "+version+": roles, scopes and relationships; no consent was consulted")
	r.close('}')
	r.coding("type", systemResource, "Consent", "")
	r.close('}')
}

// entity writes a record that took part. BALP's profiles allow one entity of type System Object: the data, or the query.
// Further ones go by their resource type.
func (r *render) entity(n *audit.Entity, data bool) {
	r.open("", '{')
	if n.Version != 0 && (n.Version < 0 || !referable(n.Type, n.ID)) {
		r.open("extension", '[')
		r.number("version", strconv.FormatInt(n.Version, 10))
		r.close(']')
	}
	r.reference(n.Type, n.ID, n.Version)
	switch {
	case data:
		r.coding("type", systemEntityType, "2", "System Object")
	case typeName(n.Type):
		r.coding("type", systemResource, n.Type, "")
	default:
		r.coding("type", systemEntityType, "4", "Other")
	}
	r.coding("role", systemObjectRole, roleDomain, "Domain Resource")
	r.close('}')
}

// reference writes what an entity is: a reference where type and id are FHIR's, else both by name.
func (r *render) reference(kind, id string, version int64) {
	if kind == "" && id == "" {
		return
	}
	r.open("what", '{')
	if referable(kind, id) {
		reference := kind + "/" + id
		if version > 0 {
			reference += "/_history/" + strconv.FormatInt(version, 10)
		}
		r.text("reference", reference)
	} else {
		if kind != "" {
			r.text("type", uri(kind))
		}
		if id != "" {
			r.identifier("", id)
		}
	}
	r.close('}')
}

func referable(kind, id string) bool { return typeName(kind) && validID(id) }

// typeName reports whether s looks like the name of a FHIR resource type.
func typeName(s string) bool {
	if s == "" || s[0] < 'A' || s[0] > 'Z' {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// validID is FHIR's id (http://hl7.org/fhir/R4/datatypes.html#id).
func validID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
