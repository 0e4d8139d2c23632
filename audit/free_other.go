//go:build !linux

package audit

// space knows nothing on this system: a full disk shows when a segment cannot be made.
func space(string) (Space, error) { return Space{Free: -1, Files: -1}, nil }
