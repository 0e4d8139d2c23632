package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/gofiber/fiber/v2/utils"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// Policies administers the policy and who holds its roles. Its errors wrap those of auth (ErrOnePerson and so on, *auth.DocumentError,
// *auth.ConflictError). All calls may be made from many goroutines.
type Policies interface {
	// Current returns the policy with its assignments, and the version of its document.
	Current(ctx context.Context) (auth.Policy, int64, error)
	// Version returns one version, the newest for 0.
	Version(ctx context.Context, version int64) (auth.PolicyVersion, auth.Document, error)
	// Versions lists them, newest first, below one when it is not 0.
	Versions(ctx context.Context, below int64, limit int) ([]auth.PolicyVersion, error)

	// Propose applies a change or stores it for a second person, and completes it; dry does neither.
	Propose(ctx context.Context, p *auth.Proposal, dry bool) error
	Proposals(ctx context.Context, after string, limit int) ([]*auth.Proposal, error)
	Proposal(ctx context.Context, id string) (*auth.Proposal, error)
	ApproveProposal(ctx context.Context, id, by string) (*auth.Proposal, error)
	WithdrawProposal(ctx context.Context, id, by string) error

	// Assign gives a role, or stores the wish for a second person, and completes the record.
	Assign(ctx context.Context, a *auth.AssignmentRecord) error
	Assignments(ctx context.Context, f auth.AssignmentFilter) ([]*auth.AssignmentRecord, error)
	Assignment(ctx context.Context, id string) (*auth.AssignmentRecord, error)
	ApproveAssignment(ctx context.Context, id, by string) (*auth.AssignmentRecord, error)
	EndAssignment(ctx context.Context, id, by, reason string) (*auth.AssignmentRecord, error)
}

// Types of the entities of events about the policy.
const (
	entityProposal   = "PolicyProposal"
	entityAssignment = "RoleAssignment"
	entityRole       = "Role"
)

// policyRefusal is an error of the administration as a problem: administrators are told what is the matter.
func policyRefusal(err error) *refusal {
	say := func(status int, code string, f *fault) *refusal {
		r := &refusal{status: status, code: code, cause: err, fault: f}
		r.text = f.text
		return r
	}
	var document *auth.DocumentError
	var conflict *auth.ConflictError
	switch {
	case errors.As(err, &document):
		return say(http.StatusUnprocessableEntity, "value", &fault{text: document.Error(), parameter: document.Pointer, position: -1})
	case errors.As(err, &conflict):
		return say(http.StatusConflict, "conflict", &fault{text: conflict.Error(), parameter: "role", position: -1})
	case errors.Is(err, auth.ErrPolicyChanged):
		return say(http.StatusPreconditionFailed, "conflict", &fault{text: auth.ErrPolicyChanged.Error(), parameter: "If-Match", position: -1})
	case errors.Is(err, auth.ErrNoSuch):
		return notFound()
	}
	for _, e := range []error{auth.ErrOnePerson, auth.ErrOneself, auth.ErrDecided, auth.ErrUnchanged, auth.ErrHeld, auth.ErrLastAdmin} {
		if errors.Is(err, e) {
			return say(http.StatusConflict, "conflict", &fault{text: e.Error(), position: -1})
		}
	}
	if errors.Is(err, auth.ErrNotAssignable) {
		return say(http.StatusUnprocessableEntity, "value", &fault{text: auth.ErrNotAssignable.Error(), parameter: "role", position: -1})
	}
	return unavailable(err)
}

// change carries out a change of the policy or of who holds a role, between an event of the intent and one of the outcome, and makes it
// felt at once on this instance. do returns what changed, in words, for the outcome.
func (c *call) change(entities []audit.Entity, do func() ([]string, error)) error {
	return c.changeAs(audit.TypePolicy, entities, do)
}

