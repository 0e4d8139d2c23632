// Package kmstest speaks the protocols of AWS KMS, Google Cloud KMS and HashiCorp Vault's transit engine over TLS on loopback,
// for tests that need a KMS which is away, slow, or refuses on command.
//
// Each double is as strict as what it stands for: it verifies signatures and tokens, checksums and headers, opens only for the
// associated data that it wrapped for, and answers errors in the provider's own words. What a double and the provider's
// documentation disagree about, the documentation wins; Vault's is compared with its own engine (kms, testdata/transit).
package kmstest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// State is a key's.
type State int

const (
	Enabled State = iota
	Disabled
	Deleting // scheduled, and not usable meanwhile
)

// Fault is what goes wrong with a request.
type Fault int

const (
	None      Fault = iota
	Denied          // the caller may not use the key
	Expired         // the caller's credentials are no more good
	Throttled       // too many requests
	Broken          // an error of the service's own
	Away            // the connection breaks
)

// Keys are the keys of a double, and what is to go wrong. Safe for concurrent use.
type Keys struct {
	mu       sync.Mutex
	keys     map[string]*key
	fault    Fault
	times    int // -1: until told otherwise
	slow     time.Duration
	requests int
}

type key struct {
	aead  cipher.AEAD
	state State
}

// Make makes a key of that name.
func (k *Keys) Make(name string) {
	secret := make([]byte, 32)
	rand.Read(secret)
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err) // the length above is wrong
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = map[string]*key{}
	}
	k.keys[name] = &key{aead: aead}
}

// Set changes a key's state.
func (k *Keys) Set(name string, s State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[name].state = s
}

// Fail makes the next requests fail, all of them when times is -1; None heals.
func (k *Keys) Fail(f Fault, times int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fault, k.times = f, times
}

// Slow makes every answer take that long.
func (k *Keys) Slow(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.slow = d
}

// Requests is how many came so far.
func (k *Keys) Requests() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.requests
}

// next counts a request, waits, and says what goes wrong with it.
func (k *Keys) next(done <-chan struct{}) Fault {
	k.mu.Lock()
	k.requests++
	fault, slow := k.fault, k.slow
	if k.times == 0 {
		fault = None
	} else if k.times > 0 && fault != None {
		k.times--
	}
	k.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-done:
	}
	return fault
}

// find returns a key, nil when there is none.
func (k *Keys) find(name string) (cipher.AEAD, State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if found := k.keys[name]; found != nil {
		return found.aead, found.state
	}
	return nil, Enabled
}

// Certificate makes a server certificate for addresses that is its own CA, and a file of that.
func Certificate(t testing.TB, addresses ...net.IP) (tls.Certificate, string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kmstest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: addresses, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, file
}

// secretFile writes a file that only its owner may read.
func secretFile(t testing.TB, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(fmt.Errorf("writing %s: %w", name, err))
	}
	return file
}
