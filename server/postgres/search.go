package postgres

import (
	"context"
	"strconv"
	"strings"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// Search implements phi.Storage.
//
// What narrows a search down (ids, tokens, compartments) is collected first, in a materialised set: the planner cannot be
// tempted to walk the whole type in id order. A practitioner's filter alone drives the search too; beside another set it is
// checked row by row.
func (s *recordStorage) Search(ctx context.Context, sel phi.Selection, classes phi.ClassSet) ([]*phi.Sealed, error) {
	classes &= phi.AllClasses
	sql, args := searchSQL(s.statements[classes].columns, sel)
	return s.all(ctx, sql, classes, append([]any{s.binary}, args...)...)
}

// searchSQL builds the statement: its text depends on which fields are set, never on their values.
func searchSQL(columns string, sel phi.Selection) (string, []any) {
	args := []any{sel.Type, sel.After, sel.Limit}
	param := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	var sets []string
	if sel.IDs != nil {
		sets = append(sets, `SELECT unnest(`+param(sel.IDs)+`::text[]) AS id`)
	}
	for _, alternatives := range sel.Tokens {
		kinds, values := tokenColumns(alternatives)
		sets = append(sets, `SELECT t.id FROM unnest(`+param(kinds)+`::smallint[], `+param(values)+`::bytea[]) w(kind, token)
			JOIN index_token t USING (kind, token) WHERE t.type = $1 AND t.id > $2`)
	}
	compartments := func(patients []string) string {
		return `SELECT p.id FROM unnest(` + param(patients) + `::text[]) w(patient)
			JOIN record_patient p USING (patient) WHERE p.type = $1 AND p.id > $2`
	}
	if sel.Patients != nil {
		sets = append(sets, compartments(named(sel.Patients)))
	}
	if sel.Patient != "" {
		in := []string{sel.Patient}
		if !sel.Named {
			in = append(in, "") // records of nobody's
		}
		sets = append(sets, compartments(in))
	}
	var where strings.Builder
	if sel.Practitioner != "" {
		orNobodys, unionNobodys := `r.patients = '{}' OR `, ` UNION SELECT ''`
		if sel.Named {
			orNobodys, unionNobodys = ``, ``
		}
		if len(sets) == 0 {
			sets = append(sets, `SELECT p.id FROM (SELECT patient FROM treating WHERE practitioner = `+param(sel.Practitioner)+
				unionNobodys+`) w JOIN record_patient p USING (patient) WHERE p.type = $1 AND p.id > $2`)
		} else {
			where.WriteString(` AND (` + orNobodys + `EXISTS (SELECT FROM treating t
				WHERE t.practitioner = ` + param(sel.Practitioner) + ` AND t.patient = ANY (r.patients)))`)
		}
	}
	if sel.Gates != nil {
		where.WriteString(gatesSQL(sel.Type, sel.Gates, param))
	}
	if !sel.UpdatedFrom.IsZero() {
		where.WriteString(` AND r.updated >= ` + param(sel.UpdatedFrom))
	}
	if !sel.UpdatedTo.IsZero() {
		where.WriteString(` AND r.updated < ` + param(sel.UpdatedTo))
	}
	with, from := ``, `record r`
	if only := onlyToken(sel); only != nil {
		// The index is in the order of the ids already: nothing to collect.
		from = `index_token t JOIN record r ON r.type = t.type AND r.id = t.id`
		where.WriteString(` AND t.type = $1 AND t.id > $2 AND t.kind = $4::smallint AND t.token = $5::bytea`)
		args[3], args[4] = int16(only.Kind), only.Value[:]
	} else if len(sets) > 0 {
		with = `WITH found AS MATERIALIZED (SELECT DISTINCT id FROM (` + strings.Join(sets, ` INTERSECT `) + `) f) `
		from = `found JOIN record r USING (id)`
	}
	return with + `SELECT ` + columns + ` FROM ` + from + `
		WHERE r.type = $1 AND r.id > $2 AND r.method <> 'DELETE'` + where.String() + ` ORDER BY r.id LIMIT $3`, args
}

// gatesSQL is auth.JudgeConsents and auth.SegmentSet for a row r, as a condition: one deny of any of its patients, without a permit
// of the same Consent that is nested deeper, keeps it out; a segment is open by role, or when a Consent of each of its patients opens it.
func gatesSQL(resourceType string, g *auth.Filter, param func(any) string) string {
	open := append((g.Segments &^ g.Closed).Numbers(), int32(auth.SegmentGeneral))
	byRole := `r.segment = ANY (` + param(open) + `::integer[])`
	if g.Exempt {
		return ` AND ` + byRole
	}
	about := concerned(g.Actor)
	if resourceType == "Consent" {
		about = about[1:]
	}
	who, purpose := param(about), param(g.Purpose)
	rule := func(c string) string {
		return c + `.actor = ANY (` + who + `::text[]) AND (` + c + `.segments = '{}' OR r.segment = ANY (` + c + `.segments)) AND (` +
			c + `.purposes = '{}' OR ` + purpose + `::text = ANY (` + c + `.purposes)) AND ` + c + `.starts <= now() AND now() < ` + c + `.ends`
	}
	overruled := func(by string) string {
		return `NOT EXISTS (SELECT FROM consent_rule x WHERE x.patient = c.patient AND x.consent = c.consent AND ` + by + ` AND ` + rule("x") + `)`
	}
	return ` AND NOT EXISTS (SELECT FROM consent_rule c WHERE c.patient = ANY (r.patients) AND NOT c.permit AND ` + rule("c") + ` AND ` +
		overruled(`x.permit AND x.depth > c.depth`) + `)
		AND (` + byRole + ` OR r.patients <> '{}' AND r.segment <> ALL (` + param(g.Closed.Numbers()) + `::integer[])
			AND NOT EXISTS (SELECT FROM unnest(r.patients) w(patient) WHERE NOT EXISTS (SELECT FROM consent_rule c
				WHERE c.patient = w.patient AND c.permit AND r.segment = ANY (c.segments)
					AND (r.segment <> ` + strconv.Itoa(int(auth.SegmentPsychotherapy)) + ` OR c.actor <> '') AND ` + rule("c") + ` AND ` +
		overruled(`NOT x.permit AND x.depth >= c.depth`) + `)))`
}

// onlyToken is the token that a selection goes by when that is all that narrows it down; nil otherwise.
func onlyToken(sel phi.Selection) *phi.Token {
	if len(sel.Tokens) != 1 || len(sel.Tokens[0]) != 1 || sel.IDs != nil || sel.Patients != nil || sel.Patient != "" {
		return nil
	}
	return &sel.Tokens[0][0]
}

// named leaves out the empty id, which stands for records of nobody's.
func named(patients []string) []string {
	out := make([]string, 0, len(patients))
	for _, p := range patients {
		if p != "" {
			out = append(out, p)
		}
	}
	return out
}

func tokenColumns(tokens []phi.Token) (kinds []int16, values [][]byte) {
	kinds, values = make([]int16, len(tokens)), make([][]byte, len(tokens))
	for i, t := range tokens {
		kinds[i], values[i] = int16(t.Kind), t.Value[:]
	}
	return kinds, values
}
