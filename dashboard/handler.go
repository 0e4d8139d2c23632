package main

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"time"
)

// dist is the built front end. A fresh clone has only .gitkeep there, so that the program builds without Node.js.
//
//go:embed all:frontend/dist
var dist embed.FS

// unbuilt is shown in place of a front end that was not built before the program was.
const unbuilt = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Chartkeep dashboard</title>
<h1>The pages are not built yet</h1>
<p>This program was built without its front end. In the source folder run
<code>cd dashboard/frontend &amp;&amp; npm ci &amp;&amp; npm run build</code>, then build the program again.</p></html>`

// noncePlaceholder stands in the built index.html where the nonce of one page load goes (vite.config.ts has the same word).
const noncePlaceholder = "__NONCE__"

// config is what a handler needs to know.
type config struct {
	API    string // origin of the API
	Host   string // the only Host that is answered: a page of another name that resolves to us is refused (DNS rebinding)
	Logger *slog.Logger

	// OpenBrowser opens the system browser at a URL. When set the handler stands behind a window of ours: that window is the
	// only session, and sign-in happens in the system browser (RFC 8252). Otherwise the handler serves browsers, each with a
	// session of its own, and sign-in happens in the same tab.
	OpenBrowser func(url string)

	Pages fs.FS            // dist when nil
	Now   func() time.Time // time.Now when nil
}

// handler serves the pages, their sessions, and what they may read of the API. Safe for concurrent use.
type handler struct {
	cfg      config
	index    []byte // nil when the front end was not built
	sessions *sessions
	client   *http.Client
	mux      *http.ServeMux
}

func newHandler(cfg config) (*handler, error) {
	if cfg.Pages == nil {
		built, err := fs.Sub(dist, "frontend/dist")
		if err != nil {
			return nil, fmt.Errorf("opening the pages: %w", err)
		}
		cfg.Pages = built
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	h := &handler{
		cfg:      cfg,
		sessions: newSessions(cfg),
		mux:      http.NewServeMux(),
		client: &http.Client{
			Timeout: 20 * time.Second,
			// A token goes where it was meant to go, nowhere that an answer points to.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	h.index, _ = fs.ReadFile(cfg.Pages, "index.html") // absent in a fresh clone: page says so

	h.mux.HandleFunc("GET /{$}", h.page)
	h.mux.HandleFunc("GET "+callbackPath, h.page) // the page hands its own query back in a request that carries the cookie
	h.mux.HandleFunc("GET /assets/{name}", h.asset)
	h.mux.HandleFunc("POST /session", h.beginSession)
	h.mux.HandleFunc("GET /session", h.within(h.showSession))
	h.mux.HandleFunc("DELETE /session", h.within(h.signOut))
	h.mux.HandleFunc("POST /session/sign-in", h.within(h.signIn))
	h.mux.HandleFunc("POST /session/complete", h.within(h.complete))
	h.mux.HandleFunc("POST /session/cancel", h.within(h.cancelSignIn))
	h.mux.HandleFunc("GET /api/readyz", h.within(h.readiness))
	h.mux.HandleFunc("GET /api/v1/audit/events", h.within(h.events))
	h.mux.HandleFunc("GET /api/v1/audit/events/{id}", h.within(h.event))
	return h, nil
}

// close ends every sign-in and forgets all tokens.
func (h *handler) close() {
	h.sessions.clear()
	h.client.CloseIdleConnections()
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Cache-Control", "no-store")
	head.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	head.Set("Cross-Origin-Opener-Policy", "same-origin")
	head.Set("Cross-Origin-Resource-Policy", "same-origin")
	head.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("X-Content-Type-Options", "nosniff")
	if r.Host != h.cfg.Host {
		refuse(w, http.StatusMisdirectedRequest, "This address is not the dashboard's.")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	h.mux.ServeHTTP(w, r)
}

// page is index.html with a fresh nonce, which lets the component library add its few computed style sheets while
// everything else inline stays forbidden.
func (h *handler) page(w http.ResponseWriter, _ *http.Request) {
	nonce := rand.Text()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-"+nonce+"'; img-src 'self' data:; font-src 'self'; "+
		"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	text := h.index
	if text == nil {
		text = []byte(unbuilt)
	}
	_, _ = w.Write(bytes.ReplaceAll(text, []byte(noncePlaceholder), []byte(nonce))) // a client that went away needs no answer
}

// asset is a script, style or picture of the build. Types are named here: the system's table may say otherwise (on
// Windows, the registry), and nosniff would then keep the page blank.
func (h *handler) asset(w http.ResponseWriter, r *http.Request) {
	types := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
	name := r.PathValue("name")
	kind, known := types[path.Ext(name)]
	text, err := fs.ReadFile(h.cfg.Pages, "assets/"+name)
	if !known || err != nil {
		refuse(w, http.StatusNotFound, "There is no such file.")
		return
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(text)
}

// problem is RFC 9457, in the API's own shape, so that the pages know one kind of refusal.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	RequestID string `json:"request_id"`
}

// Types of problems that the pages treat in their own way.
const (
	offline = "urn:chartkeep:offline" // the API or the issuer does not answer
	strange = "urn:chartkeep:page"    // no session of this page is known here; it begins a new one
)

func refuse(w http.ResponseWriter, status int, title string) {
	refuseAs(w, "about:blank", status, title)
}

func refuseAs(w http.ResponseWriter, kind string, status int, title string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	writeJSON(w, problem{Type: kind, Title: title, Status: status})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, v)
}

func writeJSON(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v) // values of ours always encode; a client that went away needs no answer
}

// isJSON reports whether a media type is one that the pages read.
func isJSON(mediaType string) bool {
	return slices.Contains([]string{"application/json", "application/problem+json"}, mediaType)
}
