package auth

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Document is a policy without its assignments, as people write and read it: JSON in which a line may end in a // comment. Of two rules
// that are equally wide the one that is further up goes first.
type Document struct {
	Roles     []DocumentRole     `json:"roles"`
	Conflicts []DocumentConflict `json:"conflicts,omitempty"`
	Settings  DocumentSettings   `json:"settings,omitzero"`
}

// DocumentRole is a role with everything that it permits and forbids.
type DocumentRole struct {
	Name         string               `json:"name"`
	Description  string               `json:"description,omitempty"`
	Workforce    bool                 `json:"workforce,omitempty"` // people hold it: it can be assigned
	Approval     bool                 `json:"approval,omitempty"`  // to assign it takes a second person
	Permissions  []DocumentPermission `json:"permissions,omitempty"`
	Capabilities []DocumentCapability `json:"capabilities,omitempty"`
}

// DocumentPermission is a Permission of the role it stands in.
type DocumentPermission struct {
	Type         string   `json:"type"`           // FHIR type, or "*" for every type that the role has no rule of its own for
	Interactions string   `json:"interactions"`   // letters of cruds, in that order
	View         string   `json:"view,omitempty"` // of a permit
	Relation     Relation `json:"relation,omitempty"`
	Purposes     []string `json:"purposes,omitempty"` // of use; the first is the default. Those of a forbid limit it
	Effect       Effect   `json:"effect,omitempty"`   // permit when empty
	Segments     []string `json:"segments,omitempty"`
	ACR          []string `json:"acr,omitempty"`     // a sign-in of one of these classes is demanded
	MaxAge       int64    `json:"max_age,omitempty"` // seconds since the sign-in, at most
	Approval     bool     `json:"approval,omitempty"`
}

// DocumentCapability is a Capability of the role it stands in.
type DocumentCapability struct {
	Name     string   `json:"name"`
	ACR      []string `json:"acr,omitempty"`
	MaxAge   int64    `json:"max_age,omitempty"` // seconds
	Approval bool     `json:"approval,omitempty"`
}

// DocumentConflict are two roles that nobody may hold at once.
type DocumentConflict struct {
	Role   string `json:"role"`
	Other  string `json:"other"`
	Reason string `json:"reason"`
}

// DocumentSettings are switches of the whole policy.
type DocumentSettings struct {
	EmergencyOverConsent bool `json:"emergency-over-consent,omitempty"` // see Policy.EmergencyOverConsent
}

// DocumentError is what is wrong with a document, and where.
type DocumentError struct {
	Pointer string // RFC 6901, e.g. "/roles/2/permissions/0/view"; "" when it is not JSON, or wrong as a whole
	Text    string // what is wrong, in the words of the field
}

// Error says both.
func (e *DocumentError) Error() string {
	if e.Pointer == "" {
		return e.Text
	}
	return e.Pointer + ": " + e.Text
}

// maxPolicyDocument bounds a document, in bytes.
const maxPolicyDocument = 8 << 20

// ReadDocument reads a document: strict JSON (no unknown members, no member twice, names spelt exactly) with // comments. The error is a
// *DocumentError.
func ReadDocument(b []byte) (Document, error) {
	var d Document
	if len(b) > maxPolicyDocument {
		return d, &DocumentError{Text: fmt.Sprintf("a policy has at most %d bytes", maxPolicyDocument)}
	}
	if err := ReadCommented(b, &d); err != nil {
		return Document{}, err
	}
	return d, nil
}

// ReadCommented is how ReadDocument reads, for other files that people write.
func ReadCommented(b []byte, into any) error {
	if err := json.Unmarshal(uncommented(b), into, json.RejectUnknownMembers(true)); err != nil {
		return JSONError(b, err)
	}
	return nil
}

// JSONError says where in a text its decoder found what fault, without quoting the text.
func JSONError(b []byte, err error) *DocumentError {
	e := &DocumentError{Text: "this is not JSON"}
	var syntax *jsontext.SyntacticError
	var semantic *json.SemanticError
	switch {
	case errors.As(err, &syntax):
		at := 1 + bytes.Count(b[:min(int(syntax.ByteOffset), len(b))], []byte("\n"))
		e.Pointer, e.Text = string(syntax.JSONPointer), fmt.Sprintf("line %d: this is not JSON", at)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			e.Text = fmt.Sprintf("line %d: it is there twice", at)
		}
	case errors.As(err, &semantic):
		e.Pointer, e.Text = string(semantic.JSONPointer), "has another type than is expected"
		if errors.Is(err, json.ErrUnknownName) {
			e.Text = "there is no such member"
		}
	}
	return e
}

