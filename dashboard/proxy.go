package main

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
)

// answerLimit is the largest answer of the API that is handed on: 200 events of a few KiB each are far below.
const answerLimit = 8 << 20

var eventID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// events searches the trail with the page's filters; the API judges them.
func (h *handler) events(w http.ResponseWriter, r *http.Request, x *session) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // leaving a part out would widen what was asked for
		refuse(w, http.StatusBadRequest, "The query is not readable.")
		return
	}
	h.fetchAs(w, r, x, "/v1/audit/events", query)
}

func (h *handler) event(w http.ResponseWriter, r *http.Request, x *session) {
	id := r.PathValue("id")
	if !eventID.MatchString(id) {
		refuse(w, http.StatusNotFound, "There is no such event.")
		return
	}
	h.fetchAs(w, r, x, "/v1/audit/events/"+id, nil)
}

// readiness tells how the deployment is; it takes no token and does not count as activity of the person.
func (h *handler) readiness(w http.ResponseWriter, r *http.Request, _ *session) {
	h.fetch(r.Context(), w, "/readyz", nil, "")
}

// fetchAs fetches a path of the API for the person who is signed in.
func (h *handler) fetchAs(w http.ResponseWriter, r *http.Request, x *session, path string, query url.Values) {
	token, err := h.accessToken(r.Context(), x)
	switch {
	case errors.Is(err, errSignedOut):
		refuse(w, http.StatusUnauthorized, "Nobody is signed in.")
		return
	case err != nil:
		h.cfg.Logger.Warn("renewing a token failed", "error", err)
		refuseAs(w, offline, http.StatusBadGateway, "The sign-in service does not answer.")
		return
	}
	if h.fetch(r.Context(), w, path, query, token) == http.StatusUnauthorized {
		x.leave("The server ended your session. Please sign in again.")
	}
}

// fetch hands one answer of the API on: status, JSON body and request id, nothing else. It returns the status.
func (h *handler) fetch(ctx context.Context, w http.ResponseWriter, path string, query url.Values, token string) int {
	unreachable := func(err error) int {
		if ctx.Err() == nil {
			h.cfg.Logger.Warn("the API does not answer", "path", path, "error", err)
		}
		refuseAs(w, offline, http.StatusBadGateway, "The server does not answer.")
		return http.StatusBadGateway
	}
	target := h.cfg.API + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return unreachable(err)
	}
	req.URL.RawQuery = query.Encode()
	req.Header.Set("Accept", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := h.client.Do(req)
	if err != nil {
		var where *url.Error // its text repeats the URL, whose query is the person's
		if errors.As(err, &where) {
			err = where.Err
		}
		return unreachable(err)
	}
	defer res.Body.Close()
	mediaType, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	body, err := io.ReadAll(io.LimitReader(res.Body, answerLimit+1))
	switch {
	case err != nil:
		return unreachable(err)
	case len(body) > answerLimit || !isJSON(mediaType) || res.StatusCode < 200 || res.StatusCode >= 300 && res.StatusCode < 400:
		h.cfg.Logger.Warn("the API's answer is not one", "path", path, "status", res.StatusCode, "type", mediaType, "bytes", len(body))
		refuse(w, http.StatusBadGateway, "The server's answer is not readable.")
		return http.StatusBadGateway
	}
	w.Header().Set("Content-Type", mediaType)
	if id := res.Header.Get("X-Request-Id"); id != "" {
		w.Header().Set("X-Request-Id", id)
	}
	w.WriteHeader(res.StatusCode)
	_, _ = w.Write(body)
	return res.StatusCode
}
