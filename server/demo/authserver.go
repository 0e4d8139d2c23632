package demo

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// AuthServerConfig configures the development authorization server.
type AuthServerConfig struct {
	Dir      string // keys and refresh tokens live here (0600), so that tokens survive a restart
	Issuer   string // e.g. http://127.0.0.1:8080/oauth2
	Audience string // the FHIR base URL, and the value of aud
	Personas []Persona
	Logger   *slog.Logger
	Now      func() time.Time

	// LogoutURL, when set, is where the end of a session is told (OpenID Connect Back-Channel Logout 1.0). Of one access token that was
	// revoked by itself (RFC 7009) that protocol knows nothing: OnRevoke, when set, is told its jti. Both happen before the request
	// that revoked is answered.
	LogoutURL string
	OnRevoke  func(jti string)
}

// AuthServer is an OpenID provider and OAuth 2 authorization server for development: discovery, JWKS, authorize, token,
// introspect, revoke, register nothing. It follows OAuth 2.0 Security Best Current Practice (RFC 9700): authorization code
// with PKCE S256 only, exact redirect URIs, refresh token rotation with reuse detection. It asks for no password: whoever
// reaches it may be any persona, which is why serve has no way to mount it. Safe for concurrent use.
type AuthServer struct {
	cfg    AuthServerConfig
	prefix string // path of the issuer
	keys   *keyRing
	client *clientKeys
	state  *sessions
	logins logins
	proofs usedProofs
	page   page
	rotate sync.Mutex
}

// Clients. The first three are public (native and browser apps: PKCE, no secret) and may use any loopback redirect URI.
const (
	commandClient   = "chartkeep-demo"
	dashboardClient = "chartkeep-dashboard"
	appClient       = "my-app"
	backendClient   = "app-backend"
)

// publicClients maps ids to what the sign-in page calls them.
func publicClients() map[string]string {
	return map[string]string{
		commandClient:   "Chartkeep demo",
		dashboardClient: "Chartkeep dashboard",
		appClient:       "An app on this machine",
	}
}

const (
	accessLifetime  = 10 * time.Minute
	onlineLifetime  = 12 * time.Hour      // refresh tokens of online_access
	offlineLifetime = 30 * 24 * time.Hour // refresh tokens of offline_access
	codeLifetime    = time.Minute
	loginLifetime   = 10 * time.Minute
	assertionLimit  = 5 * time.Minute // SMART Backend Services: exp no more than five minutes in the future
	clockLeeway     = 30 * time.Second
	formLimit       = 64 << 10
)

