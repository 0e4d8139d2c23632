package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/demo"
	"github.com/chartkeep/chartkeep/server/rest"
)

// Sizes of the measurements of authentication and decisions.
const (
	authTokens  = 512             // that are verified cold
	authProofs  = 1_000           // DPoP proofs of a round
	authPhase   = 2 * time.Second // of one load
	authRounds  = 5
	authHang    = 3 * time.Second  // for which the issuer's keys cannot be had; with --long:
	authHangAll = 30 * time.Second // as issue 5 asks
	floodRate   = 1_000            // valid requests a second, and forged ones beside them
	floodPhase  = 4 * time.Second
	floodRounds = 3
)

// auth measures what authentication, decisions and their audit cost, beside jwx and bare Fiber. A missed figure is exit code 1.
func (v *benchVerb) auth(ctx context.Context, t terminal, b *bench) (err error) {
	f := &figures{w: t.out}
	ids, err := v.fill(ctx, b.rooms.records, t)
	if err != nil {
		return err
	}
	is, err := openBenchIssuer(b.dir)
	if err != nil {
		return err
	}
	defer is.stop()
	for _, measure := range []func() error{
		func() error { return f.tokens(ctx, is) },
		func() error { return f.possession(ctx, b, is) },
		func() error { return f.decisions(ctx, b.rooms.access, ids) },
		func() error { return f.compiled(ctx) },
		func() error { return f.stack(ctx, v, b, is, ids) },
		func() error { return f.hanging(ctx, v, is) },
		func() error { return f.flood(ctx, v, b, ids) },
	} {
		if err := measure(); err != nil {
			return err
		}
	}
	if f.missed > 0 {
		return fmt.Errorf("%d figures are below their target", f.missed)
	}
	return nil
}

// benchIssuer is an authorization server on a socket of its own, whose keys can be made to hang.
type benchIssuer struct {
	*demo.AuthServer
	url, audience string
	hang          atomic.Pointer[chan struct{}] // closed when it is over; nil when nothing hangs
	fetches       atomic.Int64                  // of keys
	server        *http.Server
}

func openBenchIssuer(dir string) (*benchIssuer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	origin := "http://" + l.Addr().String()
	is := &benchIssuer{url: origin + "/oauth2", audience: "https://bench.invalid/fhir/R4"}
	if is.AuthServer, err = demo.NewAuthServer(demo.AuthServerConfig{
		Dir: filepath.Join(dir, "bench-issuer"), Issuer: is.url, Audience: is.audience, Personas: demo.Personas("p-1"),
	}); err != nil {
		return nil, err
	}
	serve := is.Handler()
	is.server = &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/jwks") {
			is.fetches.Add(1)
			if over := is.hang.Load(); over != nil {
				select {
				case <-*over:
				case <-r.Context().Done():
				}
			}
		}
		serve.ServeHTTP(w, r)
	})}
	go func() { _ = is.server.Serve(l) }()
	return is, nil
}

func (is *benchIssuer) stop() { _ = is.server.Close() }

func (is *benchIssuer) verifier(more func(*auth.IssuerConfig)) (*auth.Verifier, error) {
	cfg := auth.IssuerConfig{Issuer: is.url, Audience: is.audience, JWKSURL: is.url + "/jwks", AssertsSignIn: true, RolesInToken: true}
	if more != nil {
		more(&cfg)
	}
	return auth.NewVerifier(auth.VerifierConfig{Issuers: []auth.IssuerConfig{cfg}, Insecure: true})
}

// some mints tokens of dr-rivera's, as headers and bare.
func (is *benchIssuer) some(n int) (headers []auth.Credentials, tokens [][]byte, err error) {
	for range n {
		token, err := is.Token("dr-rivera", "")
		if err != nil {
			return nil, nil, err
		}
		tokens = append(tokens, []byte(token))
		headers = append(headers, auth.Credentials{Authorization: [][]byte{[]byte("Bearer " + token)}})
	}
	return headers, tokens, nil
}

