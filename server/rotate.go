package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// keysRotateVerb replaces keys.
type keysRotateVerb struct {
	deployment   `embed:""`
	Patient      string `arg:"" optional:"" help:"Replace the data keys of this patient: the logical id."`
	Organisation bool   `help:"Replace the data keys of what is no patient's."`
	All          bool   `help:"Replace every data key."`
	Index        bool   `help:"Replace the index keys: mint every token anew, by the rules of this version."`
	NameSearch   string `help:"With --index: how names are found from then on: prefix, exact or compound." enum:",prefix,exact,compound,prefix+phonetic,exact+phonetic,compound+phonetic" default:"" placeholder:"KIND"`
	Jobs         int    `help:"How many batches of rows to work on at a time: more is faster, and readers feel it." default:"1"`
	Rate         int    `help:"Rows a second at most; as many as go when 0." default:"0" placeholder:"ROWS"`
	By           string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*keysRotateVerb) Help() string {
	return `Makes the next data keys, makes them active, seals anew what the old ones sealed (every version), reads a sample back, and removes the old keys when
no row names them any more. Without PATIENT, --organisation or --all it replaces the keys that are due (chartkeep keys list) and finishes what was begun.
With --index it makes new index keys, asks both indexes while it mints the tokens anew, and removes the old keys: searches are complete at any moment.
Readers and writers go on and notice nothing. Stopped or killed anywhere, nothing is lost, and the same command goes on; two at once share the work.
Example: chartkeep keys rotate 9927a129-abed-4903-96d0-078c4a605356
Example: chartkeep keys rotate --all --rate 2000
Example: chartkeep keys rotate --index --name-search exact`
}

// Run rotates.
func (v *keysRotateVerb) Run(ctx context.Context, t terminal) error {
	scopes := 0
	for _, chosen := range []bool{v.Patient != "", v.Organisation, v.All, v.Index} {
		if chosen {
			scopes++
		}
	}
	switch {
	case scopes > 1:
		return usage("PATIENT, --organisation, --all and --index exclude each other")
	case v.NameSearch != "" && !v.Index:
		return usage("--name-search goes with --index")
	case v.Patient != "" && !fhir.ValidID(v.Patient):
		return usage("PATIENT is the logical id of a patient")
	case v.Jobs < 1 || v.Jobs > 64:
		return usage("--jobs must be between 1 and 64")
	case v.Rate < 0:
		return usage("--rate must not be negative")
	}
	return v.onKeys(ctx, t, v.Jobs, func(r *rooms, storage *postgres.Rotation) error {
		rotation := r.records.Rotation(phi.RotationConfig{By: operator(v.By), Jobs: v.Jobs, Rate: v.Rate})
		began := time.Now()
		err := watchRotation(t.err, rotation, func() error {
			if v.Index {
				return rotation.Index(ctx, storage, phi.NameSearch(v.NameSearch))
			}
			return rotation.DataKeys(ctx, storage, phi.Scope{Patient: v.Patient, Organisation: v.Organisation, All: v.All})
		})
		p, took := rotation.Progress(), time.Since(began)
		speed := fmt.Sprintf("in %s (%.0f a second)", took.Round(time.Millisecond), float64(p.RowsDone)/took.Seconds())
		if v.Index {
			fmt.Fprintf(t.out, "tokens of %d records minted anew %s\n", p.RowsDone, speed)
		} else {
			fmt.Fprintf(t.out, "%d data keys replaced, %d rows sealed anew %s\n", p.KeysDone, p.RowsDone, speed)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(t.out, "nothing names a key that was replaced")
		return nil
	})
}

// watchRotation shows how far a rotation is while work goes on: a bar on a terminal, a line every few seconds elsewhere.
func watchRotation(w io.Writer, rotation *phi.Rotation, work func() error) error {
	f, ok := w.(*os.File)
	tty := ok && term.IsTerminal(int(f.Fd()))
	every := 5 * time.Second
	if tty {
		every = 200 * time.Millisecond
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(every)
		defer tick.Stop()
		began := time.Now()
		for {
			select {
			case <-done:
				if tty {
					fmt.Fprint(w, "\r\x1b[K")
				}
				return
			case <-tick.C:
				line := rotationLine(rotation.Progress(), time.Since(began))
				if tty {
					fmt.Fprint(w, "\r\x1b[K"+line)
				} else {
					fmt.Fprintln(w, line)
				}
			}
		}
	}()
	err := work()
	close(done)
	<-stopped
	return err
}

// rotationLine says how far a rotation is, how fast it goes, and when it will be done at that speed.
func rotationLine(p phi.RotationProgress, took time.Duration) string {
	var b strings.Builder
	share := 0.0
	switch {
	case p.Rows > 0:
		share = min(1, float64(p.RowsDone)/float64(p.Rows))
	case p.Keys > 0:
		share = min(1, float64(p.KeysDone)/float64(p.Keys))
	}
	const width = 30
	filled := int(share * width)
	fmt.Fprintf(&b, "[%s%s]", strings.Repeat("=", filled), strings.Repeat(" ", width-filled))
	if p.Keys > 0 {
		fmt.Fprintf(&b, " %d of %d keys", p.KeysDone, p.Keys)
	}
	if p.RowsDone > 0 {
		fmt.Fprintf(&b, " %d rows, %.0f a second", p.RowsDone, float64(p.RowsDone)/took.Seconds())
	}
	if share > 0.01 && share < 1 {
		fmt.Fprintf(&b, ", about %s left", time.Duration(float64(took)*(1-share)/share).Round(time.Second))
	}
	if p.Waiting > 0 {
		fmt.Fprintf(&b, "; another rotator is working on %d keys", p.Waiting)
	}
	if p.Unopened > 0 {
		fmt.Fprintf(&b, "; %d rows do not open", p.Unopened)
	}
	return b.String()
}
