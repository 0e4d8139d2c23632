package phi

import (
	"fmt"
	"io"
	"log/slog"
	"strconv"
)

// PHI is opened content on its way out of the room: FHIR JSON that an audit event covers. However it is printed, logged or
// encoded, it says how long it is and nothing else; Reveal is the one exit, and TestReveal lists who uses it. The zero value is
// no content. The text stands behind a function, so that a printer that goes into unexported fields by reflection shows an
// address.
type PHI struct{ text func() []byte }

// Conceal makes PHI of text, which must not be changed afterwards.
func Conceal(text []byte) PHI {
	if text == nil {
		return PHI{}
	}
	return PHI{func() []byte { return text }}
}

// Reveal returns the content, nil when there is none. It is for the response to whom the audit event names, and for nothing
// else; it must not be changed.
func (p PHI) Reveal() []byte {
	if p.text == nil {
		return nil
	}
	return p.text()
}

// Len is the length of the content in bytes.
func (p PHI) Len() int { return len(p.Reveal()) }

// Clear overwrites the content, when nobody will look at it any more.
func (p PHI) Clear() { clear(p.Reveal()) }

// String implements fmt.Stringer and says only how long the content is, as do the other printers.
func (p PHI) String() string { return "[PHI, " + strconv.Itoa(p.Len()) + " bytes]" }

// GoString implements fmt.GoStringer.
func (p PHI) GoString() string { return p.String() }

// Format implements fmt.Formatter, whatever the verb and its flags.
func (p PHI) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// MarshalText implements encoding.TextMarshaler.
func (p PHI) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// MarshalJSON implements json.Marshaler.
func (p PHI) MarshalJSON() ([]byte, error) { return []byte(`"` + p.String() + `"`), nil }

// LogValue implements slog.LogValuer.
func (p PHI) LogValue() slog.Value { return slog.StringValue(p.String()) }
