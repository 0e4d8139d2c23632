//go:build desktop

package main

// windowHost is the host of the pages in the window: WebView2 has no schemes of its own, so it is http://wails.localhost/.
const windowHost = "wails.localhost"
