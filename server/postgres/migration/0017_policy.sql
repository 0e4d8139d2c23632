-- The policy as something that is administered: roles that say what they are, who holds them and since when, which may not be held
-- together, every version that there was, and changes that wait for a second person (45 CFR 164.308(a)(3), (a)(4)).
DO $$ BEGIN
  CREATE ROLE chartkeep_policy NOLOGIN NOINHERIT;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
GRANT chartkeep_policy TO chartkeep;
GRANT USAGE ON SCHEMA public TO chartkeep_policy;
SET LOCAL ROLE chartkeep_owner;

-- workforce: people hold the role, so it can be assigned; approval: to whom it is assigned takes two persons. position orders the roles.
ALTER TABLE role
  ADD COLUMN description text    NOT NULL DEFAULT '' CHECK (octet_length(description) <= 500),
  ADD COLUMN workforce   boolean NOT NULL DEFAULT false,
  ADD COLUMN approval    boolean NOT NULL DEFAULT false,
  ADD COLUMN position    integer GENERATED ALWAYS AS IDENTITY,
  ADD CHECK (name ~ '^[a-z][a-z0-9-]{0,62}$');
-- approval: a role that has one with it takes two persons to assign.
ALTER TABLE permission ADD COLUMN approval boolean NOT NULL DEFAULT false;
ALTER TABLE capability ADD COLUMN approval boolean NOT NULL DEFAULT false;

UPDATE role r SET description = d.text, workforce = r.name NOT IN ('patient', 'backend'), approval = r.name IN ('admin', 'officer', 'security')
  FROM (VALUES
    ('clinician', 'Treats patients: full charts of those in treatment'),
    ('nurse', 'Nurses patients: full charts of those in treatment, without deleting'),
    ('registrar', 'Registers and merges patients: demographics'),
    ('billing', 'Bills: demographics, coverage, claims, encounters without clinical detail'),
    ('researcher', 'Researches: de-identified records'),
    ('patient', 'A patient, in the own records'),
    ('backend', 'A service with system scopes'),
    ('officer', 'Compliance officer: reads the trail, approves, opens no charts'),
    ('security', 'Security analyst: reads trail and metrics, approves, opens no charts'),
    ('admin', 'Administers roles and relationships, opens no charts'),
    ('assessor', 'Outside assessor: reads the trail with aliases in the place of people')) d(name, text) WHERE r.name = d.name;

-- Separation of duty (NIST SP 800-53 AC-5): of roles in one row nobody has either. One row a pair.
CREATE TABLE role_conflict (
  role   text NOT NULL REFERENCES role ON DELETE CASCADE,
  other  text NOT NULL REFERENCES role ON DELETE CASCADE CHECK (other <> role),
  reason text NOT NULL CHECK (octet_length(reason) BETWEEN 1 AND 500),
  PRIMARY KEY (role, other)
);
CREATE UNIQUE INDEX role_conflict_pair ON role_conflict (least(role, other), greatest(role, other));
INSERT INTO role_conflict
  -- Who gives out access to charts has none, or he could give it to himself and take it away again.
  SELECT 'admin', r, 'who administers access has none to charts' FROM unnest('{clinician,nurse,registrar,billing,researcher}'::text[]) r
  -- What an administrator does is watched, and approved, by somebody else.
  UNION ALL SELECT 'admin', r, 'who administers access is watched by another' FROM unnest('{officer,security,assessor}'::text[]) r
  -- Emergency access and what else is done in charts is reviewed by somebody who does not do it.
  UNION ALL SELECT 'officer', r, 'who reviews access to charts has none' FROM unnest('{clinician,nurse}'::text[]) r
  -- An assessor comes from outside, and sees nobody's name.
  UNION ALL SELECT 'assessor', r, 'an assessor is from outside, and sees people under aliases'
    FROM unnest('{officer,security,clinician,nurse,registrar,billing,researcher}'::text[]) r
  -- A service is no person; the scopes that count for it would reach as far as its roles do.
  UNION ALL SELECT 'backend', r, 'a service is no person'
    FROM unnest('{clinician,nurse,registrar,billing,researcher,patient,officer,security,admin,assessor}'::text[]) r;

-- Settings of the policy that are no rows of their own.
CREATE TABLE policy_setting (
  name  text    PRIMARY KEY,
  value boolean NOT NULL
);

