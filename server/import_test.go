package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNDJSONRuns cuts a file into runs and wants every line once, named by its number, whatever its length and ending.
func TestNDJSONRuns(t *testing.T) {
	for _, lines := range []int{1, ndjsonRun - 1, ndjsonRun, ndjsonRun + 1, 2*ndjsonRun + 1} {
		for _, ending := range []string{"", "\n", "\r\n"} {
			var text strings.Builder
			for n := 1; n <= lines; n++ {
				switch {
				case n == 3:
					text.WriteString(`{"id":`) // truncated
				case n == 4: // empty
				case n%ndjsonRun == 7:
					fmt.Fprintf(&text, `{"id":"%d","long":"%s"}`, n, strings.Repeat("x", 1<<21)) // longer than any buffer
				default:
					fmt.Fprintf(&text, `{"id":"%d"}`, n)
				}
				if n < lines {
					text.WriteString("\n")
				}
			}
			path := filepath.Join(t.TempDir(), "a.ndjson")
			if err := os.WriteFile(path, []byte(text.String()+ending), 0o600); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			im := &importer{term: terminal{err: &said}}
			sources, err := im.list([]string{path})
			if err != nil || len(sources) != (lines+ndjsonRun-1)/ndjsonRun {
				t.Fatalf("%d lines: %d runs, %v", lines, len(sources), err)
			}
			read := 0
			for _, s := range sources {
				content, place, err := im.read(s)
				if err != nil {
					t.Fatal(err)
				}
				var bundle struct {
					Entry []struct {
						Resource struct{ ID string }
					}
				}
				if err := json.Unmarshal(content, &bundle); err != nil {
					t.Fatal(err)
				}
				for i, e := range bundle.Entry {
					if want := path + " line " + e.Resource.ID; place(i) != want {
						t.Errorf("entry %d is named %q, want %q", i, place(i), want)
					}
				}
				read += len(bundle.Entry)
			}
			broken := ""
			if lines >= 3 {
				broken = path + " line 3: not JSON (truncated?)\n"
				read++
			}
			if lines >= 4 {
				read++
			}
			if read != lines || said.String() != broken {
				t.Errorf("%d lines ending in %q: %d found, said %q", lines, ending, read, said.String())
			}
		}
	}
}

// TestFilesFromWindows holds that a byte order mark is not part of a document, and that what is wrong with a line is said
// once however often its run is read.
func TestFilesFromWindows(t *testing.T) {
	folder := t.TempDir()
	for name, text := range map[string]string{"a.json": `{"id":"1"}`, "a.ndjson": "{\"id\":\"1\"}\r\n{\r\n"} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte("\uFEFF"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var said bytes.Buffer
	im := &importer{term: terminal{err: &said}}
	sources, err := im.list([]string{folder})
	if err != nil || len(sources) != 2 {
		t.Fatalf("%d sources, %v", len(sources), err)
	}
	for range 2 {
		for i := range sources {
			content, _, err := im.read(sources[i])
			if err != nil || !json.Valid(content) || !bytes.Contains(content, []byte(`{"id":"1"}`)) {
				t.Errorf("%s is read as %q, %v", sources[i].path, content, err)
			}
			sources[i].told = true
		}
	}
	if im.failed != 1 {
		t.Errorf("%d lines named: %s", im.failed, said.String())
	}
}
