-- What issuers of tokens published last, so that a start while one of them does not answer can go on. mac is under a secret that the
-- database does not hold: a key that was planted here is not believed.
SET LOCAL ROLE chartkeep_owner;
CREATE TABLE issuer_publication (
  issuer   text        COLLATE "C" NOT NULL, -- iss
  kind     text        NOT NULL CHECK (kind IN ('jwks', 'metadata')),
  document bytea       NOT NULL CHECK (octet_length(document) <= 1048576),
  fetched  timestamptz NOT NULL,
  mac      bytea       NOT NULL CHECK (octet_length(mac) = 32),
  PRIMARY KEY (issuer, kind)
);
GRANT SELECT, INSERT, UPDATE (document, fetched, mac) ON issuer_publication TO chartkeep_records;
RESET ROLE;
