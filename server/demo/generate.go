package demo

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Every generated date lies before this day, so that the same seed gives the same bytes for ever.
func generatedAt() time.Time { return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) }

// Generate writes n synthetic patients as FHIR R4 transaction bundles with PUT entries, one call of emit each, the
// practitioners, organisation and locations first. The same seed gives the same bytes, and a patient's bytes do not depend on
// n. It returns the id of the first patient. dr-rivera treats every second patient, the first included; nurse-okafor is in
// the care team of every fourth; dr-chen treats nobody. The people do not exist: their records carry the tag HTEST, social
// security numbers begin with 999, telephone numbers are of the range kept for fiction, addresses end in example.org.
func Generate(n int, seed uint64, emit func(bundle []byte) error) (patientOne string, err error) {
	site := newSite(seed)
	if err := emit(site.bundle()); err != nil {
		return "", fmt.Errorf("storing the generated practitioners: %w", err)
	}
	for i := range n {
		p := newChart(site, seed, i)
		if i == 0 {
			patientOne = p.id
		}
		if err := emit(p.bundle()); err != nil {
			return "", fmt.Errorf("storing generated patient %d: %w", i+1, err)
		}
	}
	return patientOne, nil
}

// dice is a source of chance that depends on nothing but its seed.
type dice struct{ *rand.Rand }

func newDice(seed, stream uint64) dice { return dice{rand.New(rand.NewPCG(seed, stream))} }

// chance is true in percent of a hundred cases.
func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

// between is a number from low to high, both included.
func (d dice) between(low, high int) int { return low + d.IntN(high-low+1) }

// decimal is a number between low and high, given and written with that many places: 1.10 stays 1.10. The
// conversion keeps compilers from fusing the operations, which would change digits between machines.
func (d dice) decimal(low, high float64, places int) decimal {
	return decimal(strconv.FormatFloat(low+float64((high-low)*d.Float64()), 'f', places, 64))
}

// id is a version 4 UUID by its shape.
func (d dice) id() string {
	a, b := d.Uint64(), d.Uint64()
	return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", a>>32, a>>16&0xffff, a&0xfff, 0x8000|b>>48&0x3fff, b&0xffffffffffff)
}

func pick[T any](d dice, from []T) T { return from[d.IntN(len(from))] }

// some picks k different ones, in their order.
func some[T any](d dice, k int, from []T) []T {
	var out []T
	for i, v := range from {
		if left := len(from) - i; d.IntN(left) < k-len(out) {
			out = append(out, v)
		}
	}
	return out
}

// site is who treats: one organisation, its payer, its places and people.
type site struct {
	organisation, payer reference
	locations           []reference
	doctors             []reference // neither dr-rivera nor dr-chen
	rivera, okafor      reference
	entries             []any
}

type reference struct{ kind, id, display string }

func (r reference) json() object {
	return object{"reference", r.kind + "/" + r.id, "display", r.display}
}

func newSite(seed uint64) *site {
	d := newDice(seed, 1<<63) // no patient's stream
	s := &site{
		organisation: reference{"Organization", d.id(), "Larkspur Community Health"},
		payer:        reference{"Organization", d.id(), "Meadowlark Mutual"},
	}
	s.add(s.organisation, object{
		"active", true,
		"identifier", list{identifier("http://example.org/organization", "LCH-1")},
		"type", list{concept("http://terminology.hl7.org/CodeSystem/organization-type", "prov", "Healthcare Provider")},
		"name", s.organisation.display,
		"telecom", list{object{"system", "phone", "value", "+1 617 555 0100", "use", "work"}},
		"address", list{object{"line", list{"1 Larkspur Way"}, "city", "Boston", "state", "MA", "postalCode", "02118", "country", "US"}},
	})
	s.add(s.payer, object{
		"active", true,
		"identifier", list{identifier("http://example.org/payer", "MM-7")},
		"type", list{concept("http://terminology.hl7.org/CodeSystem/organization-type", "pay", "Payer")},
		"name", s.payer.display,
	})
	for i, name := range []string{"Larkspur Family Medicine", "Larkspur Emergency Department", "Larkspur Laboratory"} {
		at := reference{"Location", d.id(), name}
		s.locations = append(s.locations, at)
		s.add(at, object{
			"status", "active",
			"name", name,
			"mode", "instance",
			"address", object{"line", list{fmt.Sprintf("%d Larkspur Way", i+1)}, "city", "Boston", "state", "MA", "postalCode", "02118", "country", "US"},
			"managingOrganization", s.organisation.json(),
		})
	}
	s.rivera = s.practitioner(d, RiveraID, "Rivera", "Ana", "Dr.", "MD", "female")
	s.practitioner(d, ChenID, "Chen", "Wei", "Dr.", "MD", "male")
	s.okafor = s.practitioner(d, OkaforID, "Okafor", "Ngozi", "", "RN", "female")
	for range 10 {
		p := pick(d, peoples)
		gender := pick(d, []string{"female", "male"})
		family, given := pick(d, p.families), pick(d, p.given(gender))
		s.doctors = append(s.doctors, s.practitioner(d, d.id(), family.latin, given.latin, "Dr.", "MD", gender))
	}
	return s
}

