package postgres

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
)

// factsSQL looks up, of an actor and each of some patients, the relationship that holds longest and the rules of consents that are not over.
const factsSQL = `SELECT p.place, coalesce(t.source, ''), nullif(t.until, 'infinity'), authz_shard($1), authz_shard(p.patient),
		c.consent, c.depth, c.permit, c.actor, c.segments, c.purposes, nullif(c.starts, '-infinity'), nullif(c.ends, 'infinity')
	FROM unnest($2::text[]) WITH ORDINALITY p(patient, place)
	LEFT JOIN LATERAL (SELECT v.source, v.until FROM treating v WHERE v.practitioner = $1 AND v.patient = p.patient
		ORDER BY v.until DESC, v.source COLLATE "C" LIMIT 1) t ON true
	LEFT JOIN consent_rule c ON c.patient = p.patient AND c.actor = ANY ($3) AND now() < c.ends
	ORDER BY p.place, c.consent`

// Facts implements auth.Storage.
func (s *AuthStorage) Facts(ctx context.Context, a auth.Actor, patients []string) ([]auth.Fact, error) {
	rows, err := s.pool.Query(ctx, factsSQL, a.Practitioner, patients, concerned(a))
	if err != nil {
		return nil, bare("looking up facts", err)
	}
	facts := make([]auth.Fact, len(patients))
	var place int
	var source string
	var practitioner, patient uint8
	var until, from, to *time.Time
	var consent, actor *string
	var depth *int
	var permit *bool
	var segments []int32
	var purposes []string
	if _, err := pgx.ForEachRow(rows, []any{&place, &source, &until, &practitioner, &patient,
		&consent, &depth, &permit, &actor, &segments, &purposes, &from, &to}, func() error {
		f := &facts[place-1]
		f.Related, f.Until, f.RelationshipShard, f.ConsentShard = source, orZero(until), practitioner, patient
		if consent == nil {
			return nil
		}
		r := auth.ConsentRule{
			Consent: *consent, Depth: *depth, Permit: *permit, Actor: *actor, From: orZero(from), Until: orZero(to),
			Purposes: append([]string(nil), purposes...),
		}
		for _, x := range segments {
			r.Segments |= 1 << x
		}
		f.Consents = append(f.Consents, r)
		return nil
	}); err != nil {
		return nil, bare("looking up facts", err)
	}
	return facts, nil
}

// concerned are whom rules are about that count for an actor: everybody, and the actor by name.
func concerned(a auth.Actor) []string {
	if a.Practitioner == "" {
		return []string{""}
	}
	return []string{"", "Practitioner/" + a.Practitioner}
}

// instant writes a time for PostgreSQL; the zero one is without end, in the direction that is said.
func instant(t time.Time, zero string) string {
	if t.IsZero() {
		return zero
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// Grant makes an explicit treatment relationship; granting what is granted changes nothing, and of several the longest counts. Its
// reason is a code or a ticket number, never clinical text: it is stored in the clear.
func (s *AuthStorage) Grant(ctx context.Context, r auth.Relationship) error {
	if r.Practitioner == "" || r.Patient == "" || r.By == "" {
		return errors.New("granting relationship: practitioner, patient and grantor are needed")
	}
	if _, err := s.pool.Exec(ctx, `WITH changed AS (
			INSERT INTO treatment (practitioner, patient, source, type, id, reason, granted_by, granted_at, starts, ends)
			VALUES ($1, $2, 'grant', '', '', $3, $4, now(), $5::text::timestamptz, $6::text::timestamptz) ON CONFLICT DO NOTHING RETURNING practitioner),`+bumpRelationships,
		r.Practitioner, r.Patient, r.Reason, r.By, instant(r.From, "-infinity"), instant(r.Until, "infinity")); err != nil {
		return bare("granting relationship", err)
	}
	return nil
}

// Ungrant ends the explicit treatment relationships of two; ending what is not there changes nothing. Who ended them is in the audit
// trail: by must be named and is not stored here.
func (s *AuthStorage) Ungrant(ctx context.Context, practitioner, patient, by string) error {
	if by == "" {
		return errors.New("ending relationship: nobody is named")
	}
	if _, err := s.pool.Exec(ctx, `WITH changed AS (
			DELETE FROM treatment WHERE practitioner = $1 AND patient = $2 AND type = '' AND id = '' RETURNING practitioner),`+
		bumpRelationships, practitioner, patient); err != nil {
		return bare("ending relationship", err)
	}
	return nil
}

// ForgetRelationships deletes those that are over for longer than any tail can be: dates of treatment are not kept longer than they are
// needed.
func (s *AuthStorage) ForgetRelationships(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, forgetSQL); err != nil {
		return bare("forgetting relationships", err)
	}
	return nil
}

const forgetSQL = `DELETE FROM treatment WHERE ends < 'infinity' AND ends < now() - interval '366 days'`

// Relationships lists those of a practitioner, of a patient, or of the two, that are not over with their tails; at most limit.
func (s *AuthStorage) Relationships(ctx context.Context, practitioner, patient string, limit int) ([]auth.Relationship, error) {
	sql, args := relationshipsSQL(practitioner, patient, limit)
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, bare("listing relationships", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r auth.Relationship, err error) {
		var at, from, until *time.Time
		var tail int
		err = row.Scan(&r.Practitioner, &r.Patient, &r.Source, &r.Record, &r.Reason, &r.By, &at, &from, &until, &tail, &r.Holds)
		r.At, r.From, r.Until = orZero(at), orZero(from), orZero(until)
		if r.Ends = r.Until; !r.Ends.IsZero() {
			r.Ends = r.Ends.AddDate(0, 0, tail)
		}
		return r, err
	})
	if err != nil {
		return nil, bare("listing relationships", err)
	}
	return list, nil
}

