package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// A witness's signature on a checkpoint says: as of this time, this is the largest tree of this log that I have seen, and
// it holds all that I saw before. Format: https://c2sp.org/tlog-cosignature, its Ed25519 form "cosignature/v1".
const (
	algEd25519     = 0x01 // https://c2sp.org/signed-note
	algCosignature = 0x04
	cosignatureLen = 8 + ed25519.SignatureSize
)

// errKey says that a text is no key.
var errKey = errors.New("audit: malformed key")

// cosignatureVerifier is a note.Verifier; its type keeps witnesses and logs apart.
type cosignatureVerifier struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

// NewCosignatureVerifier returns the verifier of a witness's cosignatures from its verifier key. A key of the plain Ed25519
// type, as some witnesses publish theirs, stands for the same key as a cosigner's.
func NewCosignatureVerifier(vkey string) (note.Verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, encoded, _ := strings.Cut(rest, "+")
	key, err := parseKey(name, encoded)
	if err != nil || !strings.EqualFold(hash, keyHash(name, key)) || key[0] != algCosignature && key[0] != algEd25519 {
		return nil, fmt.Errorf("parsing verifier key of witness: %w", errKey)
	}
	key[0] = algCosignature
	return &cosignatureVerifier{name: name, hash: keyID(name, key), key: key[1:]}, nil
}

func (v *cosignatureVerifier) Name() string    { return v.name }
func (v *cosignatureVerifier) KeyHash() uint32 { return v.hash }

// Verify implements note.Verifier.
func (v *cosignatureVerifier) Verify(msg, sig []byte) bool {
	if len(sig) != cosignatureLen {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at < 1<<63 && ed25519.Verify(v.key, cosigned(at, msg), sig[8:])
}

// cosigned is the message that a witness signs.
func cosigned(at uint64, text []byte) []byte {
	return append(append(strconv.AppendUint([]byte("cosignature/v1\ntime "), at, 10), '\n'), text...)
}

// CosignatureTime is when a witness cosigned, to the second, as a verified signature of its says.
func CosignatureTime(s note.Signature) (time.Time, error) {
	b, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(b) != 4+cosignatureLen {
		return time.Time{}, fmt.Errorf("reading time of cosignature: %w", errKey)
	}
	return time.Unix(int64(binary.BigEndian.Uint64(b[4:])), 0).UTC(), nil
}

// cosigner is a note.Signer.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PrivateKey
	now  func() time.Time
}

// NewCosigner returns a witness's signer from a key that GenerateWitnessKey made. It signs checkpoints only, each with the
// time of now (time.Now when nil). A log's key is refused: a witness that shares it witnesses nothing.
func NewCosigner(skey string, now func() time.Time) (note.Signer, error) {
	rest, ok := strings.CutPrefix(skey, "PRIVATE+KEY+")
	name, rest, _ := strings.Cut(rest, "+")
	hash, encoded, _ := strings.Cut(rest, "+")
	seed, err := parseKey(name, encoded)
	if !ok || err != nil || seed[0] != algCosignature {
		return nil, fmt.Errorf("parsing signer key of witness: %w", errKey)
	}
	key := ed25519.NewKeyFromSeed(seed[1:])
	public := append([]byte{algCosignature}, key.Public().(ed25519.PublicKey)...)
	if !strings.EqualFold(hash, keyHash(name, public)) {
		return nil, fmt.Errorf("parsing signer key of witness: %w", errKey)
	}
	if now == nil {
		now = time.Now
	}
	return &cosigner{name: name, hash: keyID(name, public), key: key, now: now}, nil
}

func (s *cosigner) Name() string    { return s.name }
func (s *cosigner) KeyHash() uint32 { return s.hash }

// Sign implements note.Signer.
func (s *cosigner) Sign(msg []byte) ([]byte, error) {
	if _, err := ParseCheckpoint(string(msg)); err != nil {
		return nil, fmt.Errorf("cosigning: %w", err)
	}
	at := uint64(s.now().Unix())
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(s.key, cosigned(at, msg))...), nil
}

// GenerateWitnessKey makes a witness's key pair from random bytes of rand. The name should be a schema-less URL that
// identifies the witness.
func GenerateWitnessKey(rand io.Reader, name string) (skey, vkey string, err error) {
	if !validKeyName(name) {
		return "", "", fmt.Errorf("making witness key: name: %w", errKey)
	}
	public, private, err := ed25519.GenerateKey(rand)
	if err != nil {
		return "", "", fmt.Errorf("making witness key: %w", err)
	}
	tagged := append([]byte{algCosignature}, public...)
	id := name + "+" + keyHash(name, tagged) + "+"
	return "PRIVATE+KEY+" + id + base64.StdEncoding.EncodeToString(append([]byte{algCosignature}, private.Seed()...)),
		id + base64.StdEncoding.EncodeToString(tagged), nil
}

// parseKey decodes a key's type and its 32 bytes.
func parseKey(name, encoded string) ([]byte, error) {
	b, err := strictBase64.DecodeString(encoded)
	if err != nil || len(b) != 1+ed25519.PublicKeySize || !validKeyName(name) {
		return nil, errKey
	}
	return b, nil
}

func validKeyName(name string) bool {
	return name != "" && utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return r < ' ' || unicode.IsSpace(r) }) < 0 &&
		!strings.Contains(name, "+")
}

// keyID is SHA-256(name || newline || type || key)[:4].
func keyID(name string, key []byte) uint32 {
	h := sha256.Sum256(append([]byte(name+"\n"), key...))
	return binary.BigEndian.Uint32(h[:])
}

func keyHash(name string, key []byte) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint32(nil, keyID(name, key)))
}
