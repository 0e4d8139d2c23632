// Command chartkeep-dashboard is the officers' desktop: who looked at what, and why it was allowed.
//
//	chartkeep-dashboard --data .chartkeep              a window (builds with the tag desktop), against a demo
//	chartkeep-dashboard --web --server https://api…    the same pages for a browser on this machine
//
// One handler stands behind both. The pages hold no token: this program signs in (RFC 8252, PKCE), keeps the tokens in
// memory, and fetches for the pages what is on a short list.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// errUsage marks errors that end with exit code 2.
var errUsage = errors.New("bad usage")

// commandLine is what the program can be told. The environment's names differ from the server's where the meaning does.
type commandLine struct {
	Server string `env:"CHARTKEEP_DASHBOARD_SERVER" placeholder:"URL" help:"Origin of the API, e.g. https://chartkeep.example.org." xor:"deployment"`
	Data   string `env:"CHARTKEEP_DATA" placeholder:"DIR" help:"Folder of a running demo; its demo.json says where the API is. Default: .chartkeep when there is no --server." xor:"deployment"`
	Web    bool   `env:"CHARTKEEP_DASHBOARD_WEB" help:"Serve browsers on this machine instead of opening a window."`
	Addr   string `env:"CHARTKEEP_DASHBOARD_ADDR" default:"127.0.0.1:0" help:"Loopback address for --web."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process. Cancelling ctx is Ctrl-C. It returns the exit code: 0 done, 1 failed, 2 bad usage.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	var cl commandLine
	exited := -1
	parser, err := kong.New(&cl,
		kong.Name("chartkeep-dashboard"),
		kong.Description("The officers' desktop of Chartkeep. For example: chartkeep-dashboard --web --data .chartkeep"),
		kong.Writers(out, errOut),
		kong.Exit(func(code int) { exited = code }),
	)
	if err != nil {
		panic(err) // the command line above is wrong: a programming error
	}
	_, err = parser.Parse(args)
	switch {
	case exited >= 0: // --help was answered
		return exited
	case err != nil:
		err = fmt.Errorf("%w: %w", errUsage, err)
	default:
		err = start(ctx, cl, out, slog.New(slog.NewTextHandler(errOut, nil)))
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(errOut, "chartkeep-dashboard: %v\nTry: chartkeep-dashboard --help\n", err)
		return 2
	default:
		fmt.Fprintln(errOut, "chartkeep-dashboard:", err)
		return 1
	}
}

func start(ctx context.Context, cl commandLine, out io.Writer, log *slog.Logger) error {
	api, err := locate(cl.Server, cl.Data)
	if err != nil {
		return err
	}
	if cl.Web {
		return serveWeb(ctx, cl.Addr, api, out, log)
	}
	return openWindow(ctx, api, log)
}
