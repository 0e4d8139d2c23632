-- What was revoked, and when sessions were used last (45 CFR 164.308(a)(3)(ii)(C), 164.312(a)(2)(iii)).
SET LOCAL ROLE chartkeep_owner;

-- Which tokens are dead. epoch is that of the transaction which revoked: epochs are handed out under a lock that is held until the
-- commit, so whoever has read up to one misses nothing that comes later. A subject with not_before 9999-12-31 is out for good, until a
-- reinstatement. expires_at: no token that the row is about is alive any more; null is never.
CREATE TABLE revocation (
  epoch      bigint      NOT NULL CHECK (epoch > 0),
  kind       text        NOT NULL CHECK (kind IN ('token', 'session', 'subject', 'client', 'key', 'all', 'reinstatement')),
  id         text COLLATE "C" NOT NULL CHECK (octet_length(id) <= 510 AND (id = '') = (kind = 'all')),
  not_before timestamptz NOT NULL CHECK (not_before BETWEEN '1970-01-01Z' AND '9999-12-31Z'),
  reason     text        NOT NULL CHECK (octet_length(reason) BETWEEN 1 AND 500),
  by         text        NOT NULL CHECK (btrim(by) <> ''),
  at         timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz CHECK (expires_at >= at + interval '7 days' AND expires_at >= not_before),
  PRIMARY KEY (epoch, kind, id),
  CHECK (expires_at IS NOT NULL OR kind IN ('key', 'reinstatement') OR kind = 'subject' AND not_before = '9999-12-31Z')
);
CREATE INDEX revocation_id ON revocation (kind, id, epoch);
CREATE INDEX revocation_expires ON revocation (expires_at);

-- CKP20: a revocation stays until it is over.
CREATE FUNCTION revocation_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'revocations stay until they are over' USING ERRCODE = 'CKP20';
END $$;
CREATE TRIGGER revocation_stays BEFORE UPDATE OR TRUNCATE ON revocation FOR EACH STATEMENT EXECUTE FUNCTION revocation_stays();
CREATE TRIGGER revocation_stays_until BEFORE DELETE ON revocation FOR EACH ROW WHEN (OLD.expires_at IS NULL OR OLD.expires_at > now())
  EXECUTE FUNCTION revocation_stays();

-- The epoch of a transaction that revokes. A database that was restored goes on after what it holds.
CREATE FUNCTION revocation_epoch() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  now_at bigint;
BEGIN
  UPDATE authz_epoch SET n = n + 1 WHERE scope = 'revocation' AND shard = 0;
  UPDATE authz_epoch SET n = r.epoch + 1 FROM (SELECT max(epoch) AS epoch FROM revocation) r
    WHERE scope = 'revocation' AND shard = 0 AND n <= r.epoch;
  SELECT n INTO STRICT now_at FROM authz_epoch WHERE scope = 'revocation' AND shard = 0;
  PERFORM pg_notify('chartkeep_authz', 'revocation');
  RETURN now_at;
END $$;

CREATE FUNCTION drop_revocations() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  dropped bigint;
BEGIN
  DELETE FROM revocation WHERE expires_at <= now();
  GET DIAGNOSTICS dropped = ROW_COUNT;
  RETURN dropped;
END $$;

-- Who is given a role after his employment ended is back, with tokens that are issued from then on.
CREATE FUNCTION subject_reinstated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  out_since bigint := (SELECT max(epoch) FROM revocation WHERE kind = 'subject' AND id = NEW.subject AND not_before = '9999-12-31Z');
BEGIN
  IF out_since IS NOT NULL AND NOT EXISTS (SELECT FROM revocation WHERE kind = 'reinstatement' AND id = NEW.subject AND epoch > out_since) THEN
    INSERT INTO revocation (epoch, kind, id, not_before, reason, by)
      VALUES (revocation_epoch(), 'reinstatement', NEW.subject, greatest(NEW.from_at, now()), 'role assigned', coalesce(NEW.decided_by, NEW.requested_by));
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER subject_reinstated AFTER INSERT OR UPDATE OF state ON role_assignment FOR EACH ROW WHEN (NEW.state = 'approved')
  EXECUTE FUNCTION subject_reinstated();
REVOKE ALL ON FUNCTION revocation_stays, revocation_epoch, drop_revocations, subject_reinstated FROM PUBLIC;

-- Sessions as they were seen here: an instance tells at most once a minute of each, after the fact.
CREATE TABLE session_seen (
  id         text COLLATE "C" NOT NULL,
  subject    text COLLATE "C" NOT NULL,
  client     text COLLATE "C" NOT NULL,
  fhir_user  text        NOT NULL,
  acr        text        NOT NULL,
  network    text        NOT NULL, -- where it was used from first
  auth_time  timestamptz,
  first_use  timestamptz NOT NULL,
  last_use   timestamptz NOT NULL,
  expires_at timestamptz NOT NULL, -- of the newest token
  instances  text[]      NOT NULL,
  PRIMARY KEY (id, subject, client)
) WITH (fillfactor = 70);
CREATE INDEX session_seen_subject ON session_seen (subject, first_use DESC);
CREATE INDEX session_seen_time ON session_seen (first_use DESC, id DESC);

INSERT INTO capability (role, name) VALUES
  ('officer', 'sessions:read'), ('security', 'sessions:read'), ('admin', 'sessions:read'),
  ('security', 'sessions:end'), ('admin', 'sessions:end'), ('security', 'revocations:write'), ('admin', 'revocations:write'),
  ('security', 'workforce:terminate'), ('admin', 'workforce:terminate');
-- Everybody may see and end his own.
INSERT INTO capability (role, name) SELECT name, 'sessions:own' FROM role;

GRANT SELECT, INSERT (epoch, kind, id, not_before, reason, by, expires_at) ON revocation TO chartkeep_records;
GRANT EXECUTE ON FUNCTION revocation_epoch, drop_revocations TO chartkeep_records;
GRANT SELECT, INSERT, DELETE ON session_seen TO chartkeep_records;
GRANT UPDATE (fhir_user, acr, auth_time, last_use, expires_at, instances) ON session_seen TO chartkeep_records;
GRANT SELECT, INSERT ON revocation TO chartkeep_backup;
RESET ROLE;
