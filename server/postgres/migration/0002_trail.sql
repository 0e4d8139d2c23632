-- The trail. Everything in this file belongs to chartkeep_audit_owner, as whom nobody logs in.
SET LOCAL ROLE chartkeep_audit_owner;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC;

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'the audit trail is append-only: % refused', TG_OP USING ERRCODE = 'CKA10';
END $$;

-- body holds the exact bytes that were hashed; every other column is a projection of it, to search by. outcome is null
-- for an intent; entity_type and entity_id are the first of entities, which are "Type/id". part_ts is chosen by the writing process, so a replay lands in the same partition.
CREATE TABLE audit_event (
  part_ts     timestamptz NOT NULL,
  stream      uuid        NOT NULL,
  seq         bigint      NOT NULL CHECK (seq >= 0),
  event_id    uuid        NOT NULL,
  recorded    timestamptz NOT NULL,
  ingested_at timestamptz NOT NULL DEFAULT now(),
  type        text        NOT NULL,
  interaction text        NOT NULL,
  action      text        NOT NULL,
  outcome     smallint,
  agent_user  text        NOT NULL,
  client      text        NOT NULL,
  session     text        NOT NULL,
  network     text        NOT NULL,
  roles       text[]      NOT NULL,
  purpose     text        NOT NULL,
  patient     text        NOT NULL,
  entity_type text        NOT NULL,
  entity_id   text        NOT NULL,
  entities    text[]      NOT NULL,
  allowed     boolean     NOT NULL,
  rule        text        NOT NULL,
  reason      text        NOT NULL,
  view        text        NOT NULL,
  policy      bigint      NOT NULL,
  request_id  text        NOT NULL,
  correlation uuid,
  total_us    bigint      NOT NULL,
  salt        bytea       NOT NULL CHECK (octet_length(salt) = 16),
  leaf        bytea       NOT NULL CHECK (octet_length(leaf) = 32),
  body        bytea       NOT NULL,
  PRIMARY KEY (part_ts, stream, seq)
) PARTITION BY RANGE (part_ts);

-- Newest first needs no index of its own: the primary key gives part_ts in order, equal times are sorted.
-- Ascending although it is read backwards: new rows then land at the right end of their patient's or agent's range. Request
-- ids are random, and a hash index takes them at a quarter of a btree's cost.
CREATE INDEX audit_event_patient ON audit_event (patient, part_ts, event_id) WHERE patient <> '';
CREATE INDEX audit_event_agent   ON audit_event (agent_user, part_ts, event_id);
CREATE INDEX audit_event_request ON audit_event USING hash (request_id);
CREATE INDEX audit_event_id      ON audit_event (event_id);
CREATE INDEX audit_event_brin    ON audit_event USING brin (part_ts);

-- What no month covers (a clock gone wild, a forgotten create-ahead) must not stop ingest.
CREATE TABLE audit_event_default PARTITION OF audit_event DEFAULT;

-- One row per stored batch; a stream's rows cover its sequence numbers without a gap and carry its hash chain.
CREATE TABLE audit_batch (
  stream      uuid        NOT NULL,
  first_seq   bigint      NOT NULL CHECK (first_seq >= 0),
  last_seq    bigint      NOT NULL CHECK (last_seq >= first_seq),
  prev        bytea       NOT NULL CHECK (octet_length(prev) = 32),
  chain       bytea       NOT NULL CHECK (octet_length(chain) = 32),
  ingested_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (stream, first_seq)
);
CREATE INDEX audit_batch_ingested ON audit_batch (ingested_at);

-- Rows that the table would not take, as raw bytes, so that one of them never blocks a stream. part_us is the partition
-- time in Unix microseconds: it may be the very value that is out of range.
CREATE TABLE audit_quarantine (
  stream      uuid        NOT NULL,
  seq         bigint      NOT NULL,
  part_us     bigint      NOT NULL,
  salt        bytea       NOT NULL,
  leaf        bytea       NOT NULL,
  body        bytea       NOT NULL,
  sqlstate    text        NOT NULL,
  ingested_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (stream, seq)
);

-- A batch must continue its stream. CKA01: stored already; CKA02: a gap; CKA03: another history. SECURITY DEFINER,
-- because the writer may insert and nothing else.
CREATE FUNCTION audit_continues() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  head   audit_batch;
  stored audit_batch;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(NEW.stream::text, 7391));
  SELECT * INTO head FROM audit_batch WHERE stream = NEW.stream ORDER BY first_seq DESC LIMIT 1;
  IF NOT FOUND THEN
    head.last_seq := -1;
    head.chain := decode(repeat('00', 32), 'hex');
  END IF;
  IF NEW.first_seq <= head.last_seq THEN
    SELECT * INTO stored FROM audit_batch WHERE stream = NEW.stream AND first_seq <= NEW.first_seq ORDER BY first_seq DESC LIMIT 1;
    IF stored.first_seq = NEW.first_seq AND (stored.prev <> NEW.prev OR stored.last_seq = NEW.last_seq AND stored.chain <> NEW.chain) THEN
      RAISE EXCEPTION 'batch has another chain than the stored one' USING ERRCODE = 'CKA03';
    END IF;
    RAISE EXCEPTION 'batch is ingested already' USING ERRCODE = 'CKA01';
  END IF;
  IF NEW.first_seq > head.last_seq + 1 THEN
    RAISE EXCEPTION 'batch leaves a gap' USING ERRCODE = 'CKA02';
  END IF;
  IF NEW.prev <> head.chain THEN
    RAISE EXCEPTION 'batch does not continue the chain' USING ERRCODE = 'CKA03';
  END IF;
  NEW.ingested_at := now();
  RETURN NEW;
