package phi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// brokenDisk is a file system whose writes fail while full is set.
type brokenDisk struct {
	audit.OS
	full *atomic.Bool
}

type brokenFile struct {
	audit.File
	full *atomic.Bool
}

func (d brokenDisk) wrap(f audit.File, err error) (audit.File, error) {
	if err != nil {
		return nil, err
	}
	return brokenFile{f, d.full}, nil
}

func (d brokenDisk) Create(path string) (audit.File, error) {
	if d.full.Load() {
		return nil, syscall.ENOSPC
	}
	return d.wrap(d.OS.Create(path))
}

func (d brokenDisk) Open(path string) (audit.File, error) { return d.wrap(d.OS.Open(path)) }

func (f brokenFile) WriteAt(p []byte, at int64) (int, error) {
	if f.full.Load() {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(p, at)
}

func TestFullDiskDisclosesNothing(t *testing.T) {
	full := &atomic.Bool{}
	room := phitest.Open(t, phitest.Options{FS: brokenDisk{full: full}})
	ctx := context.Background()
	w, err := room.Records.Create(ctx, backend(), "Patient", []byte(adam), nil)
	if err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	for range 3 {
		res, err := room.Records.Read(ctx, backend(), w.Ref)
		if err == nil || res != nil {
			t.Fatalf("read %v with a full disk", res)
		}
		wantKind(t, err, phi.Unavailable)
		if !errors.Is(err, audit.ErrUnavailable) {
			t.Errorf("cause %v", err)
		}
	}
	if _, err := room.Records.Create(ctx, backend(), "Patient", []byte(adam), nil); err == nil || len(room.Storage.Rows()) != 1 {
		t.Error("something was stored with a full disk")
	}
}

// Nothing that was put in is readable in what the storage has, in the journal, or in the log.
func TestNothingReadableAtRest(t *testing.T) {
	var log bytes.Buffer
	tmp := filepath.Dir(t.TempDir()) // the room's directory, with the journal, is beside it
	room := phitest.Open(t, phitest.Options{Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	ctx := context.Background()
	w, err := room.Records.Create(ctx, backend(), "Patient", []byte(adam), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := room.Records.Create(ctx, backend(), "Observation", fmt.Appendf(nil, weight, w.ID), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := room.Records.Search(ctx, backend(), "Patient", params("name", "lindqvist", "birthdate", "1970-02-03"), false); err != nil {
		t.Fatal(err)
	}
	room.Storage.Fail(errors.New("away"))
	_, _ = room.Records.Search(ctx, backend(), "Patient", params("name", "lindqvist"), false) // for its log line
	var rest bytes.Buffer
	for _, row := range room.Storage.Rows() {
		fmt.Fprintf(&rest, "%+v %s %s\n", row, bytes.Join(row.Cells[:], nil), row.Seal)
	}
	rest.Write(log.Bytes())
	err = filepath.WalkDir(tmp, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		rest.Write(text)
		return err
	})
	if err != nil || !strings.Contains(rest.String(), "search-type") { // an event of the journal
		t.Fatalf("looked at %d bytes without the journal: %v", rest.Len(), err)
	}
	for _, word := range []string{"lindqvist", "adàm", "mrn-1", "014-0001", "1970-02-03", "secretly", "71.10", "29463"} {
		if strings.Contains(strings.ToLower(rest.String()), word) {
			t.Errorf("%q is readable", word)
		}
	}
}
