//go:build race

package audit

// RaceDetector: the race detector makes hashing ten times as slow, and speed cannot be told.
const RaceDetector = true