// tokens compares the check of a token, known and new, to jwx. The issuer signs by ES256 first, and by RS256 from then on.
func (f *figures) tokens(ctx context.Context, is *benchIssuer) error {
	for i, alg := range []string{"ES256", "RS256"} {
		if i > 0 {
			if err := is.Rotate(); err != nil {
				return err
			}
		}
		shown, tokens, err := is.some(authTokens)
		if err != nil {
			return err
		}
		reference, err := is.Yardstick()
		if err != nil {
			return err
		}
		known, err := is.verifier(nil)
		if err != nil {
			return err
		}
		check := func(int) error { _, err := known.Authenticate(ctx, shown[0]); return err }
		var fresh *auth.Verifier
		next := 0
		verify := func(int) (err error) { // each token once by each verifier
			if next%(authTokens-1) == 0 {
				if fresh, err = is.verifier(nil); err != nil {
					return err
				}
				if _, err = fresh.Authenticate(ctx, shown[authTokens-1]); err != nil { // fetches the keys
					return err
				}
			}
			_, err = fresh.Authenticate(ctx, shown[next%(authTokens-1)])
			next++
			return err
		}
		warm, cold := &timed{run: check}, &timed{run: verify}
		every := &timed{run: func(n int) error { return reference(tokens[n%authTokens]) }}
		if err := inTurns(true, warm, cold, every); err != nil {
			return fmt.Errorf("verifying tokens: %w", err)
		}
		f.add("token verified by jwx, "+alg, every.median().Round(10*time.Nanosecond).String(), "", true)
		f.add("token check, known", warm.median().String(), "", true)
		ratio := every.over(warm)
		f.add("  jwx over it", fmt.Sprintf("%.0f ×", ratio), "at least 40 ×", ratio >= 40)
		n, err := allocations(check)
		if err != nil {
			return err
		}
		f.add("  allocations", fmt.Sprintf("%.2f", n), "none", n < 0.01)
		ratio = cold.over(every)
		f.add("token verified by the strict gate, cold", fmt.Sprintf("%s, %.2f × jwx", cold.median().Round(10*time.Nanosecond), ratio), "at most 1.6 × jwx", ratio <= 1.6)
	}
	return nil
}

// possession is what DPoP adds to the check of a known token.
func (f *figures) possession(ctx context.Context, b *bench, is *benchIssuer) error {
	h, err := demo.OpenHolder(filepath.Join(b.dir, "bench-holder.json"))
	if err != nil {
		return err
	}
	token, err := is.Mint("dr-rivera", demo.Minted{Key: h.Thumbprint()})
	if err != nil {
		return err
	}
	v, err := is.verifier(func(c *auth.IssuerConfig) { c.Binding = auth.BindingDPoP })
	if err != nil {
		return err
	}
	const target = "https://bench.invalid/fhir/R4/Patient/p-1"
	var took []time.Duration
	for range authRounds {
		shown := make([]auth.Credentials, authProofs)
		for i := range shown {
			proof, err := h.Proof(http.MethodGet, target, token, v.Nonce(nil), time.Now())
			if err != nil {
				return err
			}
			shown[i] = auth.Credentials{
				Authorization: [][]byte{[]byte("DPoP " + token)}, Proofs: [][]byte{[]byte(proof)}, Method: http.MethodGet, URL: target,
			}
		}
		began := time.Now()
		for i := range shown {
			if _, err := v.Authenticate(ctx, shown[i]); err != nil {
				return fmt.Errorf("checking a proof: %w", err)
			}
		}
		took = append(took, time.Since(began)/authProofs)
	}
	slices.Sort(took)
	f.add("known token with a DPoP proof, ES256", took[len(took)/2].Round(10*time.Nanosecond).String(), "", true)
	return nil
}

