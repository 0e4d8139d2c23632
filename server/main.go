// Command chartkeep is the patient-record API: one binary that serves, migrates, imports and explains itself.
//
//	chartkeep demo               everything embedded: PostgreSQL, authorization server, patients, API
//	chartkeep serve              production
//	chartkeep migrate            schema, roles and grants
//	chartkeep token PERSONA      a bearer token of the demo
//	chartkeep import PATH…       FHIR bundles, resources and NDJSON, sealed and audited
//	chartkeep comply             control checks against the live deployment
//	chartkeep audit …            the trail: verify, export, prove, witness
//	chartkeep keys …             the life of keys: list, rotate, rewrap, erase a patient
//	chartkeep policy …           who may do what: show, diff, test, apply, assign
//	chartkeep revoke …           tokens, sessions, keys, or all that somebody may do
//	chartkeep backup, restore    the sealed records, without keys
//	chartkeep sweep              every stored record against its seal and the trail
//	chartkeep bench              the compliant path beside the bare floor
//
// Every flag has an environment variable CHARTKEEP_…, secrets are file paths, unknown settings are errors. Exit code 0 is
// done, 1 failed, 2 bad usage, 74 (EX_IOERR of sysexits.h) says that the audit journal cannot be written: traffic belongs elsewhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/chartkeep/chartkeep/audit"
)

// errUsage marks errors that end with exit code 2.
var errUsage = errors.New("bad usage")

// exitIO is the exit code when the audit journal's file system fails: EX_IOERR of sysexits.h.
const exitIO = 74

// commandLine is every verb with its flags.
type commandLine struct {
	Demo    demoVerb    `cmd:"" help:"Run everything embedded: a private PostgreSQL, a development authorization server, synthetic patients and the API."`
	Serve   serveVerb   `cmd:"" help:"Serve in production."`
	Migrate migrateVerb `cmd:"" help:"Bring the database to the newest schema, roles and grants."`
	Token   tokenVerb   `cmd:"" help:"Print a bearer token of a demo persona."`
	Import  importVerb  `cmd:"" help:"Import FHIR bundles, single resources and NDJSON through the sealed, audited path."`
	Comply  complyVerb  `cmd:"" help:"Run the control checks against the live deployment."`
	Audit   auditVerb   `cmd:"" help:"The audit trail: verify, export, prove, witness."`
	Keys    keysVerb    `cmd:"" help:"The life of keys: list, rotate, rewrap, erase a patient."`
	Policy  policyVerb  `cmd:"" help:"Who may do what: show, diff, test, apply, assign."`
	Revoke  revokeVerb  `cmd:"" help:"Revoke tokens of a session, a subject, a client, a key or all, and end somebody's access for good."`
	Backup  backupVerb  `cmd:"" help:"Write the sealed records, without keys."`
	Restore restoreVerb `cmd:"" help:"Put a backup of the sealed records into an empty database."`
	Sweep   sweepVerb   `cmd:"" help:"Hold every stored record against its seal and the audit trail."`
	Bench   benchVerb   `cmd:"" help:"Measure the compliant path beside the bare floor, in one run."`

	Version kong.VersionFlag `help:"Print the version."`
}

// terminal is where a verb talks to: standard output for results, standard error for everything else.
type terminal struct {
	out, err io.Writer
}

func main() {
	if err := forbidCoreDumps(); err != nil {
		fmt.Fprintln(os.Stderr, "chartkeep:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], terminal{os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run is main without the process: it parses, runs the verb and returns the exit code. Cancelling ctx is Ctrl-C.
func run(ctx context.Context, args []string, term terminal) int {
	var cl commandLine
	exited := -1
	parser, err := kong.New(&cl,
		kong.Name("chartkeep"),
		kong.Description("A patient-record API whose audit cannot be lost, whose records are sealed field by field, and that stays fast. "+
			"Exit codes: 0 done, 1 failed, 2 bad usage, 74 the audit journal's file system fails."),
		kong.DefaultEnvars("CHARTKEEP"),
		kong.Writers(term.out, term.err),
		kong.Exit(func(code int) { exited = code }),
		kong.Vars{"version": version(), "default_data": defaultData},
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, Summary: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(term),
	)
	if err != nil {
		panic(err) // the command line above is wrong: a programming error
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	if err := knownSettings(parser.Model, os.Environ()); err != nil {
		fmt.Fprintln(term.err, "chartkeep:", err)
		return 2
	}
	parsed, err := parser.Parse(args)
	switch {
	case exited >= 0: // --help or --version was answered
		return exited
	case err != nil:
		fmt.Fprintln(term.err, "chartkeep:", err)
		fmt.Fprintln(term.err, "Try: chartkeep --help")
		return 2
	}
	switch err := parsed.Run(); {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintln(term.err, "chartkeep:", strings.TrimSuffix(err.Error(), ": "+errUsage.Error()))
		return 2
	case errors.Is(err, audit.ErrIO):
		fmt.Fprintln(term.err, "chartkeep:", err)
		return exitIO
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		fmt.Fprintln(term.err, "chartkeep: interrupted")
		return 1
	default:
		fmt.Fprintln(term.err, "chartkeep:", err)
		return 1
	}
}

// knownSettings refuses CHARTKEEP_ variables that no flag reads, so that a misspelt setting is not silently ignored.
func knownSettings(model *kong.Application, environ []string) error {
	var known []string
	collect := func(flags []*kong.Flag) {
		for _, f := range flags {
			known = append(known, f.Envs...)
		}
	}
	collect(model.Flags)
	var walk func(n *kong.Node)
	walk = func(n *kong.Node) {
		collect(n.Flags)
		for _, c := range n.Children {
			walk(c)
		}
	}
	walk(model.Node)
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		dashboards := strings.HasPrefix(name, "CHARTKEEP_DASHBOARD_") // the other program's
		if strings.HasPrefix(name, "CHARTKEEP_") && !dashboards && !slices.Contains(known, name) {
			return fmt.Errorf("unknown setting %s in the environment", name)
		}
	}
	return nil
}

func usage(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errUsage)...)
}

// version is the module version, or the commit, that the binary was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return info.Main.Version
}
