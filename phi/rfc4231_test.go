package phi_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// TestRFC4231 holds the HMAC-SHA256 of this binary, under which index tokens and pseudonyms are made, to the vectors of RFC 4231,
// section 4. Its second case has a key of four bytes, which FIPS mode refuses, and its fifth is about truncation to 128 bits.
func TestRFC4231(t *testing.T) {
	for n, tt := range map[int]struct {
		key, data []byte
		mac       string
	}{
		1: {bytes.Repeat([]byte{0x0b}, 20), []byte("Hi There"), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
		3: {bytes.Repeat([]byte{0xaa}, 20), bytes.Repeat([]byte{0xdd}, 50), "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
		5: {bytes.Repeat([]byte{0x0c}, 20), []byte("Test With Truncation"), "a3b6167473100ee06e0c796c2955552b"},
		6: {
			bytes.Repeat([]byte{0xaa}, 131), []byte("Test Using Larger Than Block-Size Key - Hash Key First"),
			"60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
		},
		7: {
			bytes.Repeat([]byte{0xaa}, 131),
			[]byte("This is a test using a larger than block-size key and a larger than block-size data. The key needs to be hashed before being used by the HMAC algorithm."),
			"9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
		},
	} {
		mac := hmac.New(sha256.New, tt.key)
		mac.Write(tt.data)
		if got := hex.EncodeToString(mac.Sum(nil)[:len(tt.mac)/2]); got != tt.mac {
			t.Errorf("case %d: %s, want %s", n, got, tt.mac)
		}
	}
}
