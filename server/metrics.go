package main

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/server/rest"
)

// metrics are the Prometheus metrics of one server. Labels are route patterns, methods and statuses, never values of a
// request.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec // route, method, status
	parts    *prometheus.HistogramVec // route, part
	limited  *prometheus.CounterVec   // limit
	known    sync.Map                 // of *series by seriesKey; routes, methods and statuses are few
	timings  *audit.Timings           // for the trail
}

// newMetrics registers the histograms and a collector over the rooms' Stats snapshots.
func newMetrics(r *rooms, v *auth.Verifier, t *audit.Timings) *metrics {
	m := &metrics{
		timings:  t,
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "chartkeep_http_request_duration_seconds", Help: "Time from the request's last byte to the response, by route.",
			Buckets: []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .2, .5, 1, 2.5, 5},
		}, []string{"route", "method", "status"}),
		parts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "chartkeep_request_part_duration_seconds", Help: "Where a request's time went: auth, decision, database, crypto, audit.",
			Buckets: []float64{1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, .01, .05, .25, 1},
		}, []string{"route", "part"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chartkeep_requests_limited_total", Help: "Requests that were refused for their rate, by limit: ip, open, client, subject, failed-authentication.",
		}, []string{"limit"}),
	}
	m.registry.MustRegister(m.requests, m.parts, m.limited, collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(
		collectors.MetricsScheduler, collectors.MetricsGC)), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&roomsCollector{r, v, t, newDescs()})
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// series are the histograms of one route, method and status, looked up once.
type series struct {
	request prometheus.Observer
	parts   [5]prometheus.Observer
}

type seriesKey struct {
	route, method string
	status        int
}

var partNames = [5]string{"auth", "decision", "database", "crypto", "audit"}

// observe takes one request's observation. It is on the hot path.
func (m *metrics) observe(o rest.Observation) {
	key := seriesKey{o.Route, o.Method, o.Status}
	found, ok := m.known.Load(key)
	if !ok {
		s := &series{request: m.requests.WithLabelValues(o.Route, o.Method, strconv.Itoa(o.Status))}
		for i, name := range partNames {
			s.parts[i] = m.parts.WithLabelValues(o.Route, name)
		}
		found, _ = m.known.LoadOrStore(key, s)
	}
	s := found.(*series)
	s.request.Observe(o.Took.Seconds())
	for i, took := range [5]time.Duration{o.Auth, o.Decision, o.Database, o.Crypto, o.Audit} {
		if took > 0 {
			s.parts[i].Observe(took.Seconds())
		}
	}
	if o.Limited != "" {
		m.limited.WithLabelValues(o.Limited).Inc()
	}
	if o.RequestID != "" {
		m.timings.Add(audit.Timed{
			RequestID: o.RequestID, Route: o.Route, Role: o.Role, Status: uint16(o.Status),
			Timing: audit.Timing{
				Total: micros(o.Took), Auth: micros(o.Auth), Decision: micros(o.Decision), Database: micros(o.Database), Crypto: micros(o.Crypto), Audit: micros(o.Audit),
			},
		})
	}
}

// micros is a duration in whole microseconds, at least 1 for one that is known at all.
func micros(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min(max(d.Microseconds(), 1), 1<<32-1))
}

// roomsCollector reads the rooms' snapshots when Prometheus asks.
type roomsCollector struct {
	rooms    *rooms
	verifier *auth.Verifier // nil when nobody signs in (import)
	timings  *audit.Timings
	descs    map[string]*prometheus.Desc
}

