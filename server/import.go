package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/chartkeep/chartkeep/phi"
)

// importVerb takes FHIR files in.
type importVerb struct {
	deployment `embed:""`
	Paths      []string `arg:"" name:"path" help:"Files or folders: .json bundles and resources, .ndjson with one resource a line." type:"path"`
}

// Help is shown by --help.
func (*importVerb) Help() string {
	return `Everything goes through the same sealed and audited path as the API. An import can be stopped at any time and run again: what is
there already stays as it is, imported twice changes nothing. A bad file or entry is named and the rest goes on (exit code 1).
Example: chartkeep import --data .chartkeep ../shared/data/synthea`
}

// Run imports into the deployment.
func (v *importVerb) Run(ctx context.Context, t terminal) error {
	return v.onRooms(ctx, t, func(r *rooms, _ *settings) error { return importPaths(ctx, r.records, v.Paths, t) })
}

// source is one document to import: a whole file, or a run of lines of an NDJSON file.
type source struct {
	path   string
	line   int // first line of an NDJSON run, 1-based; 0 for a whole file
	lines  int
	offset int64 // of that line in the file
	told   bool  // it was read before, and its lines that are not JSON were named
}

// ndjsonRun is how many NDJSON lines make one import: enough to fill a commit, few enough to hold in memory.
const ndjsonRun = 500

// byteOrderMark may stand at the beginning of a file that passed through Windows (RFC 8259 section 8.1).
var byteOrderMark = []byte("\uFEFF")

// importer imports sources and keeps count.
type importer struct {
	records *phi.Records
	caller  *phi.Caller
	term    terminal
	bar     *progress

	written, unchanged, failed int
}

// importPaths imports every file below the paths: those whose references wait for others are tried again after them.
func importPaths(ctx context.Context, records *phi.Records, paths []string, t terminal) error {
	im := &importer{
		records: records, term: t,
		caller: &phi.Caller{Principal: system("chartkeep-import"), RequestID: "import-" + time.Now().UTC().Format("20060102T150405"), Start: time.Now()},
	}
	sources, err := im.list(paths)
	if err != nil {
		return err
	}
	if len(sources) == 0 {
		return usage("nothing to import: no .json or .ndjson file below %s", strings.Join(paths, " "))
	}
	patientsFirst(sources)
	began := time.Now()
	im.bar = newProgress(t.err, len(sources))
	for final := false; len(sources) > 0; {
		var deferred []source
		for _, s := range sources {
			if ctx.Err() != nil {
				im.bar.clear()
				fmt.Fprintf(t.err, "stopped: %d resources are in; run the same command again to go on\n", im.written)
				return ctx.Err()
			}
			if wait := im.one(ctx, s, final); wait {
				s.told = true
				deferred = append(deferred, s)
			} else {
				im.bar.step(im.written + im.unchanged)
			}
		}
		// Another round makes sense as long as it gets further; then what is still missing is said.
		final = len(deferred) == len(sources)
		sources = deferred
	}
	im.bar.clear()
	took := time.Since(began)
	fmt.Fprintf(t.out, "imported %d resources, %d were there already, %d failed, in %.1f s (%.0f a second)\n",
		im.written, im.unchanged, im.failed, took.Seconds(), float64(im.written+im.unchanged)/took.Seconds())
	if im.failed > 0 {
		return fmt.Errorf("%d entries did not go in; they are named above", im.failed)
	}
	return nil
}

// list finds the files and cuts NDJSON into runs.
func (im *importer) list(paths []string) ([]source, error) {
	var sources []source
	add := func(path string) error {
		switch strings.ToLower(filepath.Ext(path)) {
		case ".json":
			sources = append(sources, source{path: path})
		case ".ndjson", ".jsonl":
			runs, err := cutLines(path)
			if err != nil {
				return err
			}
			sources = append(sources, runs...)
		}
		return nil
	}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, usage("%v", err)
		}
		if !info.IsDir() {
			before := len(sources)
			if err := add(p); err != nil {
				return nil, err
			}
			if len(sources) == before && info.Size() > 0 {
				return nil, usage("%s is neither .json nor .ndjson", p)
			}
			continue
		}
		err = filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return add(path)
		})
		if err != nil {
			return nil, err
		}
	}
	return sources, nil
}

// one imports one source; it reports whether the source waits for others.
func (im *importer) one(ctx context.Context, s source, final bool) (wait bool) {
	content, place, err := im.read(s)
	if err != nil {
		im.fail(s.path, err.Error())
		return false
	}
	if content == nil {
		return false
	}
	res, err := im.records.Import(ctx, im.caller, content, final)
	if err != nil {
		im.fail(place(0), err.Error())
		return false
	}
	if res.Deferred {
		return true
	}
	im.written += res.Written
	im.unchanged += res.Unchanged
	for _, f := range res.Failed {
		im.fail(place(f.Entry), issueText(f.Err))
	}
	return false
}

