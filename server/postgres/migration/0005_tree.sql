-- The log's Merkle tree: tiles, the batches in it, signed checkpoints. The sequencer's role reads what commits to rows, never rows.
DO $$ BEGIN
  CREATE ROLE chartkeep_audit_sequencer NOLOGIN NOINHERIT;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
GRANT chartkeep_audit_sequencer TO chartkeep;
GRANT USAGE ON SCHEMA public TO chartkeep_audit_sequencer;

SET LOCAL ROLE chartkeep_audit_owner;

-- Part times of a batch's first and last record in Unix microseconds, as audit_quarantine has them, so that its rows are found
-- without looking into every month. Null when no row of an older batch is in the table.
ALTER TABLE audit_batch ADD COLUMN first_us bigint, ADD COLUMN last_us bigint;
ALTER TABLE audit_batch DISABLE TRIGGER audit_refuse_change;
UPDATE audit_batch b SET first_us = m.first_us, last_us = m.last_us
FROM (SELECT e.stream, (SELECT max(b.first_seq) FROM audit_batch b WHERE b.stream = e.stream AND b.first_seq <= e.seq) AS first_seq,
             (extract(epoch FROM min(e.part_ts)) * 1000000)::bigint AS first_us, (extract(epoch FROM max(e.part_ts)) * 1000000)::bigint AS last_us
      FROM audit_event e GROUP BY 1, 2) m
WHERE b.stream = m.stream AND b.first_seq = m.first_seq;
ALTER TABLE audit_batch ENABLE ALWAYS TRIGGER audit_refuse_change;

-- A checkpoint continues the one before it: old is that one's size, and no two continue the same. token is the fencing token of
-- the lease under which it was made; every lease draws a new one.
CREATE SEQUENCE audit_token;
CREATE TABLE audit_checkpoint (
  size    bigint      PRIMARY KEY CHECK (size > old),
  old     bigint      NOT NULL UNIQUE CHECK (old >= 0),
  token   bigint      NOT NULL,
  note    text        NOT NULL,
  made_at timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION audit_next_checkpoint() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF NEW.token <> (SELECT last_value FROM audit_token) OR NEW.old <> coalesce((SELECT max(c.size) FROM audit_checkpoint c), 0) THEN
    RAISE EXCEPTION 'the tree has another sequencer or another head' USING ERRCODE = 'CKA30';
  END IF;
  NEW.made_at := now();
  RETURN NEW;
END $$;
CREATE TRIGGER audit_next_checkpoint BEFORE INSERT ON audit_checkpoint FOR EACH ROW EXECUTE FUNCTION audit_next_checkpoint();
ALTER TABLE audit_checkpoint ENABLE ALWAYS TRIGGER audit_next_checkpoint;

-- Signature lines of witnesses.
CREATE TABLE audit_cosignature (
  size        bigint      NOT NULL REFERENCES audit_checkpoint,
  line        text        NOT NULL CHECK (octet_length(line) <= 1000),
  gathered_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (size, line)
);

-- The batches in the tree: record first_seq + i of the stream is leaf index + i.
CREATE TABLE audit_span (
  index     bigint  PRIMARY KEY CHECK (index >= 0),
  stream    uuid    NOT NULL,
  first_seq bigint  NOT NULL CHECK (first_seq >= 0),
  count     integer NOT NULL CHECK (count > 0),
  prev      bytea   NOT NULL CHECK (octet_length(prev) = 32),
  chain     bytea   NOT NULL CHECK (octet_length(chain) = 32),
  first_us  bigint,
  last_us   bigint,
  UNIQUE (stream, first_seq)
);

-- Full tiles, see https://c2sp.org/tlog-tiles.
CREATE TABLE audit_tile (
  level  smallint NOT NULL CHECK (level >= 0),
  idx    bigint   NOT NULL CHECK (idx >= 0),
  hashes bytea    NOT NULL CHECK (octet_length(hashes) = 8192),
  PRIMARY KEY (level, idx)
);
ALTER TABLE audit_tile ALTER COLUMN hashes SET STORAGE EXTERNAL; -- hashes do not compress

-- The partial tile at the right end of each level. Derived data: it follows from full tiles and rows, and is replaced with every
-- checkpoint.
CREATE TABLE audit_edge (
  level  smallint PRIMARY KEY,
  idx    bigint   NOT NULL,
  hashes bytea    NOT NULL CHECK (octet_length(hashes) BETWEEN 32 AND 8160)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE audit_edge ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- Verifier keys of the log and its witnesses, as the sequencer was configured with.
CREATE TABLE audit_key (
  vkey       text        PRIMARY KEY CHECK (octet_length(vkey) <= 1000),
  first_used timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['audit_checkpoint', 'audit_cosignature', 'audit_span', 'audit_tile', 'audit_key'] LOOP
    EXECUTE format('CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION audit_refuse()', t);
    EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER audit_refuse_change', t);
    PERFORM audit_protect(t::regclass);
  END LOOP;
END $$;

-- Wakes those who wait for new batches, and for new checkpoints. The payload is empty: who is woken looks for himself.
CREATE FUNCTION audit_wake() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_notify(TG_ARGV[0], '');
  RETURN NULL;
END $$;
CREATE TRIGGER audit_ingested AFTER INSERT ON audit_batch FOR EACH STATEMENT EXECUTE FUNCTION audit_wake('audit_ingested');
CREATE TRIGGER audit_published AFTER INSERT ON audit_checkpoint FOR EACH STATEMENT EXECUTE FUNCTION audit_wake('audit_checkpoint');

-- What verification reads beside audit_trail.
CREATE VIEW audit_manifest AS SELECT * FROM audit_batch;
CREATE VIEW audit_aside AS SELECT * FROM audit_quarantine;
GRANT SELECT ON audit_manifest, audit_aside, audit_checkpoint, audit_cosignature, audit_span, audit_tile, audit_edge, audit_key TO chartkeep_audit_reader;

GRANT SELECT ON audit_batch TO chartkeep_audit_sequencer;
GRANT SELECT (part_ts, stream, seq, leaf) ON audit_event TO chartkeep_audit_sequencer;
GRANT SELECT (stream, seq, part_us, leaf) ON audit_quarantine TO chartkeep_audit_sequencer;
GRANT USAGE ON SEQUENCE audit_token TO chartkeep_audit_sequencer;
GRANT SELECT, INSERT ON audit_checkpoint, audit_cosignature, audit_span, audit_tile, audit_key TO chartkeep_audit_sequencer;
GRANT SELECT, INSERT, DELETE ON audit_edge TO chartkeep_audit_sequencer;
RESET ROLE;
