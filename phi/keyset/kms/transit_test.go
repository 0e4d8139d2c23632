package kms_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/phi/keyset/kms"
)

var withTransit = flag.Bool("transit", false, "speak with Vault's own transit engine too (builds it, with its modules)")

// TestTransitEngine holds against Vault's own engine what TestProtocol holds against the double, and so holds the double to it.
func TestTransitEngine(t *testing.T) {
	if !*withTransit {
		t.Skip("give -transit to build Vault's transit engine")
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "transit"), ".")
	build.Dir = "testdata/transit"
	build.Env = append(os.Environ(), "GOFLAGS=-mod=readonly")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the engine: %v\n%s", err, out)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	check(t, err)
	key, err := x509.MarshalPKCS8PrivateKey(private)
	check(t, err)
	for name, content := range map[string][]byte{
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"token":    []byte("hvs." + rand.Text()),
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	engine := exec.Command(filepath.Join(dir, "transit"), dir)
	engine.Stderr = os.Stderr
	alive, err := engine.StdinPipe()
	check(t, err)
	said, err := engine.StdoutPipe()
	check(t, err)
	check(t, engine.Start())
	t.Cleanup(func() { alive.Close(); _ = engine.Wait() })
	address, err := bufio.NewReader(said).ReadString('\n')
	check(t, err)
	host := "hcvault://" + strings.TrimSpace(address) + "/transit/keys/"
	p := &provider{"vault", host + "app", host + "other", kms.Config{TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "cert.pem")}, nil, "app"}
	conforms(t, p)
	t.Run("binding", func(t *testing.T) { unboundByContext(t, p) })
	missing := p.open(t, p.uri+"-missing")
	if _, err := missing.Unwrap(t.Context(), []byte("vault:v1:"+strings.Repeat("A", 80)), nil); err == nil || !strings.Contains(err.Error(), "encryption key not found") {
		t.Errorf("a key that is not there: %v", err)
	}
}