END $$;
CREATE TRIGGER audit_continues BEFORE INSERT ON audit_batch FOR EACH ROW EXECUTE FUNCTION audit_continues();
ALTER TABLE audit_batch ENABLE ALWAYS TRIGGER audit_continues;

-- Rows come only in a transaction that stores a manifest, too. Looking at each row's number as well would cost a quarter of ingest;
-- a row beside its manifest does not fit the chain, and verification names it.
CREATE FUNCTION audit_covered() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM audit_batch b WHERE b.ingested_at = now() AND b.xmin = pg_current_xact_id()::xid) THEN
    RAISE EXCEPTION 'rows come without a manifest' USING ERRCODE = 'CKA04';
  END IF;
  RETURN NULL;
END $$;
-- Row triggers cascade to partitions, present and future, and ENABLE ALWAYS keeps them under
-- session_replication_role = replica. Statement triggers do not cascade: each partition gets its own.
CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON audit_event FOR EACH ROW EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_refuse_change;
CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON audit_batch FOR EACH ROW EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_batch ENABLE ALWAYS TRIGGER audit_refuse_change;
CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON audit_quarantine FOR EACH ROW EXECUTE FUNCTION audit_refuse();
ALTER TABLE audit_quarantine ENABLE ALWAYS TRIGGER audit_refuse_change;

CREATE FUNCTION audit_protect(relation regclass) RETURNS void LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION public.audit_refuse()', relation);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_refuse_truncate', relation);
  IF relation IN (SELECT relid FROM pg_partition_tree('public.audit_event')) THEN
    EXECUTE format('CREATE TRIGGER audit_covered BEFORE INSERT ON %s
      FOR EACH STATEMENT EXECUTE FUNCTION public.audit_covered()', relation);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_covered', relation);
  END IF;
END $$;
SELECT audit_protect(t::regclass)
FROM unnest(ARRAY['audit_event', 'audit_event_default', 'audit_batch', 'audit_quarantine']) t;

-- Creates the partitions of last month up to six months ahead. A month that cannot be made now (its rows sit in the
-- default partition, or a lock is not to be had) is left for the next call.
CREATE FUNCTION audit_ensure_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = '2s' AS $$
DECLARE
  month timestamptz;
  child text;
  made  integer := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  FOR ahead IN -1..6 LOOP
    month := date_trunc('month', now()) + make_interval(months => ahead);
    child := 'audit_event_' || to_char(month, 'YYYY_MM');
    CONTINUE WHEN to_regclass('public.' || child) IS NOT NULL;
    BEGIN
      EXECUTE format('CREATE TABLE public.%I PARTITION OF public.audit_event FOR VALUES FROM (%L) TO (%L)',
                     child, month, month + interval '1 month');
      PERFORM audit_protect(format('public.%I', child)::regclass);
      made := made + 1;
    EXCEPTION WHEN check_violation OR lock_not_available THEN
      RAISE WARNING 'audit partition % cannot be made now: %', child, SQLSTATE;
    END;
  END LOOP;
  RETURN made;
END $$;
SELECT audit_ensure_partitions();

-- What the shipper asks for at start: the writer may not read the manifest.
CREATE FUNCTION audit_head(of uuid, OUT next bigint, OUT chain bytea) LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
  SELECT b.last_seq + 1, b.chain FROM audit_batch b WHERE b.stream = audit_head.of ORDER BY b.first_seq DESC LIMIT 1
$$;

-- The reader's only door. It hides no row, so it is not a security barrier: that would keep the planner from taking the
-- newest rows from an index.
CREATE VIEW audit_trail AS SELECT * FROM audit_event;

GRANT INSERT ON audit_event, audit_batch, audit_quarantine TO chartkeep_audit_writer;
GRANT EXECUTE ON FUNCTION audit_head, audit_ensure_partitions TO chartkeep_audit_writer;
GRANT SELECT ON audit_trail TO chartkeep_audit_reader;
RESET ROLE;

-- A guard against DDL on the trail by anybody but its owner role (DISABLE TRIGGER, DETACH, DROP). Only a superuser may
-- make event triggers; a superuser can also drop them: this stops mistakes and raises the noise, the chain detects the rest.
CREATE FUNCTION audit_guard() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF current_user = 'chartkeep_audit_owner' THEN
    RETURN;
  END IF;
  IF TG_EVENT = 'sql_drop' THEN
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() d
               WHERE d.object_type IN ('table', 'trigger', 'function', 'view')
                 AND d.object_identity ~ '(^|\.| )audit_') THEN
      RAISE EXCEPTION 'the audit trail is append-only: % refused', TG_TAG USING ERRCODE = 'CKA10';
    END IF;
  ELSIF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() c
                WHERE c.classid = 'pg_class'::regclass
                  AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.objid AND t.tgfoid = 'public.audit_refuse'::regproc)
                   OR c.classid = 'pg_proc'::regclass
                  AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = c.objid AND t.tgname LIKE 'audit\_%')) THEN
    RAISE EXCEPTION 'the audit trail is append-only: % refused', TG_TAG USING ERRCODE = 'CKA10';
  END IF;
END $$;
REVOKE ALL ON FUNCTION audit_guard FROM PUBLIC;
DO $$ BEGIN
  IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
    CREATE EVENT TRIGGER audit_guard_drop ON sql_drop EXECUTE FUNCTION audit_guard();
    ALTER EVENT TRIGGER audit_guard_drop ENABLE ALWAYS;
    CREATE EVENT TRIGGER audit_guard_ddl ON ddl_command_end EXECUTE FUNCTION audit_guard();
    ALTER EVENT TRIGGER audit_guard_ddl ENABLE ALWAYS;
  ELSE
    RAISE WARNING 'no superuser: the guard against DDL on the audit trail is not installed';
  END IF;
END $$;
