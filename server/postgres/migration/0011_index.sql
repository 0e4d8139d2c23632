-- Generations of index keys. An index is made anew under other keys, or by other rules, while it is asked: lookups ask for the tokens of
-- every generation that is here, and new tokens are minted under the active one only.
SET LOCAL ROLE chartkeep_owner;

-- rules is the version of the normalisers and of what is indexed, names how names are (phi.NameSearch).
CREATE TABLE index_generation (
  id      integer  PRIMARY KEY CHECK (id > 0),
  state   text     NOT NULL CHECK (state IN ('reading', 'active', 'retiring')),
  rules   smallint NOT NULL DEFAULT 2 CHECK (rules > 0),
  names   text     NOT NULL DEFAULT 'prefix' CHECK (names ~ '^(prefix|exact|compound)([+]phonetic)?$'),
  created date     NOT NULL DEFAULT current_date
);
CREATE UNIQUE INDEX index_generation_active ON index_generation (state) WHERE state = 'active';
-- What is indexed already was indexed by the first rules.
INSERT INTO index_generation (id, state, rules) SELECT 1, 'active', CASE WHEN EXISTS (SELECT FROM record) THEN 1 ELSE 2 END;

-- Under which generation the tokens of a record were minted.
ALTER TABLE record ADD COLUMN index_id integer NOT NULL DEFAULT 1;
ALTER TABLE record ALTER index_id DROP DEFAULT;
CREATE INDEX record_index ON record (index_id);

-- Whoever changes a generation need not think of telling.
CREATE FUNCTION tell_index_generation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('chartkeep_keys', 'index');
  RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON index_generation FOR EACH STATEMENT EXECUTE FUNCTION tell_index_generation();

-- UPDATE (names, rules) lets the program choose for an index that is still empty, and hold a generation FOR KEY SHARE.
GRANT SELECT, UPDATE (names, rules) ON index_generation TO chartkeep_records;
GRANT SELECT, INSERT, UPDATE, DELETE ON index_generation TO chartkeep_keys;
GRANT INSERT, DELETE ON index_token TO chartkeep_keys;
GRANT DELETE ON phi_secret TO chartkeep_keys;
RESET ROLE;
