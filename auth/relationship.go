package auth

import "time"

// Relationship is a treatment relationship as it is stored: stated by a record, or granted.
type Relationship struct {
	Practitioner, Patient string
	Source                string    // "Encounter", "CareTeam", "EpisodeOfCare", or "grant"
	Record                string    // id of the record that states it, "" of a grant
	From, Until           time.Time // inclusive, exclusive; zero: open, or begun
	Ends                  time.Time // Until with the tail after it
	Holds                 bool      // now
	Reason, By            string    // of a grant
	At                    time.Time // when it was granted
}
