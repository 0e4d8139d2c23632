package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/chartkeep/chartkeep/server/rest"
)

// clientCertificates are the flags about certificates of TLS clients, which tokens may be bound to (RFC 8705 section 3).
type clientCertificates struct {
	TLSClientCerts   bool   `name:"tls-client-certs" help:"Ask TLS clients for a certificate, so that tokens can be bound to it (RFC 8705). Who has none may still come with other tokens."`
	TLSClientCA      string `name:"tls-client-ca" help:"With --tls-client-certs: authorities, PEM, one of which must have issued a certificate that is shown. Without it a certificate of anybody's making will do, since a bound token names the very one." placeholder:"FILE"`
	ClientCertHeader bool   `name:"client-cert-header" help:"TLS ends at a --trusted-proxy that tells the client's certificate in Client-Cert (RFC 9440), and takes that header away when a client sends it."`
}

// check refuses flags that do not go together.
func (c *clientCertificates) check(v *serveVerb) error {
	switch {
	case c.TLSClientCA != "" && !c.TLSClientCerts:
		return usage("--tls-client-ca goes with --tls-client-certs")
	case c.TLSClientCerts && v.TLSCert == "":
		return usage("--tls-client-certs needs --tls-cert and --tls-key; behind a proxy it is --client-cert-header")
	case c.ClientCertHeader && (c.TLSClientCerts || len(v.TrustedProxy) == 0):
		return usage("--client-cert-header needs --trusted-proxy, and does not go with --tls-client-certs")
	}
	return nil
}

// where says where the API finds certificates.
func (c *clientCertificates) where() rest.ClientCertificates {
	switch {
	case c.TLSClientCerts:
		return rest.ConnectionCertificates
	case c.ClientCertHeader:
		return rest.ForwardedCertificates
	default:
		return rest.NoClientCertificates
	}
}

// demand makes a listener ask its clients.
func (c *clientCertificates) demand(cfg *tls.Config) error {
	if !c.TLSClientCerts {
		return nil
	}
	cfg.ClientAuth = tls.RequestClientCert
	if c.TLSClientCA == "" {
		return nil
	}
	text, err := os.ReadFile(c.TLSClientCA)
	if err != nil {
		return fmt.Errorf("reading certificate authorities of clients: %w", err)
	}
	cfg.ClientAuth, cfg.ClientCAs = tls.VerifyClientCertIfGiven, x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(text) {
		return fmt.Errorf("reading certificate authorities of clients: %s holds no certificate", c.TLSClientCA)
	}
	return nil
}
