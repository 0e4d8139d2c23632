package rest

import (
	"net/http"
	"time"

	"github.com/chartkeep/chartkeep/audit"
)

// verifiedJSON is what the deployment's own verification of its trail found last. It replaces no verification from outside.
type verifiedJSON struct {
	News  *lookedJSON `json:"news"`  // the last look at what was new; null before the first
	Whole *lookedJSON `json:"whole"` // the last look at everything
}

type lookedJSON struct {
	At          time.Time       `json:"at"`
	State       string          `json:"state"` // good, bad, or unknown: the trail could not be read
	Size        int64           `json:"size"`  // of the tree
	From        int64           `json:"from"`  // leaves below were taken over from an earlier look
	Rows        int64           `json:"rows"`
	Checkpoints int64           `json:"checkpoints"`
	Unsequenced int64           `json:"unsequenced"`
	OpenIntents int             `json:"open_intents"`
	Findings    []audit.Finding `json:"findings"`
	More        int64           `json:"more"` // findings beyond those
	Seconds     float64         `json:"seconds"`
}

// verified shows what the deployment's own verification found.
func (c *call) verified() error {
	if c.s.cfg.Verified == nil {
		return notConfigured()
	}
	if _, err := c.parameters(); err != nil {
		return err
	}
	if _, err := c.recordLook(nil, audit.Entity{Type: "AuditEvent"}); err != nil {
		return err
	}
	news, whole := c.s.cfg.Verified()
	return c.sendJSON(http.StatusOK, verifiedJSON{newLookedJSON(news), newLookedJSON(whole)})
}

func newLookedJSON(p audit.PatrolReport) *lookedJSON {
	if p.At.IsZero() {
		return nil
	}
	j := &lookedJSON{At: p.At.UTC(), State: "unknown", Findings: []audit.Finding{}}
	r := p.Report
	if r == nil || p.Err != nil {
		return j
	}
	j.State = "good"
	if !r.OK() {
		j.State = "bad"
	}
	j.Size, j.From, j.Rows, j.Checkpoints, j.Unsequenced, j.OpenIntents = r.Checkpoint.Size, r.From, r.Rows, r.Checkpoints, r.Unsequenced, r.OpenIntents
	j.Findings, j.More, j.Seconds = append(j.Findings, r.Findings...), r.More, r.Duration.Seconds()
	return j
}
