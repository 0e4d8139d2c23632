-- Sealed records. No column holds PHI: cells are ciphertext, tokens are keyed, ids are pseudonyms.
SET LOCAL ROLE chartkeep_owner;

-- A cell is nothing, or format byte 1, key id, nonce, ciphertext, tag: a forgotten encryption call fails here.
CREATE DOMAIN sealed AS bytea CHECK (VALUE IS NULL OR octet_length(VALUE) >= 33 AND get_byte(VALUE, 0) = 1);
CREATE DOMAIN wrapped_key AS bytea CHECK (octet_length(VALUE) = 60);

-- The current version of each record, tombstones included. Ids sort by their bytes, whatever the database's locale.
CREATE TABLE record (
  type       text COLLATE "C" NOT NULL,
  id         text COLLATE "C" NOT NULL,
  row_id     uuid        NOT NULL,
  version    bigint      NOT NULL CHECK (version > 0),
  updated    timestamptz NOT NULL,
  method     text        NOT NULL CHECK (method IN ('POST', 'PUT', 'DELETE')),
  patients   text[]      NOT NULL,
  subject    uuid        NOT NULL,
  segment    integer     NOT NULL,
  key_id     bigint      NOT NULL,
  identifier sealed,
  name       sealed,
  birth_date sealed,
  contact    sealed,
  clinical   sealed,
  narrative  sealed,
  seal       bytea       NOT NULL,
  digest     bytea       NOT NULL CHECK (octet_length(digest) = 16),
  PRIMARY KEY (type, id)
) WITH (fillfactor = 90);
-- Not by type first: while the table is empty the planner could keep it for look-ups that belong to the primary key.
CREATE INDEX record_updated ON record (updated, type);
-- Ciphertext does not compress, and one row is read whole: a cell moved out of its row costs a second look-up.
ALTER TABLE record SET (toast_tuple_target = 8160);
ALTER TABLE record
  ALTER identifier SET STORAGE EXTERNAL, ALTER name SET STORAGE EXTERNAL, ALTER birth_date SET STORAGE EXTERNAL,
  ALTER contact SET STORAGE EXTERNAL, ALTER clinical SET STORAGE EXTERNAL, ALTER narrative SET STORAGE EXTERNAL;

-- The versions before.
CREATE TABLE record_version (LIKE record INCLUDING CONSTRAINTS INCLUDING STORAGE, PRIMARY KEY (type, id, version))
  WITH (toast_tuple_target = 8160);

-- In whose compartments the current, not deleted records are; patient '' for a record of nobody's.
CREATE TABLE record_patient (
  patient text COLLATE "C" NOT NULL,
  type    text COLLATE "C" NOT NULL,
  id      text COLLATE "C" NOT NULL,
  PRIMARY KEY (patient, type, id)
);
CREATE INDEX record_patient_record ON record_patient (type, id);

-- Blind indexes of the current, not deleted records.
CREATE TABLE index_token (
  kind  smallint NOT NULL,
  token bytea    NOT NULL CHECK (octet_length(token) = 16),
  type  text COLLATE "C" NOT NULL,
  id    text COLLATE "C" NOT NULL,
  PRIMARY KEY (kind, token, type, id)
);
CREATE INDEX index_token_record ON index_token (type, id);

-- Treatment relationships: stated by a record (source is its type), or granted (source 'grant', type and id ''). reason is
-- a code or a ticket, never clinical text.
CREATE TABLE treatment (
  practitioner text COLLATE "C" NOT NULL,
  patient      text COLLATE "C" NOT NULL,
  source       text NOT NULL,
  type         text COLLATE "C" NOT NULL,
  id           text COLLATE "C" NOT NULL,
  reason       text,
  granted_by   text,
  granted_at   timestamptz,
  PRIMARY KEY (practitioner, patient, type, id),
  CHECK ((source = 'grant') = (type = '' AND id = '' AND granted_by IS NOT NULL))
);
CREATE INDEX treatment_record ON treatment (type, id) WHERE type <> '';

CREATE TABLE phi_kek (
  id      text    PRIMARY KEY,
  root    text    NOT NULL,
  wrapped bytea   NOT NULL,
  active  boolean NOT NULL,
  created date    NOT NULL DEFAULT current_date
);
CREATE UNIQUE INDEX phi_kek_active ON phi_kek (active) WHERE active;

-- Data keys. created is a day: a finer time would tell when a patient came.
CREATE TABLE phi_key (
  subject uuid        NOT NULL,
  segment integer     NOT NULL,
  key_id  bigint      NOT NULL,
  kek     text        NOT NULL,
  wrapped wrapped_key NOT NULL,
  state   text        NOT NULL DEFAULT 'active' CHECK (state IN ('known', 'active', 'decrypt_only')),
  created date        NOT NULL DEFAULT current_date,
  PRIMARY KEY (subject, segment, key_id)
);

CREATE TABLE phi_secret (
  name    text        PRIMARY KEY,
  subject uuid        NOT NULL,
  segment integer     NOT NULL,
  key_id  bigint      NOT NULL,
  kek     text        NOT NULL,
  wrapped wrapped_key NOT NULL
);

CREATE TABLE import_source (
  digest bytea PRIMARY KEY CHECK (octet_length(digest) = 16),
  done   date  NOT NULL DEFAULT current_date
);

GRANT SELECT, INSERT, UPDATE ON record TO chartkeep_records;
GRANT SELECT, INSERT ON record_version, import_source, phi_key, phi_kek, phi_secret TO chartkeep_records;
GRANT SELECT, INSERT, DELETE ON record_patient, index_token, treatment TO chartkeep_records;
RESET ROLE;
