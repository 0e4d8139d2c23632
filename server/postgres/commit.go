package postgres

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/phi"
)

// Commit implements phi.Storage: one transaction whose statements go out in one batch, each over all writes at once.
func (s *recordStorage) Commit(ctx context.Context, writes []phi.Write, guards []phi.Guard) error {
	if len(writes) == 0 && len(guards) == 0 {
		return nil
	}
	// Every transaction locks rows in the same order.
	ordered := slices.Clone(writes)
	slices.SortFunc(ordered, func(a, b phi.Write) int {
		return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.ID, b.ID))
	})
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return bare("beginning commit", err)
	}
	// After Commit this does nothing; before it, the transaction ends even when ctx is done.
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	var conflict error
	batch := &pgx.Batch{}
	queueGuards(batch, guards, &conflict)
	queueMerges(batch, ordered, &conflict)
	queueKeys(batch, ordered, &conflict)
	queueGenerations(batch, ordered, &conflict)
	queueRecords(batch, ordered, &conflict)
	queueIndexes(batch, ordered)
	queueTreatments(batch, ordered)
	queueConsents(batch, ordered)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return bare("writing records", err)
	}
	if conflict != nil {
		return conflict
	}
	if err := tx.Commit(ctx); err != nil {
		return bare("committing records", err)
	}
	return nil
}

// guardSQL finds a record that stands against a guard: its type, the number, kind and value of each alternative, how many conjuncts
// there are, and what is excepted.
const guardSQL = `SELECT f.id FROM (SELECT t.id FROM unnest($2::integer[], $3::smallint[], $4::bytea[]) w(n, kind, token)
		JOIN index_token t USING (kind, token) WHERE t.type = $1 GROUP BY t.id HAVING count(DISTINCT w.n) = $5) f
	JOIN record r ON r.type = $1 AND r.id = f.id
	WHERE NOT EXISTS (SELECT FROM unnest($6::text[], $7::bigint[]) e(id, version) WHERE e.id = r.id AND e.version IN (0, r.version))
	LIMIT 1`

// queueGuards locks each guard's tokens, then looks for a current record that carries one of each of its alternatives. The lock
// is held to the end of the transaction, so of two equal guards the second sees what the first wrote.
func queueGuards(batch *pgx.Batch, guards []phi.Guard, conflict *error) {
	if len(guards) == 0 {
		return
	}
	var locks []int64
	for _, g := range guards {
		for _, alternatives := range g.Tokens {
			for _, t := range alternatives {
				// Tokens are keyed hashes: any eight bytes of one spread evenly.
				locks = append(locks, int64(binary.BigEndian.Uint64(t.Value[:8])))
			}
		}
	}
	slices.Sort(locks)
	batch.Queue(`SELECT pg_advisory_xact_lock(l) FROM unnest($1::bigint[]) l`, slices.Compact(locks))
	for i, g := range guards {
		var of []int32
		var tokens []phi.Token
		for n, alternatives := range g.Tokens {
			for _, t := range alternatives {
				of, tokens = append(of, int32(n)), append(tokens, t)
			}
		}
		kinds, values := tokenColumns(tokens)
		ids, versions := make([]string, 0, len(g.Except)), make([]int64, 0, len(g.Except))
		for id, version := range g.Except {
			ids, versions = append(ids, id), append(versions, version)
		}
		batch.Queue(guardSQL, g.Type, of, kinds, values, len(g.Tokens), ids, versions).
			QueryRow(func(row pgx.Row) error {
				var id string
				err := row.Scan(&id)
				if errors.Is(err, pgx.ErrNoRows) {
					return nil
				}
				if err == nil && *conflict == nil {
					*conflict = &phi.ConflictError{Ref: phi.Ref{Type: g.Type, ID: id}, Err: phi.ErrGuard, Guard: i}
				}
				return err
			})
	}
}

