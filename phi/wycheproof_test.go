package phi

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// TestWycheproof opens C2SP's vectors for AES-GCM as cells: the 256-bit keys with 96-bit nonces, which is all that a cell has.
// testdata/aes_gcm_test.json.gz is testvectors_v1/aes_gcm_test.json of github.com/C2SP/wycheproof at fca0d3ba9f12 (Apache 2.0).
func TestWycheproof(t *testing.T) {
	file, err := os.Open("testdata/aes_gcm_test.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		TestGroups []struct {
			IVSize, KeySize, TagSize int
			Tests                    []struct {
				TcID                                        int
				Key, IV, AAD, Msg, CT, Tag, Result, Comment string
			}
		}
	}
	if err := json.NewDecoder(unzipped).Decode(&vectors); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	valid, invalid := 0, 0
	for _, g := range vectors.TestGroups {
		if g.KeySize != 256 || g.IVSize != 8*nonceSize || g.TagSize != 8*tagSize {
			continue
		}
		for _, v := range g.Tests {
			const id = 0x01020304
			cell := append([]byte{cellFormat, 1, 2, 3, 4}, unhex(v.IV)...)
			cell = append(append(cell, unhex(v.CT)...), unhex(v.Tag)...)
			got, err := openCell(nil, newCipher(t, unhex(v.Key)), id, cell, unhex(v.AAD))
			switch v.Result {
			case "valid":
				valid++
				if err != nil || !bytes.Equal(got, unhex(v.Msg)) {
					t.Errorf("vector %d (%s): %x, %v, want %s", v.TcID, v.Comment, got, err, v.Msg)
				}
			default:
				invalid++
				if err == nil {
					t.Errorf("vector %d (%s) opened", v.TcID, v.Comment)
				}
			}
		}
	}
	if valid < 35 || invalid < 25 {
		t.Errorf("%d valid and %d invalid vectors were tried: the file is not what it was", valid, invalid)
	}
}
