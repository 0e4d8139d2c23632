-- Assessors look at the trail without learning who is in it: people, patients, sessions and addresses are shown to them under
-- aliases.
SET LOCAL ROLE chartkeep_owner;
INSERT INTO role VALUES ('assessor');
INSERT INTO capability VALUES ('assessor', 'audit:read-aliased');
RESET ROLE;
