package phi

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"math/bits"
)

// errIntegrity is the one answer to every row that does not open, whatever the reason: wrong key, moved, edited, nulled
// or truncated cells, a broken seal. It says nothing about which, so that it is no oracle.
var errIntegrity = errors.New("phi: sealed row does not open")

// A cell is Tink's wire format for AES-256-GCM keys with the TINK prefix
// (https://developers.google.com/tink/wire-format), so that Tink in any language is an independent decryptor:
//
//	0x01 | key id, 4 bytes big endian | nonce, 12 bytes | ciphertext | tag, 16 bytes
//
// The plaintext is the content, then 0x80 and zeros (ISO/IEC 7816-4 padding) up to the size that pad chooses.
const (
	cellFormat   = 0x01
	cellPrefix   = 5 // format and key id
	nonceSize    = 12
	tagSize      = 16
	cellOverhead = cellPrefix + nonceSize + tagSize
)

// Kinds of associated data. 0x03 is a wrapped data key and 0x04 a wrapped key-encryption key, both in phi/keyset.
const (
	aadCell = 0x01
	aadSeal = 0x02
)

// tableRecord is the registry number of the table that cells live in. It stands for current and superseded versions
// alike, and outlives every renaming of tables in the database.
const tableRecord = 1

// columnSeal stands where a cell's associated data has its class.
const columnSeal = 0xffff

// aadSize is the length of the associated data that a cell is bound to; it is never stored:
//
//	kind 1 | key subject 16 | table 2 | column 2 | row 16 | version 8 | key id 4 | format 1
//
// The key id is in it because Tink's prefix is not authenticated by GCM itself, the version because an old cell put
// back into a newer row must not open.
const aadSize = 1 + 16 + 2 + 2 + 16 + 8 + 4 + 1

func appendAAD(dst []byte, kind byte, column uint16, s *Sealed) []byte {
	dst = append(dst, kind)
	dst = append(dst, s.Subject[:]...)
	dst = binary.BigEndian.AppendUint16(dst, tableRecord)
	dst = binary.BigEndian.AppendUint16(dst, column)
	dst = append(dst, s.Row[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.Version))
	dst = binary.BigEndian.AppendUint32(dst, s.KeyID)
	return append(dst, cellFormat)
}

// paddedSize is how long content of n bytes is made. Steps are 32 bytes for the classes that identify a person, where
// the length alone would tell "Li" from "Featherstonehaugh", and 256 bytes for the rest. Beyond sixteen steps the step
// doubles, so that large content costs at most an eighth more, and its length says less the longer it is.
func paddedSize(c Class, n int) int {
	step := 32
	if c == ClassClinical || c == ClassNarrative {
		step = 256
	}
	n++ // the 0x80
	if n > 16*step {
		step = 1 << (bits.Len(uint(n-1)) - 4)
	}
	return (n + step - 1) / step * step
}

// appendPadded appends content and its padding.
func appendPadded(dst []byte, c Class, content []byte) []byte {
	end := len(dst) + paddedSize(c, len(content))
	dst = append(append(dst, content...), 0x80)
	for len(dst) < end {
		dst = append(dst, 0)
	}
	return dst
}

// unpad returns the content of an opened cell.
func unpad(padded []byte) ([]byte, error) {
	n := len(padded)
	for n >= 8 && binary.LittleEndian.Uint64(padded[n-8:]) == 0 { // eight zeros at a time: there may be hundreds
		n -= 8
	}
	for i := n - 1; i >= 0; i-- {
		switch padded[i] {
		case 0:
		case 0x80:
			return padded[:i:i], nil
		default:
			return nil, errIntegrity
		}
	}
	return nil, errIntegrity
}

// appendCell appends the cell of plaintext, already padded.
func appendCell(dst []byte, aead cipher.AEAD, keyID uint32, plaintext, aad []byte) []byte {
	dst = append(dst, cellFormat)
	dst = binary.BigEndian.AppendUint32(dst, keyID)
	return aead.Seal(dst, nil, plaintext, aad)
}

// openCell appends the padded plaintext of a cell to dst.
func openCell(dst []byte, aead cipher.AEAD, keyID uint32, cell, aad []byte) ([]byte, error) {
	if len(cell) < cellOverhead || cell[0] != cellFormat || binary.BigEndian.Uint32(cell[1:]) != keyID {
		return nil, errIntegrity
	}
	plaintext, err := aead.Open(dst, nil, cell[cellPrefix:], aad)
	if err != nil {
		return nil, errIntegrity
	}
	return plaintext, nil
}

// tag is the authentication tag of a cell, which stands for the whole of it in the row seal.
func tag(cell []byte) []byte { return cell[len(cell)-tagSize:] }
