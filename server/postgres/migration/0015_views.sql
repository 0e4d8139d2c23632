-- Role and purpose select the view (45 CFR 164.514(d)(2)): a role may see a type in one view for one purpose and in another for
-- another.
SET LOCAL ROLE chartkeep_owner;
ALTER TABLE permission DROP CONSTRAINT permission_pkey, ADD PRIMARY KEY (role, type, view, relation);
RESET ROLE;
