package rest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// document is a public text that is made once: it holds nothing about anybody, so it may be cached.
type document struct {
	body []byte
	etag string
}

func newDocument(body []byte) document {
	sum := sha256.Sum256(body)
	return document{body, `"` + hex.EncodeToString(sum[:8]) + `"`}
}

// publish answers with a public document.
func (c *call) publish(d document, media string) error {
	h := &c.http.Response().Header
	h.Set("ETag", d.etag)
	h.Set("Cache-Control", "public, max-age=300")
	h.Del("Pragma")
	for _, tag := range bytes.Split(c.http.Request().Header.Peek("If-None-Match"), []byte(",")) {
		if t := string(bytes.TrimSpace(tag)); t == d.etag || t == "*" || t == "W/"+d.etag {
			c.http.Response().SetStatusCode(http.StatusNotModified)
			return nil
		}
	}
	body := d.body
	if c.pretty {
		var b bytes.Buffer
		if err := json.Indent(&b, body, "", "  "); err != nil {
			return fmt.Errorf("indenting document: %w", err)
		}
		body = b.Bytes()
	}
	h.SetContentType(media)
	c.http.Response().SetBodyRaw(body)
	return nil
}

func (c *call) metadata() error {
	if err := c.negotiate(); err != nil {
		return err
	}
	return c.publish(c.s.capability, mediaFHIR)
}

// smartConfiguration takes any Accept: clients often send none that fits (SMART App Launch 2.2, section 8.1).
func (c *call) smartConfiguration() error { return c.publish(c.s.smart, mediaJSON) }

// The CapabilityStatement's parts, as far as they are said (http://hl7.org/fhir/R4/capabilitystatement.html).
type (
	capabilityStatement struct {
		ResourceType   string         `json:"resourceType"`
		Status         string         `json:"status"`
		Date           string         `json:"date"`
		Kind           string         `json:"kind"`
		Software       software       `json:"software"`
		Implementation implementation `json:"implementation"`
		FHIRVersion    string         `json:"fhirVersion"`
		Format         []string       `json:"format"`
		Rest           []restMode     `json:"rest"`
	}
	software struct {
		Name    string `json:"name"`
		Version string `json:"version,omitempty"`
	}
	implementation struct {
		Description string `json:"description"`
		URL         string `json:"url"`
	}
	restMode struct {
		Mode        string         `json:"mode"`
		Security    security       `json:"security"`
		Resource    []resourceMode `json:"resource"`
		Interaction []coded        `json:"interaction"`
	}
	security struct {
		Extension   []extension `json:"extension,omitempty"`
		CORS        bool        `json:"cors"`
		Service     []concept   `json:"service"`
		Description string      `json:"description"`
	}
	concept struct {
		Coding []coding `json:"coding"`
		Text   string   `json:"text"`
	}
	coding struct {
		System string `json:"system"`
		Code   string `json:"code"`
	}
	extension struct {
		URL       string      `json:"url"`
		Extension []extension `json:"extension,omitempty"`
		ValueURI  string      `json:"valueUri,omitempty"`
	}
	coded struct {
		Code string `json:"code"`
	}
	resourceMode struct {
		Type              string        `json:"type"`
		SupportedProfile  []string      `json:"supportedProfile,omitempty"`
		Documentation     string        `json:"documentation,omitempty"`
		Interaction       []coded       `json:"interaction"`
		Versioning        string        `json:"versioning"`
		ReadHistory       bool          `json:"readHistory"`
		UpdateCreate      bool          `json:"updateCreate"`
		ConditionalCreate bool          `json:"conditionalCreate"`
		ConditionalRead   string        `json:"conditionalRead"`
		SearchParam       []searchParam `json:"searchParam"`
		Operation         []operation   `json:"operation,omitempty"`
	}
	operation struct {
		Name          string `json:"name"`
		Definition    string `json:"definition"`
		Documentation string `json:"documentation"`
	}
	searchParam struct {
		Name          string `json:"name"`
		Type          string `json:"type"`
		Documentation string `json:"documentation,omitempty"`
	}
)

