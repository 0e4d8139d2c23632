package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// The rollups, see migration/0006_rollup.sql: a deed is what was done, an actor who did it why, both know how it ended.

// deed and actor are the properties that a rollup tells apart. Lists are sorted and distinct, each item ends with NUL, which no
// projected text holds.
type deed struct {
	hour                                   int64 // since 1970
	kind, interaction, action, entityTypes string
	ending
}

type actor struct {
	hour                         int64
	client, roles, purpose, view string
	ending
}

type ending struct {
	outcome      int16
	allowed      bool
	reason       string
	housekeeping bool
}

// total is the properties of a total.
type total struct {
	minute       int64 // since 1970
	housekeeping bool
}

// endings counts how events ended.
type endings struct{ events, denied, failed int64 }

// latency is the properties of a histogram.
type latency struct {
	minute      int64 // since 1970
	route, role string
}

// rollup counts events in memory.
type rollup struct {
	totals    map[total]endings
	deeds     map[deed]int64
	actors    map[actor]int64
	latencies map[latency]*audit.LatencyHistograms
}

func newRollup() *rollup {
	return &rollup{map[total]endings{}, map[deed]int64{}, map[actor]int64{}, map[latency]*audit.LatencyHistograms{}}
}

// add counts an event.
func (r *rollup) add(at time.Time, e *audit.Event) {
	end := ended(e)
	n := endings{events: 1}
	if !end.allowed && end.reason != "" {
		n.denied = 1
	}
	if e.Outcome >= audit.SeriousFailure {
		n.failed = 1
	}
	r.addTotal(total{floorDivide(at.Unix(), 60), end.housekeeping}, n)
	r.addKinds(at, e, end, 1)
	r.addTimings(at, e)
}

func ended(e *audit.Event) ending {
	return ending{int16(e.Outcome), e.Decision.Allowed, projected(e.Decision.Reason), e.Housekeeping()}
}

func (r *rollup) addTotal(t total, n endings) {
	sum := r.totals[t]
	r.totals[t] = endings{sum.events + n.events, sum.denied + n.denied, sum.failed + n.failed}
}

// addKinds counts n events like this one, as their columns have it.
func (r *rollup) addKinds(at time.Time, e *audit.Event, end ending, n int64) {
	hour := floorDivide(at.Unix(), 3600)
	r.deeds[deed{
		hour, projected(string(e.Type)), projected(e.Interaction), projected(string(rune(e.Action))),
		list(len(e.Entities), func(i int) string {
			kind, _, _ := strings.Cut(projected(e.Entities[i].Type), "/")
			return kind
		}), end,
	}] += n
	roles := list(len(e.Agent.Roles), func(i int) string { return projected(e.Agent.Roles[i]) })
	r.actors[actor{hour, projected(e.Agent.Client), roles, projected(e.Purpose), projected(e.Decision.View), end}] += n
}

// addTimings counts the requests of an event that carries late timings. What does not decode is an event and no more.
func (r *rollup) addTimings(at time.Time, e *audit.Event) {
	if e.Type != audit.TypeApplication || e.Interaction != audit.InteractionTimings {
		return
	}
	timings, err := audit.DecodeTimings(e.Detail)
	if err != nil {
		return
	}
	for i := range timings {
		key := latency{floorDivide(at.Unix(), 60), projected(timings[i].Route), projected(timings[i].Role)}
		if r.latencies[key] == nil {
			r.latencies[key] = new(audit.LatencyHistograms)
		}
		r.latencies[key].Count(&timings[i].Timing)
	}
}

func list(n int, item func(i int) string) string {
	switch n {
	case 0:
		return ""
	case 1:
		return item(0) + "\x00"
	}
	items := make([]string, n)
	for i := range items {
		items[i] = item(i)
	}
	slices.Sort(items)
	return strings.Join(slices.Compact(items), "\x00") + "\x00"
}

func items(list string) []string {
	if list == "" {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(list, "\x00"), "\x00")
}

func floorDivide(a, b int64) int64 {
	if a < 0 {
		return (a+1)/b - 1
	}
	return a / b
}

// totalCell, deedCell, actorCell and latencyCell are how audit_roll takes a rollup.
type totalCell struct {
	Minute       int64 `json:"minute"`
	Housekeeping bool  `json:"housekeeping"`
	Events       int64 `json:"events"`
	Denied       int64 `json:"denied"`
	Failed       int64 `json:"failed"`
}

type deedCell struct {
	Hour         int64    `json:"hour"`
	Type         string   `json:"type"`
	Interaction  string   `json:"interaction"`
	Action       string   `json:"action"`
	EntityTypes  []string `json:"entity_types"`
	Outcome      int16    `json:"outcome"`
	Allowed      bool     `json:"allowed"`
	Reason       string   `json:"reason"`
	Housekeeping bool     `json:"housekeeping"`
	Events       int64    `json:"events"`
}

