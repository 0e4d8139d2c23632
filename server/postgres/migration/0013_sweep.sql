-- Backups, and the sweep that holds every stored row against its seal and against the audit trail.
DO $$
DECLARE
  r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['chartkeep_backup', 'chartkeep_sweep'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', r);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
    EXECUTE format('GRANT %I TO chartkeep', r);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', r);
  END LOOP;
END $$;
SET LOCAL ROLE chartkeep_owner;

-- Which deployment this is. A backup names it, and goes back into no other one.
CREATE TABLE deployment (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  id  uuid    NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO deployment DEFAULT VALUES;

-- What the sweep has read in the audit trail: the newest version of each record that was written, and in seen which of the 64 versions
-- up to that (bit i: version - i). sealed is where it stands, with a keyed sum over all these rows, so that it notices when somebody
-- edits them.
CREATE TABLE record_head (
  type    text COLLATE "C" NOT NULL,
  id      text COLLATE "C" NOT NULL,
  version bigint NOT NULL CHECK (version > 0),
  seen    bigint NOT NULL,
  PRIMARY KEY (type, id)
) WITH (fillfactor = 90);
CREATE TABLE sweep_state (
  one    boolean PRIMARY KEY DEFAULT true CHECK (one),
  sealed bytea   NOT NULL
);

-- Backups of the data hold no keys, those of the keys no data.
GRANT SELECT, INSERT ON record, record_version, record_patient, index_token, treatment, import_source, phi_merge, phi_merge_row TO chartkeep_backup;
GRANT SELECT, UPDATE (id) ON deployment TO chartkeep_backup, chartkeep_keys;

GRANT SELECT ON record, record_version, record_patient, index_token, phi_key, phi_erased TO chartkeep_sweep;
GRANT SELECT, INSERT, UPDATE, DELETE ON record_head, sweep_state TO chartkeep_sweep;
RESET ROLE;
GRANT SELECT ON migration TO chartkeep_backup;
