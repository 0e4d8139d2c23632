package phi

import (
	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// merged reports whether a patient was merged into another: its row belongs to that one, too.
func (s *Sealed) merged() bool { return s.Type == "Patient" && len(s.Patients) > 1 }

// replaced reports whether a patient says that another record of the same person is in use instead of it
// (http://hl7.org/fhir/R4/valueset-link-type.html). It is found by its id, and by no search for a living patient.
func replaced(resourceType string, elements []fhir.Element) bool {
	if resourceType != "Patient" {
		return false
	}
	inactive, link := false, false
	for _, e := range elements {
		switch e.Name {
		case "active":
			inactive = string(e.Raw) == "false"
		case "link":
			link = gjson.GetBytes(e.Raw, `#(type=="replaced-by")`).Exists()
		}
	}
	return inactive && link
}
