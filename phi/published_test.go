package phi

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// published returns the resources of US Core's examples and Synthea's bundles, file by file. It skips the test when the
// data, which lies beside the repository, is absent.
func published(t testing.TB) map[string][]*fhir.Resource {
	t.Helper()
	files := map[string][]*fhir.Resource{}
	for _, dir := range []string{"us-core-6.1.0/examples", "synthea"} {
		dir = filepath.Join("../../shared/data", dir)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			t.Skipf("the shared data is absent: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if entries := gjson.GetBytes(text, "entry.#.resource"); entries.Exists() {
				for _, resource := range entries.Array() {
					files[e.Name()] = append(files[e.Name()], parse(t, resource.Raw))
				}
				continue
			}
			files[e.Name()] = []*fhir.Resource{parse(t, string(text))}
		}
	}
	return files
}

// TestPublishedRoundTrip seals and opens every published resource.
func TestPublishedRoundTrip(t *testing.T) {
	aead := randomCipher(t)
	for name, resources := range published(t) {
		for _, r := range resources {
			plain := split(r)
			s := identity()
			s.Ref = Ref{Type: r.Type, ID: r.ID}
			if err := sealRow(aead, &s, &plain, nil); err != nil {
				t.Fatal(err)
			}
			var opened [NumClasses][]byte
			if err := unseal(aead, &s, AllClasses, &opened, new([]byte)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := join(&opened, nil)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var want []fhir.Element
			for _, e := range r.Elements {
				if e.Name == "meta" {
					if e.Raw = storedMeta(e.Raw); e.Raw == nil {
						continue
					}
				}
				want = append(want, e)
			}
			if !equalElements(got, want) {
				t.Errorf("%s: %s/%s came back changed", name, r.Type, r.ID)
			}
			for c, cell := range s.Cells {
				if plain[c] != nil && bytes.Contains(cell, plain[c]) {
					t.Errorf("%s: a cell is readable", name)
				}
			}
		}
	}
}

// TestPublishedDeidentified de-identifies every published resource and looks for what its patient is known by, for
// dates finer than years, and for addresses of the web.
func TestPublishedDeidentified(t *testing.T) {
	fineDate := regexp.MustCompile(`"[12]\d{3}-\d{2}`)
	for name, resources := range published(t) {
		var secrets []string
		for _, r := range resources {
			if r.Type == "Patient" {
				for _, path := range []string{
					"identifier.#.value", "name.#.family", "name.#.given|@flatten", "name.#.text", "telecom.#.value",
					"address.#.line|@flatten", "address.#.city", "address.#.postalCode", "birthDate",
				} {
					for _, v := range gjson.GetBytes(r.Text(), path).Array() {
						if len(v.String()) > 3 {
							secrets = append(secrets, v.String())
						}
					}
				}
				secrets = append(secrets, r.ID)
			}
		}
		for _, r := range resources {
			cells := split(r)
			classes, _, _ := ViewOf("deidentified", r.Type)
			for class := range Class(NumClasses) {
				if !classes.Has(class) {
					cells[class] = nil
				}
			}
			elements, err := join(&cells, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := harbor().reduce(parse(t, string(fhir.Assemble(nil, r.Type, "", nil, elements)))).Text()
			if found := fineDate.Find(got); found != nil {
				t.Errorf("%s: %s keeps the date %s…", name, r.Type, found)
			}
			for _, s := range append(secrets, "<div", `"text":`, `"display":`, "urn:uuid:") {
				if strings.Contains(string(got), s) {
					t.Errorf("%s: %s keeps %q", name, r.Type, s)
				}
			}
		}
	}
}

// TestPublishedSearches searches each published person by everything FHIR's search would find it by.
func TestPublishedSearches(t *testing.T) {
	x := prefixIndex()
	searches := 0
	for name, resources := range published(t) {
		for _, r := range resources {
			tokens := x.tokensOf(r)
			try := func(param, value string) {
				value = strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(value)
				criterion, issues := fhir.ParseCriterion(r.Type, param, value)
				if issues != nil || !criterion.Match(r) {
					return
				}
				alternatives, ok := x.lookup1(r.Type, param, value)
				if ok {
					searches++
					if !found(tokens, alternatives) {
						t.Errorf("%s: %s?%s=%s matches, but the index does not find it", name, r.Type, param, value)
					}
				}
			}
			for _, id := range gjson.GetBytes(r.Text(), "identifier").Array() {
				try("identifier", id.Get("value").String())
				try("identifier", id.Get("system").String()+"|"+id.Get("value").String())
				try("identifier", "|"+id.Get("value").String())
			}
			for _, part := range gjson.GetBytes(r.Text(), "[name.#.family,name.#.given|@flatten,name.#.text,name.#.prefix|@flatten]|@flatten").Array() {
				for n := range part.String() {
					try("name", part.String()[:n])
				}
				for _, param := range []string{"name", "family", "given", "name:exact"} {
					try(param, part.String())
					try(param, strings.ToUpper(part.String()))
				}
			}
			for _, telecom := range gjson.GetBytes(r.Text(), "telecom").Array() {
				for _, param := range []string{"phone", "email", "telecom"} {
					try(param, telecom.Get("value").String())
				}
			}
			try("birthdate", gjson.GetBytes(r.Text(), "birthDate").String())
		}
	}
	if searches < 500 {
		t.Errorf("only %d searches: the test tests little", searches)
	}
}
