-- Erasure of a patient for good, by two persons, and merges of what was kept of one person under two ids.
SET LOCAL ROLE chartkeep_owner;

-- A request to erase a patient, and what became of it. reason is a case number or a ground, never clinical text. Who asked is not
-- who executes (the names are compared as people write them). Nothing of a request changes but its end, and that once.
CREATE TABLE phi_erasure (
  id            uuid        PRIMARY KEY,
  patient       text COLLATE "C" NOT NULL,
  reason        text        NOT NULL CHECK (octet_length(reason) BETWEEN 1 AND 1000),
  requested_by  text        NOT NULL CHECK (btrim(requested_by) <> ''),
  requested_at  timestamptz NOT NULL DEFAULT now(),
  request_event uuid        NOT NULL,
  state         text        NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'withdrawn', 'executed')),
  decided_by    text        CHECK (btrim(decided_by) <> ''),
  decided_at    timestamptz,
  certificate   bytea,
  told          boolean     NOT NULL DEFAULT false, -- the audit trail has the outcome
  CHECK ((state = 'requested') = (decided_by IS NULL) AND (decided_by IS NULL) = (decided_at IS NULL)),
  CHECK ((state = 'executed') = (certificate IS NOT NULL)),
  CONSTRAINT two_persons CHECK (state <> 'executed' OR lower(btrim(decided_by)) <> lower(btrim(requested_by)))
);
CREATE UNIQUE INDEX phi_erasure_open ON phi_erasure (patient) WHERE state = 'requested';
CREATE FUNCTION phi_erasure_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the request is decided' USING ERRCODE = 'CKP11';
END $$;
CREATE TRIGGER phi_erasure_ends_once BEFORE UPDATE ON phi_erasure FOR EACH ROW WHEN (OLD.state <> 'requested'
    AND (OLD.state, OLD.decided_by, OLD.decided_at, OLD.certificate) IS DISTINCT FROM (NEW.state, NEW.decided_by, NEW.decided_at, NEW.certificate))
  EXECUTE FUNCTION phi_erasure_ends_once();

-- Subjects whose data keys were destroyed. Their rows stay, as noise; no key comes back to them. No foreign key: this table is restored
-- with the keys, also without the requests.
CREATE TABLE phi_erased (
  subject   uuid        PRIMARY KEY CHECK (subject <> '00000000-0000-0000-0000-000000000000'),
  patient   text COLLATE "C" NOT NULL,
  erasure   uuid        NOT NULL,
  erased_at timestamptz NOT NULL DEFAULT now()
);

-- CKP10: the subject is erased. A key beside others (of a rotation, of another segment) holds those until its transaction ends: who
-- erases takes them for update first, and so either sees the new one or is seen here.
CREATE FUNCTION phi_key_of_erased() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF NEW.segment <> 0 OR NEW.key_id <> 1 THEN
    PERFORM FROM phi_key k WHERE k.subject = NEW.subject ORDER BY k.segment, k.key_id FOR KEY SHARE;
  END IF;
  IF EXISTS (SELECT FROM phi_erased e WHERE e.subject = NEW.subject) THEN
    RAISE EXCEPTION 'the subject is erased' USING ERRCODE = 'CKP10';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER phi_key_of_erased BEFORE INSERT OR UPDATE OF subject ON phi_key FOR EACH ROW EXECUTE FUNCTION phi_key_of_erased();

-- A merge of two patients who are one person: everything of the source's moves to the target, and under its keys. source_subject is what
-- the source's records are under while they wait to move, in either direction; target_version is the target as it was before.
CREATE TABLE phi_merge (
  id             uuid        PRIMARY KEY,
  source         text COLLATE "C" NOT NULL,
  target         text COLLATE "C" NOT NULL CHECK (target <> source),
  source_subject uuid        NOT NULL,
  target_subject uuid        NOT NULL CHECK (target_subject <> source_subject),
  target_version bigint      NOT NULL,
  state          text        NOT NULL DEFAULT 'merging' CHECK (state IN ('merging', 'merged', 'unmerging', 'unmerged')),
  begun_by       text        NOT NULL,
  begun_at       timestamptz NOT NULL DEFAULT now(),
  ended_at       timestamptz
);
CREATE UNIQUE INDEX phi_merge_source ON phi_merge (source) WHERE state <> 'unmerged';
CREATE INDEX phi_merge_target ON phi_merge (target) WHERE state <> 'unmerged';
-- The versions that a merge found in the source's chart, and whose they were: what an unmerge gives back.
CREATE TABLE phi_merge_row (
  merge    uuid   NOT NULL REFERENCES phi_merge,
  type     text COLLATE "C" NOT NULL,
  id       text COLLATE "C" NOT NULL,
  version  bigint NOT NULL,
  patients text[] NOT NULL,
  PRIMARY KEY (merge, type, id, version)
);

GRANT SELECT ON phi_erased, phi_merge TO chartkeep_records;
GRANT SELECT, INSERT ON phi_merge, phi_merge_row TO chartkeep_keys;
GRANT UPDATE (state, source_subject, ended_at) ON phi_merge TO chartkeep_keys;
GRANT DELETE ON phi_merge_row TO chartkeep_keys;
GRANT INSERT ON treatment TO chartkeep_keys;
GRANT SELECT, INSERT ON phi_erased, phi_erasure TO chartkeep_keys;
GRANT UPDATE (state, decided_by, decided_at, certificate, told) ON phi_erasure TO chartkeep_keys;
GRANT DELETE ON index_token, record_patient TO chartkeep_keys;
GRANT SELECT, DELETE ON treatment TO chartkeep_keys;
GRANT SELECT, UPDATE ON authz_epoch TO chartkeep_keys;

INSERT INTO capability VALUES
  ('officer', 'erasure:read'), ('officer', 'erasure:request'), ('officer', 'erasure:approve'),
  ('admin', 'erasure:read'), ('admin', 'erasure:approve'), ('registrar', 'patient:merge'), ('backend', 'patient:merge');
RESET ROLE;

SET LOCAL ROLE chartkeep_audit_owner;
-- The legal holds that stand. Holds are placed and released under the same lock: what is done about them in this transaction is done
-- before another one stands.
CREATE FUNCTION audit_standing_holds() RETURNS TABLE (id uuid, patient text, from_ts timestamptz, to_ts timestamptz) LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  RETURN QUERY SELECT h.id, h.patient, h.from_ts, h.to_ts FROM audit_hold h
    WHERE NOT EXISTS (SELECT FROM audit_release r WHERE r.hold = h.id) ORDER BY h.placed_at, h.id;
END $$;
REVOKE ALL ON FUNCTION audit_standing_holds FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_standing_holds TO chartkeep_keys;
RESET ROLE;
