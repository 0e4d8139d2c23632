package compliance

import (
	"errors"
	"time"
)

// Alert is something that officers have to look at. One that happens again before it was closed is the same alert: Times counts.
type Alert struct {
	ID       string // UUID
	Kind     AlertKind
	Severity Severity
	About    string // what it is about: a reference such as "EmergencyAccess/ID" or a subject, never content; at most 300 bytes
	Event    string // id of the newest event of the trail that tells of it; "" when there is none
	State    AlertState
	Times    int64
	FirstAt  time.Time
	LastAt   time.Time
	SeenBy   string
	SeenAt   time.Time
	ClosedBy string
	ClosedAt time.Time
}

// AlertKind is what happened: small letters and hyphens.
type AlertKind string

// Kinds of alerts.
const (
	AlertEmergency        AlertKind = "emergency-access"         // somebody opened a chart in an emergency
	AlertEmergencyLimit   AlertKind = "emergency-access-limit"   // somebody asked for more than the shift's limit: a second person decides
	AlertReviewOverdue    AlertKind = "emergency-review-overdue" // nobody has looked into emergency access in time
	AlertInappropriateUse AlertKind = "emergency-access-misused" // a review found emergency access inappropriate
	AlertPolicyRefused    AlertKind = "policy-refused"           // the newest policy does not compile and is not in force
	AlertClockStep        AlertKind = "clock-step"               // an instance's wall clock stepped
	AlertIssuerKeys       AlertKind = "issuer-keys"              // an issuer publishes what no issuer should: secret keys, or two under one name
	AlertConflictingRoles AlertKind = "conflicting-roles"        // somebody holds roles that nobody may hold at once
	AlertIntegrity        AlertKind = "integrity"                // the trail or the records are not what was written
)

// Severity says how soon somebody should look.
type Severity string

// Severities.
const (
	Info     Severity = "info"
	Warning  Severity = "warning"
	High     Severity = "high"     // today
	Critical Severity = "critical" // now
)

// AlertState is whether somebody has looked.
type AlertState string

// States of an alert.
const (
	AlertNew    AlertState = "new"
	AlertSeen   AlertState = "seen"
	AlertClosed AlertState = "closed"
)

// AlertQuery selects alerts, the last raised first.
type AlertQuery struct {
	State  AlertState // "" for all
	Before string     // id of the alert after which to go on; "" from the first
	Limit  int
}

// ErrNoAlert says that there is no alert with the id, or that it is closed.
var ErrNoAlert = errors.New("compliance: there is no such open alert")
