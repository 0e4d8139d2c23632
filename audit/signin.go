package audit

import (
	"encoding/json"
	"fmt"
	"time"
)

// Interactions of events of type TypeAuthentication (DICOM PS3.16: 110122 Login, 110123 Logout).
const (
	InteractionLogin  = "login"
	InteractionLogout = "logout"
)

// SignIn is the Detail of a login event: how the session came about, as the issuer asserts it. It holds no PHI.
type SignIn struct {
	TokenID  string    `json:"jti"`                 // of the token with which the session was seen first
	ACR      string    `json:"acr,omitempty"`       // authentication context class
	AMR      []string  `json:"amr,omitempty"`       // authentication methods (RFC 8176)
	AuthTime time.Time `json:"auth_time,omitzero"`  // when the user authenticated
	Expires  time.Time `json:"expires_at,omitzero"` // end of that token
}

// Encode returns the Detail.
func (s SignIn) Encode() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding sign-in: %w", err)
	}
	return b, nil
}

// DecodeSignIn is the inverse of Encode.
func DecodeSignIn(detail []byte) (SignIn, error) {
	var s SignIn
	if err := json.Unmarshal(detail, &s); err != nil {
		return SignIn{}, fmt.Errorf("decoding sign-in: %w", errEncoding)
	}
	return s, nil
}
