package demo

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
)

//go:embed authserver.html
var pageText string

//go:embed authserver.css
var pageStyle string

// page is the sign-in page: plain HTML, no script, one style sheet that the policy names by its digest.
type page struct {
	template *template.Template
	style    string // source expression of the style
}

func newPage() page {
	sum := sha256.Sum256([]byte(pageStyle))
	return page{
		template: template.Must(template.New("page").Parse(pageText)),
		style:    "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'",
	}
}

type pageData struct {
	Style   template.CSS
	Problem string
	Action  string
	Login   string
	Client  string
	Goes    string // host that the browser goes to afterwards
	Scopes  []string
	People  []Persona
	Patient string // suggested launch patient; "" when no scope asks for one
}

// signIn shows who asks for what, and the people to choose from.
func (p page) signIn(w http.ResponseWriter, action, login, client string, a authorization, personas []Persona) {
	d := pageData{Action: action, Login: login, Client: client, Scopes: strings.Fields(a.session.Scope)}
	origin := ""
	if u, err := url.Parse(a.redirect); err == nil {
		d.Goes, origin = u.Host, u.Scheme+"://"+u.Host
	}
	for _, x := range personas {
		if x.ACR != "" {
			d.People = append(d.People, x)
		}
		if x.Patient != "" && patientBound(a.session.Scope) {
			d.Patient = x.Patient
		}
	}
	// Browsers hold the redirect that follows a form against form-action, hence the app's origin.
	p.write(w, http.StatusOK, d, "'self' "+origin)
}

// problem says why nobody is sent back to an app.
func (p page) problem(w http.ResponseWriter, text string) {
	p.write(w, http.StatusBadRequest, pageData{Problem: text}, "'none'")
}

func (p page) write(w http.ResponseWriter, status int, d pageData, formAction string) {
	d.Style = template.CSS(pageStyle) //nolint:gosec // our own file, embedded
	var out strings.Builder
	if err := p.template.Execute(&out, d); err != nil {
		http.Error(w, "The page cannot be made.", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src "+p.style+"; form-action "+formAction+"; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Frame-Options", "DENY")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(out.String()))
}
