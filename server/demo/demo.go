// Package demo is everything that the embedded default needs beside the server itself: a private PostgreSQL cluster, a
// development authorization server, and a generator of synthetic patients. Nothing here is reachable from serve.
package demo

import (
	"crypto"
	"log/slog"
	"net/http"
	"time"
)

// Persona is a demo user or client.
type Persona struct {
	Name     string   // e.g. dr-rivera
	Display  string   // e.g. Dr. Ana Rivera
	What     string   // what it is, in plain words
	Roles    []string // clinician, nurse, registrar, billing, researcher, patient, officer, security, admin, backend
	FHIRUser string   // Practitioner/…, Patient/…; "" for none
	Patient  string   // launch patient of patient personas
	Scope    string   // default scope of `chartkeep token`
	Client   string   // client id
}

// Personas lists DESIGN.md's personas. patientOne is the id of the patient that patient-1 is.
func Personas(patientOne string) []Persona { panic("unwritten") }

// Practitioner ids that generated Encounters and CareTeams name and that the personas are.
const (
	RiveraID = "6f1d3a52-4d0e-4a37-9d53-0d8ff2a4a001"
	ChenID   = "6f1d3a52-4d0e-4a37-9d53-0d8ff2a4a002"
	OkaforID = "6f1d3a52-4d0e-4a37-9d53-0d8ff2a4a003"
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

// NewAuthServer loads or makes its keys.
func NewAuthServer(cfg AuthServerConfig) (*AuthServer, error) { panic("unwritten") }

// Handler serves the issuer's paths, with the issuer's path prefix ("/oauth2/…").
func (s *AuthServer) Handler() http.Handler { panic("unwritten") }

// Token mints an access token for a persona; scope "" takes the persona's default.
func (s *AuthServer) Token(persona, scope string) (string, error) { panic("unwritten") }

// ClientKey is the private key of app-backend for private_key_jwt, so that the tour can show it.
func (s *AuthServer) ClientKey() crypto.Signer { panic("unwritten") }

// Generate writes n synthetic patients as FHIR R4 transaction bundles with PUT entries, one call of emit each, the
// practitioners, organisation and locations first. The same seed gives the same bytes. It returns the id of the first patient.
func Generate(n int, seed uint64, emit func(bundle []byte) error) (patientOne string, err error) {
	panic("unwritten")
}
