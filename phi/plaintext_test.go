package phi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/phi"
)

// TestPHIRedacts prints opened content in every way there is, also from inside of structs that hide it.
func TestPHIRedacts(t *testing.T) {
	const secret = "secretly weighed"
	p := phi.Conceal([]byte(secret))
	const want = "[PHI, 16 bytes]"
	resource := &phi.Resource{JSON: p}
	hidden := struct{ inner phi.Resource }{*resource}
	// As a printer that knows nothing of the type would show the bytes.
	decimal := strings.Trim(fmt.Sprintf("%d", []byte(secret)), "[]")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "% x", "%10.3s", "%t", "%p", "%T %v"} {
		for _, value := range []any{p, &p, []phi.PHI{p}, map[string]phi.PHI{"a": p}, resource, *resource, hidden, &hidden, any(p), fmt.Errorf("broken: %v", p)} {
			args := []any{value}
			if verb == "%T %v" {
				args = append(args, value)
			}
			got := fmt.Sprintf(verb, args...)
			for _, leak := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprintf("% x", secret), decimal, "secret"} {
				if strings.Contains(got, leak) {
					t.Errorf("%s of %T shows %q", verb, value, got)
				}
			}
		}
	}
	for _, got := range []string{p.String(), p.GoString(), fmt.Sprint(p), fmt.Sprintf("%s", p), fmt.Sprintf("%x", p), fmt.Sprintf("%d", p)} {
		if got != want {
			t.Errorf("printed as %q, want %q", got, want)
		}
	}
	if text, err := json.Marshal(p); err != nil || string(text) != `"`+want+`"` {
		t.Errorf("JSON: %s, %v", text, err)
	}
	if text, err := json.Marshal(map[string]any{"r": resource, "p": &p}); err != nil || strings.Contains(string(text), "secret") || bytes.Count(text, []byte(want)) != 2 {
		t.Errorf("JSON of a struct: %s, %v", text, err)
	}
	if text, err := p.MarshalText(); err != nil || string(text) != want {
		t.Errorf("text: %s, %v", text, err)
	}
	var out bytes.Buffer
	for _, l := range []*slog.Logger{slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))} {
		l.Info("read", "resource", resource, "json", p, "list", []phi.PHI{p}, "hidden", hidden)
	}
	if strings.Contains(out.String(), "secret") || strings.Contains(out.String(), decimal) || strings.Count(out.String(), want) < 4 {
		t.Errorf("logged %s", out.String())
	}
	if string(p.Reveal()) != secret || p.Len() != len(secret) {
		t.Errorf("revealed %q", p.Reveal())
	}
	p.Clear()
	if i := slices.IndexFunc(resource.JSON.Reveal(), func(b byte) bool { return b != 0 }); i >= 0 {
		t.Error("a copy was not cleared with it")
	}
	if none := (phi.PHI{}); none.Reveal() != nil || none.Len() != 0 || none.String() != "[PHI, 0 bytes]" || phi.Conceal(nil).Reveal() != nil {
		t.Error("the zero value is content")
	}
}

// TestReveal lists, over the source of the whole module, who lets opened content out. A new line here is a new exit.
func TestReveal(t *testing.T) {
	want := []string{
		"phi/plaintext.go: Clear, Len",        // themselves
		"phi/search.go: candidate",            // criteria are checked on what was opened
		"server/bench.go: floor",              // rows of the yardstick, of generated patients
		"server/drill.go: open",               // the drill's own canary
		"server/drill.go: write",              // the same
		"server/rest/bundle.go: appendRecord", // the body of an answer
		"server/rest/records.go: read",        // the body of an answer
		"server/rest/records.go: readVersion", // the body of an answer
		"server/rest/records.go: written",     // the body of an answer
	}
	callers := map[string]map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == "frontend" || strings.HasPrefix(d.Name(), ".") && path != ".."):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(source, []byte("Reveal")) {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, source, 0)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			name := "(package)"
			if f, ok := decl.(*ast.FuncDecl); ok {
				name = f.Name.Name
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Reveal" {
					rel := filepath.ToSlash(strings.TrimPrefix(path, ".."+string(filepath.Separator)))
					if callers[rel] == nil {
						callers[rel] = map[string]bool{}
					}
					callers[rel][name] = true
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for file, names := range callers {
		if file == "phi/plaintext.go" {
			var all []string
			for name := range names {
				all = append(all, name)
			}
			slices.Sort(all)
			got = append(got, file+": "+strings.Join(all, ", "))
			continue
		}
		for name := range names {
			got = append(got, file+": "+name)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("opened content is revealed by\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
