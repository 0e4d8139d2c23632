package fhir

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// searched are the resources that the criteria of TestMatch are held against.
func searched(t *testing.T) map[string]*Resource {
	all := map[string]*Resource{}
	for name, text := range map[string]string{
		"patient": `{"resourceType":"Patient","id":"p","active":true,"gender":"female","birthDate":"1987-02-20",
			"identifier":[{"system":"http://h/mrn","value":"Abc-1"},{"value":"bare"}],
			"name":[{"use":"official","family":"Núñez","given":["Ana María","Zoë"],"prefix":["Dr."]},{"text":"Anita N."}],
			"telecom":[{"system":"phone","value":"(555) 010-2030"},{"system":"email","value":"Ana@Example.org"}],
			"address":[{"line":["1 Main St","Apt 2"],"city":"Añasco","state":"PR","postalCode":"00610"}],
			"deceasedDateTime":"2021-03-04T10:11:12-05:00",
			"managingOrganization":{"reference":"Organization/o/_history/2"},
			"generalPractitioner":[{"reference":"http://h/fhir/Practitioner/x"},{"identifier":{"system":"http://npi","value":"12"}}],
			"extension":[{"url":"http://hl7.org/fhir/us/core/StructureDefinition/us-core-race","extension":[{"url":"ombCategory","valueCoding":{"system":"urn:oid:2.16.840.1.113883.6.238","code":"2106-3"}}]},
				{"url":"http://other","extension":[{"url":"x","valueCoding":{"code":"9999-9"}}]}]}`,
		"irish": `{"resourceType":"Patient","id":"o","name":[{"family":"O'Brien-Straße"}]}`,
		"alive": `{"resourceType":"Patient","id":"q","deceasedBoolean":false}`,
		"weight": `{"resourceType":"Observation","id":"w","status":"final","subject":{"reference":"Patient/p"},
			"category":[{"coding":[{"system":"http://c","code":"vital-signs"},{"code":"loose"}]}],
			"code":{"coding":[{"system":"http://loinc.org","code":"29463-7"}],"text":"Weight"},
			"effectiveDateTime":"2020-06-15","valueQuantity":{"value":70.10,"unit":"kilo","system":"http://unitsofmeasure.org","code":"kg"}}`,
		"period": `{"resourceType":"Observation","id":"r","status":"final","subject":{"reference":"Group/p"},"code":{"text":"x"},
			"effectivePeriod":{"start":"2020-06-10","end":"2020-06-20T12:00:00Z"},"valueQuantity":{"value":5,"comparator":"<"}}`,
		"open":    `{"resourceType":"Observation","id":"n","status":"final","code":{"text":"x"},"effectivePeriod":{"start":"2020-06-10"}}`,
		"instant": `{"resourceType":"Observation","id":"i","status":"final","code":{"text":"x"},"effectiveInstant":"2020-06-15T23:30:00.5-02:00"}`,
		"timing": `{"resourceType":"Observation","id":"t","status":"final","code":{"text":"x"},
			"effectiveTiming":{"event":["2020-06-15","2020-06-11"],"repeat":{"boundsPeriod":{"end":"2020-06-18"}}}}`,
		"onset":    `{"resourceType":"Condition","id":"c","subject":{"reference":"Patient/p"},"onsetRange":{"low":{"value":10,"code":"a"},"high":{"value":20,"code":"a"}}}`,
		"answers":  `{"resourceType":"QuestionnaireResponse","id":"a","status":"completed","questionnaire":"http://q/form|2.0"}`,
		"sequence": `{"resourceType":"MolecularSequence","id":"s","coordinateSystem":0,"variant":[{"start":100}]}`,
		"set":      `{"resourceType":"ValueSet","id":"v","url":"http://v/a/b","status":"active"}`,
	} {
		all[name] = mustParse(t, text)
	}
	return all
}

