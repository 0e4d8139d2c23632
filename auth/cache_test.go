package auth

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestWarmTokenEnds(t *testing.T) {
	is := newIssuer(t)
	clk := &clock{}
	cfg := is.config()
	cfg.Now = clk.now
	v := newTestVerifier(t, cfg)
	now := clk.now().Unix()
	short := is.token(map[string]any{"iat": now - 20, "exp": now + 5, "jti": "short"})
	long := is.token(map[string]any{"jti": "long"})
	for range 3 {
		for _, token := range []string{short, long} {
			if _, err := ask(v, token); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := v.Stats(); got.Hits != 4 || got.Misses != 2 {
		t.Fatalf("stats %+v, want 4 hits and 2 misses", got)
	}
	clk.advance(36 * time.Second) // past exp and leeway, within the time to cache
	if _, err := ask(v, short); !errors.Is(err, ErrToken) {
		t.Errorf("expired while cached: %v", err)
	}
	if _, err := ask(v, long); err != nil || v.Stats().Misses != 3 {
		t.Errorf("still cached: %v, stats %+v", err, v.Stats())
	}
	clk.advance(30 * time.Second)
	if _, err := ask(v, long); err != nil || v.Stats().Misses != 4 {
		t.Errorf("after the time to cache it is verified again: %v, stats %+v", err, v.Stats())
	}
	clk.advance(-10 * time.Minute) // case 50: nothing cached counts before it was verified
	if _, err := ask(v, long); !errors.Is(err, ErrToken) {
		t.Errorf("clock stepped back before iat: %v", err)
	}
}

// TestRevokeDuringVerify is case 44: the revocation lands after the signature was checked, before the entry is there.
func TestRevokeDuringVerify(t *testing.T) {
	is := newIssuer(t)
	var v *Verifier
	var calls atomic.Int64
	cfg := is.config()
	cfg.Now = func() time.Time {
		if calls.Add(1) == 3 { // the first is for the cache, the second for the keys, the third for the claims
			revoke(t, v, Revocation{Kind: RevokeSession, ID: "s-1"})
		}
		return time.Now()
	}
	v = newTestVerifier(t, cfg)
	calls.Store(3)
	fetchNow(v)
	calls.Store(0)
	before := v.revoked.epoch.Load()
	token := is.token(nil)
	for range 2 {
		if _, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Errorf("got %v, want ErrToken", err)
		}
	}
	if v.revoked.epoch.Load() != before+1 {
		t.Error("the revocation did not happen")
	}
}

// TestKeyWithdrawnDuringVerify is the same for a key that its issuer withdraws in that moment.
func TestKeyWithdrawnDuringVerify(t *testing.T) {
	is := newIssuer(t)
	is.addEC("next")
	var v *Verifier
	var calls atomic.Int64
	armed := atomic.Bool{}
	cfg := is.config()
	cfg.Now = func() time.Time {
		if armed.Load() && calls.Add(1) == 3 { // see above
			armed.Store(false)
			is.remove("es")
			fetchNow(v)
		}
		return time.Now()
	}
	v = newTestVerifier(t, cfg)
	fetchNow(v)
	armed.Store(true)
	token := is.token(nil)
	for range 2 {
		if _, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Errorf("got %v, want ErrToken", err)
		}
	}
	if armed.Load() {
		t.Error("the key was not withdrawn")
	}
}

// TestRevokeWhileWaiting is the same for a request that waits for the verification of another, which has looked before the revocation
// came: whoever comes after it is refused.
func TestRevokeWhileWaiting(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	token := is.token(nil)
	d := v.hasher.digest("", []byte(token))
	looked, release := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		_, _, _ = v.flights.Do(string(d[:]), func() (any, error) {
			e, err := v.verify(t.Context(), "", d, []byte(token))
			v.cache.drop(e) // as a full cache may
			close(looked)
			<-release
			return e, err
		})
	})
	<-looked
	revoke(t, v, Revocation{Kind: RevokeSession, ID: "s-1"})
	all.Go(func() {
		if _, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Errorf("got %v, want ErrToken", err)
		}
	})
	for v.Stats().Misses == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond)
	close(release)
	all.Wait()
}

