package keyset_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/chartkeep/chartkeep/phi/keyset"
)

// A patient's data key is made, stored wrapped, and seals a cell. It opens for that patient only.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "keyset")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	root, err := keyset.NewFileRoot(filepath.Join(dir, "root.key"), true) // kms.Open in production
	if err != nil {
		log.Fatal(err)
	}
	keys, err := keyset.Open(ctx, root, &memory{})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()

	patient := keyset.Binding{Subject: [16]byte{1}, KeyID: 1}
	kek, wrapped, err := keys.NewKey(ctx, patient)
	if err != nil {
		log.Fatal(err)
	}
	aead, err := keys.Sealer(ctx, kek, wrapped, patient)
	if err != nil {
		log.Fatal(err)
	}
	cell := aead.Seal(nil, nil, []byte("1974-12-25"), []byte("birth date"))

	if aead, err = keys.AEAD(ctx, kek, wrapped, patient); err != nil {
		log.Fatal(err)
	}
	text, err := aead.Open(nil, nil, cell, []byte("birth date"))
	fmt.Printf("%s %v\n", text, err)
	_, err = keys.AEAD(ctx, kek, wrapped, keyset.Binding{Subject: [16]byte{2}, KeyID: 1})
	fmt.Println(err)
	// Output:
	// 1974-12-25 <nil>
	// keyset: wrapped key does not open
}