type actorCell struct {
	Hour         int64    `json:"hour"`
	Client       string   `json:"client"`
	Roles        []string `json:"roles"`
	Purpose      string   `json:"purpose"`
	View         string   `json:"view"`
	Outcome      int16    `json:"outcome"`
	Allowed      bool     `json:"allowed"`
	Reason       string   `json:"reason"`
	Housekeeping bool     `json:"housekeeping"`
	Events       int64    `json:"events"`
}

type latencyCell struct {
	Minute   int64  `json:"minute"`
	Route    string `json:"route"`
	Role     string `json:"role"`
	Total    string `json:"total"`
	Auth     string `json:"auth"`
	Decision string `json:"decision"`
	Database string `json:"database"`
	Crypto   string `json:"crypto"`
	Audit    string `json:"audit"`
}

// rollCells is the most cells that one statement takes.
const rollCells = 10_000

// store adds what was counted to the database's rollups, last thing in the transaction that stores the rows.
func (r *rollup) store(ctx context.Context, tx pgx.Tx) error {
	sums, deeds := make([]totalCell, 0, len(r.totals)), make([]deedCell, 0, len(r.deeds))
	actors, latencies := make([]actorCell, 0, len(r.actors)), make([]latencyCell, 0, len(r.latencies))
	for t, n := range r.totals {
		sums = append(sums, totalCell{t.minute, t.housekeeping, n.events, n.denied, n.failed})
	}
	for d, n := range r.deeds {
		deeds = append(deeds, deedCell{d.hour, d.kind, d.interaction, d.action, items(d.entityTypes), d.outcome, d.allowed, d.reason, d.housekeeping, n})
	}
	for a, n := range r.actors {
		actors = append(actors, actorCell{a.hour, a.client, items(a.roles), a.purpose, a.view, a.outcome, a.allowed, a.reason, a.housekeeping, n})
	}
	for l, h := range r.latencies {
		latencies = append(latencies, latencyCell{l.minute, l.route, l.role, packed(&h[0]), packed(&h[1]), packed(&h[2]), packed(&h[3]), packed(&h[4]), packed(&h[5])})
	}
	for len(sums)+len(deeds)+len(actors)+len(latencies) > 0 {
		var some [4][]byte
		for i, part := range []any{cut(&sums), cut(&deeds), cut(&actors), cut(&latencies)} {
			b, err := json.Marshal(part)
			if err != nil {
				return fmt.Errorf("encoding rollup: %w", err)
			}
			some[i] = b
		}
		if _, err := tx.Exec(ctx, `SELECT audit_roll($1, $2, $3, $4)`, some[0], some[1], some[2], some[3]); err != nil {
			if refusedData(err) {
				return fmt.Errorf("%w: PostgreSQL error %s", errUncounted, sqlState(err))
			}
			return bare("counting rows", err)
		}
	}
	return nil
}

// errUncounted says that the rollups cannot hold what a batch counts to, whenever it is tried.
var errUncounted = errors.New("counting rows refused")

// cut takes the first rollCells off the front of cells.
func cut[T any](cells *[]T) []T {
	n := min(len(*cells), rollCells)
	some := (*cells)[:n]
	*cells = (*cells)[n:]
	return some
}

// packedDigits is how many decimal digits a bucket's count takes in a packed histogram.
const packedDigits = 12

// packed writes a histogram as one number: bucket i counts from 10^(12 i) on.
func packed(h *audit.LatencyHistogram) string {
	first := slices.IndexFunc(h[:], func(n int64) bool { return n != 0 })
	if first < 0 {
		return "0"
	}
	last := len(h) - 1
	for h[last] == 0 {
		last--
	}
	var b strings.Builder
	for i := last; i >= first; i-- {
		fmt.Fprintf(&b, "%0*d", packedDigits, h[i])
	}
	fmt.Fprintf(&b, "e%d", packedDigits*first)
	return b.String()
}

// unpacked reads what packed wrote, or a sum of such numbers, without an exponent.
func unpacked(s string) (h audit.LatencyHistogram, err error) {
	for i := 0; s != "" && s != "0"; i++ {
		at := max(len(s)-packedDigits, 0)
		n, ok := new(big.Int).SetString(s[at:], 10)
		if !ok || i == len(h) {
			return h, fmt.Errorf("reading histogram: no packed number of %d buckets", len(h))
		}
		h[i], s = n.Int64(), s[:at]
	}
	return h, nil
}
