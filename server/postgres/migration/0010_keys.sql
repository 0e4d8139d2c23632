-- The life of keys: who rotates, rewraps and erases works under a role of its own, which the program takes only for that. A key is
-- never removed while something names it, and what is sealed names a key that is there.
DO $$ BEGIN
  CREATE ROLE chartkeep_keys NOLOGIN NOINHERIT;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
GRANT chartkeep_keys TO chartkeep;
GRANT USAGE ON SCHEMA public TO chartkeep_keys;
SET LOCAL ROLE chartkeep_owner;

-- One key of a subject's segment seals what is new. uses counts what a key has encrypted (cells, or keys that it wraps), late by a minute
-- at most: random nonces are good for 2^32 (NIST SP 800-38D, 8.3). Keys that come near it are found without a look at the others.
ALTER TABLE phi_key ADD COLUMN uses bigint NOT NULL DEFAULT 0 CHECK (uses >= 0);
ALTER TABLE phi_kek ADD COLUMN uses bigint NOT NULL DEFAULT 0 CHECK (uses >= 0);
CREATE INDEX phi_key_worn ON phi_key (uses) WHERE uses >= 268435456;
CREATE UNIQUE INDEX phi_key_active ON phi_key (subject, segment) WHERE state = 'active';
-- A key-encryption key cannot go while one names it, also not between a look and the removal.
ALTER TABLE phi_key ADD FOREIGN KEY (kek) REFERENCES phi_kek;
ALTER TABLE phi_secret ADD FOREIGN KEY (kek) REFERENCES phi_kek;
CREATE INDEX phi_key_kek ON phi_key (kek);

-- What a key has sealed.
CREATE INDEX record_key ON record (subject, segment, key_id);
CREATE INDEX record_version_key ON record_version (subject, segment, key_id);

-- A cell has whole blocks of padding, and names the key that its row names; so does the seal.
ALTER DOMAIN sealed ADD CHECK (octet_length(VALUE) > 33 AND (octet_length(VALUE) - 33) % 32 = 0);
CREATE FUNCTION cell_key(cell bytea, key_id bigint) RETURNS boolean LANGUAGE sql IMMUTABLE
  RETURN substring(cell FROM 2 FOR 4) = substring(int8send(key_id) FROM 5);
DO $$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['record', 'record_version'] LOOP
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT cells_name_key CHECK (cell_key(identifier, key_id) AND cell_key(name, key_id)
      AND cell_key(birth_date, key_id) AND cell_key(contact, key_id) AND cell_key(clinical, key_id) AND cell_key(narrative, key_id))', t);
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT seal_is_seal CHECK (octet_length(seal) = 147 AND get_byte(seal, 0) = 1
      AND get_byte(seal, 114) = 1 AND substring(seal FROM 116 FOR 4) = substring(int8send(key_id) FROM 5))', t);
  END LOOP;
END $$;

GRANT UPDATE (uses) ON phi_key, phi_kek TO chartkeep_records;
GRANT SELECT, UPDATE ON record, record_version TO chartkeep_keys;
GRANT SELECT, INSERT, UPDATE, DELETE ON phi_key, phi_kek TO chartkeep_keys;
GRANT SELECT, INSERT, UPDATE ON phi_secret TO chartkeep_keys;
GRANT SELECT ON record_patient, index_token TO chartkeep_keys;
RESET ROLE;
GRANT SELECT ON migration TO chartkeep_keys;
