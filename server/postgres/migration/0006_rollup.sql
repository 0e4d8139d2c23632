-- What officers' queries need beside the rows: the classes as a column, and rollups.
SET LOCAL ROLE chartkeep_audit_owner;

-- The PHI classes that an event touched, like every column but body a projection. Events that were stored before this column
-- have none here.
ALTER TABLE audit_event ADD COLUMN classes text[] NOT NULL DEFAULT '{}';
CREATE OR REPLACE VIEW audit_trail AS SELECT * FROM audit_event;

-- Imports and the log's own events have no request. In a hash index equal values make one chain of pages, which each insert walks: a
-- million imported events would bring ingest to a halt.
DROP INDEX audit_event_request;
CREATE INDEX audit_event_request ON audit_event USING hash (request_id) WHERE request_id <> '';

-- What officers look for most often is rare: refusals, failures and security alerts. The index holds nothing else.
CREATE INDEX audit_event_failure ON audit_event (part_ts, event_id) WHERE outcome >= 4 OR type = '110113';

-- Rollups are derived data: how many events of each kind an hour and a day have, by when the event happened (audit.Row.Time), so
-- that facets and histograms of a long time need not count rows. They are no evidence: nobody verifies them, anybody may
-- recompute them from the rows (chartkeep audit rebuild), and a test does. They are written in the
-- transaction that stores the rows, so they count each row once. Quarantined rows are in none.
--
-- All combinations of all properties would be nearly as many as there are rows. So there are two rollups of properties that go
-- together: what was done, and who did it why. Both know how it ended; a third knows nothing else. key is a hash of the properties, for a small
-- unique index. Days and hours lie apart, so that a quarter's days are a few pages.
CREATE TABLE audit_rollup_deed (
  daily        boolean     NOT NULL, -- of a day (UTC); otherwise of an hour
  at           timestamptz NOT NULL,
  key          bytea       NOT NULL,
  type         text        NOT NULL,
  interaction  text        NOT NULL,
  action       text        NOT NULL,
  entity_types text[]      NOT NULL, -- each once, in order
  outcome      smallint    NOT NULL, -- -1 is an intent
  allowed      boolean     NOT NULL,
  reason       text        NOT NULL,
  housekeeping boolean     NOT NULL, -- audit.Event.Housekeeping
  events       bigint      NOT NULL,
  PRIMARY KEY (daily, at, key)
) PARTITION BY LIST (daily);
CREATE TABLE audit_rollup_deed_day PARTITION OF audit_rollup_deed FOR VALUES IN (true) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE audit_rollup_deed_hour PARTITION OF audit_rollup_deed FOR VALUES IN (false) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE audit_rollup_actor (
  daily        boolean     NOT NULL,
  at           timestamptz NOT NULL,
  key          bytea       NOT NULL,
  client       text        NOT NULL,
  roles        text[]      NOT NULL,
  purpose      text        NOT NULL,
  view         text        NOT NULL,
  outcome      smallint    NOT NULL,
  allowed      boolean     NOT NULL,
  reason       text        NOT NULL,
  housekeeping boolean     NOT NULL,
  events       bigint      NOT NULL,
  PRIMARY KEY (daily, at, key)
) PARTITION BY LIST (daily);
CREATE TABLE audit_rollup_actor_day PARTITION OF audit_rollup_actor FOR VALUES IN (true) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE audit_rollup_actor_hour PARTITION OF audit_rollup_actor FOR VALUES IN (false) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

-- How many events there are in all, to the minute: what a histogram of everything asks for, at either end too.
CREATE TABLE audit_rollup_total (
  unit         integer     NOT NULL, -- seconds: a day, an hour or a minute
  at           timestamptz NOT NULL,
  housekeeping boolean     NOT NULL,
  events       bigint      NOT NULL,
  denied       bigint      NOT NULL, -- of them
  failed       bigint      NOT NULL,
  PRIMARY KEY (unit, at, housekeeping)
) PARTITION BY LIST (unit);
CREATE TABLE audit_rollup_total_day PARTITION OF audit_rollup_total FOR VALUES IN (86400) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE audit_rollup_total_hour PARTITION OF audit_rollup_total FOR VALUES IN (3600) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE audit_rollup_total_minute PARTITION OF audit_rollup_total FOR VALUES IN (60) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05);

-- How long requests took, from the events that carry late timings. Each part is a histogram in one number: the count of bucket i
-- (audit.LatencyBucket) takes twelve decimal digits, from 10^(12 i) on. So the sum of numbers is the sum of histograms, and
-- empty buckets at either end take no room.
CREATE TABLE audit_rollup_latency (
  hourly   boolean     NOT NULL, -- of an hour; otherwise of a minute
  at       timestamptz NOT NULL,
  route    text        NOT NULL,
  role     text        NOT NULL,
  total    numeric     NOT NULL,
  auth     numeric     NOT NULL,
  decision numeric     NOT NULL,
  database numeric     NOT NULL,
  crypto   numeric     NOT NULL,
  audit    numeric     NOT NULL,
  PRIMARY KEY (hourly, at, route, role)
) PARTITION BY LIST (hourly);
CREATE TABLE audit_rollup_latency_hour PARTITION OF audit_rollup_latency FOR VALUES IN (true) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE audit_rollup_latency_minute PARTITION OF audit_rollup_latency FOR VALUES IN (false) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

