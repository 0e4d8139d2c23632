-- Retention and legal hold, and what guards the trail's rows on their way in and out. The role executes the functions below
-- and may do nothing else; the program opens its pool only when the verb runs.
DO $$ BEGIN
  CREATE ROLE chartkeep_audit_retention NOLOGIN NOINHERIT;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
GRANT chartkeep_audit_retention TO chartkeep;
GRANT USAGE ON SCHEMA public TO chartkeep_audit_retention;

SET LOCAL ROLE chartkeep_audit_owner;

-- Rows come only in a transaction that stores their manifest, and a statement's rows are a run of numbers within one manifest, each once. The
-- rows are looked at together, in the statement's transition table: that costs nothing that can be measured, a look at
-- each would cost a quarter of ingest. A statement that names a partition fires the partition's trigger, others the parent's.
DO $$
DECLARE relation regclass;
BEGIN
  FOR relation IN SELECT relid FROM pg_partition_tree('public.audit_event') LOOP
    EXECUTE format('DROP TRIGGER audit_covered ON %s', relation);
  END LOOP;
END $$;
CREATE OR REPLACE FUNCTION audit_covered() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
DECLARE
  come   record;
  stored record;
BEGIN
  FOR come IN SELECT a.stream, min(a.seq) AS first, max(a.seq) AS last, count(*) AS rows, count(DISTINCT a.seq) AS numbers,
                (extract(epoch FROM min(a.part_ts)) * 1000000)::bigint AS first_us, (extract(epoch FROM max(a.part_ts)) * 1000000)::bigint AS last_us
              FROM arrived a GROUP BY a.stream LOOP
    SELECT b.last_seq, b.first_us, b.last_us, b.xmin INTO stored FROM audit_batch b
      WHERE b.stream = come.stream AND b.first_seq <= come.first ORDER BY b.first_seq DESC LIMIT 1;
    IF NOT FOUND OR stored.xmin <> pg_current_xact_id()::xid OR come.last > stored.last_seq
       OR come.rows <> come.numbers OR come.numbers <> come.last - come.first + 1
       OR come.first_us < stored.first_us OR come.last_us > stored.last_us THEN
      RAISE EXCEPTION 'rows come without a manifest that covers them' USING ERRCODE = 'CKA04';
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION audit_protect(relation regclass) RETURNS void LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION public.audit_refuse()', relation);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_refuse_truncate', relation);
  IF relation IN (SELECT relid FROM pg_partition_tree('public.audit_event')) THEN
    PERFORM audit_cover(relation);
  ELSIF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = relation AND tgname = 'audit_refuse_change') THEN
    PERFORM audit_refuse_changes(relation);
  END IF;
END $$;
CREATE FUNCTION audit_cover(relation regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER audit_covered AFTER INSERT ON %s REFERENCING NEW TABLE AS arrived
    FOR EACH STATEMENT EXECUTE FUNCTION public.audit_covered()', relation);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_covered', relation);
END $$;
CREATE FUNCTION audit_refuse_changes(relation regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION public.audit_refuse()', relation);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_refuse_change', relation);
END $$;
SELECT audit_cover(relid) FROM pg_partition_tree('public.audit_event');

-- Makes a month's partition beside the trail, takes home the month's rows that wait in the default partition (at most so many;
-- false when there are more), and attaches it: neither keeps anybody from inserting into other months, nor from reading them.
CREATE FUNCTION audit_add_month(month timestamptz, most bigint) RETURNS boolean LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  child   text        := 'audit_event_' || to_char(month, 'YYYY_MM');
  upto    timestamptz := month + interval '1 month';
  waiting bigint;
  came    bigint;
  went    bigint;
