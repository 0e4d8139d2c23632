package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// serveVerb is production.
type serveVerb struct {
	deployment     `embed:""`
	emergencyFlags `embed:""`
	limits         `embed:""`
	logoff         `embed:""`

	clientCertificates `embed:""`

	Addr           string   `help:"Address to listen on." default:"127.0.0.1:8443" placeholder:"HOST:PORT"`
	PublicURL      string   `help:"URL under which clients reach the server, without /fhir/R4; made from --addr when empty." placeholder:"URL"`
	Issuer         string   `help:"Issuer of access tokens: exact value of iss, its discovery document is read at start." placeholder:"URL"`
	Issuers        string   `help:"JSON file of several issuers and what each of them is trusted with, in place of --issuer; see README, Deploy." placeholder:"FILE"`
	Audience       string   `help:"Value that aud of access tokens must contain; the FHIR base URL when empty." placeholder:"URL"`
	TLSCert        string   `name:"tls-cert" help:"Certificate chain, PEM." placeholder:"FILE"`
	TLSKey         string   `name:"tls-key" help:"Private key, PEM." placeholder:"FILE"`
	BehindTLSProxy bool     `name:"behind-tls-proxy" help:"TLS ends at a proxy in front; plaintext HTTP is then allowed off loopback."`
	TrustedProxy   []string `help:"Networks whose X-Forwarded-For is believed." placeholder:"CIDR"`
	NameSearch     string   `help:"How names are found and what a dump leaks (phi/THREATS.md): by prefix as FHIR asks, exact (whole names), or compound (only together with a birth date or year); +phonetic adds a search by sound and year of birth. The first start chooses; later it must be what the index is." enum:",prefix,exact,compound,prefix+phonetic,exact+phonetic,compound+phonetic" default:"" placeholder:"KIND"`
	MetricsAddr    string   `help:"Serve /metrics on a listener of its own." placeholder:"HOST:PORT"`
	Pprof          bool     `help:"Serve /debug/pprof on the API's listener, loopback only."`
}

// Help is shown by --help.
func (*serveVerb) Help() string {
	return `Refuses plaintext HTTP off loopback, development keys and development issuers. Secrets are files.
Example: chartkeep serve --database-url postgres://chartkeep@db/chartkeep --database-password-file /run/secrets/db \
    --kms aws-kms://arn:aws:kms:us-east-1:111122223333:key/ID --journal /var/lib/chartkeep/journal --checkpoint-key /etc/chartkeep/checkpoint --issuer https://id.example.org --tls-cert cert.pem --tls-key key.pem`
}

// Run serves until ctx is done, then drains handlers, journal and shipper.
func (v *serveVerb) Run(ctx context.Context, t terminal) error {
	if (v.TLSCert == "") != (v.TLSKey == "") {
		return usage("--tls-cert and --tls-key go together")
	}
	if err := v.clientCertificates.check(v); err != nil {
		return err
	}
	issuers, err := v.trusts()
	if err != nil {
		return err
	}
	emergency, err := v.emergency()
	if err != nil {
		return err
	}
	sessions, err := v.logoff.byRole()
	if err != nil {
		return err
	}
	s, err := v.resolve(true)
	if err != nil {
		return err
	}
	s.sessions = sessions
	s.emergency, s.issuers = emergency, issuers
	return v.serve(ctx, s, t)
}

func (v *serveVerb) serve(ctx context.Context, s *settings, t terminal) error {
	tune()
	sink := newLog(t.err)
	defer sink.close()
	log := sink.Logger
	l, err := net.Listen("tcp", v.Addr)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	defer l.Close()
	if l, err = newCrowd(l, connectionsOfOne, v.TrustedProxy, log); err != nil {
		return err
	}
	if v.Pprof && !loopback(l.Addr()) {
		return usage("--pprof is for a loopback --addr only")
	}
	scheme := "https"
	switch {
	case v.TLSCert != "":
		if l, err = withTLS(l, v.TLSCert, v.TLSKey, v.demand); err != nil {
			return err
		}
	case v.BehindTLSProxy:
	case !loopback(l.Addr()):
		return usage("--addr %s would serve PHI in plaintext; give --tls-cert and --tls-key, or --behind-tls-proxy", v.Addr)
	default:
		scheme = "http"
	}
	public := strings.TrimSuffix(v.PublicURL, "/")
	if public == "" {
		public = scheme + "://" + l.Addr().String()
	}
	var side net.Listener
	if v.MetricsAddr != "" {
		if side, err = net.Listen("tcp", v.MetricsAddr); err != nil {
			return fmt.Errorf("listening for metrics: %w", err)
		}
	}
	audience := v.Audience
	if audience == "" {
		audience = public + "/fhir/R4"
	}
	s.names = phi.NameSearch(v.NameSearch)
	r, err := openRooms(ctx, s, log)
	if err != nil {
		return err
	}
	verifier, endpoints, err := newVerifier(ctx, r, s.issuers, public+"/fhir/R4", audience, log)
	if err != nil {
		return errors.Join(err, r.close(ctx))
	}
	a, err := startAPI(ctx, r, surface{
		base: public + "/fhir/R4", records: r.records, issuer: endpoints, levels: s.levels(), emergency: s.emergency, proxies: v.TrustedProxy, limits: v.limits.rest(), certificates: v.where(), pprof: v.Pprof, metrics: side,
		verifier: verifier,
	}, l, log)
	if err != nil {
		return errors.Join(err, r.close(ctx))
	}
	log.Info("serving", "base", public+"/fhir/R4", "version", version())
	err = a.wait(ctx)
	log.Info("stopping")
	return errors.Join(err, a.close(ctx), r.close(ctx))
}

// migrateVerb brings the schema up to date.
type migrateVerb struct {
	Data              string `help:"Data directory of a running demo." placeholder:"DIR"`
	DatabaseURL       string `help:"Connection URL of a role that may create roles, without a password." placeholder:"URL"`
	AdminPasswordFile string `help:"File with that role's password." placeholder:"FILE"`
	PasswordFile      string `help:"File with the password that role chartkeep shall have; left alone when empty." placeholder:"FILE"`
}

// Help is shown by --help.
func (*migrateVerb) Help() string {
	return "Example: chartkeep migrate --database-url postgres://postgres@db/chartkeep --admin-password-file admin --password-file app"
}

// Run migrates; it is safe to run at any time, by several at once.
func (v *migrateVerb) Run(ctx context.Context, t terminal) error {
	dsn, password := "", ""
	switch {
	case v.Data != "":
		f, err := readDemoFile(v.Data)
		if err != nil {
			return err
		}
		dsn = f.DatabaseURL
	case v.DatabaseURL != "":
		var err error
		if dsn, err = withPassword(v.DatabaseURL, v.AdminPasswordFile); err != nil {
			return err
		}
		if v.PasswordFile != "" {
			if password, err = readSecret(v.PasswordFile); err != nil {
				return err
			}
		}
	default:
		return usage("--database-url is missing")
	}
	if err := postgres.Migrate(ctx, dsn, password); err != nil {
		return err
	}
	fmt.Fprintln(t.out, "the database is at the newest schema")
	return nil
}
