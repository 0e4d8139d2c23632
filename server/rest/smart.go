package rest

import (
	"encoding/json"
	"slices"
	"strings"
)

// Issuer is what the authorization server says about itself, as far as clients of this API need it (RFC 8414 section 2, OpenID Connect
// Discovery 1.0 section 3, RFC 9449 section 5.1, RFC 8705 section 3.3). The zero Issuer has no endpoints, and nothing is claimed of it.
type Issuer struct {
	Issuer     string `json:"issuer,omitempty"`
	JWKS       string `json:"jwks_uri,omitempty"`
	Authorize  string `json:"authorization_endpoint,omitempty"`
	Token      string `json:"token_endpoint,omitempty"`
	Register   string `json:"registration_endpoint,omitempty"`
	Introspect string `json:"introspection_endpoint,omitempty"`
	Revoke     string `json:"revocation_endpoint,omitempty"`

	Grants      []string `json:"grant_types_supported,omitempty"`
	Responses   []string `json:"response_types_supported,omitempty"`
	Challenges  []string `json:"code_challenge_methods_supported,omitempty"`
	Auth        []string `json:"token_endpoint_auth_methods_supported,omitempty"`
	Algorithms  []string `json:"token_endpoint_auth_signing_alg_values_supported,omitempty"`
	Scopes      []string `json:"scopes_supported,omitempty"`
	ACR         []string `json:"acr_values_supported,omitempty"`
	DPoP        []string `json:"dpop_signing_alg_values_supported,omitempty"`
	BoundByMTLS bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
	NamesItself bool     `json:"authorization_response_iss_parameter_supported,omitempty"` // RFC 9207
}

// has reports whether the issuer says that it supports a grant, an authentication method or a scope.
func has(said []string, what string) bool { return slices.Contains(said, what) }

// launches reports whether apps can ask a person for access: an authorization endpoint, the code grant, and PKCE with S256, which SMART
// demands.
func (i Issuer) launches() bool {
	return i.Authorize != "" && i.Token != "" && has(i.Grants, "authorization_code") && has(i.Responses, "code") && has(i.Challenges, "S256")
}

// knows reports whether the issuer grants SMART scopes of a level ("patient/").
func (i Issuer) knows(level string) bool {
	return slices.ContainsFunc(i.Scopes, func(s string) bool { return strings.HasPrefix(s, level) })
}

// capabilities are SMART's (https://hl7.org/fhir/smart-app-launch/conformance.html#capability-sets): the permissions that this server enforces
// as far as the issuer grants such scopes, and what the issuer says that it does. Nothing is taken for granted: a launch from an EHR,
// an encounter's context and styles are not there unless the issuer has the scopes for them, and those that nothing tells are not claimed.
func (i Issuer) capabilities() []string {
	list := []string{}
	claim := func(ok bool, names ...string) {
		if ok {
			list = append(list, names...)
		}
	}
	claim(i.launches(), "launch-standalone")
	claim(i.launches() && has(i.Scopes, "launch"), "launch-ehr", "context-ehr-patient")
	claim(i.launches() && has(i.Auth, "none"), "client-public")
	claim(has(i.Auth, "private_key_jwt"), "client-confidential-asymmetric")
	claim(has(i.Auth, "client_secret_basic"), "client-confidential-symmetric")
	claim(i.launches() && i.JWKS != "" && has(i.Scopes, "openid") && has(i.Scopes, "fhirUser"), "sso-openid-connect")
	claim(i.launches() && has(i.Scopes, "launch/patient"), "context-standalone-patient")
	claim(i.launches() && has(i.Scopes, "launch/encounter"), "context-standalone-encounter")
	claim(has(i.Grants, "refresh_token") && has(i.Scopes, "offline_access"), "permission-offline")
	claim(has(i.Grants, "refresh_token") && has(i.Scopes, "online_access"), "permission-online")
	claim(i.knows("patient/"), "permission-patient")
	claim(i.knows("user/"), "permission-user")
	claim(i.knows("patient/") || i.knows("user/") || i.knows("system/"), "permission-v1", "permission-v2")
	return list
}

// newSMART is the discovery document (https://hl7.org/fhir/smart-app-launch/conformance.html#using-well-known): what the issuer says about
// itself, and what the two do together.
func (s *Server) newSMART() (document, error) {
	said := s.cfg.Issuer
	// Required by SMART, if only to be empty; and whoever reads plain here might use it.
	said.Challenges = slices.DeleteFunc(append([]string{}, said.Challenges...), func(method string) bool { return method == "plain" })
	if said.Issuer != "" {
		said.Scopes = append(slices.Clone(said.Scopes), s.granularScopes()...)
	}
	body, err := json.Marshal(struct {
		Issuer
		Grants       []string `json:"grant_types_supported"`
		Challenges   []string `json:"code_challenge_methods_supported"`
		Capabilities []string `json:"capabilities"`
	}{said, append([]string{}, said.Grants...), said.Challenges, said.capabilities()})
	return newDocument(body), err
}

// granularScopes are examples of scopes with a constraint, which the list of an issuer cannot enumerate.
func (s *Server) granularScopes() (list []string) {
	const category = "Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"
	for _, level := range []string{"patient/", "user/", "system/"} {
		if s.cfg.Issuer.knows(level) {
			list = append(list, level+category)
		}
	}
	return list
}
