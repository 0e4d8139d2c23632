package audit

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ExportOptions say what is exported, and how.
type ExportOptions struct {
	// Filter is what the export is restricted to, in words; empty: everything that is in the tree. A restricted export
	// holds the rows with a part time in [From, To) that Select yields, each zero value restricting nothing.
	Filter   string
	From, To time.Time
	Select   iter.Seq2[Place, error]

	Signers  []note.Signer                      // the log's, for the manifest; none leaves it unsigned
	FHIR     func(dst []byte, s *Stored) []byte // appends a row as FHIR JSON: the bundle gets the rows in that form, too
	Progress func(done, total int64)            // rows; of a selection total is 0 until it is known
	Now      func() time.Time                   // nil is time.Now
}

// Place is where a row is stored.
type Place struct {
	Stream   StreamID
	Seq      uint64
	PartTime time.Time
}

// BundleWriter takes the files of a bundle, one after the other: what was returned by File is written to only until the
// next call. Nothing of the bundle can be seen before Commit returned nil.
type BundleWriter interface {
	File(name string) (io.Writer, error)
	Commit() error
	Abort() error
}

// Export writes a bundle of what is in the tree. Rows are read in the order of the tree, some batches at a time; of a selection
// made by Select their places are held in memory, not the rows. It checks nothing but what it must use: a trail that was
// tampered with can be exported as evidence, and verification of the bundle says what is wrong. Only a selection needs
// whole tiles, to prove its rows. On an error the writer is aborted.
func Export(ctx context.Context, e Evidence, w BundleWriter, o ExportOptions) (*Manifest, error) {
	x := exporter{e: e, w: w, o: o}
	err := x.export(ctx)
	if err == nil {
		err = w.Commit()
	} else {
		err = errors.Join(err, w.Abort())
	}
	if err != nil {
		return nil, fmt.Errorf("exporting trail: %w", err)
	}
	return &x.m, nil
}

// exporter is one Export.
type exporter struct {
	e      Evidence
	w      BundleWriter
	o      ExportOptions
	m      Manifest
	places []indexedPlace // of a selection made by Select, by index
	needed map[tlog.Tile]bool
	total  int64
}

// indexedPlace is a row to export.
type indexedPlace struct {
	index int64
	Place
}

func (x *exporter) export(ctx context.Context) error {
	now := x.o.Now
	if now == nil {
		now = time.Now
	}
	msg, err := x.e.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading newest checkpoint: %w", err)
	}
	if msg == nil {
		return fmt.Errorf("there is no checkpoint yet: %w", ErrNotSequenced)
	}
	x.m = Manifest{Format: bundleFormat, Made: now().UTC().Truncate(time.Second), Filter: x.o.Filter, Partial: x.o.Filter != "", Files: []ManifestFile{}}
	if x.m.Checkpoint, err = claimed(msg); err != nil {
		return err
	}
	if !x.m.Partial && (x.o.Select != nil || !x.o.From.IsZero() || !x.o.To.IsZero()) {
		return fmt.Errorf("a selection without words for it: %w", ErrOptions)
	}
	if x.total = x.m.Checkpoint.Size; x.m.Partial {
		x.needed, x.total = map[tlog.Tile]bool{}, 0
	}
	if err := x.find(ctx); err != nil {
		return err
	}
	keys, err := x.e.Keys(ctx)
	if err != nil {
		return fmt.Errorf("reading keys: %w", err)
	}
	prunings, err := x.e.Prunings(ctx)
	if err != nil {
		return fmt.Errorf("reading pruning records: %w", err)
	}
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{
		{fileReadme, func(w io.Writer) error { return x.readme(w) }},
		{fileCheckpoint, func(w io.Writer) error { _, err := w.Write(msg); return err }},
		{fileKeys, func(w io.Writer) error {
			for _, k := range keys {
				if _, err := fmt.Fprintln(w, k); err != nil {
					return err
				}
			}
			return nil
		}},
		{filePrunings, func(w io.Writer) error {
			for _, p := range prunings {
				x.m.Prunings++
				if _, err := w.Write(append(appendPruningLine(nil, p), '\n')); err != nil {
					return err
				}
			}
			return nil
		}},
		{fileRows, func(w io.Writer) error { return x.rows(ctx, w) }},
		{fileFHIR, func(w io.Writer) error { return x.fhir(ctx, w) }},
		{fileSpans, func(w io.Writer) error { return x.spans(ctx, w) }},
		{fileCheckpoints, func(w io.Writer) error { return x.checkpoints(ctx, w) }},
	} {
		if f.name == fileFHIR && x.o.FHIR == nil || x.m.Partial && (f.name == fileSpans || f.name == fileCheckpoints) {
			continue
		}
		if err := x.file(f.name, f.write); err != nil {
			return fmt.Errorf("writing %s: %w", f.name, err)
		}
	}
	if err := x.tiles(ctx); err != nil {
		return err
	}
	return x.manifest()
}

