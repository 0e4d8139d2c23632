package phi

import (
	"context"
	"errors"

	"github.com/chartkeep/chartkeep/audit"
)

// SealQuery seals the text of a search for audit.Event.Query. entityType is the type of the event's first entity, to which the
// text is bound.
func (r *Records) SealQuery(text, entityType string) []byte {
	return r.queries.Seal(nil, nil, []byte(text), []byte(entityType))
}

// OpenQuery opens the search text that an event keeps sealed; "" when it has none. receipt must be for an event that names this
// one: an Entity of type AuditEvent with its id. The error is an *Error: Denied without such a receipt, Integrity when the
// text does not open, Unavailable while the KMS is away for longer than keys are held: the cipher is at hand, and nothing opens then.
func (r *Records) OpenQuery(e *audit.Event, receipt audit.Receipt) (string, error) {
	if !receipt.Covers("AuditEvent", e.ID.String(), "") {
		return "", fail(Denied, "forbidden", "there is no receipt for looking at the event")
	}
	if len(e.Query) == 0 {
		return "", nil
	}
	if err := r.keys.Healthy(); err != nil {
		return "", unavailable(err)
	}
	if len(e.Entities) == 0 {
		return "", fail(Integrity, "exception", "the search text does not open").because(errors.New("the event names no type"))
	}
	text, err := r.queries.Open(nil, nil, e.Query, []byte(e.Entities[0].Type))
	if err != nil {
		return "", fail(Integrity, "exception", "the search text does not open").because(err)
	}
	return string(text), nil
}

// SealRemark seals what somebody wrote to officers, which may describe a patient; it opens for what it is about alone.
func (r *Records) SealRemark(text string, about audit.Entity) []byte {
	return r.queries.Seal(nil, nil, []byte(text), remarkOf(about))
}

// OpenRemark opens a remark. receipt must be for an event that names what it is about. Errors are those of OpenQuery.
func (r *Records) OpenRemark(sealed []byte, about audit.Entity, receipt audit.Receipt) (string, error) {
	if !receipt.Covers(about.Type, about.ID, "") {
		return "", fail(Denied, "forbidden", "there is no receipt for looking at the remark")
	}
	if err := r.keys.Healthy(); err != nil {
		return "", unavailable(err)
	}
	text, err := r.queries.Open(nil, nil, sealed, remarkOf(about))
	if err != nil {
		return "", fail(Integrity, "exception", "the remark does not open").because(err)
	}
	return string(text), nil
}

// remarkOf is what a remark is bound to. Search text is bound to a resource type, which has no slash.
func remarkOf(about audit.Entity) []byte { return []byte("remark/" + about.Type + "/" + about.ID) }

// OfficersKey is the organisation's 32-byte secret of the officers' API: cursors are sealed and aliases made under keys derived
// from it.
func (r *Records) OfficersKey(ctx context.Context) ([]byte, error) { return r.secret(ctx, "officers") }
