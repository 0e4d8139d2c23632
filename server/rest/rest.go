// Package rest is the HTTP surface: the FHIR R4 RESTful API under /fhir/R4 and the officers' API under /v1. Fiber stays
// in here.
//
// It promises that every response has a request id, that every non-2xx FHIR body is an OperationOutcome and every /v1 one
// an RFC 9457 problem document, that neither carries PHI, that nothing borrowed from a request buffer outlives the
// handler, and that a request refused before it reaches phi is an audit event too.
package rest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// Config configures a Server.
type Config struct {
	Base     string // absolute base URL of the FHIR API, e.g. http://127.0.0.1:8080/fhir/R4
	Records  *phi.Records
	Verifier *auth.Verifier
	Access   *auth.Access
	Log      *audit.Log
	Trail    audit.Reader
	Tree     Tree                                         // nil: proofs, checkpoints and the live trail answer 501
	Listen   func(ctx context.Context, wake func()) error // calls wake after each checkpoint until ctx ends; nil: the tree is polled every second
	Live     LiveLimits
	Verified func() (news, whole audit.PatrolReport) // what the deployment's own verification found last; nil: /v1/audit/verify answers 501
	Key      []byte                                  // secret of the officers' API, of at least 32 bytes: phi.Records.OfficersKey
	Level    phi.Levels

	Revocations   *auth.Revocations // whose sessions' ends are recorded; those that Verifier goes by
	Uses          *auth.Sessions    // those that Verifier goes by; nil: nobody remembers sessions
	Sessions      Sessions          // nil: /v1/sessions, /v1/revocations and /v1/workforce answer 501
	Relationships Relationships     // nil: /v1/relationships answers 501
	Policies      Policies          // nil: /v1/roles, /v1/policy and /v1/assignments answer 501
	Erasures      *phi.Erasures     // nil: /v1/erasures answers 501
	Emergencies   Emergencies       // nil: /v1/emergency-access answers 501
	Emergency     auth.EmergencyLimits
	History       PolicyHistory // nil: decisions are explained from their events alone
	Alerts        Alerts        // nil: /v1/alerts answers 501
	Merges        *phi.Merges   // nil: Patient/$merge and Patient/$unmerge answer 501

	Issuer Issuer // endpoints that smart-configuration and the capability statement name

	Mount   map[string]http.Handler                // extra handlers by path prefix: /metrics, /oauth2, /debug/pprof
	Checks  map[string]func(context.Context) error // readiness, by name: database, journal, keys, jwks
	Observe func(Observation)                      // called once a request; nil = nobody listens

	BodyLimit          int           // bytes; 16 MiB when 0
	Limits             Limits        // of requests; none when zero
	Timeout            time.Duration // of one request, a GET gets a third of it; 30 s when 0
	Logger             *slog.Logger
	Version            string
	ClientCertificates ClientCertificates

	TLSClientNetworks []string // proxies whose X-Forwarded-For is believed, CIDR; none when empty
}

// Relationships shows treatment relationships and administers explicit grants. The calls may be made from many goroutines.
type Relationships interface {
	Grant(ctx context.Context, r auth.Relationship) error
	Ungrant(ctx context.Context, practitioner, patient, by string) error
	// Relationships lists those of a practitioner, of a patient, or of the two ("" is anybody) that are not over; at most limit.
	Relationships(ctx context.Context, practitioner, patient string, limit int) ([]auth.Relationship, error)
}

// Tree is what is read of the log's Merkle tree. Every audit.Evidence is one.
type Tree interface {
	audit.TreeReader
	// Rows returns the rows of a span as they are stored, ordered by sequence number.
	Rows(ctx context.Context, s audit.Span) ([]audit.Row, error)
}

// Observation is what happened to one request; Route is the pattern, never the path.
type Observation struct {
	Route, Method string
	Status        int
	Took          time.Duration
	Auth          time.Duration
	phi.Trace

	RequestID string // of a request that has events, "" for one that has none; may be kept
	Role      string // first role of the caller's token, "" without one
	Limited   string // which limit the request was refused by: ip, open, client, subject or failed-authentication; "" when it was not
}

