package rest

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

const (
	fhirBase = "/fhir/R4"
	apiBase  = "/v1"
)

// guard is what a route demands before its handler runs. The zero guard refuses everything, so a route that declares
// none serves nobody.
type guard struct {
	kind       guardKind
	capability string // for guardCapability
	aliased    string // a capability that will do too, and then shows aliases in the place of people
	own        string // a capability that will do too, and then for what is the caller's own
}

type guardKind uint8

const (
	guardOpen       guardKind = iota + 1 // no token: holds nothing about anybody
	guardRecords                         // a token; phi.Records decides about the record and records the event
	guardCapability                      // a token, and a role with the capability
	guardMounted                         // the mounted handler's own
	guardLogout                          // a logout token, which is the content of the request and says all that is to be done
)

// route is one line of the table.
type route struct {
	method, pattern string
	guard           guard
	interaction     string // FHIR's code of the interaction (restful-interaction), or the officers' verb; used in events
	perType         bool   // interaction of a type in the CapabilityStatement
	serve           func(*call) error
}

// table is every route, HEAD being GET without the body: it drives the router, the CapabilityStatement, the check of openapi.json and the test that no
// route is without a guard. A static segment stands before the parameter it could be taken for.
func (s *Server) table() []route {
	open, records := guard{kind: guardOpen}, guard{kind: guardRecords}
	may := func(capability string) guard { return guard{kind: guardCapability, capability: capability} }
	own := func(capability string) guard {
		return guard{kind: guardCapability, capability: capability, own: "emergency:own"}
	}
	ones := func(capability string) guard {
		return guard{kind: guardCapability, capability: capability, own: "sessions:own"}
	}
	trail := guard{kind: guardCapability, capability: "audit:read", aliased: "audit:read-aliased"}
	const (
		get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
		f, v                = fhirBase, apiBase
	)
	return []route{
		{get, f + "/metadata", open, "capabilities", false, (*call).metadata},
		{get, f + "/.well-known/smart-configuration", open, "smart-configuration", false, (*call).smartConfiguration},
		{post, f, records, "transaction", false, (*call).bundle},
		{post, f + "/", records, "transaction", false, (*call).bundle},
		{get, f + "/AuditEvent", may("audit:read"), "search-type", false, (*call).auditEvents},
		{post, f + "/AuditEvent/_search", may("audit:read"), "search-type", false, (*call).auditEvents},
		{get, f + "/AuditEvent/:id", may("audit:read"), "read", false, (*call).auditEvent},
		{get, f + "/:type", records, "search-type", true, (*call).search},
		{post, f + "/:type", records, "create", true, (*call).create},
		{post, f + "/:type/_search", records, "search-type", true, (*call).search},
		{post, f + "/Patient/$merge", may("patient:merge"), "patient-merge", false, (*call).mergePatients},
		{post, f + "/Patient/$unmerge", may("patient:merge"), "patient-unmerge", false, (*call).unmergePatients},
		{get, f + "/:type/:id", records, "read", true, (*call).read},
		{put, f + "/:type/:id", records, "update", true, (*call).update},
		{del, f + "/:type/:id", records, "delete", true, (*call).remove},
		{get, f + "/:type/:id/_history", records, "history-instance", true, (*call).history},
		{get, f + "/:type/:id/_history/:vid", records, "vread", true, (*call).readVersion},

		{get, v + "/openapi.json", open, "openapi", false, (*call).describe},
		{get, v + "/audit/events", trail, "audit-search", false, (*call).events},
		{get, v + "/audit/events/:id", trail, "audit-read", false, (*call).event},
		{get, v + "/audit/events/:id/proof", trail, "audit-proof", false, (*call).proof},
		{get, v + "/audit/facets", trail, "audit-facets", false, (*call).facets},
		{get, v + "/audit/histogram", trail, "audit-histogram", false, (*call).histogram},
		{get, v + "/audit/live", trail, "audit-live", false, (*call).watch},
		{get, v + "/audit/verify", trail, "audit-verify", false, (*call).verified},
		{get, v + "/audit/checkpoints", trail, "audit-checkpoints", false, (*call).checkpoints},
		{get, v + "/latency", may("latency:read"), "latency-read", false, (*call).latency},
		{get, v + "/relationships", may("relationships:read"), "relationship-list", false, (*call).relationships},
		{post, v + "/relationships", may("relationships:write"), "relationship-grant", false, (*call).grant},
		{del, v + "/relationships/:practitioner/:patient", may("relationships:write"), "relationship-end", false, (*call).ungrant},
		{get, v + "/roles", may("policy:read"), "policy-read", false, (*call).roles},
		{post, v + "/roles", may("policy:write"), "policy-propose", false, (*call).createRole},
		{get, v + "/roles/:role", may("policy:read"), "policy-read", false, (*call).roleByName},
		{put, v + "/roles/:role", may("policy:write"), "policy-propose", false, (*call).putRole},
		{del, v + "/roles/:role", may("policy:write"), "policy-propose", false, (*call).removeRole},
		{put, v + "/roles/:role/permissions", may("policy:write"), "policy-propose", false, (*call).putPermissions},
		{get, v + "/policy", may("policy:read"), "policy-read", false, (*call).policy},
		{get, v + "/policy/versions", may("policy:read"), "policy-read", false, (*call).policyVersions},
		{get, v + "/policy/diff", may("policy:read"), "policy-read", false, (*call).policyDiff},
		{get, v + "/policy/proposals", may("policy:read"), "policy-read", false, (*call).proposals},
		{post, v + "/policy/proposals", may("policy:write"), "policy-propose", false, (*call).proposePolicy},
		{get, v + "/policy/proposals/:id", may("policy:read"), "policy-read", false, (*call).proposal},
		{del, v + "/policy/proposals/:id", may("policy:write"), "policy-withdraw", false, (*call).withdrawProposal},
		{post, v + "/policy/proposals/:id/approval", may("policy:approve"), "policy-approve", false, (*call).approveProposal},
		{del, v + "/policy/proposals/:id/approval", may("policy:approve"), "policy-refuse", false, (*call).withdrawProposal},
		{get, v + "/assignments", may("policy:read"), "assignment-read", false, (*call).assignments},
		{post, v + "/assignments", may("assignment:write"), "assignment-create", false, (*call).assign},
		{get, v + "/assignments/:id", may("policy:read"), "assignment-read", false, (*call).assignmentByID},
		{post, v + "/assignments/:id/end", may("assignment:write"), "assignment-end", false, (*call).endAssignment},
		{post, v + "/assignments/:id/approval", may("assignment:approve"), "assignment-approve", false, (*call).approveAssignment},
		{del, v + "/assignments/:id/approval", may("assignment:approve"), "assignment-refuse", false, (*call).refuseAssignment},
		{get, v + "/erasures", may("erasure:read"), "erasure-list", false, (*call).erasures},
		{post, v + "/erasures", may("erasure:request"), "erasure-request", false, (*call).requestErasure},
		{get, v + "/erasures/:id", may("erasure:read"), "erasure-read", false, (*call).erasure},
		{del, v + "/erasures/:id", may("erasure:request"), "erasure-withdraw", false, (*call).withdrawErasure},
		{post, v + "/erasures/:id/approval", may("erasure:approve"), "patient-shred", false, (*call).approveErasure},

		{get, v + "/emergency-access", own("emergency:read"), "emergency-list", false, (*call).emergencyRegister},
		{post, v + "/emergency-access", may("emergency:request"), "emergency-request", false, (*call).requestEmergency},
		{get, v + "/emergency-access/:id", own("emergency:read"), "emergency-read", false, (*call).emergencyRead},
		{del, v + "/emergency-access/:id", own("emergency:revoke"), "emergency-end", false, (*call).endEmergency},
		{post, v + "/emergency-access/:id/approval", may("emergency:approve"), "emergency-decide", false, (*call).decideEmergency},
		{post, v + "/emergency-access/:id/review", may("emergency:review"), "emergency-review", false, (*call).reviewEmergency},
		{get, v + "/sessions", ones("sessions:read"), "session-list", false, (*call).sessionList},
		{del, v + "/sessions/:id", ones("sessions:end"), "session-end", false, (*call).endSession},
		{get, v + "/revocations", may("sessions:read"), "revocation-list", false, (*call).revocationList},
		{post, v + "/revocations", may("revocations:write"), "revoke", false, (*call).postRevocation},
		{post, v + "/workforce/:subject/termination", may("workforce:terminate"), "workforce-terminate", false, (*call).terminate},
		{http.MethodPatch, v + "/scim/v2/Users/:id", may("workforce:terminate"), "workforce-terminate", false, (*call).patchUser},
		{post, v + "/backchannel-logout", guard{kind: guardLogout}, "backchannel-logout", false, (*call).backchannelLogout},
		{get, v + "/decisions/:id", may("audit:read"), "decision-read", false, (*call).decision},
		{get, v + "/alerts", may("alerts:read"), "alert-list", false, (*call).alerts},
		{post, v + "/alerts/:id/state", may("alerts:write"), "alert-update", false, (*call).moveAlert},

		{get, "/healthz", open, "health", false, (*call).healthz},
		{get, "/readyz", open, "readiness", false, (*call).readyz},
	}
}

