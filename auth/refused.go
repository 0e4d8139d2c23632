package auth

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// ErrForged is ErrToken for a signature that is not its key's.
var ErrForged = fmt.Errorf("%w: signature", ErrToken)

// genuine is ErrToken for a token that its issuer did sign: expired, revoked, meant for others.
type genuine struct {
	error
	client string
}

func (g *genuine) Unwrap() error { return g.error }

// RefusedClient is the client, as in Principal.Client, that sent a token which its issuer has signed and which was refused all the
// same; "" for every other error: what an unverified token says of its sender means nothing.
func RefusedClient(err error) string {
	var g *genuine
	if !errors.As(err, &g) {
		return ""
	}
	return g.client
}

// genuine says of a refusal whose token it is. The payload's signature was verified.
func (is *trusted) genuine(payload []byte, err error) error {
	var c struct {
		Client string `json:"client_id"`
	}
	if !errors.Is(err, ErrToken) || json.Unmarshal(payload, &c) != nil || !printable(c.Client, maxName) {
		return err
	}
	if is.Name != "" {
		c.Client = is.Name + "|" + c.Client
	}
	return &genuine{err, c.Client}
}

// Known reports whether the credentials carry a token that was verified lately and still stands. It says nothing of whether the
// sender may use it, and takes no signature check: it is for those who must choose whom to turn away.
func (v *Verifier) Known(c Credentials) bool {
	_, token, err := c.token()
	if err != nil {
		return false
	}
	e := v.cache.get(v.hasher.digest(c.Profile, token))
	return e != nil && e.valid(v.now().UnixNano(), v.revoked)
}