// file writes a file and takes it into the manifest.
func (x *exporter) file(name string, write func(io.Writer) error) error {
	out, err := x.w.File(name)
	if err != nil {
		return err
	}
	s := &summed{w: out, sum: sha256.New()}
	b := bufio.NewWriterSize(s, 1<<16)
	if err := write(b); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return err
	}
	x.m.Files = append(x.m.Files, ManifestFile{Name: name, Size: s.n, SHA256: hex.EncodeToString(s.sum.Sum(nil))})
	return nil
}

// summed counts and hashes what is written through it.
type summed struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (s *summed) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}

// find gathers the places of a selection.
func (x *exporter) find(ctx context.Context) error {
	if x.o.Select == nil {
		return nil
	}
	x.places = []indexedPlace{}
	var span Span
	for p, err := range x.o.Select {
		if err != nil {
			return fmt.Errorf("selecting rows: %w", err)
		}
		if !x.within(p.PartTime) {
			continue
		}
		if p.Stream != span.Stream || p.Seq < span.First || p.Seq-span.First >= uint64(span.Count) {
			found, ok, err := x.e.Locate(ctx, p.Stream, p.Seq)
			if err != nil {
				return fmt.Errorf("finding a row in the tree: %w", err)
			}
			if !ok {
				continue // not in the tree yet
			}
			span = found
		}
		if index := span.Index + int64(p.Seq-span.First); index < x.m.Checkpoint.Size {
			x.places = append(x.places, indexedPlace{index, p})
		}
	}
	slices.SortFunc(x.places, func(a, b indexedPlace) int { return cmp.Compare(a.index, b.index) })
	x.places = slices.CompactFunc(x.places, func(a, b indexedPlace) bool { return a.index == b.index })
	x.total = int64(len(x.places))
	return nil
}

func (x *exporter) within(part time.Time) bool {
	return (x.o.From.IsZero() || !part.Before(x.o.From)) && (x.o.To.IsZero() || part.Before(x.o.To))
}

// each yields what is exported in the order of the tree.
func (x *exporter) each(ctx context.Context, yield func(index int64, stream StreamID, r *Row) error) error {
	if x.places != nil {
		for rest := x.places; len(rest) > 0; {
			// Neighbours of one stream come together.
			n := 1
			for n < len(rest) && n < 1000 && rest[n].index == rest[0].index+int64(n) && rest[n].Stream == rest[0].Stream {
				n++
			}
			first, last := rest[0], rest[n-1]
			s := Span{Index: first.index, Stream: first.Stream, First: first.Seq, Count: n, FirstPart: first.PartTime, LastPart: last.PartTime}
			if err := x.batch(ctx, s, yield); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	}
	return x.eachSpan(ctx, func(s Span) error {
		timed := !s.FirstPart.IsZero() && !s.LastPart.IsZero() // of an old batch they may not be known
		if timed && (!x.o.From.IsZero() && s.LastPart.Before(x.o.From) || !x.o.To.IsZero() && !s.FirstPart.Before(x.o.To)) {
			return nil
		}
		return x.batch(ctx, s, yield)
	})
}

// eachSpan yields the batches up to the checkpoint.
func (x *exporter) eachSpan(ctx context.Context, yield func(Span) error) error {
	for next := int64(0); next < x.m.Checkpoint.Size; {
		spans, err := x.e.Spans(ctx, next, spanPage)
		if err != nil {
			return fmt.Errorf("reading batches from leaf %d: %w", next, err)
		}
		before := next
		for _, s := range spans {
			if s.Index >= x.m.Checkpoint.Size {
				return nil
			}
			if s.Index < next || s.Count <= 0 {
				continue // verification names it
			}
			if err := yield(s); err != nil {
				return err
			}
			next = s.Index + int64(s.Count)
		}
		if next == before {
			return nil
		}
	}
	return nil
}

// batch yields the rows of a batch that are wanted, one for each record.
func (x *exporter) batch(ctx context.Context, s Span, yield func(int64, StreamID, *Row) error) error {
	rows, err := x.e.Rows(ctx, s)
	if err != nil {
		return fmt.Errorf("reading rows from leaf %d: %w", s.Index, err)
	}
	next := s.First
	for i := range rows {
		r := &rows[i]
		if r.Seq < next || r.Seq-s.First >= uint64(s.Count) || !x.within(r.PartTime) {
			continue
		}
		next = r.Seq + 1
		if err := yield(s.Index+int64(r.Seq-s.First), s.Stream, r); err != nil {
			return err
		}
	}
	return nil
}

func (x *exporter) rows(ctx context.Context, w io.Writer) error {
	var line []byte
	tile := int64(-1)
	shown := time.Now()
	prover := tlog.TileHashReader(tlog.Tree{N: x.m.Checkpoint.Size, Hash: tlog.Hash(x.m.Checkpoint.Root)}, &tileCollector{tileReader{ctx, x.e}, x.needed})
	return x.each(ctx, func(index int64, stream StreamID, r *Row) error {
		x.m.Rows++
		if x.o.Progress != nil && time.Since(shown) > 100*time.Millisecond {
			x.o.Progress(x.m.Rows, x.total)
			shown = time.Now()
		}
		if x.m.Partial && index/tileWidth != tile {
			tile = index / tileWidth
			if _, err := prover.ReadHashes([]int64{tlog.StoredHashIndex(0, index)}); err != nil {
				return fmt.Errorf("proving leaf %d: %w", index, err)
			}
		}
		line = append(appendRowLine(line[:0], index, stream, r), '\n')
		_, err := w.Write(line)
		return err
	})
}

// tileCollector remembers which tiles a proof takes.
type tileCollector struct {
	tileReader
	needed map[tlog.Tile]bool
}

func (c *tileCollector) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	contents, err := c.tileReader.ReadTiles(tiles)
	if err == nil {
		for _, t := range tiles {
			c.needed[t] = true
		}
	}
	return contents, err
}

