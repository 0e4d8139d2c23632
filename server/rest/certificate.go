package rest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
)

// ClientCertificates says where the certificate of a TLS client is looked for, which a token may be bound to (RFC 8705 section 3).
type ClientCertificates string

const (
	NoClientCertificates    ClientCertificates = ""           // nowhere: tokens that are bound to one are refused
	ConnectionCertificates  ClientCertificates = "connection" // TLS ends here, and clients are asked for one
	ForwardedCertificates   ClientCertificates = "header"     // in Client-Cert (RFC 9440), from the networks of TLSClientNetworks only
	maxForwardedCertificate                    = 8 << 10      // bytes of DER
)

// certificate is the client's, in DER; nil when there is none that can be believed. Whether it is valid is the business of who ended
// TLS: that the sender holds its key is what a bound token asks for.
func (c *call) certificate() []byte {
	switch c.s.cfg.ClientCertificates {
	case ConnectionCertificates:
		conn, ok := c.http.Context().Conn().(*tls.Conn)
		if !ok {
			return nil
		}
		if shown := conn.ConnectionState().PeerCertificates; len(shown) > 0 {
			return shown[0].Raw
		}
	case ForwardedCertificates:
		values := c.http.Request().Header.PeekAll("Client-Cert")
		// A client that reaches this server past the proxy writes what it likes.
		if len(values) != 1 || !c.s.proxied(c.http.Context().RemoteIP().String()) {
			return nil
		}
		return forwarded(values[0])
	}
	return nil
}

// forwarded reads the value of Client-Cert: a Byte Sequence of RFC 8941, base64 between colons.
func forwarded(value []byte) []byte {
	value = bytes.TrimSpace(value)
	if len(value) < 2 || value[0] != ':' || value[len(value)-1] != ':' || len(value) > maxForwardedCertificate*4/3 {
		return nil
	}
	der, err := base64.StdEncoding.Strict().AppendDecode(nil, value[1:len(value)-1])
	if err != nil {
		return nil
	}
	if _, err := x509.ParseCertificate(der); err != nil {
		return nil
	}
	return der
}