// changeAs is change with events of a type.
func (c *call) changeAs(t audit.Type, entities []audit.Entity, do func() ([]string, error)) error {
	intent := c.adminEvent(t)
	intent.Outcome, intent.Entities = audit.Intent, entities
	done := *intent // before the log owns it
	done.Entities = slices.Clone(entities)
	receipt, err := c.record(c.s.cfg.Level.Disclosure, intent)
	if err != nil {
		return err
	}
	done.Correlation, done.Outcome = receipt.Events()[0].ID, audit.Success
	words, err := do()
	var failed *refusal
	if err != nil {
		failed = policyRefusal(err)
		done.Outcome, done.OutcomeDesc = audit.MinorFailure, http.StatusText(failed.status)
		if failed.status >= http.StatusInternalServerError {
			done.Outcome, done.OutcomeDesc = audit.SeriousFailure, "try again later"
		}
	}
	if len(words) > 0 {
		if done.Detail, err = json.Marshal(words); err != nil {
			return err
		}
	}
	if err := c.s.cfg.Access.Refresh(c.ctx); err != nil {
		c.s.cfg.Access.Wake() // it is done, and Run finds out as the other instances do
	}
	receipt, err = c.record(c.s.cfg.Level.Disclosure, &done)
	if err != nil {
		return err
	}
	if failed != nil {
		failed.recorded, failed.event = true, receipt.Events()[0].ID
		return failed
	}
	return nil
}

// maximalWords bounds what an event says about a change, in bytes. The rest is with the proposal that it names.
const maximalWords = 4096

// changeWords are changes as an event has them.
func changeWords(changes []auth.Change) (words []string) {
	size := 0
	for _, x := range changes {
		if size += len(x.Text); size > maximalWords {
			return append(words, "…")
		}
		words = append(words, x.Sign()+" "+x.Text)
	}
	return words
}

// policyBody reads a JSON body.
func (c *call) policyBody(into any) error {
	if err := c.media(mediaJSON); err != nil {
		return err
	}
	if err := json.Unmarshal(c.http.Request().Body(), into, json.RejectUnknownMembers(true)); err != nil {
		return bodyRefusal(auth.JSONError(c.http.Request().Body(), err))
	}
	return nil
}

func bodyRefusal(e *auth.DocumentError) *refusal {
	return &refusal{status: http.StatusBadRequest, code: "invalid", text: e.Error(), fault: &fault{text: e.Text, parameter: e.Pointer, position: -1}}
}

// reasonOf checks a reason that was given. It must not describe a patient; that is for people to heed.
func reasonOf(text string) (string, error) {
	text = strings.TrimSpace(text)
	if text == "" || len(text) > 500 {
		return "", &refusal{
			status: http.StatusUnprocessableEntity, code: "value", text: "a reason of at most 500 bytes is needed",
			fault: &fault{parameter: "/reason", position: -1},
		}
	}
	return text, nil
}

// pathUUID is the id in the path.
func (c *call) pathUUID() (string, error) {
	id, err := phi.ParseUUID(c.http.Params("id"))
	if err != nil {
		return "", notFound()
	}
	return id.String(), nil
}

// page reads the parameters of a list.
func page(asked map[string]string) (after string, limit int, err error) {
	limit = 100
	if text := asked["limit"]; text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > 500 {
			return "", 0, faulty(&fault{text: "a number from 1 to 500", parameter: "limit", position: -1})
		}
	}
	if after = asked["after"]; after != "" {
		if _, err := phi.ParseUUID(after); err != nil {
			return "", 0, faulty(&fault{text: "the next of a page before", parameter: "after", position: -1})
		}
	}
	return after, limit, nil
}

// looked records that somebody looked at the policy or at who holds its roles.
func (c *call) looked() error {
	_, err := c.record(c.s.cfg.Level.Other, c.adminEvent(audit.TypePolicy))
	return err
}

// versionTag is the ETag of a version of the policy.
func (c *call) versionTag(version int64) {
	c.http.Response().Header.Set("ETag", `W/"`+strconv.FormatInt(version, 10)+`"`)
}

type rolesJSON struct {
	Version   int64                   `json:"version"` // of the document: for If-Match
	Epoch     int64                   `json:"epoch"`   // that decisions name; it counts assignments too
	Roles     []roleJSON              `json:"roles"`
	Conflicts []auth.DocumentConflict `json:"conflicts"`
	Settings  auth.DocumentSettings   `json:"settings"`
}

// roleJSON is a role and how many hold it.
type roleJSON struct {
	auth.DocumentRole
	Assigned int `json:"assigned"` // now or later; roles that tokens name are not counted
}

// roles shows the policy as it is stored.
func (c *call) roles() error {
	j, err := c.readRoles()
	if err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, j)
}

