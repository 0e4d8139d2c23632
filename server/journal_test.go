package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A journal that cannot be used ends the program with an exit code of its own, so that an orchestrator moves the traffic.
func TestJournalUnusable(t *testing.T) {
	dir, err := dataDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, demoJournal), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	if code := run(context.Background(), []string{"demo", "--data", dir, "--addr", "127.0.0.1:0"}, terminal{&out, &errs}); code != exitIO {
		t.Errorf("exit code %d\n%s", code, errs.String())
	}
}
