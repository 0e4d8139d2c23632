package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Definitions of the operations on patients. The first is HL7's; R4 has none of its own, and the parameters are those of R5 and later.
const (
	definitionMerge   = "http://hl7.org/fhir/OperationDefinition/Patient-merge"
	definitionUnmerge = "https://github.com/chartkeep/chartkeep/OperationDefinition/Patient-unmerge"
)

// mergePatients is POST [base]/Patient/$merge (https://build.fhir.org/patient-operation-merge.html).
func (c *call) mergePatients() error {
	return c.onMerge("merged", func(ctx context.Context, who *phi.Caller, r phi.MergeRequest) (*phi.MergeOutcome, error) {
		return c.s.cfg.Merges.Merge(ctx, who, r)
	})
}

// unmergePatients is POST [base]/Patient/$unmerge, with the parameters of $merge: it undoes the merge of the source into the target.
func (c *call) unmergePatients() error {
	return c.onMerge("unmerged", func(ctx context.Context, who *phi.Caller, r phi.MergeRequest) (*phi.MergeOutcome, error) {
		return c.s.cfg.Merges.Unmerge(ctx, who, r)
	})
}

// onMerge reads the parameters, does it, and answers with input, outcome and result.
func (c *call) onMerge(done string, do func(context.Context, *phi.Caller, phi.MergeRequest) (*phi.MergeOutcome, error)) error {
	if c.s.cfg.Merges == nil {
		return notConfigured()
	}
	if err := c.negotiate(); err != nil {
		return err
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	asked, input, err := mergeParameters(body)
	if err != nil {
		return err
	}
	who, err := c.caller()
	if err != nil {
		return err
	}
	// What is not done when the request's time is over goes on in the background; the answer says so.
	out, err := do(c.ctx, who, asked)
	if err != nil {
		return err
	}
	status, text := http.StatusOK, fmt.Sprintf("%s: %d records moved", done, out.Moved)
	switch {
	case asked.Preview:
		text = fmt.Sprintf("nothing was changed; %d records would move", out.Moved)
	case !out.Done:
		status, text = http.StatusAccepted, "it is under way and goes on in the background; ask again to learn whether it is done"
	}
	issues := []fhir.Issue{{Severity: "information", Code: "informational", Diagnostics: text}}
	for _, ref := range out.Stayed {
		issues = append(issues, fhir.Issue{Severity: "information", Code: "informational", Diagnostics: ref.String() + " stays with the target"})
	}
	b := append([]byte(nil), `{"resourceType":"Parameters","parameter":[{"name":"input","resource":`...)
	b = append(append(b, input...), `},{"name":"outcome","resource":`...)
	b = append(appendOutcome(b, issues), '}')
	if out.Result != nil {
		b = append(b, `,{"name":"result","resource":`...)
		b = append(appendRecord(b, out.Result.JSON), '}')
	}
	return c.send(status, append(b, `]}`...))
}

// mergeParameters reads a Parameters resource. What it returns for the answer is what was understood, made anew.
func mergeParameters(body []byte) (asked phi.MergeRequest, input []byte, err error) {
	if !gjson.ValidBytes(body) || gjson.GetBytes(body, "resourceType").String() != "Parameters" {
		return asked, nil, invalid("the body is no Parameters resource")
	}
	understood := []map[string]any{}
	seen := map[string]bool{}
	for _, p := range gjson.GetBytes(body, "parameter").Array() {
		name := p.Get("name").String()
		if seen[name] {
			return asked, nil, invalid("a parameter is there twice")
		}
		seen[name] = true
		switch name {
		case "source-patient", "target-patient":
			id, ok := strings.CutPrefix(p.Get("valueReference.reference").String(), "Patient/")
			if !ok || !fhir.ValidID(id) {
				return asked, nil, invalid("source-patient and target-patient are references of the form Patient/id")
			}
			if name == "source-patient" {
				asked.Source = id
			} else {
				asked.Target = id
			}
			understood = append(understood, map[string]any{"name": name, "valueReference": map[string]string{"reference": "Patient/" + id}})
		case "result-patient":
			asked.Result = []byte(p.Get("resource").Raw)
		case "preview":
			value := p.Get("valueBoolean")
			if !value.IsBool() {
				return asked, nil, invalid("preview is a boolean")
			}
			asked.Preview = value.Bool()
			understood = append(understood, map[string]any{"name": name, "valueBoolean": asked.Preview})
		case "source-patient-identifier", "target-patient-identifier":
			return asked, nil, &refusal{status: http.StatusBadRequest, code: "not-supported", text: "patients are named by reference here, not by identifier"}
		default:
			return asked, nil, &refusal{status: http.StatusBadRequest, code: "not-supported", text: "a parameter is not supported"}
		}
	}
	if asked.Source == "" || asked.Target == "" {
		return asked, nil, &refusal{status: http.StatusBadRequest, code: "required", text: "source-patient and target-patient are needed"}
	}
	input, err = json.Marshal(map[string]any{"resourceType": "Parameters", "parameter": understood})
	return asked, input, err
}
