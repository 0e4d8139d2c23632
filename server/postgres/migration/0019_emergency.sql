-- Emergency access (45 CFR 164.312(a)(2)(ii)), who looked into it (164.308(a)(1)(ii)(D)), and what officers are alerted to.
SET LOCAL ROLE chartkeep_owner;

-- The register. Nobody has checked that there is such a patient: an answer that depended on it would tell. justification is sealed, it
-- may describe the patient. Whoever used a chart neither grants it to himself beyond the limit nor reviews what he did.
CREATE TABLE emergency_access (
  id            uuid        PRIMARY KEY,
  subject       text COLLATE "C" NOT NULL CHECK (btrim(subject) <> ''),
  session       text        NOT NULL CHECK (session <> ''),
  client        text        NOT NULL,
  patient       text COLLATE "C" NOT NULL CHECK (patient <> ''),
  reason_code   text        NOT NULL CHECK (reason_code IN ('life-threatening', 'urgent-treatment', 'transfer', 'cover', 'disaster', 'system-failure', 'other')),
  justification bytea       NOT NULL CHECK (octet_length(justification) > 44), -- what sealing adds
  event         uuid        NOT NULL,
  state         text        NOT NULL CHECK (state IN ('requested', 'granted', 'refused', 'ended', 'revoked')),
  requested_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  duration      interval    NOT NULL CHECK (duration > '0' AND duration <= '4 hours'),
  granted_at    timestamptz,
  until_at      timestamptz CHECK (until_at <= granted_at + duration),
  decided_by    text        CONSTRAINT decided_by_another CHECK (lower(btrim(decided_by)) <> lower(btrim(subject))),
  decided_at    timestamptz,
  ended_by      text,
  ended_at      timestamptz,
  review_by     timestamptz,
  told          boolean     NOT NULL DEFAULT false, -- the audit trail has the outcome
  UNIQUE (id, subject),
  CHECK ((granted_at IS NULL) = (until_at IS NULL) AND (granted_at IS NULL) = (state IN ('requested', 'refused'))),
  CHECK ((decided_by IS NULL) = (decided_at IS NULL) AND (state <> 'refused' OR decided_by IS NOT NULL)),
  CHECK ((ended_by IS NULL) = (ended_at IS NULL) AND (ended_by IS NULL) = (state NOT IN ('ended', 'revoked'))),
  CHECK (review_by IS NULL OR granted_at IS NOT NULL)
);
CREATE INDEX emergency_access_force ON emergency_access (until_at) WHERE state = 'granted';
CREATE INDEX emergency_access_subject ON emergency_access (subject, requested_at DESC, id DESC);
CREATE INDEX emergency_access_patient ON emergency_access (patient, requested_at DESC, id DESC);
CREATE INDEX emergency_access_time ON emergency_access (requested_at DESC, id DESC);
CREATE INDEX emergency_access_review ON emergency_access (review_by) WHERE review_by IS NOT NULL;
CREATE INDEX emergency_access_told ON emergency_access (requested_at) WHERE NOT told;

-- CKP19: it is past that. What was decided or is over stays as it is.
CREATE FUNCTION emergency_access_goes_on() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT (OLD.state = 'requested' AND NEW.state IN ('granted', 'refused') OR OLD.state = 'granted' AND NEW.state IN ('ended', 'revoked')) THEN
    RAISE EXCEPTION 'emergency access is past that' USING ERRCODE = 'CKP19';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER emergency_access_goes_on BEFORE UPDATE OF state ON emergency_access FOR EACH ROW EXECUTE FUNCTION emergency_access_goes_on();

-- Whatever changes who may use emergency access is told to every instance.
CREATE FUNCTION emergency_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  UPDATE authz_epoch SET n = n + 1 WHERE scope = 'emergency' AND shard = 0;
  PERFORM pg_notify('chartkeep_authz', 'emergency');
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION emergency_changed FROM PUBLIC;
CREATE TRIGGER emergency_changed AFTER INSERT OR UPDATE OF state OR DELETE ON emergency_access FOR EACH ROW EXECUTE FUNCTION emergency_changed();
CREATE TRIGGER emergency_emptied AFTER TRUNCATE ON emergency_access FOR EACH STATEMENT EXECUTE FUNCTION emergency_changed();

CREATE TABLE emergency_review (
  access  uuid        NOT NULL,
  n       smallint    NOT NULL CHECK (n > 0),
  subject text COLLATE "C" NOT NULL, -- of the access
  by      text        NOT NULL CHECK (btrim(by) <> ''),
  at      timestamptz NOT NULL DEFAULT clock_timestamp(),
  outcome text        NOT NULL CHECK (outcome IN ('appropriate', 'inappropriate', 'needs-follow-up')),
  remark  bytea       CHECK (octet_length(remark) > 44),
  PRIMARY KEY (access, n),
  FOREIGN KEY (access, subject) REFERENCES emergency_access (id, subject),
  CONSTRAINT two_persons CHECK (lower(btrim(by)) <> lower(btrim(subject)))
);

-- What officers have to look at. about is a reference ("EmergencyAccess/…", a subject), never content. One that happens again before it is
-- closed counts up, and is new again.
CREATE TABLE alert (
  id        uuid        PRIMARY KEY,
  kind      text        NOT NULL CHECK (kind ~ '^[a-z][a-z-]{0,62}$'),
  severity  text        NOT NULL CHECK (severity IN ('info', 'warning', 'high', 'critical')),
  about     text COLLATE "C" NOT NULL CHECK (octet_length(about) <= 300),
  event     uuid,       -- of the trail, the newest
  state     text        NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'seen', 'closed')),
  times     bigint      NOT NULL DEFAULT 1 CHECK (times > 0),
  first_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  seen_by   text,
  seen_at   timestamptz,
  closed_by text,
  closed_at timestamptz,
  CHECK ((seen_by IS NULL) = (seen_at IS NULL) AND (closed_by IS NULL) = (closed_at IS NULL)),
  CHECK ((state = 'closed') = (closed_by IS NOT NULL) AND (state <> 'seen' OR seen_by IS NOT NULL))
);
CREATE UNIQUE INDEX alert_open ON alert (kind, about) WHERE state <> 'closed';
CREATE INDEX alert_time ON alert (last_at DESC, id DESC);
CREATE INDEX alert_state ON alert (state, last_at DESC, id DESC);
CREATE INDEX alert_new ON alert (severity) WHERE state <> 'closed';

GRANT SELECT, INSERT ON emergency_access, emergency_review, alert TO chartkeep_records, chartkeep_backup;
GRANT UPDATE (state, granted_at, until_at, decided_by, decided_at, ended_by, ended_at, review_by, told) ON emergency_access TO chartkeep_records;
GRANT UPDATE (severity, event, state, times, last_at, seen_by, seen_at, closed_by, closed_at) ON alert TO chartkeep_records;

-- Whoever asks for emergency access has signed in within the last five minutes.
INSERT INTO capability (role, name, max_age) VALUES
  ('clinician', 'emergency:request', 300), ('nurse', 'emergency:request', 300),
  ('clinician', 'emergency:own', 0), ('nurse', 'emergency:own', 0),
  ('officer', 'emergency:read', 0), ('officer', 'emergency:revoke', 0), ('officer', 'emergency:review', 0), ('officer', 'emergency:approve', 0),
  ('security', 'emergency:read', 0), ('security', 'emergency:revoke', 0), ('security', 'emergency:approve', 0),
  ('officer', 'alerts:read', 0), ('officer', 'alerts:write', 0), ('security', 'alerts:read', 0), ('security', 'alerts:write', 0);
RESET ROLE;