// Server serves. Safe for concurrent use.
type Server struct {
	cfg     Config
	logger  *slog.Logger
	app     *fiber.App
	routes  []route
	types   map[string]string // resource types served, to their own text: a lookup that copies nothing out of a request
	proxies []netip.Prefix
	origin  string   // scheme and host of Base
	fixed   []header // on every response but those of mounted handlers
	start   time.Time

	capability, smart, openapi document

	cursors  *cursors
	aliases  *aliaser
	live     *live
	sessions *sessions
	telling  sync.WaitGroup // until the ends of sessions are recorded
	limits   limiter
	repeats  *repeats

	ctx  context.Context // ends when Shutdown gives up on handlers
	stop context.CancelFunc
}

// New builds the routes. It reads nothing and starts nothing.
func New(cfg Config) (*Server, error) {
	base, err := url.Parse(cfg.Base)
	if err != nil || base.Host == "" || base.Path != fhirBase || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("configuring rest: base URL must be absolute and end in %s", fhirBase)
	}
	if cfg.Records == nil || cfg.Verifier == nil || cfg.Access == nil || cfg.Log == nil || cfg.Trail == nil {
		return nil, errors.New("configuring rest: records, verifier, access, log and trail are needed")
	}
	if len(cfg.Key) < 32 {
		return nil, errors.New("configuring rest: a key of 32 bytes is needed")
	}
	cfg.Emergency = cfg.Emergency.WithDefaults()
	if cfg.BodyLimit == 0 {
		cfg.BodyLimit = 16 << 20
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.Level.Disclosure == 0 {
		cfg.Level.Disclosure = audit.Power
	}
	if cfg.Level.Other == 0 {
		cfg.Level.Other = audit.Process
	}
	s := &Server{cfg: cfg, logger: cfg.Logger, types: servedTypes(), sessions: newSessions(), start: time.Now().UTC().Truncate(time.Second)}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	for _, n := range cfg.TLSClientNetworks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return nil, fmt.Errorf("configuring rest: parsing proxy network: %w", err)
		}
		s.proxies = append(s.proxies, p.Masked())
	}
	if s.cursors, err = newCursors(cfg.Key); err != nil {
		return nil, fmt.Errorf("configuring rest: %w", err)
	}
	if s.aliases, err = newAliaser(cfg.Key); err != nil {
		return nil, fmt.Errorf("configuring rest: %w", err)
	}
	s.origin = base.Scheme + "://" + base.Host
	s.fixed = fixedHeaders(base.Scheme == "https")
	s.routes = s.table()
	if s.capability, err = s.newCapability(); err != nil {
		return nil, fmt.Errorf("building capability statement: %w", err)
	}
	if s.smart, err = s.newSMART(); err != nil {
		return nil, fmt.Errorf("building smart-configuration: %w", err)
	}
	s.openapi = newDocument(openapiJSON)
	s.ctx, s.stop = context.WithCancel(context.Background())
	if cfg.Revocations != nil {
		cfg.Revocations.OnRevoke(s.revoked)
	}
	s.live = newLive(cfg)
	s.limits = newLimiter(cfg.Limits)
	s.repeats = newRepeats(func(e *audit.Event) error {
		_, err := s.cfg.Log.Record(s.ctx, s.cfg.Level.Other, e)
		return err
	})
	s.app = s.newApp()
	return s, nil
}

// Serve serves on the listener until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	if err := s.app.Listener(l); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "use of closed") {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

// Shutdown tells those who watch the trail to come back later, stops accepting, waits for handlers, and returns. When ctx ends first, the contexts of the handlers that are
// left are cancelled and its error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.stop()
	defer s.telling.Wait()
	s.live.close(ctx)
	err := s.app.ShutdownWithContext(ctx)
	if err != nil {
		err = fmt.Errorf("draining handlers: %w", err)
	}
	if e := s.repeats.close(); e != nil {
		err = errors.Join(err, fmt.Errorf("recording refusals: %w", e))
	}
	return err
}
