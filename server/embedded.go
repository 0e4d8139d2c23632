package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/server/demo"
	"github.com/chartkeep/chartkeep/server/postgres"
	"github.com/chartkeep/chartkeep/server/rest"
)

// defaultData is where a demo keeps its state unless told otherwise.
const defaultData = ".chartkeep"

// defaultAddr is where the demo listens unless told otherwise, when it is free.
const defaultAddr = "127.0.0.1:8080"

// demoVerb runs everything embedded.
type demoVerb struct {
	limits     `embed:""`
	demoLogoff `embed:""`

	Data             string   `help:"Folder for everything the demo keeps between runs." default:"${default_data}" placeholder:"DIR"`
	Addr             string   `help:"Address of the API; 127.0.0.1:8080, or a free port when that is taken." placeholder:"HOST:PORT"`
	Patients         int      `help:"How many synthetic patients to make." default:"100"`
	Import           []string `help:"FHIR files or folders to import at start." type:"path" placeholder:"PATH"`
	AuditDurability  string   `help:"What an audit event must survive before PHI leaves: process, power or database." enum:"process,power,database" default:"power"`
	NameSearch       string   `help:"How names are indexed: prefix, exact or compound; the first start chooses (see serve --help)." enum:",prefix,exact,compound,prefix+phonetic,exact+phonetic,compound+phonetic" default:"" placeholder:"KIND"`
	UniqueIdentifier []string `help:"System of identifiers of which no two patients may carry the same value; may be repeated." sep:"none" placeholder:"SYSTEM"`
	Pprof            bool     `help:"Serve /debug/pprof."`
}

// Help is shown by --help.
func (*demoVerb) Help() string {
	return `Starts a private PostgreSQL, a development authorization server, makes synthetic patients and serves the API; Ctrl-C stops it all.
Everything is kept in the data folder and taken up by the next start, also after a kill -9. No real patient belongs into a demo.
Example: chartkeep demo --patients 1000 --import ../shared/data/synthea`
}

// population is what the generator made in a data folder.
type population struct {
	Patients   int    `json:"patients"`
	PatientOne string `json:"patient_one"`
}

func readPopulation(dir string) (population, error) {
	var p population
	b, err := os.ReadFile(filepath.Join(dir, demoPopulation))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("reading %s: %w", demoPopulation, err)
	}
	return p, nil
}

