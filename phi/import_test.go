package phi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// samples returns the files of a folder of the shared data, or skips.
func samples(t testing.TB, pattern string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", "..", "shared", "data", pattern))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		t.Skipf("no files match ../../shared/data/%s: the shared data is not at hand", pattern)
	}
	files := map[string][]byte{}
	for _, name := range names {
		if files[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// importAll imports as the verb does: deferred files again, until a round brings nothing, then for good.
func importAll(t testing.TB, r *phi.Records, files map[string][]byte) (written, unchanged int, failed []string) {
	t.Helper()
	final := false
	for len(files) > 0 {
		waiting := map[string][]byte{}
		for name, text := range files {
			res, err := r.Import(context.Background(), backend(), text, final)
			if err != nil {
				t.Fatalf("importing %s: %v", name, err)
			}
			if res.Deferred {
				waiting[name] = text
				continue
			}
			written += res.Written
			unchanged += res.Unchanged
			for _, f := range res.Failed {
				failed = append(failed, fmt.Sprintf("%s entry %d: %v %+v", filepath.Base(name), f.Entry, f.Err, f.Err.Issues))
			}
		}
		final = len(waiting) == len(files)
		files = waiting
	}
	return written, unchanged, failed
}

var referenceValue = regexp.MustCompile(`"reference": ?"[^"#]*"`)

func TestImportSynthea(t *testing.T) {
	files := samples(t, "synthea/*.json")
	room := phitest.Open(t, phitest.Options{})
	since := time.Now()
	written, _, failed := importAll(t, room.Records, files)
	took := time.Since(since)
	t.Logf("%d resources in %v: %.0f a second", written, took, float64(written)/took.Seconds())
	if len(failed) > 0 {
		t.Fatalf("failed: %s", strings.Join(failed, "\n"))
	}
	versions := room.Storage.Len()

	// Every resource is there, digit for digit but for what the server states and resolves.
	stored := map[string]int{}
	for _, row := range room.Storage.Rows() {
		res, err := room.Records.Read(context.Background(), backend(), row.Ref)
		if err != nil {
			t.Fatalf("reading %s: %v", row.Ref, err)
		}
		if strings.Contains(string(res.JSON.Reveal()), "urn:uuid:") && strings.Contains(string(res.JSON.Reveal()), `"reference":"urn:uuid:`) {
			t.Errorf("%s still refers to a urn", row.Ref)
		}
		stored[referenceValue.ReplaceAllString(content(t, res.JSON.Reveal()), "")]++
	}
	resources := 0
	for name, text := range files {
		var bundle struct {
			Entry []struct{ Resource json.RawMessage }
		}
		if err := json.Unmarshal(text, &bundle); err != nil {
			t.Fatal(err)
		}
		for i, e := range bundle.Entry {
			resources++
			key := referenceValue.ReplaceAllString(content(t, e.Resource), "")
			if stored[key]--; stored[key] < 0 {
				t.Errorf("%s entry %d did not come back as it went in", filepath.Base(name), i)
			}
		}
	}
	if written != resources || versions != resources {
		t.Errorf("wrote %d and stored %d of %d resources", written, versions, resources)
	}

	_, unchanged, failed := importAll(t, room.Records, files)
	if unchanged != resources || len(failed) > 0 || room.Storage.Len() != versions {
		t.Errorf("imported twice: %d unchanged, %v, %d versions after %d", unchanged, failed, room.Storage.Len(), versions)
	}
	// The same content in another file: not known as a source, known as content.
	again := map[string][]byte{}
	for name, text := range files {
		again[name] = append([]byte(" "), text...)
	}
	written, unchanged, failed = importAll(t, room.Records, again)
	if written != 0 || unchanged != resources || len(failed) > 0 || room.Storage.Len() != versions {
		t.Errorf("imported with other white space: %d written, %d unchanged, %v", written, unchanged, failed)
	}
}

func TestImportUSCore(t *testing.T) {
	files := samples(t, "us-core-6.1.0/examples/*.json")
	room := phitest.Open(t, phitest.Options{})
	written, _, failed := importAll(t, room.Records, files)
	t.Logf("%d written", written)
	for _, f := range failed {
		t.Errorf("failed: %s", f)
	}
	for name, text := range files {
		var head struct{ ResourceType, ID string }
		if err := json.Unmarshal(text, &head); err != nil || head.ResourceType == "Bundle" {
			continue
		}
		res, err := room.Records.Read(context.Background(), backend(), phi.Ref{Type: head.ResourceType, ID: head.ID})
		if err != nil {
			t.Errorf("reading %s: %v", filepath.Base(name), err)
			continue
		}
		if content(t, res.JSON.Reveal()) != content(t, text) {
			t.Errorf("%s did not come back as it went in", filepath.Base(name))
		}
	}
}

// Imports that run at the same time do not stand in each other's way.
func TestImportsAtOnce(t *testing.T) {
	b := newBench(t)
	var bundle strings.Builder
	bundle.WriteString(`{"resourceType":"Bundle","type":"collection","entry":[{"resource":{"resourceType":"Patient","id":"p"}}`)
	for i := range 1200 { // more than two chunks
		fmt.Fprintf(&bundle, `,{"resource":{"resourceType":"Observation","id":"o-%d","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/p"}}}`, i)
	}
	bundle.WriteString(`]}`)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			res, err := b.Records.Import(context.Background(), backend(), []byte(bundle.String()), true)
			if err != nil || len(res.Failed) > 0 {
				t.Errorf("imported %+v, %v", res, err)
			}
		})
	}
	wg.Wait()
	page, err := b.Records.Search(context.Background(), backend(), "Observation", params("_id", "o-1199"), false)
	if err != nil || len(page.Resources) != 1 || page.Resources[0].Version != 1 {
		t.Errorf("the last record: %+v, %v", page, err)
	}
}
