package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/server/demo"
)

// tokenVerb prints a bearer token.
type tokenVerb struct {
	Persona string `arg:"" help:"Who asks, e.g. dr-rivera; demo lists them."`
	Data    string `help:"Data directory of the demo." default:"${default_data}" placeholder:"DIR"`
	Scope   string `help:"SMART scopes; the persona's own when empty." placeholder:"SCOPES"`

	ACR     string        `name:"acr" help:"Authentication context class that the token names; the persona's own when empty." placeholder:"CLASS"`
	AuthAge time.Duration `help:"How long ago the sign-in shall have been." placeholder:"DURATION"`
	DPoP    string        `name:"dpop" help:"Bind the token to the key in this file (a private JWK, made when missing), and print the headers of one request: see --call." placeholder:"FILE"`
	Call    string        `help:"With --dpop: the request that the proof is for." placeholder:"METHOD URL"`
	Nonce   string        `help:"With --dpop: the DPoP-Nonce that the server answered last." placeholder:"NONCE"`
}

// Help is shown by --help.
func (*tokenVerb) Help() string {
	return `Example: curl -H "Authorization: Bearer $(chartkeep token dr-rivera)" http://127.0.0.1:8080/fhir/R4/Patient?_count=1
With a token that is bound to a key (RFC 9449), whose proof is good for one request:
  chartkeep token dr-rivera --dpop key.json --call "GET $URL" | curl -H @- "$URL"`
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
	m := demo.Minted{Scope: v.Scope, ACR: v.ACR, AuthAge: v.AuthAge}
	if v.DPoP != "" {
		return v.bound(term, issuer, m)
	}
	if v.Call != "" || v.Nonce != "" {
		return usage("--call and --nonce go with --dpop")
	}
	token, err := issuer.Mint(v.Persona, m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(term.out, token)
	return err
}

// bound prints the headers of one request with a token that is bound to a key.
func (v *tokenVerb) bound(term terminal, issuer *demo.AuthServer, m demo.Minted) error {
	method, target, ok := strings.Cut(v.Call, " ")
	if !ok || method == "" || !strings.Contains(target, "://") {
		return usage("--dpop needs --call \"METHOD URL\"")
	}
	target, _, _ = strings.Cut(target, "?")
	holder, err := demo.OpenHolder(v.DPoP)
	if err != nil {
		return err
	}
	m.Key = holder.Thumbprint()
	token, err := issuer.Mint(v.Persona, m)
	if err != nil {
		return err
	}
	proof, err := holder.Proof(method, target, token, v.Nonce, time.Now())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(term.out, "Authorization: DPoP %s\nDPoP: %s\n", token, proof)
	return err
}

// openIssuer opens the demo's authorization server on its folder, to serve it or only to mint a token.
func openIssuer(dir string, f *demoFile, revoked func(tokenID string)) (*demo.AuthServer, error) {
	p, err := readPopulation(dir)
	if err != nil {
		return nil, err
	}
	return demo.NewAuthServer(demo.AuthServerConfig{
		Dir: filepath.Join(dir, demoOAuth), Issuer: f.Issuer, Audience: f.FHIR, Personas: demo.Personas(p.PatientOne), OnRevoke: revoked, LogoutURL: f.API + "/backchannel-logout",
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
