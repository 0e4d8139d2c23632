package kms

import (
	"context"
	"errors"
	"regexp"

	"github.com/tink-crypto/tink-go-gcpkms/v2/integration/gcpkms"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

const gcpPrefix = "gcp-kms://"

// openGCP uses application default credentials, over gRPC: the REST transport of Tink's client has no deadlines.
func (r *Root) openGCP(cfg Config) error {
	if !regexp.MustCompile(`^gcp-kms://projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$`).MatchString(r.uri) {
		return errors.New("the URI is not gcp-kms://projects/P/locations/L/keyRings/R/cryptoKeys/K")
	}
	var options []option.ClientOption
	if cfg.Endpoint != "" {
		tlsCfg, err := tlsConfig(cfg.CAFile)
		if err != nil {
			return err
		}
		options = append(options, option.WithEndpoint(cfg.Endpoint),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(credentials.NewTLS(tlsCfg))))
	}
	client, err := gcpkms.NewClient(context.Background(), r.uri, gcpkms.WithGoogleAPIClientOptions(options...))
	if err != nil {
		return err
	}
	plain, err := client.GetAEAD(r.uri)
	aead, ok := plain.(tink.AEADWithContext)
	if err != nil || !ok {
		return errors.Join(errors.New("no gRPC client"), err, client.Close())
	}
	r.aead, r.judge, r.close = aead, judgeGCP, client.Close
	return nil
}

// judgeGCP reads gRPC codes as Cloud KMS uses them.
func judgeGCP(err error) verdict {
	s, ok := status.FromError(err)
	if !ok {
		return verdict{reason: firstLine(err.Error()), remedy: "can this host reach Google Cloud KMS, and has it credentials?"}
	}
	v := verdict{reason: s.Code().String() + " (" + firstLine(s.Message()) + ")"}
	switch s.Code() {
	case codes.InvalidArgument:
		v.foreign = true
	case codes.PermissionDenied:
		v.remedy = "grant this service account roles/cloudkms.cryptoKeyEncrypterDecrypter on the key"
	case codes.Unauthenticated:
		v.remedy = "Google does not take this host's credentials: renew them"
	case codes.FailedPrecondition:
		v.remedy = "the key version is disabled or is to be destroyed: enable or restore it"
	case codes.NotFound:
		v.remedy = "there is no such key: check --kms and the project"
	}
	return v
}
