package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrProof says that a proof does not prove what it claims, or is none.
var ErrProof = errors.New("audit: proof does not hold")

// ErrNotSequenced says that a record is not in the tree yet; it will be within seconds.
var ErrNotSequenced = errors.New("audit: record is not in the tree yet")

// Proof shows to anybody who trusts the log's key that an event is in the tree at Index, with no network and no database.
// With Body it carries what the leaf is computed from; without (the row was dropped, or the reader may not see it) it proves
// the bare Leaf.
type Proof struct {
	Index      int64
	Hashes     []Hash // RFC 6962 audit path, from the leaf's sibling up
	Checkpoint []byte // signed note with the cosignatures that were gathered
	Leaf       Hash   // set by Verify and Prove where Body is there
	Stream     StreamID
	Seq        uint64
	Salt       [16]byte
	Body       []byte
}

// Prove makes the proof of a stored row against the newest checkpoint. It checks every hash that it uses against the
// checkpoint's root, so a tile that was changed is an error here (ErrProof) and not a proof that fails elsewhere; so is a
// row that no longer is what the tree holds. It fails with ErrNotSequenced while the row is not in the tree.
func Prove(ctx context.Context, tree TreeReader, stream StreamID, row *Row) (*Proof, error) {
	msg, err := tree.Checkpoint(ctx)
	if err != nil {
		return nil, fmt.Errorf("proving record: %w", err)
	}
	if msg == nil {
		return nil, fmt.Errorf("proving record: there is no checkpoint: %w", ErrNotSequenced)
	}
	c, err := claimed(msg)
	if err != nil {
		return nil, fmt.Errorf("proving record: %w", err)
	}
	span, ok, err := tree.Locate(ctx, stream, row.Seq)
	if err != nil {
		return nil, fmt.Errorf("proving record: %w", err)
	}
	p := &Proof{Checkpoint: msg, Leaf: row.Leaf, Stream: stream, Seq: row.Seq, Salt: row.Salt, Body: row.Body}
	p.Index = span.Index + int64(row.Seq-span.First)
	if !ok || p.Index >= c.Size {
		return nil, fmt.Errorf("proving record: %w", ErrNotSequenced)
	}
	if len(p.Body) > 0 {
		if p.Leaf, err = p.leaf(); err != nil {
			return nil, fmt.Errorf("proving record: %w", err)
		}
	}
	path, err := tlog.ProveRecord(c.Size, p.Index, HashReader(ctx, tree, c))
	if err != nil {
		return nil, fmt.Errorf("proving record: %w: %w", err, ErrProof)
	}
	for _, h := range path {
		p.Hashes = append(p.Hashes, Hash(h))
	}
	if err := p.check(c); err != nil {
		return nil, fmt.Errorf("proving record: %w", err)
	}
	return p, nil
}

// Redacted returns the proof without what the leaf is computed from: it proves that Leaf is in the tree, and nothing of the
// event can be learnt from it.
func (p *Proof) Redacted() *Proof {
	return &Proof{Index: p.Index, Hashes: p.Hashes, Checkpoint: p.Checkpoint, Leaf: p.Leaf}
}

func (p *Proof) check(c Checkpoint) error {
	path := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		path[i] = tlog.Hash(h)
	}
	if p.Index < 0 || p.Index >= c.Size {
		return fmt.Errorf("index %d in a tree of %d: %w", p.Index, c.Size, ErrProof)
	}
	if err := tlog.CheckRecord(path, c.Size, tlog.Hash(c.Root), p.Index, tlog.Hash(p.Leaf)); err != nil {
		return fmt.Errorf("leaf %d is not in the tree of %d: %w", p.Index, c.Size, ErrProof)
	}
	return nil
}

// leaf computes the leaf from what the proof carries.
func (p *Proof) leaf() (Hash, error) {
	if len(p.Body) < headLen || len(p.Body) > MaxBody {
		return Hash{}, fmt.Errorf("body of %d bytes: %w", len(p.Body), ErrProof)
	}
	return leafOf(p.Stream, p.Seq, &p.Salt, p.Body), nil
}

// Verify computes the leaf from the body where there is one, follows the path to the root, and opens the checkpoint as
// OpenCheckpoint does. It sets Leaf. Errors wrap ErrProof or ErrCheckpoint.
func (p *Proof) Verify(known note.Verifiers) (Checkpoint, *note.Note, error) {
	c, n, err := OpenCheckpoint(p.Checkpoint, known)
	if err != nil {
		return Checkpoint{}, nil, fmt.Errorf("verifying proof: %w", err)
	}
	if len(p.Body) > 0 {
		if p.Leaf, err = p.leaf(); err != nil {
			return Checkpoint{}, nil, fmt.Errorf("verifying proof: %w", err)
		}
		if _, err := DecodeEvent(p.Body); err != nil {
			return Checkpoint{}, nil, fmt.Errorf("verifying proof: %w: %w", err, ErrProof)
		}
	}
	if err := p.check(c); err != nil {
		return Checkpoint{}, nil, fmt.Errorf("verifying proof: %w", err)
	}
	return c, n, nil
}

