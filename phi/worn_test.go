package phi_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

// TestWornOutKey is experiment 29 as a caller meets it: a patient's key that has encrypted 2^31 times seals nothing more and opens on,
// other patients' keys go on, and the cause names what to run. What a write seals is counted.
func TestWornOutKey(t *testing.T) {
	room := phitest.Open(t, phitest.Options{})
	p := &auth.Principal{Subject: "app", Client: "app", Roles: []string{"backend"}, Scopes: auth.ParseScopes("system/*.cruds")}
	write := func(ref phi.Ref, body string) error {
		var err error
		if ref.ID == "" {
			_, err = room.Records.Create(t.Context(), phitest.Caller(p), "Patient", []byte(body), nil)
		} else {
			_, err = room.Records.Update(t.Context(), phitest.Caller(p), ref, []byte(body), 0)
		}
		return err
	}
	if err := write(phi.Ref{}, `{"resourceType":"Patient","name":[{"family":"Quillfeather"}]}`); err != nil {
		t.Fatal(err)
	}
	row := room.Storage.Rows()[0]
	key := keyset.Binding{Subject: row.Subject, Segment: row.Segment, KeyID: row.KeyID}
	run := func() {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- room.Keys.Run(ctx) }()
		before := room.Storage.Count("AddUses")
		for room.Storage.Count("AddUses") == before {
			time.Sleep(time.Millisecond)
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	run()
	cells := int64(1) // the seal
	for _, c := range row.Cells {
		if c != nil {
			cells++
		}
	}
	if n := room.Storage.Uses(key); n != cells {
		t.Errorf("%d encryptions are counted, want %d: each cell and the seal", n, cells)
	}
	body := `{"resourceType":"Patient","id":"` + row.ID + `","name":[{"family":"Quillfeather"}],"gender":"female"}`
	if err := write(row.Ref, body); err != nil {
		t.Fatal(err)
	}
	if _, err := room.Storage.AddUses(t.Context(), []keyset.Uses{{Binding: key, N: keyset.WornOut}}); err != nil {
		t.Fatal(err)
	}
	run()
	var e *phi.Error
	if err := write(row.Ref, body); !errors.As(err, &e) || e.Kind != phi.Unavailable || !errors.Is(err, keyset.ErrWornOut) || !strings.Contains(err.Error(), "keys rotate") {
		t.Errorf("an update under a worn-out key: %v", err)
	}
	if _, err := room.Records.Read(t.Context(), phitest.Caller(p), row.Ref); err != nil {
		t.Errorf("a read under a worn-out key: %v", err)
	}
	if err := write(phi.Ref{}, `{"resourceType":"Patient"}`); err != nil {
		t.Errorf("another patient: %v", err)
	}
}
