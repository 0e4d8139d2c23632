package demo

import (
	"slices"
	"strings"
)

// grant is the part of the requested scopes that a persona may have: the contexts, types and letters of its default scope
// (https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html). A scope that is wider is narrowed, one that does
// not parse or has a search constraint is left out. Somebody with user/ scopes may give an app patient/ scopes as well.
func grant(p Persona, requested string) string {
	type limit struct{ kind, letters string }
	limits := map[string]limit{} // by context
	for scope := range strings.FieldsSeq(p.Scope) {
		if context, kind, letters, ok := resourceScope(scope); ok {
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
			context, kind, letters, ok := resourceScope(scope)
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
			case may == "", kind != "*" && kind != narrower:
				continue
			case may == letters && kind == narrower: // as it was asked for, v1 or v2
			default:
				scope = context + "/" + narrower + "." + may
			}
		}
		if !slices.Contains(granted, scope) {
			granted = append(granted, scope)
		}
	}
	return strings.Join(granted, " ")
}

// resourceScope takes apart patient/Observation.rs, user/*.read and the like; letters come in the order cruds.
func resourceScope(scope string) (context, kind, letters string, ok bool) {
	context, rest, _ := strings.Cut(scope, "/")
	kind, letters, ok = strings.Cut(rest, ".")
	if !ok || kind == "" || !slices.Contains([]string{"patient", "user", "system"}, context) {
		return "", "", "", false
	}
	if kind != "*" && strings.ContainsFunc(kind, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }) {
		return "", "", "", false
	}
	switch letters { // version 1
	case "read":
		return context, kind, "rs", true
	case "write":
		return context, kind, "cud", true
	case "*":
		return context, kind, "cruds", true
	}
	last := -1
	for _, r := range letters {
		at := strings.IndexRune("cruds", r)
		if at <= last {
			return "", "", "", false
		}
		last = at
	}
	return context, kind, letters, letters != ""
}

func has(scopes, name string) bool { return slices.Contains(strings.Fields(scopes), name) }

// patientBound reports whether scopes need a launch patient.
func patientBound(scopes string) bool {
	return has(scopes, "launch/patient") || strings.HasPrefix(scopes, "patient/") || strings.Contains(scopes, " patient/")
}