// relationshipsSQL builds the statement: its text depends on who is named, never on the names.
func relationshipsSQL(practitioner, patient string, limit int) (string, []any) {
	args := []any{limit}
	var where strings.Builder
	for _, is := range [...]struct{ column, who string }{{"practitioner", practitioner}, {"patient", patient}} {
		if is.who != "" {
			args = append(args, is.who)
			where.WriteString(` AND t.` + is.column + ` = $` + strconv.Itoa(len(args)))
		}
	}
	if len(args) == 1 {
		where.WriteString(` AND false`) // nobody's
	}
	return `SELECT t.practitioner, t.patient, t.source, t.id, coalesce(t.reason, ''), coalesce(t.granted_by, ''), t.granted_at,
			nullif(t.starts, '-infinity'), nullif(t.ends, 'infinity'), x.tail_days, t.starts <= now() + make_interval(hours => 24 * x.lead_days)
		FROM treatment t JOIN treatment_source x USING (source)
		WHERE now() < t.ends + make_interval(hours => 24 * x.tail_days)` + where.String() + `
		ORDER BY t.practitioner, t.patient, t.source, t.id, t.starts LIMIT $1`, args
}

// These advance the epochs' shards of the people in a CTE "changed" and tell the listeners; when nothing changed they do neither, because a
// NOTIFY makes commits queue up. Shards are locked in order.
const (
	bumpRelationships = `
	locked AS (SELECT shard FROM authz_epoch WHERE scope = 'relationship'
		AND shard IN (SELECT authz_shard(practitioner) FROM changed) ORDER BY shard FOR UPDATE),
	bumped AS (UPDATE authz_epoch e SET n = n + 1 FROM locked WHERE e.scope = 'relationship' AND e.shard = locked.shard RETURNING 1)
	SELECT pg_notify('chartkeep_authz', 'relationship') FROM (SELECT FROM bumped LIMIT 1) b`
	bumpConsents = `
	locked AS (SELECT shard FROM authz_epoch WHERE scope = 'consent'
		AND shard IN (SELECT authz_shard(patient) FROM changed) ORDER BY shard FOR UPDATE),
	bumped AS (UPDATE authz_epoch e SET n = n + 1 FROM locked WHERE e.scope = 'consent' AND e.shard = locked.shard RETURNING 1)
	SELECT pg_notify('chartkeep_authz', 'consent') FROM (SELECT FROM bumped LIMIT 1) b`
)