func TestMatch(t *testing.T) {
	resources := searched(t)
	for _, c := range []struct{ resource, query, want string }{ // want is "yes" or "no"
		{"patient", "gender=female", "yes"},
		{"patient", "gender=Female", "yes"},
		{"patient", "gender=male,female", "yes"},
		{"patient", "gender=male", "no"},
		{"patient", "gender=http://hl7.org/fhir/administrative-gender|female", "yes"},
		{"patient", "gender=http://hl7.org/fhir/administrative-gender|", "yes"},
		{"patient", "gender=http://other|female", "no"},
		{"patient", "gender=|female", "no"},
		{"patient", "gender:not=male", "yes"},
		{"patient", "gender:not=male,female", "no"},
		{"alive", "gender:not=male", "yes"},
		{"patient", "gender:missing=true", "no"},
		{"alive", "gender:missing=true", "yes"},
		{"alive", "gender:missing=false", "no"},
		{"patient", "active=true", "yes"},
		{"patient", "active=false", "no"},
		{"alive", "active=true", "no"},
		{"patient", "deceased=true", "yes"},
		{"patient", "deceased=false", "no"},
		{"alive", "deceased=false", "yes"},
		{"alive", "deceased:not=false", "no"},
		{"patient", "identifier=Abc-1", "yes"},
		{"patient", "identifier=abc-1", "no"},
		{"patient", "identifier=http://h/mrn|Abc-1", "yes"},
		{"patient", "identifier=http://h|Abc-1", "no"},
		{"patient", "identifier=http://h/mrn|", "yes"},
		{"patient", "identifier=|bare", "yes"},
		{"patient", "identifier=|Abc-1", "no"},
		{"patient", "phone=5550102030", "yes"},
		{"patient", "phone=555-010-2030", "yes"},
		{"patient", "phone=010-2030", "no"},
		{"patient", "phone=ana@example.org", "no"},
		{"patient", "email=ana@example.org", "yes"},
		{"patient", "telecom=email|ana@example.org", "yes"},
		{"patient", "telecom=phone|ana@example.org", "no"},
		{"patient", "race=2106-3", "yes"},
		{"patient", "race=urn:oid:2.16.840.1.113883.6.238|2106-3", "yes"},
		{"patient", "race=9999-9", "no"},

		{"patient", "name=nune", "yes"},
		{"patient", "name=NÚÑEZ", "yes"},
		{"patient", "name=nu\u0301n\u0303ez", "yes"},
		{"patient", "name=nunezz", "no"},
		{"patient", "name=unez", "no"},
		{"patient", "name=zoe", "yes"},
		{"patient", "name=ana%20maria", "no"},
		{"patient", "name=ana  maria", "yes"},
		{"patient", "name=maria", "no"},
		{"patient", "name=nu-ñez", "yes"},
		{"irish", "family=obrien", "yes"},
		{"irish", "family=o'brien s", "yes"},
		{"irish", "family=O’BRIEN-STRASSE", "yes"},
		{"irish", "family=brien", "no"},
		{"patient", "name=anita", "yes"},
		{"patient", "name=dr", "yes"},
		{"patient", "name=official", "no"},
		{"patient", "name:contains=UNE", "yes"},
		{"patient", "family:exact=Núñez", "yes"},
		{"patient", "family:exact=Nunez", "no"},
		{"patient", "family:exact=Núñ", "no"},
		{"patient", "given=zoë", "yes"},
		{"patient", "family=zoë", "no"},
		{"patient", "address=apt", "yes"},
		{"patient", "address=anasco", "yes"},
		{"patient", "address-city=anas", "yes"},
		{"patient", "address-state=an", "no"},
		{"patient", `name=x\,y,zoe`, "yes"},
		{"patient", `name=zoe\,x`, "no"},

		{"patient", "birthdate=1987-02-20", "yes"},
		{"patient", "birthdate=1987-02", "yes"},
		{"patient", "birthdate=1987", "yes"},
		{"patient", "birthdate=eq1987-02-21", "no"},
		{"patient", "birthdate=ne1987-02-21", "yes"},
		{"patient", "birthdate=1987-02-20T00:00:00Z", "no"},
		{"patient", "birthdate=gt1987-02-19", "yes"},
		{"patient", "birthdate=gt1987-02-20", "no"},
		{"patient", "birthdate=ge1987-02-20", "yes"},
		{"patient", "birthdate=lt1987-02-20", "no"},
		{"patient", "birthdate=le1987-02-20", "yes"},
		{"patient", "birthdate=le1987", "yes"},
		{"patient", "birthdate=gt1987", "no"},
		{"patient", "death-date=2021-03-04T15:11:12Z", "yes"},
		{"patient", "death-date=2021-03-04T15:11", "yes"},
		{"patient", "death-date=2021-03-04T15:12", "no"},
		{"alive", "death-date=ne2021", "no"},

		{"weight", "date=2020-06-15", "yes"},
		{"weight", "date=sa2020-06-14", "yes"},
		{"weight", "date=sa2020-06-15", "no"},
		{"weight", "date=eb2020-06-16", "yes"},
		{"weight", "date=eb2020-06-15", "no"},
		{"period", "date=2020-06-15", "no"},
		{"period", "date=2020-06", "yes"},
		{"period", "date=gt2020-06-15", "yes"},
		{"period", "date=lt2020-06-15", "yes"},
		{"period", "date=gt2020-06-20", "no"},
		{"period", "date=ge2020-06-20T12:00:00Z", "yes"},
		{"period", "date=sa2020-06-15", "no"},
		{"period", "date=sa2020-06-09", "yes"},
		{"period", "date=eb2020-06-21", "yes"},
		{"open", "date=gt2999", "yes"},
		{"open", "date=eb2999", "no"},
		{"open", "date=lt2020-06-10", "no"},
		{"open", "date=2020", "no"},
		{"instant", "date=2020-06-16", "yes"},
		{"instant", "date=2020-06-15", "no"},
		{"instant", "date=2020-06-16T01:30:00.5Z", "yes"},
		{"instant", "date=2020-06-16T01:30:00Z", "yes"},
		{"instant", "date=2020-06-16T01:30:00.4Z", "no"},
		{"timing", "date=2020-06", "no"}, // its bounds have no start
		{"timing", "date=eb2020-06-19", "yes"},
		{"timing", "date=lt1900", "yes"},

		{"weight", "patient=p", "yes"},
		{"weight", "patient=Patient/p", "yes"},
		{"weight", "patient=Patient/p/_history/7", "yes"},
		{"weight", "patient=q", "no"},
		{"period", "patient=p", "no"},
		{"period", "subject=p", "yes"},
		{"period", "subject=Patient/p", "no"},
		{"period", "subject:Group=p", "yes"},
		{"period", "subject:Patient=p", "no"},
		{"patient", "organization=Organization/o", "yes"},
		{"patient", "general-practitioner=http://h/fhir/Practitioner/x", "yes"},
		{"patient", "general-practitioner=Practitioner/x", "no"},
		{"patient", "general-practitioner:identifier=http://npi|12", "yes"},
		{"patient", "general-practitioner:identifier=13", "no"},
		{"answers", "questionnaire=http://q/form", "yes"},
		{"answers", "questionnaire=http://q/form|2.0", "yes"},
		{"answers", "questionnaire=http://q/form|3.0", "no"},

		{"weight", "category=vital-signs", "yes"},
		{"weight", "category=http://c|vital-signs", "yes"},
		{"weight", "category=http://c|loose", "no"},
		{"weight", "category=|loose", "yes"},
		{"weight", "code=http://loinc.org|29463-7,http://loinc.org|1", "yes"},
		{"weight", "code=Weight", "no"},

		{"weight", "value-quantity=70.1", "yes"},
		{"weight", "value-quantity=70.10", "yes"},
		{"weight", "value-quantity=70.100", "yes"},
		{"weight", "value-quantity=70", "yes"},
		{"weight", "value-quantity=7e1", "yes"},
		{"weight", "value-quantity=70.2", "no"},
		{"weight", "value-quantity=ne70.2", "yes"},
		{"weight", "value-quantity=gt70", "yes"},
		{"weight", "value-quantity=gt70.1", "no"},
		{"weight", "value-quantity=ge70.1", "yes"},
		{"weight", "value-quantity=lt70.1", "no"},
		{"weight", "value-quantity=le70.1", "yes"},
		{"weight", "value-quantity=sa70", "yes"},
		{"weight", "value-quantity=eb70", "no"},
		{"weight", "value-quantity=70.1|http://unitsofmeasure.org|kg", "yes"},
		{"weight", "value-quantity=70.1|http://unitsofmeasure.org|g", "no"},
		{"weight", "value-quantity=70.1||kilo", "yes"},
		{"weight", "value-quantity=70.1||kg", "yes"},
		{"weight", "value-quantity=70.1||g", "no"},
		{"period", "value-quantity=lt4", "yes"},
		{"period", "value-quantity=gt5", "no"},
		{"period", "value-quantity=5", "no"},
		{"onset", "onset-age=gt15", "yes"},
		{"onset", "onset-age=lt15", "yes"},
		{"onset", "onset-age=gt20", "no"},
		{"onset", "onset-age=sa9||a", "yes"},
		{"onset", "onset-age=sa9||mo", "no"},
		{"sequence", "variant-start=100", "yes"},
		{"sequence", "variant-start=gt100", "no"},
		{"sequence", "variant-start=-100", "no"},

		{"set", "url=http://v/a/b", "yes"},
		{"set", "url=http://v/a", "no"},
		{"set", "url:below=http://v/a", "yes"},
		{"set", "url:below=http://v/a/b/c", "no"},
		{"set", "url:below=http://v/a/b/", "yes"},
		{"set", "url:above=http://v/a/b/c", "yes"},
		{"set", "url:above=http://v/a/bc", "no"},
	} {
		r := resources[c.resource]
		name, value, _ := strings.Cut(c.query, "=")
		criterion, issues := ParseCriterion(r.Type, name, value)
		if issues != nil {
			t.Errorf("%s?%s: %v", r.Type, c.query, issues)
			continue
		}
		if got := criterion.Match(r); got != (c.want == "yes") {
			t.Errorf("%s?%s on %s: %v, want %s", r.Type, c.query, c.resource, got, c.want)
		}
	}
}

