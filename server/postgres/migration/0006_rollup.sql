SET LOCAL ROLE chartkeep_audit_owner;

-- The PHI classes that an event touched, like every column but body a projection. Events that were stored before this column
-- have none here.
ALTER TABLE audit_event ADD COLUMN classes text[] NOT NULL DEFAULT '{}';
CREATE OR REPLACE VIEW audit_trail AS SELECT * FROM audit_event;

RESET ROLE;
