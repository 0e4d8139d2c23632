package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/chartkeep/chartkeep/audit"
)

// openAnchor opens the anchor that a value of --anchor names.
func openAnchor(value, credentialsFile string) (audit.Anchor, error) {
	if !strings.HasPrefix(value, "s3://") {
		return audit.AnchorDir(value), nil
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, usage("--anchor %s is not s3://BUCKET/PREFIX?endpoint=URL", value)
	}
	q := u.Query()
	endpoint, err := url.Parse(q.Get("endpoint"))
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "https" && endpoint.Scheme != "http" {
		return nil, usage("--anchor %s: endpoint must be the URL of the object store", value)
	}
	years := audit.RetentionYears
	if v := q.Get("years"); v != "" {
		if years, err = strconv.Atoi(v); err != nil || years < audit.RetentionYears || years > 100 {
			return nil, usage("--anchor %s: years must be %d to 100", value, audit.RetentionYears)
		}
	}
	if credentialsFile == "" {
		return nil, usage("--anchor-credentials is missing: %s needs a file with the bucket's access key id and secret", value)
	}
	secret, err := readSecret(credentialsFile)
	if err != nil {
		return nil, err
	}
	id, key, ok := strings.Cut(secret, "\n")
	if !ok {
		return nil, usage("--anchor-credentials %s must have the access key id on its first line and the secret on its second", credentialsFile)
	}
	region := q.Get("region")
	if region == "" {
		region = "us-east-1"
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds: credentials.NewStaticV4(strings.TrimSpace(id), strings.TrimSpace(key), ""), Secure: endpoint.Scheme == "https", Region: region, MaxRetries: 3,
	})
	if err != nil {
		return nil, usage("--anchor %s: %v", value, err)
	}
	return &bucketAnchor{client: client, bucket: u.Host, prefix: strings.Trim(u.Path, "/"), years: years, now: time.Now}, nil
}

// bucketAnchor is an audit.Anchor in a bucket with object lock. Objects are put in compliance mode: until their time is over
// nobody deletes them or puts others in their place, not the owner of the account either.
type bucketAnchor struct {
	client *minio.Client
	bucket string
	prefix string
	years  int // that an object is locked for
	now    func() time.Time
}

// Put implements audit.Anchor.
func (a *bucketAnchor) Put(ctx context.Context, name string, data []byte) error {
	object := path.Join(a.prefix, name)
	options := minio.PutObjectOptions{
		ContentType: "text/plain; charset=utf-8", Mode: minio.Compliance, RetainUntilDate: a.now().UTC().AddDate(a.years, 0, 1).Truncate(time.Second),
		SendContentMd5: true, // object lock demands a checksum: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
	}
	options.SetMatchETagExcept("*") // If-None-Match: nothing is there
	_, err := a.client.PutObject(ctx, a.bucket, object, bytes.NewReader(data), int64(len(data)), options)
	if err == nil {
		return nil
	}
	if answer := minio.ToErrorResponse(err); answer.StatusCode != http.StatusPreconditionFailed {
		return fmt.Errorf("putting checkpoint into bucket: %s", strings.TrimSpace(answer.Code+" "+answer.Message))
	}
	there, err := a.client.GetObject(ctx, a.bucket, object, minio.GetObjectOptions{})
	if err != nil {
		return fmt.Errorf("reading what is in the bucket: %w", err)
	}
	defer func() { _ = there.Close() }() // it was only read
	have, err := io.ReadAll(io.LimitReader(there, int64(len(data))+1))
	if err != nil {
		return fmt.Errorf("reading what is in the bucket: %w", err)
	}
	if !bytes.Equal(have, data) {
		return errors.New("putting checkpoint into bucket: something else is there under its name")
	}
	return nil
}
