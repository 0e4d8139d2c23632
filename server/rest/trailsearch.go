package rest

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/balp"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// trailSearch is a search over AuditEvents, as far as it was understood.
type trailSearch struct {
	base, issuer string
	alternatives [][]audit.Term // an event is found when all terms of one of them hold
	from, to     time.Time
	patient      string         // first patient that was asked for
	named        []audit.Entity // records, and further patients
	count        int
	forward      bool
	page         string
	self         []phi.Param
	warnings     []fhir.Issue
}

// Bounds of one search: the alternatives that it comes down to, each of which is looked for by itself, and its text.
const (
	maxAlternatives = 16
	maxTrailQuery   = 4 << 10
)

// trailParam is a search parameter of AuditEvent.
type trailParam struct {
	name, kind, documentation string
	apply                     func(t *trailSearch, values []string) error
}

// trailParams are FHIR's parameters as far as the trail can find by them, those that BALP's audit repository has, and purpose
// (http://hl7.org/fhir/R4/auditevent.html#search).
func trailParams() []trailParam {
	return []trailParam{
		{"_id", "token", "", (*trailSearch).byID},
		{"action", "token", "As shown: a denial is E.", (*trailSearch).byAction},
		{"address", "string", "Begins with.", func(t *trailSearch, values []string) error {
			return t.restrict([]audit.Term{{Field: audit.FieldNetwork, Op: audit.OpPrefix, Values: values}})
		}},
		{"agent", "reference", "Subject of a token, or id of a client application; not a resource.", (*trailSearch).byAgent},
		{"agent.identifier", "token", "The same, with or without the issuer as system.", (*trailSearch).byAgent},
		{"agent-role", "token", "Role that took part in the decision.", is(audit.FieldRole)},
		{"date", "date", "eq, ge, gt, le, lt; may be repeated.", (*trailSearch).byDate},
		{"entity", "reference", "Type/id.", (*trailSearch).byEntity},
		{"entity.identifier", "token", "The X-Request-Id.", is(audit.FieldRequest)},
		{"entity-type", "token", "Resource type of an entity.", (*trailSearch).byEntityType},
		{"outcome", "token", "", is(audit.FieldOutcome)},
		{"patient", "reference", "", (*trailSearch).byPatient},
		{"purpose", "token", "Purpose of use; not a parameter of FHIR's.", is(audit.FieldPurpose)},
		{"subtype", "token", "As shown: a denial is AuthZ-Role.", (*trailSearch).bySubtype},
		{"type", "token", "As shown: a denial is 110113.", (*trailSearch).byType},
	}
}

// parse reads the parameters. What is not known is named in a warning, or refused when strict.
func (t *trailSearch) parse(list []phi.Param, strict bool) error {
	known := trailParams()
	size := 0
	for _, p := range list {
		if p.Value == "" {
			continue // FHIR ignores parameters without a value
		}
		if size += len(p.Name) + len(p.Value); size > maxTrailQuery || len(p.Value) > 1024 {
			return invalid("the search is too long")
		}
		if strings.ContainsFunc(p.Value, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
			return invalid("a search parameter holds control characters, or is not UTF-8")
		}
		understood, err := t.shape(p)
		if err != nil {
			return err
		}
		if at := slices.IndexFunc(known, func(k trailParam) bool { return k.name == p.Name }); at >= 0 {
			understood = true
			if err := known[at].apply(t, alternativesOf(p)); err != nil {
				return err
			}
		}
		switch {
		case understood:
			if p.Name != pageParam {
				t.self = append(t.self, p)
			}
		case strict, strings.Contains(p.Name, ":"): // without its modifier a parameter would find something else
			return &refusal{status: http.StatusBadRequest, code: "not-supported", text: "a search parameter or modifier is not supported for this type"}
		default:
			t.warnings = append(t.warnings, fhir.Issue{
				Severity: "warning", Code: "not-supported", Diagnostics: "a search parameter that is not supported was ignored",
			})
		}
	}
	if !t.from.IsZero() && !t.to.IsZero() && t.to.Before(t.from) {
		t.alternatives = nil // nothing is in both
	}
	for _, terms := range t.alternatives {
		q := audit.Query{Terms: terms, From: t.from, To: t.to}
		if q.Validate() != nil {
			return invalid("a search parameter has a malformed value")
		}
	}
	return nil
}

// pageParam continues a search.
const pageParam = "_page"

// shape takes the parameters that are about the answer.
func (t *trailSearch) shape(p phi.Param) (understood bool, err error) {
	switch p.Name {
	case pageParam:
		t.page = p.Value
	case "_count":
		if t.count, err = strconv.Atoi(p.Value); err != nil || t.count < 0 {
			return false, invalid("_count is a number from 0 on")
		}
		t.count = min(t.count, audit.MaxPage)
	case "_sort":
		t.forward = p.Value == "date"
		return t.forward || p.Value == "-date", nil
	case "_total":
		return p.Value == "none", nil
	case "_summary":
		return p.Value == "false", nil
	case "outcome:missing": // an intent has none; its outcome is another event
		if p.Value != "true" && p.Value != "false" {
			return false, invalid("outcome:missing is true or false")
		}
		intent := audit.Is(audit.FieldOutcome, "-1")
		intent.Not = p.Value == "false"
		return true, t.restrict([]audit.Term{intent})
	default:
		return false, nil
	}
	return true, nil
}

