package audit

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
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

// formatUUID writes 16 bytes as RFC 9562 section 4 has it.
func formatUUID(id [16]byte) string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// parseUUID takes what formatUUID writes and no other spelling of it.
func parseUUID(s string) (id [16]byte, ok bool) {
	parsed, err := ParseID(s)
	return parsed, err == nil && formatUUID(parsed) == s
}

// ParseID reads 16 bytes in hex, with the hyphens of RFC 9562 section 4 or without any. The error wraps ErrQuery.
func ParseID(s string) (id ID, err error) {
	digits := s
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		digits = s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	}
	if len(digits) != 32 {
		return id, fmt.Errorf("parsing id of %d characters: %w", len(s), ErrQuery)
	}
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil {
		return ID{}, fmt.Errorf("parsing id: not hexadecimal: %w", ErrQuery)
	}
	return id, nil
}
