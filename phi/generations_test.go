package phi_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// TestNameSearches says for each way to index names what is found by what.
func TestNameSearches(t *testing.T) {
	ctx := context.Background()
	const none, refused, warned = "", "refused", "warned "
	for _, tt := range []struct {
		query                   []phi.Param
		prefix, exact, compound string // names of the patients found
	}{
		{params("family", "Smythe-Jones"), "jo", warned + "jo", "jo"}, // by compound: what has no index is looked for among all
		{params("family", "smyth"), "jo ann", warned + "ann", "jo ann"},
		{params("family", "smyth", "birthdate", "1980-03-04"), "ann", warned + "ann", warned + "ann"},
		{params("family", "smy", "birthdate", "1980-03-04"), "ann", warned, warned},
		{params("family", "smyth", "given", "ann", "birthdate", "1980"), "ann", warned + "ann", warned + "ann"},
		{params("family", "smyth", "given", "a", "birthdate", "1980"), "ann", warned + "ann", warned + "ann"},
		{params("family", "smyth", "given", "b", "birthdate", "1980"), none, warned, warned},
		{params("name", "ann", "birthdate", "1980-03-04"), "ann", "ann", "ann"},
		{params("birthdate", "1980-03-04"), "ann", "ann", "ann"},
		{params("phonetic", "Smith", "birthdate", "1980"), "ann", "ann", "ann"},
		{params("phonetic", "Schmidt", "birthdate", "1980-03-04"), "ann", "ann", "ann"},
		{params("phonetic", "Anne", "birthdate", "1980,1981"), "ann", "ann", "ann"},
		{params("phonetic", "Smith", "birthdate", "1981"), none, none, none},
		{params("phonetic", "Miller", "birthdate", "1980"), none, none, none},
		{params("phonetic", "Smith"), refused, refused, refused},
		{params("phonetic", "Smith", "birthdate", "ge1980"), refused, refused, refused},
		{params("phonetic", "李", "birthdate", "1980"), refused, refused, refused},
	} {
		for names, want := range map[phi.NameSearch]string{"prefix+phonetic": tt.prefix, "exact+phonetic": tt.exact, "compound+phonetic": tt.compound} {
			room := phitest.Open(t, phitest.Options{Names: names})
			called := map[string]string{}
			for name, text := range map[string]string{
				"ann": `{"resourceType":"Patient","name":[{"family":"Smyth","given":["Ann"]}],"birthDate":"1980-03-04"}`,
				"jo":  `{"resourceType":"Patient","name":[{"family":"Smythe-Jones","given":["Jo"]}],"birthDate":"1990-03-04"}`,
			} {
				w, err := room.Records.Create(ctx, backend(), "Patient", []byte(text), nil)
				if err != nil {
					t.Fatal(err)
				}
				called[w.ID] = name
			}
			page, err := room.Records.Search(ctx, backend(), "Patient", tt.query, true)
			if want == refused {
				wantKind(t, err, phi.Invalid)
				continue
			}
			if err != nil {
				t.Errorf("%s: %v: %v", names, tt.query, err)
				continue
			}
			var found []string
			for _, r := range page.Resources {
				found = append(found, called[r.ID])
			}
			all, warn := strings.CutPrefix(want, warned)
			wanted := strings.Fields(all)
			slices.Sort(found)
			slices.Sort(wanted)
			if !slices.Equal(found, wanted) || warn != (len(page.Warnings) > 0) {
				t.Errorf("%s: %v finds %v with warnings %v, want %q", names, tt.query, found, page.Warnings, want)
			}
		}
	}
	// Without an index of sounds the parameter is not known.
	room := phitest.Open(t, phitest.Options{})
	_, err := room.Records.Search(ctx, backend(), "Patient", params("phonetic", "Smith", "birthdate", "1980"), true)
	wantKind(t, err, phi.Invalid)
}

// Telephone numbers are found whether or not they have their country code.
func TestTelephones(t *testing.T) {
	b := newBench(t)
	w := b.create("Patient", adam)
	for query, found := range map[string]bool{
		"phone=555-014-0001": true, "phone=+1 555 014 0001": true, "phone=15550140001": true, "phone=(555)0140001": true,
		"phone=+44 555 014 0001": false, "phone=555-014-0002": false, "telecom=phone|+15550140001": true, "telecom=fax|+15550140001": false,
		"telecom=+1-555-014-0001": true, "phone=email|555-014-0001": false, "email=555-014-0001": false,
	} {
		name, value, _ := strings.Cut(query, "=")
		page, err := b.Records.Search(context.Background(), backend(), "Patient", params(name, value), true)
		if err != nil || (len(page.Resources) == 1 && page.Resources[0].ID == w.ID) != found {
			t.Errorf("%s: %+v, %v; want found %v", query, page, err, found)
		}
	}
}

