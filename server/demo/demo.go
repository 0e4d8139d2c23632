// Package demo is everything that the embedded default needs beside the server itself: a private PostgreSQL cluster, a
// development authorization server, and a generator of synthetic patients. Nothing here is reachable from serve.
package demo

import (
	"crypto"
	"log/slog"
	"net/http"
	"time"
)

// AuthServerConfig configures the development authorization server.
type AuthServerConfig struct {
	Dir      string // keys and refresh tokens live here (0600), so that tokens survive a restart
	Issuer   string // e.g. http://127.0.0.1:8080/oauth2
	Audience string // the FHIR base URL, and the value of aud
	Personas []Persona
	Logger   *slog.Logger
	Now      func() time.Time
}

// AuthServer is an OpenID provider and OAuth 2 authorization server for development: discovery, JWKS, authorize, token,
// introspect, revoke, register nothing.
type AuthServer struct{ unwritten int }

// Clients.
const (
	commandClient = "chartkeep-demo"
	backendClient = "app-backend"
)

// NewAuthServer loads or makes its keys.
func NewAuthServer(cfg AuthServerConfig) (*AuthServer, error) { panic("unwritten") }

// Handler serves the issuer's paths, with the issuer's path prefix ("/oauth2/…").
func (s *AuthServer) Handler() http.Handler { panic("unwritten") }

// Token mints an access token for a persona; scope "" takes the persona's default.
func (s *AuthServer) Token(persona, scope string) (string, error) { panic("unwritten") }

// ClientKey is the private key of app-backend for private_key_jwt, so that the tour can show it.
func (s *AuthServer) ClientKey() crypto.Signer { panic("unwritten") }
