//go:build desktop && !windows

package main

// windowHost is the host of the pages in the window: wails://wails/.
const windowHost = "wails"
