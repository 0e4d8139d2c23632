package phi

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite generated and golden files")

// classByRule is the rule that classes.csv is made by.
func classByRule(resourceType, element, fhirType string) Class {
	person := slices.Contains([]string{"Patient", "Person", "Practitioner", "RelatedPerson"}, resourceType)
	switch fhirType {
	case "Identifier":
		return ClassIdentifier
	case "HumanName":
		return ClassName
	case "ContactPoint", "Address", "ContactDetail":
		return ClassContact
	case "Narrative", "Annotation", "markdown", "base64Binary":
		return ClassNarrative
	case "Attachment":
		if person {
			return ClassContact // a face (45 CFR 164.514(b)(2)(i)(Q))
		}
		return ClassNarrative
	}
	switch element {
	case "birthDate", "deceasedBoolean", "deceasedDateTime":
		if person {
			return ClassBirthDate
		}
	case "contact":
		if fhirType != "Reference" {
			return ClassContact // backbone elements: contact persons
		}
	case "subscriberId", "serialNumber", "distinctIdentifier":
		return ClassIdentifier // plan and device numbers (164.514(b)(2)(i)(I), (M)) that FHIR types as string
	case "name":
		if resourceType == "FamilyMemberHistory" {
			return ClassName // a relative, as a string
		}
	case "section", "payload":
		return ClassNarrative // Composition, Communication: blocks of prose
	case "content":
		if resourceType == "DocumentReference" {
			return ClassNarrative
		}
	case "description", "comment", "conclusion", "summary", "patientInstruction", "detail", "outcomeDesc":
		if fhirType == "string" {
			return ClassNarrative
		}
	}
	return ClassClinical
}

// TestClasses holds classes.csv against the rule and against FHIR's elements. Run with -update to rewrite it.
func TestClasses(t *testing.T) {
	packed, err := os.ReadFile("fhir/tables.txt.gz")
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	add := func(resourceType, element, fhirType string) {
		c := classByRule(resourceType, element, fhirType)
		rows = append(rows, strings.Join([]string{resourceType, element, fhirType, c.String()}, ","))
	}
	var resourceType string
	for lines := bufio.NewScanner(unpacked); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) == 3 && f[0] == "type" && f[2] == "resource":
			resourceType = f[1]
		case len(f) > 0 && !strings.HasPrefix(lines.Text(), " "):
			resourceType = ""
		case resourceType != "" && len(f) >= 4 && f[0] != "id":
			if choice, ok := strings.CutSuffix(f[0], "[x]"); ok {
				for fhirType := range strings.SplitSeq(f[3], "|") {
					add(resourceType, choice+strings.ToUpper(fhirType[:1])+fhirType[1:], fhirType)
				}
				continue
			}
			add(resourceType, f[0], f[3])
		}
	}
	slices.Sort(rows)
	want := "type,element,fhir_type,class\n" + strings.Join(rows, "\n") + "\n"
	if *update {
		if err := os.WriteFile("classes.csv", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if classesCSV != want {
		t.Error("classes.csv is not what the rule makes: run go test ./phi -run TestClasses -update, and review the difference")
	}
	if len(rows) < 3000 {
		t.Errorf("only %d elements: the FHIR tables were not understood", len(rows))
	}
}

func TestClassOf(t *testing.T) {
	for _, tt := range []struct {
		resourceType, element string
		want                  Class
	}{
		{"Patient", "identifier", ClassIdentifier},
		{"Coverage", "subscriberId", ClassIdentifier},
		{"Patient", "name", ClassName},
		{"Organization", "name", ClassClinical},
		{"FamilyMemberHistory", "name", ClassName},
		{"Patient", "birthDate", ClassBirthDate},
		{"Patient", "_birthDate", ClassBirthDate},
		{"Patient", "deceasedDateTime", ClassBirthDate},
		{"Patient", "telecom", ClassContact},
		{"Patient", "address", ClassContact},
		{"Patient", "photo", ClassContact},
		{"Patient", "contact", ClassContact},
		{"Patient", "text", ClassNarrative},
		{"Patient", "gender", ClassClinical},
		// Race, birth place and mother's maiden name come as extensions: not for a demographics view.
		{"Patient", "extension", ClassClinical},
		{"Patient", "contained", ClassClinical},
		{"Patient", "meta", ClassClinical},
		{"Observation", "note", ClassNarrative},
		{"Observation", "valueQuantity", ClassClinical},
		{"DiagnosticReport", "presentedForm", ClassNarrative},
		{"DiagnosticReport", "conclusion", ClassNarrative},
		{"DocumentReference", "content", ClassNarrative},
		{"Binary", "data", ClassNarrative},
		{"Composition", "section", ClassNarrative},
		{"Patient", "unheardOf", ClassClinical},
		{"Unheard", "of", ClassClinical},
	} {
		if got := classOf(tt.resourceType, tt.element); got != tt.want {
			t.Errorf("classOf(%s, %s) = %s, want %s", tt.resourceType, tt.element, got, tt.want)
		}
	}
}