// alternativesOf cuts a value at its commas.
func alternativesOf(p phi.Param) []string {
	values := fhir.SplitSearchValue(p.Value, ',')
	for i := range values {
		values[i] = fhir.SearchLiteral(values[i])
	}
	return values
}

// code is the code of a token, with or without a system. The codes of the trail are told apart without one.
func code(token string) string {
	if at := strings.LastIndexByte(token, '|'); at >= 0 {
		return token[at+1:]
	}
	return token
}

// is is a parameter that one field of the trail answers.
func is(f audit.Field) func(*trailSearch, []string) error {
	return func(t *trailSearch, values []string) error {
		for i := range values {
			values[i] = code(values[i])
		}
		return t.restrict([]audit.Term{audit.Is(f, values...)})
	}
}

// restrict demands one of the given lists of terms, beside everything that was demanded before.
func (t *trailSearch) restrict(either ...[]audit.Term) error {
	var product [][]audit.Term
	for _, before := range t.alternatives {
		for _, also := range either {
			product = append(product, slices.Concat(before, also))
		}
	}
	if len(product) > maxAlternatives {
		return &refusal{status: http.StatusBadRequest, code: "too-costly", text: "the search has too many alternatives"}
	}
	t.alternatives = product
	return nil
}

func (t *trailSearch) byID(values []string) error {
	var ids []string
	for _, v := range values {
		if id, err := audit.ParseID(v); err == nil { // nothing else is an id of the trail, so nothing else can be found
			ids = append(ids, id.String())
			t.named = append(t.named, audit.Entity{Type: trailType, ID: id.String()})
		}
	}
	if ids == nil {
		return t.restrict()
	}
	return t.restrict([]audit.Term{audit.Is(audit.FieldID, ids...)})
}

// local takes this server's address and a type off a reference.
func (t *trailSearch) local(reference, resourceType string) (id string, ok bool) {
	id = strings.TrimPrefix(strings.TrimPrefix(reference, t.base+"/"), resourceType+"/")
	return id, fhir.ValidID(id)
}

func (t *trailSearch) byPatient(values []string) error {
	for i, v := range values {
		id, ok := t.local(v, "Patient")
		if !ok {
			return invalid("patient is an id or Patient/id")
		}
		values[i] = id
		t.name(audit.Entity{Type: "Patient", ID: id})
	}
	return t.restrict([]audit.Term{audit.Is(audit.FieldPatient, values...)})
}

// name notes who or what was asked for: the first patient is whom the search is about.
func (t *trailSearch) name(n audit.Entity) {
	if n.Type == "Patient" && (t.patient == "" || t.patient == n.ID) {
		t.patient = n.ID
		return
	}
	if !slices.Contains(t.named, n) {
		t.named = append(t.named, n)
	}
}

func (t *trailSearch) byEntity(values []string) error {
	var entities, patients []string
	for _, v := range values {
		v = strings.TrimPrefix(v, t.base+"/")
		kind, id, _ := strings.Cut(v, "/")
		if !fhir.Known(kind) || !fhir.ValidID(id) {
			return invalid("entity is Type/id")
		}
		entities = append(entities, v)
		if kind == "Patient" {
			patients = append(patients, id)
		}
		t.name(audit.Entity{Type: kind, ID: id})
	}
	either := [][]audit.Term{{audit.Is(audit.FieldEntity, entities...)}}
	if patients != nil {
		either = append(either, []audit.Term{audit.Is(audit.FieldPatient, patients...)})
	}
	return t.restrict(either...)
}

func (t *trailSearch) byEntityType(values []string) error {
	for i, v := range values {
		if values[i] = code(v); !fhir.Known(values[i]) {
			return invalid("entity-type is a resource type")
		}
	}
	return t.restrict([]audit.Term{audit.Is(audit.FieldEntityType, values...)})
}

func (t *trailSearch) byAgent(values []string) error {
	for i, v := range values {
		values[i] = strings.TrimPrefix(v, t.issuer+"|")
		if kind, id, ok := strings.Cut(values[i], "/"); ok && fhir.Known(kind) && fhir.ValidID(id) {
			return &refusal{status: http.StatusBadRequest, code: "not-supported", text: "agent is the subject of a token or a client id; agents are not found by their resources"}
		}
	}
	return t.restrict([]audit.Term{audit.Is(audit.FieldAgent, values...)}, []audit.Term{audit.Is(audit.FieldClient, values...)})
}

// shownAs are the terms that separate denials, which are shown with a type, subtype and action of their own, from the rest.
func shownAs() (denied, plain []audit.Term, other audit.Term) {
	reasons := balp.DeniedReasons()
	rest := audit.Is(audit.FieldType, string(audit.TypeREST))
	denied = []audit.Term{rest, reasons}
	reasons.Not = !reasons.Not
	other = rest
	other.Not = true
	return denied, []audit.Term{rest, reasons}, other
}

