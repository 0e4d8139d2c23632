-- The roles of a deployment. Nobody logs in as an owner; the program logs in as chartkeep, which owns and inherits
-- nothing and takes one room's role per pool. Roles belong to the whole cluster, so they may exist already.
DO $$
DECLARE
  r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['chartkeep_owner', 'chartkeep_audit_owner', 'chartkeep_records',
                           'chartkeep_audit_writer', 'chartkeep_audit_reader', 'chartkeep'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', r);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
END $$;

ALTER ROLE chartkeep LOGIN NOINHERIT;
GRANT chartkeep_records, chartkeep_audit_writer, chartkeep_audit_reader TO chartkeep;

-- Nobody has anything by default: no CONNECT, no TEMP, nothing in the schema.
DO $$ BEGIN
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO chartkeep', current_database());
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO chartkeep_owner, chartkeep_audit_owner;
GRANT USAGE ON SCHEMA public TO chartkeep_records, chartkeep_audit_writer, chartkeep_audit_reader;

-- The program checks at start that this is the schema it was built for.
GRANT SELECT ON migration TO chartkeep_records;
