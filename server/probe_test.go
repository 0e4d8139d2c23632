package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chartkeep/chartkeep/server/rest"
)

var updateRoutes = flag.Bool("update-routes", false, "write testdata/routes.md")

// The routes with what each demands are a file that a reviewer reads: a route that appears, or demands something else, shows in its
// difference.
func TestRoutes(t *testing.T) {
	x := openTarget(t, rest.Limits{}, nil)
	var b strings.Builder
	b.WriteString("# Every route and what it demands\n\nWritten by `go test ./server -run TestRoutes -update-routes`. HEAD is GET without the body; OPTIONS is open and tells the methods.\n" +
		"open: no token. records: a token, and the decision on the record. Anything else is a capability that a role of the caller must have.\n\n| method | path | interaction | demands |\n|---|---|---|---|\n")
	for _, r := range x.api.server.Routes() {
		if r.Guard == "" {
			t.Errorf("%s %s demands nothing", r.Method, r.Pattern)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.Method, r.Pattern, r.Interaction, r.Guard)
	}
	golden := filepath.Join("testdata", "routes.md")
	if *updateRoutes {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || string(want) != b.String() {
		t.Errorf("the routes are not those of %s (%v); look at the difference, then write it with -update-routes", golden, err)
	}
	x.probe(t)
}

// caller is somebody who asks for a route, and how the route must answer.
type caller struct {
	name string
	auth []string
}

// probe asks every route (case 60): in its own spelling and in others, with its own method and with others, by callers who may not.
func (x *target) probe(t *testing.T) {
	f := x.forger
	token := func(audience, role string, over map[string]any) []string {
		return []string{"Bearer " + f.token(f.claims(audience, role, over))}
	}
	for _, r := range x.api.server.Routes() {
		audience := x.base
		if !strings.HasPrefix(r.Pattern, "/fhir/") {
			audience = x.officers
		}
		callers := []caller{
			{"no token", nil},
			{"garbage", []string{"Bearer " + strings.Repeat("A", 64)}},
			{"no scope, no capability", token(audience, "researcher", map[string]any{"scope": "openid", "roles": []string{"nobody"}})},
			{"no role", token(audience, "nobody", nil)},
			{"another patient", token(audience, "patient", map[string]any{
				"scope": "patient/*.cruds", "patient": "another", "fhirUser": "Patient/another"})},
		}
		path := x.path(r.Pattern)
		for i, c := range callers {
			a := attack{method: r.Method, path: path, auth: c.auth, lines: []string{"Content-Type: application/fhir+json"}}
			if r.Method == "POST" || r.Method == "PUT" {
				a.body = "{}"
			}
			res := x.send(t, x.bytes(a, "probe"))
			canonical := res.StatusCode
			where := fmt.Sprintf("%s %s by %s", r.Method, r.Pattern, c.name)
			if own := c.name == "another patient" && r.Interaction == "search-type" && res.StatusCode == 200; own {
				if strings.Contains(string(res.body), x.patients[0]) || strings.Contains(string(res.body), `"entry"`) {
					t.Errorf("%s: %s", where, res.body)
				}
			} else if !slices.Contains(x.refusals(r, i), canonical) {
				t.Errorf("%s: status %d, want one of %v", where, canonical, x.refusals(r, i))
			}
			if r.Guard == "open" || r.Guard == "logout-token" {
				continue
			}
			if i == 0 || i == 3 {
				x.otherMethods(t, r, a, where)
				x.otherSpellings(t, a, canonical, where)
			}
		}
	}
}

// refusals are the answers that a route may give to a caller of probe, by his place. Whether the content or the caller is refused first is a
// matter of the record; the content is nonsense anyhow.
func (x *target) refusals(r rest.Route, caller int) []int {
	switch {
	case r.Guard == "open":
		return []int{200}
	case r.Guard == "logout-token": // it is the content
		return []int{400, 415}
	case caller == 4 && strings.HasSuffix(r.Guard, ":own"): // what is the caller's own, of which there is nothing
		return []int{200, 403, 404}
	case caller < 2:
		return []int{401}
	case r.Guard != "records":
		return []int{403}
	default:
		return []int{400, 403, 404, 405, 415, 422}
	}
}

// path is a path of a pattern.
func (x *target) path(pattern string) string {
	return regexp.MustCompile(`:\w+`).ReplaceAllStringFunc(pattern, func(p string) string {
		switch p {
		case ":type":
			return "Patient"
		case ":vid":
			return "1"
		default:
			return x.patients[0]
		}
	})
}

// otherMethods asks for the route's path with every method, and with its own in the headers that some frameworks believe.
func (x *target) otherMethods(t *testing.T, r rest.Route, a attack, where string) {
	t.Helper()
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "FROB"} {
		for _, override := range []string{"", "X-HTTP-Method-Override: ", "X-HTTP-Method: ", "X-Method-Override: "} {
			b := a
			if b.method = method; override != "" {
				if method == r.Method {
					continue
				}
				b.lines = append(slices.Clone(a.lines), override+r.Method)
			}
			if b.body = ""; method == "POST" || method == "PUT" || method == "PATCH" {
				b.body = "{}"
				if method == "PATCH" {
					b.lines = append(slices.Clone(b.lines), "Content-Length: 2")
				}
			}
			res := x.send(t, x.bytes(b, "probe"))
			switch {
			case res.StatusCode == 204 && method == "OPTIONS" && len(res.body) == 0:
			case res.StatusCode >= 400 && res.StatusCode < 500, res.StatusCode == 501:
			default:
				t.Errorf("%s, asked with %s %s: %s\n%s", where, method, override, res.Status, res.body)
			}
			if strings.Contains(string(res.body), "TRACE ") {
				t.Errorf("%s: TRACE echoes", where)
			}
		}
	}
}

// otherSpellings asks for the route's path as others might spell it: the answer is the canonical one's, or there is no such path.
func (x *target) otherSpellings(t *testing.T, a attack, canonical int, where string) {
	t.Helper()
	path := a.path
	last := strings.LastIndexByte(path, '/')
	for _, spelt := range []string{
		"/" + path, path[:last] + "/" + path[last:], path[:last] + "%2f" + path[last+1:], path[:last] + "%2F" + path[last+1:], path[:last] + `\` + path[last+1:],
		path + "/", path + ".", path + "/.", path + "/..", path + "%2e", path + "%00", path + "%20", path + ";x=y", path + "/..;/", path + "?", path + "#", path + "//",
		"/healthz/.." + path, "/healthz/..;" + path, "/healthz/%2e%2e" + path, "/./" + path[1:], "/%2e" + path,
		strings.ToUpper(path), strings.ToLower(path), "/%" + fmt.Sprintf("%02x", path[1]) + path[2:], strings.Replace(path, "/", "/%252f", 1),
		"http://" + x.addr + path, "http://other.test" + path, "http://" + x.addr + "/" + path, "*",
	} {
		b := a
		b.path = spelt
		res := x.send(t, x.bytes(b, "probe"))
		if res.StatusCode != canonical && !slices.Contains([]int{400, 401, 403, 404, 405}, res.StatusCode) {
			t.Errorf("%s, spelt %s: status %d, canonical %d\n%s", where, spelt, res.StatusCode, canonical, res.body)
		}
	}
}
