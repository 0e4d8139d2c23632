// Package rest is the HTTP surface: the FHIR R4 RESTful API under /fhir/R4 and the officers' API under /v1. Fiber stays
// in here.
//
// It promises that every response has a request id, that every non-2xx FHIR body is an OperationOutcome and every /v1 one
// an RFC 9457 problem document, that neither carries PHI, that nothing borrowed from a request buffer outlives the
// handler, and that a request refused before it reaches phi is an audit event too.
package rest

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

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
	Level    phi.Levels

	Issuer Issuer // endpoints that smart-configuration and the capability statement name

	Mount   map[string]http.Handler                // extra handlers by path prefix: /metrics, /oauth2, /debug/pprof
	Checks  map[string]func(context.Context) error // readiness, by name: database, journal, keys, jwks
	Observe func(Observation)                      // called once a request; nil = nobody listens

	BodyLimit         int           // bytes; 16 MiB when 0
	Timeout           time.Duration // of one request; 30 s when 0
	Logger            *slog.Logger
	Version           string
	TLSClientNetworks []string // proxies whose X-Forwarded-For is believed, CIDR; none when empty
}

// Issuer is where the authorization server's endpoints are.
type Issuer struct{ Issuer, Authorize, Token, Introspect, Revoke, JWKS string }

// Observation is what happened to one request; Route is the pattern, never the path.
type Observation struct {
	Route, Method string
	Status        int
	Took          time.Duration
	Auth          time.Duration
	phi.Trace
}

// Server serves. Safe for concurrent use.
type Server struct{ unwritten int }

// New builds the routes.
func New(cfg Config) (*Server, error) { panic("unwritten") }

// Serve serves on the listener until Shutdown.
func (s *Server) Serve(l net.Listener) error { panic("unwritten") }

// Shutdown stops accepting, waits for handlers, and returns.
func (s *Server) Shutdown(ctx context.Context) error { panic("unwritten") }
