package audit

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
)

// strictBase64 refuses a second spelling of the same bytes.
var strictBase64 = base64.StdEncoding.Strict()

// String returns the hash in base64, as checkpoints have it.
func (h Hash) String() string { return base64.StdEncoding.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler with String's form.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) (err error) {
	*h, err = parseHash(string(b))
	return err
}

// MarshalText implements encoding.TextMarshaler with String's form.
func (s StreamID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *StreamID) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(s[:], b[:min(len(b), 2*len(s))]); err != nil || n != len(s) || len(b) != 2*len(s) {
		return errors.New("not a stream's id")
	}
	return nil
}

// MarshalText implements encoding.TextMarshaler with String's form.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	parsed, ok := parseUUID(string(b))
	if !ok {
		return errors.New("not an event's id")
	}
	*id = parsed
	return nil
}
