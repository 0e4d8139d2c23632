package phi

import (
	"bytes"
	"cmp"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/chartkeep/chartkeep/audit"
)

// errNoReceipt refuses to open a row that no durable audit event covers.
var errNoReceipt = errors.New("phi: no audit receipt covers the row")

// The row seal is a manifest and a cell without plaintext (a GMAC) over it:
//
//	format 1 | stored classes 1 | digest of the tokens 16 | tag of each class's cell 6 × 16 (zeros when NULL) | GMAC cell 33
//
// A cell's tag stands for the cell, so any view verifies the whole seal with the cells that it fetched and without the
// others: a fetched cell that is missing, older, or from elsewhere does not have the tag that the manifest says. The
// GMAC's associated data is the row's identity, the manifest, and what is stored in the clear (type, id, method, time,
// patients, digest), so an edit of those is noticed on every read.
//
// The tokens are only in the manifest, by digest: a read does not fetch them. What an edited token can do is hide a
// record from a search or offer a wrong candidate, and candidates are verified after opening.
const (
	sealFormat   = 0x01
	manifestTags = 2 + sha256.Size/2
	manifestSize = manifestTags + NumClasses*tagSize
	sealSize     = manifestSize + cellOverhead
)

// sealRow seals plain into s.Cells, and s.Cells, the digest of the tokens (tokensDigest) and the identity of s into s.Seal.
// Ref, Row, Version, Updated, Method, Patients, Subject, KeyID and Digest of s must be set, and stay as they are. A class
// whose plain is nil is stored as NULL; a tombstone has none. aead must be a cipher with random nonces (keyset.Keys.AEAD).
func sealRow(aead cipher.AEAD, s *Sealed, plain *[NumClasses][]byte, tokens []byte) error {
	if aead.NonceSize() != 0 {
		return errors.New("sealing row: cipher does not choose its own nonces")
	}
	var longest, total int
	for c, content := range plain {
		if content == nil {
			continue
		}
		if s.Deleted() {
			return errors.New("sealing row: a tombstone has no content")
		}
		n := paddedSize(Class(c), len(content))
		longest = max(longest, n)
		total += n + cellOverhead
	}
	padded := make([]byte, 0, longest)
	defer func() { clear(padded[:cap(padded)]) }()
	cells := make([]byte, 0, total+sealSize)
	aad := make([]byte, 0, sealAADSize(s))

	manifest := make([]byte, manifestSize)
	manifest[0] = sealFormat
	copy(manifest[2:manifestTags], tokens)
	s.Cells = [NumClasses][]byte{}
	for c, content := range plain {
		if content == nil {
			continue
		}
		padded = appendPadded(padded[:0], Class(c), content)
		aad = appendAAD(aad[:0], aadCell, uint16(c), s)
		start := len(cells)
		cells = appendCell(cells, aead, s.KeyID, padded, aad)
		s.Cells[c] = cells[start:len(cells):len(cells)]
		manifest[1] |= 1 << c
		copy(manifest[manifestTags+c*tagSize:], tag(s.Cells[c]))
	}
	s.Fetched = AllClasses
	start := len(cells)
	cells = append(cells, manifest...)
	s.Seal = appendCell(cells, aead, s.KeyID, nil, appendSealAAD(aad[:0], s, manifest))[start:]
	return nil
}

// openRow opens the wanted classes of a fetched row into dst. The contents share mem, which is made larger where it must
// be, and covers all that was written there, so that the caller can clear it. Classes that are not wanted, or stored as
// NULL, become nil. It opens nothing unless the receipt covers the record (errNoReceipt), and either everything that was
// fetched is as it was sealed or the whole row is withheld (errIntegrity).
func openRow(aead cipher.AEAD, s *Sealed, want ClassSet, receipt audit.Receipt, dst *[NumClasses][]byte, mem *[]byte) error {
	if !covered(s, receipt) {
		return errNoReceipt
	}
	return unseal(aead, s, want, dst, mem)
}

