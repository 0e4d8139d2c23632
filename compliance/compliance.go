// Package compliance holds evidence against the HIPAA Security Rule: controls with their citations, and findings from
// checks that were run against the live deployment.
//
// It promises that a finding says what was looked at, when, and what was seen; that a check which could not be carried out
// is an error and never a pass; and that no percentage of compliance is computed from any of it. The room reaches for
// nothing by itself: the server hands in probes, which are plain functions.
package compliance

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Control is one requirement, with where it is written.
type Control struct {
	ID          string `json:"id"`       // stable, ours
	Citation    string `json:"citation"` // 45 CFR paragraph
	Title       string `json:"title"`
	Requirement string `json:"requirement"` // required or addressable (164.306(d))
	Asks        string `json:"asks"`        // what the check looks at, in one sentence
}

//go:embed catalog.json
var catalog []byte

// Catalog returns the controls in the order of the rule.
func Catalog() ([]Control, error) {
	d := json.NewDecoder(bytes.NewReader(catalog))
	d.DisallowUnknownFields()
	var controls []Control
	if err := d.Decode(&controls); err != nil {
		return nil, fmt.Errorf("reading control catalog: %w", err)
	}
	return controls, nil
}

// Status is the result of a check.
type Status string

const (
	Pass  Status = "pass"
	Fail  Status = "fail"
	Error Status = "error" // the check could not be carried out; never counts as a pass
)

// Finding is one check's result.
type Finding struct {
	Control
	Status   Status        `json:"status"`
	Observed string        `json:"observed"` // what was seen; never PHI
	At       time.Time     `json:"at"`
	Took     time.Duration `json:"took_ns"`
}

// Probe looks at the live deployment. ok is whether what it observed satisfies the control; err means it could not look.
type Probe func(ctx context.Context) (observed string, ok bool, err error)

// Report is one run over the catalog.
type Report struct {
	Deployment string    `json:"deployment"`
	Began      time.Time `json:"began"`
	Findings   []Finding `json:"findings"`
}

// probeTimeout bounds one check.
const probeTimeout = 30 * time.Second

// Assess runs each control's probe. A control without a probe is an Error: nobody looked.
func Assess(ctx context.Context, deployment string, probes map[string]Probe, now func() time.Time) (*Report, error) {
	controls, err := Catalog()
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	r := &Report{Deployment: deployment, Began: now()}
	for _, c := range controls {
		known[c.ID] = true
		r.Findings = append(r.Findings, assess(ctx, c, probes[c.ID], now))
	}
	for id := range probes {
		if !known[id] {
			return nil, fmt.Errorf("probe %q belongs to no control", id)
		}
	}
	return r, ctx.Err()
}

func assess(ctx context.Context, c Control, p Probe, now func() time.Time) Finding {
	f := Finding{Control: c, Status: Error, Observed: "no probe looks at this control", At: now()}
	if p == nil {
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	observed, ok, err := p(ctx)
	f.Took = now().Sub(f.At)
	switch {
	case err != nil:
		f.Observed = "the check could not be carried out: " + err.Error()
	case ok:
		f.Status, f.Observed = Pass, observed
	default:
		f.Status, f.Observed = Fail, observed
	}
	return f
}

// Worst is Error when any finding is, else Fail when any is, else Pass.
func (r *Report) Worst() Status {
	worst := Pass
	for _, f := range r.Findings {
		if f.Status == Error || f.Status == Fail && worst == Pass {
			worst = f.Status
		}
	}
	return worst
}

// WriteText writes the report for people, a paragraph a control.
func (r *Report) WriteText(w io.Writer) error {
	_, err := fmt.Fprintf(w, "Controls of %s, checked %s\n", r.Deployment, r.Began.UTC().Format(time.RFC3339))
	for _, f := range r.Findings {
		if err == nil {
			_, err = fmt.Fprintf(w, "\n%-5s  %s  %s (%s)\n       asks: %s\n       seen: %s\n", f.Status, f.Citation, f.Title, f.Requirement, f.Asks, f.Observed)
		}
	}
	return err
}
