package auth

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// PublicationKind says what a Publication is.
type PublicationKind string

const (
	PublishedKeys     PublicationKind = "jwks"     // RFC 7517 section 5
	PublishedMetadata PublicationKind = "metadata" // OpenID Connect Discovery 1.0 section 4
)

// Publication is what an issuer published last, as it was received.
type Publication struct {
	Body []byte
	At   time.Time // when it was fetched, in microseconds
	MAC  []byte    // see Publications
}

// PublicationStorage keeps Publications where every instance finds them. Calls may be made from many goroutines.
type PublicationStorage interface {
	// Publish puts a publication in the place of the one that is stored, unless that is younger.
	Publish(ctx context.Context, issuer string, kind PublicationKind, p Publication) error
	// Published returns what is stored, the zero Publication when nothing is.
	Published(ctx context.Context, issuer string, kind PublicationKind) (Publication, error)
}

// Publications keeps what issuers publish for a start while one of them does not answer. Whoever can write to the storage could plant
// a key of his own there and be anybody: what does not carry the MAC of the deployment's secret is not believed. Safe for concurrent use.
type Publications struct {
	storage PublicationStorage
	key     []byte
}

// NewPublications works under a secret of 32 bytes or more that all instances of a deployment know, and its database does not.
func NewPublications(storage PublicationStorage, secret []byte) (*Publications, error) {
	if storage == nil || len(secret) < sha256.Size {
		return nil, errors.New("keeping what issuers publish: a storage and a secret of 32 bytes are needed")
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "chartkeep issuers", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("keeping what issuers publish: %w", err)
	}
	return &Publications{storage: storage, key: key}, nil
}

// Keep stores what an issuer published at a time.
func (p *Publications) Keep(ctx context.Context, issuer string, kind PublicationKind, body []byte, at time.Time) error {
	at = at.UTC().Truncate(time.Microsecond)
	if err := p.storage.Publish(ctx, issuer, kind, Publication{Body: body, At: at, MAC: p.mac(issuer, kind, body, at)}); err != nil {
		return fmt.Errorf("keeping issuer's %s: %w", kind, err)
	}
	return nil
}

// ErrUnpublished says that nothing of an issuer is kept.
var ErrUnpublished = errors.New("auth: nothing is kept of the issuer")

// Last returns what was kept last, and when it was fetched.
func (p *Publications) Last(ctx context.Context, issuer string, kind PublicationKind) ([]byte, time.Time, error) {
	last, err := p.storage.Published(ctx, issuer, kind)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("loading issuer's %s: %w", kind, err)
	}
	if last.At.IsZero() {
		return nil, time.Time{}, fmt.Errorf("loading issuer's %s: %w", kind, ErrUnpublished)
	}
	if !hmac.Equal(last.MAC, p.mac(issuer, kind, last.Body, last.At)) {
		return nil, time.Time{}, fmt.Errorf("loading issuer's %s: it was not stored by this deployment", kind)
	}
	return last.Body, last.At, nil
}

// mac binds a body to what it is, whose, and when it was fetched.
func (p *Publications) mac(issuer string, kind PublicationKind, body []byte, at time.Time) []byte {
	h := hmac.New(sha256.New, p.key)
	for _, part := range [][]byte{[]byte(issuer), []byte(kind), body} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part))) // a hash takes everything
		h.Write(part)
	}
	_ = binary.Write(h, binary.BigEndian, at.UnixMicro())
	return h.Sum(nil)
}
