package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// register is a SessionStorage in memory that fails on command.
type register struct {
	mu    sync.Mutex
	fail  error
	uses  map[sessionKey]SessionUse
	saw   int // calls
	asked int
}

func (r *register) Saw(_ context.Context, instance string, uses []SessionUse) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.saw++
	for _, u := range uses {
		k := sessionKey{u.Session, u.Subject, u.Client}
		if old, ok := r.uses[k]; ok {
			if u.First = old.First; old.Last.After(u.Last) {
				u.Last = old.Last
			}
			u.Instances = old.Instances
		}
		if !slices.Contains(u.Instances, instance) {
			u.Instances = append(u.Instances, instance)
		}
		if r.uses == nil {
			r.uses = map[sessionKey]SessionUse{}
		}
		r.uses[k] = u
	}
	return nil
}

func (r *register) Use(_ context.Context, session, subject, client string) (SessionUse, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	u, ok := r.uses[sessionKey{session, subject, client}]
	return u, ok, r.fail
}

func (r *register) turn(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// office is an instance with limits of sessions on a storage that several may share.
type office struct {
	*Verifier
	is  *issuer
	clk *clock
}

func newOffice(t *testing.T, is *issuer, r *register, clk *clock, name string) office {
	t.Helper()
	cfg := is.config()
	cfg.Now = clk.now
	var err error
	if cfg.Sessions, err = NewSessions(SessionConfig{
		Storage: r, Instance: name, Now: clk.now,
		Limits: map[string]SessionLimit{AnyRole: {15 * time.Minute, 12 * time.Hour}, "backend": {}, "patient": {Idle: 30 * time.Minute}},
	}); err != nil {
		t.Fatal(err)
	}
	return office{newTestVerifier(t, cfg), is, clk}
}

// token is a fresh token of a session that began at a time.
func (o office) token(sid string, signedIn time.Time, claims map[string]any) string {
	now := o.clk.now().Unix()
	all := map[string]any{"sid": sid, "jti": fmt.Sprint(sid, "-", o.clk.now().UnixNano()), "auth_time": signedIn.Unix(), "iat": now, "exp": now + 600}
	for k, v := range claims {
		all[k] = v
	}
	return o.is.token(all)
}

// TestAutomaticLogoff is 45 CFR 164.312(a)(2)(iii): a session that nobody used for a quarter of an hour is over, also for a token that is
// cached and for one that its client has renewed, until somebody signs in again.
func TestAutomaticLogoff(t *testing.T) {
	is, r, clk := newIssuer(t), &register{}, &clock{}
	o := newOffice(t, is, r, clk, "one")
	signedIn := clk.now()
	answers := func(what string, token string, want bool) {
		t.Helper()
		_, err := ask(o.Verifier, token)
		if want && err != nil || !want && !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	first := o.token("s-1", signedIn, map[string]any{"exp": clk.now().Unix() + 7200})
	answers("at first", first, true)
	for range 10 { // in use
		clk.advance(14 * time.Minute)
		fetchNow(o.Verifier)
		answers("in use", o.token("s-1", signedIn, nil), true)
	}
	clk.advance(15 * time.Minute)
	fetchNow(o.Verifier)
	answers("idle", o.token("s-1", signedIn, nil), false)
	answers("idle, again", o.token("s-1", signedIn, nil), false)
	if got := o.sessions.Stats().Over; got != 2 {
		t.Errorf("%d refusals are counted", got)
	}
	answers("another session", o.token("s-2", signedIn, nil), true)
	answers("signed in again in the same session", o.token("s-1", clk.now(), nil), true)
	answers("and what was renewed before", o.token("s-1", signedIn, nil), true)

	// A cached token, warm up to the minute before.
	long := o.token("s-3", clk.now(), map[string]any{"exp": clk.now().Unix() + 7200})
	o.cacheFor = 2 * time.Hour
	answers("warm", long, true)
	clk.advance(14 * time.Minute)
	misses := o.misses.Load()
	answers("warm", long, true)
	if o.misses.Load() != misses {
		t.Fatal("not warm")
	}
	clk.advance(15*time.Minute + time.Second)
	answers("warm and idle", long, false)
}

// TestSessionLimits: which limit counts for whom, and that a session is too old however busy it is.
func TestSessionLimits(t *testing.T) {
	is, clk := newIssuer(t), &clock{}
	for _, c := range []struct {
		name  string
		roles []string
		step  time.Duration // between uses
		steps int
		fine  bool
	}{
		{"clinician in use", []string{"clinician"}, 10 * time.Minute, 12, true},
		{"clinician idle", []string{"clinician"}, 20 * time.Minute, 1, false},
		{"nobody idle", []string{}, 20 * time.Minute, 1, false},
		{"patient", []string{"patient"}, 20 * time.Minute, 5, true},
		{"patient idle", []string{"patient"}, 31 * time.Minute, 1, false},
		{"patient for days", []string{"patient"}, 29 * time.Minute, 60, true},
		{"patient who works here", []string{"patient", "clinician"}, 20 * time.Minute, 1, false},
		{"backend", []string{"backend"}, 48 * time.Hour, 2, true},
		{"backend with a person's role", []string{"backend", "nurse"}, 20 * time.Minute, 1, false},
		{"clinician for half a day", []string{"clinician"}, 14 * time.Minute, 52, false},
	} {
		o := newOffice(t, is, &register{}, clk, "one")
		signedIn := clk.now()
		claims := map[string]any{"roles": c.roles}
		fetchNow(o.Verifier)
		if _, err := ask(o.Verifier, o.token(c.name, signedIn, claims)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var err error
		for range c.steps {
			clk.advance(c.step)
			fetchNow(o.Verifier)
			_, err = ask(o.Verifier, o.token(c.name, signedIn, claims))
		}
		if c.fine && err != nil || !c.fine && !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// A token that does not say when its session began counts from its first use.
	o := newOffice(t, is, &register{}, clk, "one")
	for i := range 60 {
		fetchNow(o.Verifier)
		_, err := ask(o.Verifier, o.token("dateless", clk.now(), map[string]any{"auth_time": nil}))
		if over := i*14 >= 12*60; errors.Is(err, ErrToken) != over {
			t.Fatalf("after %d minutes: %v", i*14, err)
		}
		clk.advance(14 * time.Minute)
	}
	// A cached token does not outlive its session.
	o = newOffice(t, is, &register{}, clk, "one")
	o.cacheFor = time.Hour
	fetchNow(o.Verifier)
	signedIn := clk.now().Add(-12*time.Hour + 10*time.Minute)
	token := o.token("old", signedIn, map[string]any{"exp": clk.now().Unix() + 3600})
	for i, fine := range []bool{true, true, false} {
		if _, err := ask(o.Verifier, token); (err == nil) != fine {
			t.Errorf("%d minutes before its end: %v", 10-6*i, err)
		}
		clk.advance(6 * time.Minute)
	}
}

// TestSessionLimitsOfAssignedRoles: a role that was assigned has its limits as one that the token names.
func TestSessionLimitsOfAssignedRoles(t *testing.T) {
	f := newFacts()
	is, clk := newIssuer(t), &clock{}
	f.policy.Assignments = []Assignment{{Subject: "dr-chen", Role: "security", From: clk.now()}}
	a, err := NewAccess(t.Context(), AccessConfig{Storage: f, Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	cfg := is.config()
	cfg.Now = clk.now
	limits := map[string]SessionLimit{AnyRole: {Idle: time.Hour}, "security": {Idle: 5 * time.Minute}}
	if cfg.Sessions, err = NewSessions(SessionConfig{Storage: &register{}, Now: clk.now, Limits: limits, Roles: a.Roles}); err != nil {
		t.Fatal(err)
	}
	o := office{newTestVerifier(t, cfg), is, clk}
	for _, c := range []struct {
		subject string
		over    bool
	}{{"dr-chen", true}, {"dr-rivera", false}} {
		fetchNow(o.Verifier)
		signedIn, claims := clk.now(), map[string]any{"sub": c.subject, "roles": []string{}}
		if _, err := ask(o.Verifier, o.token(c.subject, signedIn, claims)); err != nil {
			t.Fatal(err)
		}
		clk.advance(6 * time.Minute)
		if _, err := ask(o.Verifier, o.token(c.subject, signedIn, claims)); errors.Is(err, ErrToken) != c.over {
			t.Errorf("%s after six minutes: %v", c.subject, err)
		}
	}
}

// TestSessionsAgree: what one instance knows of a session's use another goes by, within its accuracy, also one that starts later.
func TestSessionsAgree(t *testing.T) {
	is, r, clk := newIssuer(t), &register{}, &clock{}
	one, two := newOffice(t, is, r, clk, "one"), newOffice(t, is, r, clk, "two")
	signedIn := clk.now()
	both := []office{one, two}
	tell := func() {
		t.Helper()
		for _, o := range both {
			if err := o.sessions.tell(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, o := range both {
		if _, err := ask(o.Verifier, o.token("s-1", signedIn, nil)); err != nil {
			t.Fatal(err)
		}
	}
	for range 30 { // on one only
		clk.advance(time.Minute)
		fetchNow(one.Verifier)
		if _, err := ask(one.Verifier, one.token("s-1", signedIn, nil)); err != nil {
			t.Fatal(err)
		}
		tell()
	}
	fetchNow(two.Verifier)
	if _, err := ask(two.Verifier, two.token("s-1", signedIn, nil)); err != nil {
		t.Errorf("used elsewhere a minute ago: %v", err)
	}
	clk.advance(16 * time.Minute)
	three := newOffice(t, is, r, clk, "three")
	for i, o := range []office{one, two, three} {
		fetchNow(o.Verifier)
		if _, err := ask(o.Verifier, o.token("s-1", signedIn, nil)); !errors.Is(err, ErrToken) {
			t.Errorf("instance %d: %v", i+1, err)
		}
	}
	if u := r.uses[sessionKey{"s-1", "dr-rivera", "app"}]; len(u.Instances) != 2 || u.First.Sub(signedIn).Abs() > time.Second {
		t.Errorf("stored %+v", u)
	}
	// The storage is told at most once a minute of a session, and in one call of many.
	saw := r.saw
	for i := range 50 {
		clk.advance(time.Second)
		if _, err := ask(one.Verifier, one.token(fmt.Sprint("many-", i), clk.now(), nil)); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		tell()
	}
	if r.saw != saw+1 {
		t.Errorf("the storage was told %d times", r.saw-saw)
	}
}

// TestSessionsFailClosed: a session that is not known here, or seems idle, is not judged while the storage is away; one that is in use is.
func TestSessionsFailClosed(t *testing.T) {
	is, r, clk := newIssuer(t), &register{}, &clock{}
	o := newOffice(t, is, r, clk, "one")
	used := o.token("s-1", clk.now(), map[string]any{"exp": clk.now().Unix() + 7200})
	if _, err := ask(o.Verifier, used); err != nil {
		t.Fatal(err)
	}
	r.turn(errors.New("away"))
	if _, err := ask(o.Verifier, o.token("s-2", clk.now(), nil)); !errors.Is(err, ErrSessions) || errors.Is(err, ErrToken) {
		t.Errorf("a session that is new here: %v", err)
	}
	if _, err := ask(o.Verifier, o.token("service", clk.now(), map[string]any{"roles": []string{"backend"}})); err != nil {
		t.Errorf("a session without limits: %v", err)
	}
	clk.advance(10 * time.Minute)
	if _, err := ask(o.Verifier, used); err != nil {
		t.Errorf("a session in use: %v", err)
	}
	if err := o.sessions.tell(t.Context(), time.Minute); err == nil {
		t.Fatal("the storage is not away")
	}
	clk.advance(16 * time.Minute)
	if _, err := ask(o.Verifier, used); !errors.Is(err, ErrSessions) {
		t.Errorf("idle here, and perhaps not elsewhere: %v", err)
	}
	r.turn(nil)
	if _, err := ask(o.Verifier, used); !errors.Is(err, ErrToken) {
		t.Errorf("idle: %v", err)
	}
	asked := r.asked
	for range 100 {
		_, _ = ask(o.Verifier, used)
	}
	if r.asked > asked+1 {
		t.Errorf("a dead token made %d questions to the storage", r.asked-asked)
	}
	if err := o.sessions.tell(t.Context(), time.Minute); err != nil || len(r.uses) != 2 { // s-1 and the service
		t.Errorf("afterwards %d sessions are stored, %v", len(r.uses), err)
	}
}

// TestWatchingIsNoUse: what a connection asks for itself, again and again, keeps no session alive.
func TestWatchingIsNoUse(t *testing.T) {
	is, clk := newIssuer(t), &clock{}
	o := newOffice(t, is, &register{}, clk, "one")
	token := o.token("s-1", clk.now(), map[string]any{"exp": clk.now().Unix() + 7200})
	if _, err := ask(o.Verifier, token); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 16 {
		clk.advance(time.Minute)
		_, err = o.Authenticate(t.Context(), Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}, Proven: true})
	}
	if !errors.Is(err, ErrToken) {
		t.Errorf("after 16 minutes: %v", err)
	}
}

// TestSessionsAreBounded: memory does not grow with the sessions that there were.
func TestSessionsAreBounded(t *testing.T) {
	s, err := NewSessions(SessionConfig{Storage: &register{}})
	if err != nil {
		t.Fatal(err)
	}
	p := &Principal{Subject: "a", Client: "c", Issued: time.Now()}
	for i := range 100_000 {
		p.Session = fmt.Sprint(i)
		if _, _, _, err := s.admit(t.Context(), p, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if held := s.Stats().Held; held > 2*sessionShards*sessionsOfHalf {
		t.Errorf("%d are held", held)
	}
}

// TestSessionConfig refuses what cannot be meant.
func TestSessionConfig(t *testing.T) {
	for _, limits := range []map[string]SessionLimit{{"a": {Idle: -1}}, {"a": {Longest: -1}}, {"": {Idle: time.Hour}}} {
		if _, err := NewSessions(SessionConfig{Storage: &register{}, Limits: limits}); err == nil {
			t.Errorf("%v was taken", limits)
		}
	}
	if _, err := NewSessions(SessionConfig{}); err == nil {
		t.Error("no storage was taken")
	}
}

// TestWarmSessionAllocatesNothing: the limits of sessions are on the warm path.
func TestWarmSessionAllocatesNothing(t *testing.T) {
	is, clk := newIssuer(t), &clock{}
	o := newOffice(t, is, &register{}, clk, "one")
	headers := [][]byte{[]byte("Bearer " + o.token("s-1", clk.now(), nil))}
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := o.Authenticate(context.Background(), Credentials{Authorization: headers}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}
