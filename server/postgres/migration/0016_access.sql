-- What a rule of the policy may say beside role, type and view: that it forbids, which segments it opens, how strong and how fresh a
-- sign-in it demands (RFC 9470).
SET LOCAL ROLE chartkeep_owner;
ALTER TABLE permission
  ADD COLUMN effect   text    NOT NULL DEFAULT 'permit' CHECK (effect IN ('permit', 'forbid')),
  ADD COLUMN segments text[]  NOT NULL DEFAULT '{}' CHECK (segments <@ '{part2,psychotherapy}'),
  ADD COLUMN acr      text[]  NOT NULL DEFAULT '{}',
  ADD COLUMN max_age  integer NOT NULL DEFAULT 0 CHECK (max_age >= 0), -- seconds since auth_time; 0: any
  DROP CONSTRAINT permission_purposes_check, ADD CHECK (cardinality(purposes) > 0 OR effect = 'forbid'),
  DROP CONSTRAINT permission_pkey, ADD PRIMARY KEY (role, type, view, relation, effect);
ALTER TABLE capability
  ADD COLUMN acr     text[]  NOT NULL DEFAULT '{}',
  ADD COLUMN max_age integer NOT NULL DEFAULT 0 CHECK (max_age >= 0);
INSERT INTO authz_epoch VALUES ('emergency', 0, 0), ('revocation', 0, 0);

-- The law lets patients see what others may not, but for psychotherapy notes (45 CFR 164.524(a)(1)(i)); what works for the deployment
-- itself stores what it is given.
UPDATE permission SET segments = '{part2}' WHERE role = 'patient';
UPDATE permission SET segments = '{part2,psychotherapy}' WHERE role = 'backend';
RESET ROLE;
