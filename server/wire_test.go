package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/server/rest"
)

// What a proxy in front may have read otherwise than we do is not read at all: one answer, 400, and the connection is closed, so that
// nothing of what follows is taken for a request.
func testAmbiguous(t *testing.T, lab *laboratory) {
	x := targetOn(t, lab, rest.Limits{}, nil)
	const smuggled = "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: smuggled\r\n\r\n"
	post := func(lines, body string) string {
		return "POST /fhir/R4/Patient HTTP/1.1\r\nHost: x\r\nContent-Type: application/fhir+json\r\n" + lines + "\r\n\r\n" + body + smuggled
	}
	get := func(lines string) string {
		return "GET /healthz HTTP/1.1\r\nHost: x\r\n" + lines + "\r\n\r\n" + smuggled
	}
	for name, text := range map[string]string{
		"two lengths":                      post("Content-Length: 2\r\nContent-Length: 2", "{}"),
		"two lengths that differ":          post("Content-Length: 2\r\nContent-Length: 60", "{}"),
		"a list of lengths":                post("Content-Length: 2, 2", "{}"),
		"a signed length":                  post("Content-Length: +2", "{}"),
		"a negative length":                post("Content-Length: -2", "{}"),
		"a hexadecimal length":             post("Content-Length: 0x2", "{}"),
		"an empty length":                  post("Content-Length: ", "{}"),
		"length and coding":                post("Content-Length: 2\r\nTransfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"),
		"coding and length":                post("Transfer-Encoding: chunked\r\nContent-Length: 2", "2\r\n{}\r\n0\r\n\r\n"),
		"coding twice":                     post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"),
		"coding and identity":              post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "2\r\n{}\r\n0\r\n\r\n"),
		"an unknown coding":                post("Transfer-Encoding: xchunked", "2\r\n{}\r\n0\r\n\r\n"),
		"a list of codings":                post("Transfer-Encoding: gzip, chunked", "2\r\n{}\r\n0\r\n\r\n"),
		"coding with a space":              post("Transfer-Encoding : chunked", "2\r\n{}\r\n0\r\n\r\n"),
		"coding after a vertical tab":      post("Transfer-Encoding: \x0bchunked", "2\r\n{}\r\n0\r\n\r\n"),
		"coding in HTTP/1.0":               strings.Replace(post("Transfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"), "HTTP/1.1", "HTTP/1.0", 1),
		"a folded line":                    get("X-A: b\r\n c: d"),
		"a folded line without a colon":    get("X-A: b\r\n\tc"),
		"a first line that is folded":      "GET /healthz HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n" + smuggled,
		"a bare LF":                        get("X-A: b\nX-C: d"),
		"a bare CR":                        get("X-A: b\rX-C: d"),
		"a CR before the colon":            get("X-A\r: b"),
		"NUL":                              get("X-A: b\x00c"),
		"NUL in a name":                    get("X-A\x00: b"),
		"a line without a colon":           get("nonsense\r\nX-A: b"),
		"an empty name":                    get(": b"),
		"a space before the colon":         get("X-A : b"),
		"a tab before the colon":           get("X-A\t: b"),
		"two hosts":                        get("Host: y"),
		"no host":                          "GET /healthz HTTP/1.1\r\nX-A: b\r\n\r\n" + smuggled,
		"a space in the target":            "GET /healthz /x HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled,
		"a tab in the target":              "GET /health\tz HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled,
		"HTTP/2.0":                         "GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n" + smuggled,
		"HTTP/1.9":                         "GET /healthz HTTP/1.9\r\nHost: x\r\n\r\n" + smuggled,
		"HTTP/0.9":                         "GET /healthz\r\n\r\n" + smuggled,
		"a chunk with a negative size":     post("Transfer-Encoding: chunked", "-2\r\n{}\r\n0\r\n\r\n"),
		"a chunk with an overflowing size": post("Transfer-Encoding: chunked", "fffffffffffffffff2\r\n{}\r\n0\r\n\r\n"),
	} {
		if got := x.wire(t, text); len(got) != 1 || got[0] != http.StatusBadRequest {
			t.Errorf("%s: answers %v, want one 400", name, got)
		}
	}
	// What is unambiguous is served, request after request.
	for name, text := range map[string]string{
		"plain":    get("X-A: b"),
		"HTTP/1.0": "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + smuggled,
		"absolute": "GET http://" + x.addr + "/healthz HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled,
	} {
		if got := x.wire(t, text); len(got) != 2 || got[0] != 200 || got[1] != 200 {
			t.Errorf("%s: answers %v, want 200 twice", name, got)
		}
	}
}

// wire sends bytes over one connection and returns the statuses of all answers.
func (x *target) wire(t *testing.T, text string) (statuses []int) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", x.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	for r := bufio.NewReader(conn); ; {
		conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		statuses = append(statuses, res.StatusCode)
	}
}
