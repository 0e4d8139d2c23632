package demo

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jwt"
)

// Yardstick is what an API does with a token that verifies each one as it comes: jwx with the published keys, issuer and audience. It
// is what bench --auth compares to, and accepts tokens that a resource server must refuse; see package auth.
func (s *AuthServer) Yardstick() (verify func(token []byte) error, err error) {
	document, err := json.Marshal(map[string]any{"keys": s.keys.public(s.cfg.Now())})
	if err != nil {
		return nil, fmt.Errorf("publishing keys: %w", err)
	}
	keys, err := jwk.Parse(document)
	if err != nil {
		return nil, fmt.Errorf("reading published keys: %w", err)
	}
	return func(token []byte) error {
		_, err := jwt.Parse(token, jwt.WithKeySet(keys), jwt.WithIssuer(s.cfg.Issuer), jwt.WithAudience(s.cfg.Audience))
		return err
	}, nil
}
