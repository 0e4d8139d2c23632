//go:build !linux

package main

// forbidCoreDumps is for Linux. Elsewhere it is the operator's: ulimit -c 0, and no crash reports.
func forbidCoreDumps() error { return nil }
