package audit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrCheckpoint says that a note is no checkpoint of the log, or that none of the keys that were asked for signed it.
var ErrCheckpoint = errors.New("audit: not a checkpoint of this log")

// errHash says that a text is no hash.
var errHash = errors.New("not a hash in base64")

// Checkpoint is what the log says of its tree at a size: https://c2sp.org/tlog-checkpoint, without extension lines.
type Checkpoint struct {
	Origin string `json:"origin"` // identity of the log; the name of the keys that sign for it
	Size   int64  `json:"size"`   // number of leaves
	Root   Hash   `json:"root"`   // RFC 6962 root hash of them
}

// Text is the body of the note: three lines, each with its newline.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + c.Root.String() + "\n"
}

// Sign returns the checkpoint as a note with the signature of every signer. A log's signers carry its origin as their name:
// OpenCheckpoint takes no other's word for it.
func (c Checkpoint) Sign(signers ...note.Signer) ([]byte, error) {
	if _, err := ParseCheckpoint(c.Text()); err != nil {
		return nil, fmt.Errorf("signing checkpoint: %w", err)
	}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("signing checkpoint: %w", err)
	}
	return msg, nil
}

// ParseCheckpoint reads the body of a note. It is strict: what it accepts is exactly what Text would give, so a checkpoint
// has one spelling and no extension lines, which no monitor could check. It checks no signature. Errors wrap ErrCheckpoint.
func ParseCheckpoint(text string) (Checkpoint, error) {
	origin, rest, _ := strings.Cut(text, "\n")
	size, rest, _ := strings.Cut(rest, "\n")
	root, rest, ok := strings.Cut(rest, "\n")
	var c Checkpoint
	var err error
	if !ok || rest != "" || origin == "" {
		return c, fmt.Errorf("checkpoint does not have three lines: %w", ErrCheckpoint)
	}
	c.Origin = origin
	if c.Size, err = parseDecimal(size); err != nil {
		return c, fmt.Errorf("size of checkpoint: %w: %w", err, ErrCheckpoint)
	}
	if c.Root, err = parseHash(root); err != nil {
		return c, fmt.Errorf("root of checkpoint: %w: %w", err, ErrCheckpoint)
	}
	return c, nil
}

// OpenCheckpoint opens a signed checkpoint. At least one known key that is no witness's and whose name is the checkpoint's
// origin must have signed it; a known key's signature that does not verify refuses the note, an unknown key's is passed
// over (https://c2sp.org/signed-note). The note's Sigs are those that were verified, witnesses' cosignatures among them
// where known has them. Errors wrap ErrCheckpoint.
func OpenCheckpoint(msg []byte, known note.Verifiers) (Checkpoint, *note.Note, error) {
	n, err := openNote(msg, known)
	if err != nil {
		return Checkpoint{}, nil, fmt.Errorf("opening checkpoint: %w: %w", err, ErrCheckpoint)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, nil, fmt.Errorf("opening checkpoint: %w", err)
	}
	if !signedBy(n, known, c.Origin) {
		return Checkpoint{}, nil, fmt.Errorf("opening checkpoint: no key of the log signed it: %w", ErrCheckpoint)
	}
	return c, n, nil
}

// openNote is note.Open for notes of which every signature that counts has one spelling: note reads base64 loosely.
func openNote(msg []byte, known note.Verifiers) (*note.Note, error) {
	n, err := note.Open(msg, known)
	if err != nil {
		return nil, err
	}
	for _, s := range n.Sigs {
		if _, err := strictBase64.DecodeString(s.Base64); err != nil {
			return nil, fmt.Errorf("signature of %s: %w", s.Name, err)
		}
	}
	return n, nil
}

// signedBy reports whether a key of the log itself is among those that signed.
func signedBy(n *note.Note, known note.Verifiers, origin string) bool {
	for _, s := range n.Sigs {
		v, err := known.Verifier(s.Name, s.Hash)
		if err != nil {
			continue
		}
		if _, witness := v.(*cosignatureVerifier); !witness && s.Name == origin {
			return true
		}
	}
	return false
}

// parseDecimal reads a number that is not negative and has no leading zeros.
func parseDecimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, errors.New("not a decimal number")
	}
	return n, nil
}

// parseHash reads a hash in standard base64.
func parseHash(s string) (h Hash, err error) {
	var b [33]byte // what 44 digits may hold
	if len(s) != 44 {
		return h, errHash
	}
	if n, err := strictBase64.Decode(b[:], []byte(s)); err != nil || n != len(h) {
		return h, errHash
	}
	return Hash(b[:32]), nil
}
