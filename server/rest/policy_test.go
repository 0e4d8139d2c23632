package rest_test

import (
	"context"
	"sync"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/phitest"
	"github.com/chartkeep/chartkeep/server/rest"
)

// policies is a rest.Policies that remembers what it was asked and answers what it was told to; the rules are the database's, and are
// tested there.
type policies struct {
	mu          sync.Mutex
	err         error
	proposals   []*auth.Proposal
	assignments []*auth.AssignmentRecord
	asked       []string
}

var _ rest.Policies = (*policies)(nil)

func (p *policies) ask(what string) (unlock func(), err error) {
	p.mu.Lock()
	p.asked = append(p.asked, what)
	return p.mu.Unlock, p.err
}

// fail makes every call fail with an error, until it is nil.
func (p *policies) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *policies) Current(context.Context) (auth.Policy, int64, error) {
	unlock, err := p.ask("current")
	defer unlock()
	return phitest.Policy(), 3, err
}

func (p *policies) Version(_ context.Context, version int64) (auth.PolicyVersion, auth.Document, error) {
	unlock, err := p.ask("version")
	defer unlock()
	if version == 0 {
		version = 3
	}
	return auth.PolicyVersion{Version: version, By: "admin-1", Summary: "seeded"}, auth.NewDocument(phitest.Policy()), err
}

func (p *policies) Versions(_ context.Context, below int64, limit int) ([]auth.PolicyVersion, error) {
	unlock, err := p.ask("versions")
	defer unlock()
	list := []auth.PolicyVersion{}
	for v := int64(3); v > 0 && len(list) < limit; v-- {
		if below == 0 || v < below {
			list = append(list, auth.PolicyVersion{Version: v, By: "admin-1", Summary: "seeded"})
		}
	}
	return list, err
}

func (p *policies) Propose(_ context.Context, x *auth.Proposal, dry bool) error {
	unlock, err := p.ask("propose")
	defer unlock()
	if err != nil {
		return err
	}
	x.Changes = auth.Compare(auth.NewDocument(phitest.Policy()), x.Document)
	if x.Widens, x.State = auth.Widens(x.Changes), auth.StateRequested; !x.Widens {
		x.State, x.Version = auth.StateApplied, 4
	}
	if !dry {
		p.proposals = append(p.proposals, x)
	}
	return nil
}

func (p *policies) Proposals(context.Context, string, int) ([]*auth.Proposal, error) {
	unlock, err := p.ask("proposals")
	defer unlock()
	return p.proposals, err
}

func (p *policies) Proposal(_ context.Context, id string) (*auth.Proposal, error) {
	unlock, err := p.ask("proposal")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, x := range p.proposals {
		if x.ID == id {
			return x, nil
		}
	}
	return nil, auth.ErrNoSuch
}

func (p *policies) ApproveProposal(ctx context.Context, id, by string) (*auth.Proposal, error) {
	x, err := p.Proposal(ctx, id)
	if err == nil {
		x.State, x.DecidedBy, x.Version = auth.StateApplied, by, 4
	}
	return x, err
}

func (p *policies) WithdrawProposal(ctx context.Context, id, by string) error {
	x, err := p.Proposal(ctx, id)
	if err == nil {
		x.State, x.DecidedBy = auth.StateWithdrawn, by
	}
	return err
}

func (p *policies) Assign(_ context.Context, a *auth.AssignmentRecord) error {
	unlock, err := p.ask("assign")
	defer unlock()
	if err != nil {
		return err
	}
	current := phitest.Policy()
	if a.Approval, err = current.Assignable(a.Role, nil); err != nil {
		return err
	}
	if a.State = auth.StateApproved; a.Approval {
		a.State = auth.StateRequested
	}
	p.assignments = append(p.assignments, a)
	return nil
}

func (p *policies) Assignments(context.Context, auth.AssignmentFilter) ([]*auth.AssignmentRecord, error) {
	unlock, err := p.ask("assignments")
	defer unlock()
	return p.assignments, err
}

func (p *policies) Assignment(_ context.Context, id string) (*auth.AssignmentRecord, error) {
	unlock, err := p.ask("assignment")
	defer unlock()
	if err != nil {
		return nil, err
	}
	for _, a := range p.assignments {
		if a.ID == id {
			return a, nil
		}
	}
	return nil, auth.ErrNoSuch
}

func (p *policies) ApproveAssignment(ctx context.Context, id, by string) (*auth.AssignmentRecord, error) {
	a, err := p.Assignment(ctx, id)
	if err == nil {
		a.State, a.DecidedBy = auth.StateApproved, by
	}
	return a, err
}

func (p *policies) EndAssignment(ctx context.Context, id, by, reason string) (*auth.AssignmentRecord, error) {
	a, err := p.Assignment(ctx, id)
	if err == nil {
		a.State, a.EndedBy, a.EndReason = auth.StateEnded, by, reason
	}
	return a, err
}
