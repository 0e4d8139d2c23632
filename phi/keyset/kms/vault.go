package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/tink-crypto/tink-go-hcvault/v2/integration/hcvault"
	"github.com/tink-crypto/tink-go/v2/tink"
)

const vaultPrefix = "hcvault://"

// vault is a key of a transit engine. Tink's client takes no context: the client's own timeout bounds a call.
type vault struct {
	client    *api.Client
	aead      tink.AEAD
	tokenFile string
	mu        sync.Mutex // one call at a time, under the token of its file
}

// openVault binds with NewAEAD, which sends associated_data. Tink's NewClient would send it as context, which Vault ignores for keys
// that are not derived: a wrapped key would open for anything.
func (r *Root) openVault(cfg Config) error {
	u, err := url.Parse(r.uri)
	if err != nil || u.Host == "" {
		return errVaultURI
	}
	if cfg.TokenFile == "" {
		return errors.New("a file with Vault's token is missing (--kms-token-file)")
	}
	tlsCfg, err := tlsConfig(cfg.CAFile)
	if err != nil {
		return err
	}
	// Not the client of api.DefaultConfig: the environment could tell that one to skip the verification of certificates.
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsCfg, ForceAttemptHTTP2: true, MaxIdleConns: 2, TLSHandshakeTimeout: callFor}
	client, err := api.NewClient(&api.Config{
		Address: "https://" + u.Host, Timeout: callFor, MaxRetries: 2, MinRetryWait: 100 * time.Millisecond, MaxRetryWait: 500 * time.Millisecond,
		HttpClient: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	})
	if err != nil {
		return err
	}
	client.ClearToken() // of the environment
	aead, err := hcvault.NewAEAD(u.EscapedPath(), client.Logical())
	if err != nil {
		return errVaultURI
	}
	r.aead, r.judge = &vault{client: client, aead: aead, tokenFile: cfg.TokenFile}, judgeVault
	r.close = func() error { transport.CloseIdleConnections(); return nil }
	return nil
}

func (v *vault) EncryptWithContext(ctx context.Context, plaintext, associatedData []byte) ([]byte, error) {
	return v.call(ctx, func() ([]byte, error) { return v.aead.Encrypt(plaintext, associatedData) })
}

func (v *vault) DecryptWithContext(ctx context.Context, ciphertext, associatedData []byte) ([]byte, error) {
	if !strings.HasPrefix(string(ciphertext), "vault:v") {
		return nil, errForeign
	}
	return v.call(ctx, func() ([]byte, error) { return v.aead.Decrypt(ciphertext, associatedData) })
}

var errVaultURI = errors.New("the URI is not hcvault://HOST:PORT/MOUNT/keys/NAME")

// errForeign means that a stored key is not in Vault's form.
var errForeign = errors.New("not wrapped by Vault")

func (v *vault) call(ctx context.Context, do func() ([]byte, error)) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	token, err := readToken(v.tokenFile)
	if err != nil {
		return nil, err
	}
	v.client.SetToken(token)
	return do()
}

// judgeVault reads statuses and the transit engine's messages.
func judgeVault(err error) verdict {
	if errors.Is(err, errForeign) {
		return verdict{foreign: true}
	}
	answer, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		return verdict{reason: firstLine(err.Error()), remedy: "can this host reach Vault, and is --kms-ca-file the CA of its certificate?"}
	}
	said := firstLine(strings.Join(answer.Errors, "; "))
	v := verdict{reason: fmt.Sprintf("Vault answers %d (%s)", answer.StatusCode, said)}
	switch answer.StatusCode {
	case http.StatusBadRequest:
		v.foreign = strings.Contains(said, "message authentication failed") || strings.Contains(said, "invalid ciphertext")
		if !v.foreign {
			v.remedy = "does the key exist, and may its version still decrypt (min_decryption_version)?"
		}
	case http.StatusForbidden:
		v.remedy = "the token in --kms-token-file has expired or its policy lacks update on encrypt/NAME and decrypt/NAME"
	case http.StatusNotFound:
		v.remedy = "no transit engine is mounted there: check --kms"
	case http.StatusServiceUnavailable:
		v.remedy = "Vault is sealed or a standby: unseal it"
	}
	return v
}
