package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A bundle is an exported trail, or a part of it, as files: in a folder or a zip. Who has it and the log's verifier key
// verifies it with no network, no database and no configuration.
//
//	README.txt          how to verify it
//	manifest.json       Manifest: what this is, and the SHA-256 of every file but the tiles
//	manifest.sig        signature lines: manifest.json, an empty line and these are a signed note; missing where the exporter had no key
//	checkpoint          the newest checkpoint, a signed note (https://c2sp.org/tlog-checkpoint)
//	checkpoints.ndjson  {"size":S,"note":"BASE64"}: every signed checkpoint with its cosignatures, by size; of a part, none
//	keys                verifier keys that the log and its witnesses have used, one a line
//	prunings.ndjson     {"note":"BASE64"}: signed records of rows that were dropped when their retention was over
//	spans.ndjson        {"index":I,"stream":"HEX","first":F,"count":N,"prev":"BASE64","chain":"BASE64","first_part":US,"last_part":US}:
//	                    every batch, in the order of the tree; of a part, none
//	rows.ndjson         {"index":I,"stream":"HEX","seq":N,"part":US,"salt":"BASE64","body":"BASE64"}: rows in the order of the tree;
//	                    times are microseconds since 1970; body is what DecodeEvent reads
//	AuditEvent.ndjson   the same rows as FHIR, for reading; only where it was asked for
//	tile/L/N[.p/W]      hashes of the tree (https://c2sp.org/tlog-tiles); of a part, those on the paths of its rows
//
// Each line has exactly this spelling: no space, no other order of fields, no leading zeros.
const (
	bundleFormat = "chartkeep audit bundle v1"

	fileReadme      = "README.txt"
	fileManifest    = "manifest.json"
	fileSignature   = "manifest.sig"
	fileCheckpoint  = "checkpoint"
	fileCheckpoints = "checkpoints.ndjson"
	fileKeys        = "keys"
	filePrunings    = "prunings.ndjson"
	fileSpans       = "spans.ndjson"
	fileRows        = "rows.ndjson"
	fileFHIR        = "AuditEvent.ndjson"

	maxManifest   = 1 << 20
	maxKeys       = 1 << 20
	maxCheckpoint = 128 << 10
	maxLine       = 256 << 10
	maxTogether   = 256 << 20 // bytes of what is held in memory at once: the rows of a batch, all pruning records
)

// ErrBundle says that files are no bundle, or cannot be read as one. The error names file and line.
var ErrBundle = errors.New("audit: malformed bundle")

// Manifest says what a bundle is.
type Manifest struct {
	Format      string         `json:"format"`
	Made        time.Time      `json:"made"`
	Partial     bool           `json:"partial"` // a selection; otherwise everything up to the checkpoint
	Filter      string         `json:"filter"`  // of a selection, in words
	Checkpoint  Checkpoint     `json:"checkpoint"`
	Rows        int64          `json:"rows"`
	Spans       int64          `json:"spans"`
	Checkpoints int64          `json:"checkpoints"`
	Prunings    int64          `json:"prunings"`
	Tiles       int64          `json:"tiles"`
	Files       []ManifestFile `json:"files"`
}

// ManifestFile is a file of a bundle.
type ManifestFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hexadecimal
}

// file returns the entry of a file.
func (m *Manifest) file(name string) (ManifestFile, bool) {
	for _, f := range m.Files {
		if f.Name == name {
			return f, true
		}
	}
	return ManifestFile{}, false
}

// Bundle reads the files of a bundle. It implements Evidence as far as they hold it, and reads rows forwards at the speed of the
// disk. All methods may be called from many goroutines.
type Bundle struct {
	Manifest Manifest

	fsys       fs.FS
	text       []byte // manifest.json
	signature  []byte // nil: there is none
	checkpoint []byte
	keys       []string

	mu          sync.Mutex
	rows        *lineFile[indexedRow]
	spans       *lineFile[Span]
	checkpoints *lineFile[signedSize]
	used        map[string]bool // tiles that were read, of a part
}

