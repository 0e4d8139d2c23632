package phi

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chartkeep/chartkeep/phi/fhir"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// Speed seals and opens resources of a caller's own, so that the room's figures can be measured in a running program. They are
// never stored, and what is opened is cleared where it stands: nothing comes out. Not safe for concurrent use.
type Speed struct {
	keys    *keyset.Keys
	aeads   []cipher.AEAD
	rows    []*Sealed
	earlier []*Sealed // of the same patients, under the same keys
	plain   [][NumClasses][]byte
	attempt attempt
	mem     []byte
}

// NewSpeed seals each of the patients (FHIR JSON) under a key of its own, twice.
func NewSpeed(ctx context.Context, keys *keyset.Keys, patients [][]byte) (*Speed, error) {
	s := &Speed{keys: keys, attempt: attempt{view: view{classes: AllClasses}}}
	for _, text := range patients {
		resource, issues := fhir.Parse(text)
		if issues != nil {
			return nil, &Error{Kind: Invalid, Issues: issues}
		}
		k := WrappedKey{Subject: newUUID(), KeyID: 1}
		var err error
		if k.KEK, k.Wrapped, err = keys.NewKey(ctx, k.binding()); err != nil {
			return nil, fmt.Errorf("making data key: %w", err)
		}
		aead, err := keys.AEAD(ctx, k.KEK, k.Wrapped, k.binding())
		if err != nil {
			return nil, fmt.Errorf("opening data key: %w", err)
		}
		plain := split(resource)
		row := func() (*Sealed, error) {
			r := &Sealed{
				Ref: Ref{resource.Type, resource.ID}, Row: newUUID(), Version: 1, Updated: time.Now().UTC().Truncate(time.Millisecond), Method: "POST",
				Patients: []string{resource.ID}, Subject: k.Subject, KeyID: k.KeyID, Key: k,
			}
			return r, sealRow(aead, r, &plain, nil)
		}
		now, err := row()
		if err != nil {
			return nil, err
		}
		earlier, err := row()
		if err != nil {
			return nil, err
		}
		s.aeads, s.rows, s.earlier, s.plain = append(s.aeads, aead), append(s.rows, now), append(s.earlier, earlier), append(s.plain, plain)
	}
	if len(s.rows) == 0 {
		return nil, errors.New("measuring: no patients")
	}
	return s, nil
}

// Cells is how many cells the n-th patient has.
func (s *Speed) Cells(n int) (cells int) {
	for _, cell := range s.row(n).Cells {
		if cell != nil {
			cells++
		}
	}
	return cells
}

// Contents are the contents of the n-th patient's classes, as they were before they were sealed; the caller's own.
func (s *Speed) Contents(n int) [][]byte { return s.plain[n%len(s.plain)][:] }

func (s *Speed) row(n int) *Sealed { return s.rows[n%len(s.rows)] }

// cipher is the cipher of a row's data key: out of the cache, or unwrapped and set up anew.
func (s *Speed) cipher(ctx context.Context, row *Sealed, cached bool) (cipher.AEAD, error) {
	if cached {
		return s.keys.AEAD(ctx, row.Key.KEK, row.Key.Wrapped, row.Key.binding())
	}
	key, err := s.keys.Secret(ctx, row.Key.KEK, row.Key.Wrapped, row.Key.binding())
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (s *Speed) unseal(aead cipher.AEAD, row *Sealed) error {
	var opened [NumClasses][]byte
	err := unseal(aead, row, AllClasses, &opened, &s.mem)
	clear(s.mem)
	return err
}

// Open opens every cell of the n-th patient and checks the seal, its data key cached or not.
func (s *Speed) Open(ctx context.Context, n int, cached bool) error {
	row := s.row(n)
	aead, err := s.cipher(ctx, row, cached)
	if err != nil {
		return err
	}
	return s.unseal(aead, row)
}

// OpenTwice opens two rows of the n-th patient under one data key: twice the cells.
func (s *Speed) OpenTwice(ctx context.Context, n int, cached bool) error {
	row := s.row(n)
	aead, err := s.cipher(ctx, row, cached)
	if err != nil {
		return err
	}
	return errors.Join(s.unseal(aead, row), s.unseal(aead, s.earlier[n%len(s.rows)]))
}

// OpenRows opens rows as a storage returned them.
func (s *Speed) OpenRows(ctx context.Context, rows []*Sealed) error {
	for _, row := range rows {
		aead, err := s.cipher(ctx, row, false)
		if err != nil {
			return err
		}
		if err := s.unseal(aead, row); err != nil {
			return err
		}
	}
	return nil
}

// Show opens the n-th patient as a read does, FHIR JSON included.
func (s *Speed) Show(n int) error {
	row := s.row(n)
	var opened [NumClasses][]byte
	if err := unseal(s.aeads[n%len(s.aeads)], row, AllClasses, &opened, &s.mem); err != nil {
		return err
	}
	var few [24]fhir.Element
	elements, err := join(&opened, few[:0])
	if err != nil {
		return err
	}
	s.attempt.render(row, elements).JSON.Clear()
	clear(s.mem)
	return nil
}

// Seal seals the n-th patient, twice when twelve cells are wanted, the data key cached or not.
func (s *Speed) Seal(ctx context.Context, n, times int, cached bool) error {
	row := *s.row(n)
	aead, err := s.cipher(ctx, &row, cached)
	if err != nil {
		return err
	}
	for range times {
		if err := sealRow(aead, &row, &s.plain[n%len(s.plain)], nil); err != nil {
			return err
		}
	}
	return nil
}

// Throughput returns two functions that open the cells of all patients: as this room does, and with nothing but crypto/cipher on
// the same bytes.
func (s *Speed) Throughput() (ours, bare func() error) {
	type cell struct {
		aead   cipher.AEAD
		row    *Sealed
		class  Class
		cell   []byte
		sealed []byte
	}
	var cells []cell
	for i, row := range s.rows {
		for class, c := range row.Cells {
			if c != nil {
				cells = append(cells, cell{s.aeads[i], row, Class(class), c, slices.Clone(c[cellPrefix:])})
			}
		}
	}
	var dst, aad []byte
	prepared := make([][]byte, len(cells))
	for i, c := range cells {
		prepared[i] = appendAAD(nil, aadCell, uint16(c.class), c.row)
	}
	ours = func() (err error) {
		for i := range cells {
			c := &cells[i]
			aad = appendAAD(aad[:0], aadCell, uint16(c.class), c.row)
			if dst, err = openCell(dst[:0], c.aead, c.row.KeyID, c.cell, aad); err != nil {
				return err
			}
			if _, err = unpad(dst); err != nil {
				return err
			}
		}
		return nil
	}
	bare = func() (err error) {
		for i := range cells {
			if dst, err = cells[i].aead.Open(dst[:0], nil, cells[i].sealed, prepared[i]); err != nil {
				return err
			}
		}
		return nil
	}
	return ours, bare
}
