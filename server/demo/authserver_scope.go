package demo

import (
	"slices"
	"strings"
)

// grant is the part of the requested scopes that a persona may have: the contexts, types and letters of its default scope
// (https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html). A scope that is wider is narrowed, one that does
// not parse is left out. A search constraint is granted as it was asked for, since it only narrows; what it means is the resource
// server's to say. Somebody with user/ scopes may give an app patient/ scopes as well.
func grant(p Persona, requested string) string {
	type limit struct{ kind, letters string }
	limits := map[string]limit{} // by context
	for scope := range strings.FieldsSeq(p.Scope) {
		if context, kind, letters, _, ok := resourceScope(scope); ok {
			limits[context] = limit{kind, letters}
			if context == "user" && kind == "*" {
				limits["patient"] = limit{kind, letters}
			}
		}
	}
	var granted []string
	for scope := range strings.FieldsSeq(requested) {
		switch scope {
		case "openid", "profile", "offline_access", "online_access":
		case "fhirUser":
			if p.FHIRUser == "" {
				continue
			}
		case "launch/patient":
			if limits["patient"] == (limit{}) {
				continue
			}
		default:
			context, kind, letters, constraint, ok := resourceScope(scope)
			if !ok {
				continue
			}
			most := limits[context]
			may := strings.Map(func(r rune) rune {
				if strings.ContainsRune(most.letters, r) {
					return r
				}
				return -1
			}, letters)
			narrower := kind
			if most.kind != "*" {
				narrower = most.kind
			}
			switch {
			case may == "", kind != "*" && kind != narrower, constraint != "" && kind != narrower:
				continue
			case may == letters && kind == narrower: // as it was asked for, v1 or v2
			default:
				scope = context + "/" + narrower + "." + may + constraint
			}
		}
		if !slices.Contains(granted, scope) {
			granted = append(granted, scope)
		}
	}
	return strings.Join(granted, " ")
}

// resourceScope takes apart patient/Observation.rs?category=laboratory, user/*.read and the like; letters come in the order cruds, and the
// constraint, which only version 2 and one type have, with its question mark.
func resourceScope(scope string) (context, kind, letters, constraint string, ok bool) {
	context, rest, _ := strings.Cut(scope, "/")
	if at := strings.IndexByte(rest, '?'); at >= 0 {
		rest, constraint = rest[:at], rest[at:]
	}
	kind, letters, ok = strings.Cut(rest, ".")
	if !ok || kind == "" || !slices.Contains([]string{"patient", "user", "system"}, context) || !plainConstraint(constraint) {
		return "", "", "", "", false
	}
	if kind != "*" && strings.ContainsFunc(kind, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }) {
		return "", "", "", "", false
	}
	one := constraint == ""
	switch letters { // version 1
	case "read":
		return context, kind, "rs", "", one
	case "write":
		return context, kind, "cud", "", one
	case "*":
		return context, kind, "cruds", "", one
	}
	last := -1
	for _, r := range letters {
		at := strings.IndexRune("cruds", r)
		if at <= last {
			return "", "", "", "", false
		}
		last = at
	}
	return context, kind, letters, constraint, letters != "" && (one || kind != "*")
}

// plainConstraint reports whether s is nothing, or "?name=value&name=value" in the characters of a scope (RFC 6749 section 3.3).
func plainConstraint(s string) bool {
	if s == "" {
		return true
	}
	for pair := range strings.SplitSeq(s[1:], "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name == "" || value == "" || strings.ContainsFunc(pair, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return false
		}
	}
	return true
}

func has(scopes, name string) bool { return slices.Contains(strings.Fields(scopes), name) }

// patientBound reports whether scopes need a launch patient.
func patientBound(scopes string) bool {
	return has(scopes, "launch/patient") || strings.HasPrefix(scopes, "patient/") || strings.Contains(scopes, " patient/")
}
