package phi

import (
	"bytes"
	"crypto/fips140"
	"encoding/hex"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// long says that the experiments run in their long form (task test:phi:long).
func long() bool { return os.Getenv("CHARTKEEP_LONG") != "" }

func form(short, whole int) int {
	if long() {
		return whole
	}
	return short
}

// TestRegistry holds the bytes that every stored cell is bound to: table and column are numbers that stay, whatever is renamed,
// and no two places have the same.
func TestRegistry(t *testing.T) {
	s := Sealed{Row: UUID{0xaa}, Subject: UUID{0xbb}, Version: 0x0102030405060708, KeyID: 0x0a0b0c0d}
	subject, row := "bb"+strings.Repeat("00", 15), "aa"+strings.Repeat("00", 15)
	want := func(kind, column string) string {
		return kind + subject + "0001" + column + row + "0102030405060708" + "0a0b0c0d" + "01"
	}
	for class, column := range map[Class]string{
		ClassIdentifier: "0000", ClassName: "0001", ClassBirthDate: "0002", ClassContact: "0003", ClassClinical: "0004", ClassNarrative: "0005",
	} {
		aad := appendAAD(nil, aadCell, uint16(class), &s)
		if got := hex.EncodeToString(aad); got != want("01", column) || len(aad) != aadSize {
			t.Errorf("%s is bound to %s, want %s", class, got, want("01", column))
		}
	}
	if got := hex.EncodeToString(appendAAD(nil, aadSeal, columnSeal, &s)); got != want("02", "ffff") {
		t.Errorf("the seal is bound to %s", got)
	}
	// Another table: the same cell under the next number.
	aead := randomCipher(t)
	stored := sealed(t, aead)
	aad := appendAAD(nil, aadCell, uint16(ClassName), &stored)
	for _, other := range []byte{0, 2, 0xff} {
		moved := bytes.Clone(aad)
		moved[1+16+1] = other
		if _, err := openCell(nil, aead, stored.KeyID, stored.Cells[ClassName], moved); err == nil {
			t.Errorf("a cell opened in table %d", other)
		}
	}
}

// TestRandomCells feeds the parser what is no cell (experiment 7): random bytes, cells with bytes changed, cut, joined and
// lengthened. Nothing opens, nothing panics, and memory is bounded by what goes in.
func TestRandomCells(t *testing.T) {
	aead := randomCipher(t)
	s := sealed(t, aead)
	good := s.Cells[ClassClinical]
	aad := appendAAD(nil, aadCell, uint16(ClassClinical), &s)
	random := mrand.NewChaCha8([32]byte{7})
	rng := mrand.New(random)
	var cell, opened []byte
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fed := 0
	var dst [NumClasses][]byte
	var mem []byte
	for i := range form(100_000, 1_000_000) {
		switch i % 4 {
		case 0:
			cell = slices.Grow(cell[:0], 1024)[:rng.IntN(1024)]
			_, _ = random.Read(cell)
		case 1: // well-formed but for its content
			cell = slices.Grow(cell[:0], len(good))[:len(good)]
			_, _ = random.Read(cell)
			copy(cell, good[:cellPrefix])
		case 2:
			cell = append(cell[:0], good...)
			for range 1 + rng.IntN(4) {
				cell[rng.IntN(len(cell))] ^= 1 << rng.IntN(8)
			}
		case 3:
			cell = append(append(cell[:0], good[:rng.IntN(len(good))]...), good[rng.IntN(len(good)):]...)
		}
		if bytes.Equal(cell, good) {
			continue
		}
		fed += len(cell)
		var err error
		if opened, err = openCell(opened[:0], aead, s.KeyID, cell, aad); err == nil {
			t.Fatalf("opened %x", cell)
		}
		row := s
		row.Cells[ClassClinical] = cell
		if unseal(aead, &row, 1<<ClassClinical, &dst, &mem) == nil {
			t.Fatalf("a row opened with %x", cell)
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 4*uint64(fed) {
		t.Errorf("%d bytes of cells took %d bytes of memory", fed, got)
	}
}

// TestSameValue seals one value again and again (experiment 13): nonces are distinct, and the bytes of what is stored are as
// good as random by a chi-square test over their 256 values, within six standard deviations of its mean.
func TestSameValue(t *testing.T) {
	aead := randomCipher(t)
	s := identity()
	padded := appendPadded(nil, ClassName, []byte("Lindqvist"))
	aad := appendAAD(nil, aadCell, uint16(ClassName), &s)
	n := form(100_000, 1_000_000)
	nonces := make([][nonceSize]byte, 0, n)
	var counts [256]int
	var cell []byte
	for range n {
		cell = appendCell(cell[:0], aead, s.KeyID, padded, aad)
		nonces = append(nonces, [nonceSize]byte(cell[cellPrefix:]))
		for _, b := range cell[cellPrefix:] {
			counts[b]++
		}
	}
	slices.SortFunc(nonces, func(a, b [nonceSize]byte) int { return bytes.Compare(a[:], b[:]) })
	if distinct := len(slices.Compact(nonces)); distinct != n {
		t.Errorf("%d seals have %d nonces", n, distinct)
	}
	expected := float64(n*(len(cell)-cellPrefix)) / 256
	chi := 0.0
	for _, c := range counts {
		chi += (float64(c) - expected) * (float64(c) - expected) / expected
	}
	if far := 6 * 22.6; chi < 255-far || chi > 255+far { // 255 degrees of freedom: mean 255, deviation √510
		t.Errorf("chi-square of %d seals is %.0f", n, chi)
	}
}

// TestNameLengths holds that lengths do not tell short names from long ones (experiment 22): a thousand names of 1 to 30
// letters make two stored lengths at most, in each of the forms that a name has.
func TestNameLengths(t *testing.T) {
	aead := randomCipher(t)
	for _, name := range []string{`{"family":"%s"}`, `{"use":"official","family":"%s","given":["Ada"]}`} {
		sizes := map[int]int{}
		for i := range 1000 {
			r := parse(t, fmt.Sprintf(`{"resourceType":"Patient","name":[`+name+`]}`, strings.Repeat("x", 1+i%30)))
			s, plain := identity(), split(r)
			if err := sealRow(aead, &s, &plain, nil); err != nil {
				t.Fatal(err)
			}
			sizes[len(s.Cells[ClassName])]++
		}
		if len(sizes) > 2 {
			t.Errorf("%s: a thousand names make the lengths %v, want 2 at most", name, sizes)
		}
	}
}

// TestTiming looks for an oracle in how long a refusal takes (experiment 24): what is wrong with a row (its key, its place, a
// bit of its first cell, a bit of the seal's tag) must not tell itself apart by a microsecond. Medians of interleaved samples.
func TestTiming(t *testing.T) {
	if testing.Short() || fips140.Enabled() {
		t.Skip("a measurement")
	}
	aead, other := randomCipher(t), randomCipher(t)
	good := sealed(t, aead)
	edited := func(edit func(*Sealed)) *Sealed {
		s := good
		for c := range s.Cells {
			s.Cells[c] = bytes.Clone(s.Cells[c])
		}
		s.Seal = bytes.Clone(s.Seal)
		edit(&s)
		return &s
	}
	cases := []struct {
		name string
		row  *Sealed
		took []time.Duration
	}{
		{name: "wrong key", row: &good},
		{name: "wrong patient", row: edited(func(s *Sealed) { s.Subject[0] ^= 1 })},
		{name: "wrong row", row: edited(func(s *Sealed) { s.Row[0] ^= 1 })},
		{name: "first bit of the seal's tag", row: edited(func(s *Sealed) { s.Seal[sealSize-tagSize] ^= 1 })},
		{name: "last bit of the seal's tag", row: edited(func(s *Sealed) { s.Seal[sealSize-1] ^= 1 })},
	}
	var dst [NumClasses][]byte
	var mem []byte
	for range form(4_000, 100_000) {
		for i := range cases {
			c := &cases[i]
			key := aead
			if i == 0 {
				key = other
			}
			began := time.Now()
			err := unseal(key, c.row, AllClasses, &dst, &mem)
			c.took = append(c.took, time.Since(began))
			if err == nil {
				t.Fatal(c.name, "opened")
			}
		}
	}
	var medians []time.Duration
	for i := range cases {
		slices.Sort(cases[i].took)
		medians = append(medians, cases[i].took[len(cases[i].took)/2])
		t.Logf("%-28s %s", cases[i].name, medians[i])
	}
	if apart := slices.Max(medians) - slices.Min(medians); apart >= time.Microsecond {
		t.Errorf("refusals are %s apart", apart)
	}
}
