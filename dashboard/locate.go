package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// defaultData is where chartkeep demo keeps its state when it is not told otherwise.
const defaultData = ".chartkeep"

// locate returns the origin of the API, without a trailing slash: as told, or as a running demo wrote it down.
func locate(server, data string) (string, error) {
	if server == "" {
		if data == "" {
			data = defaultData
		}
		file := filepath.Join(data, "demo.json")
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: there is no %s; start chartkeep demo, or name the API with --server", errUsage, file)
		}
		if err != nil {
			return "", fmt.Errorf("finding the demo: %w", err)
		}
		var demo struct {
			API string `json:"api"`
		}
		if err := json.Unmarshal(text, &demo); err != nil {
			return "", fmt.Errorf("finding the demo: reading %s: %w", file, err)
		}
		server = strings.TrimSuffix(demo.API, "/v1")
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%w: %q is not the origin of an API, like https://chartkeep.example.org", errUsage, server)
	}
	if !protected(u) {
		return "", fmt.Errorf("%w: %s: tokens go over https, or to this machine", errUsage, server)
	}
	return u.Scheme + "://" + u.Host, nil
}

// protected reports whether a secret may be sent to a URL: with TLS, or without leaving the machine.
func protected(u *url.URL) bool {
	return u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname())
}

// loopback reports whether a host is this machine. Only addresses are: a name is what some resolver says it is, except for
// localhost (RFC 6761 section 6.3).
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