func (x *exporter) fhir(ctx context.Context, w io.Writer) error {
	var line []byte
	return x.each(ctx, func(_ int64, stream StreamID, r *Row) error {
		s := Stored{Row: *r, Stream: stream}
		var err error
		if s.Event, err = DecodeEvent(r.Body); err != nil {
			return nil //nolint:nilerr // rows.ndjson has it as it is, and verification names it
		}
		line = append(x.o.FHIR(line[:0], &s), '\n')
		_, err = w.Write(line)
		return err
	})
}

func (x *exporter) spans(ctx context.Context, w io.Writer) error {
	var line []byte
	return x.eachSpan(ctx, func(s Span) error {
		x.m.Spans++
		line = append(appendSpanLine(line[:0], &s), '\n')
		_, err := w.Write(line)
		return err
	})
}

func (x *exporter) checkpoints(ctx context.Context, w io.Writer) error {
	var line []byte
	for after := int64(0); ; {
		notes, err := x.e.Checkpoints(ctx, after, checkpointPage)
		if err != nil {
			return fmt.Errorf("reading checkpoints after size %d: %w", after, err)
		}
		before := after
		for _, msg := range notes {
			c, err := claimed(msg)
			if err != nil {
				return err
			}
			if c.Size > x.m.Checkpoint.Size {
				return nil
			}
			if c.Size <= after {
				continue
			}
			after = c.Size
			x.m.Checkpoints++
			line = append(appendCheckpointLine(line[:0], c.Size, msg), '\n')
			if _, err := w.Write(line); err != nil {
				return err
			}
		}
		if after == before {
			return nil
		}
	}
}

// tiles writes all tiles, or those that the proofs of a selection took.
func (x *exporter) tiles(ctx context.Context) error {
	var tiles []tlog.Tile
	if x.m.Partial {
		for t := range x.needed {
			tiles = append(tiles, t)
		}
		slices.SortFunc(tiles, func(a, b tlog.Tile) int {
			return cmp.Or(cmp.Compare(a.L, b.L), cmp.Compare(a.N, b.N), cmp.Compare(a.W, b.W))
		})
	} else {
		tiles = tlog.NewTiles(TileHeight, 0, x.m.Checkpoint.Size)
	}
	for _, t := range tiles {
		data, err := readTile(ctx, x.e, t)
		if err != nil {
			return fmt.Errorf("reading %s: %w", tilePath(t), err)
		}
		if data == nil {
			continue // verification names it
		}
		w, err := x.w.File(tilePath(t))
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", tilePath(t), err)
		}
		x.m.Tiles++
	}
	return nil
}

func (x *exporter) manifest() error {
	text, err := x.m.encode()
	if err != nil {
		return fmt.Errorf("writing manifest: %w", err)
	}
	write := func(name string, data []byte) error {
		w, err := x.w.File(name)
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
		return nil
	}
	if err := write(fileManifest, text); err != nil || len(x.o.Signers) == 0 {
		return err
	}
	msg, err := note.Sign(&note.Note{Text: string(text)}, x.o.Signers...)
	if err != nil {
		return fmt.Errorf("signing manifest: %w", err)
	}
	return write(fileSignature, msg[len(text)+1:])
}

func (x *exporter) readme(w io.Writer) error {
	what := "everything that the log's tree held when it was made"
	if x.m.Partial {
		what = "a selection: " + strings.Map(func(r rune) rune {
			if r < ' ' {
				return ' '
			}
			return r
		}, x.m.Filter)
	}
	_, err := fmt.Fprintf(w, `This is an export of the audit trail of %s, made %s: %s.

It proves itself. With the program chartkeep, no network, no database and no configuration:

    chartkeep audit verify --key KEY .

KEY is the log's verifier key, or a file with it. Get it from the log's owner in person, not from the file "keys" in here: whoever made a
forged export would have put his own there. With --checkpoint FILE, a checkpoint from a witness or an anchor, you also learn that the
log did not show you another history than it showed the witness.

rows.ndjson holds the events: body is the exact bytes that were recorded, in base64; the leaf of each in the Merkle tree (RFC 6962) is
SHA-256(0x00 || event id || stream || seq || recorded || SHA-256(salt || body)), all numbers big endian, id and recorded being bytes 1 to 24 of the
body. checkpoint and tile/ are as in https://c2sp.org/tlog-tiles, so other tools can check them, too. manifest.json lists the files.
`, x.m.Checkpoint.Origin, x.m.Made.Format(time.RFC3339), what)
	return err
}
