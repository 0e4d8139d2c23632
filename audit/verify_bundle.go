package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Verify verifies the bundle: its files against its manifest, and what they hold as the function Verify does for a whole
// trail. Of a part it verifies that each row is in the tree that the checkpoint signs; that no row was left out is the
// exporter's word, given by the signature on the manifest (Report.Signed): with keys of the caller's, a part without it is a finding. A file that cannot be read to its end is a finding,
// too. Checkpoints from outside that are newer than the bundle are counted in Report.Ahead: it cannot be held against them.
// Options that a bundle has no use for (From, Sample) are refused.
func (b *Bundle) Verify(ctx context.Context, o VerifyOptions) (*Report, error) {
	if o.From != nil || o.Sample != 0 {
		return nil, fmt.Errorf("verifying bundle: it is verified whole: %w", ErrOptions)
	}
	v, err := newVerification(ctx, b, o)
	if err != nil {
		return nil, fmt.Errorf("verifying bundle: %w", err)
	}
	v.bundle = b
	v.report.Bundle, v.report.Partial, v.report.Filter = true, b.Manifest.Partial, b.Manifest.Filter
	if b.signature != nil {
		if v.report.Signed, err = b.Signed(v.trusted); err != nil {
			// A retired key's signature tells nothing, but is none that was forged.
			if retired, err := b.Signed(v.known); err != nil || !retired {
				v.find(Finding{Kind: KindManifest, Index: -1, File: fileSignature, Detail: "the signature on the manifest does not verify"})
			}
		}
	}
	if _, rendered := b.Manifest.file(fileFHIR); rendered && !v.report.Signed {
		v.find(Finding{Kind: KindManifest, Index: -1, File: fileFHIR, Detail: "the file is the exporter's rendering, for which only a signed manifest vouches, and no key that is trusted signed this one"})
	}
	// Whoever brings a key wants to know. Without one the report says that it rests on nothing from outside, and warns.
	if b.Manifest.Partial && !v.report.Signed && v.report.Trust == TrustKeys {
		v.find(Finding{Kind: KindManifest, Index: -1, File: fileSignature, Detail: "no key that is trusted signed the manifest of this selection: rows may have been left out"})
	}
	if err := v.files(ctx); err != nil {
		return nil, fmt.Errorf("verifying bundle: %w", err)
	}
	if b.Manifest.Partial {
		err = v.selection(ctx)
	} else if err = v.run(ctx); err == nil {
		b.mu.Lock()
		err = v.content(ctx, b.rows)
		b.mu.Unlock()
	}
	if errors.Is(err, ErrBundle) {
		// Whatever else there may be: this much is certain, and it is a place.
		v.find(Finding{Kind: KindFile, Index: v.front.size, File: fileOf(err), Detail: err.Error()})
		err = nil
	}
	if err == nil {
		err = v.strangers()
	}
	if err != nil {
		return nil, fmt.Errorf("verifying bundle: %w", err)
	}
	v.report.Verified = nil
	v.report.Duration = time.Since(v.report.Started)
	return &v.report, nil
}

// fileOf is the name of the file that an error of a lineFile is about.
func fileOf(err error) string {
	for _, name := range []string{fileRows, fileSpans, fileCheckpoints, filePrunings, fileFHIR} {
		if strings.Contains(err.Error(), ": "+name) {
			return name
		}
	}
	return ""
}

// files holds every file but the rows and tiles, which are read anyway, against the manifest.
func (v *verification) files(ctx context.Context) error {
	m := &v.bundle.Manifest
	expected := []string{fileReadme, fileCheckpoint, fileKeys, filePrunings, fileRows}
	if !m.Partial {
		expected = append(expected, fileSpans, fileCheckpoints)
	}
	for _, name := range expected {
		if _, ok := m.file(name); !ok {
			v.find(Finding{Kind: KindManifest, Index: -1, File: name, Detail: "the manifest lacks the file"})
		}
	}
	for i, f := range m.Files {
		if slices.ContainsFunc(m.Files[:i], func(g ManifestFile) bool { return g.Name == f.Name }) || !known(f.Name) {
			v.find(Finding{Kind: KindManifest, Index: -1, File: f.Name, Detail: "the manifest has a file that does not belong there"})
			continue
		}
		if f.Name == fileRows {
			continue
		}
		size, sum, err := v.bundle.hash(ctx, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.find(Finding{Kind: KindFile, Index: -1, File: f.Name, Detail: fmt.Sprintf("the file cannot be read: %v", err)})
			continue
		}
		v.sameFile(f, size, sum)
	}
	if c, err := claimed(v.bundle.checkpoint); err == nil && c != m.Checkpoint {
		v.find(Finding{Kind: KindManifest, Index: -1, File: fileManifest, Detail: "the manifest has another checkpoint than the bundle"})
	}
	return nil
}

func known(name string) bool {
	return slices.Contains([]string{fileReadme, fileCheckpoint, fileCheckpoints, fileKeys, filePrunings, fileSpans, fileRows, fileFHIR}, name)
}

func (v *verification) sameFile(f ManifestFile, size int64, sum string) {
	if size != f.Size || sum != f.SHA256 {
		v.find(Finding{Kind: KindFile, Index: -1, File: f.Name, Detail: "the file is not what the manifest says"})
	}
}

