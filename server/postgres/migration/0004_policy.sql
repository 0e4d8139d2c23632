-- Who may do what, as rows, and the epochs by which caches notice a change.
SET LOCAL ROLE chartkeep_owner;

-- The policy has one shard; relationships have sixteen, so that writers about different practitioners rarely meet. An
-- epoch is the sum of its shards.
CREATE TABLE authz_epoch (
  scope text     NOT NULL,
  shard smallint NOT NULL,
  n     bigint   NOT NULL,
  PRIMARY KEY (scope, shard)
) WITH (fillfactor = 50);
INSERT INTO authz_epoch VALUES ('policy', 0, 1);
INSERT INTO authz_epoch SELECT 'relationship', s, 0 FROM generate_series(0, 15) s;

CREATE TABLE role (name text PRIMARY KEY);

-- position orders the permissions of a role; "*" is every clinical type.
CREATE TABLE permission (
  role         text     NOT NULL REFERENCES role ON DELETE CASCADE,
  type         text     NOT NULL,
  interactions text     NOT NULL CHECK (interactions ~ '^c?r?u?d?s?$' AND interactions <> ''),
  view         text     NOT NULL,
  relation     text     NOT NULL CHECK (relation IN ('none', 'treatment', 'self')),
  purposes     text[]   NOT NULL CHECK (cardinality(purposes) > 0),
  position     integer  GENERATED ALWAYS AS IDENTITY,
  PRIMARY KEY (role, type)
);

CREATE TABLE capability (
  role text NOT NULL REFERENCES role ON DELETE CASCADE,
  name text NOT NULL,
  PRIMARY KEY (role, name)
);

CREATE FUNCTION policy_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  UPDATE authz_epoch SET n = n + 1 WHERE scope = 'policy' AND shard = 0;
  PERFORM pg_notify('chartkeep_authz', 'policy');
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION policy_changed FROM PUBLIC;

INSERT INTO role VALUES ('clinician'), ('nurse'), ('registrar'), ('billing'), ('researcher'), ('patient'), ('backend'),
  ('officer'), ('security'), ('admin');

-- The directory is read by those who treat, and not theirs to edit: a Practitioner is who somebody is taken for.
INSERT INTO permission (role, type, interactions, view, relation, purposes) VALUES
  ('clinician', '*', 'cruds', 'full', 'treatment', '{TREAT}'),
  ('clinician', 'Practitioner', 'rs', 'full', 'none', '{TREAT}'),
  ('clinician', 'PractitionerRole', 'rs', 'full', 'none', '{TREAT}'),
  ('clinician', 'Organization', 'rs', 'full', 'none', '{TREAT}'),
  ('clinician', 'Location', 'rs', 'full', 'none', '{TREAT}'),
  ('clinician', 'HealthcareService', 'rs', 'full', 'none', '{TREAT}'),
  ('clinician', 'Endpoint', 'rs', 'full', 'none', '{TREAT}'),
  ('nurse', '*', 'crus', 'full', 'treatment', '{TREAT}'),
  ('nurse', 'Practitioner', 'rs', 'full', 'none', '{TREAT}'),
  ('nurse', 'PractitionerRole', 'rs', 'full', 'none', '{TREAT}'),
  ('nurse', 'Organization', 'rs', 'full', 'none', '{TREAT}'),
  ('nurse', 'Location', 'rs', 'full', 'none', '{TREAT}'),
  ('nurse', 'HealthcareService', 'rs', 'full', 'none', '{TREAT}'),
  ('nurse', 'Endpoint', 'rs', 'full', 'none', '{TREAT}'),
  ('registrar', 'Patient', 'crs', 'demographics', 'none', '{HOPERAT}'),
  ('registrar', 'RelatedPerson', 'crs', 'demographics', 'none', '{HOPERAT}'),
  ('registrar', 'Practitioner', 'rs', 'full', 'none', '{HOPERAT}'),
  ('registrar', 'Organization', 'rs', 'full', 'none', '{HOPERAT}'),
  ('registrar', 'Location', 'rs', 'full', 'none', '{HOPERAT}'),
  ('billing', 'Patient', 'rs', 'demographics', 'none', '{HPAYMT}'),
  ('billing', 'Coverage', 'rs', 'billing', 'none', '{HPAYMT}'),
  ('billing', 'Claim', 'rs', 'billing', 'none', '{HPAYMT}'),
  ('billing', 'ExplanationOfBenefit', 'rs', 'billing', 'none', '{HPAYMT}'),
  ('billing', 'Encounter', 'rs', 'billing', 'none', '{HPAYMT}'),
  ('billing', 'Organization', 'rs', 'full', 'none', '{HPAYMT}'),
  ('billing', 'Practitioner', 'rs', 'full', 'none', '{HPAYMT}'),
  ('researcher', 'Patient', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'Observation', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'Condition', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'Procedure', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'MedicationRequest', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'Immunization', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'Encounter', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'DiagnosticReport', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('researcher', 'AllergyIntolerance', 'rs', 'deidentified', 'none', '{HRESCH}'),
  ('patient', '*', 'rs', 'full', 'self', '{PATRQT}'),
  ('backend', '*', 'cruds', 'full', 'none', '{TREAT,HOPERAT,HPAYMT,HRESCH}');

INSERT INTO capability VALUES
  ('officer', 'audit:read'), ('officer', 'latency:read'),
  ('security', 'audit:read'), ('security', 'metrics:read'),
  ('admin', 'policy:read'), ('admin', 'policy:write'), ('admin', 'relationships:write');

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['role', 'permission', 'capability'] LOOP
    EXECUTE format('CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION policy_changed()', t);
  END LOOP;
END $$;

GRANT SELECT ON role, permission, capability TO chartkeep_records;
GRANT SELECT, UPDATE ON authz_epoch TO chartkeep_records;
RESET ROLE;
