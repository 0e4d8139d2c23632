package phi

import (
	"context"
	"crypto/cipher"
	"errors"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// Segments of a subject's records. Each has a random data key of its own, made when the first record of the segment is
// written, so that what the law sets apart can be withheld, handed over or erased apart. Numbers are stored and part of what a
// wrapped key is bound to: never renumber. All keys of a subject, whatever their segment, stand under the subject (phi_key).
const (
	segmentGeneral       uint16 = 0
	segmentPart2         uint16 = 1 // substance use disorder records (42 CFR 2.11, "records"; 2.12(a))
	segmentPsychotherapy uint16 = 2 // psychotherapy notes (45 CFR 164.501; 164.508(a)(2))
)

// segmentOf is the segment that a record's security labels put it in. A record with labels of both kinds is a psychotherapy
// note: of the two rules it is the one under which hardly anybody but the note's author reads. A label without a system
// counts, because too much care is the smaller mistake.
func segmentOf(r *fhir.Resource) uint16 {
	segment := segmentGeneral
	for i := range r.Elements {
		if r.Elements[i].Name != "meta" {
			continue
		}
		gjson.GetBytes(r.Elements[i].Raw, "security").ForEach(func(_, label gjson.Result) bool {
			if isActCode(label.Get("system").String()) {
				segment = max(segment, segmentOfLabel(label.Get("code").String()))
			}
			return true
		})
	}
	return segment
}

// segmentOfLabel reads a code of HL7's v3-ActCode: its information sensitivity policies and its US privacy laws
// (https://terminology.hl7.org/CodeSystem-v3-ActCode.html).
func segmentOfLabel(code string) uint16 {
	switch code {
	case "PSYTHPN", "HIPAAPsyNotes":
		return segmentPsychotherapy
	case "42CFRPart2", "ETH", "ETHUD", "OPIOIDUD", "SUD":
		return segmentPart2
	}
	return segmentGeneral
}

// isActCode reports whether a coding's system is v3-ActCode, or v3-ActUSPrivacyLaw, which was part of it and is again: as R4
// spells them, as STU3 did, as OIDs, or not at all.
func isActCode(system string) bool {
	switch system {
	case "", "http://terminology.hl7.org/CodeSystem/v3-ActCode", "http://hl7.org/fhir/v3/ActCode", "urn:oid:2.16.840.1.113883.5.4",
		"http://terminology.hl7.org/CodeSystem/v3-ActUSPrivacyLaw", "http://hl7.org/fhir/v3/ActUSPrivacyLaw", "urn:oid:2.16.840.1.113883.5.1138":
		return true
	}
	return false
}

// keyring finds the data keys that seal one attempt's changes.
type keyring struct {
	*attempt
	open map[keyName]dataKey
	born map[UUID]bool // subjects of patients who come with these changes: nobody else makes keys for them
}

type keyName struct {
	subject UUID
	segment uint16
}

type dataKey struct {
	WrappedKey
	aead cipher.AEAD
}

// assignKeys gives each change the active data key of its subject, the patient or the organisation, and of the segment that its
// labels say: with another label, a record is under another key from that version on.
func (a *attempt) assignKeys(ctx context.Context, changes []*change, there map[Ref]*Sealed) *Error {
	ring := keyring{a, map[keyName]dataKey{}, map[UUID]bool{}}
	arriving := map[string]UUID{}
	assign := func(c *change) *Error {
		var name keyName
		if c.resource == nil {
			name.segment = c.current.Segment // a tombstone has no labels
		} else {
			name.segment = segmentOf(c.resource)
		}
		switch {
		case c.ref.Type == "Patient" && c.current == nil || c.fresh:
			name.subject = newUUID()
			if c.fresh {
				name.subject = *c.under
			}
			arriving[c.ref.ID], ring.born[name.subject] = name.subject, true
			// The general key says that the subject is there: keys of other segments are made beside it only.
			if _, e := ring.key(ctx, c, keyName{name.subject, segmentGeneral}); e != nil {
				return e
			}
		case c.under != nil:
			name.subject = *c.under
		case c.ref.Type == "Patient" || c.resource == nil:
			name.subject = c.current.Subject
		case len(c.patients) > 0:
			var ok bool
			if name.subject, ok = arriving[c.patients[0]]; !ok {
				name.subject = there[Ref{"Patient", c.patients[0]}].Subject
			}
		}
		k, e := ring.key(ctx, c, name)
		if e != nil {
			return e
		}
		s := &c.write.Sealed
		s.Subject, s.Segment, s.KeyID, s.Key, c.aead = k.Subject, k.Segment, k.KeyID, k.WrappedKey, k.aead
		return nil
	}
	// Patients first: their records need their keys.
	for _, patients := range []bool{true, false} {
		for _, c := range changes {
			if c.skipped() || (c.ref.Type == "Patient") != patients {
				continue
			}
			if e := assign(c); e != nil {
				return e
			}
		}
	}
	return nil
}

// key returns the active key of a segment, making it when there is none. The keys of who arrives with these changes are stored
// with the change that first needs them, so that nothing stays of a write that fails.
func (r keyring) key(ctx context.Context, c *change, name keyName) (dataKey, *Error) {
	if k, ok := r.open[name]; ok {
		return k, nil
	}
	k, err := r.find(ctx, c, name)
	if err != nil {
		return dataKey{}, stored(err)
	}
	aead, err := r.keys.Sealer(ctx, k.KEK, k.Wrapped, k.binding())
	if err != nil {
		return dataKey{}, unavailable(err)
	}
	r.open[name] = dataKey{k, aead}
	return r.open[name], nil
}

func (r keyring) find(ctx context.Context, c *change, name keyName) (WrappedKey, error) {
	if r.born[name.subject] {
		k, err := r.newKey(ctx, name.subject, name.segment)
		c.write.NewKeys = append(c.write.NewKeys, k)
		return k, err
	}
	since := r.clock()
	defer func() { r.trace.Database += r.clock() - since }()
	k, err := r.storage.Key(ctx, name.subject, name.segment)
	switch {
	case !errors.Is(err, ErrNotFound):
		return k, err
	case name.segment == segmentGeneral && name.subject != (UUID{}):
		return k, ErrKey // a patient comes with a general key; one who has none was erased
	}
	if k, err = r.newKey(ctx, name.subject, name.segment); err != nil {
		return k, err
	}
	if k, err = r.storage.EnsureKey(ctx, k); errors.Is(err, ErrNotFound) {
		return k, ErrKey // erased meanwhile
	}
	return k, err
}
