package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxBody is the largest encoded event in bytes: a C2SP tlog-tiles entry has a uint16 length, and leaf data must fit.
// A bigger event is refused, never truncated.
const MaxBody = 60 << 10

// ErrTooLarge says that an event does not fit MaxBody.
var ErrTooLarge = errors.New("audit: event is too large")

// errEncoding says that bytes are not an encoded event.
var errEncoding = errors.New("audit: malformed event")

const (
	eventVersion       = 1          // of an event without Detail
	eventDetailVersion = 2          // the same, followed by Detail, which is not empty
	headLen            = 1 + 16 + 8 // version, id, recorded: at fixed places, so that a leaf needs no decoding
)

// Encode returns the event's bytes: a version, then every field in fixed order, so that one event has one encoding.
// Recorded is kept to the microsecond in UTC. Text that PostgreSQL could not hold (NUL, invalid UTF-8) is replaced by
// U+FFFD here, before anything is hashed, so that columns always equal what the bytes say. It fails with ErrTooLarge.
func Encode(e *Event) ([]byte, error) { return appendEvent(nil, e) }

func appendEvent(b []byte, e *Event) ([]byte, error) {
	start := len(b)
	version := byte(eventVersion)
	if len(e.Detail) > 0 {
		version = eventDetailVersion
	}
	b = append(b, version)
	b = append(b, e.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Recorded.UnixMicro()))
	b = appendText(b, string(e.Type))
	b = appendText(b, e.Interaction)
	b = append(b, byte(e.Action), byte(e.Outcome))
	b = appendText(b, e.OutcomeDesc)
	b = appendText(b, e.Agent.User)
	b = appendText(b, e.Agent.Name)
	b = appendText(b, e.Agent.Client)
	b = appendText(b, e.Agent.Session)
	b = appendTexts(b, e.Agent.Roles)
	b = appendText(b, e.Agent.Network)
	b = appendText(b, e.Agent.FHIRUser)
	b = appendText(b, e.Purpose)
	b = appendText(b, e.Patient)
	b = binary.AppendUvarint(b, uint64(len(e.Entities)))
	for i := range e.Entities {
		b = appendText(b, e.Entities[i].Type)
		b = appendText(b, e.Entities[i].ID)
		b = binary.AppendVarint(b, e.Entities[i].Version)
	}
	b = appendTexts(b, e.Classes)
	allowed := byte(0)
	if e.Decision.Allowed {
		allowed = 1
	}
	b = append(b, allowed)
	b = appendText(b, e.Decision.Rule)
	b = appendText(b, e.Decision.Reason)
	b = appendText(b, e.Decision.View)
	b = binary.AppendVarint(b, e.Decision.Policy)
	b = appendText(b, e.RequestID)
	b = append(b, e.Correlation[:]...)
	b = binary.AppendUvarint(b, uint64(len(e.Query)))
	b = append(b, e.Query...)
	for _, d := range [...]uint32{e.Timing.Total, e.Timing.Auth, e.Timing.Decision, e.Timing.Database, e.Timing.Crypto, e.Timing.Audit} {
		b = binary.AppendUvarint(b, uint64(d))
	}
	if version == eventDetailVersion {
		b = binary.AppendUvarint(b, uint64(len(e.Detail)))
		b = append(b, e.Detail...)
	}
	if n := len(b) - start; n > MaxBody {
		return b[:start], fmt.Errorf("encoding event: %d bytes where %d fit: %w", n, MaxBody, ErrTooLarge)
	}
	return b, nil
}

func appendText(b []byte, s string) []byte {
	if !storable(s) {
		s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	}
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendTexts(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendText(b, s)
	}
	return b
}

func storable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// DecodeEvent is the inverse of Encode. It is strict: what it accepts encodes to the same bytes again, so an event has
// no second spelling under which it could hide. The event shares no memory with body.
func DecodeEvent(body []byte) (Event, error) {
	var e Event
	if len(body) > MaxBody {
		return e, fmt.Errorf("decoding event: %d bytes: %w", len(body), ErrTooLarge)
	}
	r := reader{rest: body}
	version := r.byte()
	if version != eventVersion && version != eventDetailVersion {
		return e, fmt.Errorf("decoding event: version: %w", errEncoding)
	}
	copy(e.ID[:], r.take(16))
	if b := r.take(8); b != nil {
		e.Recorded = time.UnixMicro(int64(binary.BigEndian.Uint64(b))).UTC()
	}
	e.Type = Type(r.text())
	e.Interaction = r.text()
	e.Action = Action(r.byte())
	e.Outcome = Outcome(int8(r.byte()))
	e.OutcomeDesc = r.text()
	e.Agent.User = r.text()
	e.Agent.Name = r.text()
	e.Agent.Client = r.text()
	e.Agent.Session = r.text()
	e.Agent.Roles = r.texts()
	e.Agent.Network = r.text()
	e.Agent.FHIRUser = r.text()
	e.Purpose = r.text()
	e.Patient = r.text()
	if n := r.count(3); n > 0 {
		e.Entities = make([]Entity, n)
		for i := range e.Entities {
			e.Entities[i] = Entity{Type: r.text(), ID: r.text(), Version: r.varint()}
		}
	}
	e.Classes = r.texts()
	switch r.byte() {
	case 0:
	case 1:
		e.Decision.Allowed = true
	default:
		r.bad = true
	}
	e.Decision.Rule = r.text()
	e.Decision.Reason = r.text()
	e.Decision.View = r.text()
	e.Decision.Policy = r.varint()
	e.RequestID = r.text()
	copy(e.Correlation[:], r.take(16))
	if n := r.count(1); n > 0 {
		e.Query = append([]byte(nil), r.take(n)...)
	}
	for _, d := range [...]*uint32{&e.Timing.Total, &e.Timing.Auth, &e.Timing.Decision, &e.Timing.Database, &e.Timing.Crypto, &e.Timing.Audit} {
		v := r.uvarint()
		if v > 1<<32-1 {
			r.bad = true
		}
		*d = uint32(v)
	}
	if version == eventDetailVersion {
		n := r.count(1)
		e.Detail = append([]byte(nil), r.take(n)...)
		r.bad = r.bad || n == 0 // a second spelling of version 1
	}
	if r.bad || len(r.rest) != 0 {
		return Event{}, fmt.Errorf("decoding event: %w", errEncoding)
	}
	return e, nil
}

// reader takes fields off the front of bytes. Once something did not fit, bad stays set and all further fields are zero.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.rest) {
		r.bad = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	// A last byte of zero is a longer spelling of the same number.
	if r.bad || n <= 0 || n > 1 && r.rest[n-1] == 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) varint() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// count reads the length of a list whose items take at least size bytes each, so that a forged length cannot make us
// allocate more than the input's own size.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if r.bad || n > uint64(len(r.rest)/size) {
		r.bad = true
		return 0
	}
	return int(n)
}

func (r *reader) text() string {
	s := string(r.take(r.count(1)))
	if !storable(s) {
		r.bad = true
	}
	return s
}

func (r *reader) texts() []string {
	n := r.count(1)
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.text()
	}
	return list
}