-- It has no settings of its own: so it is part of the statement that calls it, and costs a tenth.
CREATE FUNCTION audit_rollup_key(VARIADIC properties text[]) RETURNS bytea LANGUAGE sql STABLE
  AS $$ SELECT substring(pg_catalog.sha256(pg_catalog.convert_to(properties::text, 'UTF8')) FOR 16) $$;

-- Adds what the rows of a batch count to: hours are numbers of hours since 1970, minutes likewise. Everybody takes the rollups'
-- rows in the same order, last thing before COMMIT: nobody waits for long, and no two for each other.
CREATE FUNCTION audit_roll(totals json, deeds json, actors json, latencies json) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
BEGIN
  INSERT INTO audit_rollup_total AS r
  SELECT unit, date_bin(make_interval(secs => unit), to_timestamp(minute * 60), 'epoch'), housekeeping, sum(events), sum(denied), sum(failed)
  FROM json_to_recordset(totals) AS d(minute bigint, housekeeping boolean, events bigint, denied bigint, failed bigint),
       LATERAL (VALUES (60), (3600), (86400)) u(unit)
  GROUP BY 1, 2, 3
  ORDER BY 1, 2, 3
  ON CONFLICT (unit, at, housekeeping) DO UPDATE SET events = r.events + excluded.events, denied = r.denied + excluded.denied, failed = r.failed + excluded.failed;

  INSERT INTO audit_rollup_deed AS r
  SELECT daily, g.at, audit_rollup_key(type, interaction, action, entity_types::text, outcome::text, allowed::text, reason, housekeeping::text),
         type, interaction, action, entity_types, outcome, allowed, reason, housekeeping, sum(events)
  FROM json_to_recordset(deeds) AS d(hour bigint, type text, interaction text, action text, entity_types text[], outcome smallint,
                                     allowed boolean, reason text, housekeeping boolean, events bigint),
       LATERAL (VALUES (false, to_timestamp(hour * 3600)), (true, date_trunc('day', to_timestamp(hour * 3600)))) g(daily, at)
  GROUP BY daily, g.at, type, interaction, action, entity_types, outcome, allowed, reason, housekeeping
  ORDER BY 1, 2, 3
  ON CONFLICT (daily, at, key) DO UPDATE SET events = r.events + excluded.events;

  INSERT INTO audit_rollup_actor AS r
  SELECT daily, g.at, audit_rollup_key(client, roles::text, purpose, view, outcome::text, allowed::text, reason, housekeeping::text),
         client, roles, purpose, view, outcome, allowed, reason, housekeeping, sum(events)
  FROM json_to_recordset(actors) AS d(hour bigint, client text, roles text[], purpose text, view text, outcome smallint,
                                      allowed boolean, reason text, housekeeping boolean, events bigint),
       LATERAL (VALUES (false, to_timestamp(hour * 3600)), (true, date_trunc('day', to_timestamp(hour * 3600)))) g(daily, at)
  GROUP BY daily, g.at, client, roles, purpose, view, outcome, allowed, reason, housekeeping
  ORDER BY 1, 2, 3
  ON CONFLICT (daily, at, key) DO UPDATE SET events = r.events + excluded.events;

  INSERT INTO audit_rollup_latency AS r
  SELECT hourly, g.at, route, role, sum(total), sum(auth), sum(decision), sum(database), sum(crypto), sum(audit)
  FROM json_to_recordset(latencies) AS d(minute bigint, route text, role text, total numeric, auth numeric, decision numeric,
                                         database numeric, crypto numeric, audit numeric),
       LATERAL (VALUES (false, to_timestamp(minute * 60)), (true, date_trunc('hour', to_timestamp(minute * 60)))) g(hourly, at)
  GROUP BY hourly, g.at, route, role
  ORDER BY 1, 2, 3, 4
  ON CONFLICT (hourly, at, route, role) DO UPDATE
  SET total = r.total + excluded.total, auth = r.auth + excluded.auth, decision = r.decision + excluded.decision,
      database = r.database + excluded.database, crypto = r.crypto + excluded.crypto, audit = r.audit + excluded.audit;
END $$;

-- Minutes are for looking at the last days; hours stay.
CREATE FUNCTION audit_trim_rollups() RETURNS bigint LANGUAGE sql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
  WITH gone AS (DELETE FROM audit_rollup_latency WHERE NOT hourly AND at < now() - interval '8 days' RETURNING 1)
  SELECT count(*) FROM gone
$$;

-- Empties the rollups from the oldest stored event on, in a transaction that then fills them again from the rows; ingest waits at its
-- own roll meanwhile, and what it stores is counted after that. What is older keeps its counts: its rows are gone.
CREATE FUNCTION audit_reset_rollups(OUT since timestamptz) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' AS $$
BEGIN
  LOCK TABLE audit_rollup_total, audit_rollup_deed, audit_rollup_actor, audit_rollup_latency IN SHARE ROW EXCLUSIVE MODE;
  SELECT date_trunc('month', min(part_ts)) INTO since FROM audit_event;
  DELETE FROM audit_rollup_total WHERE at >= since;
  DELETE FROM audit_rollup_deed WHERE at >= since;
  DELETE FROM audit_rollup_actor WHERE at >= since;
  DELETE FROM audit_rollup_latency WHERE at >= since;
END $$;

GRANT EXECUTE ON FUNCTION audit_roll, audit_trim_rollups, audit_reset_rollups TO chartkeep_audit_writer;
GRANT SELECT ON audit_rollup_total, audit_rollup_deed, audit_rollup_actor, audit_rollup_latency TO chartkeep_audit_reader;
RESET ROLE;