-- Who holds a role: approved, from from_at to until_at or until it was ended. One that takes two persons waits as requested until expires_at.
-- Rows stay: they tell who held what when.
CREATE TABLE role_assignment (
  id           uuid        PRIMARY KEY,
  subject      text COLLATE "C" NOT NULL CHECK (octet_length(subject) BETWEEN 1 AND 400),
  role         text COLLATE "C" NOT NULL,
  from_at      timestamptz NOT NULL,
  until_at     timestamptz CHECK (until_at > from_at),
  reason       text        NOT NULL CHECK (octet_length(reason) BETWEEN 1 AND 500),
  approval     boolean     NOT NULL,
  state        text        NOT NULL CHECK (state IN ('requested', 'approved', 'withdrawn', 'ended')),
  requested_by text        NOT NULL CHECK (btrim(requested_by) <> ''),
  requested_at timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz NOT NULL,
  decided_by   text        CHECK (btrim(decided_by) <> ''),
  decided_at   timestamptz,
  ended_by     text        CHECK (btrim(ended_by) <> ''),
  ended_at     timestamptz,
  end_reason   text        CHECK (octet_length(end_reason) BETWEEN 1 AND 500),
  CHECK ((state = 'requested') = (decided_at IS NULL) AND (state = 'ended') = (ended_at IS NOT NULL)),
  CHECK ((ended_at IS NULL) = (ended_by IS NULL) AND (ended_at IS NULL) = (end_reason IS NULL)),
  CHECK (approval OR state <> 'requested'),
  CHECK (decided_at IS NOT NULL OR decided_by IS NULL),
  CONSTRAINT two_persons CHECK (NOT approval OR state NOT IN ('approved', 'ended')
    OR decided_by IS NOT NULL AND lower(btrim(decided_by)) <> lower(btrim(requested_by))),
  CONSTRAINT not_oneself CHECK (lower(btrim(requested_by)) <> lower(btrim(subject))
    AND (state = 'withdrawn' OR lower(btrim(decided_by)) IS DISTINCT FROM lower(btrim(subject))))
);
CREATE INDEX role_assignment_subject ON role_assignment (subject, id);
CREATE INDEX role_assignment_time ON role_assignment (requested_at DESC, id DESC);
CREATE INDEX role_assignment_open ON role_assignment (role, subject) WHERE state IN ('requested', 'approved');

-- A change of the policy, whole. One that lets somebody do more waits for a second person; the others are applied at once. base is the
-- version that the proposer saw.
CREATE TABLE policy_proposal (
  id           uuid        PRIMARY KEY,
  base         bigint      NOT NULL,
  document     jsonb       NOT NULL,
  changes      jsonb       NOT NULL, -- in words, as they were shown to the approver
  widens       boolean     NOT NULL,
  reason       text        NOT NULL CHECK (octet_length(reason) BETWEEN 1 AND 500),
  state        text        NOT NULL CHECK (state IN ('requested', 'applied', 'withdrawn')),
  requested_by text        NOT NULL CHECK (btrim(requested_by) <> ''),
  requested_at timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz NOT NULL,
  decided_by   text        CHECK (btrim(decided_by) <> ''),
  decided_at   timestamptz,
  version      bigint,              -- that it became
  CHECK ((state = 'requested') = (decided_at IS NULL) AND (state = 'applied') = (version IS NOT NULL)),
  CHECK (widens OR state <> 'requested'),
  CONSTRAINT two_persons CHECK (state <> 'applied' OR NOT widens
    OR decided_by IS NOT NULL AND lower(btrim(decided_by)) <> lower(btrim(requested_by)))
);
CREATE INDEX policy_proposal_time ON policy_proposal (requested_at DESC, id DESC);

-- CKP17: what is decided stays so.
CREATE FUNCTION policy_decided() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'this is decided' USING ERRCODE = 'CKP17';
END $$;
CREATE TRIGGER policy_decided BEFORE UPDATE ON policy_proposal FOR EACH ROW WHEN (OLD.state <> 'requested') EXECUTE FUNCTION policy_decided();
CREATE TRIGGER policy_decided BEFORE UPDATE ON role_assignment FOR EACH ROW
  WHEN (OLD.state IN ('withdrawn', 'ended') OR OLD.state = 'approved' AND NEW.state <> 'ended'
    OR (OLD.subject, OLD.role, OLD.from_at, OLD.until_at, OLD.reason, OLD.requested_by) IS DISTINCT FROM (NEW.subject, NEW.role, NEW.from_at, NEW.until_at, NEW.reason, NEW.requested_by)
    OR OLD.state = 'approved' AND (OLD.decided_by, OLD.decided_at) IS DISTINCT FROM (NEW.decided_by, NEW.decided_at))
  EXECUTE FUNCTION policy_decided();

-- Every version of the policy without assignments. version is the epoch at which it came to be: a decision under epoch n was made under the
-- greatest version that is not above n. The database itself writes it, so that what somebody changes by hand is in it too.
CREATE TABLE policy_version (
  version     bigint      PRIMARY KEY,
  at          timestamptz NOT NULL,
  changed_by  text        NOT NULL,
  approved_by text,
  summary     text        NOT NULL,
  document    jsonb       NOT NULL
);
CREATE FUNCTION policy_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'versions of the policy are not changed' USING ERRCODE = 'CKP18';
END $$;
CREATE TRIGGER policy_history BEFORE UPDATE OR DELETE OR TRUNCATE ON policy_version FOR EACH STATEMENT EXECUTE FUNCTION policy_history();

