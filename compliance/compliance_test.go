package compliance_test

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/compliance"
)

func passing(context.Context) (string, bool, error) { return "looked", true, nil }

func probes(t *testing.T) map[string]compliance.Probe {
	t.Helper()
	controls, err := compliance.Catalog()
	if err != nil {
		t.Fatal(err)
	}
	p := map[string]compliance.Probe{}
	for _, c := range controls {
		p[c.ID] = passing
	}
	return p
}

func TestCatalogIsComplete(t *testing.T) {
	controls, err := compliance.Catalog()
	if err != nil {
		t.Fatal(err)
	}
	citation := regexp.MustCompile(`^164\.3\d\d\([a-z]\)`)
	seen := map[string]bool{}
	for _, c := range controls {
		if seen[c.ID] {
			t.Errorf("control %s stands twice", c.ID)
		}
		seen[c.ID] = true
		if !citation.MatchString(c.Citation) || c.Title == "" || !strings.HasSuffix(c.Asks, "?") {
			t.Errorf("control %s is not whole: %+v", c.ID, c)
		}
		if c.Requirement != "required" && c.Requirement != "addressable" {
			t.Errorf("control %s: requirement %q", c.ID, c.Requirement)
		}
	}
}

// A check that fails, one that cannot look and one that nobody wrote must each keep the report from passing.
func TestWorstIsNeverHidden(t *testing.T) {
	for _, c := range []struct {
		name  string
		probe compliance.Probe
		want  compliance.Status
	}{
		{"fails", func(context.Context) (string, bool, error) { return "not so", false, nil }, compliance.Fail},
		{"cannot look", func(context.Context) (string, bool, error) { return "", true, errors.New("gone") }, compliance.Error},
		{"nobody looks", nil, compliance.Error},
		{"passes", passing, compliance.Pass},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := probes(t)
			p["audit-durable"] = c.probe
			r, err := compliance.Assess(t.Context(), "test", p, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Worst(); got != c.want {
				t.Errorf("worst is %s, want %s", got, c.want)
			}
			var text bytes.Buffer
			if err := r.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(text.String(), string(c.want)+" ") || !strings.Contains(text.String(), "164.312(b)") {
				t.Errorf("the text hides the finding:\n%s", &text)
			}
		})
	}
}

func TestUnknownProbeIsRefused(t *testing.T) {
	p := probes(t)
	p["made-up"] = passing
	if _, err := compliance.Assess(t.Context(), "test", p, time.Now); err == nil {
		t.Error("a probe of no control was accepted")
	}
}