func TestParseCriterionRefuses(t *testing.T) {
	for _, c := range []struct{ kind, name, value, code string }{
		{"Patient", "nothing", "x", "not-supported"},
		{"Patient", "", "x", "not-supported"},
		{"Patient", "_id", "x", "not-supported"},
		{"Patient", "phonetic", "x", "not-supported"},
		{"Nothing", "name", "x", "not-supported"},
		{"Observation", "subject.name", "x", "not-supported"},
		{"Observation", "code-value-quantity", "x", "not-supported"},
		{"Patient", "name:fuzzy", "x", "not-supported"},
		{"Patient", "gender:exact", "x", "not-supported"},
		{"Patient", "gender:in", "x", "not-supported"},
		{"Patient", "birthdate:not", "2020", "not-supported"},
		{"Observation", "subject:Patiently", "x", "not-supported"},
		{"Patient", "name", "", "value"},
		{"Patient", "name", "\u0301", "value"},
		{"Patient", "name", "a,", "value"},
		{"Patient", "name", "--", "value"},
		{"Patient", "gender", "", "value"},
		{"Patient", "identifier", "|", "value"},
		{"Patient", "identifier", "a|b|c", "value"},
		{"Patient", "gender:missing", "maybe", "value"},
		{"Patient", "birthdate", "ap2020", "value"},
		{"Patient", "birthdate", "gt", "value"},
		{"Patient", "birthdate", "2020-02-30", "value"},
		{"Patient", "birthdate", "20200230", "value"},
		{"Patient", "birthdate", "gt2020,yesterday", "value"},
		{"Observation", "subject", "", "value"},
		{"Observation", "subject", "Patient/", "value"},
		{"Observation", "subject", "Patient/a/b", "value"},
		{"Observation", "subject:Patient", "Group/a", "value"},
		{"Observation", "value-quantity", "x", "value"},
		{"Observation", "value-quantity", "1|kg", "value"},
		{"Observation", "value-quantity", "1e999999999", "value"},
		{"Observation", "value-quantity", "01", "value"},
		{"MolecularSequence", "variant-start", "1||kg", "value"},
		{"ValueSet", "url", "", "value"},
	} {
		criterion, issues := ParseCriterion(c.kind, c.name, c.value)
		if criterion != nil || len(issues) != 1 || issues[0].Code != c.code {
			t.Errorf("%s?%s=%s: %v, want %s", c.kind, c.name, c.value, issues, c.code)
		}
	}
}

