package audit_test

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

func TestTimingsRoundTrip(t *testing.T) {
	text := rapid.OneOf(rapid.StringMatching(`[a-z0-9./:-]{0,12}`), rapid.StringMatching(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`),
		rapid.StringMatching(`[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}`))
	entry := rapid.Custom(func(t *rapid.T) audit.Timed {
		d := func(name string) uint32 { return rapid.Uint32().Draw(t, name) }
		return audit.Timed{
			RequestID: text.Draw(t, "id"), Route: text.Draw(t, "route"), Role: text.Draw(t, "role"), Status: rapid.Uint16().Draw(t, "status"),
			Timing: audit.Timing{Total: d("total"), Auth: d("auth"), Decision: d("decision"), Database: d("database"), Crypto: d("crypto"), Audit: d("audit")},
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(entry, 1, 20).Draw(t, "list")
		got, err := audit.DecodeTimings(audit.AppendTimings(nil, list))
		if err != nil || !reflect.DeepEqual(got, list) {
			t.Fatalf("decoded %+v, %v; want %+v", got, err, list)
		}
	})
}

func TestTimingsAreSmall(t *testing.T) {
	list := make([]audit.Timed, 200)
	for i := range list {
		list[i] = audit.Timed{
			RequestID: fmt.Sprintf("0193a3f2-7d1e-4b2c-9a55-%012x", i), Route: "/fhir/R4/:type/:id", Role: "clinician", Status: 200,
			Timing: audit.Timing{Total: 900, Auth: 3, Decision: 2, Database: 400, Crypto: 20, Audit: 300},
		}
	}
	if n := len(audit.AppendTimings(nil, list)); n > 200*36 {
		t.Errorf("200 entries take %d bytes", n)
	}
}

func FuzzDecodeTimings(f *testing.F) {
	f.Add(audit.AppendTimings(nil, nil))
	f.Add(audit.AppendTimings(nil, []audit.Timed{{RequestID: "a", Route: "/v1", Role: "officer", Status: 200}}))
	f.Add([]byte{1, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, detail []byte) {
		list, err := audit.DecodeTimings(detail)
		if err == nil && string(audit.AppendTimings(nil, list)) != string(detail) {
			t.Errorf("%x has a second spelling", detail)
		}
	})
}

func TestTimingsAreRecorded(t *testing.T) {
	var storage audittest.Storage
	log, err := audit.Open(audit.Config{Dir: t.TempDir(), Storage: &storage})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = log.Run(ctx) })
	timings := audit.NewTimings(log)
	collecting, done := context.WithCancel(t.Context())
	var collector sync.WaitGroup
	collector.Go(func() { _ = timings.Run(collecting) })
	const requests = 450
	for i := range requests {
		timings.Add(audit.Timed{RequestID: fmt.Sprint(i), Route: "/r", Status: 200, Timing: audit.Timing{Total: uint32(i)}})
	}
	done()
	collector.Wait()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	stop()
	running.Wait()
	next := 0
	for _, row := range storage.Rows() {
		if row.Event.Interaction != audit.InteractionTimings {
			continue
		}
		list, err := audit.DecodeTimings(row.Event.Detail)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range list {
			if entry.RequestID != fmt.Sprint(next) {
				t.Fatalf("request %s, want %d", entry.RequestID, next)
			}
			next++
		}
	}
	if next != requests || timings.Dropped() != 0 {
		t.Errorf("%d of %d requests, %d dropped", next, requests, timings.Dropped())
	}
}

func TestTimingsAreBounded(t *testing.T) {
	log, err := audit.Open(audit.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	timings := audit.NewTimings(log)
	entry := audit.Timed{RequestID: "0193a3f2-7d1e-4b2c-9a55-000000000000", Route: "/r"}
	if n := testing.AllocsPerRun(10_000, func() { timings.Add(entry) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if timings.Dropped() == 0 {
		t.Error("nothing was dropped of more than fits")
	}
	began := time.Now()
	for range 100_000 {
		timings.Add(entry)
	}
	t.Logf("%v an entry", time.Since(began)/100_000)
}
