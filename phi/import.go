package phi

import "context"

// Import takes files in (FHIR bundles of type transaction, batch, collection, searchset or history, single resources)
// through the same sealed, audited path as every write, so that imported twice changes nothing.
//
// Entries that a client would POST get an id derived from their fullUrl under the organisation's import key; others keep
// theirs. References by urn:uuid: and conditional references are resolved, against the storage too. An entry whose
// references cannot be resolved yet is reported as ErrDeferred, so that the caller tries again after the other files.
type ImportResult struct {
	Written   int // new versions
	Unchanged int
	Failed    []ImportFailure
	Deferred  bool // nothing was written: references wait for other files
}

// ImportFailure names an entry that did not go in; the others did.
type ImportFailure struct {
	Entry int // index in the bundle, 0 for a single resource
	Err   *Error
}

// Import imports one file's content (one JSON document). final stops deferring: what cannot be resolved is a failure.
func (r *Records) Import(ctx context.Context, c *Caller, content []byte, final bool) (*ImportResult, error) {
	panic("unwritten")
}