func TestElements(t *testing.T) {
	for _, c := range []struct{ kind, name, value, want string }{
		{"Patient", "name", "x", "name"},
		{"Patient", "race", "x", "extension"},
		{"Patient", "deceased", "true", "deceasedBoolean deceasedDateTime"},
		{"Observation", "combo-code", "x", "code component"},
		{"Observation", "date:missing", "true", "effectiveDateTime effectivePeriod effectiveTiming effectiveInstant"},
	} {
		criterion, issues := ParseCriterion(c.kind, c.name, c.value)
		if issues != nil {
			t.Fatal(issues)
		}
		if got := strings.Join(criterion.Elements(), " "); got != c.want {
			t.Errorf("%s.%s: %s, want %s", c.kind, c.name, got, c.want)
		}
	}
}

// TestSearchesOfUSCore holds that every parameter that US Core asks of a server is there, apart from those of all types.
func TestSearchesOfUSCore(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(shared, "us-core-6.1.0/CapabilityStatement-us-core-server.json"))
	if err != nil {
		t.Skipf("the shared data is absent: %v", err)
	}
	var statement struct {
		Rest []struct {
			Resource []struct {
				Type        string
				SearchParam []SearchParam
			}
		}
	}
	if err := json.Unmarshal(text, &statement); err != nil {
		t.Fatal(err)
	}
	for _, r := range statement.Rest[0].Resource {
		params := SearchParams(r.Type)
		for _, p := range r.SearchParam {
			if p.Name[0] != '_' && !slices.Contains(params, p) {
				t.Errorf("%s has no %s search %s", r.Type, p.Type, p.Name)
			}
		}
	}
}

