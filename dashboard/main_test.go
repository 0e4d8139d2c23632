package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestProgram(t *testing.T) {
	empty := t.TempDir()
	demo := t.TempDir()
	if err := os.WriteFile(filepath.Join(demo, "demo.json"), []byte(`{"api":"http://127.0.0.1:9/v1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"help":             {[]string{"--help"}, 0, "--web"},
		"unknown flag":     {[]string{"--port", "1"}, 2, "unknown flag"},
		"no demo":          {[]string{"--web", "--data", empty}, 2, "start chartkeep demo"},
		"both":             {[]string{"--web", "--data", demo, "--server", "http://127.0.0.1:9"}, 2, "can't be used together"},
		"not loopback":     {[]string{"--web", "--data", demo, "--addr", "0.0.0.0:0"}, 2, "this machine only"},
		"not an address":   {[]string{"--web", "--data", demo, "--addr", "x"}, 2, "this machine only"},
		"plain http":       {[]string{"--web", "--server", "http://api.example.org"}, 2, "https"},
		"no window in it":  {[]string{"--data", demo}, 2, "-tags desktop"},
		"an argument more": {[]string{"--web", "x"}, 2, "unexpected argument"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut strings.Builder
			if code := run(t.Context(), c.args, &out, &errOut); code != c.code || !strings.Contains(out.String()+errOut.String(), c.says) {
				t.Errorf("code %d, said %q %q", code, out.String(), errOut.String())
			}
		})
	}
}

func TestWebServesUntilItIsStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	said, out := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"--web", "--server", "http://127.0.0.1:9"}, out, io.Discard)
	}()
	line := make([]byte, 200)
	n, err := said.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+/`).FindString(string(line[:n]))
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(address)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("%s: status %d", address, res.StatusCode)
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}
