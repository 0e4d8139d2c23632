//go:build !race

package audit

const RaceDetector = false