BEGIN
  SELECT count(*) INTO waiting FROM (SELECT FROM audit_event_default WHERE part_ts >= month AND part_ts < upto LIMIT most + 1) w;
  IF waiting > most THEN
    RETURN false;
  END IF;
  EXECUTE format('CREATE TABLE public.%I (LIKE public.audit_event INCLUDING ALL)', child);
  LOCK TABLE ONLY audit_event_default IN ACCESS EXCLUSIVE MODE;
  EXECUTE format('INSERT INTO public.%I SELECT * FROM public.audit_event WHERE part_ts >= $1 AND part_ts < $2', child) USING month, upto;
  GET DIAGNOSTICS came = ROW_COUNT;
  IF came > 0 THEN
    ALTER TABLE audit_event_default DISABLE TRIGGER audit_refuse_change;
    DELETE FROM audit_event_default WHERE part_ts >= month AND part_ts < upto;
    GET DIAGNOSTICS went = ROW_COUNT;
    ALTER TABLE audit_event_default ENABLE ALWAYS TRIGGER audit_refuse_change;
    IF came <> went THEN
      RAISE EXCEPTION '% rows came home of %', came, went;
    END IF;
  END IF;
  EXECUTE format('ALTER TABLE public.audit_event ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', child, month, upto);
  PERFORM audit_protect(format('public.%I', child)::regclass);
  RETURN true;
END $$;

-- Creates the partitions of last month up to six months ahead: that horizon never follows from rows. A month that cannot be made
-- now (a lock is not to be had, many rows wait in the default partition) is left for the next call, and the others are made.
CREATE OR REPLACE FUNCTION audit_ensure_partitions() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = '500ms' AS $$
DECLARE
  month timestamptz;
  made  integer := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  FOR ahead IN -1..6 LOOP
    month := date_trunc('month', now()) + make_interval(months => ahead);
    CONTINUE WHEN to_regclass('public.audit_event_' || to_char(month, 'YYYY_MM')) IS NOT NULL;
    BEGIN
      IF audit_add_month(month, 100000) THEN
        made := made + 1;
      ELSE
        RAISE WARNING 'audit partition of % cannot be made now: too many rows wait for it', month;
      END IF;
    EXCEPTION WHEN check_violation OR lock_not_available OR deadlock_detected THEN
      RAISE WARNING 'audit partition of % cannot be made now: %', month, SQLSTATE;
    END;
  END LOOP;
  RETURN made;
END $$;

-- Takes home what waits in the default partition, however much it is, of months since the first batch: rows of a clock gone
-- wild stay where they are. It returns how many partitions it made.
CREATE FUNCTION audit_rehouse() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = '2s' AS $$
DECLARE
  month timestamptz;
  made  integer := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  FOR month IN SELECT m FROM generate_series((SELECT date_trunc('month', min(ingested_at)) - interval '1 month' FROM audit_batch),
                                             date_trunc('month', now()) + interval '6 months', interval '1 month') m LOOP
    CONTINUE WHEN NOT EXISTS (SELECT FROM audit_event_default WHERE part_ts >= month AND part_ts < month + interval '1 month')
               OR to_regclass('public.audit_event_' || to_char(month, 'YYYY_MM')) IS NOT NULL;
    PERFORM audit_add_month(month, 9e15::bigint);
    made := made + 1;
  END LOOP;
  RETURN made;
END $$;