// queueGenerations holds the index generations under which tokens were minted to the end of the transaction: one is not removed
// while tokens of it are on their way in.
func queueGenerations(batch *pgx.Batch, writes []phi.Write, conflict *error) {
	refs := map[int32]phi.Ref{}
	var ids []int32
	for i := range writes {
		id := int32(writes[i].IndexID)
		if _, ok := refs[id]; !ok {
			refs[id] = writes[i].Ref
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	batch.Queue(`SELECT id FROM index_generation WHERE id = ANY ($1) ORDER BY id FOR KEY SHARE`, ids).Query(func(rows pgx.Rows) error {
		there, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		for _, id := range ids {
			if err == nil && !slices.Contains(there, id) && *conflict == nil {
				*conflict = &phi.ConflictError{Ref: refs[id], Err: phi.ErrKey}
			}
		}
		return err
	})
}

// queueKeys stores new data keys, and holds the others that sealed the writes to the end of the transaction: a key is not
// removed between the seal and the commit. One that is being rotated away seals nothing new: its rows get fewer only.
func queueKeys(batch *pgx.Batch, writes []phi.Write, conflict *error) {
	type name struct {
		subject phi.UUID
		segment uint16
		id      uint32
	}
	var fresh, held keyColumns
	seen := map[name]bool{}
	for i := range writes {
		for _, k := range writes[i].NewKeys {
			seen[name{k.Subject, k.Segment, k.KeyID}] = true
			fresh.add(k.Subject, k.Segment, k.KeyID)
			fresh.keks, fresh.wrapped = append(fresh.keks, k.KEK), append(fresh.wrapped, k.Wrapped)
		}
	}
	var refs []phi.Ref
	for i := range writes {
		w := &writes[i]
		if n := (name{w.Subject, w.Segment, w.KeyID}); !seen[n] {
			seen[n] = true
			held.add(w.Subject, w.Segment, w.KeyID)
			refs = append(refs, w.Ref)
		}
	}
	if len(held.ids) > 0 {
		batch.Queue(`SELECT w.n FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) WITH ORDINALITY w(subject, segment, key_id, n)
			JOIN phi_key k USING (subject, segment, key_id) WHERE k.state = 'active' ORDER BY subject, segment, key_id FOR KEY SHARE OF k`,
			held.subjects, held.segments, held.ids).Query(func(rows pgx.Rows) error {
			there := make([]bool, len(refs))
			var n int
			_, err := pgx.ForEachRow(rows, []any{&n}, func() error {
				there[n-1] = true
				return nil
			})
			for i, ok := range there {
				if err == nil && !ok && *conflict == nil {
					*conflict = &phi.ConflictError{Ref: refs[i], Err: phi.ErrKey}
				}
			}
			return err
		})
	}
	if len(fresh.ids) > 0 {
		batch.Queue(`INSERT INTO phi_key (subject, segment, key_id, kek, wrapped)
			SELECT * FROM unnest($1::uuid[], $2::integer[], $3::bigint[], $4::text[], $5::bytea[])`,
			fresh.subjects, fresh.segments, fresh.ids, fresh.keks, fresh.wrapped)
	}
}

// keyColumns are data keys turned into one array per column.
type keyColumns struct {
	subjects [][16]byte
	segments []int32
	ids      []int64
	keks     []string
	wrapped  [][]byte
}

func (c *keyColumns) add(subject phi.UUID, segment uint16, id uint32) {
	c.subjects, c.segments, c.ids = append(c.subjects, subject), append(c.segments, int32(segment)), append(c.ids, int64(id))
}

// recordColumns are the parameters of the statements that write records, and their names there.
const (
	recordColumns = `type, id, row_id, version, updated, method, patients, subject, segment, key_id,
		identifier, name, birth_date, contact, clinical, narrative, seal, digest`
	recordSource = `(SELECT u.type, u.id, u.row_id, u.version, u.updated, u.method, string_to_array(u.patients, ' ') AS patients,
			u.subject, u.segment, u.key_id, u.identifier, u.name, u.birth_date, u.contact, u.clinical, u.narrative, u.seal, u.digest,
			u.expect, u.index_id
		FROM unnest($1::text[], $2::text[], $3::uuid[], $4::bigint[], $5::timestamptz[], $6::text[], $7::text[], $8::uuid[],
			$9::integer[], $10::bigint[], $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[], $16::bytea[],
			$17::bytea[], $18::bytea[], $19::bigint[], $20::integer[])
		u(type, id, row_id, version, updated, method, patients, subject, segment, key_id,
			identifier, name, birth_date, contact, clinical, narrative, seal, digest, expect, index_id)) w`
)

// columns are writes turned into one array per column.
type columns struct {
	types, ids     []string
	rows           [][16]byte
	versions       []int64
	updated        []time.Time
	methods        []string
	patients       []string // joined by blanks, which no id holds: PostgreSQL has no arrays of arrays of differing length
	subjects       [][16]byte
	segments       []int32
	keyIDs         []int64
	cells          [phi.NumClasses][][]byte
	seals, digests [][]byte
	expects        []int64
	indexes        []int32
}

func (c *columns) add(w *phi.Write) {
	c.types, c.ids = append(c.types, w.Type), append(c.ids, w.ID)
	c.rows = append(c.rows, w.Row)
	c.versions = append(c.versions, w.Version)
	c.updated = append(c.updated, w.Updated)
	c.methods = append(c.methods, w.Method)
	c.patients = append(c.patients, strings.Join(w.Patients, " "))
	c.subjects = append(c.subjects, w.Subject)
	c.segments = append(c.segments, int32(w.Segment))
	c.keyIDs = append(c.keyIDs, int64(w.KeyID))
	for i, cell := range w.Cells {
		c.cells[i] = append(c.cells[i], cell)
	}
	c.seals = append(c.seals, w.Seal)
	c.digests = append(c.digests, w.Digest[:])
	c.expects = append(c.expects, w.Expect)
	c.indexes = append(c.indexes, int32(w.IndexID))
}

func (c *columns) args() []any {
	return []any{c.types, c.ids, c.rows, c.versions, c.updated, c.methods, c.patients, c.subjects, c.segments, c.keyIDs,
		c.cells[0], c.cells[1], c.cells[2], c.cells[3], c.cells[4], c.cells[5], c.seals, c.digests, c.expects, c.indexes}
}

// queueRecords writes the rows. What it could not write, because another version is current, becomes a conflict.
func queueRecords(batch *pgx.Batch, writes []phi.Write, conflict *error) {
	var fresh, next columns
	for i := range writes {
		if writes[i].Expect == 0 {
			fresh.add(&writes[i])
		} else {
			next.add(&writes[i])
		}
	}
	check := func(c *columns) func(pgx.Rows) error {
		return func(rows pgx.Rows) error {
			written := make(map[phi.Ref]int, len(c.ids))
			var ref phi.Ref
			_, err := pgx.ForEachRow(rows, []any{&ref.Type, &ref.ID}, func() error {
				written[ref]++
				return nil
			})
			for i := range c.ids {
				ref := phi.Ref{Type: c.types[i], ID: c.ids[i]}
				if written[ref]--; written[ref] < 0 && *conflict == nil {
					*conflict = &phi.ConflictError{Ref: ref, Err: phi.ErrVersion}
				}
			}
			return err
		}
	}
	if len(next.ids) > 0 {
		// Lock first, in order: whoever waits here sees the winner's version in the statements that follow.
		batch.Queue(`SELECT FROM unnest($1::text[], $2::text[]) w(type, id) JOIN record r USING (type, id)
			ORDER BY r.type, r.id FOR UPDATE OF r`, next.types, next.ids)
		batch.Queue(`INSERT INTO record_version (`+recordColumns+`) SELECT `+recordColumns+`
			FROM record r JOIN unnest($1::text[], $2::text[], $3::bigint[]) w(type, id, expect) USING (type, id)
			WHERE r.version = w.expect`, next.types, next.ids, next.expects)
		batch.Queue(`UPDATE record r SET version = w.version, updated = w.updated, method = w.method, patients = w.patients,
			row_id = w.row_id, subject = w.subject, segment = w.segment, key_id = w.key_id, identifier = w.identifier, name = w.name,
			birth_date = w.birth_date, contact = w.contact, clinical = w.clinical, narrative = w.narrative, seal = w.seal, digest = w.digest,
			index_id = w.index_id
			FROM `+recordSource+` WHERE r.type = w.type AND r.id = w.id AND r.version = w.expect
			RETURNING r.type, r.id`, next.args()...).Query(check(&next))
	}
	if len(fresh.ids) > 0 {
		batch.Queue(`INSERT INTO record (`+recordColumns+`, index_id) SELECT `+recordColumns+`, index_id FROM `+recordSource+`
			ON CONFLICT DO NOTHING RETURNING type, id`, fresh.args()...).Query(check(&fresh))
	}
}

// queueIndexes replaces compartments and tokens. A tombstone has neither: it is found by its id only.
func queueIndexes(batch *pgx.Batch, writes []phi.Write) {
	var oldTypes, oldIDs []string
	var patients, patientTypes, patientIDs []string
	var kinds []int16
	var tokens [][]byte
	var tokenTypes, tokenIDs []string
	for i := range writes {
		w := &writes[i]
		if w.Expect != 0 {
			oldTypes, oldIDs = append(oldTypes, w.Type), append(oldIDs, w.ID)
		}
		if w.Deleted() {
			continue
		}
		owners := w.Patients
		if len(owners) == 0 {
			owners = []string{""}
		}
		for _, p := range owners {
			patients, patientTypes, patientIDs = append(patients, p), append(patientTypes, w.Type), append(patientIDs, w.ID)
		}
		for _, t := range w.Tokens {
			kinds, tokens = append(kinds, int16(t.Kind)), append(tokens, t.Value[:])
			tokenTypes, tokenIDs = append(tokenTypes, w.Type), append(tokenIDs, w.ID)
		}
	}
	if len(oldIDs) > 0 {
		for _, table := range []string{"record_patient", "index_token"} {
			batch.Queue(`DELETE FROM `+table+` t USING unnest($1::text[], $2::text[]) w(type, id)
				WHERE t.type = w.type AND t.id = w.id`, oldTypes, oldIDs)
		}
	}
	if len(patients) > 0 {
		batch.Queue(`INSERT INTO record_patient (patient, type, id)
			SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING`, patients, patientTypes, patientIDs)
	}
	if len(kinds) > 0 {
		batch.Queue(`INSERT INTO index_token (kind, token, type, id)
			SELECT * FROM unnest($1::smallint[], $2::bytea[], $3::text[], $4::text[]) ON CONFLICT DO NOTHING`,
			kinds, tokens, tokenTypes, tokenIDs)
	}
}