func newDescs() map[string]*prometheus.Desc {
	d := map[string]*prometheus.Desc{}
	for name, help := range map[string]string{
		"audit_recorded_total":           "Audit events made durable in the journal.",
		"audit_rejected_total":           "Audit events that could not be made durable; their requests were refused.",
		"audit_shipped_total":            "Audit events stored in the database.",
		"audit_quarantined_total":        "Stored audit events whose columns the table would not take; they are kept aside, whole.",
		"audit_queue_depth":              "Audit events waiting for the committer.",
		"audit_journal_pending":          "Audit events in the journal and not yet in the database.",
		"audit_journal_lag_seconds":      "Age of the oldest audit event that is not yet in the database.",
		"audit_journal_bytes":            "Size of the journal on disk.",
		"audit_group_commits_total":      "Group writes of the journal.",
		"audit_syncs_total":              "fdatasync calls of the journal.",
		"audit_sync_seconds_total":       "Time spent in fdatasync.",
		"audit_tree_leads":               "1 while this process sequences the audit trail.",
		"audit_tree_size":                "Leaves in the newest checkpoint that this process made or took up.",
		"audit_tree_age_seconds":         "Time since then, while this process leads.",
		"audit_tree_merge_delay_seconds": "How long the oldest record of the newest checkpoint had waited since it was stored.",
		"audit_tree_pending_batches":     "Stored batches that the last look left out of the tree.",
		"audit_tree_blocked_streams":     "Streams whose next batch is not what was recorded: they wait.",
		"audit_tree_anchored_size":       "Leaves in the newest checkpoint that is anchored everywhere.",
		"timings_dropped_total":          "Durations of requests that were not recorded in the trail.",
		"audit_clock_skew_seconds":       "Wall clock minus the database's.",
		"audit_streams_refused_total":    "Journal streams that the database did not continue; their events were recorded again.",
		"phi_integrity_failures_total":   "Stored rows that did not open, or were found under tokens that are not theirs; they were withheld.",
		"phi_integrity_alarm":            "1 while three or more rows failed within the last minute.",
		"auth_policy_version":            "Version of the access policy in force.",
		"auth_revocations":               "Revocations in force.",
		"auth_revocation_epoch":          "Epoch up to which revocations are known.",
		"auth_revocation_age_seconds":    "Time since the database confirmed the revocations; from 5 s on no token is judged.",
		"auth_sessions":                  "Sessions in memory.",
		"auth_sessions_over_total":       "Tokens refused because their session was idle for too long or too old.",
		"auth_tokens_refused_total":      "Tokens refused.",
		"kek_age_seconds":                "Time since the KMS last opened the key-encryption key that waited longest.",
		"kek_refresh_failures_total":     "Times that the KMS did not open a key-encryption key again.",
		"keys_worn":                      "Keys that have encrypted 2^28 times: rotate them before they are refused at 2^31.",
		"key_uses":                       "Encryptions under the key that did most, as far as that is stored; 0 below 2^28.",
	} {
		d[name] = prometheus.NewDesc("chartkeep_"+name, help, nil, nil)
	}
	for name, help := range map[string]string{
		"emergency_access_in_force": "Grants of emergency access that are in force.",
		"emergency_access_waiting":  "Requests beyond the limit of a shift that another person has to decide about.",
		"emergency_reviews_due":     "Grants that nobody has looked into yet.",
		"emergency_reviews_overdue": "Those of them whose deadline is over: anything above 0 is an alarm.",
		"alerts_dropped_total":      "Alerts that came faster than they could be stored; their events are in the trail.",
	} {
		d[name] = prometheus.NewDesc("chartkeep_"+name, help, nil, nil)
	}
	d["alerts_open"] = prometheus.NewDesc("chartkeep_alerts_open", "Alerts that no officer has closed, by severity.", []string{"severity"}, nil)
	d["audit_witness_lag"] = prometheus.NewDesc("chartkeep_audit_witness_lag", "Leaves that the witness has not cosigned.", []string{"witness"}, nil)
	d["audit_witness_refuses"] = prometheus.NewDesc("chartkeep_audit_witness_refuses", "1 while the witness says that the log does not continue what it saw.", []string{"witness"}, nil)
	for name, help := range map[string]string{
		"audit_verified_timestamp_seconds": "When the deployment's own verification of its trail ended last.",
		"audit_verified_size":              "Leaves in the tree that it verified.",
		"audit_verified_findings":          "What it found wrong: anything above 0 is an alarm.",
	} {
		d[name] = prometheus.NewDesc("chartkeep_"+name, help, []string{"look"}, nil)
	}
	for name, help := range map[string]string{
		"records_swept_timestamp_seconds": "When the last sweep of all records ended, on whichever instance.",
		"records_swept_rows":              "Rows that it looked at.",
		"records_swept_findings":          "What it found wrong: anything above 0 is an alarm.",
	} {
		d[name] = prometheus.NewDesc("chartkeep_"+name, help, nil, nil)
	}
	for name, help := range map[string]string{
		"auth_jwks_keys":           "Keys of the issuer at hand.",
		"auth_jwks_age_seconds":    "Time since the issuer's keys were fetched: above an hour, the issuer is away.",
		"auth_jwks_failures_total": "Fetches of the issuer's keys that failed.",
	} {
		d[name] = prometheus.NewDesc("chartkeep_"+name, help, []string{"issuer"}, nil)
	}
	d["auth_refusals_total"] = prometheus.NewDesc("chartkeep_auth_refusals_total",
		"Tokens refused by issuer and by how far they came: format, issuer, key, signature (forged), claims, introspection, revoked.", []string{"issuer", "reason"}, nil)
	d["cache_requests_total"] = prometheus.NewDesc("chartkeep_cache_requests_total", "Cache lookups by cache and result.", []string{"cache", "result"}, nil)
	d["database_connections"] = prometheus.NewDesc("chartkeep_database_connections", "Connections by pool and state.", []string{"pool", "state"}, nil)
	d["database_waits_total"] = prometheus.NewDesc("chartkeep_database_waits_total", "Requests that waited for a connection.", []string{"pool"}, nil)
	return d
}

