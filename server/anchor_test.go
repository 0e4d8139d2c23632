package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// bucketDouble is an object-locked bucket: it takes an object once and gives it back.
type bucketDouble struct {
	t       *testing.T
	mu      sync.Mutex
	objects map[string][]byte
	status  int // instead of taking objects
}

func (b *bucketDouble) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKID/") || r.Header.Get("X-Amz-Date") == "" {
		b.t.Errorf("%s %s is not signed: %q", r.Method, r.URL.Path, r.Header.Get("Authorization"))
	}
	object, there := b.objects[r.URL.Path]
	switch r.Method {
	case http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			b.t.Error(err)
		}
		until, err := time.Parse(time.RFC3339, r.Header.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		if err != nil || until.Before(time.Now().AddDate(6, 0, 0)) {
			b.t.Errorf("locked until %v (%v)", until, err)
		}
		if m := r.Header.Get("X-Amz-Object-Lock-Mode"); m != "COMPLIANCE" {
			b.t.Errorf("locked in mode %q", m)
		}
		if r.Header.Get("If-None-Match") != "*" {
			b.t.Errorf("If-None-Match: %q", r.Header.Get("If-None-Match"))
		}
		if r.Header.Get("Content-Md5") == "" && r.Header.Get("X-Amz-Checksum-Crc32c") == "" && r.Header.Get("X-Amz-Trailer") == "" {
			b.t.Error("no checksum")
		}
		signed := r.Header.Get("Authorization")
		for _, name := range []string{"x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"} {
			if !strings.Contains(signed, name) {
				b.t.Errorf("%s is not signed", name)
			}
		}
		if b.status != 0 {
			w.WriteHeader(b.status)
			return
		}
		if there {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		if strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") { // chunks, each behind a line of its size
			_, body, _ = bytes.Cut(body, []byte("\r\n"))
			body, _, _ = bytes.Cut(body, []byte("\r\n"))
		}
		b.objects[r.URL.Path] = body
		w.Header().Set("ETag", `"x"`)
	case http.MethodGet, http.MethodHead:
		if !there {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		http.ServeContent(w, r, "", time.Now(), bytes.NewReader(object))
	default:
		b.t.Errorf("%s %s", r.Method, r.URL.Path)
	}
}

func TestAnchorInBucket(t *testing.T) {
	double := &bucketDouble{t: t, objects: map[string][]byte{}}
	server := httptest.NewServer(double)
	defer server.Close()
	secret := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(secret, []byte("AKID\nthe secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := openAnchor("s3://bucket/trail/?endpoint="+server.URL, secret)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("hospital.example/audit\n5\n")
	for range 2 { // the second finds its own
		if err := a.Put(t.Context(), "0005-aa.checkpoint", data); err != nil {
			t.Fatal(err)
		}
	}
	if got := double.objects["/bucket/trail/0005-aa.checkpoint"]; !bytes.Equal(got, data) {
		t.Errorf("stored %q of %v", got, double.objects)
	}
	if err := a.Put(t.Context(), "0005-aa.checkpoint", []byte("something else")); err == nil {
		t.Error("other data was put under a name that is taken")
	}
	double.status = http.StatusForbidden
	if err := a.Put(t.Context(), "0006-bb.checkpoint", data); err == nil || strings.Contains(err.Error(), "the secret") {
		t.Errorf("refused: %v", err)
	}
}

func TestAnchorSettings(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(secret, []byte("AKID\nthe secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	one := filepath.Join(t.TempDir(), "one")
	if err := os.WriteFile(one, []byte("AKID\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ value, credentials string }{
		{"s3://bucket", ""}, {"s3://bucket?endpoint=https://s3.example", ""}, {"s3://bucket?endpoint=s3.example", one}, {"s3:///x?endpoint=https://s3.example", one},
		{"s3://bucket?endpoint=https://s3.example&years=5", one}, {"s3://bucket?endpoint=https://s3.example", one}, {"s3://bucket?endpoint=https://s3.example", secret},
	} {
		if _, err := openAnchor(c.value, c.credentials); err == nil {
			t.Errorf("%s with %q: no error", c.value, c.credentials)
		}
	}
}
