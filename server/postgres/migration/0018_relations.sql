-- Treatment relationships that begin and end, and what patients consent to.
SET LOCAL ROLE chartkeep_owner;

-- Everybody has one shard of each, by hash: a change about one person leaves what is cached of nearly all others standing.
INSERT INTO authz_epoch SELECT 'relationship', s, 0 FROM generate_series(16, 255) s;
INSERT INTO authz_epoch SELECT 'consent', s, 0 FROM generate_series(0, 255) s;
CREATE FUNCTION authz_shard(person text) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (hashtext(person) & 255)::smallint;

-- How long before it begins and after it ends a relationship holds, in days, by what states it. A visit is prepared, and its findings come in
-- later. (A year after their end relationships are forgotten, so a tail cannot be longer.)
CREATE TABLE treatment_source (
  source    text     PRIMARY KEY,
  lead_days smallint NOT NULL CHECK (lead_days BETWEEN 0 AND 366),
  tail_days smallint NOT NULL CHECK (tail_days BETWEEN 0 AND 366)
);
INSERT INTO treatment_source VALUES ('Encounter', 3, 30), ('CareTeam', 0, 30), ('EpisodeOfCare', 0, 30), ('grant', 0, 0);

-- A relationship is from starts to before ends. What a record states is whole days (UTC), and of those that have begun it is not said when.
ALTER TABLE treatment
  ADD COLUMN starts timestamptz NOT NULL DEFAULT '-infinity',
  ADD COLUMN ends   timestamptz NOT NULL DEFAULT 'infinity',
  ADD CHECK (starts < ends),
  DROP CONSTRAINT treatment_pkey, ADD PRIMARY KEY (practitioner, patient, type, id, starts, ends);
CREATE INDEX treatment_patient ON treatment (patient);
CREATE INDEX treatment_ends ON treatment (ends) WHERE ends < 'infinity';

-- The relationships that hold now, and until when.
CREATE VIEW treating AS SELECT t.practitioner, t.patient, t.source, t.ends + make_interval(hours => 24 * s.tail_days) AS until
  FROM treatment t JOIN treatment_source s USING (source)
  WHERE t.starts - make_interval(hours => 24 * s.lead_days) <= now() AND now() < t.ends + make_interval(hours => 24 * s.tail_days);

CREATE FUNCTION treatment_source_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  UPDATE authz_epoch SET n = n + 1 WHERE scope = 'relationship';
  PERFORM pg_notify('chartkeep_authz', 'relationship');
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION treatment_source_changed FROM PUBLIC;
CREATE TRIGGER treatment_source_changed AFTER INSERT OR UPDATE OR DELETE ON treatment_source FOR EACH STATEMENT EXECUTE FUNCTION treatment_source_changed();

-- Provisions of the patients' Consents, as far as they can be applied; the current, active Consents only. actor is "Practitioner/id", or ''
-- for everybody; no segments and no purposes mean all; deeper provisions are exceptions.
CREATE TABLE consent_rule (
  patient  text COLLATE "C" NOT NULL,
  consent  text COLLATE "C" NOT NULL, -- id of the Consent
  position smallint    NOT NULL,
  depth    smallint    NOT NULL,
  permit   boolean     NOT NULL,
  actor    text COLLATE "C" NOT NULL,
  segments integer[]   NOT NULL,
  purposes text[]      NOT NULL,
  starts   timestamptz NOT NULL,
  ends     timestamptz NOT NULL,
  PRIMARY KEY (patient, consent, position)
);
CREATE INDEX consent_rule_consent ON consent_rule (consent);

-- Emergency access where a consent denies: only when the consent itself permits it, or always (45 CFR 164.522(a)(1)(iii)).
INSERT INTO policy_setting VALUES ('emergency-over-consent', false);

GRANT SELECT ON treatment_source, treating TO chartkeep_records;
GRANT SELECT, INSERT, DELETE ON consent_rule TO chartkeep_records;
GRANT SELECT, INSERT, DELETE ON consent_rule TO chartkeep_keys;
GRANT SELECT, INSERT ON consent_rule TO chartkeep_backup;
INSERT INTO capability (role, name) VALUES ('admin', 'relationships:read'), ('officer', 'relationships:read');
RESET ROLE;