func (c *call) readRoles() (*rolesJSON, error) {
	if c.s.cfg.Policies == nil {
		return nil, notConfigured()
	}
	p, version, err := c.s.cfg.Policies.Current(c.ctx)
	if err != nil {
		return nil, policyRefusal(err)
	}
	if err := c.looked(); err != nil {
		return nil, err
	}
	d := auth.NewDocument(p)
	j := &rolesJSON{Version: version, Epoch: p.Version, Roles: []roleJSON{}, Conflicts: append([]auth.DocumentConflict{}, d.Conflicts...), Settings: d.Settings}
	for _, r := range d.Roles {
		x := roleJSON{DocumentRole: r}
		for _, a := range p.Assignments {
			if a.Role == r.Name {
				x.Assigned++
			}
		}
		j.Roles = append(j.Roles, x)
	}
	c.versionTag(version)
	return j, nil
}

// role shows one role.
func (c *call) roleByName() error {
	name := strings.Clone(c.http.Params("role"))
	j, err := c.readRoles()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(j.Roles, func(r roleJSON) bool { return r.Name == name })
	if at < 0 {
		return notFound()
	}
	return c.sendJSON(http.StatusOK, j.Roles[at])
}

// roleChangeJSON is a role as it shall be.
type roleChangeJSON struct {
	Role   auth.DocumentRole `json:"role"`
	Reason string            `json:"reason"`
}

// createRole adds a role to the policy.
func (c *call) createRole() error {
	var asked roleChangeJSON
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	return c.edit(asked.Role.Name, asked.Reason, func(d *auth.Document, at int) error {
		if at >= 0 {
			return &refusal{status: http.StatusConflict, code: "conflict", text: "there is such a role already", fault: &fault{parameter: "/role/name", position: -1}}
		}
		d.Roles = append(d.Roles, asked.Role)
		return nil
	})
}

// putRole replaces a role.
func (c *call) putRole() error {
	var asked roleChangeJSON
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	name := strings.Clone(c.http.Params("role"))
	if asked.Role.Name != name {
		return &refusal{status: http.StatusUnprocessableEntity, code: "value", text: "the name is not that of the path", fault: &fault{parameter: "/role/name", position: -1}}
	}
	return c.edit(name, asked.Reason, func(d *auth.Document, at int) error {
		if at < 0 {
			return notFound()
		}
		d.Roles[at] = asked.Role
		return nil
	})
}

// putPermissions replaces what a role permits and forbids.
func (c *call) putPermissions() error {
	var asked struct {
		Permissions []auth.DocumentPermission `json:"permissions"`
		Reason      string                    `json:"reason"`
	}
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	return c.edit(strings.Clone(c.http.Params("role")), asked.Reason, func(d *auth.Document, at int) error {
		if at < 0 {
			return notFound()
		}
		d.Roles[at].Permissions = asked.Permissions
		return nil
	})
}

// removeRole removes one, with the conflicts that it is in.
func (c *call) removeRole() error {
	name := strings.Clone(c.http.Params("role"))
	return c.edit(name, "role removed", func(d *auth.Document, at int) error {
		if at < 0 {
			return notFound()
		}
		d.Roles = slices.Delete(d.Roles, at, at+1)
		d.Conflicts = slices.DeleteFunc(d.Conflicts, func(x auth.DocumentConflict) bool { return x.Role == name || x.Other == name })
		return nil
	})
}

// edit proposes the newest policy with one role changed; at is where the role is, -1 for one that there is not. The proposal that comes of
// it is answered as of a whole document.
func (c *call) edit(role, reason string, change func(d *auth.Document, at int) error) error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	reason, err := reasonOf(reason)
	if err != nil {
		return err
	}
	base, err := c.baseVersion()
	if err != nil {
		return err
	}
	v, d, err := c.s.cfg.Policies.Version(c.ctx, 0)
	switch {
	case err != nil:
		return policyRefusal(err)
	case v.Version != base:
		return policyRefusal(auth.ErrPolicyChanged)
	}
	if err := change(&d, slices.IndexFunc(d.Roles, func(r auth.DocumentRole) bool { return r.Name == role })); err != nil {
		return err
	}
	return c.propose(&auth.Proposal{Base: base, Document: d, Reason: reason}, false, audit.Entity{Type: entityRole, ID: role})
}

// baseVersion is the version that a change is made to: without it two administrators would overwrite each other.
func (c *call) baseVersion() (int64, error) {
	base, err := c.ifMatch()
	if err == nil && base == 0 {
		err = &refusal{
			status: http.StatusPreconditionRequired, code: "required", text: `If-Match must name the version that this changes, as W/"3"`,
			fault: &fault{parameter: "If-Match", position: -1},
		}
	}
	return base, err
}