func covered(s *Sealed, receipt audit.Receipt) bool {
	if len(s.Patients) == 0 {
		return receipt.Covers(s.Type, s.ID, "")
	}
	for _, p := range s.Patients {
		if receipt.Covers(s.Type, s.ID, p) {
			return true
		}
	}
	return false
}

// unseal is openRow after the receipt was checked.
func unseal(aead cipher.AEAD, s *Sealed, want ClassSet, dst *[NumClasses][]byte, mem *[]byte) error {
	*dst = [NumClasses][]byte{}
	if missing := want &^ s.Fetched; missing != 0 {
		return fmt.Errorf("opening row: classes %06b were not fetched", missing)
	}
	if len(s.Seal) != sealSize || s.Seal[0] != sealFormat {
		return errIntegrity
	}
	manifest := s.Seal[:manifestSize]
	stored := ClassSet(manifest[1])
	total := 0
	for c := range Class(NumClasses) {
		cell := s.Cells[c]
		if !s.Fetched.Has(c) {
			continue
		}
		if stored.Has(c) != (cell != nil) {
			return errIntegrity
		}
		if cell == nil {
			continue
		}
		if len(cell) < cellOverhead || !bytes.Equal(tag(cell), manifest[manifestTags+int(c)*tagSize:][:tagSize]) {
			return errIntegrity
		}
		if want.Has(c) {
			total += len(cell) - cellOverhead
		}
	}
	// One buffer a row: the associated data stands before the plaintext.
	reserve := sealAADSize(s)
	*mem = slices.Grow((*mem)[:0], reserve+total)[:reserve+total]
	buf := (*mem)[: reserve : reserve+total]
	aad := appendSealAAD(buf[:0:reserve], s, manifest)
	if _, err := openCell(buf, aead, s.KeyID, s.Seal[manifestSize:], aad); err != nil {
		return errIntegrity
	}
	var opened [NumClasses][]byte
	for c := range Class(NumClasses) {
		cell := s.Cells[c]
		if !want.Has(c) || cell == nil {
			continue
		}
		aad = appendAAD(buf[:0:reserve], aadCell, uint16(c), s)
		start := len(buf)
		grown, err := openCell(buf, aead, s.KeyID, cell, aad)
		if err != nil {
			clear(buf[reserve:])
			return errIntegrity
		}
		buf = grown
		if opened[c], err = unpad(buf[start:]); err != nil {
			clear(buf[reserve:])
			return errIntegrity
		}
	}
	*dst = opened
	return nil
}

// sealAADSize bounds what appendSealAAD appends.
func sealAADSize(s *Sealed) int {
	n := aadSize + manifestSize + 8 + len(s.Digest) + 4*5 + len(s.Type) + len(s.ID) + len(s.Method)
	for _, p := range s.Patients {
		n += 4 + len(p)
	}
	return n
}

// appendSealAAD appends the associated data of the row seal: the row's identity, the manifest, and the columns that are
// stored in the clear, strings with their lengths before them so that no two rows encode alike. The time counts in
// milliseconds, which is what a Sealed holds.
func appendSealAAD(dst []byte, s *Sealed, manifest []byte) []byte {
	dst = appendAAD(dst, aadSeal, columnSeal, s)
	dst = append(dst, manifest...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.Updated.UnixMilli()))
	dst = append(dst, s.Digest[:]...)
	for _, field := range [...]string{s.Type, s.ID, s.Method} {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(field)))
		dst = append(dst, field...)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s.Patients)))
	for _, p := range s.Patients {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(p)))
		dst = append(dst, p...)
	}
	return dst
}

// tokensDigest is a digest of the set of tokens, in any order.
func tokensDigest(tokens []Token) []byte {
	sorted := slices.Clone(tokens)
	slices.SortFunc(sorted, compareTokens)
	sorted = slices.Compact(sorted)
	h := sha256.New()
	for _, t := range sorted {
		h.Write([]byte{byte(t.Kind >> 8), byte(t.Kind)})
		h.Write(t.Value[:])
	}
	return h.Sum(nil)[:sha256.Size/2]
}

func compareTokens(a, b Token) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), bytes.Compare(a.Value[:], b.Value[:]))
}