// hash reads a file, up to a byte more than it should have.
func (b *Bundle) hash(ctx context.Context, file ManifestFile) (_ int64, _ string, err error) {
	f, err := b.fsys.Open(file.Name)
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(contextReader{ctx, f}, file.Size+1))
	return n, hex.EncodeToString(h.Sum(nil)), err
}

// contextReader stops reading when ctx is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// content holds what the pass over the rows saw against the manifest.
func (v *verification) content(ctx context.Context, rows *lineFile[indexedRow]) error {
	m := &v.bundle.Manifest
	size, sum, err := rows.finish(ctx)
	if err != nil {
		return err
	}
	if f, ok := m.file(fileRows); ok {
		v.sameFile(f, size, sum)
	}
	for _, c := range []struct {
		what      string
		says, has int64
	}{{"rows", m.Rows, v.report.Rows}, {"batches", m.Spans, v.report.Spans}, {"checkpoints", m.Checkpoints, v.report.Checkpoints}, {"pruning records", m.Prunings, int64(v.prunings)}} {
		if c.says != c.has && !(m.Partial && c.what != "rows") {
			v.find(Finding{Kind: KindManifest, Index: -1, File: fileManifest, Detail: fmt.Sprintf("the manifest says %d %s, there are %d", c.says, c.what, c.has)})
		}
	}
	return nil
}

// strangers looks for files that do not belong to the bundle.
func (v *verification) strangers() error {
	b, m := v.bundle, &v.bundle.Manifest
	tiles := int64(0)
	err := fs.WalkDir(b.fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("listing files: %w: %w", err, ErrBundle)
		}
		if d.IsDir() || path == fileManifest || path == fileSignature {
			return nil
		}
		if _, ok := m.file(path); ok {
			return nil
		}
		t, err := parseTilePath(path)
		switch {
		case err != nil, !d.Type().IsRegular():
			v.find(Finding{Kind: KindFile, Index: -1, File: path, Detail: "the file is not in the manifest"})
		case m.Partial && !b.used[path], !m.Partial && !inTree(t, m.Checkpoint.Size):
			v.find(Finding{Kind: KindFile, Index: -1, File: path, Detail: "the tile does not belong to the bundle"})
		default:
			tiles++
		}
		return nil
	})
	if errors.Is(err, ErrBundle) {
		v.find(Finding{Kind: KindFile, Index: -1, Detail: err.Error()})
		return nil
	}
	if err == nil && tiles != m.Tiles {
		v.find(Finding{Kind: KindManifest, Index: -1, File: fileManifest, Detail: fmt.Sprintf("the manifest says %d tiles, there are %d", m.Tiles, tiles)})
	}
	return err
}

// inTree reports whether a tree of the size has the tile in exactly this width.
func inTree(t tlog.Tile, size int64) bool {
	if t.L*TileHeight > 62 {
		return false
	}
	hashes := size >> (t.L * TileHeight)
	return t.N < 1<<55 && int64(t.W) == min(tileWidth, hashes-t.N*tileWidth)
}

// selection verifies each row of a part against the tree.
func (v *verification) selection(ctx context.Context) error {
	if err := v.head(ctx); err != nil {
		return err
	}
	b, c := v.bundle, v.report.Checkpoint
	// One authenticated read for all rows under one tile: the reader hashes whole tiles.
	hashes := HashReader(ctx, b, c)
	for _, a := range v.outside {
		root, err := tlog.TreeHash(a.Size, hashes)
		if err != nil {
			v.report.Ahead++ // the tiles that are here do not say
			continue
		}
		v.compare(a, Hash(root))
	}
	v.open(b.checkpoint, c) // for its cosignatures
	rows := b.rowFile()
	var group []indexedRow
	var failed error
	done := int64(0)
	err := rows.read(ctx, 0, func(r *indexedRow) bool {
		if len(group) > 0 && group[0].index/tileWidth != r.index/tileWidth {
			failed = v.group(ctx, hashes, group)
			group = group[:0]
		}
		group = append(group, *r)
		if done++; v.o.Progress != nil && done%4096 == 0 {
			v.o.Progress(done, b.Manifest.Rows)
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err == nil {
		err = v.group(ctx, hashes, group)
	}
	if err == nil {
		v.finish()
		err = v.content(ctx, rows)
	}
	return errors.Join(err, rows.close())
}

// group verifies rows whose leaves stand in one tile.
func (v *verification) group(ctx context.Context, hashes tlog.HashReader, group []indexedRow) error {
	if len(group) == 0 {
		return nil
	}
	indexes := make([]int64, len(group))
	for i := range group {
		if group[i].index >= v.report.Checkpoint.Size {
			v.findf(KindExtra, group[i].index, "the row is said to stand beyond the tree")
			return nil
		}
		indexes[i] = tlog.StoredHashIndex(0, group[i].index)
	}
	want, err := hashes.ReadHashes(indexes)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.findf(KindTile, group[0].index, "the tiles over the row are missing, or not in the tree")
		return nil
	}
	for i := range group {
		g := &group[i]
		v.report.Rows++
		if len(g.row.Body) >= headLen && len(g.row.Body) <= MaxBody && leafOf(g.stream, g.row.Seq, &g.row.Salt, g.row.Body) == Hash(want[i]) {
			if _, ok := outlineOf(g.row.Body); ok {
				continue
			}
		}
		v.find(Finding{Kind: KindBody, Index: g.index, Stream: g.stream, Seq: g.row.Seq, Detail: "the row is not what the tree holds"})
	}
	return nil
}