// newCapability states what the table routes, for the types and parameters that phi/fhir understands: it is made of them,
// so it cannot claim more.
func (s *Server) newCapability() (document, error) {
	var interactions, system []coded
	for _, r := range s.routes {
		i := coded{r.interaction}
		switch {
		case r.perType && !slices.Contains(interactions, i):
			interactions = append(interactions, i)
		case r.interaction == "transaction" && !slices.Contains(system, i):
			system = append(system, i, coded{"batch"})
		}
	}
	var resources []resourceMode
	for _, t := range fhir.Types() {
		if t == trailType {
			resources = append(resources, trailCapability())
		}
		if s.types[t] == "" {
			continue
		}
		resources = append(resources, resourceMode{
			Type:              t,
			Interaction:       interactions,
			Versioning:        "versioned",
			ReadHistory:       true,
			UpdateCreate:      true,
			ConditionalCreate: true,
			ConditionalRead:   "full-support",
			SearchParam:       searchParams(t),
			Operation:         operations(t),
		})
	}
	var uris []extension
	for _, u := range []struct{ name, url string }{
		{"authorize", s.cfg.Issuer.Authorize},
		{"token", s.cfg.Issuer.Token},
		{"introspect", s.cfg.Issuer.Introspect},
		{"revoke", s.cfg.Issuer.Revoke},
	} {
		if u.url != "" {
			uris = append(uris, extension{URL: u.name, ValueURI: u.url})
		}
	}
	var oauth []extension
	if uris != nil {
		oauth = []extension{{URL: "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris", Extension: uris}}
	}
	body, err := json.Marshal(capabilityStatement{
		ResourceType:   "CapabilityStatement",
		Status:         "active",
		Date:           s.start.Format("2006-01-02T15:04:05Z07:00"),
		Kind:           "instance",
		Software:       software{"Chartkeep", s.cfg.Version},
		Implementation: implementation{"Chartkeep FHIR API", s.cfg.Base},
		FHIRVersion:    "4.0.1",
		Format:         []string{"json", "application/fhir+json"},
		Rest: []restMode{{
			Mode: "server",
			Security: security{
				Extension: oauth,
				CORS:      true,
				Service: []concept{{
					Coding: []coding{{"http://terminology.hl7.org/CodeSystem/restful-security-service", "SMART-on-FHIR"}},
					Text:   "OAuth 2 with SMART scopes",
				}},
				Description: "An access token of type at+jwt (RFC 9068) is needed for everything but this statement and .well-known/smart-configuration, as a bearer token (RFC 6750) or, when it is bound to a key, with proof of that (RFC 9449, RFC 8705). SMART scopes of version 1 and 2 narrow what the caller's roles permit; search parameters in a scope without modifiers or chains narrow it further, a scope with others grants nothing. What the caller may not see is answered as not found.",
			},
			Resource:    resources,
			Interaction: system,
		}},
	})
	return newDocument(body), err
}

// operations are the operations on a type.
func operations(resourceType string) []operation {
	if resourceType != "Patient" {
		return nil
	}
	return []operation{
		{"merge", definitionMerge, "source-patient and target-patient by reference, result-patient, preview. A merge of a large chart is answered with 202 and goes on in the background."},
		{"unmerge", definitionUnmerge, "The parameters of merge. Gives back what the merge of the source into the target moved; the outcome names what stays."},
	}
}

// searchParams are the parameters of a type: those that work on every type, and those that phi/fhir matches.
func searchParams(resourceType string) []searchParam {
	list := []searchParam{{Name: "_id", Type: "token"}, {Name: "_lastUpdated", Type: "date"}}
	for _, p := range fhir.SearchParams(resourceType) {
		if !strings.HasPrefix(p.Name, "_") {
			list = append(list, searchParam{Name: p.Name, Type: p.Type})
		}
	}
	return list
}