func (t *trailSearch) byType(values []string) error {
	denied, plain, _ := shownAs()
	var either [][]audit.Term
	var others []string
	for _, v := range values {
		switch v = code(v); audit.Type(v) {
		case audit.TypeREST:
			either = append(either, plain)
		case audit.TypeSecurityAlert:
			either = append(either, denied)
			others = append(others, v)
		default:
			others = append(others, v)
		}
	}
	if others != nil {
		either = append(either, []audit.Term{audit.Is(audit.FieldType, others...)})
	}
	return t.restrict(either...)
}

func (t *trailSearch) bySubtype(values []string) error {
	denied, plain, other := shownAs()
	var either [][]audit.Term
	var interactions []string
	for _, v := range values {
		switch v = code(v); v {
		case balp.AuthZRole:
			either = append(either, denied)
		case balp.Disclose:
			either = append(either, []audit.Term{audit.Is(audit.FieldType, string(audit.TypeExport))})
		default:
			interactions = append(interactions, balp.Interactions(v)...)
		}
	}
	if interactions != nil {
		asked := audit.Is(audit.FieldInteraction, interactions...)
		either = append(either, append(slices.Clone(plain), asked), []audit.Term{other, asked})
	}
	return t.restrict(either...)
}

func (t *trailSearch) byAction(values []string) error {
	denied, plain, other := shownAs()
	for i := range values {
		values[i] = code(values[i])
	}
	asked := audit.Is(audit.FieldAction, values...)
	either := [][]audit.Term{append(slices.Clone(plain), asked), {other, asked}}
	if slices.Contains(values, string(audit.ActionExecute)) {
		either = append(either, denied)
	}
	return t.restrict(either...)
}

// byDate narrows the time; a partial date is the whole of its span (http://hl7.org/fhir/R4/search.html#date).
func (t *trailSearch) byDate(values []string) error {
	if len(values) != 1 {
		return &refusal{status: http.StatusBadRequest, code: "not-supported", text: "date does not take alternatives"}
	}
	prefix, value := "eq", values[0]
	if len(value) > 2 && value[0] >= 'a' && value[0] <= 'z' {
		prefix, value = value[:2], value[2:]
	}
	from, to, ok := span(value)
	if !ok {
		return invalid("date is not a FHIR date")
	}
	switch prefix {
	case "eq":
		t.since(from)
		t.until(to)
	case "ge":
		t.since(from)
	case "gt", "sa":
		t.since(to)
	case "le":
		t.until(to)
	case "lt", "eb":
		t.until(from)
	default:
		return &refusal{status: http.StatusBadRequest, code: "not-supported", text: "date has a prefix that is not supported"}
	}
	return nil
}

func (t *trailSearch) since(at time.Time) {
	if at.After(t.from) {
		t.from = at
	}
}

func (t *trailSearch) until(at time.Time) {
	if t.to.IsZero() || at.Before(t.to) {
		t.to = at
	}
}

// span returns the time from which and before which a date of some precision lies.
func span(date string) (from, to time.Time, ok bool) {
	for _, p := range [...]struct {
		layout              string
		years, months, days int
		length              time.Duration
	}{
		{"2006", 1, 0, 0, 0}, {"2006-01", 0, 1, 0, 0}, {"2006-01-02", 0, 0, 1, 0}, {"2006-01-02T15:04Z07:00", 0, 0, 0, time.Minute},
		{"2006-01-02T15:04:05Z07:00", 0, 0, 0, time.Second},
	} {
		if at, err := time.Parse(p.layout, date); err == nil && !strings.Contains(date, ".") {
			return at.UTC(), at.UTC().AddDate(p.years, p.months, p.days).Add(p.length), at.Year() > 1
		}
	}
	at, err := time.Parse(time.RFC3339Nano, date)
	if err != nil {
		return from, to, false
	}
	point := strings.IndexByte(date, '.')
	digits := strings.IndexFunc(date[point+1:], func(r rune) bool { return r < '0' || r > '9' })
	length := time.Second
	for range min(digits, 6) { // the trail has microseconds
		length /= 10
	}
	at = at.UTC().Truncate(length)
	return at, at.Add(length), true
}

// query is the search as the query part of a URL, without its page.
func (t *trailSearch) query() string {
	var b strings.Builder
	for i, p := range t.self {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(url.QueryEscape(p.Name) + "=" + url.QueryEscape(p.Value))
	}
	return b.String()
}

// place is what a page is bound to: the parameters as they were given, without _count, which may change from page to page.
func (t *trailSearch) place() *look {
	digest := sha256.New()
	digest.Write([]byte(trailType))
	for _, p := range t.self {
		if p.Name != "_count" {
			fmt.Fprintf(digest, "\n%d:%s=%d:%s", len(p.Name), p.Name, len(p.Value), p.Value)
		}
	}
	return &look{bound: digest.Sum(nil)}
}
