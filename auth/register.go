package auth

import (
	"errors"
	"time"
)

// EmergencyState is how far emergency access has come.
type EmergencyState string

const (
	EmergencyRequested EmergencyState = "requested" // waits for a second person: the limit of the shift is used up
	EmergencyGranted   EmergencyState = "granted"
	EmergencyRefused   EmergencyState = "refused" // by the second person
	EmergencyEnded     EmergencyState = "ended"   // by whoever had it
	EmergencyRevoked   EmergencyState = "revoked" // by an officer
	EmergencyExpired   EmergencyState = "expired" // its time is over, or nobody decided in time
)

// EmergencyAccess is a line of the register of emergency access (45 CFR 164.312(a)(2)(ii)): who asked for a chart that was not his to
// read, why, what became of it, and who has looked into it since (164.308(a)(1)(ii)(D)).
type EmergencyAccess struct {
	ID            string // UUID
	Subject       string // Principal.Subject
	Session       string // Principal.Session
	Client        string
	Patient       string // id as it was asked for; nobody has said that there is such a patient
	Reason        string // one of EmergencyReasons
	Justification []byte // in the user's words, sealed: they may describe the patient
	Event         string // id of the audit event that was durable before
	State         EmergencyState
	RequestedAt   time.Time
	Duration      time.Duration // from when it is granted
	Until         time.Time     // zero of one that was not granted
	DecidedBy     string        // the second person; "" when none was needed
	DecidedAt     time.Time
	EndedBy       string
	EndedAt       time.Time
	ReviewBy      time.Time // when it must have been looked into; zero when it has been, or when nothing was granted
	Reviews       []EmergencyReview
}

// EmergencyReview is what somebody found who looked into it.
type EmergencyReview struct {
	By      string
	At      time.Time
	Outcome string // one of EmergencyOutcomes
	Remark  []byte // sealed; nil when nothing was said
}

// EmergencyReasons are the codes of reasons for emergency access.
func EmergencyReasons() []string {
	return []string{"life-threatening", "urgent-treatment", "transfer", "cover", "disaster", "system-failure", "other"}
}

// Outcomes of a review. One that needs follow-up stays due, by a new deadline.
const (
	ReviewAppropriate   = "appropriate"
	ReviewInappropriate = "inappropriate"
	ReviewFollowUp      = "needs-follow-up"
)

// EmergencyOutcomes are the outcomes of a review.
func EmergencyOutcomes() []string {
	return []string{ReviewAppropriate, ReviewInappropriate, ReviewFollowUp}
}

// EmergencyLimits are a deployment's limits. Zero fields take the default.
type EmergencyLimits struct {
	Duration time.Duration // of a grant, at most MaxEmergency; 30 minutes
	Shift    time.Duration // in which PerShift counts; 8 hours
	PerShift int           // grants without a second person; 3
	Review   time.Duration // until a grant must have been looked into; 72 hours
}

// MaxEmergency is the longest emergency access.
const MaxEmergency = 4 * time.Hour

// WithDefaults fills in what is not set.
func (l EmergencyLimits) WithDefaults() EmergencyLimits {
	for limit, otherwise := range map[*time.Duration]time.Duration{&l.Duration: 30 * time.Minute, &l.Shift: 8 * time.Hour, &l.Review: 72 * time.Hour} {
		if *limit <= 0 {
			*limit = otherwise
		}
	}
	if l.PerShift <= 0 {
		l.PerShift = 3
	}
	l.Duration = min(l.Duration, MaxEmergency)
	return l
}

// EmergencyQuery selects lines of the register, newest first.
type EmergencyQuery struct {
	Subject, Patient string // "" for all
	Review           string // "due", "overdue", "done", or "" for all
	Before           string // id of the line after which to go on; "" from the newest
	Limit            int
}

// Errors of the register.
var (
	ErrNoEmergency      = errors.New("auth: there is no such emergency access")
	ErrEmergencyDecided = errors.New("auth: the emergency access is past that")
	ErrEmergencyPerson  = errors.New("auth: another person has to do that")
)
