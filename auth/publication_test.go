package auth

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// newsstand is a PublicationStorage in memory.
type newsstand struct {
	mu   sync.Mutex
	held map[string]Publication
	fail error
}

func (s *newsstand) Publish(_ context.Context, issuer string, kind PublicationKind, p Publication) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = map[string]Publication{}
	}
	if key := issuer + " " + string(kind); s.held[key].At.Before(p.At) && s.fail == nil {
		p.Body = slices.Clone(p.Body)
		s.held[key] = p
	}
	return s.fail
}

func (s *newsstand) Published(_ context.Context, issuer string, kind PublicationKind) (Publication, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[issuer+" "+string(kind)], s.fail
}

func (s *newsstand) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

func publications(t *testing.T, s PublicationStorage, secret string) *Publications {
	t.Helper()
	p, err := NewPublications(s, []byte(strings.Repeat(secret, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRestartDuringAnOutage holds that keys survive a restart, and that what was kept is bound by the same limit, the same filter and the
// secret of the deployment (cold start, IdP down).
func TestRestartDuringAnOutage(t *testing.T) {
	is, kept, clk := newIssuer(t), &newsstand{}, &clock{}
	down := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	start := func(secret string, change func(*VerifierConfig)) *Verifier {
		cfg := is.config()
		cfg.Now, cfg.Publications = clk.now, publications(t, kept, secret)
		if change != nil {
			change(&cfg)
		}
		return newTestVerifier(t, cfg)
	}
	fresh := func(v *Verifier) string {
		now := clk.now().Unix()
		return is.token(map[string]any{"iss": v.issuers[0].Issuer, "iat": now, "exp": now + 600, "auth_time": now})
	}
	fetchNow(start("a", nil))
	for deadline := time.Now().Add(5 * time.Second); kept.size() == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	is.answers(down)
	v := start("a", nil)
	if _, err := ask(v, fresh(v)); err != nil || v.Healthy() != nil {
		t.Fatalf("restarted while the issuer is down: %v, %v", err, v.Healthy())
	}
	if age := time.Since(v.Stats().Issuers[0].KeysFetched); age < 0 || age > time.Minute {
		t.Errorf("keys are %v old", age)
	}
	unusable := func(name string, v *Verifier) {
		t.Helper()
		if _, err := ask(v, fresh(v)); !errors.Is(err, ErrKeys) || !errors.Is(v.Healthy(), ErrKeys) {
			t.Errorf("%s: %v, %v; want ErrKeys", name, err, v.Healthy())
		}
	}
	unusable("another deployment's secret", start("b", nil))
	unusable("another issuer's keys", start("a", func(c *VerifierConfig) { c.Issuers[0].Issuer += "/b" }))
	unusable("an algorithm that is not allowed any more", start("a", func(c *VerifierConfig) { c.Issuers[0].Algorithms = []string{"EdDSA"} }))

	good := maps.Clone(kept.held)
	plant := func(change func(p *Publication)) {
		for key, p := range good {
			change(&p)
			kept.held[key] = p
		}
	}
	stranger := newIssuer(t)
	plant(func(p *Publication) { p.Body = stranger.document() })
	unusable("planted keys", start("a", nil))
	plant(func(p *Publication) { p.At = p.At.Add(time.Second) })
	unusable("made younger", start("a", nil))
	plant(func(*Publication) {})

	clk.advance(23 * time.Hour)
	v = start("a", nil)
	if _, err := ask(v, fresh(v)); err != nil {
		t.Errorf("after 23 h: %v", err)
	}
	clk.advance(2 * time.Hour)
	unusable("after 25 h", start("a", nil))
	clk.advance(-48 * time.Hour)
	unusable("from the future", start("a", nil))

	clk.advance(23 * time.Hour)
	kept.fail = errors.New("database is down")
	v = start("a", nil)
	unusable("both down", v)
	is.answers(nil)
	clk.advance(lastBackoff)
	if _, err := ask(v, fresh(v)); err != nil {
		t.Errorf("a database that is down matters to nobody while the issuer is there: %v", err)
	}
}

// TestGraceOfWithdrawnKeys holds that a key which is withdrawn is dead at once, unless the issuer's policy lets it live for a while,
// and then for that while; and that nothing stays of it when it comes back.
func TestGraceOfWithdrawnKeys(t *testing.T) {
	const grace = 300 * time.Millisecond
	is := newIssuer(t)
	is.addEC("next")
	cfg := is.config()
	cfg.Issuers[0].Grace = grace
	v := newTestVerifier(t, cfg)
	warm := is.token(map[string]any{"jti": "warm"})
	if _, err := ask(v, warm); err != nil {
		t.Fatal(err)
	}
	old := is.public["es"]
	is.remove("es")
	fetchNow(v)
	began := time.Now()
	for _, token := range []string{warm, is.token(map[string]any{"jti": "cold"})} {
		if _, err := ask(v, token); err != nil && time.Since(began) < grace {
			t.Errorf("within the grace: %v", err)
		}
	}
	fetchNow(v) // does not begin it anew
	for _, token := range []string{warm, is.token(map[string]any{"jti": "cold"}), is.token(map[string]any{"jti": "colder"})} {
		time.Sleep(max(0, grace+20*time.Millisecond-time.Since(began)))
		if _, err := ask(v, token); !errors.Is(err, ErrToken) {
			t.Errorf("after the grace: %v", err)
		}
	}
	is.add("es", is.private["es"], old)
	fetchNow(v)
	if _, err := ask(v, is.token(map[string]any{"jti": "again"})); err != nil {
		t.Errorf("published again: %v", err)
	}
	is.remove("es")
	fetchNow(v)
	is.add("es", is.private["es"], old)
	fetchNow(v)
	time.Sleep(grace + 50*time.Millisecond)
	if _, err := ask(v, is.token(map[string]any{"jti": "at last"})); err != nil {
		t.Errorf("published again within the grace: %v", err)
	}
	// An id that was given to another key leaves the old one no grace: which of the two signed would be anybody's guess.
	is.addEC("es")
	fetchNow(v)
	if _, err := ask(v, warm); !errors.Is(err, ErrToken) {
		t.Errorf("the old key of a kid that has another: %v", err)
	}
	if _, err := ask(v, is.token(map[string]any{"jti": "new key"})); err != nil {
		t.Errorf("the new key of a kid: %v", err)
	}
}

// TestAlerts holds that an officer hears of an issuer that publishes what it must not, once.
func TestAlerts(t *testing.T) {
	is := newIssuer(t)
	var told []string
	var mu sync.Mutex
	cfg := is.config()
	cfg.Issuers[0].Name = "main"
	cfg.Alert = func(issuer, desc string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, issuer+" "+desc)
	}
	v := newTestVerifier(t, cfg)
	is.add("oops", is.private["es"], map[string]any{"kty": "EC", "crv": "P-256", "d": "AAAA"})
	for range 3 {
		fetchNow(v)
	}
	one, two := is.public["es"], ecJWK(&newIssuer(t).private["es"].(*ecdsa.PrivateKey).PublicKey)
	two["kid"] = "es"
	is.answers(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(marshal(map[string]any{"keys": []any{one, two}}))
	})
	fetchNow(v)
	fetchNow(v)
	if len(told) != 2 || !strings.HasPrefix(told[0], "main publishes secret key material") || !strings.HasPrefix(told[1], "main publishes two keys") {
		t.Errorf("told %q", told)
	}
}
