// Command transit serves HashiCorp Vault's own transit engine on loopback, with one token and the two keys app and other: what
// the conformance tests of package kms speak to with -transit. It is a module of its own, because Vault's dependencies are many.
// Mounting, policies and tokens are Vault's core and are not here.
//
// It takes a folder, in which cert.pem, key.pem and token are, prints its address and ends with its standard input.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/sdk/logical"
)

func main() {
	dir := os.Args[1]
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		log.Fatal(err)
	}
	storage := &logical.InmemStorage{}
	ctx := context.Background()
	engine, err := transit.Factory(ctx, &logical.BackendConfig{StorageView: storage, System: &logical.StaticSystemView{}})
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{"app", "other"} {
		if _, err := engine.HandleRequest(ctx, &logical.Request{Operation: logical.UpdateOperation, Path: "keys/" + name, Storage: storage, Data: map[string]any{}}); err != nil {
			log.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	log.Fatal(http.ServeTLS(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := func(status int, body any) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(body)
		}
		path, ok := strings.CutPrefix(r.URL.Path, "/v1/transit/")
		if !ok || r.Header.Get("X-Vault-Token") != strings.TrimSpace(string(token)) {
			answer(http.StatusForbidden, map[string][]string{"errors": {"permission denied"}})
			return
		}
		var data map[string]any
		if err := json.NewDecoder(r.Body).Decode(&data); err != nil {
			answer(http.StatusBadRequest, map[string][]string{"errors": {"failed to parse JSON input"}})
			return
		}
		res, err := engine.HandleRequest(r.Context(), &logical.Request{Operation: logical.UpdateOperation, Path: path, Storage: storage, Data: data})
		// As Vault's http.respondErrorCommon: an error response says 400, what else went wrong 500.
		switch {
		case res != nil && res.IsError():
			answer(http.StatusBadRequest, map[string][]string{"errors": {res.Data["error"].(string)}})
		case errors.Is(err, logical.ErrUnsupportedPath):
			answer(http.StatusNotFound, map[string][]string{"errors": {err.Error()}})
		case err != nil:
			answer(http.StatusInternalServerError, map[string][]string{"errors": {err.Error()}})
		default:
			answer(http.StatusOK, map[string]any{"data": res.Data})
		}
	}), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")))
}