func (s *site) practitioner(d dice, id, family, given, prefix, suffix, gender string) reference {
	name := object{"use", "official", "family", family, "given", list{given}}
	if prefix != "" {
		name = append(name, "prefix", list{prefix})
	}
	name = append(name, "suffix", list{suffix})
	r := reference{"Practitioner", id, strings.TrimSpace(prefix + " " + given + " " + family)}
	s.add(r, object{
		"identifier", list{identifier("http://example.org/npi", fmt.Sprintf("99%08d", d.IntN(1e8)))},
		"active", true,
		"name", list{name},
		"telecom", list{object{"system", "email", "value", address(given, family, "larkspur.example.org"), "use", "work"}},
		"gender", gender,
		"qualification", list{object{"code", concept("http://terminology.hl7.org/CodeSystem/v2-0360", suffix, "")}},
	})
	return r
}

func (s *site) add(r reference, elements object) {
	s.entries = append(s.entries, entry(r.kind, r.id, elements))
}

func (s *site) bundle() []byte { return bundle(s.entries) }

// chart is one patient's records in the making.
type chart struct {
	dice
	*site
	id      string
	number  int // from 0
	people  people
	gender  string
	born    time.Time
	died    time.Time // zero: alive
	self    reference
	zone    *time.Location
	doctor  reference // who sees the patient most
	visits  []visit
	entries []any
}

// visit is an Encounter, as others refer to it.
type visit struct {
	reference
	at     time.Time
	doctor reference
	reason *illness
}

func newChart(s *site, seed uint64, number int) *chart {
	c := &chart{dice: newDice(seed, uint64(number)), site: s, number: number}
	c.id = c.dice.id()
	c.people = pick(c.dice, peoples)
	c.gender = pick(c.dice, []string{"female", "male", "female", "male", "female", "male", "other"})
	c.zone = time.FixedZone("", -3600*c.between(4, 8))
	c.born = generatedAt().AddDate(0, 0, -c.between(20, 94*365))
	if number == 0 { // somebody who signs in
		c.born = generatedAt().AddDate(-43, -2, -11)
	}
	if c.age(generatedAt()) > 60 && c.chance(18) && number != 0 {
		c.died = generatedAt().AddDate(0, 0, -c.between(10, 700))
	}
	c.doctor = pick(c.dice, s.doctors)
	if c.rivera() {
		c.doctor = s.rivera
	}
	c.patient()
	c.coverage()
	ill := c.illnesses()
	c.encounters(ill)
	c.careTeam()
	c.clinical(ill)
	return c
}

// rivera and okafor tell whether the persona has a treatment relationship with the patient.
func (c *chart) rivera() bool { return c.number%2 == 0 }
func (c *chart) okafor() bool { return c.number%4 == 0 }

func (c *chart) age(at time.Time) int {
	years := at.Year() - c.born.Year()
	if at.YearDay() < c.born.YearDay() {
		years--
	}
	return max(years, 0)
}

// end is the last day that something can have been recorded on.
func (c *chart) end() time.Time {
	if !c.died.IsZero() {
		return c.died
	}
	return generatedAt()
}

func (c *chart) bundle() []byte { return bundle(c.entries) }

// add appends a record and returns a reference to it.
func (c *chart) add(kind, display string, elements object) reference {
	r := reference{kind, c.dice.id(), display}
	c.entries = append(c.entries, entry(kind, r.id, elements))
	return r
}

func (c *chart) stamp(t time.Time) string { return t.In(c.zone).Format(time.RFC3339) }
func day(t time.Time) string              { return t.Format(time.DateOnly) }

// A record's place in a transaction: PUT under the id that it has.
func entry(kind, id string, elements object) object {
	profile := "http://hl7.org/fhir/us/core/StructureDefinition/us-core-" + strings.ToLower(kind)
	meta := object{"tag", list{object{"system", "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code", "HTEST", "display", "test health data"}}}
	switch kind { // the other profiles depend on what the record says
	case "Patient", "Practitioner", "Organization", "Location", "Encounter", "CareTeam", "Coverage", "AllergyIntolerance",
		"MedicationRequest", "Immunization", "Procedure", "DocumentReference", "RelatedPerson":
		meta = append(object{"profile", list{profile}}, meta...)
	}
	resource := append(object{"resourceType", kind, "id", id, "meta", meta}, elements...)
	return object{
		"fullUrl", "urn:uuid:" + id,
		"resource", resource,
		"request", object{"method", "PUT", "url", kind + "/" + id},
	}
}

func bundle(entries []any) []byte {
	return appendJSON(nil, object{"resourceType", "Bundle", "type", "transaction", "entry", list(entries)})
}

// document is a base64 note.
func document(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
