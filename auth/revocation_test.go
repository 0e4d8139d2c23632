package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// revoke revokes for a test, with a reason and an author.
func revoke(t testing.TB, v *Verifier, r Revocation) {
	t.Helper()
	r.Reason, r.By = "test", "officer-1"
	if err := v.revoked.Revoke(context.Background(), r); err != nil {
		t.Error(err)
	}
}

// TestRevocation plays cases 43 (same node) and 45 on tokens that are hot, by whatever a revocation can name.
func TestRevocation(t *testing.T) {
	is := newIssuer(t)
	now := time.Now()
	p, err := ask(newTestVerifier(t, is.config()), is.token(nil))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		revoke Revocation
		dead   bool
	}{
		"token":                 {Revocation{Kind: RevokeToken, ID: p.TokenID}, true},
		"another token":         {Revocation{Kind: RevokeToken, ID: p.Session}, false},
		"session":               {Revocation{Kind: RevokeSession, ID: p.Session}, true},
		"another session":       {Revocation{Kind: RevokeSession, ID: p.TokenID}, false},
		"subject now":           {Revocation{Kind: RevokeSubject, ID: p.Subject}, true},
		"subject in the future": {Revocation{Kind: RevokeSubject, ID: p.Subject, NotBefore: now.Add(time.Hour)}, true},
		"subject for good":      {Revocation{Kind: RevokeSubject, ID: p.Subject, NotBefore: Never()}, true},
		"subject, token newer":  {Revocation{Kind: RevokeSubject, ID: p.Subject, NotBefore: now.Add(-time.Minute)}, false},
		"another subject":       {Revocation{Kind: RevokeSubject, ID: p.Client}, false},
		"client now":            {Revocation{Kind: RevokeClient, ID: p.Client}, true},
		"client, token newer":   {Revocation{Kind: RevokeClient, ID: p.Client, NotBefore: now.Add(-time.Minute)}, false},
		"another client":        {Revocation{Kind: RevokeClient, ID: p.Subject}, false},
		"key":                   {Revocation{Kind: RevokeKey, ID: p.KeyID}, true},
		"another key":           {Revocation{Kind: RevokeKey, ID: p.KeyID + "x"}, false},
		"all now":               {Revocation{Kind: RevokeAll}, true},
		"all, token newer":      {Revocation{Kind: RevokeAll, NotBefore: now.Add(-time.Minute)}, false},
		"nobody is reinstated":  {Revocation{Kind: Reinstate, ID: p.Subject}, false},
	} {
		v := newTestVerifier(t, is.config())
		token := is.token(map[string]any{"iat": now.Unix() - 1})
		if _, err := ask(v, token); err != nil {
			t.Fatal(err)
		}
		revoke(t, v, c.revoke)
		for _, hot := range []bool{true, false} {
			if !hot {
				v.cache = newTokenCache(cacheCapacity)
			}
			if _, err := ask(v, token); errors.Is(err, ErrToken) != c.dead {
				t.Errorf("%s, cached %v: got %v, want dead %v", name, hot, err, c.dead)
			}
		}
	}
}

