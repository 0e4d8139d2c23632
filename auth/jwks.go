package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	fetchTimeout = 5 * time.Second
	maxDocument  = 256 << 10 // bytes
	maxKeys      = 64
	minRefresh   = 5 * time.Minute
	maxRefresh   = time.Hour
	leastBackoff = 50 * time.Millisecond
	firstBackoff = time.Second
	lastBackoff  = time.Minute
	demandEvery  = 30 * time.Second       // between refreshes that unknown key ids ask for
	demandWait   = 500 * time.Millisecond // that a request waits for such a refresh
	staleWarn    = time.Hour
	minStale     = time.Hour
	maxSkew      = 30 * time.Second // that a kept document may have been fetched in the future
	storeTimeout = 5 * time.Second
)

// keySet is what the issuer published last; immutable.
type keySet struct {
	keys     map[string]*key
	fetched  time.Time
	etag     string
	document []byte // that the keys were in
}

// keyring keeps the issuer's keys. Readers load a pointer; one goroutine at a time fetches, and nobody waits for it but
// requests whose key is not there, and those not for long.
type keyring struct {
	url        string
	issuer     string // for what is published
	staleFor   time.Duration
	grace      time.Duration
	published  *Publications // nil: nothing is kept
	alert      func(desc string)
	client     *http.Client
	algorithms []string
	logger     *slog.Logger
	now        func() time.Time
	current    atomic.Pointer[keySet]

	ctx  context.Context // ends fetches when Run ends
	stop context.CancelFunc

	mu       sync.Mutex
	running  chan struct{} // closed when the fetch in flight is over; nil when there is none
	failures int           // since the last success
	delay    time.Duration // from the end of the last attempt to the next
	ended    time.Time     // of the last attempt
	demanded time.Time     // last refresh for an unknown key id

	failed  atomic.Uint64 // fetches
	keeping sync.WaitGroup
}

// newKeyring makes the keyring of an issuer; alert is told what an officer must know.
func newKeyring(cfg VerifierConfig, is IssuerConfig, alert func(desc string)) (*keyring, error) {
	u, err := secureURL(is.JWKSURL, cfg.Insecure)
	if err != nil {
		return nil, fmt.Errorf("JWKS URL: %w", err)
	}
	client := *cfg.Client
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if next.URL.Scheme != u.Scheme || next.URL.Host != u.Host || len(via) > 3 {
			return errors.New("redirect leaves the issuer")
		}
		return nil
	}
	k := &keyring{
		url: is.JWKSURL, issuer: is.Issuer, staleFor: is.StaleFor, grace: is.Grace, published: cfg.Publications, alert: alert,
		client: &client, algorithms: is.Algorithms, logger: cfg.Logger.With("issuer", is.Name), now: cfg.Now,
	}
	k.ctx, k.stop = context.WithCancel(context.Background())
	return k, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// run fetches at once and then whenever the last answer is due for renewal.
func (k *keyring) run(ctx context.Context) {
	defer func() {
		k.stop()
		k.mu.Lock()
		running := k.running
		k.mu.Unlock()
		if running != nil {
			<-running
		}
		k.keeping.Wait()
		k.client.CloseIdleConnections()
	}()
	for {
		select {
		case <-k.refresh():
		case <-ctx.Done():
			return
		}
		k.mu.Lock()
		wait := time.NewTimer(k.delay)
		k.mu.Unlock()
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
	}
}

// lookup returns the live key with the id. An id that is not held asks for one refresh that all callers share.
func (k *keyring) lookup(ctx context.Context, id string) (*key, error) {
	if found := k.usable().key(id); found != nil {
		return found, nil
	}
	if done := k.demand(); done != nil {
		wait := time.NewTimer(demandWait)
		defer wait.Stop()
		select {
		case <-done:
		case <-wait.C:
		case <-ctx.Done():
		}
	}
	set := k.usable()
	if set == nil {
		return nil, ErrKeys
	}
	if found := set.key(id); found != nil {
		return found, nil
	}
	return nil, refuse("kid is unknown")
}