CREATE FUNCTION policy_document() RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp RETURN jsonb_build_object(
  'roles', coalesce((SELECT jsonb_agg(jsonb_build_object('name', r.name, 'description', r.description, 'workforce', r.workforce, 'approval', r.approval,
    'permissions', coalesce((SELECT jsonb_agg(jsonb_build_object('type', p.type, 'interactions', p.interactions, 'view', p.view, 'relation', p.relation,
        'purposes', p.purposes, 'effect', p.effect, 'segments', p.segments, 'acr', p.acr, 'max_age', p.max_age, 'approval', p.approval) ORDER BY p.position)
      FROM permission p WHERE p.role = r.name), '[]'),
    'capabilities', coalesce((SELECT jsonb_agg(jsonb_build_object('name', c.name, 'acr', c.acr, 'max_age', c.max_age, 'approval', c.approval) ORDER BY c.name)
      FROM capability c WHERE c.role = r.name), '[]')) ORDER BY r.position) FROM role r), '[]'),
  'conflicts', coalesce((SELECT jsonb_agg(jsonb_build_object('role', x.role, 'other', x.other, 'reason', x.reason) ORDER BY x.role, x.other)
    FROM role_conflict x), '[]'),
  'settings', coalesce((SELECT jsonb_object_agg(s.name, s.value) FROM policy_setting s), '{}'));

-- At the end of a transaction that changed the policy. Who changed it says so (chartkeep.by, .approved_by, .summary); who does not is named
-- as the database knows him.
CREATE FUNCTION policy_versioned() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  now_at bigint := (SELECT sum(n) FROM authz_epoch WHERE scope = 'policy');
  is_now jsonb;
BEGIN
  IF EXISTS (SELECT FROM policy_version WHERE version = now_at) THEN
    RETURN NULL;
  END IF;
  is_now := policy_document();
  IF is_now IS DISTINCT FROM (SELECT document FROM policy_version ORDER BY version DESC LIMIT 1) THEN
    INSERT INTO policy_version VALUES (now_at, now(), coalesce(nullif(current_setting('chartkeep.by', true), ''), 'database role ' || session_user),
      nullif(current_setting('chartkeep.approved_by', true), ''), coalesce(nullif(current_setting('chartkeep.summary', true), ''), 'changed in the database'), is_now);
  END IF;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION policy_versioned, policy_history, policy_decided, policy_document FROM PUBLIC;
CREATE CONSTRAINT TRIGGER policy_versioned AFTER UPDATE ON authz_epoch DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  WHEN (NEW.scope = 'policy') EXECUTE FUNCTION policy_versioned();

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['role_conflict', 'policy_setting', 'role_assignment'] LOOP
    EXECUTE format('CREATE TRIGGER policy_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION policy_changed()', t);
  END LOOP;
END $$;

-- The end of everything that a subject holds or waits for. Also by roles that may not give any of it.
CREATE FUNCTION end_assignments(of_subject text, by_whom text, because text) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  changed integer;
BEGIN
  IF NOT EXISTS (SELECT FROM role_assignment WHERE subject = of_subject AND state IN ('requested', 'approved')) THEN
    RETURN 0;
  END IF;
  UPDATE role_assignment SET
      ended_by = CASE WHEN state = 'approved' THEN by_whom END, ended_at = CASE WHEN state = 'approved' THEN now() END,
      end_reason = CASE WHEN state = 'approved' THEN because END,
      decided_by = CASE WHEN state = 'approved' THEN decided_by ELSE by_whom END, decided_at = CASE WHEN state = 'approved' THEN decided_at ELSE now() END,
      state = CASE WHEN state = 'approved' THEN 'ended' ELSE 'withdrawn' END
    WHERE subject = of_subject AND state IN ('requested', 'approved');
  GET DIAGNOSTICS changed = ROW_COUNT;
  RETURN changed;
END $$;
REVOKE ALL ON FUNCTION end_assignments FROM PUBLIC;

INSERT INTO capability (role, name) VALUES
  ('admin', 'assignment:write'), ('officer', 'policy:read'), ('officer', 'policy:approve'), ('officer', 'assignment:approve'),
  ('security', 'policy:read'), ('security', 'policy:approve'), ('security', 'assignment:approve');

GRANT SELECT ON role_conflict, policy_setting, role_assignment, policy_version TO chartkeep_records;
GRANT EXECUTE ON FUNCTION end_assignments TO chartkeep_records;
GRANT SELECT, UPDATE ON authz_epoch TO chartkeep_policy;
GRANT SELECT, INSERT, UPDATE, DELETE ON role, permission, capability, role_conflict, policy_setting TO chartkeep_policy;
GRANT SELECT ON policy_version TO chartkeep_policy;
GRANT SELECT, INSERT ON role_assignment, policy_proposal TO chartkeep_policy;
GRANT UPDATE (state, decided_by, decided_at, ended_by, ended_at, end_reason) ON role_assignment TO chartkeep_policy;
GRANT UPDATE (state, decided_by, decided_at, version) ON policy_proposal TO chartkeep_policy;
RESET ROLE;