// TestRevocationsOfNothing refuses what names nothing: it would be kept, and shown, and do nothing.
func TestRevocationsOfNothing(t *testing.T) {
	r, err := NewRevocations(t.Context(), RevocationConfig{})
	if err != nil {
		t.Fatal(err)
	}
	fine := Revocation{Kind: RevokeSubject, ID: "a", Reason: "test", By: "officer-1"}
	for name, change := range map[string]func(*Revocation){
		"unknown kind": func(r *Revocation) { r.Kind = "user" },
		"no kind":      func(r *Revocation) { r.Kind = "" },
		"no id":        func(r *Revocation) { r.ID = "" },
		"all and id":   func(r *Revocation) { r.Kind = RevokeAll },
		"unreadable":   func(r *Revocation) { r.ID = "a\n" },
		"no reason":    func(r *Revocation) { r.Reason = "" },
		"no author":    func(r *Revocation) { r.By = "" },
		"before time":  func(r *Revocation) { r.NotBefore = time.Unix(-1, 0) },
		"after time":   func(r *Revocation) { r.NotBefore = Never().Add(time.Second) },
	} {
		bad := fine
		change(&bad)
		if err := r.Revoke(t.Context(), fine, bad); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if held := r.Stats().Held; held != 0 {
		t.Errorf("%d revocations are held: of a list that is refused nothing counts", held)
	}
}

// TestRevocationsOnlyAddUp: whatever order they come in, however often, what was dead stays so, but for who is reinstated.
func TestRevocationsOnlyAddUp(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	rapid.Check(t, func(t *rapid.T) {
		kinds := []RevocationKind{RevokeToken, RevokeSession, RevokeSubject, RevokeClient, RevokeKey, RevokeAll}
		r, err := NewRevocations(context.Background(), RevocationConfig{Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		token := rapid.Custom(func(t *rapid.T) *Principal {
			id := func(name string) string { return rapid.SampledFrom([]string{"a", "b"}).Draw(t, name) }
			return &Principal{
				TokenID: id("jti"), Session: id("sid"), Subject: id("sub"), Client: id("client"), KeyID: id("kid"),
				Issued: now.Add(time.Duration(rapid.IntRange(-3, 3).Draw(t, "iat")) * time.Hour),
			}
		})
		tokens := rapid.SliceOfN(token, 1, 20).Draw(t, "tokens")
		var list []Revocation
		for range rapid.IntRange(1, 12).Draw(t, "revocations") {
			x := Revocation{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Reason: "test", By: "officer-1"}
			if x.Kind != RevokeAll {
				x.ID = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "id")
			}
			x.NotBefore = now.Add(time.Duration(rapid.IntRange(-3, 3).Draw(t, "not before")) * time.Hour)
			was := map[*Principal]bool{}
			for _, p := range tokens {
				was[p] = r.dead(p)
			}
			if err := r.Revoke(context.Background(), x); err != nil {
				t.Fatal(err)
			}
			list = append(list, x)
			for _, p := range tokens {
				want := was[p]
				switch x.Kind {
				case RevokeToken:
					want = want || p.TokenID == x.ID
				case RevokeSession:
					want = want || p.Session == x.ID
				case RevokeKey:
					want = want || p.KeyID == x.ID
				case RevokeSubject:
					want = want || p.Subject == x.ID && p.Issued.Before(x.NotBefore)
				case RevokeClient:
					want = want || p.Client == x.ID && p.Issued.Before(x.NotBefore)
				case RevokeAll:
					want = want || p.Issued.Before(x.NotBefore)
				}
				if r.dead(p) != want {
					t.Fatalf("%+v after %+v: dead %v", p, x, r.dead(p))
				}
			}
		}
		again, err := NewRevocations(context.Background(), RevocationConfig{Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Revoke(context.Background(), rapid.Permutation(slices.Concat(list, list)).Draw(t, "order")...); err != nil {
			t.Fatal(err)
		}
		for _, p := range tokens {
			if r.dead(p) != again.dead(p) {
				t.Fatalf("%+v: order matters", p)
			}
		}
	})
}

// TestTermination: who is out for good is out with tokens that are yet to be issued, until a reinstatement, and then with those that are
// issued after it.
func TestTermination(t *testing.T) {
	now := time.Now()
	r, err := NewRevocations(t.Context(), RevocationConfig{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	out := Revocation{Kind: RevokeSubject, ID: "a", NotBefore: Never(), Reason: "left", By: "admin"}
	if err := r.Revoke(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	old, later := &Principal{Subject: "a", Issued: now}, &Principal{Subject: "a", Issued: now.AddDate(10, 0, 0)}
	if !r.dead(old) || !r.dead(later) || r.dead(&Principal{Subject: "b", Issued: now}) {
		t.Error("a termination is not for good, or for somebody else too")
	}
	now = now.AddDate(1, 0, 0) // nothing of it is swept
	if err := r.Revoke(t.Context(), Revocation{Kind: RevokeToken, ID: "x", Reason: "test", By: "admin"}); err != nil || !r.dead(later) {
		t.Errorf("after a year: %v", err)
	}
	if err := r.Revoke(t.Context(), Revocation{Kind: Reinstate, ID: "a", Reason: "back", By: "admin"}); err != nil {
		t.Fatal(err)
	}
	if !r.dead(old) || r.dead(later) || !r.dead(&Principal{Subject: "a", Issued: now.Add(-time.Second)}) {
		t.Error("a reinstatement brings back tokens from before it, or none")
	}
}

// TestRevocationsAreForgotten: when no token can be alive that they are about, and not before.
func TestRevocationsAreForgotten(t *testing.T) {
	now := time.Now()
	r, err := NewRevocations(t.Context(), RevocationConfig{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	add := func(kind RevocationKind, id string, notBefore time.Time) {
		t.Helper()
		if err := r.Revoke(t.Context(), Revocation{Kind: kind, ID: id, NotBefore: notBefore, Reason: "test", By: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		add(RevokeToken, fmt.Sprint(i), time.Time{})
		add(RevokeSubject, fmt.Sprint(i), time.Time{})
		add(RevokeClient, fmt.Sprint(i), time.Time{})
		add(RevokeSession, fmt.Sprint(i), time.Time{})
	}
	add(RevokeKey, "k", time.Time{})
	add(RevokeSubject, "gone", Never())
	add(RevokeSubject, "soon", now.Add(30*24*time.Hour))
	start := now
	for _, x := range []struct {
		days, held int
	}{{7, 404}, {9, 105}, {37, 104}, {39, 104}, {89, 103}, {91, 4}} {
		now = start.AddDate(0, 0, x.days)
		add(RevokeToken, fmt.Sprint("after ", x.days), time.Time{})
		if held := r.Stats().Held; held != x.held {
			t.Errorf("after %d days %d are held, want %d", x.days, held, x.held)
		}
	}
	if !r.dead(&Principal{KeyID: "k", Issued: now}) || !r.dead(&Principal{Subject: "gone", Issued: now}) {
		t.Error("what is for ever was forgotten")
	}
	if r.dead(&Principal{TokenID: "1", Issued: now}) || r.dead(&Principal{Session: "1", Issued: now}) {
		t.Error("what is over is kept")
	}
}

// shelf is a storage of revocations in memory that fails on command.
type shelf struct {
	mu    sync.Mutex
	fail  error
	hang  atomic.Bool
	epoch int64
	list  []Revocation
	at    []int64
}

func (s *shelf) Revoke(_ context.Context, list ...Revocation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.epoch++
	for _, x := range list {
		s.list, s.at = append(s.list, x), append(s.at, s.epoch)
	}
	return nil
}

func (s *shelf) Revocations(ctx context.Context, after int64) (int64, []Revocation, error) {
	if s.hang.Load() {
		<-ctx.Done()
		return 0, nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return 0, nil, s.fail
	}
	i, _ := slices.BinarySearch(s.at, after+1)
	return s.epoch, slices.Clone(s.list[i:]), nil
}

func (s *shelf) turn(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// sharing makes the revocations of one more instance on a storage.
func sharing(t *testing.T, s *shelf, now func() time.Time) *Revocations {
	t.Helper()
	r, err := NewRevocations(t.Context(), RevocationConfig{Storage: s, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRevocationsAreShared is case 43, other node: what one instance revokes another knows after its next look, also one that starts then,
// and the notification has nothing to say about it.
func TestRevocationsAreShared(t *testing.T) {
	s := &shelf{}
	one, two := sharing(t, s, nil), sharing(t, s, nil)
	p := &Principal{Session: "s-1", Subject: "a", Issued: time.Now()}
	var told []Revocation
	two.OnRevoke(func(list []Revocation) { told = append(told, list...) })
	if err := one.Revoke(t.Context(), Revocation{Kind: RevokeSession, ID: "s-1", Reason: "test", By: "o"}); err != nil {
		t.Fatal(err)
	}
	if !one.dead(p) {
		t.Error("not dead where it was revoked")
	}
	for range 3 {
		if err := two.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !two.dead(p) || len(told) != 1 || told[0].ID != "s-1" {
		t.Errorf("on the other instance dead %v, told %v", two.dead(p), told)
	}
	if three := sharing(t, s, nil); !three.dead(p) || three.Stats().Held != 1 {
		t.Error("an instance that starts later does not know")
	}
	// What could not be stored is not in force anywhere.
	s.turn(errors.New("away"))
	if err := one.Revoke(t.Context(), Revocation{Kind: RevokeSubject, ID: "a", NotBefore: Never(), Reason: "test", By: "o"}); err == nil {
		t.Error("revoked without a storage")
	}
	s.turn(nil)
	if one.dead(&Principal{Subject: "a", Issued: time.Now()}) {
		t.Error("in force here and nowhere else")
	}
	// A database that was put back to an earlier time takes nothing back that is known here, and what comes then is known.
	s.mu.Lock()
	s.epoch, s.list, s.at = 0, nil, nil
	s.mu.Unlock()
	if err := two.poll(t.Context()); err != nil || !two.dead(p) {
		t.Errorf("a restored database brought a token back (%v)", err)
	}
	if err := one.Revoke(t.Context(), Revocation{Kind: RevokeClient, ID: "c", Reason: "test", By: "o"}); err != nil {
		t.Fatal(err)
	}
	if err := two.poll(t.Context()); err != nil || !two.dead(&Principal{Client: "c", Issued: time.Now().Add(-time.Minute)}) {
		t.Errorf("after a restore revocations are not followed (%v)", err)
	}
}

// TestLease: five seconds without word from the storage, and no token is judged, hot or cold, until it is back. The wall clock has no part
// in it.
func TestRevocationLease(t *testing.T) {
	is := newIssuer(t)
	clk := &clock{}
	s := &shelf{}
	cfg := is.config()
	cfg.Now = clk.now
	cfg.Revocations = sharing(t, s, clk.now)
	v := newTestVerifier(t, cfg)
	hot, cold := is.token(nil), is.token(map[string]any{"jti": "cold"})
	if _, err := ask(v, hot); err != nil {
		t.Fatal(err)
	}
	s.turn(errors.New("away"))
	both := func(want error) {
		t.Helper()
		if err := cfg.Revocations.poll(t.Context()); err == nil {
			t.Fatal("the storage is not away")
		}
		for _, token := range []string{hot, cold, "forged." + hot[10:]} {
			if _, err := ask(v, token); !errors.Is(err, want) && !(want == nil && token != hot && token != cold) {
				t.Errorf("%s after 5 s: %v, want %v", token[:6], err, want)
			}
		}
		if err := cfg.Revocations.Healthy(); !errors.Is(err, want) {
			t.Errorf("healthy %v, want %v", err, want)
		}
	}
	clk.advance(4900 * time.Millisecond)
	both(nil)
	clk.advance(200 * time.Millisecond)
	both(ErrRevocations)
	if errors.Is(ErrRevocations, ErrToken) {
		t.Error("would be 401")
	}
	s.turn(nil)
	if err := cfg.Revocations.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(v, hot); err != nil || cfg.Revocations.Healthy() != nil {
		t.Errorf("not at work again at once: %v", err)
	}
}

// TestLeaseIgnoresTheWallClock: with a real clock the lease is monotonic; a step of the wall clock neither ends nor prolongs it.
func TestLeaseIgnoresTheWallClock(t *testing.T) {
	r := sharing(t, &shelf{}, nil)
	now := time.Now()
	if !r.known(now.Add(4*time.Second)) || r.known(now.Add(6*time.Second)) {
		t.Error("the lease is not five seconds")
	}
	if now.Round(0) == now || r.start.Round(0) == r.start { //nolint:staticcheck // whether there is a monotonic reading
		t.Error("the lease goes by the wall clock")
	}
}

// TestRunFollows: with a storage that hangs Run goes on when it is back, and Wake makes it look at once.
func TestRunFollows(t *testing.T) {
	s := &shelf{}
	one, two := sharing(t, s, nil), sharing(t, s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = two.Run(ctx) })
	defer running.Wait()
	defer cancel()
	within := func(d time.Duration, id string) {
		t.Helper()
		if err := one.Revoke(t.Context(), Revocation{Kind: RevokeToken, ID: id, Reason: "test", By: "o"}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for !two.dead(&Principal{TokenID: id}) {
			if time.Since(start) > d {
				t.Fatalf("%s: not followed within %s", id, d)
			}
			time.Sleep(time.Millisecond)
		}
	}
	within(pollEvery+300*time.Millisecond, "polled")
	time.Sleep(50 * time.Millisecond)
	go two.Wake()
	within(pollEvery, "woken")
	s.hang.Store(true)
	time.Sleep(1200 * time.Millisecond)
	s.hang.Store(false)
	within(pollTimeout+pollEvery, "after a hang")
}

// TestRevokeJoinsNoFlight is the other half of case 44: a request that comes after a revocation does not share the answer of a
// verification that looked before it.
func TestRevokeJoinsNoFlight(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	fetchNow(v)
	token := []byte(is.token(nil))
	d := v.hasher.digest("", token)
	shard := &v.cache.shards[d[0]%cacheShards]
	shard.mu.Lock() // verification stops after it has looked at the revocations, before the entry is in the cache
	answers := make(chan error, 2)
	request := func() {
		_, err := v.authenticateCold(t.Context(), "", d, token)
		answers <- err
	}
	go request()
	time.Sleep(100 * time.Millisecond)
	revoke(t, v, Revocation{Kind: RevokeSession, ID: "s-1"})
	go request()
	time.Sleep(100 * time.Millisecond)
	shard.mu.Unlock()
	for range 2 {
		if err := <-answers; !errors.Is(err, ErrToken) {
			t.Errorf("got %v", err)
		}
	}
	if v.misses.Load() != 2 {
		t.Error("not the case that was meant")
	}
	if _, err := ask(v, string(token)); !errors.Is(err, ErrToken) {
		t.Errorf("afterwards: %v", err)
	}
}

// TestManyRevocations: ten thousand are taken over at start in no time, and judging a token takes as long as without them.
func TestManyRevocations(t *testing.T) {
	s := &shelf{}
	for i := range 10_000 {
		kind := []RevocationKind{RevokeToken, RevokeSession, RevokeSubject, RevokeClient}[i%4]
		x, err := Revocation{Kind: kind, ID: fmt.Sprint("id-", i), Reason: "test", By: "o"}.complete(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Revoke(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	r := sharing(t, s, nil)
	if took := time.Since(began); took > time.Second || r.Stats().Held != 10_000 {
		t.Errorf("%d were taken over in %s", r.Stats().Held, took)
	}
	p := &Principal{TokenID: "t", Session: "s", Subject: "u", Client: "c", KeyID: "k", Issued: time.Now()}
	if n := testing.AllocsPerRun(100, func() { r.dead(p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRevokeWhileVerifying races requests against revocations: after Revoke has returned no request that starts is let through.
func TestRevokeWhileVerifying(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	var all sync.WaitGroup
	for i := range 16 {
		sid := fmt.Sprint("s-", i)
		token := is.token(map[string]any{"jti": fmt.Sprint("t-", i), "sid": sid})
		var dead atomic.Bool
		for range 4 {
			all.Go(func() {
				for range 60 {
					was := dead.Load()
					if _, err := ask(v, token); err == nil && was {
						t.Errorf("%s answered after it was revoked", sid)
					}
				}
			})
		}
		all.Go(func() {
			time.Sleep(time.Duration(i) * 200 * time.Microsecond)
			revoke(t, v, Revocation{Kind: RevokeSession, ID: sid})
			dead.Store(true)
		})
	}
	all.Wait()
}

func BenchmarkRevoked(b *testing.B) {
	r, err := NewRevocations(b.Context(), RevocationConfig{})
	if err != nil {
		b.Fatal(err)
	}
	for i := range 10_000 {
		if err := r.Revoke(b.Context(), Revocation{Kind: RevokeSession, ID: fmt.Sprint("id-", i), Reason: "test", By: "o"}); err != nil {
			b.Fatal(err)
		}
	}
	p := &Principal{TokenID: "t", Session: "s", Subject: "u", Client: "c", KeyID: "k", Issued: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		r.dead(p)
	}
}
