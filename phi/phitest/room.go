package phitest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
)

// Room is a working phi: real keys, a real audit log in a temporary directory, and storage in memory.
type Room struct {
	Storage *Storage
	Keys    *keyset.Keys
	Access  *auth.Access
	Log     *audit.Log
	Records *phi.Records
}

// Options change a Room. The zero value is what most tests want.
type Options struct {
	Storage *Storage         // nil makes an empty one
	FS      audit.FS         // file system of the journal; nil = the operating system
	Trail   audit.Storage    // where events are shipped while the test runs; nil keeps the journal only
	Now     func() time.Time // clock of Records; nil = time.Now
	Logger  *slog.Logger

	UniqueIdentifiers []string // systems
	Names             phi.NameSearch
	IndexLease        time.Duration
}

// Open opens a Room; it is closed when the test ends. Events wait for level Process, so that tests do not wait for a
// disk.
func Open(t testing.TB, o Options) *Room {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &Room{Storage: o.Storage}
	if r.Storage == nil {
		r.Storage = NewStorage()
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := keyset.NewFileRoot(filepath.Join(dir, "root.key"), true)
	must(err)
	r.Keys, err = keyset.Open(ctx, root, r.Storage)
	must(err)
	r.Access, err = auth.NewAccess(ctx, auth.AccessConfig{Storage: r.Storage, Logger: slog.New(slog.DiscardHandler)})
	must(err)
	r.Log, err = audit.Open(audit.Config{
		Dir: filepath.Join(dir, "journal"), Storage: o.Trail, FS: o.FS, SegmentBytes: 1 << 20,
		Logger: slog.New(slog.DiscardHandler),
	})
	must(err)
	shipped := make(chan struct{})
	go func() {
		defer close(shipped)
		if o.Trail != nil {
			_ = r.Log.Run(ctx) // ends with ctx
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-shipped
		_ = r.Log.Close() // a test may have broken its disk
		r.Access.Close()
		r.Keys.Close()
	})
	r.Records, err = phi.Open(ctx, phi.Config{
		Storage: r.Storage, Keys: r.Keys, Access: r.Access, Audit: r.Log, Now: o.Now, Logger: o.Logger, Source: "test",
		UniqueIdentifiers: o.UniqueIdentifiers, Names: o.Names, IndexLease: o.IndexLease,
		Level: phi.Levels{Disclosure: audit.Process, Other: audit.Process},
	})
	must(err)
	return r
}

// Caller is a request of a principal.
func Caller(p *auth.Principal) *phi.Caller {
	return &phi.Caller{Principal: p, RequestID: "request-1", Network: "192.0.2.1", Start: time.Now(), Trace: &phi.Trace{}}
}
