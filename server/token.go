package main

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/chartkeep/chartkeep/server/demo"
)

// tokenVerb prints a bearer token.
type tokenVerb struct {
	Persona string `arg:"" help:"Who asks, e.g. dr-rivera; demo lists them."`
	Data    string `help:"Data directory of the demo." default:"${default_data}" placeholder:"DIR"`
	Scope   string `help:"SMART scopes; the persona's own when empty." placeholder:"SCOPES"`
}

// Help is shown by --help.
func (*tokenVerb) Help() string {
	return "Example: curl -H \"Authorization: Bearer $(chartkeep token dr-rivera)\" http://127.0.0.1:8080/fhir/R4/Patient?_count=1"
}

// Run mints the token with the demo's signing key; the server need not be asked.
func (v *tokenVerb) Run(term terminal) error {
	f, err := readDemoFile(v.Data)
	if err != nil {
		return err
	}
	issuer, err := openIssuer(v.Data, f, nil)
	if err != nil {
		return err
	}
	personas := demo.Personas("")
	if !slices.ContainsFunc(personas, func(p demo.Persona) bool { return p.Name == v.Persona }) {
		return usage("no persona %q; there are %s", v.Persona, personaNames(personas))
	}
	token, err := issuer.Token(v.Persona, v.Scope)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(term.out, token)
	return err
}

// openIssuer opens the demo's authorization server on its folder, to serve it or only to mint a token.
func openIssuer(dir string, f *demoFile, revoked func(tokenID, session string)) (*demo.AuthServer, error) {
	p, err := readPopulation(dir)
	if err != nil {
		return nil, err
	}
	return demo.NewAuthServer(demo.AuthServerConfig{
		Dir: filepath.Join(dir, demoOAuth), Issuer: f.Issuer, Audience: f.FHIR, Personas: demo.Personas(p.PatientOne), OnRevoke: revoked,
	})
}

func personaNames(personas []demo.Persona) string {
	s := ""
	for i, p := range personas {
		if i > 0 {
			s += ", "
		}
		s += p.Name
	}
	return s
}