// decisions measures them on the seeded policy, with what is known of a patient at hand.
func (f *figures) decisions(ctx context.Context, access *auth.Access, ids []string) error {
	now := time.Now()
	who := func(role, scope, patient string) *auth.Principal {
		return &auth.Principal{
			Subject: role + "-bench", Client: "chartkeep-bench", Session: role, Roles: []string{role}, Scopes: auth.ParseScopes(scope), Patient: patient, AuthTime: now,
		}
	}
	doctor := clinician().Principal
	for _, c := range []struct {
		name    string
		who     *auth.Principal
		kind    string
		allowed bool
	}{
		{"by treatment", doctor, "Patient", true},
		{"by role alone", who("registrar", "user/*.rs", ""), "Patient", true},
		{"in the own compartment", who("patient", "patient/*.rs", ids[0]), "Patient", true},
		{"denied", who("billing", "user/*.rs", ""), "Observation", false},
	} {
		r := auth.Request{Interaction: auth.Read, Type: c.kind, Patients: ids[:1]}
		decide := func(int) error {
			if d := access.Check(ctx, c.who, r); d.Allowed != c.allowed {
				return fmt.Errorf("decision %s: %s", c.name, d.Reason)
			}
			return nil
		}
		if err := decide(0); err != nil { // looks the facts up
			return err
		}
		time.Sleep(10 * time.Millisecond) // until the cache has them
		x := &timed{run: decide}
		if err := inTurns(true, x); err != nil {
			return err
		}
		took := x.median()
		f.add("decision, "+c.name, took.String(), "under 200ns", took < 200*time.Nanosecond)
		n, err := allocations(decide)
		if err != nil {
			return err
		}
		f.add("  allocations", fmt.Sprintf("%.2f", n), "none", n < 0.01)
	}
	return nil
}

// widePolicy is a storage with nothing but a policy of many roles and types.
type widePolicy struct{ policy auth.Policy }

func (w widePolicy) Epochs(context.Context) (auth.Epochs, error) {
	return auth.Epochs{Policy: w.policy.Version}, nil
}
func (w widePolicy) Policy(context.Context) (auth.Policy, error)       { return w.policy, nil }
func (w widePolicy) Emergencies(context.Context) ([]auth.Grant, error) { return nil, nil }
func (w widePolicy) Facts(_ context.Context, _ auth.Actor, patients []string) ([]auth.Fact, error) {
	return make([]auth.Fact, len(patients)), nil
}

// compiled measures how long a policy of 200 roles on 150 types takes from its rows to its snapshot.
func (f *figures) compiled(ctx context.Context) error {
	w := widePolicy{auth.Policy{Version: 1}}
	for r := range 200 {
		role := fmt.Sprintf("role-%d", r)
		w.policy.Roles = append(w.policy.Roles, auth.Role{Name: role, Workforce: true})
		for n := range 150 {
			w.policy.Permissions = append(w.policy.Permissions, auth.Permission{
				Role: role, Type: "Type" + string(rune('A'+n/26)) + string(rune('A'+n%26)), Interactions: "cruds", View: "full",
				Relation: auth.RelationTreatment, Purposes: []string{"TREAT"},
			})
		}
	}
	var took []time.Duration
	for range authRounds {
		began := time.Now()
		a, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: w})
		if err != nil {
			return err
		}
		took = append(took, time.Since(began))
		a.Close()
	}
	slices.Sort(took)
	best := took[len(took)/2]
	f.add("policy of 200 roles × 150 types, loaded and compiled", best.Round(100*time.Microsecond).String(), "under 100ms", best < 100*time.Millisecond)
	return nil
}