// NewAuthServer loads or makes its keys: the issuer's two, and app-backend's, which it also writes to
// Dir/app-backend.jwk.json (ES384) and Dir/app-backend-rs384.jwk.json.
func NewAuthServer(cfg AuthServerConfig) (*AuthServer, error) {
	at, err := url.Parse(cfg.Issuer)
	if err != nil || at.Host == "" || strings.HasSuffix(at.Path, "/") || at.RawQuery != "" || at.Fragment != "" {
		return nil, fmt.Errorf("starting the development authorization server: issuer %q is not a URL without trailing slash", cfg.Issuer)
	}
	if cfg.Audience == "" {
		return nil, errors.New("starting the development authorization server: no audience")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &AuthServer{cfg: cfg, prefix: at.Path, page: newPage(), logins: logins{pending: map[string]authorization{}, codes: map[string]authorization{}}, proofs: usedProofs{seen: map[string]time.Time{}}}
	err = os.MkdirAll(cfg.Dir, 0o711)
	if err == nil {
		s.keys, err = loadKeyRing(cfg.Dir)
	}
	if err == nil {
		s.client, err = loadClientKeys(cfg.Dir)
	}
	if err == nil {
		s.state, err = loadSessions(cfg.Dir, cfg.Now)
	}
	if err != nil {
		return nil, fmt.Errorf("starting the development authorization server: %w", err)
	}
	return s, nil
}

// Rotate makes the published next key the signing key and publishes a new next one. Tokens that the old key signed stay
// valid until they expire, for as long as its public half stays published.
func (s *AuthServer) Rotate() error {
	s.rotate.Lock()
	defer s.rotate.Unlock()
	if err := s.keys.rotate(s.cfg.Now()); err != nil {
		return fmt.Errorf("rotating the issuer's keys: %w", err)
	}
	s.cfg.Logger.Info("issuer keys rotated")
	return nil
}

// Handler serves the issuer's paths, with the issuer's path prefix ("/oauth2/…"): .well-known/openid-configuration,
// .well-known/oauth-authorization-server, jwks, authorize, sign-in, token, introspect, revoke, rotate.
func (s *AuthServer) Handler() http.Handler {
	mux := http.NewServeMux()
	open := func(path string, methods string, h http.HandlerFunc) { // for browser apps of any origin; no cookies are involved
		mux.HandleFunc(s.prefix+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			if r.Method == http.MethodOptions {
				w.Header().Set("Access-Control-Allow-Methods", methods)
				w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type, DPoP")
				w.Header().Set("Access-Control-Max-Age", "600")
				w.WriteHeader(http.StatusNoContent)
				return
			}
			allow(methods, h)(w, r)
		})
	}
	// Forms of our own page, and calls that are open to programs on this machine: no web page may send them across origins.
	var sameOrigin http.CrossOriginProtection
	own := func(path string, h http.HandlerFunc) {
		mux.Handle(s.prefix+path, sameOrigin.Handler(allow("POST", h)))
	}
	open("/.well-known/openid-configuration", "GET", s.discovery)
	open("/.well-known/oauth-authorization-server", "GET", s.discovery)
	open("/jwks", "GET", s.jwks)
	open("/token", "POST", s.token)
	open("/revoke", "POST", s.revoke)
	mux.HandleFunc(s.prefix+"/authorize", allow("GET, POST", s.authorize))
	own("/sign-in", s.signIn)
	own("/introspect", s.introspect)
	own("/rotate", func(w http.ResponseWriter, r *http.Request) {
		if !fromLoopback(r) {
			refuse(w, http.StatusForbidden, "access_denied", "keys are rotated from this machine only")
			return
		}
		if err := s.Rotate(); err != nil {
			s.fail(w, r, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		if r.Body != nil {
			r.Body = http.MaxBytesReader(w, r.Body, formLimit)
		}
		mux.ServeHTTP(w, r)
	})
}

func allow(methods string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if method := r.Method; !slices.Contains(strings.Split(methods, ", "), method) && (method != http.MethodHead || !strings.Contains(methods, "GET")) {
			w.Header().Set("Allow", methods)
			refuse(w, http.StatusMethodNotAllowed, "invalid_request", "use "+methods)
			return
		}
		h(w, r)
	}
}

func fromLoopback(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

func (s *AuthServer) discovery(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=300")
	answer(w, http.StatusOK, s.Metadata())
}

// Metadata is what the server says about itself (OpenID Connect Discovery 1.0 section 3, RFC 8414 section 2).
func (s *AuthServer) Metadata() map[string]any {
	return map[string]any{
		"issuer":                                s.cfg.Issuer,
		"authorization_endpoint":                s.cfg.Issuer + "/authorize",
		"token_endpoint":                        s.cfg.Issuer + "/token",
		"jwks_uri":                              s.cfg.Issuer + "/jwks",
		"introspection_endpoint":                s.cfg.Issuer + "/introspect",
		"revocation_endpoint":                   s.cfg.Issuer + "/revoke",
		"backchannel_logout_supported":          true,
		"backchannel_logout_session_supported":  true,
		"response_types_supported":              []string{"code"},
		"response_modes_supported":              []string{"query"},
		"grant_types_supported":                 []string{"authorization_code", "refresh_token", "client_credentials"},
		"code_challenge_methods_supported":      []string{"S256"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256", "RS256"},
		"scopes_supported": []string{"openid", "fhirUser", "profile", "launch/patient", "offline_access", "online_access",
			"patient/*.cruds", "user/*.cruds", "system/*.cruds"},
		"claims_supported":                                 []string{"sub", "auth_time", "acr", "amr", "sid", "fhirUser", "name"},
		"token_endpoint_auth_methods_supported":            []string{"none", "private_key_jwt"},
		"token_endpoint_auth_signing_alg_values_supported": []string{"ES384", "RS384"},
		"introspection_endpoint_auth_methods_supported":    []string{"none", "private_key_jwt"},
		"revocation_endpoint_auth_methods_supported":       []string{"none", "private_key_jwt"},
		"authorization_response_iss_parameter_supported":   true,
		"dpop_signing_alg_values_supported":                proofAlgorithms(),
		"acr_values_supported":                             []string{acrPassword, acrTwo},
		"prompt_values_supported":                          []string{"none", "login", "consent", "select_account"},
	}
}

func (s *AuthServer) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=60")
	answer(w, http.StatusOK, map[string]any{"keys": s.keys.public(s.cfg.Now())})
}

// answer writes a JSON body. Handlers that answer with tokens forbid caching before.
func answer(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body, json.Deterministic(true))
	if err != nil {
		http.Error(w, `{"error":"server_error"}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that went away needs no answer
}

// refuse is the error answer of RFC 6749 section 5.2.
func refuse(w http.ResponseWriter, status int, code, description string) {
	w.Header().Set("Cache-Control", "no-store")
	answer(w, status, map[string]string{"error": code, "error_description": description})
}

func (s *AuthServer) fail(w http.ResponseWriter, r *http.Request, err error) {
	s.cfg.Logger.Error("authorization server failed", "path", r.URL.Path, "error", err)
	refuse(w, http.StatusInternalServerError, "server_error", "see the server's log")
}

func (s *AuthServer) persona(name string) (Persona, bool) {
	i := slices.IndexFunc(s.cfg.Personas, func(p Persona) bool { return p.Name == name })
	if i < 0 {
		return Persona{}, false
	}
	return s.cfg.Personas[i], true
}

// revoked tells whoever wants to know.
func (s *AuthServer) revoked(jti, sid string) {
	if jti != "" && s.cfg.OnRevoke != nil {
		s.cfg.OnRevoke(jti)
	}
	if sid != "" {
		s.loggedOut(sid)
	}
}
