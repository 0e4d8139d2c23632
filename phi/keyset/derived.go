package keyset

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
)

// Derived returns a cipher of a secret that NewKey made, for any number of messages: each is sealed under a key of its own, so that
// no count of them comes near what random nonces allow. Seal and Open take a nil nonce. Errors are as in AEAD. It is for secrets
// that are never replaced; it costs a key derivation a message, and its secret stays in memory as long as the cipher.
func (k *Keys) Derived(ctx context.Context, kek string, wrapped []byte, b Binding) (cipher.AEAD, error) {
	secret, err := k.Secret(ctx, kek, wrapped, b)
	if err != nil {
		return nil, err
	}
	return &derived{secret}, nil
}

// derived seals as salt, then what AES-256-GCM with a random nonce makes under HKDF-Expand (RFC 5869, 2.3) of secret and salt. With
// 128 random bits of salt a key is met again after 2^64 messages, and then its nonce is another.
type derived struct{ secret []byte }

const saltSize = 16

var errDerived = errors.New("keyset: message does not open")

func (d *derived) aead(salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Expand(sha256.New, d.secret, "chartkeep message "+string(salt), keySize)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return newAEAD(key)
}

func (*derived) NonceSize() int { return 0 }
func (*derived) Overhead() int  { return saltSize + wrappedSize - keySize }

// Seal implements cipher.AEAD. dst and plaintext must not overlap.
func (d *derived) Seal(dst, nonce, plaintext, associatedData []byte) []byte {
	var salt [saltSize]byte
	rand.Read(salt[:])
	aead, err := d.aead(salt[:])
	if err != nil {
		panic(err) // 32 bytes are not too many, and AES takes them: a programming error
	}
	return aead.Seal(append(dst, salt[:]...), nonce, plaintext, associatedData)
}

// Open implements cipher.AEAD.
func (d *derived) Open(dst, nonce, ciphertext, associatedData []byte) ([]byte, error) {
	if len(ciphertext) < d.Overhead() {
		return nil, errDerived
	}
	aead, err := d.aead(ciphertext[:saltSize])
	if err != nil {
		return nil, err
	}
	return aead.Open(dst, nonce, ciphertext[saltSize:], associatedData)
}
