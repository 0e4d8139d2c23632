package rest

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Sessions is what is kept of sessions and revocations. What ends access is done by auth.Revocations, so that it is in force here at
// once. All calls may be made from many goroutines.
type Sessions interface {
	auth.TerminationStorage
	// List returns sessions, newest first.
	List(ctx context.Context, q auth.SessionQuery) ([]auth.SessionUse, error)
	// Revoked lists revocations in force, newest first.
	Revoked(ctx context.Context, limit int) ([]auth.Revocation, error)
}

// maximalSessions bounds what of a subject is ended one by one, and a list.
const maximalSessions = 500

// Types of the entities of events about what was revoked.
const (
	entityRevocation = "Revocation"
	entitySubject    = "Subject"
)

type sessionJSON struct {
	ID         string    `json:"id"`
	Subject    string    `json:"subject"`
	Client     string    `json:"client"`
	FHIRUser   string    `json:"fhir_user,omitzero"`
	Network    string    `json:"network,omitzero"` // from which it was used first
	ACR        string    `json:"acr,omitzero"`     // of the sign-in
	SignedInAt time.Time `json:"signed_in_at,omitzero"`
	FirstUse   time.Time `json:"first_use"`
	LastUse    time.Time `json:"last_use"` // to a minute or so
	ExpiresAt  time.Time `json:"expires_at"`
	Instances  []string  `json:"instances"` // that have seen it
	Current    bool      `json:"current"`   // it is the one that asks
}

// sessionList lists those who are signed in, to those who may see it, and to everybody his own.
func (c *call) sessionList() error {
	if c.s.cfg.Sessions == nil {
		return notConfigured()
	}
	asked, err := c.parameters("subject", "over", "before", "limit")
	if err != nil {
		return err
	}
	q := auth.SessionQuery{Subject: asked["subject"], Over: asked["over"] == "true", Limit: 100}
	if o := asked["over"]; o != "" && o != "true" && o != "false" {
		return faulty(&fault{text: "true or false", parameter: "over", position: -1, allowed: []string{"true", "false"}})
	}
	if text := asked["limit"]; text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 || q.Limit > maximalSessions {
			return faulty(&fault{text: "a number from 1 to 500", parameter: "limit", position: -1})
		}
	}
	if text := asked["before"]; text != "" {
		if q.Before, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return faulty(&fault{text: "the next of a page before", parameter: "before", position: -1})
		}
	}
	if c.own {
		q.Subject = c.principal.Subject
	}
	list, err := c.s.cfg.Sessions.List(c.ctx, q)
	if err != nil {
		return unavailable(err)
	}
	if err := c.lookedAt(audit.TypeAuthentication, q.Subject); err != nil {
		return err
	}
	out := struct {
		Sessions []sessionJSON `json:"sessions"`
		Next     time.Time     `json:"next,omitzero"` // before of the next page
	}{Sessions: []sessionJSON{}}
	for _, u := range list {
		out.Sessions = append(out.Sessions, sessionJSON{
			u.Session, u.Subject, u.Client, u.FHIRUser, u.Network, u.ACR, u.AuthTime, u.First, u.Last, u.Expires, append([]string{}, u.Instances...),
			u.Session == c.principal.Session && u.Subject == c.principal.Subject,
		})
	}
	if len(list) == q.Limit {
		out.Next = list[q.Limit-1].First
	}
	return c.sendJSON(http.StatusOK, out)
}

// lookedAt records that somebody looked at the sessions of a subject, "" for all.
func (c *call) lookedAt(t audit.Type, subject string) error {
	e := c.adminEvent(t)
	if subject != "" {
		e.Entities = []audit.Entity{{Type: entitySubject, ID: subject}}
	}
	_, err := c.record(c.s.cfg.Level.Other, e)
	return err
}

