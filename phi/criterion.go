package phi

import (
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// criterion is a condition that an opened record is held against: FHIR's own, or one that needs more than comparing text. Never
// changed after it was made.
type criterion interface {
	Elements() []string // top-level elements that it looks at
	Match(*fhir.Resource) bool
}

// newCriterion parses a search parameter; issues are as fhir.ParseCriterion's.
func newCriterion(resourceType string, p Param) (criterion, []fhir.Issue) {
	c, issues := fhir.ParseCriterion(resourceType, p.Name, p.Value)
	if issues != nil {
		return nil, issues
	}
	if (p.Name == "phone" || p.Name == "telecom") && classOf(resourceType, "telecom") == ClassContact {
		if numbers := telephones(p); len(numbers) > 0 {
			return telephone{c, numbers}, nil
		}
	}
	return c, nil
}

// telephone matches what FHIR's rule does, which compares digits, and numbers that are the same in E.164: "555 014-0001" is
// "+1 555 014 0001".
type telephone struct {
	*fhir.Criterion
	numbers []contact
}

// contact is a number in E.164 and the system that it must be of; "" is any.
type contact struct{ system, number string }

// telephones are the alternatives of a search that are telephone numbers.
func telephones(p Param) []contact {
	var numbers []contact
	for _, alternative := range fhir.SplitSearchValue(p.Value, ',') {
		parts := fhir.SplitSearchValue(alternative, '|')
		c := contact{number: normalizePhone(fhir.SearchLiteral(parts[len(parts)-1]))}
		if len(parts) > 1 {
			c.system = fhir.SearchLiteral(parts[0])
		} else if p.Name == "phone" {
			c.system = "phone"
		}
		if strings.HasPrefix(c.number, "+") && (p.Name != "phone" || c.system == "phone") {
			numbers = append(numbers, c)
		}
	}
	return numbers
}

// Match implements criterion.
func (t telephone) Match(r *fhir.Resource) bool {
	matches := t.Criterion.Match(r)
	for _, e := range r.Elements {
		if e.Name != "telecom" || matches {
			continue
		}
		each(e.Raw, func(telecom gjson.Result) {
			system, number := telecom.Get("system").String(), normalizePhone(telecom.Get("value").String())
			matches = matches || slices.ContainsFunc(t.numbers, func(c contact) bool {
				return c.number == number && (c.system == system || c.system == "" && system != "email")
			})
		})
	}
	return matches
}
