package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
)

// The roots of Certificate Transparency's test leaves, at every size (certificate-transparency/python/ct/crypto/merkle_test.py).
func TestGrowingHasRootsOfRFC6962(t *testing.T) {
	g, err := restore(Checkpoint{Root: emptyRoot()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(g.head.Root[:]); got != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Errorf("root of the empty tree: %s", got)
	}
	leaves := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := []string{
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c", "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	for i, leaf := range leaves {
		data, err := hex.DecodeString(leaf)
		if err != nil {
			t.Fatal(err)
		}
		g.add(Hash(tlog.RecordHash(data)), func(Tile) { t.Error("a tile is full") })
		if root := g.front.root(); hex.EncodeToString(root[:]) != roots[i] {
			t.Errorf("root of %d leaves: %x, want %s", i+1, root, roots[i])
		}
	}
}

// At random sizes over three levels of tiles: the root is a foreign implementation's, the tiles are tlog's, and the tree is taken
// up again from its edge alone.
func TestGrowingIsTheForeignTree(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	g, err := restore(Checkpoint{Root: emptyRoot()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	var hashes []tlog.Hash
	stored := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		list := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			if at >= int64(len(hashes)) {
				return nil, fmt.Errorf("no hash %d", at)
			}
			list[i] = hashes[at]
		}
		return list, nil
	})
	full := map[tlog.Tile][]byte{}
	const size = 70_000
	check := map[int64]bool{1: true, 255: true, 256: true, 257: true, 511: true, 512: true, 65535: true, 65536: true, 65537: true, size: true}
	for range 40 {
		check[1+random.Int64N(size)] = true
	}
	for n := int64(1); n <= size; n++ {
		var leaf Hash
		for i := range leaf {
			leaf[i] = byte(random.Uint32())
		}
		g.add(leaf, func(tile Tile) { full[tile.Tile] = tile.Hashes })
		if err := foreign.Append(leaf[:], nil); err != nil {
			t.Fatal(err)
		}
		more, err := tlog.StoredHashesForRecordHash(n-1, tlog.Hash(leaf), stored)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
		if !check[n] {
			continue
		}
		want, err := foreign.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		root := g.front.root()
		if !bytes.Equal(root[:], want) {
			t.Fatalf("root of %d leaves: %x, want %x", n, root, want)
		}
		var contents [][]byte
		for _, p := range g.partial() {
			data, err := tlog.ReadTileData(p.Tile, stored)
			if err != nil || !bytes.Equal(data, p.Hashes) {
				t.Fatalf("edge of %d leaves at level %d is not tlog's (%v)", n, p.L, err)
			}
			contents = append(contents, p.Hashes)
		}
		c := Checkpoint{Size: n, Root: root}
		if again, err := restore(c, contents); err != nil || again.front.root() != root {
			t.Fatalf("taking up %d leaves: %v", n, err)
		}
		for i := range contents {
			contents[i] = bytes.Clone(contents[i])
			at := random.IntN(len(contents[i]))
			contents[i][at] ^= 1
			if _, err := restore(c, contents); err == nil {
				t.Fatalf("an edge of %d leaves was taken up with byte %d of level %d changed", n, at, i)
			}
			contents[i][at] ^= 1
		}
	}
	if len(full) != size/256+size/65536 {
		t.Errorf("%d full tiles", len(full))
	}
	for tile, hashes := range full {
		data, err := tlog.ReadTileData(tile, stored)
		if err != nil || !bytes.Equal(data, hashes) {
			t.Fatalf("tile %d/%d is not tlog's (%v)", tile.L, tile.N, err)
		}
	}
}

// 20,000 leaves a second and more.
func TestGrowingIsFast(t *testing.T) {
	g, err := restore(Checkpoint{Root: emptyRoot()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	const n = 50_000
	var chain Hash
	for i := range n {
		leaf := Hash{byte(i), byte(i >> 8), byte(i >> 16)}
		chain = link(chain, leaf) // as fits does
		g.add(leaf, func(Tile) {})
	}
	rate := n / time.Since(began).Seconds()
	t.Logf("%.0f leaves a second", rate)
	if rate < 20_000 {
		t.Errorf("%.0f leaves a second, want 20,000", rate)
	}
}
