package phi_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/phitest"
)

func benchPatient(b *testing.B, room *phitest.Room) phi.Ref {
	w, err := room.Records.Create(context.Background(), backend(), "Patient", []byte(adam), nil)
	if err != nil {
		b.Fatal(err)
	}
	return w.Ref
}

// The hot path without a database: decision, event, journal at level Process, opening, JSON.
func BenchmarkRead(b *testing.B) {
	room := phitest.Open(b, phitest.Options{})
	ref := benchPatient(b, room)
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := room.Records.Read(context.Background(), backend(), ref); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkSearchByPatient(b *testing.B) {
	room := phitest.Open(b, phitest.Options{})
	ref := benchPatient(b, room)
	for range 50 {
		if _, err := room.Records.Create(context.Background(), backend(), "Observation", fmt.Appendf(nil, weight, ref.ID), nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		page, err := room.Records.Search(context.Background(), backend(), "Observation", params("patient", ref.ID, "code", "29463-7"), false)
		if err != nil || len(page.Resources) != 50 {
			b.Fatal(page, err)
		}
	}
}
