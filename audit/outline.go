package audit

import (
	"bytes"
	"unicode/utf8"
)

// outline is what verification needs to know of an event, found without allocating: a decoded Event costs more than its
// hash.
type outline struct {
	id, correlation ID
	intent          bool // it announces a change
	outcome         bool // it tells what became of one
	stopped         bool // the process that wrote the stream ended
}

// outlineOf walks an encoded event. It accepts exactly what DecodeEvent accepts; a fuzz test holds the two together.
func outlineOf(body []byte) (o outline, ok bool) {
	r := reader{rest: body}
	version := r.byte()
	if len(body) > MaxBody || version != eventVersion && version != eventDetailVersion {
		return o, false
	}
	copy(o.id[:], r.take(16))
	r.take(8)
	application := string(r.skipText()) == string(TypeApplication) // neither conversion allocates
	o.stopped = application && string(r.skipText()) == "110121"
	if !application {
		r.skipText()
	}
	r.byte()
	o.intent = Outcome(int8(r.byte())) == Intent
	for range 5 { // description, user, name, client, session
		r.skipText()
	}
	r.skipTexts()
	for range 4 { // network, FHIR user, purpose, patient
		r.skipText()
	}
	for range r.count(3) {
		r.skipText()
		r.skipText()
		r.varint()
	}
	r.skipTexts()
	if r.byte() > 1 {
		r.bad = true
	}
	for range 3 { // rule, reason, view
		r.skipText()
	}
	r.varint()
	r.skipText()
	copy(o.correlation[:], r.take(16))
	r.take(r.count(1))
	for range 6 {
		if r.uvarint() > 1<<32-1 {
			r.bad = true
		}
	}
	if version == eventDetailVersion {
		n := r.count(1)
		r.take(n)
		r.bad = r.bad || n == 0
	}
	if o.intent && o.correlation == (ID{}) {
		o.correlation = o.id
	}
	o.outcome = !o.intent && o.correlation != (ID{})
	return o, !r.bad && len(r.rest) == 0
}

func (r *reader) skipText() []byte {
	b := r.take(r.count(1))
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		r.bad = true
	}
	return b
}

func (r *reader) skipTexts() {
	for range r.count(1) {
		if r.skipText(); r.bad {
			return
		}
	}
}
