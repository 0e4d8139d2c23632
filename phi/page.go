package phi

import (
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
)

// cursor is where a listing goes on. It holds search text, which may be PHI, and ids that the caller may not know
// (de-identified views), so it leaves the room only sealed, and comes back only from the principal and the listing it was
// made for. It is never a proof of access: each page is decided about anew.
type cursor struct {
	Params []Param `json:"p,omitempty"`
	Strict bool    `json:"s,omitempty"`
	After  string  `json:"a,omitempty"` // id of the last record of the page
	Before int64   `json:"b,omitempty"` // in a history, the last version of the page
	Export []byte  `json:"x,omitempty"` // key of the de-identified export that goes on
	Until  int64   `json:"u,omitempty"` // and when that ends, in Unix seconds
}

// errCursor is the one answer to whatever is wrong with a cursor.
var errCursor = errors.New("phi: page cursor is not one of ours")

// sealCursor returns the cursor as text for an address. scope says what listing it belongs to.
func sealCursor(aead cipher.AEAD, scope string, c cursor) (string, error) {
	plain, err := json.Marshal(c)
	if err != nil {
		return "", errCursor
	}
	return base64.RawURLEncoding.EncodeToString(aead.Seal(nil, nil, plain, []byte(scope))), nil
}

func openCursor(aead cipher.AEAD, scope, text string) (cursor, error) {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return cursor{}, errCursor
	}
	plain, err := aead.Open(nil, nil, sealed, []byte(scope))
	if err != nil {
		return cursor{}, errCursor
	}
	var c cursor
	if json.Unmarshal(plain, &c) != nil {
		return cursor{}, errCursor
	}
	return c, nil
}

// scope binds a cursor to the caller and the listing.
func (a *attempt) scope(listing string) string {
	p := a.caller.Principal
	return "page\x00" + p.Issuer + "\x00" + p.Subject + "\x00" + p.Client + "\x00" + listing
}