// documentJSON is a version of the policy.
type documentJSON struct {
	versionJSON
	Document auth.Document `json:"document"`
}

type versionJSON struct {
	Version    int64     `json:"version"`
	At         time.Time `json:"at"`
	By         string    `json:"by"`
	ApprovedBy string    `json:"approved_by,omitempty"`
	Summary    string    `json:"summary"`
}

// policy shows a version of the policy, the newest unless another one is asked for.
func (c *call) policy() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	asked, err := c.parameters("version")
	if err != nil {
		return err
	}
	version, err := versionIn(asked, "version")
	if err != nil {
		return err
	}
	v, d, err := c.s.cfg.Policies.Version(c.ctx, version)
	if err != nil {
		return policyRefusal(err)
	}
	if err := c.looked(); err != nil {
		return err
	}
	c.versionTag(v.Version)
	return c.sendJSON(http.StatusOK, documentJSON{versionJSON(v), d})
}

// versionIn reads a parameter that is a version; 0 when it is not there.
func versionIn(asked map[string]string, name string) (int64, error) {
	text := asked[name]
	if text == "" {
		return 0, nil
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 1 {
		return 0, faulty(&fault{text: "a version is a number from 1", parameter: name, position: -1})
	}
	return v, nil
}

// policyVersions lists versions, newest first.
func (c *call) policyVersions() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	asked, err := c.parameters("before", "limit")
	if err != nil {
		return err
	}
	below, err := versionIn(asked, "before")
	if err != nil {
		return err
	}
	_, limit, err := page(asked)
	if err != nil {
		return err
	}
	list, err := c.s.cfg.Policies.Versions(c.ctx, below, limit)
	if err != nil {
		return policyRefusal(err)
	}
	if err := c.looked(); err != nil {
		return err
	}
	out := struct {
		Versions []versionJSON `json:"versions"`
		Next     int64         `json:"next,omitzero"` // before of the next page
	}{Versions: []versionJSON{}}
	for _, v := range list {
		out.Versions = append(out.Versions, versionJSON(v))
	}
	if len(list) == limit {
		out.Next = list[limit-1].Version
	}
	return c.sendJSON(http.StatusOK, out)
}

// policyDiff tells two versions apart, in words.
func (c *call) policyDiff() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	asked, err := c.parameters("from", "to")
	if err != nil {
		return err
	}
	var versions [2]int64
	var documents [2]auth.Document
	for i, name := range []string{"from", "to"} {
		version, err := versionIn(asked, name)
		if err == nil && i == 0 && version == 0 {
			err = faulty(&fault{text: "it is needed", parameter: name, position: -1})
		}
		if err != nil {
			return err
		}
		v, d, err := c.s.cfg.Policies.Version(c.ctx, version)
		if err != nil {
			return policyRefusal(err)
		}
		versions[i], documents[i] = v.Version, d
	}
	if err := c.looked(); err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, struct {
		From    int64         `json:"from"`
		To      int64         `json:"to"`
		Changes []auth.Change `json:"changes"`
	}{versions[0], versions[1], append([]auth.Change{}, auth.Compare(documents[0], documents[1])...)})
}

type proposalJSON struct {
	ID          string         `json:"id,omitempty"` // none of what was only tried
	Base        int64          `json:"base"`
	Changes     []auth.Change  `json:"changes"`
	Widens      bool           `json:"widens"` // it takes a second person
	Reason      string         `json:"reason"`
	State       string         `json:"state"` // requested, applied, withdrawn, expired
	RequestedBy string         `json:"requested_by"`
	RequestedAt time.Time      `json:"requested_at"`
	ExpiresAt   time.Time      `json:"expires_at"`
	DecidedBy   string         `json:"decided_by,omitempty"`
	DecidedAt   time.Time      `json:"decided_at,omitzero"`
	Version     int64          `json:"version,omitzero"` // the epoch at which it came into force
	Document    *auth.Document `json:"document,omitempty"`
}

func newProposalJSON(p *auth.Proposal, whole bool) proposalJSON {
	j := proposalJSON{
		ID: p.ID, Base: p.Base, Changes: append([]auth.Change{}, p.Changes...), Widens: p.Widens, Reason: p.Reason, State: p.State, RequestedBy: p.RequestedBy,
		RequestedAt: p.RequestedAt, ExpiresAt: p.ExpiresAt, DecidedBy: p.DecidedBy, DecidedAt: p.DecidedAt, Version: p.Version,
	}
	if whole {
		j.Document = &p.Document
	}
	return j
}

