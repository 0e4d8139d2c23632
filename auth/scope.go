package auth

// Scopes are the SMART App Launch scopes of a token, parsed once at verification
// (https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html, v1 and v2 syntax).
type Scopes struct{ unwritten int }

// ParseScopes parses a space-separated scope string. Scopes that are not about resources are kept as names (openid,
// fhirUser, launch/patient). A resource scope that does not parse, or that carries a search constraint (?…) which is not
// supported, grants nothing.
func ParseScopes(s string) Scopes { panic("unwritten") }
