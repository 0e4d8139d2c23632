package kmstest

import (
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// Vault is a Vault server with one transit engine, mounted at transit/.
type Vault struct {
	Keys
	URI       string // of its first key, app
	Other     string // of its second, other
	CAFile    string
	TokenFile string // of a token that may encrypt and decrypt
	server    *httptest.Server
}

// NewVault starts a Vault that ends with the test.
func NewVault(t testing.TB) *Vault {
	t.Helper()
	v := &Vault{TokenFile: secretFile(t, "token", []byte("hvs."+rand.Text()+"\n"))}
	v.Make("app")
	v.Make("other")
	var cert tls.Certificate
	cert, v.CAFile = Certificate(t, net.IPv4(127, 0, 0, 1))
	v.server = httptest.NewUnstartedServer(v)
	v.server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	v.server.EnableHTTP2 = true
	v.server.StartTLS()
	t.Cleanup(v.server.Close)
	host := strings.TrimPrefix(v.server.URL, "https://")
	v.URI, v.Other = "hcvault://"+host+"/transit/keys/app", "hcvault://"+host+"/transit/keys/other"
	return v
}

// transitRequest is the body of encrypt and decrypt, as far as keys like ours take it.
type transitRequest struct {
	Plaintext      *string `json:"plaintext"`
	Ciphertext     string  `json:"ciphertext"`
	AssociatedData string  `json:"associated_data"`
	Context        string  `json:"context"` // only derived keys read it
}

// ServeHTTP implements http.Handler: the API of Vault as far as transit's encrypt and decrypt go.
func (v *Vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	say := func(status int, errs ...string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string][]string{"errors": errs})
	}
	fault := v.next(r.Context().Done())
	switch fault {
	case Away:
		panic(http.ErrAbortHandler)
	case Broken:
		say(http.StatusInternalServerError, "internal error")
		return
	case Throttled:
		say(http.StatusTooManyRequests, "request path \"transit/\": rate limit quota exceeded")
		return
	}
	if r.Header.Get("X-Vault-Request") != "true" {
		say(http.StatusPreconditionFailed, "missing 'X-Vault-Request' header")
		return
	}
	token, err := os.ReadFile(v.TokenFile)
	if given := r.Header.Get("X-Vault-Token"); err != nil || fault == Expired || fault == Denied ||
		subtle.ConstantTimeCompare([]byte(given), []byte(strings.TrimSpace(string(token)))) != 1 {
		say(http.StatusForbidden, "permission denied")
		return
	}
	operation, name, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/transit/"), "/")
	if !ok || !strings.HasPrefix(r.URL.Path, "/v1/transit/") || operation != "encrypt" && operation != "decrypt" {
		say(http.StatusForbidden, "permission denied") // as the policy of the token has it
		return
	}
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		say(http.StatusMethodNotAllowed, "unsupported operation")
		return
	}
	var req transitRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		say(http.StatusBadRequest, "failed to parse JSON input")
		return
	}
	aad, err := base64.StdEncoding.DecodeString(req.AssociatedData)
	if err != nil {
		say(http.StatusBadRequest, "unable to get associated_data/additional_data from factory[0]: illegal base64 data")
		return
	}
	aead, state := v.find(name)
	data := map[string]any{}
	if operation == "encrypt" {
		if aead == nil {
			say(http.StatusForbidden, "permission denied") // the policy has update only, and that would create
			return
		}
		if req.Plaintext == nil {
			say(http.StatusBadRequest, "missing plaintext to encrypt")
			return
		}
		plain, err := base64.StdEncoding.DecodeString(*req.Plaintext)
		if err != nil || state != Enabled {
			say(http.StatusBadRequest, "requested version for encryption is less than the minimum encryption key version")
			return
		}
		data["ciphertext"], data["key_version"] = "vault:v1:"+base64.StdEncoding.EncodeToString(aead.Seal(nil, nil, plain, aad)), 1
	} else {
		if aead == nil {
			say(http.StatusBadRequest, "encryption key not found")
			return
		}
		encoded, ok := strings.CutPrefix(req.Ciphertext, "vault:v1:")
		sealed, err := base64.StdEncoding.DecodeString(encoded)
		switch {
		case !ok:
			say(http.StatusBadRequest, "invalid ciphertext: no prefix")
			return
		case err != nil:
			say(http.StatusBadRequest, "invalid ciphertext: could not decode base64")
			return
		case state != Enabled:
			say(http.StatusBadRequest, "ciphertext or signature version is disallowed by policy (too old)")
			return
		}
		plain, err := aead.Open(nil, nil, sealed, aad)
		if err != nil {
			say(http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		data["plaintext"] = base64.StdEncoding.EncodeToString(plain)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"request_id": "", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data, "mount_type": "transit"})
}
