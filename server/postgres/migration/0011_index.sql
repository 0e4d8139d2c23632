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

-- Lets the program choose how names are indexed while there is nothing in the index. Who had minted under the generation that was there
-- holds it until the record is in, or finds it gone.
CREATE FUNCTION choose_index(wanted text, rules smallint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE newest integer;
BEGIN
  PERFORM FROM index_generation ORDER BY id FOR UPDATE;
  SELECT max(g.id) INTO newest FROM index_generation g;
  IF EXISTS (SELECT FROM record) OR EXISTS (SELECT FROM index_generation g WHERE g.names = wanted) THEN RETURN; END IF;
  DELETE FROM index_generation;
  INSERT INTO index_generation (id, state, rules, names) VALUES (newest + 1, 'active', choose_index.rules, wanted);
END $$;
REVOKE EXECUTE ON FUNCTION choose_index FROM PUBLIC;
GRANT EXECUTE ON FUNCTION choose_index TO chartkeep_records;

-- UPDATE (created) is what holding a row FOR KEY SHARE asks for.
GRANT SELECT, UPDATE (created) ON index_generation TO chartkeep_records;
GRANT SELECT, INSERT, UPDATE, DELETE ON index_generation TO chartkeep_keys;
GRANT INSERT, DELETE ON index_token TO chartkeep_keys;
GRANT DELETE ON phi_secret TO chartkeep_keys;
RESET ROLE;
