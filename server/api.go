package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/rest"
)

// surface is what the HTTP side of a server is made of.
type surface struct {
	base     string // public base URL of the FHIR API
	issuer   rest.Issuer
	verifier *auth.Verifier
	records  *phi.Records
	levels   phi.Levels

	emergency auth.EmergencyLimits    // zero: the defaults
	mount     map[string]http.Handler // beside the API, e.g. /oauth2 in a demo
	proxies   []string
	limits    rest.Limits

	certificates rest.ClientCertificates
	pprof        bool
	metrics      net.Listener // separate listener for metrics; nil mounts them beside the API
}

// api is a running HTTP surface over rooms.
type api struct {
	rooms   *rooms
	server  *rest.Server
	side    *http.Server // metrics listener; nil when mounted
	stop    context.CancelFunc
	timings sync.WaitGroup // until the last durations are recorded
	failed  chan error
}

// shutdownFor is how long handlers may take to finish when the server stops.
const shutdownFor = 15 * time.Second

// startAPI serves on the listener, in the background; see wait.
func startAPI(ctx context.Context, r *rooms, s surface, l net.Listener, log *slog.Logger) (*api, error) {
	verifier := s.verifier
	timings := audit.NewTimings(r.log)
	m := newMetrics(r, verifier, timings)
	mount := map[string]http.Handler{}
	for prefix, h := range s.mount {
		mount[prefix] = h
	}
	if s.metrics == nil {
		mount["/metrics"] = m.handler()
	}
	if s.pprof {
		mount["/debug/pprof"] = profiler()
	}
	key, err := s.records.OfficersKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the officers' key: %w", err)
	}
	if err := verifier.ShareNonces(key); err != nil {
		return nil, err
	}
	var verified func() (news, whole audit.PatrolReport)
	if r.patrol != nil {
		verified = r.patrol.Last
	}
	server, err := rest.New(rest.Config{
		Base: s.base, Records: s.records, Verifier: verifier, Revocations: r.revoked, Uses: r.sessions, Sessions: r.db.Sessions(), Access: r.access, Log: r.log, Trail: r.db.Trail(), Relationships: r.db.Auth(), Policies: r.db.Policies(checkPolicy), Erasures: r.erasures, Merges: r.merges,
		Emergencies: r.db.Auth(), Emergency: s.emergency, Alerts: r.db.Alerts(), History: r.db.Auth(),
		Tree: r.db.Tree(), Listen: r.db.ListenTrail, Verified: verified, Key: key,
		Level: s.levels, Issuer: s.issuer, Mount: mount, Observe: m.observe, Logger: log, Version: version(), TLSClientNetworks: s.proxies, ClientCertificates: s.certificates, Limits: s.limits,
		Checks: map[string]func(context.Context) error{
			"database":    r.db.Ping,
			"journal":     func(context.Context) error { return r.log.Healthy() },
			"keys":        func(context.Context) error { return r.keys.Healthy() },
			"jwks":        func(context.Context) error { return verifier.Healthy() },
			"policy":      func(context.Context) error { return r.access.Healthy() },
			"revocations": func(context.Context) error { return r.revoked.Healthy() },
		},
	})
	if err != nil {
		return nil, fmt.Errorf("building routes: %w", err)
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	a := &api{rooms: r, server: server, stop: stop, failed: make(chan error, 2)}
	r.start(background, "issuer keys", verifier.Run)
	a.timings.Go(func() { _ = timings.Run(background) }) // never fails
	go func() { a.failed <- server.Serve(l) }()
	if s.metrics != nil {
		mux := http.NewServeMux()
		mux.Handle("/metrics", m.handler())
		a.side = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
		go func() { a.failed <- a.side.Serve(s.metrics) }()
	}
	return a, nil
}

// wait returns when ctx is done (nil), when serving failed, or when the audit journal cannot be written any more.
func (a *api) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-a.failed:
		return fmt.Errorf("serving: %w", err)
	case err := <-a.rooms.log.Failed():
		return fmt.Errorf("audit journal: %w", err)
	}
}

// close stops accepting and lets handlers finish. The rooms stay open: their close comes after.
func (a *api) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownFor)
	defer cancel()
	err := a.server.Shutdown(ctx)
	if a.side != nil {
		err = errors.Join(err, a.side.Shutdown(ctx))
	}
	a.stop()
	a.timings.Wait()
	return err
}

// tune sets what the Go runtime cannot know about this program; GOGC and GOMAXPROCS in the environment win. The live heap is small
// (records are never cached), so collecting at four times its size costs a few dozen MiB and saves a tenth of the CPU. And a
// goroutine that returns from fdatasync must not queue behind a hundred runnable ones before it can release its tickets: with
// more Ps than cores the kernel schedules its thread at once.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2 * runtime.NumCPU())
	}
}

// profiler serves net/http/pprof without its global registration.
func profiler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// loopback reports whether an address can be reached from this host only.
func loopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// withTLS wraps a listener; TLS 1.2 is the floor (NIST SP 800-52r2). more may add to what is demanded of clients.
func withTLS(l net.Listener, certFile, keyFile string, more func(*tls.Config) error) (net.Listener, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("loading TLS certificate: %w", err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if err := more(cfg); err != nil {
		return nil, err
	}
	return tls.NewListener(l, cfg), nil
}
