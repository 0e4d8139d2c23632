package main

import (
	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/compliance"
)

// newPatrol makes the deployment's own look at its trail; it works where the sequencer leads.
func newPatrol(s *settings, r *rooms) *audit.Patrol {
	cfg := audit.PatrolConfig{
		Evidence: r.db.Tree(), Leads: func() bool { return r.sequencer.Stats().Leads }, Logger: r.logger,
		Alert: func(desc string) { r.alarm("patrol", desc) },
	}
	for _, k := range s.keys {
		cfg.Keys = append(cfg.Keys, k.Verifier)
	}
	for _, w := range s.witnesses {
		cfg.WitnessKeys = append(cfg.WitnessKeys, w.Verifier)
	}
	return audit.NewPatrol(cfg)
}

// alarm records a security alert about the trail itself.
func (r *rooms) alarm(who, desc string) {
	_, err := r.log.Submit(audit.Power, &audit.Event{
		Type: audit.TypeSecurityAlert, Interaction: who, Action: audit.ActionExecute, Outcome: audit.SeriousFailure, OutcomeDesc: desc,
		Agent: audit.Agent{User: "system"},
	})
	if err != nil {
		r.logger.Error("an alert could not be recorded", "of", who, "error", err.Error())
	}
	r.alerts.follow(compliance.AlertIntegrity, compliance.Critical, who, "")
}

// patrol emits what the last looks at the trail found.
func (c *roomsCollector) patrol(gauge func(name string, v float64, labels ...string)) {
	news, whole := c.rooms.patrol.Last()
	for _, l := range []struct {
		name string
		look audit.PatrolReport
	}{{"news", news}, {"whole", whole}} {
		if l.look.Report != nil {
			gauge("audit_verified_timestamp_seconds", float64(l.look.At.Unix()), l.name)
			gauge("audit_verified_size", float64(l.look.Report.Checkpoint.Size), l.name)
			gauge("audit_verified_findings", float64(int64(len(l.look.Report.Findings))+l.look.Report.More), l.name)
		}
	}
}