var _ Evidence = (*Bundle)(nil)

// indexedRow is a row with its place.
type indexedRow struct {
	index  int64
	stream StreamID
	row    Row
}

// signedSize is a checkpoint with the size by which it is found.
type signedSize struct {
	size int64
	note []byte
}

// OpenBundle opens the files of a bundle: os.DirFS of a folder, or a zip.Reader. It reads the small files only; that
// nothing in it is wrong is for Verify to say. Errors wrap ErrBundle.
func OpenBundle(fsys fs.FS) (*Bundle, error) {
	b := &Bundle{fsys: fsys, used: map[string]bool{}}
	var err error
	if b.text, err = b.small(fileManifest, maxManifest); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b.text))
	d.DisallowUnknownFields()
	if err := d.Decode(&b.Manifest); err != nil {
		return nil, fmt.Errorf("opening bundle: %s: not a manifest: %w", fileManifest, ErrBundle)
	}
	if again, err := b.Manifest.encode(); err != nil || !bytes.Equal(again, b.text) {
		return nil, fmt.Errorf("opening bundle: %s: not spelled as a manifest is: %w", fileManifest, ErrBundle)
	}
	if b.Manifest.Format != bundleFormat {
		return nil, fmt.Errorf("opening bundle: %s: format %q, this program reads %q: %w", fileManifest, b.Manifest.Format, bundleFormat, ErrBundle)
	}
	b.signature, err = b.small(fileSignature, maxCheckpoint)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if b.checkpoint, err = b.small(fileCheckpoint, maxCheckpoint); err != nil {
		return nil, err
	}
	keys, err := b.small(fileKeys, maxKeys)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(keys) {
		b.keys = append(b.keys, string(bytes.TrimSuffix(line, []byte("\n"))))
	}
	b.rows = b.rowFile()
	b.spans = &lineFile[Span]{b: b, name: fileSpans, parse: parseSpanLine, key: func(s *Span) int64 { return s.Index }}
	b.checkpoints = &lineFile[signedSize]{b: b, name: fileCheckpoints, parse: parseCheckpointLine, key: func(s *signedSize) int64 { return s.size }}
	return b, nil
}

func (b *Bundle) rowFile() *lineFile[indexedRow] {
	return &lineFile[indexedRow]{b: b, name: fileRows, parse: parseRowLine, key: func(r *indexedRow) int64 { return r.index }}
}

// encode is the text of the manifest.
func (m *Manifest) encode() ([]byte, error) {
	text, err := json.MarshalIndent(m, "", " ")
	return append(text, '\n'), err
}

// Signed reports whether one of the log's keys signed the manifest. Of a selection, only that says that nothing was left out.
func (b *Bundle) Signed(known note.Verifiers) (bool, error) {
	if b.signature == nil {
		return false, nil
	}
	n, err := openNote(bytes.Join([][]byte{b.text, b.signature}, []byte("\n")), known)
	if err != nil {
		return false, fmt.Errorf("opening manifest: %w", err)
	}
	return signedBy(n, known, b.Manifest.Checkpoint.Origin), nil
}

// small reads a file that must not be larger than limit.
func (b *Bundle) small(name string, limit int64) (_ []byte, err error) {
	f, err := b.fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening bundle: %s: %w: %w", name, err, ErrBundle)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("opening bundle: %s: %w: %w", name, err, ErrBundle)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("opening bundle: %s has more than %d bytes: %w", name, limit, ErrBundle)
	}
	return data, nil
}

// Close closes what is open.
func (b *Bundle) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.rows.close(), b.spans.close(), b.checkpoints.close())
}

// Checkpoint implements Evidence.
func (b *Bundle) Checkpoint(context.Context) ([]byte, error) { return b.checkpoint, nil }

