//go:build race

package auth

// raceEnabled: the race detector allocates by itself and makes sync.Pool forget.
const raceEnabled = true