// Run runs the demo until ctx is done.
func (v *demoVerb) Run(ctx context.Context, t terminal) (err error) {
	began := time.Now()
	if v.Patients < 1 {
		return usage("--patients must be 1 or more")
	}
	for _, p := range v.Import {
		if _, err := os.Stat(p); err != nil {
			return usage("--import: %v", err)
		}
	}
	sessions, err := (*logoff)(&v.demoLogoff).byRole()
	if err != nil {
		return err
	}
	tune()
	if err := os.MkdirAll(filepath.Join(v.Data, "keys"), 0o700); err != nil {
		return fmt.Errorf("making data folder: %w", err)
	}
	step := func(format string, args ...any) { fmt.Fprintf(t.err, format+"\n", args...) }

	cluster, err := demo.StartCluster(ctx, demo.ClusterConfig{Dir: v.Data, Progress: t.err, Install: true})
	if err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()

	s, admin, err := prepare(ctx, v.Data, cluster, durability(v.AuditDurability))
	if err != nil {
		return err
	}
	s.sessions = sessions
	s.unique, s.names = v.UniqueIdentifier, phi.NameSearch(v.NameSearch)
	logFile, err := os.OpenFile(filepath.Join(v.Data, demoLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening log: %w", err)
	}
	defer logFile.Close()
	sink := newLog(logFile)
	defer sink.close()
	log := sink.Logger
	r, err := openRooms(ctx, s, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()

	if err := v.populate(ctx, r.records, step); err != nil {
		return err
	}
	if len(v.Import) > 0 {
		if err := importPaths(ctx, r.records, v.Import, t); err != nil {
			if ctx.Err() != nil {
				return err
			}
			step("import: %v", err)
		}
	}

	l, err := v.listen()
	if err != nil {
		return err
	}
	origin := "http://" + l.Addr().String()
	f := &demoFile{
		FHIR: origin + "/fhir/R4", API: origin + "/v1", Issuer: origin + "/oauth2", Metrics: origin + "/metrics",
		DatabaseURL: admin, Personas: map[string]string{}, CheckpointKey: s.keys[0].Verifier,
	}
	personas := demo.Personas("")
	for _, p := range personas {
		f.Personas[p.Name] = p.What
	}
	verifier, err := auth.NewVerifier(auth.VerifierConfig{
		Issuers: []auth.IssuerConfig{{Issuer: f.Issuer, Audience: f.FHIR, JWKSURL: f.Issuer + "/jwks", AssertsSignIn: true, RolesInToken: true}},
		Base:    f.FHIR, Insecure: true, Logger: log, Revocations: r.revoked, Sessions: r.sessions,
	})
	if err != nil {
		return fmt.Errorf("configuring token verification: %w", err)
	}
	issuer, err := openIssuer(v.Data, f, func(tokenID string) {
		what := auth.Revocation{Kind: auth.RevokeToken, ID: tokenID, Reason: "revoked by its client", By: f.Issuer}
		if err := r.revoked.Revoke(ctx, what); err != nil {
			log.Error("what the issuer revoked is not revoked here", "error", err)
		}
	})
	if err != nil {
		return fmt.Errorf("starting authorization server: %w", err)
	}
	var said rest.Issuer
	if metadata, err := json.Marshal(issuer.Metadata()); err != nil || json.Unmarshal(metadata, &said) != nil {
		return errors.New("reading the authorization server's metadata")
	}
	a, err := startAPI(ctx, r, surface{
		base:    f.FHIR,
		records: r.records,
		mount:   map[string]http.Handler{"/oauth2": issuer.Handler()}, pprof: v.Pprof, levels: s.levels(), limits: v.limits.rest(),
		issuer:   said,
		verifier: verifier,
	}, l, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	if err := awaitReady(ctx, origin+"/readyz"); err != nil {
		return err
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(v.Data, demoJSON), append(b, '\n')); err != nil {
		return err
	}
	v.welcome(t, f, personas, time.Since(began))
	err = a.wait(ctx)
	step("\nstopping: finishing requests, shipping the audit trail, stopping PostgreSQL")
	return err
}

// prepare migrates a cluster's database and makes the development key and the program's password in a data folder that has none. It
// returns the deployment's settings and the superuser's connection URL.
func prepare(ctx context.Context, dir string, cluster *demo.Cluster, level audit.Level) (_ *settings, admin string, err error) {
	if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
		return nil, "", fmt.Errorf("making data folder: %w", err)
	}
	password, err := ensureSecret(filepath.Join(dir, demoPasswordFile))
	if err != nil {
		return nil, "", err
	}
	admin = cluster.DSN(demoDatabase)
	if err := postgres.Migrate(ctx, admin, password); err != nil {
		return nil, "", fmt.Errorf("migrating: %w", err)
	}
	if _, err := keyset.NewFileRoot(filepath.Join(dir, demoRootKey), true); err != nil {
		return nil, "", fmt.Errorf("making development key: %w", err)
	}
	if _, err := ensureCheckpointKey(filepath.Join(dir, demoCheckpoint)); err != nil {
		return nil, "", err
	}
	s, err := demoSettings(dir, admin, level)
	return s, admin, err
}

// generate makes synthetic patients through the same sealed, audited path as everything else. It returns the first patient's id and
// how many resources there are.
func generate(ctx context.Context, records *phi.Records, patients int, client string) (one string, resources int, err error) {
	caller := &phi.Caller{Principal: system(client), RequestID: "generated-patients", Start: time.Now()}
	one, err = demo.Generate(patients, demoSeed, func(bundle []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		res, err := records.Import(ctx, caller, bundle, true)
		if err != nil {
			return err
		}
		if len(res.Failed) > 0 {
			return res.Failed[0].Err
		}
		resources += res.Written + res.Unchanged
		return nil
	})
	if err != nil {
		return "", 0, fmt.Errorf("making patients: %w", err)
	}
	return one, resources, nil
}

// listen takes the address that was asked for, or the default one, or a free port when that is taken.
func (v *demoVerb) listen() (net.Listener, error) {
	addr := v.Addr
	if addr == "" {
		if l, err := net.Listen("tcp", defaultAddr); err == nil {
			return l, nil
		}
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if !loopback(l.Addr()) {
		l.Close()
		return nil, usage("--addr %s: a demo serves loopback only; for anything else there is serve", v.Addr)
	}
	return l, nil
}

// demoSeed makes every demo's people the same.
const demoSeed = 1

// populate makes the synthetic patients that are missing, through the same sealed, audited path as everything else.
func (v *demoVerb) populate(ctx context.Context, records *phi.Records, step func(string, ...any)) error {
	p, err := readPopulation(v.Data)
	if err != nil || p.Patients >= v.Patients {
		return err
	}
	step("making %d synthetic patients", v.Patients)
	began := time.Now()
	one, resources, err := generate(ctx, records, v.Patients, "chartkeep-demo")
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	step("%d resources sealed in %.1f s (%.0f a second)", resources, took, float64(resources)/took)
	b, err := json.Marshal(population{v.Patients, one})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(v.Data, demoPopulation), append(b, '\n'))
}

// welcome says where everything is and what to try.
func (v *demoVerb) welcome(t terminal, f *demoFile, personas []demo.Persona, took time.Duration) {
	w := t.out
	self := "go run ./server"
	if exe, err := os.Executable(); err == nil && filepath.Base(exe) == "chartkeep" {
		self = exe
		if wd, err := os.Getwd(); err == nil {
			if rel, err := filepath.Rel(wd, exe); err == nil && len(rel) < len(exe) {
				self = "./" + rel
			}
		}
	}
	data := ""
	if v.Data != defaultData {
		data = " --data " + v.Data
	}
	fmt.Fprintf(w, "\nChartkeep is ready (%.1f s).\n\n", took.Seconds())
	fmt.Fprintf(w, "  FHIR API             %s\n  officers' API        %s\n  authorization server %s\n  metrics              %s\n  everything           %s\n\n",
		f.FHIR, f.API, f.Issuer, f.Metrics, filepath.Join(v.Data, demoJSON))
	fmt.Fprintln(w, "Personas:")
	for _, p := range personas {
		fmt.Fprintf(w, "  %-14s %s\n", p.Name, p.What)
	}
	one, _ := readPopulation(v.Data)
	fmt.Fprintf(w, `
Try:
  1. A chart, as a clinician who treats the patient:
     curl -H "Authorization: Bearer $(%[1]s token dr-rivera%[2]s)" %[3]s/Patient/%[4]s
  2. The same, as one who does not (refused, and recorded):
     curl -i -H "Authorization: Bearer $(%[1]s token dr-chen%[2]s)" %[3]s/Patient/%[4]s
  3. Who looked at this chart:
     curl -H "Authorization: Bearer $(%[1]s token officer-diaz%[2]s)" "%[5]s/audit/events?patient=%[4]s"

Ctrl-C stops everything; the same command goes on where it was.
`, self, data, f.FHIR, one.PatientOne, f.API)
}

// awaitReady polls the readiness endpoint: the first tokens must not meet a server without keys.
func awaitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server did not become ready; its log says why: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ensureSecret returns the secret in a file, making a random one when there is none.
func ensureSecret(file string) (string, error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		b := make([]byte, 24)
		rand.Read(b)
		if err := writeFile(file, []byte(base64.RawURLEncoding.EncodeToString(b)+"\n")); err != nil {
			return "", err
		}
	}
	return readSecret(file)
}

// ensureCheckpointKey returns the verifier key of the signing key in a file, making one when there is none.
func ensureCheckpointKey(file string) (verifier string, err error) {
	public := file + ".pub"
	if b, err := os.ReadFile(public); err == nil {
		return string(b[:len(b)-1]), nil
	}
	signer, verifier, err := note.GenerateKey(rand.Reader, "chartkeep.demo/audit")
	if err != nil {
		return "", fmt.Errorf("making checkpoint key: %w", err)
	}
	if err := writeFile(file, []byte(signer+"\n")); err != nil {
		return "", err
	}
	return verifier, writeFile(public, []byte(verifier+"\n"))
}

// writeFile writes a file for its owner only, whole or not at all.
func writeFile(name string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if serr := tmp.Sync(); err == nil {
		err = serr
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