// TestOverload holds that a flood of tokens to verify is refused at its edge, and that warm tokens do not notice it.
func TestOverload(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	warm := is.token(nil)
	if _, err := ask(v, warm); err != nil {
		t.Fatal(err)
	}
	for range cap(v.cores) {
		v.cores <- struct{}{} // every core is busy
	}
	var waiting sync.WaitGroup
	room := maxQueue + cap(v.cores)
	for i := range room {
		token := is.token(map[string]any{"jti": fmt.Sprint("flood-", i)})
		waiting.Go(func() {
			if _, err := ask(v, token); err != nil {
				t.Errorf("queued: %v", err)
			}
		})
	}
	for v.queued.Load() < int64(room) {
		time.Sleep(time.Millisecond)
	}
	if _, err := ask(v, is.token(map[string]any{"jti": "one more"})); !errors.Is(err, ErrOverload) {
		t.Errorf("beyond the queue: %v, want ErrOverload", err)
	}
	if _, err := ask(v, warm); err != nil {
		t.Errorf("warm token: %v", err)
	}
	for range cap(v.cores) {
		<-v.cores
	}
	waiting.Wait()
	if v.queued.Load() != 0 {
		t.Errorf("%d left in the queue", v.queued.Load())
	}
}

func TestTokenCacheIsBounded(t *testing.T) {
	c := newTokenCache(4 * cacheShards)
	entry := func(i int) *verified {
		d := digest{byte(i % cacheShards), byte(i), byte(i >> 8)}
		return &verified{digest: d, until: int64(i)}
	}
	hot := entry(0)
	c.put(hot)
	for i := 1; i < 5000; i++ {
		c.put(entry(i))
		if c.get(hot.digest) != hot {
			t.Fatalf("a hot entry was evicted after %d others", i)
		}
	}
	held := 0
	for i := range c.shards {
		if len(c.shards[i].ring) != len(c.shards[i].index) {
			t.Fatal("index and ring differ")
		}
		held += len(c.shards[i].ring)
	}
	if held != 4*cacheShards {
		t.Errorf("%d entries, want %d", held, 4*cacheShards)
	}
	c.sweep(time.Unix(0, 4990))
	for i := range 5000 {
		e := c.get(entry(i).digest)
		if i <= 4990 && e != nil {
			t.Errorf("entry %d outlived its time", i)
		}
		if e != nil && e.until != int64(i) {
			t.Errorf("entry %d is entry %d", i, e.until)
		}
	}
	if c.get(entry(4999).digest) == nil {
		t.Error("a living entry was swept")
	}
}

func TestManyAtOnce(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	tokens := []string{}
	for i := range 8 {
		tokens = append(tokens, is.token(map[string]any{"sub": fmt.Sprint("user-", i), "sid": fmt.Sprint("s-", i), "jti": fmt.Sprint("t-", i)}))
	}
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 100 {
				n := (g + i) % len(tokens)
				p, err := ask(v, tokens[n])
				if err == nil && p.Subject != fmt.Sprint("user-", n) {
					t.Errorf("token %d is %s", n, p.Subject)
				}
				if err != nil && n != 0 {
					t.Errorf("token %d: %v", n, err)
				}
				if i == 50 && g == 0 {
					revoke(t, v, Revocation{Kind: RevokeSession, ID: "s-0"})
					fetchNow(v)
				}
			}
		})
	}
	all.Wait()
	if _, err := ask(v, tokens[0]); !errors.Is(err, ErrToken) {
		t.Errorf("revoked token: %v", err)
	}
}

func TestWarmTokenAllocatesNothing(t *testing.T) {
	is := newIssuer(t)
	v := newTestVerifier(t, is.config())
	headers := [][]byte{[]byte("Bearer " + is.token(nil))}
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := v.Authenticate(ctx, Credentials{Authorization: headers}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}