// pathText is an identifier of an issuer's in the path, percent-encoded.
func (c *call) pathText(name string) (string, error) {
	text, err := url.PathUnescape(c.http.Params(name))
	if err != nil || !auth.ValidSubject(text) {
		return "", notFound()
	}
	return strings.Clone(text), nil
}

// endSession ends one session: by those who may, and by everybody his own.
func (c *call) endSession() error {
	if c.s.cfg.Sessions == nil || c.s.cfg.Revocations == nil {
		return notConfigured()
	}
	id, err := c.pathText("id")
	if err != nil {
		return err
	}
	what := auth.Revocation{Kind: auth.RevokeSession, ID: id, Reason: "ended by an administrator", By: c.principal.Subject}
	if c.own {
		what.Reason = "signed out"
		if id != c.principal.Session {
			list, err := c.s.cfg.Sessions.List(c.ctx, auth.SessionQuery{Session: id, Subject: c.principal.Subject, Over: true, Limit: 1})
			if err != nil {
				return unavailable(err)
			}
			if len(list) == 0 { // somebody else's, or nobody's
				return c.others()
			}
		}
	}
	if err := c.revoke(audit.TypeAuthentication, what); err != nil {
		return err
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

// revoke puts revocations into force between an event of the intent and one of the outcome.
func (c *call) revoke(t audit.Type, list ...auth.Revocation) error {
	entities := make([]audit.Entity, 0, len(list))
	for _, r := range list[:min(len(list), 20)] {
		entities = append(entities, audit.Entity{Type: entityRevocation, ID: strings.TrimSuffix(string(r.Kind)+"/"+r.ID, "/")})
	}
	return c.changeAs(t, entities, func() ([]string, error) {
		return []string{"reason " + list[0].Reason}, c.s.cfg.Revocations.Revoke(c.ctx, list...)
	})
}

type revocationJSON struct {
	Kind      string    `json:"kind"`
	ID        string    `json:"id,omitzero"` // none of kind all
	NotBefore time.Time `json:"not_before"`  // of a subject, a client and all: tokens issued before are dead
	Reason    string    `json:"reason"`
	By        string    `json:"by"`
	At        time.Time `json:"at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // no token that it is about lives longer; missing: it is for good
}

// revocationList lists what is revoked.
func (c *call) revocationList() error {
	if c.s.cfg.Sessions == nil {
		return notConfigured()
	}
	asked, err := c.parameters("limit")
	if err != nil {
		return err
	}
	limit := 100
	if text := asked["limit"]; text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maximalSessions {
			return faulty(&fault{text: "a number from 1 to 500", parameter: "limit", position: -1})
		}
	}
	list, err := c.s.cfg.Sessions.Revoked(c.ctx, limit+1)
	if err != nil {
		return unavailable(err)
	}
	if err := c.lookedAt(audit.TypePolicy, ""); err != nil {
		return err
	}
	out := struct {
		Revocations []revocationJSON `json:"revocations"`
		More        bool             `json:"more"` // there are more than are listed
	}{Revocations: []revocationJSON{}, More: len(list) > limit}
	for _, r := range list[:min(limit, len(list))] {
		out.Revocations = append(out.Revocations, revocationJSON{string(r.Kind), r.ID, r.NotBefore, r.Reason, r.By, r.At, r.Expires})
	}
	return c.sendJSON(http.StatusOK, out)
}

// revocationKinds are those that may be asked for: what else there is has a path of its own.
func revocationKinds() []string {
	return []string{
		string(auth.RevokeToken), string(auth.RevokeSession), string(auth.RevokeSubject), string(auth.RevokeClient), string(auth.RevokeKey), string(auth.RevokeAll),
	}
}

// postRevocation revokes tokens by what they have in common. With a subject's tokens of until now go the sessions that are known of it:
// they do not depend on whose clock is right.
func (c *call) postRevocation() error {
	if c.s.cfg.Sessions == nil || c.s.cfg.Revocations == nil {
		return notConfigured()
	}
	var asked struct {
		Kind      string    `json:"kind"`
		ID        string    `json:"id,omitzero"`
		NotBefore time.Time `json:"not_before,omitzero"` // now, when it is not said
		Reason    string    `json:"reason"`
	}
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	reason, err := reasonOf(asked.Reason)
	kind := auth.RevocationKind(asked.Kind)
	switch {
	case !slices.Contains(revocationKinds(), asked.Kind):
		return unprocessable("/kind", "there is no such kind", revocationKinds()...)
	case (asked.ID == "") != (kind == auth.RevokeAll):
		return unprocessable("/id", "what to revoke, and nothing for all")
	case asked.ID != "" && !auth.ValidSubject(asked.ID):
		return unprocessable("/id", "printable, and of at most 400 bytes")
	case asked.NotBefore.After(time.Now().AddDate(1, 0, 0)) || !asked.NotBefore.IsZero() && asked.NotBefore.Year() < 1970:
		return unprocessable("/not_before", "a time, within a year from now at most; to end somebody's access for good there is /v1/workforce")
	case err != nil:
		return err
	}
	list := []auth.Revocation{{Kind: kind, ID: asked.ID, NotBefore: asked.NotBefore, Reason: reason, By: c.principal.Subject}}
	if kind == auth.RevokeSubject && asked.NotBefore.IsZero() {
		known, err := c.s.cfg.Sessions.List(c.ctx, auth.SessionQuery{Subject: asked.ID, Limit: maximalSessions})
		if err != nil {
			return unavailable(err)
		}
		for _, u := range known {
			list = append(list, auth.Revocation{Kind: auth.RevokeSession, ID: u.Session, Reason: reason, By: c.principal.Subject})
		}
	}
	if err := c.revoke(audit.TypePolicy, list...); err != nil {
		return err
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

type endedJSON struct {
	Subject       string `json:"subject"`
	Sessions      int    `json:"sessions"`
	Assignments   int    `json:"assignments"`
	Relationships int    `json:"relationships"`
	Emergencies   int    `json:"emergency_access"`
}

// terminate ends all access of a workforce member (45 CFR 164.308(a)(3)(ii)(C)). Only a role that is assigned to him later brings him back.
func (c *call) terminate() error {
	subject, err := c.pathText("subject")
	if err != nil {
		return err
	}
	var asked struct {
		Reason       string `json:"reason"`
		Practitioner string `json:"practitioner,omitzero"` // id, when no session has named it
	}
	if err := c.policyBody(&asked); err != nil {
		return err
	}
	reason, err := reasonOf(asked.Reason)
	if err != nil {
		return err
	}
	if asked.Practitioner != "" && !fhir.ValidID(asked.Practitioner) {
		return unprocessable("/practitioner", "an id")
	}
	ended, err := c.termination(auth.Termination{Subject: subject, Practitioner: asked.Practitioner, Reason: reason, By: c.principal.Subject})
	if err != nil {
		return err
	}
	return c.sendJSON(http.StatusOK, endedJSON{subject, ended.Sessions, ended.Assignments, ended.Relationships, ended.Emergencies})
}

// termination carries one out; its outcome is one event that says what ended.
func (c *call) termination(t auth.Termination) (auth.Ended, error) {
	if c.s.cfg.Sessions == nil || c.s.cfg.Revocations == nil {
		return auth.Ended{}, notConfigured()
	}
	if t.Subject == c.principal.Subject {
		return auth.Ended{}, &refusal{status: http.StatusConflict, code: "conflict", text: "another person has to do that"}
	}
	err := c.changeAs(audit.TypePolicy, []audit.Entity{{Type: entitySubject, ID: t.Subject}}, func() ([]string, error) {
		var err error
		if t, err = c.s.cfg.Revocations.Terminate(c.ctx, c.s.cfg.Sessions, t); err != nil {
			return []string{"reason " + t.Reason}, err
		}
		count := func(n int, of string) string { return strconv.Itoa(n) + " " + of }
		return []string{
			"reason " + t.Reason, count(t.Ended.Sessions, "sessions"), count(t.Ended.Assignments, "assignments"),
			count(t.Ended.Relationships, "relationships"), count(t.Ended.Emergencies, "emergency access"),
		}, nil
	})
	return t.Ended, err
}

// mediaSCIM is RFC 7644 section 3.1.
const mediaSCIM = "application/scim+json"

// patchUser is as much of SCIM 2.0 as an identity provider needs to take somebody's access away when he leaves (RFC 7644 section 3.5.2):
// active becomes false. Users are not kept here, so nothing else can be changed, and nobody is made active.
func (c *call) patchUser() error {
	subject, err := c.pathText("id")
	if err != nil {
		return err
	}
	if err := c.media(mediaSCIM, mediaJSON); err != nil {
		return err
	}
	var asked struct {
		Schemas    []string `json:"schemas"`
		Operations []struct {
			Op    string `json:"op"`
			Path  string `json:"path"`
			Value any    `json:"value"`
		} `json:"Operations"`
	}
	if err := json.Unmarshal(c.http.Request().Body(), &asked, json.RejectUnknownMembers(true)); err != nil ||
		!slices.Contains(asked.Schemas, "urn:ietf:params:scim:api:messages:2.0:PatchOp") {
		return invalid("the body is not a PatchOp")
	}
	if len(asked.Operations) != 1 || !strings.EqualFold(asked.Operations[0].Op, "replace") || !deactivates(asked.Operations[0].Path, asked.Operations[0].Value) {
		return &refusal{status: http.StatusUnprocessableEntity, code: "not-supported", text: "all that can be done here is to replace active with false"}
	}
	if _, err := c.termination(auth.Termination{Subject: subject, Reason: "deactivated by SCIM", By: c.principal.Subject}); err != nil {
		return err
	}
	c.http.Response().SetStatusCode(http.StatusNoContent)
	return nil
}

// deactivates reports whether a value for a path says that a user is not active. Some providers write "False".
func deactivates(path string, value any) bool {
	if members, ok := value.(map[string]any); ok && path == "" && len(members) == 1 {
		value, path = members["active"], "active"
	}
	text, _ := value.(string)
	return path == "active" && (value == false || strings.EqualFold(text, "false"))
}

// backchannelLogout takes an issuer's word that a session, or all of a subject's, is over (OpenID Connect Back-Channel Logout 1.0, sections
// 2.5 to 2.8). The request needs no token but the one that is its content.
func (c *call) backchannelLogout() error {
	if c.s.cfg.Revocations == nil {
		return notConfigured()
	}
	form, err := c.form()
	if err != nil {
		return err
	}
	if form.Len() != 1 || !form.Has("logout_token") {
		return &refusal{status: http.StatusBadRequest, code: "invalid", text: "the form has one logout_token", kind: audit.TypeAuthentication}
	}
	token := bytes.Clone(form.Peek("logout_token"))
	if err := c.bearable(auth.Credentials{}); err != nil {
		return err
	}
	err = c.s.cfg.Verifier.Logout(c.ctx, token, func(l *auth.Logout) error {
		c.principal = &auth.Principal{Client: l.Issuer, Issuer: l.Issuer} // who asks
		c.granted = auth.Decision{Allowed: true, Rule: "logout-token", Reason: auth.ReasonAllowed}
		return c.revoke(audit.TypeAuthentication, l.Revocation())
	})
	var refused *refusal
	switch {
	case err == nil:
		c.http.Response().SetStatusCode(http.StatusOK)
		return nil
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, auth.ErrToken), errors.Is(err, auth.ErrRequest):
		if over := c.failed(err); over != nil {
			return over
		}
		return &refusal{status: http.StatusBadRequest, code: "invalid", text: "the logout token is refused", kind: audit.TypeAuthentication, cause: err}
	default:
		return unavailable(err)
	}
}
