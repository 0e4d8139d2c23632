package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/auth"
)

const (
	policyTimeout = 30 * time.Second
	proposalLife  = 7 * 24 * time.Hour // of what waits for a second person

	stateSettled = "CKP17" // of migration/0017_policy.sql: it is decided
)

// Policies administers the policy. Every change is one transaction, whole or not at all, that the epoch of the policy is part of; one
// whose policy would not compile, or would lock everybody out, is refused in it. It works with a role of its own, in a pool that is there
// only while a call runs. Its errors wrap those of auth (ErrOnePerson and so on, *auth.DocumentError, *auth.ConflictError).
type Policies struct {
	db    *DB
	check func(*auth.Document) error
}

// Policies is the administration of the policy. check says what is wrong with a document: auth.Document.Check with the views and types that
// there are.
func (d *DB) Policies(check func(*auth.Document) error) *Policies { return &Policies{d, check} }

// transact runs work in one transaction of the role of policies. by and approvedBy are whom the version that may come of it names.
func (s *Policies) transact(ctx context.Context, doing, by, approvedBy, summary string, work func(pgx.Tx) error) error {
	pool, err := openPool(ctx, s.db.records.Config().ConnString(), "chartkeep_policy", 1, policyTimeout, pgx.QueryExecModeCacheDescribe)
	if err != nil {
		return err
	}
	defer pool.Close()
	return policyError(doing, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if by != "" {
			if _, err := tx.Exec(ctx, `SELECT set_config('chartkeep.by', $1, true), set_config('chartkeep.approved_by', $2, true), set_config('chartkeep.summary', $3, true)`,
				by, approvedBy, summary); err != nil {
				return err
			}
			// One administrator at a time: what one has looked at stays so until he is done.
			if _, err := tx.Exec(ctx, `SELECT FROM authz_epoch WHERE scope = 'policy' FOR UPDATE`); err != nil {
				return err
			}
		}
		return work(tx)
	}))
}