// A proof's text is a C2SP tlog-proof (https://c2sp.org/tlog-proof). Its extra data is what the record hash is made from: a
// byte 1, stream 16, sequence number 8 (big endian), salt 16 and the body; or a byte 2 and the leaf of 32 bytes.
const (
	proofHeader = "c2sp.org/tlog-proof@v1\n"
	maxProof    = 1 << 20
	maxPath     = 63
	extraEvent  = 1
	extraLeaf   = 2
	extraHead   = 1 + 16 + 8 + 16
)

// Text is the proof in the C2SP tlog-proof format.
func (p *Proof) Text() []byte {
	extra := append([]byte{extraLeaf}, p.Leaf[:]...)
	if len(p.Body) > 0 {
		extra = append([]byte{extraEvent}, p.Stream[:]...)
		extra = binary.BigEndian.AppendUint64(extra, p.Seq)
		extra = append(append(extra, p.Salt[:]...), p.Body...)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%sextra %s\nindex %d\n", proofHeader, base64.StdEncoding.EncodeToString(extra), p.Index)
	for _, h := range p.Hashes {
		fmt.Fprintln(&b, h)
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// ParseProof is the inverse of Text; it verifies nothing. It refuses a proof without our extra data, from which no leaf could
// be told. Errors wrap ErrProof.
func ParseProof(text []byte) (*Proof, error) {
	bad := func(what string) (*Proof, error) { return nil, fmt.Errorf("parsing proof: %s: %w", what, ErrProof) }
	if len(text) > maxProof {
		return bad("too long")
	}
	head, checkpoint, ok := bytes.Cut(text, []byte("\n\n"))
	body, header := strings.CutPrefix(string(head), proofHeader)
	if !ok || !header {
		return bad("not a c2sp.org/tlog-proof@v1")
	}
	lines := strings.Split(body, "\n")
	if len(lines) < 2 || len(lines) > 2+maxPath {
		return bad("number of lines")
	}
	p := &Proof{Checkpoint: checkpoint}
	encoded, ok := strings.CutPrefix(lines[0], "extra ")
	extra, err := strictBase64.DecodeString(encoded)
	switch {
	case !ok || err != nil || len(extra) == 0:
		return bad("extra data")
	case extra[0] == extraLeaf && len(extra) == 1+len(p.Leaf):
		p.Leaf = Hash(extra[1:])
	case extra[0] == extraEvent && len(extra) >= extraHead+headLen && len(extra) <= extraHead+MaxBody:
		p.Stream, p.Seq, p.Salt = StreamID(extra[1:17]), binary.BigEndian.Uint64(extra[17:]), [16]byte(extra[25:41])
		p.Body = extra[extraHead:]
	default:
		return bad("extra data")
	}
	index, ok := strings.CutPrefix(lines[1], "index ")
	if p.Index, err = parseDecimal(index); !ok || err != nil {
		return bad("index")
	}
	for _, line := range lines[2:] {
		h, err := parseHash(line)
		if err != nil {
			return bad("path")
		}
		p.Hashes = append(p.Hashes, h)
	}
	return p, nil
}

// claimed reads a checkpoint whose signatures are somebody else's to verify.
func claimed(msg []byte) (Checkpoint, error) {
	_, err := note.Open(msg, note.VerifierList())
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) {
		return Checkpoint{}, fmt.Errorf("reading checkpoint: %w: %w", err, ErrCheckpoint)
	}
	return ParseCheckpoint(unverified.Note.Text)
}

// HashReader reads hashes of the tree that a checkpoint describes from its tiles, and checks them against its root: what it
// returns is in the tree. It serves one goroutine.
func HashReader(ctx context.Context, tree TreeReader, c Checkpoint) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: tlog.Hash(c.Root)}, tileReader{ctx, tree})
}

// tileReader is a tlog.TileReader on a TreeReader.
type tileReader struct {
	ctx  context.Context
	tree TreeReader
}

func (tileReader) Height() int                         { return TileHeight }
func (tileReader) SaveTiles(_ []tlog.Tile, _ [][]byte) {}

func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	contents, err := r.tree.Tiles(r.ctx, tiles)
	if err != nil {
		return nil, fmt.Errorf("reading tiles: %w", err)
	}
	if len(contents) != len(tiles) {
		return nil, fmt.Errorf("reading tiles: %d of %d are there: %w", len(contents), len(tiles), ErrProof)
	}
	for i, b := range contents {
		if len(b) != tiles[i].W*tlog.HashSize {
			return nil, fmt.Errorf("reading tile %s: %d bytes: %w", tilePath(tiles[i]), len(b), ErrProof)
		}
	}
	return contents, nil
}

// tilePath is a tile's place in the tlog-tiles layout: tlog's own path without the height, which that layout fixes.
func tilePath(t tlog.Tile) string {
	return "tile/" + strings.TrimPrefix(t.Path(), "tile/"+strconv.Itoa(t.H)+"/")
}

// parseTilePath is the inverse of tilePath.
func parseTilePath(path string) (tlog.Tile, error) {
	rest, ok := strings.CutPrefix(path, "tile/")
	t, err := tlog.ParseTilePath("tile/" + strconv.Itoa(TileHeight) + "/" + rest)
	if !ok || err != nil || t.L < 0 {
		return t, errors.New("not the path of a tile")
	}
	return t, nil
}
