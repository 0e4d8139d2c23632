package rest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"

	"github.com/chartkeep/chartkeep/audit"
)

// Assessors look at the trail without learning who is in it: whatever names a person stands under an alias. An alias is stable,
// so that an assessor can follow one through the trail and filter by it, and it is the value itself, sealed under the
// organisation's secret (a synthetic IV over the value, then AES-CTR, as in RFC 5297): nobody else can make one, and what is
// filtered by needs no table to be found again.

// kind is what an alias stands for; the same value under two kinds has two aliases.
type kind string

// Kinds of what events name. Records of other types have their own, see kindOf.
const (
	kindNone    kind = ""
	kindUser    kind = "user"
	kindPatient kind = "patient"
	kindSession kind = "session"
	kindNetwork kind = "network"
	kindRequest kind = "request"
)

// kindOf is the kind of a record's id. An event of the trail, a key, emergency access and what a scope says are nobody.
func kindOf(entityType string) kind {
	if entityType == "AuditEvent" || entityType == "key" || entityType == "scope" || entityType == audit.EntityEmergency {
		return kindNone
	}
	return kind(strings.ToLower(entityType))
}

// kindOfField is the kind of a field's values; entity holds a type as well, see lens.reveal.
func kindOfField(f audit.Field) kind {
	switch f {
	case audit.FieldAgent:
		return kindUser
	case audit.FieldPatient:
		return kindPatient
	case audit.FieldSession:
		return kindSession
	case audit.FieldNetwork:
		return kindNetwork
	case audit.FieldRequest:
		return kindRequest
	}
	return kindNone
}

// aliaser makes aliases and takes them back. Safe for concurrent use.
type aliaser struct {
	mac   []byte
	block cipher.Block
}

const (
	aliasIV  = 8
	aliasPad = 16 // values are padded to a multiple, so that an alias hardly tells how long a name is
)

// What a value was, before it became a number of whole blocks.
const (
	aliasOfText = 0 // its bytes, 0x80, zeros
	aliasOfUUID = 1 // its sixteen bytes
)

var aliasText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func newAliaser(secret []byte) (*aliaser, error) {
	mac, err := hkdf.Expand(sha256.New, secret, "chartkeep alias mac", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("deriving key of aliases: %w", err)
	}
	key, err := hkdf.Expand(sha256.New, secret, "chartkeep alias", 32)
	if err != nil {
		return nil, fmt.Errorf("deriving key of aliases: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("deriving key of aliases: %w", err)
	}
	return &aliaser{mac, block}, nil
}

// iv is the beginning of the MAC of a value, which is at the same time what tells a real alias from a made-up one.
func (a *aliaser) iv(k kind, form byte, blocks []byte) []byte {
	h := hmac.New(sha256.New, a.mac)
	h.Write([]byte(k))
	h.Write([]byte{0, form})
	h.Write(blocks)
	return h.Sum(nil)[:aliasIV]
}

func (a *aliaser) crypt(iv, b []byte) {
	var counter [aes.BlockSize]byte
	copy(counter[:], iv)
	cipher.NewCTR(a.block, counter[:]).XORKeyStream(b, b)
}

// hide returns the alias of a value: the kind, a hyphen and base32. What is empty, and the system itself, is nobody.
func (a *aliaser) hide(k kind, value string) string {
	if k == kindNone || value == "" || value == "system" {
		return value
	}
	form := byte(aliasOfText)
	b := make([]byte, aliasIV, aliasIV+len(value)+aliasPad)
	if id, err := audit.ParseID(value); err == nil && id.String() == value {
		form = aliasOfUUID
		b = append(b, id[:]...)
	} else {
		b = append(b, value...)
		for b = append(b, 0x80); (len(b)-aliasIV)%aliasPad != 0; {
			b = append(b, 0)
		}
	}
	copy(b, a.iv(k, form, b[aliasIV:]))
	a.crypt(b[:aliasIV], b[aliasIV:])
	return string(k) + "-" + aliasText.EncodeToString(b)
}

// reveal is the inverse of hide; false for what hide has not made.
func (a *aliaser) reveal(k kind, alias string) (string, bool) {
	if k == kindNone || alias == "" || alias == "system" {
		return alias, true
	}
	text, ok := strings.CutPrefix(alias, string(k)+"-")
	b, err := aliasText.DecodeString(text)
	if !ok || err != nil || len(b) <= aliasIV || (len(b)-aliasIV)%aliasPad != 0 || aliasText.EncodeToString(b) != text {
		return "", false
	}
	iv := b[:aliasIV:aliasIV]
	b = b[aliasIV:]
	a.crypt(iv, b)
	if end := bytes.LastIndexByte(b, 0x80); end >= 0 && hmac.Equal(iv, a.iv(k, aliasOfText, b)) {
		return string(b[:end]), true
	}
	if len(b) == len(audit.ID{}) && hmac.Equal(iv, a.iv(k, aliasOfUUID, b)) {
		return audit.ID(b).String(), true
	}
	return "", false
}

// lens is how a caller sees the trail. aliases is nil for those who see it as it is.
type lens struct{ aliases *aliaser }

func (c *call) lens() *lens {
	if c.aliased {
		return &lens{c.s.aliases}
	}
	return &lens{}
}

// show returns a value as the caller may see it.
func (l *lens) show(k kind, value string) string {
	if l.aliases == nil {
		return value
	}
	return l.aliases.hide(k, value)
}

// showAgent does so for who acted. The application and its roles are nobody.
func (l *lens) showAgent(a *agentJSON) {
	if l.aliases == nil {
		return
	}
	a.Name = ""
	a.User, a.Session, a.Network = l.show(kindUser, a.User), l.show(kindSession, a.Session), l.show(kindNetwork, a.Network)
	if t, id, ok := strings.Cut(a.FHIRUser, "/"); ok {
		a.FHIRUser = t + "/" + l.show(kindOf(t), id)
	} else {
		a.FHIRUser = l.show(kindUser, a.FHIRUser)
	}
}

// showField returns the value of a field as the caller may see it.
func (l *lens) showField(f audit.Field, value string) string {
	if t, id, ok := strings.Cut(value, "/"); ok && f == audit.FieldEntity {
		return t + "/" + l.show(kindOf(t), id)
	}
	return l.show(kindOfField(f), value)
}

// reveal turns a query that the caller wrote into the one that is asked; the error says what is at fault. Whoever sees aliases
// asks by aliases, too: an answer to a question about a name would tell who it is.
func (l *lens) reveal(q *audit.Query) *fault {
	if l.aliases == nil {
		return nil
	}
	if q.Text != "" {
		return &fault{text: "free text is not for those who see aliases"}
	}
	for i := range q.Terms {
		t := &q.Terms[i]
		if t.Field != audit.FieldEntity && kindOfField(t.Field) == kindNone {
			continue
		}
		if t.Op != audit.OpIs {
			return &fault{text: string(t.Field) + " takes whole aliases"}
		}
		values := make([]string, len(t.Values))
		for n, v := range t.Values {
			prefix, k := "", kindOfField(t.Field)
			if t.Field == audit.FieldEntity {
				entityType, id, _ := strings.Cut(v, "/")
				prefix, k, v = entityType+"/", kindOf(entityType), id
			}
			value, ok := l.aliases.reveal(k, v)
			if !ok {
				return &fault{text: string(t.Field) + " takes aliases"}
			}
			values[n] = prefix + value
		}
		t.Values = values
	}
	return nil
}