-- How long the trail is kept: the newest row is in force. Six years at least: 45 CFR 164.316(b)(2)(i), and 164.528 for
-- disclosures.
CREATE TABLE audit_policy (
  id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  years  integer     NOT NULL CHECK (years BETWEEN 6 AND 1000),
  set_by text        NOT NULL CHECK (set_by <> ''),
  set_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO audit_policy (years, set_by) VALUES (6, 'migration');

-- A legal hold keeps a patient's events, or those of a period, past their time, until a row of audit_release ends it.
CREATE TABLE audit_hold (
  id        uuid        PRIMARY KEY,
  patient   text        NOT NULL CHECK (octet_length(patient) <= 512),
  from_ts   timestamptz,
  to_ts     timestamptz,
  reason    text        NOT NULL CHECK (octet_length(reason) BETWEEN 1 AND 1000),
  placed_by text        NOT NULL CHECK (placed_by <> ''),
  placed_at timestamptz NOT NULL DEFAULT now(),
  CHECK (CASE WHEN patient = '' THEN from_ts < to_ts AND from_ts IS NOT NULL AND to_ts IS NOT NULL ELSE from_ts IS NULL AND to_ts IS NULL END)
);
CREATE TABLE audit_release (
  hold        uuid        PRIMARY KEY REFERENCES audit_hold,
  released_by text        NOT NULL CHECK (released_by <> ''),
  released_at timestamptz NOT NULL DEFAULT now()
);

-- What was dropped, or is about to be: the log's signed note (audit.Pruning), made before anything goes.
CREATE TABLE audit_pruned (
  partition text        PRIMARY KEY,
  rows      bigint      NOT NULL,
  archive   bytea       NOT NULL CHECK (octet_length(archive) = 32),
  note      bytea       NOT NULL,
  noted_at  timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE audit_pruned_step (
  partition text        NOT NULL REFERENCES audit_pruned,
  step      text        NOT NULL CHECK (step IN ('detached', 'dropped')),
  at        timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (partition, step)
);
SELECT audit_protect(t::regclass)
FROM unnest(ARRAY['audit_policy', 'audit_hold', 'audit_release', 'audit_pruned', 'audit_pruned_step']) t;

-- Why a partition must stay; null when it may go. A part time may be a day off the true one, so a day is added to every bound. Rows
-- that came into the table less than the policy's time ago stay as well, whatever their part time says.
CREATE FUNCTION audit_kept(relation regclass, low timestamptz, high timestamptz) RETURNS text LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  years integer := (SELECT p.years FROM audit_policy p ORDER BY p.id DESC LIMIT 1);
  hold  audit_hold;
  hit   boolean;
BEGIN
  IF high + interval '1 day' > now() - make_interval(years => years) THEN
    RETURN 'young';
  END IF;
  FOR hold IN SELECT h.* FROM audit_hold h WHERE NOT EXISTS (SELECT FROM audit_release r WHERE r.hold = h.id) ORDER BY h.placed_at LOOP
    IF hold.patient = '' THEN
      hit := hold.from_ts < high + interval '1 day' AND hold.to_ts > low - interval '1 day';
    ELSE
      EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE patient = %L)', relation, hold.patient) INTO hit;
    END IF;
    IF hit THEN
      RETURN 'hold ' || hold.id;
    END IF;
  END LOOP;
  EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE ingested_at > $1)', relation) INTO hit USING now() - make_interval(years => years);
  IF hit THEN
    RETURN 'stored late';
  END IF;
  RETURN NULL;
END $$;

-- Months of the trail, oldest first: attached ones, and those that were detached and are not dropped yet. kept is null for those that may go.
CREATE FUNCTION audit_months() RETURNS TABLE (partition text, low timestamptz, high timestamptz, noted boolean, detached_at timestamptz, kept text)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  FOR partition IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
                   AND c.relname ~ '^audit_event_\d{4,}_\d\d$' ORDER BY 1 LOOP
    low         := to_timestamp(substr(partition, 13), 'YYYY_MM');
    high        := low + interval '1 month';
    noted       := EXISTS (SELECT FROM audit_pruned p WHERE p.partition = audit_months.partition);
    detached_at := (SELECT s.at FROM audit_pruned_step s WHERE s.partition = audit_months.partition AND s.step = 'detached');
    kept        := audit_kept(format('public.%I', partition)::regclass, low, high);
    RETURN NEXT;
  END LOOP;
END $$;

