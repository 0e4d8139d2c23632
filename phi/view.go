package phi

import (
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Reduction is what a field view does with what it opened.
type Reduction uint8

const (
	Whole        Reduction = iota // shown as it is
	Coded                         // codes, amounts and dates; no words (keepCodes)
	Deidentified                  // Safe Harbor (safeHarbor)
)

// String names the reduction as tables and reports do.
func (r Reduction) String() string { return [...]string{"whole", "coded", "de-identified"}[r] }

// view is the part of a record that a decision lets through: which classes are fetched and opened, and what is done with
// them then.
type view struct {
	classes   ClassSet
	reduction Reduction
}

func (v view) full() bool { return v.classes == AllClasses && v.reduction == Whole }

// ViewOf maps the name of a field view, as a permission on a type grants it, to PHI classes and what is done with them
// (minimum necessary, 45 CFR 164.502(b), 164.514(d)). An unknown name is not ok and grants nothing.
func ViewOf(name, resourceType string) (classes ClassSet, reduction Reduction, ok bool) {
	const demographics = 1<<ClassIdentifier | 1<<ClassName | 1<<ClassBirthDate | 1<<ClassContact
	switch name {
	case "full":
		return AllClasses, Whole, true
	case "demographics":
		return demographics, Whole, true
	case "billing":
		// What a claim needs: who, and the coded clinical facts.
		return demographics | 1<<ClassClinical, Coded, true
	case "deidentified":
		classes := ClassSet(1 << ClassClinical)
		if resourceType == "Patient" {
			// Of these stay the year of birth, the State and three digits of the ZIP code.
			classes |= 1<<ClassBirthDate | 1<<ClassContact
		}
		return classes, Deidentified, true
	}
	return 0, Whole, false
}

// reduced returns what the view's reduction leaves of opened elements.
func (a *attempt) reduced(ref Ref, elements []fhir.Element) []fhir.Element {
	if a.view.reduction == Whole {
		return elements
	}
	whole, issues := fhir.Parse(fhir.Assemble(nil, ref.Type, ref.ID, nil, elements))
	if issues != nil { // it was parsed when it was stored: what cannot be reduced is not shown
		return nil
	}
	if a.view.reduction == Coded {
		return keepCodes(whole).Elements
	}
	harbor := safeHarbor{year: a.now().Year(), alias: a.alias}
	return harbor.reduce(whole).Elements
}
