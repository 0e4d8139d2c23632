package rest

import _ "embed"

// openapiJSON describes every /v1 route; a test compares it with the table in both directions.
//
//go:embed openapi.json
var openapiJSON []byte

func (c *call) describe() error { return c.publish(c.s.openapi, mediaJSON) }
