-- Rotation of keys under load.
SET LOCAL ROLE chartkeep_owner;

-- The rotation of every data key, which may take several runs. Keys that it made carry its id: a run after one that was killed knows
-- what is done.
CREATE TABLE phi_renewal (
  id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  begun_by text        NOT NULL CHECK (btrim(begun_by) <> ''),
  begun    timestamptz NOT NULL DEFAULT now(),
  finished timestamptz
);
CREATE UNIQUE INDEX phi_renewal_open ON phi_renewal ((finished IS NULL)) WHERE finished IS NULL;
ALTER TABLE phi_key ADD COLUMN renewal bigint NOT NULL DEFAULT 0;
-- Keys on their way are few, and found without a look at the others.
CREATE INDEX phi_key_turning ON phi_key (state, subject, segment, key_id) WHERE state <> 'active';

GRANT SELECT, INSERT ON phi_renewal TO chartkeep_keys;
GRANT UPDATE (finished) ON phi_renewal TO chartkeep_keys;
RESET ROLE;