// Checkpoints implements Evidence.
func (b *Bundle) Checkpoints(ctx context.Context, after int64, limit int) ([][]byte, error) {
	if b.Manifest.Partial {
		return nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var list [][]byte
	err := b.checkpoints.read(ctx, after+1, func(s *signedSize) bool {
		if len(list) < limit {
			list = append(list, s.note)
			return true
		}
		return false
	})
	return list, err
}

// Tiles implements Evidence. What a bundle lacks is fs.ErrNotExist.
func (b *Bundle) Tiles(_ context.Context, tiles []tlog.Tile) ([][]byte, error) {
	list := make([][]byte, len(tiles))
	for i, t := range tiles {
		data, err := b.tile(t)
		if err != nil {
			return nil, err
		}
		list[i] = data
	}
	return list, nil
}

// tile reads a tile, or takes it from a wider one.
func (b *Bundle) tile(t tlog.Tile) ([]byte, error) {
	full, edge := t, t
	full.W = tileWidth
	edge.W = int((b.Manifest.Checkpoint.Size >> min(t.L*TileHeight, 62)) - t.N*tileWidth)
	for _, c := range []tlog.Tile{t, full, edge} {
		if c.W < t.W || c.W > tileWidth {
			continue
		}
		data, err := b.small(tilePath(c), int64(c.W)*tlog.HashSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(data) != c.W*tlog.HashSize {
			return nil, fmt.Errorf("opening bundle: %s has %d bytes: %w", tilePath(c), len(data), ErrBundle)
		}
		if b.Manifest.Partial {
			b.mu.Lock()
			b.used[tilePath(c)] = true
			b.mu.Unlock()
		}
		return data[:t.W*tlog.HashSize], nil
	}
	return nil, fmt.Errorf("opening bundle: %s: %w", tilePath(t), fs.ErrNotExist)
}

// Locate implements Evidence by reading the list of batches.
func (b *Bundle) Locate(ctx context.Context, stream StreamID, seq uint64) (found Span, ok bool, err error) {
	if b.Manifest.Partial {
		return Span{}, false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	err = b.spans.read(ctx, 0, func(s *Span) bool {
		if ok = s.Stream == stream && seq >= s.First && seq-s.First < uint64(s.Count); ok {
			found = *s
		}
		return !ok
	})
	return found, ok, err
}

// Spans implements Evidence.
func (b *Bundle) Spans(ctx context.Context, from int64, limit int) ([]Span, error) {
	if b.Manifest.Partial {
		return nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []Span
	// A batch may begin before the leaf that is asked for: who asks for the next one, which is the rule, reads no line twice.
	at := from
	if b.spans.passed(from) {
		at = 0
	}
	err := b.spans.read(ctx, at, func(s *Span) bool {
		if s.Index+int64(s.Count) <= from {
			return true
		}
		if len(list) == limit {
			return false
		}
		list = append(list, *s)
		return true
	})
	return list, err
}

// Cosign fails: a bundle is not written to.
func (b *Bundle) Cosign(context.Context, int64, []byte) error { return errors.ErrUnsupported }

// Rows implements Evidence.
func (b *Bundle) Rows(ctx context.Context, s Span) ([]Row, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []Row
	var wrong int64 = -1
	end, held := s.Index+int64(s.Count), 0
	err := b.rows.read(ctx, s.Index, func(r *indexedRow) bool {
		if held += len(r.row.Body); r.index >= end || held > maxTogether {
			return false
		}
		if r.stream != s.Stream && wrong < 0 {
			wrong = r.index
		}
		list = append(list, r.row)
		return true
	})
	if err == nil && held > maxTogether {
		err = fmt.Errorf("reading bundle: %s: the batch of leaf %d is too large: %w", fileRows, s.Index, ErrBundle)
	}
	if err == nil && wrong >= 0 {
		err = fmt.Errorf("reading bundle: %s: the row of leaf %d is of another stream than its batch: %w", fileRows, wrong, ErrBundle)
	}
	return list, err
}

// Unsequenced implements Evidence: what is not in the tree is not exported.
func (b *Bundle) Unsequenced(context.Context, int) ([]Span, error) { return nil, nil }

// Strays implements Evidence: see Unsequenced.
func (b *Bundle) Strays(context.Context, int) ([]Stray, error) { return nil, nil }

// Prunings implements Evidence.
func (b *Bundle) Prunings(ctx context.Context) ([][]byte, error) {
	if _, listed := b.Manifest.file(filePrunings); !listed {
		return nil, nil
	}
	var list [][]byte
	l := &lineFile[[]byte]{b: b, name: filePrunings, parse: parsePruningLine, long: true}
	held := 0
	err := l.read(ctx, 0, func(note *[]byte) bool {
		list, held = append(list, *note), held+len(*note)
		return held <= maxTogether
	})
	if err == nil && held > maxTogether {
		err = fmt.Errorf("reading bundle: %s: the records are too large: %w", filePrunings, ErrBundle)
	}
	return list, errors.Join(err, l.close())
}

// Keys implements Evidence.
func (b *Bundle) Keys(context.Context) ([]string, error) { return b.keys, nil }

// lineFile reads the records of a file of lines forwards; to go back is to begin again. Keys grow from line to line.
type lineFile[T any] struct {
	b     *Bundle
	name  string
	parse func(line []byte) (T, bool)
	key   func(*T) int64 // nil: the records have no order
	long  bool           // lines may be as long as the file

	f       fs.File
	r       *bufio.Reader
	sum     hash.Hash
	size    int64
	line    int
	last    int64 // key of the last record read; -1 at the beginning
	waiting *T    // was read and not taken
	ended   bool
}

func (l *lineFile[T]) close() error {
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// passed reports whether a record with this or a greater key was read already.
func (l *lineFile[T]) passed(key int64) bool {
	return l.f != nil && l.last >= key && (l.waiting == nil || l.key(l.waiting) != key)
}

func (l *lineFile[T]) begin() error {
	if err := l.close(); err != nil {
		return l.wrong("%v", err)
	}
	f, err := l.b.fsys.Open(l.name)
	if err != nil {
		return fmt.Errorf("reading bundle: %s: %w: %w", l.name, err, ErrBundle)
	}
	l.f, l.sum, l.size, l.line, l.last, l.waiting, l.ended = f, sha256.New(), 0, 0, -1, nil, false
	l.r = bufio.NewReaderSize(io.TeeReader(f, l.sum), maxLine)
	return nil
}

func (l *lineFile[T]) wrong(format string, args ...any) error {
	return fmt.Errorf("reading bundle: %s, line %d: %s: %w", l.name, l.line, fmt.Sprintf(format, args...), ErrBundle)
}

// read hands out the records from key at on until yield returns false; the one it declined comes first next time.
func (l *lineFile[T]) read(ctx context.Context, at int64, yield func(*T) bool) error {
	if l.f == nil || l.key != nil && l.passed(at) {
		if err := l.begin(); err != nil {
			return err
		}
	}
	for {
		record := l.waiting
		l.waiting = nil
		if record == nil {
			var err error
			if record, err = l.next(); err != nil || record == nil {
				return err
			}
			if l.line%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if l.key != nil && l.key(record) < at {
			continue
		}
		if !yield(record) {
			l.waiting = record
			return nil
		}
	}
}

// next reads a line; nil at the end of the file.
func (l *lineFile[T]) next() (*T, error) {
	if l.ended {
		return nil, nil
	}
	l.line++
	line, err := l.r.ReadSlice('\n')
	if l.long && errors.Is(err, bufio.ErrBufferFull) {
		line = bytes.Clone(line)
		var rest []byte
		for errors.Is(err, bufio.ErrBufferFull) && len(line) <= 2*maxPruning {
			rest, err = l.r.ReadSlice('\n')
			line = append(line, rest...)
		}
	}
	l.size += int64(len(line))
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		l.ended = true
		return nil, nil
	case errors.Is(err, io.EOF):
		return nil, l.wrong("it is cut off")
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, l.wrong("it is too long")
	case err != nil:
		return nil, l.wrong("%v", err)
	}
	record, ok := l.parse(line[:len(line)-1])
	if !ok {
		return nil, l.wrong("it is not spelled as it should be")
	}
	if l.key != nil {
		key := l.key(&record)
		if key <= l.last {
			return nil, l.wrong("it is out of order")
		}
		l.last = key
	}
	return &record, nil
}

// finish reads on to the end and returns the SHA-256 of the whole file.
func (l *lineFile[T]) finish(ctx context.Context) (size int64, sum string, err error) {
	if l.f == nil {
		if err := l.begin(); err != nil {
			return 0, "", err
		}
	}
	if err := l.read(ctx, 0, func(*T) bool { return true }); err != nil {
		return 0, "", err
	}
	return l.size, hex.EncodeToString(l.sum.Sum(nil)), nil
}

// appendRowLine writes a row without its newline.
func appendRowLine(b []byte, index int64, stream StreamID, r *Row) []byte {
	b = strconv.AppendInt(append(b, `{"index":`...), index, 10)
	b = hex.AppendEncode(append(b, `,"stream":"`...), stream[:])
	b = strconv.AppendUint(append(b, `","seq":`...), r.Seq, 10)
	b = strconv.AppendInt(append(b, `,"part":`...), r.PartTime.UnixMicro(), 10)
	b = base64.StdEncoding.AppendEncode(append(b, `,"salt":"`...), r.Salt[:])
	b = base64.StdEncoding.AppendEncode(append(b, `","body":"`...), r.Body)
	return append(b, `"}`...)
}

// parseRowLine is the inverse of appendRowLine, and accepts nothing else.
func parseRowLine(line []byte) (r indexedRow, ok bool) {
	p := lineParser{rest: line}
	p.literal(`{"index":`)
	r.index = p.int()
	p.literal(`,"stream":"`)
	p.hex(r.stream[:])
	p.literal(`","seq":`)
	seq := p.int()
	p.literal(`,"part":`)
	part := p.int()
	p.literal(`,"salt":"`)
	p.base64(r.row.Salt[:])
	p.literal(`","body":"`)
	encoded := p.until('"')
	p.literal(`"}`)
	if p.bad || len(p.rest) > 0 || r.index < 0 || seq < 0 {
		return r, false
	}
	r.row.Seq, r.row.PartTime = uint64(seq), time.UnixMicro(part).UTC()
	// One allocation holds body and whatever stands at its end in base64.
	r.row.Body = make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
	n, err := strictBase64.Decode(r.row.Body, encoded)
	r.row.Body = r.row.Body[:n]
	return r, err == nil && base64.StdEncoding.EncodedLen(n) == len(encoded)
}

func appendSpanLine(b []byte, s *Span) []byte {
	return fmt.Appendf(b, `{"index":%d,"stream":"%s","first":%d,"count":%d,"prev":"%s","chain":"%s","first_part":%d,"last_part":%d}`,
		s.Index, s.Stream, s.First, s.Count, s.Prev, s.Chain, s.FirstPart.UnixMicro(), s.LastPart.UnixMicro())
}

func parseSpanLine(line []byte) (s Span, ok bool) {
	p := lineParser{rest: line}
	p.literal(`{"index":`)
	s.Index = p.int()
	p.literal(`,"stream":"`)
	p.hex(s.Stream[:])
	p.literal(`","first":`)
	first := p.int()
	p.literal(`,"count":`)
	count := p.int()
	p.literal(`,"prev":"`)
	p.base64(s.Prev[:])
	p.literal(`","chain":"`)
	p.base64(s.Chain[:])
	p.literal(`","first_part":`)
	firstPart := p.int()
	p.literal(`,"last_part":`)
	lastPart := p.int()
	p.literal(`}`)
	s.First, s.Count = uint64(first), int(count)
	s.FirstPart, s.LastPart = time.UnixMicro(firstPart).UTC(), time.UnixMicro(lastPart).UTC()
	return s, !p.bad && len(p.rest) == 0 && s.Index >= 0 && first >= 0 && count > 0 && count <= MaxSpan
}

func appendCheckpointLine(b []byte, size int64, msg []byte) []byte {
	b = strconv.AppendInt(append(b, `{"size":`...), size, 10)
	b = base64.StdEncoding.AppendEncode(append(b, `,"note":"`...), msg)
	return append(b, `"}`...)
}

func parseCheckpointLine(line []byte) (s signedSize, ok bool) {
	p := lineParser{rest: line}
	p.literal(`{"size":`)
	s.size = p.int()
	p.literal(`,"note":"`)
	s.note = p.decode(p.until('"'))
	p.literal(`"}`)
	c, err := claimed(s.note)
	return s, !p.bad && len(p.rest) == 0 && err == nil && c.Size == s.size
}

func appendPruningLine(b, msg []byte) []byte {
	b = base64.StdEncoding.AppendEncode(append(b, `{"note":"`...), msg)
	return append(b, `"}`...)
}

func parsePruningLine(line []byte) (msg []byte, ok bool) {
	p := lineParser{rest: line}
	p.literal(`{"note":"`)
	msg = p.decode(p.until('"'))
	p.literal(`"}`)
	return msg, !p.bad && len(p.rest) == 0
}

// lineParser takes fields off the front of a line. Once something did not fit, bad stays set.
type lineParser struct {
	rest []byte
	bad  bool
}

func (p *lineParser) literal(s string) {
	if len(p.rest) < len(s) || string(p.rest[:len(s)]) != s {
		p.bad = true
		return
	}
	p.rest = p.rest[len(s):]
}

// int takes a decimal number without leading zeros.
func (p *lineParser) int() int64 {
	i, negative := 0, len(p.rest) > 0 && p.rest[0] == '-'
	if negative {
		i++
	}
	start, n := i, uint64(0)
	for ; i < len(p.rest) && p.rest[i] >= '0' && p.rest[i] <= '9' && i-start < 19; i++ {
		n = 10*n + uint64(p.rest[i]-'0')
	}
	if i == start || n >= 1<<63 || p.rest[start] == '0' && (i > start+1 || negative) {
		p.bad = true
		return 0
	}
	p.rest = p.rest[i:]
	if negative {
		return -int64(n)
	}
	return int64(n)
}

// hex fills dst from lower-case digits.
func (p *lineParser) hex(dst []byte) {
	n := hex.EncodedLen(len(dst))
	if p.bad || len(p.rest) < n || bytes.ContainsAny(p.rest[:n], "ABCDEF") {
		p.bad = true
		return
	}
	if _, err := hex.Decode(dst, p.rest[:n]); err != nil {
		p.bad = true
	}
	p.rest = p.rest[n:]
}

// base64 fills dst.
func (p *lineParser) base64(dst []byte) {
	n := base64.StdEncoding.EncodedLen(len(dst))
	var b [48]byte
	if p.bad || len(p.rest) < n || n > len(b) {
		p.bad = true
		return
	}
	if m, err := strictBase64.Decode(b[:], p.rest[:n]); err != nil || m != len(dst) {
		p.bad = true
	}
	copy(dst, b[:])
	p.rest = p.rest[n:]
}

func (p *lineParser) decode(encoded []byte) []byte {
	b := make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
	n, err := strictBase64.Decode(b, encoded)
	if err != nil || base64.StdEncoding.EncodedLen(n) != len(encoded) {
		p.bad = true
	}
	return b[:n]
}

// until takes everything before a byte.
func (p *lineParser) until(c byte) []byte {
	i := bytes.IndexByte(p.rest, c)
	if p.bad || i < 0 {
		p.bad = true
		return nil
	}
	b := p.rest[:i]
	p.rest = p.rest[i:]
	return b
}
