package rest

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/chartkeep/chartkeep/auth"
)

// stepUp is the answer to a caller whose sign-in is too weak or too old for what he asks (RFC 9470 section 3). It says what would do,
// so that the client can send the person to the authorization server, and comes back.
func stepUp(demand auth.StepUp) *refusal {
	challenge := "Bearer " + realm + `, error="insufficient_user_authentication"`
	if len(demand.ACR) > 0 {
		challenge += `, acr_values="` + strings.Join(demand.ACR, " ") + `"`
	}
	if demand.MaxAge > 0 {
		challenge += `, max_age="` + strconv.FormatInt(int64(demand.MaxAge.Seconds()), 10) + `"`
	}
	return &refusal{status: http.StatusUnauthorized, code: "login", text: "another sign-in is needed for this", challenge: challenge}
}

// forbidden is the answer to a denial that was decided in this package.
func forbidden(d *auth.Decision) *refusal {
	r := &refusal{status: http.StatusForbidden, code: "forbidden", text: "not permitted"}
	if d.Reason == auth.ReasonStepUp {
		r = stepUp(d.StepUp)
	}
	r.decision = d
	return r
}
