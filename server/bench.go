package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/demo"
	"github.com/chartkeep/chartkeep/server/postgres"
	"github.com/chartkeep/chartkeep/server/rest"
)

// benchVerb measures side by side. Absolute times say nothing about another machine; the ratios do.
type benchVerb struct {
	Connections int           `help:"Connections of the load generator, closed loop." default:"32"`
	Patients    int           `help:"Synthetic patients to read." default:"200"`
	Rounds      int           `help:"Rounds; each measures every variant once, ratios are medians over rounds." default:"5"`
	Phase       time.Duration `help:"Length of one measurement." default:"4s"`
	Import      string        `help:"FHIR files for the import figure; the generated patients' rate is printed in any case." type:"path" placeholder:"PATH"`
	Audit       bool          `help:"Measure the audit trail instead: journal, ingest, outage, queries, verification."`
	PHI         bool          `help:"Measure sealed records instead: opening and sealing beside bare AES-GCM, pgcrypto and a plaintext index."`
	Auth        bool          `help:"Measure authentication instead: tokens beside jwx, decisions, the whole stack beside bare Fiber, hanging issuers and forged floods."`
	Long        bool          `help:"With --auth: the issuer hangs for 30 seconds, not for three."`
	AuditRows   []int64       `help:"With --audit: sizes of the trail that is queried, the smallest first; 20 million take 15 GB and a quarter of an hour." default:"200000,2000000" placeholder:"N"`

	Load   string `hidden:"" help:"Be the load generator against this URL list (internal)."`
	Forged bool   `hidden:"" help:"Break the signature of every token, and take any answer (internal)."`
	Rate   int    `hidden:"" help:"Requests a second of the load generator, whatever the answers take; closed loop when 0 (internal)."`
}

// Help is shown by --help.
func (*benchVerb) Help() string {
	return `Starts a private deployment in a temporary folder and loads, in turn and in one run: bare Fiber + pgx serving the row as jsonb (the
floor), the compliant read with an audit trail that survives kill -9 (process), and one that survives a power cut (power).
The load generator is a process of its own. Takes about a minute and a half. With --audit it measures the trail's own promises in
about five minutes, and says which figures miss their targets. With --phi it measures what sealing costs, with --auth what
authentication and decisions cost; each in about a minute.

  chartkeep bench --auth`
}

// variant is one thing to load.
type variant struct {
	name, url string
	token     string
	target    float64 // ratio to the floor that this version must reach; 0 for the floor
	forged    bool    // the token's signature is broken, another way each time, and any answer is fine
}

// loadResult is what the load generator prints.
type loadResult struct {
	Requests int
	Failed   int
	PerSec   float64
	P50, P99 time.Duration
	Server   time.Duration `json:"-"` // CPU of the serving process, a request
	Database time.Duration `json:"-"` // CPU of PostgreSQL, a request; the trail's ingest is in it
}

// Run measures and prints; a figure below its target is exit code 1.
func (v *benchVerb) Run(ctx context.Context, t terminal) (err error) {
	if v.Load != "" {
		return v.load(ctx, t)
	}
	tune()
	b, err := openBench(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(ctx)) }()
	switch {
	case v.Audit:
		return v.audit(ctx, t, b)
	case v.PHI:
		return v.phi(ctx, t, b)
	case v.Auth:
		return v.auth(ctx, t, b)
	}
	r, dir, cluster, log := b.rooms, b.dir, b.cluster, b.sink.Logger
	ids, err := v.fill(ctx, r.records, t)
	if err != nil {
		return err
	}
	floor, err := v.floor(ctx, r.records, cluster.DSN(demoDatabase), ids)
	if err != nil {
		return err
	}
	defer floor.stop()

	variants := []variant{{name: "floor: bare Fiber + pgx, jsonb row", url: floor.url}}
	for _, c := range []struct {
		name   string
		level  audit.Level
		target float64
	}{{"process", audit.Process, 0.60}, {"power", audit.Power, 0.45}} {
		a, err := benchAPI(ctx, r, dir, phi.Levels{Disclosure: c.level, Other: audit.Process}, loadLimits(), log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.close(ctx)) }()
		variants = append(variants, variant{name: "compliant read, audit at " + c.name, url: a.base, token: a.token, target: c.target})
	}
	return v.measure(ctx, t, r, dir, variants, ids)
}

// bench is the private deployment that is measured, in a temporary folder.
type bench struct {
	dir      string
	cluster  *demo.Cluster
	settings *settings
	file     *os.File
	sink     *programLog
	rooms    *rooms
}

