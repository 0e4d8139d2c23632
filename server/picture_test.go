package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/chartkeep/chartkeep/"

// pkg is what go list says of a package.
type pkg struct {
	ImportPath, Name string
	Standard         bool
	Imports, Deps    []string
}

// TestImportPicture holds DESIGN.md section 3: who may import whom, and which outside package is known to which room.
func TestImportPicture(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Name,Standard,Imports,Deps", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	ours := map[string]pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if room, ok := strings.CutPrefix(p.ImportPath, module); ok {
			ours[room] = p
		}
	}

	// A room imports exactly these rooms at most. A program may be missing here: server wires everything.
	mayImport := map[string][]string{
		"auth":               {},
		"audit":              {},
		"audit/audittest":    {"audit"},
		"audit/balp":         {"audit"},
		"phi/keyset":         {},
		"phi/keyset/kms":     {"phi/keyset"},
		"phi/keyset/kmstest": {},
		"phi/fhir":           {},
		"phi":                {"auth", "audit", "phi/keyset", "phi/fhir"},
		"phi/phitest":        {"phi", "auth", "audit", "phi/keyset"},
		"compliance":         {"audit"},
		"dashboard":          {"audit", "compliance"},
		"server/rest":        {"phi", "phi/fhir", "auth", "audit", "audit/balp", "compliance"},
		"server/postgres":    {"phi", "phi/keyset", "auth", "audit", "compliance"},
		"server/demo":        {},
		"server":             nil,
		"phi/fhir/generate":  {},
	}
	// An outside module is known to these rooms only.
	knownTo := map[string][]string{
		"github.com/gofiber/":            {"server/rest"},
		"github.com/valyala/":            {"server/rest"},
		"github.com/jackc/":              {"server/postgres"},
		"github.com/lestrrat-go/":        {"auth", "server/demo"},
		"github.com/dgraph-io/":          {"auth", "phi", "phi/keyset"},
		"github.com/wailsapp/":           {"dashboard"},
		"github.com/prometheus/":         {"server"},
		"github.com/alecthomas/kong":     {"server", "dashboard"},
		"github.com/tink-crypto/":        {"phi/keyset/kms"},
		"github.com/aws/":                {"phi/keyset/kms"},
		"github.com/hashicorp/":          {"phi/keyset/kms"},
		"google.golang.org/":             {"phi/keyset/kms", "phi/keyset/kmstest"},
		"github.com/nyaruka/":            {"phi"},
		"github.com/go-json-experiment/": {"auth", "server", "server/demo", "server/rest"},
		"golang.org/x/mod/sumdb":         {"audit", "audit/audittest", "server", "server/postgres"},
		"github.com/minio/":              {"server"},
		"github.com/go-jose/":            {}, // tests of auth, as second opinions
		"github.com/golang-jwt/":         {},
	}
	for room, p := range ours {
		allowed, listed := mayImport[room]
		if !listed {
			t.Errorf("room %s is not in the import picture", room)
			continue
		}
		for _, imp := range p.Imports {
			if r, ok := strings.CutPrefix(imp, module); ok {
				if allowed != nil && !slices.Contains(allowed, r) {
					t.Errorf("%s imports %s", room, r)
				}
				continue
			}
			for prefix, rooms := range knownTo {
				if strings.HasPrefix(imp, prefix) && !slices.Contains(rooms, room) {
					t.Errorf("%s imports %s, which only %v may know", room, imp, rooms)
				}
			}
			if outside := strings.Contains(strings.SplitN(imp, "/", 2)[0], "."); outside && (room == "audit" || room == "audit/audittest") &&
				!strings.HasPrefix(imp, "golang.org/x/mod/sumdb") {
				t.Errorf("%s imports %s: an auditor reads the standard library and x/mod/sumdb only", room, imp)
			}
		}
	}
	// The desktop cannot touch PHI by construction: nothing of it is even linked.
	for _, dep := range ours["dashboard"].Deps {
		for _, never := range []string{module + "phi", module + "auth", module + "server", "github.com/gofiber/", "github.com/jackc/", "github.com/lestrrat-go/"} {
			if strings.HasPrefix(dep, never) {
				t.Errorf("dashboard depends on %s", dep)
			}
		}
	}
}
