-- Assessors look at the trail without learning who is in it: people, patients, sessions and addresses are shown to them under
-- aliases. Security watches the system, and how fast it answers belongs to that.
SET LOCAL ROLE chartkeep_owner;
INSERT INTO role VALUES ('assessor');
INSERT INTO capability VALUES ('assessor', 'audit:read-aliased'), ('security', 'latency:read');
RESET ROLE;
