package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// healthz says that the process answers, nothing more: restarting it would not bring a database back.
func (c *call) healthz() error { return c.sendJSON(http.StatusOK, map[string]string{"status": "ok"}) }

// readyz runs every check at once and names the state of each, and since when it fails where the check knows; 503 when one
// does. The reasons are for the log: an error's text may name hosts.
func (c *call) readyz() error {
	names := slices.Sorted(maps.Keys(c.s.cfg.Checks))
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, n := range names {
		all.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					panicked(c.s.logger, v, c.route.pattern, c.requestID)
					errs[i] = fmt.Errorf("check panicked with a %T", v)
				}
			}()
			errs[i] = c.s.cfg.Checks[n](c.ctx)
		})
	}
	all.Wait()
	status, checks := http.StatusOK, make(map[string]string, len(names))
	for i, n := range names {
		checks[n] = "ok"
		if errs[i] != nil {
			status, checks[n] = http.StatusServiceUnavailable, "failing"
			var known interface{ Began() time.Time }
			if errors.As(errs[i], &known) {
				checks[n] += " since " + known.Began().UTC().Format(time.RFC3339)
			}
			c.s.logger.Warn("not ready", "check", n, "error", errs[i])
		}
	}
	state := "ready"
	if status != http.StatusOK {
		state = "not ready"
	}
	return c.sendJSON(status, struct {
		Status     string            `json:"status"`
		Checks     map[string]string `json:"checks"`
		Durability durability        `json:"audit_durability"`
	}{state, checks, durability{c.s.cfg.Level.Disclosure.String(), c.s.cfg.Level.Other.String()}})
}

// durability is how durable an audit event is before an answer goes out.
type durability struct {
	Disclosure string `json:"disclosure"`
	Other      string `json:"other"`
}

// sendJSON answers with a value of ours.
func (c *call) sendJSON(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding response: %w", err)
	}
	res := c.http.Response()
	res.SetStatusCode(status)
	res.Header.SetContentType(mediaJSON)
	res.SetBodyRaw(b)
	return nil
}
