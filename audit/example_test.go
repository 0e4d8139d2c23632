package audit_test

import (
	"context"
	"fmt"
	"os"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// A disclosure is recorded, and made only with the receipt in hand.
func Example() {
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	var storage audittest.Storage
	log, err := audit.Open(audit.Config{Dir: dir, Storage: &storage})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	shipped := make(chan error)
	go func() { shipped <- log.Run(ctx) }()

	receipt, err := log.Record(ctx, audit.Power, &audit.Event{
		Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead,
		Agent: audit.Agent{User: "dr-rivera"}, Patient: "p1", Entities: []audit.Entity{{Type: "Patient", ID: "p1"}},
	})
	if err != nil {
		fmt.Println("answer 503 and disclose nothing:", err)
	}
	fmt.Println("may open Patient/p1:", receipt.Covers("Patient", "p1", "p1"))
	fmt.Println("may open Patient/p2:", receipt.Covers("Patient", "p2", "p2"))

	if err := log.Close(); err != nil {
		fmt.Println(err)
	}
	stop()
	if err := <-shipped; err != nil {
		fmt.Println(err)
	}
	for _, row := range storage.Rows() {
		fmt.Println(row.Seq, row.Event.Interaction)
	}
	// Output:
	// may open Patient/p1: true
	// may open Patient/p2: false
	// 0 110120
	// 1 read
	// 2 110121
}