// uncommented puts blanks in the place of comments, so that places in the text stay what they are.
func uncommented(b []byte) []byte {
	out, quoted := bytes.Clone(b), false
	for i := 0; i < len(out); i++ {
		switch {
		case quoted && out[i] == '\\':
			i++
		case out[i] == '"':
			quoted = !quoted
		case !quoted && out[i] == '/' && i+1 < len(out) && out[i+1] == '/':
			for ; i < len(out) && out[i] != '\n'; i++ {
				out[i] = ' '
			}
		}
	}
	return out
}

// NewDocument is the document of a policy.
func NewDocument(p Policy) Document {
	d := Document{Settings: DocumentSettings{EmergencyOverConsent: p.EmergencyOverConsent}}
	place := map[string]int{}
	role := func(name string) *DocumentRole {
		at, ok := place[name]
		if !ok {
			at = len(d.Roles)
			place[name] = at
			d.Roles = append(d.Roles, DocumentRole{Name: name})
		}
		return &d.Roles[at]
	}
	for _, r := range p.Roles {
		x := role(r.Name)
		x.Description, x.Workforce, x.Approval = r.Description, r.Workforce, r.Approval
	}
	for _, x := range p.Permissions {
		r := role(x.Role)
		row := DocumentPermission{
			Type: x.Type, Interactions: x.Interactions, View: x.View, Relation: x.Relation, Purposes: x.Purposes, Effect: x.Effect, Segments: x.Segments,
			ACR: x.StepUp.ACR, MaxAge: int64(x.StepUp.MaxAge / time.Second), Approval: x.Approval,
		}
		r.Permissions = append(r.Permissions, row.plain())
	}
	for _, x := range p.Capabilities {
		r := role(x.Role)
		r.Capabilities = append(r.Capabilities, DocumentCapability{x.Name, x.StepUp.ACR, int64(x.StepUp.MaxAge / time.Second), x.Approval})
	}
	for _, x := range p.Conflicts {
		d.Conflicts = append(d.Conflicts, DocumentConflict(x))
	}
	return d
}

// plain leaves out what goes without saying.
func (p DocumentPermission) plain() DocumentPermission {
	if p.Effect == Permit {
		p.Effect = ""
	}
	if p.Effect == Forbid {
		p.View, p.Relation = "", ""
	}
	return p
}

// Policy is the document as Access takes it.
func (d *Document) Policy() Policy {
	p := Policy{EmergencyOverConsent: d.Settings.EmergencyOverConsent}
	for _, r := range d.Roles {
		p.Roles = append(p.Roles, Role{r.Name, r.Description, r.Workforce, r.Approval})
		for _, x := range r.Permissions {
			row := Permission{
				Role: r.Name, Type: x.Type, Interactions: x.Interactions, View: x.View, Relation: x.Relation, Purposes: x.Purposes, Effect: x.Effect,
				Segments: x.Segments, StepUp: StepUp{x.ACR, time.Duration(x.MaxAge) * time.Second}, Approval: x.Approval,
			}
			if row.Effect == "" {
				row.Effect = Permit
			}
			if row.Effect == Forbid && row.Relation == "" {
				row.Relation = RelationNone
			}
			p.Permissions = append(p.Permissions, row)
		}
		for _, x := range r.Capabilities {
			p.Capabilities = append(p.Capabilities, Capability{r.Name, x.Name, StepUp{x.ACR, time.Duration(x.MaxAge) * time.Second}, x.Approval})
		}
	}
	for _, x := range d.Conflicts {
		p.Conflicts = append(p.Conflicts, Conflict(x))
	}
	return p
}

// Who administers: a policy without somebody for each of these locks everybody out for good.
const (
	CapabilityPolicyWrite       = "policy:write"
	CapabilityPolicyApprove     = "policy:approve"
	CapabilityAssignmentWrite   = "assignment:write"
	CapabilityAssignmentApprove = "assignment:approve"
)

var (
	roleName       = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	capabilityName = regexp.MustCompile(`^[a-z][a-z-]*:[a-z][a-z-]*$`)
	purposeCode    = regexp.MustCompile(`^[A-Z]{1,16}$`)
)

