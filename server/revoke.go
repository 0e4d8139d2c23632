package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
)

// revokeVerb revokes tokens when the API is away, or when nobody can sign in to it any more.
type revokeVerb struct {
	deployment `embed:""`
	Kind       string    `arg:"" optional:"" help:"What ID names: token (jti), session, subject, client, key (kid) or all. list shows what is revoked." enum:",token,session,subject,client,key,all,list" default:""`
	ID         string    `arg:"" optional:"" help:"Whose tokens; NAME|ID of an issuer that has a name. None with all."`
	NotBefore  time.Time `help:"Of a subject, a client and all: tokens issued before this are dead; now when empty (RFC 3339)." placeholder:"TIME" format:"2006-01-02T15:04:05Z07:00"`
	ForGood    bool      `help:"End all access of a workforce member: tokens of now and of later, sessions, roles, relationships, emergency access. With subject."`
	Reason     string    `help:"Why, e.g. a ticket. It must not describe a patient." placeholder:"TEXT"`
	By         string    `help:"Who does it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*revokeVerb) Help() string {
	return `In force within a second on every instance that reaches the database; one that does not stops judging tokens within five. Both the intent and the outcome are
in the trail. Nothing takes a revocation back; who was revoked for good is back when a role is assigned to him (chartkeep policy assign).
Example: chartkeep revoke session Q2M5… --reason "lost phone" --by "Sam Amari"
Example: chartkeep revoke subject dr-chen --for-good --reason "left, HR-2211" --by "Sam Amari"
Example: chartkeep revoke all --reason "signing key leaked" --by "Sam Amari"`
}

// Run revokes, or lists.
func (v *revokeVerb) Run(ctx context.Context, t terminal) error {
	kind := auth.RevocationKind(v.Kind)
	switch {
	case v.Kind == "":
		return usage("name what to revoke: token, session, subject, client, key or all; or list")
	case v.Kind == "list":
		return v.onRooms(ctx, t, func(r *rooms, _ *settings) error { return listRevocations(ctx, t, r) })
	case (v.ID == "") != (kind == auth.RevokeAll):
		return usage("%s: give one id, and none with all", v.Kind)
	case strings.TrimSpace(v.Reason) == "" || len(v.Reason) > 500:
		return usage("--reason must be a text of at most 500 bytes")
	case v.ForGood && (kind != auth.RevokeSubject || !v.NotBefore.IsZero()):
		return usage("--for-good goes with subject, and without --not-before")
	}
	by, reason := operator(v.By), strings.TrimSpace(v.Reason)
	return v.onRooms(ctx, t, func(r *rooms, _ *settings) error {
		detail, err := json.Marshal([]string{"reason " + reason})
		if err != nil {
			return err
		}
		e := audit.Event{Type: audit.TypePolicy, Interaction: "revoke", Action: audit.ActionCreate, Detail: detail}
		if v.ForGood {
			e.Interaction, e.Action = "workforce-terminate", audit.ActionDelete
			e.Entities = []audit.Entity{{Type: "Subject", ID: v.ID}}
			done := auth.Termination{Subject: v.ID, Reason: reason, By: by}
			if err := r.change(ctx, by, e, func() (err error) {
				done, err = r.revoked.Terminate(ctx, r.db.Sessions(), done)
				return err
			}); err != nil {
				return err
			}
			_, err := fmt.Fprintf(t.out, "ended: %d sessions, %d roles, %d relationships, %d emergency access\n",
				done.Ended.Sessions, done.Ended.Assignments, done.Ended.Relationships, done.Ended.Emergencies)
			return err
		}
		e.Entities = []audit.Entity{{Type: "Revocation", ID: strings.TrimSuffix(v.Kind+"/"+v.ID, "/")}}
		if err := r.change(ctx, by, e, func() error {
			return r.revoked.Revoke(ctx, auth.Revocation{Kind: kind, ID: v.ID, NotBefore: v.NotBefore, Reason: reason, By: by})
		}); err != nil {
			return err
		}
		_, err = fmt.Fprintln(t.out, "revoked")
		return err
	})
}

func listRevocations(ctx context.Context, t terminal, r *rooms) error {
	list, err := r.db.Sessions().Revoked(ctx, 500)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tID\tISSUED BEFORE\tAT\tBY\tREASON")
	for _, x := range list {
		before := "any time"
		switch x.Kind {
		case auth.RevokeSubject, auth.RevokeClient, auth.RevokeAll:
			if before = x.NotBefore.Format(time.RFC3339); x.NotBefore.Equal(auth.Never()) {
				before = "for good"
			}
		case auth.Reinstate:
			before = "counts again from " + x.NotBefore.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", x.Kind, x.ID, before, x.At.Format(time.RFC3339), x.By, x.Reason)
	}
	return w.Flush()
}