// What an instance knows of the generations is a lease: older knowledge is refreshed before a lookup or a mint, and when that
// fails both are refused. Reads need none.
func TestIndexLease(t *testing.T) {
	ctx := context.Background()
	storage := phitest.NewStorage()
	room := phitest.Open(t, phitest.Options{Storage: storage})
	w, err := room.Records.Create(ctx, backend(), "Patient", []byte(adam), nil)
	if err != nil {
		t.Fatal(err)
	}
	search := func() error {
		_, err := room.Records.Search(ctx, backend(), "Patient", params("identifier", "MRN-1"), true)
		return err
	}
	asked := storage.Count("IndexGenerations")
	for range 10 {
		if err := search(); err != nil {
			t.Fatal(err)
		}
	}
	if n := storage.Count("IndexGenerations"); n != asked {
		t.Errorf("asked %d times within the lease", n-asked)
	}
	// A generation that nobody can read yet is one that this program may not pass over.
	storage.SetIndexGenerations(phi.IndexGeneration{ID: 1, State: phi.IndexActive, Rules: phi.IndexRules, Names: phi.NamesPrefix},
		phi.IndexGeneration{ID: 2, State: phi.IndexReading, Rules: phi.IndexRules + 1, Names: phi.NamesPrefix})
	room.Records.KeysChanged()
	wantKind(t, search(), phi.Unavailable)
	_, err = room.Records.Update(ctx, backend(), w.Ref, []byte(strings.Replace(adam, "{", `{"id":"`+w.ID+`",`, 1)), 0)
	wantKind(t, err, phi.Unavailable)
	if _, err := room.Records.Read(ctx, backend(), w.Ref); err != nil {
		t.Errorf("a read: %v", err)
	}
	storage.SetIndexGenerations()
	room.Records.KeysChanged()
	wantKind(t, search(), phi.Unavailable)
}

// A short lease is refreshed by the calls themselves.
func TestIndexLeaseExpires(t *testing.T) {
	storage := phitest.NewStorage()
	room := phitest.Open(t, phitest.Options{Storage: storage, IndexLease: 20 * time.Millisecond})
	asked := storage.Count("IndexGenerations")
	time.Sleep(30 * time.Millisecond)
	if _, err := room.Records.Search(context.Background(), backend(), "Patient", params("identifier", "MRN-1"), true); err != nil {
		t.Fatal(err)
	}
	if n := storage.Count("IndexGenerations"); n == asked {
		t.Error("knowledge older than the lease was not refreshed")
	}
}

// A write that minted under a generation that is gone by the commit is minted anew, and nobody notices.
func TestGenerationGoneBeforeCommit(t *testing.T) {
	ctx := context.Background()
	storage := phitest.NewStorage()
	room := phitest.Open(t, phitest.Options{Storage: storage, UniqueIdentifiers: []string{mrnSystem}})
	for id := range uint32(5) {
		// The room does not hear of the change.
		storage.SetIndexGenerations(phi.IndexGeneration{ID: id + 2, State: phi.IndexActive, Rules: phi.IndexRules, Names: phi.NamesPrefix})
		w, err := room.Records.Create(ctx, backend(), "Patient", []byte(withMRN("", fmt.Sprint("MRN-", id))), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := storage.Generation(w.Ref); got != id+2 {
			t.Errorf("minted under generation %d, want %d", got, id+2)
		}
	}
}

func TestOpenRefusesOtherNames(t *testing.T) {
	storage := phitest.NewStorage()
	room := phitest.Open(t, phitest.Options{Storage: storage, Names: phi.NamesExact})
	if _, err := room.Records.Create(context.Background(), backend(), "Patient", []byte(adam), nil); err != nil {
		t.Fatal(err)
	}
	open := func(names phi.NameSearch) error {
		_, err := phi.Open(context.Background(), phi.Config{Storage: storage, Keys: room.Keys, Access: room.Access, Audit: room.Log, Names: names})
		return err
	}
	if err := open(phi.NamesPrefix); !errors.Is(err, phi.ErrNames) {
		t.Errorf("names are indexed exactly, and prefix is asked for: %v", err)
	}
	for _, names := range []phi.NameSearch{"", phi.NamesExact} {
		if err := open(names); err != nil {
			t.Errorf("%q: %v", names, err)
		}
	}
}
