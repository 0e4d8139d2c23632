package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/chartkeep/chartkeep/audit"
)

// auditWitnessVerb runs a witness.
type auditWitnessVerb struct {
	Listen string   `help:"Address to listen on." default:"127.0.0.1:7460" placeholder:"HOST:PORT"`
	Key    string   `help:"File with the witness's secret key, see: chartkeep audit keygen --witness." placeholder:"FILE" required:"" type:"path"`
	State  string   `help:"Folder for what was cosigned, of its own: who loses it forgets what he saw." placeholder:"DIR" required:"" type:"path"`
	Log    []string `help:"Verifier key of a log to witness, or a file with one a line." placeholder:"VKEY|FILE" required:"" sep:"none"`
}

// Help is shown by --help.
func (*auditWitnessVerb) Help() string {
	return `A witness (https://c2sp.org/tlog-witness) remembers the newest checkpoint of each log and cosigns only what continues it. Run it where none of the
log's administrators is one, behind TLS when it is not on this host. POST /add-checkpoint is for logs; GET /checkpoint?origin=NAME returns what was
cosigned last, for: chartkeep audit verify --checkpoint FILE.
Example: chartkeep audit witness --key witness.key --state /var/lib/witness --log hospital.pub`
}

// Run serves until ctx is done.
func (v *auditWitnessVerb) Run(ctx context.Context, t terminal) error {
	secret, err := readSecret(v.Key)
	if err != nil {
		return err
	}
	signer, err := audit.NewCosigner(secret, nil)
	if err != nil {
		return usage("--key %s holds no witness's key; make one with: chartkeep audit keygen --witness NAME --out FILE", v.Key)
	}
	keys, err := publicKeys("--log", v.Log)
	if err != nil {
		return err
	}
	var logs []note.Verifier
	for _, k := range keys {
		l, err := note.NewVerifier(k)
		if err != nil {
			return usage("--log: %q is no log's verifier key", k)
		}
		logs = append(logs, l)
	}
	sink := newLog(t.err)
	defer sink.close()
	w, err := audit.NewWitness(audit.WitnessConfig{Dir: v.State, Signer: signer, Logs: logs, Logger: sink.Logger})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", v.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("listening: %w", err), w.Close())
	}
	server := &http.Server{Handler: w, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	}()
	fmt.Fprintf(t.out, "witness %s on http://%s\n", signer.Name(), l.Addr())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(fmt.Errorf("serving: %w", err), w.Close())
	}
	return errors.Join(<-stopped, w.Close())
}