// key returns the live key with the id, nil when there is none.
func (s *keySet) key(id string) *key {
	if s == nil {
		return nil
	}
	if found := s.keys[id]; found != nil && found.alive.Load() {
		return found
	}
	return nil
}

// usable returns the current set unless it is too old to be trusted.
func (k *keyring) usable() *keySet {
	set := k.current.Load()
	if set == nil || k.now().Sub(set.fetched) > k.staleFor {
		return nil
	}
	return set
}

// demand starts or joins a refresh for an unknown key id, or returns nil when it is too soon for one: ids come from
// anybody, and must not turn into a flood of requests to the issuer.
func (k *keyring) demand() <-chan struct{} {
	k.mu.Lock()
	switch now := k.now(); {
	case k.running != nil:
	case k.failures > 0:
		if now.Sub(k.ended) < k.delay {
			k.mu.Unlock()
			return nil
		}
	case k.current.Load() == nil: // the very first fetch does not use up the one for a key that is new after it
	case !k.demanded.IsZero() && now.Sub(k.demanded) < demandEvery:
		k.mu.Unlock()
		return nil
	default:
		k.demanded = now
	}
	k.mu.Unlock()
	return k.refresh()
}

// refresh starts a fetch, or joins the one in flight; the channel is closed when it is over.
func (k *keyring) refresh() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running != nil {
		return k.running
	}
	done := make(chan struct{})
	if k.ctx.Err() != nil {
		close(done)
		return done
	}
	k.running = done
	go func() {
		delay, err := k.fetch(k.ctx)
		if err != nil && k.current.Load() == nil {
			k.restore(k.ctx)
		}
		if err == nil { // before run can find that nothing is under way, and wait for what is kept
			k.keeping.Go(func() { k.keep(k.ctx) })
		}
		k.finish(delay, err)
		close(done)
	}()
	return done
}

// finish notes how a fetch ended. Back-off has full jitter: instances that lost an issuer together do not come back together.
func (k *keyring) finish(delay time.Duration, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running, k.ended = nil, k.now()
	if err == nil {
		k.failures, k.delay = 0, jitter(delay)
		return
	}
	k.failed.Add(1)
	backoff := min(firstBackoff<<min(k.failures, 6), lastBackoff)
	k.failures, k.delay = k.failures+1, leastBackoff+rand.N(backoff-leastBackoff)
	k.complain(err)
}

// keep stores the keys for the next start. Nobody waits for it.
func (k *keyring) keep(ctx context.Context) {
	set := k.current.Load()
	if k.published == nil || set == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := k.published.Keep(ctx, k.issuer, PublishedKeys, set.document, set.fetched); err != nil {
		k.logger.Warn("issuer keys were not kept for the next start", "error", err)
	}
}

// restore takes over what was kept, when the issuer did not answer since the start. It passes the same filter, and is as old as it is.
func (k *keyring) restore(ctx context.Context) {
	if k.published == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	body, fetched, err := k.published.Last(ctx, k.issuer, PublishedKeys)
	var keys map[string]*key
	if err == nil {
		if age := k.now().Sub(fetched); age > k.staleFor || age < -maxSkew {
			err = errors.New("what was kept is too old, or from the future")
		} else {
			keys, err = k.parse(body)
		}
	}
	switch {
	case err == nil:
		k.current.CompareAndSwap(nil, &keySet{keys: keys, fetched: fetched, document: body})
		k.logger.Warn("issuer does not answer: its keys are those of an earlier run", "fetched", fetched)
	case !errors.Is(err, ErrUnpublished):
		k.logger.Error("issuer keys of an earlier run cannot be used", "error", err)
	}
}

// jitter spreads instances that started together: ±20 %.
func jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5) }

func (k *keyring) complain(err error) {
	level, age := slog.LevelInfo, time.Duration(0)
	if set := k.current.Load(); set != nil {
		age = k.now().Sub(set.fetched)
	}
	if k.failures == 1 || age > staleWarn {
		level = slog.LevelWarn
	}
	k.logger.Log(k.ctx, level, "issuer keys were not refreshed", "error", err, "failures", k.failures, "age", age)
}