// TestSearchUSCoreExamples counts what a look at the files by other means counts.
func TestSearchUSCoreExamples(t *testing.T) {
	var all []*Resource
	for _, s := range examples(t) {
		all = append(all, mustParse(t, string(s.text)))
	}
	for _, c := range []struct {
		kind, query string
		want        int
	}{
		{"Patient", "name=shaw", 3},
		{"Patient", "birthdate=1987-02-20", 2},
		{"Patient", "identifier=1032702", 2},
		{"Observation", "patient=example", 103},
		{"Observation", "category=vital-signs", 15},
		{"Observation", "code=http://loinc.org|85354-9", 2},
		{"Condition", "category=problem-list-item", 2},
		{"Encounter", "date=ge2015", 1},
		{"MedicationRequest", "intent=order", 3},
		{"Goal", "description:missing=false", 2},
	} {
		name, value, _ := strings.Cut(c.query, "=")
		criterion, issues := ParseCriterion(c.kind, name, value)
		if issues != nil {
			t.Fatal(issues)
		}
		found := 0
		for _, r := range all {
			if r.Type == c.kind && criterion.Match(r) {
				found++
			}
		}
		if found != c.want {
			t.Errorf("%s?%s finds %d, want %d", c.kind, c.query, found, c.want)
		}
	}
}

func TestFold(t *testing.T) {
	for in, want := range map[string]string{
		"  García-Núñez ": "garcianunez",
		"Zoe\u0308":       "zoe",
		"a \t b":          "ab",
		"Ａｎｎ":             "ann",
		"ﬁsh":             "fish",
		"İ":               "i",
		"O’Brien Ⅳ.":      "obrieniv",
		"ΌΣΟΣ":            "οσοσ",
		" -":              "",
		"":                "",
	} {
		if got := Fold(in); got != want {
			t.Errorf("Fold(%q) is %q, want %q", in, got, want)
		}
	}
}

func FuzzParseCriterion(f *testing.F) {
	text := `{"resourceType":"Observation","effectiveDateTime":"2020-06-15","valueQuantity":{"value":70.10},"subject":{"reference":"Patient/p"},"code":{"coding":[{"code":"x"}]}}`
	for _, seed := range [][2]string{{"date", "ge2020-06-15T10:00:00.5+01:00,eb2021"}, {"value-quantity", "ne5.40e-3|http://u|mg"}, {"subject:Patient", `p\,q`}, {"code:not", `a\|b|c`}, {"value-string:contains", "é"}} {
		f.Add(seed[0], seed[1])
	}
	r := mustParse(f, text)
	f.Fuzz(func(t *testing.T, name, value string) {
		c, issues := ParseCriterion("Observation", name, value)
		if (c == nil) == (issues == nil) {
			t.Fatal("neither a criterion nor an issue, or both")
		}
		if c != nil {
			c.Match(r)
			if len(c.Elements()) == 0 {
				t.Fatal("a criterion that looks at nothing")
			}
		}
	})
}
