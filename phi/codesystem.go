package phi

import (
	"regexp"
	"strings"
	"sync"

	"github.com/tidwall/gjson"
)

// ucum is the code system of units (https://ucum.org).
const ucum = "http://unitsofmeasure.org"

// codeSystem is a public code system and what its codes look like. A system that ends with a slash stands for all below it.
type codeSystem struct {
	system string
	code   *regexp.Regexp
}

// codeSystems are the public code systems whose codes say nothing of who somebody is. Codes of any other system, a hospital's own
// say, may be unique numbers (45 CFR 164.514(b)(2)(i)(R)). HL7's systems have words for codes; the others numbers.
var codeSystems = sync.OnceValue(func() []codeSystem {
	var list []codeSystem
	for _, s := range [][2]string{
		{"http://snomed.info/sct", `[1-9][0-9]{5,17}`},
		{"http://loinc.org", `(L[APG])?[0-9]{1,7}-[0-9]`},
		{"http://www.nlm.nih.gov/research/umls/rxnorm", `[0-9]{1,8}`},
		{"http://hl7.org/fhir/sid/icd-10-cm", `[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?`},
		{"http://hl7.org/fhir/sid/icd-10", `[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?`},
		{"http://hl7.org/fhir/sid/icd-9-cm", `[0-9EV][0-9]{2,3}(\.[0-9]{1,2})?`},
		{"http://www.cms.gov/Medicare/Coding/ICD10", `[0-9A-HJ-NP-Z]{7}`},
		{"http://www.ama-assn.org/go/cpt", `[0-9]{4}[0-9FTU]`},
		{"http://www.ada.org/cdt", `D[0-9]{4}`},
		{"https://bluebutton.cms.gov/resources/codesystem/hcpcs", `[A-Z][0-9]{4}`},
		{"http://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets", `[A-Z][0-9]{4}`},
		{"http://hl7.org/fhir/sid/cvx", `[0-9]{1,3}`},
		{"http://hl7.org/fhir/sid/mvx", `[A-Z]{2,4}`},
		{"http://hl7.org/fhir/sid/ndc", `[0-9]{4,5}-[0-9]{3,4}-[0-9]{1,2}|[0-9]{11}`},
		{"http://nucc.org/provider-taxonomy", `[0-9]{3}[0-9A-Z]{6}X`},
		{"http://dicom.nema.org/resources/ontology/DCM", `[A-Z]{2,6}|[0-9]{6}`},
		{"urn:ietf:bcp:47", `[a-z]{2,3}(-[A-Z][a-z]{3})?(-[A-Z]{2})?`},
		{"urn:oid:2.16.840.1.113883.6.238", `[0-9]{4}-[0-9]|UNK|ASKU`}, // CDC race and ethnicity
		{ucum, `[A-Za-z0-9*/.%\[\]()'^_+-]{1,24}`},
		{"http://terminology.hl7.org/CodeSystem/", hl7Code},
		{"http://hl7.org/fhir/us/core/CodeSystem/", hl7Code},
		{"http://hl7.org/fhir/CodeSystem/", hl7Code},
	} {
		list = append(list, codeSystem{s[0], regexp.MustCompile(`^(` + s[1] + `)$`)})
	}
	return list
})

// hl7Code is what codes of HL7 look like: words, and the small numbers of version 2 tables.
const hl7Code = `[A-Za-z_][A-Za-z_]*([-.][A-Za-z_]+|[0-9]{1,3})*|[0-9]{1,3}`

// publicCoding keeps system and code of a coding from a public code system.
func publicCoding(raw []byte) ([]byte, bool) {
	coding := gjson.ParseBytes(raw)
	system, code := coding.Get("system").String(), coding.Get("code").String()
	for _, s := range codeSystems() {
		below := strings.HasSuffix(s.system, "/") && strings.HasPrefix(system, s.system)
		if below && !isWord(system[len(s.system):]) || !below && system != s.system {
			continue
		}
		if !s.code.MatchString(code) {
			return nil, false
		}
		return []byte(`{"system":"` + system + `","code":"` + code + `"}`), true
	}
	return nil, false
}

// isWord reports whether s can be the last part of a code system's address.
func isWord(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 64
}

// unitCode returns a UCUM code without its annotations, which are words in braces that mean nothing to UCUM; "" when it is
// none.
func unitCode(code string) string {
	for {
		before, rest, found := strings.Cut(code, "{")
		if !found {
			break
		}
		_, after, closed := strings.Cut(rest, "}")
		if !closed {
			return ""
		}
		code = before + after
	}
	if code == "" {
		return "1"
	}
	for _, s := range codeSystems() {
		if s.system == ucum && s.code.MatchString(code) {
			return code
		}
	}
	return ""
}
