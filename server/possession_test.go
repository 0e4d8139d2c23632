package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
)

// TestBoundTokenOnDemo plays what token --help says: headers of one request, good once, for whoever holds the key.
func TestBoundTokenOnDemo(t *testing.T) {
	d := demoShared(t)
	key, target := filepath.Join(t.TempDir(), "key.json"), d.FHIR+"/Patient?_count=1"
	mint := func(args ...string) (headers []string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(context.Background(), append([]string{"token", "dr-rivera", "--data", d.dir}, args...), terminal{&out, &errs}); code != 0 {
			t.Fatalf("exit code %d: %s", code, &errs)
		}
		return strings.Split(strings.TrimSpace(out.String()), "\n")
	}
	headers := mint("--dpop", key, "--call", "GET "+target)
	if len(headers) != 2 {
		t.Fatalf("%d lines", len(headers))
	}
	if a := d.do(t, "GET", target, "", "", headers...); a.StatusCode != 200 {
		t.Fatalf("%s %s", a.Status, a.body)
	}
	again := mint("--dpop", key, "--call", "GET "+target)
	for name, c := range map[string]struct {
		headers   []string
		challenge string
	}{
		"a second time":            {headers, "invalid_dpop_proof"},
		"as a bearer":              {[]string{"Authorization: Bearer " + strings.TrimPrefix(headers[0], "Authorization: DPoP ")}, "invalid_token"},
		"with another token's":     {[]string{again[0], headers[1]}, "invalid_dpop_proof"},
		"with another key's":       {[]string{again[0], mint("--dpop", key+"2", "--call", "GET "+target)[1]}, "invalid_token"},
		"for another method":       {mint("--dpop", key, "--call", "POST "+target), "invalid_dpop_proof"},
		"with a nonce of nobody's": {mint("--dpop", key, "--call", "GET "+target, "--nonce", "x"), "use_dpop_nonce"},
	} {
		a := d.do(t, "GET", target, "", "", c.headers...)
		if got := a.Header.Get("WWW-Authenticate"); a.StatusCode != 401 || !strings.HasPrefix(got, "DPoP ") || !strings.Contains(got, `error="`+c.challenge+`"`) {
			t.Errorf("%s: %s %s", name, a.Status, got)
		}
	}
	// The nonce that the refusal brought is good.
	a := d.do(t, "GET", target, "", "", mint("--dpop", key, "--call", "GET "+target, "--nonce", "x")...)
	if a = d.do(t, "GET", target, "", "", mint("--dpop", key, "--call", "GET "+target, "--nonce", a.Header.Get("DPoP-Nonce"))...); a.StatusCode != 200 {
		t.Errorf("with the server's nonce: %s %s", a.Status, a.Header.Get("WWW-Authenticate"))
	}
}

// TestStepUpOnDemo holds that the seeded policy asks administrators for a sign-in of the last quarter of an hour.
func TestStepUpOnDemo(t *testing.T) {
	d := demoShared(t)
	as := func(age string) string {
		var out, errs bytes.Buffer
		if code := run(context.Background(), []string{"token", "admin-root", "--data", d.dir, "--auth-age", age}, terminal{&out, &errs}); code != 0 {
			t.Fatalf("exit code %d: %s", code, &errs)
		}
		return strings.TrimSpace(out.String())
	}
	const change = `{"practitioner":"nobody","patient":"nobody","reason":""}` // refused for its content, once the sign-in is good enough
	a := d.do(t, "POST", "/v1/relationships", as("16m"), change)
	if got := a.Header.Get("WWW-Authenticate"); a.StatusCode != 401 || !strings.HasSuffix(got, `error="insufficient_user_authentication", max_age="900"`) {
		t.Errorf("16 minutes after sign-in: %s %s", a.Status, got)
	}
	if a := d.do(t, "POST", "/v1/relationships", as("14m"), change); a.StatusCode == 401 || a.StatusCode == 403 || a.StatusCode < 400 {
		t.Errorf("14 minutes after sign-in: %s %s", a.Status, a.body)
	}
	if a := d.do(t, "GET", "/v1/roles", as("16m"), ""); a.StatusCode != 200 {
		t.Errorf("reading the policy: %s", a.Status)
	}
}
