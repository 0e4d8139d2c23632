package kmstest

import (
	"context"
	"crypto"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"hash/crc32"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// GCP is Google Cloud KMS over gRPC. NewGCP points the environment at a service account of it.
type GCP struct {
	kmspb.UnimplementedKeyManagementServiceServer
	Keys
	URI, Other string // of its two keys
	Endpoint   string // HOST:PORT
	CAFile     string
	account    *rsa.PublicKey
}

// NewGCP starts a Google Cloud KMS that ends with the test, and sets the variable by which Google's clients find credentials.
func NewGCP(t testing.TB) *GCP {
	t.Helper()
	const ring = "projects/p/locations/us-east1/keyRings/r/cryptoKeys/"
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	g := &GCP{URI: "gcp-kms://" + ring + "app", Other: "gcp-kms://" + ring + "other", account: &private.PublicKey}
	g.Make(ring + "app")
	g.Make(ring + "other")
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	file, err := json.Marshal(map[string]string{ //nolint:gosec // of nothing but this double
		"type": "service_account", "project_id": "p", "private_key_id": "1", "client_email": "chartkeep@p.iam.gserviceaccount.com", "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": "https://127.0.0.1:1/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", secretFile(t, "account.json", file))
	var cert tls.Certificate
	cert, g.CAFile = Certificate(t, net.IPv4(127, 0, 0, 1))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})))
	kmspb.RegisterKeyManagementServiceServer(server, g)
	g.Endpoint = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-served })
	return g
}

// begin looks at what every call has: a signed token of the service account, the key in the routing header.
func (g *GCP) begin(ctx context.Context, name string) error {
	switch g.next(ctx.Done()) {
	case Away:
		return status.Error(codes.Unavailable, "the service is currently unavailable")
	case Broken:
		return status.Error(codes.Internal, "internal error")
	case Throttled:
		return status.Error(codes.ResourceExhausted, "quota exceeded")
	case Denied:
		return status.Error(codes.PermissionDenied, "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource")
	case Expired:
		return status.Error(codes.Unauthenticated, "request had invalid authentication credentials")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if !slices.Contains(md.Get("x-goog-request-params"), "name="+url.QueryEscape(name)) {
		return status.Error(codes.InvalidArgument, "routing header")
	}
	for _, header := range md.Get("authorization") {
		if token, ok := strings.CutPrefix(header, "Bearer "); ok && g.signed(token) {
			return nil
		}
	}
	return status.Error(codes.Unauthenticated, "request had invalid authentication credentials")
}

// signed verifies a self-signed JWT (AIP-4111): RS256, of the service account, not expired, for this API.
func (g *GCP) signed(token string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err != nil || rsa.VerifyPKCS1v15(g.account, crypto.SHA256, digest[:], signature) != nil {
		return false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Issuer   string `json:"iss"`
		Audience string `json:"aud"`
		Scope    string `json:"scope"`
		Expires  int64  `json:"exp"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return false
	}
	forThis := claims.Audience == "https://cloudkms.googleapis.com/" || strings.Contains(claims.Scope, "https://www.googleapis.com/auth/cloud")
	return claims.Issuer == "chartkeep@p.iam.gserviceaccount.com" && forThis && time.Now().Before(time.Unix(claims.Expires, 0))
}

func sum(b []byte) int64 { return int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))) }

// key begins a call on a key, and returns it when it may be used.
func (g *GCP) key(ctx context.Context, name string) (cipher.AEAD, error) {
	if err := g.begin(ctx, name); err != nil {
		return nil, err
	}
	aead, state := g.find(name)
	switch {
	case aead == nil:
		return nil, status.Error(codes.NotFound, "CryptoKey not found")
	case state != Enabled:
		return nil, status.Error(codes.FailedPrecondition, "cryptoKeyVersions/1 is not enabled, current state is: DISABLED or DESTROY_SCHEDULED")
	}
	return aead, nil
}

// Encrypt implements kmspb.KeyManagementServiceServer.
func (g *GCP) Encrypt(ctx context.Context, req *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	aead, err := g.key(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if req.GetPlaintextCrc32C().GetValue() != sum(req.GetPlaintext()) ||
		req.GetAdditionalAuthenticatedDataCrc32C().GetValue() != sum(req.GetAdditionalAuthenticatedData()) {
		return nil, status.Error(codes.InvalidArgument, "the checksum does not match")
	}
	sealed := aead.Seal(nil, nil, req.GetPlaintext(), req.GetAdditionalAuthenticatedData())
	return &kmspb.EncryptResponse{
		Name: req.GetName() + "/cryptoKeyVersions/1", Ciphertext: sealed, CiphertextCrc32C: wrapperspb.Int64(sum(sealed)),
		VerifiedPlaintextCrc32C: true, VerifiedAdditionalAuthenticatedDataCrc32C: true,
	}, nil
}

// Decrypt implements kmspb.KeyManagementServiceServer.
func (g *GCP) Decrypt(ctx context.Context, req *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	aead, err := g.key(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if req.GetCiphertextCrc32C().GetValue() != sum(req.GetCiphertext()) ||
		req.GetAdditionalAuthenticatedDataCrc32C().GetValue() != sum(req.GetAdditionalAuthenticatedData()) {
		return nil, status.Error(codes.InvalidArgument, "the checksum does not match")
	}
	plain, err := aead.Open(nil, nil, req.GetCiphertext(), req.GetAdditionalAuthenticatedData())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
	}
	return &kmspb.DecryptResponse{Plaintext: plain, PlaintextCrc32C: wrapperspb.Int64(sum(plain))}, nil
}
