package phi

import (
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// fail makes an Error with one issue. Codes are FHIR's issue types; diagnostics are fixed sentences, never values.
func fail(kind Kind, code, diagnostics string) *Error {
	return &Error{Kind: kind, Issues: []fhir.Issue{{Severity: "error", Code: code, Diagnostics: diagnostics}}}
}

// at says which element is at fault.
func (e *Error) at(expression string) *Error {
	e.Issues[0].Expression = expression
	return e
}

// because keeps the cause for logs.
func (e *Error) because(err error) *Error {
	e.Err = err
	return e
}

func invalid(code, diagnostics string) *Error { return fail(Invalid, code, diagnostics) }

func denied() *Error {
	return fail(Denied, "forbidden", "the caller's scopes or roles do not allow this")
}

// tooWeak asks for another sign-in. Only a decision about a type may say so: said of a record, it would tell that the record is there.
func (a *attempt) tooWeak() *Error {
	e := fail(StepUp, "login", "another sign-in is needed for this")
	e.Demand = a.decision.StepUp
	return e
}

func notFound() *Error { return fail(NotFound, "not-found", "there is no such record") }

func gone() *Error { return fail(Gone, "deleted", "the resource was deleted") }

func erased() *Error {
	return fail(Gone, "deleted", "the patient's records were erased for good: their keys are destroyed")
}

func unavailable(err error) *Error {
	return fail(Unavailable, "transient", "a part that must be there to disclose safely is not available now").because(err)
}

func changed() *Error {
	return fail(Conflict, "conflict", "the record was changed by somebody else at the same time")
}

func precondition(code, diagnostics string) *Error {
	return fail(PreconditionFailed, code, diagnostics)
}

// within moves the issues of a resource to where the resource stands, e.g. "Bundle.entry[3].resource".
func (e *Error) within(place string) *Error {
	for i, issue := range e.Issues {
		if issue.Expression == "" {
			e.Issues[i].Expression = place
			continue
		}
		// "Patient.name[0]" stands below the entry as ".name[0]"; the type's name goes.
		rest := issue.Expression
		for j := range len(rest) {
			if rest[j] == '.' || rest[j] == '[' {
				rest = rest[j:]
				break
			}
			if j == len(rest)-1 {
				rest = ""
			}
		}
		e.Issues[i].Expression = place + ".resource" + rest
	}
	return e
}

// String is the word that audit events carry.
func (k Kind) String() string {
	switch k {
	case Invalid:
		return "invalid"
	case Unprocessable:
		return "unprocessable"
	case Denied:
		return "denied"
	case NotFound:
		return "not-found"
	case Gone:
		return "gone"
	case Conflict:
		return "conflict"
	case PreconditionFailed:
		return "precondition-failed"
	case TooLarge:
		return "too-large"
	case Unavailable:
		return "unavailable"
	case Integrity:
		return "integrity-failure"
	case NotAllowed:
		return "not-allowed"
	case StepUp:
		return "step-up"
	}
	return "unknown"
}