// servedTypes are the resource types that phi keeps. AuditEvent is not one: the trail has routes of its own, to read it.
func servedTypes() map[string]string {
	m := make(map[string]string)
	for _, t := range fhir.Types() {
		if t != trailType {
			m[t] = t
		}
	}
	return m
}

// newApp registers the table, the mounts, and an OPTIONS route for every pattern.
func (s *Server) newApp() *fiber.App {
	app := fiber.New(fiber.Config{
		DisableStartupMessage: true,
		StrictRouting:         true, // FHIR paths have no trailing slash: one spelling, one decision
		CaseSensitive:         true,
		BodyLimit:             s.cfg.BodyLimit,
		ReadBufferSize:        16 << 10, // all headers; more is 431
		ReadTimeout:           30 * time.Second,
		WriteTimeout:          s.cfg.Timeout + 30*time.Second,
		IdleTimeout:           2 * time.Minute,
		Concurrency:           8192,
		ErrorHandler:          s.unrouted,

		DisablePreParseMultipartForm: true, // nothing here takes one
	})
	app.Server().HeaderReceived = s.bodyOf
	var patterns []string
	methods := make(map[string][]string) // of a pattern
	for i := range s.routes {
		r := &s.routes[i]
		if methods[r.pattern] == nil {
			patterns = append(patterns, r.pattern)
		}
		same := []string{r.method}
		if r.method == http.MethodGet {
			same = append(same, http.MethodHead)
		}
		for _, m := range same {
			app.Add(m, r.pattern, func(c *fiber.Ctx) error { return s.handle(c, r) })
			methods[r.pattern] = append(methods[r.pattern], m)
		}
	}
	for _, pattern := range patterns {
		allow := strings.Join(append(methods[pattern], http.MethodOptions), ", ")
		r := &route{http.MethodOptions, pattern, guard{kind: guardOpen}, "options", false, func(c *call) error { return c.options(allow) }}
		app.Add(r.method, pattern, func(c *fiber.Ctx) error { return s.handle(c, r) })
	}
	for prefix, h := range s.cfg.Mount {
		serve := fasthttpadaptor.NewFastHTTPHandler(h)
		prefix = strings.TrimRight(prefix, "/")
		r := &route{"", prefix, guard{kind: guardMounted}, "mounted", false, func(c *call) error { serve(c.http.Context()); return nil }}
		for _, pattern := range []string{prefix, prefix + "/*"} {
			app.All(pattern, func(c *fiber.Ctx) error { return s.handle(c, r) })
		}
	}
	// Fiber answers a method that HTTP does not know by itself, without a request id; and what could be read in two ways must
	// not be read at all.
	routed := app.Server().Handler
	app.Server().Handler = func(ctx *fasthttp.RequestCtx) {
		err := unambiguous(&ctx.Request.Header)
		if err == nil && slices.Contains(fiber.DefaultMethods, string(ctx.Method())) {
			routed(ctx)
			return
		}
		c := app.AcquireCtx(ctx)
		defer app.ReleaseCtx(c)
		if err != nil {
			ctx.SetConnectionClose() // where the next request begins is in doubt, too
		} else {
			err = unroutedAs(http.StatusNotImplemented)
		}
		s.refuseUnrouted(c, err)
	}
	return app
}

// Route is a line of the route table, for those who check or describe it. Guard is "open", "records", "logout-token", a capability such
// as "audit:read", or "" for a route that was left without one (it serves nobody).
type Route struct{ Method, Pattern, Interaction, Guard string }

// Routes lists the table, without HEAD, OPTIONS and mounts.
func (s *Server) Routes() []Route {
	list := make([]Route, len(s.routes))
	for i, r := range s.routes {
		list[i] = Route{r.method, r.pattern, r.interaction, r.guard.String()}
	}
	return list
}

func (g guard) String() string {
	switch g.kind {
	case guardOpen:
		return "open"
	case guardRecords:
		return "records"
	case guardLogout:
		return "logout-token"
	case guardCapability:
		s := g.capability
		for _, other := range []string{g.aliased, g.own} {
			if other != "" {
				s += " or " + other
			}
		}
		return s
	default:
		return ""
	}
}
