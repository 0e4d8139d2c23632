package audit

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// PatrolConfig is what a Patrol needs. Evidence and Keys are required.
type PatrolConfig struct {
	Evidence    Evidence
	Keys        []string          // verifier keys of the log
	WitnessKeys []string          // of its witnesses
	Every       time.Duration     // pause between two looks; 0 is a minute
	Leads       func() bool       // whether it is for this process to look; nil is always
	Alert       func(desc string) // takes each new kind of bad news; no PHI; must not block for long
	Logger      *slog.Logger      // nil discards
}

// Patrol verifies a live trail again and again, so that tampering raises an alarm before an auditor comes: what is new, and that
// the tree neither shrank nor forked, with every look; everything, row by row, as often as a tenth of a processor allows. It sees
// what a process of the deployment can see: who controls that process controls the patrol, too, so it replaces neither
// witnesses nor verification from outside.
type Patrol struct {
	cfg PatrolConfig

	mu      sync.Mutex
	news    PatrolReport // of the last look at what is new
	whole   PatrolReport // of the last look at everything
	alerted map[Kind]bool
}

// PatrolReport is what a look found.
type PatrolReport struct {
	At     time.Time // its end; zero: there was none yet
	Report *Report   // nil when the trail could not be read
	Err    error
}

// NewPatrol returns a patrol; Run lets it look.
func NewPatrol(cfg PatrolConfig) *Patrol {
	if cfg.Every <= 0 {
		cfg.Every = time.Minute
	}
	if cfg.Leads == nil {
		cfg.Leads = func() bool { return true }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Patrol{cfg: cfg, alerted: map[Kind]bool{}}
}

// Last returns the last look at what is new and the last one at everything. The reports are shared: do not change them.
func (p *Patrol) Last() (news, whole PatrolReport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.news, p.whole
}

// Run looks until ctx is done, then returns nil. The first look comes after a pause. Call it once.
func (p *Patrol) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.lookAtAll(ctx) })
	var from *Verified
	for pause(ctx, p.cfg.Every) {
		if !p.cfg.Leads() {
			continue
		}
		if from == nil {
			from = p.begin()
			continue
		}
		r := p.look(ctx, &p.news, VerifyOptions{From: from})
		if r != nil && r.Verified != nil {
			from = r.Verified
		}
	}
	return nil
}

// begin returns where the look at what is new goes on from: what the look at everything established.
func (p *Patrol) begin() *Verified {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.whole.Report == nil {
		return nil
	}
	return p.whole.Report.Verified
}

func (p *Patrol) lookAtAll(ctx context.Context) {
	var known []Checkpoint
	for wait := p.cfg.Every; pause(ctx, wait); {
		if !p.cfg.Leads() {
			continue
		}
		began := time.Now()
		r := p.look(ctx, &p.whole, VerifyOptions{Known: known})
		if r != nil && r.Verified != nil {
			known = []Checkpoint{r.Verified.Checkpoint}
		}
		wait = max(p.cfg.Every, time.Since(began))
	}
}

// look verifies once and tells of what is wrong.
func (p *Patrol) look(ctx context.Context, last *PatrolReport, o VerifyOptions) *Report {
	o.Keys, o.WitnessKeys, o.Now = p.cfg.Keys, p.cfg.WitnessKeys, time.Now()
	r, err := Verify(ctx, paced{p.cfg.Evidence}, o)
	if ctx.Err() != nil {
		return nil
	}
	p.mu.Lock()
	*last = PatrolReport{At: time.Now(), Report: r, Err: err}
	var alerts []string
	if err == nil {
		for _, f := range r.Findings {
			if !p.alerted[f.Kind] { // the first of each kind: the log has all
				p.alerted[f.Kind] = true
				alerts = append(alerts, "the audit trail does not verify: "+f.String())
			}
		}
	}
	p.mu.Unlock()
	if err != nil {
		p.cfg.Logger.WarnContext(ctx, "audit trail could not be verified", "error", err)
		return nil
	}
	for i, f := range r.Findings {
		if i == maxLogged {
			p.cfg.Logger.ErrorContext(ctx, "audit trail does not verify", "more", len(r.Findings)-i)
			break
		}
		p.cfg.Logger.ErrorContext(ctx, "audit trail does not verify", "finding", f.String())
	}
	if p.cfg.Alert != nil {
		for _, a := range alerts {
			p.cfg.Alert(a)
		}
	}
	return r
}

// maxLogged bounds the findings of one look that are logged.
const maxLogged = 20

// paced reads rows at a tenth of the speed at which they come.
type paced struct{ Evidence }

// Rows implements Evidence.
func (e paced) Rows(ctx context.Context, s Span) ([]Row, error) {
	const hashing = 10 * time.Microsecond // a row's share of the work that follows
	began := time.Now()
	rows, err := e.Evidence.Rows(ctx, s)
	if err != nil {
		return nil, err
	}
	if !pause(ctx, 9*(time.Since(began)+time.Duration(len(rows))*hashing)) {
		return nil, fmt.Errorf("waiting: %w", ctx.Err())
	}
	return rows, nil
}
