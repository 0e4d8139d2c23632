package auth

import (
	"context"
	"log/slog"
)

// AccessConfig configures Access.
type AccessConfig struct {
	Storage Storage
	Logger  *slog.Logger
}

// Access decides. Safe for concurrent use.
type Access struct{ unwritten int }

// NewAccess loads and compiles the policy.
func NewAccess(ctx context.Context, cfg AccessConfig) (*Access, error) { panic("unwritten") }

// Run follows policy and relationship epochs (a poll every second, and at once after Wake) until ctx is done.
func (a *Access) Run(ctx context.Context) error { panic("unwritten") }

// Wake makes Run look for changes now (after a NOTIFY, or a local change).
func (a *Access) Wake() { panic("unwritten") }

// Check decides about one record.
func (a *Access) Check(ctx context.Context, p *Principal, r Request) Decision { panic("unwritten") }

// Type decides what can be decided without looking at a record: scope and role on the type. A denial here is 403; a
// denial by Check after an allowance here is answered as 404, so that existence does not leak.
func (a *Access) Type(p *Principal, i Interaction, resourceType, purpose string) Decision {
	panic("unwritten")
}

// Filter decides about a search over a type.
func (a *Access) Filter(ctx context.Context, p *Principal, r Request) Filter { panic("unwritten") }

// May reports whether a role of the principal has the capability (e.g. "audit:read").
func (a *Access) May(p *Principal, capability string) Decision { panic("unwritten") }

// Healthy returns nil when the policy is loaded and its epochs were confirmed within the lease (5 s).
func (a *Access) Healthy() error { panic("unwritten") }

// AccessStats is a snapshot.
type AccessStats struct {
	Hits, Misses uint64
	Policy       int64
}

// Stats returns the snapshot.
func (a *Access) Stats() AccessStats { panic("unwritten") }
