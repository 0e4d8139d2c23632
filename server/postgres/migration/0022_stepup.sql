-- Who administers access, ends other people's sessions or destroys records has signed in within the last quarter of an hour (RFC 9470):
-- a workplace that was left open is not enough. Services, which nobody signs in to, hold none of these.
SET LOCAL ROLE chartkeep_owner;
UPDATE capability SET max_age = 900 WHERE max_age = 0 AND name IN (
  'policy:write', 'policy:approve', 'assignment:write', 'assignment:approve', 'relationships:write',
  'sessions:end', 'revocations:write', 'workforce:terminate',
  'erasure:request', 'erasure:approve', 'emergency:approve');
RESET ROLE;