func openBench(ctx context.Context, t terminal) (_ *bench, err error) {
	b := &bench{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(ctx))
		}
	}()
	if b.dir, err = os.MkdirTemp("", "chartkeep-bench-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(b.dir, 0o755); err != nil { // another user may have to pass through when run as root
		return nil, err
	}
	if b.cluster, err = demo.StartCluster(ctx, demo.ClusterConfig{Dir: b.dir, Progress: t.err, Install: true}); err != nil {
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	if b.settings, _, err = prepare(ctx, b.dir, b.cluster, audit.Power); err != nil {
		return nil, err
	}
	if b.file, err = os.Create(filepath.Join(b.dir, demoLog)); err != nil {
		return nil, err
	}
	b.sink = newLog(b.file)
	b.rooms, err = openRooms(ctx, b.settings, b.sink.Logger)
	return b, err
}

// close undoes what openBench did, as far as it came.
func (b *bench) close(ctx context.Context) (err error) {
	if b.rooms != nil {
		err = b.rooms.close(ctx)
	}
	if b.sink != nil {
		b.sink.close()
		err = errors.Join(err, b.file.Close())
	}
	if b.cluster != nil {
		err = errors.Join(err, b.cluster.Stop())
	}
	if b.dir != "" {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	return err
}

// clinician is dr-rivera, as the floor's rows are read: every second patient is under this treatment.
func clinician() *phi.Caller {
	return &phi.Caller{RequestID: "bench-floor", Start: time.Now(), Principal: &auth.Principal{
		Subject: "dr-rivera", Client: "chartkeep-bench", Roles: []string{"clinician"}, FHIRUser: "Practitioner/" + demo.RiveraID, Scopes: auth.ParseScopes("user/*.rs"),
	}}
}

// fill imports the patients and prints the rate; it returns the ids of those whom dr-rivera treats.
func (v *benchVerb) fill(ctx context.Context, records *phi.Records, t terminal) ([]string, error) {
	began := time.Now()
	_, resources, err := generate(ctx, records, v.Patients, "chartkeep-bench")
	if err != nil {
		return nil, err
	}
	rate := float64(resources) / time.Since(began).Seconds()
	fmt.Fprintf(t.out, "import of generated bundles: %.0f resources a second (%d resources)\n", rate, resources)
	if v.Import != "" {
		if err := importPaths(ctx, records, []string{v.Import}, t); err != nil {
			return nil, err
		}
	}
	caller := clinician()
	var ids []string
	for page := []phi.Param{{Name: "_count", Value: "200"}}; ; {
		p, err := records.Search(ctx, caller, "Patient", page, false)
		if err != nil {
			return nil, err
		}
		for _, r := range p.Resources {
			ids = append(ids, r.ID)
		}
		if p.Next == "" {
			return ids, nil
		}
		page = []phi.Param{{Name: "_page", Value: p.Next}}
	}
}

// floorServer is the yardstick.
type floorServer struct {
	url  string
	stop func()
}

// floor serves the same rows from jsonb with nothing in between.
func (v *benchVerb) floor(ctx context.Context, records *phi.Records, adminDSN string, ids []string) (*floorServer, error) {
	caller := clinician()
	rows := map[string][]byte{}
	for _, id := range ids {
		res, err := records.Read(ctx, caller, phi.Ref{Type: "Patient", ID: id})
		if err != nil {
			return nil, err
		}
		rows[id] = res.JSON.Reveal()
	}
	f, err := postgres.OpenFloor(ctx, adminDSN, rows)
	if err != nil {
		return nil, fmt.Errorf("making floor table: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	stop := rest.Floor(l, f.Fetch)
	return &floorServer{url: "http://" + l.Addr().String() + "/Patient/", stop: func() { stop(); f.Close() }}, nil
}

// benchServer is a compliant server with a token for it.
type benchServer struct {
	*api
	base, token string
}

// benchAPI starts an API at a durability level on the shared rooms, with an issuer of its own.
func benchAPI(ctx context.Context, r *rooms, dir string, levels phi.Levels, limits rest.Limits, log *slog.Logger) (*benchServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	origin := "http://" + l.Addr().String()
	issuer, err := demo.NewAuthServer(demo.AuthServerConfig{
		Dir: filepath.Join(dir, demoOAuth), Issuer: origin + "/oauth2", Audience: origin + "/fhir/R4", Personas: demo.Personas(""),
	})
	if err != nil {
		return nil, err
	}
	records, err := phi.Open(ctx, phi.Config{
		Storage: r.db.Records(), Keys: r.keys, Access: r.access, Audit: r.log, Level: levels, Source: "chartkeep", Logger: log,
	})
	if err != nil {
		return nil, err
	}
	verifier, err := auth.NewVerifier(auth.VerifierConfig{
		Issuers: []auth.IssuerConfig{{
			Issuer: origin + "/oauth2", Audience: origin + "/fhir/R4", JWKSURL: origin + "/oauth2/jwks", AssertsSignIn: true, RolesInToken: true,
		}},
		Insecure: true, Logger: log, Revocations: r.revoked, Sessions: r.sessions,
	})
	if err != nil {
		return nil, err
	}
	a, err := startAPI(ctx, r, surface{
		base: origin + "/fhir/R4", records: records, levels: levels, limits: limits, mount: map[string]http.Handler{"/oauth2": issuer.Handler()},
		issuer:   rest.Issuer{Issuer: origin + "/oauth2", JWKS: origin + "/oauth2/jwks"},
		verifier: verifier,
	}, l, log)
	if err != nil {
		return nil, err
	}
	if err := awaitReady(ctx, origin+"/readyz"); err != nil {
		return nil, err
	}
	token, err := issuer.Token("dr-rivera", "")
	if err != nil {
		return nil, err
	}
	return &benchServer{a, origin + "/fhir/R4/Patient/", token}, nil
}

// measure loads the variants in turn and prints the table.
func (v *benchVerb) measure(ctx context.Context, t terminal, r *rooms, dir string, variants []variant, ids []string) error {
	results := make([][]loadResult, len(variants))
	var peak, worstPending uint64
	var slowestDrain time.Duration
	for round := range v.Rounds + 1 { // round 0 warms up
		for i, x := range variants {
			before := r.log.Stats()
			server, database := cpuTimes()
			res, err := v.spawn(ctx, dir, x, ids, 0)
			if err != nil {
				return err
			}
			if res.Failed > 0 {
				return fmt.Errorf("%s: %d of %d requests failed", x.name, res.Failed, res.Requests)
			}
			if round == 0 {
				continue
			}
			if x.target > 0 {
				after := r.log.Stats()
				if n := after.Recorded - before.Recorded; n < uint64(res.Requests) {
					return fmt.Errorf("%s: %d requests answered and %d events recorded", x.name, res.Requests, n)
				}
				worstPending = max(worstPending, after.Pending)
				peak = max(peak, residentBytes())
				began := time.Now()
				drain, cancel := context.WithTimeout(ctx, time.Minute)
				err := r.log.Drain(drain)
				cancel()
				if err != nil {
					return fmt.Errorf("the trail did not catch up within a minute: %w", err)
				}
				slowestDrain = max(slowestDrain, time.Since(began))
			}
			serverAfter, databaseAfter := cpuTimes()
			res.Server = (serverAfter - server) / time.Duration(res.Requests)
			res.Database = (databaseAfter - database) / time.Duration(res.Requests)
			results[i] = append(results[i], *res)
		}
	}
	fmt.Fprintf(t.out, "\n%-42s %8s %9s %9s %10s %10s %7s %7s\n", fmt.Sprintf("GET Patient/{id}, %d connections", v.Connections), "req/s", "p50", "p99", "CPU server", "PostgreSQL", "ratio", "target")
	missed := 0
	for i, x := range variants {
		ratios := make([]float64, len(results[i]))
		for k := range ratios {
			ratios[k] = results[i][k].PerSec / results[0][k].PerSec
		}
		ratio := median(ratios)
		m := results[i][len(results[i])/2]
		target := ""
		if x.target > 0 {
			target = fmt.Sprintf("%.2f", x.target)
			if ratio < x.target {
				missed++
			}
		}
		fmt.Fprintf(t.out, "%-42s %8.0f %9s %9s %10s %10s %7.2f %7s\n", x.name, median(perSecond(results[i])), m.P50.Round(time.Microsecond), m.P99.Round(10*time.Microsecond),
			m.Server.Round(100*time.Nanosecond), m.Database.Round(100*time.Nanosecond), ratio, target)
	}
	fmt.Fprintf(t.out, "\ningest: at most %d events behind at the end of a phase, caught up in at most %s\n", worstPending, slowestDrain.Round(time.Millisecond))
	fmt.Fprintf(t.out, "resident memory of the serving process under load: %d MiB (target: under 300)\n", peak>>20)
	if missed > 0 {
		return fmt.Errorf("%d figures are below their target", missed)
	}
	return nil
}

func perSecond(results []loadResult) []float64 {
	s := make([]float64, len(results))
	for i := range s {
		s[i] = results[i].PerSec
	}
	return s
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// spawn runs the load generator as a process of its own, at a rate or, when that is 0, in a closed loop.
func (v *benchVerb) spawn(ctx context.Context, dir string, x variant, ids []string, rate int) (*loadResult, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	plan := filepath.Join(dir, "load")
	if err := writeFile(plan, []byte(x.token+"\n"+strings.Join(ids, "\n"))); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, "bench", "--load", x.url, "--import", plan, "--connections", strconv.Itoa(v.Connections), "--phase", v.Phase.String(), "--rate", strconv.Itoa(rate))
	if x.forged {
		cmd.Args = append(cmd.Args, "--forged")
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	var res loadResult
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	return &res, nil
}

// load is the load generator: every connection sends the next request when the last answer is whole.
func (v *benchVerb) load(ctx context.Context, t terminal) error {
	target, err := url.Parse(v.Load)
	if err != nil {
		return usage("--load: %v", err)
	}
	plan, err := os.ReadFile(v.Import)
	if err != nil {
		return err
	}
	lines := strings.Split(string(plan), "\n")
	token, ids := lines[0], lines[1:]
	if v.Forged {
		ids = slices.Repeat(ids, 1+5000/len(ids))
	}
	requests := make([][]byte, len(ids))
	for i, id := range ids {
		if v.Forged {
			token = forge(token)
		}
		h := "GET " + target.Path + id + " HTTP/1.1\r\nHost: " + target.Host + "\r\n"
		if token != "" {
			h += "Authorization: Bearer " + token + "\r\n"
		}
		requests[i] = []byte(h + "\r\n")
	}
	ctx, cancel := context.WithTimeout(ctx, v.Phase)
	defer cancel()
	var failed atomic.Int64
	took := make([][]time.Duration, v.Connections)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range v.Connections {
		wg.Go(func() {
			var err error
			var gap time.Duration
			if v.Rate > 0 {
				gap = time.Second * time.Duration(v.Connections) / time.Duration(v.Rate)
			}
			if took[i], err = drive(ctx, target.Host, requests, began.Add(gap*time.Duration(i)/time.Duration(v.Connections)), gap, v.Forged); err != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	res := loadResult{Requests: len(all), Failed: int(failed.Load()), PerSec: float64(len(all)) / time.Since(began).Seconds()}
	if len(all) > 0 {
		res.P50, res.P99 = all[len(all)/2], all[len(all)*99/100]
	}
	return json.NewEncoder(t.out).Encode(res)
}

// forge gives a token another signature, of the right form.
func forge(token string) string {
	var sig [64]byte
	for i := range sig {
		sig[i] = byte(rand.Uint32())
	}
	return token[:strings.LastIndexByte(token, '.')+1] + base64.RawURLEncoding.EncodeToString(sig[:])
}

// drive is one connection. Any answer but 200 ends it with an error, unless any will do. A request begins when it is due, gap after the one before, or
// when there is no gap when the last answer is whole; what it takes is counted from there.
func drive(ctx context.Context, host string, requests [][]byte, due time.Time, gap time.Duration, whatever bool) (took []time.Duration, err error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	in := bufio.NewReaderSize(c, 1<<16)
	for ctx.Err() == nil {
		began := time.Now()
		if gap > 0 {
			time.Sleep(time.Until(due))
			began, due = due, due.Add(gap)
		}
		if _, err := c.Write(requests[rand.IntN(len(requests))]); err != nil {
			return took, err
		}
		if err := answer(in, whatever); err != nil {
			return took, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// answer reads one response with a Content-Length and throws its body away.
func answer(in *bufio.Reader, whatever bool) error {
	status, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(status) < 12 || !whatever && string(status[9:12]) != "200" {
		return fmt.Errorf("answered %q", status)
	}
	length := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		const name = "content-length: "
		if len(line) > len(name) && strings.EqualFold(string(line[:len(name)]), name) {
			if length, err = strconv.Atoi(strings.TrimSpace(string(line[len(name):]))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("answered without Content-Length")
	}
	_, err = io.CopyN(io.Discard, in, int64(length))
	return err
}

// cpuTimes are the processor times so far of this process and of all PostgreSQL processes that descend from it (Linux).
func cpuTimes() (server, database time.Duration) {
	const tick = time.Second / 100 // USER_HZ, fixed for user space
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	parent, used, names := map[int]int{}, map[int]time.Duration{}, map[int]string{}
	for _, file := range stats {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
		f := strings.Fields(string(b[end+1:]))
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		parent[pid], _ = strconv.Atoi(f[1])
		used[pid], names[pid] = time.Duration(user+system)*tick, string(b[open+1:end])
	}
	self := os.Getpid()
	for pid, t := range used {
		if pid == self {
			server = t
			continue
		}
		for p := parent[pid]; p > 1 && names[pid] == "postgres"; p = parent[p] {
			if p == self {
				database += t
				break
			}
		}
	}
	return server, database
}

// residentBytes is this process's resident set (Linux).
func residentBytes() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	pages, _ := strconv.ParseUint(f[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}