// proposePolicy proposes a whole document.
func (c *call) proposePolicy() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	var asked struct {
		Document auth.Document `json:"document"`
		Reason   string        `json:"reason"`
		DryRun   bool          `json:"dry_run"`
	}
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	reason, err := reasonOf(asked.Reason)
	if err != nil {
		return err
	}
	base, err := c.baseVersion()
	if err != nil {
		return err
	}
	return c.propose(&auth.Proposal{Base: base, Document: asked.Document, Reason: reason}, asked.DryRun)
}

// propose hands a change over: it is applied, or waits for a second person.
func (c *call) propose(p *auth.Proposal, dry bool, about ...audit.Entity) error {
	p.ID, p.RequestedBy = utils.UUIDv4(), c.principal.Subject
	if dry {
		if err := c.s.cfg.Policies.Propose(c.ctx, p, true); err != nil {
			return policyRefusal(err)
		}
		if err := c.looked(); err != nil {
			return err
		}
		p.ID, p.Version = "", 0
		return c.sendJSON(http.StatusOK, newProposalJSON(p, false))
	}
	if err := c.change(append([]audit.Entity{{Type: entityProposal, ID: p.ID}}, about...), func() ([]string, error) {
		err := c.s.cfg.Policies.Propose(c.ctx, p, false)
		return append(changeWords(p.Changes), "state "+p.State), err
	}); err != nil {
		return err
	}
	c.http.Response().Header.Set("Location", apiBase+"/policy/proposals/"+p.ID)
	status := http.StatusCreated
	if p.State == auth.StateRequested {
		status = http.StatusAccepted
	}
	return c.sendJSON(status, newProposalJSON(p, false))
}

// proposals lists changes, newest first.
func (c *call) proposals() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	asked, err := c.parameters("after", "limit")
	if err != nil {
		return err
	}
	after, limit, err := page(asked)
	if err != nil {
		return err
	}
	list, err := c.s.cfg.Policies.Proposals(c.ctx, after, limit)
	if err != nil {
		return policyRefusal(err)
	}
	if err := c.looked(); err != nil {
		return err
	}
	out := struct {
		Proposals []proposalJSON `json:"proposals"`
		Next      string         `json:"next,omitempty"` // after of the next page
	}{Proposals: []proposalJSON{}}
	for _, p := range list {
		out.Proposals = append(out.Proposals, newProposalJSON(p, false))
	}
	if len(list) == limit {
		out.Next = list[limit-1].ID
	}
	return c.sendJSON(http.StatusOK, out)
}

// proposal shows one, with its document.
func (c *call) proposal() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	id, err := c.pathUUID()
	if err != nil {
		return err
	}
	p, err := c.s.cfg.Policies.Proposal(c.ctx, id)
	if err != nil {
		return policyRefusal(err)
	}
	if err := c.looked(); err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, newProposalJSON(p, true))
}

// approveProposal makes one the policy.
func (c *call) approveProposal() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	id, err := c.pathUUID()
	if err != nil {
		return err
	}
	var p *auth.Proposal
	if err := c.change([]audit.Entity{{Type: entityProposal, ID: id}}, func() (words []string, err error) {
		if p, err = c.s.cfg.Policies.ApproveProposal(c.ctx, id, c.principal.Subject); err != nil {
			return nil, err
		}
		return append(changeWords(p.Changes), fmt.Sprintf("version %d", p.Version)), nil
	}); err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, newProposalJSON(p, false))
}

// withdrawProposal ends one that waits: who asked for it takes it back, or who was to approve it refuses.
func (c *call) withdrawProposal() error {
	if c.s.cfg.Policies == nil {
		return notConfigured()
	}
	id, err := c.pathUUID()
	if err != nil {
		return err
	}
	if err := c.change([]audit.Entity{{Type: entityProposal, ID: id}}, func() ([]string, error) {
		return nil, c.s.cfg.Policies.WithdrawProposal(c.ctx, id, c.principal.Subject)
	}); err != nil {
		return err
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

func notConfigured() *refusal {
	return &refusal{status: http.StatusNotImplemented, code: "not-supported", text: "not configured on this server"}
}
