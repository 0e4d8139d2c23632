package kmstest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// AWS is AWS KMS in us-east-1. NewAWS points the environment at it.
type AWS struct {
	Keys
	URI, Other string // of its two keys
	access     string
	secret     string
	context    atomic.Value // of the last request
}

// Context is the encryption context of the last request.
func (a *AWS) Context() map[string]string { return a.context.Load().(map[string]string) }

// NewAWS starts an AWS KMS that ends with the test, and sets the variables by which AWS's clients find it and their credentials.
func NewAWS(t testing.TB) *AWS {
	t.Helper()
	const arn = "arn:aws:kms:us-east-1:111122223333:key/"
	a := &AWS{URI: "aws-kms://" + arn + "app", Other: "aws-kms://" + arn + "other", access: "AKIA" + rand.Text()[:16], secret: rand.Text()}
	a.Make(arn + "app")
	a.Make(arn + "other")
	cert, ca := Certificate(t, net.IPv4(127, 0, 0, 1))
	server := httptest.NewUnstartedServer(a)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	for name, value := range map[string]string{ //nolint:gosec // of nothing but this double
		"AWS_ENDPOINT_URL_KMS": server.URL, "AWS_CA_BUNDLE": ca, "AWS_ACCESS_KEY_ID": a.access, "AWS_SECRET_ACCESS_KEY": a.secret,
		"AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	return a
}

// ServeHTTP implements http.Handler: Encrypt and Decrypt of the AWS KMS API, JSON 1.1.
func (a *AWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	say := func(status int, code string) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": "said by kmstest"})
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	switch a.next(r.Context().Done()) {
	case Away:
		panic(http.ErrAbortHandler)
	case Broken:
		say(http.StatusInternalServerError, "KMSInternalException")
		return
	case Throttled:
		say(http.StatusBadRequest, "ThrottlingException")
		return
	case Denied:
		say(http.StatusBadRequest, "AccessDeniedException")
		return
	case Expired:
		say(http.StatusBadRequest, "ExpiredTokenException")
		return
	}
	if err := a.verify(r, body); err != nil {
		say(http.StatusBadRequest, "InvalidSignatureException")
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		say(http.StatusNotFound, "UnknownOperationException")
		return
	}
	var req struct {
		KeyID             string `json:"KeyId"`
		Plaintext         []byte
		CiphertextBlob    []byte
		EncryptionContext map[string]string
	}
	if err := json.Unmarshal(body, &req); err != nil {
		say(http.StatusBadRequest, "SerializationException")
		return
	}
	a.context.Store(req.EncryptionContext)
	aead, state := a.find(req.KeyID)
	switch {
	case aead == nil:
		say(http.StatusBadRequest, "NotFoundException")
		return
	case state == Disabled:
		say(http.StatusBadRequest, "DisabledException")
		return
	case state == Deleting:
		say(http.StatusBadRequest, "KMSInvalidStateException")
		return
	}
	// Maps are written with sorted keys: one text for one context.
	context, err := json.Marshal(req.EncryptionContext)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	answer := map[string]any{"KeyId": req.KeyID}
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.Encrypt":
		answer["CiphertextBlob"], answer["EncryptionAlgorithm"] = append([]byte(req.KeyID+"\x00"), aead.Seal(nil, nil, req.Plaintext, context)...), "SYMMETRIC_DEFAULT"
	case "TrentService.Decrypt":
		// The blob names its key; Decrypt with another KeyId is refused before anything is opened.
		name, sealed, ok := bytes.Cut(req.CiphertextBlob, []byte{0})
		if !ok {
			say(http.StatusBadRequest, "InvalidCiphertextException")
			return
		}
		if string(name) != req.KeyID {
			say(http.StatusBadRequest, "IncorrectKeyException")
			return
		}
		plain, err := aead.Open(nil, nil, sealed, context)
		if err != nil {
			say(http.StatusBadRequest, "InvalidCiphertextException")
			return
		}
		answer["Plaintext"], answer["EncryptionAlgorithm"] = plain, "SYMMETRIC_DEFAULT"
	default:
		say(http.StatusBadRequest, "UnknownOperationException")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(answer)
}

// verify checks a request's Signature Version 4 (AWS General Reference, "Signing AWS API requests").
func (a *AWS) verify(r *http.Request, body []byte) error {
	fields, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return errors.New("not Signature Version 4")
	}
	part := map[string]string{}
	for f := range strings.SplitSeq(fields, ", ") {
		name, value, _ := strings.Cut(f, "=")
		part[name] = value
	}
	access, scope, _ := strings.Cut(part["Credential"], "/")
	date := r.Header.Get("X-Amz-Date")
	signed, err := time.Parse("20060102T150405Z", date)
	if err != nil || time.Since(signed).Abs() > 5*time.Minute || access != a.access || scope != date[:8]+"/us-east-1/kms/aws4_request" {
		return errors.New("credential, scope or date")
	}
	names := strings.Split(part["SignedHeaders"], ";")
	for _, must := range []string{"host", "x-amz-date", "x-amz-target"} {
		if !slices.Contains(names, must) {
			return errors.New("a header is not signed")
		}
	}
	canonical := r.Method + "\n" + r.URL.EscapedPath() + "\n" + r.URL.RawQuery + "\n"
	for _, name := range names {
		value := r.Header.Get(name)
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = r.Header.Get("Content-Length")
		}
		canonical += name + ":" + strings.Join(strings.Fields(value), " ") + "\n"
	}
	digest := sha256.Sum256(body)
	canonical += "\n" + part["SignedHeaders"] + "\n" + hex.EncodeToString(digest[:])
	digest = sha256.Sum256([]byte(canonical))
	toSign := "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hex.EncodeToString(digest[:])
	key := []byte("AWS4" + a.secret)
	for s := range strings.SplitSeq(scope, "/") {
		key = mac(key, s)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(mac(key, toSign))), []byte(part["Signature"])) {
		return errors.New("signature")
	}
	return nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
