package audit

import "fmt"

// AccessFacts are the Detail of an event about a record: what access control found, as far as Decision does not say it. They tell an
// officer later on what the decision was made from.
type AccessFacts struct {
	Related string // where the treatment relationship that let the caller in came from: "Encounter", "CareTeam", "grant"; "" when none was needed
	Segment string // sensitive segment that the record is in: "part2", "psychotherapy"; "" for none
}

const accessFactsVersion = 1

// Encode returns the Detail.
func (f AccessFacts) Encode() []byte {
	b := append(make([]byte, 0, 3+len(f.Related)+len(f.Segment)), accessFactsVersion)
	return appendText(appendText(b, f.Related), f.Segment)
}

// DecodeAccessFacts is the inverse of Encode.
func DecodeAccessFacts(detail []byte) (AccessFacts, error) {
	r := reader{rest: detail}
	if r.byte() != accessFactsVersion {
		return AccessFacts{}, fmt.Errorf("decoding access facts: version: %w", errEncoding)
	}
	f := AccessFacts{r.text(), r.text()}
	if r.bad || len(r.rest) > 0 {
		return AccessFacts{}, fmt.Errorf("decoding access facts: %w", errEncoding)
	}
	return f, nil
}