func (c *roomsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

func (c *roomsCollector) Collect(ch chan<- prometheus.Metric) {
	emit := func(name string, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], kind, v, labels...)
	}
	counter := func(name string, v uint64, labels ...string) {
		emit(name, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(name string, v float64, labels ...string) { emit(name, prometheus.GaugeValue, v, labels...) }
	cache := func(name string, hits, misses uint64) {
		counter("cache_requests_total", hits, name, "hit")
		counter("cache_requests_total", misses, name, "miss")
	}
	a := c.rooms.log.Stats()
	counter("audit_recorded_total", a.Recorded)
	counter("audit_rejected_total", a.Rejected)
	counter("audit_shipped_total", a.Shipped)
	counter("audit_quarantined_total", a.Quarantined)
	gauge("audit_queue_depth", float64(a.Queued))
	gauge("audit_journal_pending", float64(a.Pending))
	gauge("audit_journal_lag_seconds", a.Lag.Seconds())
	gauge("audit_journal_bytes", float64(a.JournalBytes))
	counter("audit_group_commits_total", a.GroupCommits)
	counter("audit_syncs_total", a.Syncs)
	emit("audit_sync_seconds_total", prometheus.CounterValue, a.SyncTime.Seconds())
	counter("timings_dropped_total", c.timings.Dropped())
	gauge("audit_clock_skew_seconds", a.Skew.Seconds())
	counter("audit_streams_refused_total", a.Refused)
	if c.rooms.sequencer != nil {
		c.sequencer(gauge)
		c.patrol(gauge)
	}
	c.sweeper(gauge)
	c.alerts(gauge, counter)
	c.emergencies(gauge)
	access := c.rooms.access.Stats()
	gauge("auth_policy_version", float64(access.Policy))
	revoked := c.rooms.revoked.Stats()
	gauge("auth_revocations", float64(revoked.Held))
	gauge("auth_revocation_epoch", float64(revoked.Epoch))
	gauge("auth_revocation_age_seconds", revoked.Age.Seconds())
	sessions := c.rooms.sessions.Stats()
	gauge("auth_sessions", float64(sessions.Held))
	counter("auth_sessions_over_total", sessions.Over)
	cache("relationships", access.Hits, access.Misses)
	records := c.rooms.records.Stats()
	counter("phi_integrity_failures_total", records.IntegrityFailures)
	gauge("phi_integrity_alarm", number(records.IntegrityAlarm))
	keys := c.rooms.keys.Stats()
	cache("keys", keys.Hits, keys.Misses)
	gauge("kek_age_seconds", keys.Age.Seconds())
	counter("kek_refresh_failures_total", keys.RefreshFailures)
	gauge("keys_worn", float64(keys.Worn))
	gauge("key_uses", float64(keys.MostUses))
	if c.verifier != nil {
		v := c.verifier.Stats()
		cache("tokens", v.Hits, v.Misses)
		counter("auth_tokens_refused_total", v.Refused)
		for stage, n := range v.Strangers {
			counter("auth_refusals_total", n, "(unknown)", auth.Stage(stage).String())
		}
		for _, is := range v.Issuers {
			for stage, n := range is.Refused {
				counter("auth_refusals_total", n, is.Name, auth.Stage(stage).String())
			}
			if is.Asked {
				continue
			}
			counter("auth_jwks_failures_total", is.KeyFailures, is.Name)
			gauge("auth_jwks_keys", float64(is.Keys), is.Name)
			if !is.KeysFetched.IsZero() {
				gauge("auth_jwks_age_seconds", time.Since(is.KeysFetched).Seconds(), is.Name)
			}
		}
	}
	for _, p := range c.rooms.db.Stats() {
		gauge("database_connections", float64(p.Acquired), p.Name, "acquired")
		gauge("database_connections", float64(p.Idle), p.Name, "idle")
		gauge("database_connections", float64(p.Max), p.Name, "max")
		counter("database_waits_total", uint64(p.Waits), p.Name)
	}
}

// sequencer emits what the sequencer knows; what only a leader knows, only while it leads.
func (c *roomsCollector) sequencer(gauge func(name string, v float64, labels ...string)) {
	s := c.rooms.sequencer.Stats()
	gauge("audit_tree_leads", number(s.Leads))
	gauge("audit_tree_size", float64(s.Size))
	if !s.Leads {
		return
	}
	gauge("audit_tree_age_seconds", time.Since(s.Signed).Seconds())
	gauge("audit_tree_merge_delay_seconds", s.MergeDelay.Seconds())
	gauge("audit_tree_pending_batches", float64(s.Pending))
	gauge("audit_tree_blocked_streams", float64(s.Blocked))
	gauge("audit_tree_anchored_size", float64(s.Anchored))
	for _, w := range s.Witnesses {
		gauge("audit_witness_lag", float64(s.Size-w.Cosigned), w.Name)
		gauge("audit_witness_refuses", number(w.Refused), w.Name)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