// policyError says an error in auth's words.
func policyError(doing string, err error) error {
	var document *auth.DocumentError
	var conflict *auth.ConflictError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrNoRows):
		err = auth.ErrNoSuch
	case errors.As(err, &document), errors.As(err, &conflict):
	case sqlState(err) == stateSettled:
		err = auth.ErrDecided
	case sqlState(err) == stateCheck && violates(err, "two_persons"):
		err = auth.ErrOnePerson
	case sqlState(err) == stateCheck && violates(err, "not_oneself"):
		err = auth.ErrOneself
	default:
		return bare(doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// current is the policy as a transaction sees it, with the version of its document.
func current(ctx context.Context, tx pgx.Tx) (p auth.Policy, version int64, err error) {
	if p, err = readPolicy(ctx, tx); err != nil {
		return p, 0, err
	}
	err = tx.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM policy_version`).Scan(&version)
	return p, version, err
}

// Current returns the policy with its assignments, and the version of its document.
func (s *Policies) Current(ctx context.Context) (p auth.Policy, version int64, err error) {
	err = s.transact(ctx, "reading policy", "", "", "", func(tx pgx.Tx) error {
		p, version, err = current(ctx, tx)
		return err
	})
	return p, version, err
}

// Version returns a version of the policy, or the newest for 0.
func (s *Policies) Version(ctx context.Context, version int64) (v auth.PolicyVersion, d auth.Document, err error) {
	err = s.transact(ctx, "reading version of the policy", "", "", "", func(tx pgx.Tx) error {
		var document []byte
		if err := tx.QueryRow(ctx, `SELECT version, at, changed_by, coalesce(approved_by, ''), summary, document FROM policy_version
			WHERE version = $1 OR $1 = 0 ORDER BY version DESC LIMIT 1`, version).Scan(&v.Version, &v.At, &v.By, &v.ApprovedBy, &v.Summary, &document); err != nil {
			return err
		}
		v.At = v.At.UTC()
		d, err = auth.ReadDocument(document)
		return err
	})
	return v, d, err
}

// Versions lists versions of the policy, newest first, below one when it is not 0.
func (s *Policies) Versions(ctx context.Context, below int64, limit int) ([]auth.PolicyVersion, error) {
	return listed(ctx, s, "listing versions of the policy", func(row pgx.CollectableRow) (v auth.PolicyVersion, err error) {
		err = row.Scan(&v.Version, &v.At, &v.By, &v.ApprovedBy, &v.Summary)
		v.At = v.At.UTC()
		return v, err
	}, `SELECT version, at, changed_by, coalesce(approved_by, ''), summary FROM policy_version WHERE version < $1 OR $1 = 0 ORDER BY version DESC LIMIT $2`, below, limit)
}

// listed collects the rows of a statement, in a transaction of its own.
func listed[T any](ctx context.Context, s *Policies, doing string, scan pgx.RowToFunc[T], sql string, args ...any) (list []T, err error) {
	err = s.transact(ctx, doing, "", "", "", func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, scan)
		return err
	})
	return list, err
}

// errDry ends a transaction that was only to see what would happen.
var errDry = errors.New("only to see")

// Propose makes d the policy when that lets nobody do more, and otherwise stores it for a second person. p carries ID, Base, Document,
// Reason and RequestedBy, and is completed. Base must be the newest version (ErrPolicyChanged). dry changes nothing.
func (s *Policies) Propose(ctx context.Context, p *auth.Proposal, dry bool) error {
	err := s.transact(ctx, "proposing policy", p.RequestedBy, "", p.Reason, func(tx pgx.Tx) error {
		was, version, err := current(ctx, tx)
		if err != nil {
			return err
		}
		if p.Base != version {
			return auth.ErrPolicyChanged
		}
		if err := s.check(&p.Document); err != nil {
			return err
		}
		if p.Changes, err = auth.Consequences(was, p.Document, time.Now()); err != nil {
			return err
		}
		if len(p.Changes) == 0 {
			return auth.ErrUnchanged
		}
		p.Widens, p.State = auth.Widens(p.Changes), auth.StateRequested
		if !p.Widens {
			p.State = auth.StateApplied
			if err := apply(ctx, tx, &p.Document, &p.Version); err != nil {
				return err
			}
		}
		changes, err := json.Marshal(p.Changes)
		if err != nil {
			return err
		}
		document, err := json.Marshal(p.Document)
		if err != nil {
			return err
		}
		p.RequestedAt = time.Now().UTC().Truncate(time.Microsecond)
		p.ExpiresAt = p.RequestedAt.Add(proposalLife)
		if !p.Widens {
			p.DecidedAt = p.RequestedAt
		}
		if _, err = tx.Exec(ctx, `INSERT INTO policy_proposal (id, base, document, changes, widens, reason, state, requested_by, requested_at, expires_at, decided_at, version)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, nullif($12::bigint, 0))`, p.ID, p.Base, document, changes, p.Widens, p.Reason, p.State, p.RequestedBy,
			p.RequestedAt, p.ExpiresAt, optional(p.DecidedAt), p.Version); err != nil {
			return err
		}
		if dry {
			return errDry
		}
		return nil
	})
	if errors.Is(err, errDry) {
		return nil
	}
	return err
}

// apply makes a document the policy, and says under which epoch.
func apply(ctx context.Context, tx pgx.Tx, d *auth.Document, version *int64) error {
	document, err := json.Marshal(d)
	if err != nil {
		return err
	}
	for _, statement := range []string{
		`DELETE FROM role_conflict WHERE $1::jsonb IS NOT NULL`,
		`DELETE FROM permission WHERE $1::jsonb IS NOT NULL`,
		`DELETE FROM capability WHERE $1::jsonb IS NOT NULL`,
		`DELETE FROM policy_setting WHERE $1::jsonb IS NOT NULL`,
		`DELETE FROM role WHERE $1::jsonb IS NOT NULL`,
		`INSERT INTO role (name, description, workforce, approval) SELECT r->>'name', coalesce(r->>'description', ''), coalesce((r->>'workforce')::boolean, false),
			coalesce((r->>'approval')::boolean, false) FROM jsonb_array_elements($1::jsonb->'roles') WITH ORDINALITY x(r, place) ORDER BY place`,
		`INSERT INTO permission (role, type, interactions, view, relation, purposes, effect, segments, acr, max_age, approval)
			SELECT r->>'name', p->>'type', p->>'interactions', coalesce(p->>'view', ''), coalesce(p->>'relation', 'none'), ` + texts("p", "purposes") + `,
				coalesce(p->>'effect', 'permit'), ` + texts("p", "segments") + `, ` + texts("p", "acr") + `, coalesce((p->>'max_age')::integer, 0), coalesce((p->>'approval')::boolean, false)
			FROM jsonb_array_elements($1::jsonb->'roles') WITH ORDINALITY x(r, place), jsonb_array_elements(coalesce(r->'permissions', '[]')) WITH ORDINALITY y(p, at) ORDER BY place, at`,
		`INSERT INTO capability (role, name, acr, max_age, approval)
			SELECT r->>'name', c->>'name', ` + texts("c", "acr") + `, coalesce((c->>'max_age')::integer, 0), coalesce((c->>'approval')::boolean, false)
			FROM jsonb_array_elements($1::jsonb->'roles') r, jsonb_array_elements(coalesce(r->'capabilities', '[]')) c`,
		`INSERT INTO role_conflict (role, other, reason) SELECT c->>'role', c->>'other', c->>'reason' FROM jsonb_array_elements(coalesce($1::jsonb->'conflicts', '[]')) c`,
		`INSERT INTO policy_setting (name, value) SELECT 'emergency-over-consent', coalesce(($1::jsonb->'settings'->>'emergency-over-consent')::boolean, false)`,
	} {
		if _, err := tx.Exec(ctx, statement, document); err != nil {
			return err
		}
	}
	// What every instance will read is what was checked.
	stored, err := readPolicy(ctx, tx)
	if err != nil {
		return err
	}
	if is := auth.NewDocument(stored); !is.Equal(d) {
		return errors.New("the database keeps another policy than it was given")
	}
	*version = stored.Version
	return nil
}

// texts is the list of texts that a member of a jsonb value is.
func texts(value, member string) string {
	return `ARRAY(SELECT t FROM jsonb_array_elements_text(coalesce(` + value + `->'` + member + `', '[]')) WITH ORDINALITY l(t, n) ORDER BY n)`
}

const proposalColumns = `id::text, base, document, changes, widens, reason, CASE WHEN state = 'requested' AND expires_at <= now() THEN 'expired' ELSE state END,
	requested_by, requested_at, expires_at, coalesce(decided_by, ''), decided_at, coalesce(version, 0)`

func scanProposal(row pgx.CollectableRow) (*auth.Proposal, error) {
	p := &auth.Proposal{}
	var document, changes []byte
	var decided *time.Time
	if err := row.Scan(&p.ID, &p.Base, &document, &changes, &p.Widens, &p.Reason, &p.State, &p.RequestedBy, &p.RequestedAt, &p.ExpiresAt, &p.DecidedBy,
		&decided, &p.Version); err != nil {
		return nil, err
	}
	p.RequestedAt, p.ExpiresAt = p.RequestedAt.UTC(), p.ExpiresAt.UTC()
	if decided != nil {
		p.DecidedAt = decided.UTC()
	}
	if err := json.Unmarshal(changes, &p.Changes); err != nil {
		return nil, err
	}
	var err error
	p.Document, err = auth.ReadDocument(document)
	return p, err
}

// Proposals lists changes, newest first, after one when it is not "".
func (s *Policies) Proposals(ctx context.Context, after string, limit int) ([]*auth.Proposal, error) {
	return listed(ctx, s, "listing proposals", scanProposal, `SELECT `+proposalColumns+` FROM policy_proposal
		WHERE $1 = '' OR (requested_at, id) < (SELECT requested_at, id FROM policy_proposal WHERE id = nullif($1, '')::uuid) ORDER BY requested_at DESC, id DESC LIMIT $2`, after, limit)
}

// Proposal returns one.
func (s *Policies) Proposal(ctx context.Context, id string) (p *auth.Proposal, err error) {
	err = s.transact(ctx, "reading proposal", "", "", "", func(tx pgx.Tx) error {
		p, err = proposal(ctx, tx, id)
		return err
	})
	return p, err
}

func proposal(ctx context.Context, tx pgx.Tx, id string) (*auth.Proposal, error) {
	rows, err := tx.Query(ctx, `SELECT `+proposalColumns+` FROM policy_proposal WHERE id = $1`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectExactlyOneRow(rows, scanProposal)
}

// ApproveProposal makes a proposal the policy, by another person than the one who asked.
func (s *Policies) ApproveProposal(ctx context.Context, id, by string) (p *auth.Proposal, err error) {
	if p, err = s.Proposal(ctx, id); err != nil {
		return nil, err
	}
	err = s.transact(ctx, "approving proposal", p.RequestedBy, by, p.Reason, func(tx pgx.Tx) error {
		if p, err = proposal(ctx, tx, id); err != nil {
			return err
		}
		was, version, err := current(ctx, tx)
		switch {
		case err != nil:
			return err
		case p.State != auth.StateRequested:
			return auth.ErrDecided
		case auth.SamePerson(p.RequestedBy, by):
			return auth.ErrOnePerson
		case p.Base != version:
			return auth.ErrPolicyChanged
		}
		if err := s.check(&p.Document); err != nil {
			return err
		}
		if _, err := auth.Consequences(was, p.Document, time.Now()); err != nil {
			return err
		}
		if err := apply(ctx, tx, &p.Document, &p.Version); err != nil {
			return err
		}
		p.State, p.DecidedBy = auth.StateApplied, by
		return tx.QueryRow(ctx, `UPDATE policy_proposal SET state = 'applied', decided_by = $2, decided_at = now(), version = $3 WHERE id = $1 RETURNING decided_at`,
			id, by, p.Version).Scan(&p.DecidedAt)
	})
	return p, err
}

// WithdrawProposal ends one that waits: who asked for it thinks again, or who was to approve it does not.
func (s *Policies) WithdrawProposal(ctx context.Context, id, by string) error {
	return s.transact(ctx, "withdrawing proposal", by, "", "withdrawn", func(tx pgx.Tx) error {
		p, err := proposal(ctx, tx, id)
		if err != nil {
			return err
		}
		if p.State != auth.StateRequested {
			return auth.ErrDecided
		}
		_, err = tx.Exec(ctx, `UPDATE policy_proposal SET state = 'withdrawn', decided_by = $2, decided_at = now() WHERE id = $1`, id, by)
		return err
	})
}

const assignmentColumns = `id::text, subject, role, from_at, until_at, reason, approval, CASE WHEN state = 'requested' AND expires_at <= now() THEN 'expired' ELSE state END,
	requested_by, requested_at, expires_at, coalesce(decided_by, ''), decided_at, coalesce(ended_by, ''), ended_at, coalesce(end_reason, '')`

func scanAssignment(row pgx.CollectableRow) (*auth.AssignmentRecord, error) {
	a := &auth.AssignmentRecord{}
	var until, decided, ended *time.Time
	err := row.Scan(&a.ID, &a.Subject, &a.Role, &a.From, &until, &a.Reason, &a.Approval, &a.State, &a.RequestedBy, &a.RequestedAt, &a.ExpiresAt,
		&a.DecidedBy, &decided, &a.EndedBy, &ended, &a.EndReason)
	a.From, a.RequestedAt, a.ExpiresAt = a.From.UTC(), a.RequestedAt.UTC(), a.ExpiresAt.UTC()
	for to, from := range map[*time.Time]*time.Time{&a.Until: until, &a.DecidedAt: decided, &a.EndedAt: ended} {
		if from != nil {
			*to = from.UTC()
		}
	}
	return a, err
}

// Assignments lists who was assigned what, newest first.
func (s *Policies) Assignments(ctx context.Context, f auth.AssignmentFilter) ([]*auth.AssignmentRecord, error) {
	return listed(ctx, s, "listing assignments", scanAssignment, `SELECT `+assignmentColumns+` FROM role_assignment WHERE ($1 = '' OR subject = $1) AND ($2 = '' OR role = $2)
		AND ($3 = '' OR $3 = CASE WHEN state = 'requested' AND expires_at <= now() THEN 'expired' ELSE state END)
		AND ($4 = '' OR (requested_at, id) < (SELECT requested_at, id FROM role_assignment WHERE id = nullif($4, '')::uuid))
		ORDER BY requested_at DESC, id DESC LIMIT $5`, f.Subject, f.Role, f.State, f.After, f.Limit)
}

// Assignment returns one.
func (s *Policies) Assignment(ctx context.Context, id string) (a *auth.AssignmentRecord, err error) {
	err = s.transact(ctx, "reading assignment", "", "", "", func(tx pgx.Tx) error {
		a, err = assignment(ctx, tx, id)
		return err
	})
	return a, err
}

func assignment(ctx context.Context, tx pgx.Tx, id string) (*auth.AssignmentRecord, error) {
	rows, err := tx.Query(ctx, `SELECT `+assignmentColumns+` FROM role_assignment WHERE id = $1`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectExactlyOneRow(rows, scanAssignment)
}

// heldRoles are the roles that a subject has or waits for in a part of a time, but for one assignment.
func heldRoles(ctx context.Context, tx pgx.Tx, a *auth.AssignmentRecord) ([]string, error) {
	rows, err := tx.Query(ctx, `SELECT role FROM role_assignment WHERE subject = $1 AND id <> $2
		AND (state = 'approved' OR state = 'requested' AND expires_at > now()) AND (until_at IS NULL OR until_at > $3 AND until_at > now())
		AND ($4::timestamptz IS NULL OR from_at < $4)`, a.Subject, a.ID, a.From, optional(a.Until))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Assign gives a role to a subject, or stores the wish for a second person when the role takes one. a carries ID, Subject, Role, From,
// Until, Reason and RequestedBy, and is completed.
func (s *Policies) Assign(ctx context.Context, a *auth.AssignmentRecord) error {
	return s.transact(ctx, "assigning role", a.RequestedBy, "", a.Reason, func(tx pgx.Tx) error {
		if auth.SamePerson(a.RequestedBy, a.Subject) {
			return auth.ErrOneself
		}
		p, err := readPolicy(ctx, tx)
		if err != nil {
			return err
		}
		held, err := heldRoles(ctx, tx, a)
		if err != nil {
			return err
		}
		if a.Approval, err = p.Assignable(a.Role, held); err != nil {
			return err
		}
		for _, h := range held {
			if h == a.Role {
				return auth.ErrHeld
			}
		}
		a.RequestedAt = time.Now().UTC().Truncate(time.Microsecond)
		a.ExpiresAt = a.RequestedAt.Add(proposalLife)
		if a.State = auth.StateApproved; a.Approval {
			a.State = auth.StateRequested
		} else {
			a.DecidedAt = a.RequestedAt
		}
		_, err = tx.Exec(ctx, `INSERT INTO role_assignment (id, subject, role, from_at, until_at, reason, approval, state, requested_by, requested_at, expires_at, decided_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`, a.ID, a.Subject, a.Role, a.From, optional(a.Until), a.Reason, a.Approval, a.State, a.RequestedBy,
			a.RequestedAt, a.ExpiresAt, optional(a.DecidedAt))
		return err
	})
}

// ApproveAssignment puts one into force that waits.
func (s *Policies) ApproveAssignment(ctx context.Context, id, by string) (a *auth.AssignmentRecord, err error) {
	err = s.transact(ctx, "approving assignment", by, "", "assignment", func(tx pgx.Tx) error {
		if a, err = assignment(ctx, tx, id); err != nil {
			return err
		}
		switch {
		case a.State != auth.StateRequested:
			return auth.ErrDecided
		case auth.SamePerson(a.RequestedBy, by):
			return auth.ErrOnePerson
		case auth.SamePerson(a.Subject, by):
			return auth.ErrOneself
		}
		p, err := readPolicy(ctx, tx)
		if err != nil {
			return err
		}
		held, err := heldRoles(ctx, tx, a)
		if err != nil {
			return err
		}
		if _, err := p.Assignable(a.Role, held); err != nil {
			return err
		}
		a.State, a.DecidedBy = auth.StateApproved, by
		return tx.QueryRow(ctx, `UPDATE role_assignment SET state = 'approved', decided_by = $2, decided_at = now() WHERE id = $1 RETURNING decided_at`, id, by).Scan(&a.DecidedAt)
	})
	return a, err
}

// EndAssignment ends one before its time, or withdraws one that waits. The last assignment of roles that administer stays.
func (s *Policies) EndAssignment(ctx context.Context, id, by, reason string) (a *auth.AssignmentRecord, err error) {
	err = s.transact(ctx, "ending assignment", by, "", reason, func(tx pgx.Tx) error {
		if a, err = assignment(ctx, tx, id); err != nil {
			return err
		}
		switch a.State {
		case auth.StateRequested:
			a.State, a.DecidedBy = auth.StateWithdrawn, by
			return tx.QueryRow(ctx, `UPDATE role_assignment SET state = 'withdrawn', decided_by = $2, decided_at = now() WHERE id = $1 RETURNING decided_at`, id, by).Scan(&a.DecidedAt)
		case auth.StateApproved:
		default:
			return auth.ErrDecided
		}
		p, err := readPolicy(ctx, tx)
		if err != nil {
			return err
		}
		if p.Administers(a.Role) {
			now, others := time.Now(), false
			for _, x := range p.Assignments {
				others = others || x.Subject != a.Subject && p.Administers(x.Role) && !x.From.After(now)
			}
			if !others {
				return auth.ErrLastAdmin
			}
		}
		a.State, a.EndedBy, a.EndReason = auth.StateEnded, by, reason
		return tx.QueryRow(ctx, `UPDATE role_assignment SET state = 'ended', ended_by = $2, ended_at = now(), end_reason = $3 WHERE id = $1 RETURNING ended_at`,
			id, by, reason).Scan(&a.EndedAt)
	})
	return a, err
}
