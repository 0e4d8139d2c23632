package auth

import (
	"slices"
	"time"
)

// ConsentRule is one provision of a patient's Consent as far as it can be applied (https://hl7.org/fhir/R4/consent.html): who is kept
// out or let in, for what.
type ConsentRule struct {
	Consent     string     // id of the Consent
	Depth       int        // of nesting: a provision is an exception to those that it stands in
	Permit      bool       // otherwise it denies
	Actor       string     // "Practitioner/id"; "" is everybody
	Segments    SegmentSet // of the records that it is about; none: all records
	Purposes    []string   // of use; none: all
	From, Until time.Time  // inclusive, exclusive; zero: open
}

// consentType is the type of consents themselves. What denies everybody does not hide it: it must be found by those who apply it, and by
// whoever is to lift it (45 CFR 164.522(a)(2)).
const consentType = "Consent"

// about reports whether a rule is about a record of a type, in a segment, for a purpose, at a moment.
func (c *ConsentRule) about(resourceType string, segment Segment, purpose string, now time.Time) bool {
	return (c.Actor != "" || resourceType != consentType) &&
		(c.Segments == 0 || segment != SegmentGeneral && c.Segments.Has(segment)) &&
		(len(c.Purposes) == 0 || slices.Contains(c.Purposes, purpose)) &&
		!now.Before(c.From) && (c.Until.IsZero() || now.Before(c.Until))
}

// opens reports whether a permit opens a segment: it must name it, and psychotherapy notes are opened to somebody who is named (45 CFR
// 164.508(c)(1)(iii)), where for part 2 records a general designation will do (42 CFR 2.31(a)(4)(ii)).
func (c *ConsentRule) opens(segment Segment) bool {
	return c.Permit && c.Segments != 0 && (segment != SegmentPsychotherapy || c.Actor != "")
}

// JudgeConsents applies the rules of one patient to one record; those of one Consent stand beside each other. Of one Consent the
// provision that is nested deepest decides; of several Consents, and of provisions that are equally deep, a denial wins. opened says
// that one opens the record's segment. It looks at each rule once, and allocates nothing.
func JudgeConsents(rules []ConsentRule, resourceType string, segment Segment, purpose string, now time.Time) (denied, opened bool) {
	for first := 0; first < len(rules); {
		deny, permit, opens := -1, -1, -1 // how deep this Consent's deepest is of each kind, of those about the record
		next := first
		for ; next < len(rules) && rules[next].Consent == rules[first].Consent; next++ {
			switch c := &rules[next]; {
			case !c.about(resourceType, segment, purpose, now):
			case !c.Permit:
				deny = max(deny, c.Depth)
			default:
				permit = max(permit, c.Depth)
				if c.opens(segment) {
					opens = max(opens, c.Depth)
				}
			}
		}
		denied = denied || deny >= 0 && permit <= deny
		opened = opened || opens > deny
		first = next
	}
	return denied, opened
}

// exempt reports whether consents are not about a caller: they are about others than the patient, and about disclosures, which the
// deployment's own work (a principal that no token made) is not.
func (p *Principal) exempt(relation Relation) bool { return relation == RelationSelf || p.Issuer == "" }
