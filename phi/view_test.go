package phi

import "testing"

func TestViewOf(t *testing.T) {
	for _, tt := range []struct {
		name, resourceType string
		classes            string
		reduction          Reduction
		ok                 bool
	}{
		{"full", "Patient", "identifier name birth_date contact clinical narrative ", Whole, true},
		{"demographics", "Patient", "identifier name birth_date contact ", Whole, true},
		{"billing", "Encounter", "identifier name birth_date contact clinical ", Coded, true},
		{"deidentified", "Observation", "clinical ", Deidentified, true},
		{"deidentified", "Patient", "birth_date contact clinical ", Deidentified, true},
		{"", "Patient", "", Whole, false},
		{"Full", "Patient", "", Whole, false},
	} {
		set, reduction, ok := ViewOf(tt.name, tt.resourceType)
		classes := ""
		for c := range Class(NumClasses) {
			if set.Has(c) {
				classes += c.String() + " "
			}
		}
		if classes != tt.classes || reduction != tt.reduction || ok != tt.ok {
			t.Errorf("ViewOf(%q, %q) = %s, %v, %v", tt.name, tt.resourceType, classes, reduction, ok)
		}
	}
}