// fetch gets the document and swaps the set. A failure of any kind leaves the old one in place.
func (k *keyring) fetch(ctx context.Context) (next time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return 0, fmt.Errorf("asking for keys: %w", err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	old := k.current.Load()
	if old != nil && old.etag != "" {
		req.Header.Set("If-None-Match", old.etag)
	}
	res, err := k.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("asking for keys: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	next = freshFor(res.Header.Get("Cache-Control"))
	if res.StatusCode == http.StatusNotModified && old != nil && old.etag != "" {
		k.current.Store(&keySet{keys: old.keys, fetched: k.now(), etag: old.etag, document: old.document})
		return next, nil
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("asking for keys: status %d", res.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxDocument+1))
	if err != nil {
		return 0, fmt.Errorf("reading keys: %w", err)
	}
	if len(body) > maxDocument {
		return 0, errors.New("reading keys: document is too large")
	}
	keys, err := k.parse(body)
	if err != nil {
		return 0, err
	}
	k.replace(keys, res.Header.Get("ETag"), body)
	return next, nil
}

// freshFor reads max-age and keeps it within reason: an issuer may neither be hammered nor trusted for a day.
func freshFor(cacheControl string) time.Duration {
	age := 15 * time.Minute
	for directive := range strings.SplitSeq(cacheControl, ",") {
		name, value, _ := strings.Cut(strings.ToLower(strings.TrimSpace(directive)), "=")
		switch name {
		case "no-store", "no-cache":
			return minRefresh
		case "max-age":
			if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
				age = time.Duration(seconds) * time.Second
			}
		}
	}
	return min(max(age, minRefresh), maxRefresh)
}

// parse reads a JWK set. Keys that are not fit are left out one by one; what makes the whole document doubtful (too many
// keys, one id for two keys, no key at all) refuses it.
func (k *keyring) parse(body []byte) (map[string]*key, error) {
	var doc struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if tooDeep(body) {
		return nil, errors.New("parsing keys: nested too deeply")
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, errors.New("parsing keys: not a JWK set")
	}
	if len(doc.Keys) > maxKeys {
		return nil, errors.New("parsing keys: too many keys")
	}
	keys := make(map[string]*key, len(doc.Keys))
	for i, raw := range doc.Keys {
		parsed, err := parseKey(raw, k.algorithms)
		if err != nil {
			k.logger.Debug("issuer key was left out", "place", i, "error", err)
			if errors.Is(err, errLeaked) {
				k.alert("publishes secret key material; the key is not used")
			}
			continue
		}
		if twin := keys[parsed.id]; twin != nil && !twin.same(parsed) {
			k.alert("publishes two keys under one kid; the last good keys stay in force")
			return nil, errors.New("parsing keys: one kid for two keys")
		}
		keys[parsed.id] = parsed
	}
	if len(keys) == 0 {
		return nil, errors.New("parsing keys: no usable key")
	}
	return keys, nil
}

// replace swaps the set. Keys that stayed keep their identity, so that tokens cached under them stay; keys that went
// die, at once or after the issuer's grace, and with them every cached token that they signed.
func (k *keyring) replace(keys map[string]*key, etag string, document []byte) {
	var held map[string]*key
	if old := k.current.Load(); old != nil {
		held = old.keys
	}
	var gone []*key
	for id, was := range held {
		now := keys[id]
		stayed := now != nil && now.same(was)
		switch {
		case stayed && was.revive():
			keys[id] = was
		case stayed || !was.alive.Load():
		case now == nil && k.grace > 0:
			was.expire(k.grace)
			keys[id] = was
		default:
			gone = append(gone, was)
		}
	}
	k.current.Store(&keySet{keys: keys, fetched: k.now(), etag: etag, document: document})
	for _, was := range gone {
		was.alive.Store(false)
		k.logger.LogAttrs(k.ctx, slog.LevelInfo, "issuer key was withdrawn", slog.String("algorithm", was.alg))
	}
}

// healthy says whether keys are held and fresh enough to go on with.
func (k *keyring) healthy() error {
	if k.usable() == nil {
		return ErrKeys
	}
	return nil
}
