package kms

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/aws/smithy-go"
	"github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
)

const awsPrefix = "aws-kms://"

// openAWS uses AWS's default chain for credentials, endpoint and CA: AWS_ENDPOINT_URL_KMS, AWS_USE_FIPS_ENDPOINT and AWS_CA_BUNDLE
// mean what they mean to the AWS CLI. The region is the key's.
func (r *Root) openAWS() error {
	// Not an alias: whoever may change an alias could point it at a key of his own.
	if !regexp.MustCompile(`^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$`).MatchString(strings.TrimPrefix(r.uri, awsPrefix)) {
		return errors.New("the URI is not aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID")
	}
	aead, err := awskms.NewAEADWithContext(context.Background(), strings.TrimPrefix(r.uri, awsPrefix))
	if err != nil {
		return err
	}
	r.aead, r.judge = aead, judgeAWS
	return nil
}

// judgeAWS reads the error codes of the KMS API reference (Decrypt, Encrypt: Errors).
func judgeAWS(err error) verdict {
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		return verdict{reason: firstLine(err.Error()), remedy: "can this host reach AWS KMS, and has it credentials?"}
	}
	v := verdict{reason: api.ErrorCode()}
	switch api.ErrorCode() {
	case "InvalidCiphertextException", "IncorrectKeyException":
		v.foreign = true
	case "AccessDeniedException":
		v.remedy = "allow this role kms:Encrypt and kms:Decrypt on the key"
	case "DisabledException":
		v.remedy = "the key is disabled: enable it"
	case "KMSInvalidStateException":
		v.remedy = "the key is not usable: if it waits for deletion, cancel that"
	case "NotFoundException":
		v.remedy = "there is no such key: check --kms, account and region"
	case "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException", "InvalidClientTokenId", "IncompleteSignature":
		v.remedy = "AWS does not take this host's credentials: renew them, check the clock"
	}
	return v
}
