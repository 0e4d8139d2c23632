package phi

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Memory that a row was opened into waits for the next one without a byte of it, also when the last cell did not open.
func TestMemoryIsCleared(t *testing.T) {
	aead := randomCipher(t)
	s, plain := identity(), contents()
	if err := sealRow(aead, &s, &plain, nil); err != nil {
		t.Fatal(err)
	}
	broken := s
	broken.Cells[ClassNarrative] = slices.Clone(s.Cells[ClassNarrative])
	broken.Cells[ClassNarrative][cellPrefix+nonceSize] ^= 1 // the ciphertext: the manifest's tag still fits
	r := &Records{}
	mem := new([]byte)
	for _, row := range []*Sealed{&s, &broken, &s} {
		var dst [NumClasses][]byte
		if err := unseal(aead, row, AllClasses, &dst, mem); (err == nil) != (row == &s) {
			t.Fatal(err)
		}
		if row == &s && !bytes.Contains(*mem, plain[ClassName]) {
			t.Fatal("the memory does not cover what was opened")
		}
		r.giveBack(mem)
		if i := slices.IndexFunc((*mem)[:cap(*mem)], func(b byte) bool { return b != 0 }); i >= 0 {
			t.Errorf("byte %d of the memory is not cleared", i)
		}
	}
}

// What render made stays as it is when the memory of the elements is used again.
func TestRenderKeepsNothing(t *testing.T) {
	for _, v := range []view{{classes: AllClasses}, {classes: 1 << ClassClinical}, {classes: 1 << ClassClinical, reduction: Deidentified}, {classes: 1 << ClassClinical, reduction: Coded}} {
		text := []byte(`{"profile":["http://p.test"]}"male"`)
		meta := len(text) - len(`"male"`)
		a := attempt{Records: &Records{now: time.Now}, caller: &Caller{}, start: time.Now(), decision: auth.Decision{}, kind: audit.TypeREST, view: v}
		res := a.render(&Sealed{Ref: Ref{"Patient", "1"}, Version: 1}, []fhir.Element{{Name: "meta", Raw: text[:meta]}, {Name: "gender", Raw: text[meta:]}})
		before := bytes.Clone(res.JSON.Reveal())
		clear(text)
		if !bytes.Equal(res.JSON.Reveal(), before) || !bytes.Contains(before, []byte(`"gender":"male"`)) {
			t.Errorf("view %v: %s became %s", v, before, res.JSON.Reveal())
		}
	}
}

func TestAppendMeta(t *testing.T) {
	const stated = `{"versionId":"3","lastUpdated":"2024-05-06T07:08:09.`
	const tag = `"tag":[` + subsettedTag + `]`
	at := func(ms int) time.Time {
		return time.Date(2024, 5, 6, 9, 8, 9, ms*int(time.Millisecond), time.FixedZone("", 2*60*60))
	}
	for _, c := range []struct {
		ms        int
		stored    string
		subsetted bool
		want      string
	}{
		{0, ``, false, stated + `000Z"}`},
		{7, `{}`, false, stated + `007Z"}`},
		{120, `{"profile":["http://p.test"],"tag":[{"code":"a\"}"}]}`, false, stated + `120Z","profile":["http://p.test"],"tag":[{"code":"a\"}"}]}`},
		{999, ``, true, stated + `999Z",` + tag + `}`},
		{45, `{"profile":["http://p.test"]}`, true, stated + `045Z","profile":["http://p.test"],` + tag + `}`},
		{1, `{"tag":[{"code":"a"}],"source":"s"}`, true, stated + `001Z","tag":[{"code":"a"},` + subsettedTag + `],"source":"s"}`},
	} {
		if got := string(appendMeta(nil, 3, at(c.ms), []byte(c.stored), c.subsetted)); got != c.want {
			t.Errorf("meta of %q\n got %s\nwant %s", c.stored, got, c.want)
		}
	}
}

// What was sealed is cleared once the caller was shown what may be seen of it, also the classes that may not.
func TestWrittenIsForgotten(t *testing.T) {
	r := parse(t, `{"resourceType":"Patient","name":[{"family":"Lindqvist"}],"birthDate":"1970-02-03"}`)
	c := &change{ref: Ref{"Patient", "1"}, resource: r, plain: split(r), view: view{classes: 1 << ClassName}}
	c.write.Ref, c.write.Version = c.ref, 1
	kept := c.plain
	a := attempt{Records: &Records{}, caller: &Caller{}, start: time.Now()}
	w, e := a.written(t.Context(), c)
	if e != nil {
		t.Fatal(e)
	}
	if text := w.JSON.Reveal(); !bytes.Contains(text, []byte("Lindqvist")) || bytes.Contains(text, []byte("1970")) {
		t.Errorf("shown %s", text)
	}
	for class, content := range kept {
		if len(bytes.Trim(content, "\x00")) > 0 {
			t.Errorf("%s is left: %q", Class(class), content)
		}
	}
}
