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

// JudgeConsents applies the rules of one patient to one record. Of one Consent the provision that is nested deepest decides; of several
// Consents, and of provisions that are equally deep, a denial wins. opened says that one opens the record's segment.
func JudgeConsents(rules []ConsentRule, resourceType string, segment Segment, purpose string, now time.Time) (denied, opened bool) {
	// deeper reports whether the same Consent has a provision of an effect, from a depth on, that is about the record too.
	deeper := func(of *ConsentRule, permit bool, from int) bool {
		for i := range rules {
			if c := &rules[i]; c.Consent == of.Consent && c.Permit == permit && c.Depth >= from && c.about(resourceType, segment, purpose, now) {
				return true
			}
		}
		return false
	}
	for i := range rules {
		c := &rules[i]
		if !c.about(resourceType, segment, purpose, now) {
			continue
		}
		if c.Permit {
			opened = opened || c.opens(segment) && !deeper(c, false, c.Depth)
		} else {
			denied = denied || !deeper(c, true, c.Depth+1)
		}
	}
	return denied, opened
}

// exempt reports whether consents are not about a caller: they are about others than the patient, and about disclosures, which the
// deployment's own work (a principal that no token made) is not.
func (p *Principal) exempt(relation Relation) bool { return relation == RelationSelf || p.Issuer == "" }
