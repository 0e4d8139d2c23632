package phi

import (
	"crypto/cipher"
	"errors"
)

// reseal seals the content of a row, fetched whole, under another data key. Identity, version, time and patients stay; so does
// what the seal says of the tokens, unless tokens (the digest of others) is given. The row itself is left alone. What was opened
// is cleared before it returns and goes nowhere else: that it was opened is an event of whoever asks for it.
func reseal(from, to cipher.AEAD, row *Sealed, key WrappedKey, tokens []byte) (*Sealed, error) {
	return rehome(from, to, row, key, tokens, row.Patients)
}

// rehome is reseal for a row that moves to other patients: of a merge.
func rehome(from, to cipher.AEAD, row *Sealed, key WrappedKey, tokens []byte, patients []string) (*Sealed, error) {
	if row.Fetched != AllClasses {
		return nil, errors.New("sealing row anew: it was not fetched whole")
	}
	var plain [NumClasses][]byte
	var mem []byte
	defer func() { clear(mem[:cap(mem)]) }()
	if err := unseal(from, row, AllClasses, &plain, &mem); err != nil {
		return nil, err
	}
	if tokens == nil {
		tokens = row.Seal[2:manifestTags]
	}
	anew := *row
	anew.Subject, anew.Segment, anew.KeyID, anew.Key = key.Subject, key.Segment, key.KeyID, key
	anew.Patients = patients
	if err := sealRow(to, &anew, &plain, tokens); err != nil {
		return nil, err
	}
	return &anew, nil
}
