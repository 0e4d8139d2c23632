// Package kms is the roots of the key hierarchy that are keys of a key management service: AWS KMS, Google Cloud KMS and
// HashiCorp Vault's transit engine, each through Tink's client and named by Tink's key URIs.
//
// The service only ever sees a random key-encryption key and what it is for; never a data key, never a record. What a key is
// for goes along as associated data (AWS: encryption context), and the service refuses to open it for anything else.
package kms

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/chartkeep/chartkeep/phi/keyset"
)

// callFor bounds one call with its retries, whatever the service does.
const callFor = 10 * time.Second

// Config is what a URI does not say. Credentials of AWS and Google come from where their own tools look: AWS's default chain
// (environment, shared files, instance role), Google's application default credentials.
type Config struct {
	TokenFile string // Vault's token; read for each call, so that an agent may renew it
	CAFile    string // PEM, instead of the system's roots; for Vault and Endpoint
	Endpoint  string // HOST:PORT of Google Cloud KMS through Private Service Connect; "" is the public one
}

// Root is a key of a KMS. Safe for concurrent use.
type Root struct {
	uri   string
	aead  tink.AEADWithContext
	judge judge
	close func() error
}

var _ keyset.Root = (*Root)(nil)

// verdict is what an error of a KMS means to us.
type verdict struct {
	foreign bool   // the ciphertext or what it is bound to is not its own, for good
	reason  string // what it said; never a secret
	remedy  string // what an operator does about it
}

// judge reads an error of one provider's client.
type judge func(error) verdict

// Open opens the root that a key URI names. It calls nobody: whether the key can be used is known at the first Wrap or Unwrap.
//
//	aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID
//	gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K
//	hcvault://HOST:PORT/transit/keys/NAME
func Open(uri string, cfg Config) (*Root, error) {
	r := &Root{uri: uri, close: func() error { return nil }}
	if strings.ContainsAny(uri, "@?# ") {
		return nil, errors.New("opening KMS key: the URI carries more than a key's name") // a password, perhaps
	}
	var err error
	switch {
	case strings.HasPrefix(uri, awsPrefix):
		err = r.openAWS()
	case strings.HasPrefix(uri, gcpPrefix):
		err = r.openGCP(cfg)
	case strings.HasPrefix(uri, vaultPrefix):
		err = r.openVault(cfg)
	default:
		err = fmt.Errorf("no KMS is known by that name; there are %s, %s and %s", awsPrefix, gcpPrefix, vaultPrefix)
	}
	if err != nil {
		return nil, fmt.Errorf("opening KMS key %s: %w", uri, err)
	}
	return r, nil
}

// Close ends idle connections.
func (r *Root) Close() error { return r.close() }

// Name is the key's URI.
func (r *Root) Name() string { return r.uri }

// Development is false.
func (*Root) Development() bool { return false }

// Wrap implements keyset.Root.
func (r *Root) Wrap(ctx context.Context, key, associatedData []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callFor)
	defer cancel()
	wrapped, err := r.aead.EncryptWithContext(ctx, key, associatedData)
	if err != nil {
		return nil, r.failed(ctx, err, false)
	}
	return wrapped, nil
}

// Unwrap implements keyset.Root: keyset.ErrWrapped when the service says that it has not wrapped this, or for something else.
func (r *Root) Unwrap(ctx context.Context, wrapped, associatedData []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callFor)
	defer cancel()
	key, err := r.aead.DecryptWithContext(ctx, wrapped, associatedData)
	if err != nil {
		return nil, r.failed(ctx, err, true)
	}
	return key, nil
}

func (r *Root) failed(ctx context.Context, err error, opening bool) error {
	v := r.judge(err)
	switch {
	case opening && v.foreign:
		return fmt.Errorf("KMS key %s: %w", r.uri, keyset.ErrWrapped)
	case errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("KMS key %s: no answer in time; can this host reach it?", r.uri)
	case ctx.Err() != nil:
		return fmt.Errorf("KMS key %s: %w", r.uri, ctx.Err())
	case v.remedy == "":
		return fmt.Errorf("KMS key %s: %s", r.uri, v.reason)
	}
	return fmt.Errorf("KMS key %s: %s; %s", r.uri, v.reason, v.remedy)
}

// tlsConfig trusts the CAs of a file, or the system's when there is none.
func tlsConfig(caFile string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading CA file: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading CA file: %s holds no PEM certificate", caFile)
	}
	return cfg, nil
}

// readToken reads a one-line secret that only its owner may read.
func readToken(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("reading token: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("reading token: %s is readable by others; chmod 600 it", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading token: %w", err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// firstLine is a message without what an intermediary added to it.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