// stack is what a request to bare Fiber costs with nothing in front, with authentication, decision and audit, and with jwx: the time
// between the handler's first and last line, in the median since others have the processors, too; and the processor time of the whole
// process, in which the journal's own work is (it encodes, hashes and writes what was handed over, in a goroutine of its own).
func (f *figures) stack(ctx context.Context, v *benchVerb, b *bench, is *benchIssuer, ids []string) (err error) {
	log, err := audit.Open(audit.Config{Dir: filepath.Join(b.dir, "bench-auth-journal")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	verifier, err := is.verifier(nil)
	if err != nil {
		return err
	}
	reference, err := is.Yardstick()
	if err != nil {
		return err
	}
	token, err := is.Token("dr-rivera", "")
	if err != nil {
		return err
	}
	decided := func(authorization [][]byte, id string) error {
		p, err := verifier.Authenticate(ctx, auth.Credentials{Profile: auth.ProfileFHIR, Authorization: authorization})
		if err != nil {
			return err
		}
		d := b.rooms.access.Check(ctx, p, auth.Request{Interaction: auth.Read, Type: "Patient", Patients: []string{id}})
		if !d.Allowed {
			return errors.New(string(d.Reason))
		}
		return nil
	}
	const bearer = len("Bearer ")
	stages := []struct {
		name  string
		admit func(authorization [][]byte, id string) error
	}{
		{"bare Fiber", func([][]byte, string) error { return nil }},
		{"auth + decision + audit hand-off", func(authorization [][]byte, id string) error {
			if err := decided(authorization, id); err != nil {
				return err
			}
			_, err := log.Submit(audit.Process, readEvent(strings.Clone(id)))
			return err
		}},
		{"the same, and its event durable (process)", func(authorization [][]byte, id string) error {
			if err := decided(authorization, id); err != nil {
				return err
			}
			_, err := log.Record(ctx, audit.Process, readEvent(strings.Clone(id)))
			return err
		}},
		{"jwx every time, and nothing else", func(authorization [][]byte, _ string) error { return reference(authorization[0][bearer:]) }},
	}
	w := *v
	w.Phase, w.Connections = authPhase, 8
	body := slices.Repeat([]byte{'x'}, 1200) // of a Patient
	costs, inside := make([][]float64, len(stages)), make([][]float64, len(stages))
	urls, clocks := make([]string, len(stages)), make([]stopwatch, len(stages))
	for i, s := range stages {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer rest.Stage(l, body, clocks[i].around(s.admit))()
		urls[i] = "http://" + l.Addr().String() + "/Patient/"
	}
	for range authRounds {
		for i := range stages {
			before := ownCPU()
			res, err := w.spawn(ctx, b.dir, variant{url: urls[i], token: token}, ids, 0)
			if err != nil {
				return err
			}
			if res.Failed > 0 || res.Requests == 0 {
				return fmt.Errorf("%s: %d of %d requests failed", stages[i].name, res.Failed, res.Requests)
			}
			costs[i] = append(costs[i], float64(ownCPU()-before)/float64(res.Requests))
			inside[i] = append(inside[i], float64(clocks[i].median()))
		}
	}
	adds := func(of [][]float64, i int) time.Duration {
		each := make([]float64, authRounds)
		for k := range each {
			each[k] = of[i][k] - of[0][k]
		}
		return time.Duration(median(each)).Round(10 * time.Nanosecond)
	}
	f.add("CPU of a request, "+stages[0].name, time.Duration(median(costs[0])).Round(10*time.Nanosecond).String(), "", true)
	ours, jwx := adds(inside, 1), adds(inside, 3)
	f.add("  "+stages[1].name+" add to the handler", ours.String(), "at most 5µs", ours <= 5*time.Microsecond)
	f.add("  "+stages[3].name, jwx.String(), "", true)
	ratio := float64(jwx) / float64(ours)
	f.add("  jwx over ours", fmt.Sprintf("%.0f ×", ratio), "at least 15 ×", ratio >= 15)
	for i, s := range stages[1:] {
		f.add("  CPU of the process, "+s.name, "+"+adds(costs, i+1).String(), "", true)
	}
	return nil
}

// stopwatch measures what each run of something took.
type stopwatch struct {
	mu   sync.Mutex
	took []time.Duration
}

func (w *stopwatch) around(admit func([][]byte, string) error) func([][]byte, string) error {
	return func(authorization [][]byte, id string) error {
		began := time.Now()
		err := admit(authorization, id)
		d := time.Since(began)
		w.mu.Lock()
		w.took = append(w.took, d)
		w.mu.Unlock()
		return err
	}
}

// median returns the median of the runs since it was called last.
func (w *stopwatch) median() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.took)
	middle := w.took[len(w.took)/2]
	w.took = w.took[:0]
	return middle
}

// readEvent is the event of a read, as package phi records it.
func readEvent(patient string) *audit.Event {
	e := benchEvent()
	e.Patient = patient
	return e
}

