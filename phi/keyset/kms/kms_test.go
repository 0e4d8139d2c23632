package kms_test

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/tink-crypto/tink-go-hcvault/v2/integration/hcvault"
	"go.uber.org/goleak"

	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/phi/keyset/kms"
	"github.com/chartkeep/chartkeep/phi/keyset/kmstest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// provider is a running double, or the real thing: two keys of it.
type provider struct {
	name       string
	uri, other string
	cfg        kms.Config
	keys       *kmstest.Keys // nil: it does not fail on command
	key        string        // what keys calls the key of uri
}

func (p *provider) open(t testing.TB, uri string) *kms.Root {
	t.Helper()
	root, err := kms.Open(uri, p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	return root
}

// eachProvider runs f against every protocol.
func eachProvider(t *testing.T, f func(t *testing.T, p *provider)) {
	t.Run("aws", func(t *testing.T) {
		a := kmstest.NewAWS(t)
		f(t, &provider{"aws", a.URI, a.Other, kms.Config{}, &a.Keys, strings.TrimPrefix(a.URI, "aws-kms://")})
	})
	t.Run("gcp", func(t *testing.T) {
		g := kmstest.NewGCP(t)
		f(t, &provider{"gcp", g.URI, g.Other, kms.Config{Endpoint: g.Endpoint, CAFile: g.CAFile}, &g.Keys, strings.TrimPrefix(g.URI, "gcp-kms://")})
	})
	t.Run("vault", func(t *testing.T) {
		v := kmstest.NewVault(t)
		f(t, &provider{"vault", v.URI, v.Other, kms.Config{TokenFile: v.TokenFile, CAFile: v.CAFile}, &v.Keys, "app"})
	})
}

var aKey = bytes.Repeat([]byte{7}, 32)

// conforms holds a root to what keyset.Root promises.
func conforms(t *testing.T, p *provider) {
	root, other := p.open(t, p.uri), p.open(t, p.other)
	if root.Name() != p.uri || root.Development() {
		t.Errorf("the root is %q, for development: %v", root.Name(), root.Development())
	}
	wrapped, err := root.Wrap(t.Context(), aKey, []byte("for this"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(wrapped, aKey) {
		t.Error("the wrapped key holds the key")
	}
	if again, err := root.Wrap(t.Context(), aKey, []byte("for this")); err != nil || bytes.Equal(wrapped, again) {
		t.Errorf("wrapping twice gave the same (%v)", err)
	}
	key, err := root.Unwrap(t.Context(), wrapped, []byte("for this"))
	if err != nil || !bytes.Equal(key, aKey) {
		t.Fatalf("Unwrap: %x, %v", key, err)
	}
	flipped := bytes.Clone(wrapped)
	flipped[len(flipped)-6] ^= 1 // inside what is encrypted, also where that is Base64
	for what, open := range map[string]func() ([]byte, error){
		"for something else":   func() ([]byte, error) { return root.Unwrap(t.Context(), wrapped, []byte("for that")) },
		"for nothing":          func() ([]byte, error) { return root.Unwrap(t.Context(), wrapped, nil) },
		"with another key":     func() ([]byte, error) { return other.Unwrap(t.Context(), wrapped, []byte("for this")) },
		"with a bit flipped":   func() ([]byte, error) { return root.Unwrap(t.Context(), flipped, []byte("for this")) },
		"that is nothing":      func() ([]byte, error) { return root.Unwrap(t.Context(), nil, []byte("for this")) },
		"that is not its form": func() ([]byte, error) { return root.Unwrap(t.Context(), make([]byte, 60), []byte("for this")) },
	} {
		if key, err := open(); key != nil || !errors.Is(err, keyset.ErrWrapped) {
			t.Errorf("a wrapped key %s: %x, %v, want ErrWrapped", what, key, err)
		}
	}
}

// TestProtocol speaks each provider's protocol with a server that checks it.
func TestProtocol(t *testing.T) { eachProvider(t, conforms) }

// TestRefusals holds what an operator reads, and what passes: nothing but a foreign ciphertext is ErrWrapped.
func TestRefusals(t *testing.T) {
	eachProvider(t, func(t *testing.T, p *provider) {
		root := p.open(t, p.uri)
		wrapped, err := root.Wrap(t.Context(), aKey, []byte("for this"))
		if err != nil {
			t.Fatal(err)
		}
		unwrap := func() error {
			_, err := root.Unwrap(t.Context(), wrapped, []byte("for this"))
			return err
		}
		refused := func(what, remedy string) {
			t.Helper()
			_, wrapping := root.Wrap(t.Context(), aKey, []byte("for this"))
			for _, err := range []error{unwrap(), wrapping} {
				if err == nil || errors.Is(err, keyset.ErrWrapped) || !strings.Contains(err.Error(), p.uri) || !strings.Contains(err.Error(), remedy) {
					t.Errorf("%s: %v, want an error that names the root and %q", what, err, remedy)
				}
				if token, _ := os.ReadFile(p.cfg.TokenFile); err != nil && len(token) > 0 && strings.Contains(err.Error(), strings.TrimSpace(string(token))) {
					t.Errorf("%s: the error holds the token", what)
				}
			}
		}
		for _, state := range []kmstest.State{kmstest.Disabled, kmstest.Deleting} {
			p.keys.Set(p.key, state)
			refused("a key out of use", map[string]string{"aws": "key", "gcp": "enable or restore", "vault": "version"}[p.name])
		}
		p.keys.Set(p.key, kmstest.Enabled)
		p.keys.Fail(kmstest.Denied, -1)
		refused("denied", map[string]string{"aws": "kms:Encrypt", "gcp": "roles/cloudkms", "vault": "policy"}[p.name])
		p.keys.Fail(kmstest.Expired, -1)
		refused("expired", map[string]string{"aws": "renew", "gcp": "renew", "vault": "expired"}[p.name])
		p.keys.Fail(kmstest.None, 0)
		if err := unwrap(); err != nil {
			t.Errorf("healed: %v", err)
		}
		missing := p.open(t, p.uri+"-missing")
		if _, err := missing.Unwrap(t.Context(), wrapped, []byte("for this")); err == nil || p.name != "aws" && errors.Is(err, keyset.ErrWrapped) {
			t.Errorf("a key that is not there: %v", err)
		}
	})
}

// TestPassing holds that a call outlives short trouble, and ends in bounded time when trouble stays.
func TestPassing(t *testing.T) {
	eachProvider(t, func(t *testing.T, p *provider) {
		root := p.open(t, p.uri)
		wrapped, err := root.Wrap(t.Context(), aKey, []byte("for this"))
		if err != nil {
			t.Fatal(err)
		}
		unwrap := func() error {
			_, err := root.Unwrap(t.Context(), wrapped, []byte("for this"))
			return err
		}
		// What each client retries by itself; the rest is for the next refresh.
		retried := map[string][]kmstest.Fault{
			"aws": {kmstest.Broken, kmstest.Throttled, kmstest.Away}, "gcp": {kmstest.Away}, "vault": {kmstest.Broken, kmstest.Throttled, kmstest.Away},
		}
		for _, fault := range retried[p.name] {
			p.keys.Fail(fault, 1)
			if err := unwrap(); err != nil {
				t.Errorf("fault %d, once: %v", fault, err)
			}
		}
		p.keys.Fail(kmstest.Away, -1)
		began := time.Now()
		short, end := context.WithTimeout(t.Context(), 2*time.Second)
		defer end()
		if _, err := root.Unwrap(short, wrapped, []byte("for this")); err == nil || errors.Is(err, keyset.ErrWrapped) || time.Since(began) > 15*time.Second {
			t.Errorf("away, after %v: %v", time.Since(began), err)
		}
		p.keys.Fail(kmstest.None, 0)
		if err := unwrap(); err != nil {
			t.Errorf("healed: %v", err)
		}
		p.keys.Slow(300 * time.Millisecond)
		if err := unwrap(); err != nil {
			t.Errorf("slow: %v", err)
		}
		p.keys.Slow(time.Minute)
		began = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if p.name == "vault" {
			return // Tink's client takes no context: its own ten seconds are the bound (TestVaultSlow)
		}
		if _, err := root.Unwrap(ctx, wrapped, []byte("for this")); err == nil || time.Since(began) > 3*time.Second {
			t.Errorf("slower than the caller waits, after %v: %v", time.Since(began), err)
		}
	})
}

func TestVaultSlow(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	v := kmstest.NewVault(t)
	p := &provider{"vault", v.URI, v.Other, kms.Config{TokenFile: v.TokenFile, CAFile: v.CAFile}, &v.Keys, "app"}
	root := p.open(t, p.uri)
	v.Slow(time.Minute)
	began := time.Now()
	if _, err := root.Wrap(t.Context(), aKey, nil); err == nil || !strings.Contains(err.Error(), "no answer") || time.Since(began) > 12*time.Second {
		t.Errorf("after %v: %v, want an error that says there was no answer", time.Since(began), err)
	}
	v.Slow(0)
}

// TestVaultBinding shows why the client is not Tink's NewClient.
func TestVaultBinding(t *testing.T) {
	v := kmstest.NewVault(t)
	unboundByContext(t, &provider{"vault", v.URI, v.Other, kms.Config{TokenFile: v.TokenFile, CAFile: v.CAFile}, &v.Keys, "app"})
}

// unboundByContext wraps as Tink's NewClient does: that opens for anything there, and for nothing here.
func unboundByContext(t *testing.T, p *provider) {
	cfg := api.DefaultConfig()
	check(t, cfg.ConfigureTLS(&api.TLSConfig{CACert: p.cfg.CAFile}))
	u, err := url.Parse(p.uri)
	check(t, err)
	cfg.Address = "https://" + u.Host
	client, err := api.NewClient(cfg)
	check(t, err)
	token, err := os.ReadFile(p.cfg.TokenFile)
	check(t, err)
	client.SetToken(strings.TrimSpace(string(token)))
	defer client.CloneConfig().HttpClient.CloseIdleConnections()
	legacy, err := hcvault.NewAEAD(u.Path, client.Logical(), hcvault.WithLegacyContextParamater())
	check(t, err)
	wrapped, err := legacy.Encrypt(aKey, []byte("for this"))
	check(t, err)
	if _, err := legacy.Decrypt(wrapped, []byte("for that")); err != nil {
		t.Errorf("Vault binds the context now (%v): the reason for NewAEAD is gone", err)
	}
	if _, err := p.open(t, p.uri).Unwrap(t.Context(), wrapped, []byte("for this")); !errors.Is(err, keyset.ErrWrapped) {
		t.Errorf("an unbound ciphertext: %v, want ErrWrapped", err)
	}
}

// TestVaultToken changes the token's file under a running root, as Vault's agent does.
func TestVaultToken(t *testing.T) {
	v := kmstest.NewVault(t)
	t.Setenv("VAULT_TOKEN", "of the environment")
	t.Setenv("VAULT_SKIP_VERIFY", "true")
	mine := t.TempDir() + "/token"
	good, err := os.ReadFile(v.TokenFile)
	check(t, err)
	root, err := kms.Open(v.URI, kms.Config{TokenFile: mine, CAFile: v.CAFile})
	check(t, err)
	defer root.Close()
	wrap := func() error {
		_, err := root.Wrap(t.Context(), aKey, nil)
		return err
	}
	if err := wrap(); !errors.Is(err, os.ErrNotExist) && (err == nil || !strings.Contains(err.Error(), "no such file")) {
		t.Errorf("without a token: %v", err)
	}
	check(t, os.WriteFile(mine, []byte("old"), 0o600))
	if err := wrap(); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("with an old token: %v", err)
	}
	check(t, os.WriteFile(mine, good, 0o600))
	check(t, wrap())
	check(t, os.Chmod(mine, 0o644))
	if err := wrap(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("with a token that others may read: %v", err)
	}
	// Whatever the environment says, a certificate of another CA is refused.
	check(t, os.Chmod(mine, 0o600))
	elsewhere := kmstest.NewVault(t)
	spied, err := kms.Open(v.URI, kms.Config{TokenFile: mine, CAFile: elsewhere.CAFile})
	check(t, err)
	defer spied.Close()
	if _, err := spied.Wrap(t.Context(), aKey, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server of another CA: %v", err)
	}
}

// empty is a storage without keys.
type empty struct{}

func (empty) KEKs(context.Context) ([]keyset.WrappedKEK, error) { return nil, nil }
func (empty) KEK(_ context.Context, _ string, candidate *keyset.WrappedKEK) (keyset.WrappedKEK, error) {
	return *candidate, nil
}
func (empty) AddUses(context.Context, []keyset.Uses) ([]keyset.Uses, error) { return nil, nil }

// TestPolicy holds the README's key policy for AWS to the encryption context that is sent.
func TestPolicy(t *testing.T) {
	readme, err := os.ReadFile("../../../README.md")
	check(t, err)
	found := regexp.MustCompile(`"kms:EncryptionContext:associatedData": "([0-9a-f]+)\*"`).FindSubmatch(readme)
	if found == nil {
		t.Fatal("README.md has no condition on the encryption context")
	}
	a := kmstest.NewAWS(t)
	root, err := kms.Open(a.URI, kms.Config{})
	check(t, err)
	keys, err := keyset.Open(t.Context(), root, empty{})
	check(t, err)
	defer keys.Close()
	if sent := a.Context(); len(sent) != 1 || !strings.HasPrefix(sent["associatedData"], string(found[1])) {
		t.Errorf("the context is %v, the policy allows %s*", sent, found[1])
	}
}

func TestOpenRefuses(t *testing.T) {
	token := t.TempDir() + "/token"
	check(t, os.WriteFile(token, []byte("t"), 0o600))
	for _, uri := range []string{
		"", "file:key", "http://vault/transit/keys/app", "aws-kms://", "aws-kms://alias/app", "hcvault://vault:8200/transit/app", "hcvault://vault:8200",
		"hcvault://user:password@vault/transit/keys/app", "hcvault://vault/transit/keys/app?token=secret", "hcvault://vault/transit/keys/app#x", "azure-kv://x",
		"gcp-kms://", "gcp-kms://keys/app", "hcvault:///transit/keys/app",
	} {
		if root, err := kms.Open(uri, kms.Config{TokenFile: token}); err == nil {
			t.Errorf("%q was opened", uri)
			root.Close()
		} else if strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error quotes a secret: %v", uri, err)
		}
	}
	if _, err := kms.Open("hcvault://vault/transit/keys/app", kms.Config{}); err == nil || !strings.Contains(err.Error(), "--kms-token-file") {
		t.Errorf("without a token file: %v", err)
	}
	if _, err := kms.Open("hcvault://vault/transit/keys/app", kms.Config{TokenFile: token, CAFile: token}); err == nil {
		t.Error("a CA file without certificates was taken")
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
