package balp

import (
	"strconv"

	"github.com/chartkeep/chartkeep/audit"
)

// Roles of agents (DICOM PS3.16 CID 402).
const (
	roleApplication = "110150"
	roleDestination = "110152"
	roleSource      = "110153"
)

// directions returns the types of the client and the server agent. They follow the data in a read and a disclosure, and the
// request in everything else: BALP has a search flow from the client to the server. A delete has its own.
func (r *render) directions() (client, server func()) {
	dicom := func(code, display string) func() {
		return func() { r.concept("type", systemDICOM, code, display) }
	}
	source, destination := dicom(roleSource, "Source Role ID"), dicom(roleDestination, "Destination Role ID")
	application := dicom(roleApplication, "Application")
	switch i := r.Event.Interaction; {
	case r.denied:
		return application, nil
	case r.Event.Type == audit.TypeREST && i == "delete":
		return application, func() { r.concept("type", systemProvenance, "custodian", "Custodian") }
	case r.Event.Type == audit.TypeExport, i == "read", i == "vread", i == "history-instance":
		return destination, source
	}
	return source, destination
}

func (r *render) agents() {
	a := &r.Event.Agent
	client, server := r.directions()
	user := a.User != "" || a.Name != "" || a.FHIRUser != "" || a.Session != "" || len(a.Roles) > 0
	r.open("agent", '[')
	if user {
		r.user()
	}
	if a.Client != "" || a.Network != "" {
		r.open("", '{')
		client()
		if a.Client != "" {
			r.open("who", '{')
			r.identifier(r.cfg.Issuer, a.Client)
			r.close('}')
		}
		r.requestor(!user)
		if a.Network != "" {
			r.network(a.Network, "2")
		}
		r.close('}')
	}
	if r.denied {
		r.open("", '{')
		r.concept("type", systemRoleClass, "PROV", "healthcare provider")
		r.open("who", '{')
		r.identifier(systemURI, r.cfg.Base)
		r.text("display", "the covered entity that this server serves")
		r.close('}')
		r.requestor(false)
		r.close('}')
		r.open("", '{')
		r.concept("type", systemSecurity, "authserver", "authorization server")
		r.observer("who")
		r.requestor(false)
		r.close('}')
	} else {
		r.open("", '{')
		server()
		r.observer("who")
		r.requestor(!user && a.Client == "" && a.Network == "")
		r.network(r.cfg.Base, "5")
		r.close('}')
	}
	r.close(']')
}

// user writes the agent of the user. BALP wants a type out of another value set where data is written.
func (r *render) user() {
	e := &r.Event
	jti := tokenID(e)
	r.open("", '{')
	if e.Agent.Session != "" {
		r.open("extension", '[')
		r.extension("session", "valueString", e.Agent.Session)
		r.close(']')
	}
	r.open("type", '{')
	r.open("coding", '[')
	if jti != "" {
		r.coding("", balpUserAgent, "UserOauthAgent", "User OAuth Agent participant")
	}
	switch {
	case !r.denied && (e.Action == audit.ActionCreate || e.Action == audit.ActionUpdate || e.Action == audit.ActionDelete):
		r.coding("", systemParticipant, "AUT", "author (originator)")
	default:
		r.coding("", systemParticipant, "IRCP", "information recipient")
	}
	r.close(']')
	r.close('}')
	if len(e.Agent.Roles) > 0 {
		r.open("role", '[')
		for _, role := range e.Agent.Roles {
			r.open("", '{')
			r.text("text", role)
			r.close('}')
		}
		r.close(']')
	}
	if e.Agent.User != "" || e.Agent.FHIRUser != "" {
		r.open("who", '{')
		r.optional("reference", e.Agent.FHIRUser)
		if e.Agent.User != "" {
			r.identifier(r.cfg.Issuer, e.Agent.User)
		}
		r.close('}')
	}
	r.optional("name", e.Agent.Name)
	r.requestor(true)
	if jti != "" {
		r.open("policy", '[')
		r.text("", "urn:ietf:params:oauth:jti:"+uri(jti))
		r.close(']')
	}
	if e.Purpose != "" {
		r.open("purposeOfUse", '[')
		r.concept("", systemReason, e.Purpose, "")
		r.close(']')
	}
	r.close('}')
}

// observer is this server, the same wherever it is named: BALP compares (val-audit-source).
func (r *render) observer(name string) {
	r.open(name, '{')
	r.text("type", "Device")
	r.identifier(systemURI, r.cfg.Base)
	r.text("display", "Chartkeep")
	r.close('}')
}

func (r *render) requestor(is bool) {
	r.name("requestor")
	r.b = strconv.AppendBool(r.b, is)
}

// network writes where an agent is; types are 2, IP address, and 5, URI.
func (r *render) network(address, kind string) {
	r.open("network", '{')
	r.text("address", address)
	r.text("type", kind)
	r.close('}')
}
