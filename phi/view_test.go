package phi

import "testing"

func TestViewOf(t *testing.T) {
	for _, tt := range []struct {
		name         string
		classes      string
		deidentified bool
		ok           bool
	}{
		{"full", "identifier name birth_date contact clinical narrative ", false, true},
		{"demographics", "identifier name birth_date contact ", false, true},
		{"billing", "identifier name birth_date contact clinical ", false, true},
		{"deidentified", "clinical ", true, true},
		{"", "", false, false},
		{"Full", "", false, false},
	} {
		set, deidentified, ok := viewOf(tt.name)
		classes := ""
		for c := range Class(NumClasses) {
			if set.Has(c) {
				classes += c.String() + " "
			}
		}
		if classes != tt.classes || deidentified != tt.deidentified || ok != tt.ok {
			t.Errorf("viewOf(%q) = %s, %v, %v", tt.name, classes, deidentified, ok)
		}
	}
}