-- The runs of a month's records, without gaps.
CREATE FUNCTION audit_runs(month text) RETURNS TABLE (stream uuid, first_seq bigint, rows bigint) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  PERFORM audit_month(month);
  RETURN QUERY EXECUTE format('SELECT r.stream, min(r.seq), count(*) FROM
    (SELECT e.stream, e.seq, e.seq - row_number() OVER (PARTITION BY e.stream ORDER BY e.seq) AS run FROM public.%I e) r
    GROUP BY r.stream, r.run ORDER BY r.stream, min(r.seq)', month);
END $$;

-- Refuses what is no month of the trail. CKA20: unknown.
CREATE FUNCTION audit_month(month text) RETURNS regclass LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF month !~ '^audit_event_\d{4,}_\d\d$' OR to_regclass(format('public.%I', month)) IS NULL THEN
    RAISE EXCEPTION 'no such month' USING ERRCODE = 'CKA20';
  END IF;
  RETURN format('public.%I', month)::regclass;
END $$;

-- Refuses a month that must stay. CKA21: kept.
CREATE FUNCTION audit_may_go(month text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  low timestamptz := to_timestamp(substr(month, 13), 'YYYY_MM');
  why text        := audit_kept(audit_month(month), low, low + interval '1 month');
BEGIN
  IF why IS NOT NULL THEN
    RAISE EXCEPTION 'the month is kept: %', why USING ERRCODE = 'CKA21';
  END IF;
END $$;

-- The three steps of dropping a month, each a transaction, each refused where the one before it is missing, while a hold stands or
-- the month is young. Holds are placed under the same lock.
CREATE FUNCTION audit_note_pruning(month text, dropped bigint, archive bytea, note bytea) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
DECLARE n bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  PERFORM audit_may_go(month);
  EXECUTE format('SELECT count(*) FROM public.%I', month) INTO n;
  IF n <> dropped THEN
    RAISE EXCEPTION 'the month has other rows than its note' USING ERRCODE = 'CKA22';
  END IF;
  INSERT INTO audit_pruned VALUES (month, dropped, archive, note);
END $$;

-- Detaching takes the parent's lock; who waits for it makes everybody wait, so it is asked for briefly and the caller tries again. The table loses the
-- triggers that it had from its parent, and gets its own.
CREATE FUNCTION audit_detach(month text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = '50ms' AS $$
DECLARE child regclass := audit_month(month);
BEGIN
  IF NOT pg_try_advisory_xact_lock(7392) THEN
    RAISE EXCEPTION USING ERRCODE = 'lock_not_available', MESSAGE = 'somebody else works on the months';
  END IF;
  PERFORM audit_may_go(month);
  EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', child);
  LOCK TABLE ONLY audit_event_default IN ACCESS EXCLUSIVE MODE;
  EXECUTE format('ALTER TABLE public.audit_event DETACH PARTITION %s', child);
  PERFORM audit_refuse_changes(child);
  EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, chartkeep_audit_writer, chartkeep_audit_reader, chartkeep_records, chartkeep_audit_retention, chartkeep', child);
  INSERT INTO audit_pruned_step VALUES (month, 'detached');
END $$;

-- CKA23: too early.
CREATE FUNCTION audit_drop_month(month text, grace interval) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = '2s' AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  PERFORM audit_may_go(month);
  IF NOT EXISTS (SELECT FROM audit_pruned_step s WHERE s.partition = month AND s.step = 'detached' AND s.at <= now() - grace)
     OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = audit_month(month)) THEN
    RAISE EXCEPTION 'the month is not detached, or not for long enough' USING ERRCODE = 'CKA23';
  END IF;
  EXECUTE format('DROP TABLE public.%I', month);
  INSERT INTO audit_pruned_step VALUES (month, 'dropped');
END $$;

CREATE FUNCTION audit_retention_years() RETURNS integer LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
  SELECT p.years FROM audit_policy p ORDER BY p.id DESC LIMIT 1
$$;
CREATE FUNCTION audit_set_retention(years integer, who text) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
  INSERT INTO audit_policy (years, set_by) VALUES (years, who)
$$;

CREATE FUNCTION audit_place_hold(id uuid, patient text, from_ts timestamptz, to_ts timestamptz, reason text, who text) RETURNS void LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  INSERT INTO audit_hold VALUES (id, patient, from_ts, to_ts, reason, who);
END $$;
-- CKA20: unknown, or released before.
CREATE FUNCTION audit_release_hold(id uuid, who text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7392);
  IF NOT EXISTS (SELECT FROM audit_hold h WHERE h.id = audit_release_hold.id AND NOT EXISTS (SELECT FROM audit_release r WHERE r.hold = h.id)) THEN
    RAISE EXCEPTION 'no such hold' USING ERRCODE = 'CKA20';
  END IF;
  INSERT INTO audit_release VALUES (id, who);
END $$;
CREATE FUNCTION audit_holds() RETURNS TABLE (id uuid, patient text, from_ts timestamptz, to_ts timestamptz, reason text, placed_by text,
    placed_at timestamptz, released_by text, released_at timestamptz) LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
  SELECT h.*, r.released_by, r.released_at FROM audit_hold h LEFT JOIN audit_release r ON r.hold = h.id ORDER BY h.placed_at, h.id
$$;

GRANT EXECUTE ON FUNCTION audit_rehouse, audit_months, audit_runs, audit_note_pruning, audit_detach, audit_drop_month, audit_retention_years,
  audit_set_retention, audit_place_hold, audit_release_hold, audit_holds TO chartkeep_audit_retention;
GRANT SELECT ON audit_pruned TO chartkeep_audit_reader;
RESET ROLE;

-- The guard looks at everything of the trail now, by its name, its owner and its triggers: views that would hide rows,
-- triggers, rules and policies that would change or lose them on their way in. Itself it cannot guard: a new one is in force at once.
CREATE OR REPLACE FUNCTION audit_guard() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF current_user = 'chartkeep_audit_owner' THEN
    RETURN;
  END IF;
  IF TG_EVENT = 'sql_drop' THEN
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() d
               WHERE d.object_type IN ('table', 'trigger', 'function', 'view', 'index', 'table constraint', 'default value')
                 AND d.object_identity ~ '(^|\.| )"?audit_') THEN
      RAISE EXCEPTION 'the audit trail is append-only: % refused', TG_TAG USING ERRCODE = 'CKA10';
    END IF;
  ELSIF EXISTS (
    SELECT FROM pg_event_trigger_ddl_commands() c
    WHERE c.classid = 'pg_proc'::regclass AND c.objid <> 'public.audit_guard'::regproc
        AND (c.object_identity ~ '^public\."?audit_' OR EXISTS (SELECT FROM pg_proc p WHERE p.oid = c.objid AND p.proowner = 'chartkeep_audit_owner'::regrole))
      OR EXISTS (SELECT FROM pg_class r
           WHERE r.oid = CASE c.classid
               WHEN 'pg_class'::regclass THEN c.objid
               WHEN 'pg_trigger'::regclass THEN (SELECT t.tgrelid FROM pg_trigger t WHERE t.oid = c.objid)
               WHEN 'pg_rewrite'::regclass THEN (SELECT w.ev_class FROM pg_rewrite w WHERE w.oid = c.objid)
               WHEN 'pg_policy'::regclass THEN (SELECT y.polrelid FROM pg_policy y WHERE y.oid = c.objid)
             END
             AND (r.relnamespace = 'public'::regnamespace AND r.relname LIKE 'audit\_%' OR r.relowner = 'chartkeep_audit_owner'::regrole
               OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = r.oid AND t.tgfoid = 'public.audit_refuse'::regproc)))) THEN
    RAISE EXCEPTION 'the audit trail is append-only: % refused', TG_TAG USING ERRCODE = 'CKA10';
  END IF;
END $$;