// queueTreatments replaces the relationships that the records state. It and queueConsents come last: the epoch's rows are locked only
// as long as the commit takes.
func queueTreatments(batch *pgx.Batch, writes []phi.Write) {
	var practitioners, patients, types, ids, starts, ends []string
	var oldTypes, oldIDs []string
	for i := range writes {
		w := &writes[i]
		if w.Expect != 0 {
			oldTypes, oldIDs = append(oldTypes, w.Type), append(oldIDs, w.ID)
		}
		if w.Deleted() {
			continue
		}
		for _, t := range w.Treats {
			practitioners, patients = append(practitioners, t.Practitioner), append(patients, t.Patient)
			types, ids = append(types, w.Type), append(ids, w.ID)
			starts, ends = append(starts, instant(t.From, "-infinity")), append(ends, instant(t.Until, "infinity"))
		}
	}
	if len(practitioners) == 0 && len(oldIDs) == 0 {
		return
	}
	batch.Queue(`WITH stated AS (SELECT DISTINCT practitioner, patient, type, id, starts::timestamptz, ends::timestamptz
			FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $7::text[], $8::text[]) s(practitioner, patient, type, id, starts, ends)),
		gone AS (DELETE FROM treatment t USING unnest($5::text[], $6::text[]) w(type, id)
			WHERE t.type = w.type AND t.id = w.id AND t.type <> '' AND NOT EXISTS (SELECT FROM stated s
				WHERE s.practitioner = t.practitioner AND s.patient = t.patient AND s.type = t.type AND s.id = t.id
					AND s.starts = t.starts AND s.ends = t.ends)
			RETURNING t.practitioner),
		come AS (INSERT INTO treatment (practitioner, patient, source, type, id, starts, ends)
			SELECT practitioner, patient, type, type, id, starts, ends FROM stated ON CONFLICT DO NOTHING RETURNING practitioner),
		changed AS (SELECT practitioner FROM gone UNION SELECT practitioner FROM come),`+bumpRelationships,
		practitioners, patients, types, ids, oldTypes, oldIDs, starts, ends)
}

// queueConsents replaces the rules that the Consents among the records say.
func queueConsents(batch *pgx.Batch, writes []phi.Write) {
	var ids, whose []string
	var patients, consents, persons, segments, purposes, starts, ends []string
	var positions, depths []int16
	var permits []bool
	for i := range writes {
		w := &writes[i]
		if w.Type != "Consent" {
			continue
		}
		ids, whose = append(ids, w.ID), append(whose, w.Consent)
		if w.Deleted() {
			continue
		}
		for n, r := range w.Rules {
			patients, consents, persons = append(patients, w.Consent), append(consents, w.ID), append(persons, r.Actor)
			positions, depths, permits = append(positions, int16(n)), append(depths, int16(r.Depth)), append(permits, r.Permit)
			segments, purposes = append(segments, numbers(r.Segments)), append(purposes, strings.Join(r.Purposes, " "))
			starts, ends = append(starts, instant(r.From, "-infinity")), append(ends, instant(r.Until, "infinity"))
		}
	}
	if len(ids) == 0 {
		return
	}
	// While a merge moves records, what the Consent says goes on to be about the patient whose records have not moved yet.
	batch.Queue(`WITH changed AS (DELETE FROM consent_rule c USING unnest($1::text[], $2::text[]) w(consent, patient)
			WHERE c.consent = w.consent AND (c.patient = w.patient OR NOT EXISTS (SELECT FROM phi_merge m
				WHERE m.state = 'merging' AND m.source = c.patient OR m.state = 'unmerging' AND m.target = c.patient))
			RETURNING c.patient),`+bumpConsents, ids, whose)
	if len(patients) > 0 {
		batch.Queue(`WITH changed AS (INSERT INTO consent_rule (patient, consent, position, depth, permit, actor, segments, purposes, starts, ends)
			SELECT patient, consent, position, depth, permit, actor, string_to_array(segments, ' ')::integer[], string_to_array(purposes, ' '),
				starts::timestamptz, ends::timestamptz
			FROM unnest($1::text[], $2::text[], $3::smallint[], $4::smallint[], $5::boolean[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[])
				s(patient, consent, position, depth, permit, actor, segments, purposes, starts, ends) RETURNING patient),`+bumpConsents,
			patients, consents, positions, depths, permits, persons, segments, purposes, starts, ends)
	}
}

// numbers joins the segments of a set by blanks.
func numbers(set auth.SegmentSet) string {
	var list []string
	for _, x := range set.Numbers() {
		list = append(list, strconv.Itoa(int(x)))
	}
	return strings.Join(list, " ")
}