// Check returns the first thing that is wrong with a document, a *DocumentError. view and resourceType say what there is.
func (d *Document) Check(view, resourceType func(string) bool) error {
	names := map[string]bool{}
	for i, r := range d.Roles {
		at := fmt.Sprintf("/roles/%d", i)
		switch {
		case !roleName.MatchString(r.Name):
			return &DocumentError{at + "/name", "a role's name is lower-case letters, digits and hyphens, 63 at most"}
		case names[r.Name]:
			return &DocumentError{at + "/name", "there is such a role already"}
		case len(r.Description) > 500:
			return &DocumentError{at + "/description", "it has at most 500 bytes"}
		}
		names[r.Name] = true
		if err := r.check(at, view, resourceType); err != nil {
			return err
		}
	}
	pairs := map[[2]string]bool{}
	for i, x := range d.Conflicts {
		at, pair := fmt.Sprintf("/conflicts/%d", i), [2]string{min(x.Role, x.Other), max(x.Role, x.Other)}
		switch {
		case !names[x.Role]:
			return &DocumentError{at + "/role", "there is no such role"}
		case !names[x.Other]:
			return &DocumentError{at + "/other", "there is no such role"}
		case x.Role == x.Other:
			return &DocumentError{at + "/other", "a role does not conflict with itself"}
		case pairs[pair]:
			return &DocumentError{at, "there is this conflict already"}
		case strings.TrimSpace(x.Reason) == "" || len(x.Reason) > 500:
			return &DocumentError{at + "/reason", "a reason of at most 500 bytes is needed"}
		}
		pairs[pair] = true
	}
	if _, err := compile(d.Policy()); err != nil {
		return &DocumentError{"", err.Error()}
	}
	return d.locked()
}

func (r *DocumentRole) check(at string, view, resourceType func(string) bool) error {
	rules := map[[4]string]bool{}
	for i, x := range r.Permissions {
		at := fmt.Sprintf("%s/permissions/%d", at, i)
		_, letters := letterMask(x.Interactions)
		_, segments := segmentSet(x.Segments)
		forbid := x.Effect == Forbid
		key := [4]string{x.Type, x.View, string(x.Relation), string(x.Effect)}
		wrong := func(member, text string) error { return &DocumentError{at + "/" + member, text} }
		switch {
		case x.Type != "*" && (!isTypeName(x.Type) || !resourceType(x.Type)):
			return wrong("type", "there is no such resource type")
		case !letters:
			return wrong("interactions", "they are letters of cruds, in this order")
		case x.Effect != "" && x.Effect != Permit && !forbid:
			return wrong("effect", "it is permit or forbid")
		case !forbid && !view(x.View):
			return wrong("view", "there is no such view")
		case forbid && x.View != "":
			return wrong("view", "a forbid has none: it keeps from everything")
		case !forbid && x.Relation != RelationNone && x.Relation != RelationTreatment && x.Relation != RelationSelf:
			return wrong("relation", "it is none, treatment or self")
		case forbid && x.Relation != "" && x.Relation != RelationNone:
			return wrong("relation", "a forbid has none: it keeps everybody of the role out")
		case !forbid && len(x.Purposes) == 0:
			return wrong("purposes", "a permit names the purposes of use that it is for")
		case !segments || slices.Contains(x.Segments, segmentNames[SegmentGeneral]):
			return wrong("segments", "they are part2 and psychotherapy")
		case forbid && (len(x.ACR) > 0 || x.MaxAge != 0):
			return wrong("acr", "no sign-in lifts a forbid")
		case x.MaxAge < 0 || x.MaxAge > 366*24*3600:
			return wrong("max_age", "it is seconds, a year at most")
		case rules[key]:
			return wrong("type", "the role has a rule of the same type, view, relation and effect already")
		}
		for _, code := range x.Purposes {
			if !purposeCode.MatchString(code) {
				return wrong("purposes", "a purpose of use is a code of capital letters")
			}
		}
		rules[key] = true
	}
	names := map[string]bool{}
	for i, x := range r.Capabilities {
		at := fmt.Sprintf("%s/capabilities/%d", at, i)
		switch {
		case !capabilityName.MatchString(x.Name):
			return &DocumentError{at + "/name", "a capability is two words with a colon between them, as policy:read"}
		case names[x.Name]:
			return &DocumentError{at + "/name", "the role has it already"}
		case x.MaxAge < 0 || x.MaxAge > 366*24*3600:
			return &DocumentError{at + "/max_age", "it is seconds, a year at most"}
		}
		names[x.Name] = true
	}
	return nil
}

// locked returns an error when nobody could change the policy back: each of the four capabilities belongs to a role of the workforce.
func (d *Document) locked() error {
	with := func(capability string) (roles []string) {
		for _, r := range d.Roles {
			if r.Workforce && slices.ContainsFunc(r.Capabilities, func(c DocumentCapability) bool { return c.Name == capability }) {
				roles = append(roles, r.Name)
			}
		}
		return roles
	}
	for _, name := range []string{CapabilityPolicyWrite, CapabilityPolicyApprove, CapabilityAssignmentWrite, CapabilityAssignmentApprove} {
		if len(with(name)) == 0 {
			return &DocumentError{"/roles", "nobody would have " + name + " any more: that locks everybody out"}
		}
	}
	return nil
}
