package auth

import (
	"context"
	"fmt"
)

// Termination ends all access of a workforce member (45 CFR 164.308(a)(3)(ii)(C)): tokens of now and of later, sessions, assigned roles,
// granted relationships, emergency access.
type Termination struct {
	Subject      string // Principal.Subject
	Practitioner string // id, where it is known; those that the subject's sessions named are taken as well
	Reason       string // a code or a ticket
	By           string

	Ended Ended
}

// Ended counts what a termination ended.
type Ended struct {
	Sessions      int // that could still be used
	Assignments   int // of roles, those that waited among them
	Relationships int // explicit grants; what records state stays, and lets nobody in any more
	Emergencies   int // grants of emergency access in force
}

// TerminationStorage carries a termination out, in one transaction. The revocations are part of it.
type TerminationStorage interface {
	Terminate(ctx context.Context, t Termination, revoke func(sessions []string) ([]Revocation, error)) (Ended, error)
}

// Terminate carries out a termination. It is in force here before it returns, on other instances within a second; an error says that
// nothing has happened, or that it is not known and may be asked for again. Somebody who is terminated a second time stays so.
func (r *Revocations) Terminate(ctx context.Context, storage TerminationStorage, t Termination) (Termination, error) {
	var list []Revocation
	ended, err := storage.Terminate(ctx, t, func(sessions []string) ([]Revocation, error) {
		list = make([]Revocation, 0, 1+len(sessions))
		subject, err := Revocation{Kind: RevokeSubject, ID: t.Subject, NotBefore: Never(), Reason: t.Reason, By: t.By}.complete(r.now())
		list = append(list, subject)
		for i := 0; i < len(sessions) && err == nil; i++ {
			var session Revocation
			session, err = Revocation{Kind: RevokeSession, ID: sessions[i], Reason: t.Reason, By: t.By}.complete(r.now())
			list = append(list, session)
		}
		return list, err
	})
	if err != nil {
		return t, fmt.Errorf("terminating: %w", err)
	}
	r.apply(list)
	t.Ended = ended
	return t, nil
}