// read returns a source's document and how to name an entry of it.
func (im *importer) read(s source) (content []byte, place func(entry int) string, err error) {
	if s.line == 0 {
		content, err = os.ReadFile(s.path)
		content = bytes.TrimPrefix(content, byteOrderMark)
		bundle := bytes.Contains(content[:min(len(content), 4096)], []byte(`"Bundle"`))
		return content, func(entry int) string {
			if bundle {
				return fmt.Sprintf("%s entry %d", s.path, entry)
			}
			return s.path
		}, err
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if _, err := f.Seek(s.offset, io.SeekStart); err != nil {
		return nil, nil, err
	}
	// The lines become a collection, so that they share commits; a line that is not JSON is named by itself.
	var lines []int
	doc := []byte(`{"resourceType":"Bundle","type":"collection","entry":[`)
	in := bufio.NewReaderSize(f, 1<<20)
	for n := s.line; n < s.line+s.lines; n++ {
		line, err := in.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, err
		}
		if n == 1 {
			line = bytes.TrimPrefix(line, byteOrderMark)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if json.Valid(line) {
				if len(lines) > 0 {
					doc = append(doc, ',')
				}
				doc = append(append(append(doc, `{"resource":`...), line...), '}')
				lines = append(lines, n)
			} else if !s.told {
				im.fail(fmt.Sprintf("%s line %d", s.path, n), "not JSON (truncated?)")
			}
		}
	}
	if len(lines) == 0 {
		return nil, nil, nil
	}
	return append(doc, `]}`...), func(entry int) string {
		if entry < len(lines) {
			return fmt.Sprintf("%s line %d", s.path, lines[entry])
		}
		return s.path
	}, nil
}

func (im *importer) fail(place, why string) {
	im.failed++
	im.bar.clear()
	fmt.Fprintf(im.term.err, "%s: %s\n", place, why)
}

// issueText is an error's issues as one line: element and reason, no values.
func issueText(e *phi.Error) string {
	var parts []string
	for _, i := range e.Issues[:min(3, len(e.Issues))] {
		s := i.Diagnostics
		if i.Expression != "" {
			s = i.Expression + ": " + s
		}
		parts = append(parts, s)
	}
	if n := len(e.Issues) - len(parts); n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(parts, "; ")
}

// cutLines cuts an NDJSON file into runs.
func cutLines(path string) ([]source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var runs []source
	in := bufio.NewReaderSize(f, 1<<20)
	begins := true // the next byte begins a line
	for line, offset := 0, int64(0); ; {
		part, err := in.ReadSlice('\n')
		if len(part) > 0 && begins {
			if line++; line%ndjsonRun == 1 {
				runs = append(runs, source{path: path, line: line, offset: offset})
			}
			runs[len(runs)-1].lines++
		}
		offset += int64(len(part))
		switch {
		case errors.Is(err, io.EOF):
			return runs, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
		begins = err == nil
	}
}

// progress is a bar on a terminal and a line every few seconds elsewhere. Methods are for one goroutine.
type progress struct {
	w         io.Writer
	tty       bool
	total, at int
	said      time.Time
}

func newProgress(w io.Writer, total int) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, tty: ok && term.IsTerminal(int(f.Fd())), total: total, said: time.Now()}
}

func (p *progress) step(resources int) {
	p.at++
	switch {
	case p.tty:
		const width = 30
		filled := width * p.at / p.total
		fmt.Fprintf(p.w, "\r[%s%s] %d of %d files, %d resources ", strings.Repeat("=", filled), strings.Repeat(" ", width-filled), p.at, p.total, resources)
	case time.Since(p.said) > 5*time.Second:
		p.said = time.Now()
		fmt.Fprintf(p.w, "%d of %d files, %d resources\n", p.at, p.total, resources)
	}
}

func (p *progress) clear() {
	if p != nil && p.tty {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// patientsFirst orders paths so that files which others refer to come early.
func patientsFirst(sources []source) {
	rank := func(s source) int {
		name := strings.ToLower(filepath.Base(s.path))
		for i, prefix := range []string{"hospital", "practitioner", "organization", "location", "patient"} {
			if strings.HasPrefix(name, prefix) {
				return i
			}
		}
		return 9
	}
	slices.SortStableFunc(sources, func(a, b source) int { return rank(a) - rank(b) })
}