// ownCPU is the processor time that this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// hanging asks for known and for new tokens while the issuer does not answer for its keys.
func (f *figures) hanging(ctx context.Context, v *benchVerb, is *benchIssuer) error {
	shown, _, err := is.some(authTokens)
	if err != nil {
		return err
	}
	verifier, err := is.verifier(nil)
	if err != nil {
		return err
	}
	if _, err := verifier.Authenticate(ctx, shown[0]); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { _ = verifier.Run(running) })
	defer background.Wait()
	defer stop()
	// A key that is not known makes the verifier look for it.
	if err := is.Rotate(); err != nil {
		return err
	}
	if err := is.Rotate(); err != nil {
		return err
	}
	unknown, _, err := is.some(1)
	if err != nil {
		return err
	}
	over := make(chan struct{})
	is.hang.Store(&over)
	defer func() {
		is.hang.Store(nil)
		close(over)
	}()
	before := is.fetches.Load()
	hang := authHang
	if v.Long {
		hang = authHangAll
	}
	background.Go(func() {
		for running.Err() == nil {
			_, _ = verifier.Authenticate(running, unknown[0])
			time.Sleep(10 * time.Millisecond)
		}
	})
	var took []time.Duration
	for end, n := time.Now().Add(hang), 0; time.Now().Before(end); n++ {
		began := time.Now()
		if _, err := verifier.Authenticate(ctx, shown[n%authTokens]); err != nil {
			return fmt.Errorf("while the issuer hangs: %w", err)
		}
		took = append(took, time.Since(began))
		time.Sleep(200 * time.Microsecond)
	}
	if is.fetches.Load() == before {
		return errors.New("nobody asked for keys while the issuer hung: nothing was measured")
	}
	worst := slices.Max(took)
	f.add(fmt.Sprintf("worst of %d checks while the issuer's keys hang for %s", len(took), hang), worst.Round(10*time.Microsecond).String(), "under 20ms", worst < 20*time.Millisecond)
	return nil
}

// flood sends forged tokens beside valid requests to a whole server, and compares what the valid ones take to what they take alone.
func (f *figures) flood(ctx context.Context, v *benchVerb, b *bench, ids []string) (err error) {
	limits := loadLimits()
	limits.Failed = rest.Rate{PerSecond: 20, Burst: 100} // as serve has it
	a, err := benchAPI(ctx, b.rooms, b.dir, phi.Levels{Disclosure: audit.Process, Other: audit.Process}, limits, b.sink.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	w := *v
	w.Phase, w.Connections = floodPhase, 16
	valid := variant{url: a.base, token: a.token}
	var alone, beside []float64
	var ratios []float64
	for round := range floodRounds + 1 { // round 0 warms up
		quiet, err := w.spawn(ctx, b.dir, valid, ids, floodRate)
		if err != nil {
			return err
		}
		forged := make(chan error, 1)
		go func() {
			res, err := w.spawn(ctx, filepath.Join(b.dir, demoOAuth), variant{url: a.base, token: a.token, forged: true}, ids, floodRate)
			if err == nil && res.Requests < int(floodRate*floodPhase/time.Second)/2 {
				err = fmt.Errorf("only %d forged requests were sent", res.Requests)
			}
			forged <- err
		}()
		busy, err := w.spawn(ctx, b.dir, valid, ids, floodRate)
		if err := errors.Join(err, <-forged); err != nil {
			return err
		}
		if quiet.Failed+busy.Failed > 0 {
			return fmt.Errorf("%d valid requests failed alone, %d beside forged ones", quiet.Failed, busy.Failed)
		}
		if round == 0 {
			continue
		}
		alone, beside = append(alone, float64(quiet.P99)), append(beside, float64(busy.P99))
		ratios = append(ratios, float64(busy.P99)/float64(quiet.P99))
	}
	f.add(fmt.Sprintf("p99 of %d reads a second", floodRate), time.Duration(median(alone)).Round(10*time.Microsecond).String(), "", true)
	ratio := median(ratios)
	f.add(fmt.Sprintf("  beside %d forged tokens a second", floodRate),
		fmt.Sprintf("%s, %.2f ×", time.Duration(median(beside)).Round(10*time.Microsecond), ratio), "under 3 ×", ratio < 3)
	return nil
}
